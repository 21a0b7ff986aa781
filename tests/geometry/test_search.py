"""The most different vector is found where it is planted, and keeps to its budget."""

import json
import math

import numpy as np
import pytest
import torch
from tests import ground_truth
from tests.planted import prompts
from torch import Tensor

from steergauge.fisher import fisher
from steergauge.generation import Arm, Decoding, generate
from steergauge.geometry.search import Found, Texts, searched
from steergauge.intervention import Add
from steergauge.jacobian import Shift
from steergauge.linalg import Spectrum, spectrum
from steergauge.prompts import Text, encode
from steergauge.scoring import Continuation
from steergauge.split import LanguageModel
from steergauge.vector import Site, SteeringVector

LENGTH = 3
NUM = 48


def continuations(lm: LanguageModel, v: Add, which: slice) -> list[Continuation]:
    """Texts of the arm v on some of a hundred prompts."""
    chosen = prompts(3 * NUM)[which]
    drawn = generate(
        lm, chosen, {"v": Arm(v)}, samples=1, decoding=Decoding(LENGTH, 1.0, seed=0)
    )
    return [
        Continuation(encode(lm, Text(one.prompt))[0], one.token_ids) for one in drawn
    ]


def arm(direction: Tensor) -> Add:
    return Add(SteeringVector(direction.float(), Site(1)))


def fisher_of(lm: LanguageModel, v: Add) -> Spectrum:
    rows = [
        ([*text.prompt_ids, *text.response_ids], len(text.prompt_ids))
        for text in continuations(lm, v, slice(0, NUM))
    ]
    return spectrum(fisher(lm, rows, shift=Shift(v.site, at=v.displacement)).matrix)


def checked(lm: LanguageModel, v: Add) -> Texts:
    return Texts(lm, continuations(lm, v, slice(NUM, 2 * NUM)), v)


def fresh(lm: LanguageModel, v: Add) -> Texts:
    return Texts(lm, continuations(lm, v, slice(2 * NUM, None)), v)


def looked_for(lm: LanguageModel, v: Add, budget: float) -> Found:
    texts = checked(lm, v)
    nats = budget * float(texts.nats(None).mean())
    return searched(texts, fisher_of(lm, v), budget=budget, nats=nats)


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.2])
def test_the_null_half_of_a_vector_is_reflected_at_any_budget(budget):
    planted = ground_truth.linear()
    seen = planted.visible[:, 3]
    v = arm(seen + planted.null[:, 0])  # f_N = 1/2
    found = looked_for(planted.lm, v, budget)
    assert found.kept is not None
    # 1 - 2 f_N = 0 is free; the budget turns the visible half as well.
    assert found.kept.cosine <= 0.01
    assert found.kept.norm == pytest.approx(1, abs=1e-6)
    # As a share of v_R the visible half moves by the root of the budget at most.
    left = float(found.kept.direction @ seen)
    assert left > 1 - 1.1 * math.sqrt(budget)
    texts = fresh(planted.lm, v)
    effect, cost = texts.nats(None).mean(), texts.nats(found.kept.direction).mean()
    assert effect > 0.1
    assert cost <= budget * effect
    assert texts.nats(-v.displacement.double()).mean() > effect


def test_a_larger_budget_allows_for_a_larger_angle():
    planted = ground_truth.linear()
    v = arm(planted.visible[:, 3] + 0.5 * planted.null[:, 0])
    texts, seen = checked(planted.lm, v), fisher_of(planted.lm, v)
    effect = float(texts.nats(None).mean())
    cosines = [
        searched(texts, seen, budget=budget, nats=budget * effect).to_json()["cosine"]
        for budget in (0.01, 0.05, 0.2)
    ]
    assert cosines[0] > cosines[1] > cosines[2]


@pytest.mark.parametrize("budget", [0.05, 0.2])
def test_in_a_model_that_sees_all_directions_alike_a_budget_is_an_angle(budget):
    # Logits so small that all tokens are about as likely: F is s^2 I / vocabulary.
    lm = ground_truth.linear((0.3,) * ground_truth.WIDTH).lm
    v = arm(ground_truth.linear().visible[:, 0] * 2)
    found = looked_for(lm, v, budget)
    assert found.kept is not None
    # Relative KL = 2 (1 - cos); the intervals of both sides take their part of it.
    assert 1 - budget / 2 <= found.kept.cosine + 0.05 * budget
    assert found.kept.cosine <= 1 - budget / 3
    texts = fresh(lm, v)
    relative = texts.nats(found.kept.direction).mean() / texts.nats(None).mean()
    assert relative == pytest.approx(2 * (1 - found.kept.cosine), rel=0.1)
    assert relative <= budget


def test_the_record_is_plain_data_and_says_what_was_kept():
    planted = ground_truth.linear()
    v = arm(planted.visible[:, 3] + planted.null[:, 0])
    found = looked_for(planted.lm, v, 0.05)
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert found.kept is not None
    assert record == {
        "budget": 0.05,
        "cosine_planned": found.planned.cosine,
        "cosine": found.kept.cosine,
        "norm": found.kept.norm,
        "predicted": found.kept.nats,
        "shrink": found.scale,
        "validation": found.nats,
    }
    texts = checked(planted.lm, v)
    # The direction goes through the model in float32.
    again = float(texts.nats(found.kept.direction).mean())
    assert record["validation"] == pytest.approx(again, rel=1e-9)
    assert record["predicted"] == pytest.approx(again, rel=0.5)


def test_where_nothing_keeps_to_the_budget_v_itself_is_what_is_left():
    lm = ground_truth.linear().lm
    v = arm(ground_truth.linear().visible[:, 3])
    # A matrix that sees nothing, of a model that does: it proposes -v.
    blind = spectrum(1e-12 * torch.eye(lm.d_model).double())
    found = searched(checked(lm, v), blind, budget=0.05, nats=0.01)
    assert found.planned.cosine == pytest.approx(-1)
    assert found.kept is None
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (record["cosine"], record["norm"], record["shrink"]) == (1, 1, 0)
    assert record["validation"] == record["predicted"] == 0


def test_a_vector_that_nothing_sees_has_no_cost_on_any_text():
    planted = ground_truth.linear()
    v = arm(planted.null[:, 0])
    texts = checked(planted.lm, v)
    assert np.abs(texts.nats(None)).max() < 1e-12
    assert texts.nats(planted.visible[:, 0]).mean() > 0.1
