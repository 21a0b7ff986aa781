"""Keys and values with room to grow: a decoding step writes one column, copies none.

Transformers' own cache layer concatenates at every step: for one new token it copies
the keys and values of all rows into memory that the system has to hand out afresh.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A cache layer whose keys and values are views of a longer buffer.

    What it returns is what its parent would, number by number; without room left, it
    falls back to its parent's way.
    """

    def __init__(
        self,
        keys: Float[Tensor, "rows heads pos width"],
        values: Float[Tensor, "rows heads pos width"],
        *,
        room: int,
    ) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._buffers = [_with_room(keys, room), _with_room(values, room)]
        self._show(keys.shape[-2])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens; all of them up to now."""
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if stop > self._buffers[0].shape[-2]:
            super().update(key_states, value_states)
            return self._both()
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:stop, :] = new
        self._show(stop)
        return self._both()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows only."""
        length = self.get_seq_length()
        if length > self._buffers[0].shape[-2]:
            return super().batch_select_indices(indices)
        self._buffers = [buffer[indices] for buffer in self._buffers]
        return self._show(length)

    def _both(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)


def _with_room(filled: Tensor, room: int) -> Tensor:
    *rest, length, width = filled.shape
    buffer = filled.new_empty(*rest, length + room, width)
    buffer[..., :length, :] = filled
    return buffer


def spread(cache: DynamicCache, rows: Sequence[int], *, room: int) -> None:
    """Give every row the keys and values of its prefix, and room for more tokens.

    Args:
        cache: of the distinct prefixes; changed in place.
        rows: for each row, which of them is its own.
        room: tokens that will be added.
    """
    layers: list[Any] = cache.layers
    for place, layer in enumerate(layers):
        if not layer.is_initialized:
            continue
        index = torch.tensor(rows, device=layer.device)
        kind = type(layer)
        if kind is DynamicLayer:
            keys, values = layer.keys[index], layer.values[index]
            layers[place] = RoomyLayer(keys, values, room=room)
        else:  # Sliding windows and other kinds keep their own way.
            layer.batch_select_indices(index)
