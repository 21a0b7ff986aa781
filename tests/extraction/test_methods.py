"""What each method makes of pairs whose distribution is known, and of a model's."""

import numpy as np
import pytest
import torch
from tests.models import D_MODEL, tiny

from steergauge.activations import Position, Reader
from steergauge.errors import BadPairs, InputError
from steergauge.extraction.mean_difference import mean_difference
from steergauge.extraction.methods import (
    METHODS,
    WITHOUT_LENGTH,
    extract,
    extraction_by,
)
from steergauge.extraction.paired_streams import PairedStreams, paired_streams
from steergauge.prompts import ContrastPair, Text

WIDTH, NUM = 8, 4000
LAYER = 1
TOPICS = ("rain", "a lake", "the long winter", "tea", "my neighbor's dog", "Mars", "x")
PAIRS = [
    ContrastPair(
        Text(f"Write a formal letter about {topic}.", " Dear Sir or Madam,"),
        Text(f"Say hi to {topic}", " yo"),
    )
    for topic in TOPICS
]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def rotation(width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.linalg.qr(rng.standard_normal((width, width)))[0]


def gaussian(shift: np.ndarray, covariance: np.ndarray, *, num: int = NUM, seed=0):
    """Pairs with sides N(+-shift / 2, covariance), independent of one another."""
    rng = np.random.default_rng(seed)
    sides = rng.multivariate_normal(np.zeros(len(shift)), covariance, size=(2, num))
    return PairedStreams(sides[0] + shift / 2, sides[1] - shift / 2)


@pytest.fixture(scope="module")
def shift() -> np.ndarray:
    """Of length 2: the sides overlap, so a logistic regression has a finite optimum."""
    return 2 * rotation(WIDTH)[:, 0]


def anisotropic() -> np.ndarray:
    """A covariance with variances from 0.25 to 4 along no axis of the coordinates."""
    turn = rotation(WIDTH, seed=1)
    return turn @ np.diag(np.geomspace(0.25, 4, WIDTH)) @ turn.T


@pytest.mark.parametrize("method", list(METHODS))
def test_sides_that_differ_in_their_mean_only_give_every_method_the_same_vector(
    method, shift
):
    streams = gaussian(shift, np.eye(WIDTH))
    found = METHODS[method](streams)
    # The sampling error of each of these directions is about sqrt(14 / 4000) / 2 to
    # 0.04 radians; 0.14 radians is cos = 0.99.
    assert cosine(found, shift) > 0.99
    assert abs(np.linalg.norm(found) - 2) < 0.2
    # Not vacuous: single pairs point elsewhere.
    one = streams.differences[0]
    assert cosine(one, shift) < 0.9


def test_the_discriminant_leaves_the_mean_difference_by_the_known_angle(shift):
    covariance = anisotropic()
    streams = gaussian(shift, covariance)
    read = np.linalg.solve(covariance, shift)
    angle = np.arccos(cosine(read, shift))
    assert angle > 0.4
    for method in ("discriminant", "logistic"):
        found = METHODS[method](streams)
        assert cosine(found, read) > 0.99
        # Twice the sampling error of 0.05 radians of either direction.
        between = np.arccos(cosine(found, streams.mean_difference()))
        assert abs(between - angle) < 0.1
    assert cosine(METHODS["mean-difference"](streams), shift) > 0.99


def test_the_covariance_turns_the_discriminant_back_into_the_mean_difference(shift):
    covariance = anisotropic()
    streams = gaussian(shift, covariance)
    filtered = METHODS["discriminant"](streams)
    assert cosine(filtered, shift) < 0.9
    assert cosine(covariance @ filtered, shift) > 0.99


def test_the_principal_component_fails_where_the_variance_is_elsewhere(shift):
    elsewhere = rotation(WIDTH)[:, 1]
    noise = np.eye(WIDTH) + 50 * np.outer(elsewhere, elsewhere)
    streams = gaussian(shift, noise)
    found = METHODS["principal-component"](streams)
    assert abs(cosine(found, elsewhere)) > 0.99
    assert abs(cosine(found, shift)) < 0.2
    # The pairs do tell the shift: the mean difference finds it.
    assert cosine(METHODS["mean-difference"](streams), shift) > 0.97


def test_what_both_sides_share_does_not_move_the_principal_component(shift):
    streams = gaussian(shift, np.eye(WIDTH))
    topic = 30 * np.random.default_rng(5).standard_normal((NUM, WIDTH))
    moved = PairedStreams(streams.positive + topic, streams.negative + topic)
    assert np.abs(moved.pooled).max() > 10 * np.abs(streams.pooled).max()
    change = METHODS["principal-component"](moved) - METHODS["principal-component"](
        streams
    )
    assert np.abs(change).max() < 1e-9


def test_the_principal_component_points_along_the_mean_difference(shift):
    streams = gaussian(shift, np.eye(WIDTH), num=200)
    swapped = PairedStreams(streams.negative, streams.positive)
    for method in METHODS.values():
        forth, back = method(streams), method(swapped)
        assert forth @ streams.mean_difference() > 0
        assert np.abs(forth + back).max() < 1e-3  # the regression's own tolerance


def test_the_median_resists_pairs_that_move_the_mean(shift):
    streams = gaussian(shift, np.eye(WIDTH))
    spoilt = streams.positive.copy()
    spoilt[: NUM // 10] += 1000 * rotation(WIDTH)[:, 2]
    streams = PairedStreams(spoilt, streams.negative)
    assert cosine(METHODS["mean-difference"](streams), shift) < 0.1
    # A tenth of spoilt pairs shifts a median by 0.14 standard deviations (0.2 here)
    # in each coordinate at most.
    assert cosine(METHODS["median-difference"](streams), shift) > 0.95


def test_every_method_but_the_median_turns_with_the_stream(shift):
    streams = gaussian(shift, anisotropic(), num=30)
    turn = rotation(WIDTH, seed=3)
    turned = PairedStreams(streams.positive @ turn, streams.negative @ turn)
    for name, method in METHODS.items():
        gap = np.abs(method(turned) - method(streams) @ turn).max()
        if name == "median-difference":
            assert gap > 0.01
        else:
            assert gap < 1e-3, name  # the regression's own tolerance


def test_fewer_pairs_than_coordinates_are_enough_for_every_method():
    shift = 4 * rotation(64)[:, 0]
    streams = gaussian(shift, np.eye(64), num=20)
    for method in METHODS.values():
        # Of a random direction, 0.125; of the mean difference, 0.85 expected.
        assert cosine(method(streams), shift) > 0.5


@pytest.mark.parametrize("rule", ["last", "response-mean"])
def test_the_rows_are_the_streams_of_the_same_pairs(rule):
    lm, reader = tiny("llama"), Reader(LAYER, Position(rule))
    done: list[int] = []
    streams = paired_streams(lm, PAIRS, reader, batch_size=3, progress=done.append)
    assert done == [3, 3, 1]
    assert streams.positive.dtype == np.float64
    assert streams.positive.shape == (len(PAIRS), D_MODEL)
    # Row i is pair i. Batches of other shapes take other float32 kernels: 6e-6 seen.
    for i, pair in enumerate(PAIRS):
        want = reader.read(lm, [pair.positive, pair.negative]).numpy()
        assert np.abs(streams.positive[i] - want[0]).max() < 5e-5
        assert np.abs(streams.negative[i] - want[1]).max() < 5e-5


@pytest.mark.parametrize("method", list(METHODS))
def test_an_extracted_vector_is_the_formula_on_the_models_streams(method):
    lm, reader = tiny("llama"), Reader(LAYER)
    found = extraction_by(lm, PAIRS, reader, method=method, seed=11)
    mean = mean_difference(lm, PAIRS, reader, seed=11)
    want = METHODS[method](paired_streams(lm, PAIRS, reader))
    direction = found.vector.direction.double().numpy()
    assert np.abs(direction - want).max() < 1e-5 * np.linalg.norm(want)
    alike = np.abs(direction - mean.vector.direction.numpy()).max() < 1e-4
    assert alike == (method == "mean-difference")
    assert abs(found.standard_error - mean.standard_error) < 1e-9
    provenance = found.vector.provenance
    assert provenance.method == method.replace("-", "_")
    assert (provenance.num_pairs, provenance.seed) == (len(PAIRS), 11)
    assert provenance.pairs == mean.vector.provenance.pairs
    assert provenance.median_norm == pytest.approx(
        mean.vector.provenance.median_norm, rel=1e-6
    )
    assert provenance.versions["scikit-learn"]
    found.vector.check_fits(lm)
    if method in WITHOUT_LENGTH:
        assert found.vector.norm == pytest.approx(mean.vector.norm, rel=1e-5)
        assert "norm of mean_difference" in provenance.parent
    else:
        assert provenance.parent == ""


def test_extract_takes_the_mean_difference_unless_told_otherwise():
    lm = tiny("llama")
    plain = extract(lm, PAIRS, layer=LAYER)
    other = extract(lm, PAIRS, layer=LAYER, method="discriminant")
    assert plain.provenance.method == "mean_difference"
    assert other.provenance.method == "discriminant"
    assert plain.site == other.site
    assert not torch.allclose(plain.direction, other.direction, atol=1e-2)


def test_what_a_method_cannot_work_with_is_refused():
    lm, reader = tiny("llama"), Reader(LAYER)
    with pytest.raises(InputError, match=r"pca.*mean-difference, median-difference"):
        extract(lm, PAIRS, method="pca")
    for pairs in ([], PAIRS[:1]):
        with pytest.raises(BadPairs, match="at least two"):
            extraction_by(lm, pairs, reader, method="logistic")
    rows = np.ones((3, 4))
    with pytest.raises(BadPairs, match="no covariance within a side"):
        METHODS["discriminant"](PairedStreams(rows, 2 * rows))


@pytest.mark.parametrize("method", WITHOUT_LENGTH)
def test_equal_sides_give_the_zero_vector(method):
    rows = np.random.default_rng(0).standard_normal((20, 4))
    assert np.linalg.norm(METHODS[method](PairedStreams(rows, 2 * rows))) > 0.1
    assert not METHODS[method](PairedStreams(rows, rows)).any()
