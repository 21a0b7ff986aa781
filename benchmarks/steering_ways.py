"""Ways to generate steered texts: ours, and two of plain transformers.

Each takes the same prompts and vectors, None for unsteered, and gives the new tokens of
every text by vector, prompt and sample. `steering.py` times them.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from random_llamas import Given
from torch import Tensor

from steergauge.activations import Reader
from steergauge.generation import Decoding, generate
from steergauge.intervention import Add, Scope
from steergauge.prompts import Text, encode, padded
from steergauge.vector import Site, SteeringVector

ROWS = 1024
"""Of ours' largest batch."""

STEP = 0.5
"""Length of the vectors by the median norm of the stream where they are added."""

Texts = list[list[list[int]]]
"""New tokens by arm or vector, text, and place."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How much is generated."""

    arms: int = 22
    samples: int = 10
    new: int = 50
    temperature: float = 1.0


def directions(work: Given, num: int, *, seed: int = 0) -> Tensor:
    """Random vectors (num, d_model) that are half as long as the stream."""
    texts = [Text(prompt) for prompt in work.prompts]
    norms = torch.linalg.vector_norm(Reader(work.layer).read(work.lm, texts), dim=-1)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(num, work.lm.d_model, generator=generator)
    unit = drawn / torch.linalg.vector_norm(drawn, dim=-1, keepdim=True)
    return STEP * float(norms.median()) * unit


def ours(
    work: Given,
    vectors: Sequence[Tensor | None],
    how: Protocol,
    *,
    scope: Scope = Scope.GENERATING,
) -> Texts:
    """All arms in one call; None is unsteered."""
    arms = {str(i): _added(work, v, scope) for i, v in enumerate(vectors)}
    decoding = Decoding(how.new, how.temperature)
    found: Texts = [[] for _ in vectors]
    for sample in generate(
        work.lm,
        work.prompts,
        arms,
        samples=how.samples,
        decoding=decoding,
        batch_size=ROWS,
    ):
        found[int(sample.arm)].append(list(sample.token_ids))
    return found


def _added(work: Given, vector: Tensor | None, scope: Scope) -> Add | None:
    if vector is None:
        return None
    return Add(SteeringVector(vector, Site(work.layer)), 1.0, scope)


@contextmanager
def hooked(work: Given, vector: Tensor | None, scope: Scope) -> Iterator[None]:
    """The vector added after the block, as anybody would: by a forward hook."""
    if vector is None:
        yield
        return
    lm = work.lm
    step = vector.to(lm.device, lm.dtype)
    # Prompts are padded on the left, so that the last column predicts the response.
    first = 0 if scope is Scope.ALL else -1

    def adding(_module: Any, _args: Any, output: Any) -> Any:
        stream = (output[0] if isinstance(output, tuple) else output).clone()
        stream[:, first:] += step
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    handle = lm.blocks[work.layer].register_forward_hook(adding)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def call(work: Given, prompts: Sequence[str], how: Protocol) -> list[list[int]]:
    """New tokens of one call of `model.generate`: texts by prompt, then sample."""
    lm = work.lm
    encoded = [encode(lm, Text(prompt))[0] for prompt in prompts]
    ids, mask = padded(encoded, device=lm.device)
    drawn = {
        "do_sample": True,
        "temperature": how.temperature,
        "top_k": 0,
        "top_p": 1.0,
    }
    found = lm.model.generate(
        input_ids=ids,
        attention_mask=mask.long(),
        max_new_tokens=how.new,
        num_return_sequences=how.samples,
        pad_token_id=0,
        **(
            drawn | {"temperature": how.temperature}
            if how.temperature
            else {"do_sample": False}
        ),
    )
    tokens = found[:, ids.shape[1] :].tolist()
    lm.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    ends = lm.model.generation_config.eos_token_id
    return [_until(row, ends) for row in tokens]


def _until(row: list[int], end: int | None) -> list[int]:
    return row[: row.index(end) + 1] if end in row else row


def used_well(
    work: Given,
    vectors: Sequence[Tensor | None],
    how: Protocol,
    *,
    scope: Scope = Scope.GENERATING,
) -> Texts:
    """An arm at a time, all its texts in one batch."""
    found: Texts = []
    for vector in vectors:
        with hooked(work, vector, scope):
            found.append(call(work, work.prompts, how))
    return found


def published(
    work: Given,
    vectors: Sequence[Tensor | None],
    how: Protocol,
    *,
    prompts: int | None = None,
) -> Texts:
    """An arm and a prompt at a time, the samples in one batch."""
    found: Texts = []
    for vector in vectors:
        with hooked(work, vector, Scope.GENERATING):
            calls = [call(work, [prompt], how) for prompt in work.prompts[:prompts]]
            found.append(list(itertools.chain(*calls)))
    return found


def ceiling_flops(work: Given, num_new: int) -> int:
    """2 FLOPs a parameter of blocks and head, of new tokens and each prompt's once."""
    lm = work.lm
    head = lm.model.get_output_embeddings().weight.numel()
    blocks = sum(weight.numel() for weight in lm.blocks.parameters())
    # The last prompt token is the first step of every text of that prompt.
    before = sum(len(encode(lm, Text(prompt))[0]) - 1 for prompt in work.prompts)
    return 2 * (num_new * (blocks + head) + before * blocks)
