"""J and F of a suffix are those of dense autograd through the plain model."""

import itertools
from typing import Any

import pytest
import torch
from tests.models import (
    D_MODEL,
    FAMILIES,
    NUM_LAYERS,
    borrowed,
    network,
    tiny,
)
from torch import nn
from transformers import GPT2LMHeadModel

from steergauge import entry, jacobian, linalg
from steergauge.errors import InputError, ModelError
from steergauge.intervention import Scope
from steergauge.jacobian import (
    Mode,
    Shift,
    layer_jacobians,
    logit_tangents,
    score,
    suffix_jacobian,
    widened,
)
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
    return {Scope.ALL: 0, Scope.RESPONSE: prompt_length}.get(scope, prompt_length - 1)


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
    assert size > 0.01
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
    lm, last = tiny(family), NUM_LAYERS - 1
    for layer in (0, last):
        run = plain(lm, policy, layer)
        zero = torch.zeros(D_MODEL)
        hidden = torch.autograd.functional.jacobian(lambda x, run=run: run(x)[0], zero)
        for mode in Mode:
            found = ours(lm, policy, layer, mode=mode)
            assert deviation(found.matrices, hidden) < FLOAT32
            # Mixture-of-experts kernels have no forward derivative.
            backwards = family == "mixtral" and layer < last
            assert found.mode is (Mode.REVERSE if backwards else mode)


@pytest.mark.parametrize("family", [*FAMILIES, "gptj"])
def test_the_unembedding_of_j_is_the_jacobian_of_the_logits(family):
    lm = tiny(family)
    _, logits, p = dense(lm, "last", 1)
    found = ours(lm, "last", 1)
    assert deviation(unembedded(found), logits) < FLOAT32
    assert torch.allclose(found.probabilities, p, atol=FLOAT32)


def test_policies_are_different_matrices():
    lm = tiny("llama")
    last, everywhere = (ours(lm, name, 1).matrices for name in ("last", "all"))
    generated = ours(lm, "generated", 1).matrices
    assert deviation(last, everywhere) > 0.05
    assert len(generated) == len(RESPONSE)
    assert deviation(generated[:1], last) < FLOAT32
    assert deviation(generated[1:2], last) > 0.05


def test_many_predictions_are_differentiated_forwards_and_few_backwards():
    for policy, ((ids, prompt_length), _) in POLICIES.items():
        many = len(ids) - prompt_length >= jacobian.FORWARD_FROM
        expected = Mode.FORWARD if many else Mode.REVERSE
        assert ours(tiny("llama"), policy, 1).mode is expected


def test_tokens_before_the_shift_go_through_the_model_once():
    lm, widths = tiny("llama"), []
    ours(lm, "last", 1)
    handle = lm.blocks[2].register_forward_pre_hook(
        lambda _, args: widths.append(args[0].shape[1])
    )
    try:
        ours(lm, "last", 1)
    finally:
        handle.remove()
    # All of them into the cache, then the last one for the logits and for the graph.
    assert widths == [len(PROMPT) - 1, 1, 1]


def test_it_works_where_gradients_are_off():
    lm = tiny("llama")
    for policy in ("last", "generated"):
        expected = ours(lm, policy, 1).matrices
        with torch.no_grad():
            assert torch.equal(ours(lm, policy, 1).matrices, expected)


def test_the_soft_cap_is_in_the_slopes():
    capped, free = (ours(tiny(name), "last", 1) for name in ("gemma2", "llama"))
    assert (free.slopes == 1).all()
    assert capped.slopes.min() < 0.9
    cap = tiny("gemma2").model.config.final_logit_softcapping
    logits = plain(tiny("gemma2"), "last", 1)(torch.zeros(D_MODEL))[1].double()
    # cap tanh(z / cap) has the slope 1 - (its value / cap)^2.
    assert torch.allclose(capped.slopes, 1 - (logits / cap) ** 2, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize("policy", ["last", "all", "generated"])
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
    monkeypatch.setattr(entry, "TOKENS_AT_ONCE", 7 * len(RESPONSE))
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
    for gap, next_gap in itertools.pairwise(gaps):
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
    # Not vacuous: so much is the plant's doing.
    whole = linalg.spectrum(ours(tiny("gpt2"), "last", 1).fisher()).values
    assert linalg.effective_ranks(whole, floor=1e-6).ranks[1e-4] > 2 * rank


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


class Doubled(torch.autograd.Function):
    """An operation with a plain backward pass: no batched form, no forward one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(gradient.numpy() * 2)


class Doubling(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Doubled.apply(x)


@pytest.mark.parametrize("mode", [None, *Mode])
@pytest.mark.parametrize("policy", ["last", "generated"])
def test_an_operation_with_nothing_but_a_backward_pass_is_enough(policy, mode):
    model = network("gpt2").double()
    model.transformer.ln_f = nn.Sequential(model.transformer.ln_f, Doubling())
    found = ours(borrowed(model), policy, 1, mode=mode)
    assert found.mode is Mode.REVERSE
    simple = ours(tiny("gpt2", dtype=torch.float64), policy, 1).matrices
    assert deviation(found.matrices, 2 * simple) < 1e-12


class Normalised(GPT2LMHeadModel):
    """A model that returns log-probabilities where others return logits."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.log_softmax(-1)
        return output


def test_a_model_that_mixes_its_logits_is_refused_and_left_as_it_was():
    model = Normalised(network("gpt2").config).eval()
    model.load_state_dict(network("gpt2").state_dict())
    lm = borrowed(model)
    with pytest.raises(ModelError, match="mixes its logits"):
        ours(lm, "last", 1)
    assert sum(hooks(model)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_on_a_float32_copy_of_the_same_weights(dtype):
    lm = borrowed(network("llama").to(dtype))
    before = {name: w.clone() for name, w in lm.model.named_parameters()}
    found = ours(lm, "last", 1)
    same = ours(borrowed(network("llama").to(dtype).float()), "last", 1)
    assert deviation(found.matrices, same.matrices) < FLOAT32
    # Not vacuous: the weights are rounded.
    assert deviation(found.matrices, ours(tiny("llama"), "last", 1).matrices) > 1e-4
    for name, weight in lm.model.named_parameters():
        assert weight.dtype == dtype
        assert torch.equal(weight, before[name])
    wide = widened(lm)
    assert wide.dtype == torch.float32
    assert widened(wide) is wide
    assert wide.blocks[0] is not lm.blocks[0]
    # Its law has to be proved of itself.
    assert wide._proved is not lm._proved


@pytest.mark.parametrize(
    ("row", "scope", "complaint"),
    [
        (([1, 2, 3], 0), Scope.ALL, "3 tokens has 0"),
        (([1, 2, 3], 4), Scope.ALL, "3 tokens has 4"),
        (([1, 2, 3], 3), Scope.RESPONSE, "scope response"),
        (([1, 2, 3], 2), Scope.RESPONSE, "scope response"),
    ],
)
def test_a_row_without_a_shifted_token_is_refused(row, scope, complaint):
    with pytest.raises(InputError, match=complaint):
        suffix_jacobian(tiny("llama"), row, shift=Shift(Site(1), scope))


def test_a_score_needs_a_response():
    with pytest.raises(InputError, match="has none"):
        score(tiny("llama"), (PROMPT, len(PROMPT)), shift=Shift(Site(1)))


@EVERY
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_all_blocks_from_one_pass_are_those_of_a_pass_each(family, policy):
    row, scope = POLICIES[policy]
    shifts = [Shift(Site(layer), scope) for layer in (2, 0, 3)]
    together = layer_jacobians(tiny(family), row, shifts=shifts)
    alone = [
        suffix_jacobian(tiny(family), row, shift=shift, mode=Mode.REVERSE)
        for shift in shifts
    ]
    size = float(alone[1].matrices.abs().max())
    assert float((alone[0].matrices - alone[1].matrices).abs().max()) > 0.01 * size
    for own, one in zip(together, alone, strict=True):
        assert torch.allclose(own.matrices, one.matrices, atol=FLOAT32 * size, rtol=0)
        assert torch.allclose(own.probabilities, one.probabilities, atol=1e-6)


def test_blocks_at_once_need_one_scope_no_point_and_no_block_twice():
    lm, row = tiny("llama"), (PROMPT, len(PROMPT))
    here = Shift(Site(0))
    at = Shift(Site(1), at=torch.ones(D_MODEL))
    for wrong in (here, at, Shift(Site(1), Scope.ALL)):
        with pytest.raises(InputError):
            layer_jacobians(lm, row, shifts=[here, wrong])


@EVERY
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_tangents_of_the_logits_are_j_u_and_give_u_f_u(family, policy):
    row, scope = POLICIES[policy]
    shift = Shift(Site(1), scope)
    directions = torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(2))
    found = logit_tangents(tiny(family), row, directions, shift=shift)
    exact = suffix_jacobian(tiny(family), row, shift=shift)
    rise = torch.einsum(
        "vd,kde,ne->nkv",
        exact.unembedding.double(),
        exact.matrices,
        directions.double(),
    )
    rise = rise * exact.slopes
    size = float(rise.abs().max())
    assert torch.allclose(found.tangents, rise, atol=FLOAT32 * size, rtol=0)
    cost = torch.einsum(
        "nd,de,ne->n", directions.double(), exact.fisher(), directions.double()
    )
    assert torch.allclose(found.visibility, cost, rtol=1e-4)


def test_tangents_need_no_forward_mode(monkeypatch):
    row, shift = (PROMPT, len(PROMPT)), Shift(Site(1))
    u = torch.eye(D_MODEL)[:2]
    forward = logit_tangents(tiny("llama"), row, u, shift=shift)
    monkeypatch.setattr(jacobian, "_has_forward", lambda _entry: False)
    reverse = logit_tangents(tiny("llama"), row, u, shift=shift)
    size = float(forward.tangents.abs().max())
    assert torch.allclose(forward.tangents, reverse.tangents, atol=FLOAT32 * size)


@pytest.mark.parametrize("short", [True, False], ids=["memory", "no batched form"])
def test_only_what_has_no_batched_form_is_taken_row_by_row(monkeypatch, short):
    lm = tiny("gpt2")
    text = (PROMPT, len(PROMPT))
    shifts = [Shift(Site(1)), Shift(Site(2))]
    expected = layer_jacobians(lm, text, shifts=shifts)
    whole, tried = jacobian._rows, []

    def rows(entry, above, *, batched):
        tried.append(batched)
        if batched:
            error = torch.OutOfMemoryError if short else RuntimeError
            raise error("no")
        return whole(entry, above, batched=batched)

    monkeypatch.setattr(jacobian, "_rows", rows)
    if short:
        with pytest.raises(torch.OutOfMemoryError):
            layer_jacobians(lm, text, shifts=shifts)
        assert tried == [True]
    else:
        found = layer_jacobians(lm, text, shifts=shifts)
        assert tried == [True, False]
        for one, other in zip(found, expected, strict=True):
            assert (one.matrices - other.matrices).abs().max() < FLOAT32
