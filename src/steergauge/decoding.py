"""One batch decoded step by step: rows, each with its own intervention, grow together.

Each distinct prefix is read once, up to but not including its last token, in passes of
some thousand tokens; its keys and values are given to all rows that share it. The last
prompt token is the first decoding step of every row. Rows that have finished leave the
batch: the last rows take their places.

What a step needs besides the tokens (who is here, who is steered how, whose noise) is
a `_Plan`. It changes when rows leave, and once after the first step, whose token alone
is part of the prompt: scopes cover all later positions alike.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from steergauge.batching import prefill_rows
from steergauge.cache import Memory, can_be_joined, joined, spread
from steergauge.drawing import Decoding, Noise, Piece, drawn
from steergauge.errors import NonFiniteLogits
from steergauge.fixed_step import FixedStep, Place, may_be_fixed, proved
from steergauge.intervention import Ablate, Intervention, edits
from steergauge.prompts import padded
from steergauge.split import LanguageModel, positions
from steergauge.types import Edit

COMPACT_BELOW = 0.97
"""Finished rows are dropped once this share or less of the batch is alive. What is
moved is one row for each that leaves, but a new plan costs some milliseconds."""


@dataclass(frozen=True, slots=True)
class Row:
    """One continuation to be made.

    Attributes:
        arm: name of its condition.
        intervention: None is unsteered.
        index: which prompt.
        sample: which of the prompt's samples.
        prompt_ids: the prompt's tokens.
        noise_key: of its random numbers.
    """

    arm: str
    intervention: Intervention | None
    index: int
    sample: int
    prompt_ids: tuple[int, ...]
    noise_key: int

    @property
    def prefill_key(self) -> tuple[int, int]:
        """Rows with the same key share keys and values before the last token."""
        intervention = self.intervention
        own = intervention is not None and intervention.scope.touches_prefill
        return self.index, id(intervention) if own else 0


@dataclass(frozen=True, slots=True)
class _Plan:
    """What stays the same from step to step while no row leaves.

    Attributes:
        listed: which rows are in the batch.
        interventions: theirs.
        edits: {layer: map of the stream after it}.
        pieces: rows drawn together.
    """

    listed: list[int]
    interventions: list[Intervention | None]
    edits: Mapping[int, Edit]
    pieces: Sequence[Piece]


@dataclass(slots=True)
class _Batch:
    """Rows that are being decoded: all that changes from step to step.

    Attributes:
        lm: the model.
        rows: those that the batch began with.
        noise: theirs.
        cache: keys and values of those that are still here.
        mask: theirs, True at real tokens, up to the longest response.
        lengths: tokens of their prompts.
        here: which of `rows` they are.
        done: which of them have ended.
        filled: columns of the cache that hold tokens.
        plan: None after rows have left.
        fixed: the step in fixed shapes, once it is proved.
    """

    lm: LanguageModel
    rows: Sequence[Row]
    noise: Noise
    cache: DynamicCache
    mask: Tensor
    lengths: Tensor
    here: Tensor
    done: Tensor
    filled: int
    plan: _Plan | None = None
    fixed: FixedStep | None = None

    def logits(self, token: Tensor, step: int) -> tuple[Tensor, _Plan]:
        """Logits after each row's latest token, (batch, d_vocab), and their plan."""
        if self.plan is None or step == 1:
            self.plan = self._planned(self.lengths + step - 1)
            if self.fixed is not None:
                self.fixed = self._fixed(step)
        if self.fixed is not None:
            logits = self.fixed(token)
        else:
            logits = self._ordinary(token)
            if step == 1 and may_be_fixed(self.lm, self.cache, self.mask.shape[1] - 1):
                self._fix(token, logits, step)
        _check_finite(logits, self.plan.interventions)
        if self.fixed is not None:
            self.fixed.advance()
        self.filled += 1
        return logits, self.plan

    def without_ended(self, stops: Sequence[int], token: Tensor) -> Tensor:
        """Drop the rows that have ended; the tokens of those that are still here.

        Where shapes are fixed, a new one costs more, and half the rows go at once.
        """
        share = 0.5 if self.fixed is not None else COMPACT_BELOW
        if len(stops) - sum(stops) > share * len(stops):
            return token
        kept = torch.tensor(_closed_up(stops), device=self.lm.device)
        # A layer of the cache may be on another device than the tokens.
        self.cache.batch_select_indices(kept.cpu())
        self.here, self.done, self.plan = self.here[kept], self.done[kept], None
        self.mask, self.lengths = self.mask[kept], self.lengths[kept]
        return token[kept]

    def _ordinary(self, token: Tensor) -> Tensor:
        assert self.plan is not None
        seen, how = self.mask[:, : self.filled + 1], self.plan.edits
        return self.lm.logits(token, seen, edits=how, cache=self.cache, keep=1)[:, -1]

    def _fixed(self, step: int) -> FixedStep:
        assert self.plan is not None
        place = Place(self.mask[:, :-1], self.lengths + step - 1, self.filled)
        return FixedStep(self.lm, self.cache, self.plan.edits, place)

    def _fix(self, token: Tensor, logits: Tensor, step: int) -> None:
        """Go over to fixed shapes, if they give the logits of the ordinary step."""
        other = (token + 1) % self.lm.d_vocab
        self._unread()
        told = [(other, self._ordinary(other)), (token, logits)]
        fixed = self._fixed(step)
        if proved(fixed, told):
            self.fixed = fixed
            return
        self._unread()
        self._ordinary(token)  # Written again: nothing of the other step is left.

    def _unread(self) -> None:
        """Take the latest token out of the cache."""
        layers: list[Any] = self.cache.layers
        for layer in layers:
            layer.unfix(self.filled)

    def _planned(self, where: Tensor) -> _Plan:
        """What the next steps need; `where` are the positions of the next tokens."""
        listed = self.here.tolist()
        interventions = [self.rows[i].intervention for i in listed]
        real = torch.ones_like(where, dtype=torch.bool)[:, None]
        return _Plan(
            listed,
            interventions,
            edits(interventions, where[:, None], real, self.lengths),
            self.noise.pieces(self.here, self.lm.d_vocab),
        )


def decode(
    lm: LanguageModel,
    rows: Sequence[Row],
    how: Decoding,
    ends: frozenset[int],
    memory: Memory,
    *,
    ended: Callable[[int], None],
) -> list[list[int]]:
    """Response tokens of every row; an end token is the last one.

    Args:
        lm: the model.
        rows: the batch.
        how: how tokens are drawn.
        ends: tokens that end a response.
        memory: for keys and values; that of a batch before this one is overwritten.
        ended: called with the number of responses that a step ended.

    Raises:
        NonFiniteLogits: an intervention drove the logits to infinity or NaN.
    """
    batch, token = _begun(lm, rows, how, memory)
    end_ids = torch.tensor(sorted(ends), device=lm.device)
    out: list[list[int]] = [[] for _ in rows]
    num_left = len(rows)
    for step in range(how.max_new_tokens):
        logits, plan = batch.logits(token, step)
        drawn_ids = drawn(logits, how, plan.pieces, step)
        was_done = batch.done
        batch.done = was_done | torch.isin(drawn_ids, end_ids)
        # One way back from the device a step.
        told = torch.stack([drawn_ids, was_done.long(), batch.done.long()]).tolist()
        for i, chosen, over in zip(plan.listed, told[0], told[1], strict=True):
            if not over:
                out[i].append(chosen)
        num_ended = sum(told[2]) - sum(told[1])
        num_left -= num_ended
        ended(num_ended)
        if num_left == 0:
            return out
        token = batch.without_ended(told[2], drawn_ids)[:, None]
    ended(num_left)
    return out


def _begun(
    lm: LanguageModel, rows: Sequence[Row], how: Decoding, memory: Memory
) -> tuple[_Batch, Tensor]:
    """A batch before its first step, and the last token of every prompt."""
    ids, mask = padded([row.prompt_ids for row in rows], device=lm.device)
    batch = _Batch(
        lm=lm,
        rows=rows,
        noise=Noise([row.noise_key for row in rows], lm.device),
        cache=_prefill(lm, rows, ids, mask, how.max_new_tokens, memory),
        mask=torch.nn.functional.pad(mask, (0, how.max_new_tokens), value=True),
        lengths=mask.sum(-1),
        here=torch.arange(len(rows), device=lm.device),
        done=torch.zeros(len(rows), dtype=torch.bool, device=lm.device),
        filled=ids.shape[1] - 1,
    )
    return batch, ids[:, -1:]


def _closed_up(ended: Sequence[int]) -> list[int]:
    """Places of the rows that go on, the last of them in the places of those that end.

    Only as many rows move as have ended before the new end.
    """
    size = len(ended) - sum(ended)
    movers = [i for i in range(size, len(ended)) if not ended[i]]
    return [movers.pop() if ended[i] else i for i in range(size)]


def _prefill(
    lm: LanguageModel,
    rows: Sequence[Row],
    ids: Tensor,
    mask: Tensor,
    room: int,
    memory: Memory,
) -> DynamicCache:
    """Keys and values of all tokens but the last, of each distinct prefix once."""
    slots: dict[tuple[int, int], int] = {}
    heads: list[int] = []
    for i, row in enumerate(rows):
        if row.prefill_key not in slots:
            slots[row.prefill_key] = len(heads)
            heads.append(i)
    empty = DynamicCache(config=lm.model.config)
    if ids.shape[1] == 1:
        return empty
    size = prefill_rows(lm, ids.shape[1] - 1) if can_be_joined(empty) else len(heads)
    parts = [heads[start : start + size] for start in range(0, len(heads), size)]
    cache = joined(
        [
            _read(lm, [rows[i].intervention for i in part], ids[part], mask[part])
            for part in parts
        ]
    )
    which = [slots[row.prefill_key] for row in rows]
    spread(cache, which, room=room, memory=memory)
    return cache


def _read(
    lm: LanguageModel,
    steering: Sequence[Intervention | None],
    ids: Tensor,
    mask: Tensor,
) -> DynamicCache:
    """Keys and values of some prompts' tokens but the last, in one pass."""
    cache = DynamicCache(config=lm.model.config)
    seen = mask[:, :-1]
    how = edits(steering, positions(seen), seen, mask.sum(-1))
    lm.logits(ids[:, :-1], seen, edits=how, cache=cache, keep=1)
    return cache


def _check_finite(logits: Tensor, here: Sequence[Intervention | None]) -> None:
    # One sum tells: infinities and NaN never leave it finite. A sum of finite numbers
    # can overflow, so that each row is looked at before anything is said.
    if math.isfinite(float(logits.sum(dtype=torch.float32))):
        return
    broken = (~torch.isfinite(logits).all(-1)).nonzero().squeeze(-1).tolist()
    if not broken:
        return
    steering = here[broken[0]]
    if steering is None:
        raise NonFiniteLogits(
            "the unsteered model gives infinite or NaN logits.",
            cause="Its weights are damaged or overflow in this precision.",
            remedy="Load it in float32.",
        )
    raise NonFiniteLogits(
        f"{_described(steering)} drove the logits to infinity or NaN.",
        cause="The step is far beyond the norms that this model works with.",
        remedy="Use a smaller alpha; `steergauge audit` recommends one.",
    )


def _described(steering: Intervention) -> str:
    if isinstance(steering, Ablate):
        return f"ablation at layer {steering.site.layer}"
    norm = steering.vector.norm * abs(steering.alpha)
    return (
        f"alpha = {steering.alpha:g} at layer {steering.site.layer} (a step of length "
        f"{norm:.3g})"
    )
