"""A curve is followed only if it moves, and only if it is followed everywhere."""

import math

import numpy as np
import pytest

from steergauge.audits.finding import Verdict
from steergauge.audits.scale import Strength, scale

ALPHAS = (0.5, 1.0, 2.0)
RULES = {"margin": 0.2, "minimum_lift": 0.05}


def audited(
    effects,
    *,
    added=None,
    seed=0,
    alphas=ALPHAS,
    prompts=80,
    samples=8,
    manipulation=Verdict.PASS,
):
    """Scores of normal noise, on prompts that all arms share; five directions."""
    rng = np.random.default_rng(seed)
    means = 0.5 + rng.normal(0, 0.06, (1, prompts, 1))

    def scores(effect, directions=1):
        return means + effect + rng.normal(0, 0.1, (directions, prompts, samples))

    strengths = [
        Strength(alpha, scores(one), scores(other, 5))
        for alpha, one, other in zip(alphas, effects, added or effects, strict=True)
    ]
    return scale(strengths, scores(0.0), manipulation=manipulation, seed=seed, **RULES)


def cell_verdicts(found):
    return [one["verdict"] for one in found.details["cells"]]


def test_a_vector_that_does_nothing_is_uninformative_though_the_curves_coincide():
    for seed in range(20):
        found = audited([0.0] * 3, seed=seed)
        gaps = [
            abs(point["v"][0] - point["v_plus_perp"][0])
            for point in found.details["curve"]
        ]
        assert max(gaps) < 0.022  # "less than 2.5 %", as Section 6.3 has it
        assert found.verdict is Verdict.UNINFORMATIVE
        assert "any curve would follow it" in found.reasons[-1]


def test_a_curve_that_is_followed_is_equivalent():
    found = [audited([0.08, 0.15, 0.2], seed=s, prompts=150) for s in range(10)]
    assert [one.verdict for one in found].count(Verdict.EQUIVALENT) >= 9


def test_a_curve_that_is_followed_is_called_different_at_most_5_times_in_100():
    num = 100
    found = [audited([0.08, 0.15, 0.2], seed=seed).verdict for seed in range(num)]
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / num)
    assert found.count(Verdict.DIFFERENT) / num <= allowed


@pytest.mark.parametrize("where", [0, 1, 2])
def test_one_strength_at_which_the_curves_part_is_found_and_named(where):
    effects = [0.15, 0.15, 0.15]
    for seed in range(5):
        added = [0.15 * (0.5 if i == where else 1) for i in range(3)]
        found = audited(effects, added=added, seed=seed)
        assert found.verdict is Verdict.DIFFERENT
        assert cell_verdicts(found)[where] == "DIFFERENT"
        assert cell_verdicts(found).count("DIFFERENT") == 1
        assert f"alpha = {ALPHAS[where]:g}: DIFFERENT" in found.reasons[0]
        # The largest difference is the finding's own number, and it is -0.075.
        assert found.estimate.low <= -0.075 <= found.estimate.high


def test_the_smallest_strength_may_have_no_lift_and_then_all_is_not_equivalent():
    found = audited([0.0, 0.15, 0.2], prompts=150)
    assert cell_verdicts(found)[0] == "UNINFORMATIVE"
    assert cell_verdicts(found)[1:] == ["EQUIVALENT"] * 2
    assert found.verdict is Verdict.INCONCLUSIVE


def test_negative_strengths_promise_a_fall_and_are_judged_as_one():
    forwards = audited([0.15] * 3, prompts=150)
    backwards = audited([-0.15] * 3, alphas=(-0.5, -1.0, -2.0), prompts=150)
    assert forwards.verdict is backwards.verdict is Verdict.EQUIVALENT
    # A rise under a negative strength is no lift.
    wrong = audited([0.15] * 3, alphas=(-0.5, -1.0, -2.0))
    assert wrong.verdict is Verdict.UNINFORMATIVE


def test_the_curve_holds_mean_scores_and_begins_at_0_where_both_are_the_same():
    found = audited([0.1, 0.15, 0.2])
    curve = found.details["curve"]
    assert [point["alpha"] for point in curve] == [0.0, *ALPHAS]
    assert curve[0]["v"] == curve[0]["v_plus_perp"]
    for point, effect in zip(curve, (0.0, 0.1, 0.15, 0.2), strict=True):
        for band in (point["v"], point["v_plus_perp"]):
            mean, low, high = band
            assert low < mean < high
            # Five standard errors of prompts of spread .06 and 640 samples of .1.
            error = math.hypot(0.06 / math.sqrt(80), 0.1 / math.sqrt(640))
            assert abs(mean - 0.5 - effect) < 5 * error
    assert (found.num_prompts, found.num_samples) == (80, 8)


@pytest.mark.parametrize("manipulation", [Verdict.FAIL, Verdict.UNINFORMATIVE])
def test_without_its_manipulation_check_no_curve_says_anything(manipulation):
    assert audited([0.2] * 3).verdict is Verdict.EQUIVALENT
    found = audited([0.2] * 3, manipulation=manipulation)
    assert found.verdict is Verdict.UNINFORMATIVE
    assert str(manipulation) in found.reasons[0]
