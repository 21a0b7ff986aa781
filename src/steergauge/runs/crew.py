"""The workers of a pool as processes: counted, started, waited for, and replaced.

Ray is imported here alone, and only when a pool is opened. A worker is an actor of it
with a GPU of its own where there are any; who dies is replaced by one that loads the
weights again.
"""

import importlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from steergauge.errors import InputError, SteergaugeError
from steergauge.runs.worker import (
    Failure,
    ModelSource,
    Place,
    Share,
    Worker,
    available_cores,
)

ATTEMPTS = 3
"""How often one piece of work, or the loading of weights, may lose its worker."""

START_PATIENCE = 600
"""Seconds until a worker has its weights, or the pool gives up."""

CORES_A_WORKER = 4
"""Of a machine without GPUs, if nobody said how many workers there should be."""


@dataclass(frozen=True, slots=True)
class Member:
    """A worker with its number, and where it turned out to be."""

    number: int
    handle: Any
    place: Place | None = None


class Crew:
    """So many workers, each with the weights loaded.

    Attributes:
        size: how many there are, or 0 before that is known.
        idle: those who have nothing to do.
    """

    def __init__(
        self, size: int, *, address: str | None, model: ModelSource, threads: int | None
    ) -> None:
        """Nothing is started yet; see `Pool` for what is given."""
        self.size = size
        self.idle: list[Member] = []
        self._address, self._source, self._asked = address, model, threads
        self._on_gpus = False
        self._ours = False
        self._failed_starts = 0
        self._starting: dict[Any, Member] = {}
        self._handles: dict[int, Any] = {}
        self._places: dict[int, Place] = {}
        self._planned: dict[str, int] = {}

    def __enter__(self) -> "Crew":
        """Every worker has loaded the weights."""
        self._ray = _ray()
        self._ours = not self._ray.is_initialized()
        try:
            if self._ours:
                self._connect()
            self._count()
            self.fill()
            while self._starting:
                self.next(())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """No worker is left, and no Ray that was started here."""
        for handle in self._handles.values():
            self._ray.kill(handle)
        self._handles, self._starting, self.idle = {}, {}, []
        if self._ours:
            self._ray.shutdown()

    def put(self, value: Any) -> Any:
        """A value for all workers, of which each machine keeps one copy."""
        return self._ray.put(value)

    def share(self, member: Member) -> Share:
        """A worker's part of its machine, whoever of the others lives just now."""
        place = member.place
        assert place is not None
        there = self._planned[place.node]
        threads = self._asked or max(1, place.cores // there)
        # The memory that counts is that of its GPU, which is its own.
        return Share(threads, 1.0 if self._on_gpus else 1 / there)

    def next(self, busy: Iterable[Any]) -> Any:
        """What a busy worker has answered; None if instead another was started."""
        waiting = [*busy]
        limit = None if waiting else START_PATIENCE
        waiting += self._starting
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=limit)
        if not ready:
            raise SteergaugeError(
                f"no worker had the model loaded after {START_PATIENCE} s.",
                cause="Others use the CPUs or GPUs of the cluster, or its disk or "
                "network is slow.",
                remedy="Wait until they are free, or ask for fewer workers.",
            )
        if ready[0] not in self._starting:
            return ready[0]
        self._welcome(ready[0])
        return None

    def answer(self, ref: Any, member: Member) -> Any:
        """What a worker answered, who is idle then; None if it died before.

        Raises:
            SteergaugeError: the one that it met, which does it no harm.
            Exception: any other that it met, and may not have got over; see `recall`.
        """
        answer = self._got(ref)
        if answer is None:
            self._dismiss(member.number)
            return None
        self.idle.append(member)
        if isinstance(answer, Failure):
            raise answer.error()
        return answer

    def recall(self) -> None:
        """Dismiss all who are neither idle nor starting: nobody waits for them."""
        known = {member.number for member in (*self.idle, *self._starting.values())}
        for number in {*self._handles} - known:
            self._dismiss(number)

    def _dismiss(self, number: int) -> None:
        """Make sure that it is gone; `fill` starts another in its place."""
        self._ray.kill(self._handles.pop(number))
        self._places.pop(number, None)

    def fill(self) -> None:
        """Begin to start those who are absent."""
        actor = self._ray.remote(Worker).options(
            num_cpus=1,
            num_gpus=1 if self._on_gpus else 0,
            scheduling_strategy="SPREAD",
        )
        for number in {*range(self.size)} - {*self._handles}:
            handle = actor.remote(number, str(Path.cwd()))
            self._handles[number] = handle
            ref = handle.load.remote(self._source, self._on_gpus)
            self._starting[ref] = Member(number, handle)

    def _got(self, ref: Any) -> Any:
        try:
            return self._ray.get(ref)
        except _deaths(self._ray):
            return None

    def _welcome(self, ref: Any) -> None:
        """A worker that has its weights is idle; one that died is started again."""
        member = self._starting.pop(ref)
        place = self._got(ref)
        if isinstance(place, Place):
            self._failed_starts = 0
            self._places[member.number] = place
            there = [own for own in self._places.values() if own.node == place.node]
            before = self._planned.get(place.node, 0)
            self._planned[place.node] = max(before, len(there))
            self.idle.append(replace(member, place=place))
            return
        self._dismiss(member.number)
        if isinstance(place, Failure):
            raise place.error()
        self._failed_starts += 1
        if self._failed_starts == ATTEMPTS:
            raise SteergaugeError(
                f"{ATTEMPTS} workers after one another died while they loaded the "
                "model.",
                cause="There is too little memory for so many copies of it.",
                remedy="Use fewer workers.",
            )
        self.fill()

    def _connect(self) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            gpus = torch.cuda.device_count() if self._source.may_use_gpus else 0
            if not self.size:
                self.size = gpus or max(1, available_cores() // CORES_A_WORKER)
            self._ray.init(
                # Not one that happens to run on this machine.
                address="local",
                num_cpus=self.size,
                num_gpus=gpus,
                include_dashboard=False,
                **quiet,
            )
            return
        try:
            self._ray.init(address=self._address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"there is no Ray cluster at {self._address!r}: {error}.",
                remedy="Start one with `ray start --head`, or leave the address out.",
            ) from error

    def _count(self) -> None:
        """How many workers there are, and that the cluster has room for them."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        cores = [int(node.get("CPU", 0)) for node in nodes]
        self._on_gpus = self._source.may_use_gpus and gpus > 0
        if not self.size:
            by_cores = sum(max(1, own // CORES_A_WORKER) for own in cores if own)
            self.size = gpus if self._on_gpus else by_cores
        room, kind = (gpus, "GPUs") if self._on_gpus else (sum(cores), "CPUs")
        if not 0 < self.size <= min(room, sum(cores)):
            raise InputError(
                f"{self.size} workers were asked for; Ray has {room} {kind} and "
                f"{sum(cores)} CPUs.",
                cause="Each worker takes one of either.",
                remedy="Ask for fewer workers, or give Ray more machines.",
            )


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise InputError(
            "workers were asked for, and Ray is not installed.",
            remedy='Install it with `pip install "steergauge[ray]"`.',
        ) from error


def _deaths(ray: Any) -> tuple[type[Exception], ...]:
    """How Ray says that a worker, or the machine that it was on, is gone."""
    known = ray.exceptions
    return (
        known.RayActorError,
        known.WorkerCrashedError,
        known.NodeDiedError,
        known.OutOfMemoryError,
        known.ObjectLostError,
    )
