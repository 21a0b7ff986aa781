"""The next token after a prompt: how far apart two arms are there, and v's gain.

Logits o of a prompt's last position under v are held against those under other arms,
in the measures of arXiv 2602.06801, Appendix A (distance, agreement, top-10 overlap)
and in ones that weigh tokens by their probability (KL, JS, total variation).

The *gain* of a unit direction u is ||J u||^2 with J = do/dh, here by central
differences in the model's own precision::

    J u ~ (o(h + s u) - o(h - s u)) / 2 s

at the steered positions of the prompt, with s a hundredth of the norm of v. In half
precision so short a step is lost in rounding, which makes all gains larger and more
alike, up to twelvefold in bfloat16; there s is longer, and bending costs some percent.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steergauge import readout
from steergauge.intervention import Add, Intervention, edits
from steergauge.prompts import Text, encode, padded
from steergauge.scoring import logits_of_arms
from steergauge.split import LanguageModel, positions
from steergauge.vector import SteeringVector

STEP = 0.01
HALF_PRECISION_STEPS = {torch.float16: 0.1, torch.bfloat16: 0.3}
"""Of the finite differences, as shares of ||v||."""

RECOMPUTED = "v_recomputed"
"""v again through another compute path: what rounding alone does to every measure."""

PROMPTS_AT_ONCE = 16

Rows = list[dict[str, Any]]


def next_token_distances(
    lm: LanguageModel,
    prompts: Sequence[str],
    reference: Intervention,
    others: Mapping[str, Intervention | None],
    *,
    chat: bool | None = None,
) -> Rows:
    """Distances of every other arm's next-token logits from the reference's.

    One row a prompt and arm: `l2` and `l2_centred` (logits), `agreement` of the
    likeliest token (0 or 1), `overlap` of the ten likeliest (0 to 1), `kl` from the
    reference and `js` (nats), `tv` (0 to 1). The arm `v_recomputed` is added.

    Args:
        lm: the model.
        prompts: where the next token is looked at.
        reference: the arm v.
        others: arms by name.
        chat: through the chat template; None means if there is one.
    """
    rows: Rows = []
    for start, batch in _batches(lm, prompts, chat):
        logits = logits_of_arms(lm, *batch, [reference, *others.values()], keep=1)
        own = next(logits)[:, -1]
        for name, other in zip(others, logits, strict=True):
            rows += _distances(start, name, own, other[:, -1])
        again = _one_by_one(lm, prompts[start : start + len(own)], reference, chat)
        rows += _distances(start, RECOMPUTED, own, again)
    return rows


def gains(
    lm: LanguageModel,
    prompts: Sequence[str],
    reference: Add,
    directions: Mapping[str, SteeringVector],
    *,
    chat: bool | None = None,
) -> Rows:
    """||J u||^2 per prompt, for u = v and other directions, in logits^2 / norm^2.

    Args:
        lm: the model.
        prompts: where J is taken, at the unsteered state.
        reference: v, with the scope that is looked at.
        directions: others of v's norm, by name.
        chat: through the chat template; None means if there is one.
    """
    step = HALF_PRECISION_STEPS.get(lm.dtype, STEP)
    probes = {"v": reference.vector, **directions}
    rows: Rows = []
    for start, batch in _batches(lm, prompts, chat):
        for name, vector in probes.items():
            both = [replace(reference, vector=vector, alpha=a) for a in (step, -step)]
            plus, minus = logits_of_arms(lm, *batch, both, keep=1)
            rise = (plus - minus)[:, -1].double() / (2 * step * vector.norm)
            rows += [
                {"prompt_index": start + i, "direction": name, "gain": gain}
                for i, gain in enumerate(rise.square().sum(-1).tolist())
            ]
    return rows


def _distances(start: int, name: str, own: Tensor, other: Tensor) -> Rows:
    """One row a prompt, from logits (prompts, d_vocab) of two arms."""
    gap = own.double() - other.double()
    columns = {
        "l2": torch.linalg.vector_norm(gap, dim=-1),
        "l2_centred": torch.linalg.vector_norm(gap - gap.mean(-1, True), dim=-1),
        "agreement": readout.token_agreement(own, other),
        "overlap": readout.top_overlap(own, other),
        "kl": readout.kl(own, other),
        "js": readout.jensen_shannon(own, other),
        "tv": readout.total_variation(own, other),
    }
    values = {key: column.tolist() for key, column in columns.items()}
    return [
        {"prompt_index": start + i, "other": name}
        | {key: column[i] for key, column in values.items()}
        for i in range(len(own))
    ]


def _one_by_one(
    lm: LanguageModel, prompts: Sequence[str], arm: Intervention, chat: bool | None
) -> Float[Tensor, "prompts d_vocab"]:
    """The arm's logits from the whole model, each prompt alone and unpadded."""
    found = []
    for prompt in prompts:
        ids, mask, lengths = _batch(lm, [prompt], chat)
        steering = edits([arm], positions(mask), mask, lengths)
        found.append(lm.logits(ids, mask, edits=steering, keep=1)[:, -1])
    return torch.cat(found)


def _batch(
    lm: LanguageModel, prompts: Sequence[str], chat: bool | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, mask and prompt lengths."""
    encoded = [encode(lm, Text(prompt), chat=chat)[0] for prompt in prompts]
    ids, mask = padded(encoded, device=lm.device)
    return ids, mask, mask.sum(-1)


def _batches(
    lm: LanguageModel, prompts: Sequence[str], chat: bool | None
) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor]]]:
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        yield start, _batch(lm, prompts[start : start + PROMPTS_AT_ONCE], chat)
