"""R: from logits to a number, per token, in nats.

All of it in float64, whatever the model's precision: a difference of two
log-probabilities loses its digits otherwise.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor


def kl(
    p: Float[Tensor, "*tokens d_vocab"], q: Float[Tensor, "*tokens d_vocab"]
) -> Float[Tensor, "*tokens"]:
    """KL(softmax p || softmax q) per token, in nats, never below 0.

    >>> import torch
    >>> p = torch.tensor([0.5, 0.5]).log(); q = torch.tensor([0.9, 0.1]).log()
    >>> round(float(kl(p, q)), 4)
    0.5108
    """
    return kl_from(p)(q)


def kl_from(
    p: Float[Tensor, "*tokens d_vocab"],
) -> Callable[[Float[Tensor, "*tokens d_vocab"]], Float[Tensor, "*tokens"]]:
    """The map q -> `kl(p, q)`, for many q against one p.

    With the logits q, sum_i p_i log q_i = sum_i p_i q_i - logsumexp(q), so that no
    log-softmax is made of q; the term in p alone is computed once.
    """
    weights = p.double().softmax(-1)

    def expected_log(q: Tensor) -> Tensor:
        wide = q.double()
        return torch.linalg.vecdot(weights, wide) - wide.logsumexp(-1)

    # The same operations for p and q, so that KL(p || p) is 0 and not rounding.
    negative_entropy = expected_log(p)
    return lambda q: (negative_entropy - expected_log(q)).clamp_min(0)


def log_likelihood(
    logits: Float[Tensor, "*tokens d_vocab"], ids: Int[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """Log-probability of each token, in nats; `logits[t]` predicts `ids[t]`."""
    chosen = logits.double().log_softmax(-1).gather(-1, ids[..., None])
    return chosen.squeeze(-1)


def jensen_shannon(
    p: Float[Tensor, "*tokens d_vocab"], q: Float[Tensor, "*tokens d_vocab"]
) -> Float[Tensor, "*tokens"]:
    """Jensen-Shannon divergence of two softmaxes per token, in nats: 0 to log 2.

    >>> import torch
    >>> p = torch.tensor([1.0, 0.0]).log(); q = torch.tensor([0.0, 1.0]).log()
    >>> round(float(jensen_shannon(p.clamp_min(-50), q.clamp_min(-50))), 4)
    0.6931
    """
    first, second = p.double().log_softmax(-1), q.double().log_softmax(-1)
    middle = torch.logaddexp(first, second) - math.log(2)
    halves = first.exp() * (first - middle) + second.exp() * (second - middle)
    return (0.5 * halves.sum(-1)).clamp_min(0)


def total_variation(
    p: Float[Tensor, "*tokens d_vocab"], q: Float[Tensor, "*tokens d_vocab"]
) -> Float[Tensor, "*tokens"]:
    """Largest difference of the probability of any event, per token, 0 to 1."""
    difference = p.double().softmax(-1) - q.double().softmax(-1)
    return 0.5 * difference.abs().sum(-1)


def token_agreement(
    p: Float[Tensor, "*tokens d_vocab"], q: Float[Tensor, "*tokens d_vocab"]
) -> Float[Tensor, "*tokens"]:
    """1 where the likeliest token is the same, else 0 (arXiv 2602.06801, Table 3)."""
    return (p.argmax(-1) == q.argmax(-1)).double()


def top_overlap(
    p: Float[Tensor, "*tokens d_vocab"],
    q: Float[Tensor, "*tokens d_vocab"],
    k: int = 10,
) -> Float[Tensor, "*tokens"]:
    """Share of the k likeliest tokens that two logits have in common (ibid.)."""
    first, second = p.topk(k, dim=-1).indices, q.topk(k, dim=-1).indices
    return (first[..., :, None] == second[..., None, :]).any(-1).double().mean(-1)
