"""T1 passes what moves the trait, and nothing that only seems to."""

import math

import numpy as np
import pytest

from steergauge.audits.finding import Verdict
from steergauge.audits.manipulation import (
    MINIMUM_LIFT,
    MINIMUM_NULLS,
    manipulation,
    null_threshold,
    without_probe,
)
from steergauge.calibration import ScoreTable
from steergauge.statistics import intraclass_correlation, rank_p

NO_STEPS = [0.0] * 20


def check(effects, **sizes):
    table = ScoreTable(**sizes)
    lifts = table.lifts(effects)
    return manipulation(lifts, num_samples=table.num_samples, seed=table.seed)


def verdicts(effects, *, num=40, **sizes):
    return [check(effects, seed=seed, **sizes).verdict for seed in range(num)]


@pytest.mark.parametrize("icc", [0.2, 0.5])
def test_the_simulator_has_the_lift_and_the_icc_that_it_is_told(icc):
    table = ScoreTable(num_prompts=4000, num_samples=10, icc=icc, seed=1)
    scores = table.scores()
    assert ((scores >= 0) & (scores <= 1)).all()
    # Standard error of the ICC below 0.012, of the mean lift below 0.002; three.
    assert abs(intraclass_correlation(scores) - icc) < 0.036
    assert abs(table.lifts({"v": 0.15})["v"].mean() - 0.15) < 0.006


def test_a_planted_effect_passes():
    found = verdicts({"v": 0.15, "minus_v": -0.15, "random": NO_STEPS})
    assert found == [Verdict.PASS] * 40


def test_no_effect_passes_no_more_often_than_the_level_allows():
    num = 200
    found = verdicts({"v": 0.0, "random": NO_STEPS}, num=num)
    assert set(found) <= {Verdict.PASS, Verdict.FAIL}
    # A two-sided 95 % interval above 0 has probability 2.5 %; three binomial sd.
    allowed = 0.025 + 3 * math.sqrt(0.025 * 0.975 / num)
    assert found.count(Verdict.PASS) / num <= allowed


def test_no_effect_fails_also_where_small_lifts_are_worth_auditing():
    num, passed = 200, 0
    for seed in range(num):
        lifts = ScoreTable(seed=seed).lifts({"v": 0.0, "random": NO_STEPS})
        found = manipulation(lifts, num_samples=4, minimum_lift=0.0)
        passed += found.verdict is Verdict.PASS
    assert passed / num <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / num)


def test_a_lift_that_matched_random_steps_also_have_fails():
    rng = np.random.default_rng(0)
    found = check({"v": 0.15, "random": list(rng.uniform(0.1, 0.2, 20))})
    # Not vacuous: the effect itself is there.
    assert found.estimate.low > MINIMUM_LIFT
    assert found.verdict is Verdict.FAIL
    assert "a random step of this length does as much" in " ".join(found.reasons)
    assert not {c.name: c for c in found.controls}["random"].holds


def test_an_effect_in_the_wrong_direction_fails():
    found = check({"v": -0.15, "minus_v": 0.15, "random": NO_STEPS})
    assert found.verdict is Verdict.FAIL
    assert "the other way" in found.reasons[0]
    assert not {c.name: c for c in found.controls}["minus_v"].holds


def test_a_real_lift_too_small_to_be_worth_auditing_fails():
    found = check(
        {"v": 0.03, "random": NO_STEPS}, num_prompts=400, num_samples=20, interaction=0
    )
    assert found.estimate.low > 0
    assert found.verdict is Verdict.FAIL
    assert "smallest one worth auditing" in " ".join(found.reasons)


@pytest.mark.parametrize(("num_random", "num_flips"), [(19, 0), (10, 9), (1, 0)])
def test_with_fewer_than_20_matched_nulls_nothing_is_said(num_random, num_flips):
    effects = {"v": 0.15, "random": [0.0] * num_random, "sign_flip": [0.0] * num_flips}
    found = check({name: effect for name, effect in effects.items() if effect != []})
    assert found.verdict is Verdict.UNINFORMATIVE
    assert f"Only {num_random + num_flips} matched" in found.reasons[0]
    assert str(MINIMUM_NULLS) in found.reasons[0]


@pytest.mark.parametrize("num", [20, 39, 40, 100])
def test_a_step_like_all_others_exceeds_the_threshold_5_times_in_100_at_most(num):
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(3000, num + 1))
    rate = np.mean([row[0] > null_threshold(row[1:]) for row in drawn])
    level = math.floor(0.05 * (num + 1) + 1e-9) / (num + 1)
    assert 0.03 < level <= 0.05
    assert abs(rate - level) < 3 * math.sqrt(level * (1 - level) / 3000)
    # The same as a rank p-value of at most 0.05, in every draw.
    for row in drawn[:200]:
        reached = rank_p(float(row[0]), row[1:]) <= 0.05
        assert (row[0] > null_threshold(row[1:])) == reached


def test_random_steps_and_sign_flips_are_counted_together():
    found = check({"v": 0.15, "random": [0.0] * 10, "sign_flip": [0.0] * 10})
    assert found.verdict is Verdict.PASS
    assert len(found.details["null_lifts"]) == 20
    assert found.details["rank_p"] == pytest.approx(1 / 21)


def test_the_reasons_hold_the_numbers_that_they_speak_of():
    passed = check({"v": 0.15, "random": NO_STEPS})
    lift, threshold = passed.estimate, passed.details["null_quantile"]
    for number in (lift.value, lift.low, lift.high, threshold):
        assert f"{number:+.3f}" in passed.reasons[0]
    assert f"rank p = {passed.details['rank_p']:.3f}" in passed.reasons[0]
    failed = check({"v": 0.0, "random": NO_STEPS})
    text = " ".join(failed.reasons)
    assert f"[{failed.estimate.low:+.3f}, {failed.estimate.high:+.3f}]" in text
    assert f"{failed.estimate.value:+.3f}" in text


def test_the_controls_hold_when_only_v_moves_the_trait():
    found = check(
        {"v": 0.15, "minus_v": -0.15, "random": NO_STEPS, "sign_flip": NO_STEPS}
    )
    assert {c.name: c.holds for c in found.controls} == {
        "random": True,
        "sign_flip": True,
        "minus_v": True,
    }


def test_details_are_passed_on():
    lifts = ScoreTable().lifts({"v": 0.15, "random": NO_STEPS})
    found = manipulation(lifts, num_samples=4, details={"icc": 0.5})
    assert found.details["icc"] == 0.5
    assert (found.num_prompts, found.num_samples) == (50, 4)


def test_without_a_probe_the_check_is_uninformative_and_says_how_to_give_one():
    found = without_probe({"dose": []})
    assert found.verdict is Verdict.UNINFORMATIVE
    assert found.estimate is None
    assert "--probe" in found.reasons[0]
    assert found.details == {"dose": []}
