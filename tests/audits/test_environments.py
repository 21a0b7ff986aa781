"""What holds in one family of prompts is looked for, and missed, in the others."""

import math

import numpy as np
import pytest

from steergauge.audits import environments as audit
from steergauge.audits.environments import SAME, environments
from steergauge.audits.finding import Verdict

NAMES = ("home", "topics", "genres", "safety")
RULES = {"margin": 0.2, "minimum_lift": 0.05, "num_samples": 8}
NUM = 100
"""Studies of environments that do not differ."""

LIFT = 0.15


def measured(
    lifts, added=None, *, source="home", prompts=60, seed=0
) -> list[audit.Tested]:
    """Lifts on prompts of their own in each environment, three directions added."""
    rng = np.random.default_rng([2, seed])

    def table(mean, directions):
        shared = rng.normal(0, 0.05, (1, prompts))
        return mean + shared + rng.normal(0, 0.04, (directions, prompts))

    found = []
    for name, lift in lifts.items():
        own = table(lift, 1)
        change = (added or {}).get(name, lift) - lift
        total = own + change + rng.normal(0, 0.04, (3, prompts))
        found.append(audit.Tested(source, name, own, total, 0.3, 0.25, 8 * prompts))
    return found


def everywhere(lift=LIFT, **others) -> dict[str, float]:
    return dict.fromkeys(NAMES, lift) | others


def audited(*cells, manipulation=Verdict.PASS, seed=0, **sizes):
    """The findings on lifts and on v + v_perp."""
    return environments(
        measured(*cells, seed=seed, **sizes),
        source="home",
        manipulation=manipulation,
        seed=seed,
        **RULES,
    )


def test_identical_environments_pass_both_ways():
    found = [audited(everywhere(), prompts=150, seed=seed) for seed in range(10)]
    lifts, same = zip(*found, strict=True)
    assert [one.verdict for one in lifts] == [Verdict.PASS] * 10
    assert [one.verdict for one in same].count(Verdict.EQUIVALENT) >= 9


@pytest.fixture(scope="module")
def identical():
    """Both findings of studies of environments that do not differ."""
    return [audited(everywhere(), seed=seed) for seed in range(NUM)]


def test_the_variance_of_identical_environments_is_at_its_floor(identical):
    found = [lifts.details for lifts, _ in identical]
    floors = [one["variance_floor"] for one in found]
    # Variance of a mean of 60 prompts, stretched to Student's as the bootstrap is.
    assert np.mean(floors) == pytest.approx((0.05**2 + 0.04**2) / 60, rel=0.1)
    values = [one["variance"][0] for one in found]
    # Three degrees of freedom: a mean of 100 is known to 8 %.
    assert np.mean(values) == pytest.approx(np.mean(floors), rel=0.25)
    holds = [
        one["variance"][1] <= floor <= one["variance"][2]
        for one, floor in zip(found, floors, strict=True)
    ]
    assert np.mean(holds) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / NUM)


def test_a_variance_that_was_planted_is_above_its_floor():
    true = {"home": 0.25, "topics": 0.2, "genres": 0.1, "safety": 0.05}
    truth, covered = np.var(list(true.values()), ddof=1), 0
    for seed in range(20):
        details = audited(true, seed=seed)[0].details
        value, low, high = details["variance"]
        assert details["variance_floor"] < low
        covered += low < truth < high
        assert value == pytest.approx(truth, rel=0.6)
        for name, lift in true.items():
            assert details["lifts"][name][0] == pytest.approx(lift, abs=0.04)
    # 95 in 100: fewer than 16 of 20 happen 3 times in 1000.
    assert covered >= 16


def test_an_environment_without_a_lift_fails_and_is_named():
    for seed in range(15):
        where = NAMES[1 + seed % 3]
        found, _ = audited(everywhere(**{where: 0.0}), seed=seed)
        assert found.verdict is Verdict.FAIL
        assert where in found.quantity
        assert abs(found.estimate.value) < 0.05


def test_a_confounder_of_one_environment_is_found():
    """There the lift is that of another word, and turns with v_perp."""
    num, flagged, named = 30, 0, 0
    for seed in range(num):
        cells = everywhere(), {"genres": 0.4 * LIFT}
        lifts, same = audited(*cells, seed=seed)
        assert lifts.verdict is Verdict.PASS
        flagged += same.verdict is Verdict.DIFFERENT
        named += "home -> genres: DIFFERENT" in same.reasons[0]
    assert flagged / num >= 0.95
    assert named / num >= 0.95


def test_identical_environments_are_called_different_at_most_5_times_in_100(identical):
    verdicts = [same.verdict for _, same in identical]
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / NUM)
    assert verdicts.count(Verdict.DIFFERENT) / NUM <= allowed


def test_no_lift_in_one_environment_is_passed_at_most_5_times_in_100():
    num = 100
    # So few prompts that a lift of 0 is often above the smallest that counts.
    found = [
        audited(everywhere(safety=0.0), prompts=5, seed=seed)[0] for seed in range(num)
    ]
    assert np.mean([one.estimate.value >= 0.05 for one in found]) > 0.01
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / num)
    passed = [one.verdict for one in found].count(Verdict.PASS)
    assert passed / num <= allowed


@pytest.mark.parametrize("worst", NAMES)
def test_the_worst_environment_counts_not_the_mean(worst):
    lifts, _ = audited(everywhere(0.2, **{worst: 0.1}))
    assert lifts.quantity == f"lift in the worst environment ({worst})"
    assert lifts.estimate.low < 0.1 < lifts.estimate.high


def test_only_the_vector_under_audit_is_judged_and_the_others_are_shown():
    own = measured(everywhere())
    others = measured(everywhere(0.0), source="topics", seed=1)
    alone = audited(everywhere())
    both = environments(
        [*own, *others], source="home", manipulation=Verdict.PASS, **RULES
    )
    assert [one.verdict for one in both] == [one.verdict for one in alone]
    assert [one.estimate for one in both] == [one.estimate for one in alone]
    cells = both[0].details["cells"]
    assert [(one["source"], one["target"]) for one in cells] == [
        (source, name) for source in ("home", "topics") for name in NAMES
    ]
    assert cells[0]["published_d"] == 0.3
    assert {one["verdict"] for one in cells[4:]} == {"UNINFORMATIVE"}


@pytest.mark.parametrize("check", [Verdict.FAIL, Verdict.UNINFORMATIVE])
def test_a_failed_manipulation_check_overrules_both(check):
    for found in audited(everywhere(), manipulation=check):
        assert found.verdict is Verdict.UNINFORMATIVE
        assert str(check) in found.reasons[0]
    keys = [one.key for one in audited(everywhere())]
    assert keys == ["environments", f"environments[{SAME}]"]


def test_a_single_environment_has_no_variance():
    details = audited({"home": LIFT})[0].details
    assert details["variance"] == [0.0, 0.0, 0.0]
