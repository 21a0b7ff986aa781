"""R in linear models, where geometry alone gives it, and in one that bends."""

import dataclasses
import math

import numpy as np
import pytest

from steergauge.audits.finding import Verdict
from steergauge.audits.logits import UNBOUNDED, Distances, logits

PERPS, RANDOMS, GAINS = 10, 20, 32
PROMPTS = 20
SMALL_STEP = 1e-4


def random_units(rng, num, d):
    drawn = rng.standard_normal((num, d))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def distances(weights, v, *, seed=0, bend=lambda h: h) -> Distances:
    """o = W bend(h + step) for prompts with states h, as a run would measure it."""
    rng = np.random.default_rng([1, seed])
    d, norm = len(v), float(np.linalg.norm(v))
    states = rng.standard_normal((PROMPTS, d))
    units = random_units(rng, GAINS, d)
    random, perp = norm * units, norm * across(units, v)

    def output(step):
        return bend(states + step) @ weights.T

    def away(step):
        return np.linalg.norm(output(v) - output(step), axis=1)

    def gain(unit):
        rise = output(SMALL_STEP * unit) - output(-SMALL_STEP * unit)
        return ((rise / (2 * SMALL_STEP)) ** 2).sum(1)

    alone = np.stack([away(one) for one in random])
    added = np.stack([away(v + one) for one in perp])
    return Distances(
        published_perp=added[:PERPS],
        published_random=alone[:RANDOMS],
        perp=added,
        random=alone,
        random_added=np.stack([away(v + one) for one in random]),
        gain=gain(v / norm)[None],
        perp_gain=np.stack([gain(one) for one in across(units, v)]),
        measures={},
        d_model=d,
    )


def across(units: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Unit vectors with their part along v taken out."""
    rest = units - np.outer(units @ v, v) / (v @ v)
    return rest / np.linalg.norm(rest, axis=1, keepdims=True)


def axis(d: int, index: int) -> np.ndarray:
    return np.eye(d)[index]


def exact_ratio(spectrum, index) -> float:
    """R_null of v = a singular direction, from the squared singular values."""
    gains = spectrum**2
    g, trace, d = gains[index], gains.sum(), len(gains)
    return math.sqrt(((trace - g) / (d - 1)) / (g + trace / d))


def exact_matched(spectrum, index) -> float:
    """The null of R matched: r has a part along v, v_perp has none."""
    gains = spectrum**2
    d, rho = len(gains), gains[index] / gains.mean()
    return math.sqrt((d - rho) / (d - 1))


FLAT = np.ones(512)
HARMONIC = 1 / np.arange(1, 513)


def test_a_flat_spectrum_gives_one_over_root_two():
    assert exact_ratio(FLAT, 0) == pytest.approx(0.707, abs=0.001)
    found = logits(distances(np.diag(FLAT), axis(512, 0)))
    # A random r in 512 dimensions is perpendicular to v to 1 / sqrt(512) = 4 %.
    assert found.details["ratio_rms"][0] == pytest.approx(0.707, rel=0.04)
    assert found.details["ratio_published"] == pytest.approx(0.707, rel=0.04)
    assert found.details["rho"] == pytest.approx([1, 1, 1])
    assert found.details["ratio_null"] == pytest.approx([math.sqrt(0.5)] * 3)
    assert found.estimate.value == pytest.approx(1, rel=0.08)
    assert found.verdict is Verdict.EXPLAINED


def test_the_top_direction_of_a_harmonic_spectrum_gives_a_ratio_of_nearly_0():
    assert exact_ratio(HARMONIC, 0) == pytest.approx(0.035, abs=0.0005)
    found = [
        logits(distances(np.diag(HARMONIC), axis(512, 0), seed=seed))
        for seed in range(10)
    ]
    squares = [one.details["ratio_rms"][0] ** 2 for one in found]
    # Ten v_perp in few effective dimensions vary by a fifth, ten studies by 7 %.
    assert math.sqrt(np.mean(squares)) == pytest.approx(0.035, rel=0.15)
    # "R < 1 shows that outputs are preserved", of the most visible direction of all.
    assert all(one.details["ratio_published"] < 0.05 for one in found)


def test_a_vector_of_less_gain_than_one_part_in_d_gives_a_ratio_above_1():
    spectrum = np.ones(64)
    spectrum[0] = 0.05
    rho = spectrum[0] ** 2 / (spectrum**2).mean()
    assert rho < 1 / 64
    assert exact_ratio(spectrum, 0) > 1
    found = logits(distances(np.diag(spectrum), axis(64, 0)))
    assert found.details["rho"][0] == pytest.approx(rho, rel=0.01)
    # R_null is that of drawn directions: their mean part along v is 1 / 64.
    assert found.details["ratio_null"][0] == pytest.approx(
        exact_ratio(spectrum, 0), rel=1e-3
    )
    assert found.details["ratio_null"][0] > 1
    assert found.verdict is Verdict.EXPLAINED


@pytest.mark.parametrize("index", [0, 31, 63])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_t_is_1_in_every_linear_model_and_its_interval_covers_it(power, index):
    spectrum = np.arange(1, 65) ** -power
    num = 40
    turn = np.linalg.qr(np.random.default_rng(7).standard_normal((64, 64)))[0]
    weights, v = np.diag(spectrum) @ turn.T, 3 * turn[:, index]
    found = [logits(distances(weights, v, seed=s), seed=s) for s in range(num)]
    covered = sum(one.estimate.low <= 1 <= one.estimate.high for one in found)
    assert covered / num >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / num)
    # R itself is anything: it is not 1 that T is held to.
    ratios = [one.details["ratio_rms"][0] for one in found]
    assert np.mean(ratios) == pytest.approx(exact_ratio(spectrum, index), rel=0.15)
    verdicts = [one.verdict for one in found]
    allowed = 0.05 + 3 * math.sqrt(0.95 * 0.05 / num)
    assert verdicts.count(Verdict.NONLINEAR) / num <= allowed


@pytest.mark.parametrize(("power", "index"), [(0.0, 0), (0.5, 63), (1.0, 63), (1.0, 0)])
def test_the_matched_ratio_is_1_unless_v_holds_much_of_the_gain(power, index):
    spectrum, num = np.arange(1, 65) ** -power, 40
    null = exact_matched(spectrum, index)
    assert (null == pytest.approx(1, abs=0.02)) == (index == 63 or power == 0)
    found = [
        logits(distances(np.diag(spectrum), axis(64, index), seed=s), seed=s)
        for s in range(num)
    ]
    ends = [one.details["ratio_matched"][1:] for one in found]
    # Where R is exactly the same for all directions, rounding is all that varies.
    covered = sum(low - 1e-12 <= null <= high + 1e-12 for low, high in ends)
    assert covered / num >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / num)


def test_steps_that_saturate_the_model_are_nonlinear_and_short_ones_are_not():
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((200, 128)) / math.sqrt(128)
    signs = rng.choice([-1.0, 1.0], 128)
    long = [
        logits(distances(weights, 4 * signs, bend=np.tanh, seed=s), seed=s)
        for s in range(20)
    ]
    assert [one.verdict for one in long].count(Verdict.NONLINEAR) >= 19
    assert "not what first-order geometry gives" in long[0].reasons[1]
    short = [
        logits(distances(weights, 0.01 * signs, bend=np.tanh, seed=s), seed=s)
        for s in range(20)
    ]
    assert [one.verdict for one in short].count(Verdict.EXPLAINED) >= 19


def test_the_published_ratio_is_of_five_and_of_three_directions():
    seen = distances(np.diag(HARMONIC), axis(512, 100))
    found = logits(seen)
    expected = seen.published_perp[:5].mean() / seen.published_random[:3].mean()
    assert found.details["ratio_published"] == pytest.approx(expected)
    assert found.details["ratio_published"] != pytest.approx(
        found.details["ratio_rms"][0]
    )


def test_an_interval_without_an_upper_end_is_a_readable_number():
    # One of three random directions has all the gain: a resample may lack it.
    seen = distances(np.diag(HARMONIC[:64]), axis(64, 0))
    one_of_three = np.array([[1.0], [0.01], [0.01]])
    few = dataclasses.replace(
        seen,
        perp=seen.perp[:3],
        random=seen.random[:3] * one_of_three,
        random_added=seen.random_added[:3],
        perp_gain=seen.perp_gain[:3] * one_of_three,
    )
    found = logits(few)
    assert found.estimate.high == pytest.approx(UNBOUNDED, rel=1e-9)
    assert found.details["ratio_rms"][2] == pytest.approx(math.sqrt(UNBOUNDED))
    assert len(found.reasons[1]) < 200


def measured(agreement: float) -> dict[str, np.ndarray]:
    table = np.full((1, PROMPTS), agreement)
    return {"agreement": table, "overlap": table}


@pytest.mark.parametrize(("agreement", "holds"), [(1.0, True), (0.9, False)])
def test_v_through_another_path_must_agree_with_itself(agreement, holds):
    seen = distances(np.diag(FLAT[:16]), axis(16, 0))
    families = {
        "v_recomputed": measured(agreement),
        "v_plus_perp": measured(0.8),
        "unsteered": measured(0.75),
    }
    tables = {name: getattr(seen, name) for name in Distances.__slots__}
    found = logits(Distances(**tables | {"measures": families}))
    (control,) = found.controls
    assert control.holds is holds
    assert control.estimate.value == pytest.approx(agreement)
    assert "80%" in found.reasons[2]
    assert "75%" in found.reasons[2]
    assert found.details["measures"]["unsteered"]["overlap"] == pytest.approx(
        [0.75] * 3
    )
    assert logits(seen).controls == ()


def test_an_interval_that_leaves_everything_open_is_inconclusive():
    seen = distances(np.diag(HARMONIC[:64]), axis(64, 0))
    few = dataclasses.replace(
        seen,
        perp=seen.perp[:2],
        random=seen.random[:2],
        random_added=seen.random_added[:2],
        perp_gain=seen.perp_gain[:2],
    )
    found = logits(few)
    assert found.estimate.low < 1 < found.estimate.high
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "could not be told" in found.reasons[1]


def test_a_null_space_that_matters_shows_in_r_soft_and_in_no_other_ratio():
    rng = np.random.default_rng(4)
    d, hidden = 24, 8
    # Half of the logits' weight on v; the last directions are seen by nothing.
    weights = rng.standard_normal((60, d)) * np.where(np.arange(d) < d - hidden, 1, 0)
    v = np.concatenate([rng.standard_normal(d - hidden), np.zeros(hidden)])
    seen = distances(weights, v)
    units = np.zeros((5, d))
    units[:, -hidden:] = random_units(rng, 5, hidden)

    def moved(directions):
        rise = np.linalg.norm(v) * directions @ weights.T
        return np.repeat(np.linalg.norm(rise, axis=1)[:, None], PROMPTS, axis=1)

    found = logits(dataclasses.replace(seen, soft=moved(units))).details
    assert found["ratio_soft"][2] < 1e-6
    assert found["ratio_matched"][0] > 0.9
    # A "null space" of random directions is none.
    none = logits(dataclasses.replace(seen, soft=moved(random_units(rng, 40, d))))
    assert none.details["ratio_soft"][1] < 1.1
    assert none.details["ratio_soft"][2] > 0.9
    assert "ratio_soft" not in logits(seen).details
