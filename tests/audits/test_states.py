"""T16 says of planted states what they are, and nothing where it could not tell."""

import dataclasses
import json
import math
from collections import defaultdict

import numpy as np
import pytest

from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.states import Searched, states

NOISE, TOLERANCE, STEP = 1e-7, 1e-6, 1.0
BINS = 6
NUM_RANDOM, NUM_OTHERS = 20, 10
FLOOR = 1e-9
WIDTH = 8
TARGETS = (
    "natural",
    "constructed",
    "v",
    *(f"random[{k}]" for k in range(NUM_RANDOM)),
    *(f"sign_flip[{k}]" for k in range(NUM_OTHERS)),
    *(f"other_pair[{k}]" for k in range(NUM_OTHERS)),
)
V = TARGETS.index("v")
VOCABULARY = 40
OTHER = 7
"""A token that no prompt has."""


class Words(dict):
    """Every token has a text."""

    def __missing__(self, token):
        assert token >= 0
        return f"<{token}>"


def world(rng: np.random.Generator, *, end, num: int = 5) -> Searched:
    """One prompt in a random vocabulary of states; `end(h, all states)` is steered.

    Distances are those of real points, so that no field contradicts another.
    """
    columns = defaultdict(list)
    for place in range(num):
        points = rng.normal(0, 5, (VOCABULARY, WIDTH))
        token = int(rng.integers(20, VOCABULARY))
        h = points[token] + NOISE * rng.normal(size=WIDTH) / math.sqrt(WIDTH)
        built = points[OTHER + 1] + NOISE / 2
        steered = end(h, points)
        length = float(np.linalg.norm(steered - h))
        drawn = rng.normal(size=(len(TARGETS) - 3, WIDTH))
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        ends = np.vstack([h, built, steered, h + length * drawn])
        away = np.linalg.norm(ends[:, None] - points, axis=-1)
        order = np.argsort(away, axis=1, kind="stable")
        sorted_away = np.take_along_axis(away, order, axis=1)
        steps = np.linalg.norm(ends - h, axis=1)
        edges = np.geomspace(1 / 8, 8, BINS - 1)
        inside = np.digitize(away[V] / max(length, 1e-300), edges)
        row = {
            "places": place,
            "token_ids": token,
            "tolerance": TOLERANCE,
            "norm": np.linalg.norm(h),
            "constructed": OTHER + 1,
            "first": order[:, 0],
            "second": order[:, 1],
            "aligned": np.where(steps > 0, order[:, 2], -1),
            "d1": sorted_away[:, 0],
            "d2": sorted_away[:, 1],
            "length": steps,
            "shorter": np.full(len(TARGETS), 0.25),
            "cosine": np.where(steps > 0, 0.5, np.nan),
            "histogram": np.bincount(inside, minlength=BINS),
            "kl_none": 0.5,
            "kl_least": 0.2,
            "kl_token": OTHER,
        }
        for name, value in row.items():
            columns[name].append(value)
    arrays = {name: np.array(values) for name, values in columns.items()}
    return Searched(prompt="say it", tokens=tuple("abcdefgh"[:num]), **arrays)


def worlds(end, *, prompts: int = 8, seed: int = 0, **kwargs) -> list[Searched]:
    rng = np.random.default_rng(seed)
    return [world(rng, end=end, **kwargs) for _ in range(prompts)]


def along(direction: np.ndarray, length: float = STEP):
    return lambda h, points: h + length * direction / np.linalg.norm(direction)


def to_another(h, points):
    """Where another token's state is."""
    return points[OTHER] + NOISE


def near_another(h, points):
    """A tenth of the way short of it."""
    return h + 0.9 * (points[OTHER] - h)


def half_way(h, points):
    """A little nearer to another token than to its own, and far from both."""
    return h + 0.55 * (points[OTHER] - h)


def said(searched, *, targets=TARGETS, floor_kl=FLOOR, read_layer=3) -> Finding:
    return states(
        searched,
        targets,
        decode=Words({OTHER: "seven"}),
        d_vocab=VOCABULARY,
        num_kl=VOCABULARY,
        floor_kl=floor_kl,
        edges=np.geomspace(1 / 8, 8, BINS + 1).tolist(),
        layer=3,
        read_layer=read_layer,
    )


def judged(searched, **kwargs) -> Finding:
    """What is said, which survives a strict round trip through JSON whatever it is."""
    finding = said(searched, **kwargs)
    written = json.dumps(finding.to_json(), allow_nan=False)
    back = Finding.from_json(json.loads(written))
    assert json.loads(json.dumps(back.to_json())) == json.loads(written)
    return finding


def changed(searched, **changes) -> list[Searched]:
    """The same with fields made anew from the old by functions."""
    return [
        dataclasses.replace(
            one, **{k: make(getattr(one, k).copy()) for k, make in changes.items()}
        )
        for one in searched
    ]


def at(column: int | slice, value, rows=slice(None)):
    """A function that sets a target's column."""

    def make(array):
        array[rows, column] = value
        return array

    return make


RIGHT = np.eye(WIDTH)[0]


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (to_another, Verdict.REACHABLE),
        (near_another, Verdict.EPSILON_CLOSE),
        (along(RIGHT), Verdict.ORIGIN_NEAREST),
        (half_way, Verdict.UNREACHED),
    ],
)
def test_planted_ends_get_their_verdict_at_every_seed(end, expected):
    found = [judged(worlds(end, seed=seed)) for seed in range(5)]
    assert [finding.verdict for finding in found] == [expected] * 5
    # A vocabulary of 40 may have one near by, at a position or two.
    assert all(one.details["shares"][str(expected)] > 0.8 for one in found)
    assert all(control.holds for one in found for control in one.controls)


def test_a_reached_state_is_reported_with_its_token():
    positions = judged(worlds(to_another)).details["positions"]
    assert {one["nearest"] for one in positions} == {"seven"}
    assert all(one["d1"] <= one["tolerance"] < one["length"] for one in positions)


def test_eta_of_a_state_whose_origin_is_nearest_is_one():
    finding = judged(worlds(along(RIGHT)))
    # d_1 is measured from the candidate, the length from the natural state.
    assert finding.estimate.value == pytest.approx(1, abs=2 * NOISE / STEP)
    assert finding.details["nearest_is_original"]["value"] == 1
    text = " ".join(finding.reasons)
    assert "not reached" in text
    assert "any step has that is not 0" in text
    assert "Random steps of the same length have an eta of 1" in text


def test_what_no_output_sees_is_unreached_as_a_state_all_the_same():
    """GPT-2 and a constant: the norm takes the step away, and the state keeps it."""
    silent = changed(worlds(along(RIGHT)), kl_none=lambda kl: 0 * kl + FLOOR)
    finding = judged(silent)
    assert finding.verdict is Verdict.ORIGIN_NEAREST
    text = " ".join(finding.reasons)
    assert "cannot tell the steered state from the natural one" in text
    assert finding.details["kl"]["share"] is None
    # A step that the output sees gets no such sentence.
    loud = judged(worlds(along(RIGHT)))
    assert not any("cannot tell" in reason for reason in loud.reasons)
    assert loud.details["kl"]["share"] == pytest.approx(0.4)


@pytest.mark.parametrize("end", [to_another, near_another, along(RIGHT), half_way])
@pytest.mark.parametrize(
    ("column", "words"),
    [("natural", "natural states came back"), ("constructed", "that another token")],
)
def test_a_search_that_misses_what_is_there_says_nothing(end, column, words):
    searched = worlds(end)
    assert judged(searched).verdict is not Verdict.UNINFORMATIVE
    j = TARGETS.index(column)
    for broken in (
        changed(searched, d1=at(j, 3 * TOLERANCE, 0)),
        changed(searched, first=at(j, 5, 0)),
    ):
        finding = judged(broken)
        assert finding.verdict is Verdict.UNINFORMATIVE
        assert words in finding.reasons[0]
        assert not {c.name: c.holds for c in finding.controls}[column]


def test_one_natural_state_in_a_hundred_may_be_missed_and_two_may_not():
    searched = worlds(along(RIGHT), prompts=10, num=5) * 2
    assert sum(len(one.places) for one in searched) == 100
    for missed, expected in [
        (1, Verdict.ORIGIN_NEAREST),
        (2, Verdict.UNINFORMATIVE),
    ]:
        broken = changed(searched[:missed], d1=at(0, 3 * TOLERANCE, 0))
        assert judged(broken + searched[missed:]).verdict is expected


def twins(searched, other: int = 3) -> list[Searched]:
    """The same where the first token of each prompt has a twin with its state."""

    def second(tokens):
        tokens[0, 0] = other
        return tokens

    return changed(searched, second=second, d2=at(0, NOISE, 0))


def test_a_collision_is_reported_with_both_tokens_and_is_no_failure():
    searched = twins(worlds(along(RIGHT)))
    own = {int(one.token_ids[0]) for one in searched}
    finding = judged(searched)
    assert finding.verdict is Verdict.ORIGIN_NEAREST
    words = Words({OTHER: "seven"})
    pairs = sorted([3, token] for token in own)
    assert finding.details["collisions"] == [[words[a], words[b]] for a, b in pairs]
    assert finding.details["num_resolvable"] == 8 * 4
    assert any(
        "Collisions" in reason and "'<3>'" in reason for reason in finding.reasons
    )
    # Neither is one where the twin comes out first, naturally and steered.
    swapped = changed(searched, first=at(0, 3, 0))
    swapped = changed(swapped, first=at(V, 3, 0))
    assert judged(swapped).verdict is Verdict.ORIGIN_NEAREST
    assert judged(swapped).details["nearest_is_original"]["value"] == 1
    # Tokens that are 2 apart are no twins, and the wrong one of those is a failure.
    apart = changed(swapped, d2=at(0, 2.0, 0))
    assert judged(apart).verdict is Verdict.UNINFORMATIVE


def test_where_the_tolerance_spans_two_tokens_nothing_is_called_reached():
    searched = changed(worlds(to_another), d2=at(0, 1.5 * TOLERANCE))
    finding = judged(searched)
    assert finding.verdict is Verdict.UNINFORMATIVE
    assert finding.details["num_resolvable"] == 0
    assert not finding.details["collisions"]
    assert set(finding.details["shares"]) == {"UNINFORMATIVE"}
    # One such position is left out; what is missed there still counts against v.
    some = changed(worlds(to_another), d2=at(0, 1.5 * TOLERANCE, 0))
    assert judged(some).verdict is Verdict.REACHABLE
    missed = changed(some, d1=at(V, 0.5, 0))
    assert judged(missed).verdict is not Verdict.REACHABLE


def test_no_step_is_nothing_to_search_for():
    still = worlds(lambda h, points: h.copy())
    finding = judged(still)
    assert finding.verdict is Verdict.UNINFORMATIVE
    assert finding.estimate is None
    assert "no step" in finding.reasons[0]
    assert {one["eta"] for one in finding.details["positions"]} == {None}
    assert {one["aligned"] for one in finding.details["positions"]} == {""}
    # Within the tolerance the token it started from would do, and is no find.
    short = judged(worlds(along(RIGHT, 0.5 * TOLERANCE)))
    assert short.verdict is Verdict.UNINFORMATIVE
    assert short.details["num_steps"] == 0


def every(period: int, *, moved: int):
    """Another token's state at the first `moved` of every `period` positions."""
    calls = iter(range(10**6))

    def end(h, points):
        return to_another(h, points) if next(calls) % period < moved else h.copy()

    return end


def test_positions_that_are_not_steered_are_left_out():
    finding = judged(worlds(every(5, moved=4)))
    assert finding.verdict is Verdict.REACHABLE
    assert finding.details["shares"] == {"UNINFORMATIVE": 0.2, "REACHABLE": 0.8}
    assert any("8 of 40 positions are left out" in one for one in finding.reasons)


@pytest.mark.parametrize(
    ("prompts", "moved", "expected"),
    [
        # Of 160 positions, one.
        (32, (160, 1), Verdict.INCONCLUSIVE),
        (8, (5, 2), Verdict.INCONCLUSIVE),
        (8, (5, 3), Verdict.REACHABLE),
        # One half is enough.
        (8, (2, 1), Verdict.REACHABLE),
        (3, (1, 1), Verdict.INCONCLUSIVE),
        (4, (1, 1), Verdict.REACHABLE),
    ],
)
def test_reachable_takes_half_of_the_positions_and_four_prompts(
    prompts, moved, expected
):
    period, first = moved
    finding = judged(worlds(every(period, moved=first), prompts=prompts))
    # What is judged is all reached: only how much of it there is differs.
    num = finding.details["num_judged"]
    assert num == prompts * 5 * first // period
    assert finding.details["shares"]["REACHABLE"] == num / (5 * prompts)
    assert finding.verdict is expected
    text = " ".join(finding.reasons)
    assert ("too little" in text) == (expected is Verdict.INCONCLUSIVE)
    assert f"They are {num} of {5 * prompts} positions" in text


def test_what_is_reached_is_borne_out_by_so_many_prompts_and_no_more():
    text = " ".join(judged(worlds(to_another)).reasons)
    # Wilson: n / (n + z^2).
    assert f"for {8 / (8 + 3.8415):.0%} at least" in text
    text = " ".join(judged(worlds(every(40, moved=1))).reasons)
    assert "in 1 of 8 prompts; of prompts like these 1, the same holds for " in text
    assert f"for {1 / (1 + 3.8415):.0%} at least" in text


def test_a_reader_sees_whether_rounding_or_a_wide_tolerance_made_it_reachable():
    near = judged(worlds(to_another))
    wide = judged(changed(worlds(to_another), d1=at(V, 0.9 * TOLERANCE)))
    assert near.verdict is wide.verdict is Verdict.REACHABLE
    for finding, least, most in [(near, 0.01, 0.5), (wide, 0.89, 0.91)]:
        seen = finding.details["tolerance"]
        assert least < seen["v"] < most
        assert 0.01 < seen["natural"] < 0.5
        assert 0 < seen["of_norm"] < TOLERANCE
        assert any(
            f"tolerance is {seen['of_norm']:.2g} of a state's length" in one
            and f"at {seen['v']:.2g} of the tolerance" in one
            and f"come back at {seen['natural']:.2g} of it" in one
            for one in finding.reasons
        )
    # Of what is not reached there is no such question.
    assert not any("come back at" in one for one in judged(worlds(half_way)).reasons)


def test_one_half_of_the_positions_have_to_be_resolvable():
    """At the others what is missed counts and what is accepted does not."""
    for unclear, expected in [
        (slice(0, 2), Verdict.REACHABLE),
        (slice(0, 3), Verdict.UNINFORMATIVE),
    ]:
        blurred = changed(worlds(to_another), d2=at(0, 1.5 * TOLERANCE, unclear))
        finding = judged(blurred)
        assert finding.details["num_resolvable"] == 8 * (5 - unclear.stop)
        assert finding.verdict is expected
    assert "At only 16 of 40 positions" in finding.reasons[0]
    # Nor does it help that what was missed is unreached: that is one way only.
    missed = judged(changed(blurred, d1=at(V, 0.5)))
    assert missed.verdict is Verdict.UNINFORMATIVE
    assert missed.details["num_judged"] == 40
    assert finding.details["num_judged"] == 16


def test_one_position_that_is_missed_is_enough_not_to_be_reachable():
    searched = worlds(to_another)
    far = changed(searched[:1], d1=at(V, 0.5, 0))
    finding = judged(far + searched[1:])
    assert finding.verdict is not Verdict.REACHABLE
    assert finding.details["shares"]["REACHABLE"] == 39 / 40


def test_few_prompts_do_not_say_what_most_positions_are_like():
    for num, expected in [
        (1, Verdict.UNREACHED),
        (3, Verdict.UNREACHED),
        (4, Verdict.ORIGIN_NEAREST),
    ]:
        finding = judged(worlds(along(RIGHT), prompts=num))
        assert finding.verdict is expected
        assert finding.estimate.level == 1 - 2 ** (1 - num)


def test_close_to_a_state_takes_as_many_prompts_as_its_interval_does():
    for num, expected in [(5, Verdict.UNREACHED), (6, Verdict.EPSILON_CLOSE)]:
        finding = judged(worlds(near_another, prompts=num))
        assert finding.verdict is expected
        assert (finding.estimate.level < 0.95) == (num == 5)
        told = any("so few prompts do not bear it out" in r for r in finding.reasons)
        assert told == (num == 5)
        # What is near is near at 5 prompts too.
        assert finding.details["shares"]["EPSILON-CLOSE"] > 0.8
    # It is not said of what is not near.
    far = judged(worlds(half_way, prompts=5))
    assert not any("bear it out" in reason for reason in far.reasons)


def test_the_floor_that_a_tokens_kl_is_held_to_is_said_to_be_a_texts():
    silent = changed(worlds(along(RIGHT)), kl_none=lambda kl: 0 * kl + FLOOR)
    (told,) = [one for one in judged(silent).reasons if "precision floor" in one]
    assert "of a whole text" in told
    assert "conservative" in told


def test_a_random_direction_is_called_close_no_more_often_than_its_level():
    """The same directions at all positions, so that positions rank together."""
    num, close, below = 200, 0, 0
    base = worlds(along(RIGHT), prompts=6, num=1)
    for seed in range(num):
        # A direction that ends near a token at one position does so at all.
        luck = np.random.default_rng(seed).uniform(0.05, 0.45, NUM_RANDOM + 1)
        searched = changed(base, d1=at(slice(V, V + NUM_RANDOM + 1), luck * STEP))
        finding = said(searched)
        nearest = luck[0] < luck[1:].min()
        assert (finding.verdict is Verdict.EPSILON_CLOSE) == nearest
        close += nearest
        below += finding.details["shares"].get("EPSILON-CLOSE", 0) > 0
    # The smallest of 21 that are exchangeable is v once in 21; three binomial sd.
    allowed = 1 / 21 + 3 * math.sqrt(0.05 * 0.95 / num)
    assert 0 < close / num <= allowed
    assert below / num <= allowed


def test_two_of_forty_random_steps_that_are_nearer_on_the_whole_are_too_many():
    """At four positions of five only one is nearer, and it is not always the same."""
    forty = [*TARGETS[:3], *(f"random[{k}]" for k in range(40))]
    near = changed(worlds(along(RIGHT)), d1=at(V, 0.3))
    assert judged(near, targets=forty).verdict is Verdict.EPSILON_CLOSE
    one = changed(near, d1=at(V + 1, 0.2, [0, 1, 2]))
    assert judged(one, targets=forty).verdict is Verdict.EPSILON_CLOSE
    two = changed(one, d1=at(V + 2, 0.2, [2, 3, 4]))
    finding = judged(two, targets=forty)
    assert finding.details["shares"]["EPSILON-CLOSE"] == 0.8
    assert finding.verdict is Verdict.UNREACHED


def test_too_few_random_steps_leave_nothing_to_be_closer_than():
    keep = [j for j, name in enumerate(TARGETS) if name != "random[0]"][: 3 + 18]
    fields = ("first", "second", "aligned", "d1", "d2", "length", "shorter", "cosine")
    cut = {name: lambda array: array[:, keep] for name in fields}
    finding = judged(
        changed(worlds(near_another), **cut), targets=[TARGETS[j] for j in keep]
    )
    assert finding.verdict is Verdict.UNREACHED
    assert any("that takes 19" in reason for reason in finding.reasons)
    assert {row["name"] for row in finding.details["by_target"]} == {
        "natural",
        "constructed",
        "v",
        "random",
    }


def test_the_published_rules_are_emulated_beside_the_calibrated_one():
    noisy = changed(
        worlds(along(RIGHT)), d1=at(0, 3e-5), tolerance=lambda t: 0 * t + 1e-4
    )
    details = judged(noisy).details
    assert details["published_tolerance"] == {"tolerance": 1e-5, "natural": 0, "v": 0}
    assert details["order_of_magnitude"]["natural"] == 1
    rows = {row["name"]: row for row in details["by_target"]}
    assert rows["natural"]["accepted"] == 1
    assert rows["natural"]["eta"] is None
    assert rows["constructed"]["nearest_is_original"] == 0
    assert rows["random"]["num"] == NUM_RANDOM
    assert rows["v"]["eta"] == pytest.approx(1, abs=1e-4)


def test_a_position_that_cannot_be_read_is_left_out():
    searched = changed(
        worlds(to_another),
        d1=at(V, np.nan, 0),
        kl_none=lambda kl: np.where(np.arange(len(kl)) == 0, np.nan, kl),
    )
    finding = judged(searched)
    assert finding.verdict is Verdict.REACHABLE
    assert finding.details["positions"][0]["d1"] is None


def test_a_state_that_is_read_later_than_it_is_steered_is_said_to_be():
    assert "after block 3" in judged(worlds(to_another), read_layer=5).reasons[-1]
    assert not any("block" in one for one in judged(worlds(to_another)).reasons)


def test_targets_that_have_to_be_there_are_asked_for():
    with pytest.raises(ValueError, match="natural"):
        judged(worlds(to_another), targets=["x", *TARGETS[1:]])
    with pytest.raises(ValueError, match="0 prompts"):
        judged([])


def test_the_interval_of_eta_covers_over_prompts():
    """The median of prompts' medians, where prompts differ and positions agree."""
    num, hits = 100, 0
    base = worlds(along(RIGHT), prompts=10, num=1)
    for seed in range(num):
        etas = np.exp(np.random.default_rng(seed).normal(-0.5, 0.4, len(base)))
        searched = [
            changed([one], d1=at(V, eta))[0]
            for one, eta in zip(base, etas, strict=True)
        ]
        seen = said(searched).estimate
        hits += seen.low <= math.exp(-0.5) <= seen.high
    # 97.9 % with 10 prompts; three binomial sd below 95 %.
    assert hits / num >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / num)
