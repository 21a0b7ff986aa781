"""The states nearest to a target among those of every next token.

With o the natural state of the prompt's own next token u, s the step from o to a
target, and a_w = h_l(pi + w) - h_l(pi + u) the swap of u for w ::

    d(w) = ||h_l(pi + w) - target||     d1 and d2, the two smallest
    d(w) / ||s||                        is anything nearer than the step is long?
    ||a_w|| < ||s||                     at what share of w is the step the longer one?
    max_w cos(a_w, s)                   does any swap go the step's way?

All in float64, from the model's states. A batch of states needs one product with the
targets: d^2 = ||a||^2 - 2 a's' + ||s'||^2, with s' the target seen from h_l(pi + u).
That loses digits where d is small beside ||s'||: an error of some 1e-16 ||s'||^2 in d^2
is one of 1e-8 ||s'|| in d, which is less than the rounding of a state in float32. It
picks a few of each batch and fills the histogram, no more: the distances of those few
are taken anew from differences, and the two nearest of all are chosen by these.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steergauge.errors import InputError
from steergauge.reachability.candidates import Prefix, every_token, rounded
from steergauge.readout import kl_from

PER_DOUBLING = 6
"""Bins of the histogram for each factor of 2."""

EDGES: Float[np.ndarray, " edges"] = 2.0 ** (
    np.arange(-3 * PER_DOUBLING, 6 * PER_DOUBLING + 1) / PER_DOUBLING
)
"""Of distances in multiples of the step's length, 1/8 to 64; what lies outside counts
in the first or the last bin."""

SHORTLISTED = 4
"""Tokens of a batch whose distances are taken anew: two could be the nearest, and
rounding could put another one or two before them."""

LOGITS_AT_ONCE = 2**22
"""Entries of a batch of logits: 32 MB in float64."""


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """What every token says about each of T targets.

    Attributes:
        first: token of the nearest state; of equal ones the lowest id.
        second: of the second nearest.
        d1: distance of the nearest.
        d2: of the second nearest; d1, to rounding, where two tokens have one state.
        length: of the step from the prompt's own state to the target.
        shorter: share of the other tokens to which a swap is shorter than the step.
        cosine: the largest between a swap and the step; NaN where there is no step.
        aligned: the token of that swap; -1 where there is no step.
        histogram: tokens by distance in lengths of the step, between `EDGES`; all 0
            where there is no step.
    """

    first: Int[np.ndarray, " targets"]
    second: Int[np.ndarray, " targets"]
    d1: Float[np.ndarray, " targets"]
    d2: Float[np.ndarray, " targets"]
    length: Float[np.ndarray, " targets"]
    shorter: Float[np.ndarray, " targets"]
    cosine: Float[np.ndarray, " targets"]
    aligned: Int[np.ndarray, " targets"]
    histogram: Int[np.ndarray, "targets bins"]


@torch.no_grad()
def nearest(
    prefix: Prefix,
    targets: Float[Tensor, "targets d_model"],
    *,
    token: int,
    origin: Float[Tensor, " d_model"],
    progress: Callable[[int], None] | None = None,
) -> Nearest:
    """Every token of the vocabulary against every target, in one pass over it.

    Args:
        prefix: what comes before.
        targets: states after the prefix' layer.
        token: the prompt's own next one.
        origin: its natural state, made in the way that the targets were.
        progress: called with the number of tokens looked at since the last call.
    """
    own = prefix.states(torch.tensor([token]))[0]
    share = rounded(own.dtype, layer=prefix.layer)
    own = own.double()
    still = share * float(_norm(own))
    frame = _Frame(targets.to(own), own, origin.to(own), token=token, still=still)
    seen = _nothing(frame)
    for ids, states in every_token(prefix):
        seen = _extended(seen, frame, ids, states.double())
        if progress:
            progress(len(ids))
    return _result(seen, frame, prefix.lm.d_vocab)


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """What every token is compared with.

    A swap up to `still` is none: it may be one state, computed twice, and then its
    direction is that of rounding.
    """

    targets: Float[Tensor, "targets d_model"]
    own: Float[Tensor, " d_model"]
    origin: Float[Tensor, " d_model"]
    token: int
    still: float

    @property
    def steps(self) -> Tensor:
        return self.targets - self.origin

    @property
    def length(self) -> Tensor:
        return _norm(self.steps)


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """The extremes and counts of the tokens so far, for each target."""

    distance: Float[Tensor, "targets 2"]
    tokens: Int[Tensor, "targets 2"]
    cosine: Float[Tensor, " targets"]
    aligned: Int[Tensor, " targets"]
    shorter: Int[Tensor, " targets"]
    histogram: Int[Tensor, "targets bins"]


def _nothing(frame: _Frame) -> _Seen:
    num, ones = len(frame.targets), torch.ones_like(frame.length)
    none = torch.full_like(ones, -1, dtype=torch.long)
    return _Seen(
        distance=ones.new_full((num, 2), torch.inf),
        tokens=none.new_full((num, 2), -1),
        cosine=-torch.inf * ones,
        aligned=none,
        shorter=torch.zeros_like(none),
        histogram=none.new_zeros(num, len(EDGES) - 1),
    )


def _extended(seen: _Seen, frame: _Frame, ids: Tensor, states: Tensor) -> _Seen:
    """With a batch of tokens taken in, of ids above those before."""
    swaps = states - frame.own
    sizes = swaps.square().sum(-1)
    centred = frame.targets - frame.own
    squares = sizes + centred.square().sum(-1)[:, None] - 2 * centred @ swaps.T
    sizes, distances = sizes.sqrt(), squares.clamp_min(0).sqrt()
    distance, tokens = _two_nearest(seen, frame, ids, states, squares)
    cosine, aligned = _best_aligned(seen, frame, ids, swaps, sizes)
    others = sizes[ids != frame.token]
    return _Seen(
        distance=distance,
        tokens=tokens,
        cosine=cosine,
        aligned=aligned,
        shorter=seen.shorter + (others < frame.length[:, None]).sum(-1),
        histogram=seen.histogram + _counts(distances, frame.length),
    )


def _two_nearest(
    seen: _Seen, frame: _Frame, ids: Tensor, states: Tensor, squares: Tensor
) -> tuple[Tensor, Tensor]:
    """Exact distances and ids: by distance, and among equals by id."""
    num = min(SHORTLISTED, len(ids))
    at = squares.topk(num, dim=-1, largest=False).indices
    gaps = states[at] - frame.targets[:, None]
    distance = torch.cat([seen.distance, _norm(gaps)], dim=-1)
    tokens = torch.cat([seen.tokens, ids[at]], dim=-1)
    by_id = tokens.argsort(dim=-1)
    by_both = distance.gather(-1, by_id).argsort(dim=-1, stable=True)
    best = by_id.gather(-1, by_both)[:, :2]
    return distance.gather(-1, best), tokens.gather(-1, best)


def _best_aligned(
    seen: _Seen, frame: _Frame, ids: Tensor, swaps: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """The largest cosine and the lowest id that has it."""
    cosines = frame.steps @ swaps.T / sizes / frame.length[:, None]
    none = (ids == frame.token) | ~(sizes > frame.still) | sizes.isinf()
    cosines = cosines.masked_fill(none, -torch.inf)
    best = cosines.amax(-1)
    lowest = ids.where(cosines == best[:, None], ids[-1]).amin(-1)
    better = best > seen.cosine
    return best.where(better, seen.cosine), lowest.where(better, seen.aligned)


def _counts(distances: Tensor, length: Tensor) -> Tensor:
    """Tokens between `EDGES`, of targets that there is a step to."""
    edges = torch.from_numpy(EDGES).to(distances)
    bins = torch.searchsorted(edges, distances / length[:, None], right=True) - 1
    bins = bins.clamp(0, len(EDGES) - 2)
    counted = (length > 0).long()[:, None].expand_as(bins)
    none = bins.new_zeros(len(bins), len(EDGES) - 1)
    return none.scatter_add(1, bins, counted)


def _result(seen: _Seen, frame: _Frame, num: int) -> Nearest:
    told = seen.cosine.isfinite()
    return Nearest(
        first=seen.tokens[:, 0].cpu().numpy(),
        second=seen.tokens[:, 1].cpu().numpy(),
        d1=seen.distance[:, 0].cpu().numpy(),
        d2=seen.distance[:, 1].cpu().numpy(),
        length=frame.length.cpu().numpy(),
        shorter=seen.shorter.cpu().numpy() / max(1, num - 1),
        cosine=seen.cosine.where(told, torch.nan).cpu().numpy(),
        aligned=seen.aligned.where(told, -1).cpu().numpy(),
        histogram=seen.histogram.cpu().numpy(),
    )


def _norm(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1)


@torch.no_grad()
def least_kl(
    prefix: Prefix,
    logits: Float[Tensor, " d_vocab"],
    *,
    tokens: Int[Tensor, " n"],
    temperature: float = 1.0,
) -> tuple[int, float]:
    """The token after which the model expects most nearly what given logits expect.

    Args:
        prefix: what comes before, with keys and values of all blocks.
        logits: of the steered model, say; p.
        tokens: the candidates w.
        temperature: of p and of every q_w.

    Returns:
        The w of the smallest KL(p || q_w), the first of equal ones, and that KL in
        nats.

    Raises:
        InputError: there is no candidate, or the prefix is not whole.
    """
    if not len(tokens):
        raise InputError("the least KL of no token was asked for.")
    divergence = kl_from(logits.to(prefix.lm.device).double() / temperature)
    at_once = max(1, LOGITS_AT_ONCE // prefix.lm.d_vocab)
    nats = torch.cat(
        [
            divergence(prefix.logits(part).double() / temperature)
            for part in tokens.split(at_once)
        ]
    )
    least = float(nats.amin())
    first = int((nats == least).nonzero()[0])
    return int(tokens[first]), least
