"""One worker of a run: its own copy of the model, and whatever cell it is given.

It reads the same files as the driver, gathers the same inputs, and refuses to work if
their hashes, which cover weights, texts, probe, versions and kind of device, or the
precision are not those of the run. Answers are plain data, errors as well. See
`distributed`.
"""

import importlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from steergauge import engines, errors
from steergauge.engines import Engine, LocalEngine
from steergauge.errors import ModelError, SteergaugeError, StoreError
from steergauge.loading import load
from steergauge.runs import plan
from steergauge.runs.progress import Silent
from steergauge.runs.spec import Spec
from steergauge.runs.stages import Cell, Make, Stages
from steergauge.runs.store import Store
from steergauge.split import LanguageModel
from steergauge.vector import SteeringVector
from steergauge.widening import widened

DISK_PATIENCE = 20
"""Seconds until a file that another machine wrote is seen on a network disk."""

Opening = Callable[[str], Engine]
"""From the name of an engine to the engine; no name is the model itself."""

Job = Callable[[LanguageModel, Opening], None]
"""A whole run, with the model and the engines of whoever does it."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a worker loads; see `load`.

    Attributes:
        model: a Hugging Face id, a folder, or `builtin:organism`.
        revision: of a Hugging Face id.
        dtype: compute precision.
        device: "cpu" keeps workers off GPUs; None or "cuda" is a GPU for each, where
            there are any.
        trust_remote_code: run code that comes with the weights.
        fingerprint: of the driver's weights; empty is not compared.
    """

    model: str = "builtin:organism"
    revision: str | None = None
    dtype: str = "float32"
    device: str | None = None
    trust_remote_code: bool = False
    fingerprint: str = ""

    @property
    def may_use_gpus(self) -> bool:
        """Whether a worker may take a GPU."""
        return self.device is None or self.device.startswith("cuda")

    def loaded(self, *, on_gpu: bool) -> LanguageModel:
        """The model, on the only GPU that Ray shows this process or on the CPU.

        Raises:
            ModelError: it has other weights than the driver's.
            SteergaugeError: it cannot be loaded.
        """
        lm = load(
            self.model,
            revision=self.revision,
            dtype=self.dtype,
            device="cuda" if on_gpu else self.device,
            trust_remote_code=self.trust_remote_code,
        )
        if self.fingerprint and lm.fingerprint != self.fingerprint:
            raise ModelError(
                f"a worker loaded {self.model} with the fingerprint {lm.fingerprint}; "
                f"the driver's model has {self.fingerprint}.",
                cause="That name stands for other weights on the worker's machine, or "
                "the driver was given another model.",
                remedy="Give a folder that all machines share, or a --revision.",
            )
        return lm


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker is: an id of its machine, its cores, and its process."""

    node: str
    cores: int
    pid: int


@dataclass(frozen=True, slots=True)
class Share:
    """What a worker may take of its machine.

    Attributes:
        threads: of PyTorch.
        memory: above 0 and at most 1.
    """

    threads: int
    memory: float = 1.0


@dataclass(frozen=True, slots=True)
class Record:
    """What was made, by which worker and process, in how many seconds."""

    name: str
    worker: int
    pid: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of ours as plain data."""

    kind: str
    found: str
    cause: str
    remedy: str

    def error(self) -> SteergaugeError:
        """The error itself, of the class that it had.

        >>> Failure("StoreError", "It is full.", "", "Empty it.").error()
        StoreError('It is full. Empty it.')
        """
        kind = getattr(errors, self.kind, SteergaugeError)
        return kind(self.found, cause=self.cause, remedy=self.remedy)


@dataclass(frozen=True, slots=True)
class Shared:
    """A file that whoever shares the driver's disk can read, and what it holds."""

    path: Path
    secret: str

    def check(self) -> None:
        """Passes if it can be read here.

        Raises:
            StoreError: it cannot.
        """
        if not waited(self._is_here):
            raise StoreError(
                f"a worker does not see the folder {self.path.parent} as the driver "
                "does.",
                cause="It is not on a disk that all machines share.",
                remedy="Choose an --out on a disk that is mounted on all of them, in "
                "the same place.",
            )

    def _is_here(self) -> bool:
        try:
            return self.path.read_text(encoding="utf-8") == self.secret
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class SharedRun:
    """What a worker must know of a run to make parts of it.

    Attributes:
        shared: in the run's folder.
        folder: of the run.
        spec: with everything resolved.
        given: the vector under audit, if it was given.
        hashes: of all that the run reads.
        engine: the name of what makes texts; empty is the worker's own model.
    """

    shared: Shared
    folder: Path
    spec: Spec
    given: SteeringVector | None
    hashes: Mapping[str, str]
    engine: str


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a run: its name, who puts it into the store, and what it counts.

    `wide` is one of derivatives, made by the model in float32 at least.
    """

    name: str
    put: Callable[[Stages], object]
    units: int
    wide: bool = False


def made_cell(stages: Stages, *, make: Make, cell: Cell) -> None:
    """The cell is in the store."""
    stages.made(make, cell)


def made_arrays(
    stages: Stages, *, name: str, make: Callable[[Stages], Mapping[str, Any]]
) -> None:
    """The arrays are in the store."""
    stages.store.arrays(name, lambda: make(stages))


class Worker:
    """The process itself; Ray calls it from the driver, one call at a time."""

    def __init__(self, number: int, folder: str) -> None:
        """Works in the driver's working folder, so that paths mean the same."""
        self._number = number
        self._engines: dict[str, Engine] = {}
        self._known: tuple[tuple[object, ...], Stages] | None = None
        self._wide: LanguageModel | None = None
        self._checked: set[Path] = set()
        if Path(folder).is_dir():
            os.chdir(folder)

    def load(self, source: ModelSource, on_gpu: bool) -> Place | Failure:
        """Load the weights, once in the life of a worker."""
        try:
            self._source, self._lm = source, source.loaded(on_gpu=on_gpu)
        except SteergaugeError as error:
            return _failure(error)
        return Place(_machine(), available_cores(), os.getpid())

    def make(self, run: SharedRun, part: Part, share: Share) -> Record | Failure:
        """Put one part of a run into its folder."""
        return self._timed(
            run.shared, part.name, share, lambda: part.put(self._for(part, run, share))
        )

    def run(
        self, shared: Shared, name: str, job: Job, share: Share
    ) -> Record | Failure:
        """Do a whole run."""
        opening = partial(self._engine, share=share)
        return self._timed(shared, name, share, lambda: job(self._lm, opening))

    def _timed(
        self, shared: Shared, name: str, share: Share, work: Callable[[], object]
    ) -> Record | Failure:
        torch.set_num_threads(share.threads)
        start = time.monotonic()
        try:
            if shared.path not in self._checked:
                shared.check()
                self._checked = {shared.path}
            work()
        except SteergaugeError as error:
            return _failure(error)
        return Record(name, self._number, os.getpid(), time.monotonic() - start)

    def _for(self, part: Part, run: SharedRun, share: Share) -> Stages:
        """The run with the model that the part needs; a wide one while it is needed."""
        stages = self._run(run, share)
        if not part.wide:
            self._wide = None
            return stages
        self._wide = self._wide or widened(stages.lm)
        return replace(stages, lm=self._wide)

    def _run(self, run: SharedRun, share: Share) -> Stages:
        """The run as the driver has it, gathered once."""
        key = (run.folder, run.spec, run.hashes, run.engine)
        if self._known is None or self._known[0] != key:
            self._known = self._wide = None
            self._known = key, self._gathered(run)
        return replace(self._known[1], engine=self._engine(run.engine, share))

    def _gathered(self, run: SharedRun) -> Stages:
        refuse_another_model(
            self._lm, fingerprint=run.hashes["model"], dtype=run.spec.dtype
        )
        # Under the name that the driver has for it.
        lm = replace(self._lm, name=run.spec.model)
        inputs = plan.gather(lm, run.spec, run.given)
        _refuse_another(run.spec.to_table(), inputs.spec.to_table())
        _refuse_another(run.hashes, inputs.hashes(lm))
        return Stages(lm, inputs, Store(run.folder), Silent())

    def _engine(self, name: str, share: Share) -> Engine:
        if not name:
            return LocalEngine(self._lm, memory_share=share.memory)
        if name not in self._engines:
            source = self._source
            self._engines[name] = engines.opened(
                name,
                self._lm,
                source=source.model,
                dtype=source.dtype,
                revision=source.revision,
                trust_remote_code=source.trust_remote_code,
            )
        return self._engines[name]


def available_cores() -> int:
    """Cores that this process may use."""
    known = getattr(os, "sched_getaffinity", None)
    return len(known(0)) if known else os.cpu_count() or 1


def waited(is_so: Callable[[], bool]) -> bool:
    """Whether it is so, now or as soon as the disk shows it."""
    deadline = time.monotonic() + DISK_PATIENCE
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _machine() -> str:
    ray: Any = importlib.import_module("ray")
    return ray.get_runtime_context().get_node_id()


def _failure(error: SteergaugeError) -> Failure:
    return Failure(type(error).__name__, error.found, error.cause, error.remedy)


def refuse_another_model(lm: LanguageModel, *, fingerprint: str, dtype: str) -> None:
    """Passes if a worker's model is the driver's, in the same precision.

    Raises:
        ModelError: it is not.
    """
    _refuse_another({"model": fingerprint}, {"model": lm.fingerprint})
    found = plan.precision(lm)
    if found != dtype:
        raise ModelError(
            f"a worker's model computes in {found}, the driver's in {dtype}.",
            cause="The pool's ModelSource has another dtype than the driver's model "
            "was loaded with.",
            remedy="Give both the same dtype.",
        )


def _refuse_another(wanted: Mapping[str, object], found: Mapping[str, object]) -> None:
    """Passes if a worker has read what the driver has.

    Raises:
        ModelError: something differs; the first of it is named.
    """
    for key in sorted({*wanted, *found}):
        if wanted.get(key) != found.get(key):
            raise ModelError(
                f"a worker reads another {key} than the driver: {found.get(key)!r}, "
                f"not {wanted.get(key)!r}.",
                cause="Its machine has other files, versions or devices, or a file was "
                "edited since the run began.",
                remedy="Give all machines the same files and versions, and start the "
                "driver on one with the same kind of device.",
            )
