"""Subspaces and spectra: the linear algebra that the geometry of a suffix rests on.

Projections, principal angles and eigen-decompositions, in float64 on any device, and
the family of *effective ranks*. With the eigenvalues lambda_i >= 0 of J'J or of a
Fisher matrix, sigma_i = sqrt(lambda_i) and p_i = lambda_i / sum lambda ::

    stable                max-entropy   sum lambda / lambda_1
    participation ratio   Renyi-2       (sum lambda)^2 / sum lambda^2
    erank_lambda          Shannon       exp H(p)
    erank_sigma           Shannon       exp H(sigma / sum sigma)
    rank at epsilon       counting      #{i: sigma_i > epsilon sigma_1}

The exponential of an entropy counts equal shares: k equal values give k in all of them
(Roy and Vetterli 2007 for erank_sigma), and 1 <= stable <= participation ratio <=
erank_lambda <= rank, since Renyi entropies fall with their order. On a real spectrum
they disagree by a factor of ten and more, so none of them is "the" dimension.

Two budgets say what an epsilon cannot. Along eigen-direction i a step of length s
costs s^2 lambda_i / 2 nats, and n observations tell its coordinate to a standard
deviation of 1 / sqrt(n lambda_i) at best (Cramer and Rao).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steergauge.errors import InputError

EPSILONS = (0.1, 0.05, 0.01, 1e-3, 1e-4)
"""Thresholds on sigma / sigma_1 at which a rank is counted."""

FLOORS_APART = 10
"""How many times the precision floor an epsilon has to be for its rank to count."""

Values = Float[Tensor, " values"]
Basis = Float[Tensor, "d_model _"]
"""Directions as columns."""


def orthonormal(columns: Basis) -> Basis:
    """An orthonormal basis of the columns' span, however dependent they are.

    >>> orthonormal(torch.tensor([[2.0, 4.0], [0.0, 0.0]])).shape
    torch.Size([2, 1])
    """
    left, sizes, _ = torch.linalg.svd(columns.double(), full_matrices=False)
    rounding = max(columns.shape) * torch.finfo(torch.float64).eps
    largest = float(sizes.max()) if sizes.numel() else 0.0
    return left[:, sizes > rounding * largest]


def projected(
    vectors: Float[Tensor, "*rows d_model"], basis: Basis
) -> Float[Tensor, "*rows d_model"]:
    """The part of each vector that lies in the span of an orthonormal basis.

    >>> projected(torch.tensor([3.0, 4.0]), torch.tensor([[1.0], [0.0]])).tolist()
    [3.0, 0.0]
    """
    columns = basis.double()
    return (vectors.double() @ columns) @ columns.T


def principal_angles(first: Basis, second: Basis) -> Float[Tensor, " angles"]:
    """Angles between two subspaces in radians, ascending, as many as the smaller has.

    Cosines lose the digits of small angles and sines those of large ones, so both are
    taken (Knyazev and Argentati 2002).

    Args:
        first: columns that span one subspace; they need not be orthonormal.
        second: columns that span the other.

    >>> flat, tilted = torch.eye(3)[:, :2], torch.tensor([[0.0], [1.0], [1.0]])
    >>> round(math.degrees(float(principal_angles(flat, tilted))), 6)
    45.0
    """
    wide, narrow = orthonormal(first), orthonormal(second)
    if wide.shape[1] < narrow.shape[1]:
        wide, narrow = narrow, wide
    inside = wide.T @ narrow
    cosines = torch.linalg.svdvals(inside)
    sines = torch.linalg.svdvals(narrow - wide @ inside).flip(0)
    return torch.atan2(sines, cosines)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigenvalues of a positive semi-definite matrix, descending, and its directions.

    Attributes:
        values: never below 0.
        directions: orthonormal eigenvectors as columns, in the values' order.
    """

    values: Values
    directions: Basis

    @property
    def singular_values(self) -> Values:
        """The sigma = sqrt(lambda), which are those of the factor A in F = A'A."""
        return self.values.sqrt()


def spectrum(matrix: Float[Tensor, "d_model d_model"]) -> Spectrum:
    """The spectrum of a positive semi-definite matrix.

    Rounding may leave a few eigenvalues just below 0; they are 0 here.

    Raises:
        InputError: the matrix is not symmetric, not finite, or clearly indefinite.

    >>> spectrum(torch.tensor([[1.0, 0.0], [0.0, 3.0]])).values.tolist()
    [3.0, 1.0]
    """
    wide = matrix.double()
    size = float(wide.abs().max()) if wide.numel() else 0.0
    if not math.isfinite(size):
        raise InputError("a matrix with NaN or infinity in it has no spectrum.")
    lopsided = float((wide - wide.T).abs().max()) if wide.numel() else 0.0
    if lopsided > 1e-6 * size:
        raise InputError(
            f"the matrix is not symmetric: entries of size {size:.3g} differ from "
            f"their mirror images by up to {lopsided:.3g}.",
            cause="A Jacobian was given where J'J or a Fisher matrix is meant.",
        )
    ascending, columns = torch.linalg.eigh((wide + wide.T) / 2)
    values, directions = ascending.flip(0), columns.flip(1)
    if values.numel() and float(values[-1]) < -1e-6 * float(values.abs().max()):
        raise InputError(
            f"the matrix has a negative eigenvalue, {float(values[-1]):.3g} beside "
            f"{float(values[0]):.3g}, so it is no Fisher matrix.",
        )
    return Spectrum(values.clamp_min(0), directions)


def resolution(width: int) -> float:
    """The sigma / sigma_1 that an eigenvalue of a float64 matrix can still tell.

    A lambda is known to `width` roundings of lambda_1 at worst, and sigma is its root:
    however exact the matrix, what is smaller is rounding.

    >>> round(resolution(4096), 8)
    9.5e-07
    """
    return math.sqrt(width * torch.finfo(torch.float64).eps)


@dataclass(frozen=True, slots=True)
class EffectiveRanks:
    """The whole family of effective ranks of one spectrum; see the module's table.

    Attributes:
        ranks: rank by epsilon; None where epsilon is below ten times the floor.
        stable: sum lambda / lambda_1.
        participation_ratio: (sum lambda)^2 / sum lambda^2.
        erank_lambda: exp of the entropy of lambda / sum lambda.
        erank_sigma: exp of the entropy of sigma / sum sigma.
        floor: smallest sigma / sigma_1 that rounding alone could make.
        width: how many values there are.
    """

    ranks: Mapping[float, int | None]
    stable: float
    participation_ratio: float
    erank_lambda: float
    erank_sigma: float
    floor: float
    width: int


def effective_ranks(values: Values, *, floor: float) -> EffectiveRanks:
    """Every effective rank of the spectrum lambda, with unmeasurable ones left out.

    Args:
        values: eigenvalues lambda >= 0, in any order.
        floor: relative precision of sigma, measured; see `jacobian.precision_floor`.

    Raises:
        InputError: values are all 0, negative or not finite, or the floor is.

    >>> four = effective_ranks(torch.tensor([2.0, 2.0, 2.0, 2.0, 0.0]), floor=1e-4)
    >>> four.ranks[0.01], four.ranks[1e-4], round(four.erank_lambda, 9)
    (4, None, 4.0)
    """
    wide = values.double()
    top = float(wide.max()) if wide.numel() else 0.0
    if not (0 < top < math.inf and bool((wide >= 0).all()) and 0 <= floor < math.inf):
        raise InputError(
            f"effective ranks of {wide.numel()} values with the largest {top:.3g}, "
            f"above a floor of {floor:.3g}, are not defined.",
            cause="The matrix is 0, or its values were not those of J'J.",
            remedy="Give eigenvalues from `spectrum`, of which one is above 0.",
        )
    scaled = wide / top
    sizes = scaled.sqrt()
    return EffectiveRanks(
        ranks={
            epsilon: _rank(sizes, epsilon) if epsilon >= FLOORS_APART * floor else None
            for epsilon in EPSILONS
        },
        stable=float(scaled.sum()),
        participation_ratio=float(scaled.sum() ** 2 / scaled.square().sum()),
        erank_lambda=_entropy_rank(scaled),
        erank_sigma=_entropy_rank(sizes),
        floor=floor,
        width=wide.numel(),
    )


def equivalent_dimensions(values: Values, *, nats: float, strength: float) -> int:
    """D_eq: eigen-directions along which a step of length `strength` costs <= `nats`.

    Args:
        values: eigenvalues of a Fisher matrix.
        nats: the budget tau.
        strength: length s = ||alpha v||, of which the cost is s^2 lambda / 2.

    >>> equivalent_dimensions(torch.tensor([2.0, 0.02, 0.0]), nats=0.01, strength=1.0)
    2
    """
    return int((0.5 * strength**2 * values.double() <= nats).sum())


def identifiable_dimensions(
    values: Values, *, samples: int, accuracy: float, strength: float
) -> int:
    """k_id: eigen-coordinates of v that `samples` observations can tell, at best.

    #{i: n s^2 lambda_i delta^2 >= 1}. The others are slow (n grows as 1 / lambda),
    not impossible, unless lambda is 0.

    Args:
        values: eigenvalues of a Fisher matrix.
        samples: n, observed tokens or continuations, as the matrix is per token or
            per continuation.
        accuracy: delta, the standard error as a share of v's norm.
        strength: s = ||alpha v||.

    >>> lambdas = torch.tensor([2.0, 0.02, 0.0])
    >>> identifiable_dimensions(lambdas, samples=100, accuracy=0.1, strength=1.0)
    1
    """
    return int((samples * (strength * accuracy) ** 2 * values.double() >= 1).sum())


def _rank(sizes: Tensor, epsilon: float) -> int:
    return int((sizes > epsilon).sum())


def _entropy_rank(shares: Tensor) -> float:
    """The exp H of the values as shares of their sum."""
    p = shares / shares.sum()
    return float(torch.special.entr(p).sum().exp())
