"""Attention of one new token a row, for processors: products and sums along positions.

Where a batch of rows gets one token each, attention is no matrix product but reads
every key and value once. PyTorch's kernel for processors goes through rows and heads
one by one for it. Here all of a few rows are gone through together, with keys and
values as `cache.RoomyLayer` lays them, position by position: about half the time while
there are no more than `LONGEST` positions. It is used through Transformers' attention
interface, within a `with`; what it does not know goes to the model's own way.
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "steergauge_one_query"
"""Under which Transformers knows it."""

LONGEST = 128
"""Most positions for which it is used."""

AT_ONCE = 2**19
"""Most products held at a time, 2 MB: more of them leave the processor's caches."""

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
        and key.shape[2] <= LONGEST
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


@contextmanager
def one_query(model: Any) -> Generator[None]:
    """Within it, a model on the processor that uses sdpa attends to one query this way.

    Any other model is left alone.
    """
    configs = {
        id(config): config
        for module in model.modules()
        if (config := getattr(module, "config", None)) is not None
        and hasattr(config, "_attn_implementation_internal")
    }
    usual = model.device.type == "cpu" and model.dtype == torch.float32
    with ExitStack() as stack:
        for config in configs.values():
            if usual and config._attn_implementation_internal == "sdpa":
                stack.callback(_set, config, "sdpa")
                _set(config, NAME)
        yield


def _set(config: Any, name: str) -> None:
    config._attn_implementation_internal = name
