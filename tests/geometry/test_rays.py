"""Costs along rays have their closed forms, and rounding is above what it has to be."""

import numpy as np
import pytest
import torch
from tests import ground_truth
from tests.ground_truth import DEAD, texts
from tests.models import NUM_LAYERS, tiny

from steergauge.audits.nulls import FLOOR_FACTOR
from steergauge.errors import InputError
from steergauge.fisher import fishers
from steergauge.geometry.rays import costs_along, linearity_along
from steergauge.intervention import Scope
from steergauge.jacobian import Shift
from steergauge.scoring import Continuation
from steergauge.vector import Site

PROMPT = 5
SHIFT = Shift(Site(1))
SHARES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Steps as shares of the stream's norm."""


def rows(num: int) -> list[Continuation]:
    return [Continuation(ids[:PROMPT], ids[PROMPT:]) for ids in texts(num)]


def entries(num: int) -> list:
    return [(ids, PROMPT) for ids in texts(num)]


def divergence_along(lm, texts, u, lengths, **options) -> np.ndarray:
    return costs_along(lm, whole(texts), {"u": u}, lengths, **options)["u"].nats


def rounding_along(lm, texts, u, lengths, **options) -> np.ndarray:
    return costs_along(lm, whole(texts), {"u": u}, lengths, **options)["u"].floors


def whole(texts: list[Continuation]) -> list:
    return [
        ([*one.prompt_ids, *one.response_ids], len(one.prompt_ids)) for one in texts
    ]


def stream_norm(lm, layer: int) -> float:
    ids = torch.tensor(texts(4))
    h = lm.prefix(ids, torch.ones_like(ids, dtype=torch.bool), layer=layer)
    return float(h.norm(dim=-1).median())


def drawn(width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("scope", [Scope.GENERATING, Scope.ALL])
def test_two_live_tokens_cost_the_closed_form_at_any_distance(scope, temperature):
    slope, lengths = 2.0, (-3.0, 0.01, 0.7, 4.0)
    planted = ground_truth.softmax2(slope)
    w = planted.visible[:, 0]
    found = divergence_along(
        planted.lm,
        rows(3),
        5 * w,  # of any length
        lengths,
        shift=Shift(Site(1), scope),
        temperature=temperature,
    )
    streams = planted.lm.model.embedding.weight.detach()
    for i, t in enumerate(lengths):
        for text, row in enumerate(rows(3)):
            read = [row.prompt_ids[-1], *row.response_ids[:-1]]
            odds = [float(slope * (streams[token] @ w)) for token in read]
            expected = sum(
                ground_truth.two_token_nats(a / temperature, slope * t / temperature)
                for a in odds
            )
            assert expected > 1e-8
            # A direction is added in float32.
            assert found[i, text] == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_in_the_scope_of_the_response_only_its_second_prediction_is_shifted():
    planted = ground_truth.softmax2()
    w = planted.visible[:, 0]
    ids = texts(1)[0]
    one, two = (Continuation(ids[:PROMPT], ids[PROMPT : PROMPT + k]) for k in (1, 2))
    options = {"shift": Shift(Site(1), Scope.RESPONSE)}
    assert divergence_along(planted.lm, [two], w, (1.0,), **options).item() > 1e-3
    # A text of one token has no prediction that a shift of the response could reach.
    with pytest.raises(InputError, match="no token"):
        divergence_along(planted.lm, [one], w, (1.0,), **options)


def slope(nats: np.ndarray, lengths: tuple[float, float]) -> float:
    before, after = np.log(nats.mean(1))
    return float((after - before) / np.log(lengths[1] / lengths[0]))


def test_costs_grow_as_the_square_and_along_dead_coordinates_as_the_fourth_power():
    planted = ground_truth.widened_llama()
    norm = stream_norm(planted.lm, 1)
    lengths = (0.03 * norm, 0.1 * norm)
    power = {}
    for name, basis in (("live", planted.visible), ("dead", planted.null)):
        direction = basis @ drawn(basis.shape[1])
        nats = divergence_along(planted.lm, rows(4), direction, lengths, shift=SHIFT)
        assert nats.min() > 1e-11
        power[name] = slope(nats, lengths)
    # At 0.1 of ||h|| the next order is a hundredth, or a tenth where it is odd.
    assert power["live"] == pytest.approx(2, abs=0.1)
    assert power["dead"] == pytest.approx(4, abs=0.1)


def test_what_a_mask_hides_costs_nothing_to_the_last_bit_at_any_distance():
    planted = ground_truth.masked_llama()
    lengths = [share * stream_norm(planted.lm, 1) for share in SHARES]
    dead, live = (basis.sum(1) for basis in (planted.null, planted.visible))
    hidden = divergence_along(planted.lm, rows(4), dead, lengths, shift=SHIFT)
    seen = divergence_along(planted.lm, rows(4), live, lengths, shift=SHIFT)
    assert seen.min() > 1e-7
    assert (hidden == 0).all()
    assert planted.null.shape[1] == DEAD


@pytest.mark.parametrize("layer", range(NUM_LAYERS))
@pytest.mark.parametrize("scope", [Scope.GENERATING, Scope.ALL])
def test_rounding_is_above_what_an_exact_null_costs_and_below_what_is_seen(
    scope, layer
):
    lm, shift = tiny("gpt2"), Shift(Site(layer), scope)
    lengths = [share * stream_norm(lm, layer) for share in SHARES]
    ones, other = torch.ones(lm.d_model), drawn(lm.d_model).float()
    null = divergence_along(lm, rows(4), ones, lengths, shift=shift)
    seen = divergence_along(lm, rows(4), other, lengths, shift=shift)
    floors = {
        name: rounding_along(lm, rows(4), u, lengths, shift=shift)
        for name, u in (("ones", ones), ("other", other))
    }
    # There is some rounding to be above of: a hundred times ||h|| loses two digits.
    assert null[-1].max() > 1e-13
    # Below 1e-13 it is the rounding of float64 logarithms, which T0 measures.
    least = np.maximum(floors["ones"], 1e-13)
    assert (null.max(1) <= FLOOR_FACTOR * least).all()
    # A hundredth of ||h|| costs 1e-5 where it is seen, and rounds at 1e-12.
    assert (seen.min(1) > 1e4 * FLOOR_FACTOR * floors["other"])[:3].all()
    assert (seen.min(1) > FLOOR_FACTOR * floors["other"]).all()


def test_logits_of_a_linear_model_follow_j_at_every_step():
    planted, steps = ground_truth.linear(), (0.01, 1.0, 30.0)
    u = {"seen": planted.visible.sum(1), "other": planted.visible[:, 2]}
    found = linearity_along(planted.lm, entries(3), u, steps, length=2.0, shift=SHIFT)
    for ray in found.values():
        assert ray.nats.shape == ray.departures.shape == (3, 3)
        # Of logits of size 100 in float64, of which a small step changes a little.
        assert ray.departures.max() < 1e-10
    # KL is of second order at a small step only: the check is not vacuous.
    ratio = found["seen"].nats / (np.square(steps)[:, None] * found["seen"].quadratic)
    assert np.abs(ratio[0] - 1).max() < 0.2
    assert np.abs(ratio[-1] - 1).min() > 0.5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_quadratic_form_is_that_of_the_fisher_matrix_and_of_small_steps(
    family, temperature
):
    lm, length, steps = tiny(family), 0.5, (0.05, 1.0)
    u = drawn(lm.d_model)
    options = {"length": length, "shift": SHIFT}
    (ray,) = linearity_along(
        lm, entries(3), {"u": 3 * u}, steps, temperature=temperature, **options
    ).values()
    (cold,) = linearity_along(lm, entries(3), {"u": u}, steps, **options).values()
    unit = u / u.norm()
    each = [float(unit @ f @ unit) for f in fishers(lm, entries(3), shift=SHIFT)]
    assert cold.quadratic == pytest.approx(length**2 / 2 * np.array(each), rel=1e-5)
    assert min(each) > 1e-3
    # At 0.05 of the length the cubic term is some percent of a text's cost.
    assert ray.nats[0] / steps[0] ** 2 == pytest.approx(ray.quadratic, rel=0.05)
    assert (cold.quadratic == pytest.approx(ray.quadratic)) == (temperature == 1)
    # Departures are of the logits as they are, whatever the texts' temperature.
    assert ray.departures == pytest.approx(cold.departures)
    assert 0 < ray.departures[0].max() < ray.departures[1].min()


def test_a_ray_costs_what_the_scored_texts_of_the_same_step_cost():
    lm, length, steps = tiny("llama"), 1.5, (0.5, 2.0)
    u = drawn(lm.d_model)
    (ray,) = linearity_along(
        lm, entries(3), {"u": u}, steps, length=length, shift=SHIFT
    ).values()
    sizes = [length * step for step in steps]
    scored = divergence_along(lm, rows(3), u, sizes, shift=SHIFT)
    assert scored.min() > 1e-4
    # Float32, on one way with a cache and on the other without.
    assert ray.nats == pytest.approx(scored, rel=1e-3)


def test_what_nothing_reads_costs_nothing_and_has_nothing_to_depart_from():
    planted = ground_truth.masked_llama()
    (ray,) = linearity_along(
        planted.lm,
        entries(2),
        {"dead": planted.null.sum(1)},
        (1.0, 10.0),
        length=1.0,
        shift=SHIFT,
    ).values()
    assert (ray.nats == 0).all()
    assert (ray.quadratic == 0).all()
    assert np.isinf(ray.departures).all()
