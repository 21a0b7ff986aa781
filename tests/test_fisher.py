"""Means of Fisher matrices, the floor under their ranks, and the Monte-Carlo guard."""

import pytest
import torch
from tests.models import (
    D_MODEL,
    FAMILIES,
    borrowed,
    config,
    network,
    reinitialised,
    tiny,
    tokenizer,
)
from transformers import GPT2LMHeadModel

from steergauge import fisher as module
from steergauge import linalg
from steergauge.errors import InputError, ModelError
from steergauge.fisher import Fisher, fisher, fishers, precision_floor, sampled_fisher
from steergauge.intervention import Scope
from steergauge.jacobian import Mode, Shift, score, suffix_jacobian, widened
from steergauge.loading import load
from steergauge.split import LanguageModel
from steergauge.vector import Site

LAYER = 1
SHIFT = Shift(Site(LAYER))
EPS = torch.finfo(torch.float32).eps


def rows(num: int, *, response: int = 0, seed: int = 0) -> list:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(3, 200, (num, 6 + response), generator=generator)
    return [(ids, 6) for ids in drawn.tolist()]


def top(matrix: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, ord=2))


def rank(matrix: torch.Tensor, *, epsilon: float = 1e-3) -> int | None:
    values = linalg.spectrum(matrix).values
    return linalg.effective_ranks(values, floor=1e-6).ranks[epsilon]


@pytest.mark.parametrize("scope", [Scope.GENERATING, Scope.ALL])
def test_the_mean_over_texts_is_the_mean_of_their_matrices(scope):
    lm, shift = tiny("llama"), Shift(Site(LAYER), scope)
    texts = [*rows(3), *rows(2, response=3, seed=1)]
    each = list(fishers(lm, texts, shift=shift))
    assert top(each[0] - each[1]) > 0.1 * top(each[0])
    found = fisher(lm, texts, shift=shift)
    assert torch.allclose(found.matrix, sum(each) / 5, rtol=1e-12, atol=0)
    assert (found.num_texts, found.exact) == (5, True)
    for row, matrix in zip(texts, each, strict=True):
        assert torch.equal(matrix, suffix_jacobian(lm, row, shift=shift).fisher())


def test_a_direction_stays_null_in_the_mean_only_if_it_is_null_in_every_text():
    def cost(direction, matrix):
        return float(direction @ matrix @ direction) / top(matrix)

    null = 1e-15
    # Rounding of float64 entries; sqrt of it is 3e-8 of the largest singular value.
    lm = tiny("gpt2", dtype=torch.float64)
    one, many = (fisher(lm, rows(num), shift=SHIFT).matrix for num in (1, 6))
    ones = torch.ones(D_MODEL, dtype=torch.float64) / D_MODEL**0.5
    assert abs(cost(ones, one)) < null
    assert abs(cost(ones, many)) < null
    # And the last norm hides one direction more, but another one on each prompt.
    hidden = linalg.spectrum(one).directions[:, -2:]
    (radial,) = (
        v for v in hidden.T - torch.outer(hidden.T @ ones, ones) if v @ v > 0.1
    )
    assert abs(cost(radial, one)) < 1e-9
    assert cost(radial, many) > 1e-4
    assert linalg.spectrum(many).values[-2] > 1e-6 * top(many)


def test_the_floor_is_the_distance_from_float64():
    lm, exact = tiny("gpt2"), tiny("gpt2", dtype=torch.float64)
    for row, scope in ((rows(1)[0], Scope.ALL), (rows(1, response=4)[0], Scope.ALL)):
        shift = Shift(Site(LAYER), scope)
        own, true = (suffix_jacobian(m, row, shift=shift) for m in (lm, exact))
        error = (own.matrices - true.matrices).flatten(0, 1)
        relative = top(error) / top(true.matrices.flatten(0, 1))
        assert 1e-8 < relative < 1e-5
        factors = [
            own.probabilities.sqrt()[..., None] * (w - (own.probabilities[:, None] @ w))
            for w in (
                own.unembedding.double() @ j for j in (own.matrices, true.matrices)
            )
        ]
        gap = top((factors[0] - factors[1]).flatten(0, 1))
        expected = max(relative, gap / top(factors[1].flatten(0, 1)), EPS)
        found = precision_floor(lm, row, shift=shift)
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("response", [0, 4])
def test_every_family_has_a_floor_of_its_precision(family, response):
    (row,) = rows(1, response=response)
    found = precision_floor(tiny(family), row, shift=SHIFT)
    # A few units of rounding a block, and no more than is seen elsewhere in float32.
    assert EPS <= found < 1e-5


def test_a_float64_model_has_the_floor_of_float64_eigenvalues():
    # Its Jacobian is better than that, but a sigma is read off a square.
    lm = tiny("gpt2", dtype=torch.float64)
    for row in (rows(1)[0], rows(1, response=4)[0]):
        floor = precision_floor(lm, row, shift=SHIFT)
        assert floor == linalg.resolution(lm.d_model) < 2e-7


def test_a_model_too_large_for_a_float64_copy_has_a_floor_too(monkeypatch):
    (row,), lm = rows(1), tiny("llama")
    copied = precision_floor(lm, row, shift=SHIFT)
    seen = []

    def watching(*args, **options):
        seen.append((options.get("mode"), options.get("cached", True)))
        return suffix_jacobian(*args, **options)

    monkeypatch.setattr(module, "suffix_jacobian", watching)
    monkeypatch.setattr("steergauge.widening.LARGEST_COPY", 1000)
    other = precision_floor(lm, row, shift=SHIFT)
    assert seen == [(None, True), (Mode.FORWARD, False)]
    assert copied / 10 < other < copied * 10


def test_ranks_are_masked_by_the_measured_floor():
    found = fisher(tiny("llama"), rows(2), shift=SHIFT)
    assert EPS <= found.floor < 1e-5
    ranks = found.ranks()
    assert ranks.floor == found.floor
    assert None not in ranks.ranks.values()
    assert ranks.ranks[1e-4] >= ranks.ranks[0.1] > 1
    blurred = Fisher(found.matrix, 2, floor=2e-4).ranks()
    assert blurred.ranks[1e-2] == ranks.ranks[1e-2]
    assert blurred.ranks[1e-3] is blurred.ranks[1e-4] is None


def test_a_monte_carlo_matrix_is_the_mean_of_its_scores_and_has_no_more_rank():
    lm, texts = tiny("gpt2", dtype=torch.float64), rows(4, response=2)
    found = sampled_fisher(lm, texts, shift=SHIFT)
    scores = torch.stack([score(lm, row, shift=SHIFT) for row in texts])
    assert torch.allclose(found.matrix, scores.T @ scores / 4, rtol=1e-12, atol=1e-15)
    assert (found.num_texts, found.exact) == (4, False)
    # The rank that its few samples allow, far below that of the exact matrix.
    assert rank(found.matrix) == 4
    assert rank(fisher(lm, texts, shift=SHIFT).matrix) > 40


def short_vocabulary(size: int) -> LanguageModel:
    """A GPT-2 in float64 of so few tokens that all responses can be gone through."""
    few = config("gpt2")
    few.vocab_size = size
    model = reinitialised(GPT2LMHeadModel(few)).eval().double()
    return load(model, tokenizer=tokenizer())


@pytest.mark.parametrize("scope", [Scope.GENERATING, Scope.ALL])
def test_the_score_has_mean_0_and_the_covariance_of_the_sequence_fisher(scope):
    size, prompt = 8, [3, 1, 4, 1, 5]
    lm, shift = short_vocabulary(size), Shift(Site(1), scope)
    mean = torch.zeros(D_MODEL, dtype=torch.float64)
    covariance, expected = mean.outer(mean), mean.outer(mean)
    first = suffix_jacobian(lm, (prompt, 5), shift=shift).probabilities[0]
    for y in range(size):
        # What is read for the second token does not depend on which one it is.
        both = suffix_jacobian(lm, ([*prompt, y, 0], 5), shift=shift)
        expected += first[y] * both.fisher()
        for z in range(size):
            g = score(lm, ([*prompt, y, z], 5), shift=shift)
            share = first[y] * both.probabilities[1, z]
            mean += share * g
            covariance += share * g.outer(g)
    assert top(expected) > 0.01
    assert top(covariance - expected) < 1e-12 * top(expected)
    assert mean.abs().max() < 1e-12


def test_no_rank_is_told_from_fewer_than_4d_samples():
    matrix = torch.eye(D_MODEL, dtype=torch.float64)
    few = Fisher(matrix, 4 * D_MODEL - 1, floor=1e-6, exact=False)
    with pytest.raises(InputError, match=f"{4 * D_MODEL} samples or more"):
        few.ranks()
    enough = Fisher(matrix, 4 * D_MODEL, floor=1e-6, exact=False)
    assert enough.ranks().ranks[0.01] == D_MODEL
    assert Fisher(matrix, 1, floor=1e-6).ranks().ranks[0.01] == D_MODEL


def test_no_texts_have_no_mean():
    for mean in (fisher, sampled_fisher):
        with pytest.raises(InputError, match="no texts"):
            mean(tiny("llama"), [], shift=SHIFT)


def test_a_half_precision_model_has_the_fisher_matrix_of_its_float32_copy():
    half = borrowed(network("gpt2").bfloat16())
    wide = borrowed(network("gpt2").bfloat16().float())
    first, second = (fisher(lm, rows(2), shift=SHIFT) for lm in (half, wide))
    assert torch.allclose(first.matrix, second.matrix, atol=1e-6 * top(first.matrix))
    assert first.floor < 1e-5
    assert {weight.dtype for weight in half.model.parameters()} == {torch.bfloat16}


def test_a_model_that_is_too_large_to_be_copied_is_refused(monkeypatch):
    lm = borrowed(network("llama").bfloat16())
    num_weights = sum(weight.numel() for weight in lm.model.parameters())
    monkeypatch.setattr("steergauge.widening.LARGEST_COPY", 4 * num_weights - 1)
    with pytest.raises(ModelError, match="--dtype float32"):
        fisher(lm, rows(1), shift=SHIFT)
    monkeypatch.setattr("steergauge.widening.LARGEST_COPY", 4 * num_weights)
    assert widened(lm).dtype == torch.float32
