"""One condition and many: what is said of each, and of all of them together."""

import math

import numpy as np
import pytest
from scipy import stats

from steergauge.audits.comparison import (
    MINIMUM_PROMPTS,
    Cell,
    cell,
    compared,
    costlier,
    in_every_cell,
    oriented,
)
from steergauge.audits.finding import Verdict
from steergauge.calibration import ScoreTable
from steergauge.sequential import Looks
from steergauge.statistics import Estimate, prompts_to_decide, two_way_bootstrap

LIFT = 0.15
RULES = {"margin": 0.2, "minimum_lift": 0.05}
NUM_CELLS = 4


def judged(effects, *, name="", num_cells=1, seed=0, prompts=60, samples=6) -> Cell:
    table = ScoreTable(num_prompts=prompts, num_samples=samples, seed=seed)
    # Five directions, as one cannot speak for others.
    lifts = table.lifts({n: [e] * 5 if n == "w" else e for n, e in effects.items()})
    return cell(
        name, lifts["v"], lifts.get("w"), num_cells=num_cells, seed=seed, **RULES
    )


def four_cells(ratios, *, seed, **sizes) -> list[Cell]:
    return [
        judged(
            {"v": LIFT, "w": LIFT * ratio},
            name=str(i),
            num_cells=NUM_CELLS,
            seed=NUM_CELLS * seed + i,
            **sizes,
        )
        for i, ratio in enumerate(ratios)
    ]


def with_verdict(verdict: Verdict) -> Cell:
    return Cell(str(verdict), Estimate(0.1, 0.05, 0.15), None, verdict)


def test_no_difference_in_any_of_four_cells_is_called_one_at_most_5_times_in_100():
    num = 100
    found = [in_every_cell(four_cells([1] * 4, seed=seed)) for seed in range(num)]
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / num)
    assert found.count(Verdict.DIFFERENT) / num <= allowed


def test_without_the_correction_four_cells_would_raise_it_more_often():
    # Not vacuous: at the plain level each of the four may say it 5 times in 100.
    num = 100
    raised = dict.fromkeys((0.95, 1 - 0.05 / NUM_CELLS), 0)
    for seed in range(num):
        tables = ScoreTable(seed=seed).lifts({"v": LIFT, "w": LIFT})
        draws = two_way_bootstrap(tables, seed=seed)
        for level in raised:
            seen = compared(tables, draws, "w", margin=0.2, level=level)
            raised[level] += seen.difference.excludes_zero
    plain, corrected = raised.values()
    assert corrected < plain


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.8])
def test_a_difference_in_one_of_four_cells_is_found(ratio):
    for seed in range(10):
        cells = four_cells([1, 1, ratio, 1], seed=seed)
        assert cells[2].verdict is Verdict.DIFFERENT
        assert in_every_cell(cells) is Verdict.DIFFERENT


def test_equal_effects_everywhere_are_equivalent_if_the_prompts_are_many():
    found = [
        in_every_cell(four_cells([1] * 4, seed=seed, prompts=150, samples=10))
        for seed in range(10)
    ]
    assert found.count(Verdict.EQUIVALENT) >= 9


@pytest.mark.parametrize("num_cells", [1, 4, 10])
def test_the_interval_of_a_difference_has_the_level_of_bonferroni(num_cells):
    seen = judged({"v": LIFT, "w": LIFT}, num_cells=num_cells)
    assert seen.comparison.difference.level == pytest.approx(1 - 0.05 / num_cells)
    # Only where a difference is looked for: lift and equivalence need no correction.
    plain = judged({"v": LIFT, "w": LIFT})
    assert seen.lift == plain.lift
    assert seen.comparison.test == plain.comparison.test
    width = seen.comparison.difference.high - seen.comparison.difference.low
    first = plain.comparison.difference.high - plain.comparison.difference.low
    assert width >= first
    assert (width > first) == (num_cells > 1)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ("EEEE", "E"),
        ("EEEI", "I"),
        ("EEEU", "I"),
        ("EEED", "D"),
        ("UUUD", "D"),
        ("IIII", "I"),
        ("UUUU", "U"),
        ("IUUU", "I"),
        ("E", "E"),
        ("U", "U"),
    ],
)
def test_all_must_be_equivalent_and_one_may_differ(verdicts, expected):
    named = {
        "E": Verdict.EQUIVALENT,
        "D": Verdict.DIFFERENT,
        "I": Verdict.INCONCLUSIVE,
        "U": Verdict.UNINFORMATIVE,
    }
    cells = [with_verdict(named[letter]) for letter in verdicts]
    assert in_every_cell(cells) is named[expected]
    assert in_every_cell(cells[::-1]) is named[expected]


def test_a_cell_without_a_lift_is_uninformative_whatever_the_other_vector_does():
    for seed in range(20):
        seen = judged({"v": 0.0, "w": LIFT}, seed=seed)
        assert seen.verdict is Verdict.UNINFORMATIVE
        # Not vacuous: the numbers alone would have spoken.
        assert seen.comparison.verdict is Verdict.DIFFERENT


def test_a_lift_that_is_surely_there_but_too_small_is_uninformative():
    sizes = {"prompts": 400, "samples": 20}
    seen = judged({"v": 0.04, "w": 0.04}, **sizes)
    assert seen.lift.low > 0
    assert seen.lift.value < RULES["minimum_lift"]
    assert seen.verdict is Verdict.UNINFORMATIVE
    assert judged({"v": 0.08, "w": 0.08}, **sizes).verdict is Verdict.EQUIVALENT


def test_one_prompt_too_few_is_not_equivalent():
    for prompts, expected in (
        (MINIMUM_PROMPTS - 1, Verdict.INCONCLUSIVE),
        (MINIMUM_PROMPTS, Verdict.EQUIVALENT),
    ):
        lifts = ScoreTable(num_prompts=prompts).lifts({"v": LIFT})["v"]
        seen = cell("", lifts, np.repeat(lifts, 2, axis=0), **RULES)
        assert seen.comparison.verdict is Verdict.EQUIVALENT
        assert seen.verdict is expected


def test_one_direction_cannot_speak_for_others():
    lifts = ScoreTable(num_prompts=100, num_samples=10).lifts({"v": LIFT})["v"]
    for num, expected in ((1, Verdict.UNINFORMATIVE), (2, Verdict.EQUIVALENT)):
        seen = cell("", lifts, np.repeat(lifts, num, axis=0), **RULES)
        assert seen.verdict is expected


def test_a_vector_against_itself_differs_by_exactly_nothing():
    lifts = ScoreTable().lifts({"v": LIFT})["v"]
    seen = cell("", lifts, lifts.copy(), **RULES).comparison
    assert seen.reference == seen.candidate == pytest.approx(lifts.mean())
    assert (seen.difference.value, seen.difference.low, seen.difference.high) == (
        0.0,
        0.0,
        0.0,
    )
    assert 0 < seen.prompts_to_decide < 10  # the variance of m L(v) alone


def test_a_sequential_plan_of_so_many_prompts_decides_80_times_in_100():
    rng, bound, runs = np.random.default_rng(0), 0.05, 4000
    once = prompts_to_decide(rng.normal(0, 0.2, 100_000), bound)
    plan = math.ceil(costlier(Looks(200, 10)) * once)
    assert costlier(None) == 1.0
    assert plan > 1.4 * once

    def decides(num):
        values = rng.normal(0, 0.2, (runs, num))
        reach = Looks(num, 10).stretch(num) * stats.norm.ppf(0.95)
        half = reach * values.std(axis=1, ddof=1) / math.sqrt(num)
        return float(np.mean(np.abs(values.mean(1)) + half < bound))

    # At its end alone, which is the least that looks find: 0.64 % is one deviation.
    assert decides(plan) == pytest.approx(0.8, abs=0.03)
    assert decides(once) < 0.6


def test_a_sequential_comparison_asks_for_as_many_prompts_as_it_must_plan():
    lifts = ScoreTable(num_prompts=60).lifts({"v": LIFT, "w": LIFT})
    draws = two_way_bootstrap(lifts)
    looks = Looks(100, 10)
    once, planned = (
        compared(lifts, draws, "w", margin=0.2, looks=which).prompts_to_decide
        for which in (None, looks)
    )
    assert planned == math.ceil(costlier(looks) * once)


def test_without_a_second_vector_there_is_a_lift_and_no_comparison():
    seen = judged({"v": LIFT})
    assert seen.comparison is None
    assert seen.lift.low > 0
    plain = seen.to_json()
    assert plain["lift"] == [seen.lift.value, seen.lift.low, seen.lift.high]
    assert plain["difference"] is None


def test_plain_data_hold_the_numbers():
    seen = judged({"v": LIFT, "w": 0.5 * LIFT}, name="here")
    plain, numbers = seen.to_json(), seen.comparison
    assert (plain["name"], plain["verdict"]) == ("here", "DIFFERENT")
    assert plain["difference"][0] == pytest.approx(
        numbers.candidate - numbers.reference
    )
    assert (plain["tost_above"], plain["tost_below"]) == (
        numbers.test.above,
        numbers.test.below,
    )
    assert plain["num_prompts"] == 60


def test_the_sign_of_alpha_orients_lifts():
    table = np.array([[0.2, -0.1]])
    assert np.array_equal(oriented(table, -2.0), -table)
    assert np.array_equal(oriented(table, 0.5), table)
