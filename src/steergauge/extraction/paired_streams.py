"""The streams of contrast pairs, all of them: row i of both sides is one pair.

The mean difference needs running moments only (`mean_difference`). Every other method
needs the rows themselves, 2 n d_model numbers in float64: 50 pairs of a model that is
4096 wide are 3 MB.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from steergauge.activations import Reader, pair_rows
from steergauge.errors import BadPairs
from steergauge.prompts import ContrastPair
from steergauge.split import LanguageModel

PairRows = Float[np.ndarray, "pairs d_model"]
"""One row a pair."""

Vector = Float[np.ndarray, " d_model"]
"""A direction of the stream, in float64."""


@dataclass(frozen=True, slots=True, eq=False)
class PairedStreams:
    """Streams of the two sides of each pair, h(x_i+) and h(x_i-).

    Attributes:
        positive: one row a pair, in float64.
        negative: the same pairs in the same order.

    Raises:
        BadPairs: there are fewer than two pairs.
    """

    positive: PairRows
    negative: PairRows

    def __post_init__(self) -> None:
        """Refuse what cannot differ from pair to pair."""
        if len(self.positive) < 2:
            raise BadPairs(
                f"{len(self.positive)} contrast pairs were given, and this method "
                "needs to see how pairs differ from one another.",
                remedy="Give at least two pairs, better fifty.",
            )

    @property
    def differences(self) -> PairRows:
        """d_i = h(x_i+) - h(x_i-)."""
        return self.positive - self.negative

    @property
    def pooled(self) -> Float[np.ndarray, "rows d_model"]:
        """All positive rows, then all negative ones."""
        return np.concatenate([self.positive, self.negative])

    def mean_difference(self) -> Vector:
        """The mean of the pairs' differences."""
        return self.differences.mean(0)

    def with_mean_norm(self, direction: Vector) -> Vector:
        """`direction` at the norm of the mean difference; zero stays zero.

        For methods that give a direction and no length. What such a vector does is
        then comparable to the mean difference at the same alpha.
        """
        norm = float(np.linalg.norm(direction))
        if norm == 0:
            return direction
        return direction * (float(np.linalg.norm(self.mean_difference())) / norm)


def paired_streams(
    lm: LanguageModel,
    pairs: Sequence[ContrastPair],
    reader: Reader,
    *,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> PairedStreams:
    """The streams of `pairs`, in their order.

    Args:
        lm: the model; only its blocks 0..layer are run.
        pairs: contrast pairs.
        reader: layer, position rule and chat template.
        batch_size: most pairs that go through the model together; None means as many
            texts as the device works well with.
        progress: called with the number of pairs done since the last call.

    Raises:
        BadPairs: fewer than two, or they lack the position that is read.
        LayerOutOfRange: the model has no such block.
    """
    empty = torch.empty(0, lm.d_model, dtype=torch.float64)
    positive, negative = [empty], [empty]
    for plus, minus in pair_rows(
        lm, pairs, reader, batch_size=batch_size, progress=progress
    ):
        positive.append(plus)
        negative.append(minus)
    return PairedStreams(torch.cat(positive).numpy(), torch.cat(negative).numpy())
