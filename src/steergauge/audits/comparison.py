"""The lift of one vector held against that of another, within a stated margin.

What T3 does once, T14 does in every environment and the scale audit at every
strength: two one-sided tests (TOST) of L(w) within (1 +- m) L(v). Verdicts of many
cells are combined by intersection and union: "the same everywhere" needs every cell
to be EQUIVALENT, and needs no correction for their number; one DIFFERENT cell refutes
it, and is looked for among many, so their intervals are widened (Bonferroni).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy import stats

from steergauge.audits.finding import FIXED_FAMILIES, Finding, Verdict
from steergauge.sequential import Looks
from steergauge.statistics import (
    Draws,
    Estimate,
    Table,
    Tost,
    estimate,
    prompts_to_decide,
    tost,
    two_way_bootstrap,
)

Lifts = Float[np.ndarray, "_ prompts"]
"""A table of lifts, with as many directions as its family has."""

MINIMUM_PROMPTS = 50
"""An equivalence is stated from so many prompts on."""

MINIMUM_DIRECTIONS = 2
"""One random direction says nothing of others: their spread is unknown."""


ONE_DIRECTION = (
    "A single random direction was run, and nothing can be said of others: give at "
    "least two."
)

EVERY_LOOK = "The interval holds at every look of the sequential run."

SKEWED = 2.5
"""Skew of a number's prompts from which its interval is doubted: see docs/cost.md."""


def reach(looks: Looks | None, table: Table) -> float | None:
    """By what the bootstrap of `table`'s prompts is stretched; None: Student's factor.

    Args:
        looks: of a sequential run; None for a run that is judged once.
        table: (directions, prompts).
    """
    return None if looks is None else looks.stretch(table.shape[1])


def at_looks(
    finding: Finding, looks: Looks | None, values: Float[np.ndarray, " prompts"]
) -> Finding:
    """The finding, and that its intervals hold at every look of a sequential run.

    Args:
        finding: made with intervals that do.
        looks: of the run; None for a run that is judged once.
        values: of the prompts, whose mean is the finding's number.
    """
    if looks is None:
        return finding
    told = [EVERY_LOOK]
    skew = float(stats.skew(values)) if np.ptp(values) > 0 else 0.0
    if abs(skew) > SKEWED:
        told.append(
            f"Few prompts make most of the number (their skew is {skew:+.1f}): the "
            "interval may miss more often than 5 times in 100 runs."
        )
    ended = finding.num_prompts == looks.planned
    if finding.verdict is Verdict.INCONCLUSIVE and ended:
        told.append(
            f"All {looks.planned} planned prompts were used; more need a new plan, "
            "which is a new run."
        )
    details = {"looks": list(looks.numbers), "planned_prompts": looks.planned}
    return replace(
        finding,
        reasons=(*finding.reasons, *told),
        details={**finding.details, **details},
    )


def costlier(looks: Looks | None) -> float:
    """How many times as many prompts a sequential plan needs to decide by its end.

    At its last look the 5 % quantile of a test lies `stretch` times as far out as that
    of a single look, and the power of 80 % is asked of the same z_.90 ::

        ((stretch z_.95 + z_.90) / (z_.95 + z_.90))^2
    """
    if looks is None:
        return 1.0
    test, power = float(stats.norm.ppf(0.95)), float(stats.norm.ppf(0.90))
    return ((looks.stretch(looks.planned) * test + power) / (test + power)) ** 2


def is_drawn(family: str) -> bool:
    """Whether a family's rows are random directions, and not a vector that was given.

    >>> is_drawn("v_plus_perp"), is_drawn("against[mine]")
    (True, False)
    """
    return family in ("v_plus_perp", "perp", "v_turned")


@dataclass(frozen=True, slots=True)
class Comparison:
    """L(w) against L(v).

    Attributes:
        reference: L(v).
        candidate: L(w).
        difference: L(w) - L(v) with its interval.
        test: of equality within the margin.
        prompts_to_decide: prompts at which the test would decide with 80 % power; of
            a sequential run, as many as it would have to plan.
        short_of_directions: whether the spread between random directions alone is too
            large for the margin, so that more prompts would not help.
        num_prompts: prompts behind the numbers.
    """

    reference: float
    candidate: float
    difference: Estimate
    test: Tost
    prompts_to_decide: int
    short_of_directions: bool
    num_prompts: int

    @property
    def verdict(self) -> Verdict:
        """Of the numbers alone; the margin was set beforehand, so it goes first."""
        if self.test.equivalent:
            return Verdict.EQUIVALENT
        if self.difference.excludes_zero:
            return Verdict.DIFFERENT
        return Verdict.INCONCLUSIVE


def compared(
    lifts: Mapping[str, Table],
    draws: Mapping[str, Draws],
    name: str,
    *,
    margin: float,
    level: float = 0.95,
    looks: Looks | None = None,
) -> Comparison:
    """The family `name` against `v`, from tables and draws of the same resamples.

    Args:
        lifts: tables (directions, prompts).
        draws: of their means.
        name: of the family.
        margin: largest relative difference that still counts as the same.
        level: of the difference's interval.
        looks: those of the sequential run whose draws these are.
    """
    gap = lifts[name] - lifts["v"]
    reference = float(lifts["v"].mean())
    return Comparison(
        reference=reference,
        candidate=float(lifts[name].mean()),
        difference=estimate(gap, draws[name] - draws["v"], level=level),
        test=tost(draws["v"], draws[name], margin=margin),
        prompts_to_decide=math.ceil(
            costlier(looks)
            * max(
                prompts_to_decide(
                    (lifts[name] - side * lifts["v"]).mean(0), margin * reference
                )
                for side in (1 - margin, 1 + margin)
            )
        ),
        short_of_directions=_half_width(gap.mean(1)) >= margin * abs(reference),
        num_prompts=gap.shape[1],
    )


def _half_width(means: Float[np.ndarray, " directions"]) -> float:
    """Of a 90 % interval of the mean over directions, by Student's t; 0 for one."""
    num = len(means)
    if num < 2:
        return 0.0
    return float(stats.t.ppf(0.95, num - 1) * means.std(ddof=1) / np.sqrt(num))


@dataclass(frozen=True, slots=True)
class Cell:
    """One condition among several: is there a lift, and is w's the same?

    Attributes:
        name: of the condition, such as an environment or a strength.
        lift: of v, with its interval.
        comparison: of w with v; None if there is no w.
        verdict: of the comparison, UNINFORMATIVE if v has no lift to equal.
    """

    name: str
    lift: Estimate
    comparison: Comparison | None
    verdict: Verdict

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        seen = self.comparison
        return {
            "name": self.name,
            "lift": _plain(self.lift),
            "verdict": str(self.verdict),
            "candidate": seen.candidate if seen else None,
            "difference": _plain(seen.difference) if seen else None,
            "tost_above": seen.test.above if seen else None,
            "tost_below": seen.test.below if seen else None,
            "prompts_to_decide": seen.prompts_to_decide if seen else None,
            "num_prompts": seen.num_prompts if seen else None,
        }


def cell(
    name: str,
    reference: Lifts,
    candidate: Lifts | None,
    *,
    margin: float,
    minimum_lift: float,
    num_cells: int = 1,
    seed: int = 0,
) -> Cell:
    """One condition, judged.

    Args:
        name: of the condition.
        reference: lifts of v, positive in the direction of alpha.
        candidate: lifts of w on the same prompts.
        margin: largest relative difference that still counts as the same.
        minimum_lift: smallest lift that another vector could be said to equal.
        num_cells: conditions in which a difference is looked for.
        seed: of the bootstrap.
    """
    tables = {"v": reference} | ({} if candidate is None else {"w": candidate})
    draws = two_way_bootstrap(tables, fixed=FIXED_FAMILIES, seed=seed)
    lift = estimate(reference, draws["v"])
    if candidate is None:
        return Cell(name, lift, None, Verdict.UNINFORMATIVE)
    level = 1 - 0.05 / num_cells
    seen = compared(tables, draws, "w", margin=margin, level=level)
    verdict = seen.verdict
    if verdict is Verdict.EQUIVALENT and seen.num_prompts < MINIMUM_PROMPTS:
        verdict = Verdict.INCONCLUSIVE
    if len(candidate) < MINIMUM_DIRECTIONS:
        verdict = Verdict.UNINFORMATIVE
    if lift.low <= 0 or lift.value < minimum_lift:
        verdict = Verdict.UNINFORMATIVE
    return Cell(name, lift, seen, verdict)


def in_every_cell(cells: Sequence[Cell]) -> Verdict:
    """Intersection-union over conditions.

    DIFFERENT if any is; else EQUIVALENT if all are; UNINFORMATIVE if none could be
    judged; INCONCLUSIVE otherwise.
    """
    verdicts = {cell.verdict for cell in cells}
    if Verdict.DIFFERENT in verdicts:
        return Verdict.DIFFERENT
    if len(verdicts) == 1:
        return verdicts.pop()
    return Verdict.INCONCLUSIVE


def oriented(table: Table, alpha: float) -> Table:
    """Lifts counted as positive in the direction that alpha's sign promises."""
    return table * np.sign(alpha)


def _plain(seen: Estimate) -> list[float]:
    return [seen.value, seen.low, seen.high]
