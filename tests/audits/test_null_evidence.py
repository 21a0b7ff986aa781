"""What a claim of T7 needs beside costs: finite numbers, prompts, and F_bar's word."""

import dataclasses
import json

import numpy as np
import pytest
from tests.audits.test_nulls import PROMPTS, STEPS, judged, kind, power

from steergauge.audits.finding import Verdict
from steergauge.audits.nulls import nulls


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["nats", "floors", "at_strength", "quadratic"])
def test_what_is_no_finite_number_is_never_a_null(field, wrong):
    ray = dataclasses.replace(
        power(0.0, size=1e-12, cost=1e-12), quadratic=np.zeros(len(STEPS))
    )
    assert kind(judged(ray)) == Verdict.EXACT_NULL
    spoiled = getattr(ray, field).copy()
    spoiled[-1] = wrong
    bad = dataclasses.replace(ray, **{field: spoiled})
    found = judged(bad)
    assert found.verdict is Verdict.UNINFORMATIVE
    assert found.estimate is None
    assert "no finite number" in found.reasons[0]
    json.dumps(found.to_json(), allow_nan=False)
    # Nor can a control be read off it; another candidate is judged all the same.
    for name in ("top", "random", "v"):
        assert judged(ray, **{name: bad}).verdict is Verdict.UNINFORMATIVE
    assert judged(ray, bad).verdict is Verdict.EXACT_NULL


def test_an_effect_that_is_no_finite_number_measures_nothing():
    found = judged(power(2.0, cost=1e-3), effect=np.nan)
    assert found.verdict is Verdict.UNINFORMATIVE
    assert found.details["effect"] is None
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("num", [49, 50])
def test_an_effective_null_is_stated_from_fifty_prompts_on(num):
    effect = np.ones(num)
    found = nulls({"mine": power(2.0, cost=1e-3, prompts=num)}, effect=effect)
    enough = num >= 50
    assert found.verdict is (Verdict.EFFECTIVE_NULL if enough else Verdict.INCONCLUSIVE)
    assert ("stated from 50 on" in found.reasons[0]) is not enough
    # What was seen of every step needs no interval.
    for ray, expected in (
        (power(0.0, size=1e-12, prompts=num), Verdict.EXACT_NULL),
        (power(4.0, prompts=num), Verdict.FIRST_ORDER_NULL),
    ):
        assert nulls({"mine": ray}, effect=effect).verdict is expected


@pytest.mark.parametrize("share", [0.0, 0.04, 0.06, 0.3])
def test_a_fourth_power_is_no_first_order_null_where_f_bar_predicts_some_of_it(share):
    # At the shortest step the square is this share of the cost.
    square = share / (1 - share) * STEPS[0] ** 2 * STEPS**2
    nats = np.minimum(square + STEPS**4, 2.0)
    ray = dataclasses.replace(
        power(4.0, floor=1e-12, cost=1e-3),
        nats=np.tile(nats[:, None], (1, PROMPTS)),
        quadratic=square,
    )
    # Not vacuous: the slope alone does not tell them apart.
    assert ray.slope > 3.5
    unknown = judged(dataclasses.replace(ray, quadratic=None))
    assert unknown.verdict is Verdict.FIRST_ORDER_NULL
    found = judged(ray)
    null = share <= 0.05
    assert found.verdict is (
        Verdict.FIRST_ORDER_NULL if null else Verdict.EFFECTIVE_NULL
    )
    assert ("derivative is not 0" in found.reasons[0]) is not null
    assert f"predicts up to {share:.0%}" in found.reasons[0]
