"""KL along a ray h + t u from the unsteered stream, what rounding makes of it, and J.

For responses y drawn from the unsteered model ::

    q(t) = E_y sum_k KL( p_0(.|x, y<k) || p_tu(.|x, y<k) )

starts as t^2 u'Fu / 2 where F sees u, and as t^4 where it does not and something of
higher order does. What is below the rounding of a step is nothing: adding t u and
taking it off again leaves the rounding of one addition, which the stream meets again
at each of the two additions of every block above.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steergauge.entry import Entry, Row, Shift, entered
from steergauge.jacobian import logit_tangents
from steergauge.readout import kl, kl_from
from steergauge.split import LanguageModel
from steergauge.types import Direction

Nats = Float[np.ndarray, "steps texts"]


@dataclass(frozen=True, slots=True)
class Costs:
    """What steps along one direction cost.

    Attributes:
        nats: KL(p_0 || p_tu) of each text at each length.
        floors: the largest KL of a text that rounding alone makes of each length.
    """

    nats: Nats
    floors: Float[np.ndarray, " steps"]


def costs_along(
    lm: LanguageModel,
    rows: Sequence[Row],
    directions: Mapping[str, Direction],
    lengths: Sequence[float],
    *,
    shift: Shift,
    temperature: float = 1.0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Costs]:
    """What steps of several lengths cost along each direction, by name.

    Args:
        lm: the model.
        rows: prompts with unsteered responses.
        directions: u, of any length; each is taken at length 1.
        lengths: t, in the units of the stream.
        shift: site and scope; it has no point.
        temperature: of the responses.
        progress: called with the number of texts done since the last call.

    Raises:
        InputError: a text has no token in scope.
    """
    units = {
        name: u.double() / torch.linalg.vector_norm(u.double())
        for name, u in directions.items()
    }
    sizes = torch.tensor(lengths, dtype=torch.float64)
    times = 1 + 2 * (lm.num_layers - 1 - shift.site.layer)
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {n: [] for n in units}
    for row in rows:
        entry = entered(lm, row, shift)
        for name, unit in units.items():
            steps = sizes[:, None] * unit
            nats, back = (
                _cost(entry, steps, temperature, back=back) for back in (False, True)
            )
            found[name].append((nats, back))
        if progress:
            progress(1)
    return {
        name: Costs(
            nats=np.stack([nats for nats, _ in texts], axis=1),
            floors=times * np.max([back for _, back in texts], axis=0),
        )
        for name, texts in found.items()
    }


@torch.no_grad()
def _cost(
    entry: Entry,
    steps: Float[Tensor, "steps d_model"],
    temperature: float,
    *,
    back: bool,
) -> np.ndarray:
    """KL from no step to each step, or to each step there and `back`."""
    # No step is a row of the same batch: what batches of other sizes round otherwise
    # is no cost of a step.
    both = torch.cat([torch.zeros_like(steps[:1]), steps])
    added = entry.covered * both.to(entry.stream)[:, None]
    stream = entry.stream + added
    logits = entry.logits(stream - added if back else stream).double() / temperature
    return kl_from(logits[:1])(logits[1:]).sum(-1).cpu().numpy()


@dataclass(frozen=True, slots=True)
class Ray:
    """One direction of `linearity_along`, at steps t in multiples of a length s.

    Attributes:
        nats: KL(p_0 || p_tsu) of each text.
        quadratic: s^2 u'F_x u / 2 of each text: what theory says at t = 1.
        departures: ||o(h + tsu) - o(h) - ts J u|| / ||ts J u|| of each text's logits;
            infinite where J u is 0 and predicts nothing.
    """

    nats: Nats
    quadratic: Float[np.ndarray, " texts"]
    departures: Nats


def linearity_along(
    lm: LanguageModel,
    rows: Sequence[Row],
    directions: Mapping[str, Direction],
    steps: Sequence[float],
    *,
    length: float,
    shift: Shift,
    temperature: float = 1.0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Ray]:
    """How far KL and logits follow their second- and first-order expansions.

    Args:
        lm: the model; widen one in half precision beforehand.
        rows: prompts with unsteered responses.
        directions: u by name, of any length.
        steps: multiples t of `length`.
        length: s.
        shift: site and scope; it has no point.
        temperature: of the responses.
        progress: called with the number of texts done since the last call.
    """
    units = torch.stack(
        [u.double() / torch.linalg.vector_norm(u.double()) for u in directions.values()]
    )
    sizes = length * torch.tensor(steps, dtype=torch.float64)
    found = []
    for row in rows:
        found.append(
            _text_along(lm, row, units, sizes, shift=shift, temperature=temperature)
        )
        if progress:
            progress(1)
    scale = 0.5 * (length / temperature) ** 2
    return {
        name: Ray(
            nats=np.stack([text[0][i] for text in found], axis=1),
            quadratic=np.array([scale * text[1][i] for text in found]),
            departures=np.stack([text[2][i] for text in found], axis=1),
        )
        for i, name in enumerate(directions)
    }


def _text_along(
    lm: LanguageModel,
    row: Row,
    units: Float[Tensor, "directions d_model"],
    sizes: Float[Tensor, " steps"],
    *,
    shift: Shift,
    temperature: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KL and departures (directions, steps) of a text, and T^2 u'F_x u."""
    seen = logit_tangents(lm, row, units, shift=shift)
    tempered = type(seen)(seen.logits / temperature, seen.tangents)
    entry = entered(lm, row, shift)
    nats, departures = [], []
    for unit, tangent in zip(units, seen.tangents, strict=True):
        logits = _stepped(entry, sizes[:, None] * unit)
        divergence = kl(
            (seen.logits / temperature).expand_as(logits), logits / temperature
        )
        nats.append(divergence.sum(-1).cpu().numpy())
        linear = sizes[:, None, None].to(tangent) * tangent
        gap = torch.linalg.vector_norm(logits - seen.logits - linear, dim=(-2, -1))
        size = torch.linalg.vector_norm(linear, dim=(-2, -1))
        share = torch.where(size > 0, gap / size.clamp_min(1e-300), torch.inf)
        departures.append(share.cpu().numpy())
    return np.stack(nats), tempered.visibility.cpu().numpy(), np.stack(departures)


@torch.no_grad()
def _stepped(entry: Entry, steps: Float[Tensor, "steps d_model"]) -> Tensor:
    """Logits (steps, predictions, d_vocab) with each step added, in float64."""
    added = entry.covered * steps.to(entry.stream)[:, None]
    return entry.logits(entry.stream + added).double()
