"""h_l of every token as the next one: one step through blocks 0..l a candidate.

With the prefix pi read once and kept as keys and values, the state of a candidate w ::

    h_l(pi + w) = P_l(w; keys and values of pi)

costs one token through blocks 0..l. Many candidates share one row: all have the same
position, and a mask lets each see the prefix and itself, so the prefix' keys and
values are copied once a row and not once a candidate. What a candidate may not see
has a weight of exactly 0 after the softmax: its state does not depend on its company.

That a model can be asked in this way is proved on the prefix itself before it is used,
by whole passes over the prefix and a candidate: of a few among a row and a half of
random ones, at both ends of the full row and of the one that is filled up. Candidates
that share rows may be farther off than those with a row each by no more than rounding
explains. Where they are (attention that makes its own mask) each candidate gets a row
of its own, which is proved as well.

Held at once, beside the model and the prefix: a batch of `TOKENS_AT_ONCE` candidates
on its way through a block, and its keys and values; nothing grows with the vocabulary.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from steergauge.errors import InputError, ModelError
from steergauge.hooks import recording
from steergauge.split import LanguageModel
from steergauge.types import Rows

TOKENS_AT_ONCE = 512
"""Candidates of one pass: enough for the full rate of matrix products, few enough for
what lies between them to stay in a processor's cache (2048 take an eighth longer)."""

IN_A_ROW = 64
"""Candidates that share a row, at least; a quarter of the prefix' length if that is
more. Each makes an attention score for each other one, in vain, while a row copies the
prefix' keys and values once. On a CPU, d of 256: after 10 tokens 64 take as long as 16
and 256 take a sixth longer; after 1000 tokens 64 to 256 take half as long as 16."""

KEYS_AT_ONCE = 2**16
"""Positions whose keys and values are copied at once where every candidate has a row
of its own."""

PROOF_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest deviation of a candidate's state from that of a whole pass, as a share of
its norm; 0.05 in half precision. Float32 is seen to deviate by 1e-6; a candidate that
sees another one, or misses a token, by 1e-2 or more."""

TIMES_ALONE = 3
"""Candidates that share rows may be so many times as far from whole passes as those
with a row each."""

ROUNDINGS = {torch.float16: 6, torch.bfloat16: 6}
"""Rms roundings of a state by which two right ways to compute it may differ after one
block: 4.2 were the most after one block and 6.8 after four, over 13 models. 64 in
other precisions, whose products are rounded as they are summed: there 31 were."""


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Tokens that were read, and what of them their next token's state depends on.

    Made by `prefix_of`.

    Attributes:
        lm: the model.
        layer: block l, whose output is meant.
        ids: the tokens.
        cache: their keys and values, of blocks 0..l or of all; never changed.
        packed: candidates share rows; else each has its own.
        whole: keys and values are those of all blocks.
        following: logits of the next token; None if the prefix is empty or not whole.
    """

    lm: LanguageModel
    layer: int
    ids: tuple[int, ...]
    cache: DynamicCache
    packed: bool = True
    whole: bool = False
    following: Float[Tensor, " d_vocab"] | None = None

    def then(self, tokens: Sequence[int]) -> "Prefix":
        """The prefix with more tokens read; this one stays as it is.

        Raises:
            ModelError: no way to read candidates after it gives a whole pass' states.
        """
        if not len(tokens):
            return self
        cache, before = _branched(self.cache, 1), len(self.ids)
        ids = torch.tensor([list(tokens)], device=self.lm.device)
        mask = ids.new_ones(1, before + len(tokens), dtype=torch.bool)
        following = None
        with ExitStack() as stack:
            if not self.whole:
                stack.enter_context(recording(self.lm.blocks, (self.layer,), stop=True))
            following = self.lm.logits(ids, mask, cache=cache, keep=1)[0, -1]
        longer = replace(
            self, ids=(*self.ids, *tokens), cache=cache, following=following
        )
        return longer if _alike(self, longer) else _proved(longer)

    def states(self, tokens: Int[Tensor, " n"]) -> Rows:
        """h_l of each of `tokens` as the next one, in the model's precision.

        Raises:
            InputError: there is no token.
        """
        found = [
            _streams(self, part, (self.layer,))[self.layer]
            for part in self._parts(tokens)
        ]
        return torch.cat(found) if len(found) > 1 else found[0]

    def logits(self, tokens: Int[Tensor, " n"]) -> Float[Tensor, "n d_vocab"]:
        """What the model expects after each of `tokens` as the next one.

        Raises:
            InputError: there is no token, or only blocks 0..l were kept.
        """
        if not self.whole:
            raise InputError(
                f"logits were asked of a prefix kept up to block {self.layer} only.",
                remedy="Make it by prefix_of(..., whole=True).",
            )
        return torch.cat([_logits(self, part) for part in self._parts(tokens)])

    @property
    def ranking(self) -> Int[Tensor, " d_vocab"] | None:
        """All tokens, the one that the model expects most first; see `following`."""
        if self.following is None:
            return None
        return self.following.argsort(descending=True, stable=True)

    @property
    def in_a_row(self) -> int:
        """Candidates that share a row."""
        if not self.packed:
            return 1
        return min(TOKENS_AT_ONCE, max(IN_A_ROW, len(self.ids) // 4))

    def _parts(self, tokens: Tensor) -> Sequence[Tensor]:
        if not len(tokens):
            raise InputError("there is no candidate.")
        at_once = TOKENS_AT_ONCE
        if not self.packed:
            at_once = max(1, min(at_once, KEYS_AT_ONCE // (len(self.ids) + 1)))
        return tokens.to(self.lm.device).split(at_once)


def prefix_of(
    lm: LanguageModel, ids: Sequence[int], *, layer: int, whole: bool = False
) -> Prefix:
    """The tokens, read once; their candidates' states are proved on the spot.

    Args:
        lm: the model.
        ids: tokens; there may be none, then a candidate is the first token of all.
        layer: block l, whose output is meant.
        whole: keep keys and values of all blocks, which `Prefix.logits` needs.

    Raises:
        LayerOutOfRange: the model has no such block.
        ModelError: no way to read candidates after it gives a whole pass' states.
    """
    lm.check_layer(layer)
    cache = DynamicCache(config=lm.model.config)
    empty = Prefix(lm, layer, (), cache, whole=whole)
    return empty.then(ids) if len(ids) else _proved(empty)


def every_token(
    prefix: Prefix, *, tokens: Int[Tensor, " n"] | None = None
) -> Iterator[tuple[Int[Tensor, " batch"], Rows]]:
    """Batches of candidates and their states; only one batch is ever held.

    Args:
        prefix: what comes before.
        tokens: the candidates; the default is the whole vocabulary.
    """
    device = prefix.lm.device
    num = prefix.lm.d_vocab if tokens is None else len(tokens)
    for start in range(0, num, TOKENS_AT_ONCE):
        stop = min(num, start + TOKENS_AT_ONCE)
        if tokens is None:
            part = torch.arange(start, stop, device=device)
        else:
            part = tokens[start:stop].to(device)
        yield part, prefix.states(part)


@torch.no_grad()
def _streams(
    prefix: Prefix, tokens: Tensor, layers: tuple[int, ...]
) -> dict[int, Tensor]:
    """{layer: (n, d_model)} of one pass that ends after the last of `layers`."""
    with recording(prefix.lm.blocks, layers, stop=True) as streams:
        _run(prefix, tokens)
    return {
        layer: stream.flatten(0, 1)[: len(tokens)] for layer, stream in streams.items()
    }


@torch.no_grad()
def _logits(prefix: Prefix, tokens: Tensor) -> Tensor:
    return _run(prefix, tokens).flatten(0, 1)[: len(tokens)]


def _run(prefix: Prefix, tokens: Tensor) -> Tensor:
    """Logits (rows, in a row, d_vocab), the last row filled up with the first token."""
    lm, seen = prefix.lm, len(prefix.ids)
    width = min(prefix.in_a_row, len(tokens))
    rows = -(-len(tokens) // width)
    ids = tokens[:1].repeat(rows * width)
    ids[: len(tokens)] = tokens
    ids = ids.view(rows, width)
    cache = _branched(prefix.cache, rows)
    if not prefix.packed:
        mask = torch.ones(rows, seen + 1, dtype=torch.bool, device=lm.device)
        return lm.logits(ids, mask, cache=cache, keep=1)
    return lm.model(
        input_ids=ids,
        attention_mask=_masks(prefix, rows, width),
        position_ids=torch.full_like(ids, seen),
        past_key_values=cache,
        use_cache=True,
    ).logits


def _masks(prefix: Prefix, rows: int, width: int) -> Tensor | dict[str, Tensor]:
    """What each candidate sees; by kind of block where some keep a window only."""
    kept = _kept(prefix)
    by_length = {
        length: _mask(prefix.lm, length, width).expand(rows, 1, -1, -1)
        for length in {*kept.values()} or {0}
    }
    if len(by_length) == 1:
        return next(iter(by_length.values()))
    kinds = prefix.lm.model.config.get_text_config().layer_types
    return {kinds[layer]: by_length[length] for layer, length in kept.items()}


def _mask(lm: LanguageModel, seen: int, width: int) -> Tensor:
    """To be added to scores (1, 1, width, seen + width): the prefix and oneself."""
    hidden = torch.finfo(lm.dtype).min
    mask = torch.zeros(width, seen + width, dtype=lm.dtype, device=lm.device)
    mask[:, seen:] = hidden
    mask[:, seen:].fill_diagonal_(0)
    return mask[None, None]


def _kept(prefix: Prefix) -> dict[int, int]:
    """{layer: positions whose keys and values it has}; a window keeps some only."""
    layers: list[Any] = prefix.cache.layers
    return {
        place: layer.keys.shape[-2]
        for place, layer in enumerate(layers)
        if layer.is_initialized
    }


def _branched(cache: DynamicCache, rows: int) -> DynamicCache:
    """A cache for several rows that begins as `cache` and leaves it as it is.

    Nothing is copied: layers of these kinds make new tensors when tokens are added.
    """
    branch = copy.copy(cache)
    layers: list[Any] = [
        copy.copy(layer)
        if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
        else copy.deepcopy(layer)
        for layer in cache.layers
    ]
    for layer in layers:
        if layer.is_initialized:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
    branch.layers = layers
    return branch


def rounding(ulp: float) -> float:
    """Rms distance by which storing a state moves it, as a share of its norm.

    About a coordinate x the numbers of a precision are at most ulp |x| apart; the
    nearest is off by anything up to half of that, ulp |x| / sqrt(12) in the root mean
    square. Summed over coordinates this is the same share of the norm, or less.

    >>> round(rounding(torch.finfo(torch.bfloat16).eps), 5)
    0.00226
    """
    return ulp / math.sqrt(12)


def rounded(dtype: torch.dtype, *, layer: int) -> float:
    """Most that rounding makes of one state computed twice, as a share of its norm.

    Every block up to `layer` rounds the stream anew: it grows with their number's root.
    """
    times = ROUNDINGS.get(dtype, 64)
    return times * rounding(torch.finfo(dtype).eps) * math.sqrt(layer + 1)


def _alike(shorter: Prefix, longer: Prefix) -> bool:
    """Whether what was proved of one holds of the other: both read, windows as full."""
    full = [{n == len(p.ids) for n in _kept(p).values()} for p in (shorter, longer)]
    return bool(shorter.ids) and full[0] == full[1]


def _proved(prefix: Prefix) -> Prefix:
    """The prefix, with candidates packed where that is right, else one a row."""
    packed, alone = (replace(prefix, packed=one) for one in (True, False))
    top = prefix.lm.num_layers - 1 if prefix.whole else prefix.layer
    layers = tuple(sorted({prefix.layer, top}))
    tokens, places = _specimen(packed)
    expected = _whole_passes(prefix, tokens[places], layers)
    off, failure = _off(alone, tokens, places, expected)
    together, _ = _off(packed, tokens, places, expected)
    tolerance = PROOF_TOLERANCE.get(prefix.lm.dtype, 0.05)
    if all(together[at] <= _allowed(prefix, off[at], at, tolerance) for at in layers):
        return packed
    if (deviation := max(off.values())) <= tolerance:
        return alone
    raise _not_the_next(prefix, deviation, tolerance) from failure


def _specimen(prefix: Prefix) -> tuple[Tensor, Tensor]:
    """Random candidates, a row and a half, and the places of those to compare.

    A wrong mask shows most at an end of a row, where a candidate would see all others.
    """
    width = prefix.in_a_row
    num = min(TOKENS_AT_ONCE, width + width // 2)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(prefix.lm.d_vocab, (num,), generator=generator)
    places = torch.tensor(sorted({0, width - 1, min(width, num - 1), num - 1}))
    return tokens.to(prefix.lm.device), places.to(prefix.lm.device)


def _off(
    prefix: Prefix, tokens: Tensor, places: Tensor, expected: dict[int, Tensor]
) -> tuple[dict[int, float], Exception | None]:
    """{layer: largest deviation at `places`}, infinite if it raises; what it raised."""
    # Without shared rows the other candidates are no company.
    some, at = (tokens, places) if prefix.packed else (tokens[places], slice(None))
    try:
        found = _streams(prefix, some, tuple(expected))
    except Exception as error:  # Code of any family may refuse in any way.
        return dict.fromkeys(expected, math.inf), error
    return {k: _deviation(found[k][at], expected[k]) for k in expected}, None


def _allowed(prefix: Prefix, alone: float, at: int, tolerance: float) -> float:
    """Largest deviation of packed candidates, given that of those with a row each."""
    # What is wrong itself says nothing about rounding.
    noise = TIMES_ALONE * alone if alone <= tolerance else 0.0
    return min(tolerance, max(noise, rounded(prefix.lm.dtype, layer=at)))


def _whole_passes(
    prefix: Prefix, tokens: Tensor, layers: tuple[int, ...]
) -> dict[int, Tensor]:
    """{layer: (n, d_model)} by passes over prefix and candidate, without a cache."""
    before = tokens.new_tensor(prefix.ids, dtype=torch.long)
    ids = torch.cat([before.expand(len(tokens), -1), tokens[:, None]], dim=1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    streams = prefix.lm.streams(ids, mask, layers=layers)
    return {layer: stream[:, -1] for layer, stream in streams.items()}


def _deviation(found: Tensor, expected: Tensor) -> float:
    norm = torch.linalg.vector_norm
    wide = expected.double()
    share = norm(found.double() - wide, dim=-1) / norm(wide, dim=-1)
    # A state that is no number is as far off as can be.
    return float(share.nan_to_num(nan=torch.inf).max())


def _not_the_next(prefix: Prefix, deviation: float, tolerance: float) -> ModelError:
    return ModelError(
        f"after {len(prefix.ids)} cached tokens of {prefix.lm.name}, the state of a "
        f"next token at layer {prefix.layer} differs from that of a whole pass by "
        f"{deviation:.2g} of its norm (tolerance {tolerance:g}).",
        cause="A block of this architecture keeps something besides keys and values, "
        "or its attention depends on the cache.",
        remedy="Please report the model id. No token was searched for.",
    )
