"""T20, reliability: does v steer every prompt, or some of them backwards?

A prompt's *steerability* s_x is the slope of its score over alpha (Tan et al., arXiv
2407.12404), and it is anti-steerable if s_x < 0. Slopes are measured with noise, and
the share of negative *measured* slopes counts noise as backwardness: with no spread
at all between prompts, half of them come out negative as the effect goes to 0.
Corrected, slopes are taken as N(mu, sigma^2) plus noise of known variance, and the
share is Phi(-mu / sigma). A small group of prompts that v turns backwards is no tail of
one normal, so the share of slopes that are negative beyond their own noise has to be
small as well.

Samples with the same random numbers under every alpha give a slope each; the spread
of those within a prompt is the noise.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from steergauge.audits.finding import Finding, Verdict
from steergauge.statistics import NUM_DRAWS, Estimate

TOLERATED = 0.1
"""Share of anti-steerable prompts up to which v counts as reliable."""

Slopes = Float[np.ndarray, "prompts samples"]
Many = Float[np.ndarray, " draws"]


def reliability_of_steering(
    scores: Float[np.ndarray, "alphas prompts samples"],
    alphas: Float[np.ndarray, " alphas"],
    *,
    manipulation: Verdict,
    seed: int = 0,
) -> Finding:
    """The share of prompts that v steers the wrong way, less what noise makes of it.

    Args:
        scores: of the same samples under each alpha, with common random numbers.
        alphas: strengths, at least two different ones.
        manipulation: verdict of T1 on v.
        seed: of the draws that the interval is made of.
    """
    slopes = sample_slopes(scores, alphas)
    interval, spread = _corrected(slopes, seed)
    means, error = slopes.mean(1), float(np.sqrt(_noise(slopes)))
    significant = _counted(means + 1.96 * error < 0)
    verdict, reason = _judge(interval, significant, manipulation, slopes.shape[1])
    return Finding(
        audit="reliability",
        code="T20",
        subject="",
        claim=f"v steers at most {TOLERATED:.0%} of prompts the wrong way.",
        quantity="share of anti-steerable prompts, corrected for noise",
        estimate=interval,
        null=f"at most {TOLERATED:.0%}",
        verdict=verdict,
        reasons=(
            *reason,
            f"{float((means < 0).mean()):.0%} of the measured slopes are negative. "
            f"The mean slope is {means.mean():+.3f} a unit of alpha, the "
            f"spread between prompts {spread:.3f}, the noise of one slope "
            f"{error:.3f}.",
        ),
        num_prompts=slopes.shape[0],
        num_samples=slopes.shape[1],
        details={
            "slopes": sorted(means.tolist()),
            "raw_share": float((means < 0).mean()),
            "significant_share": significant.value,
            "mean_slope": float(means.mean()),
            "spread": spread,
            "noise": error,
            "alphas": [float(alpha) for alpha in alphas],
            **_shape(scores, alphas),
        },
    )


def _counted(backward: Bool[np.ndarray, " prompts"]) -> Estimate:
    """A share of prompts with Wilson's interval."""
    counted = stats.binomtest(int(backward.sum()), len(backward))
    ends = counted.proportion_ci(method="wilson")
    return Estimate(float(backward.mean()), float(ends.low), float(ends.high))


def sample_slopes(
    scores: Float[np.ndarray, "alphas prompts samples"],
    alphas: Float[np.ndarray, " alphas"],
) -> Slopes:
    """Least-squares slope over alpha of every sample of every prompt."""
    centred = np.asarray(alphas, dtype=float) - np.mean(alphas)
    return np.tensordot(centred / (centred @ centred), scores, axes=1)


def _noise(slopes: Slopes) -> float:
    """Variance of a prompt's mean slope that its samples make; 0 if it has one.

    Pooled over prompts, because a few samples of one prompt can all be the same.
    """
    num = slopes.shape[1]
    return float(slopes.var(axis=1, ddof=1).mean() / num) if num > 1 else 0.0


def _share(mu: Many, variance: Many) -> Many:
    """Phi(-mu / sigma); without spread all prompts go the way of the mean."""
    sigma = np.sqrt(np.maximum(variance, 0.0))
    spread = stats.norm.cdf(-mu / np.where(sigma > 0, sigma, 1.0))
    return np.where(sigma > 0, spread, (1 - np.sign(mu)) / 2)


def _corrected(slopes: Slopes, seed: int) -> tuple[Estimate, float]:
    """The share with its interval, and sigma, the spread between prompts.

    The interval is a generalised confidence interval (Weerahandi, JASA 88, 1993): mu,
    the variance of the measured slopes and that of their noise are drawn from what
    Student's and chi-squared pivots leave possible, and the share is made of each
    draw. Resampling prompts instead finds too little spread where they are few, and
    would call every sixth vector reliable that at 20 prompts is just not.
    """
    means, noise = slopes.mean(1), _noise(slopes)
    num, mu, total = len(means), means.mean(), means.var(ddof=1)
    rng = np.random.default_rng(seed)
    totals = total * (num - 1) / rng.chisquare(num - 1, NUM_DRAWS)
    mus = mu + rng.standard_normal(NUM_DRAWS) * np.sqrt(totals / num)
    if slopes.shape[1] > 1:
        degrees = num * (slopes.shape[1] - 1)
        noises = noise * degrees / rng.chisquare(degrees, NUM_DRAWS)
    else:
        noises = np.zeros(NUM_DRAWS)
    low, high = np.quantile(_share(mus, totals - noises), [0.025, 0.975])
    share = float(_share(np.array([mu]), np.array([total - noise]))[0])
    spread = float(np.sqrt(max(total - noise, 0.0)))
    return Estimate(share, float(min(low, share)), float(max(high, share))), spread


def _judge(
    interval: Estimate, significant: Estimate, manipulation: Verdict, num_samples: int
) -> tuple[Verdict, tuple[str, ...]]:
    if manipulation is not Verdict.PASS:
        return Verdict.UNINFORMATIVE, (
            f"v did not pass its manipulation check ({manipulation}): slopes around 0 "
            "have no direction that could be wrong.",
        )
    if num_samples < 2:
        return Verdict.UNINFORMATIVE, (
            "With one sample a prompt the noise of a slope is unknown, so it could not "
            "be taken out: the share counts noise as backwardness.",
        )
    told = (
        f"An estimated {interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}] "
        "of prompts move against alpha, noise taken out."
    )
    told += (
        f" {significant.value:.0%} [{significant.low:.1%}, {significant.high:.1%}] do "
        "so beyond their own noise."
    )
    if max(interval.high, significant.high) <= TOLERATED:
        return Verdict.PASS, (told,)
    if max(interval.low, significant.low) > TOLERATED:
        return Verdict.FAIL, (told,)
    return Verdict.INCONCLUSIVE, (told,)


def _shape(scores: np.ndarray, alphas: np.ndarray) -> dict[str, Any]:
    """How straight the mean curve is: share of its variance that a line explains."""
    curve = scores.mean((1, 2))
    fit = np.polynomial.Polynomial.fit(alphas, curve, 1)
    total = float(((curve - curve.mean()) ** 2).sum())
    rest = float(((curve - fit(np.asarray(alphas))) ** 2).sum())
    return {
        "curve": curve.tolist(),
        "linearity": 1 - rest / total if total > 0 else None,
    }
