"""Attention of one new token a row, for processors: products and sums along positions.

Where a batch of rows gets one token each, attention is no matrix product but reads
every key and value once. PyTorch's kernel for processors goes through rows and heads
one by one for it. Here all of a few rows are gone through together, with keys and
values as `cache.RoomyLayer` lays them, position by position. That is up to 2.6 times
as fast for many rows with few positions and narrow heads, each with keys of its own,
and up to five times as slow elsewhere: `_pays` says where it is used. It goes through
Transformers' attention interface, within a `with`; what it does not know goes to the
model's own way, and so does every model whose logits it is not seen to keep.
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from steergauge.batching import ran_out_of_memory
from steergauge.split import LanguageModel

NAME = "steergauge_one_query"
"""Under which Transformers knows it."""

LONGEST = 128
"""Most positions for which it is used."""

FEWEST = 128
"""Fewest rows. On one processor core PyTorch's kernel took 2/3 of its time for 64 rows
of 4 heads of 32 numbers, and 1 to 2.6 times its time for 128 and more."""

WIDEST = 64
"""Widest heads: at 128 numbers it was never faster."""

AT_ONCE = 2**19
"""Most products held at a time, 2 MB: more of them leave the processor's caches."""

TOLERANCE = 1e-4
"""Of the largest logit. Sums in another order were seen to change 1e-6 of it."""

KNOWN = ("softcap", "position_bias", "cache", "output_attentions")
"""Arguments that change what attention is: with one of them, it is not done here."""


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`sdpa_attention_forward`, in its own way where that is one query a row.

    Args:
        module: the attention layer.
        query: (batch, heads, 1, width).
        key: (batch, key heads, pos, width).
        value: likewise.
        attention_mask: True where a key is seen, (batch, 1, 1, pos); None means all.
        options: as for Transformers' attention functions.
    """
    ours = (
        query.shape[2] == 1
        and _pays(
            len(query), query.shape[1], key.shape[1], query.shape[3], key.shape[2]
        )
        and query.dtype == torch.float32
        and query.device.type == "cpu"
        and not any(options.get(name) for name in KNOWN if name != "position_bias")
        and options.get("position_bias") is None
        and not options.get("dropout")
        and not torch.is_grad_enabled()
        and (attention_mask is None or _plain(attention_mask, query))
    )
    if not ours:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    grouped = query.squeeze(2).unflatten(1, (key.shape[1], -1)) * scale
    hidden = None
    if attention_mask is not None:
        hidden = attention_mask.squeeze(1).logical_not().permute(2, 0, 1)[..., None]
    found = _one_query(
        grouped, key.permute(2, 0, 1, 3), value.permute(2, 0, 1, 3), hidden
    )
    return found.flatten(1, 2)[:, None], None


def _pays(rows: int, heads: int, key_heads: int, width: int, length: int) -> bool:
    """Whether it was seen to be the faster way: never where heads share their keys."""
    return (
        rows >= FEWEST and heads == key_heads and width <= WIDEST and length <= LONGEST
    )


def _plain(mask: Tensor, query: Tensor) -> bool:
    """Whether it says of each row's keys that they are seen or not, for all heads."""
    return mask.dtype == torch.bool and mask.shape[:3] == (len(query), 1, 1)


def _one_query(
    query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None
) -> Tensor:
    """Softmax-weighted values of each row and head.

    Args:
        query: scaled, (batch, key heads, group, width).
        keys: (pos, batch, key heads, width).
        values: likewise.
        hidden: True where a key is not seen, (pos, batch, 1, 1).
    """
    found = query.new_empty(*query.shape[:3], values.shape[-1])
    at_once = max(1, AT_ONCE // (len(keys) * query[0].numel()))
    for start in range(0, len(query), at_once):
        rows = slice(start, start + at_once)
        scores = (keys[:, rows, :, None] * query[rows]).sum(-1)
        if hidden is not None:
            # Finite, unlike -inf: padding that sees nothing must not become NaN.
            scores.masked_fill_(hidden[:, rows], torch.finfo(scores.dtype).min)
        weights = scores.softmax(0)[..., None]
        torch.sum(values[:, rows, :, None] * weights, 0, out=found[rows])
    return found


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


_PROVED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Models that have been tried, and whether they give their own logits this way."""


@contextmanager
def one_query(lm: LanguageModel, rows: int = FEWEST) -> Generator[None]:
    """Within it, a model on the processor that uses sdpa attends to one query this way.

    `rows` are the most that go through it together: for few, nothing is done. It is
    for a float32 model all of whose parts say that they take their attention from
    Transformers' interface, and one whose logits have been seen to stay: each model is
    tried once, in two passes of some random tokens. Any other is left alone.
    """
    if not _may_be_tried(lm, rows):
        yield
        return
    if lm.model not in _PROVED:
        _PROVED[lm.model] = _keeps_logits(lm)
    with _renamed(lm.model) if _PROVED[lm.model] else nullcontext():
        yield


def _may_be_tried(lm: LanguageModel, rows: int) -> bool:
    config = lm.model.config.get_text_config()
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or lm.d_model // heads
    if not _pays(rows, heads, key_heads, width, 1):
        return False
    parts = [part for part in lm.model.modules() if isinstance(part, PreTrainedModel)]
    names = {config._attn_implementation_internal for config in _configs(lm.model)}
    return (
        lm.device.type == "cpu"
        and lm.dtype == torch.float32
        # Others ask the name themselves, and take one that they do not know for eager.
        and all(part._supports_attention_backend for part in parts)
        and "sdpa" in names
    )


def _keeps_logits(lm: LanguageModel) -> bool:
    """Whether a prompt and a step after it give the model's own logits."""
    own = _specimen(lm)
    try:
        with _renamed(lm.model):
            found = _specimen(lm)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        if ran_out_of_memory(error):
            raise
        return False
    return bool((found - own).abs().max() <= TOLERANCE * own.abs().max())


def _specimen(lm: LanguageModel) -> Tensor:
    """Logits after a prompt, and after one more token: (2, rows, d_vocab)."""
    generator = torch.Generator().manual_seed(0)
    # As many rows as it is used for, and a few tokens of each.
    ids = torch.randint(0, lm.d_vocab, (FEWEST, 4), generator=generator)
    mask = torch.ones(FEWEST, 4, dtype=torch.bool)
    mask[::2, :1] = False
    cache = DynamicCache(config=lm.model.config)
    prompt = lm.logits(ids[:, :-1], mask[:, :-1], cache=cache, keep=1)
    step = lm.logits(ids[:, -1:], mask, cache=cache, keep=1)
    return torch.stack([prompt[:, -1], step[:, -1]])


@contextmanager
def _renamed(model: Any) -> Generator[None]:
    with ExitStack() as stack:
        for config in _configs(model):
            if config._attn_implementation_internal == "sdpa":
                stack.callback(_set, config, "sdpa")
                _set(config, NAME)
        yield


def _configs(model: Any) -> list[Any]:
    """Those of the model and of its modules, each once."""
    configs = {
        id(config): config
        for module in model.modules()
        if (config := getattr(module, "config", None)) is not None
        and hasattr(config, "_attn_implementation_internal")
    }
    return list(configs.values())


def _set(config: Any, name: str) -> None:
    config._attn_implementation_internal = name
