"""T13, agreement of methods: are vectors extracted in several ways the same vector?

Two vectors can point elsewhere and do the same, for the output does not see every
direction equally. The angle that counts is that in the metric of the output ::

    cos_F(u, v) = u' F_bar v / sqrt(u' F_bar u  v' F_bar v)

With strengths matched so that both cost the same nats in the quadratic model,

    KL(p_u || p_v) / KL(p_v || p_0)  ~  2 (1 - cos_F),

and a budget of 5 % of v's effect is cos_F >= 0.975, whatever the Euclidean cosine.
Methods whose ratio is within the budget are linked, and a class is what links connect.
Pairs with v are judged by the KL that the model itself makes, all others by the
prediction; how well it does where both are known is told.

Differences whose signs were flipped at random hold no contrast: a vector made of them
that were in v's class would show that the classes tell nothing apart.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.statistics import Draws, Estimate, two_way_bootstrap

THRESHOLD = 0.05
"""Largest KL from v, as a share of v's own effect, of a vector that does the same."""

FLOOR_FACTOR = 10
"""How many times the floor v's effect has to be for anything to be compared with it."""

UNBOUNDED = 1e6
"""Largest ratio that is reported: it stands for one that has no upper end."""

Prompts = Float[np.ndarray, " prompts"]
Square = Float[np.ndarray, "vectors vectors"]


@dataclass(frozen=True, slots=True)
class Extracted:
    """Vectors for one trait, by the method that made them.

    Attributes:
        vectors: by method.
        fisher: F_bar.
        nats: by method, KL(p_v || p_u) of each prompt with u's strength matched; a
            method that is left out is judged by the prediction.
        effect: KL(p_v || p_0) of each prompt, v's own.
        nulls: methods that cannot find the trait, such as `sign_flip`.
        strengths: by method, its matched strength in units of its stored norm.
        threshold: largest ratio of KLs at which two vectors do the same.
        floor: nats that rounding alone makes.
        own: the method that made v; `mean_difference` or else the first if None.
    """

    vectors: Mapping[str, Float[np.ndarray, " d_model"]]
    fisher: Float[np.ndarray, "d_model d_model"]
    nats: Mapping[str, Prompts]
    effect: Prompts
    nulls: tuple[str, ...] = ("sign_flip",)
    strengths: Mapping[str, float] | None = None
    threshold: float = THRESHOLD
    floor: float = 0.0
    own: str | None = None

    @property
    def reference(self) -> str:
        """The method that made v."""
        if self.own is not None:
            return self.own
        known = "mean_difference" in self.vectors
        return "mean_difference" if known else next(iter(self.vectors))


@dataclass(frozen=True, slots=True)
class _Ratios:
    """Ratios of KLs between all vectors, as they are and as they may be.

    Attributes:
        names: of the rows and columns.
        predicted: 2 (1 - cos_F).
        value: measured with v, predicted otherwise.
        low: with the lower ends of what was measured.
        high: with the upper ends.
    """

    names: list[str]
    predicted: Square
    value: Square
    low: Square
    high: Square


def methods(seen: Extracted, *, seed: int = 0) -> Finding:
    """How many different things the vectors of several methods do.

    Args:
        seen: vectors, and what they cost.
        seed: of the bootstrap over prompts.
    """
    names = list(seen.vectors)
    stacked = np.stack([seen.vectors[name] for name in names])
    euclidean = _cosines(stacked @ stacked.T)
    fisher = _cosines(stacked @ seen.fisher @ stacked.T)
    effect, relative = _measured(seen, seed)
    ratios = _ratios(seen.reference, names, fisher, relative)
    verdict, groups = _verdict(seen, ratios, effect), _groups(seen, ratios)
    worst = _least_alike(seen, relative)
    return Finding(
        audit="methods",
        code="T13",
        subject="",
        claim="All methods find one vector, as far as the output can tell.",
        quantity="largest KL(v || u) by v's effect, over methods",
        estimate=None if worst is None else relative[worst],
        null=f"at most {seen.threshold:g}",
        verdict=verdict,
        reasons=_reasons(seen, verdict, groups, ratios, relative),
        controls=_controls(seen, ratios, relative),
        num_prompts=len(seen.effect),
        num_samples=1,
        details={
            "names": names,
            "reference": seen.reference,
            "cosine": _table(euclidean),
            "cosine_fisher": _table(fisher),
            "relative": {name: _plain(one) for name, one in relative.items()},
            "strengths": dict(seen.strengths or {}),
            "classes": groups,
            "effect": _plain(effect),
            "threshold": seen.threshold,
        },
    )


def _cosines(products: Square) -> Square:
    """Cosines from inner products; NaN for a vector of length 0."""
    lengths = np.sqrt(np.maximum(np.diag(products), 0.0))
    scales = np.outer(lengths, lengths)
    cosines = products / np.where(scales > 0, scales, 1.0)
    return np.where(scales > 0, np.clip(cosines, -1, 1), np.nan)


def _measured(seen: Extracted, seed: int) -> tuple[Estimate, dict[str, Estimate]]:
    """The effect of v, and the KL of every other vector from v as a share of it."""
    tables = {name: nats[None] for name, nats in seen.nats.items()}
    draws = two_way_bootstrap({"": seen.effect[None], **tables}, seed=seed)
    own = float(seen.effect.mean())
    # A prompt's KL from v varies with v's effect on it: the ratio is of one resample.
    relative = {
        name: _interval(_share(float(nats.mean()), own), _share(draws[name], draws[""]))
        for name, nats in seen.nats.items()
        if name in seen.vectors and name != seen.reference
    }
    return _interval(own, draws[""]), relative


def _share(top: Draws | float, bottom: Draws | float) -> Any:
    """A quotient of means that cannot be negative, though stretched draws may be."""
    top = np.maximum(top, 0.0)
    return top / np.maximum(bottom, np.maximum(top / UNBOUNDED, 1e-300))


def _interval(value: float, draws: Draws) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(value), min(float(low), value), max(float(high), value))


def _least_alike(seen: Extracted, relative: Mapping[str, Estimate]) -> str | None:
    """The method whose vector is least like v, if any was measured."""
    others = [name for name in relative if name not in seen.nulls]
    return max(others, key=lambda name: relative[name].value, default=None)


def _ratios(
    reference: str, names: list[str], fisher: Square, relative: Mapping[str, Estimate]
) -> _Ratios:
    # What the output does not see at all does nothing that v does.
    predicted = np.where(np.isnan(fisher), np.inf, 2 * (1 - fisher))
    np.fill_diagonal(predicted, 0.0)
    value, low, high = (predicted.copy() for _ in range(3))
    at = names.index(reference)
    for name, one in relative.items():
        pair = [at, names.index(name)], [names.index(name), at]
        value[pair], low[pair], high[pair] = one.value, one.low, one.high
    return _Ratios(names, predicted, value, low, high)


def _rows(seen: Extracted, names: list[str]) -> list[int]:
    return [i for i, name in enumerate(names) if name not in seen.nulls]


def _classes(ratios: Square, rows: list[int], threshold: float) -> list[list[int]]:
    """Rows that links of at most `threshold` connect, in their order."""
    classes: list[list[int]] = []
    for row in rows:
        linked = [c for c in classes if any(ratios[row, m] <= threshold for m in c)]
        merged = sorted([row, *(member for c in linked for member in c)])
        classes = [c for c in classes if c not in linked] + [merged]
    return sorted(classes)


def _groups(seen: Extracted, ratios: _Ratios) -> list[list[str]]:
    """The classes of all methods but nulls, by name."""
    classes = _classes(ratios.value, _rows(seen, ratios.names), seen.threshold)
    return [[ratios.names[i] for i in members] for members in classes]


def _verdict(seen: Extracted, ratios: _Ratios, effect: Estimate) -> Verdict:
    """One class, or several, if that holds at both ends of what was measured."""
    rows = _rows(seen, ratios.names)
    visible = effect.low > FLOOR_FACTOR * seen.floor
    if not visible or len(rows) < 2 or _mistaken(seen, ratios):
        return Verdict.UNINFORMATIVE
    if len(_classes(ratios.high, rows, seen.threshold)) == 1:
        return Verdict.ONE_CLASS
    if len(_classes(ratios.low, rows, seen.threshold)) > 1:
        return Verdict.SEVERAL
    return Verdict.INCONCLUSIVE


def _mistaken(seen: Extracted, ratios: _Ratios) -> list[str]:
    """Nulls that a link connects with the class of v, and so cannot be told from it."""
    groups = _groups(seen, ratios)
    own = [ratios.names.index(n) for g in groups if seen.reference in g for n in g]
    return [
        name
        for i, name in enumerate(ratios.names)
        if name in seen.nulls and ratios.value[i, own].min() <= seen.threshold
    ]


def _reasons(
    seen: Extracted,
    verdict: Verdict,
    groups: list[list[str]],
    ratios: _Ratios,
    relative: Mapping[str, Estimate],
) -> tuple[str, ...]:
    told = "; ".join(", ".join(group) for group in groups)
    reasons = []
    if verdict is Verdict.UNINFORMATIVE:
        reasons.append(_why_not(seen, ratios))
    reasons.append(
        f"At {seen.threshold:.0%} of v's effect the vectors fall into {len(groups)} "
        f"class{'es' if len(groups) != 1 else ''}: {told}."
    )
    if verdict is Verdict.INCONCLUSIVE:
        reasons.append(
            "The intervals of what was measured leave open whether it is one class."
        )
    if (worst := _least_alike(seen, relative)) is not None:
        reasons.append(_comparison(seen, ratios, worst, list(relative)))
    return tuple(reasons)


def _why_not(seen: Extracted, ratios: _Ratios) -> str:
    if mistaken := _mistaken(seen, ratios):
        return (
            f"{', '.join(mistaken)} does what v does, though it was made without the "
            "trait: agreement of methods then says nothing."
        )
    if len(_rows(seen, ratios.names)) < 2:
        return "There is one method only, and nothing to compare it with."
    return "v has no effect that this many prompts can see: every vector agrees."


def _comparison(
    seen: Extracted, ratios: _Ratios, worst: str, measured: list[str]
) -> str:
    """The least like v, and how far predictions can be trusted."""
    at, i = ratios.names.index(seen.reference), ratios.names.index(worst)
    own = [name for name in measured if name not in seen.nulls]
    known = [ratios.names.index(name) for name in own]
    gap = np.abs(ratios.predicted[at, known] - ratios.value[at, known]).max()
    told = (
        f"The least like v is {worst}: measured {ratios.value[at, i]:.2g} of v's "
        f"effect [{ratios.low[at, i]:.2g}, {ratios.high[at, i]:.2g}]"
    )
    if math.isfinite(gap):
        told += (
            f", predicted {ratios.predicted[at, i]:.2g}. Pairs without v are judged by "
            f"the prediction alone, which with v errs by up to {gap:.2g}"
        )
    return told + "."


def _controls(
    seen: Extracted, ratios: _Ratios, relative: Mapping[str, Estimate]
) -> tuple[Control, ...]:
    mistaken = _mistaken(seen, ratios)
    return tuple(
        Control(
            name,
            "made without the trait, it is not in the class of v",
            relative.get(name),
            "",
            name not in mistaken,
        )
        for name in ratios.names
        if name in seen.nulls
    )


def _table(values: Square) -> list[list[float | None]]:
    return [[None if math.isnan(x) else float(x) for x in row] for row in values]


def _plain(one: Estimate) -> list[float]:
    return [one.value, one.low, one.high]
