"""A text entered at block l: the stream from the first shifted token on, and a cache.

With delta a shift that is added to the stream after block l at every position of a
scope, all that a derivative by delta has to run is F_{l->L} from the first shifted
token on: what comes before it is run once and kept as keys and values.
"""

import copy
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache

from steergauge.errors import InputError, ModelError
from steergauge.hooks import editing
from steergauge.intervention import Scope
from steergauge.prompts import padded
from steergauge.split import LanguageModel, positions
from steergauge.types import Direction, Logits
from steergauge.vector import Site

TOKENS_AT_ONCE = 1024
"""Tokens of a batch of columns: rows at once times tokens from the first shifted on."""

Row = tuple[Sequence[int], int]
"""Token ids of a prompt and its response, and how many are the prompt's."""


@dataclass(frozen=True, slots=True)
class Shift:
    """Where delta is added, and the point `at` which derivatives are taken (or 0)."""

    site: Site
    scope: Scope = Scope.GENERATING
    at: Direction | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A text up to block l: the stream from the first shifted token on, and a cache.

    Attributes:
        lm: the model.
        layer: block l.
        stream: after block l, with the point `at` added.
        covered: 1 where the stream is shifted, else 0.
        mask: True at real tokens, the cache's among them.
        cache: keys and values of the tokens before; None if there are none.
        targets: the response's token ids.
        predictions: how many tokens are predicted; 1 without a response.
    """

    lm: LanguageModel
    layer: int
    stream: Float[Tensor, "1 pos d_model"]
    covered: Float[Tensor, "pos 1"]
    mask: Tensor
    cache: DynamicCache | None
    targets: Tensor
    predictions: int

    def hidden(
        self, stream: Tensor, above: Mapping[int, Tensor] | None = None
    ) -> Float[Tensor, "batch predictions d_model"]:
        """Each z_k, of rows of `stream` and on its device; the head is not run.

        Args:
            stream: after block l.
            above: shifts of the stream after higher blocks.
        """
        edits = {at: self._shifting(delta) for at, delta in (above or {}).items()}
        with (
            sdpa_kernel(SDPBackend.MATH),
            editing(self.lm.blocks, edits),
            _head_reached(self.lm) as seen,
        ):
            self.logits(stream)
        if not seen:
            raise ModelError(
                f"{self.lm.name} does not call its output embedding.",
                cause="Its logits are made by code of its own.",
                remedy="Please report the model id; its Jacobian is not known.",
            )
        # The head may be on another device than block l; see `sharding.py`.
        return seen[0][:, -self.predictions :].to(self.stream.device)

    def logits(self, stream: Tensor) -> Logits:
        """Logits where tokens are predicted, of rows of `stream`."""
        rows = len(stream)
        return self.lm.suffix(
            stream,
            self.mask.expand(rows, -1),
            layer=self.layer,
            cache=None if self.cache is None else repeated(self.cache, rows),
            keep=self.predictions,
        )

    def batches(self, rows: Tensor) -> Iterator[Tensor]:
        """As many of `rows` at a time as memory is meant to hold."""
        at_once = max(1, TOKENS_AT_ONCE // len(self.covered))
        yield from rows.to(self.stream).split(at_once)

    def _shifting(self, delta: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda stream: stream + (self.covered * delta).to(stream.device)


def entered(lm: LanguageModel, row: Row, shift: Shift, *, cached: bool = True) -> Entry:
    """The text of `row`, run up to where `shift` begins.

    Args:
        lm: the model.
        row: token ids and how many are the prompt's, as from `prompts.encode`.
        shift: site, scope and point.
        cached: without it the same numbers come with other rounding, and more slowly.

    Raises:
        InputError: no token is in scope, or the row has no prompt.
    """
    ids, prompt_length = row
    if not 0 < prompt_length <= len(ids):
        raise InputError(f"a row of {len(ids)} tokens has {prompt_length} of a prompt.")
    response = list(ids[prompt_length:])
    # The last token of a response is predicted, not read.
    tokens, mask = padded([ids[: len(ids) - bool(response)]], device=lm.device)
    length = torch.tensor([prompt_length], device=lm.device)
    covered = shift.scope.covers(positions(mask), length)[0]
    if not bool(covered.any()):
        raise InputError(
            f"no token of the text lies in the scope {shift.scope}.",
            remedy="Give a response of two tokens or more, or another scope.",
        )
    first = min(int(covered.nonzero()[0]), prompt_length - 1) if cached else 0
    cache = DynamicCache(config=lm.model.config) if first else None
    if first:
        lm.logits(tokens[:, :first], mask[:, :first], cache=cache, keep=1)
    layer = shift.site.layer
    stream = lm.prefix(tokens[:, first:], mask, layer=layer, cache=cache)
    where = covered[first:, None].to(stream)
    if shift.at is not None:
        stream = stream + where * shift.at.to(stream)
    targets = torch.tensor(response, dtype=torch.long, device=lm.device)
    predictions = max(1, len(response))
    return Entry(lm, layer, stream, where, mask, cache, targets, predictions)


def repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """The same keys and values for several rows, without a copy of them."""
    copied = copy.deepcopy(cache)
    layers: list[Any] = copied.layers
    for layer in layers:
        if layer.is_initialized:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
    return copied


class _HeadReached(Exception):
    """Raised once the input of the unembedding is known."""


@contextmanager
def _head_reached(lm: LanguageModel) -> Generator[list[Tensor]]:
    """End a pass, and the `with`, before the unembedding; its input is in the list."""
    seen: list[Tensor] = []

    def hook(_module: Any, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise _HeadReached

    handle = lm.model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        with suppress(_HeadReached):
            yield seen
    finally:
        handle.remove()
