"""Divergence tables with known answers; score tables are `calibration.ScoreTable`."""

from collections.abc import Mapping, Sequence

import numpy as np


def divergences(
    means: Mapping[str, float | Sequence[float]],
    *,
    num_prompts: int = 50,
    num_samples: int = 4,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """{family: (directions, prompts)} of sequence KL with the given true means.

    A text's KL is exponential, as skewed as real ones are; an entry is the mean of
    `num_samples` of them.
    """
    rng = np.random.default_rng(seed)
    families = {}
    for name, given in means.items():
        true = np.atleast_1d(np.asarray(given, dtype=float))
        shape = (len(true), num_prompts)
        families[name] = rng.gamma(num_samples, 1 / num_samples, shape) * true[:, None]
    return families
