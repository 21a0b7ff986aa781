"""T2, the statistics of arXiv 2602.06801 beside what they can carry.

As published: |Cohen's d| and Pearson's r between the scores of all texts of v and of
v + v_perp, mean and spread over random seeds, and "perp-only", the ratio of raw mean
scores of v_perp and v. Each is printed next to the same number for v against *itself*
with fresh random numbers, and next to

* Hedges' d, signed, with an interval that resamples prompts and directions;
* the noise floor of |d| between identical vectors;
* the correlation that prompts alone give (they are shared), and the one of prompts'
  means corrected for the noise of samples;
* the ratio of *lifts*, with Fieller's interval.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from steergauge.audits.finding import FIXED_FAMILIES, Control, Finding, Verdict
from steergauge.paper import published
from steergauge.statistics import (
    Estimate,
    estimate,
    fieller,
    intraclass_correlation,
    reliability,
    two_way_bootstrap,
)

Scores = Float[np.ndarray, "_ prompts samples"]
"""With as many directions as the family has."""

Arm = Float[np.ndarray, "prompts samples"]

FRESH = "v_plus_perp_fresh"
"""v + v_perp with random numbers of its own, as the published protocol draws them."""

SEEDS = (5, 10)
"""How many random directions the paper's Table 1 averages over."""


def replication(
    scores: Mapping[str, Scores],
    *,
    manipulation: Verdict,
    seed: int = 0,
) -> Finding:
    """What the published statistics say of v + v_perp, and what they can carry.

    Args:
        scores: (directions, prompts, samples) by family: `unsteered`, `v`, `v_again`
            and `v_plus_perp_fresh` (with random numbers of their own), `v_plus_perp`
            and `perp` (sharing v's), and others to hold beside them; `code_v`,
            `code_v_plus_perp`, `code_perp` if the published code's variant was run.
        manipulation: verdict of T1 on v.
        seed: of the bootstrap.
    """
    own = scores["v"][0]
    table1 = _published(own, scores[FRESH], scores["perp"])
    itself = _against(own, scores["v_again"])
    hedges = _hedges(scores, seed)
    verdict, reasons = _judge(table1[-1], itself, hedges, manipulation)
    return Finding(
        audit="replication",
        code="T2",
        subject="",
        claim="The published statistics tell v + v_perp from v itself.",
        quantity="mean |d| of v + v_perp less that of v against itself",
        estimate=_excess(table1[-1], itself),
        null=f"|d| of v against itself is {itself['d_mean']:.3f} on average",
        verdict=verdict,
        reasons=tuple(reasons),
        controls=_controls(own, scores),
        num_prompts=own.shape[0],
        num_samples=own.shape[1],
        details={
            "published": table1,
            "per_seed": _per_seed(own, scores[FRESH], scores["perp"]),
            "itself": itself,
            "hedges": _plain(hedges),
            "others": _others(own, scores),
            "code": _code(scores),
            "raw_scores": {
                name: float(values.mean())
                for name, values in scores.items()
                if not name.startswith("code_")
            },
            "noise_floor": _floor(own),
            **_correlations(own, scores[FRESH]),
            **_lift_ratio(scores, seed),
        },
    )


def _published(own: Arm, added: Scores, perp: Scores) -> list[dict[str, Any]]:
    """Rows of Table 1: one for each number of seeds that was run."""
    sizes = sorted({min(num, len(added)) for num in SEEDS})
    return [
        {
            "seeds": num,
            **_against(own, added[:num]),
            "perp_only_percent": _known(published.perp_only_percent(perp[:num], own)),
        }
        for num in sizes
    ]


def _against(own: Arm, others: Scores) -> dict[str, Any]:
    """Mean and spread over directions of |d| and r, samples taken as independent.

    The mean is None where a |d| is infinite: two arms that each never vary differ.
    """
    d = [published.cohens_d(own, other) for other in others]
    r = [published.correlation(own, other) for other in others]
    return {
        "d_mean": _known(float(np.mean(d))),
        "d_sd": _spread(d),
        "r_mean": float(np.nanmean(r)) if np.isfinite(r).any() else 0.0,
        "r_sd": _spread(r),
        "num": len(d),
    }


def _known(value: float) -> float | None:
    """The number, or None where its formula has none (a division by 0).

    A finding is stored as JSON, which knows neither NaN nor infinity.
    """
    return value if np.isfinite(value) else None


def _spread(values: list[float]) -> float:
    known = np.array(values)[np.isfinite(values)]
    return float(known.std()) if len(known) > 1 else 0.0


def _per_seed(own: Arm, added: Scores, perp: Scores) -> list[dict[str, float | None]]:
    """The dots of Figure 2."""
    return [
        {
            "d": _known(published.cohens_d(own, one)),
            "perp_percent": _known(published.perp_only_percent(alone, own)),
        }
        for one, alone in zip(added, perp, strict=True)
    ]


def _others(own: Arm, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """The published numbers for comparisons whose answer is known."""
    names = ("unsteered", "minus_v", "random", "sign_flip", "other_trait", "v_turned")
    found = {name: _against(own, scores[name]) for name in names if name in scores}
    return {name: numbers for name, numbers in found.items() if numbers["num"]}


def _code(scores: Mapping[str, Scores]) -> dict[str, Any] | None:
    """The same under the published code's own site and scored text."""
    if "code_v" not in scores:
        return None
    own = scores["code_v"][0]
    return _published(own, scores["code_v_plus_perp"], scores["code_perp"])[-1]


def _floor(own: Arm) -> dict[str, float]:
    """E|d| between identical vectors: with these samples as independent, and not."""
    num, icc = own.size, _icc(own)
    return {
        "independent": published.noise_floor(num, num),
        "shared_prompts": published.noise_floor(num, num, icc=icc),
        "icc": icc,
    }


def _correlations(own: Arm, added: Scores) -> dict[str, Any]:
    """What prompts alone make of r, and r of prompts' means corrected for noise."""
    icc, theirs = _icc(own), [_icc(one) for one in added]
    num_samples = own.shape[1]
    rel = reliability(icc, num_samples)
    rel_added = float(np.mean([reliability(one, num_samples) for one in theirs]))
    means = [published.correlation(own.mean(1), one.mean(1)) for one in added]
    known = [r for r in means if np.isfinite(r)]
    seen = float(np.mean(known)) if known else math.nan
    bound = float(np.sqrt(rel * rel_added))
    return {
        "icc": icc,
        "reliability": rel,
        "r_expected": float(np.sqrt(icc * max(0.0, float(np.mean(theirs))))),
        "r_prompts": _known(seen),
        "r_prompts_bound": bound,
        "r_disattenuated": _known(seen / bound) if bound >= 0.3 else None,
    }


def _icc(scores: Arm) -> float:
    """The share of variance between prompts; 0 where it is unknown."""
    icc = intraclass_correlation(scores)
    return 0.0 if np.isnan(icc) else icc


def _hedges(scores: Mapping[str, Scores], seed: int) -> Estimate:
    """Signed d = J (mean w - mean v) / pooled sd, with a two-way bootstrap interval.

    Prompts and directions are resampled for the difference; the standard deviation, of
    hundreds of scores, is taken as known.
    """
    own, added = scores["v"], scores["v_plus_perp"]
    pooled = np.sqrt((own.var() + added.var(axis=(1, 2)).mean()) / 2)
    num = own.size + added[0].size
    scale = (1 - 3 / (4 * (num - 2) - 1)) / max(float(pooled), 1e-9)
    means = {"v": own.mean(-1), "w": added.mean(-1)}
    draws = two_way_bootstrap(means, seed=seed)
    gap = estimate(means["w"] - means["v"], draws["w"] - draws["v"])
    return Estimate(scale * gap.value, scale * gap.low, scale * gap.high)


def _lift_ratio(scores: Mapping[str, Scores], seed: int) -> dict[str, Any]:
    """L(v_perp) / L(v), with Fieller's interval and the bootstrap's.

    None stands for a ratio that does not exist, as v has no lift at all, and for the
    ends of an interval that is not bounded.
    """
    base = scores["unsteered"].mean(-1)
    lifts = {name: scores[name].mean(-1) - base for name in ("v", "perp")}
    draws = two_way_bootstrap(lifts, fixed=FIXED_FAMILIES, seed=seed)
    top, bottom = (float(lifts[name].mean()) for name in ("perp", "v"))
    ratio = fieller(top, bottom, (draws["perp"], draws["v"]))
    moved = draws["v"] != 0
    quotient = draws["perp"][moved] / draws["v"][moved]
    return {
        "lift_v": _plain(estimate(lifts["v"], draws["v"])),
        "lift_perp": _plain(estimate(lifts["perp"], draws["perp"])),
        "lift_ratio": [_known(ratio.value), ratio.low, ratio.high],
        "lift_ratio_bootstrap": [
            float(np.quantile(quotient, q)) if moved.any() else None
            for q in (0.025, 0.975)
        ],
    }


def _plain(seen: Estimate) -> list[float]:
    return [seen.value, seen.low, seen.high]


def _judge(
    row: Mapping[str, Any],
    itself: Mapping[str, Any],
    hedges: Estimate,
    manipulation: Verdict,
) -> tuple[Verdict, list[str]]:
    """The excess of |d| over its floor, in units of its standard error."""
    excess, error = _mean_d(row) - _mean_d(itself), _error(row, itself)
    numbers = (
        f"Mean |d| over {row['num']} directions is {_mean_d(row):.3f}; for v against "
        f"itself with fresh random numbers it is {_mean_d(itself):.3f}. Signed, d is "
        f"{hedges.value:+.3f} [{hedges.low:+.3f}, {hedges.high:+.3f}]."
    )
    if manipulation is not Verdict.PASS:
        return Verdict.UNINFORMATIVE, [
            f"v did not pass its manipulation check ({manipulation}): a small |d| "
            "between two vectors without effect is no equivalence.",
            numbers,
        ]
    if error is None:
        return Verdict.UNINFORMATIVE, [
            numbers,
            "Of a single direction there is no spread that the difference could be "
            "held against.",
        ]
    if excess > error:
        return Verdict.DIFFERENT, [
            numbers,
            "The first exceeds the second by more than two standard errors.",
        ]
    return Verdict.UNINFORMATIVE, [
        numbers,
        "The two agree within two standard errors: |d| is at its noise floor, as it "
        "would be if v + v_perp were v itself. The comparison of lifts (T3) and of "
        "texts (T4) can say more.",
    ]


def _mean_d(seen: Mapping[str, Any]) -> float:
    return math.inf if seen["d_mean"] is None else seen["d_mean"]


def _excess(row: Mapping[str, Any], itself: Mapping[str, Any]) -> Estimate | None:
    """|d| above that of identical vectors, with its interval."""
    error, excess = _error(row, itself), _mean_d(row) - _mean_d(itself)
    if error is None or not np.isfinite(excess):
        return None
    return Estimate(excess, excess - error, excess + error)


def _error(row: Mapping[str, Any], itself: Mapping[str, Any]) -> float | None:
    """Two standard errors of a difference of mean |d|, more if directions are few.

    Both compare with the same texts of v; given those, every |d| is a draw of its own,
    so Student's quantile holds (2.1 for 10 directions each, 2.8 for 3). Direction j of
    both has the same random numbers, which makes the error a bound. None if there are
    too few to have a spread.
    """
    if min(row["num"], itself["num"]) < 2:
        return None
    quantile = stats.t.ppf(0.975, row["num"] + itself["num"] - 2)
    # d_sd divides by n, as the published code has it.
    spreads = [seen["d_sd"] / np.sqrt(seen["num"] - 1) for seen in (row, itself)]
    return float(quantile * np.hypot(*spreads))


def _controls(own: Arm, scores: Mapping[str, Scores]) -> tuple[Control, ...]:
    """-v must be told from v, or |d| tells nothing here."""
    if "minus_v" not in scores:
        return ()
    d = published.cohens_d(own, scores["minus_v"][0])
    expected = "|d| tells -v from v (at least 0.2)"
    seen = None if _known(d) is None else Estimate(d, d, d)
    return (Control("minus_v", expected, seen, "", d >= 0.2),)
