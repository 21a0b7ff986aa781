"""The run itself: stages one after another, then findings from what they hold.

::

    gather -> vector -> controls -> dose curve -> alpha -> T0 -> geometry -> texts -> KL
    -> reachability -> findings

Everything after the last stage is a pure function of the store.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.engines import Engine, opened
from steergauge.errors import BadSpec
from steergauge.generation import Arm
from steergauge.intervention import Add, scope_named
from steergauge.runs import (
    arms,
    evidence,
    geometry_findings,
    goals,
    judge,
    plan,
    reachability_findings,
)
from steergauge.runs import tested as test
from steergauge.runs.alternatives import soft_null_vectors
from steergauge.runs.distributed import Pool, engine_name
from steergauge.runs.geometry_findings import Measured, measured
from steergauge.runs.progress import Named, Progress, Silent
from steergauge.runs.reachability import Reach
from steergauge.runs.spec import Spec, folder_name, spec_from
from steergauge.runs.stages import Stages, Workers
from steergauge.runs.store import Rows, Store
from steergauge.runs.worker import Opening, refuse_another_model
from steergauge.split import LanguageModel
from steergauge.vector import SteeringVector


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its folder, and what was found."""

    store: Store
    findings: Mapping[str, Finding]
    facts: Mapping[str, Any]

    def report(self) -> Path:
        """Write report.html and card.md into the run's folder; the report's path."""
        from steergauge.report import write_report

        return write_report(self.store.folder)


def audit(
    lm: LanguageModel,
    vector: SteeringVector | None = None,
    *,
    out: str | Path,
    preset: str = "quick",
    spec: Spec | None = None,
    progress: Progress | None = None,
    engine: Engine | str | None = None,
    workers: Workers | None = None,
    **changes: Any,
) -> Run:
    """Audit a steering vector, or the one that the spec's trait or pairs give.

    The same call on the same folder resumes a run that was stopped, and returns a
    finished one as it is.

    Args:
        lm: the model.
        vector: to be audited; None means that the spec says where it comes from.
        out: the run's folder.
        preset: quick or standard; sizes of the run.
        spec: the whole specification, instead of preset and changes.
        progress: told how far the work is.
        engine: who makes texts; None is whom the spec names, opened and closed here,
            and a name is the spec's.
        workers: who else makes cells, as a `Pool` does; None is nobody.
        **changes: fields of `Spec` that differ from the preset's.

    Raises:
        SteergaugeError: whatever is wrong with what was given.
    """
    if isinstance(engine, str):
        changes, engine = {**changes, "engine": engine}, None
    if spec is not None and changes:
        raise BadSpec(
            f"{', '.join(changes)} was given beside a whole spec.",
            remedy="Put it into the spec.",
        )
    wanted = spec or spec_from({}, preset=preset, **changes)
    inputs = plan.gather(lm, wanted, vector)
    # What can be refused is refused now rather than after hours.
    test.looks(inputs)
    if "access" in inputs.spec.audits:
        goals.hidden_from(lm, inputs)
    store = Store(Path(out))
    hashes = inputs.hashes(lm)
    if (store.folder / "findings.json").is_file():
        store.open(inputs.spec, hashes)
        return Run(store, store.findings(), store.facts())
    told = progress or Silent()
    # The engine first: one that cannot be opened leaves no folder behind.
    with one_engine(lm, [inputs.spec], engine, workers) as own:
        store.open(inputs.spec, hashes)
        _execute(Stages(lm, inputs, store, told, own, workers))
    return Run(store, store.findings(), store.facts())


@contextmanager
def one_engine(
    lm: LanguageModel,
    specs: Iterable[Spec],
    engine: Engine | None,
    workers: Workers | None,
) -> Generator[Engine | None]:
    """Who makes the texts of all these runs: `engine`, or whom they name, opened once.

    None is workers, who open their own, or that there is no run.

    Raises:
        BadSpec: the runs name different ones.
        EngineError: it is not installed, or is not the model that `lm` is.
    """
    wanted = {spec.engine: spec for spec in specs}
    if engine is not None or isinstance(workers, Pool) or not wanted:
        yield engine
        return
    if len(wanted) > 1:
        raise BadSpec(
            f"the runs name different engines, {', '.join(wanted)}.",
            cause="One engine makes the texts of all of them.",
            remedy="Audit them one by one.",
        )
    (spec,) = wanted.values()
    made = opened(
        spec.engine,
        lm,
        source=lm.name,
        dtype=plan.precision(lm),
        revision=spec.revision or None,
        trust_remote_code=spec.trust_remote_code,
    )
    try:
        yield made
    finally:
        made.close()


def unfinished(specs: Mapping[str, Spec], folder: Path) -> dict[str, Spec]:
    """Those of the runs in folders under `folder` that have no findings yet."""
    return {
        name: spec
        for name, spec in specs.items()
        if not (folder / name / "findings.json").is_file()
    }


def audit_traits(
    lm: LanguageModel,
    specs: Mapping[str, Spec],
    *,
    out: str | Path,
    progress: Progress | None = None,
    engine: Engine | None = None,
    workers: Workers | None = None,
) -> dict[str, Run]:
    """One audit a spec, each in a folder of its own name under `out`.

    The same call resumes what was stopped. `write_report(out)` then makes one page of
    all of them.

    Args:
        lm: the model.
        specs: by the name of the trait; see `specs_from`.
        out: the folder of folders.
        progress: told how far the work is.
        engine: who makes texts; None is whom the spec names.
        workers: who else works. A `Pool` of no more workers than there are runs to
            be made does whole runs; else the cells of each are shared out.

    Raises:
        SteergaugeError: whatever is wrong with what was given.
    """
    folder = Path(out)
    for spec in specs.values():
        # What can be refused is refused before the first long run.
        test.looks(plan.read(spec))
    told = progress or Silent()
    by_folder = {folder_name(name): spec for name, spec in specs.items()}
    audit_apart(lm, by_folder, folder, told, engine, workers)
    left = unfinished(by_folder, folder).values()
    with one_engine(lm, left, engine, workers) as own:
        return {
            name: audit(
                lm,
                out=folder / folder_name(name),
                spec=spec,
                progress=Named(told, folder_name(name)),
                engine=own,
                workers=workers,
            )
            for name, spec in specs.items()
        }


def audit_apart(
    lm: LanguageModel,
    specs: Mapping[str, Spec],
    folder: Path,
    progress: Progress,
    engine: Engine | None,
    workers: Workers | None,
) -> None:
    """Whole runs on the workers, if there are enough of both; else nothing.

    Args:
        lm: the model, which is not used but to know another one by.
        specs: by the name of the run's folder.
        folder: the folder of folders.
        progress: told about finished runs.
        engine: who makes texts.
        workers: who works.
    """
    left = unfinished(specs, folder)
    if not isinstance(workers, Pool) or len(left) < workers.num_workers:
        return
    jobs = {
        name: partial(
            _run_apart,
            name=lm.name,
            fingerprint=lm.fingerprint,
            dtype=plan.precision(lm),
            out=(folder / name).absolute(),
            spec=spec,
            engine=engine_name(engine, spec),
        )
        for name, spec in left.items()
    }
    workers.apart(jobs, folder=folder, progress=progress)


def _run_apart(
    lm: LanguageModel,
    engine_for: Opening,
    *,
    name: str,
    fingerprint: str,
    dtype: str,
    out: Path,
    spec: Spec,
    engine: str,
) -> None:
    """A whole run, under the name that the model has for whoever asked for it."""
    refuse_another_model(lm, fingerprint=fingerprint, dtype=dtype)
    audit(replace(lm, name=name), out=out, spec=spec, engine=engine_for(engine))


def _execute(stages: Stages) -> None:
    """All cells that are missing, then the findings."""
    lm, inputs, store = stages.lm, stages.inputs, stages.store
    spec = inputs.spec
    stages.progress.begin("vector and controls", 2)
    vector = arms.extract_or_load(lm, inputs, store)
    if spec.alpha is not None:
        asked = Add(vector, spec.alpha, scope_named(spec.scope))
        asked.check_fits(lm, other_model=True)
    stages.progress.advance(1)
    controls = arms.control_vectors(lm, inputs, vector, store)
    stages.progress.advance(1)
    norm = arms.median_norm(lm, inputs)
    dose_texts, dose = _dose(stages, vector, norm)
    alpha = spec.alpha
    if alpha is None:
        assert dose is not None
        alpha = dose.recommended
    pipes = stages.plumbing(vector, alpha)
    tested = arms.test_arms(spec, alpha, vector, controls)
    shapes = None
    if spec.wants_geometry:
        shapes = measured(stages, vector, alpha, norm)
        tested |= shapes.arms
    held = test.tested(stages, tested, alpha, pipes, shapes.others if shapes else {})
    texts = held.texts
    seen = judge.Evidence(
        lm=lm,
        inputs=inputs,
        vector=vector,
        arms=tested,
        alpha=alpha,
        median_norm=norm,
        dose=dose,
        plumbing=pipes,
        texts=texts,
        divergences=held.divergences,
        likelihoods=stages.likelihoods(texts) if spec.behaves else [],
        next_tokens=_next_tokens(stages, tested, vector, alpha, shapes),
        gains=_gains(stages, vector, alpha),
        environments=_environments(stages, vector, alpha, controls),
        looks=held.looks,
        decisions=held.decisions,
    )
    found = judge.findings(seen)
    elsewhere = [row for rows in seen.environments.values() for row in rows]
    if shapes is not None:
        more = geometry_findings.findings(shapes, seen, found)
        found |= {key: judge.judged(seen, finding) for key, finding in more.items()}
        elsewhere += [row | {"score": None} for row in shapes.geometry.texts]
    if spec.wants_reachability:
        reach = Reach(stages, vector, alpha, _flips(controls))
        more, behind = reachability_findings.findings(reach, seen)
        found |= {key: judge.judged(seen, finding) for key, finding in more.items()}
        elsewhere += behind
    store.write_generations([*dose_texts, *texts, *elsewhere])
    store.write_findings(found, judge.facts(seen))


def _flips(controls: Mapping[str, SteeringVector]) -> list[SteeringVector]:
    """Sign-flipped controls, in their order."""
    return [one for name, one in controls.items() if name.startswith("sign_flip")]


def _dose(
    stages: Stages, vector: SteeringVector, norm: float
) -> tuple[Rows, evidence.DoseCurve | None]:
    """Texts of the dose curve and the curve, if anything asks for it."""
    spec, inputs = stages.spec, stages.inputs
    if not spec.behaves and spec.alpha is not None:
        return [], None
    doses = arms.dose_arms(spec, vector)
    texts = stages.texts("dose", doses, inputs.dose_prompts, spec.samples)
    scores = stages.dose_scores(doses, texts)
    unit = vector.norm / norm
    return texts, evidence.dose_curve(texts, scores, doses, step_unit=unit)


def _next_tokens(
    stages: Stages,
    tested: Mapping[str, Arm],
    vector: SteeringVector,
    alpha: float,
    shapes: Measured | None,
) -> Rows:
    if "logits" not in stages.spec.audits:
        return []
    geometry = arms.geometry_vectors(stages.spec, vector)
    if shapes is not None:
        geometry |= soft_null_vectors(shapes.geometry)
    return stages.next_tokens(tested, vector, alpha, geometry)


def _gains(stages: Stages, vector: SteeringVector, alpha: float) -> Rows:
    if "logits" not in stages.spec.audits:
        return []
    return stages.gains(vector, alpha, arms.gain_directions(stages.spec, vector))


def _environments(
    stages: Stages,
    vector: SteeringVector,
    alpha: float,
    controls: Mapping[str, SteeringVector],
) -> dict[str, Rows]:
    """Texts of every environment's vector on every environment's prompts."""
    spec, inputs = stages.spec, stages.inputs
    if "environments" not in spec.audits:
        return {}
    found = {}
    for name, prompts in inputs.environments.items():
        tested = arms.environment_arms(spec, alpha, vector, controls, name)
        found[name] = stages.texts(
            f"environment {name}", tested, prompts, spec.environment_samples
        )
    return found
