"""What activations leave empty and what the output hides are two different things."""

import json
import math

import pytest
import torch
from tests.models import D_MODEL, borrowed, network, tiny

from steergauge import linalg
from steergauge.errors import InputError
from steergauge.fisher import Fisher, fisher
from steergauge.geometry.activation_nullspace import (
    MOST_ANGLES,
    Covariance,
    activation_covariance,
    activation_nullspace,
)
from steergauge.jacobian import Shift
from steergauge.vector import Site

LAYER = 1
LIVE = 12
"""Dimensions that the activations of the planted model live in."""


def rows(num: int, *, length: int = 9) -> list:
    """Texts of several lengths, with a response of two tokens."""
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(3, 200, (num, length), generator=generator).tolist()
    return [(ids[: length - i % 4], length - i % 4 - 2) for i, ids in enumerate(drawn)]


def states(lm, texts) -> torch.Tensor:
    """The same by Hugging Face's hidden states, one text at a time."""
    with torch.no_grad():
        outputs = [
            lm.model(torch.tensor([ids]), output_hidden_states=True) for ids, _ in texts
        ]
    return torch.cat([out.hidden_states[LAYER + 1][0] for out in outputs]).double()


def without_lower_blocks(model):
    """Blocks 0 to LAYER add nothing, so the stream after them is the embedding."""
    for block in model.model.layers[: LAYER + 1]:
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    return model


def compared(lm, texts, output: Fisher, **options):
    covariance = activation_covariance(lm, texts, layer=LAYER)
    spectrum = linalg.spectrum(output.matrix)
    return activation_nullspace(covariance, spectrum, floor=output.floor, **options)


def synthetic(values, directions=None, *, num_states=1000) -> Covariance:
    basis = torch.eye(len(values)) if directions is None else directions
    scales = torch.tensor(values, dtype=torch.float64)
    matrix = basis.double() * scales @ basis.double().T
    return Covariance(matrix, num_states, torch.finfo(torch.float32).eps)


def output_with(values) -> linalg.Spectrum:
    return linalg.spectrum(torch.diag(torch.tensor(values, dtype=torch.float64)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_the_covariance_is_that_of_every_token_of_every_text(family):
    lm, texts = tiny(family), rows(37)
    found = activation_covariance(lm, texts, layer=LAYER)
    every = states(lm, texts)
    expected = torch.cov(every.T)
    assert found.num_states == len(every) == sum(len(ids) for ids, _ in texts)
    # Float32 kernels of batches of other shapes, squared with a size of about 1.
    assert (found.matrix - expected).abs().max() < 1e-4 * expected.abs().max()
    assert torch.linalg.matrix_norm(expected, ord=2) > 0.5


def test_neither_the_order_of_texts_nor_a_common_offset_is_in_the_covariance():
    lm, texts = tiny("llama"), rows(40)
    first = activation_covariance(lm, texts, layer=LAYER).matrix
    second = activation_covariance(lm, texts[::-1], layer=LAYER).matrix
    assert torch.allclose(first, second, rtol=0, atol=1e-5 * float(first.abs().max()))
    every = states(lm, texts)
    raw = every.T @ every / (len(every) - 1)
    assert (raw - first).abs().max() > 0.01 * first.abs().max()


def test_activations_in_a_subspace_leave_the_rest_empty_but_the_output_sees_it():
    model = without_lower_blocks(network("llama"))
    table = model.get_input_embeddings().weight.data
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(D_MODEL, LIVE, generator=generator)).Q
    table.copy_(table @ basis @ basis.T)
    lm, texts = borrowed(model), rows(40)
    found = compared(lm, texts, fisher(lm, texts[:6], shift=Shift(Site(LAYER))))
    assert not found.counted
    assert found.dimension == D_MODEL - LIVE
    assert found.output_dimension == 0
    # As visible as any others: the upper blocks know nothing of the subspace.
    assert found.gain == pytest.approx(1, abs=0.3)
    assert found.weakest > 0.1
    assert "the output hides none" in found.answer


def test_activations_that_go_everywhere_have_no_null_space_though_the_output_has():
    model = without_lower_blocks(network("llama"))
    head = model.get_output_embeddings().weight.data
    head.copy_(torch.outer(head[:, 0], head[0]))
    lm, texts = borrowed(model), rows(40)
    prompt = ([5, 9, 40, 77], 4)
    found = compared(lm, texts, fisher(lm, [prompt], shift=Shift(Site(LAYER))))
    assert not found.counted
    assert found.dimension == 0
    assert found.output_dimension == D_MODEL - 1
    assert (found.angles_deg, found.mean_cos2, found.gain) == ((), None, None)
    assert found.answer == (
        "The activations vary in all 48 dimensions, and the output hides 47 of them."
    )


def test_few_tokens_show_a_null_space_that_is_a_count_of_tokens():
    lm, texts = tiny("llama"), rows(4)
    output = fisher(lm, texts[:3], shift=Shift(Site(LAYER)))
    found = compared(lm, texts, output)
    num_states = sum(len(ids) for ids, _ in texts)
    assert num_states < D_MODEL
    assert found.dimension == D_MODEL - num_states + 1
    assert found.counted
    assert "a count of tokens" in found.answer
    enough = compared(lm, rows(40), output)
    assert (enough.counted, enough.dimension) == (False, 0)


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0])
def test_the_angles_are_those_between_both_sets_of_weakest_directions(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # The plane of e2 and e3 is hidden; the activations' is that, turned in e1 and e3.
    turned = torch.eye(4, dtype=torch.float64)
    turned[:, 1] = torch.tensor([0, c, 0, s], dtype=torch.float64)
    turned[:, 3] = torch.tensor([0, -s, 0, c], dtype=torch.float64)
    found = activation_nullspace(
        synthetic([3.0, 2.0, 0.0, 0.0], turned),
        output_with([5.0, 4.0, 1e-14, 0.0]),
        floor=1e-7,
    )
    assert (found.dimension, found.output_dimension) == (2, 2)
    assert found.angles_deg == pytest.approx([0, degrees], abs=1e-6)
    assert found.mean_cos2 == pytest.approx((1 + c**2) / 2)
    assert found.expected_cos2 == 0.5
    # tr(N'FN) / 2 = 4 s^2 / 2 over tr F / 4 = 9 / 4.
    assert found.gain == pytest.approx(8 * s**2 / 9, abs=1e-12)


def test_two_random_subspaces_have_the_mean_cos2_that_is_expected_of_them():
    width, null, shares = 60, 20, []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        turned = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
        found = activation_nullspace(
            synthetic([1.0] * (width - null) + [0.0] * null, turned),
            output_with([1.0] * (width - null) + [0.0] * null),
            floor=1e-7,
        )
        shares.append(found.mean_cos2)
    assert found.dimension == null
    assert found.expected_cos2 == pytest.approx(1 / 3)
    # Standard error of 30 means of 20 cos^2, which repel each other: below 0.004.
    assert sum(shares) / 30 == pytest.approx(1 / 3, abs=0.012)


def test_many_angles_are_thinned_evenly_from_the_smallest_to_the_largest():
    width = 3 * MOST_ANGLES
    values = [1.0] + [0.0] * (width - 1)
    output = output_with([float(width - i) for i in range(width)])
    found = activation_nullspace(synthetic(values), output, floor=1e-7)
    assert found.dimension == width - 1
    assert len(found.angles_deg) == MOST_ANGLES
    assert list(found.angles_deg) == sorted(found.angles_deg)
    first = activation_nullspace(
        synthetic([1.0, 0, 0]), output_with([3, 2, 1]), floor=0
    )
    assert len(first.angles_deg) == 2


def test_no_share_below_the_precision_of_the_stream_is_called_null():
    values = [1.0, 1e-4, 0.0]
    output = output_with([1.0, 1.0, 1.0])
    sharp = activation_nullspace(synthetic(values), output, floor=1e-7)
    assert (sharp.dimension, sharp.threshold) == (1, 1e-8)
    eps = torch.finfo(torch.bfloat16).eps
    blurred = Covariance(synthetic(values).matrix, 1000, eps)
    found = activation_nullspace(blurred, output, floor=1e-7)
    assert found.threshold == pytest.approx((10 * eps) ** 2)
    assert found.dimension == 2
    chosen = activation_nullspace(synthetic(values), output, floor=0, threshold=1e-3)
    assert (chosen.dimension, chosen.threshold) == (2, 1e-3)


def test_an_output_that_sees_nothing_has_neither_gain_nor_weakest_size():
    found = activation_nullspace(
        synthetic([1.0, 0.0]), output_with([0.0, 0.0]), floor=1e-7
    )
    assert (found.output_dimension, found.gain, found.weakest) == (2, None, None)
    json.dumps(found.to_json(), allow_nan=False)


def test_both_null_spaces_are_named_where_both_are_there():
    found = activation_nullspace(
        synthetic([1.0, 1.0, 0.0]), output_with([1.0, 0.0, 0.0]), floor=1e-7
    )
    assert "1 of 3 dimensions empty and the output hides 2" in found.answer
    none = activation_nullspace(
        synthetic([1.0, 1.0, 1.0]), output_with([1.0, 1.0, 1.0]), floor=1e-7
    )
    assert "the output hides none of them" in none.answer


def test_the_record_is_plain_data():
    found = activation_nullspace(
        synthetic([1.0, 0.0]), output_with([2.0, 1.0]), floor=1e-7
    )
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert record["num_states"] == 1000
    assert record["dimension"] == 1
    assert record["angles_deg"] == pytest.approx([0])
    assert record["answer"] == found.answer
    assert record["expected_cos2"] == 0.5


def test_what_has_no_covariance_is_refused():
    lm = tiny("llama")
    for texts in ([], [([7], 1)]):
        with pytest.raises(InputError, match="fewer than two tokens"):
            activation_covariance(lm, texts, layer=LAYER)


def test_directions_of_another_width_are_refused():
    with pytest.raises(InputError, match="width 2"):
        activation_nullspace(
            synthetic([1.0, 0.0]), output_with([2.0, 1.0, 1.0]), floor=0
        )
