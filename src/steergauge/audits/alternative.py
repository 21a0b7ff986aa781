"""T10, how far from v a vector can point that writes what v writes.

A vector v' of v's norm that costs at most tau nats by v's Fisher matrix, at the
largest angle that this allows (`geometry.most_different`), had its tau scaled on other
prompts until its true divergence agreed, and is judged on a third set ::

    K(v || v')  <=  budget x K(v || unsteered)        at the unfavourable ends of both

Is that *structure*, so that certain directions do nothing, or would any direction do?
A vector of v's norm at 60 degrees lies ||v|| away from v, and so does v + r with r a
random vector across v of its length. By the quadratic, with rho = rho_F the cost of v
over that of a random direction, v + r costs 1 / rho of what v does. The freedom is
*generic* if v + r stays within the budget, and has a structure if v' at 60 degrees or
more does and v + r surely does not.

Random vectors at the cosine and norm of v' are shown beside it. They cannot stay within
a small budget at such an angle, for they give up part of v itself ::

    (1 - cos)^2 + (1 - cos^2) / rho       of what v does,   2 (1 - cos) at rho = 1

so they decide only where nothing was added to v. That the search found no v' at a
larger angle is no proof that there is none.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from steergauge.audits.comparison import MINIMUM_DIRECTIONS, MINIMUM_PROMPTS
from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.errors import InputError
from steergauge.geometry.search import MOST
from steergauge.statistics import Draws, Estimate, estimate, two_way_bootstrap

RELATIVE_BUDGET = 0.05
FLOOR_FACTOR = 10

FAR = 0.5
"""Cosine from which on a vector counts as another direction: 60 degrees."""

LARGEST = 2**MOST
"""Most by which the search multiplies a budget by the Fisher matrix."""

_PLANNED = (
    "budget", "cosine_planned", "cosine", "shrink", "norm", "predicted", "validation",
)  # fmt: skip

Nats = Float[np.ndarray, " prompts"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A vector that was made to do what v does, and what it does on new prompts.

    Attributes:
        budget: share of v's effect that it may cost.
        cosine_planned: with v, at the optimum of the quadratic model.
        cosine: with v, after its budget was scaled on the validation prompts.
        shrink: factor on its budget by the Fisher matrix that the validation prompts
            allowed, from 2^-8 to 2^3. Above 1 the quadratic model overestimates what
            the vector costs.
        norm: ||v'|| / ||v||.
        predicted: nats by the Fisher matrix that it was made with.
        validation: nats on the validation prompts.
        nats: K(v || v') of every test prompt.
        control: the same of random vectors at its cosine and norm, a row each.
    """

    budget: float
    cosine_planned: float
    cosine: float
    shrink: float
    norm: float
    predicted: float
    validation: float
    nats: Nats
    control: Float[np.ndarray, "draws prompts"]

    @property
    def angle(self) -> float:
        """Between v' and v, in degrees."""
        return math.degrees(math.acos(min(1.0, max(-1.0, self.cosine))))


@dataclass(frozen=True, slots=True)
class Alternatives:
    """Candidates for v's place, and what they have to keep to.

    Attributes:
        candidates: at one or more budgets; none if nothing that was tried kept to its
            budget on the validation prompts.
        effect: K(v || unsteered) of the same test prompts.
        floor: kappa_0, the nats between two compute paths of one arm.
        rho: rho_F of v.
        manipulation: verdict of T1 on v; None if it was not asked.
        budget: the one that the verdict is about.
        radius: up to which length the quadratic model holds, in multiples of
            ||alpha v||; None if unknown.
        added: K(v || v + r) of random vectors r across v of its length, a row each;
            None if there are none. A single one counts as none.
        num_validation: prompts that the candidates were checked on.
    """

    candidates: Sequence[Candidate]
    effect: Nats
    floor: float
    rho: float
    manipulation: Verdict | None = None
    budget: float = RELATIVE_BUDGET
    radius: float | None = None
    added: Float[np.ndarray, "_ prompts"] | None = None
    num_validation: int | None = None


@dataclass(frozen=True, slots=True)
class _Budget:
    """A share of v's effect, at the unfavourable ends of both intervals."""

    share: float
    effect: Estimate

    def holds(self, nats: Estimate) -> bool:
        """Whether it is surely kept to."""
        return nats.high <= self.share * self.effect.low

    def breaks(self, nats: Estimate) -> bool:
        """Whether it is surely exceeded."""
        return nats.low > self.share * self.effect.high


@dataclass(frozen=True, slots=True)
class _Judged:
    """A candidate beside the budget of the run."""

    candidate: Candidate
    nats: Estimate
    control: Estimate
    main: _Budget
    relative: Draws

    @property
    def verified(self) -> bool:
        return self.main.holds(self.nats)

    @property
    def refuted(self) -> bool:
        return self.main.breaks(self.nats)

    def to_json(self) -> dict[str, Any]:
        own = self.candidate
        return {
            **{name: getattr(own, name) for name in _PLANNED},
            "angle_deg": own.angle,
            "nats": _plain(self.nats),
            "control": _plain(self.control),
            "verified": _Budget(own.budget, self.main.effect).holds(self.nats),
            "verified_main": self.verified,
        }


def alternative(seen: Alternatives, *, seed: int = 0) -> Finding:
    """Whether a vector that points elsewhere writes what v writes.

    Every candidate is held against the run's budget, also one that was made for
    another; its own is told beside it.

    Args:
        seen: candidates, and what they have to keep to.
        seed: of the bootstrap.

    Raises:
        InputError: a candidate without random vectors at its cosine.
    """
    _check(seen)
    effect, judged = _judged(seen, seed)
    small = [one for one in judged if one.candidate.budget <= seen.budget]
    main = max(small, key=lambda one: one.candidate.budget, default=None)
    best = max((one for one in judged if one.verified), key=_angle, default=None)
    added = _added(seen, seed)
    verdict, reasons = _judge(seen, effect, judged, best, added)
    shown = best or main
    expected = _expected(shown, seen.rho)
    return Finding(
        audit="alternative",
        code="T10",
        subject="",
        claim="A vector that points elsewhere writes what v writes (KL at most "
        f"{seen.budget:.0%} of what v changes).",
        quantity="K(v || v') / K(v || unsteered) of the candidate at the main budget",
        estimate=_relative(main, effect),
        null=""
        if expected is None
        else f"{expected:.3g}, as a random vector at the same angle by rho_F",
        verdict=verdict,
        reasons=(*reasons, *_limits(main, seen.radius, verdict)),
        controls=_controls(shown, effect, seen.floor),
        num_prompts=len(seen.effect),
        num_samples=1,
        details={
            "candidates": [one.to_json() for one in judged],
            "effect": _plain(effect),
            "budget": seen.budget,
            "rho": seen.rho,
            "best": best
            and {"cosine": best.candidate.cosine, "angle_deg": best.candidate.angle},
            "within_deg": _angle(_last(judged, best))
            if verdict is Verdict.IDENTIFIABLE
            else None,
            "generic_limit": 1 / seen.rho if seen.rho > 0 else None,
            "added": _plain(added) if added else None,
            "radius": seen.radius,
            "control_predicted": expected,
        },
    )


def _check(seen: Alternatives) -> None:
    if not all(len(one.control) for one in seen.candidates):
        raise InputError(
            "a candidate came without random vectors at its cosine, so that whether "
            "its freedom has a structure cannot be told.",
            remedy="Make some with `geometry.most_different.same_cosine`.",
        )


def _judged(seen: Alternatives, seed: int) -> tuple[Estimate, list[_Judged]]:
    tables = {"effect": seen.effect[None, :]}
    for i, one in enumerate(seen.candidates):
        tables |= {f"nats {i}": one.nats[None, :], f"control {i}": one.control}
    # Prompts are resampled jointly, so candidates stay paired with the effect.
    draws = two_way_bootstrap(tables, seed=seed)
    means = {
        name: _not_negative(estimate(table, draws[name]))
        for name, table in tables.items()
    }
    effects = np.maximum(draws["effect"], 1e-300)
    return means["effect"], [
        _Judged(
            one,
            means[f"nats {i}"],
            means[f"control {i}"],
            _Budget(seen.budget, means["effect"]),
            np.maximum(draws[f"nats {i}"], 0.0) / effects,
        )
        for i, one in enumerate(seen.candidates)
    ]


def _angle(one: _Judged | None) -> float:
    """Of v itself, 0."""
    return one.candidate.angle if one else 0.0


def _last(judged: Sequence[_Judged], best: _Judged | None) -> _Judged | None:
    """The widest that does what v does, or else the nearest that surely does not."""
    refuted = (one for one in judged if one.refuted)
    return best or min(refuted, key=_angle, default=None)


def _added(seen: Alternatives, seed: int) -> Estimate | None:
    """What random additions to v cost; None if there are too few of them."""
    if seen.added is None or len(seen.added) < MINIMUM_DIRECTIONS:
        return None
    draws = two_way_bootstrap({"": seen.added}, seed=seed)[""]
    return _not_negative(estimate(seen.added, draws))


def _judge(
    seen: Alternatives,
    effect: Estimate,
    judged: Sequence[_Judged],
    best: _Judged | None,
    added: Estimate | None,
) -> tuple[Verdict, list[str]]:
    precondition = _precondition(seen, effect)
    if precondition:
        return Verdict.UNINFORMATIVE, [precondition]
    if added is not None and _Budget(seen.budget, effect).holds(added):
        verdict, reasons = Verdict.GENERIC, [
            *([_told(best)] if best else []),
            f"{_told_added(added)}, surely within the budget: any direction would do, "
            "up to 45 degrees from v.",
        ]  # fmt: skip
    elif best is not None and best.candidate.cosine <= FAR:
        verdict, reason = _kind(best, added)
        reasons = [_told(best), reason]
    elif not judged:
        verdict, reasons = Verdict.INCONCLUSIVE, [_nothing(seen.num_validation)]
    else:
        verdict, reasons = _searched(judged, best)
    num = len(seen.effect)
    if num < MINIMUM_PROMPTS and verdict is not Verdict.INCONCLUSIVE:
        reasons.append(
            f"That is on {num} prompts; it is stated from {MINIMUM_PROMPTS} on."
        )
        verdict = Verdict.INCONCLUSIVE
    return verdict, reasons


def _limits(
    main: _Judged | None, radius: float | None, verdict: Verdict
) -> Iterator[str]:
    """Where the making of the candidates ended, and may have missed a wider angle."""
    if verdict is Verdict.UNINFORMATIVE:
        return
    if main is not None and main.candidate.shrink >= LARGEST:
        yield (
            f"The search ended at its limit: at {LARGEST:.0f} times the budget by the "
            "Fisher matrix the true cost still kept to it, so a wider angle may do."
        )
    if radius is not None and radius < 1:
        yield (
            f"The quadratic model that proposed the candidates holds up to "
            f"{radius:.2f} of ||alpha v|| only, so better ones may exist; what was "
            "verified was measured, and stands."
        )


def _precondition(seen: Alternatives, effect: Estimate) -> str | None:
    """Why there is nothing to compare, if so."""
    if seen.manipulation in (Verdict.FAIL, Verdict.UNINFORMATIVE):
        return (
            f"v did not pass its manipulation check ({seen.manipulation}), so there is "
            "no effect that another vector could have."
        )
    if effect.low <= FLOOR_FACTOR * seen.floor:
        return (
            f"v itself changes the texts by {effect.value:.2g} nats, not more than "
            f"{FLOOR_FACTOR} times the {seen.floor:.2g} by which two compute paths of "
            "the same arm differ: there is nothing to compare."
        )
    if seen.budget * effect.low <= seen.floor:
        return (
            f"The budget, {seen.budget:.0%} of v's effect of {effect.value:.2g} nats, "
            f"lies below the {seen.floor:.2g} nats by which two compute paths of the "
            "same arm differ."
        )
    return None


def _nothing(num_validation: int | None) -> str:
    num = "" if num_validation is None else f"{num_validation} "
    return (
        f"The search found no vector that surely kept to the budget on the {num}"
        "validation prompts, so none was tried on those of the test. That is no "
        "proof that there is none, and few prompts make nothing sure."
    )


def _kind(best: _Judged, added: Estimate | None) -> tuple[Verdict, str]:
    """What a far vector says of v: by random additions, or else by its control."""
    main, cost, enough = best.main, added, True
    if cost is not None:
        told = _told_added(cost)
    else:
        cost, enough = best.control, len(best.candidate.control) >= MINIMUM_DIRECTIONS
        told = f"Random vectors at its cosine and norm cost {_interval(cost)}"
    if enough and main.holds(cost):
        return Verdict.GENERIC, f"{told} and pass too: any direction would do."
    if enough and main.breaks(cost):
        return Verdict.STRUCTURED, (
            f"{told}, surely beyond the budget: not any direction would do, but "
            "certain ones do nothing."
        )
    return Verdict.INCONCLUSIVE, (
        f"{told}, which does not tell whether that is within the budget: another "
        "direction does what v does, but whether any would is open."
    )


def _searched(
    judged: Sequence[_Judged], best: _Judged | None
) -> tuple[Verdict, list[str]]:
    """Within which angle the search leaves v, if no far vector does what v does."""
    last = _last(judged, best)
    wider = [one for one in judged if last is None or _angle(one) > _angle(last)]
    undecided = [one for one in wider if not one.refuted]
    if last is None or undecided:
        return Verdict.INCONCLUSIVE, [
            *([_told(last)] if last else []),
            _told(max(undecided, key=_angle)),
            "The intervals do not decide whether that last one is within the budget, "
            "so no angle can be named beyond which nothing does what v does.",
        ]
    if best is None:
        why = "That is surely beyond the budget, and no candidate surely kept to it"
    elif wider:
        nearest = _angle(min(wider, key=_angle))
        why = f"From {nearest:.0f} degrees on, all candidates are surely beyond it"
    else:
        why = "The search did not go further than this angle"
    return Verdict.IDENTIFIABLE, [
        _told(last),
        f"{why}: identifiable within {_angle(last):.0f} degrees as far as this search "
        "goes, which is no proof.",
    ]


def _told(one: _Judged) -> str:
    own, nats, main = one.candidate, one.nats, one.main
    made = "" if own.budget == main.share else f" (it was made for {own.budget:.0%})"
    return (
        f"A vector at {own.angle:.0f} degrees from v (cosine {own.cosine:.2f}) and "
        f"{own.norm:.2f} of its norm costs {_interval(nats)} on the test prompts, "
        f"{nats.value / main.effect.value:.1%} of the {_interval(main.effect)} by "
        f"which v changes the texts; the budget is {main.share:.0%}{made}."
    )


def _told_added(added: Estimate) -> str:
    return "A random vector across v of v's length, added to v, costs " + _interval(
        added
    )


def _interval(nats: Estimate) -> str:
    return f"{nats.value:.3g} [{nats.low:.3g}, {nats.high:.3g}] nats"


def _expected(one: _Judged | None, rho: float) -> float | None:
    """Cost of the control by rho_F, as a share of v's own; None if unknown."""
    if one is None or rho <= 0:
        return None
    norm = one.candidate.norm
    along = norm * one.candidate.cosine
    return (1 - along) ** 2 + (norm**2 - along**2) / rho


def _relative(main: _Judged | None, effect: Estimate) -> Estimate | None:
    if main is None or effect.low <= 0:
        return None
    low, high = np.quantile(main.relative, [0.025, 0.975])
    return Estimate(main.nats.value / effect.value, float(low), float(high))


def _controls(
    one: _Judged | None, effect: Estimate, floor: float
) -> tuple[Control, ...]:
    itself = Control(
        "v",
        "v against itself through other compute paths stays far below v's effect",
        Estimate(floor, floor, floor),
        "",
        FLOOR_FACTOR * floor < effect.low,
    )
    # Only far from v is it known beforehand that random vectors have to fail.
    if one is None or one.candidate.cosine > FAR:
        return (itself,)
    random = Control(
        "same_cosine",
        "random vectors at the same cosine and norm exceed the budget",
        one.control,
        "",
        one.main.breaks(one.control),
    )
    return itself, random


def _not_negative(seen: Estimate) -> Estimate:
    """A divergence is at least 0, whatever stretched weights make of an end."""
    return Estimate(seen.value, max(0.0, seen.low), seen.high, seen.level)


def _plain(seen: Estimate) -> list[float]:
    return [seen.value, seen.low, seen.high]
