"""Running moments of vectors: the only accumulator, so memory never grows with data.

Mean and summed squared deviations in float64, updated by batches and merged by the
pairwise formula of Chan, Golub and LeVeque (1979); merging is exact up to rounding,
in any order and grouping.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean (d,) and summed squared deviations (d,) of the vectors seen."""

    count: int
    mean: Float[Tensor, " d"]
    squares: Float[Tensor, " d"]

    @classmethod
    def empty(cls, width: int) -> "Moments":
        """No vectors yet."""
        zero = torch.zeros(width, dtype=torch.float64)
        return cls(0, zero, zero)

    def update(self, rows: Float[Tensor, "rows d"]) -> "Moments":
        """These moments and `rows` together."""
        if len(rows) == 0:
            return self
        values = rows.double().cpu()
        mean = values.mean(0)
        return self.merge(Moments(len(rows), mean, (values - mean).square().sum(0)))

    def merge(self, other: "Moments") -> "Moments":
        """Both sets of vectors together.

        >>> a = Moments.empty(1).update(torch.tensor([[1.0], [2.0]]))
        >>> b = Moments.empty(1).update(torch.tensor([[6.0]]))
        >>> a.merge(b).mean
        tensor([3.], dtype=torch.float64)
        """
        count = self.count + other.count
        if count == 0:
            return self
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        between = gap.square() * (self.count * other.count / count)
        return Moments(count, mean, self.squares + other.squares + between)

    @property
    def variance(self) -> Float[Tensor, " d"]:
        """Unbiased variance of each coordinate; NaN below two vectors."""
        if self.count < 2:
            return torch.full_like(self.squares, torch.nan)
        return self.squares / (self.count - 1)
