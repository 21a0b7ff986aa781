"""T20 takes noise out of the share of backward prompts, and no more than noise."""

import math

import numpy as np
import pytest
from scipy import stats

from steergauge.audits.finding import Verdict
from steergauge.audits.reliability import (
    TOLERATED,
    reliability_of_steering,
    sample_slopes,
)

ALPHAS = np.array([-1.0, 0.0, 0.5, 1.0, 2.0])
STUDIES = 300


def slack(rate: float, num: int = STUDIES) -> float:
    return 3 * math.sqrt(rate * (1 - rate) / num)


def scores(mu, sigma, noise, *, prompts=50, samples=4, seed=0):
    """Straight lines: slopes N(mu, sigma^2) of prompts, plus noise of each sample."""
    rng = np.random.default_rng(seed)
    slopes = rng.normal(mu, sigma, (prompts, 1))
    slopes = slopes + rng.normal(0, noise, (prompts, samples))
    levels = rng.normal(0.5, 0.1, (prompts, samples))
    return levels + ALPHAS[:, None, None] * slopes


def audited(*truth, manipulation=Verdict.PASS, seed=0, **sizes):
    return reliability_of_steering(
        scores(*truth, seed=seed, **sizes),
        ALPHAS,
        manipulation=manipulation,
        seed=seed,
    )


def studies(*truth, num=STUDIES, **sizes):
    return [audited(*truth, seed=seed, **sizes) for seed in range(num)]


@pytest.mark.parametrize("prompts", [20, 50, 100])
@pytest.mark.parametrize(
    ("mu", "sigma", "noise"), [(0.1, 0.1, 0.1), (0.1, 0.1, 0.4), (0.1, 0.05, 0.3)]
)
def test_the_corrected_share_is_phi_of_minus_mu_by_sigma(mu, sigma, noise, prompts):
    truth = float(stats.norm.cdf(-mu / sigma))
    found = studies(mu, sigma, noise, prompts=prompts)
    covered = [one.estimate.low <= truth <= one.estimate.high for one in found]
    assert np.mean(covered) >= 0.95 - slack(0.95)
    # Not for being endless: with 100 prompts and little noise it says something.
    widths = [one.estimate.high - one.estimate.low for one in found]
    assert np.median(widths) < (0.2 if (noise, prompts) == (0.1, 100) else 1.0)


def test_the_raw_share_counts_noise_as_backwardness():
    mu, sigma, noise = 0.1, 0.05, 0.3
    truth = float(stats.norm.cdf(-mu / sigma))
    found = studies(mu, sigma, noise, prompts=100, num=50)
    raw = [one.details["raw_share"] for one in found]
    # Four samples leave noise .15 beside a spread of .05: Phi(-.1 / .158) = 26 %.
    expected = float(stats.norm.cdf(-mu / math.hypot(sigma, noise / 2)))
    assert np.mean(raw) == pytest.approx(expected, abs=3 * 0.044 / math.sqrt(50))
    assert truth < 0.03
    assert min(raw) > truth
    corrected = np.mean([one.estimate.value for one in found])
    assert abs(corrected - truth) < 0.25 * abs(np.mean(raw) - truth)


def test_without_spread_no_prompt_is_steered_backwards():
    found = studies(0.1, 0.0, 0.3, prompts=100, num=60)
    assert np.mean([one.details["raw_share"] for one in found]) > 0.2
    # Half of the estimated spreads are exactly 0, and then the share is.
    zero = [one for one in found if one.details["spread"] == 0]
    assert len(zero) > 10
    assert {one.estimate.value for one in zero} == {0.0}
    assert np.mean([one.estimate.low == 0 for one in found]) >= 0.95
    noiseless = audited(0.1, 0.0, 0.0)
    assert (noiseless.estimate.value, noiseless.estimate.high) == (0.0, 0.0)
    assert noiseless.verdict is Verdict.PASS


@pytest.mark.parametrize("noise", [0.1, 0.2])
@pytest.mark.parametrize("prompts", [20, 50])
def test_a_share_at_the_limit_is_passed_and_failed_at_most_5_times_in_100(
    noise, prompts
):
    sigma = -0.1 / stats.norm.ppf(TOLERATED)
    verdicts = [one.verdict for one in studies(0.1, sigma, noise, prompts=prompts)]
    for claim in (Verdict.PASS, Verdict.FAIL):
        assert verdicts.count(claim) / STUDIES <= 0.05 + slack(0.05)


def test_reliable_and_backward_vectors_are_told():
    good = [one.verdict for one in studies(0.1, 0.03, 0.05, num=40)]
    assert good.count(Verdict.PASS) >= 38
    bad = [one.verdict for one in studies(0.02, 0.1, 0.05, num=40)]
    assert bad.count(Verdict.FAIL) >= 38


@pytest.mark.parametrize("check", [Verdict.FAIL, Verdict.UNINFORMATIVE])
def test_without_a_manipulation_slopes_have_no_wrong_direction(check):
    assert audited(0.1, 0.03, 0.05).verdict is Verdict.PASS
    found = audited(0.1, 0.03, 0.05, manipulation=check)
    assert found.verdict is Verdict.UNINFORMATIVE
    assert str(check) in found.reasons[0]


def test_one_sample_a_prompt_does_not_tell_its_noise():
    # The same truth is passed with four samples, and would be failed with one.
    assert audited(0.1, 0.0, 0.1, samples=8, prompts=200).verdict is Verdict.PASS
    found = audited(0.1, 0.0, 0.1, samples=1, prompts=200)
    assert found.estimate.low > TOLERATED
    assert found.verdict is Verdict.UNINFORMATIVE
    assert "one sample" in found.reasons[0]


def test_slopes_are_those_of_least_squares():
    table = np.random.default_rng(0).random((5, 3, 2))
    found = sample_slopes(table, ALPHAS)
    for prompt in range(3):
        for sample in range(2):
            theirs = np.polyfit(ALPHAS, table[:, prompt, sample], 1)[0]
            assert found[prompt, sample] == pytest.approx(theirs)


def test_spread_and_noise_are_those_that_were_planted():
    found = audited(0.1, 0.06, 0.2, prompts=2000, samples=5).details
    assert found["mean_slope"] == pytest.approx(0.1, abs=0.01)
    assert found["noise"] == pytest.approx(0.2 / math.sqrt(5), rel=0.05)
    assert found["spread"] == pytest.approx(0.06, rel=0.2)
    assert found["slopes"] == sorted(found["slopes"])
    # The share beyond its own noise is smaller than the raw one.
    assert 0 < found["significant_share"] < found["raw_share"]


def test_a_straight_curve_is_linear_and_a_saturating_one_is_not():
    def linearity(curve):
        table = np.broadcast_to(curve[:, None, None], (5, 20, 3))
        return reliability_of_steering(
            table, ALPHAS, manipulation=Verdict.PASS
        ).details["linearity"]

    assert linearity(0.5 + 0.1 * ALPHAS) == pytest.approx(1)
    bent = 1 / (1 + np.exp(-8 * ALPHAS))
    # By hand: the share of variance that the best line explains.
    line = np.polyval(np.polyfit(ALPHAS, bent, 1), ALPHAS)
    share = 1 - ((bent - line) ** 2).sum() / ((bent - bent.mean()) ** 2).sum()
    assert share < 0.85
    assert linearity(bent) == pytest.approx(share)
    assert linearity(np.full(5, 0.5)) is None


def test_a_small_group_that_is_surely_backward_is_not_passed_as_a_tail():
    rng = np.random.default_rng(0)
    slopes = np.where(np.arange(100) < 20, -0.01, 0.25)[:, None]
    slopes = slopes + rng.normal(0, 0.008, (100, 10))
    table = 0.5 + ALPHAS[:, None, None] * slopes
    found = reliability_of_steering(table, ALPHAS, manipulation=Verdict.PASS)
    # One normal alone would pass it: not even 10 % of its tail is negative.
    assert found.estimate.high < TOLERATED
    assert found.details["significant_share"] > TOLERATED
    assert found.verdict is Verdict.FAIL
