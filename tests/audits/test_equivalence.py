"""T3 says EQUIVALENT and DIFFERENT no more often than it may, and finds both."""

import math

import numpy as np
import pytest

from steergauge.audits.comparison import MINIMUM_PROMPTS, oriented
from steergauge.audits.equivalence import (
    EXPECTATIONS,
    MARGIN,
    equivalence,
    without_probe,
)
from steergauge.audits.finding import Verdict
from steergauge.audits.manipulation import manipulation
from steergauge.calibration import ScoreTable

PERPS = 5
NO_STEPS = [0.0] * 20
LARGE = {"num_prompts": 100, "num_samples": 10}
SMALL = {"num_prompts": 20, "num_samples": 5}


def compare(effects, *, first=Verdict.PASS, candidate="other", **sizes):
    table = ScoreTable(**sizes)
    return equivalence(
        table.lifts(effects),
        candidate,
        subject="other",
        manipulation=first,
        num_samples=table.num_samples,
        seed=table.seed,
    )


def audited(lift, ratio, *, num=40, **sizes):
    """Verdicts on a family of v + v_perp, with T1's own verdict in front of T3."""
    found = []
    for seed in range(num):
        table = ScoreTable(seed=seed, **sizes)
        lifts = table.lifts(
            {"v": lift, "v_plus_perp": [lift * ratio] * PERPS, "random": NO_STEPS}
        )
        first = manipulation(lifts, num_samples=table.num_samples)
        seen = equivalence(
            lifts,
            "v_plus_perp",
            subject="",
            manipulation=first.verdict,
            num_samples=table.num_samples,
        )
        found.append(seen.verdict)
    return found


def test_no_effect_is_uninformative_39_times_in_40():
    assert audited(0.0, 1.0, **LARGE).count(Verdict.UNINFORMATIVE) >= 37


def test_an_equal_effect_at_100_by_10_is_equivalent_39_times_in_40():
    assert audited(0.15, 1.0, **LARGE).count(Verdict.EQUIVALENT) >= 37


def test_an_equal_effect_at_20_by_5_is_mostly_inconclusive():
    assert audited(0.15, 1.0, **SMALL).count(Verdict.INCONCLUSIVE) >= 30


def test_seventy_percent_of_the_effect_at_100_by_10_is_different():
    assert audited(0.15, 0.7, **LARGE).count(Verdict.DIFFERENT) >= 38


@pytest.mark.parametrize("ratio", [1 - MARGIN, 1 + MARGIN])
def test_an_effect_at_the_margin_is_called_equivalent_at_most_5_times_in_100(ratio):
    num = 200
    sizes = {"num_prompts": 100, "num_samples": 10}
    found = [
        compare({"v": 0.15, "other": 0.15 * ratio}, seed=seed, **sizes).verdict
        for seed in range(num)
    ]
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / num)
    assert found.count(Verdict.EQUIVALENT) / num <= allowed


def test_an_equal_effect_is_called_different_at_most_5_times_in_100():
    num = 200
    found = [
        compare({"v": 0.15, "other": 0.15}, seed=seed).verdict for seed in range(num)
    ]
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / num)
    assert found.count(Verdict.DIFFERENT) / num <= allowed


@pytest.mark.parametrize("ratio", [-1.0, 0.0, 0.5, 1.6])
def test_planted_differences_are_found(ratio):
    found = [
        compare({"v": 0.15, "other": 0.15 * ratio}, seed=seed).verdict
        for seed in range(20)
    ]
    assert found == [Verdict.DIFFERENT] * 20


def test_v_against_itself_is_equivalent_with_a_difference_of_exactly_0():
    lifts = ScoreTable().lifts({"v": 0.15})
    tables = lifts | {"same": lifts["v"].copy()}
    found = equivalence(
        tables, "same", subject="v", manipulation=Verdict.PASS, num_samples=4
    )
    seen = found.estimate
    assert (seen.value, seen.low, seen.high) == (0.0, 0.0, 0.0)
    assert found.verdict is Verdict.EQUIVALENT


def test_one_prompt_fewer_than_50_is_never_equivalent():
    for num_prompts, expected in (
        (MINIMUM_PROMPTS - 1, Verdict.INCONCLUSIVE),
        (MINIMUM_PROMPTS, Verdict.EQUIVALENT),
    ):
        lifts = ScoreTable(num_prompts=num_prompts).lifts({"v": 0.15})
        found = equivalence(
            lifts | {"same": lifts["v"]},
            "same",
            subject="v",
            manipulation=Verdict.PASS,
            num_samples=4,
        )
        assert found.verdict is expected
    assert MINIMUM_PROMPTS == 50


def test_few_prompts_do_not_hide_a_difference():
    found = compare({"v": 0.15, "other": -0.15}, num_prompts=20)
    assert found.verdict is Verdict.DIFFERENT


@pytest.mark.parametrize("first", [Verdict.FAIL, Verdict.UNINFORMATIVE])
@pytest.mark.parametrize("ratio", [1.0, 0.0, -1.0])
def test_a_failed_manipulation_check_overrules_every_comparison(first, ratio):
    effects = {"v": 0.15, "other": 0.15 * ratio}
    # Not vacuous: with a PASS the same numbers would speak.
    assert compare(effects, **LARGE).verdict in (
        Verdict.EQUIVALENT,
        Verdict.DIFFERENT,
    )
    found = compare(effects, first=first, **LARGE)
    assert found.verdict is Verdict.UNINFORMATIVE
    assert str(first) in found.reasons[0]


def test_within_the_margin_but_not_identical_is_equivalent_and_says_so():
    effects = {"v": 0.2, "other": 0.184}
    found = compare(effects, num_prompts=400, num_samples=20, interaction=0.05)
    assert found.estimate.excludes_zero
    assert found.verdict is Verdict.EQUIVALENT
    assert "not identical" in found.reasons[-1]


@pytest.mark.parametrize(
    ("effects", "sizes"),
    [
        ({"v": 0.15, "other": 0.15}, LARGE),
        ({"v": 0.15, "other": 0.0}, LARGE),
        ({"v": 0.15, "other": 0.15}, SMALL | {"seed": 1}),
    ],
    ids=["equivalent", "different", "inconclusive"],
)
def test_the_reasons_hold_the_numbers(effects, sizes, request):
    found = compare(effects, **sizes)
    assert found.verdict == request.node.callspec.id.upper()
    text = " ".join(found.reasons)
    numbers = [found.details["reference_lift"], found.details["candidate_lift"]]
    numbers += [found.estimate.value, found.estimate.low, found.estimate.high]
    for number in numbers:
        assert f"{number:+.3f}" in text
    if found.verdict is Verdict.INCONCLUSIVE:
        assert f"About {found.details['prompts_to_decide']} prompts" in text


def test_more_directions_are_never_advised_for_one_vector_that_was_given():
    noise = np.random.default_rng(0).normal(size=60)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    # The standard error is a third of the margin, 0.03, and the difference 1.8 of it:
    # more than nothing and the margin both are within the interval's reach.
    deviation = 0.0095
    gap = -1.8 * deviation + deviation * math.sqrt(60) * noise
    lifts = {"v": np.full((1, 60), 0.15), "against[w]": 0.15 + gap[None]}

    def advice(candidate, tables):
        found = equivalence(
            tables, candidate, subject="", manipulation=Verdict.PASS, num_samples=1
        )
        assert found.verdict is Verdict.INCONCLUSIVE
        return found.reasons[-1]

    given = advice("against[w]", lifts)
    assert "60 prompts would mostly have decided" in given
    assert "directions" not in given
    drawn = {"v": lifts["v"], "perp": np.repeat(lifts["against[w]"], 2, axis=0)}
    assert "more random directions" in advice("perp", drawn)


def test_the_margin_is_the_one_that_was_set():
    table = ScoreTable(num_prompts=400, num_samples=20)
    lifts = table.lifts({"v": 0.15, "other": 0.12})
    found = {
        margin: equivalence(
            lifts,
            "other",
            subject="other",
            manipulation=Verdict.PASS,
            num_samples=20,
            margin=margin,
        )
        for margin in (0.1, 0.4)
    }
    assert found[0.1].verdict is Verdict.DIFFERENT
    assert found[0.4].verdict is Verdict.EQUIVALENT
    assert "10%" in found[0.1].claim


def test_every_control_with_a_known_answer_comes_out_so():
    effects = {
        "v": 0.15,
        "v_again": 0.15,
        "unsteered": 0.0,
        "minus_v": -0.15,
        "random": NO_STEPS,
        "other_trait": [0.0, 0.02],
        "other": 0.15,
    }
    found = compare(effects, **LARGE)
    assert {c.name for c in found.controls} == set(EXPECTATIONS)
    assert all(control.holds for control in found.controls)


def test_a_comparison_that_cannot_tell_shows_in_its_controls():
    effects = {"v": 0.15, "minus_v": 0.15, "random": [0.15] * 20, "other": 0.15}
    found = compare(effects, **LARGE)
    assert {c.name: c.holds for c in found.controls} == {
        "minus_v": False,
        "random": False,
    }


def test_lifts_are_oriented_by_the_sign_of_alpha():
    table = np.array([[0.1, -0.2]])
    assert np.array_equal(oriented(table, 2.0), table)
    assert np.array_equal(oriented(table, -0.5), -table)


def test_without_a_probe_the_comparison_is_uninformative():
    found = without_probe("v_perp alone")
    assert found.verdict is Verdict.UNINFORMATIVE
    assert found.estimate is None
    assert "probe" in found.reasons[0]
    assert found.key == "equivalence[v_perp alone]"
