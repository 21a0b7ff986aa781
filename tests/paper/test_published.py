"""The published statistics are as defined, and noise makes of them what it should."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from steergauge.paper.published import (
    NOISE_SPREAD,
    cohens_d,
    correlation,
    expected_ratio,
    implied_gain,
    logit_ratio,
    noise_floor,
    perp_only_percent,
    samples_at_floor,
    scores_to_bound,
)
from steergauge.statistics import intraclass_correlation

SCORES = st.lists(st.integers(0, 20).map(lambda x: x / 20), min_size=2, max_size=12)
NUM_EXPERIMENTS = 4000


def drawn(
    rng: np.random.Generator, icc: float, prompts: np.ndarray, samples: int
) -> np.ndarray:
    """Scores of one arm, (prompts, samples), of variance 1 and the given ICC."""
    own = rng.normal(size=(len(prompts), samples))
    return math.sqrt(icc) * prompts[:, None] + math.sqrt(1 - icc) * own


def null_effects(
    num_prompts: int, samples: int, *, icc: float, shared: bool, num: int
) -> np.ndarray:
    """|d| between two arms of the same distribution, once an experiment."""
    rng = np.random.default_rng(0)
    effects = []
    for _ in range(num):
        prompts = rng.normal(size=num_prompts)
        others = prompts if shared else rng.normal(size=num_prompts)
        first = drawn(rng, icc, prompts, samples)
        effects.append(cohens_d(first, drawn(rng, icc, others, samples)))
    return np.array(effects)


def estimated(size: int) -> float:
    """E[sigma / s] for two arms of that size: what estimating sigma does to a mean d.

    s^2 / sigma^2 is chi-square over its degrees of freedom, of which this is the mean
    of the inverse root.
    """
    degrees = 2 * size - 2
    log = special.gammaln((degrees - 1) / 2) - special.gammaln(degrees / 2)
    return math.sqrt(degrees / 2) * math.exp(log)


@given(first=SCORES, second=SCORES)
def test_d_is_the_size_of_the_pooled_t_statistic(first, second):
    assume(np.ptp(first) > 0 and np.ptp(second) > 0)
    t = stats.ttest_ind(first, second).statistic
    expected = abs(t) * math.sqrt(1 / len(first) + 1 / len(second))
    assert cohens_d(first, second) == pytest.approx(expected, abs=1e-9)


def test_d_at_equal_sizes_weighs_both_variances_alike():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, 40), rng.normal(1, 3, 40)
    pooled = math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2)
    expected = abs(first.mean() - second.mean()) / pooled
    assert expected > 0.1
    assert cohens_d(first, second) == pytest.approx(expected, rel=1e-12)
    # And at unequal sizes does not.
    fewer = second[:5]
    alike = math.sqrt((first.var(ddof=1) + fewer.var(ddof=1)) / 2)
    other = abs(first.mean() - fewer.mean()) / alike
    assert abs(cohens_d(first, fewer) / other - 1) > 0.05


@given(first=SCORES, second=SCORES, scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_d_has_no_sign_no_unit_and_no_origin(first, second, scale, shift):
    seen = cohens_d(first, second)
    assert cohens_d(second, first) == pytest.approx(seen, abs=1e-9)
    assert cohens_d(np.negative(first), np.negative(second)) == pytest.approx(
        seen, abs=1e-9
    )
    assume(np.ptp(first) > 0 or np.ptp(second) > 0)
    moved = [scale * np.array(part) + shift for part in (first, second)]
    # Rounding of scores of 15 with means that agree to 1e-16.
    assert cohens_d(*moved) == pytest.approx(seen, rel=1e-9, abs=1e-9)


def test_d_of_lists_that_do_not_vary_is_0_or_infinite():
    # 0.1 six times and ten times have means that differ in the last place.
    assert np.full(6, 0.1).mean() != np.full(10, 0.1).mean()
    assert cohens_d(np.full(6, 0.1), np.full(10, 0.1)) == 0.0
    assert cohens_d(np.full(6, 0.1), np.full(10, 0.2)) == math.inf
    assert cohens_d([0.1, 0.1], [0.1, 0.3]) == pytest.approx(1.0)


def test_d_is_as_small_for_two_vectors_that_do_nothing_as_for_two_that_do_the_same():
    unsteered, v, other = np.random.default_rng(0).normal(0.4, 0.05, (3, 100))
    seen = cohens_d(v, other)
    assert 0 < seen < 0.2
    # A world in which both lift the score by 0.3: only the unsteered arm tells.
    assert cohens_d(v + 0.3, other + 0.3) == pytest.approx(seen, rel=1e-9)
    assert cohens_d(v, unsteered) < 0.4
    assert cohens_d(v + 0.3, unsteered) > 5


@given(pairs=st.lists(st.tuples(*[st.integers(0, 20)] * 2), min_size=2, max_size=15))
def test_the_correlation_is_pearsons(pairs):
    first, second = np.array(pairs, dtype=float).T / 20
    assume(np.ptp(first) > 0 and np.ptp(second) > 0)
    expected = stats.pearsonr(first, second).statistic
    assert correlation(first, second) == pytest.approx(expected, abs=1e-9)
    assert correlation(second, first) == pytest.approx(expected, abs=1e-9)
    assert correlation(5 * first - 1, second) == pytest.approx(expected, abs=1e-9)
    assert correlation(-first, second) == pytest.approx(-expected, abs=1e-9)


def test_the_correlation_with_a_constant_is_not_a_number():
    assert math.isnan(correlation(np.full(7, 0.1), np.arange(7)))
    assert math.isnan(correlation(np.arange(7), np.full(7, 0.1)))


def test_tables_are_read_as_flat_lists_in_order():
    table = np.random.default_rng(0).random((2, 4, 3))
    other = np.random.default_rng(1).random((2, 4, 3))
    assert correlation(table, other) == correlation(table.ravel(), other.ravel())
    assert correlation(table, other) != correlation(
        table.ravel(), other.transpose(0, 2, 1).ravel()
    )
    assert cohens_d(table, other) == cohens_d(table.ravel(), other.ravel()) > 0


@pytest.mark.parametrize("icc", [0.0, 0.1, 0.3, 0.5])
def test_the_correlation_of_arms_that_share_prompts_is_the_icc_whatever_they_do(icc):
    rng = np.random.default_rng(5)
    num, samples = 4000, 10
    prompts = rng.normal(size=num)
    arms = [drawn(rng, icc, prompts, samples) for _ in range(3)]
    again = correlation(arms[0], arms[1])
    lifted = correlation(arms[0], arms[2] + 7.0)
    # Standard error of r: at most that of 4000 prompts, three of it.
    assert abs(again - icc) < 3 / math.sqrt(num)
    assert abs(lifted - icc) < 3 / math.sqrt(num)
    assert abs(intraclass_correlation(arms[0]) - icc) < 3 / math.sqrt(num)
    assert cohens_d(arms[0], arms[2] + 7.0) > 5


def test_the_perp_only_percentage_is_near_100_where_neither_vector_does_anything():
    rng = np.random.default_rng(0)
    unsteered, perp, v = rng.beta(14, 6, (3, 1000))
    # Their common mean is 0.7 to 3 standard errors of 0.1 / sqrt(1000), hence 2 %.
    assert perp_only_percent(perp, v) == pytest.approx(100, abs=2)
    assert perp_only_percent(unsteered, v) == pytest.approx(100, abs=2)
    expected = 100 * perp.mean() / v.mean()
    assert perp_only_percent(perp, v) == pytest.approx(expected, rel=1e-12)


def test_the_perp_only_percentage_hides_signs():
    assert perp_only_percent([-0.5, -0.3], [0.4, 0.4]) == pytest.approx(100)
    assert perp_only_percent([-0.5, -0.3], [-0.8]) == pytest.approx(50)


def test_ratios_of_nothing_are_infinite_or_no_numbers():
    assert perp_only_percent([0.5], [0.0, 0.0]) == math.inf
    assert math.isnan(perp_only_percent([0.0], [0.0]))
    assert logit_ratio([0.5], [0.0, 0.0]) == math.inf
    assert math.isnan(logit_ratio([0.0], [0.0]))
    assert perp_only_percent([0.0], [0.5]) == logit_ratio([0.0], [0.5]) == 0.0


@pytest.mark.parametrize(("size", "known"), [(9, 0.395), (100, 0.113)])
def test_two_arms_that_do_not_differ_have_an_effect_size_at_the_floor(size, known):
    num = NUM_EXPERIMENTS * (5 if size < 50 else 1)
    effects = null_effects(size, 1, icc=0.0, shared=True, num=num)
    # |N| varies by 0.756 of its mean; three standard errors of the experiments.
    error = 3 * NOISE_SPREAD / math.sqrt(num)
    floor = noise_floor(size, size)
    assert abs(effects.mean() / (floor * estimated(size)) - 1) < error
    assert floor * estimated(size) == pytest.approx(known, abs=5e-4)
    # The docstring's correction for an estimated standard deviation is first order.
    assert estimated(size) == pytest.approx(1 + 3 / (4 * (2 * size - 2)), rel=4e-3)


@pytest.mark.parametrize(("shared", "known"), [(True, 0.0798), (False, 0.1954)])
def test_the_floor_with_an_icc_falls_if_prompts_are_shared_and_rises_if_not(
    shared, known
):
    sizes = {"icc": 0.5, "shared": shared}
    effects = null_effects(20, 5, **sizes, num=NUM_EXPERIMENTS)
    floor = noise_floor(100, 100, icc=0.5, shared_prompts=shared, samples=5)
    assert floor == pytest.approx(known, abs=5e-5)
    plain = noise_floor(100, 100)
    assert abs(floor / plain - 1) > 0.25
    # 20 prompts: s^2 is short by ICC (S - 1) / (n - 1), that is 2 %, and 1 / s has a
    # mean above 1 / sigma by 3 / 8 of s^2's relative variance, 2 (.5^2 / 19): 2 %.
    error = 3 * NOISE_SPREAD / math.sqrt(NUM_EXPERIMENTS)
    assert 1 - error < effects.mean() / floor < 1.04 + error


def test_the_floor_of_many_scores_and_unequal_arms_is_the_mean_of_a_folded_normal():
    first, second, icc, samples = 300, 700, 0.3, 4
    floor = noise_floor(first, second, icc=icc, shared_prompts=False, samples=samples)
    # Variance of an arm's mean from its covariance matrix, prompt by prompt.
    block = icc * np.ones((samples, samples)) + (1 - icc) * np.eye(samples)
    variances = [block.sum() * (n / samples) / n**2 for n in (first, second)]
    normal = stats.norm(scale=math.sqrt(sum(variances)))
    expected, _ = integrate.quad(lambda x: 2 * x * normal.pdf(x), 0, np.inf)
    assert floor == pytest.approx(expected, rel=1e-6)


def test_the_spread_of_noise_is_that_of_a_folded_normal():
    folded = stats.foldnorm(0)
    assert pytest.approx(folded.std() / folded.mean(), rel=1e-9) == NOISE_SPREAD
    assert pytest.approx(0.756, abs=5e-4) == NOISE_SPREAD


@given(d=st.floats(1e-3, 3), icc=st.floats(0, 0.99))
def test_the_samples_at_the_floor_invert_the_floor(d, icc):
    num = samples_at_floor(d, icc=icc)
    # `noise_floor` takes whole numbers: ten million times as many scores have a floor
    # sqrt(1e7) times as low.
    many = round(1e7 * num)
    assume(many > 1e5)
    floor = noise_floor(many, many, icc=icc) * math.sqrt(1e7)
    assert floor == pytest.approx(d, rel=1e-4)


def test_no_difference_is_the_floor_of_infinitely_many_scores():
    assert samples_at_floor(0.0) == math.inf
    assert samples_at_floor(0.3725) == pytest.approx(9.18, abs=0.005)


def test_at_the_scores_to_bound_tost_shows_it_80_times_in_100():
    num, bound = round(scores_to_bound(0.2)), 0.2
    assert num == 428
    rng = np.random.default_rng(1)
    shown = []
    for _ in range(NUM_EXPERIMENTS):
        first, second = rng.normal(size=(2, num))
        pooled = math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2)
        gap = (first.mean() - second.mean()) / pooled
        width = stats.norm.ppf(0.95) * math.sqrt(2 / num)
        shown.append(abs(gap) + width < bound)
    # Three binomial standard errors.
    assert abs(np.mean(shown) - 0.8) < 3 * math.sqrt(0.8 * 0.2 / NUM_EXPERIMENTS)


def linear_ratio(gain: float, width: int = 400, *, null: int = 0) -> float:
    """R of a linear map o = J h in which v has that gain, from 200 random directions.

    Args:
        gain: of v over the mean of random directions.
        width: of the stream.
        null: dimensions of it that J does not see.
    """
    rng = np.random.default_rng(2)
    jacobian = rng.normal(size=(width + 100, width))
    jacobian[:, width - null :] = 0
    v = rng.normal(size=width)
    v[width - null :] = 0
    v /= np.linalg.norm(v)
    # The component along v is set apart, so that its gain can be chosen.
    rest = jacobian - np.outer(jacobian @ v, v)
    mean = np.sum(rest**2) / (width - 1)
    along = rng.normal(size=len(rest))
    along *= math.sqrt(gain * mean) / np.linalg.norm(along)
    jacobian = rest + np.outer(along, v)
    perp, other = rng.normal(size=(2, 200, width))
    perp -= np.outer(perp @ v, v)
    perp /= np.linalg.norm(perp, axis=1, keepdims=True)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    return logit_ratio(
        np.linalg.norm(perp @ jacobian.T, axis=1),
        np.linalg.norm((v - other) @ jacobian.T, axis=1),
    )


@pytest.mark.parametrize("null", [0, 200])
@pytest.mark.parametrize("gain", [0.23, 1.0, 3.0])
def test_r_of_a_linear_map_is_that_of_vs_gain_with_and_without_a_null_space(gain, null):
    seen = linear_ratio(gain, null=null)
    # 200 directions: norms vary by less than 8 % and the gain enters halved; width
    # 400: terms of order 1 / d that the formula leaves out. Together below 2 %.
    assert seen == pytest.approx(expected_ratio(gain), rel=0.02)
    assert implied_gain(seen) == pytest.approx(gain, rel=0.1)
    assert seen < 1


@given(gain=st.floats(0.001, 100))
def test_r_and_the_gain_that_it_implies_invert_each_other(gain):
    ratio = expected_ratio(gain)
    assert 0 < ratio < 1
    assert implied_gain(ratio) == pytest.approx(gain, rel=1e-9, abs=1e-12)


def test_a_random_v_has_an_r_of_one_over_the_root_of_two():
    assert expected_ratio(1.0) == pytest.approx(math.sqrt(0.5))
    assert implied_gain(1.0) == 0.0
    assert implied_gain(1.1) < 0


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: cohens_d([0.1], [0.1, 0.2]), "got 1"),
        (lambda: correlation([0.1, 0.2], [0.1, 0.2, 0.3]), "2 and 3"),
        (lambda: correlation([0.1], [0.1]), "got 1"),
        (lambda: perp_only_percent([], [0.1]), "got 0"),
        (lambda: logit_ratio([1.0], []), "got 0"),
        (lambda: noise_floor(0, 5), "got 0, 5 and 1"),
        (lambda: noise_floor(5, 5, samples=0), "5 and 0"),
        (lambda: noise_floor(5, 5, icc=1.5), "ICC is 1.5"),
        (lambda: samples_at_floor(-0.1), "-0.1"),
        (lambda: samples_at_floor(0.1, icc=-0.1), "ICC is -0.1"),
        (lambda: scores_to_bound(0.0), "bound is 0.0"),
        (lambda: implied_gain(0.0), "R is 0.0"),
        (lambda: implied_gain(math.nan), "R is nan"),
        (lambda: expected_ratio(-1.0), "gain is -1.0"),
    ],
)
def test_what_has_no_value_is_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call()
