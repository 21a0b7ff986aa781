"""Null spaces that texts share, do not share, or share as far as could be seen."""

import dataclasses
import json
import math

import numpy as np
import pytest

from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.saturation import GAP, Blocks, saturation

D_MODEL, TEXTS = 24, 32
FLOOR = 1e-6
SEEDS = 20


def basis(rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((D_MODEL, D_MODEL)))[0]


def texts(seed: int, *, rank: int, shared: int, num: int = TEXTS) -> np.ndarray:
    """F_x of a given rank each, that all miss the same `shared` directions."""
    rng = np.random.default_rng([1, seed])
    seen = basis(rng)[:, shared:]
    factors = rng.standard_normal((num, rank, D_MODEL - shared)) @ seen.T
    return factors.transpose(0, 2, 1) @ factors


def softmax_texts(weights: np.ndarray, seed: int) -> np.ndarray:
    """F_x = W'(diag p - p p')W of one token of o = W h, the same W for every text."""
    rng = np.random.default_rng([2, seed])
    logits = rng.standard_normal((TEXTS, D_MODEL)) @ weights.T
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    metric = p[:, :, None] * np.eye(len(weights)) - p[:, :, None] * p[:, None, :]
    return weights.T @ metric @ weights


def blocks(matrices: np.ndarray, *, floor: float = FLOOR, cosines=None) -> Blocks:
    values, means, num = {}, matrices, 1
    while len(means):
        values[num] = np.linalg.eigvalsh(means)[:, ::-1].clip(0)
        half = means[: len(means) // 2 * 2]
        means, num = (half[::2] + half[1::2]) / 2, 2 * num
    return Blocks(values=values, floor=floor, null_cosines=cosines, num_tokens=8)


def diagonal(*rows: list[float], floor: float = FLOOR) -> Blocks:
    """F_x that are diagonal, with these entries as sigma."""
    matrices = np.stack([np.diag(np.square(row)) for row in rows])
    return blocks(matrices, floor=floor)


def null_dims(found: Finding) -> list[float]:
    return [point[0] for point in found.details["null_dim"]]


@pytest.mark.parametrize("shared", [1, 2, 7])
@pytest.mark.parametrize("rank", [3, 10, D_MODEL])
def test_directions_that_no_text_sees_are_shared_and_counted(shared, rank):
    for seed in range(SEEDS):
        found = saturation(blocks(texts(seed, rank=rank, shared=shared)))
        assert found.verdict is Verdict.SHARED_NULL
        assert found.estimate.value == shared
        # Not vacuous: of one text much more is null, if its rank is small.
        single = max(D_MODEL - rank, shared)
        assert null_dims(found)[0] == pytest.approx(single)
        assert null_dims(found)[-2:] == [shared, shared]


def test_texts_that_share_no_direction_are_never_said_to():
    for seed in range(SEEDS):
        for rank in (1, 5, 20):
            found = saturation(blocks(texts(seed, rank=rank, shared=0)))
            assert found.verdict is Verdict.FULL
            assert found.estimate.value == 0
            # Not vacuous: one text has null directions, unless its rank is full.
            assert null_dims(found)[0] == pytest.approx(D_MODEL - rank)


def test_a_rank_that_still_grows_with_the_texts_is_shrinking():
    for seed in range(SEEDS):
        few = texts(seed, rank=1, shared=0, num=16)
        found = saturation(blocks(few))
        assert found.verdict is Verdict.SHRINKING
        # n texts of rank 1 leave d - n directions.
        assert null_dims(found) == [D_MODEL - n for n in (1, 2, 4, 8, 16)]
        assert found.estimate.value == D_MODEL - 16
        assert f"8 texts still left {D_MODEL - 8}" in found.reasons[0]


def test_a_linear_model_has_the_same_null_space_in_one_text_as_in_all():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rank = int(rng.integers(3, D_MODEL))
        weights = rng.standard_normal((40, rank)) @ basis(rng)[:rank] / 2
        found = saturation(blocks(softmax_texts(weights, seed)))
        assert found.verdict is Verdict.SHARED_NULL
        assert null_dims(found) == [D_MODEL - rank] * 6


def test_a_model_of_two_jacobians_has_the_null_space_of_both():
    rng = np.random.default_rng(0)
    axes = basis(rng)
    # One sees directions 0 to 13, the other 8 to 19: 4 of 24 are left to neither.
    first, second = (
        rng.standard_normal((40, len(rows))) @ rows / 2
        for rows in (axes[:14], axes[8:20])
    )
    for seed in range(10):
        one, other = softmax_texts(first, seed), softmax_texts(second, seed + 100)
        which = np.random.default_rng([4, seed]).permutation(np.arange(TEXTS) % 2)
        matrices = np.where(which[:, None, None] == 0, one, other)
        found = saturation(blocks(matrices))
        assert found.verdict is Verdict.SHARED_NULL
        assert found.estimate.value == 4
        # Of one text 10 or 12 are null.
        assert null_dims(found)[0] == pytest.approx(11)


def test_a_null_of_each_text_alone_is_told_from_the_one_that_all_share():
    # As of a LayerNorm model: one direction for all, and one of the text's own.
    for seed in range(SEEDS):
        rng = np.random.default_rng([5, seed])
        axes = basis(rng)
        own = rng.standard_normal((TEXTS, D_MODEL - 1)) @ axes[:, 1:].T
        own /= np.linalg.norm(own, axis=1, keepdims=True)
        away = np.eye(D_MODEL) - own[:, :, None] * own[:, None, :]
        matrices = away @ (axes[:, 1:] @ axes[:, 1:].T) @ away
        found = saturation(blocks(matrices))
        assert null_dims(found) == [2, 1, 1, 1, 1, 1]
        assert found.verdict is Verdict.SHARED_NULL


def test_what_few_texts_see_is_missed_as_often_as_the_finding_says():
    # A direction that a share q of texts sees is said to be null by mistake.
    num, few, raised = 200, 8, {}
    missed = saturation(diagonal(*[[1.0, 1.0]] * few)).details["missed"]
    assert (1 - missed) ** few == pytest.approx(0.05)
    for share in (missed, 2 * missed):
        raised[share] = 0
        for seed in range(num):
            sees = np.random.default_rng([6, seed]).random(few) < share
            found = saturation(diagonal(*([1.0, 0.5, float(one)] for one in sees)))
            raised[share] += found.verdict is Verdict.SHARED_NULL
    three_sd = 3 * math.sqrt(0.05 * 0.95 / num)
    assert raised[missed] / num == pytest.approx(0.05, abs=three_sd)
    # (1 - 2 q)^N = 4e-4: more than two of 200 happen once in 10,000 studies.
    assert raised[2 * missed] <= 2 < raised[missed]


@pytest.mark.parametrize("gap", [0.5 * GAP, 2 * GAP])
def test_a_null_space_is_behind_a_gap(gap):
    # The last sigma that is seen, and a null one that rounding left over.
    seen = 20 * FLOOR
    rows = [[1.0, 1.0, seen, seen / gap]] * 8
    # Not vacuous: counting gives one null direction at every number of texts.
    found = saturation(diagonal(*rows))
    assert null_dims(found) == [1, 1, 1, 1]
    shared = found.verdict is Verdict.SHARED_NULL
    assert shared is (gap > GAP)
    assert shared or (found.verdict is Verdict.INCONCLUSIVE)
    assert shared or "fade into rounding" in found.reasons[0]


def test_a_spectrum_that_fades_into_rounding_has_no_null_space():
    rng = np.random.default_rng(0)
    for seed in range(10):
        weights = rng.standard_normal((60, D_MODEL)) * np.geomspace(1, 1e-8, D_MODEL)
        found = saturation(blocks(softmax_texts(weights @ basis(rng), seed)))
        # Something is below ten times the floor, in one text as in all.
        assert min(null_dims(found)) > 0
        assert found.verdict is Verdict.INCONCLUSIVE


def test_one_text_that_differs_in_the_last_half_leaves_it_open():
    same, wider = [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]
    found = saturation(diagonal(*[same] * 7, wider))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert (found.estimate.value, found.estimate.low, found.estimate.high) == (1, 1, 2)
    assert "1 to 2 over 4" in found.reasons[0]


def test_a_single_number_of_texts_says_nothing_of_falling():
    one = saturation(diagonal([1.0, 0.0]))
    assert one.verdict is Verdict.INCONCLUSIVE
    assert (one.estimate.low, one.estimate.high, one.estimate.level) == (1, 1, 0)
    assert one.controls == ()
    assert saturation(diagonal([1.0, 1.0])).verdict is Verdict.FULL


@pytest.mark.parametrize("num", [2, 4, 8, 16])
def test_a_shared_null_space_is_stated_from_eight_texts_on(num):
    found = saturation(diagonal(*[[1.0, 1.0, 0.0]] * num))
    # Not vacuous: all else that a shared null space needs is there.
    assert null_dims(found)[-2:] == [1, 1]
    enough = num >= 8
    assert found.verdict is (Verdict.SHARED_NULL if enough else Verdict.INCONCLUSIVE)
    assert ("stated from 8 texts on" in " ".join(found.reasons)) is not enough
    missed = 1 - 0.05 ** (1 / num)
    assert f"seen by {missed:.0%} of such texts" in found.reasons[1]


def test_the_floor_decides_what_is_null():
    rows = [[1.0, 0.5, 1e-2]] * 8
    assert saturation(diagonal(*rows)).verdict is Verdict.FULL
    coarse = saturation(diagonal(*rows, floor=2e-3))
    assert null_dims(coarse) == [1, 1, 1, 1]
    # Counted, but not claimed: .5 and .01 are not a thousand apart.
    assert coarse.verdict is Verdict.INCONCLUSIVE
    assert set(coarse.details["ranks"]) == {"0.1", "0.05"}
    blind = saturation(diagonal(*rows, floor=0.2))
    assert blind.verdict is Verdict.UNINFORMATIVE
    assert blind.details["ranks"] == {}


def test_eigenvalues_in_float64_have_a_floor_of_their_own():
    # Not vacuous: a sigma of 0 comes out as the root of a rounding error.
    given = blocks(texts(0, rank=D_MODEL, shared=3), floor=1e-16)
    last = np.sqrt(given.values[TEXTS][0])
    assert last[-3] > 1e-15 * last[0]
    found = saturation(given)
    assert found.verdict is Verdict.SHARED_NULL
    assert found.estimate.value == 3


def test_an_output_that_sees_nothing_is_uninformative():
    found = saturation(diagonal(*[[0.0, 0.0]] * 4))
    assert found.verdict is Verdict.UNINFORMATIVE
    assert found.details["erank_lambda"] == [[None, None, 0]] * 3
    assert found.details["ratio"] == [[None, None, 0]] * 3


def test_a_text_that_sees_nothing_has_a_rank_of_0_and_no_effective_rank():
    found = saturation(diagonal([0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]))
    assert found.verdict is Verdict.FULL
    assert found.details["ranks"]["0.01"][0] == [1.5, 1.0, 4]
    assert found.details["erank_lambda"][0] == pytest.approx([2, 0, 3])


def test_the_curves_are_means_over_blocks_with_their_spread():
    given = blocks(texts(3, rank=2, shared=1))
    found = saturation(given).details
    assert found["num"] == [1, 2, 4, 8, 16, 32]
    for i, num in enumerate(found["num"]):
        sigma = np.sqrt(given.values[num])
        ratios = sigma[:, -1] / sigma[:, 0]
        ranks = (sigma > 0.01 * sigma[:, :1]).sum(1)
        assert found["ratio"][i][0] == pytest.approx(ratios.mean())
        assert found["ranks"]["0.01"][i][0] == pytest.approx(ranks.mean())
        if num < TEXTS:
            spread = found["ranks"]["0.01"][i][1]
            assert spread == pytest.approx(ranks.std(ddof=1), abs=1e-12)
        assert found["ratio"][i][2] == TEXTS // num
    assert found["ratio"][-1][1] is None
    eranks = [point[0] for point in found["erank_lambda"]]
    assert eranks == sorted(eranks)


def test_the_interval_is_the_range_of_the_halves_and_says_what_it_covers():
    found = saturation(blocks(texts(0, rank=1, shared=0, num=16)))
    # Two independent blocks have the median between them half of the time.
    assert found.estimate.level == 0.5
    assert (found.estimate.low, found.estimate.high) == (D_MODEL - 16, D_MODEL - 8)
    assert "range over blocks of half the texts" in found.null


def test_more_texts_with_more_null_dimensions_break_the_control():
    held = saturation(blocks(texts(0, rank=2, shared=1)))
    assert [control.holds for control in held.controls] == [True]
    # A text with a sigma a million times larger lifts the threshold over the others.
    broken = saturation(diagonal([1.0, 1.0], [1.0, 1.0], [1e6, 0.0], [1.0, 1.0]))
    assert [control.holds for control in broken.controls] == [False]


def test_cosines_of_weakest_directions_are_held_against_random_ones():
    given = blocks(texts(0, rank=D_MODEL - 1, shared=0))
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((2000, 2, D_MODEL))
    drawn /= np.linalg.norm(drawn, axis=2, keepdims=True)
    random = np.abs((drawn[:, 0] * drawn[:, 1]).sum(1))
    found = saturation(dataclasses.replace(given, null_cosines=random))
    seen = found.details["null_cosine"]
    # Quoted beside it is 0.674 / sqrt(d), which is exact for large d only.
    chance = 0.6745 / math.sqrt(D_MODEL)
    assert seen["median"] == pytest.approx(chance, rel=0.1)
    assert f"random ones at {chance:.2f}" in found.reasons[-1]
    assert seen["low"] < seen["median"] < seen["high"]
    for none in (None, np.zeros(0)):
        empty = saturation(dataclasses.replace(given, null_cosines=none))
        assert empty.details["null_cosine"] is None


def test_the_finding_is_plain_data():
    for given in (
        blocks(texts(0, rank=3, shared=2), cosines=np.array([0.1, 0.2])),
        diagonal([0.0, 0.0], [0.0, 0.0]),
    ):
        found = saturation(given)
        text = json.dumps(found.to_json(), allow_nan=False)
        assert Finding.from_json(json.loads(text)) == found
        assert found.code == "T8"
        assert found.num_prompts == max(given.values)
