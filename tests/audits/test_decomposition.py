"""T9 finds the parts that v was given, and sees nothing in random directions."""

import dataclasses
import json
import math

import numpy as np
import pytest

from steergauge.audits.decomposition import Decomposed, decomposition
from steergauge.audits.finding import Finding, Verdict
from steergauge.errors import InputError

WIDTH, TEXTS = 24, 40
ROUNDING = 1e-9
"""Sums of a few hundred float64 products of size 1."""


def rotation(width: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0]


def observed(v, fishers, *, strength=1.0, tau=0.01, floor=1e-6, **more) -> Decomposed:
    """What a run hands over for v if the texts have these Fisher matrices."""
    unit = v / np.linalg.norm(v)
    values, directions = np.linalg.eigh(fishers.mean(0))
    return Decomposed(
        direction=v,
        values=np.maximum(values[::-1], 0.0),
        directions=directions[:, ::-1].copy(),
        floor=floor,
        strength=strength,
        gain=np.einsum("i,nij,j->n", unit, fishers, unit),
        trace=np.trace(fishers, axis1=1, axis2=2) / len(v),
        tau=tau,
        **more,
    )


def texts(values, *, seed=0, num=TEXTS) -> np.ndarray:
    """Fisher matrices around diag(values): each weighs every direction differently."""
    rng = np.random.default_rng([7, seed])
    factors = rng.gamma(4.0, 0.25, (num, len(values)))
    return np.stack([np.diag(row * values) for row in factors])


FLAT = np.ones(WIDTH)
STEEP = 0.7 ** np.arange(WIDTH)


def judged(v, values, *, seed=0) -> Finding:
    return decomposition(observed(v, texts(values, seed=seed)), seed=seed)


def test_a_v_made_of_a_visible_and_a_null_part_has_its_null_share_found():
    turn = rotation(WIDTH, 3)
    values = np.where(np.arange(WIDTH) < 16, 2.0, 0.0)
    matrix = turn @ np.diag(values) @ turn.T
    rng = np.random.default_rng(0)
    a, n = turn[:, :16] @ rng.standard_normal(16), turn[:, 16:] @ rng.standard_normal(8)
    share = float(n @ n / (a @ a + n @ n))
    assert 0.1 < share < 0.9
    found = decomposition(observed(a + n, np.stack([matrix] * 8), strength=3.0))
    hard, soft = found.details["hard"], found.details["soft"]
    for null in (hard, soft):
        assert null["dim"] == 8
        assert null["share"] == pytest.approx(share, abs=ROUNDING)
        assert null["expected"][0] == pytest.approx(8 / 24)
    # What is left without n is a, at its own length.
    record = found.details["canonical"]
    assert record["norm"] == pytest.approx(math.sqrt(1 - share), abs=ROUNDING)
    assert record["cosine"] == pytest.approx(math.sqrt(1 - share), abs=ROUNDING)
    assert record["predicted"] == pytest.approx(0, abs=ROUNDING)
    assert found.details["canonical_soft"]["norm"] < record["norm"]
    assert found.details["canonical_soft"]["predicted"] == pytest.approx(0.01)
    # rho = (1 - share) x 2 over the mean eigenvalue, 2 x 16 / 24, exactly.
    rho = (1 - share) * 24 / 16
    assert found.details["rho"] == pytest.approx([rho] * 3, abs=ROUNDING)


def test_soft_dimensions_are_those_that_the_budget_buys():
    values = np.array([8.0, 2.0, 0.5, 0.0])
    seen = observed(np.ones(4), np.stack([np.diag(values)] * 3), strength=0.1)
    # A step of 0.1 costs .04, .01, .0025 and 0 nats.
    for tau, dim in ((0.05, 4), (0.02, 3), (0.005, 2), (0.001, 1)):
        soft = decomposition(dataclasses.replace(seen, tau=tau)).details["soft"]
        assert (soft["dim"], soft["tau"]) == (dim, tau)
        assert soft["share"] == pytest.approx(dim / 4)
    nothing = decomposition(dataclasses.replace(seen, tau=0.0))
    assert nothing.details["canonical_soft"] is None
    assert nothing.details["soft"]["dim"] == 1


def test_a_random_direction_has_its_share_within_its_quantiles():
    values, num = np.where(np.arange(WIDTH) < 18, 1.0, 0.0), 400
    fishers, rng = np.stack([np.diag(values)] * 4), np.random.default_rng(1)
    covered, shares = 0, []
    seen = observed(np.ones(WIDTH), fishers)
    low, high = decomposition(seen).details["hard"]["expected"][1:]
    for _ in range(num):
        u = rng.standard_normal(WIDTH)
        shares.append(float((u[18:] @ u[18:]) / (u @ u)))
        covered += low <= shares[-1] <= high
    assert 0 < low < 6 / 24 < high < 1
    assert np.mean(shares) == pytest.approx(6 / 24, abs=0.02)
    assert covered / num == pytest.approx(0.95, abs=3 * math.sqrt(0.05 * 0.95 / num))
    full = observed(np.ones(WIDTH), np.stack([np.eye(WIDTH)] * 4))
    assert decomposition(full).details["hard"]["expected"] == [0, 0, 0]


def test_the_interval_of_rho_covers_1_where_every_direction_counts_alike():
    num, covered = 150, 0
    for seed in range(num):
        rng = np.random.default_rng([2, seed])
        # Fisher matrices of rank 3 in random directions: on average a multiple of I.
        factors = rng.standard_normal((TEXTS, 3, 8))
        fishers = np.einsum("nki,nkj->nij", factors, factors)
        rho = decomposition(observed(rng.standard_normal(8), fishers)).estimate
        assert rho.high - rho.low > 0.1
        covered += rho.low <= 1 <= rho.high
    # The gain has a heavy right tail and 40 texts: a percentile bootstrap is up to
    # 3 % short there.
    slack = 0.03 + 3 * math.sqrt(0.05 * 0.95 / num)
    assert covered / num == pytest.approx(0.95, abs=slack)


@pytest.mark.parametrize("values", [FLAT, STEEP])
def test_a_random_direction_is_seldom_called_visible_or_hidden(values):
    num, verdicts, beside = 100, [], 0
    for seed in range(num):
        u = np.random.default_rng([3, seed]).standard_normal(WIDTH)
        found = judged(u, values, seed=seed)
        verdicts.append(found.verdict)
        beside += not found.estimate.low <= 1 <= found.estimate.high
    claims = num - verdicts.count(Verdict.INCONCLUSIVE)
    assert claims / num <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / num)
    # Under a steep spectrum hardly a direction is at 1: that alone is no claim of v.
    assert (beside / num > 0.5) == (values is STEEP)


@pytest.mark.parametrize("seed", range(10))
def test_planted_directions_are_visible_and_hidden(seed):
    rng = np.random.default_rng([4, seed])
    noise = 0.1 * rng.standard_normal(WIDTH) / math.sqrt(WIDTH)
    axis = np.eye(WIDTH)
    seen = judged(axis[0] + noise, STEEP, seed=seed)
    unseen = judged(axis[-1] + noise, STEEP, seed=seed)
    assert (seen.verdict, unseen.verdict) == (Verdict.VISIBLE, Verdict.HIDDEN)
    assert seen.estimate.low > seen.details["rho_random"][1] > 1
    assert unseen.estimate.high < unseen.details["rho_random"][0] < 1
    assert f"{seen.estimate.value:.2f}" in seen.reasons[0]


def test_rho_is_what_a_step_costs_over_what_random_steps_cost():
    turn = rotation(WIDTH, 5)
    matrix = turn @ np.diag(STEEP) @ turn.T
    v, rng = turn[:, 1] + turn[:, 20], np.random.default_rng(6)
    units = rng.standard_normal((4000, WIDTH))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    costs = 0.5 * np.einsum("ni,ij,nj->n", units, matrix, units)
    found = decomposition(observed(v, np.stack([matrix] * 4)))
    own = 0.5 * v @ matrix @ v / (v @ v)
    # A mean over 4000 directions whose costs vary by three fifths.
    assert found.estimate.value == pytest.approx(own / costs.mean(), rel=0.03)
    mean = 0.5 * STEEP.mean()
    # Quantiles of 2000 draws beside those of 4000.
    assert found.details["rho_random"] == pytest.approx(
        np.quantile(costs / mean, [0.025, 0.975]), rel=0.1
    )


def test_nats_of_the_representatives_are_reported_beside_vs_own():
    rng = np.random.default_rng(0)
    nats = {
        "unsteered": 1 + 0.1 * rng.standard_normal(60),
        "canonical": np.full(60, 1e-7),
        "canonical_soft": 0.04 + 0.001 * rng.standard_normal(60),
    }
    seen = observed(np.ones(WIDTH), texts(STEEP), nats=nats, tau=0.05)
    found = decomposition(seen)
    effect, soft = found.details["effect"], found.details["canonical_soft"]
    assert effect[0] == pytest.approx(nats["unsteered"].mean())
    assert effect[1] < effect[0] < effect[2]
    assert soft["relative"] == pytest.approx(soft["nats"][0] / effect[0])
    (control,) = found.controls
    assert control.holds
    # The budget is a share of v's own cost on these texts, and not tau of others.
    for cost, holds in ((0.04, True), (0.2, False)):
        other = nats | {"canonical": np.full(60, cost)}
        for tau in (1e-3, 10.0):
            apart = dataclasses.replace(seen, nats=other, tau=tau)
            (control,) = decomposition(apart).controls
            assert control.holds is holds
            assert f"at most 5% of v's own {effect[0]:.3g} nats" in control.expected
    alone = {"canonical": nats["canonical"]}
    assert decomposition(dataclasses.replace(seen, nats=alone)).controls == ()
    # Of a v that is all null nothing is left.
    null = observed(np.eye(WIDTH)[-1], texts(np.where(FLAT.cumsum() < WIDTH, 1.0, 0.0)))
    null = dataclasses.replace(null, nats=nats)
    assert decomposition(null).details["hard"]["share"] == pytest.approx(1)
    assert decomposition(null).controls == ()
    without = decomposition(dataclasses.replace(seen, nats={}))
    assert without.details["canonical"]["nats"] is None
    assert without.details["effect"] is None
    assert without.controls == ()


def pairs_of(truth, spread, num, *, seed) -> np.ndarray:
    rng = np.random.default_rng([8, seed])
    return truth + rng.standard_normal((num, len(truth))) * spread


def of_pairs(differences, values=FLAT, **more) -> Decomposed:
    fishers = np.stack([np.diag(values)] * 4)
    return observed(differences.mean(0), fishers, differences=differences, **more)


@pytest.mark.parametrize(("num", "noise"), [(10, 2.0), (40, 4.0)])
def test_the_radius_holds_the_direction_that_the_pairs_come_from(num, noise):
    truth, repeats = np.eye(WIDTH)[0], 80
    spread = noise / math.sqrt(WIDTH)
    angles, radii = [], []
    for seed in range(repeats):
        differences = pairs_of(truth, spread, num, seed=seed)
        found = decomposition(of_pairs(differences)).details["pairs"]
        mean = differences.mean(0)
        cosine = float(mean @ truth / np.linalg.norm(mean))
        angles.append(math.degrees(math.acos(cosine)))
        radii.append(found["radius_deg"])
    told = " ".join(decomposition(of_pairs(differences)).reasons)
    assert f"within {radii[-1]:.0f} degrees of the vector that ever more pairs" in told
    inside = np.mean(np.array(angles) <= np.array(radii))
    assert inside >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / repeats)
    # Nor does it hold everything: it is at most as wide as Student's factor makes it.
    assert np.median(radii) < 1.35 * np.quantile(angles, 0.95)


def test_halves_agree_as_far_as_noise_lets_them():
    truth = np.eye(WIDTH)[0]
    differences = pairs_of(truth, 1.0, 40, seed=1)
    median, low, high = decomposition(of_pairs(differences)).details["pairs"][
        "split_half"
    ]
    # Noise of variance d / 20 in each half of 20, beside a mean of length 1.
    assert median == pytest.approx(1 / (1 + WIDTH / 20), abs=0.15)
    assert low < median < high
    same = np.stack([truth] * 8)
    assert decomposition(of_pairs(same)).details["pairs"]["split_half"] == (
        pytest.approx([1, 1, 1])
    )


def test_noise_that_nothing_sees_widens_the_plain_radius_only():
    values = np.where(np.arange(WIDTH) < 12, 1.0, 0.0)
    hidden = np.where(values > 0, 0.02, 1.0)
    differences = pairs_of(np.eye(WIDTH)[0], hidden, 20, seed=2)
    found = decomposition(of_pairs(differences, values)).details["pairs"]
    assert found["noise_expected"] == 0.5
    assert found["noise_in_null"] > 0.99
    assert found["radius_deg"] > 30
    assert found["radius_visible_deg"] < 5
    alike = decomposition(
        of_pairs(pairs_of(np.eye(WIDTH)[0], 1.0, 200, seed=3), values)
    ).details["pairs"]
    # 200 x 24 squares: their share is known to about 2 %.
    assert alike["noise_in_null"] == pytest.approx(0.5, abs=0.03)


def test_too_few_pairs_say_nothing_and_other_pairs_are_refused():
    differences = pairs_of(np.eye(WIDTH)[0], 0.1, 4, seed=1)
    assert decomposition(of_pairs(differences)).details["pairs"]["num"] == 4
    assert decomposition(of_pairs(differences[:3])).details["pairs"] is None
    assert judged(FLAT, FLAT).details["pairs"] is None
    seen = of_pairs(differences)
    with pytest.raises(InputError, match=r"cosine of -1\.000"):
        decomposition(dataclasses.replace(seen, differences=-differences))
    with pytest.raises(InputError, match="is 0"):
        decomposition(dataclasses.replace(seen, direction=np.zeros(WIDTH)))


def test_cumulative_shares_end_at_1_and_random_ones_rise_evenly():
    width = 200
    values = 0.95 ** np.arange(width)
    v = np.zeros(width)
    v[[0, 99]] = 1.0
    seen = observed(v, np.stack([np.diag(values)] * 3))
    curve = decomposition(seen).details["cumulative"]
    dims, shares = np.array(curve["dims"]), np.array(curve["v"])
    assert len(dims) <= 64
    assert (dims[0], dims[-1]) == (1, width)
    assert shares == pytest.approx(np.where(dims >= 100, 1.0, 0.5))
    assert curve["random"] == pytest.approx(dims / width)


def test_an_output_that_sees_nothing_makes_it_uninformative():
    found = judged(FLAT, np.zeros(WIDTH))
    assert found.verdict is Verdict.UNINFORMATIVE
    assert found.estimate is None
    assert "sees nothing" in found.reasons[0]
    assert found.details["hard"]["share"] == pytest.approx(1)
    assert found.details["canonical"]["cosine"] is None


@pytest.mark.parametrize("values", [STEEP, np.zeros(WIDTH)])
def test_the_finding_survives_json(values):
    differences = pairs_of(np.ones(WIDTH), 0.1, 8, seed=1)
    seen = of_pairs(differences, values, nats={"unsteered": np.ones(5)})
    found = decomposition(seen)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert Finding.from_json(told) == dataclasses.replace(
        found, details=told["details"]
    )


def test_one_text_that_decides_and_few_texts_are_no_ground_for_a_verdict():
    rng = np.random.default_rng(0)
    d, num = 8, 40
    values, v = np.ones(d), np.eye(d)[0]

    def made(num, gain, trace) -> Decomposed:
        return Decomposed(
            direction=v,
            values=values,
            directions=np.eye(d),
            floor=1e-7,
            strength=1.0,
            gain=gain,
            trace=trace,
            tau=0.01,
        )

    trace = 1 + 0.01 * rng.standard_normal(num)
    plain = decomposition(made(num, 4 * trace, trace))
    assert plain.verdict is Verdict.VISIBLE
    assert plain.details["largest_text"]["share"] < 0.05
    few = decomposition(made(20, 4 * trace[:20], trace[:20]))
    assert few.verdict is Verdict.INCONCLUSIVE
    assert "from 32 texts on" in few.reasons[-1]
    # All that is seen of v is seen by one text, which holds most of the trace.
    gain, heavy = 0.5 * trace, trace.copy()
    gain[3], heavy[3] = 4000.0, 800.0
    one = decomposition(made(num, gain, heavy))
    assert one.details["largest_text"]["share"] > 0.9
    assert one.details["largest_text"]["rho_without"] < 1
    assert one.verdict is Verdict.INCONCLUSIVE
    assert any("One text of 40 holds 95%" in reason for reason in one.reasons)
