"""The emulated estimate is the one described, and what moves it off J is told apart."""

import copy
import json

import numpy as np
import pytest
import torch
from tests.models import D_MODEL, D_VOCAB, borrowed, network, tiny

from steergauge.errors import InputError, ModelError, NonFiniteLogits
from steergauge.geometry.published_nullspace import (
    LABEL,
    Recipe,
    converted,
    differences,
    published_nullspace,
    rank_above,
    unit_probes,
)

LAYER = 1
PROMPT = [17, 101, 5, 150, 33, 64, 9]
"""Longer than a sliding window."""

ROW = ([*PROMPT, 70, 21], len(PROMPT))
"""With a response, which the estimate does not look at."""


def one_probe_at_a_time(lm, prompt, probes, epsilon):
    """The same by whole passes with a hook, two a probe, as a user would write it."""

    def last_logits(step):
        def shifting(_module, _args, output):
            stream = (output[0] if isinstance(output, tuple) else output).clone()
            stream[:, -1] += step
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        handle = lm.blocks[LAYER].register_forward_hook(shifting)
        try:
            with torch.no_grad():
                return lm.model(torch.tensor([prompt]), use_cache=False).logits[0, -1]
        finally:
            handle.remove()

    forth = torch.stack([last_logits(epsilon * e) for e in probes])
    back = torch.stack([last_logits(-epsilon * e) for e in probes])
    return (forth - back) / (2 * epsilon)


def estimate(lm, **settings):
    return published_nullspace(lm, ROW, layer=LAYER, recipe=Recipe(**settings))


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1]])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral"])
def test_batched_differences_are_those_of_whole_passes_one_probe_at_a_time(
    family, prompt
):
    lm, recipe = tiny(family), Recipe(dtype=torch.float32, num_probes=70)
    probes = unit_probes(recipe, D_MODEL)
    found = differences(lm, prompt, layer=LAYER, probes=probes, epsilon=0.5)
    expected = one_probe_at_a_time(lm, prompt, probes, 0.5)
    assert found.shape == (70, D_VOCAB)
    assert expected.abs().max() > 0.05
    # Other kernels' float32 rounding of logits up to 10; seen up to 4e-6.
    assert (found - expected).abs().max() < 5e-5


def test_small_steps_in_float64_give_the_dense_jacobian_times_the_probes():
    lm = tiny("gpt2", dtype=torch.float64)
    probes = unit_probes(Recipe(dtype=torch.float64, num_probes=5), D_MODEL)

    def logits(delta):
        stream = lm.prefix(torch.tensor([PROMPT]), mask, layer=LAYER)
        moved = torch.cat([stream[:, :-1], stream[:, -1:] + delta], dim=1)
        return lm.suffix(moved, mask, layer=LAYER)[0, -1]

    mask = torch.ones(1, len(PROMPT), dtype=torch.bool)
    zero = torch.zeros(D_MODEL, dtype=torch.float64)
    dense = torch.autograd.functional.jacobian(logits, zero)
    expected = probes @ dense.T
    for epsilon, tolerance in ((1e-3, 1e-5), (1e-4, 1e-7)):
        found = differences(lm, PROMPT, layer=LAYER, probes=probes, epsilon=epsilon)
        # Bending is of second order in epsilon: a tenth of the step, a hundredth of it.
        assert (found - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("num_probes", [20, 60])
def test_the_rank_is_that_of_the_singular_values_of_the_differences(num_probes):
    lm = tiny("llama")
    recipe = Recipe(dtype=torch.float32, num_probes=num_probes, threshold=0.1)
    probes = unit_probes(recipe, D_MODEL)
    found = differences(lm, PROMPT, layer=LAYER, probes=probes, epsilon=recipe.epsilon)
    sizes = np.linalg.svd(found.numpy(), compute_uv=False)
    rank = int((sizes > recipe.threshold * sizes[0]).sum())
    assert 10 < rank < D_MODEL
    result = published_nullspace(lm, ROW, layer=LAYER, recipe=recipe)
    assert result.rank == rank
    assert result.null_fraction == pytest.approx(1 - rank / num_probes)


def test_half_precision_is_mostly_rounding_and_more_of_it_in_bfloat16():
    lm = tiny("llama")
    errors = {
        dtype: estimate(lm, dtype=dtype, num_probes=200).error
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    # At a width of 48 the step is a few units of float16's last place a coordinate.
    assert errors[torch.float32] < 1e-3
    assert 0.2 < errors[torch.float16] < 1
    assert errors[torch.bfloat16] > 2


def test_rounding_gives_the_estimate_more_rank_than_the_stream_has_dimensions():
    lm = tiny("llama")
    blurred = estimate(lm, num_probes=200)
    sharp = estimate(lm, dtype=torch.float32, num_probes=200)
    assert blurred.recipe.dtype is torch.float16
    assert blurred.rank > D_MODEL >= sharp.rank
    assert sharp.rank == sharp.exact_rank == blurred.exact_rank


def test_more_probes_than_dimensions_invent_a_null_space():
    found = estimate(tiny("llama"), dtype=torch.float32, num_probes=480)
    assert found.exact_null_fraction < 0.1
    assert found.null_fraction >= 0.9


def test_fewer_probes_than_the_rank_see_no_null_space():
    model = network("llama")
    head = model.get_output_embeddings().weight.data
    left, sizes, right = torch.linalg.svd(head, full_matrices=False)
    head.copy_(left[:, :12] * sizes[:12] @ right[:12])
    lm = borrowed(model)
    few, many = (
        estimate(lm, dtype=torch.float32, num_probes=n, threshold=0.01)
        for n in (6, 300)
    )
    assert few.exact_rank == many.exact_rank == many.rank == 12
    assert few.exact_null_fraction == pytest.approx(0.75)
    assert few.null_fraction == 0


def test_the_borrowed_model_is_neither_converted_nor_shared():
    lm = borrowed(network("gpt2"))
    before = copy.deepcopy(lm.model.state_dict())
    narrow = converted(lm, torch.float16)
    estimate(lm, num_probes=3)
    after = lm.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert lm.dtype == torch.float32
    assert narrow.dtype == torch.float16
    own = {weight.data_ptr() for weight in lm.model.parameters()}
    assert own.isdisjoint(weight.data_ptr() for weight in narrow.model.parameters())
    # Tied weights stay tied, and the copy is entered by its own blocks.
    model = narrow.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert narrow.blocks[0] is model.transformer.h[0]
    assert converted(narrow, torch.float16) is narrow


def test_rotary_frequencies_of_the_copy_stay_in_float32():
    lm = tiny("llama")
    buffers = dict(converted(lm, torch.float16).model.named_buffers())
    frequencies = [name for name in buffers if "inv_freq" in name]
    assert frequencies
    assert all(buffers[name].dtype == torch.float32 for name in frequencies)


def test_a_copy_that_would_be_too_large_is_refused(monkeypatch):
    lm = tiny("llama")
    num_weights = sum(weight.numel() for weight in lm.model.parameters())
    monkeypatch.setattr("steergauge.jacobian.LARGEST_COPY", 2 * num_weights - 1)
    with pytest.raises(ModelError, match="too large"):
        estimate(lm, num_probes=3)
    monkeypatch.setattr("steergauge.jacobian.LARGEST_COPY", 2 * num_weights)
    assert estimate(lm, num_probes=3).rank == 3


def test_logits_beyond_half_precision_are_refused():
    model = network("llama")
    model.get_output_embeddings().weight.data *= 1e5
    lm = borrowed(model)
    assert estimate(lm, dtype=torch.float32, num_probes=3).rank == 3
    with pytest.raises(NonFiniteLogits, match="float16"):
        estimate(lm, num_probes=3)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_probes": 0},
        {"epsilon": 0.0},
        {"threshold": 1.0},
        {"dtype": torch.int8},
    ],
)
def test_settings_that_estimate_nothing_are_refused(settings):
    with pytest.raises(InputError, match="no null space can be estimated"):
        Recipe(**settings)


def test_the_record_is_plain_data_and_says_that_it_is_an_emulation():
    found = estimate(tiny("llama"), num_probes=50)
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert record["label"] == LABEL
    assert "emulation" in LABEL
    assert (record["dtype"], record["num_probes"]) == ("float16", 50)
    assert (record["epsilon"], record["threshold"]) == (0.01, 0.05)
    assert record["exact"]["rank"] == found.exact_rank
    assert record["exact"]["null_fraction"] == 1 - found.exact_rank / D_MODEL


def test_a_rank_counts_singular_values_above_a_share_of_the_largest():
    sizes = torch.tensor([2.0, 0.11, 0.09, 0.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, 4, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(drawn).Q
    gram = basis * sizes.square() @ basis.T
    assert [rank_above(gram, share) for share in (0.5, 0.05, 0.01)] == [1, 2, 3]
    assert rank_above(torch.zeros(3, 3), 0.05) == 0
