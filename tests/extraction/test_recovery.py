"""Structure of the sources decides what of h = B z can be recovered."""

import itertools

import numpy as np
import pytest

from steergauge.errors import BadPairs, ShapeMismatch
from steergauge.extraction.independent_components import (
    independent_component,
    independent_sources,
)
from steergauge.extraction.paired_streams import PairedStreams
from steergauge.extraction.recovery import (
    chance_correlations,
    mean_correlation,
    steadiest_part,
)
from steergauge.extraction.sparse_shift import sparse_shift, sparse_shifts

WIDTH, NUM_ROWS, NUM_PAIRS = 6, 2000, 200
SHARE = 0.2
"""Of the sources, how many a sparse shift moves."""

SEEDS = range(3)


def mixing(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((WIDTH, WIDTH))


def drawn(kind: str, num: int, seed: int) -> np.ndarray:
    """Independent sources, one row a text or a pair."""
    rng, size = np.random.default_rng(100 + seed), (num, WIDTH)
    if kind == "sparse":
        return rng.standard_normal(size) * (rng.random(size) < SHARE)
    return rng.laplace(size=size) if kind == "laplace" else rng.standard_normal(size)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("seed", SEEDS)
def test_independent_laplace_sources_are_recovered(seed):
    planted = drawn("laplace", NUM_ROWS, seed)
    rows = planted @ mixing(seed).T + 5
    assert mean_correlation(rows, planted) < 0.9  # the mixture itself is no recovery
    found = independent_sources(rows, WIDTH, seed=seed)
    assert found.converged
    assert mean_correlation(found.sources, planted) >= 0.95
    # The columns of B, too, up to order and scale.
    assert mean_correlation(found.mixing, mixing(seed)) >= 0.95
    rebuilt = found.sources @ found.mixing.T + rows.mean(0)
    assert np.abs(rebuilt - rows).max() < 1e-9


def test_gaussian_sources_are_recovered_no_better_than_by_a_random_rotation():
    scores, chances = [], []
    for seed in SEEDS:
        planted = drawn("normal", NUM_ROWS, seed)
        found = independent_sources(planted @ mixing(seed).T, WIDTH, seed=seed)
        # What was found explains the rows: it is only turned.
        assert found.sources.var(0) == pytest.approx(1)
        scores.append(mean_correlation(found.sources, planted))
        chances.append(chance_correlations(planted, seed=seed))
    assert max(scores) < 0.95
    _assert_by_chance(scores, chances)


def _assert_by_chance(scores: list[float], chances: list[np.ndarray]) -> None:
    """The mean score is one that as many random rotations give, at the level 0.1 %."""
    mean, spread = np.mean(chances), np.std(chances) / len(scores) ** 0.5
    assert 0.5 < mean < 0.9
    assert abs(np.mean(scores) - mean) < 3.3 * spread


@pytest.mark.parametrize("seed", SEEDS)
def test_sparse_shifts_are_recovered(seed):
    planted = drawn("sparse", NUM_PAIRS, seed)
    differences = planted @ mixing(seed).T
    assert mean_correlation(differences, planted) < 0.9
    found = sparse_shifts(differences, WIDTH, seed=seed)
    assert found.converged
    assert mean_correlation(found.sources, planted) >= 0.95
    assert mean_correlation(found.mixing, mixing(seed)) >= 0.95
    assert np.abs(found.sources @ found.mixing.T - differences).max() < 1e-9


def test_dense_gaussian_shifts_are_recovered_no_better_than_by_a_random_rotation():
    scores, chances = [], []
    for seed in SEEDS:
        planted = drawn("normal", NUM_PAIRS // 2, seed)
        found = sparse_shifts(planted @ mixing(seed).T, WIDTH, seed=seed)
        scores.append(mean_correlation(found.sources, planted))
        chances.append(chance_correlations(planted, seed=seed))
    assert max(scores) < 0.95
    _assert_by_chance(scores, chances)


def test_dense_shifts_with_heavy_tails_are_recovered_too():
    planted = drawn("laplace", 400, 0)
    assert (planted != 0).all()
    found = sparse_shifts(planted @ mixing(0).T, WIDTH)
    assert mean_correlation(found.sources, planted) >= 0.95


def test_the_correlation_is_the_best_over_all_matchings():
    rng = np.random.default_rng(0)
    planted = rng.standard_normal((50, 4))
    planted[:, 3] = planted[:, 1] + 0.3 * rng.standard_normal(50)
    estimated = planted[:, [0, 0, 1, 2]] + rng.standard_normal((50, 4))
    table = np.abs(np.corrcoef(estimated.T, planted.T)[:4, 4:])
    means = [table[list(order), range(4)].mean() for order in
             itertools.permutations(range(4))]  # fmt: skip
    assert mean_correlation(estimated, planted) == pytest.approx(max(means))
    # Taking the nearest planted source for each would count some of them twice.
    assert table.max(0).mean() > max(means) + 0.01


def test_the_correlation_knows_neither_order_nor_sign_nor_scale():
    planted = np.random.default_rng(1).standard_normal((30, 3))
    estimated = (planted * [-1, 20, 0.1] + 7)[:, [2, 0, 1]]
    assert mean_correlation(estimated, planted) == pytest.approx(1)
    # A source that was not found, or only as a constant, counts as 0.
    assert mean_correlation(planted[:, :2], planted) == pytest.approx(2 / 3)
    assert mean_correlation(planted * [1, 1, 0], planted) == pytest.approx(2 / 3)
    with pytest.raises(ShapeMismatch, match="29 rows"):
        mean_correlation(planted[1:], planted)


def test_chance_falls_with_the_number_of_sources_and_is_far_above_zero():
    rng = np.random.default_rng(2)
    means = [
        chance_correlations(rng.standard_normal((2000, num)), num=100).mean()
        for num in (2, 4, 8, 16)
    ]
    assert all(more > less for more, less in itertools.pairwise(means))
    # Two sources: the larger of |cos t|, |sin t| over all angles, 2 sqrt(2) / pi on
    # average; its standard error over 100 rotations is 0.009.
    assert abs(means[0] - 2 * 2**0.5 / np.pi) < 0.03
    assert means[-1] > 0.4


def test_the_steadiest_part_is_the_component_that_shifts_alike_in_every_pair():
    atoms = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    shifts = np.array([[9.0, 1.0, 0.0], [-3.0, 1.1, 0.0], [0.0, 0.9, 0.0]])
    assert steadiest_part(atoms, shifts) == pytest.approx([0, 1])
    # The first one carries more of the mean, 2, but not in every pair.
    assert shifts.mean(0)[0] > shifts.mean(0)[1]
    # Order, sign and scale of the components do not matter.
    scale = np.array([-2.0, -0.1, 1.0])
    again = steadiest_part((atoms / scale)[:, ::-1], (shifts * scale)[:, ::-1])
    assert again == pytest.approx([0, 1])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_vector_of_an_independent_component_is_the_source_that_was_shifted(seed):
    sources = drawn("laplace", 2 * NUM_ROWS, seed)
    sources[:NUM_ROWS, 0] += 3
    plus, minus = np.split(sources @ mixing(seed).T, 2)
    found = independent_component(PairedStreams(plus, minus), WIDTH, seed=seed)
    want = 3 * mixing(seed)[:, 0]
    assert cosine(found, want) > 0.97
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(want), rel=0.1)
    assert max(abs(cosine(mixing(seed)[:, k], want)) for k in (1, 2, 3, 4, 5)) < 0.97


@pytest.mark.parametrize("seed", SEEDS)
def test_the_vector_of_a_sparse_shift_is_the_concept_that_all_pairs_share(seed):
    shifts = drawn("sparse", NUM_PAIRS, seed)
    shifts[:, 0] = 1
    rng = np.random.default_rng(seed)
    negative = 10 * rng.standard_normal((NUM_PAIRS, WIDTH))
    streams = PairedStreams(negative + shifts @ mixing(seed).T, negative)
    found = sparse_shift(streams, WIDTH, seed=seed)
    want = mixing(seed)[:, 0]
    assert cosine(found, want) > 0.97
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(want), rel=0.1)


def test_more_components_than_the_rows_span_are_refused():
    rows = np.random.default_rng(0).standard_normal((5, WIDTH))
    for find in (independent_sources, sparse_shifts):
        with pytest.raises(BadPairs, match=r"6 components.*5 rows"):
            find(rows, WIDTH)
        with pytest.raises(BadPairs, match="0 components"):
            find(rows, 0)
