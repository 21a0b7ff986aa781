"""The same run at many layers, each in a folder of its own, with what they can share.

What flows back from the logits to block l passes every block above l on its way: the
Fisher matrices of all layers cost what that of the lowest one costs. They are made
before the runs, which find them in their stores; any of it may be stopped and goes on.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from steergauge.engines import Engine
from steergauge.geometry import survey
from steergauge.jacobian import widened
from steergauge.runs import arms, plan
from steergauge.runs.execute import (
    Run,
    audit,
    audit_apart,
    one_engine,
    unfinished,
)
from steergauge.runs.geometry import Geometry, part_name, rows_of
from steergauge.runs.progress import Named, Progress, Silent
from steergauge.runs.spec import Spec
from steergauge.runs.stages import Stages, Workers
from steergauge.runs.store import Store
from steergauge.split import LanguageModel


def audit_layers(
    lm: LanguageModel,
    specs: Mapping[str, Spec],
    *,
    out: str | Path,
    progress: Progress | None = None,
    engine: Engine | None = None,
    workers: Workers | None = None,
) -> dict[str, Run]:
    """One audit a layer, in folders `layer-NN` under `out`.

    The same call resumes what was stopped. `write_report(out)` then draws what was
    found over depth.

    Args:
        lm: the model.
        specs: by the name of the folder, from `layer_specs`.
        out: the folder of folders.
        progress: told how far the work is, and how much of the sweep is left.
        engine: who makes texts; None is whom the specs name, opened once.
        workers: who else works; see `audit_traits`. What the layers share is made
            here.

    Raises:
        SteergaugeError: whatever is wrong with what was given.
    """
    told, folder = progress or Silent(), Path(out)
    for spec in specs.values():
        plan.gather(lm, spec)  # What can be refused is refused before the first run.
    left = unfinished(specs, folder)
    with one_engine(lm, left.values(), engine, workers) as own:
        if left and all(spec.wants_geometry for spec in specs.values()):
            shapes = [
                _opened(lm, spec, folder / name, told, own, workers)
                for name, spec in specs.items()
            ]
            _share(shapes, told)
        audit_apart(lm, specs, folder, told, own, workers)
        return _one_by_one(lm, specs, folder, told, own, workers)


def _one_by_one(
    lm: LanguageModel,
    specs: Mapping[str, Spec],
    folder: Path,
    told: Progress,
    engine: Engine | None,
    workers: Workers | None,
) -> dict[str, Run]:
    """The audits, each told with what is left of the sweep."""
    runs, start = {}, time.monotonic()
    # What a layer costs is above all the blocks above it.
    work = [1 + lm.num_layers - (spec.layer or 0) for spec in specs.values()]
    for done, (name, spec) in enumerate(specs.items()):
        left = _left(time.monotonic() - start, sum(work[:done]), sum(work[done:]))
        label = f"{name} ({done + 1} of {len(specs)}{left})"
        runs[name] = audit(
            lm,
            out=folder / name,
            spec=spec,
            progress=Named(told, label),
            engine=engine,
            workers=workers,
        )
    return runs


def _left(seconds: float, done: int, todo: int) -> str:
    """How long the rest of the sweep will take, once a layer is done."""
    if not done:
        return ""
    minutes = seconds / done * todo / 60
    return f", about {max(1, round(minutes))} min left"


def _share(shapes: Sequence[Geometry], progress: Progress) -> None:
    """F_x of all layers from one pass a text, into the stores of their runs."""
    stores = [shape.stages.store for shape in shapes]
    rows = rows_of(shapes[0].continuations("unsteered", fit=True, whole=False))
    parts = [
        (part_name("unsteered", k), [rows[i] for i in texts])
        for k, texts in enumerate(survey.parts_of(len(rows)))
    ]
    missing = [
        (name, own)
        for name, own in parts
        if not all(store.has_arrays(name) for store in stores)
    ]
    if not missing:
        return
    wide = widened(shapes[0].stages.lm)
    label = f"Fisher matrices of {len(shapes)} layers"
    progress.begin(label, sum(len(own) for _, own in missing))
    for name, own in missing:
        found = survey.layers_surveyed(
            wide,
            own,
            [shape.unit for shape in shapes],
            shifts=[shape.shift for shape in shapes],
            temperature=shapes[0].stages.spec.temperature,
        )
        for store, part in zip(stores, found, strict=True):
            store.arrays(name, lambda p=part: p)
        progress.advance(len(own))


def _opened(
    lm: LanguageModel,
    spec: Spec,
    folder: Path,
    progress: Progress,
    engine: Engine | None,
    workers: Workers | None,
) -> Geometry:
    """The run's folder with its vector; unsteered texts need neither alpha nor norm."""
    inputs = plan.gather(lm, spec)
    store = Store(folder)
    store.open(inputs.spec, inputs.hashes(lm))
    vector = arms.extract_or_load(lm, inputs, store)
    told = Named(progress, folder.name)
    stages = Stages(lm, inputs, store, told, engine, workers)
    return Geometry(stages, vector, alpha=1.0, median_norm=1.0)
