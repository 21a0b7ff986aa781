"""Workers of a run: many processes with the same model make its cells, through Ray.

::

    driver                               worker k of n (an actor of Ray)
    stages -> missing cells --one a time-> make(stages, cell) -> the cell's own file
       ^                                              |
       `------- progress <-- (name, pid, seconds) ----'

The run's folder is all that is shared: a worker writes its cell there, whole or not at
all, and the driver reads it back, so a run with workers leaves the files of one without
and can be stopped, killed and resumed in the same way. A worker that dies costs the
cell that it was making: another makes it again, and a new worker takes its place.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from steergauge.engines import Engine, LocalEngine
from steergauge.errors import InputError, SteergaugeError, StoreError
from steergauge.runs.crew import ATTEMPTS, Crew, Member
from steergauge.runs.progress import Progress
from steergauge.runs.spec import Spec
from steergauge.runs.stages import Cell, Make, Stages
from steergauge.runs.store import Store, part_of
from steergauge.runs.worker import (
    Job,
    ModelSource,
    Part,
    Record,
    Share,
    Shared,
    SharedRun,
    made_arrays,
    made_cell,
    waited,
)


@dataclass(frozen=True, slots=True)
class _Piece:
    """One piece of work: how it is sent to a worker, and what it counts."""

    name: str
    send: Callable[[Any, Share], Any]
    units: int = 1


class Pool:
    """Workers that make the cells of runs; see `docs/scaling.md`.

    ::

        with Pool(4, model=ModelSource("builtin:organism")) as pool:
            audit(lm, out="runs/first", workers=pool)

    Attributes:
        records: what was made, by whom and in how many seconds, in the order in which
            it was finished.
        lost: names of what lost its worker, once a time.
    """

    def __init__(
        self,
        num_workers: int | None = None,
        *,
        address: str | None = None,
        model: ModelSource,
        threads: int | None = None,
    ) -> None:
        """Nothing is started before the pool is entered.

        Args:
            num_workers: None is one a GPU; without any, one for every four cores.
            address: of a cluster, such as "auto" or "ray://host:10001"; None starts a
                Ray of its own on this machine. A Ray to which this process is
                connected already is used as it is.
            model: what every worker loads.
            threads: of PyTorch in each worker; None is its share of the cores.

        Raises:
            InputError: a number is below 1.
        """
        for name, number in (("num_workers", num_workers), ("threads", threads)):
            if number is not None and number < 1:
                raise InputError(f"{name} is {number}; it must be at least 1.")
        self.records: list[Record] = []
        self.lost: list[str] = []
        self._crew = Crew(
            num_workers or 0, address=address, model=model, threads=threads
        )

    @property
    def num_workers(self) -> int:
        """How many there are; known once the pool is entered."""
        return self._crew.size

    def __enter__(self) -> "Pool":
        """Every worker has loaded the weights.

        Raises:
            InputError: Ray is not installed, or there is no such cluster, or it is
                too small.
            SteergaugeError: the model cannot be loaded there, or is another one.
        """
        self._crew.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """No worker is left, and no Ray that was started here."""
        self._crew.__exit__()

    def make(self, run: Stages, todo: Sequence[tuple[Make, Cell]]) -> None:
        """Put every cell into the store of `run`, and tell its progress.

        Scores of a judge are left to the driver, which asks for several at a time:
        its ratings are kept in one file, and no text is paid for twice.

        Raises:
            SteergaugeError: whatever was wrong with a cell, as if it were made here.
        """
        parts = [
            Part(cell.name, partial(made_cell, make=make, cell=cell), cell.units)
            for make, cell in todo
            if not (make is Stages._score and _is_judged(run))
        ]
        self._make(run, parts, Store.has_cell)

    def arrays(
        self,
        run: Stages,
        todo: Sequence[tuple[str, Callable[[Stages], Mapping[str, Any]], int]],
    ) -> None:
        """Put arrays into the store of `run`: name, how they are made, and units.

        Arrays are of derivatives: they are made by the model in float32 at least.
        """
        parts = [
            Part(name, partial(made_arrays, name=name, make=make), units, wide=True)
            for name, make, units in todo
        ]
        self._make(run, parts, Store.has_arrays)

    def apart(
        self, jobs: Mapping[str, Job], *, folder: Path, progress: Progress
    ) -> None:
        """Whole runs, one a worker at a time.

        Args:
            jobs: what a worker does with its own model, by the name of the run.
            folder: the folder of their folders.
            progress: told about finished runs.

        Raises:
            SteergaugeError: whatever was wrong with a run, as if it were made here.
        """
        progress.begin(f"{len(jobs)} runs on {self.num_workers} workers", len(jobs))
        with _shared(folder) as shared:

            def send(handle: Any, share: Share, *, name: str, job: Job) -> Any:
                return handle.run.remote(shared, name, job, share)

            pieces = [
                _Piece(name, partial(send, name=name, job=job))
                for name, job in jobs.items()
            ]
            self._share_out(pieces, lambda _: progress.advance(1), lambda _: None)

    def _make(
        self, run: Stages, parts: Sequence[Part], is_there: Callable[[Store, str], bool]
    ) -> None:
        store = run.store

        def done(piece: _Piece) -> None:
            if not waited(lambda: is_there(store, piece.name)):
                raise _not_shared(store.folder, piece.name)
            run.progress.advance(piece.units)

        with _shared(store.folder) as shared:
            wanted = self._crew.put(_sent(run, shared))

            def send(handle: Any, share: Share, *, part: Part) -> Any:
                return handle.make.remote(wanted, part, share)

            pieces = [_Piece(p.name, partial(send, part=p), p.units) for p in parts]
            self._share_out(pieces, done, lambda piece: store.tidy(piece.name))

    def _share_out(
        self,
        pieces: Sequence[_Piece],
        done: Callable[[_Piece], None],
        lost: Callable[[_Piece], None],
    ) -> None:
        """One piece at a time to each idle worker, until all are done."""
        crew, todo = self._crew, deque(pieces)
        busy: dict[Any, tuple[Member, _Piece]] = {}
        begun = len(self.lost)
        try:
            crew.fill()
            while todo or busy:
                while todo and crew.idle:
                    member, piece = crew.idle.pop(0), todo.popleft()
                    sent = piece.send(member.handle, crew.share(member))
                    busy[sent] = member, piece
                ref = crew.next(busy)
                if ref is None:
                    continue
                member, piece = busy.pop(ref)
                record = crew.answer(ref, member)
                if record is None:
                    self.lost.append(piece.name)
                    if self.lost[begun:].count(piece.name) == ATTEMPTS:
                        raise _given_up(piece.name)
                    lost(piece)
                    todo.appendleft(piece)
                    crew.fill()
                else:
                    self.records.append(record)
                    done(piece)
        except BaseException:
            crew.recall()
            raise


def engine_name(engine: Engine | None, spec: Spec) -> str:
    """What workers open to make texts as `engine` does; empty is their own model.

    Raises:
        InputError: the spec does not say what it is.
    """
    if isinstance(engine, LocalEngine) or (engine is None and spec.engine == "local"):
        return ""
    if spec.engine == "local":
        raise InputError(
            f"the texts are to be made by {type(engine).__name__}, which the spec does "
            "not name, so workers cannot open it.",
            remedy='Name it in the spec, as engine = "vllm".',
        )
    return spec.engine


def _is_judged(run: Stages) -> bool:
    probe = run.inputs.probe
    return probe is not None and probe.kind == "judge"


def _sent(run: Stages, shared: Shared) -> SharedRun:
    """What a worker must know of the run to make its cells."""
    return SharedRun(
        shared=shared,
        folder=run.store.folder.absolute(),
        spec=run.spec,
        given=run.inputs.given,
        hashes=run.inputs.hashes(run.lm),
        engine=engine_name(run.engine, run.spec),
    )


@contextmanager
def _shared(folder: Path) -> Iterator[Shared]:
    """A file that workers must see, for as long as they work."""
    folder.mkdir(parents=True, exist_ok=True)
    Store(folder).tidy()
    path = part_of(folder.absolute() / "workers")
    secret = path.name
    path.write_text(secret, encoding="utf-8")
    try:
        yield Shared(path, secret)
    finally:
        path.unlink(missing_ok=True)


def _given_up(name: str) -> SteergaugeError:
    return SteergaugeError(
        f"{name} was begun {ATTEMPTS} times, and each time its worker died.",
        cause="It needs more memory than a worker has, or it crashes.",
        remedy="Use fewer workers or a smaller batch_size, or run without workers to "
        "see what happens. What was finished is kept.",
    )


def _not_shared(folder: Path, name: str) -> StoreError:
    return StoreError(
        f"a worker has made {name}, and it is not in {folder} as this process sees it.",
        cause="The folder is not on a disk that all machines share.",
        remedy="Choose an --out on a disk that is mounted on all of them.",
    )
