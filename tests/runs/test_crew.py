"""Workers are counted, shared out, lost and replaced; Ray is played by this process."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from steergauge.errors import BadProbe
from steergauge.runs import crew
from steergauge.runs.distributed import Pool, _Piece
from steergauge.runs.worker import Failure, ModelSource, Place, Record, Share

CORES = 8


class Death(Exception):
    """What Ray says of a worker that is gone."""


class Method:
    """Of an actor: called now, asked for its answer later."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = lambda *given: lambda: call(*given)


class Actor:
    """A worker that loads nothing, and does what it is given."""

    def __init__(self, number: int, node: str) -> None:
        self.load = Method(lambda _source, _gpu: Place(node, CORES, number))
        self.run = Method(lambda work, share: work(number, share))


class Ray:
    """As much of Ray as a crew asks for; machines take turns, as in SPREAD.

    If `slow`, who starts is there only when nobody else has work.
    """

    def __init__(self, nodes: tuple[str, ...] = ("a",), gpus: int = 0) -> None:
        died = dict.fromkeys(
            (
                "RayActorError",
                "WorkerCrashedError",
                "NodeDiedError",
                "OutOfMemoryError",
                "ObjectLostError",
            ),
            Death,
        )
        self.exceptions = SimpleNamespace(**died)
        self.killed: list[Any] = []
        self.started: list[Actor] = []
        self.slow = False
        self._nodes, self._gpus = nodes, gpus

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        kinds = {"CPU": CORES, "GPU": self._gpus}
        return [{"Alive": True, "Resources": kinds} for _ in self._nodes]

    def remote(self, _kind: type) -> SimpleNamespace:
        started = SimpleNamespace(remote=self._start)
        return SimpleNamespace(options=lambda **_: started)

    def _start(self, number: int, _folder: str) -> Actor:
        node = self._nodes[len(self.started) % len(self._nodes)]
        self.started.append(Actor(number, node))
        return self.started[-1]

    def wait(self, refs: list, **_: Any) -> tuple[list, list]:
        assert refs, "Ray refuses to wait for nothing"
        if self.slow:  # Those who start come last.
            return refs[:1], refs[1:]
        return refs[-1:], refs[:-1]

    def get(self, ref: Callable[[], Any]) -> Any:
        return ref()

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)


@pytest.fixture
def opened(monkeypatch):
    """A pool of so many workers of a Ray that is played."""

    def opened(num: int, ray: Ray) -> Pool:
        monkeypatch.setattr(crew, "_ray", lambda: ray)
        return Pool(num, model=ModelSource()).__enter__()

    return opened


def done_by(pool: Pool, *work: Callable[[int, Share], Any]) -> list[int]:
    """The workers that did so many pieces of work."""
    pieces = [
        _Piece(
            f"piece-{k}", lambda handle, share, own=own: handle.run.remote(own, share)
        )
        for k, own in enumerate(work)
    ]
    before = len(pool.records)
    pool._share_out(pieces, lambda _: None, lambda _: None)
    return [record.worker for record in pool.records[before:]]


def plain(number: int, _share: Share) -> Record:
    return Record("plain", number, number, 0.0)


def raising(error: BaseException) -> Callable[[int, Share], Any]:
    def work(_number: int, _share: Share) -> Any:
        raise error

    return work


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("of theirs"), KeyboardInterrupt()], ids=repr
)
@pytest.mark.parametrize("num", [1, 3])
def test_whatever_ends_the_work_the_next_has_as_many_workers(opened, error, num):
    ray = Ray()
    pool = opened(num, ray)
    for _ in range(num + 1):  # More often than there are workers.
        with pytest.raises(type(error)):
            done_by(pool, raising(error), plain, plain)
        assert sorted(set(done_by(pool, *[plain] * 6))) == list(range(num))
    # Whoever met it was replaced, and nobody is kept beside.
    assert len(ray.started) - len(ray.killed) == num
    assert len(ray.killed) > num


def test_work_that_cannot_be_sent_loses_nobody(opened):
    def unsendable(_handle: Any, _share: Share) -> Any:
        raise TypeError

    pool = opened(2, Ray())
    for _ in range(3):
        with pytest.raises(TypeError):
            pool._share_out([_Piece("", unsendable)], lambda _: None, lambda _: None)
    assert sorted(done_by(pool, plain, plain)) == [0, 1]


def test_an_error_of_ours_costs_no_worker(opened):
    ray = Ray()
    pool = opened(2, ray)
    failure = Failure("BadProbe", "It is so.", "", "Do so.")
    with pytest.raises(BadProbe):
        done_by(pool, lambda *_: failure)
    assert ray.killed == []


def test_who_dies_leaves_the_others_with_the_threads_and_memory_they_had(opened):
    """The number of threads is part of what a run on CPUs gives to the last bit."""
    ray, given, dead = Ray(), [], []

    def watched(number: int, share: Share) -> Record:
        given.append((number, share))
        if not dead:
            dead.append(number)
            raise Death
        return plain(number, share)

    pool = opened(2, ray)
    ray.slow = True  # For a while there is one worker alone.
    done_by(pool, *[watched] * 5)
    assert len(ray.killed) == 1
    assert len({number for number, _ in given}) == 2
    assert {share for _, share in given} == {Share(CORES // 2, 1 / 2)}


def test_each_machine_is_shared_by_its_own_workers(opened):
    given = {}

    def watched(number: int, share: Share) -> Record:
        given[number] = share
        return plain(number, share)

    done_by(opened(3, Ray(("a", "b"))), *[watched] * 3)
    assert given == {0: Share(4, 1 / 2), 1: Share(8, 1.0), 2: Share(4, 1 / 2)}


def test_a_worker_with_a_gpu_of_its_own_has_all_of_its_memory(opened):
    given = []

    def watched(number: int, share: Share) -> Record:
        given.append(share)
        return plain(number, share)

    done_by(opened(2, Ray(gpus=2)), watched, watched)
    assert given == [Share(CORES // 2, 1.0)] * 2
