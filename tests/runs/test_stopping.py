"""A sequential run stops when its verdicts are decided, and rarely on a false one."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from steergauge.audits.comparison import EVERY_LOOK
from steergauge.audits.divergence import divergence
from steergauge.audits.equivalence import equivalence
from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.manipulation import MINIMUM_NULLS, manipulation
from steergauge.calibration import MARKS, ScoreTable, most_allowed
from steergauge.errors import BadSpec
from steergauge.runs import stopping_rates
from steergauge.runs.evidence import compared_lifts, family, subjects
from steergauge.runs.spec import CORE, spec_from
from steergauge.runs.stopping import (
    Question,
    decided,
    decision,
    looks_of,
    settled_rank,
)
from steergauge.runs.stopping_rates import CASES, rates, row, run, table
from steergauge.sequential import Looks

PAGE = Path(__file__).parents[2] / "docs" / "cost.md"
LOOKS = Looks(100, 10)
FAMILY = "v_plus_perp"
BY_NAME = {case.name: case for case in CASES}
QUESTION = Question(CORE, {FAMILY: ""}, 1e-6, 0.2, 0.05, 10)
ARMS = ("unsteered", "v", "minus_v", f"{FAMILY}[0]", f"{FAMILY}[1]", "perp[0]")


def lifts(num, effects=None, *, samples=40, seed=0):
    told = {"v": 0.2, FAMILY: [0.2] * 5, "random": [0.0] * MINIMUM_NULLS}
    made = ScoreTable(num_prompts=100, num_samples=samples, seed=seed)
    tables = made.lifts(told | (effects or {}))
    return {name: whole[:, :num] for name, whole in tables.items()}


def nats(num, ratio=0.002, *, effect=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "unsteered": effect * rng.gamma(4, 0.25, (1, num)),
        FAMILY: effect * ratio * rng.gamma(4, 0.25, (5, num)),
    }


def plumbing(verdict=Verdict.PASS):
    return Finding(
        "plumbing", "T0", "", "", "", None, "", verdict, (), details={"floor_kl": 1e-6}
    )


def asked(*audits, **changes):
    return replace(QUESTION, audits=audits, **changes)


def test_clear_verdicts_stop_a_run_and_are_those_of_the_audits_themselves():
    tables, divergences = lifts(50), nats(50)
    seen = decision(QUESTION, tables, divergences, LOOKS)
    assert seen.stop
    assert seen.open == ()
    assert seen.verdicts == {
        "manipulation": Verdict.PASS,
        "equivalence": Verdict.EQUIVALENT,
        "divergence": Verdict.EQUIVALENT,
    }
    assert seen.level > 0.99
    assert "Decided at 50 of 100" in seen.reasons[0]


def test_one_open_verdict_keeps_a_run_going_and_is_named():
    seen = decision(QUESTION, lifts(50), nats(50, ratio=0.05), LOOKS)
    assert not seen.stop
    assert seen.open == ("divergence",)
    assert "divergence" in seen.reasons[0]
    # It is that one alone: a run that does not ask for it stops.
    other = asked("manipulation", "equivalence")
    assert decision(other, lifts(50), {}, LOOKS).stop


def test_an_equivalence_never_stops_a_run_before_50_prompts():
    for num in (20, 30, 40):
        seen = decision(QUESTION, lifts(num), nats(num), LOOKS)
        assert set(seen.open) == {"equivalence", "divergence"}


def test_an_opposite_effect_is_decided_at_the_first_look():
    seen = decision(
        asked("manipulation", "equivalence"),
        lifts(20, {FAMILY: [-0.2] * 5}),
        {},
        LOOKS,
    )
    assert seen.stop
    assert seen.verdicts["equivalence"] is Verdict.DIFFERENT


def test_a_difference_inside_the_margin_stops_nothing():
    # 10 % less, measured finely: DIFFERENT now, EQUIVALENT once 50 prompts are seen.
    effects = {FAMILY: [0.18] * 5}
    question = asked("manipulation", "equivalence")
    few = decision(question, lifts(40, effects, samples=2000), {}, LOOKS)
    assert few.verdicts["equivalence"] is not Verdict.EQUIVALENT
    assert few.open == ("equivalence",)
    enough = decision(question, lifts(60, effects, samples=2000), {}, LOOKS)
    assert enough.stop
    assert enough.verdicts["equivalence"] is Verdict.EQUIVALENT


def test_a_vector_that_surely_does_nothing_ends_a_run_of_T1_and_T3():
    tables = lifts(100, {"v": 0.0, FAMILY: [0.0] * 5}, samples=50)
    seen = decision(asked("manipulation", "equivalence"), tables, {}, LOOKS)
    assert seen.stop
    assert seen.verdicts["manipulation"] is Verdict.FAIL
    assert seen.verdicts["equivalence"] is Verdict.UNINFORMATIVE


def test_a_vector_among_its_nulls_is_open_until_its_rank_is_settled():
    v, nulls = np.full(40, 0.2), np.zeros((MINIMUM_NULLS, 40))
    noise = np.random.default_rng(0).normal(0, 0.1, 40)
    assert settled_rank(v + noise, nulls, LOOKS) is True
    assert settled_rank(noise - 0.2, nulls, LOOKS) is False
    near = nulls.copy()
    near[7] = 0.19
    assert settled_rank(v + noise, near, LOOKS) is None
    # With 39 nulls one may lie above.
    many = np.concatenate([near, nulls])[:39]
    assert settled_rank(v + noise, many, LOOKS) is True


def test_what_no_prompt_can_change_is_decided_at_once():
    single = {name: whole[:1] for name, whole in lifts(20).items()}
    seen = decision(QUESTION, single, {**nats(20), FAMILY: nats(20)[FAMILY][:1]}, LOOKS)
    assert seen.stop
    assert set(seen.verdicts.values()) == {Verdict.UNINFORMATIVE}


def test_an_effect_below_the_floor_ends_T4_only_when_it_is_surely_below():
    only = asked("divergence")
    low = decision(only, {}, nats(20, effect=1e-7), LOOKS)
    assert low.stop
    assert low.verdicts["divergence"] is Verdict.UNINFORMATIVE
    near = decision(only, {}, nats(20, effect=20e-6), LOOKS)
    assert near.verdicts["divergence"] is Verdict.UNINFORMATIVE
    assert not near.stop


def rows(num, *, ratio=1.0):
    """Texts and divergences of a run as its store has them."""
    rng, texts, scored = np.random.default_rng(0), [], []
    effect = {"v": 0.3, "minus_v": -0.3, "perp": 0.0, FAMILY: 0.3 * ratio}
    names = [*ARMS, *(f"random[{k}]" for k in range(20))]
    for index in range(num):
        for sample in range(4):
            cell = {"prompt_index": index, "sample": sample}
            base = 0.5 + rng.normal(0, 0.02)
            for arm in names:
                score = base + effect.get(family(arm), 0.0) + rng.normal(0, 0.01)
                texts.append({"arm": arm, "score": score, **cell})
            for arm in ARMS:
                mean = {"v_plus_perp": 0.01, "perp": 2.0}.get(family(arm), 1.0)
                scored.append({"other": arm, "nats": mean * rng.gamma(4, 0.25), **cell})
    return texts, scored


def spec(**changes):
    given = {"trait": "formality", "num_prompts": 100} | changes
    return spec_from({}, preset="quick", **given)


def wired(num, verdict=Verdict.PASS, texts=None, **changes):
    own, scored = rows(num)
    return decided(
        spec(**changes),
        dict.fromkeys(ARMS),
        own if texts is None else texts,
        scored,
        alpha=1.0,
        plumbing=plumbing(verdict),
        looks=LOOKS,
    )


def test_the_rows_of_a_run_are_judged_as_its_findings_are():
    seen = wired(50)
    assert seen.num_prompts == 50
    # Two directions, single `perp`: what is drawn once stays UNINFORMATIVE.
    assert seen.verdicts == {
        "manipulation": Verdict.PASS,
        "equivalence": Verdict.EQUIVALENT,
        "equivalence[v_perp alone]": Verdict.UNINFORMATIVE,
        "divergence": Verdict.EQUIVALENT,
        "divergence[v_perp alone]": Verdict.UNINFORMATIVE,
    }
    assert seen.stop
    tables = compared_lifts(rows(50)[0], 1.0)
    again = manipulation(tables, num_samples=4, looks=LOOKS)
    assert again.verdict is seen.verdicts["manipulation"]
    assert subjects(ARMS) == {FAMILY: "", "perp": "v_perp alone"}


def test_a_run_is_not_stopped_between_looks():
    seen = wired(25)
    assert not seen.stop
    assert "no look" in seen.reasons[0]
    assert not wired(10).stop


def test_a_failed_plumbing_check_ends_a_run_at_its_first_look():
    seen = wired(20, Verdict.FAIL)
    assert seen.stop
    assert "T0 failed" in seen.reasons[0]


def test_without_a_probe_T4_alone_decides():
    texts = [one | {"score": None} for one in rows(50)[0]]
    seen = wired(50, texts=texts)
    assert set(seen.verdicts) == {"divergence", "divergence[v_perp alone]"}
    assert seen.stop
    assert wired(20, texts=texts, audits=("plumbing", "equivalence")).stop


@pytest.mark.parametrize("audit", ["replication", "scale", "spectrum", "access"])
def test_audits_that_cannot_stop_early_are_refused_by_name(audit):
    with pytest.raises(BadSpec, match=audit):
        looks_of(replace(spec(), audits=(*CORE, audit)), 100)


def test_a_run_without_a_look_before_its_end_is_refused():
    with pytest.raises(BadSpec, match="nowhere to stop"):
        looks_of(spec(), 20)
    with pytest.raises(BadSpec, match="T0 alone"):
        looks_of(replace(spec(), audits=("plumbing",)), 100)
    assert looks_of(spec(), 100) == LOOKS


def findings(looks):
    tables, divergences = lifts(50), nats(50)
    t4 = {"floor": 1e-6, "tokens": 32.0, "num_samples": 10}
    t3 = {"manipulation": Verdict.PASS, "num_samples": 10}
    return [
        manipulation(tables, num_samples=10, looks=looks),
        equivalence(tables, FAMILY, subject="", looks=looks, **t3),
        divergence(divergences, FAMILY, subject="", looks=looks, **t4),
    ]


def test_every_interval_of_a_sequential_finding_is_the_always_valid_one():
    for ordinary, valid in zip(findings(None), findings(LOOKS), strict=True):
        one, other = ordinary.estimate, valid.estimate
        assert other.value == one.value
        assert other.level == one.level == 0.95
        assert (other.high - one.value) / (one.high - one.value) > 1.2
        assert EVERY_LOOK in valid.reasons
        assert EVERY_LOOK not in ordinary.reasons
        assert valid.details["looks"] == list(LOOKS.numbers)
        assert not {"looks", "planned_prompts"} & set(ordinary.details)
        for control, wider in zip(ordinary.controls, valid.controls, strict=True):
            low, high = control.estimate.low, control.estimate.high
            assert wider.estimate.high - wider.estimate.low >= high - low


def test_a_number_that_few_prompts_make_is_doubted():
    rng = np.random.default_rng(0)

    def said(other):
        divergences = nats(60) | {FAMILY: other[None]}
        found = divergence(
            divergences, FAMILY, subject="", floor=1e-6, tokens=32.0, num_samples=10,
            looks=LOOKS,
        )  # fmt: skip
        return any("Few prompts make most" in line for line in found.reasons)

    skewed, even = np.exp(2 * rng.normal(size=60)), rng.gamma(4, 0.25, 60)
    assert stats.skew(skewed) > 2.5 > stats.skew(even)
    assert said(skewed)
    assert not said(even)
    assert not said(np.full(60, 0.25))  # All the same: no skew, and no warning.


@pytest.mark.parametrize(("planned", "new"), [(100, True), (200, False)])
def test_inconclusive_at_the_planned_end_asks_for_a_new_plan(planned, new):
    found = divergence(
        nats(100, ratio=0.05), FAMILY, subject="", floor=1e-6, tokens=32.0,
        num_samples=10, looks=Looks(planned, 10),
    )  # fmt: skip
    assert found.verdict is Verdict.INCONCLUSIVE
    assert any("new plan" in line for line in found.reasons) == new


def test_the_interval_of_one_vector_is_the_confidence_sequence():
    values = lifts(30)["v"]
    found = findings(LOOKS)[0]
    whole = lifts(50)["v"][0]
    half = LOOKS.half_width(whole.std(ddof=1), 50)
    # One stretch serves one-sided ends too, at most 15 % more than the formula; 2000
    # draws give the width of a tail of 2.5 % to 5 %.
    ratio = (found.estimate.high - found.estimate.low) / (2 * half)
    assert 0.95 < ratio < 1.2
    assert values.shape == (1, 30)


@pytest.mark.parametrize("name", ["T3: 80 % effect", "T4: at the budget"])
def test_a_run_that_stops_makes_no_false_claim_more_often_than_its_level(name):
    num = 20  # The page has ten times as many.
    seen = rates(BY_NAME[name], LOOKS, range(num))
    assert seen.errors <= most_allowed(num)
    assert seen.missed <= most_allowed(num)


def test_the_naive_rule_is_false_more_often_than_its_level_and_the_count_sees_it():
    equal, num = BY_NAME["T3: equal effect"], 60
    naive = rates(equal, None, range(num))
    assert naive.errors > most_allowed(num)
    wrong = [k for k, one in enumerate(naive.ended) if one.verdict in equal.errors]
    # The same runs, as far as they need be followed.
    assert rates(equal, LOOKS, wrong).errors <= len(wrong) / 2


def test_a_clear_case_ends_with_a_fraction_of_the_prompts():
    seen = rates(BY_NAME["T4: ten times the budget"], LOOKS, range(10))
    assert {one.verdict for one in seen.ended} == {Verdict.DIFFERENT}
    assert seen.used <= 0.3
    ended = run(BY_NAME["T1: v is strong"], 0, LOOKS)
    assert ended.verdict is Verdict.PASS
    assert ended.used < LOOKS.planned


def published():
    """Cells of the page's table by case, numbers of each rule in order."""
    whole = PAGE.read_text(encoding="utf-8").split(MARKS[0])[1].split(MARKS[1])[0]
    lines = [line.strip("| ").split(" | ") for line in whole.strip().splitlines()]
    return {cells[0]: cells[2:] for cells in lines[2:]}


def test_the_page_has_every_case_and_no_error_above_its_level():
    found = published()
    assert list(found) == [case.name for case in CASES]
    num = stopping_rates.NUM_STUDIES
    for case in CASES:
        false, covers, used = found[case.name][:3]
        level = 1 / 21 + 0.025 if case.truth is None else 0.05
        if case.errors:
            most = stats.binom.ppf(0.99, num, level) / num
            assert float(false.split()[0]) <= 100 * most
        if case.truth is not None:
            assert float(covers.split()[0]) >= 100 * (1 - most_allowed(num) / num)
        assert 20 <= float(used) <= 100
    # The count can see an error: the naive rule makes it.
    naive = float(found["T3: equal effect"][3].split()[0])
    assert naive > 100 * most_allowed(num) / num


def test_a_line_has_a_cell_for_every_column():
    seen = rates(BY_NAME["T4: at the budget"], LOOKS, range(2))
    whole = table([row(seen, seen)]).splitlines()
    assert {line.count("|") for line in whole} == {whole[0].count("|")}
    assert not math.isnan(seen.used)
