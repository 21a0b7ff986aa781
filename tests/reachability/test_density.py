"""How far a state is from natural ones, and that its p-value is one."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from tests.ground_truth import trained

from steergauge.errors import InputError
from steergauge.organism.corpus import records
from steergauge.prompts import Text, encode, padded
from steergauge.reachability.density import (
    LEAST_SPACING,
    Natural,
    conformal,
    drift,
    fitted,
    joint_p,
)

WIDTH, STATES = 12, 600


def rotation(seed: int, width: int = WIDTH) -> np.ndarray:
    rng = np.random.default_rng([1, seed])
    return np.linalg.qr(rng.standard_normal((width, width)))[0]


def cloud(seed: int, num: int = STATES, *, width: int = WIDTH) -> np.ndarray:
    """Normal states of unequal variances, away from the origin."""
    rng = np.random.default_rng([2, seed])
    sizes = np.geomspace(3.0, 0.3, width)
    return (rng.standard_normal((num, width)) * sizes) @ rotation(0, width) + 5.0


def narrow(seed: int, num: int, *, width: int = 60, rank: int = 3) -> np.ndarray:
    """States of which `rank` directions are wide and the others a hundredth of them."""
    rng = np.random.default_rng([3, seed])
    sizes = np.where(np.arange(width) < rank, 1.0, 0.01)
    return rng.standard_normal((num, width)) * sizes


def p_of(natural: Natural, states: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Joint p among other natural states."""
    pairs = [
        (score(states), score(others))
        for score in (natural.mahalanobis, natural.neighbour_distance)
    ]
    return joint_p(*(conformal(own, other) for own, other in pairs))


@pytest.mark.parametrize("num", [20, 60, 110, STATES])
def test_the_first_score_is_the_mahalanobis_distance_of_the_formula(num):
    # From 120 states on no direction is left out of 12.
    states, tested = cloud(0, num), cloud(1, 50)
    natural = fitted(states)
    kept = min(WIDTH, num // 10)
    assert natural.num_components == kept
    values, columns = np.linalg.eigh(np.cov(states.T))
    values, columns = values[::-1], columns[:, ::-1]
    inside = natural.whitening.variances
    # Shrinkage moves them towards their mean, by less the more states there are.
    plain = values[:kept] * (num - 1) / num
    assert inside.mean() == pytest.approx(plain.mean())
    assert kept == 1 or inside.std() < plain.std()
    rest = values[kept:].mean() if kept < WIDTH else inside.min()
    assert natural.whitening.rest == pytest.approx(rest)
    each = np.concatenate([inside, np.full(WIDTH - kept, rest)])
    inverse = (columns / each) @ columns.T
    centred = tested - states.mean(0)
    expected = np.sqrt(np.einsum("nd,de,ne->n", centred, inverse, centred))
    assert natural.mahalanobis(tested) == pytest.approx(expected, rel=1e-9)


def test_the_second_score_is_relative_to_the_neighbours_own_distances():
    states, tested = cloud(0), cloud(1, 30)
    natural = fitted(states, neighbours=4)
    white = natural.whitening.white(states)
    between = np.linalg.norm(white[:, None] - white[None], axis=2)
    np.fill_diagonal(between, np.inf)
    spacing = np.sort(between, axis=1)[:, :4].mean(1)
    away = np.linalg.norm(natural.whitening.white(tested)[:, None] - white, axis=2)
    nearest = np.argsort(away, axis=1)[:, :4]
    expected = np.take_along_axis(away, nearest, 1).mean(1) / spacing[nearest].mean(1)
    assert natural.neighbour_distance(tested) == pytest.approx(expected, rel=1e-6)
    # Held-out natural states are as far from natural ones as these from each other.
    assert np.median(expected) == pytest.approx(1, abs=0.2)


def test_a_step_out_of_the_natural_span_is_seen_though_no_component_shows_it():
    natural, others = fitted(narrow(0, 40)), narrow(1, 400)
    assert natural.num_components == 4
    tested = narrow(2, 50)
    rng = np.random.default_rng(0)
    step = rng.standard_normal((50, 60))
    basis = natural.whitening.components
    step -= step @ basis.T @ basis
    step *= 0.5 / np.linalg.norm(step, axis=1, keepdims=True)
    # Not vacuous: it is shorter than natural states are, and leaves components alone.
    assert np.median(np.linalg.norm(tested, axis=1)) > 1
    assert step @ basis.T == pytest.approx(0, abs=1e-12)
    for score in (natural.mahalanobis, natural.neighbour_distance):
        assert (conformal(score(tested + step), score(others)) < 0.01).all()
        assert (conformal(score(tested), score(others)) < 0.01).mean() <= 0.1


def test_a_step_of_the_same_length_along_natural_variation_is_not_seen():
    natural, others, tested = fitted(narrow(0, 40)), narrow(1, 400), narrow(2, 50)
    step = 0.5 * natural.whitening.components[0]
    assert (p_of(natural, tested + step, others) < 0.01).mean() <= 0.1


def test_states_between_two_clouds_are_natural_to_one_score_only():
    rng = np.random.default_rng(0)

    def two_clouds(num: int) -> np.ndarray:
        middle = np.where(rng.random(num) < 0.5, 8.0, -8.0)
        return rng.standard_normal((num, 2)) + middle[:, None]

    natural, others = fitted(two_clouds(500)), two_clouds(300)
    between = 0.3 * rng.standard_normal((20, 2))
    far = conformal(natural.mahalanobis(between), natural.mahalanobis(others))
    near = natural.neighbour_distance
    # The middle of both clouds is as near to the centre as a state can be.
    assert far.min() > 0.5
    assert conformal(near(between), near(others)).max() < 0.01


def test_a_narrow_cloud_has_a_unit_of_its_own():
    # A step that is nothing in the wide cloud leaves the narrow one.
    rng = np.random.default_rng(0)

    def pair(num: int) -> np.ndarray:
        wide = rng.random(num) < 0.5
        sizes = np.where(wide, 1.0, 0.05)[:, None]
        return sizes * rng.standard_normal((num, 6)) + np.where(wide, 8.0, 0)[:, None]

    natural, others = fitted(pair(500)), pair(300)
    # Across the line between the clouds, along which the covariance is large.
    step = 0.15 * np.array([1, -1, 1, -1, 1, -1])
    inside, near = 0.05 * rng.standard_normal((20, 6)), natural.neighbour_distance
    assert conformal(near(inside + step), near(others)).max() < 0.01
    assert conformal(near(inside + step + 8.0), near(others)).min() > 0.1
    # Not vacuous: one covariance for both does not see it.
    far = natural.mahalanobis
    assert conformal(far(inside + step), far(others)).min() > 0.1


@pytest.mark.parametrize("num", [60, STATES])
def test_scores_are_the_same_in_every_basis(num):
    states, tested = cloud(0, num), cloud(1, 40)
    turned, plain = fitted(states @ rotation(7) + 2.0), fitted(states)
    moved = tested @ rotation(7) + 2.0
    # Not vacuous: the rotation moves the states.
    assert np.abs(moved - tested).max() > 1
    # Neighbours are found by squares, which keep half of the digits.
    for name, tolerance in (("mahalanobis", 1e-9), ("neighbour_distance", 1e-6)):
        first, second = getattr(turned, name)(moved), getattr(plain, name)(tested)
        assert first == pytest.approx(second, rel=tolerance)


def test_nothing_about_the_fit_is_random():
    first, second = fitted(cloud(0)), fitted(cloud(0))
    for name in ("reference", "spacing"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


def test_conformal_p_is_below_a_with_probability_a():
    # 19 calibration scores: p is one of 1/20, ..., 20/20, each equally often.
    num, p = 10_000, []
    rng = np.random.default_rng(0)
    for scores in rng.gamma(2.0, size=(num, 20)):
        p.append(conformal(scores[:1], scores[1:])[0])
    counts = np.bincount(np.round(20 * np.array(p)).astype(int), minlength=21)[1:]
    assert counts.sum() == num
    # A chi-square of 19 degrees lies above this once in 10,000 studies.
    assert stats.chisquare(counts).statistic < stats.chi2.ppf(1 - 1e-4, 19)


def test_ties_can_only_make_p_too_large():
    rng = np.random.default_rng(1)
    p = [
        conformal(scores[:1], scores[1:])[0]
        for scores in rng.integers(0, 3, (4000, 20)).astype(float)
    ]
    # Not vacuous: a third of the states have the largest score there is.
    for level in (0.05, 0.1, 0.3):
        assert np.mean(np.array(p) <= level) <= level
    assert conformal(np.ones(1), np.ones(9)) == 1


@pytest.mark.parametrize("agreement", [0.0, 0.9, 1.0])
def test_two_scores_do_not_make_small_p_more_likely(agreement):
    rng = np.random.default_rng(2)
    first = rng.standard_normal((2000, 100))
    other = rng.standard_normal((2000, 100))
    second = agreement * first + math.sqrt(1 - agreement**2) * other
    p = np.array(
        [
            joint_p(conformal(a[:1], a[1:]), conformal(b[:1], b[1:]))[0]
            for a, b in zip(first, second, strict=True)
        ]
    )
    for level in (0.02, 0.1, 0.3):
        seen = np.mean(p <= level)
        # Three standard deviations of 2000 draws.
        assert seen <= level + 3 * math.sqrt(level * (1 - level) / 2000)
        # Not vacuous: half of the level is left even where the scores are the same.
        assert seen > level / 3


def test_p_of_held_out_natural_states_is_uniform_over_fits():
    # One p a fit, since all p of one fit share its calibration.
    rng = np.random.default_rng(3)
    found = {"mahalanobis": [], "neighbour_distance": []}
    for seed in range(200):
        states = cloud(seed, 100, width=6)
        natural, others, own = fitted(states[:50]), states[50:99], states[99:]
        for name, p in found.items():
            score = getattr(natural, name)
            rank = conformal(score(own), score(others))[0]
            # p is a multiple of 1/50; a draw within its step is uniform in [0, 1].
            p.append(rank - rng.random() / 50)
    for p in found.values():
        assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_equal_states_are_no_distance_apart_and_divide_nothing():
    states = np.concatenate([np.tile(cloud(5, 1), (100, 1)), cloud(0, 100)])
    natural = fitted(states)
    assert natural.spacing.min() > 0
    # Not vacuous: half of the states have all their neighbours where they are.
    least = LEAST_SPACING * natural.spacing[100:].mean()
    assert (natural.spacing[:100] < least).all()
    assert np.isfinite(natural.neighbour_distance(cloud(1, 20))).all()
    # Two points, a hundred times each: none is any distance from its neighbours.
    pair = fitted(np.repeat(cloud(6, 2), 100, axis=0))
    assert np.isfinite(pair.neighbour_distance(cloud(1, 20))).all()


@pytest.mark.parametrize("num", [40, STATES])
def test_directions_without_any_variance_divide_nothing(num):
    # 40 states leave the flat directions to the rest, 600 to the components.
    flat = narrow(0, num, width=30)
    flat[:, 3:] = 1.0
    natural = fitted(flat)
    on, off = flat[:5], flat[:5].copy()
    off[:, -1] += 100
    for score in (natural.mahalanobis, natural.neighbour_distance):
        assert (score(off) > 10 * score(on)).all()
        assert np.isfinite(score(off)).all()


def test_drift_is_norm_and_angle_to_the_last_digit():
    origins = cloud(0, 4)
    turn = np.eye(WIDTH)
    turn[:2, :2] = [[0.0, -1.0], [1.0, 0.0]]
    flat = origins.copy()
    flat[:, 2:] = 0
    ratio, angle = drift(3 * flat @ turn.T, flat)
    assert ratio == pytest.approx(3)
    assert angle == pytest.approx(math.pi / 2)
    ratio, angle = drift(origins, origins)
    assert ratio.tolist() == [1] * 4
    assert angle.tolist() == [0] * 4
    tiny = 1e-9
    small = np.array([[1.0, tiny]])
    # A cosine would be 1 here, and its angle 0.
    assert drift(small, np.array([[1.0, 0.0]]))[1][0] == pytest.approx(tiny, rel=1e-6)
    assert drift(-origins, origins)[1] == pytest.approx(math.pi)


def test_norms_are_told_in_units_of_natural_ones():
    states = cloud(0)
    natural = fitted(states)
    assert np.median(natural.norm_ratio(states)) == pytest.approx(1)
    assert natural.norm_ratio(2 * states[:3]) == pytest.approx(
        2 * natural.norm_ratio(states[:3])
    )


def test_states_that_no_density_can_be_made_of_are_refused():
    with pytest.raises(InputError, match="of 19 states"):
        fitted(cloud(0, 19))
    with pytest.raises(InputError, match="at least 31"):
        fitted(cloud(0, 30), neighbours=30)
    with pytest.raises(InputError, match="all the same"):
        fitted(np.tile(cloud(0, 1), (50, 1)))
    broken = cloud(0)
    broken[3, 4], broken[5, 6] = np.nan, np.inf
    with pytest.raises(InputError, match="2 of 600 states hold NaN"):
        fitted(broken)
    natural = fitted(cloud(0))
    for score in (natural.mahalanobis, natural.neighbour_distance):
        with pytest.raises(InputError, match="hold NaN or infinity"):
            score(broken)
        with pytest.raises(InputError, match="width 5"):
            score(cloud(0, width=5))
    with pytest.raises(InputError, match="1 of 2 origins are 0"):
        drift(np.ones((2, 3)), np.array([[1.0, 0, 0], [0, 0, 0]]))


@functools.cache
def real() -> tuple[np.ndarray, ...]:
    """States of the reference model at random places of texts that it was made for.

    Four of each text to fit on, one to calibrate, one to test.
    """
    lm, rng = trained(), np.random.default_rng(0)
    drawn = [encode(lm, Text(r.prompt, r.response)) for r in records(600, seed=7)]
    found = []
    for start in range(0, 600, 50):
        some = drawn[start : start + 50]
        ids, mask = padded([row for row, _ in some])
        streams = lm.prefix(ids, mask, layer=3).double()
        for (row, prompt_length), stream in zip(some, streams, strict=True):
            first = stream.shape[0] - len(row) + prompt_length - 1
            places = first + rng.permutation(stream.shape[0] - first)[:4]
            found.append(stream[torch.from_numpy(places)].numpy())
    return (
        np.concatenate(found[:250]),
        np.stack([states[0] for states in found[250:500]]),
        np.stack([states[0] for states in found[500:]]),
    )


def test_random_steps_leave_real_natural_states_only_if_they_are_long():
    reference, others, tested = real()
    natural = fitted(reference)
    rng = np.random.default_rng(1)
    step = rng.standard_normal(tested.shape)
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    sizes = np.linalg.norm(tested, axis=1, keepdims=True)
    off = {
        length: (p_of(natural, tested + length * sizes * step, others) < 0.01).mean()
        for length in (0.0, 0.22, 3.0)
    }
    # 1 of 100 is expected; 5 or more happen once in 300 studies.
    assert off[0.0] <= 0.05
    # In 128 dimensions a step of a fifth of ||h|| is within what natural states do:
    # why no verdict is given where random steps look natural.
    assert off[0.22] < 0.2
    assert off[3.0] > 0.9, off


def test_fields_of_a_density_are_read_only():
    natural = fitted(cloud(0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        natural.neighbours = 3
