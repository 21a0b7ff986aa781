"""How near is equal? The distance of a natural state from itself, by two computations.

The same token after the same prefix has one state, but a pass over the whole text and
a step from a cache, in a batch of other candidates, round differently ::

    noise_t = ||h_t(whole pass, alone) - h_t(step, in a batch)|| / ||h_t||

A state counts as reached within ::

    epsilon_t = max(5 q99, 4 ulp / sqrt(12)) ||h_t||

with q99 the 99 % quantile of that noise on texts held out from the search, and
ulp / sqrt(12) the rms distance by which storing a state moves it. Four of these are
1.15 ulp, which is more than one coordinate moves if it is rounded the other way, even
where it is the whole norm: 0.9 % of the norm in bfloat16, 0.11 % in float16, 1.4e-7
in float32. The first token of a text is a class of its own: its norm is often tens of
times that of others, and so is what rounding makes of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steergauge.errors import InputError
from steergauge.intervention import Intervention, edits
from steergauge.reachability.candidates import (
    TOKENS_AT_ONCE,
    Prefix,
    prefix_of,
    rounding,
)
from steergauge.split import LanguageModel, positions

TIMES_NOISE = 5
"""Of the noise's quantile, so that a natural state passes that was not among those
measured."""

TIMES_ROUNDING = 4
"""Of the rms rounding of a state: where all that was measured happened to agree,
another batch still may not. More would be a radius that the precision does not ask
for, and would accept states that no token makes."""

QUANTILE = 0.99

FIRST_TOKENS = 32
"""First tokens that are measured, at most: of the texts, then any of their others."""

SIZES = (TOKENS_AT_ONCE, 64, 8)
"""Of batches, drawn at random: a search's usual one, a short one, a very short one;
their matrix products may be summed in other orders."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest distance at which a state still counts as a token's.

    Attributes:
        first: 99 % quantile of the noise, as a share of the norm, at a text's start.
        rest: the same at all other places.
        ulp: relative step of the model's precision.
        num: states that were measured.
    """

    first: float
    rest: float
    ulp: float
    num: int

    def at(self, place: int, norm: float) -> float:
        """For a state of that norm, at that place: of noise and rounding the larger.

        >>> Tolerance(first=2**-9, rest=2**-12, ulp=2**-23, num=100).at(3, 16.0)
        0.01953125
        """
        noise = self.rest if place else self.first
        return max(TIMES_NOISE * noise, TIMES_ROUNDING * rounding(self.ulp)) * norm


def calibrated(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    *,
    layer: int,
    last: int | None = None,
    seed: int = 0,
) -> Tolerance:
    """The tolerance that the noise of natural states asks for.

    Texts are read token by token, as an inversion reads them. Candidates may share
    rows after one prefix and not after another, and round differently then: where a
    search begins later, what comes before is read at once here too, and the noisier
    way counts.

    Args:
        lm: the model.
        rows: token ids of texts that will not be searched for.
        layer: block l, whose output is compared.
        last: places at the end of a text that a search begins with; None if it always
            begins with the first.
        seed: of the other candidates in a batch.

    Raises:
        InputError: no text has a second token.
        LayerOutOfRange: the model has no such block.
    """
    if not any(len(row) > 1 for row in rows):
        raise InputError(
            f"a tolerance was asked for from {len(rows)} texts, none of which has a "
            "second token.",
            remedy="Give some texts of ten tokens or more.",
        )
    generator = torch.Generator().manual_seed(seed)
    empty = prefix_of(lm, (), layer=layer, whole=True)
    starts = [[token] for token in _first_tokens(rows)]
    first = [n for row in starts for n in _noises(empty, row, (0,), generator)]
    rest = [
        n for row in rows for n in _noises(empty, row, range(1, len(row)), generator)
    ]
    later = [n for row in rows for n in _later(lm, row, layer, last, generator)]
    return Tolerance(
        first=float(np.quantile(first, QUANTILE)),
        rest=max(float(np.quantile(some, QUANTILE)) for some in (rest, later) if some),
        ulp=torch.finfo(lm.dtype).eps,
        num=len(first) + len(rest) + len(later),
    )


def natural_states(
    lm: LanguageModel, ids: Sequence[int], *, layer: int
) -> Float[Tensor, "pos d_model"]:
    """h_l of every token of a text, by one pass of it alone, in float64 on the CPU.

    Raises:
        InputError: there is no token.
        LayerOutOfRange: the model has no such block.
    """
    return _states(lm, ids, None, layer)


def steered_states(
    lm: LanguageModel, ids: Sequence[int], intervention: Intervention, *, layer: int
) -> Float[Tensor, "pos d_model"]:
    """The same of the steered model, the whole text being its prompt.

    Args:
        lm: the model.
        ids: the text.
        intervention: what is done to the stream, within its own scope.
        layer: block l, where the stream is read.

    Raises:
        InputError: there is no token, or the stream is changed above `layer` only.
        LayerOutOfRange: the model has no such block.
    """
    site = intervention.site.layer
    if layer < site:
        raise InputError(
            f"states after block {layer} were asked for, steered after block {site}.",
            cause="What is done to a block's output does not reach the blocks below.",
            remedy=f"Read at layer {site} or above.",
        )
    return _states(lm, ids, intervention, layer)


def _states(
    lm: LanguageModel, ids: Sequence[int], intervention: Intervention | None, layer: int
) -> Float[Tensor, "pos d_model"]:
    lm.check_layer(layer)
    if not len(ids):
        raise InputError("states were asked for of a text without any token.")
    row = torch.tensor([list(ids)], device=lm.device)
    mask = torch.ones_like(row, dtype=torch.bool)
    length = torch.tensor([len(ids)], device=lm.device)
    edit = edits([intervention], positions(mask), mask, length)
    stream = lm.streams(row, mask, layers=(layer,), edits=edit)[layer]
    return stream[0].double().cpu()


def _first_tokens(rows: Sequence[Sequence[int]]) -> list[int]:
    """Different tokens: those that begin a text, then others in the order they come."""
    starts = [row[0] for row in rows if len(row)]
    others = [token for row in rows for token in row[1:]]
    return list(dict.fromkeys([*starts, *others]))[:FIRST_TOKENS]


def _later(
    lm: LanguageModel,
    row: Sequence[int],
    layer: int,
    last: int | None,
    generator: torch.Generator,
) -> list[float]:
    """Noise at the `last` places of a text, if all before them is read at once."""
    start = 0 if last is None else len(row) - last
    if start <= 0:
        return []
    prefix = prefix_of(lm, row[:start], layer=layer, whole=True)
    return _noises(prefix, row, range(start, len(row)), generator)


def _noises(
    prefix: Prefix,
    row: Sequence[int],
    places: Sequence[int],
    generator: torch.Generator,
) -> list[float]:
    """Relative noise of the states at `places` of a text, read on from a prefix of it.

    Args:
        prefix: of the text, at most up to the first place.
        row: the text.
        places: ascending.
        generator: of the batch's size, the other candidates and the token's place.
    """
    if not places:
        return []
    targets = natural_states(prefix.lm, row, layer=prefix.layer)
    found = []
    for place in places:
        if place:
            prefix = prefix.then(row[len(prefix.ids) : place])
        turn = int(torch.randint(len(SIZES), (1,), generator=generator))
        size = min(SIZES[turn], prefix.lm.d_vocab)
        batch = torch.randint(prefix.lm.d_vocab, (size,), generator=generator)
        at = int(torch.randint(size, (1,), generator=generator))
        batch[at] = row[place]
        gap = prefix.states(batch)[at].double().cpu() - targets[place]
        found.append(float(gap.norm() / targets[place].norm()))
    return found
