"""F o T o P in vLLM against the local model: is it the same composite?

Log-probabilities of every token of a short text, unsteered and under rules with a large
effect that together reach every layer. vLLM gives them for the prompt (one pass, or
several chunks) and for its own response (one token a step, from its cache); the local
model gives them for the whole text in one pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steergauge.errors import EngineError
from steergauge.intervention import Ablate, Add, Intervention, Scope, edits
from steergauge.split import LanguageModel, positions
from steergauge.vector import Site, SteeringVector

SPECIMEN = "Write a short message about the weather."
TOLERANCE = {"float32": 1e-4}
"""Largest difference of a token's log-probability, in nats, between vLLM and the local
model; 1e-5 is what is seen. In half precision, where kernels round differently, 0.5."""


def specimens(lm: LanguageModel, ids: Sequence[int]) -> dict[str, Intervention | None]:
    """Rules with a large effect, that together reach every layer."""
    middle = lm.num_layers // 2
    row = torch.tensor([ids], device=lm.device)
    mask = torch.ones_like(row, dtype=torch.bool)
    last = lm.streams(row, mask, layers=(middle,))[middle][0, -1].float().cpu()
    rolled = SteeringVector(last.roll(1), Site(middle))
    own = SteeringVector(last, Site(middle))
    everywhere = tuple(range(lm.num_layers))
    return {
        "unsteered": None,
        f"a step at layer {middle}": Add(rolled, 1.0, Scope.ALL),
        "a direction taken out after every block": Ablate(own, Scope.ALL, everywhere),
    }


def our_log_probabilities(
    lm: LanguageModel, ids: Sequence[int], length: int, rule: Intervention | None
) -> Tensor:
    """Of every token but the first, given those before it, in the local model."""
    row = torch.tensor([list(ids)], device=lm.device)
    mask = torch.ones_like(row, dtype=torch.bool)
    lengths = torch.tensor([length], device=lm.device)
    steering = edits([rule], positions(mask), mask, lengths)
    logits = lm.logits(row, mask, edits=steering)[0, :-1].double()
    return logits.log_softmax(-1).gather(-1, row[0, 1:, None])[:, 0].cpu()


def their_log_probabilities(out: Any) -> tuple[Tensor, list[int]]:
    """Of every token but the first, as vLLM says; and the response's tokens."""
    response = list(out.outputs[0].token_ids)
    tokens = [*out.prompt_token_ids[1:], *response]
    tables = [*out.prompt_logprobs[1:], *out.outputs[0].logprobs]
    found = [table[token].logprob for table, token in zip(tables, tokens, strict=True)]
    return torch.tensor(found, dtype=torch.float64), response


def not_the_model(
    arm: str, theirs: float, ours: float, tolerance: float
) -> EngineError:
    """The error that names both numbers."""
    return EngineError(
        f"vLLM is not the local model: on a short text, {arm}, a token has "
        f"log-probability {theirs:.6g} in vLLM and {ours:.6g} in the local model "
        f"(tolerance {tolerance:g} nats).",
        cause="vLLM computes in another precision, or its version of this "
        "architecture returns its stream in a way that we do not know.",
        remedy="Use the local engine, and please report the model id.",
    )
