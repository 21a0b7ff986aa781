"""Score tables with known answers: effects, ICC, prompts x samples, seeds.

The probe's score of a sample is drawn from a Beta distribution, so it lies in [0, 1],
and its mean is exactly

    base + prompt + effect (1 + interaction),

with `prompt` uniform and shared by all arms, and `interaction` uniform and drawn for
each arm and prompt. The concentration is set so that `icc` of the variance of the
unsteered score lies between prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

BASE = 0.5
HALF_WIDTH = 0.12
"""Of the prompts' means around `BASE`: effects of up to 0.25 stay inside [0, 1]."""

BETWEEN = HALF_WIDTH**2 / 3
"""Variance of a uniform distribution of that half width."""


@dataclass(frozen=True)
class ScoreTable:
    """Sizes and noise of a simulated experiment."""

    num_prompts: int = 50
    num_samples: int = 4
    icc: float = 0.3
    interaction: float = 0.3
    seed: int = 0

    def lifts(
        self, effects: Mapping[str, float | Sequence[float]]
    ) -> dict[str, np.ndarray]:
        """{family: (directions, prompts)} of mean score minus mean unsteered score.

        Args:
            effects: per family the true lift of each of its directions.
        """
        rng = np.random.default_rng(self.seed)
        means = BASE + rng.uniform(-HALF_WIDTH, HALF_WIDTH, self.num_prompts)
        unsteered = self._scores(rng, means)
        families = {}
        for name, given in effects.items():
            true = np.atleast_1d(np.asarray(given, dtype=float))[:, None]
            spread = rng.uniform(-1, 1, (len(true), self.num_prompts))
            shifted = means + true * (1 + self.interaction * spread)
            families[name] = self._scores(rng, shifted) - unsteered
        return families

    def scores(self, effect: float = 0.0) -> np.ndarray:
        """Scores of every sample of one arm, (prompts, samples)."""
        rng = np.random.default_rng(self.seed)
        means = BASE + rng.uniform(-HALF_WIDTH, HALF_WIDTH, self.num_prompts)
        return self._samples(rng, means + effect)

    def _scores(self, rng: np.random.Generator, means: np.ndarray) -> np.ndarray:
        return self._samples(rng, means).mean(-1)

    def _samples(self, rng: np.random.Generator, means: np.ndarray) -> np.ndarray:
        within = BETWEEN * (1 - self.icc) / self.icc
        concentration = BASE * (1 - BASE) / within - 1
        a, b = means * concentration, (1 - means) * concentration
        size = (*means.shape, self.num_samples)
        return rng.beta(a[..., None], b[..., None], size)


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
