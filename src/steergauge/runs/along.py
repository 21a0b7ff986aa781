"""Rays of T7 and T11: what steps of many lengths along some directions cost."""

import numpy as np
import torch
from torch import Tensor

from steergauge.geometry.rays import costs_along, linearity_along
from steergauge.jacobian import widened
from steergauge.runs.arms import direction_seed
from steergauge.runs.geometry import Geometry, Told, rows_of
from steergauge.runs.store import Rows

STEPS = (0.01, 0.03, 0.1, 0.3, 1.0, 10.0, 100.0)
"""Of the rays of T7, in median ||h||."""

MULTIPLES = tuple(2.0**k for k in range(-5, 3))
"""Of the rays of T11, in ||alpha v||."""

NUM_SMALLEST = 3
NUM_LINEAR = 32
"""Texts of T11."""


def candidates(geometry: Geometry) -> dict[str, Tensor]:
    """Directions that T7 tries, by name."""
    columns = geometry.spectrum.directions.cpu()
    generator = torch.Generator().manual_seed(
        direction_seed(geometry.stages.spec, "null", 0)
    )
    width = len(columns)
    found = {"all-ones": torch.ones(width, dtype=torch.float64)}
    found |= {
        f"smallest {k + 1}": columns[:, -1 - k]
        for k in range(min(NUM_SMALLEST, width - 2))
    }
    drawn = torch.randn(width, generator=generator, dtype=torch.float64)
    found |= {"random": drawn, "top": columns[:, 0]}
    # With the sign of alpha: beyond second order a cost is not even in the step.
    found["v"] = geometry.step
    rivals = geometry.stages.inputs.rivals
    given = {f"against[{n}]": rival.direction.double() for n, rival in rivals.items()}
    return found | given


def null_rays(geometry: Geometry, test: Rows) -> Rows:
    """Costs along every candidate of T7, on unsteered texts of the test.

    One row a direction: `nats` (steps x texts), `floors`, `at_strength`, and its
    `visibility` u'F_bar u at length 1.
    """
    stages = geometry.stages
    texts = geometry.cut(stages.continuations(_first_samples(test, "unsteered")))
    tried = candidates(geometry)
    lengths = [*(share * geometry.median_norm for share in STEPS), geometry.strength]
    told = Told(stages.progress, "geometry: null directions", len(texts))

    def make() -> Rows:
        found = costs_along(
            stages.lm,
            rows_of(texts),
            tried,
            lengths,
            shift=geometry.shift,
            temperature=stages.spec.temperature,
            progress=told.advance,
        )
        return [
            {
                "direction": name,
                "nats": seen.nats[:-1].tolist(),
                "floors": seen.floors[:-1].tolist(),
                "at_strength": seen.nats[-1].tolist(),
                "visibility": _visibility(geometry, tried[name]),
            }
            for name, seen in found.items()
        ]

    return told.to_the_end(stages.store.cell("geometry-rays", make))


def _visibility(geometry: Geometry, direction: Tensor) -> float:
    unit = direction / torch.linalg.vector_norm(direction)
    return float(unit @ geometry.unsteered.matrix @ unit)


def linear_rays(geometry: Geometry) -> dict[str, np.ndarray]:
    """KL and logits along v and others against their expansions, by name and kind.

    Keys are `direction/nats`, `direction/quadratic`, `direction/departures`.
    """
    stages = geometry.stages
    rows = rows_of(geometry.continuations("unsteered", fit=True, whole=False))
    rows = rows[:NUM_LINEAR]
    chosen = ("v", "top", "random", "smallest 1")
    tried = {k: u for k, u in candidates(geometry).items() if k in chosen}
    told = Told(stages.progress, "geometry: linearity", len(rows))

    def make() -> dict[str, np.ndarray]:
        found = linearity_along(
            widened(stages.lm),
            rows,
            tried,
            MULTIPLES,
            length=geometry.strength,
            shift=geometry.shift,
            temperature=stages.spec.temperature,
            progress=told.advance,
        )
        return {
            f"{name}/{kind}": array
            for name, ray in found.items()
            for kind, array in (
                ("nats", ray.nats),
                ("quadratic", ray.quadratic),
                ("departures", ray.departures),
            )
        }

    return told.to_the_end(stages.store.arrays("geometry-linearity", make))


def _first_samples(rows: Rows, arm: str) -> Rows:
    """One text of an arm for each prompt, in the order of the prompts."""
    own = [row for row in rows if row["arm"] == arm and row["sample"] == 0]
    return sorted(own, key=lambda row: row["prompt_index"])
