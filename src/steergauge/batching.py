"""How many rows decode together: as many as memory holds, fewer when it did not.

::

    bytes a row = 2 L x key heads x head width x T x b     keys and values
                + (b + 4) V                                logits, and drawn from
                + 24 d_model x b                           one block's intermediates
    bytes besides = 24 d_model x b x P                     those of prompts being read

with T the longest prompt and response, b the bytes of a number in the model, and P the
tokens of the prompts that are read in one pass: `PREFILL_TOKENS`, or one prompt if it
is longer. Half of the free memory is used, rounded down to a power of two, so that a
little more or less of it changes nothing. In float32 a batch size has never been seen
to change a token, only time; in half precision it rounds otherwise, and now and then
another of two candidates that are all but equal is taken (see `generation`).
"""

from pathlib import Path

import torch

from steergauge.errors import InputError
from steergauge.sharding import device_of
from steergauge.split import LanguageModel

MOST_ROWS = {"cpu": 1024}
"""More do not pay there; elsewhere `MOST_ROWS_ELSEWHERE`."""

MOST_ROWS_ELSEWHERE = 8192

PREFILL_TOKENS = {"cpu": 2**12}
"""Padded tokens of prompts that are read in one pass; elsewhere
`PREFILL_TOKENS_ELSEWHERE`."""

PREFILL_TOKENS_ELSEWHERE = 2**15

SHARE = 0.5
"""Of the free memory; the rest is for what the formula does not know."""

REFUSALS = ("not enough memory", "can't allocate memory", "cannot allocate memory")
"""How the processor's allocator says in a RuntimeError that memory has run out."""

CGROUP = Path("/sys/fs/cgroup")
"""Where the limit of a container is told."""


def rows_that_fit(
    lm: LanguageModel, num_tokens: int, *, prompt: int = 1, share: float = 1.0
) -> int:
    """Rows to decode together, a power of two, at least 1.

    Args:
        lm: the model.
        num_tokens: T, of the longest prompt and its response together.
        prompt: tokens of the longest prompt.
        share: of the machine's memory that is ours, where several work on it.

    Raises:
        InputError: the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise InputError(
            f"a share of {share:g} of the memory was asked for.",
            remedy="Ask for more than 0 and at most 1: 1 / the processes there.",
        )
    most = MOST_ROWS.get(lm.device.type, MOST_ROWS_ELSEWHERE)
    # A model on several devices is held up by the fullest of them.
    devices = {lm.device, *map(device_of, lm.blocks)}
    known = [free for device in devices if (free := free_bytes(device)) is not None]
    if not known:
        return most
    left = SHARE * share * min(known) - bytes_of_a_prefill(lm, prompt)
    fit = min(most, int(max(0.0, left) / bytes_of_a_row(lm, num_tokens)))
    return 1 << max(0, fit.bit_length() - 1)


def prefill_rows(lm: LanguageModel, width: int) -> int:
    """Prompts of `width` tokens that are read in one pass, at least 1."""
    return max(1, _prefill_tokens(lm) // width)


def bytes_of_a_prefill(lm: LanguageModel, width: int) -> int:
    """Memory for one block's intermediates while prompts are read."""
    return 24 * lm.d_model * lm.dtype.itemsize * max(width, _prefill_tokens(lm))


def _prefill_tokens(lm: LanguageModel) -> int:
    return PREFILL_TOKENS.get(lm.device.type, PREFILL_TOKENS_ELSEWHERE)


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
            available = int(line.split()[1]) * 1024
            limited = _free_in_container()
            return available if limited is None else min(available, limited)
    return None


def _free_in_container() -> int | None:
    """Memory that the control group still allows; None where it sets no limit."""
    try:
        most = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        told = (CGROUP / "memory.stat").read_text().split()
    except OSError:
        return None
    if most == "max":
        return None
    # Files that were read, such as the weights, make room when it is asked for.
    files = dict(zip(told[::2], told[1::2], strict=False)).get("inactive_file", "0")
    return max(0, int(most) - used + int(files))


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether it says that there was too little memory, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in said for part in REFUSALS)
