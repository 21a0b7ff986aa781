"""J and F of a suffix are those of dense autograd through the plain model."""

from typing import Any

import pytest
import torch
from tests.models import (
    D_MODEL,
    D_VOCAB,
    FAMILIES,
    NUM_LAYERS,
    borrowed,
    config,
    network,
    reinitialised,
    tiny,
    tokenizer,
)
from torch import nn
from transformers import GPT2LMHeadModel

from steergauge import jacobian, linalg
from steergauge.errors import InputError, ModelError
from steergauge.intervention import Scope
from steergauge.jacobian import Mode, Shift, score, suffix_jacobian, widened
from steergauge.loading import load
from steergauge.readout import kl
from steergauge.vector import Site

PROMPT = [17, 101, 5, 150, 33, 64, 9]
"""Longer than a sliding window."""

RESPONSE = [70, 21, 88, 140]
POLICIES = {
    "last": ((PROMPT, len(PROMPT)), Scope.GENERATING),
    "all": ((PROMPT, len(PROMPT)), Scope.ALL),
    "generated": ((PROMPT + RESPONSE, len(PROMPT)), Scope.GENERATING),
    "all generated": ((PROMPT + RESPONSE, len(PROMPT)), Scope.ALL),
    "response": ((PROMPT + RESPONSE, len(PROMPT)), Scope.RESPONSE),
    "one token": ((PROMPT[:1], 1), Scope.GENERATING),
}
EVERY = pytest.mark.parametrize("policy", POLICIES)

FLOAT32 = 2e-5
"""Relative to the largest singular value. Both sides are float32 with kernels of their
own through at most four blocks: seen up to 2e-6."""


def first_steered(prompt_length: int, scope: Scope) -> int:
    starts = {Scope.ALL: 0, Scope.RESPONSE: prompt_length}
    return starts.get(scope, prompt_length - 1)


def plain(lm, policy: str, layer: int, at: torch.Tensor | None = None):
    """The map delta -> (z, logits) at every prediction, with hooks of our own."""
    (ids, prompt_length), scope = POLICIES[policy]
    first = first_steered(prompt_length, scope)
    predictions = max(1, len(ids) - prompt_length)
    tokens = torch.tensor([ids[: prompt_length + predictions - 1]])

    def run(delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = []
        step = delta if at is None else delta + at

        def shifting(_module: Any, _args: Any, output: Any) -> Any:
            stream = output[0] if isinstance(output, tuple) else output
            stream = torch.cat([stream[:, :first], stream[:, first:] + step], dim=1)
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        head = lm.model.get_output_embeddings()
        handles = [
            lm.blocks[layer].register_forward_hook(shifting),
            head.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        ]
        try:
            logits = lm.model(tokens, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        return seen[0][0, -predictions:], logits[0, -predictions:]

    return run


def dense(
    lm, policy: str, layer: int, at: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """J_h, the Jacobian of the logits, and the probabilities."""
    run, zero = plain(lm, policy, layer, at), torch.zeros(lm.d_model, dtype=lm.dtype)
    hidden, logits = torch.autograd.functional.jacobian(run, zero)
    with torch.no_grad():
        return hidden, logits, run(zero)[1].double().softmax(-1)


def ours(lm, policy: str, layer: int, at=None, **options):
    row, scope = POLICIES[policy]
    shift = Shift(Site(layer), scope, at)
    return suffix_jacobian(lm, row, shift=shift, **options)


def deviation(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error of any entry by the largest singular value, which is not tiny."""
    size = torch.linalg.matrix_norm(expected.double(), ord=2).max()
    assert size > 0.1
    return float((found - expected).abs().max() / size)


def unembedded(found: jacobian.Jacobian) -> torch.Tensor:
    return found.slopes[..., None] * (found.unembedding.double() @ found.matrices)


@EVERY
@pytest.mark.parametrize("mode", [None, *Mode])
def test_gpt2_in_float64_is_dense_autograd_to_1e_9(policy, mode):
    lm = tiny("gpt2", dtype=torch.float64)
    for layer in range(NUM_LAYERS):
        found = ours(lm, policy, layer, mode=mode)
        hidden, logits, p = dense(lm, policy, layer)
        assert mode is None or found.mode is mode
        assert deviation(found.matrices, hidden) < 1e-9
        assert deviation(unembedded(found), logits) < 1e-9
        assert torch.allclose(found.probabilities, p, atol=1e-12)


@EVERY
@pytest.mark.parametrize("family", [*FAMILIES, "gptj"])
def test_every_family_is_dense_autograd(family, policy):
    lm = tiny(family)
    for layer in (0, NUM_LAYERS - 2, NUM_LAYERS - 1):
        hidden, logits, _ = dense(lm, policy, layer)
        for mode in Mode:
            found = ours(lm, policy, layer, mode=mode)
            assert deviation(found.matrices, hidden) < FLOAT32
            assert deviation(unembedded(found), logits) < FLOAT32
            # Mixture-of-experts kernels have no forward derivative.
            expected = Mode.REVERSE if family == "mixtral" else mode
            assert found.mode is expected


def test_policies_are_different_matrices():
    lm = tiny("llama")
    last, everywhere = (ours(lm, name, 1).matrices for name in ("last", "all"))
    generated = ours(lm, "generated", 1).matrices
    assert deviation(last, everywhere) > 0.05
    assert len(generated) == len(RESPONSE)
    assert deviation(generated[:1], last) < FLOAT32
    assert deviation(generated[1:2], last) > 0.05


def test_many_predictions_are_differentiated_forwards_and_few_backwards():
    lm = tiny("llama")
    modes = {policy: ours(lm, policy, 1).mode for policy in POLICIES}
    assert len(RESPONSE) >= jacobian.FORWARD_FROM > 1
    for policy, mode in modes.items():
        many = "generated" in policy or policy == "response"
        assert mode is (Mode.FORWARD if many else Mode.REVERSE)


def test_the_soft_cap_is_in_the_slopes():
    capped, free = (ours(tiny(name), "last", 1) for name in ("gemma2", "llama"))
    assert (free.slopes == 1).all()
    assert capped.slopes.min() < 0.9
    cap = tiny("gemma2").model.config.final_logit_softcapping
    logits = plain(tiny("gemma2"), "last", 1)(torch.zeros(D_MODEL))[1].double()
    # cap tanh(z / cap) has the slope 1 - (its value / cap)^2.
    assert torch.allclose(capped.slopes, 1 - (logits / cap) ** 2, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@EVERY
def test_fisher_is_the_gram_matrix_of_the_centred_jacobian(family, policy):
    lm = tiny(family, dtype=torch.float64 if family == "gpt2" else torch.float32)
    found = ours(lm, policy, 1)
    _, logits, p = dense(lm, policy, 1)
    total = torch.zeros(D_MODEL, D_MODEL, dtype=torch.float64)
    for k in range(len(p)):
        mean = p[k] @ logits[k].double()
        factor = p[k].sqrt()[:, None] * (logits[k].double() - mean)
        total += factor.T @ factor
    tolerance = 1e-12 if family == "gpt2" else FLOAT32
    assert deviation(found.fisher(), total) < tolerance


def test_the_metric_does_not_depend_on_how_much_is_held_at_once(monkeypatch):
    found = ours(tiny("gemma2"), "generated", 1)
    whole = found.metric(2)
    monkeypatch.setattr(jacobian, "ENTRIES_AT_ONCE", 10 * D_MODEL)
    assert deviation(found.metric(2), whole) < 1e-14


@pytest.mark.parametrize("mode", Mode)
def test_columns_do_not_depend_on_how_many_are_made_at_once(mode, monkeypatch):
    lm = tiny("gpt2", dtype=torch.float64)
    whole = ours(lm, "generated", 1, mode=mode).matrices
    monkeypatch.setattr(jacobian, "TOKENS_AT_ONCE", 7 * len(RESPONSE))
    assert deviation(ours(lm, "generated", 1, mode=mode).matrices, whole) < 1e-12


@pytest.mark.parametrize("policy", ["last", "all", "generated"])
def test_kl_is_half_delta_f_delta_up_to_third_order(policy):
    lm = tiny("gpt2", dtype=torch.float64)
    v = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(3)).double()
    found, run = ours(lm, policy, 1, v).fisher(), plain(lm, policy, 1, v)
    u = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(4)).double()
    gaps = []
    for size in (0.08, 0.04, 0.02):
        step = size * u / u.norm()
        with torch.no_grad():
            true = float(kl(run(torch.zeros_like(u))[1], run(step)[1]).sum())
        quadratic = float(step @ found @ step) / 2
        assert quadratic > 1e-6
        assert true == pytest.approx(quadratic, rel=0.5)
        gaps.append(abs(true - quadratic))
    # Third order: half the step, an eighth of the gap; second order would be 4 fold.
    for gap, next_gap in zip(gaps, gaps[1:], strict=False):
        assert gap / next_gap == pytest.approx(8, rel=0.2)


@EVERY
def test_the_derivative_is_taken_at_the_point(policy):
    lm = tiny("gpt2", dtype=torch.float64)
    v = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(3)).double()
    there = dense(lm, policy, 1, v)[0]
    assert deviation(ours(lm, policy, 1, v).matrices, there) < 1e-9
    assert deviation(ours(lm, policy, 1).matrices, there) > 0.01


@EVERY
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_all_ones_direction_is_null_in_gpt2_and_not_in_llama(family, policy):
    lm = tiny(family, dtype=torch.float64)
    ones = torch.ones(D_MODEL).double() / D_MODEL**0.5
    for layer in range(NUM_LAYERS):
        found = ours(lm, policy, layer).matrices
        size = float((found @ ones).norm() / torch.linalg.matrix_norm(found).max())
        # Rounding of float64 through four blocks; a random direction has 1 / sqrt d.
        assert size < 1e-12 if family == "gpt2" else size > 0.01


def test_a_planted_rank_is_found_exactly():
    model = network("gpt2").double()
    rank = 7
    with torch.no_grad():
        model.transformer.ln_f.weight[rank:] = 0
    lm = borrowed(model)
    for policy in ("last", "all"):
        found = ours(lm, policy, 1)
        for square in (found.matrices[0].T @ found.matrices[0], found.fisher()):
            values = linalg.spectrum(square).values
            ranks = linalg.effective_ranks(values, floor=1e-8).ranks
            assert ranks[1e-3] == ranks[1e-4] == rank
    # Not vacuous: the model without the plant has no such rank.
    whole = linalg.spectrum(ours(tiny("gpt2"), "last", 1).fisher()).values
    assert linalg.effective_ranks(whole, floor=1e-6).ranks[1e-4] > 2 * rank


def short_vocabulary(size: int) -> Any:
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
    assert deviation(covariance, expected) < 1e-12
    assert mean.abs().max() < 1e-12


def hooks(model: nn.Module) -> list[int]:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [len(getattr(m, name)) for m in model.modules() for name in names]


@pytest.mark.parametrize("mode", Mode)
def test_the_model_is_left_as_it_was(mode):
    lm = borrowed(network("llama"))
    weights = dict(lm.model.named_parameters())
    frozen = next(iter(weights))
    weights[frozen].requires_grad_(False)
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    ours(lm, "generated", 1, mode=mode)
    score(lm, POLICIES["generated"][0], shift=Shift(Site(1)))
    assert sum(hooks(lm.model)) == 0
    assert all("forward" not in vars(block) for block in lm.blocks)
    assert dict(lm.model.named_parameters()).keys() == before.keys()
    for name, weight in lm.model.named_parameters():
        assert weight is weights[name]
        assert torch.equal(weight, before[name])
        assert weight.requires_grad == (name != frozen)
        assert weight.grad is not None
        assert (weight.grad == 1).all()


class _Doubled(torch.autograd.Function):
    """An operation with a backward pass only: no batched form, no forward one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.mul(2)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.numpy() * 2 if False else torch.from_numpy(grad.numpy() * 2)
