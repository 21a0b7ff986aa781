"""Mean difference of contrast pairs: v = mean_i (h(x_i+) - h(x_i-)).

Also called difference of means, and contrastive activation addition when read at an
answer token (arXiv 2312.06681). Streamed: float64 moments of the pair differences are
all that is kept, so memory does not grow with the number of pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from steergauge.activations import Reader, pair_rows
from steergauge.errors import BadPairs
from steergauge.extraction.provenance import provenance_of
from steergauge.prompts import ContrastPair
from steergauge.split import LanguageModel
from steergauge.streaming import Moments
from steergauge.vector import Site, SteeringVector

NUM_NORMS = 1024
"""The median norm is taken over at most so many texts, so that memory is bounded."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """A vector and how well the pairs determine it.

    Attributes:
        vector: the mean difference, or what another method made of the same pairs.
        differences: moments of the pairs' differences.
    """

    vector: SteeringVector
    differences: Moments

    @property
    def standard_error(self) -> float:
        """sqrt(tr Cov / n): how long the error of the mean difference is."""
        total = float(self.differences.variance.sum())
        return (total / self.differences.count) ** 0.5


def mean_difference(
    lm: LanguageModel,
    pairs: Sequence[ContrastPair],
    reader: Reader,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Extraction:
    """The mean difference of `pairs` at the reader's site.

    Args:
        lm: the model; only its blocks 0..layer are run.
        pairs: contrast pairs.
        reader: layer, position rule and chat template.
        batch_size: most pairs that go through the model together; None means as many
            texts as the device works well with.
        seed: recorded as the seed of the pairs' selection.
        progress: called with the number of pairs done since the last call.

    Raises:
        BadPairs: there are none, or they lack the position that is read.
        LayerOutOfRange: the model has no such block.
    """
    if not pairs:
        raise BadPairs(
            "no contrast pairs were given.", remedy="Give at least two pairs."
        )
    moments, norms = Moments.empty(lm.d_model), []
    for plus, minus in pair_rows(
        lm, pairs, reader, batch_size=batch_size, progress=progress
    ):
        moments = moments.update(plus - minus)
        if len(norms) < NUM_NORMS:
            read = torch.cat([plus, minus])
            norms.extend(torch.linalg.vector_norm(read, dim=-1).tolist())
    vector = SteeringVector(
        direction=moments.mean.float(),
        site=Site(reader.layer),
        provenance=provenance_of(
            lm, pairs, reader, method="mean_difference", seed=seed, norms=norms
        ),
    )
    return Extraction(vector, moments)
