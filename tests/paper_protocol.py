"""The published method of arXiv 2602.06801, written down once more.

Section 6 and Appendix A in numpy and plain transformers, with nothing of this package:
a forward hook of its own, its own Cohen's d, r, perp-only, R, agreement and overlap.
What a run says "as published" is held against this.

The code published with a later version differs from the text in two places, and both
are here: v is read from `hidden_states[l]`, which is the output of block l - 1, and
added to the output of block l; and a probe scores prompt and continuation together,
their first 512 characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

SCORED_CHARACTERS = 512
TOP = 10


@dataclass(frozen=True)
class PlainModel:
    """A Hugging Face model with its tokenizer and the block that is steered."""

    model: Any
    tokenizer: Any
    block: Any

    def ids(self, text: str) -> torch.Tensor:
        return torch.tensor([self.tokenizer(text)["input_ids"]])

    @torch.no_grad()
    def next_token_logits(self, prompt: str, step: np.ndarray | None) -> np.ndarray:
        """After the prompt, with `step` added to the stream of its last token."""

        def add(_module, _inputs, output):
            stream = output if torch.is_tensor(output) else output[0]
            stream[:, -1] += torch.tensor(step, dtype=stream.dtype)

        hook = None if step is None else self.block.register_forward_hook(add)
        logits = self.model(self.ids(prompt), use_cache=False).logits[0, -1]
        if hook is not None:
            hook.remove()
        return logits.double().numpy()

    @torch.no_grad()
    def mean_difference(
        self, pairs: Sequence[tuple[str, str]], index: int
    ) -> np.ndarray:
        """Equation 9, from `hidden_states[index]` at the final token."""

        def last(text: str) -> np.ndarray:
            states = self.model(self.ids(text), output_hidden_states=True).hidden_states
            return states[index][0, -1].double().numpy()

        return np.mean([last(plus) - last(minus) for plus, minus in pairs], axis=0)

    def scored_text(self, prompt: str, token_ids: Sequence[int]) -> str:
        """What the published code's probe is given."""
        whole = [*self.ids(prompt)[0].tolist(), *token_ids]
        text = self.tokenizer.decode(whole, skip_special_tokens=True)
        return text[:SCORED_CHARACTERS]


def marker_score(text: str, high: Sequence[str], low: Sequence[str]) -> float:
    """The paper's kind of probe: markers of two poles, through a sigmoid."""
    words = text.split()
    balance = sum(w in high for w in words) - sum(w in low for w in words)
    return 1 / (1 + np.exp(-balance))


def effect_size(one: Sequence[float], other: Sequence[float]) -> float:
    """Cohen's d without its sign, the mean of both variances under the root."""
    a, b = np.asarray(one), np.asarray(other)
    return abs(a.mean() - b.mean()) / np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)


def pearson(one: Sequence[float], other: Sequence[float]) -> float:
    """Correlation of two flat lists of scores."""
    return float(np.corrcoef(one, other)[0, 1])


def over_seeds(own: Sequence[float], added: Sequence[Sequence[float]]) -> dict:
    """Mean and spread over v_perp of d and r, a row of Table 1."""
    d = [effect_size(own, other) for other in added]
    r = [pearson(own, other) for other in added]
    return {
        "d_mean": np.mean(d),
        "d_sd": np.std(d),
        "r_mean": np.mean(r),
        "r_sd": np.std(r),
    }


def perp_only(perp: Sequence[Sequence[float]], own: Sequence[float]) -> float:
    """The last column of Table 1, in percent."""
    return 100 * abs(np.mean(perp)) / abs(np.mean(own))


def logit_table(own: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Distance, token agreement and top-10 overlap of one prompt (Table 3)."""
    tops = [set(np.argsort(-logits)[:TOP].tolist()) for logits in (own, other)]
    return {
        "l2": float(np.linalg.norm(own - other)),
        "agreement": float(np.argmax(own) == np.argmax(other)),
        "overlap": len(tops[0] & tops[1]) / TOP,
    }


def ratio(perp: Sequence[float], random: Sequence[float]) -> float:
    """Equation 10, of mean distances."""
    return float(np.mean(perp) / np.mean(random))
