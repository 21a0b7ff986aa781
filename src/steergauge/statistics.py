"""Intervals, equivalence bounds and ranks on plain arrays; nothing of models here.

A score table has one row per random direction (one row if there is a single vector)
and one column per prompt; an entry is a mean over the samples of that cell. Prompts
are the clusters: samples of one prompt are never treated as independent.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

Table = Float[np.ndarray, "directions prompts"]
Draws = Float[np.ndarray, " draws"]

NUM_DRAWS = 2000
POWER_CONSTANT = float((stats.norm.ppf(0.95) + stats.norm.ppf(0.90)) ** 2)
"""``(z_.95 + z_.90)^2`` = 8.56: two one-sided 5 % tests at 80 % power."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval; `level` is the interval's coverage."""

    value: float
    low: float
    high: float
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def two_way_bootstrap(
    tables: Mapping[str, Table],
    *,
    fixed: Collection[str] = (),
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
    stretch: float | None = None,
) -> dict[str, Draws]:
    """Bootstrap draws of every table's grand mean, with prompts resampled jointly.

    Prompts (columns) are the same resample in all tables, so that differences of
    paired arms keep their pairing; directions (rows) are resampled independently in
    each table, as they are drawn independently (crossed random factors).

    Args:
        tables: arrays (directions, prompts) by name, with the same prompts.
        fixed: names of tables whose rows are no draws of a random direction, but all
            that there are; they are not resampled.
        num_draws: how many resamples.
        seed: of the resampling.
        stretch: of the prompts' weights, instead of Student's factor: that of
            intervals that hold at every look (see `sequential`). Directions are drawn
            once, however often is looked, and keep theirs.

    Raises:
        ValueError: tables differ in their number of prompts, or are empty.
    """
    widths = {table.shape[1] for table in tables.values()}
    if len(widths) != 1 or 0 in widths:
        raise ValueError(f"tables need the same prompts, got widths {sorted(widths)}")
    generator = np.random.default_rng(seed)
    prompts = resampling_weights(generator, num_draws, widths.pop(), stretch=stretch)
    draws = {}
    for name, table in tables.items():
        rows = len(table)
        directions = (
            np.full((num_draws, rows), 1 / rows)
            if name in fixed
            else resampling_weights(generator, num_draws, rows)
        )
        draws[name] = ((directions @ table) * prompts).sum(1)
    return draws


def resampling_weights(
    generator: np.random.Generator,
    num_draws: int,
    size: int,
    *,
    stretch: float | None = None,
) -> Float[np.ndarray, "draws size"]:
    """How much each of `size` items counts in each resample; rows sum to 1.

    A plain bootstrap of few items is too narrow: its variance is short by (size - 1) /
    size, and its quantiles are those of the normal, not of Student's t. The deviations
    of the weights are stretched by both factors, which matters below 30 items. With
    `stretch`, that number takes the place of Student's factor.
    """
    counts = generator.multinomial(size, np.full(size, 1 / size), size=num_draws)
    if size == 1:
        return counts.astype(float)
    if stretch is None:
        stretch = float(stats.t.ppf(0.975, size - 1) / stats.norm.ppf(0.975))
    stretch *= float(np.sqrt(size / (size - 1)))
    return 1 / size + stretch * (counts - 1) / size


def estimate(table: Table, draws: Draws, *, level: float = 0.95) -> Estimate:
    """The grand mean of a table with the percentile interval of its draws."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(table.mean()), float(low), float(high), level)


@dataclass(frozen=True, slots=True)
class Tost:
    """Two one-sided tests that L(v') lies within (1 +- margin) L(v).

    Attributes:
        above: 5 % quantile of L(v') - (1 - margin) L(v); equivalent if > 0.
        below: 95 % quantile of L(v') - (1 + margin) L(v); equivalent if < 0.
    """

    above: float
    below: float
    margin: float

    @property
    def equivalent(self) -> bool:
        """Whether both one-sided tests reject at 5 %."""
        return self.above > 0 and self.below < 0


def tost(reference: Draws, candidate: Draws, *, margin: float) -> Tost:
    """TOST on a ratio without dividing, so that the ratio's bias does not enter.

    Args:
        reference: draws of L(v), in the direction in which L(v) > 0.
        candidate: draws of L(v') from the same resamples.
        margin: largest relative difference that still counts as the same.
    """
    return Tost(
        above=float(np.quantile(candidate - (1 - margin) * reference, 0.05)),
        below=float(np.quantile(candidate - (1 + margin) * reference, 0.95)),
        margin=margin,
    )


def prompts_to_decide(differences: Float[np.ndarray, " prompts"], bound: float) -> int:
    """Prompts at which TOST with margin `bound` would decide with 80 % power.

    n = 8.56 sigma^2 / bound^2 with sigma^2 the variance between prompts of what is
    tested, such as L(v') - (1 - m) L(v), samples included, if there is no true
    difference. Directions are taken as they are: their spread is not made smaller by
    more prompts.
    """
    variance = float(np.var(differences, ddof=1)) if len(differences) > 1 else np.nan
    if not (bound > 0 and np.isfinite(variance)):
        return 0
    return int(np.ceil(POWER_CONSTANT * variance / bound**2))


def rank_p(value: float, null: Float[np.ndarray, " draws"]) -> float:
    """One-sided permutation p-value (1 + #{null >= value}) / (J + 1).

    >>> import numpy as np
    >>> rank_p(1.0, np.zeros(19))
    0.05
    """
    return float((1 + np.sum(null >= value)) / (len(null) + 1))


def wilson(found: float, num: int, *, level: float = 0.95) -> Estimate:
    """A share with E. B. Wilson's interval (JASA 22, 1927): never empty, in [0, 1].

    It inverts the test whose variance is that of the hypothesis, so that 0 of 8 says
    something, and not that the share is 0.

    Args:
        found: how many of them; not whole if it is a sum of shares, which vary less
            around their mean than yes and no do.
        num: of how many that are independent.
        level: of the interval.

    Raises:
        ValueError: `found` is not between 0 and `num`, or `num` is 0.

    >>> seen = wilson(0, 8)
    >>> seen.value, round(seen.high, 3)
    (0.0, 0.324)
    """
    if not 0 <= found <= num or num == 0:
        raise ValueError(f"a share needs 0 <= found <= num and num > 0: {found}, {num}")
    z2 = float(stats.norm.ppf((1 + level) / 2)) ** 2
    middle = (found + z2 / 2) / (num + z2)
    half = np.sqrt(z2 * (found * (num - found) / num + z2 / 4)) / (num + z2)
    value = found / num
    # At the ends the two terms are equal up to rounding.
    low, high = min(value, middle - half), max(value, middle + half)
    return Estimate(value, max(0.0, float(low)), min(1.0, float(high)), level)


def share(shares: Float[np.ndarray, " prompts"], *, seed: int = 0) -> Estimate:
    """The mean of prompts' shares; the wider of two intervals, at either end.

    Resampled prompts see how different they are, and Student's factor that they are
    few. Prompts that all agree leave a bootstrap no width at all, however few they
    are: Wilson's with one yes or no a prompt does.

    Raises:
        ValueError: there is no prompt.
    """
    draws = two_way_bootstrap({"": shares[None]}, seed=seed)[""]
    seen = estimate(shares[None], draws)
    whole = wilson(float(shares.sum()), len(shares))
    low, high = min(seen.low, whole.low), max(seen.high, whole.high)
    return Estimate(whole.value, max(0.0, low), min(1.0, high))


def median(values: Float[np.ndarray, " num"], *, level: float = 0.95) -> Estimate:
    """The median with the interval between two order statistics (the sign test's).

    It covers the median of any continuous distribution. Fewer than six values cannot
    at 95 %: then it is their range, and `level` is what that range covers.

    Raises:
        ValueError: there is no value.

    >>> import numpy as np
    >>> print(median(np.array([3.0, 1.0, 2.0])))
    Estimate(value=2.0, low=1.0, high=3.0, level=0.75)
    """
    if len(values) == 0:
        raise ValueError("there is no value to take the median of")
    num, ordered = len(values), np.sort(values)
    # So many of them may lie beyond an end.
    below = max(0, int(stats.binom.ppf((1 - level) / 2, num, 0.5)) - 1)
    reached = 1 - 2 * float(stats.binom.cdf(below, num, 0.5))
    ends = float(ordered[below]), float(ordered[-1 - below])
    return Estimate(
        float(np.median(values)), *ends, level=min(level, max(0.0, reached))
    )


def auc(high: Float[np.ndarray, " highs"], low: Float[np.ndarray, " lows"]) -> float:
    """Probability that a random `high` score exceeds a random `low` one; ties half.

    >>> import numpy as np
    >>> auc(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    0.875
    """
    statistic = stats.mannwhitneyu(high, low, method="asymptotic").statistic
    return float(statistic / (len(high) * len(low)))


def intraclass_correlation(scores: Float[np.ndarray, "prompts samples"]) -> float:
    """ICC(1): share of the variance of a score that lies between prompts, in [0, 1].

    One-way random effects; NaN with one prompt or one sample.
    """
    num_prompts, num_samples = scores.shape
    if num_prompts < 2 or num_samples < 2:
        return float("nan")
    between = num_samples * scores.mean(1).var(ddof=1)
    within = scores.var(axis=1, ddof=1).mean()
    total = between + (num_samples - 1) * within
    return float(max(0.0, (between - within) / total)) if total > 0 else 0.0


def reliability(icc: float, num_samples: int) -> float:
    """Reliability of a mean of `num_samples` samples (Spearman and Brown).

    >>> reliability(0.5, 1), round(reliability(0.1, 10), 3)
    (0.5, 0.526)
    """
    return num_samples * icc / (1 + (num_samples - 1) * icc)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two means with Fieller's interval.

    Attributes:
        value: of the ratio.
        low: lower end; None if the denominator cannot be told from 0, in which case
            no bounded interval covers.
        high: upper end, or None likewise.
    """

    value: float
    low: float | None
    high: float | None


def fieller(numerator: float, denominator: float, draws: tuple[Draws, Draws]) -> Ratio:
    """Fieller's 95 % interval of a ratio of means (E. C. Fieller, JRSS B 16, 1954).

    The set of ratios q for which numerator - q denominator is not significantly
    different from 0: it never pretends that a denominator near 0 is known.

    Args:
        numerator: its mean.
        denominator: its mean.
        draws: bootstrap draws of both, from the same resamples.
    """
    (v11, v12), (_, v22) = np.cov(np.stack(draws))
    z2 = float(stats.norm.ppf(0.975)) ** 2
    a = denominator**2 - z2 * v22
    b = numerator * denominator - z2 * v12
    c = numerator**2 - z2 * v11
    value = numerator / denominator if denominator else float("nan")
    root = b * b - a * c
    if a <= 0 or root < 0:
        return Ratio(value, None, None)
    return Ratio(value, float((b - np.sqrt(root)) / a), float((b + np.sqrt(root)) / a))
