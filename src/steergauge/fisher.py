"""F_bar: the Fisher matrix of a shift after block l, over many texts.

With F_x the exact matrix of one text (`jacobian.py`), or a single-sample estimate of it
from the score g of a response that was drawn from the model ::

    F_bar = E_x F_x,      F_x = sum_k J_k' M_k J_k = E g g',     g = d log P / d delta

so that delta' F_bar delta / 2 is, to second order, the KL divergence in nats that the
shift delta costs. ker F_bar is the intersection of the kernels of all F_x, for a sum
of positive semi-definite matrices is 0 only where all of them are. The sums run in
float64 and never hold more than one F_x.

A rank is a statement about small numbers, so two guards stand before it: the relative
precision is measured, not assumed, and N samples of g show a rank of N at most.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from steergauge import linalg
from steergauge.errors import InputError, SteergaugeError
from steergauge.jacobian import (
    Jacobian,
    Mode,
    Row,
    Shift,
    Square,
    score,
    suffix_jacobian,
    widened,
)
from steergauge.split import LanguageModel

SAMPLES_PER_DIMENSION = 4
"""No rank is told from fewer Monte-Carlo samples than these times d."""


@dataclass(frozen=True, slots=True)
class Fisher:
    """The mean Fisher matrix of several texts, and what may be said of it.

    Attributes:
        matrix: F_bar, in float64.
        num_texts: how many texts.
        floor: relative precision of its singular values sqrt(lambda), as measured.
        exact: False for a Monte-Carlo estimate, which has a rank of num_texts at most.
    """

    matrix: Square
    num_texts: int
    floor: float
    exact: bool = True

    def ranks(self) -> linalg.EffectiveRanks:
        """Effective ranks, without those that are below ten times the floor.

        Raises:
            InputError: a Monte-Carlo estimate from too few samples.
        """
        needed = SAMPLES_PER_DIMENSION * len(self.matrix)
        if not self.exact and self.num_texts < needed:
            raise InputError(
                f"a rank of a Fisher matrix was asked for that is estimated from "
                f"{self.num_texts} samples in {len(self.matrix)} dimensions.",
                cause="Its rank is at most the number of samples, whatever the model.",
                remedy=f"Give {needed} samples or more, or use the exact `fisher`.",
            )
        values = linalg.spectrum(self.matrix).values
        return linalg.effective_ranks(values, floor=self.floor)


def fishers(
    lm: LanguageModel, rows: Sequence[Row], *, shift: Shift
) -> Iterator[Square]:
    """F_x of each text, in order; arguments as of `suffix_jacobian`."""
    lm = widened(lm)
    for row in rows:
        yield suffix_jacobian(lm, row, shift=shift).fisher()


def fisher(lm: LanguageModel, rows: Sequence[Row], *, shift: Shift) -> Fisher:
    """F_bar, the mean of F_x over texts, with the floor measured on the first.

    Args:
        lm: the model; widen one in half precision beforehand if it is used again.
        rows: prompts, or prompts with responses drawn from the model at `shift.at`.
        shift: site, scope and point.

    Raises:
        InputError: there are no rows.
    """
    lm = widened(lm)
    return _mean(lm, rows, fishers(lm, rows, shift=shift), shift, exact=True)


def sampled_fisher(lm: LanguageModel, rows: Sequence[Row], *, shift: Shift) -> Fisher:
    """Monte-Carlo estimate of F_bar: the mean of g g' over responses.

    Unbiased for any scope, one backward pass a text, and slow to converge: a text adds
    one rank, where an exact F_x may add d.

    Args:
        lm: the model.
        rows: prompts with responses that were drawn from the model at `shift.at`.
        shift: site, scope and point.

    Raises:
        InputError: there are no rows, or one has no response.
    """
    lm = widened(lm)
    scores = (score(lm, row, shift=shift) for row in rows)
    squares = (torch.outer(g, g) for g in scores)
    return _mean(lm, rows, squares, shift, exact=False)


def precision_floor(lm: LanguageModel, row: Row, *, shift: Shift) -> float:
    """Relative size of the rounding errors of J and of the factor A in F = A'A.

    The larger of ||J - J*|| / ||J|| and ||A - A*|| / ||A||, in the spectral norm, with
    J* from a copy of the model in float64; for a model that does not run in it, has it
    already, or is too large, J* is that of the other mode without a cache. Never
    below the unit of rounding, nor below what eigenvalues in float64 can tell.
    """
    lm = widened(lm)
    own = suffix_jacobian(lm, row, shift=shift)
    again = _recomputed(lm, row, shift, own.mode)
    error = replace(own, matrices=again.matrices - own.matrices)
    in_sum = _share(_top(_gram(error)), _top(_gram(own)))
    in_metric = _share(_top(error.fisher()), _top(own.fisher()))
    least = max(torch.finfo(lm.dtype).eps, linalg.resolution(lm.d_model))
    return max(math.sqrt(max(in_sum, in_metric)), least)


def _mean(
    lm: LanguageModel,
    rows: Sequence[Row],
    matrices: Iterator[Square],
    shift: Shift,
    *,
    exact: bool,
) -> Fisher:
    if not rows:
        raise InputError("the mean Fisher matrix of no texts was asked for.")
    total = torch.zeros(lm.d_model, lm.d_model, dtype=torch.float64, device=lm.device)
    for matrix in matrices:
        total += matrix
    floor = precision_floor(lm, rows[0], shift=shift)
    return Fisher(total / len(rows), len(rows), floor, exact)


def _recomputed(lm: LanguageModel, row: Row, shift: Shift, mode: Mode) -> Jacobian:
    """J_k in float64, or else on the way that shares least with the usual one."""
    if lm.dtype != torch.float64:
        # Some models have operations that know no float64, or lose themselves in it.
        with suppress(SteergaugeError, RuntimeError):
            exact = widened(lm, torch.float64)
            return suffix_jacobian(exact, row, shift=shift, mode=mode)
    other = Mode.FORWARD if mode is Mode.REVERSE else Mode.REVERSE
    return suffix_jacobian(lm, row, shift=shift, mode=other, cached=False)


def _gram(jacobian: Jacobian) -> Float[Tensor, "d_model d_model"]:
    """The sum over k of J_k' J_k."""
    stacked = jacobian.matrices.flatten(0, 1)
    return stacked.T @ stacked


def _share(part: float, whole: float) -> float:
    """The quotient; 0 of a text whose output does not see the stream at all."""
    return part / whole if whole > 0 else 0.0


def _top(matrix: Square) -> float:
    """Its largest eigenvalue."""
    return float(torch.linalg.eigvalsh(matrix)[-1].clamp_min(0))
