"""T: maps h -> h' of the residual stream, each at a site and within a scope.

`Add` is activation addition: h' = h + alpha v at the positions of its scope
(arXiv 2308.10248, arXiv 2312.06681). `Ablate` is directional ablation, with
u = v / ||v||: h' = h - (u'h) u, which leaves nothing along v (arXiv 2406.11717).
Positions are absolute: with p the index of a token among the real tokens of its row
and P the prompt's length,

===========  ==================  ===================================================
scope        positions           meaning
===========  ==================  ===================================================
all          every p             prompt and response
prompt       p < P               prompt only
response     p >= P              generated tokens only
generating   p >= P - 1          every position that predicts a response token: the
                                 last prompt token and the generated ones
===========  ==================  ===================================================

so that a scope means the same tokens with and without a KV cache and under padding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from steergauge.errors import InputError, NonFiniteLogits
from steergauge.split import LanguageModel
from steergauge.types import Edit, Mask
from steergauge.vector import Site, SteeringVector


class Scope(StrEnum):
    """Which absolute positions an intervention touches; see the module's table."""

    ALL = "all"
    PROMPT = "prompt"
    RESPONSE = "response"
    GENERATING = "generating"

    def covers(self, positions: Tensor, prompt_lengths: Tensor) -> Tensor:
        """True where `positions` (batch, pos) lie in scope; lengths are (batch,)."""
        length = prompt_lengths[:, None]
        if self is Scope.PROMPT:
            return positions < length
        if self is Scope.RESPONSE:
            return positions >= length
        if self is Scope.GENERATING:
            return positions >= length - 1
        return torch.ones_like(positions, dtype=torch.bool)

    @property
    def touches_prefill(self) -> bool:
        """Whether any prompt token before the last one is in scope."""
        return self in (Scope.ALL, Scope.PROMPT)


def scope_named(name: str) -> Scope:
    """The scope of that name.

    Raises:
        InputError: there is none.
    """
    try:
        return Scope(name)
    except ValueError as error:
        raise InputError(
            f"there is no scope {name!r}.",
            remedy=f"Choose from {', '.join(Scope)}.",
        ) from error


@dataclass(frozen=True, slots=True)
class Add:
    """Activation addition h' = h + alpha v; alpha multiplies v as stored.

    Raises:
        InputError: alpha is not finite.
    """

    vector: SteeringVector
    alpha: float = 1.0
    scope: Scope = Scope.GENERATING

    def __post_init__(self) -> None:
        """Refuse a strength that is no number."""
        if not math.isfinite(self.alpha):
            raise InputError(
                f"alpha is {self.alpha}.", remedy="Give a finite strength."
            )

    @property
    def site(self) -> Site:
        """Where the stream is changed."""
        return self.vector.site

    @property
    def is_identity(self) -> bool:
        """Whether h' == h for every h; such an intervention is not run at all."""
        return self.alpha == 0

    def check_fits(self, lm: LanguageModel, *, other_model: bool = False) -> None:
        """Raise unless the step can be added to this model's stream.

        Args:
            lm: the model to be steered.
            other_model: accept a vector that was extracted from another model.

        Raises:
            NonFiniteLogits: the step overflows what the model computes with.
            VectorError: the vector does not fit; see `SteeringVector.check_fits`.
        """
        self.vector.check_fits(lm, other_model=other_model)
        # Norms square the stream in float32 whatever the weights' precision is.
        squares = self.displacement.square().sum()
        step = self.displacement.to(lm.dtype)
        if not bool(torch.isfinite(squares) and torch.isfinite(step).all()):
            raise NonFiniteLogits(
                f"alpha = {self.alpha:g} at layer {self.site.layer} is a step of "
                f"length {abs(self.alpha) * self.vector.norm:.3g}, which overflows "
                f"{str(lm.dtype).removeprefix('torch.')}.",
                cause="The strength is far beyond the norms that this model works "
                "with, so no logit after it could be trusted.",
                remedy="Use a smaller alpha; `steergauge audit` recommends one.",
            )

    @property
    def displacement(self) -> Tensor:
        """The step alpha v, in float32."""
        return self.vector.direction.float() * self.alpha


@dataclass(frozen=True, slots=True)
class Ablate:
    """Directional ablation h' = h - (u'h) u, with u = v at length 1.

    Attributes:
        vector: whose direction is taken out.
        scope: positions.
        layers: blocks after which it is taken out; empty means after the vector's own.
            Arditi et al. take it out of everything that is written into the stream,
            which all blocks together come close to: what attention writes is still
            seen by the MLP of the same block.
    """

    vector: SteeringVector
    scope: Scope = Scope.ALL
    layers: tuple[int, ...] = ()

    @property
    def site(self) -> Site:
        """Where the stream is changed first."""
        return Site(min(self.layers)) if self.layers else self.vector.site

    @property
    def alpha(self) -> float:
        """Always 1: a direction is taken out or it is not."""
        return 1.0

    @property
    def is_identity(self) -> bool:
        """Never: a stream without any part along v is no rule."""
        return False

    def check_fits(self, lm: LanguageModel, *, other_model: bool = False) -> None:
        """Raise unless the direction can be taken out of this model's stream.

        Args:
            lm: the model to be steered.
            other_model: accept a vector that was extracted from another model.

        Raises:
            LayerOutOfRange: the model has no such block.
            VectorError: the vector does not fit; see `SteeringVector.check_fits`.
        """
        self.vector.check_fits(lm, other_model=other_model)
        for layer in self.layers:
            lm.check_layer(layer)

    @property
    def direction(self) -> Tensor:
        """The u of length 1, in float32."""
        wide = self.vector.direction.double()
        return (wide / torch.linalg.vector_norm(wide)).float()


Intervention = Add | Ablate
"""Every kind of intervention."""


def blocks_of(intervention: Intervention) -> tuple[int, ...]:
    """The blocks after which it changes the stream, ascending."""
    if isinstance(intervention, Ablate) and intervention.layers:
        return tuple(sorted({*intervention.layers}))
    return (intervention.site.layer,)


def edits(
    interventions: Sequence[Intervention | None],
    positions: Tensor,
    mask: Mask,
    prompt_lengths: Tensor,
) -> Mapping[int, Edit]:
    """{layer: map of the whole stream} for a batch whose rows are steered each alone.

    Args:
        interventions: one a row; None leaves the row as it is.
        positions: absolute positions of this pass' tokens, (batch, pos).
        mask: True at real tokens of this pass, (batch, pos).
        prompt_lengths: P of every row, (batch,).
    """
    rows_at: dict[tuple[int, type], list[int]] = {}
    for row, intervention in enumerate(interventions):
        if intervention is not None and not intervention.is_identity:
            for layer in blocks_of(intervention):
                rows_at.setdefault((layer, type(intervention)), []).append(row)
    found: dict[int, Edit] = {}
    for (layer, kind), rows in rows_at.items():
        covered = _covered(interventions, rows, positions, mask, prompt_lengths)
        own = (_adding if kind is Add else _ablating)(interventions, rows, covered)
        before = found.get(layer)
        # No row is in both: their order does not matter.
        found[layer] = own if before is None else _both(before, own)
    return found


def _both(first: Edit, second: Edit) -> Edit:
    return lambda stream: second(first(stream))


def _covered(
    interventions: Sequence[Intervention | None],
    rows: Sequence[int],
    positions: Tensor,
    mask: Mask,
    prompt_lengths: Tensor,
) -> Mask:
    """True at the positions of `rows` that their own scopes cover."""
    covered = torch.zeros_like(mask)
    by_scope: dict[Scope, list[int]] = {}
    for row in rows:
        intervention = interventions[row]
        assert intervention is not None
        by_scope.setdefault(intervention.scope, []).append(row)
    for scope, members in by_scope.items():
        chosen = torch.tensor(members, device=mask.device)
        inside = scope.covers(positions[chosen], prompt_lengths[chosen])
        covered[chosen] = inside & mask[chosen]
    return covered


def _gathered(
    interventions: Sequence[Intervention | None], rows: Sequence[int], device: Any
) -> Tensor:
    """(batch, d_model): each row's step or direction, made once however many share it.

    Rows that are not in `rows` get that of another; nothing covers them.
    """
    distinct: dict[int, int] = {}
    table: list[Tensor] = []
    which = torch.zeros(len(interventions), dtype=torch.long)
    for row in rows:
        intervention = interventions[row]
        assert intervention is not None
        key = id(intervention)
        if key not in distinct:
            distinct[key] = len(table)
            added = isinstance(intervention, Add)
            table.append(intervention.displacement if added else intervention.direction)
        which[row] = distinct[key]
    return torch.stack(table).to(device)[which.to(device)]


def _adding(
    interventions: Sequence[Intervention | None], rows: Sequence[int], covered: Mask
) -> Edit:
    """One gather and one addition, however many different vectors the rows have."""
    shifts = _gathered(interventions, rows, covered.device)

    def edit(stream: Tensor) -> Tensor:
        shift = shifts.to(stream)[:, None, :]
        return torch.where(covered[..., None].to(stream.device), stream + shift, stream)

    return edit


def _ablating(
    interventions: Sequence[Intervention | None], rows: Sequence[int], covered: Mask
) -> Edit:
    """One gather and one projection, however many different directions there are.

    In float32 at least and rounded once: u and u'h in half precision would leave some
    of what is to be taken out.
    """
    directions = _gathered(interventions, rows, covered.device)

    def edit(stream: Tensor) -> Tensor:
        wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
        unit = directions.to(wide)[:, None, :]
        left = wide - (wide * unit).sum(-1, keepdim=True) * unit
        inside = covered[..., None].to(stream.device)
        return torch.where(inside, left.to(stream.dtype), stream)

    return edit
