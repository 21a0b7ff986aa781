"""Effective ranks keep their order and symmetries; angles and projections are exact."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steergauge.errors import InputError
from steergauge.linalg import (
    EPSILONS,
    effective_ranks,
    equivalent_dimensions,
    identifiable_dimensions,
    orthonormal,
    principal_angles,
    projected,
    spectrum,
)

ROUNDING = 1e-9
"""A few dozen float64 operations on values within 16 orders of magnitude."""

lambdas = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def family(values: torch.Tensor) -> list[float]:
    """The ranks that are no counts, in the order that the law gives them."""
    found = effective_ranks(values, floor=0)
    return [found.stable, found.participation_ratio, found.erank_lambda]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rotation(width: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(gaussian(width, width, seed=seed))[0]


@given(lambdas)
def test_one_below_stable_below_participation_below_entropy_below_rank(values):
    orders = [1.0, *family(values), float(len(values))]
    for smaller, larger in itertools.pairwise(orders):
        assert smaller <= larger * (1 + ROUNDING)
    sigma = effective_ranks(values, floor=0).erank_sigma
    assert orders[3] * (1 - ROUNDING) <= sigma <= len(values) * (1 + ROUNDING)


def test_the_order_is_strict_on_a_decaying_spectrum():
    values = 0.5 ** torch.arange(12, dtype=torch.float64)
    found = effective_ranks(values, floor=0)
    orders = [1, *family(values), found.erank_sigma, 12]
    assert all(b > 1.2 * a for a, b in itertools.pairwise(orders))
    # A geometric series with ratio r: sums 1 / (1 - r), of squares 1 / (1 - r^2).
    assert found.stable == pytest.approx(2, abs=1e-3)
    assert found.participation_ratio == pytest.approx(3, abs=1e-2)
    assert found.erank_lambda == pytest.approx(4, abs=2e-2)


@given(st.integers(1, 20), st.integers(0, 20), st.floats(1e-6, 1e6))
def test_k_equal_values_are_k_in_every_sense(k, zeros, size):
    values = torch.tensor([size] * k + [0.0] * zeros)
    found = effective_ranks(values, floor=0)
    assert set(found.ranks.values()) == {k}
    assert [*family(values), found.erank_sigma] == pytest.approx([k] * 4)
    assert found.width == k + zeros


@given(lambdas, st.floats(1e-3, 1e3))
def test_ranks_do_not_depend_on_the_scale(values, factor):
    one, other = (effective_ranks(v, floor=1e-6) for v in (values, factor * values))
    assert family(values) == pytest.approx(family(factor * values))
    assert one.erank_sigma == pytest.approx(other.erank_sigma)


def test_ranks_do_not_depend_on_the_basis():
    values = 0.6 ** torch.arange(10, dtype=torch.float64)
    turn = rotation(10)
    matrix = turn @ torch.diag(values) @ turn.T
    assert (matrix - torch.diag(values)).abs().max() > 0.1
    found = spectrum(matrix)
    assert torch.allclose(found.values, values, atol=1e-14)
    straight, turned = (effective_ranks(v, floor=0) for v in (values, found.values))
    assert turned.ranks == straight.ranks
    assert family(found.values) == pytest.approx(family(values))


def test_a_rank_below_ten_times_the_floor_is_not_given():
    values = 10.0 ** -torch.arange(0, 12, 2, dtype=torch.float64)
    # sigma / sigma_1 is 1 and then a little above .1, .01, ...
    values[1:] *= 1.1
    found = effective_ranks(values, floor=0)
    assert [found.ranks[e] for e in EPSILONS] == [2, 2, 3, 4, 5]
    # What lies at epsilon is not above it.
    edge = torch.tensor([1, 0.01], dtype=torch.float64)
    assert effective_ranks(edge, floor=0).ranks[0.1] == 1
    masked = effective_ranks(values, floor=2e-4)
    assert [masked.ranks[e] is None for e in EPSILONS] == [False] * 3 + [True] * 2
    at_the_edge = effective_ranks(values, floor=1e-4)
    assert at_the_edge.ranks[1e-3] is not None
    assert at_the_edge.ranks[1e-4] is None


@pytest.mark.parametrize(
    ("values", "floor"),
    [([0.0, 0.0], 0.0), ([], 0.0), ([1.0, -1.0], 0.0), ([1.0, math.nan], 0.0),
     ([math.inf], 0.0), ([1.0], math.nan), ([1.0], -1.0)],
)  # fmt: skip
def test_what_has_no_rank_is_refused(values, floor):
    with pytest.raises(InputError, match="not defined"):
        effective_ranks(torch.tensor(values), floor=floor)


@given(lambdas, st.integers(1, 1000), st.floats(0.01, 1), st.floats(0.1, 10))
def test_what_n_samples_tell_is_what_a_step_of_1_over_2n_nats_moves(values, n, d, s):
    # n s^2 d^2 lambda >= 1 says s^2 lambda / 2 >= 1 / (2 n d^2): together all of them,
    # but for ties.
    told = identifiable_dimensions(values, samples=n, accuracy=d, strength=s)
    equal = equivalent_dimensions(values, nats=1 / (2 * n * d**2), strength=s)
    ties = (n * (s * d) ** 2 * values - 1).abs() < ROUNDING
    assert abs(told + equal - len(values)) <= int(ties.sum())


def test_budgets_count_directions_by_their_cost():
    values = torch.tensor([8.0, 2.0, 0.5, 0.0])
    # A step of 0.1 costs .04, .01, .0025 and 0 nats.
    counts = [
        equivalent_dimensions(values, nats=nats, strength=0.1)
        for nats in (0.05, 0.02, 0.005, 0.001)
    ]
    assert counts == [4, 3, 2, 1]
    counts = [
        identifiable_dimensions(values, samples=n, accuracy=0.5, strength=0.1)
        for n in (10, 60, 250, 1000, 10**9)
    ]
    assert counts == [0, 1, 2, 3, 3]


def test_eigenvectors_belong_to_their_values_and_rounding_below_0_is_0():
    factor = gaussian(6, 9)
    matrix = factor.T @ factor
    found = spectrum(matrix.float())
    assert float(found.values.min()) >= 0
    assert bool((found.values.diff() <= 0).all())
    rebuilt = found.directions @ torch.diag(found.values) @ found.directions.T
    assert (rebuilt - matrix).abs().max() < 1e-5  # float32 entries of size 10
    assert (found.values[6:] < 1e-5).all()
    singular = torch.linalg.svdvals(factor)
    assert torch.allclose(found.singular_values[:6], singular, atol=1e-5)


@pytest.mark.parametrize(
    ("matrix", "complaint"),
    [
        ([[1.0, 1.0], [0.0, 1.0]], "not symmetric"),
        ([[1.0, 0.0], [0.0, -1.0]], "negative eigenvalue"),
        ([[math.nan, 0.0], [0.0, 1.0]], "NaN"),
    ],
)
def test_what_is_no_fisher_matrix_is_refused(matrix, complaint):
    with pytest.raises(InputError, match=complaint):
        spectrum(torch.tensor(matrix))


@pytest.mark.parametrize("angle", [1e-9, 1e-3, 0.7, math.pi / 2 - 1e-9, math.pi / 2])
def test_planted_angles_are_found_also_tiny_ones_and_nearly_right_ones(angle):
    turn = rotation(7)
    first = turn[:, :2]
    tilted = math.cos(angle) * turn[:, 1] + math.sin(angle) * turn[:, 3]
    second = torch.stack([turn[:, 0], tilted], dim=1)
    # In other bases of the same two subspaces.
    found = principal_angles(first @ gaussian(2, 2), second @ gaussian(2, 2, seed=1))
    # Rounding of an orthonormal basis; a cosine alone would give 1e-8.
    assert found.tolist() == pytest.approx([0, angle], abs=1e-14)


def test_angles_of_subspaces_of_other_dimensions_are_as_many_as_the_smaller_has():
    turn = rotation(6)
    wide, narrow = turn[:, :4], turn[:, [1, 5]]
    assert principal_angles(wide, narrow).tolist() == pytest.approx([0, math.pi / 2])
    both = principal_angles(wide, narrow), principal_angles(narrow, wide)
    assert torch.allclose(*both, atol=1e-14)


def test_a_basis_spans_what_it_is_made_of_and_no_more():
    columns = gaussian(8, 3) @ gaussian(3, 5, seed=1)
    basis = orthonormal(columns)
    assert basis.shape == (8, 3)
    assert torch.allclose(basis.T @ basis, torch.eye(3).double(), atol=1e-14)
    assert torch.allclose(projected(columns.T, basis), columns.T, atol=1e-13)
    assert orthonormal(torch.zeros(4, 2)).shape == (4, 0)


def test_a_projection_is_idempotent_and_leaves_an_orthogonal_rest():
    basis, v = orthonormal(gaussian(9, 4)), gaussian(9, seed=2)
    inside = projected(v, basis)
    rest = v - inside
    assert min(float(inside.norm()), float(rest.norm())) > 0.5
    assert np.abs((basis.T @ rest).numpy()).max() < 1e-14
    assert torch.allclose(projected(inside, basis), inside, atol=1e-14)
    assert (projected(v, torch.zeros(9, 0)) == 0).all()
