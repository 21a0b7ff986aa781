"""Spectra of linear softmax models, whose ranks, costs and counts are known."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from steergauge import linalg
from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.spectrum import TOKENS, Spectra, spectrum

D_MODEL, D_VOCAB, TEXTS, BLOCKS = 24, 40, 32, 8
FLOOR = 1e-6

# sigma = sqrt(lambda) of an eigenvalue that is 0 but for rounding.
ROUNDING = math.sqrt(D_MODEL * np.finfo(float).eps)


def probabilities(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def model(rank: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The W of o = W h, of a given rank, and a stream h for each text."""
    rng = np.random.default_rng(seed)
    seen = np.linalg.qr(rng.standard_normal((D_MODEL, D_MODEL)))[0][:, :rank]
    weights = rng.standard_normal((D_VOCAB, rank)) @ seen.T
    return weights, rng.standard_normal((TEXTS, D_MODEL)) / math.sqrt(D_MODEL)


def fishers(weights: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Of one token a text, W'(diag p - p p')W."""
    p = probabilities(states @ weights.T)
    metric = p[:, :, None] * np.eye(D_VOCAB) - p[:, :, None] * p[:, None, :]
    return weights.T @ metric @ weights


def nats(weights: np.ndarray, states: np.ndarray, step: np.ndarray) -> float:
    """Mean KL of the next token that adding `step` costs."""
    before, after = (probabilities(h @ weights.T) for h in (states, states + step))
    return float((before * np.log(before / after)).sum(1).mean())


def falling(matrices: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh(matrices)[..., ::-1].clip(0)


def without_a_block(matrices: np.ndarray, blocks: int = BLOCKS) -> np.ndarray:
    means = matrices.reshape(blocks, -1, *matrices.shape[1:]).mean(1)
    return falling((means.sum(0) - means) / (blocks - 1))


def seen(
    matrices: np.ndarray,
    v: np.ndarray | None = None,
    *,
    floor: float = FLOOR,
    effect: float = 0.1,
    num_tokens: int = 1,
) -> Spectra:
    """What a run would hand over, of the F_x of texts and a step v."""
    v = np.eye(D_MODEL)[0] if v is None else v
    directions = np.linalg.eigh(matrices.mean(0))[1][:, ::-1]
    return Spectra(
        values=falling(matrices.mean(0)).copy(),
        shares=(directions.T @ v) ** 2 / (v @ v),
        left_out=without_a_block(matrices),
        single={"F_x": falling(matrices[0]).copy()},
        floor=floor,
        strength=float(np.linalg.norm(v)),
        effect=effect,
        num_texts=len(matrices),
        num_tokens=num_tokens,
    )


def flat(values: list[float], **changed) -> Spectra:
    """The same diagonal matrix for every text."""
    diagonal = np.array(values)
    whole = Spectra(
        values=diagonal,
        shares=np.eye(len(values))[0],
        left_out=np.tile(diagonal, (BLOCKS, 1)),
        single={},
        floor=0.0,
        strength=1.0,
        effect=values[0] / 2,
        num_texts=TEXTS,
        num_tokens=1,
    )
    return dataclasses.replace(whole, **changed)


@pytest.mark.parametrize("rank", [1, 5, 12, D_MODEL])
def test_the_planted_rank_of_a_linear_model_is_found(rank):
    for seed in range(5):
        given = seen(fishers(*model(rank, seed)))
        ratio = np.sqrt(given.values / given.values[0])
        # Not vacuous: what is seen lies above the last threshold, the rest below it.
        assert ratio[rank - 1] > 1e-3
        assert (ratio[rank:] < 10 * ROUNDING).all()
        families = spectrum(given).details["families"]
        for name in ("F_bar", "F_x"):
            assert families[name]["ranks"]["0.0001"] == rank
            assert families[name]["erank_sigma"] <= rank + 1e-5
        orders = ("stable", "participation_ratio", "erank_lambda")
        numbers = [1, *(families["F_bar"][order] for order in orders), rank]
        assert numbers == pytest.approx(sorted(numbers), rel=1e-9)


def test_k_equal_values_are_k_dimensions_in_every_sense():
    found = spectrum(flat([2.0] * 5 + [0.0] * 3))
    family = found.details["families"]["F_bar"]
    names = ("stable", "participation_ratio", "erank_lambda", "erank_sigma")
    assert [family[name] for name in names] == pytest.approx([5] * 4)
    assert set(family["ranks"].values()) == {5}
    assert family["width"] == 8
    # All texts agree, so that leaving some out changes nothing.
    assert found.details["erank"] == pytest.approx([5] * 3)
    assert found.verdict is Verdict.MEASURED


def test_budgets_count_the_eigen_directions_that_truly_cost_so_little():
    weights, states = model(D_MODEL, seed=3)
    weights = weights * np.geomspace(1, 1e-2, D_MODEL)
    matrices = fishers(weights, states)
    v = 0.2 * np.linalg.eigh(matrices.mean(0))[1][:, -1]
    effect = nats(weights, states, v)
    found = spectrum(seen(matrices, v, effect=effect)).details["equivalent"]
    assert found["nats"] == [0.05 * effect, 1e-3, 1e-2, 0.1]
    columns = np.linalg.norm(v) * np.linalg.eigh(matrices.mean(0))[1]
    # The third order changes sign with the step: the mean of both has none.
    costs = np.array(
        [(nats(weights, states, u) + nats(weights, states, -u)) / 2 for u in columns.T]
    )
    for budget, counted in zip(found["nats"], found["dimensions"], strict=True):
        # Not vacuous: no direction costs so nearly the budget that its side is open.
        assert np.abs(costs / budget - 1).min() > 0.01
        assert counted == (costs <= budget).sum()
    assert 0 < found["dimensions"][1] < found["dimensions"][2] < D_MODEL


def test_observed_tokens_are_counted_as_texts():
    values = np.geomspace(1, 1e-6, 12)
    for tokens_a_text in (1, 8):
        given = flat(values.tolist(), num_tokens=tokens_a_text, strength=3.0)
        found = spectrum(given).details["identifiable"]
        assert found["tokens"] == list(TOKENS)
        expected = [
            linalg.identifiable_dimensions(
                torch.from_numpy(values),
                samples=tokens // tokens_a_text,
                accuracy=found["accuracy"],
                strength=3.0,
            )
            for tokens in TOKENS
        ]
        assert found["dimensions"] == expected
        assert found["dimensions"][0] < found["dimensions"][-1]
    # A text longer than all that was observed tells nothing.
    long = spectrum(flat(values.tolist(), num_tokens=1000)).details["identifiable"]
    assert long["dimensions"][0] == 0


def test_nothing_below_ten_times_the_floor_is_counted():
    # sigma / sigma_1 of 1, .1, ..., 1e-5, and a step that costs lambda / 2 nats.
    values = (10.0 ** -np.arange(0, 11, 2)).tolist()
    fine, coarse = (spectrum(flat(values, floor=floor)) for floor in (1e-7, 2e-3))
    ranks = coarse.details["families"]["F_bar"]["ranks"]
    assert ranks == {"0.1": 1, "0.05": 2, "0.01": None, "0.001": None, "0.0001": None}
    assert None not in fine.details["families"]["F_bar"]["ranks"].values()
    # Rounding makes sigma = .02, which costs 2e-4 nats: all budgets lie above.
    assert coarse.details["equivalent"] == fine.details["equivalent"]
    # 1e6 texts tell what has sigma >= .01 to a tenth of v.
    counts = [one.details["identifiable"]["dimensions"] for one in (fine, coarse)]
    assert counts == [[1, 1, 2, 2, 3], [1, 1, 2, 2, None]]
    assert "0.01, 0.001, 0.0001" in coarse.reasons[1]
    worse = spectrum(flat(values, floor=1e-2)).details["equivalent"]
    assert worse["dimensions"] == [5, None, 5, 5]


def test_eigenvalues_in_float64_have_a_floor_of_their_own():
    given = seen(fishers(*model(5)), floor=1e-16)
    # Not vacuous: the null sigma are above ten times the precision of the Jacobian.
    assert math.sqrt(given.values[5] / given.values[0]) > 1e-15
    assert spectrum(given).details["floor"] == pytest.approx(ROUNDING)
    coarse = dataclasses.replace(given, floor=1e-5)
    assert spectrum(coarse).details["floor"] == 1e-5


def texts_of_few_directions(seed: int, num: int = 64) -> np.ndarray:
    """F_x of rank 3 whose mean over all texts has lambda_i ~ 1 / i."""
    rng = np.random.default_rng([5, seed])
    scale = np.arange(1, D_MODEL + 1) ** -0.5
    factors = rng.standard_normal((num, 3, D_MODEL)) * scale
    return factors.transpose(0, 2, 1) @ factors


def test_the_interval_covers_the_rank_over_all_texts_and_the_plain_rank_does_not():
    truth = linalg.effective_ranks(
        torch.from_numpy(1 / np.arange(1.0, D_MODEL + 1)), floor=0
    ).erank_lambda
    num, covered, plain = 100, 0, []
    for seed in range(num):
        found = spectrum(seen(texts_of_few_directions(seed)))
        covered += found.estimate.low <= truth <= found.estimate.high
        plain.append(found.details["families"]["F_bar"]["erank_lambda"])
        # A claim is more than "anything up to d".
        assert found.estimate.high - found.estimate.low < D_MODEL / 4
    assert covered / num >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / num)
    # Not vacuous: the plain rank is too low, by far more than its mean's error.
    assert np.mean(plain) + 5 * np.std(plain) / math.sqrt(num) < truth


def test_a_spectrum_that_is_twice_as_wide_is_found_to_be_wider():
    for seed in range(10):
        narrow, wide = (spectrum(seen(fishers(*model(r, seed)))) for r in (6, 12))
        assert narrow.estimate.high < wide.estimate.low


def test_a_turn_of_the_stream_changes_no_number():
    matrices, v = fishers(*model(9)), np.arange(1.0, D_MODEL + 1)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((D_MODEL, D_MODEL)))[0]
    straight = spectrum(seen(matrices, v)).details
    turned = spectrum(seen(turn.T @ matrices @ turn, turn.T @ v)).details
    assert np.abs(turn.T @ matrices @ turn - matrices).max() > 0.1
    assert turned["equivalent"] == straight["equivalent"]
    assert turned["identifiable"] == straight["identifiable"]
    assert turned["predicted"] == pytest.approx(straight["predicted"], rel=1e-9)
    assert turned["erank"] == pytest.approx(straight["erank"], rel=1e-9)
    # Shares along 9 directions, each known up to its sign only.
    assert turned["shares"][:9] == pytest.approx(straight["shares"][:9], abs=1e-7)


@pytest.mark.parametrize(("length", "holds"), [(0.05, True), (30.0, False)])
def test_the_control_tells_whether_v_is_short_enough_for_second_order(length, holds):
    weights, states = model(D_MODEL)
    v = length * np.random.default_rng(2).standard_normal(D_MODEL) / math.sqrt(D_MODEL)
    effect = nats(weights, states, v)
    found = spectrum(seen(fishers(weights, states), v, effect=effect))
    (control,) = found.controls
    assert control.holds is holds
    predicted = found.details["predicted"]
    assert control.estimate.value == predicted
    assert (predicted == pytest.approx(effect, rel=0.02)) is holds
    assert f"{predicted:.3g}" in found.reasons[-1]


def test_an_output_that_sees_nothing_has_no_spectrum():
    found = spectrum(flat([0.0] * 6, single={"F_x": np.zeros(6)}, effect=0.0))
    assert found.verdict is Verdict.UNINFORMATIVE
    assert found.estimate is None
    assert found.details["families"] == {"F_bar": None, "F_x": None}
    assert "F_bar is 0" in found.reasons[0]


@pytest.mark.parametrize(
    "left_out", [np.ones((1, 4)), np.array([[0.0] * 4, [1.0] * 4])]
)
def test_without_two_blocks_that_see_anything_there_is_no_interval(left_out):
    found = spectrum(flat([1.0] * 4, left_out=left_out))
    assert found.verdict is Verdict.MEASURED
    assert found.estimate is None
    assert "too few blocks" in found.reasons[2]


def test_the_finding_is_plain_data_and_keeps_what_it_was_given():
    record = {"label": "emulation", "null_fraction": 0.25}
    given = dataclasses.replace(
        seen(fishers(*model(7))), published=[record], covariance={"dimension": 3}
    )
    found = spectrum(given)
    text = json.dumps(found.to_json(), allow_nan=False)
    assert Finding.from_json(json.loads(text)) == found
    assert (found.code, found.num_prompts) == ("T6", TEXTS)
    assert found.details["published"] == [record]
    assert found.details["covariance"] == {"dimension": 3}
    assert found.details["values"] == given.values.tolist()
    assert sum(found.details["shares"]) == pytest.approx(1)
    assert spectrum(seen(fishers(*model(7)))).details["covariance"] is None
