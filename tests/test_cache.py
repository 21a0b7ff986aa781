"""The roomy cache layer is Transformers' own, number by number, without the copies."""

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from steergauge.cache import Memory, RoomyLayer

ROWS, HEADS, WIDTH = 5, 2, 4


def states(length: int, rows: int = ROWS, seed: int = 0) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, HEADS, length, WIDTH)
    return tuple(torch.randn(shape, generator=generator) for _ in range(2))


def both(room: int) -> tuple[DynamicLayer, RoomyLayer]:
    first = states(3)
    plain = DynamicLayer()
    plain.update(*first)
    return plain, RoomyLayer(*first, room=room)


@pytest.mark.parametrize("room", [0, 1, 2, 10])
def test_it_returns_what_the_plain_layer_does_with_and_without_room(room):
    plain, roomy = both(room)
    for step in range(6):
        new = states(1, rows=len(plain.keys), seed=1 + step)
        for expected, found in zip(plain.update(*new), roomy.update(*new), strict=True):
            assert torch.equal(expected, found)
        assert roomy.get_seq_length() == plain.get_seq_length() == 4 + step
        if step == 2:
            kept = torch.tensor([4, 0, 2])
            plain.batch_select_indices(kept)
            roomy.batch_select_indices(kept)
    assert plain.keys.shape == (3, HEADS, 9, WIDTH)


def test_with_room_a_step_moves_no_memory():
    _, roomy = both(room=4)
    place = roomy.keys.data_ptr()
    for step in range(4):
        roomy.update(*states(1, seed=step))
        assert roomy.keys.data_ptr() == place
    # Not vacuous: without room left, it is moved.
    roomy.update(*states(1))
    assert roomy.keys.data_ptr() != place


def test_rows_that_stay_are_not_moved_when_others_leave():
    plain, roomy = both(room=3)
    kept = torch.tensor([0, 4, 2])
    place, stays = roomy.keys.data_ptr(), plain.keys[[0, 4, 2]]
    roomy.batch_select_indices(kept)
    assert roomy.keys.data_ptr() == place
    assert torch.equal(roomy.keys, stays)
    # Sources that are themselves overwritten are read first.
    roomy.batch_select_indices(torch.tensor([1, 2, 0]))
    assert torch.equal(roomy.keys, stays[[1, 2, 0]])


def test_memory_is_used_again_by_the_next_batch_and_only_where_it_fits():
    memory, first = Memory(), states(3)
    big = RoomyLayer(*first, room=9, memory=memory)
    place = big.keys.data_ptr()
    small = states(2, rows=3, seed=4)
    again = RoomyLayer(*small, room=4, memory=memory)
    assert again.keys.data_ptr() == place
    for found, given in zip((again.keys, again.values), small, strict=True):
        assert torch.equal(found, given)
    # Not of another layer, nor of another precision, nor what is too small.
    assert RoomyLayer(*small, room=4, memory=memory, name=1).keys.data_ptr() != place
    half = RoomyLayer(*(x.half() for x in small), room=4, memory=memory)
    assert half.keys.dtype == torch.half
    assert RoomyLayer(*first, room=99, memory=memory).keys.shape == first[0].shape


def test_fixed_shapes_show_all_the_room_and_can_be_undone():
    _, roomy = both(room=4)
    before = roomy.keys.clone()
    cursor = torch.tensor([3])
    roomy.fix(cursor)
    for step in range(2):
        new = states(1, seed=step)
        keys, values = roomy.update(*new)
        assert keys.shape == (ROWS, HEADS, 7, WIDTH)
        assert torch.equal(keys[:, :, 3 + step], new[0][:, :, 0])
        assert torch.equal(values[:, :, 3 + step], new[1][:, :, 0])
        assert not keys[:, :, 4 + step :].any()
        cursor += 1
    roomy.unfix(3)
    assert torch.equal(roomy.keys, before)
    assert roomy.update(*states(1))[0].shape[-2] == 4


CHANGES = {
    "crop": lambda layer: layer.crop(-2),
    "repeat": lambda layer: layer.batch_repeat_interleave(2),
    "reorder": lambda layer: layer.reorder_cache(torch.tensor([4, 3, 2, 1, 0])),
    "reset": lambda layer: layer.reset(),
    "offload": lambda layer: layer.offload(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_else_a_layer_can_do_is_the_plain_layers_and_so_is_what_follows(change):
    plain, roomy = both(room=9)
    for layer in (plain, roomy):
        CHANGES[change](layer)
    rows = 10 if change == "repeat" else ROWS
    for step in range(2):
        new = states(1, rows=rows, seed=step)
        for expected, found in zip(plain.update(*new), roomy.update(*new), strict=True):
            assert torch.equal(expected, found)
        kept = torch.arange(rows - 1, -1, -1)
        plain.batch_select_indices(kept)
        roomy.batch_select_indices(kept)
        assert torch.equal(plain.keys, roomy.keys)


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_of_fixed_shape_keeps_its_shape(change):
    _, roomy = both(room=4)
    roomy.fix(torch.tensor([3]))
    with pytest.raises(AssertionError, match="fixed shape"):
        CHANGES[change](roomy)
