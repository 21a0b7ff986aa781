"""The exact Fisher matrices of the package have the answers of the planted models.

`test_ground_truth.py` shows by brute force that the models have them.
"""

import itertools

import pytest
import torch
from tests import ground_truth
from tests.ground_truth import DEAD, LIVE, SILENT, SINGULAR, texts
from tests.models import D_VOCAB, NUM_LAYERS, tiny
from torch import Tensor

from steergauge import linalg
from steergauge.fisher import Fisher, fisher, fishers
from steergauge.intervention import Scope
from steergauge.jacobian import Shift
from steergauge.vector import Site

NULL = 1e-6
"""A sigma below this share of the largest is null. The root of float64's rounding of F
is 1e-8, and as much is left of the radial direction; all others are above 1e-3."""

ROUNDING = 1e-12
"""Relative; float64 through a few blocks loses two or three digits of its sixteen."""

PROMPT = 4
"""Tokens of a prompt; the other three of a text are its response, if it has one."""

POLICIES = {
    "last": (Scope.GENERATING, False),
    "all": (Scope.ALL, False),
    "prompt": (Scope.PROMPT, False),
    "generated": (Scope.GENERATING, True),
    "all generated": (Scope.ALL, True),
    "prompt, seen later": (Scope.PROMPT, True),
    "response": (Scope.RESPONSE, True),
}
EVERY = pytest.mark.parametrize("policy", POLICIES)
MAIN = pytest.mark.parametrize("policy", ["last", "all", "generated", "all generated"])


def rows(tokens: list[list[int]], policy: str) -> list:
    """Texts as prompts, or as prompts with responses."""
    _, answered = POLICIES[policy]
    return [(ids, PROMPT if answered else len(ids)) for ids in tokens]


def shift(policy: str, layer: int = 1, at: Tensor | None = None) -> Shift:
    return Shift(Site(layer), POLICIES[policy][0], at)


def mean(lm, num: int, policy: str = "last", *, layer: int = 1) -> Fisher:
    tokens = texts(num, d_vocab=lm.d_vocab)
    return fisher(lm, rows(tokens, policy), shift=shift(policy, layer))


def null_space(matrix: Tensor) -> Tensor:
    spectrum = linalg.spectrum(matrix)
    null = (spectrum.values / spectrum.values[0]).sqrt() < NULL
    return spectrum.directions[:, null]


def apart(first: Tensor, second: Tensor) -> float:
    """The largest angle between two spaces; a right one if their dimensions differ."""
    if first.shape != second.shape:
        return torch.pi / 2
    return float(linalg.principal_angles(first, second).max())


def cost(direction: Tensor, matrix: Tensor) -> float:
    """u' F u of a direction of length 1, by the largest that there is."""
    top = float(torch.linalg.matrix_norm(matrix, ord=2))
    assert top > 1e-3
    return float(direction @ matrix @ direction) / top


@MAIN
@pytest.mark.parametrize("num", [1, 16])
def test_the_planted_rank_is_found_exactly(policy, num):
    for rank in (3, len(SINGULAR), ground_truth.WIDTH):
        planted = ground_truth.linear(tuple(20 * 0.9**i for i in range(rank)))
        ranks = mean(planted.lm, num, policy).ranks()
        assert ranks.ranks[1e-3] == ranks.ranks[1e-4] == rank
        assert ranks.ranks[1e-4] >= ranks.erank_lambda > 1


@MAIN
def test_the_null_space_of_the_linear_model_is_the_planted_one_for_1_text_and_16(
    policy,
):
    planted = ground_truth.linear()
    one, many = (mean(planted.lm, num, policy).matrix for num in (1, 16))
    # The matrices differ, their null spaces do not.
    assert float((one - many).norm() / many.norm()) > 0.05
    for matrix in (one, many):
        assert apart(null_space(matrix), planted.null) < NULL


@pytest.mark.parametrize("num_predictions", [1, 3])
def test_the_planted_spectrum_is_found_once_for_each_prediction(num_predictions):
    planted = ground_truth.linear()
    response = [SILENT] * num_predictions if num_predictions > 1 else []
    row = ([5, 6, SILENT, *response], 3)
    found = fisher(planted.lm, [row], shift=shift("generated")).matrix
    expected = torch.tensor(SINGULAR).double().square() / D_VOCAB * num_predictions
    spectrum = linalg.spectrum(found)
    kept = len(SINGULAR)
    assert torch.allclose(spectrum.values[:kept], expected, rtol=1e-6, atol=0)
    matches = (spectrum.directions[:, :kept] * planted.visible).sum(0).abs()
    assert torch.allclose(matches, torch.ones(kept).double(), atol=1e-9)


@pytest.mark.parametrize("t", [0.0, 0.7, -2.0])
def test_the_fisher_matrix_of_two_live_tokens_is_the_closed_form_at_any_point(t):
    slope = 2.0
    planted = ground_truth.softmax2(slope)
    w = planted.visible[:, 0]
    for ids in texts(3):
        stream = planted.lm.model.embedding.weight[ids[-1]].detach()
        p = torch.sigmoid(slope * (stream @ w + t))
        point = shift("last", at=t * w)
        found = fisher(planted.lm, [(ids, len(ids))], shift=point).matrix
        expected = p * (1 - p) * slope**2 * torch.outer(w, w)
        assert float(expected.norm()) > 1e-4
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-15)


def test_responses_of_two_live_tokens_show_one_direction_however_many_there_are():
    planted = ground_truth.softmax2()
    drawn = planted.lm.generate(["moon", "a lake"], samples=4, max_new_tokens=4, seed=0)
    assert {i for sample in drawn for i in sample.token_ids} == set(LIVE)
    answered = [([5, 6, 7, 8, *sample.token_ids], 4) for sample in drawn]
    found = fisher(planted.lm, answered, shift=shift("generated"))
    assert found.ranks().ranks[1e-4] == 1
    assert apart(null_space(found.matrix), planted.null) < NULL


def test_texts_of_two_kinds_share_what_neither_kind_sees():
    planted = ground_truth.block_switch()
    lm, start = planted.lm, texts(1)[0]
    even, odd = ([([*start, last], 8)] for last in (60, 61))
    at_0 = shift("last", 0)
    for own, kind in enumerate((even, odd)):
        found = null_space(fisher(lm, kind, shift=at_0).matrix)
        assert apart(found, planted.nulls[own]) < NULL
        assert apart(found, planted.nulls[1 - own]) > 0.1
    both = fisher(lm, [*even, *odd], shift=at_0)
    assert both.ranks().ranks[1e-4] == lm.d_model - 3
    assert apart(null_space(both.matrix), planted.shared) < NULL


def test_a_point_beyond_the_switch_has_the_null_space_of_the_other_kind():
    planted = ground_truth.block_switch()
    row = ([*texts(1)[0], 60], 8)
    for t, kind in ((0.9, 0), (1.1, 1)):
        point = shift("last", 0, at=-t * planted.switch)
        found = null_space(fisher(planted.lm, [row], shift=point).matrix)
        assert apart(found, planted.nulls[kind]) < NULL


@EVERY
@pytest.mark.parametrize("layer", range(NUM_LAYERS))
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_all_ones_is_null_under_layernorm_at_every_layer_and_scope(
    family, layer, policy
):
    lm = tiny(family, dtype=torch.float64)
    ones = torch.ones(lm.d_model, dtype=torch.float64) / lm.d_model**0.5
    axis = torch.eye(lm.d_model).double()[0]
    for matrix in fishers(lm, rows(texts(1), policy), shift=shift(policy, layer)):
        assert cost(axis, matrix) > 1e-4
        if family == "llama":
            assert cost(ones, matrix) > 1e-4
        else:
            assert abs(cost(ones, matrix)) < NULL**2


@MAIN
def test_all_ones_is_all_that_many_texts_share_in_gpt2_and_llama_shares_nothing(policy):
    ones = torch.ones(48, 1, dtype=torch.float64)
    layernorm = mean(tiny("gpt2", dtype=torch.float64), 4, policy).matrix
    assert apart(null_space(layernorm), ones) < NULL
    rms = mean(ground_truth.narrow_llama(), 4, policy).matrix
    assert null_space(rms).shape[1] == 0


@pytest.mark.parametrize(
    "make", [ground_truth.widened_llama, ground_truth.masked_llama]
)
@pytest.mark.parametrize("dead", [4, DEAD])
def test_k_dead_coordinates_are_k_nulls_and_one_more_for_a_single_prediction(
    make, dead
):
    planted = make(dead)
    for policy in ("last", "all"):
        one = null_space(mean(planted.lm, 1, policy).matrix)
        assert one.shape[1] == dead + 1
        # All of the dead ones are among them.
        angles = linalg.principal_angles(one, planted.null)
        assert len(angles) == dead
        assert float(angles.max()) < NULL
        several = null_space(mean(planted.lm, 4, policy).matrix)
        assert apart(several, planted.null) < NULL
    answered = null_space(mean(planted.lm, 1, "generated").matrix)
    assert apart(answered, planted.null) < NULL


@MAIN
def test_the_live_part_of_a_widened_model_is_the_matrix_of_the_narrow_one(policy):
    planted = ground_truth.widened_llama()
    wide = mean(planted.lm, 3, policy).matrix
    narrow = mean(ground_truth.narrow_llama(), 3, policy).matrix
    live = planted.visible.T @ wide @ planted.visible
    assert torch.allclose(live, narrow, atol=ROUNDING * float(narrow.norm()))


@MAIN
@pytest.mark.parametrize("layer", [0, NUM_LAYERS - 1])
def test_a_rotation_turns_the_matrix_and_keeps_its_spectrum(policy, layer):
    rotated, q = ground_truth.rotated_llama()
    own = mean(ground_truth.narrow_llama(), 3, policy, layer=layer)
    turned = mean(rotated, 3, policy, layer=layer)
    size = float(own.matrix.norm())
    assert float((turned.matrix - own.matrix).norm()) > 0.5 * size
    expected = q.T @ own.matrix @ q
    assert torch.allclose(turned.matrix, expected, atol=1e-10 * size)
    values = [linalg.spectrum(found.matrix).values for found in (own, turned)]
    assert torch.allclose(*values, rtol=1e-6, atol=0)
    ranks = [found.ranks() for found in (own, turned)]
    assert ranks[0].ranks == ranks[1].ranks
    assert ranks[0].erank_lambda == pytest.approx(ranks[1].erank_lambda, rel=1e-9)


def test_a_quadratic_form_of_v_does_not_depend_on_the_basis():
    rotated, q = ground_truth.rotated_llama()
    generator = torch.Generator().manual_seed(2)
    v = torch.randn(len(q), generator=generator, dtype=torch.float64)
    own, turned = (
        mean(lm, 2, "generated").matrix for lm in (ground_truth.narrow_llama(), rotated)
    )
    right, wrong = (float(u @ turned @ u) for u in (q.T @ v, v))
    assert float(v @ own @ v) == pytest.approx(right, rel=1e-9)
    assert float(v @ own @ v) != pytest.approx(wrong, rel=0.05)


def test_texts_with_the_same_streams_have_the_same_matrix():
    lm, ids = ground_truth.duplicate_embedding(), texts(1)[0]
    twins = [([*ids[:3], token, *ids[4:]], 7) for token in (*ground_truth.TWINS, 60)]
    first, second, other = fishers(lm, twins, shift=shift("all"))
    assert torch.equal(first, second)
    assert float((first - other).norm() / first.norm()) > 0.01


def test_the_rank_of_the_mean_grows_with_the_texts_on_a_trained_model():
    lm = ground_truth.trained()
    tokens = texts(16, d_vocab=lm.d_vocab)
    found = [
        fisher(lm, rows(tokens[:num], "last"), shift=shift("last", 2)).ranks()
        for num in (1, 4, 16)
    ]
    for fewer, more in itertools.pairwise(found):
        assert more.ranks[0.05] > 1.2 * fewer.ranks[0.05]
        assert more.erank_lambda > 1.2 * fewer.erank_lambda
    assert found[0].ranks[1e-4] < found[2].ranks[1e-4] == lm.d_model
