"""F_bar and what goes with it are the plain sums, however the texts are cut."""

import itertools

import numpy as np
import pytest
import torch
from tests import ground_truth
from tests.ground_truth import texts
from tests.models import borrowed, network, tiny

from steergauge.fisher import fisher, fishers
from steergauge.geometry import survey
from steergauge.intervention import Scope
from steergauge.jacobian import Row, Shift, suffix_jacobian
from steergauge.readout import kl
from steergauge.vector import Site

NUM = 8
PROMPT = 5
SHIFT = Shift(Site(1))
CUTS = {"one": [8], "halves": [4, 4], "uneven": [2, 2, 4], "odd": [3, 1, 4]}

EXACT = 1e-12
"""Relative. Float64 sums of a few matrices, in another order."""


def rows(num: int = NUM, *, response: int = 2) -> list[Row]:
    """Texts of seven tokens, two of which are a response."""
    return [(ids[: PROMPT + response], PROMPT) for ids in texts(num)]


def directions(num: int = 3, width: int = ground_truth.WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(num, width, generator=generator, dtype=torch.float64)


def parts(cut: list[int]) -> list[survey.Part]:
    lm, ends = ground_truth.linear().lm, [0, *itertools.accumulate(cut)]
    return [
        survey.surveyed(lm, rows()[start:end], directions(), shift=SHIFT)
        for start, end in itertools.pairwise(ends)
    ]


def singles() -> list[np.ndarray]:
    lm = ground_truth.linear().lm
    return [matrix.numpy() for matrix in fishers(lm, rows(), shift=SHIFT)]


def eigenvalues(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh(matrix)[::-1].clip(0)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = EXACT) -> bool:
    size = np.abs(expected).max()
    assert size > 1e-3
    return np.allclose(found, expected, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_merged_parts_are_the_mean_over_all_texts_for_any_cut(cut):
    each, seen = singles(), survey.merged(parts(cut))
    assert not close(each[0], each[1], 0.05)
    whole = fisher(ground_truth.linear().lm, rows(), shift=SHIFT).matrix
    assert close(seen.matrix.numpy(), np.mean(each, axis=0))
    assert close(seen.matrix.numpy(), whole.numpy())
    assert seen.num_texts == NUM


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_traces_and_gains_are_those_of_each_text(cut):
    each, seen = np.array(singles()), survey.merged(parts(cut))
    u = directions().numpy()
    assert close(seen.traces, np.trace(each, axis1=1, axis2=2))
    assert close(seen.gains, np.einsum("ui,tij,uj->tu", u, each, u))
    assert np.ptp(seen.gains[:, 0]) > 0.1 * seen.gains[:, 0].mean()


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_blocks_are_means_over_texts_that_no_other_block_of_their_size_has(cut):
    each, seen = singles(), survey.merged(parts(cut))
    for n, spectra in seen.blocks.items():
        used: set[int] = set()
        for found in spectra:
            # Every run of n texts is tried: one of them has made this block.
            made_by = [
                start
                for start in range(NUM - n + 1)
                if close(found, eigenvalues(np.mean(each[start : start + n], axis=0)))
            ]
            assert len(made_by) == 1
            own = {*range(made_by[0], made_by[0] + n)}
            assert not used & own
            used |= own
        assert (np.diff(spectra, axis=1) <= 0).all()


def test_blocks_of_every_power_of_two_are_there_up_to_all_texts():
    for cut in ("one", "halves", "uneven"):
        seen = survey.merged(parts(CUTS[cut]))
        assert sorted(seen.blocks) == [1, 2, 4, 8]
        at_most = min(survey.BLOCKS_A_SIZE, 4) * len(CUTS[cut])
        sizes = {n: len(spectra) for n, spectra in seen.blocks.items()}
        assert sizes[4] == 2
        assert sizes[8] == 1
        assert 2 <= sizes[2] <= sizes[1] <= at_most


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_left_out_is_the_mean_over_all_other_parts(cut):
    each, seen = singles(), survey.merged(parts(cut))
    starts = [0, *itertools.accumulate(cut)]
    kept = [[*each[:start], *each[end:]] for start, end in itertools.pairwise(starts)]
    expected = [eigenvalues(np.mean(rest, axis=0)) for rest in kept if rest]
    assert seen.left_out.shape == (len(expected), ground_truth.WIDTH)
    assert all(close(*both) for both in zip(seen.left_out, expected, strict=True))


def test_the_weakest_direction_of_a_text_is_one_that_it_does_not_see():
    planted, seen = ground_truth.linear(), survey.merged(parts([8]))
    assert seen.weakest.shape == (survey.BLOCKS_A_SIZE, ground_truth.WIDTH)
    assert np.linalg.norm(seen.weakest, axis=1) == pytest.approx(1)
    outside = seen.weakest @ planted.visible.numpy()
    assert np.abs(outside).max() < 1e-6


@pytest.mark.parametrize("num", [1, 7, 8, 9, 64])
def test_parts_hold_every_text_once_and_in_order(num):
    found = [list(part) for part in survey.parts_of(num)]
    assert [i for part in found for i in part] == list(range(num))
    assert max(map(len, found)) <= survey.TEXTS_A_PART


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_at_a_temperature_f_is_that_of_a_model_whose_logits_are_divided_by_it(
    temperature,
):
    own, colder = tiny("gpt2", dtype=torch.float64), network("gpt2").double()
    head = torch.nn.Linear(48, 211, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(colder.lm_head.weight / temperature)
    colder.lm_head = head
    u = directions(2, own.d_model)
    options = {"shift": SHIFT}
    found = survey.surveyed(own, rows(3), u, temperature=temperature, **options)
    plain = survey.surveyed(own, rows(3), u, **options)
    expected = survey.surveyed(borrowed(colder), rows(3), u, **options)
    assert not close(found["total"], plain["total"], 0.2)
    for key in ("total", "trace", "gain"):
        # The norms of GPT-2 stay in float64.
        assert close(found[key], expected[key], 1e-10)
    single = [
        survey.single_spectra(own, rows(1)[0], temperature=t, **options)["F_x"]
        for t in (temperature, 1.0)
    ]
    assert close(single[0], eigenvalues(_text(own, temperature)), 1e-10)
    assert not close(single[0], single[1], 0.2)


def _text(lm, temperature: float) -> np.ndarray:
    u = directions(1, lm.d_model)
    return survey.surveyed(lm, rows(1), u, shift=SHIFT, temperature=temperature)[
        "total"
    ]


def test_a_small_step_costs_half_its_gain_also_in_tempered_logits():
    lm, temperature, size = tiny("gpt2", dtype=torch.float64), 0.7, 1e-3
    unit = directions(1, lm.d_model)[0]
    unit = unit / unit.norm()
    ids = torch.tensor([texts(1)[0]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    stream = lm.prefix(ids, mask, layer=1)
    stepped = stream.clone()
    stepped[:, -1] += size * unit
    before, after = (
        lm.suffix(h, mask, layer=1)[0, -1] / temperature for h in (stream, stepped)
    )
    part = survey.surveyed(
        lm, [(texts(1)[0], 7)], unit[None], shift=SHIFT, temperature=temperature
    )
    cost = 0.5 * size**2 * float(part["gain"][0, 0])
    assert cost > 1e-9
    # The next order is a thousandth of it, as the step is of the unit.
    assert float(kl(before, after)) == pytest.approx(cost, rel=0.01)


@pytest.mark.parametrize("scope", [Scope.GENERATING, Scope.ALL])
@pytest.mark.parametrize("response", [0, 2])
def test_layers_together_are_the_layers_one_by_one(scope, response):
    lm, layers = tiny("gpt2", dtype=torch.float64), (2, 0, 3)
    shifts = [Shift(Site(layer), scope) for layer in layers]
    own = [directions(2, lm.d_model) + i for i in range(len(layers))]
    chosen = rows(3, response=response)
    together = survey.layers_surveyed(lm, chosen, own, shifts=shifts, temperature=0.8)
    assert not close(together[0]["total"], together[1]["total"], 0.1)
    for part, u, shift in zip(together, own, shifts, strict=True):
        alone = survey.surveyed(lm, chosen, u, shift=shift, temperature=0.8)
        assert part.keys() == alone.keys()
        for key in ("total", "trace", "gain", "block_1", "block_2"):
            assert close(part[key], alone[key], 1e-10)
        if response:
            # Of several predictions all-ones is the only null; its sign is nobody's.
            ones = part["weakest"].sum(1) / lm.d_model**0.5
            assert np.abs(ones) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("response", [0, 2])
def test_single_spectra_are_squared_singular_values_of_dense_matrices(response):
    lm, (row,) = tiny("gpt2", dtype=torch.float64), rows(1, response=response)
    found = survey.single_spectra(lm, row, shift=SHIFT)
    seen = suffix_jacobian(lm, row, shift=SHIFT)
    dense = seen.unembedding @ seen.matrices[0]
    factors = [
        p.sqrt()[:, None] * (seen.unembedding @ j - p @ seen.unembedding @ j)
        for p, j in zip(seen.probabilities, seen.matrices, strict=True)
    ]
    expected = {
        "J_h": seen.matrices[0],
        "J centred": dense - dense.mean(0),
        "F_x": torch.cat(factors),
    }
    assert found.keys() == expected.keys()
    for name, matrix in expected.items():
        sizes = torch.linalg.svdvals(matrix).square().numpy()
        assert close(found[name], sizes, 1e-11)
    # Centring matters: without it the logits' own mean would be seen.
    uncentred = torch.linalg.svdvals(dense).square().numpy()
    assert not close(found["J centred"], uncentred, 1e-6)
