"""The methods of extraction by name: what the same pairs say by another formula.

Independent components and sparse shifts are not among them: how many components there
are has to be said, and they take many more pairs than the others.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from steergauge.activations import Position, Reader
from steergauge.errors import InputError
from steergauge.extraction.discriminant import discriminant
from steergauge.extraction.logistic import logistic
from steergauge.extraction.mean_difference import Extraction, mean_difference
from steergauge.extraction.median_difference import median_difference
from steergauge.extraction.paired_streams import (
    PairedStreams,
    Vector,
    paired_streams,
)
from steergauge.extraction.principal_component import principal_component
from steergauge.extraction.provenance import provenance_of
from steergauge.prompts import ContrastPair
from steergauge.split import LanguageModel
from steergauge.streaming import Moments
from steergauge.vector import Site, SteeringVector

METHODS: Mapping[str, Callable[[PairedStreams], Vector]] = {
    "mean-difference": PairedStreams.mean_difference,
    "median-difference": median_difference,
    "principal-component": principal_component,
    "logistic": logistic,
    "discriminant": discriminant,
}

WITHOUT_LENGTH = ("principal-component", "logistic", "discriminant")
"""Methods that give a direction only; the norm is the mean difference's."""


def check_method(name: str) -> None:
    """Raise unless `name` is one of METHODS.

    Raises:
        InputError: it is not.
    """
    if name not in METHODS:
        raise InputError(
            f"the extraction method {name!r} is not known.",
            remedy=f"Use one of {', '.join(METHODS)}.",
        )


def extraction_by(
    lm: LanguageModel,
    pairs: Sequence[ContrastPair],
    reader: Reader,
    *,
    method: str,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Extraction:
    """The vector of `pairs` by `method`, with the moments of the pairs' differences.

    Args:
        lm: the model; only its blocks 0..layer are run.
        pairs: contrast pairs.
        reader: layer, position rule and chat template.
        method: a name of METHODS. Only mean-difference streams; the others keep all
            rows.
        batch_size: most pairs that go through the model together; None means as many
            texts as the device works well with.
        seed: recorded as the seed of the pairs' selection.
        progress: called with the number of pairs done since the last call.

    Raises:
        InputError: the method is not known.
        BadPairs: too few pairs, or they lack the position that is read.
        LayerOutOfRange: the model has no such block.
    """
    check_method(method)
    if method == "mean-difference":
        return mean_difference(
            lm, pairs, reader, batch_size=batch_size, seed=seed, progress=progress
        )
    streams = paired_streams(
        lm, pairs, reader, batch_size=batch_size, progress=progress
    )
    name = method.replace("-", "_")
    scaled = f"direction of {name}, norm of mean_difference"
    provenance = provenance_of(
        lm,
        pairs,
        reader,
        method=name,
        seed=seed,
        norms=np.linalg.norm(streams.pooled, axis=1).tolist(),
        parent=scaled if method in WITHOUT_LENGTH else "",
    )
    direction = torch.from_numpy(METHODS[method](streams)).float()
    vector = SteeringVector(direction, Site(reader.layer), provenance)
    differences = torch.from_numpy(streams.differences)
    return Extraction(vector, Moments.empty(lm.d_model).update(differences))


def extract(
    lm: LanguageModel,
    pairs: Sequence[ContrastPair],
    *,
    method: str = "mean-difference",
    layer: int | None = None,
    position: str = "last",
    chat: bool | None = None,
    seed: int = 0,
) -> SteeringVector:
    """The steering vector of `pairs` by one of METHODS.

    Args:
        lm: the model.
        pairs: contrast pairs.
        method: mean-difference, median-difference, principal-component, logistic or
            discriminant.
        layer: block whose output is read; None means the middle one.
        position: which token stands for a text: last, response-mean or index:K.
        chat: through the chat template; None means if there is one.
        seed: recorded as the seed of the pairs' selection.

    Raises:
        InputError: the method or the position rule is not known.
        BadPairs: too few pairs, or they lack the position that is read.
        LayerOutOfRange: the model has no such block.
    """
    chosen = lm.num_layers // 2 if layer is None else layer
    reader = Reader(chosen, Position(position), chat)
    return extraction_by(lm, pairs, reader, method=method, seed=seed).vector
