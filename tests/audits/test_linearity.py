"""The linearisation radius, where it is known: linear models and softmax of two."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit, log_expit

from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.linearity import (
    INFORMATIVE,
    TOLERANCE,
    LinearRay,
    Rays,
    linearity,
)

STEPS = np.geomspace(0.01, 10, 13)
FLOOR = 1e-12
RESULT = 0.25
"""As a share: by how much a straight line in log t may miss a curve on a grid whose
steps are a factor of 1.8 apart. It is the curve of 1 - O(t^2) that is crossed."""


def binary(z, gain, steps=STEPS) -> LinearRay:
    """Texts of one token out of two, with log odds z; a step t adds t gain to them.

    The logits are linear in the step, so that only the softmax bends.
    """
    z, gain = np.broadcast_arrays(np.asarray(z, float), np.asarray(gain, float))
    moved = z + steps[:, None] * gain
    p = expit(z)
    nats = p * (log_expit(z) - log_expit(moved))
    nats += (1 - p) * (log_expit(-z) - log_expit(-moved))
    return LinearRay(
        steps=steps,
        nats=np.maximum(nats, 0),
        quadratic=p * (1 - p) * gain**2 / 2,
        logits=np.zeros((len(steps), len(z))),
    )


def exact_radius() -> float:
    """Where log cosh(y) is 3/4 of y^2 / 2: even odds, and y half the step in them."""
    y = brentq(lambda y: 2 * math.log(math.cosh(y)) / y**2 - (1 - TOLERANCE), 1e-3, 10)
    return 2 * y


def found(ray: LinearRay, *, floor: float = FLOOR, **others) -> Finding:
    rays = {"v": ray, **others}
    return linearity(Rays(rays=rays, floor=floor, strength=3.0))


EVEN = np.zeros(30)


@pytest.mark.parametrize("gain", [0.5, 1.0, 8.0])
def test_the_radius_of_even_odds_is_where_log_cosh_leaves_its_parabola(gain):
    exact = exact_radius() / gain
    assert STEPS[0] < exact < STEPS[-1]
    fine = np.geomspace(0.01, 10, 2000)
    assert found(binary(EVEN, gain, fine)).estimate.value == pytest.approx(
        exact, rel=1e-4
    )
    coarse = found(binary(EVEN, gain))
    assert coarse.estimate.value == pytest.approx(exact, rel=RESULT)
    # All texts are the same, so there is nothing for an interval to cover but that.
    assert coarse.estimate.low == pytest.approx(coarse.estimate.high)
    assert coarse.verdict is (Verdict.LOCAL if exact > 1 else Verdict.NONLINEAR)
    assert coarse.details["radius"][0] == coarse.estimate.value


def test_in_a_linear_model_the_radius_of_logits_is_the_grids_end():
    record = found(binary(EVEN, 1.0)).details["directions"]["v"]
    assert record["radius_logits"] == pytest.approx(STEPS[-1])
    assert record["bound_logits"] == "at least"
    # The softmax bends all the same.
    assert record["radius"] < STEPS[-1]
    assert record["bound"] is None


def test_a_bend_in_the_logits_is_found_where_it_is_a_tenth_of_the_step():
    # o(t) = t + c t^2 departs by c t from t.
    bent = dataclasses.replace(
        binary(EVEN, 0.01), logits=np.repeat(0.05 * STEPS[:, None], 30, axis=1)
    )
    record = found(bent).details["directions"]["v"]
    assert record["radius_logits"] == pytest.approx(2.0, rel=RESULT)


def test_a_quadratic_cost_holds_to_the_end_of_the_grid_and_says_so():
    quadratic = np.linspace(1, 2, 20)
    nats = STEPS[:, None] ** 2 * quadratic
    ray = LinearRay(STEPS, nats, quadratic, np.zeros_like(nats))
    seen = found(ray)
    assert seen.verdict is Verdict.LOCAL
    assert seen.estimate.value == pytest.approx(STEPS[-1])
    assert seen.details["directions"]["v"]["bound"] == "at least"
    assert "at least 10" in seen.reasons[0]
    assert "no upper end" in seen.reasons[1]
    assert seen.details["directions"]["v"]["ratio"] == pytest.approx([1.0] * 13)


def scattered(ratio: float, *, seed: int, num: int = 40) -> LinearRay:
    """Texts whose gains scatter; the population's ratio at t = 1 is 1 - `ratio`.

    KL = t^2 q (1 - c t^2) with q and c independent, E c = `ratio`.
    """
    rng = np.random.default_rng(seed)
    quadratic = rng.gamma(4, 1 / 4, num)
    bend = rng.gamma(4, ratio / 4, num)
    steps = np.geomspace(0.1, 1.5, 12)
    nats = steps[:, None] ** 2 * quadratic * (1 - bend * steps[:, None] ** 2)
    return LinearRay(steps, nats, quadratic, np.zeros_like(nats))


NUM_STUDIES = 200


def test_at_the_edge_either_claim_is_made_no_more_often_than_its_level():
    # The radius is 1 exactly, which is neither.
    verdicts = [
        found(scattered(TOLERANCE, seed=seed)).verdict for seed in range(NUM_STUDIES)
    ]
    assert verdicts.count(Verdict.INCONCLUSIVE) > NUM_STUDIES / 2
    # Each side has a level of 2.5 %; 200 studies see it with a standard error of 1.1 %.
    allowed = 0.025 + 3 * math.sqrt(0.025 * 0.975 / NUM_STUDIES)
    assert verdicts.count(Verdict.LOCAL) / NUM_STUDIES <= allowed
    assert verdicts.count(Verdict.NONLINEAR) / NUM_STUDIES <= allowed


@pytest.mark.parametrize(
    ("bend", "verdict"), [(0.05, Verdict.LOCAL), (0.7, Verdict.NONLINEAR)]
)
def test_a_radius_well_off_the_strength_in_use_is_told(bend, verdict):
    verdicts = [found(scattered(bend, seed=seed)).verdict for seed in range(20)]
    assert verdicts.count(verdict) >= 18


def test_rounding_at_short_steps_does_not_end_the_radius():
    floor = 3e-6
    clean = binary(EVEN, 1.0)
    noisy = dataclasses.replace(clean, nats=clean.nats + 5 * floor)
    ratio = noisy.nats[0, 0] / (STEPS[0] ** 2 * clean.quadratic[0])
    assert ratio - 1 > TOLERANCE  # Read as it is, it would end the radius at once.
    seen = found(noisy, floor=floor)
    assert seen.estimate.value == pytest.approx(found(clean).estimate.value, rel=1e-2)
    record = seen.details["directions"]["v"]
    informative = STEPS**2 * clean.quadratic[0] > INFORMATIVE * floor
    assert not informative.all()
    assert [one is not None for one in record["ratio"]] == informative.tolist()


def test_a_step_that_was_to_cost_something_and_costs_nothing_is_read():
    ray = binary(EVEN, 1.0)
    dead = dataclasses.replace(ray, nats=np.zeros_like(ray.nats))
    seen = found(dead, floor=1e-7)
    assert seen.verdict is Verdict.NONLINEAR
    assert seen.details["directions"]["v"]["bound"] == "at most"
    assert "below it" in seen.reasons[1]
    (control,) = seen.controls
    assert not control.holds


def test_a_first_order_null_that_costs_something_is_nonlinear():
    # F says nothing, the model does: KL ~ t^4, from t = 0.1 on above the floor.
    steps = np.geomspace(0.01, 10, 13)
    nats = np.repeat(steps[:, None] ** 4, 20, axis=1) * 1e-4
    ray = LinearRay(steps, nats, np.zeros(20), np.full_like(nats, 5.0))
    seen = found(ray)
    assert seen.verdict is Verdict.NONLINEAR
    assert seen.details["directions"]["v"]["ratio"] == [None] * 13


def test_a_vector_that_costs_nothing_is_uninformative():
    ray = binary(EVEN, 1e-9)
    seen = found(ray, random=binary(EVEN, 1.0))
    assert seen.verdict is Verdict.UNINFORMATIVE
    assert seen.estimate is None
    assert seen.details["radius"] is None
    assert seen.details["directions"]["v"]["radius"] is None
    assert seen.details["directions"]["random"]["radius"] is not None
    assert seen.controls == ()


def test_a_grid_that_ends_before_the_strength_in_use_decides_nothing():
    short = STEPS[STEPS < 0.9]
    seen = found(binary(EVEN, 0.5, short))
    assert seen.verdict is Verdict.INCONCLUSIVE
    assert "at least" in seen.reasons[0]


@pytest.mark.parametrize("num", [0, 1, 2])
def test_theory_reaches_the_strength_in_use_by_two_steps_below_it_or_more(num):
    steps = np.array([0.25, 0.5, 1.5, 3.0])[2 - num :]
    quadratic = np.ones(20)
    nats = np.repeat(steps[:, None] ** 2, 20, axis=1)
    seen = found(LinearRay(steps, nats, quadratic, np.zeros_like(nats)))
    # Not vacuous: no step departs from theory, up to three times the strength in use.
    assert seen.estimate.value == pytest.approx(3)
    assert seen.verdict is (Verdict.LOCAL if num == 2 else Verdict.INCONCLUSIVE)
    assert ("told from rounding" in " ".join(seen.reasons)) is (num < 2)


def test_steps_that_rounding_hides_do_not_count_toward_the_two():
    steps = np.array([0.25, 0.5, 1.0, 2.0])
    nats = np.repeat(steps[:, None] ** 2, 20, axis=1)
    ray = LinearRay(steps, nats, np.ones(20), np.zeros_like(nats))
    assert found(ray).verdict is Verdict.LOCAL
    # A hundred floors are between the costs of steps 0.5 and 1.
    assert found(ray, floor=0.5 / INFORMATIVE).verdict is Verdict.INCONCLUSIVE


def test_the_shortest_step_agrees_with_f_or_the_control_does_not_hold():
    ray = binary(EVEN, 1.0)
    assert found(ray).controls[0].holds
    wrong = dataclasses.replace(ray, quadratic=2 * ray.quadratic)
    assert not found(wrong).controls[0].holds


def test_the_finding_survives_json():
    seen = found(binary(EVEN, 1.0), top=binary(EVEN, 9.0), null=binary(EVEN, 0.0))
    text = json.dumps(seen.to_json(), allow_nan=False)
    again = Finding.from_json(json.loads(text))
    assert json.dumps(again.to_json(), allow_nan=False) == text
    assert seen.details["strength"] == 3.0


def test_logits_and_directions_that_depart_earlier_than_v_are_named():
    # v's logits leave J v at half the step; along `top` odds move four times as much.
    early = np.repeat(0.2 * STEPS[:, None], len(EVEN), axis=1)
    seen = found(
        dataclasses.replace(binary(EVEN, 1.0), logits=early), top=binary(EVEN, 8.0)
    )
    assert seen.verdict is Verdict.LOCAL
    said = " ".join(seen.reasons)
    assert "The logits themselves follow J v up to 0.49 times" in said
    assert "along top the KL departs" in said
    plain = found(binary(EVEN, 1.0), top=binary(EVEN, 0.5))
    assert "The logits" not in " ".join(plain.reasons)
    assert "departs at" not in " ".join(plain.reasons)
