"""The published rates are what the audits do, and no error is made over 5 in 100."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from steergauge.audits.comparison import MINIMUM_PROMPTS
from steergauge.audits.equivalence import MARGIN
from steergauge.audits.finding import Verdict
from steergauge.calibration import (
    COMPARISONS,
    MARKS,
    NEITHER,
    NUM_DIRECTIONS,
    NUM_STUDIES,
    SCENARIOS,
    SIZES,
    Characteristics,
    ScoreTable,
    main,
    most_allowed,
    operating_characteristics,
    percent,
    rewrite,
    row,
    study,
    tables,
)
from steergauge.errors import InputError, NoSuchFile
from steergauge.statistics import two_way_bootstrap

PAGE = Path(__file__).parents[1] / "docs" / "calibration.md"
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
CELLS = [(scenario, size) for scenario in SCENARIOS for size in SIZES]
LARGE = {"num_prompts": 100, "num_samples": 10}
LIMIT = most_allowed(NUM_STUDIES)
EQUIVALENT, DIFFERENT, INCONCLUSIVE, UNINFORMATIVE = COMPARISONS

every_cell = pytest.mark.parametrize(
    ("scenario", "size"), CELLS, ids=[f"{s.name}-{n}x{k}" for s, (n, k) in CELLS]
)


def published_text():
    page = PAGE.read_text(encoding="utf-8")
    return page.split(MARKS[0])[1].split(MARKS[1])[0].strip()


def published():
    """The counts of every cell, read back from the page's percentages.

    A tenth of a percent tells them apart: one study in 400 is a quarter of a percent.
    """
    found = {}
    for line in published_text().splitlines():
        cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        if cells[0] not in BY_NAME:
            continue
        size = tuple(int(word) for word in cells[1].split(" x "))
        rates = [float(cell.split()[0]) for cell in cells[2:]]
        passed, *verdicts, covered = (round(x * NUM_STUDIES / 100) for x in rates)
        found[cells[0], size] = Characteristics(
            scenario=BY_NAME[cells[0]],
            num_prompts=size[0],
            num_samples=size[1],
            passed=passed,
            verdicts=dict(zip(COMPARISONS, verdicts, strict=True)),
            covered=covered,
        )
    return found


def rate(name, size, verdict):
    return published()[name, size].verdicts[verdict] / NUM_STUDIES


@every_cell
def test_every_cell_is_what_the_audits_do(scenario, size):
    seen = operating_characteristics(scenario, num_prompts=size[0], num_samples=size[1])
    assert row(seen) in published_text().splitlines()


def test_the_page_has_every_cell_and_the_worst_of_them():
    found = published()
    assert list(found) == [(scenario.name, size) for scenario, size in CELLS]
    assert {seen.num_studies for seen in found.values()} == {NUM_STUDIES}
    assert published_text() == tables(list(found.values()))


@every_cell
def test_a_false_verdict_falls_at_most_5_times_in_100(scenario, size):
    seen = published()[scenario.name, size]
    assert seen.num_studies >= 400
    # A true rate of 5 % gives more than LIMIT once in 100 such counts.
    for verdict in scenario.errors:
        assert seen.verdicts[verdict] <= LIMIT


def test_the_limit_is_the_binomial_one_and_would_see_a_rate_of_10_in_100():
    below, at = stats.binom.cdf([LIMIT - 1, LIMIT], NUM_STUDIES, 0.05)
    assert below < 0.99 <= at
    assert stats.binom.cdf(LIMIT, NUM_STUDIES, 0.10) < 0.1


def test_what_is_false_follows_from_the_truth():
    for scenario in SCENARIOS:
        # 80 % is at the margin, to the rounding of 1 - 0.8.
        apart = abs(scenario.ratio - 1) >= MARGIN - 1e-9
        false = {
            Verdict.EQUIVALENT: scenario.lift == 0 or apart,
            Verdict.DIFFERENT: scenario.difference == 0,
        }
        assert set(scenario.errors) == {v for v, wrong in false.items() if wrong}
        assert scenario.truth not in scenario.errors
    assert any(scenario.ratio == 1 - MARGIN for scenario in SCENARIOS)


def test_an_equivalence_inside_the_margin_is_seen_by_the_same_count():
    inside = replace(BY_NAME["80 % effect"], ratio=0.9)
    seen = operating_characteristics(inside, seeds=range(40), **LARGE)
    assert seen.verdicts[EQUIVALENT] / 40 > 0.2


def test_no_effect_is_uninformative_in_nearly_all():
    for size in SIZES:
        assert rate("no effect", size, UNINFORMATIVE) >= 0.98


def test_an_equal_effect_at_100_by_10_is_equivalent_in_nearly_all():
    assert rate("equal effect", (100, 10), EQUIVALENT) >= 0.95
    # Directions that vary three times as much are what this cannot be said of.
    assert rate("equal, varied", (100, 10), EQUIVALENT) < 0.6


def test_seventy_percent_of_the_effect_at_100_by_10_is_different_in_nearly_all():
    assert rate("70 % effect", (100, 10), DIFFERENT) >= 0.95


def test_an_opposite_effect_is_different_wherever_v_passes():
    for size in SIZES:
        seen = published()["opposite effect", size]
        assert seen.passed >= 0.95 * NUM_STUDIES
        assert seen.verdicts[DIFFERENT] == seen.passed


@every_cell
def test_no_comparison_is_made_where_v_does_not_pass(scenario, size):
    seen = published()[scenario.name, size]
    assert seen.verdicts[UNINFORMATIVE] == seen.num_studies - seen.passed


def test_no_equivalence_is_stated_of_few_prompts():
    for (_, (num_prompts, _)), seen in published().items():
        if num_prompts < MINIMUM_PROMPTS:
            assert seen.verdicts[EQUIVALENT] == 0
    scenario = BY_NAME["equal effect"]
    assert scenario.right(MINIMUM_PROMPTS - 1) is INCONCLUSIVE
    assert scenario.right(MINIMUM_PROMPTS) is EQUIVALENT


@every_cell
def test_the_interval_of_the_difference_covers_the_truth_95_times_in_100(
    scenario, size
):
    seen = published()[scenario.name, size]
    # Three binomial standard deviations below; above, it is only conservative.
    slack = 3 * math.sqrt(0.95 * 0.05 / NUM_STUDIES)
    assert seen.covered / NUM_STUDIES >= 0.95 - slack


def test_noise_of_single_cells_widens_the_interval_as_the_page_says():
    rng, num_prompts = np.random.default_rng(0), 100
    variances = {"family": 0.0, "difference": 0.0}
    num = 300
    for seed in range(num):
        lifts = {
            "v": rng.normal(size=(1, num_prompts)),
            "w": rng.normal(size=(NUM_DIRECTIONS, num_prompts)),
        }
        draws = two_way_bootstrap(lifts, num_draws=500, seed=seed)
        variances["family"] += draws["w"].var() / num
        variances["difference"] += (draws["w"] - draws["v"]).var() / num
    true = {"family": 1 / NUM_DIRECTIONS, "difference": 1 + 1 / NUM_DIRECTIONS}
    seen = {name: variances[name] * num_prompts / true[name] for name in true}
    stretch = stats.t.ppf(0.975, [NUM_DIRECTIONS - 1, num_prompts - 1])
    tau = (stretch / stats.norm.ppf(0.975)) ** 2
    closed = (1 + tau[0]) * (1 + tau[1]) - 1
    # The mean of 300 variances, each uncertain by a tenth or so: 3 sd are 3 %.
    assert seen["family"] == pytest.approx(closed, rel=0.05)
    both = (closed / NUM_DIRECTIONS + tau[1]) / true["difference"]
    assert seen["difference"] == pytest.approx(both, rel=0.05)
    text = PAGE.read_text(encoding="utf-8")
    assert f"{closed:.1f} for $J = 5$, $n = 100$" in text
    plain = (2 - 1 / NUM_DIRECTIONS) * (2 - 1 / num_prompts) - 1
    assert f"({plain:.1f} without the stretch" in text
    assert f"then {math.sqrt(both):.1f} times" in text


def test_a_table_has_the_effects_that_it_is_told_in_each_direction():
    told = [0.15, 0.05, -0.1]
    table = ScoreTable(num_prompts=4000, num_samples=10, seed=1)
    seen = table.lifts({"v": 0.2, "family": told})
    assert {name: found.shape for name, found in seen.items()} == {
        "v": (1, 4000),
        "family": (3, 4000),
    }
    # Standard deviation of an entry below 0.08, of the mean of 4000 below 0.0013.
    assert np.abs(seen["family"].mean(1) - told).max() < 0.005
    assert abs(seen["v"].mean() - 0.2) < 0.005


def test_effects_vary_between_prompts_by_the_interaction_alone():
    quiet, varied = (
        ScoreTable(
            num_prompts=4000, num_samples=400, interaction=interaction, seed=2
        ).lifts({"still": 0.0, "v": 0.2})
        for interaction in (0.0, 0.3)
    )
    # A uniform share of +-0.3 of 0.2 has variance 0.0012; the noise of the samples,
    # 0.00005, is in both. Relative error of a variance of 4000: 2.2 %; four.
    added = varied["v"].var() - quiet["v"].var()
    assert added == pytest.approx((0.3 * 0.2) ** 2 / 3, rel=0.09)
    assert np.array_equal(quiet["still"], varied["still"])


def test_an_effect_that_leaves_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="<= 0"):
        ScoreTable().lifts({"v": 0.7})


def test_the_directions_of_a_study_vary_as_the_scenario_says():
    scenario = replace(BY_NAME["equal, varied"], ratio=0.9)
    seen = [
        study(scenario, num_prompts=20, num_samples=50, seed=seed)[1]
        for seed in range(200)
    ]
    lifts = np.array([finding.details["candidate_lift"] for finding in seen])
    # sd of a study's mean: sqrt((0.15 s)^2 / 5 + noise), noise below 0.006^2; the mean
    # of 200 to four of them, their spread to three of its own errors.
    assert abs(lifts.mean() - 0.9 * 0.15) < 0.0034
    expected = 0.15 * scenario.spread / math.sqrt(NUM_DIRECTIONS)
    slack = 1 + 3 / math.sqrt(2 * len(lifts))
    assert expected / slack < lifts.std(ddof=1) < slack * math.hypot(expected, 0.006)


def test_the_same_seeds_give_the_same_rates_and_others_do_not():
    def counted(seeds):
        scenario = BY_NAME["80 %, varied"]
        return operating_characteristics(
            scenario, num_prompts=20, num_samples=5, seeds=seeds
        )

    first = counted(range(40))
    assert first == counted(range(40))
    assert first != counted(range(40, 80))
    assert min(first.verdicts[DIFFERENT], first.verdicts[INCONCLUSIVE]) > 0


def test_a_rate_is_printed_with_wilsons_interval():
    # p = 0.1, n = 100: centre (p + z^2 / 2n) / (1 + z^2 / n), by hand.
    z2 = stats.norm.ppf(0.975) ** 2
    centre = (0.1 + z2 / 200) / (1 + z2 / 100)
    half = math.sqrt(z2 * (0.09 / 100 + z2 / 40000)) / (1 + z2 / 100)
    low, high = 100 * (centre - half), 100 * (centre + half)
    assert percent(10, 100) == f"10.0 [{low:.1f}, {high:.1f}]"


def test_rows_show_what_is_right_and_what_is_false():
    seen = published()["equal effect", (100, 10)]
    cells = [cell.strip() for cell in row(seen).strip("|").split("|")]
    marks = [cell[: len(cell) - len(cell.lstrip("*"))] for cell in cells[3:7]]
    assert marks == ["**", "*", "", ""]


def test_a_page_is_rewritten_between_its_marks_and_nowhere_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    rewrite(page, "new")
    assert page.read_text() == f"before\n{MARKS[0]}\n\nnew\n\n{MARKS[1]}\nafter\n"
    rewrite(page, "new")
    assert page.read_text().count("new") == 1


def test_a_page_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(NoSuchFile, match="nowhere"):
        main([str(tmp_path / "nowhere.md")])


def test_a_page_without_marks_is_refused_before_anything_is_counted(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{MARKS[1]} the wrong way round {MARKS[0]}")
    before = page.read_text()
    with pytest.raises(InputError, match="no place for the tables"):
        main([str(page)])
    assert page.read_text() == before


def test_the_tables_of_the_false_verdicts_name_both():
    lines = tables(list(published().values())).splitlines()[2:4]
    assert [line.split(" | ")[0] for line in lines] == [f"| false {v}" for v in NEITHER]
