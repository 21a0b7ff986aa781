"""Streams over a set of texts: batched by tokens, sorted by length, stopped at block l.

Only blocks 0..l run and no head, and a text costs one row. Texts are taken a window
at a time: all of a window are tokenised in one call, sorted by their number of tokens,
and cut into batches that hold as many padded tokens as the device works well with
(`TOKENS_AT_ONCE`), so hardly anything is spent on padding and memory does not grow
with the number of texts. What is read at a text is set by its *position rule*:

==============  ====================================================================
last            last token of the text (of the prompt if there is no response)
index:k         k-th token of the text, 0-based; counted from the end if negative
response-mean   mean over the response's tokens
==============  ====================================================================

Only what is read leaves the model's precision: rows are float64. Which texts share a
batch decides which kernels run, so rows agree between batches to the rounding of the
model's own precision (about 1e-6 of a stream in float32), not to the last bit.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steergauge.batching import ran_out_of_memory
from steergauge.errors import BadPairs, InputError, ModelError
from steergauge.prompts import ContrastPair, Text, encoded, padded
from steergauge.split import LanguageModel
from steergauge.types import Rows, Stream

WINDOW = 1024
"""Texts that are tokenised and sorted together. Their rows are kept until all of them
are read: 1024 d_model numbers in float64, 32 MB at d_model = 4096."""

TOKENS_AT_ONCE = {"cpu": 1024}
"""Padded tokens of one batch, by device. On one processor core, 1024 was within 6 % of
the fastest of the sizes tried at d_model = 128, 256 and 768; 2048 cost 13 % to 30 %
more than 1024 at the two wider ones."""

TOKENS_ON_ACCELERATOR = 16384
"""The same on any other device. A guess: it was measured on none."""

Span = tuple[int, int]
"""First token of a text that is read, and the one after the last."""


@dataclass(frozen=True, slots=True)
class Position:
    """Which token's stream stands for a text; see the module's table."""

    rule: str = "last"

    def __post_init__(self) -> None:
        """Refuse a rule that is none of ours."""
        if self.rule in ("last", "response-mean"):
            return
        if not re.fullmatch(r"index:-?[0-9]+", self.rule):
            raise InputError(
                f"the position rule {self.rule!r} is not known.",
                remedy="Use last, response-mean or index:K, such as index:-2.",
            )

    def span(self, length: int, prompt_length: int) -> Span:
        """The tokens of a text of `length` whose streams' mean is read.

        >>> Position("index:-2").span(7, 4), Position("response-mean").span(7, 4)
        ((5, 6), (4, 7))

        Raises:
            BadPairs: the text has no such token.
        """
        if self.rule == "last":
            return length - 1, length
        if self.rule == "response-mean":
            if length == prompt_length:
                raise BadPairs(
                    "the mean over the response was asked for, but a text of the "
                    "pairs has no response.",
                    remedy='Give {"prompt": ..., "response": ...} on both sides, or '
                    "read at --position last.",
                )
            return prompt_length, length
        index = int(self.rule.partition(":")[2])
        if not -length <= index < length:
            raise BadPairs(
                f"position {self.rule} was asked for, but a text of the pairs "
                f"has only {length} tokens.",
                remedy="Choose an index within the shortest text.",
            )
        return index % length, index % length + 1


@dataclass(frozen=True, slots=True)
class Room:
    """How much of a window goes through the model together.

    Attributes:
        tokens: most padded tokens of a batch; None if only `texts` counts.
        texts: most texts of a batch; None if only `tokens` counts.
    """

    tokens: int | None
    texts: int | None = None

    def holds(self, width: int) -> int:
        """How many texts of `width` tokens fit, at least one."""
        limits = [] if self.texts is None else [self.texts]
        if self.tokens is not None:
            limits.append(self.tokens // width)
        return max(1, min(limits))

    def halved(self, num: int, width: int) -> "Room":
        """Room for half of a batch of `num` texts that turned out too large."""
        return replace(self, tokens=num * width // 2)


@dataclass(frozen=True, slots=True)
class Reader:
    """How streams are read: layer, position rule, chat template or raw text."""

    layer: int
    position: Position = Position()
    chat: bool | None = None

    def read(self, lm: LanguageModel, texts: Sequence[Text]) -> Rows:
        """Streams of `texts`, one row each in their order, in float64 on the CPU.

        Raises:
            BadPairs: a text lacks the position that is read.
            LayerOutOfRange: the model has no such block.
            ModelError: the memory does not hold one text.
        """
        room, rows = room_on(lm), [torch.empty(0, lm.d_model, dtype=torch.float64)]
        for start in range(0, len(texts), WINDOW):
            window = texts[start : start + WINDOW]
            found, room = self.window(lm, window, room)
            rows.append(found)
        return torch.cat(rows)

    def window(
        self,
        lm: LanguageModel,
        texts: Sequence[Text],
        room: Room,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Rows, Room]:
        """Rows of `texts` in their order, and the room that there turned out to be.

        A batch that does not fit into memory is halved; so are all that follow it.

        Args:
            lm: the model; only its blocks 0..layer are run.
            texts: at least one.
            room: of one batch.
            progress: called with the number of texts of each batch.

        Raises:
            BadPairs: a text lacks the position that is read.
            LayerOutOfRange: the model has no such block.
            ModelError: the memory does not hold one text.
        """
        lm.check_layer(self.layer)
        lm.prove((self.layer,))
        found = encoded(lm, texts, chat=self.chat)
        spans = [self.position.span(len(ids), prompt) for ids, prompt in found]
        # The longest first: what does not fit is met at once.
        order = sorted(range(len(found)), key=lambda i: -len(found[i][0]))
        parts: list[Tensor] = []
        todo = order
        while todo:
            width = len(found[todo[0]][0])
            batch = todo[: room.holds(width)]
            part = self._batch(
                lm, [found[i][0] for i in batch], [spans[i] for i in batch]
            )
            if part is None:
                room = room.halved(len(batch), width)
                continue
            parts.append(part)
            todo = todo[len(batch) :]
            if progress:
                progress(len(batch))
        rows = torch.cat(parts).cpu()  # One transfer a window, not one a batch.
        return torch.empty_like(rows).index_copy_(0, torch.tensor(order), rows), room

    def _batch(
        self, lm: LanguageModel, rows: Sequence[Sequence[int]], spans: Sequence[Span]
    ) -> Tensor | None:
        """Rows of one batch on the model's device; None if memory does not hold it."""
        try:
            ids, mask = padded(rows, device=lm.device)
            ends = torch.tensor([len(row) for row in rows])[:, None]
            columns = torch.tensor(spans) + ids.shape[1] - ends
            return span_means(lm.prefix(ids, mask, layer=self.layer), columns)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise ModelError(
                    f"a text of {len(rows[0])} tokens alone does not fit into the "
                    f"memory of {lm.device}: {error}",
                    remedy="Give shorter texts, a smaller model or a lower precision.",
                ) from error
        # Outside of the handler, which keeps the failed pass' tensors alive.
        if lm.device.type == "cuda":
            torch.cuda.empty_cache()
        return None


def span_means(stream: Stream, spans: Tensor) -> Rows:
    """Mean over the columns spans[i, 0] to spans[i, 1] - 1 of each row i, in float64.

    Of a single column it is that column exactly; no other column is looked at, so that
    NaN in padding stays there.

    Args:
        stream: (batch, pos, d_model).
        spans: (batch, 2), on the CPU.
    """
    first, after = spans[:, 0], spans[:, 1]
    if bool((after - first == 1).all()):
        rows = torch.arange(len(first), device=stream.device)
        return stream[rows, first.to(stream.device)].double()
    start = int(first.min())
    columns = torch.arange(start, stream.shape[1])
    inside = (columns >= first[:, None]) & (columns < after[:, None])
    weights = inside.double() / inside.sum(1, keepdim=True)
    inside, weights = inside.to(stream.device), weights.to(stream.device)
    read = stream[:, start:].masked_fill(~inside[..., None], 0).double()
    return torch.bmm(weights[:, None], read)[:, 0]


def room_on(lm: LanguageModel, batch_size: int | None = None) -> Room:
    """Room for `batch_size` pairs, or for what the device works well with.

    Raises:
        InputError: `batch_size` is not positive.
    """
    if batch_size is None:
        return Room(TOKENS_AT_ONCE.get(lm.device.type, TOKENS_ON_ACCELERATOR))
    if batch_size < 1:
        raise InputError(
            f"a batch of {batch_size} pairs was asked for.",
            remedy="Ask for at least 1, or leave it out.",
        )
    return Room(None, 2 * batch_size)


def pair_rows(
    lm: LanguageModel,
    pairs: Sequence[ContrastPair],
    reader: Reader,
    *,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[Rows, Rows]]:
    """h(x+) and h(x-) of all pairs in their order, a window of pairs at a time.

    Args:
        lm: the model; only its blocks 0..layer are run.
        pairs: contrast pairs.
        reader: layer, position rule and chat template.
        batch_size: most texts of a batch, in pairs; None means as many as
            `TOKENS_AT_ONCE` says. The two sides of a pair need not share a batch.
        progress: called with the number of pairs read since the last call; two texts
            count as a pair, whichever they are.

    Raises:
        BadPairs: a text lacks the position that is read.
        InputError: `batch_size` is not positive.
        LayerOutOfRange: the model has no such block.
        ModelError: the memory does not hold one text.
    """
    room, read = room_on(lm, batch_size), 0

    def count(num: int) -> None:
        nonlocal read
        pairs_before, read = read // 2, read + num
        if progress and read // 2 > pairs_before:
            progress(read // 2 - pairs_before)

    for start in range(0, len(pairs), WINDOW // 2):
        window = pairs[start : start + WINDOW // 2]
        texts = [*(p.positive for p in window), *(p.negative for p in window)]
        rows, room = reader.window(lm, texts, room, progress=count)
        yield rows[: len(window)], rows[len(window) :]
