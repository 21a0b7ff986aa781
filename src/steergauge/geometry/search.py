"""The most different vector that still does what v does on prompts not used to find it.

`most_different` is right about the Fisher matrix that it was given: one of few texts,
and of second order. So its budget is scaled until the true divergence on other texts
agrees ::

    K(v || v'(c tau))  <=  share x K(v || unsteered),      c as large as can be

with K the sequence divergence of the model itself, both sides with their intervals
over prompts, so that a third set of prompts has a fair chance to agree as well.

Shrinkage charges for every direction, also for one that no text sees: at a small budget
a part of v in a null space, which is free, would not be turned. So F is tried without
shrinkage as well. What a few texts failed to see, the other texts show.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from steergauge.geometry.most_different import SHRINKAGE, Equivalent, most_different
from steergauge.intervention import Add
from steergauge.linalg import Spectrum
from steergauge.scoring import Continuation, sequence_kl
from steergauge.split import LanguageModel
from steergauge.statistics import Estimate, estimate, two_way_bootstrap

LEAST, MOST = -8.0, 3.0
"""Ends of the search for log2 c."""

HALVINGS = 8

SHRINKAGES = (SHRINKAGE, 0.0)


@dataclass(frozen=True, slots=True)
class Texts:
    """What a search is checked on.

    Attributes:
        lm: the model.
        rows: texts of the arm v, on prompts that F knows nothing of.
        v: the arm.
        temperature: of the texts.
    """

    lm: LanguageModel
    rows: Sequence[Continuation]
    v: Add
    temperature: float = 1.0

    def nats(self, step: Tensor | None) -> np.ndarray:
        """K(v || .) of each text for a step in the place of alpha v, or for none."""
        other = None if step is None else self.added(step)
        found = sequence_kl(
            self.lm, self.rows, self.v, {"": other}, temperature=self.temperature
        )
        return found[""]

    def added(self, step: Tensor) -> Add:
        """The arm that adds `step` where v adds alpha v."""
        direction = (step / self.v.alpha).float().cpu()
        vector = self.v.vector.with_direction(direction, "found by its Fisher matrix")
        return Add(vector, self.v.alpha, self.v.scope)


@dataclass(frozen=True, slots=True)
class Found:
    """The most different vector within a share of v's effect, before and after checks.

    Attributes:
        budget: the share.
        planned: what F alone allows.
        kept: what the texts of the check allow as well; None if nothing that F was
            asked for stayed within the share.
        scale: c; 0 if nothing did.
        nats: mean K(v || v') on the texts of the check; of v itself if nothing did.
    """

    budget: float
    planned: Equivalent
    kept: Equivalent | None
    scale: float
    nats: float

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the vectors."""
        last = self.kept
        return {
            "budget": self.budget,
            "cosine_planned": self.planned.cosine,
            "cosine": last.cosine if last else 1.0,
            "norm": last.norm if last else 1.0,
            "predicted": last.nats if last else 0.0,
            "shrink": self.scale,
            "validation": self.nats,
        }


def searched(texts: Texts, fisher: Spectrum, *, budget: float, nats: float) -> Found:
    """The most different v' of v's norm whose divergence stays within `budget`.

    Args:
        texts: what it is checked on.
        fisher: spectrum of F at the point alpha v.
        budget: largest K(v || v') as a share of K(v || unsteered).
        nats: the same in nats on the texts that F is of.
    """
    step = texts.v.displacement.double().to(fisher.values)
    limit = budget * _mean(texts.nats(None)).low
    scaled = [
        _scaled(texts, fisher, step, nats=nats, limit=limit, shrinkage=shrinkage)
        for shrinkage in SHRINKAGES
    ]
    found = [one for one in scaled if one is not None]
    if not found:
        planned = most_different(step, fisher, nats=nats)
        return Found(budget, planned, None, 0.0, 0.0)
    best = min(found, key=lambda one: one.kept.cosine or 0.0)
    planned = most_different(step, fisher, nats=nats, shrinkage=best.shrinkage)
    return Found(budget, planned, best.kept, best.scale, best.nats)


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A vector that the check allows, at `scale` times the budget of F."""

    kept: Equivalent
    shrinkage: float
    scale: float
    nats: float


def _scaled(
    texts: Texts,
    fisher: Spectrum,
    step: Tensor,
    *,
    nats: float,
    limit: float,
    shrinkage: float,
) -> _Scaled | None:
    """The largest scale whose vector stays within `limit`; None if the least does not.

    Args:
        texts: what it is checked on.
        fisher: spectrum of F.
        step: alpha v.
        nats: the budget of F at scale 1.
        limit: the most that the upper end of the true cost may be.
        shrinkage: of F.
    """

    def tried(power: float) -> _Scaled | None:
        scale = 2**power
        other = most_different(step, fisher, nats=nats * scale, shrinkage=shrinkage)
        seen = _mean(texts.nats(other.direction))
        found = _Scaled(other, shrinkage, scale, seen.value)
        return found if seen.high <= limit else None

    low, high = LEAST, MOST
    best = tried(high)
    if best is not None:
        return best
    best = tried(low)
    for _ in range(HALVINGS if best is not None else 0):
        middle = (low + high) / 2
        found = tried(middle)
        low, high = (low, middle) if found is None else (middle, high)
        best = found or best
    return best


def _mean(nats: np.ndarray) -> Estimate:
    table = nats[None, :]
    return estimate(table, two_way_bootstrap({"": table})[""])
