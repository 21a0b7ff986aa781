"""Keys and values with room to grow: a decoding step writes one column, copies none.

Transformers' own cache layer concatenates at every step: for one new token it copies
the keys and values of all rows into memory that the system has to hand out afresh.
Here they lie position by position, (pos, rows, heads, width): a new token is written
in one run, pages are first touched when their position is reached, and rows leave by
moving the last ones into the places of those that have gone. `Memory` is used again
for the next batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory that one batch leaves to the next; what is in it is overwritten."""

    kept: dict[Any, Tensor] = field(default_factory=dict)

    def take(self, name: Any, shape: Sequence[int], like: Tensor) -> Tensor:
        """An uninitialised tensor; it holds until the next one of the same name."""
        size = torch.Size(shape).numel()
        flat = self.kept.get(name)
        unfit = (
            flat is None
            or len(flat) < size
            or (flat.dtype, flat.device) != (like.dtype, like.device)
        )
        if unfit:
            self.kept.pop(name, None)
            flat = self.kept[name] = like.new_empty(size)
        assert flat is not None
        return flat[:size].view(*shape)


class RoomyLayer(DynamicLayer):
    """A cache layer whose keys and values are views of a longer buffer.

    What it returns is what its parent would, number by number; without room left, it
    falls back to its parent's way.

    Args:
        keys: of the tokens up to now, one row a distinct prefix.
        values: likewise.
        room: tokens that will be added.
        index: for each row of the batch, which of the prefixes is its own; None means
            that every row is given.
        memory: where the buffers are taken from.
        name: theirs in it.
    """

    def __init__(
        self,
        keys: Float[Tensor, "rows heads pos width"],
        values: Float[Tensor, "rows heads pos width"],
        *,
        room: int,
        index: Tensor | None = None,
        memory: Memory | None = None,
        name: int = 0,
    ) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._buffers = []
        self._cursor: Tensor | None = None
        for kind, filled in enumerate((keys, values)):
            by_position = filled.permute(2, 0, 1, 3)
            length, rows, *rest = by_position.shape
            rows = rows if index is None else len(index)
            shape = (length + room, rows, *rest)
            buffer = (memory or Memory()).take((name, kind), shape, filled)
            if index is None:
                buffer[:length] = by_position
            else:
                torch.index_select(by_position, 1, index, out=buffer[:length])
            self._buffers.append(buffer)
        self._show(keys.shape[-2])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens; all of them up to now."""
        if self._cursor is not None:
            both = zip(self._buffers, (key_states, value_states), strict=True)
            for buffer, new in both:
                buffer.index_copy_(0, self._cursor, new.permute(2, 0, 1, 3))
            return self._both()
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if stop > len(self._buffers[0]):
            super().update(key_states, value_states)
            return self._both()
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[start:stop] = new.permute(2, 0, 1, 3)
        self._show(stop)
        return self._both()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget so many of the latest tokens (a number below 0)."""
        self._leave_room()
        super().crop(tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times, one after the other."""
        self._leave_room()
        super().batch_repeat_interleave(repeats)

    def reorder_cache(self, beam_idx: Any) -> None:
        """These rows, in this order."""
        self._leave_room()
        super().reorder_cache(beam_idx)

    def reset(self) -> None:
        """Forget everything."""
        self._leave_room()
        super().reset()

    def offload(self) -> None:
        """Keep keys and values on the processor until `prefetch`."""
        self._leave_room()
        super().offload()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows only; those that keep their place are not moved."""
        indices = indices.to(self.device)
        length, num_kept = self.get_seq_length(), len(indices)
        if length > len(self._buffers[0]) or num_kept > self._buffers[0].shape[1]:
            return super().batch_select_indices(indices)
        here = torch.arange(num_kept, device=indices.device)
        (moved,) = (indices != here).nonzero(as_tuple=True)
        for buffer in self._buffers:
            # The right side is gathered before anything is written.
            buffer[:length, moved] = buffer[:length, indices[moved]]
        self._buffers = [buffer[:, :num_kept] for buffer in self._buffers]
        return self._show(length)

    def fix(self, cursor: Tensor) -> None:
        """From now on keep one shape: all of the room, written where `cursor` says.

        Whoever asks must hide what has not been written, which is 0 now.

        Args:
            cursor: the place of the next token, (1,); changed by the caller.
        """
        length = self.get_seq_length()
        for buffer in self._buffers:
            buffer[length:] = 0
        self._cursor = cursor
        self._show(len(self._buffers[0]))

    def unfix(self, length: int) -> None:
        """Grow again, with the first `length` tokens."""
        self._cursor = None
        self._show(length)

    @property
    def capacity(self) -> int:
        """Most tokens that it holds without moving them."""
        return len(self._buffers[0])

    def _leave_room(self) -> None:
        """Go on in the parent's way: its other methods know of no buffer."""
        assert self._cursor is None, "a layer of fixed shape keeps its shape"
        self._buffers = [buffer[:0] for buffer in self._buffers]

    def _both(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def _show(self, length: int) -> None:
        self.keys, self.values = (b[:length].permute(1, 2, 0, 3) for b in self._buffers)


def can_be_joined(cache: DynamicCache) -> bool:
    """Whether it holds keys and values alone, no state of a linear attention."""
    return all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
        for layer in cache.layers
    )


def joined(caches: list[DynamicCache]) -> DynamicCache:
    """The rows of all of them, which have read as many tokens each, in one cache.

    They are used up: each layer is taken out of them as it is put together.
    """
    first, *others = caches
    layers: list[Any] = first.layers
    for place, layer in enumerate(layers if others else []):
        rest: list[Any] = [other.layers[place] for other in others]
        if layer.is_initialized:
            for kind in ("keys", "values"):
                parts = [getattr(one, kind) for one in (layer, *rest)]
                setattr(layer, kind, torch.cat(parts))
        for one in rest:
            one.reset()
    return first


def spread(
    cache: DynamicCache,
    rows: Sequence[int],
    *,
    room: int,
    memory: Memory | None = None,
) -> None:
    """Give every row the keys and values of its prefix, and room for more tokens.

    Args:
        cache: of the distinct prefixes; changed in place.
        rows: for each row, which of them is its own.
        room: tokens that will be added.
        memory: of an earlier batch that is over, to be used again.
    """
    layers: list[Any] = cache.layers
    own = memory or Memory()
    for place, layer in enumerate(layers):
        if not layer.is_initialized:
            continue
        index = torch.tensor(rows, device=layer.device)
        if type(layer) is DynamicLayer:
            assert layer.keys is not None
            assert layer.values is not None
            layers[place] = RoomyLayer(
                layer.keys,
                layer.values,
                room=room,
                index=index,
                memory=own,
                name=place,
            )
        else:  # Sliding windows and other kinds keep their own way.
            layer.batch_select_indices(index)
