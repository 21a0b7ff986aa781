"""KL and log-likelihood against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from steergauge.readout import (
    jensen_shannon,
    kl,
    log_likelihood,
    token_agreement,
    top_overlap,
    total_variation,
)

probability = st.floats(0.01, 0.99)
ROUNDING = 1e-13
"""Float64 rounding of a sum of terms of size 1 to 10."""


def random_logits(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@given(probability, probability)
def test_kl_of_two_classes_has_its_closed_form(p, q):
    of = [torch.tensor([x, 1 - x], dtype=torch.float64).log() for x in (p, q)]
    closed = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert abs(float(kl(*of)) - closed) < ROUNDING


def test_kl_is_that_of_torch_in_float64():
    p, q = random_logits(4, 7, 50), random_logits(4, 7, 50, seed=1)
    log_p, log_q = (x.double().log_softmax(-1) for x in (p, q))
    theirs = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    assert kl(p, q).shape == (4, 7)
    assert (kl(p, q) - theirs).abs().max() < ROUNDING


def test_kl_is_positive_between_different_distributions_and_zero_between_equal_ones():
    p = random_logits(200, 50)
    assert (kl(p, p) == 0).all()
    # Second order: a change of 1e-4 in the logits is a KL near 1e-8, far above 1e-16.
    near = p + 1e-4 * random_logits(200, 50, seed=1)
    assert (kl(p, near) > 1e-11).all()
    assert (kl(p, near) < 1e-6).all()
    assert (kl(p, random_logits(200, 50, seed=2)) > 0.1).all()


def test_kl_does_not_see_a_constant_added_to_the_logits():
    p, q = random_logits(9, 50).double(), random_logits(9, 50, seed=1).double()
    for shift in (-30.0, 30.0):
        # 30 * 2^-53 is what adding it costs in rounding.
        assert (kl(p + shift, q - shift) - kl(p, q)).abs().max() < 1e-12


def test_kl_is_not_symmetric():
    p, q = random_logits(9, 50), random_logits(9, 50, seed=1)
    assert (kl(p, q) - kl(q, p)).abs().min() > 1e-3


def test_kl_stays_finite_where_a_probability_underflows():
    p, q = torch.tensor([0.0, -2000.0]), torch.tensor([-2000.0, 0.0])
    assert float(kl(p, q)) == 2000.0


def test_log_likelihood_is_minus_the_cross_entropy():
    logits = random_logits(4, 7, 50)
    ids = torch.randint(0, 50, (4, 7), generator=torch.Generator().manual_seed(1))
    flat = functional.cross_entropy(
        logits.double().flatten(0, 1), ids.flatten(), reduction="none"
    )
    ours = log_likelihood(logits, ids)
    assert ours.dtype == torch.float64
    assert (ours.flatten() + flat).abs().max() < ROUNDING
    assert (ours < 0).all()


def test_likelihoods_of_all_tokens_sum_to_one():
    logits = random_logits(5, 50)
    every = torch.arange(50)
    total = log_likelihood(logits[:, None].expand(-1, 50, -1), every.expand(5, -1))
    assert (total.exp().sum(-1) - 1).abs().max() < ROUNDING


@given(probability, probability)
def test_jensen_shannon_of_two_classes_has_its_closed_form(p, q):
    of = [torch.tensor([x, 1 - x], dtype=torch.float64).log() for x in (p, q)]
    middle = (p + q) / 2
    closed = sum(
        0.5 * (x * math.log(x / middle) + (1 - x) * math.log((1 - x) / (1 - middle)))
        for x in (p, q)
    )
    assert abs(float(jensen_shannon(*of)) - closed) < ROUNDING


def test_jensen_shannon_is_the_mean_kl_from_the_mixture():
    p, q = random_logits(4, 7, 50), random_logits(4, 7, 50, seed=1)
    middle = ((p.double().softmax(-1) + q.double().softmax(-1)) / 2).log()
    theirs = (kl(p, middle) + kl(q, middle)) / 2
    assert jensen_shannon(p, q).shape == (4, 7)
    assert theirs.min() > 0.01
    assert (jensen_shannon(p, q) - theirs).abs().max() < ROUNDING


def test_jensen_shannon_is_symmetric_0_for_equals_and_at_most_log_2():
    p, q = random_logits(50, 50), random_logits(50, 50, seed=1)
    assert (jensen_shannon(p, q) - jensen_shannon(q, p)).abs().max() < ROUNDING
    # Here log-probabilities are averaged through a log-sum, which rounds.
    assert jensen_shannon(p, p).abs().max() < ROUNDING
    wild = [random_logits(50, 50, seed=seed, scale=100.0) for seed in (0, 1)]
    most = jensen_shannon(*wild)
    assert most.max() > 0.6
    assert (most <= math.log(2) + ROUNDING).all()
    apart = torch.tensor([0.0, -2000.0]), torch.tensor([-2000.0, 0.0])
    assert float(jensen_shannon(*apart)) == pytest.approx(math.log(2), abs=ROUNDING)


def test_total_variation_is_the_largest_difference_of_any_event():
    p, q = random_logits(20, 6), random_logits(20, 6, seed=1)
    gap = p.double().softmax(-1) - q.double().softmax(-1)
    # All 64 events of six tokens.
    events = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 6)
    largest = (gap @ events.T).abs().amax(-1)
    assert total_variation(p, q).shape == (20,)
    assert largest.min() > 0.1
    assert (total_variation(p, q) - largest).abs().max() < ROUNDING


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0, 50.0])
def test_total_variation_obeys_pinsker_and_stays_between_its_bounds(scale):
    p = random_logits(200, 50, scale=scale)
    q = random_logits(200, 50, seed=1, scale=scale)
    seen = total_variation(p, q)
    assert (seen >= 0).all()
    assert (seen <= 1 + ROUNDING).all()
    assert (seen <= (kl(p, q) / 2).sqrt() + ROUNDING).all()
    assert (total_variation(p, p) == 0).all()
    # JS is below total variation times log 2, for any two distributions.
    assert (jensen_shannon(p, q) <= math.log(2) * seen + ROUNDING).all()


def test_agreement_and_overlap_are_those_of_sorted_lists():
    p = random_logits(200, 50)
    q = p + random_logits(200, 50, seed=1, scale=0.5)
    ours = token_agreement(p, q), top_overlap(p, q), top_overlap(p, q, 3)
    first, second = (x.argsort(-1, descending=True).tolist() for x in (p, q))
    for i, (one, other) in enumerate(zip(first, second, strict=True)):
        assert float(ours[0][i]) == (one[0] == other[0])
        assert float(ours[1][i]) == pytest.approx(len({*one[:10]} & {*other[:10]}) / 10)
        assert float(ours[2][i]) == pytest.approx(len({*one[:3]} & {*other[:3]}) / 3)
    # Not vacuous: neither always nor never the same.
    for values in ours:
        assert 0.2 < float(values.mean()) < 0.98
    assert (token_agreement(p, p) == 1).all()
    assert (top_overlap(p, p) == 1).all()


def test_measures_of_probability_do_not_see_a_constant_added_to_the_logits():
    p, q = random_logits(9, 50).double(), random_logits(9, 50, seed=1).double()
    for measure in (jensen_shannon, total_variation, token_agreement, top_overlap):
        # 30 * 2^-53 is what adding it costs in rounding.
        assert (measure(p + 30, q - 30) - measure(p, q)).abs().max() < 1e-12
