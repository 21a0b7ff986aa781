"""Given responses, scored token by token under several interventions at once.

For texts y drawn from the arm v, the sequence divergence from an arm c is, by the
chain rule::

    K(v || c) = E_x E_{y ~ P_v(.|x)} sum_k KL( p_v(.|x, y<k) || p_c(.|x, y<k) ),

exact at every step over the whole vocabulary, so only the texts are sampled. All arms
at a layer share the prefix: h_l is computed once, then each arm costs one suffix,
logits = F_{l->L}(T_c(h_l)).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steergauge.intervention import Intervention, edits
from steergauge.prompts import padded
from steergauge.readout import kl_from, log_likelihood
from steergauge.split import LanguageModel, positions
from steergauge.types import Logits, Mask, TokenIds

LOGITS_AT_ONCE = 2**25
"""Most logits held per arm, 128 MB in float32; rows are scored in chunks below it."""

PerRow = Float[np.ndarray, " rows"]


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt and a response to it, as token ids."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]


def sequence_kl(
    lm: LanguageModel,
    rows: Sequence[Continuation],
    reference: Intervention | None,
    others: Mapping[str, Intervention | None],
    *,
    temperature: float = 1.0,
) -> dict[str, PerRow]:
    """Sum over the response of KL(p_reference || p_other), one number a row, in nats.

    Args:
        lm: the model.
        rows: responses drawn from the reference arm, with their prompts.
        reference: the arm they were drawn from.
        others: the arms to compare with it.
        temperature: the one at which the responses were drawn.
    """
    arms = [reference, *others.values()]
    sums: dict[str, list[float]] = {name: [] for name in others}
    for chunk in _chunks(lm, rows):
        logits = _logits_of_arms(lm, chunk, arms)
        scored = chunk.scored
        divergence_to = kl_from(next(logits)[scored].double() / temperature)
        for name, other in zip(others, logits, strict=True):
            nats = divergence_to(other[scored].double() / temperature)
            sums[name] += _row_sums(nats, scored)
    return {name: np.array(values) for name, values in sums.items()}


def negative_log_likelihood(
    lm: LanguageModel, rows: Sequence[Continuation], scorer: Intervention | None = None
) -> PerRow:
    """-log P(response | prompt) under `scorer`, one number a row, in nats."""
    sums: list[float] = []
    for chunk in _chunks(lm, rows):
        (logits,) = _logits_of_arms(lm, chunk, [scorer])
        scored = chunk.scored
        nats = -log_likelihood(logits[scored], chunk.targets[scored])
        sums += _row_sums(nats, scored)
    return np.array(sums)


def _row_sums(values: Tensor, scored: Tensor) -> list[float]:
    """Sums over each row of values that are given at its scored tokens."""
    table = torch.zeros(scored.shape, dtype=values.dtype, device=values.device)
    table[scored] = values
    return table.sum(-1).tolist()


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Left-padded rows; the last `width` columns hold all responses.

    Attributes:
        ids: token ids of prompts and responses.
        mask: True at real tokens.
        prompt_lengths: tokens of each row's prompt.
        width: tokens of the longest response.
    """

    ids: Tensor
    mask: Tensor
    prompt_lengths: Tensor
    width: int

    @property
    def targets(self) -> Tensor:
        """Tokens of the last `width` columns."""
        return self.ids[:, -self.width :]

    @property
    def scored(self) -> Tensor:
        """True where `targets` holds a response token, not prompt or padding."""
        here = positions(self.mask) >= self.prompt_lengths[:, None]
        return (here & self.mask)[:, -self.width :]


def _chunks(lm: LanguageModel, rows: Sequence[Continuation]) -> Iterator[_Chunk]:
    """As many rows at a time as their logits may take of memory."""
    longest = max((len(row.response_ids) for row in rows), default=0)
    size = max(1, LOGITS_AT_ONCE // ((longest + 1) * lm.d_vocab))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        ids, mask = padded(
            [[*row.prompt_ids, *row.response_ids] for row in part], device=lm.device
        )
        lengths = torch.tensor([len(row.prompt_ids) for row in part], device=lm.device)
        width = max(1, *(len(row.response_ids) for row in part))
        yield _Chunk(ids, mask, lengths, width)


def logits_of_arms(
    lm: LanguageModel,
    ids: TokenIds,
    mask: Mask,
    prompt_lengths: Tensor,
    arms: Sequence[Intervention | None],
    *,
    keep: int,
) -> Iterator[Logits]:
    """For each arm the logits at the last `keep` positions, in the order of `arms`.

    Args:
        lm: the model.
        ids: left-padded token ids.
        mask: True at real tokens.
        prompt_lengths: P of every row, (batch,).
        arms: interventions; None is unsteered.
        keep: how many positions.
    """
    layers = sorted({arm.site.layer for arm in arms if arm is not None})
    streams = lm.streams(ids, mask, layers=layers) if layers else {}
    where = positions(mask)
    for arm in arms:
        if arm is None or arm.is_identity:
            yield lm.logits(ids, mask, keep=keep)
            continue
        steering = edits([arm] * len(ids), where, mask, prompt_lengths)
        layer = arm.site.layer
        if len(steering) > 1:
            yield lm.logits(ids, mask, edits=steering, keep=keep)
        else:
            entered = steering[layer](streams[layer])
            yield lm.suffix(entered, mask, layer=layer, keep=keep)


def _logits_of_arms(
    lm: LanguageModel, chunk: _Chunk, arms: Sequence[Intervention | None]
) -> Iterator[Logits]:
    """For each arm the logits that predict `chunk.targets`."""
    rows, keep = (chunk.ids, chunk.mask, chunk.prompt_lengths), chunk.width + 1
    for logits in logits_of_arms(lm, *rows, arms, keep=keep):
        yield logits[:, :-1]
