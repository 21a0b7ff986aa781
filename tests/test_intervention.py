"""An intervention changes the positions of its scope by alpha v, and nothing else."""

import math

import pytest
import torch
from tests.models import D_MODEL, NUM_LAYERS, ids_and_mask, tiny
from transformers import DynamicCache

from steergauge.errors import InputError, LayerOutOfRange, ShapeMismatch, ZeroVector
from steergauge.intervention import Ablate, Add, Scope, blocks_of, edits
from steergauge.split import positions
from steergauge.vector import Site, SteeringVector

SCOPES = list(Scope)


def vector(seed: int = 0, *, layer: int = 1, width: int = D_MODEL) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector(torch.randn(width, generator=generator), Site(layer))


def stream_for(mask: torch.Tensor, seed: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*mask.shape, D_MODEL, generator=generator)


def covered(scope: Scope, num_prompt: int, length: int) -> list[int]:
    """The table of the module, as a list of absolute positions."""
    return {
        Scope.ALL: list(range(length)),
        Scope.PROMPT: list(range(num_prompt)),
        Scope.RESPONSE: list(range(num_prompt, length)),
        Scope.GENERATING: list(range(num_prompt - 1, length)),
    }[scope]


def test_each_scope_covers_the_positions_of_the_table():
    where = torch.arange(6)[None].expand(3, -1)
    lengths = torch.tensor([1, 3, 6])
    for scope in SCOPES:
        inside = scope.covers(where, lengths)
        for row, num_prompt in enumerate(lengths.tolist()):
            found = inside[row].nonzero().squeeze(-1).tolist()
            assert found == covered(scope, num_prompt, 6)


def test_the_scopes_are_the_words_of_the_command_line():
    assert [str(scope) for scope in SCOPES] == [
        "all",
        "prompt",
        "response",
        "generating",
    ]
    assert {scope for scope in SCOPES if scope.touches_prefill} == {
        Scope.ALL,
        Scope.PROMPT,
    }


@pytest.mark.parametrize("scope", SCOPES)
def test_exactly_the_covered_positions_change_and_by_alpha_v(scope):
    mask = ids_and_mask(9, 6, 4)[1]
    prompt_lengths = torch.tensor([5, 3, 4])
    add = Add(vector(), 1.7, scope)
    stream = stream_for(mask)
    edit = edits([add] * 3, positions(mask), mask, prompt_lengths)[1]
    moved = edit(stream) - stream
    for row, length in enumerate(mask.sum(-1).tolist()):
        inside = covered(scope, int(prompt_lengths[row]), length)
        start = mask.shape[1] - length
        for position in range(mask.shape[1]):
            if position - start in inside:
                # Rounding of h + alpha v, which is below 8: half of 2^-20.
                error = moved[row, position] - 1.7 * add.vector.direction
                assert error.abs().max() <= 2**-21
            else:
                assert (moved[row, position] == 0).all()


@pytest.mark.parametrize("scope", SCOPES)
def test_padding_is_never_changed(scope):
    mask = ids_and_mask(9, 2, 1)[1]
    lengths = torch.tensor([9, 2, 1])
    stream = stream_for(mask)
    # Positions of padding are 0, which lies within every prompt.
    edit = edits([Add(vector(), 1.0, scope)] * 3, positions(mask), mask, lengths)[1]
    assert torch.equal(edit(stream)[~mask], stream[~mask])


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_means_the_same_tokens_step_by_step(scope):
    mask = ids_and_mask(9, 6, 4)[1]
    lengths = torch.tensor([5, 3, 1])
    where = positions(mask)
    stream = stream_for(mask)
    here = [Add(vector(), 1.7, scope)] * 3
    whole = edits(here, where, mask, lengths)[1](stream)
    for t in range(mask.shape[1]):
        one = slice(t, t + 1)
        step = edits(here, where[:, one], mask[:, one], lengths)[1]
        assert torch.equal(step(stream[:, one]), whole[:, one])


def test_rows_with_nothing_to_add_stay_as_they_are_bitwise():
    mask = ids_and_mask(4, 4, 4, 4)[1]
    lengths = torch.tensor([2, 2, 2, 2])
    stream = stream_for(mask)
    # A stored -0.0 would become 0.0 if anything, even zero, were added to it.
    stream[1:3, :, 0] = -0.0
    here = [Add(vector()), None, Add(vector(), 0.0), Add(vector(1))]
    changed = edits(here, positions(mask), mask, lengths)[1](stream)
    bits = torch.int32
    assert torch.equal(changed[1:3].view(bits), stream[1:3].view(bits))
    assert not torch.equal(changed[0], stream[0])
    assert not torch.equal(changed[3], stream[3])


def test_without_anything_to_add_there_is_no_edit():
    mask = ids_and_mask(4, 4)[1]
    lengths = torch.tensor([2, 2])
    here = [None, Add(vector(), 0.0)]
    assert dict(edits(here, positions(mask), mask, lengths)) == {}


def test_rows_have_their_own_vectors_layers_strengths_and_scopes():
    mask = ids_and_mask(7, 5, 7, 3)[1]
    lengths = torch.tensor([4, 2, 5, 3])
    shared = vector(4)
    here = [
        Add(vector(1, layer=0), 2.0, Scope.ALL),
        Add(shared, -1.0, Scope.PROMPT),
        Add(vector(3, layer=0), 0.5, Scope.RESPONSE),
        Add(shared, 3.0, Scope.GENERATING),
    ]
    where, stream = positions(mask), stream_for(mask)
    together = edits(here, where, mask, lengths)
    assert set(together) == {0, 1}
    for row, add in enumerate(here):
        one = slice(row, row + 1)
        alone = edits([add], where[one], mask[one], lengths[one])[add.site.layer]
        for layer, edit in together.items():
            mine = layer == add.site.layer
            expected = alone(stream[one]) if mine else stream[one]
            assert torch.equal(edit(stream)[one], expected)


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_steering_the_model_is_the_suffix_of_the_moved_stream(family):
    lm = tiny(family)
    ids, mask = ids_and_mask(7, 4)
    add = Add(vector(layer=2), 1.5, Scope.ALL)
    steering = edits([add, add], positions(mask), mask, mask.sum(-1))
    steered = lm.logits(ids, mask, edits=steering)
    moved = lm.prefix(ids, mask, layer=2) + add.displacement
    # The same kernels on the same numbers; 0.0 is what is measured.
    assert (steered - lm.suffix(moved, mask, layer=2))[mask].abs().max() < 1e-5
    assert (steered - lm.logits(ids, mask))[mask].abs().max() > 0.05


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
def test_a_strength_that_is_no_number_is_refused(alpha):
    with pytest.raises(InputError, match=f"alpha is {alpha}"):
        Add(vector(), alpha)


def test_the_step_is_alpha_times_the_vector_as_stored():
    v = SteeringVector(torch.tensor([3.0, 4.0]), Site(0))
    assert Add(v, -2.0).displacement.tolist() == [-6.0, -8.0]
    assert Add(v, 0.0).is_identity
    assert not Add(v, 1e-30).is_identity


ROUNDING = 4e-6
"""A sum of 48 products of float32 numbers below 4, and a difference of such numbers:
|h| |u| times a few 2^-24, with |h| about 7."""


@pytest.mark.parametrize("scope", SCOPES)
def test_ablation_leaves_nothing_along_v_where_it_covers_and_all_else_alone(scope):
    mask = ids_and_mask(9, 6, 4)[1]
    prompt_lengths = torch.tensor([5, 3, 4])
    ablate = Ablate(vector(), scope)
    u, stream = ablate.direction.double(), stream_for(mask)
    assert float(u.norm()) == pytest.approx(1, abs=1e-6)
    left = edits([ablate] * 3, positions(mask), mask, prompt_lengths)[1](stream)
    along = stream.double() @ u
    for row, length in enumerate(mask.sum(-1).tolist()):
        inside = covered(scope, int(prompt_lengths[row]), length)
        start = mask.shape[1] - length
        for position in range(mask.shape[1]):
            if position - start not in inside:
                assert torch.equal(left[row, position], stream[row, position])
                continue
            now = left[row, position].double()
            assert abs(float(now @ u)) < ROUNDING
            moved = now - stream[row, position].double()
            # All that was moved lies along u: what is orthogonal to it stays.
            assert (moved + along[row, position] * u).abs().max() < ROUNDING
    # Not vacuous: there was much along u to begin with.
    assert along[mask].abs().median() > 0.3


@pytest.mark.parametrize("scope", SCOPES)
def test_ablation_too_means_the_same_tokens_step_by_step(scope):
    mask = ids_and_mask(9, 6, 4)[1]
    lengths = torch.tensor([5, 3, 1])
    where, stream = positions(mask), stream_for(mask)
    here = [Ablate(vector(), scope)] * 3
    whole = edits(here, where, mask, lengths)[1](stream)
    assert not torch.equal(whole, stream)
    for t in range(mask.shape[1]):
        one = slice(t, t + 1)
        step = edits(here, where[:, one], mask[:, one], lengths)[1]
        # A sum over other shapes may add in another order.
        assert torch.allclose(
            step(stream[:, one]), whole[:, one], rtol=0, atol=ROUNDING
        )


def test_the_length_and_sign_of_what_is_ablated_do_not_matter():
    mask = ids_and_mask(5)[1]
    stream, lengths = stream_for(mask), torch.tensor([5])
    left = [
        edits([Ablate(v)], positions(mask), mask, lengths)[1](stream)
        for scale in (1.0, -3e-4, 1e6)
        for v in [SteeringVector(scale * vector().direction, Site(1))]
    ]
    for other in left[1:]:
        assert torch.allclose(other, left[0], rtol=0, atol=ROUNDING)


def test_rows_of_both_kinds_share_a_batch_and_a_layer():
    mask = ids_and_mask(7, 5, 7, 3, 6, 4)[1]
    lengths = torch.tensor([4, 2, 5, 3, 3, 2])
    here = [
        Ablate(vector(1)),
        Add(vector(2), 2.0, Scope.ALL),
        None,
        Ablate(vector(3), Scope.PROMPT),
        Ablate(vector(4, layer=0), Scope.GENERATING, layers=(0, 1)),
        Add(vector(5, layer=0), -1.0, Scope.RESPONSE),
    ]
    where, stream = positions(mask), stream_for(mask)
    together = edits(here, where, mask, lengths)
    assert set(together) == {0, 1}
    num_changed = 0
    for row, given in enumerate(here):
        one = slice(row, row + 1)
        alone = edits([given], where[one], mask[one], lengths[one])
        for layer, edit in together.items():
            found = edit(stream)[one]
            if layer in alone:
                num_changed += 1
                expected = alone[layer](stream[one])
                assert not torch.equal(expected, stream[one])
                assert torch.allclose(found, expected, rtol=0, atol=ROUNDING)
            else:
                assert torch.equal(found, stream[one])
    assert num_changed == 6


def test_several_layers_are_each_ablated_and_the_first_is_the_site():
    lm = tiny("llama")
    ids, mask = ids_and_mask(7, 4)
    ablate = Ablate(vector(layer=2), layers=(3, 0, 1, 0))
    assert (ablate.site, blocks_of(ablate)) == (Site(0), (0, 1, 3))
    assert (Ablate(vector(layer=2)).site, blocks_of(Ablate(vector()))) == (
        Site(2),
        (1,),
    )
    steering = edits([ablate] * 2, positions(mask), mask, mask.sum(-1))
    assert set(steering) == {0, 1, 3}
    layers = range(NUM_LAYERS)
    streams = lm.streams(ids, mask, layers=layers, edits=steering)
    for layer, stream in streams.items():
        along = (stream[mask].double() @ ablate.direction.double()).abs()
        # Block 2 writes along u again, as nothing takes it out after that.
        assert bool(along.max() < 10 * ROUNDING) is (layer != 2)
    plain = lm.streams(ids, mask, layers=layers)
    assert all((s[mask] @ ablate.direction).abs().max() > 0.3 for s in plain.values())


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_an_ablated_model_is_the_same_with_and_without_a_cache(family, scope):
    lm = tiny(family)
    ids, mask = ids_and_mask(9, 6)
    lengths = torch.tensor([5, 3])
    here = [
        Ablate(vector(), scope, layers=tuple(range(NUM_LAYERS))),
        Ablate(vector(1, layer=2), scope),
    ]
    where = positions(mask)
    whole = lm.logits(ids, mask, edits=edits(here, where, mask, lengths))
    cache, parts = DynamicCache(config=lm.model.config), []
    for now in (slice(0, 6), slice(6, 7), slice(7, 8), slice(8, 9)):
        steering = edits(here, where[:, now], mask[:, now], lengths)
        seen = mask[:, : now.stop]
        parts.append(lm.logits(ids[:, now], seen, edits=steering, cache=cache))
    # Other kernels on the same numbers: float32 noise in logits of size 1 to 10.
    assert (torch.cat(parts, 1) - whole)[mask].abs().max() < 1e-4
    assert (whole - lm.logits(ids, mask))[mask].abs().max() > 0.05


def test_a_direction_that_cannot_be_taken_out_is_refused():
    lm = tiny("llama")
    Ablate(vector(), layers=tuple(range(NUM_LAYERS))).check_fits(lm)
    for layers in ((0, NUM_LAYERS), (-1,)):
        with pytest.raises(LayerOutOfRange):
            Ablate(vector(), layers=layers).check_fits(lm)
    with pytest.raises(ShapeMismatch, match="64 wide"):
        Ablate(vector(width=64)).check_fits(lm)
    with pytest.raises(ZeroVector):
        Ablate(SteeringVector(torch.zeros(D_MODEL), Site(1))).check_fits(lm)


def test_an_ablation_is_no_addition_of_any_strength():
    ablate = Ablate(vector())
    assert not ablate.is_identity
    assert ablate.alpha == 1
    mask = ids_and_mask(6)[1]
    stream = stream_for(mask)
    left = edits([ablate], positions(mask), mask, torch.tensor([6]))[1](stream)
    # One step for all positions would have one length; here each has its own.
    lengths = (left - stream)[0].norm(dim=-1)
    assert lengths.max() > 2 * lengths.min()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ablation_in_half_precision_leaves_no_more_than_storing_it_does(dtype):
    generator = torch.Generator().manual_seed(0)
    v = SteeringVector(torch.randn(2048, generator=generator), Site(1))
    u = Ablate(v).direction.double()
    noise = torch.randn(1, 32, 2048, generator=generator)
    stream = (noise + 400 * u).to(dtype)
    mask = torch.ones(1, 32, dtype=torch.bool)
    edit = edits([Ablate(v)], positions(mask), mask, torch.tensor([32]))[1]
    left = edit(stream)
    assert left.dtype == dtype
    along = (stream.double() @ u).abs()
    assert float(along.min()) > 300
    # What is stored is of length 45 and is rounded once, at random: along u by its
    # ulp times 45 / sqrt(12 * 2048), of which five are more than 32 draws reach.
    once = torch.finfo(dtype).eps * 45 / (12 * 2048) ** 0.5
    assert float((left.double() @ u).abs().max()) < 5 * once
