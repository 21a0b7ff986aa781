"""Steered states off the natural manifold, on it, and where that cannot be told."""

import dataclasses
import functools
import json
import math

import numpy as np
import pytest

from steergauge.audits.density import LABELS, UNIFORM_LEVEL, Family, density
from steergauge.audits.finding import Finding, Verdict
from steergauge.errors import InputError
from steergauge.reachability.density import Natural, drift, fitted

WIDTH, WIDE, PROMPTS = 16, 4, 60
SEEDS = 200


def sizes() -> np.ndarray:
    """Natural variation: a few wide directions, the others a twentieth of them."""
    return np.where(np.arange(WIDTH) < WIDE, 1.0, 0.05)


def texts(rng: np.random.Generator, num: int, *, states: int = 1) -> np.ndarray:
    """States (num, states, d): each text has a topic, and each place a token."""
    topic, token = (
        rng.standard_normal((num, 1, WIDTH)),
        rng.gamma(1.0, size=(num, 1, 1)),
    )
    own = rng.standard_normal((num, states, WIDTH)) * np.sqrt(token)
    return (0.7 * topic + 0.7 * own) * sizes() + 2.0


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class World:
    """Natural states of one seed, and the density of others."""

    density: Natural
    calibration: Family
    natural: np.ndarray
    prompts: np.ndarray
    rng: np.random.Generator

    def scored(self, name: str, states: np.ndarray) -> Family:
        norm, angle = drift(states, self.natural)
        far, near = self.density.mahalanobis, self.density.neighbour_distance
        return Family(name, far(states), near(states), norm, angle)

    def random(self, length: float) -> np.ndarray:
        drawn = unit(self.rng.standard_normal(self.natural.shape))
        return self.natural + length * drawn

    def swap(self, length: float) -> np.ndarray:
        first, second = (texts(self.rng, len(self.natural))[:, 0] for _ in range(2))
        return self.natural + length * unit(first - second)

    def finding(self, v: np.ndarray, length: float, **others: np.ndarray) -> Finding:
        states = {
            "natural": self.natural,
            "v": v,
            "random": self.random(length),
            "swap": self.swap(length),
        } | others
        return density(
            {name: self.scored(name, rows) for name, rows in states.items()},
            self.calibration,
            prompts=self.prompts,
            num_reference=len(self.density.reference),
            components=self.density.num_components,
        )


@functools.cache
def fit() -> Natural:
    """One for all worlds: given it, all other natural states are exchangeable."""
    return fitted(texts(np.random.default_rng(0), 100, states=4).reshape(-1, WIDTH))


def world(seed: int, *, each: int = 1, num: int = PROMPTS, calibration=250) -> World:
    """`each` texts of every prompt have a topic in common."""
    rng, natural = np.random.default_rng([7, seed]), fit()
    others = texts(rng, calibration)[:, 0]
    far, near = natural.mahalanobis(others), natural.neighbour_distance(others)
    norm = natural.norm_ratio(others)
    held_out = Family("calibration", far, near, norm, np.zeros(calibration))
    tested = texts(rng, num, states=each).reshape(-1, WIDTH)
    return World(natural, held_out, tested, np.repeat(np.arange(num), each), rng)


def direction(place: int) -> np.ndarray:
    return np.eye(WIDTH)[place]


def share(found: Finding, name: str) -> float:
    rows = {row["name"]: row for row in found.details["families"]}
    return rows[name]["share"]["value"]


def seen(**scores: np.ndarray | float) -> dict[str, Family]:
    """Families with these scores, the same twice."""
    num = max(np.size(values) for values in scores.values())
    columns = {n: np.broadcast_to(x, num).astype(float) for n, x in scores.items()}
    return {
        name: Family(name, own, own.copy(), np.ones(num), np.zeros(num))
        for name, own in columns.items()
    }


def judged(families, *, prompts=None, calibration=500, **options) -> Finding:
    """A calibration with scores 0, ..., n - 1, all of them different."""
    (others,) = seen(calibration=np.arange(calibration, dtype=float)).values()
    num = len(families["v"].norm)
    return density(
        families,
        others,
        prompts=np.arange(num) if prompts is None else prompts,
        num_reference=1000,
        components=8,
        **options,
    )


NATURAL, OFF = np.linspace(20.0, 480.0, 40), 1000.0


def test_a_step_where_natural_states_do_not_differ_is_off_the_manifold():
    for seed in range(10):
        given = world(seed)
        found = given.finding(given.natural + 0.8 * direction(-1), 0.8)
        assert found.verdict is Verdict.OFF_MANIFOLD
        assert found.estimate.value > 0.95
        # Not vacuous: token swaps of the same length stay where they were.
        assert share(found, "swap") < 0.3
        assert share(found, "natural") < 0.1
        assert [control.holds for control in found.controls] == [True, True]


def test_a_step_outside_the_components_is_off_the_manifold():
    # 40 states keep 4 components, and v has no part in them.
    for seed in range(10):
        given = world(seed)
        few = fitted(texts(given.rng, 40)[:, 0])
        basis = few.whitening.components
        assert len(basis) == 4
        others = texts(given.rng, 250)[:, 0]
        far, near = few.mahalanobis(others), few.neighbour_distance(others)
        held_out = Family("calibration", far, near, far, far)
        step = direction(-1) - direction(-1) @ basis.T @ basis
        narrow = dataclasses.replace(given, density=few, calibration=held_out)
        found = narrow.finding(given.natural + 0.8 * unit(step), 0.8)
        assert found.verdict is Verdict.OFF_MANIFOLD


def test_a_step_along_the_widest_natural_direction_is_on_the_manifold():
    verdicts = []
    for seed in range(10):
        given = world(seed)
        top = given.density.whitening.components[0]
        found = given.finding(given.natural + 0.6 * top, 0.6)
        # Not vacuous: random steps of the same length leave it.
        assert share(found, "random") > 0.5
        assert found.verdict in (Verdict.ON_MANIFOLD, Verdict.INCONCLUSIVE)
        verdicts.append(found.verdict)
    # The share of 60 has to be 1 or less for its upper end to be 10 %.
    assert verdicts.count(Verdict.ON_MANIFOLD) >= 6


@pytest.mark.parametrize(("each", "seeds"), [(1, 50), (3, SEEDS)])
def test_natural_states_of_other_texts_are_never_off(each, seeds):
    verdicts, shares = [], []
    for seed in range(seeds):
        given = world(seed, each=each, num=20)
        other = texts(given.rng, 20, states=each).reshape(-1, WIDTH)
        found = given.finding(other, 0.4)
        verdicts.append(found.verdict)
        shares.append(found.estimate.value)
    assert Verdict.OFF_MANIFOLD not in verdicts
    # Each state is off with a probability of .01 at most; three standard errors.
    error = np.std(shares) / math.sqrt(seeds)
    assert np.mean(shares) <= 0.01 + 3 * error
    # Not vacuous: some are, though never so many that it is said.
    assert 0 < max(shares) < 0.5
    # Refused is at most one in 1000; two of 200 happen once in 50 studies.
    assert verdicts.count(Verdict.UNINFORMATIVE) <= 2


def test_steps_like_swaps_are_off_no_more_often_than_the_interval_allows():
    raised = 0
    for seed in range(SEEDS):
        given = world(seed, num=20)
        found = given.finding(given.swap(12.0), 12.0)
        # Not vacuous: steps of this length leave the natural states.
        assert share(found, "v") > 0.8
        raised += found.verdict is Verdict.OFF_MANIFOLD
        assert found.verdict in (Verdict.OFF_MANIFOLD, Verdict.INCONCLUSIVE)
        if found.verdict is Verdict.INCONCLUSIVE:
            assert "token swap of the same length does" in found.reasons[0]
    # One-sided 2.5 %, and three standard deviations of that.
    assert raised <= 0.025 * SEEDS + 3 * math.sqrt(0.025 * 0.975 * SEEDS)


def test_a_step_of_no_length_says_nothing_of_the_manifold():
    for seed in range(20):
        given = world(seed, num=40)
        found = given.finding(given.natural, 0.0)
        assert found.verdict in (Verdict.INCONCLUSIVE, Verdict.UNINFORMATIVE)


def test_an_instrument_that_sees_no_random_step_says_nothing_of_v():
    found = judged(seen(natural=NATURAL, v=NATURAL, random=NATURAL, swap=NATURAL))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "the instrument is blind to steps of this length" in found.reasons[0]
    assert [control.holds for control in found.controls] == [True, False]
    # Not vacuous: the same states of v are on the manifold if it does.
    sharp = judged(seen(natural=NATURAL, v=NATURAL, random=OFF, swap=NATURAL))
    assert sharp.verdict is Verdict.ON_MANIFOLD
    assert [control.holds for control in sharp.controls] == [True, True]


def test_v_off_as_far_as_swaps_are_is_inconclusive():
    same = judged(seen(natural=NATURAL, v=OFF, random=OFF, swap=OFF))
    less = judged(seen(natural=NATURAL, v=OFF, random=OFF, swap=2 * OFF))
    for found in (same, less):
        assert found.verdict is Verdict.INCONCLUSIVE
        assert "a step of this length may be enough" in found.reasons[0]
    further = judged(seen(natural=NATURAL, v=OFF, random=OFF, swap=OFF - 1))
    assert further.verdict is Verdict.OFF_MANIFOLD


@pytest.mark.parametrize("kind", ["mahalanobis", "neighbours"])
def test_one_score_is_enough_to_be_off_and_beyond_swaps(kind):
    states = seen(natural=NATURAL, v=250.0, random=OFF, swap=260.0)
    # Not vacuous: neither score alone is enough before it is raised.
    assert judged(states).verdict is Verdict.ON_MANIFOLD
    raised = dataclasses.replace(states["v"], **{kind: np.full(40, OFF)})
    assert judged(states | {"v": raised}).verdict is Verdict.OFF_MANIFOLD


def test_v_beyond_random_steps_is_not_on_the_manifold():
    rng = np.random.default_rng(0)
    # A fifth of the random states is off, the others are less extreme than v's.
    random = np.where(np.arange(100) < 20, OFF, 5.0)
    natural = rng.uniform(0, 480, 100)
    beside = judged(seen(natural=natural, v=300.0, random=random, swap=natural))
    assert beside.verdict is Verdict.INCONCLUSIVE
    assert "more extreme than those after a random step" in beside.reasons[0]
    within = judged(seen(natural=natural, v=1.0, random=random, swap=natural))
    assert within.verdict is Verdict.ON_MANIFOLD


def test_states_that_were_off_before_the_step_do_not_count_against_it():
    natural = np.where(np.arange(10) < 4, OFF, 250.0)
    found = judged(seen(natural=natural, v=2 * OFF, random=OFF, swap=0.0))
    # All of v's states are off, but four of ten were so before.
    assert share(found, "v") == 1
    assert found.verdict is Verdict.INCONCLUSIVE
    clean = seen(natural=np.full(10, 250.0), v=2 * OFF, random=OFF, swap=0.0)
    assert judged(clean).verdict is Verdict.OFF_MANIFOLD


@pytest.mark.parametrize("num", [1, 2, 5, 6, 7])
def test_off_is_said_from_six_prompts_on(num):
    # Half of the prompts all agree with a probability of 2^-n: below .025 from 6 on.
    states = seen(natural=np.full(num, 250.0), v=2 * OFF, random=OFF, swap=0.0)
    found = judged(states)
    assert found.estimate.value == 1
    assert found.estimate.low == pytest.approx(0.025 ** (1 / num))
    off = found.verdict is Verdict.OFF_MANIFOLD
    assert off is (num >= 6)
    assert off or found.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("num", [20, 35, 36, 50])
def test_on_is_said_from_36_prompts_on(num):
    # None of n is off with a probability of .9^n if 10 % are: below .025 from 36 on.
    natural = np.linspace(20.0, 480.0, num)
    found = judged(seen(natural=natural, v=natural, random=OFF, swap=natural))
    assert found.estimate.high == pytest.approx(1 - 0.025 ** (1 / num))
    on = found.verdict is Verdict.ON_MANIFOLD
    assert on is (num >= 36)


def test_states_of_one_prompt_count_once():
    v = np.where(np.arange(12) < 9, OFF, 10.0)
    scores = {"natural": np.full(12, 250.0), "v": v, "random": OFF, "swap": 0.0}
    once = judged(seen(**scores))
    many = {name: np.repeat(np.broadcast_to(x, 12), 5) for name, x in scores.items()}
    often = judged(seen(**many), prompts=np.repeat(np.arange(12), 5))
    assert often.estimate == once.estimate
    assert often.num_prompts == once.num_prompts == 12
    # Not vacuous: as 60 prompts they would say more.
    alone = judged(seen(**many))
    assert alone.estimate.low > once.estimate.low + 0.05


def test_the_interval_covers_over_prompts():
    # A prompt's five states are off together more often than not.
    covered, studies, truth = 0, 200, 0.7
    for seed in range(studies):
        rng = np.random.default_rng([11, seed])
        chance = rng.beta(0.7, 0.3, size=20)
        v = np.where(rng.random((20, 5)) < chance[:, None], OFF, 10.0).ravel()
        states = seen(natural=np.full(100, 250.0), v=v, random=OFF, swap=0.0)
        own = judged(states, prompts=np.repeat(np.arange(20), 5), seed=seed).estimate
        covered += own.low <= truth <= own.high
    assert covered / studies >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / studies)


@pytest.mark.parametrize("num", [50, 199, 200, 400])
def test_too_few_calibration_states_are_uninformative(num):
    natural = np.linspace(0.1 * num, 0.9 * num, 40)
    states = seen(natural=natural, v=3 * OFF, random=2 * OFF, swap=natural)
    found = judged(states, calibration=num)
    assert found.details["smallest_p"] == pytest.approx(2 / (num + 1))
    if num >= 200:
        assert found.verdict is Verdict.OFF_MANIFOLD
    else:
        assert found.verdict is Verdict.UNINFORMATIVE
        assert "it takes 200 or more" in found.reasons[0]


@pytest.mark.parametrize("kind", ["mahalanobis", "neighbours"])
def test_natural_states_that_look_off_leave_nothing_to_say(kind):
    states = seen(natural=NATURAL, v=2 * OFF, random=OFF, swap=NATURAL)
    assert judged(states).verdict is Verdict.OFF_MANIFOLD
    higher = {kind: np.linspace(250.0, 600.0, 40)}
    states["natural"] = dataclasses.replace(states["natural"], **higher)
    found = judged(states)
    assert found.verdict is Verdict.UNINFORMATIVE
    assert found.details["uniform"]["p"] < UNIFORM_LEVEL
    assert "texts are of different kinds" in found.reasons[0]
    assert not found.controls[0].holds


def test_natural_states_nearer_than_the_calibrations_are_no_objection():
    states = seen(natural=0.2 * NATURAL, v=2 * OFF, random=OFF, swap=NATURAL)
    found = judged(states)
    assert found.details["uniform"]["p"] > 0.1
    assert found.verdict is Verdict.OFF_MANIFOLD


def test_one_state_a_prompt_is_held_against_the_calibration():
    # Twenty states of two prompts would be significant, two are not.
    prompts = np.repeat([0, 1], 20)
    states = seen(natural=np.full(40, 480.0), v=OFF, random=OFF, swap=0.0)
    assert judged(states, prompts=prompts).details["uniform"]["p"] > UNIFORM_LEVEL
    assert judged(states).details["uniform"]["p"] < UNIFORM_LEVEL


def test_calibration_states_of_few_prompts_are_uninformative():
    states = seen(natural=NATURAL, v=2 * OFF, random=OFF, swap=NATURAL)
    for num, verdict in ((49, Verdict.UNINFORMATIVE), (50, Verdict.OFF_MANIFOLD)):
        clusters = np.arange(500) * num // 500
        found = judged(states, calibration_prompts=clusters)
        assert found.verdict is verdict
        assert found.details["num_calibration_prompts"] == num


def test_off_is_said_beside_what_a_random_step_of_that_length_does():
    alone = judged(seen(natural=NATURAL, v=2 * OFF, random=OFF, swap=NATURAL))
    alike = judged(seen(natural=NATURAL, v=2 * OFF, random=2 * OFF, swap=NATURAL))
    assert {alone.verdict, alike.verdict} == {Verdict.OFF_MANIFOLD}
    assert "also goes further than random steps" in alone.reasons[0]
    assert "the length may be all there is to it" in alike.reasons[0]


def test_norm_and_angle_stand_beside_those_of_the_controls():
    given = world(0)
    found = given.finding(given.natural + 0.8 * direction(-1), 0.8)
    rows = {row["name"]: row for row in found.details["families"]}
    for name in ("v", "random", "swap"):
        assert rows[name]["norm"]["low"] <= rows[name]["norm"]["median"]
        assert 1 < rows[name]["angle"] < 45
    assert rows["natural"]["angle"] is None
    assert rows["natural"]["norm"] == {"median": 1, "low": 1, "high": 1}
    spread = found.details["norm_of_natural"]
    assert 0.5 < spread["low"] < spread["median"] < spread["high"] < 2
    sentence = next(reason for reason in found.reasons if "times as long" in reason)
    assert f"turns it by {rows['v']['angle']:.3g} degrees" in sentence
    assert f"{spread['low']:.3g} to {spread['high']:.3g} times as long" in sentence


def test_details_are_those_that_the_report_reads():
    given = world(1)
    found = given.finding(given.natural + 0.5 * direction(0), 0.5)
    assert set(found.details) == {
        *("num_reference", "num_calibration", "num_calibration_prompts"),
        *("num_test", "components", "smallest_p"),
        *("families", "uniform", "norm_of_natural"),
    }
    assert found.details["num_reference"] == 400
    assert found.details["num_calibration"] == 250
    assert found.details["num_test"] == PROMPTS
    assert found.details["components"] == WIDTH
    assert [row["name"] for row in found.details["families"]] == list(LABELS)
    for row in found.details["families"]:
        assert set(row) == {
            *("name", "label", "p", "share", "median_p", "mahalanobis"),
            *("neighbours", "norm", "angle"),
        }
        assert set(row["share"]) == {"value", "low", "high", "level"}
        assert len(row["p"]) == PROMPTS
        assert row["share"]["value"] == pytest.approx(
            np.mean(np.array(row["p"]) < 0.01)
        )
        assert row["median_p"] == np.median(row["p"])
        assert min(row["p"]) >= found.details["smallest_p"]


def test_the_finding_is_plain_data():
    blind = judged(seen(natural=NATURAL, v=NATURAL, random=NATURAL, swap=NATURAL))
    few = judged(seen(natural=3.0, v=1.0, random=1.0, swap=1.0), calibration=1)
    one = world(0, num=1)
    for found in (blind, few, one.finding(one.natural, 0.0)):
        text = json.dumps(found.to_json(), allow_nan=False)
        assert Finding.from_json(json.loads(text)) == found
        assert (found.code, found.key) == ("T19", "density")


def test_states_that_do_not_belong_together_are_refused():
    whole = seen(natural=NATURAL, v=OFF, random=OFF, swap=OFF)
    for name in ("natural", "random", "swap"):
        rest = {other: family for other, family in whole.items() if other != name}
        with pytest.raises(InputError, match=f"{name} is missing"):
            judged(rest)
        short = seen(**{name: np.ones(39)})
        with pytest.raises(InputError, match=f"{name} has 39 states, and 40 are"):
            judged(whole | short)
    broken = np.where(np.arange(40) == 3, np.nan, 1.0)
    bad = dataclasses.replace(whole["v"], neighbours=broken)
    with pytest.raises(InputError, match="scores of v hold NaN"):
        judged(whole | {"v": bad})
    with pytest.raises(InputError, match="calibration has 0 states"):
        judged(whole, calibration=0)
    with pytest.raises(InputError, match="0 states, and 0 are tested"):
        judged(seen(**dict.fromkeys(LABELS, np.zeros(0))))
