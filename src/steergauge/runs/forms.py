"""The same trait in other forms: by other methods of extraction, in another basis.

T13 compares what other formulas make of the same pairs, each at the strength at which
it costs what v costs by F_bar. T12 measures v again where the model and v are written
in other numbers that compute the same.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steergauge import linalg
from steergauge.audits import controls
from steergauge.audits.gauge import Writings
from steergauge.entry import Shift
from steergauge.errors import ModelError, SteergaugeError
from steergauge.extraction.methods import METHODS
from steergauge.extraction.paired_streams import PairedStreams, paired_streams
from steergauge.fisher import fishers
from steergauge.geometry.twin import rotated_twin, shifted
from steergauge.intervention import Add
from steergauge.jacobian import widened
from steergauge.runs.arms import reader_of
from steergauge.runs.geometry import Geometry, rows_of
from steergauge.runs.plan import made_of
from steergauge.scoring import sequence_kl
from steergauge.split import LanguageModel
from steergauge.vector import SteeringVector

NUM_REWRITTEN = 4
"""Texts on which both writings of T12 are measured."""

SIGN_FLIP = "sign_flip"
"""The null of T13: the same differences with random signs."""


@dataclass(frozen=True, slots=True)
class Forms:
    """The vectors of T13 at matched strength.

    Attributes:
        vectors: by method, as extracted; v among them.
        arms: those but v, at the strength that costs what v costs by F_bar.
        strengths: by method, in units of the stored vector.
        own: the method that v itself was made by, or `v`.
    """

    vectors: dict[str, SteeringVector]
    arms: dict[str, Add]
    strengths: dict[str, float]
    own: str


def streams_of(geometry: Geometry) -> PairedStreams | None:
    """Both sides of every pair; None without pairs."""
    inputs, store = geometry.stages.inputs, geometry.stages.store
    if len(inputs.pairs) < 2:
        return None

    def make() -> dict[str, np.ndarray]:
        seen = paired_streams(geometry.stages.lm, inputs.pairs, reader_of(inputs.spec))
        return {"positive": seen.positive, "negative": seen.negative}

    kept = store.arrays("geometry-pairs", make)
    return PairedStreams(kept["positive"], kept["negative"])


def forms(geometry: Geometry) -> Forms | None:
    """Every method's vector at the strength that costs what v costs by F_bar.

    A method that cannot be used on these pairs is left out, and so is one whose vector
    the output does not see: no strength makes it cost anything. Without pairs all are.
    """
    streams = streams_of(geometry)
    if streams is None:
        return None
    vector, matrix = geometry.vector, geometry.unsteered.matrix.cpu()
    made_here = made_of(vector, geometry.stages.inputs.pairs)
    own = vector.provenance.method if made_here else "v"
    found = {own: vector}
    for name, formula in METHODS.items():
        plain = name.replace("-", "_")
        if plain in found:
            continue
        try:
            direction = torch.from_numpy(formula(streams)).float()
        except SteergaugeError:
            continue
        found[plain] = vector.with_direction(direction, f"{plain} of the same pairs")
    flipped = _sign_flipped(geometry)
    if flipped is not None:
        found[SIGN_FLIP] = flipped
    blind = linalg.FLOORS_APART * geometry.facts["floor"]
    least = blind**2 * float(geometry.spectrum.values[0])
    costs = {name: _cost(u.direction, matrix) for name, u in found.items()}
    usable = {
        n: u for n, u in found.items() if n == own or costs[n] > least * u.norm**2
    }
    sizes = {
        name: geometry.alpha
        * (math.sqrt(costs[own] / costs[name]) if name != own else 1)
        for name in usable
    }
    return Forms(
        vectors=usable,
        arms={
            f"method({name})": Add(u, sizes[name], geometry.scope)
            for name, u in usable.items()
            if name != own
        },
        strengths=sizes,
        own=own,
    )


def writings(geometry: Geometry) -> Writings:
    """What T12 compares: v in this model, and in another writing of the two."""
    stages = geometry.stages
    stages.progress.begin("geometry: gauge", 1)

    def make() -> dict[str, Any]:
        lm = widened(stages.lm)
        try:
            twin = rotated_twin(lm, seed=stages.spec.seed)
        # Hugging Face raises the second where it does not know the embedding.
        except (ModelError, NotImplementedError) as rotation:
            return _shifted(geometry, lm, getattr(rotation, "found", str(rotation)))
        return _compared(
            geometry, lm, twin.lm, "rotation", twin.rotated(geometry.vector)
        )

    seen = stages.store.record("geometry-gauge", make)
    stages.progress.advance(1)
    return Writings(
        kind=seen["kind"],
        invariants={
            name: (np.array(before), np.array(after))
            for name, (before, after) in seen["invariants"].items()
        },
        dependent={name: tuple(pair) for name, pair in seen["dependent"].items()},
        reason=seen["reason"],
    )


def _shifted(geometry: Geometry, lm: LanguageModel, reason: str) -> dict[str, Any]:
    """The constant shift of a LayerNorm model, or why there is neither."""
    vector = geometry.vector
    try:
        other = shifted(lm, vector, size=vector.norm)
    except ModelError as shift:
        reason = f"Neither is known here: {reason} And {shift.found}"
        return {"kind": "none", "invariants": {}, "dependent": {}, "reason": reason}
    return _compared(geometry, lm, lm, "shift", other)


def _compared(
    geometry: Geometry,
    before: LanguageModel,
    after: LanguageModel,
    kind: str,
    other: SteeringVector,
) -> dict[str, Any]:
    pairs = ((before, geometry.vector), (after, other))
    first, second = (_measured(geometry, lm, vector) for lm, vector in pairs)
    v, u = geometry.vector.direction.double(), other.direction.double()
    return {
        "kind": kind,
        "invariants": {name: [first[name], second[name]] for name in first},
        "dependent": {
            "cosine with v": [1.0, float(torch.cosine_similarity(v, u, dim=0))],
            "norm": [float(v.norm()), float(u.norm())],
            "largest coordinate's share": [_largest(v), _largest(u)],
            "excess kurtosis of coordinates": [_kurtosis(v), _kurtosis(u)],
        },
        "reason": "",
    }


def _measured(
    geometry: Geometry, lm: LanguageModel, vector: SteeringVector
) -> dict[str, list[float]]:
    """What must not depend on the writing, as lists.

    What v costs is raised to the least that is told from rounding: two writings of a
    null direction cost nothing, each with its own rounding.
    """
    texts = geometry.continuations("unsteered", fit=True, whole=False)[:NUM_REWRITTEN]
    shift = Shift(vector.site, geometry.scope)
    matrices = list(fishers(lm, rows_of(texts), shift=shift))
    matrix = torch.stack(matrices).mean(0)
    sizes = linalg.spectrum(matrix).singular_values
    v = vector.direction.double().to(matrix)
    step = Add(vector, geometry.alpha, geometry.scope)
    nats = sequence_kl(lm, texts, None, {"v": step})["v"]
    blind = linalg.FLOORS_APART * geometry.facts["floor"] * float(sizes[0])
    least = (blind * geometry.vector.norm) ** 2
    return {
        "sigma of F_bar": (sizes / sizes[0].clamp_min(1e-300)).tolist(),
        "v'F_bar v": [max(float(v @ matrix @ v), least)],
        "tr F_bar": [float(matrix.trace())],
        "nats of v": nats.clip(geometry.alpha**2 / 2 * least).tolist(),
    }


def _sign_flipped(geometry: Geometry) -> SteeringVector | None:
    inputs = geometry.stages.inputs
    try:
        (found,) = controls.sign_flips(
            geometry.stages.lm,
            geometry.vector,
            inputs.pairs,
            reader_of(inputs.spec),
            num=1,
            seed=inputs.spec.seed,
        )
    except SteergaugeError:  # Pairs that all differ alike leave nothing to flip.
        return None
    return found


def _cost(direction: Tensor, matrix: Tensor) -> float:
    u = direction.double()
    return float(u @ matrix @ u)


def _largest(v: Tensor) -> float:
    return float(v.square().max() / v.square().sum())


def _kurtosis(v: Tensor) -> float:
    centred = v - v.mean()
    return float(centred.pow(4).mean() / centred.square().mean() ** 2) - 3
