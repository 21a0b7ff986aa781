"""What rounding makes of a natural state passes; what anything else makes does not."""

import copy
import math

import numpy as np
import pytest
import torch
from tests.models import D_MODEL, borrowed, ids_and_mask, network, tiny

from steergauge.errors import InputError, LayerOutOfRange
from steergauge.intervention import Ablate, Add, Scope
from steergauge.loading import load
from steergauge.prompts import Text, encode, environment
from steergauge.reachability import candidates
from steergauge.reachability.candidates import Prefix, prefix_of
from steergauge.reachability.tolerance import (
    Tolerance,
    calibrated,
    natural_states,
    steered_states,
)
from steergauge.split import LanguageModel
from steergauge.vector import Site, SteeringVector

LAYER = 2
LENGTH = 8


def rows(num: int, *, seed: int) -> list[list[int]]:
    return ids_and_mask(*[LENGTH] * num, seed=seed)[0].tolist()


def vector(*, layer: int = 1) -> SteeringVector:
    generator = torch.Generator().manual_seed(0)
    return SteeringVector(torch.randn(D_MODEL, generator=generator), Site(layer))


def shares(lm: LanguageModel, tolerance: Tolerance) -> list[tuple[float, float]]:
    """(noise, tolerance), both as shares of the norm, of other texts' states.

    Each among all tokens of the vocabulary, as in a search.
    """
    found = []
    for row in rows(4, seed=1):
        targets = natural_states(lm, row, layer=LAYER)
        prefix = prefix_of(lm, (), layer=LAYER)
        for place, token in enumerate(row):
            state = prefix.states(torch.arange(lm.d_vocab))[token].double()
            norm = float(torch.linalg.vector_norm(targets[place]))
            gap = float(torch.linalg.vector_norm(state - targets[place]))
            found.append((gap / norm, tolerance.at(place, norm) / norm))
            prefix = prefix.then([token])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_natural_states_of_other_texts_pass(family, dtype):
    """Six texts calibrate: 42 states and 32 first ones, of which q99 is the largest.

    Five times that is far beyond any noise of the 32 states that are tried: rounding
    adds up from many small parts, and its largest in many is hardly twice its median.
    """
    lm = borrowed(network(family).to(dtype))
    tolerance = calibrated(lm, rows(6, seed=0), layer=LAYER)
    assert tolerance.num == 6 * (LENGTH - 1) + 32
    assert tolerance.ulp == torch.finfo(dtype).eps
    found = shares(lm, tolerance)
    assert all(noise < allowed for noise, allowed in found)
    # Not vacuous: there is noise, but for sums that bfloat16 rounds to the same number,
    # and what is allowed is no more than the rounding of a model of three blocks.
    if dtype == torch.float32:
        assert tolerance.rest > 0
        assert max(noise for noise, _ in found) > 0
    assert all(allowed < 100 * tolerance.ulp for _, allowed in found)


def test_a_state_that_was_moved_by_a_hundred_tolerances_is_beyond_it():
    lm = tiny("llama")
    tolerance = calibrated(lm, rows(6, seed=0), layer=LAYER)
    generator = torch.Generator().manual_seed(0)
    row = rows(1, seed=1)[0]
    for place, state in enumerate(natural_states(lm, row, layer=LAYER)):
        norm = float(torch.linalg.vector_norm(state))
        allowed = tolerance.at(place, norm)
        step = torch.randn(D_MODEL, generator=generator, dtype=torch.float64)
        moved = state + 100 * allowed * step / torch.linalg.vector_norm(step)
        found = prefix_of(lm, row[:place], layer=LAYER).states(torch.arange(211))
        gaps = torch.linalg.vector_norm(found.double() - state, dim=-1)
        far = torch.linalg.vector_norm(found.double() - moved, dim=-1)
        assert float(gaps.min()) <= allowed < float(far.min())


def test_the_first_place_has_a_tolerance_of_its_own():
    tolerance = Tolerance(first=1e-3, rest=1e-5, ulp=1e-8, num=10)
    assert tolerance.at(0, 2.0) == pytest.approx(5 * 1e-3 * 2)
    assert tolerance.at(1, 2.0) == tolerance.at(9, 2.0) == pytest.approx(5 * 1e-5 * 2)
    # Measured: a first token sees itself alone, and rounds the less.
    found = calibrated(tiny("llama"), rows(6, seed=0), layer=LAYER)
    assert found.first != found.rest


def test_noise_below_the_last_place_is_not_believed():
    tolerance = Tolerance(first=0.0, rest=0.0, ulp=2.0**-23, num=10)
    floor = tolerance.at(0, 3.0)
    assert floor == tolerance.at(5, 3.0) == pytest.approx(4 * 2.0**-23 / 12**0.5 * 3)
    # A coordinate that is all of the state may be rounded the other way.
    assert 3 * 2.0**-23 < floor < 1.2 * 3 * 2.0**-23


def in_half(lm: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    return load(copy.deepcopy(lm.model).to(dtype), tokenizer=lm.tokenizer)


@pytest.fixture(scope="module")
def organism() -> LanguageModel:
    return load("builtin:organism", device="cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_first_token_passes_where_no_noise_was_measured(dtype, organism):
    lm = in_half(organism, dtype)
    texts = [encode(lm, Text(p))[0] for p in environment().prompts[:2]]
    tolerance = calibrated(lm, texts, layer=LAYER)
    # Not vacuous: all that was measured agreed, and the floor alone says what passes.
    assert tolerance.first == 0
    states = prefix_of(lm, (), layer=LAYER).states(torch.arange(0, lm.d_vocab, 32))
    for token, state in zip(range(0, lm.d_vocab, 32), states.double(), strict=True):
        (target,) = natural_states(lm, [token], layer=LAYER)
        norm = float(torch.linalg.vector_norm(target))
        gap = float(torch.linalg.vector_norm(state - target))
        assert gap <= tolerance.at(0, norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_near_a_token_is_not_at_it_in_any_precision(dtype, organism):
    """The mean of a swap of the last token is near that swap, and no token's own."""
    lm, layer = in_half(organism, dtype), 0
    texts = [encode(lm, Text(p))[0] for p in environment().prompts[:32]]
    tolerance = calibrated(lm, texts[:4], layer=layer)

    def last(row: list[int]) -> torch.Tensor:
        return natural_states(lm, row, layer=layer)[-1]

    swaps = [last([*row[:-1], 200]) - last(row) for row in texts[4:24]]
    v = torch.stack(swaps).mean(0)
    shares = []
    for row in texts[24:]:
        natural, place = last(row), len(row) - 1
        norm = float(torch.linalg.vector_norm(natural))
        found = prefix_of(lm, row[:-1], layer=layer).states(torch.arange(lm.d_vocab))
        own = torch.linalg.vector_norm(found[row[-1]].double() - natural)
        near = torch.linalg.vector_norm(found.double() - natural - v, dim=-1).min()
        assert float(own) <= tolerance.at(place, norm) < float(near)
        shares.append(float(near) / norm)
    # Not vacuous: eight units in bfloat16's last place, .0625, would accept them all.
    assert max(shares) < 0.0625
    assert max(shares) < 0.1 * float(torch.linalg.vector_norm(v)) / norm


def test_the_noise_is_that_of_the_rows_that_a_later_start_shares(monkeypatch):
    """Of a model where candidates share rows after four tokens, and not before."""
    made, lm, looked_at = candidates._mask, tiny("llama"), []

    def mask(lm: LanguageModel, seen: int, width: int) -> torch.Tensor:
        right = made(lm, seen, width)
        return right if seen >= 4 else torch.zeros_like(right)

    states = Prefix.states

    def spied(prefix: Prefix, tokens: torch.Tensor) -> torch.Tensor:
        looked_at.append((len(prefix.ids), prefix.packed, prefix.whole))
        return states(prefix, tokens)

    monkeypatch.setattr(candidates, "_mask", mask)
    monkeypatch.setattr(Prefix, "states", spied)
    texts = rows(2, seed=0)
    assert not prefix_of(lm, texts[0][:1], layer=LAYER).packed
    assert prefix_of(lm, texts[0][:5], layer=LAYER).packed
    early = calibrated(lm, texts, layer=LAYER)
    assert not any(packed for _, packed, _ in looked_at)
    looked_at.clear()
    later = calibrated(lm, texts, layer=LAYER, last=LENGTH - 5)
    assert later.num == early.num + 2 * (LENGTH - 5)
    assert later.rest >= early.rest
    shared = [place for place, packed, _ in looked_at if packed]
    assert shared == [5, 6, 7] * 2
    # As in a search, which needs the logits: rows are proved up to the last block.
    assert all(whole for *_, whole in looked_at)


def test_the_same_texts_and_seed_give_the_same_tolerance():
    lm, texts = tiny("llama"), rows(3, seed=0)
    first = calibrated(lm, texts, layer=LAYER)
    assert first == calibrated(lm, texts, layer=LAYER)
    assert first.num == 3 * (LENGTH - 1) + len(
        {token for row in texts for token in row}
    )


def test_natural_states_are_those_that_hugging_face_returns():
    lm, row = tiny("llama"), rows(1, seed=0)[0]
    with torch.no_grad():
        theirs = lm.model(torch.tensor([row]), output_hidden_states=True).hidden_states
    states = natural_states(lm, row, layer=LAYER)
    assert states.dtype == torch.float64
    assert torch.equal(states, theirs[LAYER + 1][0].double())


@pytest.mark.parametrize("scope", [Scope.ALL, Scope.GENERATING])
def test_a_steered_state_is_a_step_off_at_its_site_and_carried_on_above(scope):
    lm, row, v = tiny("llama"), rows(1, seed=0)[0], vector()
    add = Add(v, alpha=2.0, scope=scope)
    at_site = steered_states(lm, row, add, layer=1) - natural_states(lm, row, layer=1)
    inside = np.arange(LENGTH) >= (0 if scope is Scope.ALL else LENGTH - 1)
    step = 2 * v.direction.double()
    # One addition in float32, in a stream of entries below 10.
    assert torch.allclose(
        at_site[inside], step.expand(int(inside.sum()), -1), atol=1e-5
    )
    assert torch.equal(at_site[~inside], torch.zeros_like(at_site[~inside]))
    above = steered_states(lm, row, add, layer=3) - natural_states(lm, row, layer=3)
    # Blocks in between make something else of it: more than a tenth of its length.
    gaps = torch.linalg.vector_norm(above[inside] - step, dim=-1)
    assert float(gaps.min()) > 0.1 * float(torch.linalg.vector_norm(step))
    assert torch.equal(above[~inside], torch.zeros_like(above[~inside]))


def test_nothing_is_left_along_an_ablated_direction():
    lm, row = tiny("llama"), rows(1, seed=0)[0]
    ablate = Ablate(vector(), layers=(0, 1, 3))
    unit = ablate.direction.double()
    for layer, expected in ((0, True), (1, True), (2, False), (3, True)):
        states = steered_states(lm, row, ablate, layer=layer)
        before = natural_states(lm, row, layer=layer) @ unit
        assert float(before.abs().max()) > 0.1
        assert (float((states @ unit).abs().max()) < 1e-5) is expected


def test_what_cannot_be_measured_is_refused():
    lm = tiny("llama")
    with pytest.raises(InputError, match="none of which has a second token"):
        calibrated(lm, [[5], []], layer=LAYER)
    with pytest.raises(InputError, match="without any token"):
        natural_states(lm, [], layer=LAYER)
    with pytest.raises(InputError, match=r"after block 0.*steered after block 1"):
        steered_states(lm, [5, 6], Add(vector()), layer=0)
    with pytest.raises(LayerOutOfRange):
        natural_states(lm, [5, 6], layer=9)
    assert math.isfinite(calibrated(lm, [[5, 6]], layer=LAYER).rest)
