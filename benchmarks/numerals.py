"""A tokenizer of which every text is its own token ids, for models of random weights.

    "17 233 90"  <->  [17, 233, 90]

It stands where a Hugging Face tokenizer would: texts of exactly known length go through
the package's own calls, and nothing is downloaded. It adds no special tokens, has no
chat template, and knows no end token.
"""

from collections.abc import Sequence
from typing import Any

import torch


class Numerals:
    """A callable like a Hugging Face tokenizer, as far as the package asks of one."""

    chat_template = None
    eos_token_id = None
    pad_token_id = 0
    padding_side = "left"

    def __call__(self, text: str | Sequence[str], **_options: Any) -> dict[str, Any]:
        """Token ids of a text, or of each of several."""
        if isinstance(text, str):
            return {"input_ids": _ids(text)}
        return {"input_ids": [_ids(one) for one in text]}

    def decode(self, ids: Sequence[int], **_options: Any) -> str:
        """The text of token ids."""
        return " ".join(str(int(token)) for token in ids)

    def batch_decode(self, rows: Sequence[Sequence[int]], **options: Any) -> list[str]:
        """The text of each row of token ids."""
        return [self.decode(row, **options) for row in rows]


def _ids(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def texts(num: int, shortest: int, longest: int, d_vocab: int, seed: int) -> list[str]:
    """Texts of random tokens, whose lengths are spread evenly over the range.

    Args:
        num: how many.
        shortest: fewest tokens of a text.
        longest: most tokens of a text.
        d_vocab: tokens to draw from; the first three, special elsewhere, are left out.
        seed: of lengths and tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (num,), generator=generator)
    drawn = torch.randint(3, d_vocab, (num, longest), generator=generator).tolist()
    each = zip(drawn, lengths.tolist(), strict=True)
    return [Numerals().decode(row[:length]) for row, length in each]
