"""A confidence sequence holds at every look, at the few prompts of a first one too."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from steergauge.sequential import (
    ALPHA,
    FIRST_LOOK,
    Looks,
    critical_value,
    level_at,
    mixture_variance,
)

NUM = 4000
LOOKS = Looks(100, 10)


def misses(values, truth, *, looks=LOOKS, half_width=None):
    """Share of rows whose interval misses the truth at some look; two-sided, upper."""
    either = np.zeros(len(values), bool)
    below = np.zeros(len(values), bool)
    for n in looks.numbers:
        part = values[:, :n]
        off = (part.mean(1) - truth) / part.std(axis=1, ddof=1)
        width = (half_width or looks.half_width)(1.0, n)
        either |= np.abs(off) > width
        below |= off < -width
    return either.mean(), below.mean()


def most(rate, num=NUM):
    """Three binomial standard deviations above a rate."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / num)


def drawn(kind, rng, planned):
    """Values of prompts with their mean: symmetric, and as skewed as KLs."""
    size = (NUM, planned)
    if kind == "lifts":
        return rng.beta(2, 2, size) - rng.beta(3, 2, size), 0.5 - 0.6
    if kind == "divergences":  # Means over four samples of an exponential.
        return rng.gamma(4, 0.25, size), 1.0
    return rng.normal(size=size), 0.0


@pytest.mark.parametrize("kind", ["normal", "lifts", "divergences"])
@pytest.mark.parametrize("planned", [50, 100, 300])
def test_the_sequence_misses_at_some_look_at_most_5_times_in_100(kind, planned):
    values, truth = drawn(kind, np.random.default_rng(planned), planned)
    looks = Looks(planned, 10)
    ever, _ = misses(values, truth, looks=looks)
    assert ever <= most(ALPHA)
    # Of a skewed value both errors fall on one side: the one-sided level as well.
    one_sided, _ = misses(
        values,
        truth,
        looks=looks,
        half_width=lambda sd, n: looks.half_width(sd, n, alpha=2 * ALPHA),
    )
    assert one_sided <= most(2 * ALPHA)


def test_one_sided_ends_at_twice_the_level_keep_the_level_on_their_side():
    values, truth = drawn("divergences", np.random.default_rng(1), 100)
    _, below = misses(
        values, truth, half_width=lambda sd, n: LOOKS.half_width(sd, n, alpha=2 * ALPHA)
    )
    assert 0 < below <= most(ALPHA)


def test_ordinary_intervals_looked_at_again_and_again_miss_more_often():
    values, truth = drawn("normal", np.random.default_rng(2), 100)

    def ordinary(sd, n):
        return stats.t.isf(ALPHA / 2, n - 1) * sd / math.sqrt(n)

    ever, _ = misses(values, truth, half_width=ordinary)
    once, _ = misses(values, truth, looks=Looks(100, 10, 90), half_width=ordinary)
    assert ever > 0.13
    assert abs(once - ALPHA) < 0.03


def test_at_the_first_look_students_factor_is_needed_and_enough():
    # 20 prompts of a normal: the tail of the plain z is off by a factor of two or more.
    z = critical_value(FIRST_LOOK, 100)
    plain = 2 * stats.t.sf(z, FIRST_LOOK - 1)
    ours = 2 * stats.t.sf(LOOKS.half_width(math.sqrt(FIRST_LOOK), FIRST_LOOK), 19)
    nominal = 2 * stats.norm.sf(z)
    assert plain > 2 * nominal
    assert ours == pytest.approx(nominal, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.05, 0.1])
@pytest.mark.parametrize("planned", [50, 1000])
def test_rho_is_the_one_at_which_the_interval_is_narrowest_at_the_plan(planned, alpha):
    def square(x):
        return (x + 1) / x * (math.log1p(x) - 2 * math.log(alpha))

    best = optimize.minimize_scalar(square, bounds=(0.1, 50), method="bounded")
    found = planned * mixture_variance(planned, alpha=alpha)
    assert found == pytest.approx(best.x, rel=1e-3)
    # At the best x the square of z is x + 1 itself.
    assert critical_value(planned, planned, alpha=alpha) == pytest.approx(
        math.sqrt(found + 1), rel=1e-12
    )


@pytest.mark.parametrize("n", [20, 50, 100])
def test_the_critical_value_is_where_the_mixture_martingale_reaches_1_over_alpha(n):
    # M_n = int exp(lambda S - n lambda^2 / 2) dN(0, rho^2), by quadrature.
    rho = math.sqrt(mixture_variance(100))
    s = critical_value(n, 100) * math.sqrt(n)
    grid = np.linspace(-12 * rho, 12 * rho, 20_001)
    integrand = np.exp(grid * s - n * grid**2 / 2) * stats.norm.pdf(grid, scale=rho)
    mixed = integrand.sum() * (grid[1] - grid[0])
    assert mixed == pytest.approx(1 / ALPHA, rel=1e-6)


def test_the_level_is_that_of_an_ordinary_interval_of_the_same_width():
    for n in LOOKS.numbers:
        z = stats.norm.ppf((1 + level_at(n, 100)) / 2)
        assert z == pytest.approx(critical_value(n, 100), rel=1e-6)
        assert level_at(n, 100) > 0.95


def test_the_stretch_serves_the_two_sided_and_the_one_sided_quantile():
    for n in LOOKS.numbers:
        stretch = LOOKS.stretch(n)
        for tail, alpha in ((0.025, 0.05), (0.05, 0.1)):
            reached = stretch * stats.norm.isf(tail)
            needed = LOOKS.half_width(math.sqrt(n), n, alpha=alpha)
            assert reached >= needed * (1 - 1e-12)
            assert reached <= 1.15 * needed


@pytest.mark.parametrize(
    ("plan", "numbers"),
    [
        ((100, 10), (20, 30, 40, 50, 60, 70, 80, 90, 100)),
        ((45, 8), (24, 32, 40, 45)),
        ((50, 50, 20), None),
        ((20, 10), None),
    ],
)
def test_looks_are_whole_blocks_from_20_prompts_on_and_the_end(plan, numbers):
    if numbers is None:
        with pytest.raises(ValueError, match="no look before the end"):
            Looks(*plan)
    else:
        assert Looks(*plan).numbers == numbers


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ((25, 20), "at 20 and 25"),
        ((47, 10), "at 20, 30, 40 and 47"),
        ((60, 10), "every 10 from 20 to 60"),
        ((57, 10), "every 10 from 20 to 50, and at 57"),
        ((100, 10), "every 10 from 20 to 100"),
    ],
)
def test_the_looks_that_are_told_are_those_that_there_are(plan, said):
    looks = Looks(*plan)
    told = {int(word) for word in said.replace(",", "").split() if word.isdigit()}
    assert looks.listed == said
    assert told <= {*looks.numbers, looks.every}
    assert looks.numbers[-1] in told


def test_the_reason_says_what_the_intervals_are():
    said = LOOKS.reason(40)
    assert "always-valid over looks every 10 from 20 to 100," in said
    assert "40 of 100 planned prompts" in said
