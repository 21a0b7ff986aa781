"""Intervals cover, tests keep their level, and closed forms hold, on plain arrays."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from steergauge.statistics import (
    Estimate,
    auc,
    estimate,
    fieller,
    intraclass_correlation,
    median,
    prompts_to_decide,
    rank_p,
    reliability,
    share,
    tost,
    two_way_bootstrap,
    wilson,
)

NUM_SIMULATIONS = 300
SCORES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)


def slack(rate: float, num: int = NUM_SIMULATIONS) -> float:
    """Three binomial standard deviations of a rate seen in `num` simulations."""
    return 3 * math.sqrt(rate * (1 - rate) / num)


def crossed(
    rng: np.random.Generator,
    *,
    num_prompts: int = 50,
    num_directions: int = 5,
    of_prompts: float,
    of_directions: float,
    of_cells: float,
) -> np.ndarray:
    """A table with mean 0 and the given standard deviations of its random factors."""
    return (
        rng.normal(0, of_prompts, (1, num_prompts))
        + rng.normal(0, of_directions, (num_directions, 1))
        + rng.normal(0, of_cells, (num_directions, num_prompts))
    )


def coverage(num_draws: int = 600, **factors: float) -> float:
    """How often the 95 % interval of a crossed table covers its mean."""
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(NUM_SIMULATIONS):
        table = crossed(rng, **factors)
        draws = two_way_bootstrap({"": table}, num_draws=num_draws, seed=seed)[""]
        seen = estimate(table, draws)
        hits += seen.low <= 0 <= seen.high
    return hits / NUM_SIMULATIONS


@pytest.mark.parametrize("num_prompts", [50, 100])
def test_the_interval_of_one_vector_covers_its_mean_95_times_in_100(num_prompts):
    rate = coverage(
        num_directions=1,
        num_prompts=num_prompts,
        of_prompts=1,
        of_directions=0,
        of_cells=0.5,
    )
    # Neither too short nor, which would be no achievement, too long.
    assert abs(rate - 0.95) < slack(0.95)


@pytest.mark.parametrize(
    ("of_prompts", "of_directions", "of_cells"),
    [(1, 0.1, 1), (1, 0.3, 1), (0.3, 0.1, 1), (1, 0, 0)],
)
def test_two_way_intervals_cover_where_prompts_vary_as_much_as_directions(
    of_prompts, of_directions, of_cells
):
    # Variances of the mean: prompts /50, directions /5. Bootstrap variance of the
    # cells' own noise is up to three times too large, so rates above 0.95 are seen.
    rate = coverage(
        of_prompts=of_prompts, of_directions=of_directions, of_cells=of_cells
    )
    assert rate >= 0.95 - slack(0.95)


@pytest.mark.parametrize("num_directions", [3, 5])
def test_few_directions_that_vary_more_than_prompts_are_covered_as_well(num_directions):
    # A plain percentile interval of five numbers is z sqrt(4/5) wide where Student's
    # is t_4: it covers 84.6 times in 100, which this test would see.
    plain = 2 * stats.t.cdf(stats.norm.ppf(0.975) * math.sqrt(4 / 5), df=4) - 1
    assert plain == pytest.approx(0.846, abs=0.001)
    assert plain < 0.95 - 2 * slack(0.95)
    rate = coverage(
        num_directions=num_directions, of_prompts=0.1, of_directions=1, of_cells=0.1
    )
    assert rate >= 0.95 - slack(0.95)


def test_draws_have_the_mean_and_the_standard_error_of_the_table():
    rng = np.random.default_rng(0)
    table = rng.normal(3.0, 2.0, (1, 80))
    draws = two_way_bootstrap({"": table}, num_draws=20_000)[""]
    # As wide as Student's interval, which is that of 80 numbers.
    student = stats.t.ppf(0.975, 79) / stats.norm.ppf(0.975)
    error = student * table.std(ddof=1) / math.sqrt(80)
    # 20000 draws: mean to 3 / sqrt(20000) errors, spread to 3 / sqrt(40000).
    assert abs(draws.mean() - table.mean()) < 0.022 * error
    assert abs(draws.std() / error - 1) < 0.015


def test_identical_tables_differ_by_exactly_nothing():
    table = np.random.default_rng(0).random((1, 50))
    draws = two_way_bootstrap({"v": table, "again": table.copy()})
    assert draws["v"].std() > 0.01
    assert np.array_equal(draws["v"], draws["again"])


def test_prompts_are_resampled_jointly_and_directions_independently():
    rng = np.random.default_rng(0)
    prompts, directions = rng.random((1, 50)), rng.random((6, 1))
    same_rows = np.broadcast_to(prompts, (6, 50))
    same_columns = np.broadcast_to(directions, (6, 50))
    tables = {"a": same_rows, "b": same_rows, "c": same_columns, "d": same_columns}
    draws = two_way_bootstrap(tables)
    assert draws["a"].std() > 0.01
    # Equal up to the order in which 300 numbers are summed.
    assert np.abs(draws["a"] - draws["b"]).max() < 1e-12
    assert draws["c"].std() > 0.01
    # Independent: correlation 0, to four standard errors of 2000 draws.
    assert abs(np.corrcoef(draws["c"], draws["d"])[0, 1]) < 4 / math.sqrt(2000)


def test_directions_that_are_all_there_are_are_not_resampled():
    rng = np.random.default_rng(0)
    directions = np.broadcast_to(rng.random((6, 1)), (6, 50))
    prompts = rng.random((6, 50))
    free = two_way_bootstrap({"": directions})[""]
    held = two_way_bootstrap({"": directions}, fixed=[""])[""]
    assert free.std() > 0.01
    # Equal up to the rounding of a mean of six numbers.
    assert np.abs(held - directions.mean()).max() < 1e-12
    # What varies between prompts still does: as their mean over directions.
    both = two_way_bootstrap({"": prompts, "mean": prompts.mean(0)[None]}, fixed=[""])
    assert np.abs(both[""] - both["mean"]).max() < 1e-12
    assert both[""].std() > 0.01


def test_the_same_seed_gives_the_same_draws_and_another_does_not():
    table = np.random.default_rng(0).random((3, 20))
    first, again, other = (
        two_way_bootstrap({"": table}, seed=seed)[""] for seed in (5, 5, 6)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("widths", [(3, 4), (0,)])
def test_tables_of_other_prompts_or_of_none_are_refused(widths):
    tables = {str(width): np.zeros((1, width)) for width in widths}
    with pytest.raises(ValueError, match="same prompts"):
        two_way_bootstrap(tables)


def test_an_interval_excludes_zero_if_it_lies_on_one_side_of_it():
    cases = {(1, 2): True, (-2, -1): True, (-1, 1): False, (0, 1): False}
    for (low, high), expected in cases.items():
        assert Estimate(0.5, float(low), float(high)).excludes_zero is expected


def lift_draws(
    rng: np.random.Generator, ratio: float, *, num_prompts: int = 100, seed: int = 0
) -> dict[str, np.ndarray]:
    """Draws of L(v) = 0.15 and of L(v') = ratio L(v), on the same prompts."""
    shared = rng.normal(0, 0.05, (1, num_prompts))
    noise = rng.normal(0, 0.06, (2, num_prompts))
    tables = {
        "v": 0.15 + shared + noise[:1],
        "other": 0.15 * ratio + shared + noise[1:],
    }
    return two_way_bootstrap(tables, num_draws=600, seed=seed)


def rate_of_equivalence(
    ratio: float, *, num: int = NUM_SIMULATIONS, **sizes: int
) -> float:
    rng = np.random.default_rng(2)
    verdicts = []
    for seed in range(num):
        draws = lift_draws(rng, ratio, seed=seed, **sizes)
        verdicts.append(tost(draws["v"], draws["other"], margin=0.2).equivalent)
    return float(np.mean(verdicts))


def test_tost_finds_what_is_equal_and_rarely_more_than_5_times_in_100_what_is_not():
    assert rate_of_equivalence(1.0) > 0.8
    # Exactly at the margin is the least favourable case of "not equivalent".
    for ratio in (0.8, 1.2):
        assert rate_of_equivalence(ratio) < 0.05 + slack(0.05)
    for ratio in (-1.0, 0.0, 0.5, 2.0):
        assert rate_of_equivalence(ratio, num=30) == 0.0


def test_few_prompts_make_tost_undecided_and_not_equivalent():
    assert rate_of_equivalence(1.0, num_prompts=10) < 0.2


def test_tost_bounds_are_closed_forms_and_scale_with_the_lift():
    draws = np.linspace(0.1, 0.2, 101)
    seen = tost(draws, draws, margin=0.2)
    # L(v') = L(v): the bounds are the quantiles of m L(v) and of -m L(v).
    assert seen.above == pytest.approx(0.2 * 0.105)
    assert seen.below == pytest.approx(-0.2 * 0.105)
    scaled = tost(7 * draws, 7 * draws, margin=0.2)
    assert (scaled.above, scaled.below) == pytest.approx(
        (7 * seen.above, 7 * seen.below)
    )


def test_at_the_prompts_to_decide_tost_decides_80_times_in_100():
    rng = np.random.default_rng(3)
    bound = 0.03
    num = prompts_to_decide(rng.normal(0, 0.1, 200_000), bound)
    # 8.56 (0.1 / 0.03)^2 = 95.2, to the error of a variance from 200000 prompts.
    assert abs(num - 95.2) < 2
    decided = []
    for seed in range(NUM_SIMULATIONS):
        gap = rng.normal(0, 0.1, (1, num))
        reference = np.full((1, num), bound / 0.2)
        tables = {"v": reference, "other": reference + gap}
        draws = two_way_bootstrap(tables, num_draws=600, seed=seed)
        decided.append(tost(draws["v"], draws["other"], margin=0.2).equivalent)
    assert abs(np.mean(decided) - 0.8) < slack(0.8)


def test_prompts_to_decide_is_0_where_nothing_can_be_said():
    varied = np.array([0.0, 1.0])
    for differences, bound in [(varied, 0.0), (varied, -1.0), (np.zeros(1), 1.0)]:
        assert prompts_to_decide(differences, bound) == 0


@given(value=st.integers(0, 6).map(float), null=SCORES)
def test_rank_p_counts_the_nulls_that_reach_the_value(value, null):
    reached = sum(other >= value for other in null)
    assert rank_p(value, np.array(null)) == (1 + reached) / (1 + len(null))


def test_rank_p_is_uniform_when_the_value_is_one_of_the_nulls():
    rng = np.random.default_rng(0)

    def counts(shift: float) -> np.ndarray:
        drawn = rng.normal(size=(2000, 20))
        p = [rank_p(row[0] + shift, row[1:]) for row in drawn]
        return np.bincount((np.array(p) * 20).round().astype(int), minlength=21)[1:]

    assert stats.chisquare(counts(0.0)).pvalue > 1e-4
    assert stats.chisquare(counts(0.3)).pvalue < 1e-4


@given(high=SCORES, low=SCORES)
def test_auc_is_the_share_of_pairs_in_the_right_order(high, low):
    pairs = [(h > l) + 0.5 * (h == l) for h in high for l in low]  # noqa: E741
    assert auc(np.array(high), np.array(low)) == pytest.approx(np.mean(pairs))


def test_auc_of_scores_that_are_all_the_same_is_one_half():
    assert auc(np.full(12, 0.5), np.full(10, 0.5)) == 0.5


@pytest.mark.parametrize("icc", [0.0, 0.3, 0.8])
def test_intraclass_correlation_finds_the_share_that_was_simulated(icc):
    rng = np.random.default_rng(4)
    between = rng.normal(0, math.sqrt(icc), (500, 1))
    scores = between + rng.normal(0, math.sqrt(1 - icc), (500, 8))
    # Standard error of an ICC from 500 x 8 is at most 0.022 (Fisher 1925); three.
    assert abs(intraclass_correlation(scores) - icc) < 0.066


def test_intraclass_correlation_of_constants_is_0_and_of_single_values_unknown():
    assert intraclass_correlation(np.full((5, 4), 0.3)) == 0.0
    assert math.isnan(intraclass_correlation(np.zeros((1, 4))))
    assert math.isnan(intraclass_correlation(np.zeros((4, 1))))


@pytest.mark.parametrize("icc", [0.1, 0.5])
@pytest.mark.parametrize("num_samples", [1, 4, 10])
def test_reliability_is_the_correlation_of_two_independent_means(icc, num_samples):
    rng = np.random.default_rng(5)
    between = rng.normal(0, math.sqrt(icc), (20_000, 1))
    noise = rng.normal(0, math.sqrt(1 - icc), (2, 20_000, num_samples))
    means = (between + noise).mean(-1)
    # Standard error of r from 20000 pairs is at most 0.007; three.
    seen = np.corrcoef(means)[0, 1]
    assert abs(seen - reliability(icc, num_samples)) < 0.021


def test_reliability_grows_from_the_icc_to_1_and_is_0_without_one():
    grown = [reliability(0.3, num) for num in (1, 2, 4, 100, 10**6)]
    assert grown[0] == 0.3
    assert grown == sorted(grown)
    assert grown[-1] == pytest.approx(1, abs=1e-5)
    assert reliability(0.0, 10) == 0.0
    assert reliability(1.0, 3) == 1.0


def normal_draws(
    rng: np.random.Generator, covariance: list[list[float]], num: int = 4000
) -> tuple[np.ndarray, np.ndarray]:
    """Draws whose sample covariance is exactly the given one."""
    drawn = rng.standard_normal((2, num))
    drawn -= drawn.mean(1, keepdims=True)
    whitened = np.linalg.solve(np.linalg.cholesky(np.cov(drawn)), drawn)
    first, second = np.linalg.cholesky(np.array(covariance)) @ whitened
    return first, second


def test_fiellers_interval_agrees_with_a_hand_computation():
    # 2 / 4 with variances .04 and .09, uncorrelated; z^2 = 3.8415. The ends solve
    # (2 - 4 q)^2 = 3.8415 (.04 + .09 q^2): 15.6543 q^2 - 16 q + 3.8463 = 0.
    draws = normal_draws(np.random.default_rng(0), [[0.04, 0.0], [0.0, 0.09]])
    seen = fieller(2.0, 4.0, draws)
    assert seen.value == 0.5
    assert (seen.low, seen.high) == pytest.approx((0.38664, 0.63545), abs=1e-4)


@given(
    st.floats(-5, 5),
    st.floats(2, 5),
    st.floats(-0.9, 0.9),
)
def test_the_ends_of_fiellers_interval_are_just_significant(top, bottom, correlation):
    covariance = [[0.04, 0.06 * correlation], [0.06 * correlation, 0.09]]
    draws = normal_draws(np.random.default_rng(1), covariance, num=200)
    seen = fieller(top, bottom, draws)
    assert seen.low < seen.value < seen.high
    for end in (seen.low, seen.high):
        error = math.sqrt(0.04 - 2 * end * covariance[0][1] + end**2 * covariance[1][1])
        z = abs(top - end * bottom) / error
        assert z == pytest.approx(stats.norm.ppf(0.975), rel=1e-6)


@pytest.mark.parametrize(("errors", "bounded"), [(2.1, True), (1.9, False)])
def test_fiellers_interval_is_bounded_only_if_the_denominator_is_not_0(errors, bounded):
    draws = normal_draws(np.random.default_rng(2), [[0.04, 0.0], [0.0, 0.09]])
    seen = fieller(0.5, errors * 0.3, draws)
    assert (seen.low is not None) == (seen.high is not None) == bounded
    assert seen.value == pytest.approx(0.5 / (errors * 0.3))


def test_fiellers_interval_of_a_ratio_to_exactly_0_does_not_exist():
    draws = normal_draws(np.random.default_rng(2), [[0.04, 0.0], [0.0, 0.09]])
    seen = fieller(0.5, 0.0, draws)
    assert math.isnan(seen.value)
    assert seen.low is seen.high is None


@pytest.mark.parametrize("bottom", [1.0, 0.2])
def test_fiellers_interval_covers_also_where_the_denominator_is_noisy(bottom):
    rng = np.random.default_rng(6)
    hits = unbounded = 0
    for seed in range(NUM_SIMULATIONS):
        shared = rng.normal(0, 0.5, (1, 50))
        tables = {
            "top": 0.5 * bottom + shared + rng.normal(0, 0.3, (1, 50)),
            "bottom": bottom + shared + rng.normal(0, 0.3, (1, 50)),
        }
        draws = two_way_bootstrap(tables, num_draws=400, seed=seed)
        means = [float(table.mean()) for table in tables.values()]
        seen = fieller(*means, (draws["top"], draws["bottom"]))
        unbounded += seen.low is None
        hits += seen.low is None or seen.low <= 0.5 <= seen.high
    assert hits / NUM_SIMULATIONS >= 0.95 - slack(0.95)
    assert (unbounded > 0) == (bottom == 0.2)


@pytest.mark.parametrize("num", [1, 7, 40])
def test_wilsons_interval_is_scipys_where_counts_are_whole(num):
    for found in range(num + 1):
        for level in (0.9, 0.95):
            counted = stats.binomtest(found, num)
            ends = counted.proportion_ci(level, method="wilson")
            seen = wilson(found, num, level=level)
            assert (seen.value, seen.level) == (found / num, level)
            assert (seen.low, seen.high) == pytest.approx((ends.low, ends.high))
            assert 0 <= seen.low <= seen.value <= seen.high <= 1


@pytest.mark.parametrize(("found", "num"), [(0, 0), (3, 2), (-1, 2), (math.nan, 2)])
def test_a_share_of_nothing_is_an_error(found, num):
    with pytest.raises(ValueError, match="found <= num"):
        wilson(found, num)


@pytest.mark.parametrize("num", [4, 10])
@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_the_interval_of_a_share_covers_over_prompts(rate, num):
    """Prompts of ten positions each, whose rates are spread around the mean."""
    rng, hits = np.random.default_rng(0), 0
    for seed in range(NUM_SIMULATIONS):
        rates = rng.beta(2 * rate, 2 * (1 - rate), num)
        seen = share(rng.binomial(10, rates) / 10, seed=seed)
        hits += seen.low <= rate <= seen.high
    assert hits / NUM_SIMULATIONS >= 0.95 - slack(0.95)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_prompts_that_all_agree_leave_an_interval(value):
    widths = []
    for num in (1, 4, 10):
        seen = share(np.full(num, value))
        assert seen.value == value
        assert 0 <= seen.low <= seen.high <= 1
        widths.append(seen.high - seen.low)
    assert widths[0] > widths[1] > widths[2] > 0.2


@pytest.mark.parametrize("num", [1, 3, 5, 6, 10, 25])
def test_the_interval_of_a_median_covers_at_its_level(num):
    rng = np.random.default_rng(0)
    hits, seen = 0, None
    for _ in range(NUM_SIMULATIONS):
        # Skewed, with median log 2.
        seen = median(rng.exponential(size=num))
        hits += seen.low <= math.log(2) <= seen.high
    assert seen.level == min(0.95, 1 - 2 ** (1 - num))
    assert hits / NUM_SIMULATIONS >= seen.level - slack(seen.level)


def test_the_median_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no value"):
        median(np.array([]))
