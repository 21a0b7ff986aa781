"""Controls have v's norm and site, and the directions that they are said to have."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from tests.models import D_MODEL, tiny

from steergauge.activations import Position, Reader
from steergauge.audits.controls import (
    perpendicular,
    random_direction,
    rescaled,
    sign_flips,
    total,
)
from steergauge.errors import BadPairs
from steergauge.extraction.mean_difference import mean_difference
from steergauge.prompts import ContrastPair, Text
from steergauge.vector import Provenance, Site, SteeringVector

NUM = 2000
ONE_ULP = 2**-23
"""Directions are stored in float32: norms and products agree to that, relatively."""

PAIRS = [
    ContrastPair(Text(f"{plus} the {thing}"), Text(f"{minus} the {thing}s"))
    for plus, minus in [("tell", "so tell"), ("there", "lost")]
    for thing in ["lake", "cat", "moon", "old chair"]
]


def vector(seed: int = 0, *, scale: float = 3.0, layer: int = 1) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    direction = scale * torch.randn(D_MODEL, generator=generator)
    return SteeringVector(direction, Site(layer), Provenance(method="mine"))


def rows(vectors: list[SteeringVector]) -> np.ndarray:
    return torch.stack([v.direction for v in vectors]).double().numpy()


@pytest.mark.parametrize("make", [random_direction, perpendicular])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_drawn_controls_have_the_norm_and_the_site_of_v(make, scale):
    v = vector(scale=scale, layer=2)
    for seed in range(20):
        control = make(v, seed=seed)
        assert control.norm == pytest.approx(v.norm, rel=ONE_ULP)
        assert control.site == v.site
        assert str(seed) in control.provenance.parent


def test_perpendicular_directions_are_perpendicular():
    v = vector()
    unit = v.direction.double() / v.norm
    for seed in range(50):
        cosine = perpendicular(v, seed=seed).direction.double() @ unit / v.norm
        # Rounding 48 entries to float32 leaves a cosine of at most one ulp.
        assert abs(float(cosine)) < ONE_ULP
    # Not vacuous: a random direction of 48 dimensions is not.
    cosines = rows([random_direction(v, seed=s) for s in range(50)]) @ unit.numpy()
    assert np.abs(cosines / v.norm).max() > 0.1


def test_v_plus_a_perpendicular_direction_is_sqrt_2_long_and_at_45_degrees():
    v = vector()
    both = total(v, perpendicular(v, seed=0), "sum")
    assert both.norm == pytest.approx(math.sqrt(2) * v.norm, rel=2 * ONE_ULP)
    cosine = float(both.direction.double() @ v.direction.double())
    assert cosine / both.norm / v.norm == pytest.approx(math.sqrt(0.5), rel=1e-6)
    assert both.provenance.parent == "sum"


def test_random_directions_favour_no_direction():
    drawn = rows([random_direction(vector(), seed=s) for s in range(NUM)])
    units = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    # Along any fixed direction, (1 + cos) / 2 is Beta((d - 1)/2, (d - 1)/2).
    beta = stats.beta((D_MODEL - 1) / 2, (D_MODEL - 1) / 2)
    for direction in (vector().direction.double(), torch.ones(D_MODEL).double()):
        along = units @ (direction / direction.norm()).numpy()
        assert stats.kstest((1 + along) / 2, beta.cdf).pvalue > 1e-3
    # Second moments: every eigenvalue of the covariance is 1/d, within the edges of
    # Marchenko and Pastur.
    spread = np.linalg.eigvalsh(units.T @ units / NUM) * D_MODEL
    edge = math.sqrt(D_MODEL / NUM)
    assert spread.min() > 0.95 * (1 - edge) ** 2
    assert spread.max() < 1.05 * (1 + edge) ** 2


def test_perpendicular_directions_favour_none_of_what_is_left():
    v = vector()
    drawn = rows([perpendicular(v, seed=s) for s in range(NUM)]) / v.norm
    spread = np.linalg.eigvalsh(drawn.T @ drawn / NUM) * (D_MODEL - 1)
    edge = math.sqrt(D_MODEL / NUM)
    assert abs(spread[0]) < 1e-9
    assert spread[1] > 0.95 * (1 - edge) ** 2
    assert spread[-1] < 1.05 * (1 + edge) ** 2


@pytest.mark.parametrize("make", [random_direction, perpendicular])
def test_a_seed_gives_the_same_direction_and_another_seed_another(make):
    first, again, other = (make(vector(), seed=seed).direction for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def differences(reader: Reader) -> torch.Tensor:
    lm = tiny("llama")
    plus = reader.read(lm, [pair.positive for pair in PAIRS])
    minus = reader.read(lm, [pair.negative for pair in PAIRS])
    return plus - minus


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_sign_flips_are_signed_means_of_the_pairs_differences(batch_size):
    reader, v = Reader(1, Position("last")), vector()
    flips = sign_flips(tiny("llama"), v, PAIRS, reader, num=30, batch_size=batch_size)
    basis = differences(reader)
    drawn = torch.stack([flip.direction for flip in flips]).double()
    # Coordinates in the 8 differences, v being projected out: of the same size, half
    # of them of either sign.
    spanned = torch.cat([basis, v.direction[None].double()])
    found = torch.linalg.lstsq(spanned.T, drawn.T).solution.T
    assert torch.allclose(found @ spanned, drawn, atol=1e-4)
    found = found[:, :-1]
    sizes = found.abs()
    assert torch.allclose(sizes, sizes[:, :1].expand_as(sizes), rtol=1e-3)
    assert ((found > 0).sum(1) == len(PAIRS) // 2).all()
    assert len((found > 0).unique(dim=0)) > 10
    # Not vacuous: 8 differences do not span 48 dimensions.
    isotropic = random_direction(v, seed=0).direction.double()
    coordinates = torch.linalg.lstsq(basis.T, isotropic[:, None]).solution
    assert not torch.allclose((basis.T @ coordinates)[:, 0], isotropic, atol=0.5)


def test_batch_size_does_not_change_which_sign_a_pair_gets():
    lm, v, reader = tiny("llama"), vector(), Reader(1)
    sizes = (1, 3, None)
    one, few, whole = (
        rows(sign_flips(lm, v, PAIRS, reader, num=5, batch_size=n)) for n in sizes
    )
    # Batches of other shapes take other float32 kernels; v is 20 long.
    assert np.abs(one - whole).max() < 1e-3
    assert np.abs(few - whole).max() < 1e-3
    assert np.abs(whole[0] - whole[1]).max() > 0.5


def test_sign_flips_have_the_norm_of_v_and_mean_0():
    v, num = vector(), 600
    flips = sign_flips(tiny("llama"), v, PAIRS, Reader(1), num=num)
    assert len(flips) == num
    for flip in flips:
        assert flip.norm == pytest.approx(v.norm, rel=ONE_ULP)
        assert flip.site == v.site
    mean = rows(flips).mean(0)
    # 600 vectors of length |v|, signs symmetric: the mean is |v|/sqrt(600) long.
    assert np.linalg.norm(mean) < 3 * v.norm / math.sqrt(num)


def test_a_sign_flip_holds_nothing_of_v():
    lm, reader = tiny("llama"), Reader(1)
    v = mean_difference(lm, PAIRS, reader).vector
    # Not vacuous: the differences that are flipped do hold v.
    assert (differences(reader) @ v.direction.double()).mean() > 0.5 * v.norm**2
    for flip in sign_flips(lm, v, PAIRS, reader, num=20):
        along = float(flip.direction.double() @ v.direction.double()) / v.norm**2
        assert abs(along) < 1e-6  # float32 directions


def test_an_odd_pair_is_left_out_of_a_flip_another_one_each_time():
    reader, odd, v = Reader(1), PAIRS[:7], vector()
    flips = sign_flips(tiny("llama"), v, odd, reader, num=30)
    basis, drawn = differences(reader)[:7], torch.tensor(rows(flips))
    spanned = torch.cat([basis, v.direction[None].double()])
    found = torch.linalg.lstsq(spanned.T, drawn.T).solution.T[:, :-1]
    used = found.abs() > 1e-3 * found.abs().max()
    assert (used.sum(1) == 6).all()
    assert ((found > 0) & used).sum(1).tolist() == [3] * 30
    assert (~used).any(0).sum() > 3


def test_pairs_that_are_all_the_same_leave_nothing_to_flip():
    with pytest.raises(BadPairs, match="all the same"):
        sign_flips(tiny("llama"), vector(), PAIRS[:1] * 8, Reader(1), num=4)


def test_sign_flips_are_set_by_the_seed():
    flips = [
        rows(sign_flips(tiny("llama"), vector(), PAIRS, Reader(1), num=4, seed=seed))
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(flips[0], flips[1])
    assert not np.allclose(flips[0], flips[2])


def test_a_rescaled_vector_keeps_its_direction_and_its_site():
    v, other = vector(0), vector(1, scale=0.01, layer=3)
    scaled = rescaled(other, v)
    assert scaled.norm == pytest.approx(v.norm, rel=ONE_ULP)
    assert scaled.site == other.site
    cosine = float(scaled.direction.double() @ other.direction.double())
    assert cosine / scaled.norm / other.norm == pytest.approx(1, abs=1e-12)
    assert "rescaled" in scaled.provenance.parent


def test_minus_v_rescaled_is_still_minus_v():
    v = vector()
    minus = v.with_direction(-v.direction, "minus v")
    assert torch.allclose(rescaled(minus, v).direction, -v.direction, rtol=1e-6)
