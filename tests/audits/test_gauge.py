"""What the output sees of v is the same in every basis, and nothing else is."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.gauge import CHANGED, Writings, gauge
from steergauge.errors import InputError

D = 24


def rotation(seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((D, D))
    return np.linalg.qr(drawn)[0]


def fisher(seed: int = 1) -> np.ndarray:
    factor = np.random.default_rng(seed).standard_normal((D, D)) / np.arange(1, D + 1)
    return factor.T @ factor


def sparse() -> np.ndarray:
    """A vector of one coordinate, of which any rotation makes many."""
    v = np.zeros(D)
    v[3] = 2.0
    return v


def invariants(f: np.ndarray, v: np.ndarray) -> dict[str, np.ndarray]:
    gain = v @ f @ v / (v @ v)
    return {
        "spectrum": np.linalg.eigvalsh(f)[::-1],
        "rho": np.array(gain / (np.trace(f) / D)),
        "nats": np.array(v @ f @ v / 2),
    }


def coordinates(v: np.ndarray, own: np.ndarray) -> dict[str, float]:
    return {
        "cosine with v": float(v @ own / math.sqrt((v @ v) * (own @ own))),
        "share of the largest coordinate": float((v**2).max() / (v @ v)),
        "excess kurtosis": float(stats.kurtosis(v)),
    }


def writings(f, v, other_f, other_v, **options) -> Writings:
    here, there = invariants(f, v), invariants(other_f, other_v)
    ours, theirs = coordinates(v, v), coordinates(other_v, v)
    return Writings(
        kind="rotation",
        invariants={name: (here[name], there[name]) for name in here},
        dependent={name: (ours[name], theirs[name]) for name in ours},
        **options,
    )


def rotated(q: np.ndarray, **options) -> Writings:
    """F and v as they are, and both turned by q."""
    f, v = fisher(), sparse()
    return writings(f, v, q.T @ f @ q, q.T @ v, **options)


@pytest.mark.parametrize("seed", range(20))
def test_every_rotation_passes_and_shows_what_depends_on_the_basis(seed):
    # Twenty-four products in float64 round to 1e-14.
    found = gauge(rotated(rotation(seed), tolerance=1e-12))
    assert found.verdict is Verdict.PASS
    assert found.estimate.value < 1e-12
    before, after = found.details["dependent"]["share of the largest coordinate"]
    assert before == 1
    assert after < 0.8
    assert "share of the largest coordinate from 1 to" in found.reasons[1]
    (control,) = found.controls
    assert control.holds


def test_a_vector_that_is_not_turned_along_fails():
    f, v, q = fisher(), sparse(), rotation()
    found = gauge(writings(f, v, q.T @ f @ q, v, tolerance=1e-3))
    assert found.verdict is Verdict.FAIL
    # The spectrum alone would not have seen it.
    assert found.details["invariants"]["spectrum"]["error"] < 1e-12
    assert found.details["invariants"]["rho"]["error"] > 0.01
    assert "nats by" in found.reasons[0]
    assert "spectrum" not in found.reasons[0]


@pytest.mark.parametrize("stretch", [1.01, 1.1])
def test_a_map_that_is_not_orthogonal_fails(stretch):
    q = rotation() @ np.diag([stretch] + [1.0] * (D - 1))
    assert gauge(rotated(rotation(), tolerance=1e-3)).verdict is Verdict.PASS
    assert gauge(rotated(q, tolerance=1e-3)).verdict is Verdict.FAIL


@pytest.mark.parametrize(("error", "verdict"), [(0.9, "PASS"), (1.1, "FAIL")])
def test_the_tolerance_is_a_share_of_the_largest_entry(error, verdict):
    values = np.array([100.0, 1.0, 1e-9])
    moved = values + np.array([0.0, 100.0 * 1e-3 * error, 0.0])
    seen = Writings(
        kind="rotation",
        invariants={"spectrum": (values, moved)},
        dependent={"cosine with v": (1.0, 0.1)},
        tolerance=1e-3,
    )
    found = gauge(seen)
    assert found.verdict == verdict
    assert found.estimate.value == pytest.approx(error * 1e-3)


def test_agreement_of_a_vector_with_itself_says_nothing():
    found = gauge(rotated(np.eye(D)))
    assert found.estimate.value == 0
    assert found.verdict is Verdict.UNINFORMATIVE
    assert "hardly changed" in found.reasons[0]
    assert not found.controls[0].holds
    # Had it turned out different even so, that would be an error.
    f, v = fisher(), sparse()
    assert gauge(writings(f, v, 2 * f, v)).verdict is Verdict.FAIL


@pytest.mark.parametrize(("factor", "moved"), [(0.5, False), (2.0, True)])
def test_a_hundredth_is_what_counts_as_changed(factor, moved):
    pair = (np.array(1.0), np.array(1.0))
    seen = Writings(
        kind="shift",
        invariants={"nats": pair},
        dependent={"cosine with v": (1.0, 1 - factor * CHANGED)},
    )
    assert gauge(seen).controls[0].holds is moved
    assert (gauge(seen).verdict is Verdict.PASS) is moved


def test_nothing_compared_is_uninformative():
    seen = Writings(kind="shift", dependent={"cosine with v": (1.0, 0.2)})
    found = gauge(seen)
    assert found.verdict is Verdict.UNINFORMATIVE
    assert found.estimate is None
    assert "no number was compared" in found.reasons[0]


def test_a_model_without_a_known_gauge_is_uninformative_for_the_reason_given():
    found = gauge(Writings(kind="none", reason="It has experts."))
    assert found.verdict is Verdict.UNINFORMATIVE
    assert found.reasons == ("It has experts.",)
    assert found.controls == ()
    assert gauge(Writings(kind="none")).reasons[0].startswith("No gauge")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_none_after_the_transformation_fails(bad):
    seen = rotated(rotation())
    broken = {"nats": (np.array(1.0), np.array(bad))}
    found = gauge(dataclasses.replace(seen, invariants={**seen.invariants, **broken}))
    assert found.verdict is Verdict.FAIL
    assert found.details["invariants"]["nats"]["error"] is None
    assert found.estimate is None
    json.dumps(found.to_json(), allow_nan=False)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="no gauge transformation 'mirror'"):
        gauge(Writings(kind="mirror"))
    pair = (np.zeros(3), np.zeros(4))
    with pytest.raises(InputError, match=r"\(3,\) before and \(4,\) after"):
        gauge(Writings(kind="rotation", invariants={"spectrum": pair}))


def test_the_finding_survives_json():
    found = gauge(rotated(rotation()))
    text = json.dumps(found.to_json(), allow_nan=False)
    again = Finding.from_json(json.loads(text))
    assert json.dumps(again.to_json(), allow_nan=False) == text
    assert set(found.details) == {
        "kind",
        "invariants",
        "dependent",
        "tolerance",
        "reason",
    }
