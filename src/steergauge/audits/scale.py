"""Equivalence at every strength: does v + v_perp follow v along the whole curve?

The paper's Figure 3 draws mean scores over alpha; a curve that does not move is
followed by anything. Here each strength is compared by lifts (see `comparison`), where
v has a lift at all; alpha = 0 is left out, for there both are the unsteered model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from steergauge.audits.comparison import Cell, cell, in_every_cell, oriented
from steergauge.audits.finding import Finding, Verdict

Scores = Float[np.ndarray, "_ prompts samples"]
"""With as many directions as the family has."""


@dataclass(frozen=True, slots=True)
class Strength:
    """Scores at one alpha, (directions, prompts, samples) each.

    Attributes:
        alpha: the strength.
        own: of v.
        added: of v + v_perp.
    """

    alpha: float
    own: Scores
    added: Scores


def scale(
    strengths: list[Strength],
    unsteered: Scores,
    *,
    manipulation: Verdict,
    margin: float,
    minimum_lift: float,
    seed: int = 0,
) -> Finding:
    """Whether v + v_perp lifts as v does at every alpha, by intersection and union.

    Args:
        strengths: scores by alpha, 0 left out.
        unsteered: (1, prompts, samples).
        manipulation: verdict of T1 on v; anything but PASS makes this UNINFORMATIVE.
        margin: largest relative difference that still counts as the same.
        minimum_lift: smallest lift that another vector could be said to equal.
        seed: of the bootstrap.
    """
    base = unsteered.mean(-1)
    cells = [
        cell(
            f"{one.alpha:g}",
            oriented(one.own.mean(-1) - base, one.alpha),
            oriented(one.added.mean(-1) - base, one.alpha),
            margin=margin,
            minimum_lift=minimum_lift,
            num_cells=len(strengths),
            seed=seed,
        )
        for one in strengths
    ]
    passed = manipulation is Verdict.PASS
    verdict = in_every_cell(cells) if passed else Verdict.UNINFORMATIVE
    worst = max(cells, key=_gap)
    assert worst.comparison is not None
    curve = [_point(0.0, unsteered, unsteered)]
    curve += [_point(one.alpha, one.own, one.added) for one in strengths]
    return Finding(
        audit="scale",
        code="T3",
        subject="every alpha",
        claim=f"v + v_perp does what v does to the trait at every alpha (within "
        f"{margin:.0%} of its lift).",
        quantity="largest difference of lifts L(v') - L(v) over alpha (probe score)",
        estimate=worst.comparison.difference,
        null=f"within {margin:.0%} of L(v) at each alpha",
        verdict=verdict,
        reasons=(*_gate(manipulation), *_reasons(cells, curve)),
        num_prompts=base.shape[1],
        num_samples=unsteered.shape[-1],
        details={"cells": [one.to_json() for one in cells], "curve": curve},
    )


def _gate(manipulation: Verdict) -> list[str]:
    if manipulation is Verdict.PASS:
        return []
    return [
        f"v did not pass its manipulation check ({manipulation}): random steps lift as "
        "much, or nothing lifts at all."
    ]


def _gap(one: Cell) -> float:
    return abs(one.comparison.difference.value) if one.comparison else 0.0


def _point(alpha: float, own: Scores, added: Scores) -> dict[str, Any]:
    """A point of Figure 3: mean scores and bands as if samples were independent."""
    return {"alpha": alpha, "v": _band(own), "v_plus_perp": _band(added)}


def _band(scores: Scores) -> list[float]:
    mean = float(scores.mean())
    half = 1.96 * float(scores.std(ddof=1)) / np.sqrt(scores.size)
    return [mean, mean - half, mean + half]


def _reasons(cells: list[Cell], curve: Sequence[Mapping[str, Any]]) -> list[str]:
    told = ", ".join(f"alpha = {one.name}: {one.verdict}" for one in cells)
    means = [abs(point["v"][0] - point["v_plus_perp"][0]) for point in curve]
    low = min(point["v"][0] for point in curve)
    high = max(point["v"][0] for point in curve)
    reasons = [
        f"{told}.",
        f"The mean scores differ by at most {max(means):.3f} over the curve; v itself "
        f"moves them by {high - low:.3f} from its lowest to its highest point.",
    ]
    if all(one.verdict is Verdict.UNINFORMATIVE for one in cells):
        reasons.append("v has no lift at any strength, so any curve would follow it.")
    return reasons
