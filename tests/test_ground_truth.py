"""The ground-truth models have the answers that they plant: by brute force, plainly.

Nothing here is the package's: a hook adds delta, dense autograd differentiates the
logits of the last position, KL is the sum of its definition.
"""

import math
from collections.abc import Callable

import pytest
import torch
from tests import ground_truth
from tests.ground_truth import DEAD, LIVE, SILENT, SINGULAR, TWINS, texts
from tests.models import D_VOCAB, NUM_LAYERS, network, tiny
from torch import Tensor

ROUNDING = 1e-12
"""Relative; float64 through a few blocks loses two or three digits of its sixteen."""

NULL = 1e-6
"""A singular value of F's factor below this share of the largest one is null. Rounding
of float64 makes up to 1e-8, the square root of its unit, and the norms' eps 1e-8; the
smallest others are above 1e-3."""

Run = Callable[[Tensor], Tensor]


def steered(lm, ids: list[int], *, layer: int, first: int = -1) -> Run:
    """The map delta -> last logits, with delta added to streams from `first` on."""

    def hook(_module, _args, output):
        stream = output[0] if isinstance(output, tuple) else output
        rest = stream[:, :first]
        stream = torch.cat([rest, stream[:, first:] + run.delta], dim=1)
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    def run(delta: Tensor) -> Tensor:
        run.delta = delta
        handle = lm.blocks[layer].register_forward_hook(hook)
        try:
            return lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        finally:
            handle.remove()

    return run


def stream_at(lm, ids: list[int], *, layer: int) -> Tensor:
    """The stream of the last token after block `layer`."""
    seen = []
    handle = lm.blocks[layer].register_forward_hook(
        lambda _module, _args, output: seen.append(output)
    )
    try:
        lm.model(torch.tensor([ids]), use_cache=False)
    finally:
        handle.remove()
    output = seen[0]
    return (output[0] if isinstance(output, tuple) else output)[0, -1].detach()


def jacobian(run: Run, zero: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(run, zero, vectorize=True)


def fisher(lm, ids: list[int], *, layer: int = 1, first: int = -1) -> Tensor:
    """J' (diag p - p p') J, as a sum of squares."""
    run = steered(lm, ids, layer=layer, first=first)
    zero = torch.zeros(lm.d_model, dtype=lm.dtype)
    derivative = jacobian(run, zero).double()
    with torch.no_grad():
        p = run(zero).double().softmax(-1)
    factor = p.sqrt()[:, None] * (derivative - p @ derivative)
    return factor.T @ factor


def sizes(matrix: Tensor) -> Tensor:
    """sigma / sigma_1 of A in F = A'A, falling."""
    values = torch.linalg.eigvalsh(matrix).flip(0).clamp_min(0)
    return (values / values[0]).sqrt()


def num_null(matrix: Tensor) -> int:
    return int((sizes(matrix) < NULL).sum())


def cost(basis: Tensor, matrix: Tensor) -> float:
    """The largest norm of F u for a column u, by that of F itself."""
    size = float(torch.linalg.matrix_norm(matrix, ord=2))
    assert size > 1e-3
    return float((matrix @ basis).norm(dim=0).max()) / size


@torch.no_grad()
def nats(run: Run, delta: Tensor) -> float:
    """KL(at 0 || at delta)."""
    p, q = (run(x).log_softmax(-1) for x in (torch.zeros_like(delta), delta))
    return float((p.exp() * (p - q)).sum())


@torch.no_grad()
def change(run: Run, delta: Tensor) -> float:
    """The largest change of a logit."""
    return float((run(delta) - run(torch.zeros_like(delta))).abs().max())


def unit(basis: Tensor, seed: int = 5) -> Tensor:
    """A random direction of length 1 in the span of orthonormal columns."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(basis.shape[1], generator=generator, dtype=torch.float64)
    return basis @ drawn / drawn.norm()


MODELS = {
    "linear": lambda: ground_truth.linear().lm,
    "softmax2": lambda: ground_truth.softmax2().lm,
    "block_switch": lambda: ground_truth.block_switch().lm,
    "narrow_llama": ground_truth.narrow_llama,
    "widened_llama": lambda: ground_truth.widened_llama().lm,
    "masked_llama": lambda: ground_truth.masked_llama().lm,
    "rotated_llama": lambda: ground_truth.rotated_llama()[0],
    "duplicate_embedding": ground_truth.duplicate_embedding,
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_one_that_can_be_entered_half_way_and_generate(name):
    lm = MODELS[name]()
    assert lm.dtype == torch.float64
    assert lm.prove(again=True) == 0
    found = lm.generate(["a lake", "moon"], samples=2, max_new_tokens=3, seed=1)
    assert len(found) == 4
    assert len({sample.token_ids for sample in found}) > 1


def test_the_linear_model_has_the_planted_singular_values_and_null_space():
    planted = ground_truth.linear()
    lm, expected = planted.lm, torch.tensor(SINGULAR, dtype=torch.float64)
    first, second = (fisher(lm, ids) for ids in texts(2))
    # The two texts have predictions of their own, and all else in common.
    assert float((first - second).norm() / first.norm()) > 0.1
    for matrix in (first, second):
        assert cost(planted.null, matrix) < ROUNDING
        assert num_null(matrix) == lm.d_model - len(SINGULAR)
    zero = torch.zeros(lm.d_model, dtype=torch.float64)
    for layer in range(lm.num_layers):
        derivative = jacobian(steered(lm, texts(1)[0], layer=layer), zero)
        found = torch.linalg.svdvals(derivative)
        assert torch.allclose(found[: len(SINGULAR)], expected, rtol=ROUNDING, atol=0)
        assert found[len(SINGULAR) :].max() < ROUNDING * found[0]


def test_the_linear_model_has_the_planted_eigenvalues_after_the_silent_token():
    planted = ground_truth.linear()
    ids = [*texts(1)[0], SILENT]
    expected = torch.tensor(SINGULAR, dtype=torch.float64).square() / D_VOCAB
    matrix = planted.visible @ expected.diag() @ planted.visible.T
    found = fisher(planted.lm, ids)
    assert torch.allclose(found, matrix, atol=ROUNDING * float(expected[0]))
    assert not torch.allclose(fisher(planted.lm, texts(1)[0]), matrix, rtol=0.1)


def test_the_linear_model_is_linear_and_its_null_exact_at_any_distance():
    planted = ground_truth.linear()
    run = steered(planted.lm, texts(1)[0], layer=1)
    derivative = jacobian(run, torch.zeros_like(planted.null[:, 0]))
    far = 1000 * stream_at(planted.lm, texts(1)[0], layer=1).norm()
    start = run(torch.zeros_like(planted.null[:, 0]))
    seen, unseen = unit(planted.visible), unit(planted.null)
    for t in (0.01, 1.0, far):
        moved = run(t * seen) - start
        assert torch.allclose(moved, t * derivative @ seen, rtol=1e-6, atol=1e-9)
    assert change(run, far * seen) > 100
    # Rounding of sums whose terms are as large as those of the visible direction.
    assert change(run, far * unseen) < ROUNDING * change(run, far * seen)


def test_two_live_tokens_have_the_kl_of_the_closed_form_at_any_distance():
    slope = 2.0
    planted = ground_truth.softmax2(slope)
    w = planted.visible[:, 0]
    for ids in [*texts(3), [*texts(1)[0], SILENT]]:
        run = steered(planted.lm, ids, layer=1)
        with torch.no_grad():
            start = run(torch.zeros_like(w))
        log_odds = float(start[LIVE[0]] - start[LIVE[1]])
        for t in (-3.0, -0.1, 0.01, 0.5, 2.0):
            expected = ground_truth.two_token_nats(log_odds, slope * t)
            # Rounding of a sum of two logarithms of order 1.
            assert nats(run, t * w) == pytest.approx(expected, rel=1e-9, abs=1e-14)
            if ids[-1] == SILENT:
                cosh = math.log(math.cosh(slope * t / 2))
                assert expected == pytest.approx(cosh, rel=1e-9)
        others = [i for i in range(D_VOCAB) if i not in LIVE]
        assert (start.softmax(-1)[others] == 0).all()


def test_two_live_tokens_have_a_fisher_matrix_of_rank_1_in_closed_form():
    slope = 2.0
    planted = ground_truth.softmax2(slope)
    w = planted.visible[:, 0]
    for ids in [*texts(3), [*texts(1)[0], SILENT]]:
        run = steered(planted.lm, ids, layer=1)
        with torch.no_grad():
            p = run(torch.zeros_like(w)).softmax(-1)[LIVE[0]]
        expected = p * (1 - p) * slope**2 * torch.outer(w, w)
        assert float(expected.norm()) > 0.01
        assert torch.allclose(fisher(planted.lm, ids), expected, rtol=1e-9, atol=1e-15)
        if ids[-1] == SILENT:
            assert abs(p - 0.5) < ROUNDING
        far = 1000 * unit(planted.null)
        assert change(run, far) < 1000 * ROUNDING < change(run, 1000 * w)


def test_the_switching_model_has_a_null_space_for_each_kind_of_text():
    planted = ground_truth.block_switch()
    matrices = [fisher(planted.lm, [*texts(1)[0], last], layer=0) for last in (60, 61)]
    for own, matrix in enumerate(matrices):
        assert num_null(matrix) == 6
        assert cost(planted.nulls[own], matrix) < ROUNDING
        assert cost(planted.nulls[1 - own], matrix) > 0.1
    assert num_null(matrices[0] + matrices[1]) == planted.shared.shape[1] == 3
    assert cost(planted.shared, matrices[0] + matrices[1]) < ROUNDING


@pytest.mark.parametrize("last", [60, 61])
def test_the_switch_is_null_up_to_its_distance_and_the_rest_at_any(last):
    planted = ground_truth.block_switch()
    run = steered(planted.lm, [*texts(1)[0], last], layer=0)
    away = planted.switch if last % 2 else -planted.switch
    assert change(run, 0.99 * away) < ROUNDING
    assert nats(run, 1.01 * away) > 0.01
    for column in planted.shared[:, 1:].T:
        assert change(run, 1000 * column) < 1000 * ROUNDING
    assert change(run, 1000 * unit(planted.nulls[1 - last % 2])) > 1


def test_the_float64_llama_is_hugging_faces_own():
    ids = torch.tensor(texts(2))
    with torch.no_grad():
        exact = ground_truth.narrow_llama(eps=1e-6).model(ids).logits
        own = network("llama")(ids).logits
    # Their difference is the rounding of float32 in the model of Hugging Face.
    assert 1e-8 < float((exact - own).abs().max()) < 1e-4 < float(own.std())


@pytest.mark.parametrize("name", ["widened_llama", "masked_llama", "rotated_llama"])
def test_a_llama_in_other_coordinates_is_the_same_function(name):
    ids = torch.tensor(texts(3))
    with torch.no_grad():
        same = MODELS[name]().model(ids).logits
        narrow = ground_truth.narrow_llama().model(ids).logits
    assert float(narrow.std()) > 0.5
    assert float((same - narrow).abs().max()) < ROUNDING * 100


@pytest.mark.parametrize("first", [-1, 0])
def test_dead_coordinates_of_the_widened_llama_are_null_with_the_radial_one(first):
    planted = ground_truth.widened_llama()
    matrices = [fisher(planted.lm, ids, first=first) for ids in texts(2)]
    for matrix in matrices:
        assert cost(planted.null, matrix) < ROUNDING
        assert num_null(matrix) == DEAD + 1
    assert num_null(sum(matrices)) == DEAD


@pytest.mark.parametrize("layer", [0, 1, NUM_LAYERS - 1])
def test_kl_is_of_fourth_order_along_dead_coordinates_and_of_second_along_others(layer):
    planted, (ids,) = ground_truth.widened_llama(), texts(1)
    run = steered(planted.lm, ids, layer=layer)
    size = stream_at(planted.lm, ids, layer=layer).norm()
    for basis, power in ((planted.null, 4), (planted.visible, 2)):
        near, far = (nats(run, t * size * unit(basis)) for t in (0.01, 0.03))
        assert near > 1e-13
        # Terms of the next order are 0.03 of the leading one, or their square.
        assert math.log(far / near, 3) == pytest.approx(power, abs=0.1)


@pytest.mark.parametrize("layer", range(NUM_LAYERS))
@pytest.mark.parametrize("first", [-1, 0])
def test_dead_coordinates_of_the_masked_llama_change_no_bit(layer, first):
    planted, (ids,) = ground_truth.masked_llama(), texts(1)
    run = steered(planted.lm, ids, layer=layer, first=first)
    far = 1000 * stream_at(planted.lm, ids, layer=layer).norm()
    assert change(run, far * unit(planted.null)) == 0
    assert change(run, far * unit(planted.visible)) > 0.1
    # Not vacuous: the norms of the widened model do see them.
    wide = steered(ground_truth.widened_llama().lm, ids, layer=layer, first=first)
    assert change(wide, far * unit(planted.null)) > 0.1


def test_the_rotated_llama_turns_vectors_and_matrices_and_nothing_else():
    narrow, (rotated, q) = ground_truth.narrow_llama(), ground_truth.rotated_llama()
    ids = texts(1)[0]
    assert torch.allclose(q.T @ q, torch.eye(len(q)).double(), atol=ROUNDING)
    own, turned = (fisher(lm, ids) for lm in (narrow, rotated))
    assert torch.allclose(turned, q.T @ own @ q, atol=ROUNDING * float(own.norm()))
    assert float((turned - own).norm() / own.norm()) > 0.5
    kept = sizes(own) > NULL
    assert torch.allclose(sizes(turned)[kept], sizes(own)[kept], rtol=1e-9)
    runs = [steered(lm, ids, layer=1) for lm in (narrow, rotated)]
    v = 5 * unit(torch.eye(len(q)).double())
    assert torch.allclose(runs[0](v), runs[1](q.T @ v), atol=ROUNDING * 100)
    assert not torch.allclose(runs[0](v), runs[1](v), atol=1)


def test_the_length_of_the_last_stream_is_null_for_its_own_text_only():
    lm, last = ground_truth.narrow_llama(), NUM_LAYERS - 1
    first, second = texts(2)
    own = stream_at(lm, first, layer=last)
    other = stream_at(lm, second, layer=last)
    run = steered(lm, first, layer=last)
    # Nothing at a tenth of its length nor at nine times; the norms' eps is 1e-8.
    for t in (-0.9, 1.0, 9.0):
        assert nats(run, t * own) < 1e-10
    assert nats(run, other) > 0.1
    matrices = [fisher(lm, ids, layer=last) for ids in (first, second)]
    assert [num_null(matrix) for matrix in (*matrices, sum(matrices))] == [1, 1, 0]


@pytest.mark.parametrize("layer", range(NUM_LAYERS))
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_all_ones_is_exact_at_any_distance_under_layernorm_only(family, layer):
    lm, ids = tiny(family, dtype=torch.float64), texts(1)[0]
    far = 1000 * stream_at(lm, ids, layer=layer).norm()
    ones = torch.ones(lm.d_model, dtype=torch.float64) / lm.d_model**0.5
    for first in (-1, 0):
        run = steered(lm, ids, layer=layer, first=first)
        if family == "llama":
            assert change(run, far * ones) > 0.1
        else:
            # A stream a thousand times as long loses three digits more.
            assert change(run, far * ones) < 1000 * ROUNDING
            assert change(run, far * unit(torch.eye(lm.d_model).double())) > 0.1


def test_twin_tokens_have_the_same_streams_and_no_others_have():
    lm, ids = ground_truth.duplicate_embedding(), texts(1)[0]
    first, second = ([*ids[:3], twin, *ids[4:]] for twin in TWINS)
    other = [*ids[:3], TWINS[1] + 1, *ids[4:]]
    for layer in range(NUM_LAYERS):
        streams = [stream_at(lm, row, layer=layer) for row in (first, second, other)]
        assert torch.equal(streams[0], streams[1])
        assert float((streams[0] - streams[2]).norm() / streams[0].norm()) > 1e-3
    # The model that it was made of tells the two apart.
    own = [
        stream_at(ground_truth.narrow_llama(), row, layer=1) for row in (first, second)
    ]
    assert float((own[0] - own[1]).norm() / own[0].norm()) > 1e-3


def test_one_text_sees_fewer_directions_of_the_trained_model_than_several():
    lm = ground_truth.trained()
    matrices = [fisher(lm, ids, layer=2) for ids in texts(3, d_vocab=lm.d_vocab)]
    alone = [int((sizes(matrix) > 0.05).sum()) for matrix in matrices]
    together = int((sizes(sum(matrices)) > 0.05).sum())
    assert together > 1.5 * max(alone)
