"""How many rows decode together: as many as memory holds, fewer when it did not.

::

    bytes a row = 2 L x key heads x head width x T x b     keys and values
                + (b + 4) V                                logits, and drawn from
                + 24 d_model x b                           one block's intermediates

with T the longest prompt and response, b the bytes of a number in the model. Half of
the free memory is used, rounded down to a power of two, so that a little more or less
of it changes nothing. A batch size changes no token, only time.
"""

from pathlib import Path

import torch

from steergauge.sharding import device_of
from steergauge.split import LanguageModel

MOST_ROWS = {"cpu": 1024}
"""More do not pay there; elsewhere `MOST_ROWS_ELSEWHERE`."""

MOST_ROWS_ELSEWHERE = 8192

SHARE = 0.5
"""Of the free memory; the rest is for what the formula does not know."""

REFUSALS = ("not enough memory", "can't allocate memory", "cannot allocate memory")
"""How the processor's allocator says in a RuntimeError that memory has run out."""


def rows_that_fit(lm: LanguageModel, num_tokens: int) -> int:
    """Rows to decode together, a power of two, at least 1.

    Args:
        lm: the model.
        num_tokens: T, of the longest prompt and its response together.
    """
    most = MOST_ROWS.get(lm.device.type, MOST_ROWS_ELSEWHERE)
    # A model on several devices is held up by the fullest of them.
    devices = {lm.device, *map(device_of, lm.blocks)}
    known = [free for device in devices if (free := free_bytes(device)) is not None]
    if not known:
        return most
    fit = min(most, int(SHARE * min(known) / bytes_of_a_row(lm, num_tokens)))
    return 1 << max(0, fit.bit_length() - 1)


def bytes_of_a_row(lm: LanguageModel, num_tokens: int) -> int:
    """Memory that one row takes while it is decoded; see the module's formula."""
    config = lm.model.config.get_text_config()
    num_heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or num_heads
    width = getattr(config, "head_dim", None) or lm.d_model // num_heads
    number = lm.dtype.itemsize
    cache = 2 * lm.num_layers * key_heads * width * num_tokens * number
    return cache + (number + 4) * lm.d_vocab + 24 * lm.d_model * number


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had there; None where nothing tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds but does not use it hands out again.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + held
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.exists():
        return None
    for line in table.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether it says that there was too little memory, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in said for part in REFUSALS)
