"""An intervention changes the positions of its scope by alpha v, and nothing else."""

import math

import pytest
import torch
from tests.models import D_MODEL, ids_and_mask, tiny

from steergauge.errors import InputError
from steergauge.intervention import Add, Scope, edits
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
