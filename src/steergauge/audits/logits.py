"""T5, the ratio R of next-token logits, beside the number that geometry alone gives.

The paper's Appendix A divides two distances (arXiv 2602.06801, eq. 10)::

    R = mean ||o(v) - o(v + v_perp)|| / mean ||o(v) - o(v_rand)||

and reads R < 1 as evidence of equivalence. But the denominator holds v's own effect
and the numerator does not. In the linear regime, with G = J'J, g = v^'G v^ (v^ of
length 1) and random directions of v's norm,

    R_null^2 = [ (tr G - g) / (d - 1) ] / [ g + tr G / d ]  ~  1 / (1 + rho),

    rho = g / (tr G / d),

so R < 1 whenever rho > 1/d, for every v. T = R_rms^2 / R_null^2 says what is left to
explain; its null is 1. *R matched*, ||o(v) - o(v + v_perp)|| over ||o(v) - o(v + r)||
with r random of the same norm, holds v's own effect on neither side. Its null is
sqrt((d - rho) / (d - 1)), for r has a part along v: 1 unless v holds much of tr G.

*R soft* has the same denominator, and in its numerator an addition within the soft
null space of F_bar, where a step of v's length costs next to nothing to second order.
If that null space matters at this strength, R soft is far below R matched; directions
v_perp, which lie mostly outside of it, cannot tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from steergauge.audits.finding import FIXED_FAMILIES, Control, Finding, Verdict
from steergauge.paper import published
from steergauge.statistics import Draws, Estimate, Table, estimate, two_way_bootstrap

Norms = Float[np.ndarray, "_ prompts"]
"""One row a direction, with as many as its family has."""

TOLERANCE = 0.25
"""T counts as explained if its whole interval lies within 1 +- so much."""

UNBOUNDED = 1e6
"""Largest quotient that is reported; an interval that reaches it has no upper end."""

PUBLISHED = (5, 3)
"""Directions v_perp and v_rand that the paper's ratio averages over."""


@dataclass(frozen=True, slots=True)
class Distances:
    """Next-token distances of arms from v, as tables (directions, prompts).

    The tables `perp` to `random_added` and `perp_gain` belong to the same directions,
    row by row: each v_rand with its part perpendicular to v. So what varies from
    direction to direction cancels in T.

    Attributes:
        published_perp: ||o(v) - o(v + v_perp)|| of the directions that R is made of.
        published_random: ||o(v) - o(v_rand)|| likewise.
        perp: ||o(v) - o(v + v_perp)||.
        random: ||o(v) - o(v_rand)||.
        random_added: ||o(v) - o(v + v_rand)||.
        gain: ||J v^||^2, one row.
        perp_gain: ||J u||^2 of random directions u perpendicular to v.
        measures: per family of arms and measure (agreement, overlap, kl, js, tv, l2,
            l2_centred), each against v.
        d_model: width of the stream.
        soft: ||o(v) - o(v + n)|| of random directions n of v's norm in the soft null
            space of F_bar; None if it is empty or was not computed.
    """

    published_perp: Norms
    published_random: Norms
    perp: Norms
    random: Norms
    random_added: Norms
    gain: Norms
    perp_gain: Norms
    measures: Mapping[str, Mapping[str, Norms]]
    d_model: int
    soft: Norms | None = None


def logits(seen: Distances, *, seed: int = 0) -> Finding:
    """Whether R is what the gain of v alone makes it.

    Args:
        seen: distances and gains.
        seed: of the bootstrap.
    """
    tables = {
        "perp": seen.perp**2,
        "random": seen.random**2,
        "added": seen.random_added**2,
        "gain": seen.gain,
        "perp_gain": seen.perp_gain,
    }
    if seen.soft is not None:
        tables["soft"] = seen.soft**2
    # Tables of equal shape get the same weights from the same seed: rows stay paired.
    draws = {
        name: two_way_bootstrap({"": table}, seed=seed)[""]
        for name, table in tables.items()
    }
    point = {name: np.array([table.mean()]) for name, table in tables.items()}
    numbers = {
        name: _interval(
            float(formula(point, seen.d_model)[0]), formula(draws, seen.d_model)
        )
        for name, formula in _FORMULAS.items()
        if name != "ratio_soft" or "soft" in tables
    }
    ratio = published.logit_ratio(
        seen.published_perp[: PUBLISHED[0]], seen.published_random[: PUBLISHED[1]]
    )
    excess = numbers["excess"]
    verdict = _verdict(excess)
    measures = {
        family: {name: _mean(family, table, seed) for name, table in columns.items()}
        for family, columns in seen.measures.items()
    }
    return Finding(
        audit="logits",
        code="T5",
        subject="",
        claim="R is what the gain of v alone makes it, for any v of this gain.",
        quantity="T = R_rms^2 / R_null^2",
        estimate=excess,
        null="T = 1",
        verdict=verdict,
        reasons=tuple(_reasons(ratio, numbers, measures)),
        controls=_controls(measures),
        num_prompts=seen.perp.shape[1],
        num_samples=1,
        details={
            "ratio_published": ratio,
            **{name: _plain(number) for name, number in numbers.items()},
            "measures": {
                family: {name: _plain(number) for name, number in columns.items()}
                for family, columns in measures.items()
            },
            "d_model": seen.d_model,
        },
    )


def _ratio(x: Mapping[str, Draws], d: int) -> Draws:
    del d
    return np.sqrt(_share(x["perp"], x["random"]))


def _gain_ratio(x: Mapping[str, Draws], d: int) -> Draws:
    return _share(x["gain"], _mean_gain(x, d))


def _mean_gain(x: Mapping[str, Draws], d: int) -> Draws:
    """Mean gain tr G / d, from v's gain and that of directions perpendicular to v."""
    return ((d - 1) * x["perp_gain"] + x["gain"]) / d


def _null(x: Mapping[str, Draws], d: int) -> Draws:
    """R_null; (tr G - g) / (d - 1) is what perpendicular directions gain."""
    return np.sqrt(_share(x["perp_gain"], x["gain"] + _mean_gain(x, d)))


def _excess(x: Mapping[str, Draws], d: int) -> Draws:
    return _share(_ratio(x, d) ** 2, _null(x, d) ** 2)


def _matched(x: Mapping[str, Draws], d: int) -> Draws:
    del d
    return np.sqrt(_share(x["perp"], x["added"]))


def _soft(x: Mapping[str, Draws], d: int) -> Draws:
    del d
    return np.sqrt(_share(x["soft"], x["added"]))


_FORMULAS = {
    "ratio_rms": _ratio,
    "rho": _gain_ratio,
    "ratio_null": _null,
    "excess": _excess,
    "ratio_matched": _matched,
    "ratio_soft": _soft,
}


def _share(top: Draws, bottom: Draws) -> Draws:
    """A quotient of means that cannot be negative, though stretched draws may be.

    Where the denominator cannot be told from 0 it is `UNBOUNDED` and not infinite,
    which could neither be stored nor read.
    """
    top = np.maximum(top, 0.0)
    return top / np.maximum(bottom, np.maximum(top / UNBOUNDED, 1e-300))


def _interval(value: float, draws: Draws) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def _mean(family: str, table: Table, seed: int) -> Estimate:
    draws = two_way_bootstrap({family: table}, fixed=FIXED_FAMILIES, seed=seed)
    return estimate(table, draws[family])


def _plain(seen: Estimate) -> list[float]:
    return [seen.value, seen.low, seen.high]


def _verdict(excess: Estimate) -> Verdict:
    if excess.low >= 1 - TOLERANCE and excess.high <= 1 + TOLERANCE:
        return Verdict.EXPLAINED
    if excess.low > 1 or excess.high < 1:
        return Verdict.NONLINEAR
    return Verdict.INCONCLUSIVE


_CONCLUSIONS = {
    Verdict.EXPLAINED: "R is what geometry gives, within 25 %.",
    Verdict.NONLINEAR: "R is not what first-order geometry gives.",
    Verdict.INCONCLUSIVE: "whether R is what geometry gives could not be told.",
}


def _reasons(
    ratio: float,
    numbers: Mapping[str, Estimate],
    measures: Mapping[str, Mapping[str, Estimate]],
) -> list[str]:
    rho, null, excess = (numbers[key] for key in ("rho", "ratio_null", "excess"))
    reasons = [
        f"R = {ratio:.3f} as published; a step along v moves the logits "
        f"{rho.value:.2f} [{rho.low:.2f}, {rho.high:.2f}] times as much (squared) as a "
        f"random step, which alone gives R = {null.value:.3f} [{null.low:.3f}, "
        f"{null.high:.3f}].",
        f"T = {excess.value:.2f} [{excess.low:.2f}, {excess.high:.2f}]: "
        + _CONCLUSIONS[_verdict(excess)],
    ]
    if "ratio_soft" in numbers:
        soft = numbers["ratio_soft"]
        reasons.append(
            "An addition of v's length in the soft null space moves the logits "
            f"{soft.value:.2f} [{soft.low:.2f}, {soft.high:.2f}] times as far as a "
            "random one."
        )
    if {"v_plus_perp", "unsteered"} <= set(measures):
        same, without = (
            measures[key]["agreement"].value for key in ("v_plus_perp", "unsteered")
        )
        reasons.append(
            f"The likeliest token agrees with v's in {same:.0%} of prompts under "
            f"v + v_perp, and in {without:.0%} without any steering."
        )
    return reasons


def _controls(
    measures: Mapping[str, Mapping[str, Estimate]],
) -> tuple[Control, ...]:
    again = measures.get("v_recomputed")
    if again is None:
        return ()
    expected = "v through another compute path agrees with itself in 99 % of prompts"
    seen = again["agreement"]
    return (Control("v_recomputed", expected, seen, "", seen.value >= 0.99),)
