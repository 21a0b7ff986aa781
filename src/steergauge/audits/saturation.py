"""T8, saturation: is there a direction that *no* text's output sees?

A null direction of one text's F_x is a statement about that text. As all F_x are
positive semi-definite,

    ker F_bar = intersection over x of ker F_x,

so the null dimension of a mean over n texts can only fall with n, and a null space that
belongs to the model is where it stops above 0. Here it is counted in means over
disjoint blocks of n = 1, 2, 4, ..., N texts: the sigma = sqrt(lambda) below ten times
the precision floor, relative to sigma_1.

=============  ========================================================================
SHARED NULL    k > 0 at N and the same k in all blocks of N/2, with a gap: sigma falls
               by a factor of 1000 or more behind the last direction that is seen; and
               N is 8 at least
FULL           every direction is seen by some text
SHRINKING      N texts leave fewer null dimensions than any block of N/2 does
INCONCLUSIVE   anything else, such as values that fade into rounding without a gap, or
               a null space of fewer texts than that
=============  ========================================================================

Texts say nothing of texts that are not like them. A direction seen by a share q of
texts is missed by all N with probability (1 - q)^N: of 4 texts, 1 time in 20 even if
more than half of all texts see it.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from steergauge import linalg
from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.statistics import Estimate

GAP = 1e3
"""Quotient of neighbouring sigma that sets a null space apart from weak directions."""

MINIMUM_TEXTS = 8
"""A shared null space is stated from so many texts on."""

Values = Float[np.ndarray, " d_model"]
Point = list[float | int | None]
"""Mean over blocks, their standard deviation (None of one block), number of blocks."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Spectra of means of F_x over ever more texts.

    Attributes:
        values: by number n of texts, 1, 2, 4, ..., N: eigenvalues lambda in falling
            order, a row for each of the disjoint blocks of n texts.
        floor: relative precision of sigma of one Jacobian, as measured.
        null_cosines: |cos| between the weakest directions of pairs of single texts.
        num_tokens: tokens of a text.
    """

    values: Mapping[int, Float[np.ndarray, "_ d_model"]]
    floor: float
    null_cosines: Float[np.ndarray, " pairs"] | None
    num_tokens: int

    @property
    def width(self) -> int:
        """Of the stream."""
        return next(iter(self.values.values())).shape[1]

    @property
    def smallest(self) -> float:
        """Smallest sigma / sigma_1 that rounding could not make."""
        return max(self.floor, linalg.resolution(self.width))

    def null_dims(self, num: int) -> Int[np.ndarray, " _"]:
        """Null dimensions of each block of `num` texts."""
        sigma = np.sqrt(self.values[num])
        least = linalg.FLOORS_APART * self.smallest * sigma[:, :1]
        # A matrix that is 0 has no sigma above 0, and all of them are null.
        return ((sigma < least) | (sigma == 0)).sum(1)


def saturation(seen: Blocks) -> Finding:
    """Whether null directions of single texts are null directions of all texts.

    UNINFORMATIVE if the output sees nothing, or no sigma could be told from rounding.

    Args:
        seen: spectra over growing numbers of texts.
    """
    num = sorted(seen.values)
    dims = {n: seen.null_dims(n) for n in num}
    last = dims[num[-1]]
    halves = dims[num[-2]] if len(num) > 1 else last[:0]
    verdict, reasons = _judge(seen, last, halves)
    curve = [_point(dims[n]) for n in num]
    return Finding(
        audit="saturation",
        code="T8",
        subject="",
        claim="The model has null directions that all texts share.",
        quantity=f"null dimensions of F_bar over {num[-1]} texts",
        estimate=_estimate(int(last.max()), halves),
        null=f"0 of {seen.width} if every direction is seen by some text; the interval "
        "is the range over blocks of half the texts",
        verdict=verdict,
        reasons=(*reasons, *_curve(seen, curve), *_cosines(seen)),
        controls=_controls(num, curve),
        num_prompts=num[-1],
        num_samples=1,
        details={"num": num, "null_dim": curve, **_plain(seen)},
    )


def _plain(seen: Blocks) -> dict[str, Any]:
    num = sorted(seen.values)
    return {
        "ranks": _ranks(seen),
        "erank_lambda": [_point(_eranks(seen.values[n])) for n in num],
        "ratio": [_point(_ratios(seen.values[n])) for n in num],
        "null_cosine": _quantiles(seen.null_cosines),
        "missed": _missed(num[-1]),
        "floor": seen.smallest,
        "width": seen.width,
        "num_tokens": seen.num_tokens,
    }


def _estimate(dim: int, halves: Int[np.ndarray, " _"]) -> Estimate:
    """The null dimension with the range over blocks of half the texts.

    The range of m independent values covers their median with probability
    1 - 2^(1 - m); that is its level.
    """
    every = [dim, *halves.tolist()]
    level = 1 - 2.0 ** (1 - len(halves)) if len(halves) else 0.0
    return Estimate(float(dim), float(min(every)), float(max(every)), level)


def _judge(
    seen: Blocks, last: Int[np.ndarray, " _"], halves: Int[np.ndarray, " _"]
) -> tuple[Verdict, list[str]]:
    *_, half, num = (0, *sorted(seen.values))
    dim, width = int(last.max()), seen.width
    if dim == width:
        return Verdict.UNINFORMATIVE, [
            f"None of the {width} singular values over {num} texts can be told from "
            f"rounding (floor {seen.smallest:.2g}): the output sees nothing of what is "
            "added at this site, or the precision is too low to say."
        ]
    if dim == 0:
        return Verdict.FULL, [
            f"Over {num} texts each of the {width} directions is seen: no null "
            f"direction is shared at a precision of {seen.smallest:.2g}."
        ]
    found = f"{dim} null dimension{'s' if dim > 1 else ''} over {num} texts"
    if not half:
        return Verdict.INCONCLUSIVE, [
            f"{found}, with no smaller number of texts to compare them with."
        ]
    if dim < halves.min():
        return Verdict.SHRINKING, [
            f"{found}, where {half} texts still left {_range(halves)}: more texts may "
            "leave fewer, and none is shown to be shared."
        ]
    if bool((last != dim).any() or (halves != dim).any()):
        return Verdict.INCONCLUSIVE, [
            f"{found}, {_range(halves)} over {half}: whether they have stopped falling "
            "cannot be told."
        ]
    gap = min(_gap(row, dim) for row in seen.values[num])
    if gap < GAP:
        return Verdict.INCONCLUSIVE, [
            f"{found} and as many over {half}, but sigma falls by a factor of only "
            f"{gap:.2g} before the first of them: weak directions fade into rounding, "
            f"and a null space is told from them by {GAP:.0f} or more."
        ]
    shared = _shared(found, half, num, gap)
    if num < MINIMUM_TEXTS:
        return Verdict.INCONCLUSIVE, [
            *shared,
            f"A shared null space is stated from {MINIMUM_TEXTS} texts on.",
        ]
    return Verdict.SHARED_NULL, shared


def _shared(found: str, half: int, num: int, gap: float) -> list[str]:
    behind = "0" if np.isinf(gap) else f"{gap:.2g} times smaller"
    return [
        f"{found}, and the same number in every block of {half}; behind the last "
        f"direction that is seen, the next sigma is {behind}.",
        f"A given direction of them could be seen by {_missed(num):.0%} of such texts "
        f"and yet be missed by all {num}, in 1 study of 20.",
    ]


def _gap(values: Values, dim: int) -> float:
    """The last sigma that is seen over the first that is null; inf if that is 0."""
    kept, null = np.sqrt(values[-dim - 1]), np.sqrt(values[-dim])
    return float(kept / null) if null > 0 else float("inf")


def _missed(num: int) -> float:
    """Share of texts that may see a direction that `num` texts miss, 1 time in 20."""
    return 1 - 0.05 ** (1 / num)


def _ranks(seen: Blocks) -> dict[str, list[Point]]:
    """Ranks at those epsilon that can be measured, one point a number of texts."""
    found = {}
    for epsilon in linalg.EPSILONS:
        if epsilon >= linalg.FLOORS_APART * seen.smallest:
            found[f"{epsilon:g}"] = [
                _point(_counts(seen.values[n], epsilon)) for n in sorted(seen.values)
            ]
    return found


def _counts(values: Float[np.ndarray, "_ d_model"], epsilon: float) -> np.ndarray:
    sigma = np.sqrt(values)
    return (sigma > epsilon * sigma[:, :1]).sum(1)


def _eranks(values: Float[np.ndarray, "_ d_model"]) -> np.ndarray:
    """Of the blocks that see anything; a matrix that is 0 has none."""
    rows = [torch.from_numpy(row) for row in values if row[0] > 0]
    return np.array([linalg.effective_ranks(r, floor=0).erank_lambda for r in rows])


def _ratios(values: Float[np.ndarray, "_ d_model"]) -> np.ndarray:
    """The smallest sigma over the largest, of the blocks that see anything."""
    seen = values[values[:, 0] > 0]
    return np.sqrt(seen[:, -1] / seen[:, 0])


def _point(numbers: np.ndarray) -> Point:
    if not len(numbers):
        return [None, None, 0]
    spread = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
    return [float(numbers.mean()), spread, len(numbers)]


def _quantiles(cosines: Float[np.ndarray, " pairs"] | None) -> dict[str, float] | None:
    """The median over pairs, and between what the middle 95 % of them lie."""
    if cosines is None or not len(cosines):
        return None
    low, median, high = np.quantile(cosines, [0.025, 0.5, 0.975])
    return {"median": float(median), "low": float(low), "high": float(high)}


def _range(dims: Int[np.ndarray, " _"]) -> str:
    low, high = int(dims.min()), int(dims.max())
    return str(low) if low == high else f"{low} to {high}"


def _curve(seen: Blocks, curve: Sequence[Point]) -> list[str]:
    num = sorted(seen.values)
    first, last = _point(_ratios(seen.values[num[0]])), _ratios(seen.values[num[-1]])
    if first[0] is None or not len(last) or len(num) < 2:
        return []
    return [
        f"Null dimensions go from {curve[0][0]:.1f} on average for {num[0]} text to "
        f"{curve[-1][0]:.1f} for {num[-1]}; the smallest sigma over the largest goes "
        f"from {first[0]:.2g} to {last[0]:.2g}."
    ]


def _cosines(seen: Blocks) -> list[str]:
    found = _quantiles(seen.null_cosines)
    if found is None:
        return []
    # |cos| of random directions is |N(0, 1)| / sqrt(d); its median is 0.674 / sqrt(d).
    chance = 0.6745 / np.sqrt(seen.width)
    return [
        f"The weakest directions of two texts meet at |cos| {found['median']:.2f} "
        f"(median; the middle 95 % of pairs {found['low']:.2f} to "
        f"{found['high']:.2f}), random ones at {chance:.2f}: 1 if they are the same."
    ]


def _controls(num: Sequence[int], curve: Sequence[Point]) -> tuple[Control, ...]:
    """Thresholds relative to sigma_1 could break what holds of exact kernels."""
    means = [float(point[0] or 0.0) for point in curve]
    rises = max((b - a for a, b in itertools.pairwise(means)), default=0.0)
    expected = "a mean over more texts never has more null dimensions"
    holds = rises <= 1e-9
    largest = Estimate(rises, rises, rises)
    return (Control("intersection", expected, largest, "", holds),) if num[1:] else ()
