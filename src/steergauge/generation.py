"""Steered decoding: every row of a batch has its own intervention and strength.

Arms of an experiment go through the model together (`decoding`), as many rows at a time
as memory holds (`batching`); what is drawn is a function of logits and of noise that
arms share (`drawing`). Neither batch size nor the order or number of prompts and arms
changes what is computed for a row, but for rounding:

=============  ==================================  ====================================
path           where                               logits against the model's own pass
=============  ==================================  ====================================
ordinary       everywhere                          the model's kernels and precision
one query      processor, float32, sdpa, proved    float32, another order of sums: about
               on the model, where it pays         1e-6 of the largest logit
               (`attention`)
fixed step     CUDA, no sliding window, proved     the model's kernels on the longest
               in each batch before it is used     shape, recorded and replayed
noise          everywhere                          integer hash; logarithms in float32
=============  ==================================  ====================================

Every path is deterministic for the same seed, machine and batch. Another batch size
rounds otherwise (the libraries choose other kernels), which changes a token only where
two candidates are equal to that rounding: never seen in float32 in 74,000 tokens; in
half precision it must be expected now and then.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from steergauge.attention import one_query
from steergauge.batching import ran_out_of_memory, rows_that_fit
from steergauge.cache import Memory
from steergauge.decoding import Row, decode
from steergauge.drawing import (
    Decoding,
    Noise,
    draw,
    drawn,
    gumbel,
    likeliest,
    noise_key,
)
from steergauge.errors import InputError
from steergauge.intervention import Intervention
from steergauge.prompts import Text, encode
from steergauge.split import LanguageModel

__all__ = [
    "Arm",
    "Decoding",
    "Noise",
    "Sample",
    "draw",
    "drawn",
    "end_tokens",
    "generate",
    "gumbel",
    "likeliest",
    "noise_key",
]


@dataclass(frozen=True, slots=True)
class Arm:
    """One condition of an experiment.

    Attributes:
        intervention: None is unsteered.
        noise: arms with the same number share their random numbers.
    """

    intervention: Intervention | None = None
    noise: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated response; `text` is the continuation alone, never the prompt.

    Attributes:
        arm: name of its condition.
        prompt: the prompt as given.
        index: which prompt.
        sample: which of the prompt's samples.
        token_ids: the response's tokens; ends with an end token if `finished`.
        text: the response decoded, special tokens left out.
        finished: whether the model ended it itself.
    """

    arm: str
    prompt: str
    index: int
    sample: int
    token_ids: tuple[int, ...]
    text: str
    finished: bool


def generate(
    lm: LanguageModel,
    prompts: Sequence[str],
    arms: Mapping[str, Arm | Intervention | None],
    *,
    samples: int = 1,
    decoding: Decoding | None = None,
    chat: bool | None = None,
    batch_size: int | None = None,
    memory_share: float = 1.0,
    other_model: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Sample]:
    """`samples` responses to every prompt under every arm, by arm, prompt, sample.

    Args:
        lm: the model.
        prompts: instructions; the same text twice gives the same samples twice.
        arms: conditions by name; a bare intervention shares its noise with the rest.
        samples: responses a prompt and arm.
        decoding: how tokens are drawn; the default samples at temperature 1.
        chat: through the chat template; None means if there is one.
        batch_size: most rows that go through the model together; None means as many
            as memory holds (see `batching`). If it runs out, fewer are tried.
        memory_share: of the free memory that may be used: 1 / n where n processes
            share it. It matters only where `batch_size` is None.
        other_model: accept vectors that were extracted from another model.
        progress: called with the number of responses finished since the last call.

    Raises:
        InputError: the prompts are one text, or the share is none.
        NonFiniteLogits: an intervention drove the logits to infinity or NaN.
        ShapeMismatch: a vector does not fit the model.
    """
    how = decoding or Decoding()
    if isinstance(prompts, str):
        raise InputError(
            f"the prompts are one text, {prompts[:40]!r}, and must be a list of texts.",
            remedy="Put it in brackets: [prompt].",
        )
    for given in arms.values():
        steering = given.intervention if isinstance(given, Arm) else given
        if steering is not None:
            steering.check_fits(lm, other_model=other_model)
    rows = _rows(lm, prompts, arms, samples, how.seed, chat)
    # Similar lengths together spare padding; rows of one prompt share its prefill.
    order = sorted(rows, key=lambda row: (len(row.prompt_ids), row.index))
    ends = end_tokens(lm)
    if batch_size is None:
        longest = max((len(row.prompt_ids) for row in rows), default=0)
        batch_size = rows_that_fit(
            lm, longest + how.max_new_tokens, prompt=longest, share=memory_share
        )
    tokens: dict[tuple[str, int, int], list[int]] = {}
    with one_query(lm, min(batch_size, len(rows))):
        for row, ids in _in_batches(lm, order, how, ends, batch_size, progress):
            tokens[row.arm, row.index, row.sample] = ids
    return [
        Sample(
            arm=arm,
            prompt=prompts[index],
            index=index,
            sample=sample,
            token_ids=tuple(ids),
            text=lm.tokenizer.decode(ids, skip_special_tokens=True),
            finished=bool(ids) and ids[-1] in ends,
        )
        for (arm, index, sample), ids in (
            ((row.arm, row.index, row.sample), tokens[row.arm, row.index, row.sample])
            for row in rows
        )
    ]


def end_tokens(lm: LanguageModel) -> frozenset[int]:
    """Token ids that end a response."""
    config = getattr(lm.model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    own = [ends] if isinstance(ends, int) else list(ends or ())
    of_tokenizer = lm.tokenizer.eos_token_id
    return frozenset(own if of_tokenizer is None else [*own, of_tokenizer])


def _rows(
    lm: LanguageModel,
    prompts: Sequence[str],
    arms: Mapping[str, Arm | Intervention | None],
    samples: int,
    seed: int,
    chat: bool | None,
) -> list[Row]:
    encoded = [tuple(encode(lm, Text(prompt), chat=chat)[0]) for prompt in prompts]
    rows = []
    for name, given in arms.items():
        arm = given if isinstance(given, Arm) else Arm(given)
        steering = arm.intervention
        if steering is not None and steering.is_identity:
            steering = None  # alpha = 0 is the unsteered run itself, bit for bit.
        rows += [
            Row(
                name,
                steering,
                index,
                sample,
                ids,
                noise_key(seed, arm.noise, ids, sample),
            )
            for index, ids in enumerate(encoded)
            for sample in range(samples)
        ]
    return rows


@dataclass(slots=True)
class _Progress:
    """Counts a response once, however often its batch is begun anew."""

    report: Callable[[int], None] | None
    ended: int = field(default=0, init=False)
    reported: int = field(default=0, init=False)

    def __call__(self, num_more: int) -> None:
        self.ended += num_more
        new = self.ended - self.reported
        if self.report and new > 0:
            self.report(new)
            self.reported = self.ended


def _in_batches(
    lm: LanguageModel,
    rows: Sequence[Row],
    how: Decoding,
    ends: frozenset[int],
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> Iterator[tuple[Row, list[int]]]:
    """Every row with its tokens; batches are halved as often as memory asks for."""
    memory, count, start = Memory(), _Progress(progress), 0
    while start < len(rows):
        batch = rows[start : start + batch_size]
        try:
            found = decode(lm, batch, how, ends, memory, ended=count)
        except (RuntimeError, MemoryError) as error:
            if len(batch) == 1 or not ran_out_of_memory(error):
                raise
            found = None
        # Begun anew out here: in there, the error still holds what the batch took.
        if found is None:
            memory.kept.clear()
            _give_memory_back()
            batch_size, count.ended = max(1, len(batch) // 2), start
            continue
        yield from zip(batch, found, strict=True)
        start += len(batch)


def _give_memory_back() -> None:
    if torch.cuda.is_available():
        # Refused while a step is being recorded; the next batch does without it.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()
