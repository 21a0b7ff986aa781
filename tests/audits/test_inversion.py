"""T17 says what planted inversions are, and nothing where natural texts are lost."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tests import ground_truth
from tests.runs.test_reachability import SMALL, drawn, prompt_file

from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.inversion import Inverted, Tried, inversion
from steergauge.runs.execute import audit

VOCABULARY = 100
LENGTH = 10
NEAR, FAR, TOLERANCE = 1e-7, 1.0, 1e-6
TOKENS = np.arange(20, 20 + LENGTH)
OTHERS = TOKENS + 40


def tried(tokens, accepted, *, distance=NEAR, num: int | None = None) -> Tried:
    """An inversion that is near where it accepts, cut after `num` places."""
    accepted = np.broadcast_to(np.asarray(accepted, bool), LENGTH)
    columns = {
        "tokens": np.array(tokens),
        "accepted": accepted,
        "distance": np.where(accepted, distance, FAR),
        "second": np.where(accepted, np.nan, 2 * FAR),
        "tolerance": np.full(LENGTH, TOLERANCE),
        "tested": np.where(accepted, 16, VOCABULARY),
    }
    return Tried(**{name: values[:num] for name, values in columns.items()})


def prompt(
    steered: Tried, natural: Tried | None = None, *, step: float = FAR, apart: float = 0
) -> Inverted:
    return Inverted(
        prompt="say it",
        tokens=tuple("abcdefghij"),
        token_ids=TOKENS,
        step=np.full(LENGTH, step),
        apart=np.full(LENGTH, float(apart)),
        natural=tried(TOKENS, True) if natural is None else natural,
        steered=steered,
    )


REACHED = prompt(tried(OTHERS, True))
STOPPED = prompt(tried(TOKENS, False, num=1))
UNMOVED = prompt(tried(TOKENS, True), step=NEAR)


def different(found: Sequence[Inverted]) -> list[Inverted]:
    """The same prompts, each of tokens of its own."""

    def shifted(tried: Tried, by: int) -> Tried:
        return dataclasses.replace(tried, tokens=tried.tokens + by)

    return [
        dataclasses.replace(
            one,
            token_ids=one.token_ids + by,
            natural=shifted(one.natural, by),
            steered=shifted(one.steered, by),
        )
        for by, one in enumerate(found)
    ]


def said(*found: Inverted, steering: str = "addition") -> Finding:
    """Of these prompts, the same ones where they are."""
    decode = {i: f"<{i}>" for i in range(VOCABULARY)}
    finding = inversion(found, decode=decode, d_vocab=VOCABULARY, steering=steering)
    # Every finding survives a strict round trip through JSON, whatever it says.
    written = json.dumps(finding.to_json(), allow_nan=False)
    back = Finding.from_json(json.loads(written))
    assert json.loads(json.dumps(back.to_json())) == json.loads(written)
    return finding


def judged(*found: Inverted) -> Finding:
    return said(*different(found))


@pytest.mark.parametrize(
    ("found", "expected", "reached"),
    [
        ([REACHED] * 4, Verdict.REACHABLE, 4),
        ([STOPPED] * 4, Verdict.UNREACHED, 0),
        ([STOPPED] * 3 + [REACHED], Verdict.INCONCLUSIVE, 1),
        ([REACHED] * 3 + [STOPPED], Verdict.INCONCLUSIVE, 3),
    ],
)
def test_planted_sequences_get_their_verdict(found, expected, reached):
    finding = judged(*found)
    assert finding.verdict is expected
    assert finding.details["steered"]["reached"] == reached
    assert finding.details["steered"]["num"] == 4
    assert finding.estimate.value == pytest.approx(reached / 4)
    assert all(control.holds for control in finding.controls)
    assert "40 of 40 natural tokens came back" in finding.reasons[0]


def test_none_of_a_few_is_not_none_of_all():
    finding = judged(*[STOPPED] * 4)
    # Wilson: z^2 / (4 + z^2).
    assert finding.estimate.high == pytest.approx(3.8415 / 7.8415, abs=1e-4)
    assert any("up to 49%" in reason for reason in finding.reasons)
    assert any("4 of the 4 that stop" in reason for reason in finding.reasons)


@pytest.mark.parametrize("steered", [REACHED, STOPPED])
def test_an_inversion_that_loses_natural_tokens_says_nothing(steered):
    wrong = TOKENS.copy()
    wrong[3] = 89
    for natural in (
        tried(wrong, True),
        tried(TOKENS, TOKENS[3] != TOKENS),
        tried(TOKENS, True, num=9),
    ):
        lost = prompt(steered.steered, natural, apart=FAR)
        finding = judged(lost, *[steered] * 3)
        assert finding.verdict is Verdict.UNINFORMATIVE
        assert "of 40 natural tokens came back" in finding.reasons[0]
        assert not finding.controls[0].holds
    assert judged(*[steered] * 4).verdict is not Verdict.UNINFORMATIVE


def test_one_natural_token_in_a_hundred_may_be_lost_and_two_may_not():
    wrong = TOKENS.copy()
    wrong[3] = 89
    lost = prompt(STOPPED.steered, tried(wrong, True), apart=FAR)
    finding = judged(lost, *[STOPPED] * 9)
    assert finding.verdict is Verdict.UNREACHED
    assert finding.details["natural"]["exact"] == 9
    assert finding.details["natural"]["recovered"]["value"] == pytest.approx(0.99)
    assert judged(lost, lost, *[STOPPED] * 8).verdict is Verdict.UNINFORMATIVE


def test_the_first_failure_ends_what_counts_as_recovered():
    accepted = np.ones(LENGTH, bool)
    accepted[[4, 6]] = False
    finding = judged(*[prompt(tried(OTHERS, accepted))] * 3, STOPPED)
    assert finding.details["steered"]["first_failure"] == [4, 4, 4, 0]
    assert finding.estimate.value == pytest.approx((3 * 0.4 + 0) / 4)
    record = finding.details["sequences"][0]["steered"]
    assert record["first_failure"] == 4
    assert record["accepted"] == accepted.tolist()
    assert record["second"][:5] == [None] * 4 + [2 * FAR]
    assert record["recovered"][0] == "<60>"


def test_a_search_that_stopped_has_no_text_to_compare():
    assert judged(STOPPED).details["steered"]["same_text"] is None
    went_on = [prompt(tried(tokens, False)) for tokens in (TOKENS, OTHERS)]
    finding = judged(*went_on, STOPPED)
    assert finding.verdict is Verdict.UNREACHED
    assert finding.details["steered"]["same_text"] == 0.5


def test_steps_that_are_accepted_as_their_own_text_are_none():
    finding = judged(*[UNMOVED] * 4)
    assert finding.verdict is Verdict.UNINFORMATIVE
    assert finding.estimate is None
    some = judged(*[UNMOVED] * 4, *[REACHED] * 2)
    assert some.verdict is Verdict.REACHABLE
    assert some.details["steered"]["num"] == 2
    assert some.details["steered"]["first_failure"] == [None] * 6
    assert any("4 of 6 prompts are left out" in reason for reason in some.reasons)


TWINNED = np.where(TOKENS[3] == TOKENS, 89, TOKENS)
"""The text, with another token in one place."""


def twinned(tokens, *, step: float = 0.0, apart: float = 0.0) -> Inverted:
    """A prompt whose natural states give `TWINNED`, and its steered ones these."""
    return prompt(tried(tokens, True), tried(TWINNED, True), step=step, apart=apart)


@pytest.mark.parametrize("step", [0.0, NEAR, 2 * TOLERANCE])
@pytest.mark.parametrize("tokens", [TOKENS, TWINNED, OTHERS])
def test_no_step_reaches_nothing_whatever_text_is_accepted_for_it(tokens, step):
    still = twinned(tokens, step=step)
    # Accepted everywhere, as a text: what else would be called reached.
    assert still.steered.reached(LENGTH)
    finding = judged(*[still] * 4)
    assert finding.verdict is Verdict.UNINFORMATIVE
    assert finding.details["steered"]["num"] == 0
    assert finding.details["steered"]["first_failure"] == [None] * 4
    one_place = dataclasses.replace(still, step=np.where(TOKENS == 25, FAR, step))
    moved = judged(*[one_place] * 4)
    assert (moved.verdict is Verdict.REACHABLE) == (tokens is OTHERS)


@pytest.mark.parametrize("tokens", [TOKENS, TWINNED])
def test_a_step_accepted_as_what_natural_states_gave_is_none(tokens):
    finding = judged(*[twinned(tokens, step=FAR)] * 4, STOPPED)
    assert finding.verdict is Verdict.UNREACHED
    assert finding.details["steered"]["num"] == 1
    assert any("4 of 5 prompts are left out" in one for one in finding.reasons)


def test_a_step_that_is_none_and_is_not_accepted_is_no_failure_either():
    between = prompt(STOPPED.steered, step=1.5 * TOLERANCE)
    assert judged(*[between] * 4).verdict is Verdict.UNINFORMATIVE
    some = judged(*[between] * 4, REACHED)
    assert some.details["steered"]["first_failure"] == [None] * 5
    assert judged(*[STOPPED] * 4).details["steered"]["first_failure"] == [0] * 4


def test_a_twin_is_a_collision_and_another_token_is_a_loss():
    """One token of ten, at each prompt: far more than may be lost."""
    twins = judged(*[twinned(OTHERS, step=FAR)] * 4)
    assert twins.verdict is Verdict.REACHABLE
    assert twins.controls[0].holds
    natural = twins.details["natural"]
    assert natural["recovered"]["value"] == 1
    assert natural["exact"] == 4
    assert twins.details["published"]["natural_exact"] == 1
    assert twins.details["collisions"] == [
        [f"<{23 + k}>", f"<{89 + k}>"] for k in range(4)
    ]
    assert any("Collisions" in r and "'<23>' and '<89>'" in r for r in twins.reasons)
    wrong = judged(*[twinned(OTHERS, step=FAR, apart=NEAR)] * 4)
    assert wrong.verdict is Verdict.UNINFORMATIVE
    assert not wrong.controls[0].holds
    assert wrong.details["collisions"] == []
    assert wrong.details["published"]["natural_exact"] == 0
    assert "36 of 40 natural tokens came back" in wrong.reasons[0]
    assert "4 of the natural states were accepted as another" in wrong.reasons[1]


def test_a_wrong_natural_token_says_that_the_tolerance_is_wide_there():
    right = judged(*[REACHED] * 10)
    lost = judged(twinned(OTHERS, step=FAR, apart=FAR), *[REACHED] * 9)
    # One in a hundred may be lost: what is said stays, and what it is worth is told.
    assert right.verdict is lost.verdict is Verdict.REACHABLE
    told = [
        any("may be accepted for no" in r for r in f.reasons) for f in (right, lost)
    ]
    assert told == [False, True]


def test_prompts_of_the_same_tokens_are_one():
    coinciding, apart = said(*[STOPPED] * 10), judged(*[STOPPED] * 10)
    assert coinciding.verdict is apart.verdict is Verdict.UNREACHED
    assert (coinciding.num_prompts, apart.num_prompts) == (1, 10)
    # Wilson: z^2 / (n + z^2).
    for finding, num in [(coinciding, 1), (apart, 10)]:
        most = 3.8415 / (num + 3.8415)
        assert any(f"up to {most:.0%} may" in one for one in finding.reasons)
        assert finding.estimate.high == pytest.approx(most, abs=1e-4)
        assert len(finding.details["sequences"]) == num
        assert finding.details["natural"]["num"] == num
    assert any("the 10 prompts are 1 different" in one for one in coinciding.reasons)
    assert not any("different sequences" in one for one in apart.reasons)


def test_what_is_reached_is_borne_out_by_so_many_prompts_and_no_more():
    text = " ".join(judged(*[REACHED] * 4).reasons)
    assert f"{4 / (4 + 3.8415):.0%} at least have one" in text


def test_only_of_addition_is_it_said_that_nearly_all_strengths_lead_to_no_text():
    added, ablated = (
        said(*different([STOPPED] * 4), steering=steering)
        for steering in ("addition", "ablation")
    )
    (told,) = [one for one in added.reasons if "strengths" in one]
    assert told.startswith("In exact arithmetic, and read where it is added")
    assert not any("strengths" in one for one in ablated.reasons)
    assert [f.details["steering"] for f in (added, ablated)] == ["addition", "ablation"]


def test_a_run_with_twins_in_its_prompts_reaches_nothing_by_no_step(tmp_path):
    lm = ground_truth.duplicate_embedding()
    twins = [lm.tokenizer.decode([token]) for token in ground_truth.TWINS]
    starts = Path(prompt_file(tmp_path)).read_text().splitlines()
    lines = [f"{start}{twins[k % 2]}ta" for k, start in enumerate(starts)]
    (tmp_path / "twins.txt").write_text("\n".join(lines))
    options = SMALL | {"audits": "inversion", "prompts": str(tmp_path / "twins.txt")}
    # In float64, whose rounding moves a state by more.
    v = drawn(length=1e-16)
    run = audit(lm, v, out=tmp_path / "run", **options | {"reach_tokens": 8})
    found = run.findings["inversion"]
    # The effect is there: a natural state came back as the other token, and steered
    # ones were all accepted.
    assert found.details["collisions"] == [twins]
    assert all(all(s["steered"]["accepted"]) for s in found.details["sequences"])
    assert found.details["natural"]["exact"] == found.details["natural"]["num"] == 2
    assert found.controls[0].holds
    assert found.verdict is Verdict.UNINFORMATIVE


def test_the_published_bound_is_emulated_on_the_same_distances():
    """In half precision two compute paths differ by more than 1e-5."""
    distance = np.full(LENGTH, 1e-2)
    distance[:3] = 1e-7
    coarse = prompt(STOPPED.steered, tried(TOKENS, True, distance=distance))
    fine = REACHED
    found = judged(coarse, fine).details
    assert found["natural"]["exact"] == 2
    assert found["published"] == {
        "tolerance": 1e-5,
        "natural": pytest.approx(13 / 20),
        "steered": pytest.approx(10 / 20),
        "natural_exact": 0.5,
    }


def test_a_search_that_did_not_try_all_tokens_is_said_to_be_one():
    assert not any("were tried" in one for one in judged(STOPPED).reasons)
    some = dataclasses.replace(STOPPED.steered, tested=np.array([30]))
    assert any("30 of 100" in one for one in judged(prompt(some)).reasons)


def test_the_search_reports_how_much_of_the_vocabulary_it_looked_at():
    assert judged(STOPPED).details["natural"]["tested"] == pytest.approx(0.16)


def test_the_interval_covers_over_prompts():
    """Prompts stop at places of their own, each with a known mean share."""
    num, hits = 100, 0
    decode = dict.fromkeys(range(VOCABULARY), "")
    for seed in range(num):
        rng = np.random.default_rng(seed)
        found = []
        for place in rng.integers(0, LENGTH, 8):
            accepted = np.arange(LENGTH) < place
            found.append(prompt(tried(OTHERS, accepted)))
        found = different(found)
        seen = inversion(found, decode=decode, d_vocab=VOCABULARY).estimate
        hits += seen.low <= 0.45 <= seen.high
    assert hits / num >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / num)


def test_no_prompt_is_an_error():
    with pytest.raises(ValueError, match="same prompts"):
        judged()
