r"""The statistics of arXiv 2602.06801 as it defines them, and what noise makes of them.

An experiment scores the texts of two arms, steered with v and with v + v_perp, by a
number in [0, 1] (Section 6.1), and compares next-token logits (Appendix A). The paper's
statistics of those scores are here under its own definitions, with nothing repaired,
so that a run of ours can be laid beside a row of its tables. With them comes what the
same statistics are where there is no difference at all (their noise floor) and where
the map from the stream to the logits is linear:

    E|d| = sqrt(2 / pi) sqrt(1 / n_1 + 1 / n_2) f        R = 1 / sqrt(1 + rho)

Source: arXiv 2602.06801v3, Sections 6.1 to 6.4 and Appendix A, eq. 10. What the text
leaves open (which standard deviation d divides by, of what the perp-only effect is a
percentage) is as in the code that the authors published for a later version.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from steergauge.statistics import POWER_CONSTANT

Scores: TypeAlias = Sequence[float] | np.ndarray
"""Numbers of one arm, of any shape: they are read as one flat list."""

MEAN_OF_ABSOLUTE_NORMAL = math.sqrt(2 / math.pi)
"""``E|N(0, 1)|`` = 0.798."""

NOISE_SPREAD = math.sqrt(math.pi / 2 - 1)
"""sd / mean of ``|N(0, s)|`` = 0.756, for every s."""


def cohens_d(first: Scores, second: Scores) -> float:
    """The paper's effect size: |difference of means| / pooled standard deviation.

        d = |mean_1 - mean_2| / s,  s^2 = ((n_1 - 1) s_1^2 + (n_2 - 1) s_2^2)
                                          / (n_1 + n_2 - 2)

    with ddof = 1; at equal sizes s^2 is the plain mean of both variances. Printed in
    Tables 1 and 2, as a mean over seeds of v_perp. If neither list varies, d is 0 where
    they are equal and infinite where they are not.

    It cannot carry equivalence: an absolute value is above 0 also where nothing differs
    (`noise_floor`), and is small also where neither arm does anything.

    Raises:
        ValueError: a list has fewer than two scores.

    >>> round(cohens_d([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]), 6)
    1.0
    """
    one, two = _flat(first), _flat(second)
    if np.ptp(one) == np.ptp(two) == 0:
        # Not the means: those of equal constants may differ by rounding.
        return 0.0 if one[0] == two[0] else math.inf
    degrees = len(one) + len(two) - 2
    squares = (len(one) - 1) * one.var(ddof=1) + (len(two) - 1) * two.var(ddof=1)
    return float(abs(one.mean() - two.mean()) / math.sqrt(squares / degrees))


def correlation(first: Scores, second: Scores) -> float:
    """The paper's correlation: Pearson r of two lists of scores, item by item.

    Printed in Table 1. Items i of both lists are texts for the same prompt, sampled
    independently; NaN if one of the lists is constant.

    It cannot carry equivalence, nor speak against it: its expectation is the share of
    the scores' variance that lies between prompts (the ICC), between an arm and a
    second sample of itself as well as between arms with quite different means.

    Raises:
        ValueError: the lists differ in length, or have fewer than two scores.

    >>> round(correlation([0.1, 0.2, 0.4], [0.3, 0.4, 0.6]), 6)
    1.0
    """
    one, two = _flat(first), _flat(second)
    if len(one) != len(two):
        raise ValueError(f"scores come in pairs, got {len(one)} and {len(two)}")
    if np.ptp(one) == 0 or np.ptp(two) == 0:
        return math.nan
    one, two = one - one.mean(), two - two.mean()
    cosine = (one / np.linalg.norm(one)) @ (two / np.linalg.norm(two))
    return float(np.clip(cosine, -1, 1))


def perp_only_percent(perp: Scores, v: Scores) -> float:
    """The paper's perp-only effect: 100 |mean score of v_perp| / |mean score of v|.

    Printed in Table 1, of raw scores; NaN if both means are 0, infinite if only v's is.

    It cannot carry that v_perp steers as v does: no unsteered arm is in it, so it is
    100 as well where neither moves the score, whatever the unsteered score.

    Raises:
        ValueError: a list is empty.

    >>> round(perp_only_percent([0.73, 0.73], [0.74, 0.76]), 1)
    97.3
    """
    return 100 * _ratio(abs(_mean(perp)), abs(_mean(v)))


def logit_ratio(perp_distances: Scores, random_distances: Scores) -> float:
    """The paper's R: mean |o(v) - o(v + v_perp)| over mean |o(v) - o(v_rand)|.

    Printed in Table 3, defined in eq. 10; o are next-token logits, and v_perp and
    v_rand have v's norm. NaN if both means are 0, infinite if only the second is.

    It cannot carry that outputs are preserved: in a linear map R < 1 holds for every v
    that moves the logits more than 1 / d times as much as a random direction
    (`implied_gain`); for a random v it is 0.71.

    Raises:
        ValueError: a list is empty.

    >>> logit_ratio([2.0, 4.0], [4.0])
    0.75
    """
    return _ratio(_mean(perp_distances), _mean(random_distances))


def noise_floor(
    num_first: int,
    num_second: int,
    *,
    icc: float = 0.0,
    shared_prompts: bool = True,
    samples: int = 1,
) -> float:
    """What the mean of |d| is between two arms that do not differ at all.

        E|d| = sqrt(2 / pi) sqrt(1 / n_1 + 1 / n_2) f

    f = sqrt(1 - ICC) if both arms answer the same prompts, for what prompts share then
    cancels; f = sqrt(1 + (S - 1) ICC) if they do not, for S samples of a prompt are
    then no S independent scores. Not in the paper. This is for the true standard
    deviation; the estimated one makes it 1 + 3 / (4 (n_1 + n_2 - 2)) times as large, to
    first order (0.395 instead of 0.376 at n = 9). It cannot carry that there is no
    difference: |d| at its floor says that these data show none.

    Args:
        num_first: scores of the first arm.
        num_second: scores of the second arm.
        icc: share of the variance of a score that lies between prompts.
        shared_prompts: whether both arms answer the same prompts.
        samples: scores a prompt, which matters where prompts are not shared.

    Raises:
        ValueError: a number below 1, or an ICC outside [0, 1].

    >>> round(noise_floor(100, 100), 3), round(noise_floor(100, 100, icc=0.5), 3)
    (0.113, 0.08)
    """
    if min(num_first, num_second, samples) < 1:
        sizes = f"{num_first}, {num_second} and {samples}"
        raise ValueError(f"arms and prompts need scores, got {sizes}")
    _check_share(icc)
    design = 1 - icc if shared_prompts else 1 + (samples - 1) * icc
    variance = (1 / num_first + 1 / num_second) * design
    return MEAN_OF_ABSOLUTE_NORMAL * math.sqrt(variance)


def samples_at_floor(mean_d: float, *, icc: float = 0.0) -> float:
    """Scores an arm at which noise alone gives this mean |d|: 4 (1 - ICC) / (pi d^2).

    The inverse of `noise_floor` for two equal arms that share their prompts; infinite
    at d = 0. Not in the paper. It cannot carry what the number of scores was: that is
    for whoever knows the experiment to compare.

    Raises:
        ValueError: d is negative, or the ICC outside [0, 1].

    >>> round(samples_at_floor(0.3725), 1)
    9.2
    """
    _check_share(icc)
    if not mean_d >= 0:
        raise ValueError(f"the mean of |d| is {mean_d}; it cannot be below 0")
    return math.inf if mean_d == 0 else 4 * (1 - icc) / (math.pi * mean_d**2)


def scores_to_bound(bound: float) -> float:
    """Independent scores an arm that show |d| < `bound` with 80 % power, if d is 0.

    n = 2 (z_.95 + z_.90)^2 / bound^2, for two one-sided tests at 5 % each. Not in the
    paper, which takes |d| < 0.2 as negligible without a test. It cannot carry the power
    where d is not 0, nor where several scores of a prompt stand for independent ones.

    Raises:
        ValueError: the bound is not above 0.

    >>> round(scores_to_bound(0.2))
    428
    """
    if not bound > 0:
        raise ValueError(f"the bound is {bound}; it must be above 0")
    return 2 * POWER_CONSTANT / bound**2


def implied_gain(ratio: float) -> float:
    r"""The gain of v that R implies where logits are linear: rho = 1 / R^2 - 1.

    rho = |J v|^2 over its mean for random directions of v's norm. In a linear map
    o = J h with G = J^T J, v_perp and v_rand of v's norm and g = v^T G v / |v|^2,

        R^2 = ((tr G - g) / (d - 1)) / (g + tr G / d)
            = (1 - rho / d) / ((1 - 1 / d) (1 + rho))

    in root mean squares, which is 1 / (1 + rho) where d is large against 1 and rho.
    Negative for R > 1, which a linear map gives only if rho < 1 / d. Not in the paper.

    It cannot carry the gain itself where the step is so long that logits bend, nor its
    error where R comes from a handful of random directions.

    Raises:
        ValueError: R is not above 0.

    >>> round(implied_gain(0.9), 2)
    0.23
    """
    if not ratio > 0:
        raise ValueError(f"R is {ratio}; a ratio of distances is above 0")
    return 1 / ratio**2 - 1


def expected_ratio(gain: float) -> float:
    """The R that a linear map gives a v of gain rho: 1 / sqrt(1 + rho), never above 1.

    The inverse of `implied_gain`. Not in the paper. It cannot carry a verdict on null
    spaces: R follows from the gain of v alone, with a null space and without one.

    Raises:
        ValueError: the gain is not above -1.

    >>> round(expected_ratio(1.0), 3)
    0.707
    """
    if not gain > -1:
        raise ValueError(f"the gain is {gain}; a ratio of squares is not below 0")
    return 1 / math.sqrt(1 + gain)


def _flat(scores: Scores, *, least: int = 2) -> np.ndarray:
    """Scores as one list, in the order of the array."""
    flat = np.asarray(scores, dtype=float).ravel()
    if len(flat) < least:
        raise ValueError(f"{least} or more scores are needed, got {len(flat)}")
    return flat


def _mean(scores: Scores) -> float:
    return float(_flat(scores, least=1).mean())


def _ratio(above: float, below: float) -> float:
    """A ratio of numbers that are not negative; x / 0 is infinite, 0 / 0 is NaN."""
    if below == 0:
        return math.nan if above == 0 else math.inf
    return above / below


def _check_share(icc: float) -> None:
    if not 0 <= icc <= 1:
        raise ValueError(f"the ICC is {icc}; it is a share of a variance, in [0, 1]")
