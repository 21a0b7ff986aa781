"""Streams over a set of texts: batched, length-sorted, stopped at block l.

Only blocks 0..l run, each text costs one row, and rows of similar length share a
batch so that little is spent on padding. What is read at a text is set by its
*position rule*:

==============  ====================================================================
last            last token of the text (of the prompt if there is no response)
index:k         k-th token of the text, 0-based; counted from the end if negative
response-mean   mean over the response's tokens
==============  ====================================================================
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from steergauge.errors import BadPairs, InputError
from steergauge.prompts import Text, encode, padded
from steergauge.split import LanguageModel
from steergauge.types import Rows


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

    def weights(self, length: int, prompt_length: int) -> Tensor:
        """Weights (length,) over the tokens of one text; they sum to 1.

        Raises:
            BadPairs: the text has no such token.
        """
        weights = torch.zeros(length)
        if self.rule == "last":
            weights[-1] = 1
        elif self.rule == "response-mean":
            if length == prompt_length:
                raise BadPairs(
                    "the mean over the response was asked for, but a text of the "
                    "pairs has no response.",
                    remedy='Give {"prompt": ..., "response": ...} on both sides, or '
                    "read at --position last.",
                )
            weights[prompt_length:] = 1 / (length - prompt_length)
        else:
            index = int(self.rule.partition(":")[2])
            if not -length <= index < length:
                raise BadPairs(
                    f"position {self.rule} was asked for, but a text of the pairs "
                    f"has only {length} tokens.",
                    remedy="Choose an index within the shortest text.",
                )
            weights[index] = 1
        return weights


@dataclass(frozen=True, slots=True)
class Reader:
    """How streams are read: layer, position rule, chat template or raw text."""

    layer: int
    position: Position = Position()
    chat: bool | None = None

    def read(self, lm: LanguageModel, texts: Sequence[Text]) -> Rows:
        """Streams of `texts`, one row each in their order, in float64 on the CPU."""
        encoded = [encode(lm, text, chat=self.chat) for text in texts]
        ids, mask = padded([row for row, _ in encoded], device=lm.device)
        stream = lm.prefix(ids, mask, layer=self.layer).double()
        weights = torch.zeros(mask.shape, dtype=torch.float64)
        for i, (row, prompt_length) in enumerate(encoded):
            weights[i, -len(row) :] = self.position.weights(len(row), prompt_length)
        stream = stream.masked_fill(~mask[..., None], 0)  # 0 * NaN would be NaN
        # A sum of one term is that term: "last" and "index" stay exact.
        return torch.einsum("bp,bpd->bd", weights.to(stream), stream).cpu()


Group = TypeVar("Group", bound=tuple[Text, ...])


def length_sorted(
    groups: Iterable[Group], batch_size: int, *, window: int = 32
) -> Iterator[list[Group]]:
    """Batches of groups of similar length, sorted within windows of batches.

    A group (a contrast pair, say) stays together. Memory is that of one window.
    """
    iterator = iter(groups)
    while chunk := list(islice(iterator, batch_size * window)):
        chunk.sort(key=lambda group: max(len(t.prompt + t.response) for t in group))
        for start in range(0, len(chunk), batch_size):
            yield chunk[start : start + batch_size]
