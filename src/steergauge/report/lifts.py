"""Lifts of every arm, from the stored scores: L(c) = mean_x [phi_c(x) - phi_0(x)].

The same tables in the same order with the same seed as in the audits, so the same
intervals; `perp[0]`, `perp[1]`, ... are rows of one family.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steergauge.audits.finding import FIXED_FAMILIES
from steergauge.report.words import family
from steergauge.sequential import Looks
from steergauge.statistics import Estimate, Table, estimate, two_way_bootstrap


@dataclass(frozen=True, slots=True)
class Lift:
    """The lift of a family of arms, and of each of its directions."""

    family: str
    estimate: Estimate
    arms: tuple[str, ...]
    values: tuple[float, ...]


def lifts(
    rows: Sequence[Mapping[str, Any]],
    *,
    alpha: float,
    seed: int,
    looks: Looks | None = None,
) -> dict[str, Lift]:
    """Lift by family, positive in the direction of alpha; empty without a probe.

    Args:
        rows: every text of the run.
        alpha: the strength; its sign says in which direction the trait should move.
        seed: of the bootstrap.
        looks: of a sequential run, whose intervals hold at all of them.
    """
    scored = [row for row in rows if row["stage"] == "test" and _compared(row["arm"])]
    if not scored or any(row["score"] is None for row in scored):
        return {}
    names, tables = _tables(_per_prompt(scored), np.sign(alpha))
    stretch = None if looks is None else looks.stretch(tables["v"].shape[1])
    draws = two_way_bootstrap(tables, fixed=FIXED_FAMILIES, seed=seed, stretch=stretch)
    return {
        name: Lift(
            name,
            estimate(table, draws[name]),
            tuple(names[name]),
            tuple(table.mean(1).tolist()),
        )
        for name, table in tables.items()
    }


def looks_of(facts: Mapping[str, Any]) -> Looks | None:
    """The looks of a sequential run, from what is kept of it; None of any other."""
    plan = facts.get("sequential")
    return Looks(plan["planned"], plan["every"], plan["first"]) if plan else None


def _compared(arm: str) -> bool:
    """Whether T1 and T3 compare the arm: it shares their random numbers and alpha.

    As `runs.evidence.shares_noise_and_alpha` says, which needs torch; a test holds the
    two together.
    """
    return "@" not in arm and not arm.startswith(("v_plus_perp_fresh", "code_"))


def _per_prompt(rows: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Mean scores over samples, (prompts,) by arm."""
    cells: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        arm = cells.setdefault(row["arm"], {})
        arm.setdefault(row["prompt_index"], []).append(row["score"])
    return {
        name: np.array([np.mean(arm[index]) for index in sorted(arm)])
        for name, arm in cells.items()
    }


def _tables(
    scores: Mapping[str, np.ndarray], sign: float
) -> tuple[dict[str, list[str]], dict[str, Table]]:
    """Arm names and tables (directions, prompts) by family."""
    names: dict[str, list[str]] = {}
    for arm in scores:
        names.setdefault(family(arm), []).append(arm)
    base = scores["unsteered"]
    tables = {
        name: np.stack([scores[arm] - base for arm in arms]) * sign
        for name, arms in names.items()
    }
    return names, tables
