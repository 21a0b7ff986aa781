"""T10, how far from v a vector can point that writes what v writes.

A vector v' of v's norm that costs at most tau nats by v's Fisher matrix, at the
largest angle that this allows (`geometry.most_different`), was backed off on other
prompts until its true divergence agreed, and is judged on a third set ::

    K(v || v')  <=  budget x K(v || unsteered)        at the unfavourable ends of both

Beside it stand random vectors at the same cosine and norm. By the same quadratic, with
rho = rho_F the cost of v over that of a random direction, they cost ::

    (1 - cos)^2 + (1 - cos^2) / rho       of what v does,   2 (1 - cos) at rho = 1

If they fail where v' passes, the freedom has a *structure*: certain directions do
nothing. It is *generic* if any direction would do: if random vectors across v of its
length, added to v, stay within the budget, which costs 1 / rho of v's effect by the
quadratic. That the search found no v' at a larger angle is no proof that there is none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from steergauge.audits.comparison import MINIMUM_DIRECTIONS, MINIMUM_PROMPTS
from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.errors import InputError
from steergauge.statistics import Draws, Estimate, estimate, two_way_bootstrap

RELATIVE_BUDGET = 0.05
FLOOR_FACTOR = 10

FAR = 0.5
"""Cosine from which on a vector counts as another direction: 60 degrees."""

Nats = Float[np.ndarray, " prompts"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A vector that was made to do what v does, and what it does on new prompts.

    Attributes:
        budget: share of v's effect that it may cost.
        cosine_planned: with v, at the optimum of the quadratic model.
        cosine: with v, after backing off on the validation prompts.
        shrink: share of its budget by the Fisher matrix that was kept when it was
            backed off; 1 if all.
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
        manipulation: verdict of T1 on v; None if it was not run.
        budget: the one that the verdict is about.
        radius: up to which length the quadratic model holds, in multiples of
            ||alpha v||; None if unknown.
        added: K(v || v + r) of random vectors r across v of its length, a row each;
            None if there are none.
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
class _Judged:
    """A candidate beside its own budget."""

    candidate: Candidate
    nats: Estimate
    control: Estimate
    effect: Estimate
    relative: Draws

    @property
    def verified(self) -> bool:
        return self._within(self.nats)

    @property
    def refuted(self) -> bool:
        return self._beyond(self.nats)

    @property
    def control_passes(self) -> bool:
        return self._enough and self._within(self.control)

    @property
    def control_fails(self) -> bool:
        return self._enough and self._beyond(self.control)

    @property
    def _enough(self) -> bool:
        return len(self.candidate.control) >= MINIMUM_DIRECTIONS

    def _within(self, nats: Estimate) -> bool:
        return nats.high <= self.candidate.budget * self.effect.low

    def _beyond(self, nats: Estimate) -> bool:
        return nats.low > self.candidate.budget * self.effect.high

    def to_json(self) -> dict[str, Any]:
        own = self.candidate
        return {
            "budget": own.budget,
            "cosine_planned": own.cosine_planned,
            "cosine": own.cosine,
            "angle_deg": own.angle,
            "shrink": own.shrink,
            "norm": own.norm,
            "predicted": own.predicted,
            "validation": own.validation,
            "nats": _plain(self.nats),
            "control": _plain(self.control),
            "verified": self.verified,
        }


def alternative(seen: Alternatives, *, seed: int = 0) -> Finding:
    """Whether a vector that points elsewhere writes what v writes.

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
    verified = [one for one in small if one.verified]
    best = min(verified, key=lambda one: one.candidate.cosine, default=None)
    added = _added(seen, effect, seed)
    verdict, reasons = _judge(seen, effect, small, best, added)
    shown = best or main
    expected = _expected(shown, seen.rho)
    return Finding(
        audit="alternative",
        code="T10",
        subject="",
        claim=f"A vector at {math.degrees(math.acos(FAR)):.0f} degrees from v or more "
        f"writes what v writes (KL at most {seen.budget:.0%} of what v changes).",
        quantity="K(v || v') / K(v || unsteered) of the candidate at the main budget",
        estimate=_relative(main, effect),
        null=""
        if expected is None
        else f"{expected:.3g}, as a random vector at the same angle by rho_F",
        verdict=verdict,
        reasons=tuple(reasons),
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
            "generic_limit": 1 / seen.rho if seen.rho > 0 else None,
            "added": _plain(added.nats) if added else None,
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
            means["effect"],
            np.maximum(draws[f"nats {i}"], 0.0) / effects,
        )
        for i, one in enumerate(seen.candidates)
    ]


@dataclass(frozen=True, slots=True)
class _Added:
    """What random additions to v cost, and whether that is surely within the budget."""

    nats: Estimate
    within: bool

    @property
    def told(self) -> str:
        return (
            "A random vector across v of v's length, added to v, costs "
            f"{self.nats.value:.3g} [{self.nats.low:.3g}, {self.nats.high:.3g}] nats"
        )


def _added(seen: Alternatives, effect: Estimate, seed: int) -> _Added | None:
    if seen.added is None or len(seen.added) < MINIMUM_DIRECTIONS:
        return None
    draws = two_way_bootstrap({"": seen.added}, seed=seed)[""]
    nats = _not_negative(estimate(seen.added, draws))
    return _Added(nats, within=nats.high <= seen.budget * effect.low)


def _judge(
    seen: Alternatives,
    effect: Estimate,
    small: Sequence[_Judged],
    best: _Judged | None,
    added: _Added | None,
) -> tuple[Verdict, list[str]]:
    precondition = _precondition(seen, effect)
    if precondition:
        return Verdict.UNINFORMATIVE, [precondition]
    if best is None:
        verdict, reasons = _nothing(small, seen.num_validation)
    else:
        verdict, reason = _kind(best)
        reasons = [_told(best), reason]
    if added is not None and added.within and verdict is not Verdict.STRUCTURED:
        verdict = Verdict.GENERIC
        reasons = [
            *reasons[: best is not None],
            f"{added.told}, within the budget: any direction would do, up to 45 "
            "degrees from v.",
        ]
    num = len(seen.effect)
    if num < MINIMUM_PROMPTS and verdict is not Verdict.INCONCLUSIVE:
        reasons.append(
            f"That is on {num} prompts; it is stated from {MINIMUM_PROMPTS} on."
        )
        verdict = Verdict.INCONCLUSIVE
    if seen.radius is not None and seen.radius < 1:
        reasons.append(
            f"The quadratic model that proposed the candidates holds up to "
            f"{seen.radius:.2f} of ||alpha v|| only, so better ones may exist; what "
            "was verified was measured, and stands."
        )
    return verdict, reasons


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


def _nothing(
    small: Sequence[_Judged], num_validation: int | None
) -> tuple[Verdict, list[str]]:
    """What may be said if no candidate kept to its budget on the test prompts."""
    refuted = [one for one in small if one.refuted]
    if not small:
        num = "" if num_validation is None else f"{num_validation} "
        return Verdict.INCONCLUSIVE, [
            f"The search found no vector that surely kept to the budget on the {num}"
            "validation prompts, so none was tried on those of the test. That is no "
            "proof that there is none, and few prompts make nothing sure."
        ]
    if not refuted:
        tried = max(small, key=lambda one: one.candidate.budget)
        return Verdict.INCONCLUSIVE, [
            _told(tried),
            "The intervals do not decide whether that is within its budget.",
        ]
    nearest = max(refuted, key=lambda one: one.candidate.cosine)
    return Verdict.IDENTIFIABLE, [
        _told(nearest),
        "That exceeds its budget at both ends of the intervals, and no candidate kept "
        f"to its own: identifiable within {nearest.candidate.angle:.0f} degrees as far "
        "as this search goes, which is no proof.",
    ]


def _kind(best: _Judged) -> tuple[Verdict, str]:
    """What a verified candidate says of v, by its angle and its control."""
    own, control = best.candidate, best.control
    random = (
        f"Random vectors at its cosine and norm cost {control.value:.3g} "
        f"[{control.low:.3g}, {control.high:.3g}] nats"
    )
    far = own.cosine <= FAR
    if far and best.control_passes:
        return Verdict.GENERIC, f"{random} and pass too: any direction would do."
    if far and best.control_fails:
        return Verdict.STRUCTURED, (
            f"{random} and fail: not any direction would do, but certain ones do "
            "nothing."
        )
    if far:
        return Verdict.INCONCLUSIVE, (
            f"{random}, which does not tell whether they pass: another direction does "
            "what v does, but whether any would is open."
        )
    return Verdict.IDENTIFIABLE, (
        f"No vector at a larger angle was verified: identifiable within "
        f"{own.angle:.0f} degrees as far as this search goes, which is no proof."
    )


def _told(one: _Judged) -> str:
    own, nats, effect = one.candidate, one.nats, one.effect
    return (
        f"A vector at {own.angle:.0f} degrees from v (cosine {own.cosine:.2f}) and "
        f"{own.norm:.2f} of its norm costs {nats.value:.3g} [{nats.low:.3g}, "
        f"{nats.high:.3g}] nats on the test prompts, {nats.value / effect.value:.1%} "
        f"of the {effect.value:.3g} [{effect.low:.3g}, {effect.high:.3g}] by which v "
        f"changes the texts; its budget is {own.budget:.0%}."
    )


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
    if one is None:
        return (itself,)
    random = Control(
        "same_cosine",
        "random vectors at the same cosine and norm write other texts than v",
        one.control,
        "",
        one.control_fails,
    )
    return itself, random


def _not_negative(seen: Estimate) -> Estimate:
    """A divergence is at least 0, whatever stretched weights make of an end."""
    return Estimate(seen.value, max(0.0, seen.low), seen.high, seen.level)


def _plain(seen: Estimate) -> list[float]:
    return [seen.value, seen.low, seen.high]
