"""KL along a ray h + t u from the unsteered stream, what rounding makes of it, and J.

For responses y drawn from the unsteered model ::

    q(t) = E_y sum_k KL( p_0(.|x, y<k) || p_tu(.|x, y<k) )

starts as t^2 u'Fu / 2 where F sees u, and as t^4 where it does not and something of
higher order does. What is below the rounding of a step is nothing: adding t u and
taking it off again leaves the rounding of one addition, which the stream meets again
at each of the two additions of every block above.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steergauge.entry import Entry, Row, Shift, entered
from steergauge.intervention import Add
from steergauge.jacobian import logit_tangents
from steergauge.readout import kl, kl_from
from steergauge.scoring import Chunk, Continuation, chunks, row_sums, sequence_kl
from steergauge.split import LanguageModel, positions
from steergauge.types import Direction
from steergauge.vector import SteeringVector

Nats = Float[np.ndarray, "steps texts"]


def divergence_along(
    lm: LanguageModel,
    rows: Sequence[Continuation],
    direction: Direction,
    lengths: Sequence[float],
    *,
    shift: Shift,
    temperature: float = 1.0,
) -> Nats:
    """Sequence KL(p_0 || p_tu) of each text, in nats, for steps of several lengths.

    Args:
        lm: the model.
        rows: unsteered responses with their prompts.
        direction: u, of any length; it is taken at length 1.
        lengths: t, in the units of the stream.
        shift: site and scope; it has no point.
        temperature: of the responses.
    """
    unit = direction.float() / torch.linalg.vector_norm(direction.float())
    vector = SteeringVector(unit, shift.site)
    others = {str(i): Add(vector, t, shift.scope) for i, t in enumerate(lengths)}
    found = sequence_kl(lm, rows, None, others, temperature=temperature)
    return np.stack([found[str(i)] for i in range(len(lengths))])


def rounding_along(
    lm: LanguageModel,
    rows: Sequence[Continuation],
    direction: Direction,
    lengths: Sequence[float],
    *,
    shift: Shift,
    temperature: float = 1.0,
) -> Float[np.ndarray, " steps"]:
    """The largest KL of a text that rounding alone makes of a step of each length.

    Arguments are those of `divergence_along`.
    """
    unit = direction.double() / torch.linalg.vector_norm(direction.double())
    layer = shift.site.layer
    times = 1 + 2 * (lm.num_layers - 1 - layer)
    worst = np.zeros(len(lengths))
    for chunk in chunks(lm, rows):
        (stream,) = lm.streams(chunk.ids, chunk.mask, layers=(layer,)).values()
        where = shift.scope.covers(positions(chunk.mask), chunk.prompt_lengths)
        covered = (where & chunk.mask)[..., None].to(stream)
        keep = chunk.width + 1

        def scored(h: Tensor, chunk: Chunk = chunk, keep: int = keep) -> Tensor:
            logits = lm.suffix(h, chunk.mask, layer=layer, keep=keep)[:, :-1]
            return logits[chunk.scored].double() / temperature

        divergence_to = kl_from(scored(stream))
        for i, t in enumerate(lengths):
            step = covered * (t * unit).to(stream)
            nats = divergence_to(scored((stream + step) - step))
            worst[i] = max(worst[i], *row_sums(nats, chunk.scored))
    return times * worst


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
    """
    units = torch.stack(
        [u.double() / torch.linalg.vector_norm(u.double()) for u in directions.values()]
    )
    sizes = length * torch.tensor(steps, dtype=torch.float64)
    found = [
        _text_along(lm, row, units, sizes, shift=shift, temperature=temperature)
        for row in rows
    ]
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
