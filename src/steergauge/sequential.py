"""Intervals that hold at every look, so that a run may stop when it has seen enough.

An ordinary 95 % interval may be looked at once. Looked at after every block of prompts,
it fails somewhere ever more often. A confidence sequence does not::

    P( for some n: |mean_n - mu| > half_width_n ) <= alpha

For prompt-level values with standard deviation sd_n, Robbins' normal mixture gives ::

    half_width_n = sd_n sqrt( 2 (n rho^2 + 1) / (n^2 rho^2)
                              * log( sqrt(n rho^2 + 1) / alpha ) )
                 = z_n sd_n / sqrt(n),

asymptotically in the number of prompts at the first look (Waudby-Smith, Arbour, Sinha,
Kennedy and Ramdas, Annals of Statistics 52, 2024, arXiv 2103.06476, theorem 2.2). rho
is the one at which z is smallest at the planned number of prompts. At few prompts sd_n
is itself a guess: z_n is replaced by the quantile of Student's t at the same tail.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

FIRST_LOOK = 20
"""Fewest prompts at a look: below, neither the normal limit nor Student's t is near."""

MOST_LISTED = 4
"""Looks that are named one by one."""

ALPHA = 0.05
ONE_SIDED = 0.05
"""Level of each of the two one-sided tests of an equivalence."""


@dataclass(frozen=True, slots=True)
class Looks:
    """When a run's numbers are looked at, and how wide intervals must be for it.

    Attributes:
        planned: prompts at which the run ends if nothing is decided before.
        every: prompts between two looks.
        first: fewest prompts at a look.

    Raises:
        ValueError: no look lies before the planned end, or a number is impossible.
    """

    planned: int
    every: int
    first: int = FIRST_LOOK

    def __post_init__(self) -> None:
        """Refuse a plan without a look before its end."""
        if self.every < 1 or self.first < 2 or len(self.numbers) < 2:
            raise ValueError(f"no look before the end: {self}")

    @property
    def numbers(self) -> tuple[int, ...]:
        """Prompts at each look, the planned end included."""
        start = -(-self.first // self.every) * self.every
        return (*range(start, self.planned, self.every), self.planned)

    def stretch(self, num_prompts: int) -> float:
        """How far an interval must reach, as a multiple of the normal quantile.

        It makes of the quantiles of a mean's bootstrap draws, both at 2.5 % and at 5 %,
        ends that hold at every look. Where an ordinary interval has Student's factor.
        """
        return max(
            _students(
                critical_value(num_prompts, self.planned, alpha=2 * tail), num_prompts
            )
            / float(stats.norm.isf(tail))
            for tail in (ALPHA / 2, ONE_SIDED)
        )

    def half_width(self, sd: float, num_prompts: int, *, alpha: float = ALPHA) -> float:
        """Of the always-valid interval of a mean over prompts.

        Args:
            sd: standard deviation between prompts, with num_prompts - 1.
            num_prompts: so far.
            alpha: chance that the intervals ever miss the mean.
        """
        reach = critical_value(num_prompts, self.planned, alpha=alpha)
        return _students(reach, num_prompts) * sd / float(np.sqrt(num_prompts))

    @property
    def listed(self) -> str:
        """The numbers of prompts at the looks, in words.

        >>> Looks(40, 10).listed, Looks(47, 10).listed
        ('at 20, 30 and 40', 'at 20, 30, 40 and 47')
        >>> Looks(100, 10).listed, Looks(107, 10).listed
        ('every 10 from 20 to 100', 'every 10 from 20 to 100, and at 107')
        """
        *others, last = self.numbers
        if len(others) < MOST_LISTED:
            return f"at {', '.join(map(str, others))} and {last}"
        if last == others[-1] + self.every:
            return f"every {self.every} from {others[0]} to {last}"
        return f"every {self.every} from {others[0]} to {others[-1]}, and at {last}"

    def reason(self, num_prompts: int) -> str:
        """What a reader of a run that used so many prompts must know, once."""
        return (
            f"The run was sequential and used {num_prompts} of {self.planned} planned "
            f"prompts: its intervals are always-valid over looks {self.listed}, "
            f"{self.widening(num_prompts):.2f} times as wide as those of a single look."
        )

    def widening(self, num_prompts: int) -> float:
        """How many times as wide its intervals are as those of a single look."""
        return self.stretch(num_prompts) / _ordinary(num_prompts)


def critical_value(num_prompts: int, planned: int, *, alpha: float = ALPHA) -> float:
    """z_n: half-width of the confidence sequence in units of sd / sqrt(n).

    Args:
        num_prompts: n, so far.
        planned: number of prompts at which z is smallest.
        alpha: chance that the intervals ever miss, in (0, 1).

    >>> round(critical_value(100, 100), 2), round(critical_value(20, 100), 2)
    (3.04, 3.35)
    """
    x = num_prompts * mixture_variance(planned, alpha=alpha)
    return float(np.sqrt((x + 1) / x * (np.log1p(x) - 2 * np.log(alpha))))


def mixture_variance(planned: int, *, alpha: float = ALPHA) -> float:
    """rho^2 of the mixture that is tightest at `planned` prompts.

    z_n^2 = (x + 1) / x (log(x + 1) - 2 log alpha), x = n rho^2, is least where
    x = log(x + 1) - 2 log alpha, which Lambert's W solves.
    """
    return float(-special.lambertw(-(alpha**2) / np.e, -1).real - 1) / planned


def level_at(num_prompts: int, planned: int, *, alpha: float = ALPHA) -> float:
    """Level of the ordinary interval that is as wide as the always-valid one.

    >>> round(level_at(100, 100), 4)
    0.9976
    """
    reach = critical_value(num_prompts, planned, alpha=alpha)
    return 1 - 2 * float(stats.norm.sf(reach))


def _students(z: float, num_prompts: int) -> float:
    """The quantile of Student's t that has the tail of the normal one."""
    return float(stats.t.isf(stats.norm.sf(z), num_prompts - 1))


def _ordinary(num_prompts: int) -> float:
    """Student's factor of a single 95 % interval."""
    tail = ALPHA / 2
    return float(stats.t.isf(tail, num_prompts - 1) / stats.norm.isf(tail))
