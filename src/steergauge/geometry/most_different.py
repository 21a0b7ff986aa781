"""Other vectors that do what v does, as far as a Fisher matrix can tell.

With F the Fisher matrix of the texts, putting v' in the place of v costs, to second
order, (v' - v)' F (v' - v) / 2 nats. Two questions follow from a budget of tau nats ::

    most different   least v.v'     of all v' of v's norm that cost at most tau
    canonical        least ||v'||   of all v' that cost at most tau

Every answer is one of a family with a single parameter. With q = (F + nu I)^-1 v ::

    v'(nu) = v - sqrt(2 tau) q / sqrt(q'F q)

costs tau exactly. For nu above -lambda_min, and as long as v'(nu) is no shorter than
v, it is the minimum of v.w + mu ||w||^2 / 2 over all w within the budget, for a mu that
rises with nu: so no w of its norm has a smaller v.w, its norm falls as nu rises, and
one bisection finds the norm that is asked for (a generalised trust-region problem; J.
J. More, Optimization Methods and Software 2, 1993). Where nu > 0 it is the optimum
among all *shorter* w as well, which is the convex problem. Where nu < 0 some shorter w
has a smaller v.w, but by being short, not by pointing elsewhere; so norms are compared
as equal.

Two answers are known in advance. As tau goes to 0, the part of v in the null space of
F is reflected: cos(v, v') = 1 - 2 f, with f its share of ||v||^2. And if F is a
multiple of I, v' costs 2 (1 - cos) times what v itself does.

A vector here is the step itself, alpha v. F is known from some texts only, so an
answer has to be tried on others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steergauge.errors import (
    InputError,
    NonFiniteVector,
    ShapeMismatch,
    ZeroVector,
)
from steergauge.linalg import FLOORS_APART, Spectrum, spectrum

SHRINKAGE = 0.01
"""Share of F's mean eigenvalue that is added to all of them: a direction in which a
few texts show nothing is not known to be free."""

NARROW, WIDE = 1e-30, 1e16
"""Ends of the search for nu + lambda_min, in units of the largest eigenvalue."""

NUDGE = 1e-9
"""Least part of v along the weakest direction, as a share of its norm. With none at
all the family would miss the vectors that use this direction, on either side."""

ROUNDING = 1e-12
"""A vector this short beside v is 0, and has no cosine with v."""

HALVINGS = 90
"""Of an interval of 46 decades: more than float64 can tell."""

Direction = Float[Tensor, " d_model"]
Square = Float[Tensor, "width width"]
"""A Fisher matrix, whose width is compared with that of the vector."""


@dataclass(frozen=True, slots=True)
class Equivalent:
    """A vector that does what v does within a budget, to second order.

    Attributes:
        direction: v' in float64, with its own norm.
        cosine: between v' and v; None if v' is 0 but for rounding.
        nats: what putting it in v's place costs by F, without shrinkage.
        norm: ||v'|| / ||v||.
    """

    direction: Direction
    cosine: float | None
    nats: float
    norm: float


def most_different(
    vector: Direction,
    fisher: Square | Spectrum,
    *,
    nats: float,
    norm: float = 1.0,
    shrinkage: float = SHRINKAGE,
) -> Equivalent:
    """The vector at the largest angle from v that costs at most `nats`.

    At a given norm the largest angle is the smallest v.v'. If v lies mostly along the
    weakest direction of F, or F is a multiple of I, the bisection above -lambda_min has
    no answer. Then v' is the better of the family's member just below -lambda_min and
    of v turned towards the weakest direction across it: within the budget at v's norm,
    and the optimum for a multiple of I, but not proved to be the optimum otherwise.

    Args:
        vector: v, the step alpha v itself.
        fisher: F, or its spectrum where that is at hand.
        nats: the budget tau, above 0.
        norm: ||v'|| / ||v||, 1 or more; where the budget does not allow for a vector
            so long, it is 1.
        shrinkage: share of the mean eigenvalue that is added to every eigenvalue.

    Raises:
        ShapeMismatch: v and F differ in width.
        ZeroVector: v is 0.
        NonFiniteVector: v is not finite.
        InputError: a budget, norm or shrinkage that is out of range, or a width of 1.

    >>> seen = torch.diag(torch.tensor([1.0, 0.0]))
    >>> half = torch.tensor([3.0, 3.0])
    >>> found = most_different(half, seen, nats=1e-20, shrinkage=0)
    >>> [round(part, 6) for part in found.direction.tolist()]
    [3.0, -3.0]
    """
    _check_range(nats, norm, shrinkage)
    v, seen = _checked(vector, fisher)
    values = seen.values + shrinkage * seen.values.mean()
    parts = seen.directions.T @ v
    if _cost(values, 2 * parts) <= nats:
        return _equivalent(-v, v, seen)
    for times in (norm, 1.0):
        step = _step(values, parts, nats=nats, length=times * float(v.norm()))
        if step is not None:
            return _equivalent(v + seen.directions @ step, v, seen)
    found = [_step_beyond(values, parts, nats=nats), _turn(values, parts, nats=nats)]
    steps = [step for step in found if step is not None]
    least = min(steps, key=lambda step: float(step @ parts))
    return _equivalent(v + seen.directions @ least, v, seen)


def canonical(
    vector: Direction, fisher: Square | Spectrum, *, floor: float
) -> Equivalent:
    """The shortest vector that costs nothing: v without its part in the null space.

    Args:
        vector: v, the step alpha v itself.
        fisher: F, or its spectrum.
        floor: relative precision of sigma = sqrt(lambda); the null space is where
            sigma is not above ten times so much of the largest.

    Raises:
        ShapeMismatch: v and F differ in width.
        ZeroVector: v is 0.
        NonFiniteVector: v is not finite.
        InputError: the width is 1.

    >>> seen = torch.diag(torch.tensor([1.0, 0.0]))
    >>> canonical(torch.tensor([3.0, 4.0]), seen, floor=1e-7).direction.tolist()
    [3.0, 0.0]
    """
    v, seen = _checked(vector, fisher)
    sizes = seen.singular_values
    kept = seen.directions[:, sizes > FLOORS_APART * floor * sizes.max()]
    return _equivalent(kept @ (kept.T @ v), v, seen)


def canonical_soft(
    vector: Direction, fisher: Square | Spectrum, *, nats: float
) -> Equivalent:
    """The shortest vector that costs `nats`: F (F + lambda I)^-1 v, as Tikhonov's.

    It is 0 if that costs no more than the budget.

    Args:
        vector: v, the step alpha v itself.
        fisher: F, or its spectrum.
        nats: the budget, above 0, that fixes lambda.

    Raises:
        ShapeMismatch: v and F differ in width.
        ZeroVector: v is 0.
        NonFiniteVector: v is not finite.
        InputError: a budget that is not above 0, or a width of 1.

    >>> seen = torch.diag(torch.tensor([1.0, 0.0]))
    >>> found = canonical_soft(torch.tensor([3.0, 4.0]), seen, nats=0.5)
    >>> [round(part, 6) for part in found.direction.tolist()]
    [2.0, 0.0]
    """
    _check_range(nats, 1.0, 0.0)
    v, seen = _checked(vector, fisher)
    values, parts = seen.values, seen.directions.T @ v
    if _cost(values, parts) <= nats:
        return _equivalent(torch.zeros_like(v), v, seen)
    top = float(values.max())

    def lost(ridge: float) -> Tensor:
        return ridge / (values + ridge) * parts

    ridge = _edge(
        lambda x: _cost(values, lost(x)) <= nats, low=NARROW * top, high=WIDE * top
    )
    return _equivalent(seen.directions @ (parts - lost(ridge)), v, seen)


def same_cosine(vector: Direction, like: Direction, *, seed: int) -> Direction:
    """A random vector of `like`'s norm at `like`'s angle from v: its control.

    Args:
        vector: v.
        like: the vector whose norm and cosine with v are copied.
        seed: of the direction across v.

    Raises:
        ZeroVector: v is 0.

    >>> v, like = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([3.0, 4.0, 0.0])
    >>> control = same_cosine(v, like, seed=0)
    >>> round(float(control[0]), 6), round(float(control.norm()), 6)
    (3.0, 5.0)
    """
    v, other = vector.double(), like.double()
    if not float(v.norm()) > 0:
        raise ZeroVector("a direction at a cosine with v was asked for, and v is 0.")
    unit = v / v.norm()
    along = other @ unit
    generator = torch.Generator().manual_seed(seed)
    # The second row: the first is what a random v of the same seed would be.
    _, drawn = torch.randn(2, len(v), generator=generator, dtype=v.dtype).to(v.device)
    across = drawn - (drawn @ unit) * unit
    rest = (other - along * unit).norm()
    return along * unit + rest * across / across.norm()


def _check_range(nats: float, norm: float, shrinkage: float) -> None:
    if not (0 < nats < math.inf and 1 <= norm < math.inf and 0 <= shrinkage < math.inf):
        raise InputError(
            f"an equivalent vector was asked for within {nats:.3g} nats, at "
            f"{norm:.3g} times v's norm, with a shrinkage of {shrinkage:.3g}.",
            cause="The budget was taken as a share of an effect that is 0 or unknown.",
            remedy="Give a budget above 0, a norm of 1 or more, a shrinkage from 0 on.",
        )


def _checked(
    vector: Direction, fisher: Square | Spectrum
) -> tuple[Direction, Spectrum]:
    """The vector in float64 where the spectrum is, and the spectrum."""
    seen = fisher if isinstance(fisher, Spectrum) else spectrum(fisher)
    width = len(seen.values)
    if len(vector) != width:
        raise ShapeMismatch(
            f"the steering vector is {len(vector)} wide, the Fisher matrix {width}.",
            cause="They belong to different models.",
        )
    if width < 2:
        raise InputError("in a stream of width 1 there is no other direction than v.")
    v = vector.double().to(seen.values.device)
    # An eigenvalue that is no more than rounding costs nothing.
    least = width * torch.finfo(torch.float64).eps * float(seen.values.max())
    values = torch.where(seen.values > least, seen.values, 0.0)
    if not bool(v.isfinite().all()):
        raise NonFiniteVector("the vector holds NaN or infinity, so nothing equals it.")
    if not float(v.norm()) > 0:
        raise ZeroVector("the vector is 0: it has no direction to differ from.")
    return v, Spectrum(values, seen.directions)


def _equivalent(other: Direction, v: Direction, seen: Spectrum) -> Equivalent:
    size, norm = float(other.norm()), float(v.norm())
    cosine = float(other @ v) / (size * norm) if size > ROUNDING * norm else None
    return Equivalent(
        direction=other,
        cosine=None if cosine is None else min(1.0, max(-1.0, cosine)),
        nats=_cost(seen.values, seen.directions.T @ (other - v)),
        norm=size / norm,
    )


def _cost(values: Tensor, step: Tensor) -> float:
    """Nats of a step that is given by its parts along the eigenvectors."""
    return 0.5 * float((values * step.square()).sum())


def _edge(holds: Callable[[float], bool], *, low: float, high: float) -> float:
    """The largest x for which `holds`, which does so from `low` up to some point."""
    for _ in range(HALVINGS):
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _step(
    values: Tensor, parts: Tensor, *, nats: float, length: float
) -> Tensor | None:
    """The family's v' - v at which v' is so long; None if the budget has no such v'."""
    top, gaps, nudged = float(values[0]), values - values[-1], _nudged(parts)

    def step(shift: float) -> Tensor:
        return -_scaled(values, nudged / (gaps + shift), nats=nats)

    def long(shift: float) -> bool:
        return float((nudged + step(shift)).norm()) >= length

    if not long(NARROW * top):
        return None
    return step(_edge(long, low=NARROW * top, high=WIDE * top))


def _step_beyond(values: Tensor, parts: Tensor, *, nats: float) -> Tensor | None:
    """A v' - v at v's norm with -nu between the two weakest eigenvalues, or None.

    The weakest part of v shrinks and every other one grows. None where the two are
    the same, so that nothing lies between them.
    """
    gaps, nudged = values - values[-1], _nudged(parts)
    top, width, length = float(values[0]), float(gaps[-2]), float(parts.norm())
    if width <= ROUNDING * top:
        return None

    def step(back: float) -> Tensor:
        return _scaled(values, nudged / (gaps - back), nats=nats)

    def short(back: float) -> bool:
        return float((nudged + step(back)).norm()) < length

    found = step(_edge(short, low=NARROW * top, high=(1 - ROUNDING) * width))
    meets = abs(float((parts + found).norm()) - length) < 1e-6 * length
    return found if meets else None


def _nudged(parts: Tensor) -> Tensor:
    """The parts of v with something along the two weakest directions."""
    least, last = NUDGE * parts.norm(), parts[-2:]
    return torch.cat([parts[:-2], torch.where(last.abs() < least, least, last)])


def _scaled(values: Tensor, q: Tensor, *, nats: float) -> Tensor:
    """The multiple of q, in q's direction, that costs `nats`."""
    return math.sqrt(nats / _cost(values, q)) * q


def _turn(values: Tensor, parts: Tensor, *, nats: float) -> Tensor:
    """The v' - v that turns v, at its norm, towards the weakest direction across it."""
    unit = parts / parts.norm()
    off = torch.eye(len(unit), dtype=unit.dtype, device=unit.device)
    off = off - torch.outer(unit, unit)
    # What lies along v itself is lifted out of the way of the weakest direction.
    blocked = off @ (values[:, None] * off) + 2 * values.max() * torch.outer(unit, unit)
    across = torch.linalg.eigh(blocked).eigenvectors[:, 0]
    # Of its two signs the one whose cost the way back along v makes smaller.
    across = torch.where((values * across) @ unit < 0, -across, across)
    across = across * parts.norm()

    def step(angle: float) -> Tensor:
        return (math.cos(angle) - 1) * parts + math.sin(angle) * across

    return step(
        _edge(lambda x: _cost(values, step(x)) <= nats, low=1e-12, high=math.pi)
    )
