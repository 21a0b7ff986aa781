"""T13, agreement of methods: are vectors extracted in several ways the same vector?

Two vectors can point elsewhere and do the same, for the output does not see every
direction equally. The angle that counts is that in the metric of the output ::

    cos_F(u, v) = u' F_bar v / sqrt(u' F_bar u  v' F_bar v)

With strengths matched so that both cost the same nats in the quadratic model,

    KL(p_u || p_v) / KL(p_v || p_0)  ~  2 (1 - cos_F),

and a budget of 5 % of v's effect is cos_F >= 0.975, whatever the Euclidean cosine.
The class of v holds the methods whose own ratio to v is within the budget: what stands
between does not make two vectors one. What is left over falls into classes by links,
each a ratio within the budget. Pairs with v are judged by the KL that the model itself
makes, all others by the prediction, give or take the most that it errs by where both
are known. Either claim has to hold at both ends of the ratios: ONE CLASS at the upper
ones, SEVERAL at the lower ones.

Differences whose signs were flipped at random hold no contrast: a vector made of them
that were in v's class would show that the classes tell nothing apart.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from steergauge.audits.comparison import MINIMUM_PROMPTS
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
        reference: row of v.
        predicted: 2 (1 - cos_F).
        error: most that a prediction errs by where v was measured; infinite if unknown.
        value: measured with v, predicted otherwise.
        low: the lower ends of what was measured, or predicted and widened by `error`.
        high: likewise the upper ends.
    """

    names: list[str]
    reference: int
    predicted: Square
    error: float
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
    ratios = _ratios(seen, names, fisher, relative)
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
        reasons=_reasons(seen, verdict, effect, ratios, relative),
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
            "num_classes": _counts(seen, ratios),
            "prediction_error": ratios.error if math.isfinite(ratios.error) else None,
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
    seen: Extracted,
    names: list[str],
    fisher: Square,
    relative: Mapping[str, Estimate],
) -> _Ratios:
    # What the output does not see at all does nothing that v does.
    predicted = np.where(np.isnan(fisher), np.inf, 2 * (1 - fisher))
    np.fill_diagonal(predicted, 0.0)
    at = names.index(seen.reference)
    error = max(
        (
            abs(float(predicted[at, names.index(name)]) - one.value)
            for name, one in relative.items()
            if name not in seen.nulls and np.isfinite(predicted[at, names.index(name)])
        ),
        default=math.inf,
    )
    value, low, high = predicted.copy(), _least(predicted, error), predicted + error
    np.fill_diagonal(high, 0.0)
    for name, one in relative.items():
        pair = [at, names.index(name)], [names.index(name), at]
        value[pair], low[pair], high[pair] = one.value, one.low, one.high
    return _Ratios(names, at, predicted, error, value, low, high)


def _least(predicted: Square, error: float) -> Square:
    """The smallest ratios; what has no prediction is like nothing, whatever it errs."""
    known = np.isfinite(predicted)
    return np.where(known, np.maximum(np.where(known, predicted, 0) - error, 0), np.inf)


def _rows(seen: Extracted, names: list[str]) -> list[int]:
    return [i for i, name in enumerate(names) if name not in seen.nulls]


def _classes(
    ratios: Square, rows: list[int], threshold: float, *, reference: int
) -> list[list[int]]:
    """The class of v, and what links of at most `threshold` connect of all others.

    A method that is not like v is in no class with it, whatever stands between.
    """
    own = [i for i in rows if i == reference or ratios[i, reference] <= threshold]
    classes: list[list[int]] = []
    for row in (i for i in rows if i not in own):
        linked = [c for c in classes if any(ratios[row, m] <= threshold for m in c)]
        merged = sorted([row, *(member for c in linked for member in c)])
        classes = [c for c in classes if c not in linked] + [merged]
    return sorted([own, *classes])


def _at(seen: Extracted, ratios: _Ratios, values: Square) -> list[list[int]]:
    """The classes of all methods but nulls, if the ratios are these."""
    rows = _rows(seen, ratios.names)
    return _classes(values, rows, seen.threshold, reference=ratios.reference)


def _groups(seen: Extracted, ratios: _Ratios) -> list[list[str]]:
    """The classes of all methods but nulls, by name."""
    return [
        [ratios.names[i] for i in members]
        for members in _at(seen, ratios, ratios.value)
    ]


def _counts(seen: Extracted, ratios: _Ratios) -> list[int]:
    """Numbers of classes: as it is, and at the lower and the upper ends."""
    return [
        len(_at(seen, ratios, values))
        for values in (ratios.value, ratios.low, ratios.high)
    ]


def _verdict(seen: Extracted, ratios: _Ratios, effect: Estimate) -> Verdict:
    """One class, or several, if that holds at both ends of every ratio."""
    if _why_not(seen, ratios, effect) is not None:
        return Verdict.UNINFORMATIVE
    _, low, high = _counts(seen, ratios)
    is_open = low == 1 and high > 1
    if len(seen.effect) < MINIMUM_PROMPTS or is_open:
        return Verdict.INCONCLUSIVE
    return Verdict.ONE_CLASS if high == 1 else Verdict.SEVERAL


def _mistaken(seen: Extracted, ratios: _Ratios) -> list[str]:
    """Nulls that are as near to v as a method of its class."""
    return [
        name
        for name, ratio in zip(
            ratios.names, ratios.value[ratios.reference], strict=True
        )
        if name in seen.nulls and ratio <= seen.threshold
    ]


def _reasons(
    seen: Extracted,
    verdict: Verdict,
    effect: Estimate,
    ratios: _Ratios,
    relative: Mapping[str, Estimate],
) -> tuple[str, ...]:
    groups, (_, low, high) = _groups(seen, ratios), _counts(seen, ratios)
    told = "; ".join(", ".join(group) for group in groups)
    reasons = []
    if why := _why_not(seen, ratios, effect):
        reasons.append(why)
    reasons.append(
        f"At {seen.threshold:.0%} of v's effect the vectors fall into {len(groups)} "
        f"class{'es' if len(groups) != 1 else ''}: {told}."
    )
    if low != high:
        reasons.append(
            "The intervals of what was measured and of what was predicted leave the "
            f"number of classes open: {low} at the lower ends of the ratios, {high} at "
            "the upper ones."
        )
    num = len(seen.effect)
    if verdict is Verdict.INCONCLUSIVE and num < MINIMUM_PROMPTS:
        reasons.append(
            f"That is on {num} prompts; it is stated from {MINIMUM_PROMPTS} on."
        )
    if (worst := _least_alike(seen, relative)) is not None:
        reasons.append(_comparison(ratios, worst))
    return tuple(reasons)


def _why_not(seen: Extracted, ratios: _Ratios, effect: Estimate) -> str | None:
    """Why nothing can be told, if so."""
    if mistaken := _mistaken(seen, ratios):
        return (
            f"{', '.join(mistaken)} does what v does, though it was made without the "
            "trait: agreement of methods then says nothing."
        )
    if len(_rows(seen, ratios.names)) < 2:
        return "There is one method only, and nothing to compare it with."
    if effect.low <= FLOOR_FACTOR * seen.floor:
        return "v has no effect that this many prompts can see: every vector agrees."
    if seen.threshold * effect.low <= seen.floor:
        return (
            f"The budget, {seen.threshold:.0%} of v's effect of {effect.value:.2g} "
            f"nats, lies below the {seen.floor:.2g} nats that rounding alone makes."
        )
    return None


def _comparison(ratios: _Ratios, worst: str) -> str:
    """The least like v, and how far predictions can be trusted."""
    pair = ratios.reference, ratios.names.index(worst)
    told = (
        f"The least like v is {worst}: measured {ratios.value[pair]:.2g} of v's "
        f"effect [{ratios.low[pair]:.2g}, {ratios.high[pair]:.2g}]"
    )
    if math.isfinite(ratios.predicted[pair]):
        told += f", predicted {ratios.predicted[pair]:.2g}"
    if math.isfinite(ratios.error):
        told += (
            ". Pairs without v are judged by the prediction alone, which with v errs "
            f"by up to {ratios.error:.2g} and may do so for them"
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
