"""Steps along planted directions of softmax models get the class that was planted."""

import dataclasses
import json
import math

import numpy as np
import pytest

from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.nulls import RELATIVE_BUDGET, Ray, nulls

STEPS = np.array([0.01, 0.03, 0.1, 0.3, 1.0, 10.0, 100.0])
D_MODEL, D_VOCAB, PROMPTS = 16, 12, 50
SEEN, WEAK, SQUARED, UNREAD = range(10), 12, 13, 14
CLASSES = {
    "seen": Verdict.VISIBLE,
    "weak": Verdict.EFFECTIVE_NULL,
    "squared": Verdict.FIRST_ORDER_NULL,
    "unread": Verdict.EXACT_NULL,
}
SEEDS = 120


class Model:
    """Logits that read ten coordinates of a turned stream, one of them as its square.

    Along coordinate 12 the weight is a hundredth, coordinate 13 is 0 in all streams
    and enters squared, coordinate 14 is not read. In float32 a turn is not exact, so
    that what is not read still costs something: that is what floors are for.
    """

    def __init__(self, seed: int = 0, *, dtype: type = np.float32) -> None:
        rng = np.random.default_rng(seed)
        size = (D_MODEL, D_MODEL)
        self.turn = np.linalg.qr(rng.standard_normal(size))[0]
        weights = 0.5 * rng.standard_normal((D_MODEL, D_VOCAB))
        weights[WEAK] *= 1e-2
        self.weights = weights.astype(dtype)
        inner = rng.standard_normal((PROMPTS, D_MODEL))
        inner[:, SQUARED] = 0
        self.states = inner @ self.turn.T
        self.scale = float(np.median(np.linalg.norm(self.states, axis=1)))
        self.dtype = dtype

    def along(self, coordinate: int) -> np.ndarray:
        return self.turn[:, coordinate]

    def log_probabilities(self, step: np.ndarray, *, exact: bool = False) -> np.ndarray:
        dtype = np.float64 if exact else self.dtype
        stream = (self.states + step).astype(dtype)
        read = stream @ self.turn.astype(dtype)
        read[:, SQUARED] **= 2
        read[:, [10, 11, UNREAD, 15]] = 0
        logits = (read @ self.weights.astype(dtype)).astype(np.float64)
        # The largest logit goes first, as squares of steps of 100 ||h|| are huge.
        logits -= logits.max(1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    def nats(self, step: np.ndarray) -> np.ndarray:
        before = self.log_probabilities(np.zeros(D_MODEL))
        return divergence(before, self.log_probabilities(step))

    def floor(self, length: float) -> float:
        """Nats between the same step in two precisions, at most over some steps."""
        steps = [length * self.along(i) for i in range(10, 16) if i != SQUARED]
        return max(
            float(
                divergence(
                    self.log_probabilities(step, exact=True),
                    self.log_probabilities(step),
                ).max()
            )
            for step in steps
        )

    def ray(self, direction: np.ndarray, strength: float) -> Ray:
        lengths = self.scale * STEPS
        return Ray(
            steps=STEPS,
            nats=np.stack([self.nats(t * direction) for t in lengths]),
            floors=np.array([self.floor(t) for t in lengths]),
            at_strength=self.nats(strength * direction),
        )

    def rays(self) -> tuple[dict[str, Ray], np.ndarray]:
        """Candidates and references, and what v costs."""
        strength = 0.2 * self.scale
        mixed = np.random.default_rng(9).standard_normal(D_MODEL)
        directions = {
            "seen": self.along(0),
            "weak": self.along(WEAK),
            "squared": self.along(SQUARED),
            "unread": self.along(UNREAD),
            "top": self.along(3),
            "random": mixed / np.linalg.norm(mixed),
            "v": self.along(1),
        }
        rays = {name: self.ray(u, strength) for name, u in directions.items()}
        return rays, rays["v"].at_strength


def divergence(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (np.exp(before) * (before - after)).sum(1)


def power(
    exponent: float,
    *,
    size: float = 1e-2,
    cost: float = 1.0,
    floor: float = 1e-9,
    prompts: int = PROMPTS,
    rng: np.random.Generator | None = None,
) -> Ray:
    """Costs size t^exponent, at most 2 nats, on prompts that are all the same.

    With a generator, the costs at v's strength are as skewed as those of texts are.
    """
    nats = np.minimum(size * STEPS**exponent, 2.0)
    drawn = np.ones(prompts) if rng is None else rng.gamma(2, 1 / 2, prompts)
    return Ray(
        steps=STEPS,
        nats=np.tile(nats[:, None], (1, prompts)),
        floors=np.full(len(STEPS), floor),
        at_strength=cost * drawn,
    )


def judged(*rays: Ray, effect: float = 1.0, **named: Ray) -> Finding:
    every = {f"smallest {i}": ray for i, ray in enumerate(rays, 1)} | named
    return nulls(every, effect=np.full(PROMPTS, effect))


def kind(found: Finding, name: str = "smallest 1") -> str:
    return found.details["directions"][name]["class"]


@pytest.fixture(scope="module")
def planted():
    """The rays of five models, and what v costs in each."""
    return [Model(seed).rays() for seed in range(5)]


@pytest.mark.parametrize("name", CLASSES)
def test_a_planted_direction_gets_its_class(planted, name):
    for rays, effect in planted:
        found = nulls(rays, effect=effect)
        assert kind(found, name) == CLASSES[name]


def test_what_is_seen_costs_the_square_of_the_step_and_a_square_its_fourth_power(
    planted,
):
    for rays, effect in planted:
        directions = nulls(rays, effect=effect).details["directions"]
        # From steps of a hundredth and a few hundredths of ||h||, where the next order
        # changes K by some percent over a factor of 3 in length.
        assert directions["seen"]["slope"] == pytest.approx(2, abs=0.1)
        assert directions["weak"]["slope"] == pytest.approx(2, abs=0.1)
        assert directions["squared"]["slope"] == pytest.approx(4, abs=0.2)
        assert directions["unread"]["slope"] is None


def test_a_null_of_all_lengths_is_not_only_a_null_of_float64(planted):
    for rays, _ in planted:
        unread = rays["unread"]
        # Not vacuous: in float32 it costs something, and the others cost far more.
        assert unread.nats.max() > 0
        assert rays["squared"].nats.max() > 1
        assert rays["seen"].nats.max() > 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["seen"], Verdict.VISIBLE),
        (["seen", "weak"], Verdict.EFFECTIVE_NULL),
        (["weak", "squared", "seen"], Verdict.FIRST_ORDER_NULL),
        (["unread", "weak", "squared"], Verdict.EXACT_NULL),
    ],
)
def test_the_verdict_is_the_strongest_class_of_a_candidate(planted, names, expected):
    rays, effect = planted[0]
    references = {name: rays[name] for name in ("top", "random", "v")}
    given = {name: rays[name] for name in names} | references
    found = nulls(given, effect=effect)
    assert found.verdict is expected
    best = next(name for name in names if CLASSES[name] is expected)
    assert found.reasons[0].startswith(f"{best}: ")
    assert found.estimate.value == pytest.approx(rays[best].at_strength.mean())
    assert [control.holds for control in found.controls] == [True, True]


def test_references_are_no_candidates_and_no_other_name_is_a_reference(planted):
    rays, effect = planted[0]
    # The strongest null of all, under the name of a reference.
    given = {"seen": rays["seen"], "v": rays["unread"]}
    assert nulls(given, effect=effect).verdict is not Verdict.EXACT_NULL
    # A file of a user's may be called what it likes.
    found = nulls({"seen": rays["seen"], "random_walk": rays["unread"]}, effect=effect)
    assert found.verdict is Verdict.EXACT_NULL
    assert found.controls == ()


@pytest.mark.parametrize("name", ["unread", "squared"])
def test_a_random_direction_that_is_null_takes_the_claim_away(planted, name):
    rays, effect = planted[0]
    given = {"unread": rays["unread"], "v": rays["v"]}
    held = nulls({**given, "random": rays["random"]}, effect=effect)
    assert held.verdict is Verdict.EXACT_NULL
    found = nulls({**given, "random": rays[name]}, effect=effect)
    assert found.verdict is Verdict.UNINFORMATIVE
    assert "random direction" in found.reasons[0]
    assert [control.holds for control in found.controls] == [False]
    # It may cost little, as v may be far above what random directions do.
    cheap = nulls({**given, "random": rays["weak"]}, effect=effect)
    assert cheap.verdict is Verdict.EXACT_NULL


def test_a_random_direction_of_a_model_is_never_an_exact_or_first_order_null():
    for seed in range(20):
        model, rng = Model(seed), np.random.default_rng(seed)
        drawn = rng.standard_normal((5, D_MODEL))
        rays = [model.ray(u / np.linalg.norm(u), 0.2 * model.scale) for u in drawn]
        found = nulls(
            {str(i): ray for i, ray in enumerate(rays)},
            effect=rays[0].at_strength,
        )
        assert found.verdict is Verdict.VISIBLE


def test_a_direction_that_one_prompt_of_fifty_sees_is_no_null():
    # As a null of one's own prompt is, on other prompts.
    ray = power(2.0, cost=1.0)
    lonely = np.where(np.arange(PROMPTS) == 0, ray.nats, 0.0)
    found = judged(dataclasses.replace(ray, nats=lonely))
    assert kind(found) == Verdict.VISIBLE
    assert kind(judged(dataclasses.replace(ray, nats=0 * lonely))) == Verdict.EXACT_NULL


@pytest.mark.parametrize(("square", "expected"), [(0.0, True), (1.0, False)])
def test_a_square_that_can_be_seen_beside_a_fourth_power_is_no_first_order_null(
    square, expected
):
    ray = power(4.0, size=1.0)
    mixed = np.minimum(ray.nats + square * STEPS[:, None] ** 2, 2.0)
    found = judged(dataclasses.replace(ray, nats=mixed))
    assert (kind(found) == Verdict.FIRST_ORDER_NULL) is expected


@pytest.mark.parametrize("known", [True, False])
def test_an_effective_null_at_the_budget_is_claimed_at_most_5_times_in_100(known):
    # Ten candidates that cost just what is allowed, so that each claim is a false one.
    raised, plain = 0, 0
    for seed in range(SEEDS):
        rng = np.random.default_rng([3, seed])
        rays = {str(i): power(2.0, cost=RELATIVE_BUDGET, rng=rng) for i in range(10)}
        effect = np.ones(PROMPTS) if known else rng.gamma(2, 1 / 2, PROMPTS)
        found = nulls(rays, effect=effect, seed=seed)
        raised += found.verdict is Verdict.EFFECTIVE_NULL
        shown = found.details["directions"].values()
        plain += min(one["at_strength"][2] for one in shown) <= RELATIVE_BUDGET
    assert raised / SEEDS <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / SEEDS)
    # Not vacuous: plain intervals of ten candidates would claim it 1 time in 4.
    assert plain / SEEDS > 0.25


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (0.2 * RELATIVE_BUDGET, Verdict.EFFECTIVE_NULL),
        (5 * RELATIVE_BUDGET, Verdict.VISIBLE),
    ],
)
def test_costs_far_from_the_budget_are_found_on_either_side(cost, expected):
    for seed in range(30):
        rng = np.random.default_rng([4, seed])
        rays = {str(i): power(2.0, cost=cost, rng=rng) for i in range(10)}
        found = nulls(rays, effect=rng.gamma(2, 1 / 2, PROMPTS), seed=seed)
        assert found.verdict is expected
        words = "surely within" if expected is Verdict.EFFECTIVE_NULL else "more than"
        assert words in found.reasons[0]


def test_the_budget_is_the_one_that_was_set():
    ray, effect = power(2.0, cost=0.1), np.ones(PROMPTS)
    for budget, expected in (
        (0.05, Verdict.VISIBLE),
        (0.2, Verdict.EFFECTIVE_NULL),
    ):
        assert nulls({"mine": ray}, effect=effect, budget=budget).verdict is expected


def test_steps_longer_than_the_stream_show_no_first_order_null():
    # A fourth power that rounding hides up to ||h||, and two steps beyond.
    far = power(4.0, size=1e-10, cost=1e-3)
    assert far.slope == pytest.approx(4)
    found = judged(far)
    assert kind(found) == Verdict.EFFECTIVE_NULL
    assert "beyond 1 ||h||" in found.reasons[0]
    near = power(4.0, size=1e-2, cost=1e-3)
    assert kind(judged(near)) == Verdict.FIRST_ORDER_NULL


def test_one_informative_step_gives_no_slope_and_says_so():
    # 1e-8 at .3 ||h||, and from ||h|| on 1e-6 and saturation.
    ray = power(4.0, size=1e-6, floor=1e-8, cost=1e-3)
    capped = np.where(STEPS[:, None] > 1, 2.0, ray.nats)
    one = dataclasses.replace(ray, nats=capped)
    assert one.informative.sum() == 1
    found = judged(one)
    assert kind(found) == Verdict.EFFECTIVE_NULL
    assert found.details["directions"]["smallest 1"]["slope"] is None
    assert "1 step between rounding and saturation" in found.reasons[0]
    assert "no steps between" in judged(power(0.0, size=1.0)).reasons[0]


def test_a_step_at_ten_times_the_floor_is_still_rounding():
    for size, expected in ((9.9e-9, Verdict.EXACT_NULL), (1.1e-8, Verdict.VISIBLE)):
        assert kind(judged(power(0.0, size=size, floor=1e-9))) == expected


def test_a_v_at_the_floor_measures_no_cost_and_an_exact_null_needs_none():
    hidden_v = power(0.0, size=1e-12, cost=1e-12)
    found = judged(power(2.0, cost=1e-3), effect=1e-12, v=hidden_v)
    assert found.verdict is Verdict.UNINFORMATIVE
    assert "v's own effect" in found.reasons[0]
    both = judged(power(2.0), power(0.0, size=1e-12), effect=1e-12, v=hidden_v)
    assert both.verdict is Verdict.EXACT_NULL
    # Nor does a v whose effect could be 0.
    nothing = nulls({"mine": power(2.0)}, effect=np.zeros(PROMPTS))
    assert nothing.verdict is Verdict.UNINFORMATIVE


def test_nothing_is_said_where_not_even_the_best_seen_direction_is_seen():
    exact = power(0.0, size=1e-12, cost=0.0)
    assert judged(exact, top=power(2.0)).verdict is Verdict.EXACT_NULL
    found = judged(exact, top=exact)
    assert found.verdict is Verdict.UNINFORMATIVE
    assert [control.holds for control in found.controls] == [False]
    assert "Not even" in found.reasons[0]


def test_without_a_candidate_there_is_no_claim():
    found = nulls({"top": power(2.0)}, effect=np.ones(PROMPTS))
    assert found.verdict is Verdict.UNINFORMATIVE
    assert found.estimate is None


def test_the_finding_is_plain_data_and_holds_the_numbers(planted):
    rays, effect = planted[0]
    found = nulls(rays, effect=effect)
    text = json.dumps(found.to_json(), allow_nan=False)
    assert Finding.from_json(json.loads(text)) == found
    assert (found.code, found.num_prompts) == ("T7", PROMPTS)
    seen = found.details["directions"]["weak"]
    assert seen["nats"] == rays["weak"].nats.max(1).tolist()
    assert seen["mean"] == rays["weak"].nats.mean(1).tolist()
    assert seen["at_strength"][0] == pytest.approx(rays["weak"].at_strength.mean())
    value, low, high = found.details["effect"]
    assert value == pytest.approx(effect.mean())
    assert low < value < high
