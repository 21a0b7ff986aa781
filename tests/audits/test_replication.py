"""T2 knows what noise makes of |d|, r and perp-only, and what they hide."""

import json
import math

import numpy as np
import pytest

from steergauge.audits.finding import Verdict
from steergauge.audits.replication import replication
from steergauge.paper import published

SD = 0.1
"""Of a score, prompts and samples together."""

LARGE = {"prompts": 100, "samples": 10}
SMALL = {"prompts": 20, "samples": 5}
DIRECTIONS = 10


def scores(effects, *, prompts=20, samples=5, icc=0.3, base=0.7, seed=0):
    """Normal scores around `base`, prompts shared by all arms, by family."""
    rng = np.random.default_rng(seed)
    shared = base + rng.normal(0, SD * math.sqrt(icc), (1, prompts, 1))
    return {
        name: shared
        + np.atleast_1d(np.asarray(effect, dtype=float))[:, None, None]
        + rng.normal(0, SD * math.sqrt(1 - icc), (np.size(effect), prompts, samples))
        for name, effect in effects.items()
    }


def families(lift=0.0, added=None, alone=0.0, *, directions=DIRECTIONS):
    """Effects of every family that T2 needs."""
    added = lift if added is None else added
    return {
        "unsteered": 0.0,
        "v": lift,
        "v_again": [lift] * directions,
        "v_plus_perp": [added] * directions,
        "v_plus_perp_fresh": [added] * directions,
        "perp": [alone] * directions,
        "minus_v": -lift,
    }


def audited(effects, *, manipulation=Verdict.PASS, seed=0, **sizes):
    tables = scores(effects, seed=seed, **sizes)
    return replication(tables, manipulation=manipulation, seed=seed)


def mean_d(effects, *, num=40, **sizes) -> float:
    """Mean over studies of the |d| that T2 prints in its last row."""
    found = [
        audited(effects, manipulation=Verdict.FAIL, seed=seed, **sizes)
        for seed in range(num)
    ]
    return float(np.mean([one.details["published"][-1]["d_mean"] for one in found]))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"prompts": 9, "samples": 1}, 0.40),
        ({"prompts": 3, "samples": 3}, 0.40),
        ({"prompts": 10, "samples": 10}, 0.113),
    ],
)
def test_no_effect_has_the_mean_d_of_noise(sizes, expected):
    # Ten directions share one sample of v, so 40 studies are some 120 draws of
    # |N(0, s)|, whose sd is .76 of its mean: a standard error of 7 %, times three.
    assert mean_d(families(), icc=0.0, **sizes) == pytest.approx(expected, rel=0.21)


@pytest.mark.parametrize("icc", [0.0, 0.5])
def test_v_against_itself_has_the_noise_floor_of_shared_prompts(icc):
    found = [
        audited(families(), icc=icc, seed=seed, prompts=25, samples=4)
        for seed in range(40)
    ]
    seen = np.mean([one.details["itself"]["d_mean"] for one in found])
    floor = published.noise_floor(100, 100, icc=icc)
    assert seen == pytest.approx(floor, rel=0.21)
    # The floor that T2 prints comes from the ICC that it measures.
    printed = [one.details["noise_floor"] for one in found]
    assert np.mean([one["icc"] for one in printed]) == pytest.approx(icc, abs=0.05)
    told = np.mean([one["shared_prompts"] for one in printed])
    assert told == pytest.approx(floor, rel=0.05)
    assert {one["independent"] for one in printed} == {published.noise_floor(100, 100)}


def test_no_effect_is_uninformative_and_yet_perp_only_is_100_percent():
    for seed in range(8):
        found = audited(families(), manipulation=Verdict.FAIL, seed=seed, **LARGE)
        assert found.verdict is Verdict.UNINFORMATIVE
        assert "FAIL" in found.reasons[0]
        for row in found.details["published"]:
            assert row["perp_only_percent"] == pytest.approx(100, abs=3)
            assert row["d_mean"] < 0.2


def test_an_equal_effect_is_at_its_floor_whatever_the_manipulation_check_says():
    num = 60
    verdicts = [audited(families(0.15), seed=seed).verdict for seed in range(num)]
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / num)
    assert verdicts.count(Verdict.DIFFERENT) / num <= allowed
    assert set(verdicts) <= {Verdict.DIFFERENT, Verdict.UNINFORMATIVE}
    assert "noise floor" in audited(families(0.15)).reasons[-1]


@pytest.mark.parametrize("directions", [2, 3])
def test_few_directions_raise_a_difference_no_more_often(directions):
    num = 80
    effects = families(0.15, directions=directions)
    verdicts = [audited(effects, seed=seed).verdict for seed in range(num)]
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / num)
    assert verdicts.count(Verdict.DIFFERENT) / num <= allowed


def test_of_one_direction_nothing_is_said():
    for added in (0.15, -0.15):
        found = audited(families(0.15, added, directions=1))
        assert found.verdict is Verdict.UNINFORMATIVE
        assert "single direction" in found.reasons[-1]


def test_sixty_percent_of_the_effect_at_100_by_10_is_different():
    for seed in range(5):
        found = audited(families(0.15, 0.6 * 0.15), seed=seed, **LARGE)
        assert found.verdict is Verdict.DIFFERENT
        assert found.details["hedges"][2] < 0


def test_a_difference_is_not_said_of_a_vector_that_does_nothing():
    effects = families(0.15, 0.0)
    assert audited(effects, **LARGE).verdict is Verdict.DIFFERENT
    found = audited(effects, manipulation=Verdict.UNINFORMATIVE, **LARGE)
    assert found.verdict is Verdict.UNINFORMATIVE


STUDIES = 200
LIFT, DIFFERENCE, ALONE = 0.1, 0.05, 0.05


@pytest.fixture(scope="module")
def studies():
    """Findings by the sign of L(v') - L(v), of v_perp with half of v's lift."""
    found = {1: [], -1: []}
    for seed in range(STUDIES):
        sign = 1 if seed % 2 else -1
        added = LIFT + sign * DIFFERENCE
        effects = families(LIFT, added, alone=ALONE, directions=5)
        found[sign].append(audited(effects, seed=seed, prompts=50, samples=4))
    return found


def test_the_interval_of_hedges_d_covers_the_truth_and_has_its_sign(studies):
    covered = 0
    for sign, found in studies.items():
        truth = sign * DIFFERENCE / SD
        ends = [one.details["hedges"] for one in found]
        covered += sum(low <= truth <= high for _, low, high in ends)
        values = [value for value, _, _ in ends]
        assert all(value * sign > 0 for value in values)
        # Unbiased: sd of one value is about .06, of the mean of 100 of them .006.
        assert np.mean(values) == pytest.approx(truth, abs=0.02)
    assert covered / STUDIES >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / STUDIES)


def test_the_interval_of_the_lift_ratio_covers(studies):
    found = [one.details["lift_ratio"] for half in studies.values() for one in half]
    assert all(low < ratio < high for ratio, low, high in found)
    covered = sum(low <= ALONE / LIFT <= high for _, low, high in found)
    assert covered / STUDIES >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / STUDIES)


@pytest.mark.parametrize("icc", [0.0, 0.1, 0.3, 0.5])
def test_r_between_independent_samples_is_the_share_of_the_prompts(icc):
    effects = families(0.15)
    found = [audited(effects, icc=icc, seed=seed, **LARGE) for seed in range(5)]
    r = np.mean([one.details["published"][-1]["r_mean"] for one in found])
    # Prompts are the sample: an ICC of 100 has an error of .05, of 5 x 100 of .022.
    assert r == pytest.approx(icc, abs=0.066)
    expected = np.mean([one.details["r_expected"] for one in found])
    assert r == pytest.approx(expected, abs=0.02)
    if icc:
        # True means of prompts agree, which r alone would not show. The noise of r
        # and of its bound grows as reliability falls: .53, .81 and .91.
        agreed = np.mean([one.details["r_disattenuated"] for one in found])
        assert agreed == pytest.approx(1, abs={0.1: 0.2, 0.3: 0.1, 0.5: 0.05}[icc])


def test_r_of_prompts_is_bounded_by_their_reliability():
    found = audited(families(0.15), icc=0.1, prompts=400, samples=4)
    bound = found.details["r_prompts_bound"]
    # Spearman and Brown: 4 x .1 / (1 + 3 x .1) = .31, far below 1.
    assert bound == pytest.approx(0.31, abs=0.08)
    assert found.details["r_prompts"] == pytest.approx(bound, abs=0.08)


def test_the_headline_is_100_percent_where_the_lift_ratio_is_0():
    """v lifts .03 of scores around .73, v_perp does nothing: Table 1's numbers."""
    covered = 0
    for seed in range(12):
        effects = families(0.03, 0.03, alone=0.0)
        found = audited(effects, base=0.73, seed=seed, prompts=200, samples=10)
        percent = found.details["published"][-1]["perp_only_percent"]
        assert 94 < percent < 98
        ratio, low, high = found.details["lift_ratio"]
        covered += low <= 0 <= high
        # Common noise of the unsteered arm alone: .002 / .03, and four times that.
        assert abs(ratio) < 0.3
        assert high < 0.5
    # 95 in 100: fewer than 9 of 12 happen 2 times in 1000.
    assert covered >= 9


def test_the_lift_ratio_is_unbounded_where_v_has_no_lift():
    num = 40
    found = [audited(families(0.0, alone=0.05), seed=seed) for seed in range(num)]
    ends = [one.details["lift_ratio"][1:] for one in found]
    bounded = [low is not None for low, _ in ends]
    # As often as a lift of 0 is told from 0: 5 times in 100.
    assert sum(bounded) / num <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / num)


def test_a_comparison_that_must_be_found_is_found_and_shown_beside_the_others():
    effects = families(0.15) | {"random": [0.0] * 4, "other_trait": [0.02, 0.0]}
    found = audited(effects, **LARGE)
    (control,) = found.controls
    assert control.holds
    assert control.estimate.value > 2
    others = found.details["others"]
    assert set(others) == {"unsteered", "minus_v", "random", "other_trait"}
    assert others["random"]["num"] == 4
    assert others["unsteered"]["d_mean"] > 1
    blind = audited(families(0.0), **LARGE)
    assert not blind.controls[0].holds


def test_rows_are_of_five_and_of_ten_directions_and_dots_of_each():
    tables = scores(families(0.1))
    found = replication(tables, manipulation=Verdict.PASS).details
    assert [row["seeds"] for row in found["published"]] == [5, 10]
    own, fresh = tables["v"][0], tables["v_plus_perp_fresh"]
    d = [published.cohens_d(own, one) for one in fresh]
    assert [dot["d"] for dot in found["per_seed"]] == pytest.approx(d)
    for row in found["published"]:
        mine = d[: row["seeds"]]
        assert row["d_mean"] == pytest.approx(np.mean(mine))
        assert row["d_sd"] == pytest.approx(np.std(mine))
    three = replication(scores(families(0.1, directions=3)), manipulation=Verdict.PASS)
    assert [row["seeds"] for row in three.details["published"]] == [3]


def test_the_published_codes_variant_is_beside_and_not_among_the_others():
    code = {"code_v": 0.1, "code_v_plus_perp": [0.1] * 3, "code_perp": [0.1] * 3}
    found = audited(families(0.1) | code, **LARGE)
    assert found.details["code"]["seeds"] == 3
    assert found.details["code"]["perp_only_percent"] == pytest.approx(100, abs=2)
    assert not [name for name in found.details["raw_scores"] if "code" in name]
    assert audited(families(0.1)).details["code"] is None


def test_counted_from_the_other_pole_d_turns_and_ratios_of_lifts_do_not():
    """What is audited with alpha < 0: one minus the score, so that lifts are gains."""
    tables = scores(families(-0.15, -0.1, alone=-0.02))
    down = replication(tables, manipulation=Verdict.PASS)
    up = replication(
        {name: 1 - values for name, values in tables.items()},
        manipulation=Verdict.PASS,
    )
    assert down.details["lift_v"][0] < 0 < up.details["lift_v"][0]
    value, low, high = down.details["hedges"]
    assert up.details["hedges"] == pytest.approx([-value, -high, -low])
    assert up.details["lift_ratio"] == pytest.approx(down.details["lift_ratio"])
    for here, there in zip(
        up.details["published"], down.details["published"], strict=True
    ):
        for key in ("d_mean", "d_sd", "r_mean", "r_sd"):
            assert here[key] == pytest.approx(there[key])


@pytest.mark.parametrize("constant", [0.5, 0.9], ids=["as all others", "of its own"])
def test_scores_that_never_vary_still_make_a_finding_that_can_be_stored(constant):
    tables = {name: np.full_like(t, 0.5) for name, t in scores(families()).items()}
    for name in ("v", "v_again"):
        tables[name][:] = constant
    found = replication(tables, manipulation=Verdict.PASS)
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    row = record["details"]["published"][-1]
    differs = constant != 0.5
    # An infinite |d| is no number, but it is a difference.
    assert (row["d_mean"] is None) == differs
    assert found.verdict is (Verdict.DIFFERENT if differs else Verdict.UNINFORMATIVE)
    assert record["details"]["r_disattenuated"] is None
    assert record["details"]["r_prompts"] is None
    assert (record["details"]["lift_ratio"][0] is None) == (not differs)


def test_a_vector_whose_texts_are_the_unsteered_ones_has_no_lift_ratio():
    tables = scores(families())
    tables["v"] = tables["unsteered"].copy()
    found = replication(tables, manipulation=Verdict.FAIL)
    assert found.details["lift_ratio"] == [None, None, None]
    assert found.details["lift_ratio_bootstrap"] == [None, None]
    json.dumps(found.to_json(), allow_nan=False)
