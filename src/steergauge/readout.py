"""R: from logits to a number, per token, in nats.

All of it in float64, whatever the model's precision: a difference of two
log-probabilities loses its digits otherwise.
"""

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
    log_p = p.double().log_softmax(-1)
    log_q = q.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)


def log_likelihood(
    logits: Float[Tensor, "*tokens d_vocab"], ids: Int[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """Log-probability of each token, in nats; `logits[t]` predicts `ids[t]`."""
    chosen = logits.double().log_softmax(-1).gather(-1, ids[..., None])
    return chosen.squeeze(-1)
