"""No vector within the budget lies further from v, and none is shorter than v's own."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from steergauge.errors import (
    InputError,
    NonFiniteVector,
    ShapeMismatch,
    ZeroVector,
)
from steergauge.geometry.most_different import (
    NUDGE,
    SHRINKAGE,
    canonical,
    canonical_soft,
    most_different,
    same_cosine,
)
from steergauge.linalg import spectrum

ROUNDING = 1e-9
"""A bisection to the last digit, and then a few float64 sums; see NUDGE."""


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rotated(values, seed: int = 0) -> torch.Tensor:
    """A matrix of the given eigenvalues in a random basis."""
    turn = torch.linalg.qr(gaussian(len(values), len(values), seed=seed))[0]
    return turn @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ turn.T


def cost(matrix, step) -> float:
    return 0.5 * float(step @ matrix @ step)


def exact(vector, matrix, *, nats, norm=1.0):
    """Without shrinkage, so that the constraints are those of the matrix itself."""
    return most_different(vector, matrix, nats=nats, norm=norm, shrinkage=0.0)


def half_null(width: int = 20, null: int = 10, seed: int = 0):
    """F with a null space, v with a known share in it, and the two parts of v."""
    matrix = rotated([2.0] * (width - null) + [0.0] * null, seed=seed)
    seen = spectrum(matrix)
    live, dead = seen.directions[:, :-null], seen.directions[:, -null:]
    return matrix, live @ live.T, dead @ dead.T


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_hard_null_share_f_is_reflected_to_a_cosine_of_1_minus_2f(share):
    matrix, live, dead = half_null()
    one, other = live @ gaussian(20, seed=1), dead @ gaussian(20, seed=2)
    seen = math.sqrt(1 - share) * one / one.norm()
    hidden = math.sqrt(share) * other / other.norm()
    found = exact(seen + hidden, matrix, nats=1e-20)
    # A step of 1e-10 is what the budget leaves beside the reflection.
    assert found.cosine == pytest.approx(1 - 2 * share, abs=ROUNDING)
    assert torch.allclose(found.direction, seen - hidden, atol=ROUNDING)
    assert found.norm == pytest.approx(1, abs=ROUNDING)


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.2, 1.0, 3.9])
@pytest.mark.parametrize("size", [0.3, 40.0])
def test_with_all_directions_alike_the_cost_is_2_times_1_minus_the_cosine(budget, size):
    v, matrix = 3 * gaussian(12), size * torch.eye(12, dtype=torch.float64)
    effect = cost(matrix, v)
    found = exact(v, matrix, nats=budget * effect)
    assert found.cosine == pytest.approx(1 - budget / 2, abs=ROUNDING)
    assert found.norm == pytest.approx(1, abs=ROUNDING)
    assert found.nats == pytest.approx(budget * effect, rel=ROUNDING)


def test_a_budget_of_5_percent_with_all_directions_alike_is_a_cosine_of_975():
    v, matrix = gaussian(30), torch.eye(30, dtype=torch.float64)
    found = exact(v, matrix, nats=0.05 * cost(matrix, v))
    assert found.cosine == pytest.approx(0.975, abs=ROUNDING)


def test_a_budget_of_four_times_vs_effect_is_minus_v():
    v, matrix = gaussian(8), rotated([9.0, 4, 3, 2, 1, 1, 0.1, 0])
    below, above = (
        exact(v, matrix, nats=share * cost(matrix, v)) for share in (3.9, 4.1)
    )
    assert -1 < below.cosine < 0
    assert above.cosine == pytest.approx(-1)
    assert torch.equal(above.direction, -v)


spectra = st.lists(st.floats(-3, 3), min_size=3, max_size=12).map(
    lambda powers: [10.0**power for power in powers]
)


@given(
    spectra,
    st.floats(1e-4, 2),
    st.floats(1, 4),
    st.floats(0, 0.5),
    st.integers(0, 10**6),
)
def test_the_budget_and_the_norm_are_kept(values, budget, norm, shrinkage, seed):
    matrix, v = rotated(values, seed), gaussian(len(values), seed=seed + 1)
    tau = budget * cost(matrix, v)
    found = most_different(v, matrix, nats=tau, norm=norm, shrinkage=shrinkage)
    assert found.nats <= tau * (1 + 1e-6)
    assert found.nats == pytest.approx(cost(matrix, found.direction - v), rel=1e-6)
    assert found.norm == pytest.approx(norm, rel=1e-6) or (
        found.norm == pytest.approx(1, rel=1e-6)
    )
    assert found.cosine == pytest.approx(
        float(torch.cosine_similarity(v, found.direction, dim=0)), abs=1e-6
    )


def stationarity(v, matrix, other) -> tuple[float, float, float]:
    """nu, kappa and what is left over in (F + nu I)(v' - v) = -kappa v."""
    step = other - v
    columns = torch.stack([step, v], dim=1)
    target = -(matrix @ step)
    (nu, kappa), *_ = torch.linalg.lstsq(columns, target[:, None]).solution[:, 0], 0
    left = target - columns @ torch.stack([nu, kappa])
    return float(nu), float(kappa), float(left.norm() / target.norm())


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_conditions_that_make_it_the_optimum_hold(seed, budget):
    values = 10.0 ** -torch.linspace(0, 4, 20, dtype=torch.float64)
    matrix, v = rotated(values, seed), gaussian(20, seed=seed + 50)
    found = exact(v, matrix, nats=budget * cost(matrix, v))
    nu, kappa, left = stationarity(v, matrix, found.direction)
    # The gradient of the Lagrangian vanishes, and its second derivative, F + nu I, is
    # nowhere negative: then no other vector of this norm and cost is further away.
    assert left < 1e-6
    assert nu > -float(values.min())
    assert kappa - nu > 0
    assert found.norm == pytest.approx(1, abs=ROUNDING)
    assert found.nats == pytest.approx(budget * cost(matrix, v), rel=ROUNDING)


def by_search(v, matrix, tau, *, equal: bool, seed: int) -> float:
    """Smallest v.v' / ||v||^2 that a general-purpose optimiser finds, from 8 starts."""
    v, matrix = v.numpy(), matrix.numpy()
    rng = np.random.default_rng(seed)
    limits = [
        {
            "type": "eq" if equal else "ineq",
            "fun": lambda w: v @ v - w @ w,
            "jac": lambda w: -2 * w,
        },
        {
            "type": "ineq",
            "fun": lambda w: tau - 0.5 * (w - v) @ matrix @ (w - v),
            "jac": lambda w: -matrix @ (w - v),
        },
    ]
    best = 1.0
    for _ in range(8):
        start = v + 0.3 * rng.standard_normal(len(v))
        seen = minimize(
            lambda w: v @ w,
            start,
            jac=lambda w: v,
            constraints=limits,
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-12},
        )
        kept = 0.5 * (seen.x - v) @ matrix @ (seen.x - v) <= tau * (1 + 1e-6)
        short = seen.x @ seen.x <= v @ v * (1 + 1e-6)
        if seen.success and kept and short:
            best = min(best, float(v @ seen.x / (v @ v)))
    return best


WIDE_SPECTRUM = [10.0, 3.0, 1.0, 0.3, 0.05, 0.01]
NARROW_SPECTRUM = [1.5, 1.4, 1.3, 1.2, 1.1, 0.1]
NULL_SPECTRUM = [3.0, 2.0, 1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("values", [WIDE_SPECTRUM, NARROW_SPECTRUM, NULL_SPECTRUM])
@pytest.mark.parametrize("seed", range(4))
def test_a_general_optimiser_finds_nothing_further_away(values, seed):
    matrix, v = rotated(values, seed), gaussian(6, seed=seed + 9)
    tau = 0.1 * cost(matrix, v)
    found = exact(v, matrix, nats=tau)
    best = by_search(v, matrix, tau, equal=True, seed=seed)
    assert best < 0.96
    assert found.cosine <= best + 1e-6
    # And it does find what is claimed: the claim is no lower than what can be had.
    assert best == pytest.approx(found.cosine, abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_with_a_weak_spectrum_it_solves_the_convex_problem(seed):
    """Where nu is above 0, no shorter vector has a smaller inner product either."""
    matrix, v = rotated(WIDE_SPECTRUM, seed), gaussian(6, seed=seed + 9)
    tau = 0.1 * cost(matrix, v)
    found = exact(v, matrix, nats=tau)
    assert stationarity(v, matrix, found.direction)[0] > 0
    best = by_search(v, matrix, tau, equal=False, seed=seed)
    assert best == pytest.approx(found.cosine, abs=1e-4)


@pytest.mark.parametrize("budget", [0.02, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_also_for_a_v_along_the_weakest_direction_nothing_further_is_found(
    seed, budget
):
    turn = torch.linalg.qr(gaussian(5, 5, seed=seed))[0]
    values = torch.tensor([1.4, 1.3, 1.2, 1.1, 1.0], dtype=torch.float64)
    matrix = turn @ torch.diag(values) @ turn.T
    v = turn[:, 4] + 0.1 * gaussian(5, seed=seed + 3)
    tau = budget * cost(matrix, v)
    found = exact(v, matrix, nats=tau)
    # The second derivative is negative somewhere: the proof does not cover this case.
    assert stationarity(v, matrix, found.direction)[0] < -1
    best = by_search(v, matrix, tau, equal=True, seed=seed)
    assert found.norm == pytest.approx(1, abs=ROUNDING)
    assert found.nats <= tau * (1 + ROUNDING)
    assert found.cosine <= best + 1e-6
    assert best < 0.995


def test_a_v_without_any_part_in_the_null_space_still_uses_it():
    """At v's norm, what is taken off the visible part is put where nothing sees it."""
    matrix, live, _ = half_null()
    v = live @ gaussian(20)
    assert (matrix @ v).norm() > 0.1
    found = exact(v, matrix, nats=0.05 * cost(matrix, v))
    # All visible directions are alike, so v is shortened by sqrt(.05) along itself.
    assert found.cosine == pytest.approx(1 - math.sqrt(0.05), abs=10 * NUDGE)
    assert found.norm == pytest.approx(1, abs=10 * NUDGE)


def test_a_longer_vector_may_lie_further_off():
    matrix, live, dead = half_null()
    v = live @ gaussian(20, seed=1) + dead @ gaussian(20, seed=2)
    visible = float((live @ v).norm() / v.norm())
    cosines = []
    for norm in (1.0, 2.0, 8.0):
        found = exact(v, matrix, nats=1e-20, norm=norm)
        assert found.norm == pytest.approx(norm, rel=ROUNDING)
        beyond = math.sqrt(norm**2 - visible**2)
        expected = (visible**2 - math.sqrt(1 - visible**2) * beyond) / norm
        assert found.cosine == pytest.approx(expected, abs=ROUNDING)
        cosines.append(found.cosine)
    assert all(b < a for a, b in itertools.pairwise(cosines))
    # Where every direction is seen the budget has no vector eight times as long.
    full = exact(v, matrix + torch.eye(20), nats=0.01, norm=8.0)
    assert full.norm == pytest.approx(1, abs=ROUNDING)


def test_shrinkage_keeps_off_directions_that_few_texts_left_out():
    few = gaussian(15, 40, seed=3)
    matrix = few.T @ few / 15
    truth, v = torch.eye(40, dtype=torch.float64), gaussian(40)
    tau = 0.05 * cost(truth, v)
    loose, tight = (
        most_different(v, matrix, nats=tau, shrinkage=gamma) for gamma in (0.0, 1.0)
    )
    # On new texts all directions count alike: the null of 15 texts is a mirage.
    assert cost(truth, loose.direction - v) > 10 * tau
    assert cost(truth, tight.direction - v) < cost(truth, loose.direction - v) / 5
    assert tight.nats < tau
    usual, default = (
        most_different(v, matrix, nats=tau, shrinkage=SHRINKAGE),
        most_different(v, matrix, nats=tau),
    )
    assert torch.equal(usual.direction, default.direction)
    assert loose.cosine < usual.cosine < tight.cosine


def test_a_spectrum_at_hand_and_the_basis_make_no_difference():
    values, v = [5.0, 2.0, 1.0, 0.1, 0.01], gaussian(5)
    matrix = rotated(values)
    turn = torch.linalg.qr(gaussian(5, 5, seed=8))[0]
    plain = most_different(v, matrix, nats=0.1)
    again = most_different(v, spectrum(matrix), nats=0.1)
    turned = most_different(turn @ v, turn @ matrix @ turn.T, nats=0.1)
    assert torch.equal(plain.direction, again.direction)
    assert not torch.allclose(turn @ v, v, atol=0.1)
    assert torch.allclose(turned.direction, turn @ plain.direction, atol=1e-8)


def test_the_hard_representative_is_v_without_what_is_below_ten_times_the_floor():
    # sigma / sigma_1 is 1, 1e-2, 1e-4 and 0; ten times the floor is 1e-3.
    matrix, v = rotated([1.0, 1e-4, 1e-8, 0.0]), gaussian(4)
    seen = spectrum(matrix)
    found = canonical(v, matrix, floor=1e-4)
    kept = seen.directions[:, :2]
    assert torch.allclose(found.direction, kept @ (kept.T @ v), atol=1e-12)
    assert found.norm < 0.999
    assert found.cosine == pytest.approx(found.norm)
    assert 0 <= found.nats < 1e-8 * float(v @ v)
    nothing = canonical(seen.directions[:, 3], matrix, floor=1e-4)
    assert nothing.cosine is None
    assert nothing.norm < 1e-12


@pytest.mark.parametrize("budget", [1e-6, 0.01, 0.5])
def test_the_soft_representative_is_the_shortest_within_the_budget(budget):
    values = 10.0 ** -torch.linspace(0, 5, 12, dtype=torch.float64)
    matrix, v = rotated(values), gaussian(12)
    tau = budget * cost(matrix, v)
    found = canonical_soft(v, matrix, nats=tau)
    assert found.nats == pytest.approx(tau, rel=1e-6)
    assert found.norm < 1
    # Tikhonov: w = F (F + x I)^-1 v says F (v - w) = x w for one x above 0.
    pulled = matrix @ (v - found.direction)
    x = float(pulled @ found.direction / found.direction.square().sum())
    assert x > 0
    # Both sides are differences of numbers of size 1, and x falls to 1e-6.
    assert torch.allclose(pulled, x * found.direction, atol=1e-12, rtol=1e-6)


def test_a_budget_above_the_whole_effect_leaves_nothing_of_v():
    matrix, v = rotated([2.0, 1.0, 0.5]), gaussian(3)
    assert canonical_soft(v, matrix, nats=0.99 * cost(matrix, v)).norm > 0
    found = canonical_soft(v, matrix, nats=1.01 * cost(matrix, v))
    assert (found.norm, found.cosine) == (0, None)


@given(st.integers(2, 40), st.integers(0, 10**6))
def test_the_control_copies_norm_and_cosine_and_nothing_else(width, seed):
    v, like = gaussian(width, seed=seed), 2 * gaussian(width, seed=seed + 1)
    found = same_cosine(v, like, seed=seed)
    assert float(found.norm()) == pytest.approx(float(like.norm()))
    assert float(found @ v) == pytest.approx(float(like @ v), abs=ROUNDING)
    again, other = (same_cosine(v, like, seed=s) for s in (seed, seed + 1))
    assert torch.equal(found, again)
    if width >= 10:
        assert not torch.allclose(found, other, atol=1e-3)
        assert not torch.allclose(found, like, atol=1e-3)


def test_what_has_no_answer_is_refused():
    v, matrix = gaussian(3), rotated([1.0, 2.0, 3.0])
    for asked in (
        {"nats": 0.0},
        {"nats": math.nan},
        {"nats": math.inf},
        {"nats": 1.0, "norm": 0.5},
        {"nats": 1.0, "shrinkage": -1.0},
    ):
        with pytest.raises(InputError, match="was asked for"):
            most_different(v, matrix, **asked)
    with pytest.raises(InputError, match="within 0 nats"):
        canonical_soft(v, matrix, nats=0.0)
    with pytest.raises(ShapeMismatch, match="4 wide, the Fisher matrix 3"):
        most_different(gaussian(4), matrix, nats=1.0)
    with pytest.raises(ZeroVector):
        canonical(torch.zeros(3), matrix, floor=0.0)
    with pytest.raises(ZeroVector):
        same_cosine(torch.zeros(3), v, seed=0)
    with pytest.raises(NonFiniteVector):
        most_different(math.nan * v, matrix, nats=1.0)
    with pytest.raises(InputError, match="width 1"):
        most_different(torch.ones(1), torch.ones(1, 1), nats=1.0)
