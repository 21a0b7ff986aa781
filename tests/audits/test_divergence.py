"""T4 says what the nats say, never more; its certificate bounds every score."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tables import divergences

from steergauge.audits.divergence import (
    MINIMUM_PROMPTS,
    RELATIVE_BUDGET,
    certificate,
    divergence,
    tokens_to_detect,
)
from steergauge.audits.finding import Verdict
from steergauge.statistics import Estimate

FLOOR = 1e-6
POSITIVE = st.floats(1e-3, 1.0)


def compare(means, *, floor=FLOOR, score_gap=None, budget=RELATIVE_BUDGET, **sizes):
    return divergence(
        divergences(means, **sizes),
        "other",
        subject="other",
        floor=floor,
        tokens=32.0,
        num_samples=4,
        score_gap=score_gap,
        budget=budget,
    )


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (1e-3, Verdict.EQUIVALENT),
        (1.0, Verdict.DIFFERENT),
        (2.0, Verdict.DIFFERENT),
        (RELATIVE_BUDGET, Verdict.INCONCLUSIVE),
    ],
)
def test_planted_divergences_get_their_verdict(other, expected):
    found = [
        compare({"unsteered": 1.0, "other": other}, seed=seed).verdict
        for seed in range(20)
    ]
    assert found == [expected] * 20


@pytest.mark.parametrize("verdict", [Verdict.EQUIVALENT, Verdict.DIFFERENT])
def test_at_the_budget_neither_claim_is_made_more_often_than_its_level(verdict):
    num = 200
    means = {"unsteered": 1.0, "other": RELATIVE_BUDGET}
    found = [compare(means, seed=seed).verdict for seed in range(num)]
    # Both ends of two 95 % intervals must agree: at most 2.5 %; three binomial sd.
    assert found.count(verdict) / num <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / num)


@pytest.mark.parametrize("other", [0.0, 1e-7, 1.0])
def test_a_vector_at_the_floor_is_uninformative_whatever_it_is_compared_with(other):
    above = compare({"unsteered": 100 * FLOOR, "other": other})
    assert above.verdict is not Verdict.UNINFORMATIVE
    found = compare({"unsteered": 5 * FLOOR, "other": other})
    assert found.verdict is Verdict.UNINFORMATIVE
    assert f"{found.details['effect'][0]:.2g}" in found.reasons[0]
    assert f"{FLOOR:.2g}" in found.reasons[0]


def test_a_budget_below_the_floor_is_uninformative():
    # v's effect can be told from the floor, 5 % of it cannot.
    found = compare({"unsteered": 15 * FLOOR, "other": 0.0})
    assert found.verdict is Verdict.UNINFORMATIVE
    assert "The budget, 5%" in found.reasons[0]
    assert compare({"unsteered": 40 * FLOOR, "other": 0.0}).verdict is (
        Verdict.EQUIVALENT
    )


def test_one_prompt_fewer_than_50_is_never_equivalent():
    means = {"unsteered": 1.0, "other": 1e-4}
    few = compare(means, num_prompts=MINIMUM_PROMPTS - 1)
    enough = compare(means, num_prompts=MINIMUM_PROMPTS)
    assert (few.verdict, enough.verdict) == (
        Verdict.INCONCLUSIVE,
        Verdict.EQUIVALENT,
    )
    assert "49 prompts" in few.reasons[-1]
    assert MINIMUM_PROMPTS == 50


def test_few_prompts_do_not_hide_a_difference():
    found = compare({"unsteered": 1.0, "other": 1.0}, num_prompts=10)
    assert found.verdict is Verdict.DIFFERENT


def test_the_budget_is_the_one_that_was_set():
    means = {"unsteered": 1.0, "other": 0.2}
    assert compare(means, budget=0.05).verdict is Verdict.DIFFERENT
    assert compare(means, budget=0.5).verdict is Verdict.EQUIVALENT


def test_the_reasons_and_the_details_hold_the_numbers():
    found = compare({"unsteered": 1.0, "other": 1e-3})
    seen, effect = found.estimate, found.details["effect"]
    for number in (seen.value, seen.low, seen.high, *effect):
        assert f"{number:.3g}" in found.reasons[0]
    assert f"{found.details['relative']:.1%}" in found.reasons[0]
    assert f"{certificate(seen.high):.3f}" in found.reasons[1]
    assert found.details["certificate"] == certificate(seen.high)
    assert found.details["tokens_to_detect"] == pytest.approx(
        math.log(20) * 32 / seen.value
    )


def test_controls_with_known_answers_hold_and_do_not_hold():
    means = {
        "unsteered": 1.0,
        "other": 1e-3,
        "minus_v": 4.0,
        "random": [1.0] * 5,
        "other_trait": [1e-3, 1e-3],
    }
    found = compare(means)
    assert {c.name: c.holds for c in found.controls} == {
        "v": True,
        "minus_v": True,
        "random": True,
        # Another trait's vector that writes what v writes is worth a warning.
        "other_trait": False,
    }


def test_a_score_that_differs_more_than_the_certificate_allows_is_a_fault():
    means = {"unsteered": 1.0, "other": 1e-3}
    bound = compare(means).details["certificate"]
    for low, high, holds in (
        (0.9 * bound, 0.95 * bound, True),
        (-0.95 * bound, -0.9 * bound, True),
        (-2.0, 2.0, True),
        (1.1 * bound, 1.2 * bound, False),
        (-1.2 * bound, -1.1 * bound, False),
    ):
        gap = Estimate((low + high) / 2, low, high)
        found = compare(means, score_gap=gap)
        assert {c.name: c.holds for c in found.controls}["certificate"] is holds


@given(nats=st.floats(0, 50))
def test_the_certificate_is_the_smaller_of_pinsker_and_bretagnolle_huber(nats):
    pinsker, huber = math.sqrt(nats / 2), math.sqrt(1 - math.exp(-nats))
    assert certificate(nats) == pytest.approx(min(pinsker, huber), abs=1e-12)
    assert certificate(-nats) == 0.0
    assert certificate(nats) <= 1


def test_each_of_the_two_bounds_is_the_smaller_one_somewhere():
    assert certificate(0.1) == math.sqrt(0.05)
    assert certificate(3.0) == math.sqrt(1 - math.exp(-3))


@given(
    weights=st.lists(st.tuples(POSITIVE, POSITIVE, st.floats(0, 1)), min_size=2),
    sharpness=st.floats(1, 6),
)
def test_no_score_of_two_distributions_differs_by_more_than_the_certificate(
    weights, sharpness
):
    p, q, score = np.array(weights).T
    p, q = p**sharpness / (p**sharpness).sum(), q / q.sum()
    nats = float((p * np.log(p / q)).sum())
    bound = certificate(nats)
    # Rounding of a sum of logarithms.
    assert abs(((p - q) * score).sum()) <= bound + 1e-7
    # The worst score of all is the total variation distance.
    assert ((p > q) * (p - q)).sum() <= bound + 1e-7


def test_the_certificate_is_nearly_reached_by_a_small_difference():
    p = np.array([0.5 + 1e-3, 0.5 - 1e-3])
    nats = float((p * np.log(p / 0.5)).sum())
    # Pinsker is tight at 1/2: a looser bound would still be true, and useless.
    assert certificate(nats) == pytest.approx(1e-3, rel=1e-3)


@given(nats=st.floats(1e-8, 10), tokens=st.floats(1, 100))
def test_tokens_to_detect_are_those_of_stein(nats, tokens):
    num = tokens_to_detect(nats, tokens)
    # The best test's error falls as exp(-tokens x KL a token): 5 % is left.
    assert math.exp(-num * nats / tokens) == pytest.approx(0.05)


def test_what_does_not_differ_is_never_detected():
    assert tokens_to_detect(0.0, 32.0) is None
    assert tokens_to_detect(1.0, 0.0) is None
