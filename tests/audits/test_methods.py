"""Vectors of several methods are one where the output cannot tell, and only there."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from tests.models import D_MODEL, ids_and_mask, tiny

from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.methods import Extracted, methods
from steergauge.geometry.twin import shifted
from steergauge.jacobian import Shift, suffix_jacobian
from steergauge.readout import kl
from steergauge.vector import Site, SteeringVector

D, VOCAB, PROMPTS = 12, 60, 50
MEAN = np.full(D, 0.5)
"""Difference of the two classes' means."""

EFFECT = 0.02
"""Nats that v costs: little enough for 2 (1 - cos_F) to hold within a few percent."""


class Linear:
    """A model whose logits are W (h + u), and everything that follows exactly."""

    def __init__(self, *, seed: int = 0, blind: int = 0):
        rng = np.random.default_rng(seed)
        self.weights = rng.standard_normal((VOCAB, D))
        self.weights[:, D - blind :] = 0
        self.streams = 0.5 * rng.standard_normal((PROMPTS, D))

    def logits(self, step):
        raw = (self.streams + step) @ self.weights.T
        return raw - logsumexp(raw, axis=1, keepdims=True)

    def nats(self, own, other):
        """KL(p_own || p_other) of each prompt."""
        p, q = self.logits(own), self.logits(other)
        return np.maximum((np.exp(p) * (p - q)).sum(1), 0)

    def fisher(self):
        total = np.zeros((D, D))
        for p in np.exp(self.logits(np.zeros(D))):
            centred = self.weights - p @ self.weights
            total += (centred.T * p) @ centred / PROMPTS
        return total

    def extracted(self, vectors, **options) -> Extracted:
        """All of them at strengths that cost `EFFECT` in the quadratic model."""
        fisher = self.fisher()
        strengths = {
            name: math.sqrt(2 * EFFECT / max(u @ fisher @ u, 1e-12))
            for name, u in vectors.items()
        }
        first = next(iter(vectors))
        own = strengths[first] * vectors[first]
        return Extracted(
            vectors=vectors,
            fisher=fisher,
            nats={n: self.nats(own, strengths[n] * u) for n, u in vectors.items()},
            effect=self.nats(own, np.zeros(D)),
            strengths=strengths,
            **options,
        )


def classes(spread, *, num: int = 4000, seed: int = 0):
    """Vectors by method from two Gaussian classes of the same covariance."""
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(spread)
    high, low = (
        sign * MEAN / 2 + rng.standard_normal((num, D)) @ root.T for sign in (1, -1)
    )
    pairs = high - low
    within = (np.cov(high.T) + np.cov(low.T)) / 2
    top = np.linalg.eigh(pairs.T @ pairs)[1][:, -1]
    signs = rng.choice([-1.0, 1.0], num)
    return {
        "mean_difference": pairs.mean(0),
        "median_difference": np.median(pairs, axis=0),
        "principal_component": top * np.sign(top @ MEAN),
        "discriminant": np.linalg.solve(within, pairs.mean(0)),
        "sign_flip": (signs[:, None] * pairs).mean(0),
    }


def stretched() -> np.ndarray:
    """A covariance with axes from 0.1 to 3, turned away from the coordinates."""
    turn = np.linalg.qr(np.random.default_rng(4).standard_normal((D, D)))[0]
    return turn @ np.diag(np.geomspace(0.1, 3, D)) @ turn.T


def entry(found: Finding, table: str, row: str, column: str) -> float:
    names = found.details["names"]
    return found.details[table][names.index(row)][names.index(column)]


@pytest.mark.parametrize("seed", range(10))
def test_spherical_classes_give_one_vector_by_every_method(seed):
    vectors = classes(np.eye(D), seed=seed)
    found = methods(Linear().extracted(vectors))
    assert found.verdict is Verdict.ONE_CLASS
    assert found.details["classes"] == [[n for n in vectors if n != "sign_flip"]]
    assert entry(found, "cosine", "mean_difference", "discriminant") > 0.99
    assert found.estimate.high < 0.05
    (control,) = found.controls
    assert control.holds
    assert control.estimate.low > 0.5


def test_stretched_classes_part_the_discriminant_by_the_known_angle():
    spread = stretched()
    whitened = np.linalg.solve(spread, MEAN)
    known = MEAN @ whitened / np.linalg.norm(MEAN) / np.linalg.norm(whitened)
    assert known < 0.8
    found = methods(Linear().extracted(classes(spread)))
    # 4000 pairs know each cosine to about 1 / sqrt(4000) = 2 %.
    seen = entry(found, "cosine", "mean_difference", "discriminant")
    assert seen == pytest.approx(known, abs=0.04)
    assert found.verdict is Verdict.SEVERAL
    (own,) = [c for c in found.details["classes"] if "mean_difference" in c]
    assert "median_difference" in own
    assert "discriminant" not in own


def test_a_part_that_the_output_does_not_see_leaves_one_class():
    lm = Linear(blind=4)
    v = np.concatenate([MEAN[:8], np.zeros(4)])
    away = v + np.concatenate([np.zeros(8), np.full(4, 3.0)])
    found = methods(lm.extracted({"v": v, "away": away}))
    assert entry(found, "cosine", "v", "away") < 0.5
    assert entry(found, "cosine_fisher", "v", "away") == pytest.approx(1)
    assert found.details["relative"]["away"] == pytest.approx([0, 0, 0], abs=1e-12)
    assert found.verdict is Verdict.ONE_CLASS
    # The same part in a model that sees it is another vector.
    assert methods(Linear().extracted({"v": v, "away": away})).verdict is (
        Verdict.SEVERAL
    )


def test_a_constant_added_to_v_leaves_one_class_in_a_layernorm_model():
    lm = tiny("gpt2")
    drawn = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(2))
    v = SteeringVector(drawn - drawn.mean(), Site(1))
    vectors = {"v": v, "v + c 1": shifted(lm, v, size=3 * v.norm)}
    ids, mask = ids_and_mask(*[6] * 50)
    rows = [(row.tolist(), 6) for row in ids]
    metrics = [suffix_jacobian(lm, row, shift=Shift(Site(1))).fisher() for row in rows]

    def last(direction: torch.Tensor) -> torch.Tensor:
        def edit(h):
            return torch.cat([h[:, :-1], h[:, -1:] + direction.to(h)], dim=1)

        return lm.logits(ids, mask, edits={1: edit}, keep=1)[:, 0]

    def nats(direction: torch.Tensor) -> np.ndarray:
        return kl(last(v.direction), last(direction)).numpy()

    seen = Extracted(
        vectors={n: u.direction.double().numpy() for n, u in vectors.items()},
        fisher=torch.stack(metrics).mean(0).numpy(),
        nats={name: nats(u.direction) for name, u in vectors.items()},
        effect=nats(torch.zeros(D_MODEL)),
        floor=1e-9,
    )
    assert seen.effect.mean() > 0.01
    found = methods(seen)
    assert entry(found, "cosine", "v", "v + c 1") < 0.4
    assert entry(found, "cosine_fisher", "v", "v + c 1") > 0.999
    assert found.estimate.high < 1e-6
    assert found.verdict is Verdict.ONE_CLASS


@pytest.mark.parametrize("degrees", [5, 20, 60])
def test_the_ratio_of_nats_is_twice_one_minus_the_cosine_of_the_output(degrees):
    lm = Linear()
    root = np.linalg.cholesky(np.linalg.inv(lm.fisher()))
    # Orthonormal for the output: the angle is the one that was asked for.
    first, second = root[:, 0], root[:, 1]
    turned = math.cos(math.radians(degrees)) * first
    turned = turned + math.sin(math.radians(degrees)) * second
    found = methods(lm.extracted({"v": first, "u": turned}))
    cosine = math.cos(math.radians(degrees))
    assert entry(found, "cosine_fisher", "v", "u") == pytest.approx(cosine)
    # 0.02 nats are a step of 0.2, and third-order terms a few percent of second.
    expected = 2 * (1 - cosine)
    assert found.details["relative"]["u"][0] == pytest.approx(expected, rel=0.1)
    assert found.verdict is (Verdict.ONE_CLASS if degrees == 5 else Verdict.SEVERAL)


def stated(ratios, effect, cosine, **options) -> Extracted:
    """Vectors in a plane of the given cosines with v, and nats as they are stated."""
    vectors = {"v": np.array([1.0, 0.0])} | {
        name: np.array([c, math.sqrt(1 - c * c)]) for name, c in cosine.items()
    }
    return Extracted(
        vectors=vectors, fisher=np.eye(2), nats=ratios, effect=effect, **options
    )


NUM_STUDIES = 200


def test_at_the_threshold_either_claim_is_made_no_more_often_than_its_level():
    verdicts = []
    for seed in range(NUM_STUDIES):
        rng = np.random.default_rng(seed)
        effect = rng.gamma(4, 0.25, PROMPTS)
        nats = 0.05 * effect * rng.gamma(4, 0.25, PROMPTS)
        verdicts.append(methods(stated({"u": nats}, effect, {"u": 0.9})).verdict)
    assert verdicts.count(Verdict.INCONCLUSIVE) > NUM_STUDIES / 2
    # A level of 2.5 % each, seen with a standard error of 1.1 %.
    allowed = 0.025 + 3 * math.sqrt(0.025 * 0.975 / NUM_STUDIES)
    assert verdicts.count(Verdict.ONE_CLASS) / NUM_STUDIES <= allowed
    assert verdicts.count(Verdict.SEVERAL) / NUM_STUDIES <= allowed


ONES = np.ones(PROMPTS)


def test_measured_pairs_come_before_predicted_ones():
    # Predicted, u is as far from v as cos = 0.9 makes it, 0.2; measured, it is near.
    near = methods(stated({"u": 0.01 * ONES}, ONES, {"u": 0.9}))
    assert near.verdict is Verdict.ONE_CLASS
    assert "errs by up to 0.19" in near.reasons[1]
    assert near.details["prediction_error"] == pytest.approx(0.19)


def test_what_was_measured_apart_from_v_is_not_linked_to_it_by_a_prediction():
    # w is near u by prediction and far from v by measurement, which has the say.
    chain = {"u": 0.98, "w": 0.94}
    seen = stated({"u": 0.04 * ONES, "w": 0.12 * ONES}, ONES, chain)
    found = methods(seen)
    predicted = 2 * (1 - entry(found, "cosine_fisher", "u", "w"))
    assert predicted < found.details["threshold"]
    assert found.details["classes"] == [["v", "u"], ["w"]]
    assert found.verdict is Verdict.SEVERAL


def test_links_connect_what_is_apart_from_v():
    chain = {"u": 0.5, "w": 0.4, "x": 0.3}
    nats = {name: 2 * (1 - cosine) * ONES for name, cosine in chain.items()}
    found = methods(stated(nats, ONES, chain))
    # u and x are further from each other than the threshold, and w is near both.
    assert 2 * (1 - entry(found, "cosine_fisher", "u", "x")) > 0.04
    options = {"threshold": 0.02}
    linked = methods(stated(nats, ONES, chain, **options))
    assert linked.details["classes"] == [["v"], ["u", "w", "x"]]
    assert linked.details["num_classes"] == [2, 2, 2]
    apart = methods(stated(nats, ONES, {**chain, "w": -0.4}, **options))
    assert apart.details["classes"] == [["v"], ["u"], ["w"], ["x"]]


def test_predictions_are_as_uncertain_as_they_were_found_to_be_with_v():
    # By cosine 0.04 from v, where the threshold is 0.05; u was not measured with v.
    cosine = {"u": 0.98, "near": 0.995}
    right = stated({"near": 0.01 * ONES}, ONES, cosine)
    assert methods(right).verdict is Verdict.ONE_CLASS
    # A prediction that errs by 0.02 with v may err so with u.
    wrong = stated({"near": 0.03 * ONES}, ONES, cosine)
    found = methods(wrong)
    assert found.details["prediction_error"] == pytest.approx(0.02)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.details["num_classes"][1:] == [1, 2]
    assert "1 at the lower ends" in found.reasons[1]
    # Nothing that was measured says how predictions err, and so they say nothing.
    unchecked = methods(stated({}, ONES, cosine))
    assert unchecked.details["prediction_error"] is None
    assert unchecked.verdict is Verdict.INCONCLUSIVE
    # What a null was predicted to cost is no measure of it.
    null = stated(
        {"near": 0.01 * ONES, "sign_flip": 9 * ONES}, ONES, {**cosine, "sign_flip": 0}
    )
    assert methods(null).details["prediction_error"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("ratio", "verdict"), [(0.01, "ONE CLASS"), (0.5, "SEVERAL")])
def test_classes_are_stated_from_fifty_prompts_on(ratio, verdict):
    for num in (49, 50):
        effect = np.ones(num)
        found = methods(stated({"u": ratio * effect}, effect, {"u": 1 - ratio / 2}))
        if num == 50:
            assert found.verdict.startswith(verdict)
        else:
            assert found.verdict is Verdict.INCONCLUSIVE
            assert "stated from 50 on" in found.reasons[1]


@pytest.mark.parametrize(("floor", "enough"), [(0.9, True), (1.1, False)])
def test_a_budget_that_rounding_reaches_is_uninformative(floor, enough):
    # A twentieth of v's effect is 1 nat. (v itself is above ten floors in both.)
    effect = 20 * ONES
    assert effect.min() > 10 * floor
    found = methods(stated({"u": 0.2 * ONES}, effect, {"u": 0.995}, floor=floor))
    assert found.verdict is (Verdict.ONE_CLASS if enough else Verdict.UNINFORMATIVE)
    assert ("rounding alone" in found.reasons[0]) is not enough


def test_a_null_in_the_class_of_v_takes_the_claim_away():
    seen = stated(
        {"u": 0.01 * ONES, "sign_flip": 0.02 * ONES},
        ONES,
        {"u": 0.99, "sign_flip": 0.9},
    )
    found = methods(seen)
    assert found.verdict is Verdict.UNINFORMATIVE
    assert "made without the trait" in found.reasons[0]
    assert not found.controls[0].holds
    assert found.details["classes"] == [["v", "u"]]


def test_a_vector_without_an_effect_is_uninformative():
    floor = 1e-8
    seen = stated({"u": 1e-9 * ONES}, floor * ONES, {"u": 1.0}, floor=floor)
    found = methods(seen)
    assert found.verdict is Verdict.UNINFORMATIVE
    assert "no effect" in found.reasons[0]


def test_one_method_alone_is_compared_with_nothing():
    found = methods(stated({}, ONES, {}))
    assert found.verdict is Verdict.UNINFORMATIVE
    assert found.estimate is None
    assert "one method only" in found.reasons[0]


def test_a_vector_that_the_output_does_not_see_is_in_a_class_of_its_own():
    seen = Extracted(
        vectors={"v": np.array([1.0, 0.0]), "unseen": np.array([0.0, 1.0])},
        fisher=np.diag([1.0, 0.0]),
        nats={},
        effect=ONES,
    )
    found = methods(seen)
    assert found.verdict is Verdict.SEVERAL
    assert entry(found, "cosine_fisher", "v", "unseen") is None
    json.dumps(found.to_json(), allow_nan=False)


def test_mean_difference_is_v_wherever_it_stands():
    vectors = {"discriminant": np.ones(2), "mean_difference": np.array([1.0, 0.0])}
    seen = Extracted(
        vectors=vectors,
        fisher=np.eye(2),
        nats={"discriminant": 0.5 * ONES, "mean_difference": 0 * ONES},
        effect=ONES,
    )
    found = methods(seen)
    assert found.details["reference"] == "mean_difference"
    assert list(found.details["relative"]) == ["discriminant"]


def test_the_finding_survives_json():
    found = methods(Linear().extracted(classes(stretched())))
    text = json.dumps(found.to_json(), allow_nan=False)
    again = Finding.from_json(json.loads(text))
    assert json.dumps(again.to_json(), allow_nan=False) == text
    assert found.details["strengths"]["mean_difference"] > 0
