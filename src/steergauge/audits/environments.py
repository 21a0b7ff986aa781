"""T14, environments: does what holds on one family of prompts hold on others?

Vectors v_e are extracted in several environments e and tested in all of them, e'.
Three questions: is there a lift in every one (the worst counts, not the mean); how
much does it vary, as the variance over environments that V-REx penalises (arXiv
2003.00688), less what sampling alone would make of it; and does v + v_perp do what v
does in each, by intersection and union.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steergauge.audits.comparison import Cell, Lifts, cell, in_every_cell
from steergauge.audits.finding import Finding, Verdict
from steergauge.statistics import Estimate, Table, estimate, two_way_bootstrap

SAME = "v + v_perp in every environment"


@dataclass(frozen=True, slots=True)
class Tested:
    """One vector in one environment, as tables (directions, prompts) of lifts.

    Attributes:
        source: environment that the vector was extracted in.
        target: environment whose prompts it was tested on.
        own: lifts of v_e, positive in the direction of alpha.
        added: lifts of v_e + v_perp.
        published_d: |Cohen's d| between their texts, drawn independently, mean over
            directions; None where those were not drawn.
        floor: mean |d| of identical vectors with as many texts on these prompts.
        num_texts: texts of each arm.
    """

    source: str
    target: str
    own: Lifts
    added: Lifts
    published_d: float | None
    floor: float
    num_texts: int


def environments(
    tested: Sequence[Tested],
    *,
    source: str,
    manipulation: Verdict,
    margin: float,
    minimum_lift: float,
    num_samples: int,
    seed: int = 0,
) -> list[Finding]:
    """Does the lift of `source`'s vector hold everywhere, and does v + v_perp follow?

    Args:
        tested: every pair of environments that was run.
        source: whose vector is under audit; its row is judged, the others are shown.
        manipulation: verdict of T1 on v.
        margin: largest relative difference that still counts as the same.
        minimum_lift: smallest lift that counts as one.
        num_samples: samples a prompt.
        seed: of the bootstrap.
    """
    num_own = sum(one.source == source for one in tested)
    cells = [
        cell(
            f"{one.source} -> {one.target}",
            one.own,
            one.added,
            margin=margin,
            minimum_lift=minimum_lift,
            num_cells=num_own,
            seed=seed,
        )
        for one in tested
    ]
    own = [
        (one, seen)
        for one, seen in zip(tested, cells, strict=True)
        if one.source == source
    ]
    details = {
        "cells": [
            seen.to_json()
            | {
                "source": one.source,
                "target": one.target,
                "published_d": one.published_d,
                "floor": one.floor,
                "num_texts": one.num_texts,
            }
            for one, seen in zip(tested, cells, strict=True)
        ],
        "source": source,
        **_variance({one.target: one.own for one, _ in own}, seed),
    }
    num_prompts = min(one.own.shape[1] for one in tested)
    sizes = {"num_prompts": num_prompts, "num_samples": num_samples}
    judged = [seen for _, seen in own]
    return [
        _lift_everywhere(own, manipulation, minimum_lift, details, sizes),
        _same_everywhere(judged, manipulation, margin, details, sizes),
    ]


def _lift_everywhere(
    own: Sequence[tuple[Tested, Cell]],
    manipulation: Verdict,
    minimum_lift: float,
    details: Mapping[str, Any],
    sizes: Mapping[str, int],
) -> Finding:
    worst, seen = min(own, key=lambda pair: pair[1].lift.value)
    good = all(one.lift.low > 0 and one.lift.value >= minimum_lift for _, one in own)
    verdict = Verdict.PASS if good else Verdict.FAIL
    variance = details["variance"]
    reasons = [f"{one.target}: {_written(cell_seen.lift)}" for one, cell_seen in own]
    reasons = [
        "; ".join(reasons) + ".",
        f"The variance over environments is {variance[0]:.5f} [{variance[1]:.5f}, "
        f"{variance[2]:.5f}]; sampling alone would make it "
        f"{details['variance_floor']:.5f}.",
    ]
    if manipulation is not Verdict.PASS:
        verdict = Verdict.UNINFORMATIVE
        reasons.insert(0, f"v did not pass its manipulation check ({manipulation}).")
    return Finding(
        audit="environments",
        code="T14",
        subject="",
        claim="v moves the trait in every environment.",
        quantity=f"lift in the worst environment ({worst.target})",
        estimate=seen.lift,
        null=f"at least {minimum_lift:g}, with an interval above 0, in each",
        verdict=verdict,
        reasons=tuple(reasons),
        num_prompts=sizes["num_prompts"],
        num_samples=sizes["num_samples"],
        details=details,
    )


def _same_everywhere(
    cells: Sequence[Cell],
    manipulation: Verdict,
    margin: float,
    details: Mapping[str, Any],
    sizes: Mapping[str, int],
) -> Finding:
    verdict = in_every_cell(cells)
    told = ", ".join(f"{one.name}: {one.verdict}" for one in cells)
    reasons = [f"{told}."]
    if manipulation is not Verdict.PASS:
        verdict = Verdict.UNINFORMATIVE
        reasons.insert(0, f"v did not pass its manipulation check ({manipulation}).")
    seen = [one for one in cells if one.comparison is not None]
    gap = max(seen, key=lambda one: abs(_difference(one).value), default=None)
    return Finding(
        audit="environments",
        code="T14",
        subject=SAME,
        claim=f"{SAME} does what v does to the trait (within {margin:.0%} of its "
        "lift).",
        quantity="largest difference of lifts L(v') - L(v) over environments",
        estimate=_difference(gap) if gap else None,
        null=f"within {margin:.0%} of L(v) in each environment",
        verdict=verdict,
        reasons=tuple(reasons),
        num_prompts=sizes["num_prompts"],
        num_samples=sizes["num_samples"],
        details={"margin": margin},
    )


def _difference(one: Cell) -> Estimate:
    assert one.comparison is not None
    return one.comparison.difference


def _variance(lifts: Mapping[str, Table], seed: int) -> dict[str, Any]:
    """Var_e of the mean lift with its interval, and what noise alone makes of it.

    Environments have prompts of their own, so each is resampled by itself.
    """
    draws = np.stack(
        [
            two_way_bootstrap({"": table}, seed=seed + i)[""]
            for i, table in enumerate(lifts.values())
        ]
    )
    means = np.array([table.mean() for table in lifts.values()])
    if len(means) < 2:
        return {"variance": [0.0, 0.0, 0.0], "variance_floor": 0.0}
    floor = float(draws.var(axis=1).mean())
    # A draw's variance holds the noise twice: that of the data and the bootstrap's.
    drawn = np.maximum(draws.var(axis=0, ddof=1) - floor, 0.0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = float(means.var(ddof=1))
    return {
        "variance": [value, float(min(low, value)), float(max(high, value))],
        "variance_floor": floor,
        "lifts": {
            name: _plain(estimate(table, draws[i]))
            for i, (name, table) in enumerate(lifts.items())
        },
    }


def _plain(seen: Estimate) -> list[float]:
    return [seen.value, seen.low, seen.high]


def _written(seen: Estimate) -> str:
    return f"{seen.value:+.3f} [{seen.low:+.3f}, {seen.high:+.3f}]"
