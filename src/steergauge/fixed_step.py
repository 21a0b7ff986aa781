"""A decoding step whose shapes never change, so that CUDA can replay it as one graph.

An ordinary step launches some hundred small kernels, and on a GPU the launching takes
longer than the arithmetic. Here keys and values have all their room from the start, a
cursor says where the next ones go, a mask says which are seen, and interventions are
tables of fixed rows. Such a step can be recorded once and replayed for every token.

It is used where the cache is made of `RoomyLayer`s alone (no sliding window), and the
model uses sdpa attention: others add a mask of four axes to their scores, whatever it
holds. It is used only after it has given the ordinary step's logits for two tokens, so
that a recording which does not answer to its token is seen. On the processor it runs
without recording, for tests.
"""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import DynamicCache

from steergauge.attention import NAME as ONE_QUERY
from steergauge.batching import ran_out_of_memory
from steergauge.cache import RoomyLayer
from steergauge.hooks import editing
from steergauge.split import LAW_TOLERANCE, LanguageModel
from steergauge.types import Edit

DEVICES = ("cuda",)
"""Where fixed steps are tried."""

ATTENTION = ("sdpa", ONE_QUERY)
"""What hides keys where a mask of four axes is False."""

HALF_ULPS = 4
"""In half precision, how many times the spacing of numbers at the largest logit another
shape's rounding may move a logit."""

_UNRECORDABLE: WeakSet[Any] = WeakSet()
"""Models whose step could not be recorded: it is not tried again."""

WARM_UPS = 2
"""Steps before recording, in which libraries choose kernels and take memory."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a batch is: before the pass of its next token.

    Attributes:
        mask: True at real tokens, as long as the cache's room, (batch, capacity).
        positions: absolute position of each row's next token, (batch,).
        filled: columns of the cache that hold tokens.
    """

    mask: Tensor
    positions: Tensor
    filled: int


class FixedStep:
    """The step of one batch; made anew when rows leave or interventions change."""

    def __init__(
        self,
        lm: LanguageModel,
        cache: DynamicCache,
        edits: Mapping[int, Edit],
        place: Place,
    ) -> None:
        self._lm, self._cache, self._edits = lm, cache, edits
        self._cursor = torch.tensor([place.filled], device=lm.device)
        self._columns = torch.arange(place.mask.shape[1], device=lm.device)
        self._seen = (place.mask & (self._columns <= place.filled))[:, None, None, :]
        self._positions = place.positions[:, None].clone()
        self._token = torch.zeros_like(self._positions)
        self._graph: Any = None
        self._tried = lm.device.type != "cuda" or lm.model in _UNRECORDABLE
        self._logits: Tensor | None = None
        for layer in _layers(cache):
            layer.fix(self._cursor)

    def __call__(self, token: Tensor) -> Tensor:
        """Logits (batch, d_vocab) after `token` (batch, 1); overwritten by the next.

        Reading the same token again before `advance` changes nothing.
        """
        self._token.copy_(token)
        with _on(self._lm.device):
            if self._graph is not None:
                self._graph.replay()
            elif not self._tried:
                self._tried = True
                self._record()
            else:
                self._logits = self._run()
        assert self._logits is not None
        return self._logits

    def advance(self) -> None:
        """The token that was read is part of the text."""
        self._cursor += 1
        self._positions += 1
        self._seen |= self._columns == self._cursor  # None after the last one.

    @property
    def refused(self) -> bool:
        """Whether the model's step could not be recorded."""
        return self._lm.model in _UNRECORDABLE

    def _run(self) -> Tensor:
        with editing(self._lm.blocks, self._edits), torch.no_grad():
            return self._lm.model(
                input_ids=self._token,
                attention_mask=self._seen,
                position_ids=self._positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]

    def _record(self) -> None:
        """Record the step, or leave it unrecorded where the model asks its data.

        On the current device, which must be the model's: a recording holds the kernels
        of that one alone.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._logits = self._run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                logits = self._run()
        except RuntimeError as error:
            if ran_out_of_memory(error):
                raise
            _UNRECORDABLE.add(self._lm.model)
            return
        self._graph, self._logits = graph, logits
        graph.replay()


def may_be_fixed(lm: LanguageModel, cache: DynamicCache, capacity: int) -> bool:
    """Whether a fixed step can be tried at all.

    Args:
        lm: the model.
        cache: of the batch.
        capacity: columns that the text will need.
    """
    accepted = inspect.signature(lm.model.forward).parameters
    config = lm.model.config.get_text_config()
    layers: list[Any] = cache.layers
    return (
        lm.device.type in DEVICES
        and lm.model not in _UNRECORDABLE
        and config._attn_implementation in ATTENTION
        and {"position_ids", "logits_to_keep"} <= accepted.keys()
        and len(layers) > 0
        and all(
            isinstance(layer, RoomyLayer)
            and layer.capacity == capacity
            and layer.device == lm.device
            for layer in layers
        )
    )


def proved(step: FixedStep, told: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether the fixed step gives the ordinary one's logits, and can be recorded.

    The last of the tokens is what it has read afterwards.

    Args:
        step: not yet advanced.
        told: two tokens (batch, 1), each with the ordinary step's logits after it.
    """
    (_, first), (_, second) = told
    size = float(torch.maximum(first.abs().max(), second.abs().max()))
    tolerance = _tolerance(first.dtype, size)
    try:
        near = [
            bool((step(token) - logits).abs().max() <= tolerance)
            for token, logits in told
        ]
    except (RuntimeError, ValueError, TypeError) as error:
        if ran_out_of_memory(error):
            raise
        return False  # The model takes no mask of four axes, or no such cache.
    # Two tokens that give the same would not tell whether a recording reads them.
    telling = bool((first - second).abs().max() > tolerance)
    return all(near) and telling and not step.refused


def _tolerance(dtype: torch.dtype, size: float) -> float:
    """How far logits of at most `size` may be apart."""
    if dtype in LAW_TOLERANCE:
        return LAW_TOLERANCE[dtype] * max(1.0, size)
    return HALF_ULPS * torch.finfo(dtype).eps * size


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _layers(cache: DynamicCache) -> list[RoomyLayer]:
    layers: list[Any] = cache.layers
    return layers
