"""T7, null directions: what the model really does along a direction it may not see.

A small eigenvalue of F_bar says that a *small* step costs little. So a step of growing
length t is taken along each candidate u, on prompts that did not choose u, and its cost
K(h || h + t u) in nats is held against what rounding makes of a step of that length.
In order, the strongest first:

=================  ==================================================================
EXACT NULL         at every t and on every prompt at most ten times rounding's nats
FIRST-ORDER NULL   K grows as t^4, not t^2 (slope of log mean K over log t >= 3.5): the
                   derivative is 0 and the function is not, as of a coordinate that
                   only an RMSNorm reads
EFFECTIVE NULL     a step of v's length costs, surely, at most a share of what v costs;
                   stated from 50 prompts on, and INCONCLUSIVE on fewer
VISIBLE            none of these was shown
=================  ==================================================================

The slope is that of the two smallest steps whose mean cost is above ten times
rounding's and below saturation, both of them at most one median ||h|| long: beyond, it
is no derivative. A square that is small beside the fourth power does not bend it: where
the cost that F_bar predicts is known, it has to be next to nothing at both steps, too.
EFFECTIVE is looked for among many candidates, so that the intervals that decide it are
widened for their number (Bonferroni); those printed are plain ones.

The references have to bear that out: a random direction that is null shows that these
steps can tell nothing, as does the direction that is seen best if it is not seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from steergauge.audits.comparison import MINIMUM_PROMPTS
from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.statistics import (
    NUM_DRAWS,
    Estimate,
    estimate,
    resampling_weights,
)

FLOOR_FACTOR = 10
"""How many times the cost of rounding a step has to cost to count as seen."""

SATURATION = 0.3
"""Mean nats above which a step no longer shows how its cost began to grow."""

FIRST_ORDER_SLOPE = 3.5
"""Slope from which on a cost grows as t^4: it is 2 along what is seen."""

QUADRATIC_SHARE = 0.05
"""Largest share of a first-order null's cost that F_bar may predict."""

LONGEST = 1.0
"""Longest step, in median ||h||, from which a slope is taken."""

RELATIVE_BUDGET = 0.05

NULLS = (Verdict.EXACT_NULL, Verdict.FIRST_ORDER_NULL, Verdict.EFFECTIVE_NULL)
"""Kinds of null, the strongest claim first."""

CLASSES = (*NULLS, Verdict.INCONCLUSIVE, Verdict.VISIBLE, Verdict.UNINFORMATIVE)
"""Of a direction; UNINFORMATIVE if only its cost could tell and v's is no measure, or
if its own is no number."""

REFERENCES = ("top", "v", "random")
"""Names of directions that are no candidates."""

EXPECTATIONS = {
    "top": "the direction that F_bar sees best is visible",
    "random": "a random direction is no exact and no first-order null",
}

FAILURES = {
    "top": "Not even the direction that F_bar sees best is visible: these prompts and "
    "this precision can tell nothing of others.",
    "random": "A random direction comes out as a null: these steps tell a null from no "
    "other direction.",
}

Nats = Float[np.ndarray, " prompts"]
Weights = Float[np.ndarray, "draws prompts"]
"""Of prompts in each resample; all directions share them."""


@dataclass(frozen=True, slots=True)
class Ray:
    """What steps along one direction cost.

    Attributes:
        steps: lengths as shares of the median ||h||, rising.
        nats: the cost of each step on each prompt, in nats.
        floors: nats that rounding alone makes of a step of that length, at most.
        at_strength: the cost of a step as long as alpha v, on each prompt.
        quadratic: mean nats of each step by the quadratic form F_bar; None if unknown.
    """

    steps: Float[np.ndarray, " steps"]
    nats: Float[np.ndarray, "steps prompts"]
    floors: Float[np.ndarray, " steps"]
    at_strength: Nats
    quadratic: Float[np.ndarray, " steps"] | None = None

    @property
    def finite(self) -> bool:
        """Whether all of it are numbers: a step may be too long for the arithmetic."""
        given = (self.nats, self.floors, self.at_strength, self.quadratic)
        return all(np.isfinite(one).all() for one in given if one is not None)

    @property
    def above(self) -> bool:
        """Whether any prompt tells any of the steps from rounding."""
        return bool((self.nats.max(1) > FLOOR_FACTOR * self.floors).any())

    @property
    def informative(self) -> Bool[np.ndarray, " steps"]:
        """Steps that cost more than rounding does, and do not saturate."""
        mean = self.nats.mean(1)
        return (mean > FLOOR_FACTOR * self.floors) & (mean < SATURATION)

    @property
    def slope(self) -> float | None:
        """Of log mean cost over log length; None without two informative steps."""
        first = self._first
        if len(first) < 2:
            return None
        cost, length = np.log(self.nats.mean(1)[first]), np.log(self.steps[first])
        return float((cost[1] - cost[0]) / (length[1] - length[0]))

    @property
    def local_slope(self) -> float | None:
        """The slope, if neither of its steps is longer than the stream itself."""
        near = int((self.informative & (self.steps <= LONGEST)).sum())
        return self.slope if near >= 2 else None

    @property
    def steep(self) -> bool:
        """Whether that is a slope which no direction has that is seen."""
        slope = self.local_slope
        return slope is not None and slope >= FIRST_ORDER_SLOPE

    @property
    def predicted_share(self) -> float | None:
        """Largest share of the slope's costs that F_bar predicts; None if unknown."""
        first = self._first
        if self.quadratic is None or len(first) < 2:
            return None
        return float((self.quadratic[first] / self.nats.mean(1)[first]).max())

    @property
    def _first(self) -> Int[np.ndarray, " _"]:
        """The steps that the slope is taken from."""
        return np.flatnonzero(self.informative)[:2]


@dataclass(frozen=True, slots=True)
class Judged:
    """A direction's class, its cost at v's strength (plain interval), and the reason.

    Attributes:
        kind: the class.
        cost: nats of a step of v's length; None if the ray is no finite number.
        reason: why, in full sentences.
    """

    kind: Verdict
    cost: Estimate | None
    reason: str


def nulls(
    rays: Mapping[str, Ray],
    *,
    effect: Nats,
    budget: float = RELATIVE_BUDGET,
    seed: int = 0,
) -> Finding:
    """The strongest kind of null among the candidates, if one of them is any.

    UNINFORMATIVE if there is no candidate, the direction that is seen best is not
    seen, a random one is null, a reference's cost is no finite number, or only cost
    could tell and v's own is no measure.

    Args:
        rays: by name; `top`, `v` and `random` are references, all others candidates.
        effect: nats that v costs at its strength, on the same prompts.
        budget: share of v's effect that an effective null may cost.
        seed: of the bootstrap.
    """
    generator = np.random.default_rng(seed)
    weights = resampling_weights(generator, NUM_DRAWS, len(effect))
    yardstick = _mean(effect, weights) if np.isfinite(effect).all() else None
    judged = _classes(rays, weights, effect, budget=budget)
    best = _strongest(judged)
    verdict, reasons = _verdict(judged, best)
    plain = {name: _plain(rays[name], one) for name, one in judged.items()}
    return Finding(
        audit="nulls",
        code="T7",
        subject="",
        claim="Some direction moves the output by nothing, or by next to nothing at "
        "v's strength.",
        quantity=f"nats of a step of v's length along {best or 'a null'}",
        estimate=judged[best].cost if best else None,
        null=f"v itself costs {yardstick.value:.3g} nats" if yardstick else "",
        verdict=verdict,
        reasons=reasons,
        controls=_controls(judged),
        num_prompts=len(effect),
        num_samples=1,
        details={"directions": plain, "effect": _ends(yardstick), "budget": budget},
    )


def _classes(
    rays: Mapping[str, Ray], weights: Weights, effect: Nats, *, budget: float
) -> dict[str, Judged]:
    """Every direction, judged as one of as many as there are candidates."""
    num = sum(name not in REFERENCES for name in rays)
    level = 1 - 0.05 / max(num, 1)
    # A v that is not told from rounding itself is no measure of others.
    measured = "v" not in rays or rays["v"].above
    measured = measured and bool(np.isfinite(effect).all())
    least = _mean(effect, weights, level=level).low if measured else 0.0
    return {
        name: _judged(ray, weights, allowed=budget * least, level=level)
        for name, ray in rays.items()
    }


def _strongest(judged: Mapping[str, Judged]) -> str | None:
    """The first candidate of the strongest class, if there is any candidate."""
    names = [name for name in judged if name not in REFERENCES]
    return min(names, key=lambda n: CLASSES.index(judged[n].kind), default=None)


def _judged(ray: Ray, weights: Weights, *, allowed: float, level: float) -> Judged:
    """One direction; `allowed` nats are the budget, 0 where v is no measure.

    Args:
        ray: what steps along it cost.
        weights: of the resamples.
        allowed: the most that a step of v's length may cost, surely.
        level: of the interval that decides.
    """
    if not ray.finite:
        return Judged(
            Verdict.UNINFORMATIVE,
            None,
            "the cost of some step, or what rounding makes of it, is no finite number, "
            "so that nothing can be said of it.",
        )
    cost = _mean(ray.at_strength, weights)
    if not ray.above:
        most, longest = float(ray.nats.max()), float(ray.steps[-1])
        return Judged(
            Verdict.EXACT_NULL,
            cost,
            f"no step up to {longest:g} ||h|| costs more than {FLOOR_FACTOR} times "
            f"what rounding makes of it (at most {most:.2g} nats).",
        )
    if ray.steep and (ray.predicted_share or 0) <= QUADRATIC_SHARE:
        return Judged(
            Verdict.FIRST_ORDER_NULL,
            cost,
            f"{_slope(ray)}, where a direction that is seen has 2.",
        )
    highest = _mean(ray.at_strength, weights, level=level).high
    kind = _by_cost(highest, allowed, num=weights.shape[1])
    return Judged(kind, cost, f"{_slope(ray)}; {_cost(kind, cost, allowed, weights)}")


def _by_cost(highest: float, allowed: float, *, num: int) -> Verdict:
    """The class of what is neither an exact nor a first-order null."""
    if allowed <= 0:
        return Verdict.UNINFORMATIVE
    if highest > allowed:
        return Verdict.VISIBLE
    # An equivalence, and a bootstrap of few prompts is too sure of itself.
    return Verdict.EFFECTIVE_NULL if num >= MINIMUM_PROMPTS else Verdict.INCONCLUSIVE


def _slope(ray: Ray) -> str:
    num = int(ray.informative.sum())
    if ray.slope is None:
        return (
            f"{num or 'no'} step{'' if num == 1 else 's'} between rounding and "
            "saturation, so that there is no slope to tell a first-order null by"
        )
    if ray.local_slope is None:
        return (
            f"only steps beyond {LONGEST:g} ||h|| tell it from rounding, and their "
            f"slope of {ray.slope:.2f} does not tell a first-order null from others"
        )
    grows = f"its cost grows as length to the power of {ray.slope:.2f}"
    share = ray.predicted_share
    if share is None or not ray.steep:
        return grows
    grows += f" (F_bar predicts up to {share:.0%} of it at the steps that say so)"
    if share <= QUADRATIC_SHARE:
        return grows
    return f"{grows}, so that its derivative is not 0 and the class goes by cost"


def _cost(kind: Verdict, cost: Estimate, allowed: float, weights: Weights) -> str:
    numbers = f"a step of v's length costs {cost.value:.3g} [{cost.low:.3g}, "
    numbers += f"{cost.high:.3g}] nats"
    if kind is Verdict.UNINFORMATIVE:
        return f"{numbers}, and v's own effect is too uncertain to hold it against."
    budget = f"the budget of {allowed:.3g} nats"
    if kind is Verdict.INCONCLUSIVE:
        return (
            f"{numbers}, within {budget} on {weights.shape[1]} prompts; an effective "
            f"null is stated from {MINIMUM_PROMPTS} on."
        )
    words = "surely within" if kind is Verdict.EFFECTIVE_NULL else "not surely within"
    if cost.low > allowed:
        words = "more than"
    return f"{numbers}, {words} {budget}."


def _verdict(
    judged: Mapping[str, Judged], best: str | None
) -> tuple[Verdict, tuple[str, ...]]:
    if best is None:
        return Verdict.UNINFORMATIVE, ("No candidate direction was given.",)
    if failed := _failed(judged):
        return Verdict.UNINFORMATIVE, failed
    kind = judged[best].kind
    reasons = [f"{best}: {judged[best].reason}"]
    others = [
        name
        for name, seen in judged.items()
        if seen.kind is kind and name != best and name not in REFERENCES
    ]
    if others:
        reasons.append(f"Of the same class: {', '.join(others)}.")
    if kind is Verdict.VISIBLE:
        reasons.append(
            "VISIBLE says that no kind of null was shown; a candidate whose interval "
            "reaches into the budget could still be an effective one."
        )
    return kind, tuple(reasons)


def _failed(judged: Mapping[str, Judged]) -> tuple[str, ...]:
    """Why the references take away what is said of candidates, if they do."""
    for name in REFERENCES:
        seen = judged.get(name)
        if seen is not None and not _holds(name, seen):
            unknown = "A reference's cost is unknown, so that no control can be read."
            why = unknown if seen.cost is None else FAILURES[name]
            return why, f"{name}: {seen.reason}"
    return ()


def _holds(name: str, seen: Judged) -> bool:
    """A random direction may well cost less than v does, but not nothing."""
    missed = {"top": (*NULLS, Verdict.INCONCLUSIVE), "random": NULLS[:2]}
    return seen.cost is not None and seen.kind not in missed.get(name, ())


def _controls(judged: Mapping[str, Judged]) -> tuple[Control, ...]:
    return tuple(
        Control(name, expected, seen.cost, str(seen.kind), _holds(name, seen))
        for name, seen in judged.items()
        if (expected := EXPECTATIONS.get(name))
    )


def _mean(nats: Nats, weights: Weights, *, level: float = 0.95) -> Estimate:
    """The mean over prompts; a divergence is at least 0, whatever an end may be."""
    found = estimate(nats[None], weights @ nats, level=level)
    return Estimate(found.value, max(0.0, found.low), found.high, level)


def _ends(seen: Estimate | None) -> list[float] | None:
    return None if seen is None else [seen.value, seen.low, seen.high]


def _plain(ray: Ray, judged: Judged) -> dict[str, object]:
    return {
        "class": str(judged.kind),
        "slope": ray.slope if ray.finite else None,
        "steps": ray.steps.tolist(),
        "nats": _known(ray.nats.max(1)),
        "mean": _known(ray.nats.mean(1)),
        "floors": _known(ray.floors),
        "quadratic": None if ray.quadratic is None else _known(ray.quadratic),
        "at_strength": _ends(judged.cost),
    }


def _known(values: Float[np.ndarray, " steps"]) -> list[float | None]:
    """For the record, which holds no infinities."""
    return [float(one) if np.isfinite(one) else None for one in values]
