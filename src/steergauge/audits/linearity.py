"""T11, the linearisation radius: how far does what is true of small steps reach?

All local theory reads a step u off two derivatives at h, F and J. Along the ray t u
(t in multiples of ||alpha v||) it predicts ::

    KL(p_h || p_{h + t u})  ~  t^2 u' F u / 2         in nats of a text
    o(h + t u) - o(h)       ~  t J u                  in logits

and the radius r_lin(u) is the longest step for which the first holds within 25 %, and
it and all shorter ones do. Means over texts are compared, since it is their mean that
F_bar stands for. The radius of logits is where the median departure of the second,
||o(h + t u) - o(h) - t J u|| / ||t J u||, exceeds 10 %. Between the steps that were
measured, both departures are taken as straight lines in log t.

Rounding departs from any prediction at small steps. The KL is of second order in the
logits, so a step of a hundred times the floor in nats is one of ten times the floor in
logits: rounding makes up at most (1 + 1/10)^2 - 1 = 21 % of its KL. Shorter ones say
nothing, and a departure in logits is read from four hundred times the floor on, where
rounding alone departs by sqrt(1/400) = 5 %.

A curve may bend away and come back between two steps: theory is said to reach the
strength in use only where two readable steps or more, none longer than it, bear it out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.statistics import NUM_DRAWS, Estimate, resampling_weights

TOLERANCE = 0.25
"""Largest departure of the mean KL from the quadratic form, as a share of it."""

TOLERANCE_LOGITS = 0.1
"""Largest median departure of the logits from t J u, as a share of its length."""

INFORMATIVE = 100
"""How many times the floor a KL has to be to say anything of a quadratic form."""

INFORMATIVE_LOGITS = 400
"""Likewise of logits; the module says why."""

MINIMUM_STEPS = 2
"""Readable steps up to the strength in use without which theory does not reach it."""

Grid = Float[np.ndarray, " steps"]
Kept = Bool[np.ndarray, " steps"]
Texts = Float[np.ndarray, " texts"]
Many = Float[np.ndarray, " draws"]


@dataclass(frozen=True, slots=True)
class LinearRay:
    """What was seen along one direction.

    Attributes:
        steps: lengths t > 0 in multiples of ||alpha v||, ascending.
        nats: KL(p_h || p_{h + t u}) of each text at each step.
        quadratic: u' F_x u / 2 of each text, at t = 1.
        logits: ||o(h + t u) - o(h) - t J u|| / ||t J u|| of each text at each step.
    """

    steps: Grid
    nats: Float[np.ndarray, "steps texts"]
    quadratic: Texts
    logits: Float[np.ndarray, "steps texts"]


@dataclass(frozen=True, slots=True)
class Rays:
    """Rays from the unsteered stream.

    Attributes:
        rays: by direction: `v` and whatever it is compared with.
        floor: nats of a text that rounding alone makes.
        strength: ||alpha v||, the unit of the steps.
    """

    rays: Mapping[str, LinearRay]
    floor: float
    strength: float


@dataclass(frozen=True, slots=True)
class _Radius:
    """Where a departure first exceeds its tolerance, or between what it must be.

    Attributes:
        at_least: the radius, or the longest step if none of them departs; 0 if the
            shortest departs.
        at_most: the radius; infinite if no step departs; the shortest step if it does.
    """

    at_least: Many
    at_most: Many

    @property
    def value(self) -> float:
        """One number: the radius, or the only bound that is known of it."""
        return float((self.at_most if self.bound == "at most" else self.at_least)[0])

    @property
    def bound(self) -> str | None:
        """Which bound `value` is, or None if it is the radius."""
        if math.isinf(self.at_most[0]):
            return "at least"
        return None if self.at_least[0] > 0 else "at most"


def linearity(seen: Rays, *, seed: int = 0) -> Finding:
    """Whether the local theory of v reaches as far as the strength in use.

    Args:
        seen: rays, of which `v` is judged.
        seed: of the bootstrap over texts.
    """
    own = seen.rays["v"]
    num = own.nats.shape[1]
    kept = _kept(own, seen.floor, INFORMATIVE)
    weights = resampling_weights(np.random.default_rng(seed), NUM_DRAWS, num)
    point = draws = None
    if kept.any():
        point, draws = _radius(own, kept, _evenly(own)), _radius(own, kept, weights)
    interval = _interval(point, draws)
    verdict = _verdict(draws, _num_near(own, kept))
    details = _details(seen, interval)
    return Finding(
        audit="linearity",
        code="T11",
        subject="",
        claim="What holds of small steps along v holds of a step as long as the one "
        "in use.",
        quantity="linearisation radius r_lin of v (multiples of ||alpha v||)",
        estimate=interval,
        null="r_lin >= 1",
        verdict=verdict,
        reasons=(*_reasons(verdict, point, interval, own, kept), *_elsewhere(details)),
        controls=_controls(own, kept, weights),
        num_prompts=num,
        num_samples=1,
        details=details,
    )


def _details(seen: Rays, interval: Estimate | None) -> dict[str, Any]:
    radius = None
    if interval is not None:
        radius = [interval.value, interval.low, interval.high]
    return {
        "strength": seen.strength,
        "directions": {
            name: _plain(ray, seen.floor) for name, ray in seen.rays.items()
        },
        "tolerance": TOLERANCE,
        "tolerance_logits": TOLERANCE_LOGITS,
        "radius": radius,
        "floor": seen.floor,
    }


def _evenly(ray: LinearRay) -> Float[np.ndarray, "1 texts"]:
    """The weights of a plain mean over texts."""
    num = ray.nats.shape[1]
    return np.full((1, num), 1 / num)


def _predicted(ray: LinearRay) -> Float[np.ndarray, "steps texts"]:
    return ray.steps[:, None] ** 2 * ray.quadratic


def _kept(ray: LinearRay, floor: float, factor: float) -> Kept:
    """Steps whose KL, as seen or as predicted, rounding could not have made.

    A step that was to cost something and costs nothing is informative too.
    """
    larger = np.maximum(ray.nats.mean(1), _predicted(ray).mean(1))
    return larger > factor * floor


def _ratios(
    ray: LinearRay, weights: Float[np.ndarray, "draws texts"]
) -> Float[np.ndarray, "steps draws"]:
    """Mean KL by mean prediction; infinite where nothing was predicted."""
    nats, predicted = ray.nats @ weights.T, _predicted(ray) @ weights.T
    # Stretched resamples of few texts may have a mean below 0.
    nats = np.maximum(nats, 0.0)
    safe = np.where(predicted > 0, predicted, 1.0)
    return np.where(predicted > 0, nats / safe, np.inf)


def _radius(
    ray: LinearRay, kept: Kept, weights: Float[np.ndarray, "draws texts"]
) -> _Radius:
    """The radius of the KL, in every resample."""
    departures = (_ratios(ray, weights) - 1)[kept]
    return _crossings(ray.steps[kept], departures, TOLERANCE)


def _crossings(
    steps: Grid, departures: Float[np.ndarray, "steps draws"], tolerance: float
) -> _Radius:
    """Where each column first leaves +- tolerance, by a straight line in log t."""
    outside = ~(np.abs(departures) <= tolerance)
    never, at_once = ~outside.any(0), outside[0]
    between = ~(never | at_once)
    first = np.where(between, np.argmax(outside, axis=0), 1 if len(steps) > 1 else 0)
    before = np.maximum(first - 1, 0)
    columns = np.arange(departures.shape[1])
    low = np.where(between, departures[before, columns], 0.0)
    high = np.where(between, departures[first, columns], 1.0)
    # After an infinite departure this share is 0: the step before is the radius.
    share = (np.sign(high) * tolerance - low) / (high - low)
    logs = np.log(steps)
    crossing = np.exp(logs[before] + share * (logs[first] - logs[before]))
    at_least = np.where(never, steps[-1], np.where(at_once, 0.0, crossing))
    at_most = np.where(never, np.inf, np.where(at_once, steps[0], crossing))
    return _Radius(at_least, at_most)


def _interval(point: _Radius | None, draws: _Radius | None) -> Estimate | None:
    """The radius with its interval; both end where the grid does."""
    if point is None or draws is None:
        return None
    low = float(np.quantile(draws.at_least, 0.025))
    known = np.where(np.isinf(draws.at_most), draws.at_least, draws.at_most)
    high = float(np.quantile(known, 0.975))
    return Estimate(point.value, min(low, point.value), max(high, point.value))


def _num_near(own: LinearRay, kept: Kept) -> int:
    """Readable steps that are no longer than the strength in use."""
    return int((own.steps[kept] <= 1).sum())


def _verdict(draws: _Radius | None, num_near: int) -> Verdict:
    if draws is None:
        return Verdict.UNINFORMATIVE
    if np.mean(draws.at_least >= 1) >= 0.975:
        return Verdict.LOCAL if num_near >= MINIMUM_STEPS else Verdict.INCONCLUSIVE
    if np.mean(draws.at_most < 1) >= 0.975:
        return Verdict.NONLINEAR
    return Verdict.INCONCLUSIVE


_CONCLUSIONS = {
    Verdict.LOCAL: "so the quadratic form holds at the strength in use.",
    Verdict.NONLINEAR: "so what F and J say of v does not hold at the strength in use, "
    "and has to be checked with the model itself.",
    Verdict.INCONCLUSIVE: "and whether that reaches the strength in use could not be "
    "told.",
}


def _reasons(
    verdict: Verdict,
    point: _Radius | None,
    interval: Estimate | None,
    own: LinearRay,
    kept: Kept,
) -> tuple[str, ...]:
    if point is None or interval is None:
        return (
            f"No step along v, up to {own.steps[-1]:g} times the one in use, costs "
            f"{INFORMATIVE} times what rounding makes: there is nothing to compare.",
        )
    what = {None: "", "at least": "at least ", "at most": "at most "}[point.bound]
    reasons = [
        f"Along v the KL stays within {TOLERANCE:.0%} of its quadratic form up to "
        f"{what}{interval.value:.2g} [{interval.low:.2g}, {interval.high:.2g}] times "
        f"||alpha v||, {_CONCLUSIONS[verdict]}"
    ]
    if _num_near(own, kept) < MINIMUM_STEPS:
        reasons.append(_too_few(_num_near(own, kept)))
    shortest, longest = own.steps[kept][[0, -1]]
    if interval.high >= longest:
        reasons.append(
            f"{longest:g} times ||alpha v|| is the longest step that was measured: an "
            "interval that ends there has no upper end."
        )
    if point.bound == "at most":
        reasons.append(
            f"The shortest step that rounding leaves readable, {shortest:g} times "
            "||alpha v||, departs already: the radius lies somewhere below it."
        )
    near = int(np.argmin(np.abs(np.log(own.steps))))
    ratio = float(_ratios(own, _evenly(own))[near, 0])
    if kept[near] and math.isfinite(ratio):
        reasons.append(
            f"At {own.steps[near]:g} times ||alpha v|| the KL is {ratio:.2f} of what "
            "the quadratic form makes it."
        )
    return tuple(reasons)


def _elsewhere(details: Mapping[str, Any]) -> list[str]:
    """What the verdict on v does not say: its logits, and other directions."""
    found = details["directions"]
    reasons = []
    logits = found["v"]["radius_logits"]
    if logits is not None and logits < 1:
        reasons.append(
            f"The logits themselves follow J v up to {logits:.2g} times ||alpha v||."
        )
    radii = {n: one["radius"] for n, one in found.items() if one["radius"] is not None}
    worst = min(radii, key=lambda name: radii[name], default="v")
    if worst != "v" and radii[worst] < 1:
        reasons.append(
            f"It is a statement about v: along {worst} the KL departs at "
            f"{radii[worst]:.2g} times that length."
        )
    return reasons


def _too_few(num: int) -> str:
    return (
        f"{num or 'No'} step{'' if num == 1 else 's'} up to the strength in use can be "
        f"told from rounding; that theory holds there is said of {MINIMUM_STEPS} or "
        "more."
    )


def _controls(
    own: LinearRay, kept: Kept, weights: Float[np.ndarray, "draws texts"]
) -> tuple[Control, ...]:
    """F belongs to this KL, or the ratio at the shortest step says that it does not."""
    if not kept.any():
        return ()
    first = int(np.argmax(kept))
    value = float(_ratios(own, _evenly(own))[first, 0])
    draws = _ratios(own, weights)[first]
    # Few texts may have a resample that predicts nothing: its ratio is infinite.
    low, high = np.quantile(draws, [0.025, 0.975], method="nearest")
    estimate = None
    if math.isfinite(value) and math.isfinite(high):
        estimate = Estimate(value, min(float(low), value), max(float(high), value))
    expected = (
        "at the shortest readable step along v the KL is its quadratic form, "
        f"within {TOLERANCE:.0%}"
    )
    holds = abs(value - 1) <= TOLERANCE
    return (Control("shortest step", expected, estimate, "", holds),)


def _plain(ray: LinearRay, floor: float) -> dict[str, Any]:
    """A ray for the record; None where rounding could have made the number."""
    kept = _kept(ray, floor, INFORMATIVE)
    ratios = _ratios(ray, _evenly(ray))[:, 0]
    medians = np.median(ray.logits, axis=1)
    readable = _kept(ray, floor, INFORMATIVE_LOGITS) & np.isfinite(medians)
    radius = _radius(ray, kept, _evenly(ray)) if kept.any() else None
    logits = None
    if readable.any():
        columns = medians[readable][:, None]
        logits = _crossings(ray.steps[readable], columns, TOLERANCE_LOGITS)
    return {
        "steps": ray.steps.tolist(),
        "ratio": _known(ratios, kept),
        "departure": _known(medians, readable),
        "radius": None if radius is None else radius.value,
        "bound": None if radius is None else radius.bound,
        "radius_logits": None if logits is None else logits.value,
        "bound_logits": None if logits is None else logits.bound,
    }


def _known(values: Grid, kept: Kept) -> list[float | None]:
    return [
        float(value) if keep and math.isfinite(value) else None
        for value, keep in zip(values, kept, strict=True)
    ]
