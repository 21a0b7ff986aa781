"""T17 says what planted inversions are, and nothing where natural texts are lost."""

import dataclasses
import json
import math

import numpy as np
import pytest

from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.inversion import Inverted, Tried, inversion

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


def prompt(steered: Tried, natural: Tried | None = None) -> Inverted:
    return Inverted(
        prompt="say it",
        tokens=tuple("abcdefghij"),
        token_ids=TOKENS,
        natural=tried(TOKENS, True) if natural is None else natural,
        steered=steered,
    )


REACHED = prompt(tried(OTHERS, True))
STOPPED = prompt(tried(TOKENS, False, num=1))
UNMOVED = prompt(tried(TOKENS, True))


def judged(*found: Inverted) -> Finding:
    finding = inversion(
        found, decode={i: f"<{i}>" for i in range(VOCABULARY)}, d_vocab=VOCABULARY
    )
    # Every finding survives a strict round trip through JSON, whatever it says.
    written = json.dumps(finding.to_json(), allow_nan=False)
    back = Finding.from_json(json.loads(written))
    assert json.loads(json.dumps(back.to_json())) == json.loads(written)
    return finding


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
    wrong[3] = 99
    for natural in (
        tried(wrong, True),
        tried(TOKENS, TOKENS[3] != TOKENS),
        tried(TOKENS, True, num=9),
    ):
        finding = judged(prompt(steered.steered, natural), *[steered] * 3)
        assert finding.verdict is Verdict.UNINFORMATIVE
        assert "of 40 natural tokens came back" in finding.reasons[0]
        assert not finding.controls[0].holds
    assert judged(*[steered] * 4).verdict is not Verdict.UNINFORMATIVE


def test_one_natural_token_in_a_hundred_may_be_lost_and_two_may_not():
    wrong = TOKENS.copy()
    wrong[3] = 99
    lost = prompt(STOPPED.steered, tried(wrong, True))
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
        seen = inversion(found, decode=decode, d_vocab=VOCABULARY).estimate
        hits += seen.low <= 0.45 <= seen.high
    assert hits / num >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / num)


def test_no_prompt_is_an_error():
    with pytest.raises(ValueError, match="same prompts"):
        judged()
