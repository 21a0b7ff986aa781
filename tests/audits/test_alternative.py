"""T10 on softmax models whose null space is known, and on tables of nats."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from steergauge import linalg
from steergauge.audits.alternative import (
    FAR,
    LARGEST,
    Alternatives,
    Candidate,
    alternative,
)
from steergauge.audits.comparison import MINIMUM_PROMPTS
from steergauge.audits.finding import Finding, Verdict
from steergauge.errors import InputError
from steergauge.geometry.most_different import most_different, same_cosine

PROMPTS, DRAWS, FLOOR = 80, 5, 1e-12


class Softmax:
    """p = softmax(scale W (h_x + step)) with states h_x; W is tokens x d."""

    def __init__(self, weights: np.ndarray, *, seed: int = 0) -> None:
        self.weights = weights
        self.width = weights.shape[1]
        self.rng = np.random.default_rng([9, seed])

    def states(self, num: int) -> np.ndarray:
        return 0.1 * self.rng.standard_normal((num, self.width))

    def log_p(self, states: np.ndarray, step: np.ndarray) -> np.ndarray:
        logits = (states + step) @ self.weights.T
        top = logits.max(1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))

    def nats(self, states, v, other) -> np.ndarray:
        """K(v || other) in every state, exactly."""
        p, q = self.log_p(states, v), self.log_p(states, other)
        return (np.exp(p) * (p - q)).sum(1)

    def fisher(self, states, v) -> np.ndarray:
        p = np.exp(self.log_p(states, v))
        mean = p @ self.weights
        second = np.einsum("xt,ti,tj->ij", p, self.weights, self.weights) / len(p)
        return second - mean.T @ mean / len(p)


def searched(model: Softmax, v: np.ndarray, *budgets: float, **more) -> Alternatives:
    """Candidates made with some states, backed off on others, and tried on a third."""
    fit, validation, test = model.states(64), model.states(64), model.states(PROMPTS)
    matrix = torch.tensor(model.fisher(fit, v))
    step, zero = torch.tensor(v), np.zeros_like(v)
    spectrum = linalg.spectrum(matrix)
    effect = model.nats(test, v, zero)
    candidates = []
    for budget in budgets:
        limit = budget * float(model.nats(validation, v, zero).mean())
        # A little is left for the intervals.
        shrink = 1.0
        planned = found = most_different(step, spectrum, nats=0.8 * limit, shrinkage=0)
        while model.nats(validation, v, found.direction.numpy()).mean() > 0.8 * limit:
            shrink *= 0.98
            nats = shrink * 0.8 * limit
            found = most_different(step, spectrum, nats=nats, shrinkage=0)
        other = found.direction.numpy()
        controls = [
            same_cosine(step, torch.tensor(other), seed=s).numpy() for s in range(DRAWS)
        ]
        candidates.append(
            Candidate(
                budget=budget,
                cosine_planned=planned.cosine,
                cosine=float(other @ v / np.linalg.norm(other) / np.linalg.norm(v)),
                shrink=shrink,
                norm=float(np.linalg.norm(other) / np.linalg.norm(v)),
                predicted=found.nats,
                validation=float(model.nats(validation, v, other).mean()),
                nats=model.nats(test, v, other),
                control=np.stack([model.nats(test, v, one) for one in controls]),
            )
        )
    across = [rng_across(v, s) for s in range(DRAWS)]
    more["added"] = np.stack([model.nats(test, v, v + one) for one in across])
    rho = float(v @ matrix.numpy() @ v / (v @ v) / (np.trace(matrix.numpy()) / len(v)))
    return Alternatives(candidates, effect, FLOOR, rho, Verdict.PASS, **more)


def rng_across(v: np.ndarray, seed: int) -> np.ndarray:
    """A random vector across v of its length."""
    drawn = np.random.default_rng([11, seed]).standard_normal(len(v))
    drawn -= (drawn @ v) / (v @ v) * v
    return drawn * np.linalg.norm(v) / np.linalg.norm(drawn)


def half_null(*, seed: int = 0, width: int = 16) -> tuple[Softmax, np.ndarray]:
    """A model that sees half of its dimensions, and a v that lies half in each."""
    rng = np.random.default_rng([10, seed])
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
    seen, null = turn[:, : width // 2], turn[:, width // 2 :]
    weights = 0.3 * rng.standard_normal((300, width // 2)) @ seen.T
    parts = [space @ rng.standard_normal(width // 2) for space in (seen, null)]
    v = sum(math.sqrt(0.5) * part / np.linalg.norm(part) for part in parts)
    return Softmax(weights, seed=seed), v


def test_the_softmax_model_costs_what_its_fisher_matrix_says():
    model, v = half_null()
    states, step = model.states(50), 1e-3 * np.random.default_rng(0).standard_normal(16)
    seen = model.nats(states, v, v + step).mean()
    # Third order, a thousandth of the second.
    assert seen == pytest.approx(0.5 * step @ model.fisher(states, v) @ step, rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_half_of_v_in_the_null_space_is_a_vector_across_v_that_does_the_same(seed):
    model, v = half_null(seed=seed)
    exact = searched(model, v, 1e-12).candidates[0]
    # The null part is reflected: cos = 1 - 2 x 0.5, and the budget adds a millionth.
    assert exact.cosine_planned == pytest.approx(0, abs=1e-5)
    found = alternative(searched(model, v, 0.01, 0.05, 0.2))
    assert found.verdict is Verdict.STRUCTURED
    assert found.details["best"]["cosine"] < 0
    assert found.estimate.high < 0.05
    assert (
        found.details["candidates"][1]["control"][1] > 0.5 * found.details["effect"][0]
    )
    assert [control.name for control in found.controls] == ["v", "same_cosine"]
    assert all(control.holds for control in found.controls)
    # v costs what a random direction costs, so v + r costs v's whole effect.
    assert found.details["added"][0] > 0.5 * found.details["effect"][0]
    angles = [one["angle_deg"] for one in found.details["candidates"]]
    assert angles == sorted(angles)
    assert "certain ones do nothing" in found.reasons[1]


@pytest.mark.parametrize("seed", range(5))
def test_where_all_directions_count_alike_v_is_identified_within_13_degrees(seed):
    width, v = 12, np.eye(12)[0]
    # Tokens on all axes, both ways, and so weak that all stay nearly as likely.
    model = Softmax(0.05 * np.concatenate([np.eye(width), -np.eye(width)]), seed=seed)
    seen = searched(model, v, 0.05)
    assert seen.rho == pytest.approx(1, rel=0.01)
    (one,) = seen.candidates
    # cos .975 at the whole budget, and .98 at the 80 % that were asked for.
    assert one.cosine == pytest.approx(1 - 0.8 * 0.05 / 2, abs=1e-3)
    # Random vectors cost the same: 2 (1 - cos).
    assert one.control.mean() == pytest.approx(one.nats.mean(), rel=0.03)
    found = alternative(seen)
    assert found.verdict is Verdict.IDENTIFIABLE
    assert "identifiable within 11 degrees" in found.reasons[1]
    assert found.details["within_deg"] == found.details["best"]["angle_deg"]
    assert "did not go further" in found.reasons[1]
    # So near v a random vector may pass, and is no control.
    assert [control.name for control in found.controls] == ["v"]
    assert found.estimate.value == pytest.approx(0.04, rel=0.05)
    assert found.details["control_predicted"] == pytest.approx(0.04, rel=0.03)


def test_where_v_is_all_that_is_seen_any_direction_would_do():
    width = 400
    rng = np.random.default_rng(0)
    model = Softmax(0.3 * np.outer(rng.standard_normal(50), np.eye(width)[0]))
    v = np.eye(width)[0]
    seen = searched(model, v, 0.05)
    assert seen.rho == pytest.approx(width, rel=1e-6)
    found = alternative(seen)
    assert found.verdict is Verdict.GENERIC
    assert found.details["generic_limit"] == pytest.approx(1 / width)
    # v' is v shortened and filled up with what nothing sees, and so is the control.
    assert seen.candidates[0].cosine < 0.9
    assert seen.candidates[0].norm == pytest.approx(1, abs=0.1)
    assert "any direction would do" in found.reasons[1]


def made(
    costs=(0.02,),
    controls=(0.5,),
    cosines=(0.3,),
    budgets=(0.05,),
    *,
    num=PROMPTS,
    effect=1.0,
    draws=DRAWS,
    spread=0.1,
    seed=0,
    floor=FLOOR,
    rho=1.0,
    addition=0.3,
    shrinks=(0.9, 0.9, 0.9),
    **more,
) -> Alternatives:
    """Tables of nats around planted shares of an effect, each prompt with its own."""
    rng = np.random.default_rng([12, seed])

    def drawn(*shape):
        return effect * (1 + spread * rng.standard_normal(shape))

    return Alternatives(
        candidates=[
            Candidate(
                budget=budget,
                cosine_planned=cosine - 0.1,
                cosine=cosine,
                shrink=shrink,
                norm=1.0,
                predicted=0.01,
                validation=0.02,
                nats=cost * drawn(num),
                control=control * drawn(draws, num),
            )
            for cost, control, cosine, budget, shrink in zip(
                costs, controls, cosines, budgets, shrinks[: len(costs)], strict=True
            )
        ],
        effect=drawn(num),
        floor=floor,
        rho=rho,
        added=None if addition is None else addition * drawn(draws, num),
        **{"manipulation": Verdict.PASS} | more,
    )


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ({}, Verdict.STRUCTURED),
        ({"cosines": (0.51,)}, Verdict.IDENTIFIABLE),
        ({"cosines": (0.5,)}, Verdict.STRUCTURED),
        # What random additions of v's length do decides, and decides first.
        ({"addition": 0.02}, Verdict.GENERIC),
        ({"cosines": (0.9,), "addition": 0.02}, Verdict.GENERIC),
        ({"costs": (0.2,), "addition": 0.02}, Verdict.GENERIC),
        ({"addition": 0.05}, Verdict.INCONCLUSIVE),
        ({"cosines": (0.9,)}, Verdict.IDENTIFIABLE),
        # Random vectors at its cosine do not, while additions are known.
        ({"controls": (0.02,)}, Verdict.STRUCTURED),
        ({"controls": (0.05,)}, Verdict.STRUCTURED),
        # Without additions they have to.
        ({"addition": None}, Verdict.STRUCTURED),
        ({"addition": None, "controls": (0.02,)}, Verdict.GENERIC),
        ({"addition": None, "controls": (0.05,)}, Verdict.INCONCLUSIVE),
        (
            {"addition": None, "cosines": (0.9,), "controls": (0.02,)},
            Verdict.IDENTIFIABLE,
        ),
        # Not verified: at the budget nothing is said, beyond it the angle is excluded.
        ({"costs": (0.05,)}, Verdict.INCONCLUSIVE),
        ({"costs": (0.2,)}, Verdict.IDENTIFIABLE),
    ],
)
def test_planted_costs_get_their_verdict(planted, expected):
    found = [alternative(made(seed=s, **planted), seed=s).verdict for s in range(10)]
    assert found == [expected] * 10


def test_no_far_vector_is_verified_at_the_budget_more_often_than_its_level():
    num = 100
    found = [
        alternative(made(costs=(0.05,), seed=s), seed=s).verdict for s in range(num)
    ]
    claims = found.count(Verdict.STRUCTURED) + found.count(Verdict.GENERIC)
    # Two 97.5 % bounds must agree: at most 2.5 %; three binomial deviations.
    assert claims / num <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / num)
    # The same table at two thirds of the cost is verified: the test can tell.
    assert alternative(made(costs=(0.033,))).verdict is Verdict.STRUCTURED


def test_the_verdict_is_of_the_widest_verified_angle_within_the_main_budget():
    many = {
        "costs": (0.005, 0.02, 0.1),
        "controls": (0.5, 0.5, 0.5),
        "cosines": (0.8, 0.4, -0.5),
        "budgets": (0.01, 0.05, 0.2),
    }
    found = alternative(made(**many))
    own, main = (
        [one[key] for one in found.details["candidates"]]
        for key in ("verified", "verified_main")
    )
    assert (own, main) == ([True] * 3, [True, True, False])
    assert found.details["best"]["cosine"] == 0.4
    assert found.details["best"]["angle_deg"] == pytest.approx(66.42, abs=0.01)
    assert found.estimate.value == pytest.approx(0.02, rel=0.05)
    strict = alternative(made(**many, budget=0.01))
    assert strict.verdict is Verdict.IDENTIFIABLE
    assert "within 37 degrees" in strict.reasons[1]
    assert "From 66 degrees on, all candidates are surely beyond" in strict.reasons[1]
    loose = alternative(made(**many, budget=0.2))
    assert loose.details["best"]["cosine"] == -0.5
    failed = alternative(made(**many | {"costs": (0.005, 0.2, 0.1)}))
    assert failed.details["best"]["cosine"] == 0.8
    # The estimate stays that of the main budget, whether it passed or not.
    assert failed.estimate.value == pytest.approx(0.2, rel=0.05)


def test_a_candidate_of_another_budget_counts_if_it_keeps_to_the_main_one():
    pair = {"controls": (0.5, 0.5), "cosines": (0.8, 0.4)}
    wider = alternative(made(costs=(0.02, 0.03), budgets=(0.05, 0.2), **pair))
    assert wider.verdict is Verdict.STRUCTURED
    assert wider.details["best"]["cosine"] == 0.4
    assert "it was made for 20%" in wider.reasons[0]
    # One that exceeds its own budget, and still keeps to the run's.
    strict = alternative(made(costs=(0.02, 0.03), budgets=(0.01, 0.05), **pair))
    (first, second) = strict.details["candidates"]
    assert (first["verified"], first["verified_main"]) == (False, True)
    assert (second["verified"], second["verified_main"]) == (True, True)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [(0.05, Verdict.INCONCLUSIVE), (0.1, Verdict.IDENTIFIABLE)],
)
def test_no_angle_is_named_while_a_wider_one_is_undecided(cost, expected):
    planted = {
        "controls": (0.5, 0.5),
        "cosines": (0.9, 0.7),
        "budgets": (0.05, 0.2),
    }
    found = alternative(made(costs=(0.02, cost), **planted))
    assert found.details["best"]["cosine"] == 0.9
    assert found.verdict is expected
    # The undecided one is named, and decided ones are the ground of an angle.
    assert ("at 46 degrees from v" in found.reasons[1]) == (cost == 0.05)
    assert ("within 26 degrees" in found.reasons[1]) == (cost == 0.1)
    refuted = alternative(made(costs=(0.2, cost), **planted))
    assert refuted.details["best"] is None
    assert refuted.verdict is expected


def test_a_search_that_ended_at_its_limit_says_so():
    found = alternative(made(shrinks=(LARGEST,)))
    assert LARGEST == 8
    assert "ended at its limit: at 8 times the budget" in found.reasons[-1]
    other = alternative(made(shrinks=(0.99 * LARGEST,)))
    assert len(other.reasons) == len(found.reasons) - 1
    assert other.verdict is found.verdict


def test_what_is_refuted_names_the_nearest_refuted_angle_and_no_best():
    found = alternative(
        made(
            costs=(0.5, 0.6),
            controls=(0.5, 0.5),
            cosines=(0.9, 0.2),
            budgets=(0.01, 0.05),
        )
    )
    assert found.verdict is Verdict.IDENTIFIABLE
    assert found.details["best"] is None
    assert "within 26 degrees" in found.reasons[1]
    assert found.details["within_deg"] == pytest.approx(25.84, abs=0.01)
    assert "no proof" in found.reasons[1]


def test_one_prompt_fewer_than_50_is_stated_as_nothing():
    few, enough = (
        alternative(made(num=num)) for num in (MINIMUM_PROMPTS - 1, MINIMUM_PROMPTS)
    )
    assert (few.verdict, enough.verdict) == (Verdict.INCONCLUSIVE, Verdict.STRUCTURED)
    assert "49 prompts" in few.reasons[-1]


def test_a_single_control_does_not_tell_structure_from_chance():
    assert alternative(made(draws=2, addition=None)).verdict is Verdict.STRUCTURED
    found = alternative(made(draws=1, addition=None))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "whether any would is open" in found.reasons[1]
    two, one = (
        alternative(made(draws=draws, addition=0.02)).verdict for draws in (2, 1)
    )
    assert two is Verdict.GENERIC
    assert one is not Verdict.GENERIC


def test_preconditions_dominate():
    assert alternative(made(floor=1e-3)).verdict is Verdict.STRUCTURED
    for planted, word in (
        ({"manipulation": Verdict.FAIL}, "did not pass its manipulation check"),
        ({"manipulation": Verdict.UNINFORMATIVE}, "manipulation check"),
        ({"floor": 0.2}, "nothing to compare"),
        ({"floor": 0.06}, "The budget, 5%"),
    ):
        found = alternative(made(**planted))
        assert found.verdict is Verdict.UNINFORMATIVE
        assert word in found.reasons[0]
    for other in (None, Verdict.INCONCLUSIVE):
        assert alternative(made(manipulation=other)).verdict is Verdict.STRUCTURED


def test_a_radius_below_the_step_is_told_and_changes_no_verdict():
    short, long = (alternative(made(radius=radius)) for radius in (0.4, 2.0))
    assert short.verdict is long.verdict is Verdict.STRUCTURED
    assert "0.40 of ||alpha v||" in short.reasons[-1]
    assert len(long.reasons) == len(short.reasons) - 1


def test_the_reasons_and_the_details_hold_the_numbers():
    found = alternative(made())
    (one,), effect = found.details["candidates"], found.details["effect"]
    for number in (*one["nats"], *effect):
        assert f"{number:.3g}" in found.reasons[0]
    assert one["angle_deg"] == pytest.approx(math.degrees(math.acos(0.3)))
    assert one["nats"][1] < one["nats"][0] < one["nats"][2]
    assert one["control"][1] < one["control"][0] < one["control"][2]
    # (1 - cos)^2 + (1 - cos^2) / rho at rho 1 is 2 (1 - cos).
    assert found.details["control_predicted"] == pytest.approx(1.4)
    assert found.details["budget"] == 0.05
    assert math.degrees(math.acos(FAR)) == pytest.approx(60)


def test_a_search_that_found_nothing_is_inconclusive():
    nothing = dataclasses.replace(made(), candidates=[])
    found = alternative(nothing)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.estimate is None
    assert "no proof" in found.reasons[0]
    above = alternative(made(budgets=(0.2,)))
    assert above.verdict is Verdict.STRUCTURED
    # Nothing was made for the main budget, of which the estimate would be.
    assert above.estimate is None


def test_a_candidate_without_controls_is_refused():
    with pytest.raises(InputError, match="without random vectors"):
        alternative(made(draws=0))


@pytest.mark.parametrize("planted", [{}, {"rho": 0.0}, {"effect": 0.0}])
def test_the_finding_survives_json(planted):
    found = alternative(made(**planted))
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert Finding.from_json(told) == found
