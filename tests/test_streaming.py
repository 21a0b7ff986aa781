"""Running moments are those of all the data at once, however it was cut up."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from steergauge.streaming import Moments

WIDTH = 3
TOLERANCE = 1e-12
"""Rounding of a few float64 operations, relative to the largest value squared."""

data = arrays.arrays(
    np.float64,
    st.tuples(st.integers(0, 12), st.just(WIDTH)),
    elements=st.floats(-1e3, 1e3, allow_subnormal=False),
)


def moments(rows: np.ndarray) -> Moments:
    return Moments.empty(WIDTH).update(torch.from_numpy(rows))


def assert_same(a: Moments, b: Moments, *rows: np.ndarray) -> None:
    size = max(1.0, *(np.abs(part).max(initial=0) for part in rows))
    assert a.count == b.count
    assert (a.mean - b.mean).abs().max() <= TOLERANCE * size
    assert (a.squares - b.squares).abs().max() <= TOLERANCE * size**2 * max(1, a.count)


@given(data, data)
def test_merging_is_commutative(a, b):
    assert_same(moments(a).merge(moments(b)), moments(b).merge(moments(a)), a, b)


@given(data, data, data)
def test_merging_is_associative(a, b, c):
    left = moments(a).merge(moments(b)).merge(moments(c))
    right = moments(a).merge(moments(b).merge(moments(c)))
    assert_same(left, right, a, b, c)


@given(data)
def test_no_vectors_are_the_neutral_element(a):
    assert_same(Moments.empty(WIDTH).merge(moments(a)), moments(a), a)
    assert_same(moments(a).merge(Moments.empty(WIDTH)), moments(a), a)


@given(data, st.lists(st.integers(0, 12), max_size=4))
def test_any_partition_gives_the_moments_of_the_whole(rows, cuts):
    running = Moments.empty(WIDTH)
    for part in np.split(rows, sorted(cuts)):
        running = running.update(torch.from_numpy(part))
    assert running.count == len(rows)
    if len(rows) == 0:
        return
    size = max(1.0, np.abs(rows).max())
    assert np.abs(running.mean.numpy() - rows.mean(0)).max() <= TOLERANCE * size
    deviations = np.square(rows - rows.mean(0)).sum(0)
    error = np.abs(running.squares.numpy() - deviations).max()
    assert error <= TOLERANCE * size**2 * len(rows)


def test_variance_is_numpys_unbiased_one():
    rows = np.random.default_rng(0).normal(size=(50, WIDTH))
    ours = moments(rows).variance.numpy()
    np.testing.assert_allclose(ours, rows.var(axis=0, ddof=1), rtol=1e-12)


def test_variance_below_two_vectors_is_unknown():
    assert moments(np.ones((1, WIDTH))).variance.isnan().all()
    assert moments(np.ones((2, WIDTH))).variance.tolist() == [0.0] * WIDTH


def test_a_large_offset_does_not_drown_the_variance():
    rows = np.random.default_rng(0).normal(size=(1000, WIDTH))
    offset = 1e8
    shifted = rows + offset
    running = Moments.empty(WIDTH)
    for part in np.split(shifted, 50):
        running = running.update(torch.from_numpy(part))
    # Not vacuous: the textbook formula E[x^2] - E[x]^2 loses every digit here.
    naive = np.square(shifted).mean(0) - np.square(shifted.mean(0))
    assert np.abs(naive - rows.var(0)).min() > 0.1
    # An entry is stored to 1e8 * 2^-53 = 1e-8, so so good are deviations of size 1.
    np.testing.assert_allclose(running.variance, rows.var(0, ddof=1), rtol=1e-7)


def test_float32_rows_are_summed_in_float64():
    rows = torch.full((1000, 1), 0.1)
    assert Moments.empty(1).update(rows).mean.item() == float(rows[0].double())
