"""KL and log-likelihood against closed forms."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from steergauge.readout import kl, log_likelihood

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
