"""The roomy cache layer is Transformers' own, number by number, without the copies."""

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from steergauge.cache import RoomyLayer

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
