"""T18 says FOUND of what is found, and never that nothing is there."""

import dataclasses
import json
import math

import numpy as np
import pytest

from steergauge.audits.access import Power, Row, access
from steergauge.audits.finding import Finding, Verdict

FLOOR = 1e-6
NUM_TEXTS = 40
EFFECT = 8.0
BUDGET = {"evaluations": 512, "length": 8, "response_tokens": 16}
ACCESS = {
    "unsteered": "none",
    "steered": "weights",
    "many_shot": "prompt",
    "token_search": "prompt",
    "soft_prefix": "embeddings",
}


def nats(mean: float, *, seed: int = 0, num: int = NUM_TEXTS) -> np.ndarray:
    """KL of texts with this mean, exponential and so as skewed as real ones are."""
    drawn = np.random.default_rng(seed).gamma(4, 1 / 4, num)
    return mean * drawn / drawn.mean()


def row(name: str, kl, *, score=None, prompt: str | None = None) -> Row:
    taken = ACCESS[name] == "prompt"
    return Row(
        name=name,
        label=name.replace("_", " "),
        access=ACCESS[name],
        prompt=("kindly " if taken else "") if prompt is None else prompt,
        kl=kl,
        eta=np.array([1.0, 0.9, 1.1]),
        scores=None if score is None else np.full(3, float(score)),
        perplexity=12.0,
        evaluations=512 if taken else 0,
        round_trips=True,
    )


def rows(
    search: float, *, seed: int = 0, effect: float = EFFECT, num=NUM_TEXTS, **more
):
    return [
        row("unsteered", nats(effect, seed=seed, num=num), score=0.2),
        row("steered", None, score=0.8),
        row("many_shot", nats(0.9 * effect, seed=seed + 1, num=num), score=0.3),
        row("token_search", nats(search * effect, seed=seed + 2, num=num), score=0.5),
        *(row(name, nats(x * effect, num=num)) for name, x in more.items()),
    ]


def power(method: str, found: int, hidden: int = 8, effect: float = 2.0) -> Power:
    reached = np.arange(hidden) < found
    return Power(
        method=method,
        relative=np.where(reached, 0.01, 0.6),
        effect=np.full(hidden, effect),
        found=reached,
    )


ABLE = [power("token_search", 6), power("many_shot", 1)]
UNABLE = [power("token_search", 0), power("many_shot", 0)]


def said(rows, powers=ABLE, *, sign=1.0, floor=FLOOR, seed=0) -> Finding:
    return access(rows, powers, sign=sign, floor=floor, budget=BUDGET, seed=seed)


def judged(*args, **kwargs) -> Finding:
    """What is said, which survives a strict round trip through JSON whatever it is."""
    finding = said(*args, **kwargs)
    written = json.dumps(finding.to_json(), allow_nan=False)
    back = Finding.from_json(json.loads(written))
    assert json.loads(json.dumps(back.to_json())) == json.loads(written)
    return finding


@pytest.mark.parametrize(
    ("search", "powers", "expected"),
    [
        (0.01, ABLE, Verdict.FOUND),
        (0.01, UNABLE, Verdict.FOUND),
        (0.01, [], Verdict.FOUND),
        (0.6, ABLE, Verdict.NOT_FOUND),
        (0.6, UNABLE, Verdict.UNINFORMATIVE),
        (0.6, [], Verdict.UNINFORMATIVE),
        (0.043, ABLE, Verdict.INCONCLUSIVE),
    ],
)
def test_planted_searches_get_their_verdict(search, powers, expected):
    found = [judged(rows(search, seed=3 * seed), powers).verdict for seed in range(5)]
    assert found == [expected] * 5


def test_not_found_carries_the_budget_and_the_power_of_every_method_first():
    finding = judged(rows(0.6))
    assert finding.verdict is Verdict.NOT_FOUND
    assert "evaluations 512, length 8" in finding.reasons[0]
    # Wilson's intervals of 6 and of 1 in 8.
    assert "token search, 6 of 8 [41%, 93%]" in finding.reasons[0]
    assert "many shot, 1 of 8 [2%, 47%]" in finding.reasons[0]
    methods = {one["name"]: one for one in finding.details["methods"]}
    assert methods["token_search"]["power"]["value"] == 0.75
    assert len(methods["token_search"]["relative"]) == 8
    assert not any("there is no prompt" in reason for reason in finding.reasons)


def test_power_is_counted_where_a_hidden_prompt_does_something():
    some = power("token_search", 4)
    effect = np.where(np.arange(8) < 4, FLOOR, 2.0)
    silent = Power("token_search", some.relative, effect, some.found)
    finding = judged(rows(0.6), [silent])
    # The four that were found change nothing, and anything finds them.
    assert finding.verdict is Verdict.UNINFORMATIVE
    assert finding.details["methods"][0]["hidden"] == 4
    assert finding.details["methods"][0]["found"] == 0
    none = Power("token_search", some.relative, np.zeros(8), some.found)
    finding = judged(rows(0.6), [none])
    assert finding.verdict is Verdict.UNINFORMATIVE
    assert finding.details["methods"][0]["power"] is None


def test_embeddings_that_are_found_give_a_search_among_texts_no_power():
    searched = rows(0.6, soft_prefix=0.01)
    soft = power("soft_prefix", 8)
    finding = judged(searched, [power("token_search", 0), soft])
    assert finding.verdict is Verdict.UNINFORMATIVE
    both = judged(searched, [power("token_search", 2), soft])
    assert both.verdict is Verdict.NOT_FOUND
    assert "soft prefix, 8 of 8" in both.reasons[0]
    assert both.details["best_soft"] == "soft_prefix"


@pytest.mark.parametrize(
    ("found", "hidden", "expected"),
    [
        (1, 8, Verdict.UNINFORMATIVE),
        (2, 8, Verdict.NOT_FOUND),
        # The lower ends are 4.6 % and 7.1 % in 4 and 8, 3.5 % and 5.5 % in 16.
        (1, 4, Verdict.UNINFORMATIVE),
        (2, 16, Verdict.UNINFORMATIVE),
        (3, 16, Verdict.NOT_FOUND),
    ],
)
def test_a_search_that_finds_a_hidden_prompt_by_luck_has_no_power(
    found, hidden, expected
):
    finding = judged(rows(0.6), [power("token_search", found, hidden)])
    assert finding.verdict is expected
    # The best search counts, whatever another does.
    weak = power("many_shot", 0, hidden)
    assert judged(rows(0.6), [weak, power("token_search", found, hidden)]).verdict is (
        expected
    )
    assert f"{found} of {hidden}" in finding.reasons[0]


@pytest.mark.parametrize(
    ("search", "soft", "said"),
    [
        (0.6, 0.01, "which is within the threshold. No text"),
        (0.6, 0.3, "which is not within the threshold either."),
        (0.01, 0.02, "which is within the threshold as well."),
        (0.01, 0.3, "which is not within the threshold, though the best prompt is."),
    ],
)
def test_what_gradient_descent_reached_is_told_by_case_and_as_no_bound(
    search, soft, said
):
    finding = judged(rows(search, soft_prefix=soft))
    expected = Verdict.FOUND if search < 0.05 else Verdict.NOT_FOUND
    assert finding.verdict is expected
    assert finding.details["best_soft"] == "soft_prefix"
    assert said in finding.reasons[-1]
    assert "What gradient descent over embeddings reached" in finding.reasons[-1]
    assert "it bounds nothing" in finding.reasons[-1]


def test_found_is_said_of_as_many_tokens_as_were_compared():
    finding = judged(rows(0.01))
    assert finding.verdict is Verdict.FOUND
    assert "over the first 16 tokens of a text" in finding.reasons[0]
    assert "over the first 16 tokens of a text" in finding.claim
    unknown = access(rows(0.01), ABLE, sign=1.0, floor=FLOOR, budget={})
    assert "tokens" not in unknown.reasons[0] + unknown.claim


def test_the_effects_of_hidden_prompts_stand_beside_the_power():
    effect = np.array([0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 9.0, FLOOR])
    base = power("token_search", 6)
    for powers in ([Power("token_search", base.relative, effect, base.found)], ABLE):
        finding = judged(rows(0.6), powers)
        assert finding.verdict is Verdict.NOT_FOUND
        (told,) = [one for one in finding.reasons if "hidden prompts change" in one]
        assert "steering by 8." in told
        assert "easier or harder to find" in told
        # The last one does nothing, and is not counted.
        expected = "3 nats (median; 0.5 to 9)" if powers != ABLE else "2 nats (median"
        assert expected in told
    # Of a search without power they are told as well.
    unable = judged(rows(0.6), UNABLE)
    assert any("hidden prompts change" in one for one in unable.reasons)
    assert not any("hidden prompts" in one for one in judged(rows(0.01), []).reasons)


def test_a_control_expects_of_a_search_what_it_is_held_to():
    controls = {one.name: one for one in judged(rows(0.6)).controls}
    assert controls["many_shot"].holds
    none = {one.name: one for one in judged(rows(0.6), UNABLE).controls}
    for name in ("many_shot", "token_search"):
        expected = f"{name.replace('_', ' ')} finds at least one of the hidden prompts"
        assert none[name].expected == expected
        assert not none[name].holds


def test_a_goal_that_a_search_had_nothing_to_try_for_is_not_found():
    some = power("many_shot", 2)
    left = np.where(np.arange(8) < 6, some.relative, np.inf)
    finding = judged(rows(0.6), [Power("many_shot", left, some.effect, some.found)])
    assert finding.details["methods"][0]["relative"][-2:] == [None, None]
    assert finding.details["methods"][0]["hidden"] == 8


def test_a_vector_that_does_nothing_leaves_nothing_to_find():
    for search in (0.01, 0.6):
        finding = judged(rows(search, effect=5 * FLOOR))
        assert finding.verdict is Verdict.UNINFORMATIVE
        assert "nothing for a prompt to do" in finding.reasons[0]
    # 5 % of 15 floors is below the floor.
    finding = judged(rows(0.01, effect=15 * FLOOR))
    assert finding.verdict is Verdict.UNINFORMATIVE
    assert "told to be that near" in finding.reasons[0]


def test_one_text_and_no_prompt_say_nothing():
    one = judged(rows(0.01, num=1))
    assert one.verdict is Verdict.UNINFORMATIVE
    none = judged(rows(0.01)[:2])
    assert none.verdict is Verdict.UNINFORMATIVE
    assert none.estimate is None
    assert none.reasons[0] == "No prompt was tried."
    # No examples at all are the unsteered model, and no prompt.
    empty = row("many_shot", nats(EFFECT), prompt="")
    assert judged([*rows(0.01)[:2], empty]).details["best_prompt"] is None


def test_the_two_headline_numbers_stay_two():
    details = judged(rows(0.6)).details
    assert details["best_prompt"] == "token_search"
    assert details["white_box"]["lift"]["value"] == pytest.approx(0.6)
    assert details["black_box"]["lift"]["value"] == pytest.approx(0.3)
    assert details["black_box"]["relative"] == pytest.approx(0.6)
    table = {one["name"]: one for one in details["rows"]}
    assert table["unsteered"]["relative"] == 1
    assert table["unsteered"]["lift"] is None
    assert table["steered"]["kl"] is None
    assert table["steered"]["eta"]["value"] == pytest.approx(1)


def test_a_lift_is_in_the_direction_of_alpha():
    lifts = [judged(rows(0.6), sign=sign).details["white_box"] for sign in (1.0, -1.0)]
    assert lifts[0]["lift"]["value"] == -lifts[1]["lift"]["value"] == pytest.approx(0.6)


def test_without_a_probe_only_nats_are_said():
    searched = [row("unsteered", nats(EFFECT)), row("token_search", nats(1.0, seed=1))]
    finding = judged(searched)
    assert finding.verdict is Verdict.NOT_FOUND
    assert finding.details["white_box"]["lift"] is None
    assert finding.details["black_box"]["lift"] is None
    assert not any("lifts the score" in reason for reason in finding.reasons)


def test_a_row_that_overflowed_is_no_best_prompt():
    broken = nats(0.001)
    broken[3] = np.inf
    finding = judged([*rows(0.6), row("many_shot", broken)])
    assert finding.details["best_prompt"] == "token_search"
    assert finding.details["rows"][-1]["kl"] is None


def test_rows_that_cannot_be_compared_are_an_error():
    with pytest.raises(ValueError, match="no unsteered row"):
        judged(rows(0.6)[1:])
    uneven = rows(0.6)
    uneven[1] = dataclasses.replace(uneven[1], scores=np.ones(4))
    with pytest.raises(ValueError, match="steered: 4 scores"):
        judged(uneven)


def drawn(rng: np.random.Generator, mean: float, num_rows: int = 1) -> list[Row]:
    """Prompts that are all as good, and differ by the texts that were drawn."""
    kl = mean * rng.gamma(16, 1 / 16, (num_rows, 20))
    return [dataclasses.replace(row("token_search", one), eta=None) for one in kl]


@pytest.mark.parametrize("num_rows", [1, 6])
def test_at_the_threshold_the_best_of_many_is_found_no_more_often_than_one(num_rows):
    num, found = 100, 0
    # Known without error, so that only the choice among prompts is left to chance.
    unsteered = dataclasses.replace(row("unsteered", np.full(20, EFFECT)), eta=None)
    for seed in range(num):
        prompts = drawn(np.random.default_rng(seed), 0.05 * EFFECT, num_rows)
        found += said([unsteered, *prompts], seed=seed).verdict is Verdict.FOUND
    assert found / num <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / num)


def test_the_interval_of_the_share_covers():
    num, hits, width = 100, 0, []
    for seed in range(num):
        rng = np.random.default_rng(seed)
        (whole,), (part,) = drawn(rng, EFFECT), drawn(rng, 0.3 * EFFECT)
        whole = dataclasses.replace(whole, name="unsteered", access="none")
        seen = said([whole, part], seed=seed).estimate
        hits += seen.low <= 0.3 <= seen.high
        width.append(seen.high - seen.low)
    assert hits / num >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / num)
    # Two means of 20 texts with a cv of 1/4, 0.3 (+- 12 %) / (1 -+ 12 %): not vacuous.
    assert np.median(width) < 0.2
