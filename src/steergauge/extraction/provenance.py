"""Where an extracted vector came from: everything needed to extract it again."""

import importlib.metadata
import platform
from collections.abc import Sequence
from contextlib import suppress

import torch

from steergauge.activations import Reader
from steergauge.prompts import ContrastPair, chat_template_hash, pairs_hash
from steergauge.split import LanguageModel
from steergauge.vector import Provenance

LIBRARIES = ("steergauge", "torch", "transformers", "scikit-learn")


def provenance_of(
    lm: LanguageModel,
    pairs: Sequence[ContrastPair],
    reader: Reader,
    *,
    method: str,
    seed: int,
    norms: Sequence[float],
    parent: str = "",
) -> Provenance:
    """The provenance of a vector of `pairs` by `method`.

    Args:
        lm: the model that was read.
        pairs: contrast pairs.
        reader: layer, position rule and chat template.
        method: name of the formula.
        seed: seed of the pairs' selection.
        norms: norms of streams that were read; their median is kept.
        parent: what was put together, if not one formula gave both direction and norm.
    """
    return Provenance(
        method=method,
        position=reader.position.rule,
        model=lm.name,
        revision=lm.revision,
        fingerprint=lm.fingerprint,
        chat_template=chat_template_hash(lm, reader.chat),
        pairs=pairs_hash(pairs),
        num_pairs=len(pairs),
        seed=seed,
        median_norm=float(torch.tensor(norms).median()),
        parent=parent,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    """Of the libraries that are installed; a source tree that is imported has none."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
