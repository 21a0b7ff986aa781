"""R: from logits to a number, per token, in nats.

All of it in float64, whatever the model's precision: a difference of two
log-probabilities loses its digits otherwise.
"""

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
