"""A text from its states, one token after another: SipIt, and where it stops.

With the tokens pi before a place recovered, the state there is a function of one token
(arXiv 2510.15511, Algorithm 1; their ball is closed too) ::

    accept w  iff  || h_l(pi + w) - h ||  <=  epsilon        then pi becomes pi + w

so a natural text comes back after at most T V candidates. The order in which they are
tried is free. Here every batch is as large as all before it, and is made of two
rankings in turn: the model's own of the next token, and that of the input embeddings
about h - (h_w - e_w), with the last term the mean over those tried tokens whose states
are nearest to h. The one finds what the model expects, the other, in lower blocks,
what it does not.

A state that no token makes is no failure of the search once all of V was tried.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steergauge.errors import InputError, ShapeMismatch
from steergauge.reachability.candidates import TOKENS_AT_ONCE, Prefix, prefix_of
from steergauge.split import LanguageModel

FIRST = 16
"""Candidates of the first batch: few, as a natural token is mostly among them."""

SIMILAR = 8
"""Tried tokens, those of the nearest states, that say what the blocks add."""

EMBEDDED_AT_ONCE = 8192
"""Input embeddings that are held at once."""


@runtime_checkable
class Ball(Protocol):
    """How far from a state the candidate may be that is accepted for it."""

    def at(self, place: int, norm: float) -> float:
        """The radius about a state of length `norm` at `place`, 0-based."""
        ...


@dataclass(frozen=True, slots=True)
class Absolute:
    """One radius at every place; the published code of arXiv 2604.09839 has 1e-5.

    Raises:
        InputError: it is negative or no number.
    """

    radius: float

    def __post_init__(self) -> None:
        """Refuse what no distance can be compared with."""
        if not (math.isfinite(self.radius) and self.radius >= 0):
            raise InputError(
                f"the tolerance is {self.radius}.",
                remedy="Give a finite number that is not negative, such as 1e-5.",
            )

    def at(self, place: int, norm: float) -> float:
        """The same everywhere."""
        return self.radius


@dataclass(frozen=True, slots=True)
class Step:
    """What was found for the state at one place.

    Attributes:
        place: 0-based.
        token: the one whose state is the nearest of those that were tried.
        accepted: whether its state is within the tolerance.
        distance: from that state.
        second: distance of the next nearest; nan unless every token was tried.
        tolerance: the radius here.
        tested: how many tokens were tried.
        other: distance of the next nearest of those that were tried.
    """

    place: int
    token: int
    accepted: bool
    distance: float
    second: float
    tolerance: float
    tested: int
    other: float


@dataclass(frozen=True, slots=True)
class Inversion:
    """The tokens found for the states of a text, place by place."""

    steps: tuple[Step, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Accepted or not, the token of each place that was reached."""
        return tuple(step.token for step in self.steps)

    @property
    def first_failure(self) -> int | None:
        """The first place where no token was accepted; None if there is none."""
        return next((step.place for step in self.steps if not step.accepted), None)

    def exact(self, ids: Sequence[int]) -> bool:
        """Whether every token was accepted and they are these."""
        return self.first_failure is None and self.tokens == tuple(ids)


def invert(
    lm: LanguageModel,
    states: Float[Tensor, "num_tokens d_model"],
    *,
    layer: int,
    tolerance: Ball,
    go_on: bool = False,
    exhaustive: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Inversion:
    """The text whose states these are, as far as one token after another makes them.

    Args:
        lm: the model.
        states: one a token, from the first on; natural, steered, or from elsewhere.
        layer: after which block they were read.
        tolerance: when a token is accepted.
        go_on: after a failure too, with the nearest token in the place of the one
            that was not found.
        exhaustive: try every token at every place, for the distance of the second.
        progress: told of each place that is done.

    Raises:
        LayerOutOfRange: the model has no such block.
        ShapeMismatch: the states are not as wide as the stream.
        InputError: a state is not finite.
    """
    lm.check_layer(layer)
    targets = _checked(lm, states)
    prefix = prefix_of(lm, (), layer=layer, whole=True)
    steps: list[Step] = []
    for place, target in enumerate(targets):
        if steps:
            prefix = prefix.then([steps[-1].token])
        radius = tolerance.at(place, float(target.norm()))
        tried = _tried(prefix, target)
        steps.append(_step(tried, place, radius, lm.d_vocab, exhaustive=exhaustive))
        if progress is not None:
            progress(1)
        if not (steps[-1].accepted or go_on):
            break
    return Inversion(tuple(steps))


def _step(
    tried: Iterator[tuple[Tensor, Tensor]],
    place: int,
    radius: float,
    d_vocab: int,
    *,
    exhaustive: bool,
) -> Step:
    """The nearest of the tokens that are tried until one is accepted, or all are.

    Of equally near ones the first: their states cannot be told apart.
    """
    token, tested = -1, 0
    first = second = math.inf
    for tokens, distances in tried:
        tested += len(tokens)
        ascending, indices = distances.sort(stable=True)
        nearest = float(ascending[0])
        second = min(max(first, nearest), second, *ascending[1:2].tolist())
        if nearest < first:
            first, token = nearest, int(tokens[indices[0]])
        if first <= radius and not exhaustive:
            break
    known = tested == d_vocab and math.isfinite(second)
    return Step(
        place=place,
        token=token,
        accepted=first <= radius,
        distance=first,
        second=second if known else math.nan,
        tolerance=radius,
        tested=tested,
        other=second,
    )


def _tried(
    prefix: Prefix, target: Float[Tensor, " d_model"]
) -> Iterator[tuple[Int[Tensor, " tokens"], Float[Tensor, " tokens"]]]:
    """Every token once, in batches, with the distances of their states."""
    lm, surprise = prefix.lm, _surprise(prefix)
    untried = torch.ones(len(surprise), dtype=torch.bool, device=surprise.device)
    order, size = surprise.argsort(stable=True), FIRST
    gaps, added = target.new_zeros(0), target.new_zeros(0, len(target))
    while len(order):
        tokens = order[:size]
        states = prefix.states(tokens).double()
        distances = (states - target).norm(dim=-1)
        yield tokens, distances
        order, untried[tokens] = order[size:], False
        if size == TOKENS_AT_ONCE:
            continue  # The order is good by now, and to make it costs V d each time.
        gaps = torch.cat([gaps, distances])
        added = torch.cat([added, states - _embedded(lm, tokens).double()])
        similar = gaps.topk(min(SIMILAR, len(gaps)), largest=False).indices
        gaps, added = gaps[similar], added[similar]
        apart = _apart(lm, target - added.mean(0))
        best = torch.minimum(_ranks(apart, untried), _ranks(surprise, untried))
        size = min(len(surprise) - len(order), TOKENS_AT_ONCE)
        order = best.argsort(stable=True)[: len(order)]


def _ranks(values: Tensor, among: Tensor) -> Tensor:
    """Place of each in ascending order, 0 the lowest; those not `among` come last."""
    order = values.masked_fill(~among, torch.inf).argsort(stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return ranks.masked_fill(~among, len(order))


def _embedded(lm: LanguageModel, tokens: Tensor) -> Tensor:
    """The module's own output: some families scale what its weight holds."""
    with torch.no_grad():
        return lm.model.get_input_embeddings()(tokens)


def _apart(lm: LanguageModel, point: Tensor) -> Float[Tensor, " d_vocab"]:
    """Distance of every token's input embedding from a point."""
    ids = torch.arange(lm.d_vocab, device=lm.device)
    parts = ids.split(EMBEDDED_AT_ONCE)
    near = point.float()
    return torch.cat([(_embedded(lm, part) - near).norm(dim=-1) for part in parts])


def _surprise(prefix: Prefix) -> Float[Tensor, " d_vocab"]:
    """Place of every token in the model's ranking of the next one, 0 the first."""
    lm, ranking = prefix.lm, prefix.ranking
    surprise = torch.arange(lm.d_vocab, device=lm.device, dtype=torch.float)
    if ranking is None:
        # No model ranks the first token of all; a token that starts texts is likely.
        start = getattr(lm.tokenizer, "bos_token_id", None)
        if start is not None and start < lm.d_vocab:
            surprise[start] = -1
        return surprise
    return torch.empty_like(surprise).scatter(0, ranking, surprise)


def _checked(lm: LanguageModel, states: Tensor) -> Tensor:
    """In float64 where the model is, and finite."""
    if states.ndim != 2 or states.shape[-1] != lm.d_model:
        raise ShapeMismatch(
            f"states of shape {tuple(states.shape)} were given; the residual stream "
            f"of {lm.name} is {lm.d_model} wide.",
            remedy="Give one state a token, (number of tokens, width).",
        )
    finite = torch.isfinite(states).all(-1)
    if not bool(finite.all()):
        raise InputError(
            f"the state at place {int((~finite).nonzero()[0])} holds NaN or infinity.",
            cause="Steering was so strong that the stream overflowed.",
            remedy="Use a smaller alpha.",
        )
    return states.to(lm.device, torch.float64)
