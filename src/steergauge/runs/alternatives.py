"""Vectors that may do what v does, and what they are held against.

The most different vector within each budget, from v's Fisher matrix and checked on VAL,
with random vectors at its cosine (T10); the canonical representatives (T9); additions
within the soft null space (T5).
"""

from typing import Any

import torch
from torch import Tensor

from steergauge import linalg
from steergauge.audits import controls
from steergauge.audits.finding import MOST_DIFFERENT, SAME_COSINE
from steergauge.geometry.most_different import canonical, canonical_soft, same_cosine
from steergauge.geometry.search import Found, Texts, searched
from steergauge.intervention import Add
from steergauge.runs.arms import direction_seed
from steergauge.runs.geometry import Geometry, Told
from steergauge.vector import SteeringVector, load_vector

BUDGETS = (0.01, 0.05, 0.2)
"""Shares of v's effect within which a most different vector is looked for; that of the
run is added."""

NUM_CONTROLS = 5
"""Random vectors at the cosine of the most different one, and other controls."""


def alternatives(geometry: Geometry) -> dict[str, Any]:
    """Most different vectors within each budget, with their random controls.

    A dictionary of `candidates` (records) whose vectors are in the store, by the
    names `most_different` and `same_cosine[j]`, with `@budget` behind the first
    word if the budget is not the run's.
    """
    stages, spec = geometry.stages, geometry.stages.spec
    spectrum = linalg.spectrum(geometry.steered.matrix)
    texts = Texts(
        stages.lm,
        geometry.continuations("v", fit=False, whole=True),
        geometry.v,
        spec.temperature,
    )
    effect = geometry.facts["effect_check"]
    budgets = sorted({*BUDGETS, spec.budget})
    told = Told(stages.progress, "geometry: most different vectors", len(budgets))

    def make() -> dict[str, Any]:
        records = []
        # Where v itself does nothing, there is no budget to keep to.
        for budget in budgets if effect > 0 else ():
            found = searched(texts, spectrum, budget=budget, nats=budget * effect)
            _keep_with_controls(geometry, texts, found)
            records.append(found.to_json())
            told.advance()
        return {"candidates": records}

    return told.to_the_end(stages.store.record("geometry-alternatives", make))


def _keep_with_controls(geometry: Geometry, texts: Texts, found: Found) -> None:
    """The vector that was found, if any, and random ones at its cosine."""
    if found.kept is None:
        return
    spec, budget, other = geometry.stages.spec, found.budget, found.kept.direction
    _keep(geometry, alternative_name(budget, spec.budget), texts.added(other).vector)
    for j in range(NUM_CONTROLS):
        seed = direction_seed(spec, f"same cosine {budget:g}", j)
        control = same_cosine(geometry.step, other.cpu(), seed=seed)
        named = control_name(budget, spec.budget, j)
        _keep(geometry, named, texts.added(control).vector)


def others(geometry: Geometry) -> dict[str, Add]:
    """Everything that is compared with v on its test texts, by name."""
    found: dict[str, Add] = {}
    wanted = {*geometry.stages.spec.audits}
    if "alternative" in wanted:
        for record in alternatives(geometry)["candidates"]:
            found |= _alternative(geometry, record["budget"])
        found |= _additions(geometry)
    if "decomposition" in wanted:
        nats = geometry.soft_nats
        floor = geometry.facts["floor"]
        hard = canonical(geometry.step, geometry.spectrum, floor=floor)
        found["canonical"] = _added(geometry, hard.direction)
        if nats > 0:
            soft = canonical_soft(geometry.step, geometry.spectrum, nats=nats)
            found["canonical_soft"] = _added(geometry, soft.direction)
    return found


def _additions(geometry: Geometry) -> dict[str, Add]:
    """The arms v + v_perp, unless the test has them anyway."""
    if geometry.stages.spec.behaves:
        return {}
    found = {}
    for j in range(NUM_CONTROLS):
        seed = direction_seed(geometry.stages.spec, "perp", j)
        perp = controls.perpendicular(geometry.vector, seed=seed)
        total = controls.total(geometry.vector, perp, "v + v_perp")
        found[f"v_plus_perp[{j}]"] = Add(total, geometry.alpha, geometry.scope)
    return found


def soft_null_vectors(geometry: Geometry) -> dict[str, SteeringVector]:
    """The sum v + n for some n of v's norm in the soft null space, as of T5."""
    seen = geometry.spectrum
    hidden = 0.5 * geometry.strength**2 * seen.values <= geometry.soft_nats
    columns = seen.directions[:, hidden].cpu()
    found = {}
    for k in range(NUM_CONTROLS if columns.shape[1] else 0):
        seed = direction_seed(geometry.stages.spec, "soft null", k)
        generator = torch.Generator().manual_seed(seed)
        n = columns @ torch.randn(
            columns.shape[1], generator=generator, dtype=torch.float64
        )
        total = geometry.vector.direction.double() + n * (
            geometry.vector.norm / n.norm()
        )
        found[f"soft_null[{k}]"] = geometry.vector.with_direction(
            total.float(), "v + a direction of the soft null space"
        )
    return found


def _alternative(geometry: Geometry, budget: float) -> dict[str, Add]:
    own = geometry.stages.spec.budget
    names = [alternative_name(budget, own)]
    names += [control_name(budget, own, j) for j in range(NUM_CONTROLS)]
    kept = {name: geometry.stages.store.vector_file(name) for name in names}
    return {
        name: Add(load_vector(path), geometry.alpha, geometry.scope)
        for name, path in kept.items()
        if path.is_file()
    }


def _keep(geometry: Geometry, name: str, vector: SteeringVector) -> None:
    vector.save(geometry.stages.store.vector_file(name))


def _added(geometry: Geometry, step: Tensor) -> Add:
    direction = (step / geometry.alpha).float().cpu()
    vector = geometry.vector.with_direction(direction, "canonical representative")
    return Add(vector, geometry.alpha, geometry.scope)


def alternative_name(budget: float, own: float) -> str:
    """The arm of the most different vector within a budget; the run's has no suffix."""
    return MOST_DIFFERENT if budget == own else f"{MOST_DIFFERENT}@{budget:g}"


def control_name(budget: float, own: float, j: int) -> str:
    """The arm of a random vector at the same cosine."""
    name = SAME_COSINE if budget == own else f"{SAME_COSINE}@{budget:g}"
    return f"{name}[{j}]"
