"""T: maps h -> h' of the residual stream, each at a site and within a scope.

`Add` is activation addition: h' = h + alpha v at the positions of its scope
(arXiv 2308.10248, arXiv 2312.06681). Positions are absolute: with p the index of a
token among the real tokens of its row and P the prompt's length,

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


Intervention = Add
"""Every kind of intervention; so far there is one."""


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
    rows_at: dict[int, list[int]] = {}
    for row, intervention in enumerate(interventions):
        if intervention is not None and not intervention.is_identity:
            rows_at.setdefault(intervention.site.layer, []).append(row)
    return {
        layer: _adding(interventions, rows, positions, mask, prompt_lengths)
        for layer, rows in rows_at.items()
    }


def _adding(
    interventions: Sequence[Intervention | None],
    rows: Sequence[int],
    positions: Tensor,
    mask: Mask,
    prompt_lengths: Tensor,
) -> Edit:
    """One gather and one addition, however many different vectors the rows have."""
    distinct: dict[int, int] = {}
    table: list[Tensor] = []
    which = torch.zeros(len(interventions), dtype=torch.long)
    covered = torch.zeros_like(mask)
    by_scope: dict[Scope, list[int]] = {}
    for row in rows:
        intervention = interventions[row]
        assert intervention is not None
        key = id(intervention)
        if key not in distinct:
            distinct[key] = len(table)
            table.append(intervention.displacement)
        which[row] = distinct[key]
        by_scope.setdefault(intervention.scope, []).append(row)
    for scope, members in by_scope.items():
        chosen = torch.tensor(members, device=mask.device)
        inside = scope.covers(positions[chosen], prompt_lengths[chosen])
        covered[chosen] = inside & mask[chosen]
    shifts = torch.stack(table).to(mask.device)[which.to(mask.device)]

    def edit(stream: Tensor) -> Tensor:
        shift = shifts.to(stream)[:, None, :]
        return torch.where(covered[..., None].to(stream.device), stream + shift, stream)

    return edit
