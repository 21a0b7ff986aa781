"""A run with workers is the run without them, whoever of them dies on the way."""

import inspect
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests import planted
from tests.models import tiny

from steergauge import errors
from steergauge.engines import LocalEngine
from steergauge.errors import (
    BadProbe,
    InputError,
    ModelError,
    SteergaugeError,
    StoreError,
)
from steergauge.loading import load
from steergauge.runs import distributed, plan, store, worker
from steergauge.runs.distributed import ModelSource, Pool, engine_name
from steergauge.runs.execute import Run, audit, audit_traits
from steergauge.runs.progress import Silent
from steergauge.runs.spec import layer_specs, spec_from
from steergauge.runs.stages import Stages
from steergauge.runs.store import Store, part_of
from steergauge.runs.sweep import audit_layers

NUM_WORKERS = 3
SMALL = {
    "num_prompts": 6,
    "num_dose_prompts": 3,
    "samples": 1,
    "max_new_tokens": 2,
    "num_perpendicular": 1,
    "num_random": 2,
    "prompts_per_cell": 2,
    "arms_per_cell": 5,
}
PATIENCE = 120
"""Seconds that a machine may take which does other work."""

PROBE = """
import os, pathlib, time
HERE = pathlib.Path(__file__).parent
HIGH, LOW = {high!r}, {low!r}

def score(texts):
    for file in sorted(HERE.glob("armed*")):
        words = file.read_text().split()
        if str(os.getpid()) in words or texts[0].startswith("label"):
            continue  # the driver, and the gate's own texts
        try:
            file.unlink()  # whoever does it is the only one
        except FileNotFoundError:
            continue
        if words[0] == "fail":
            raise ValueError("out of words")
        part = HERE / "caught.part"
        part.write_text(str(os.getpid()))
        part.rename(HERE / f"caught-{{file.name}}")
        time.sleep({patience})
    counts = [sum((w in HIGH) - (w in LOW) for w in text.split()) for text in texts]
    return [1 / (1 + 2.718281828 ** -count) for count in counts]
"""
"""A lexical probe that, once for every file `armed...`, fails or waits to be killed."""


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip(
        "ray", reason='Ray is not installed: pip install "steergauge[ray]"'
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> ModelSource:
    """The planted model in a folder, where workers find it."""
    folder = tmp_path_factory.mktemp("model")
    lm = planted.planted()
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    fingerprint = load(str(folder), device="cpu").fingerprint
    return ModelSource(str(folder), device="cpu", fingerprint=fingerprint)


@pytest.fixture(scope="module")
def lm(source):
    return load(source.model, device="cpu")


@pytest.fixture(scope="module")
def traps(tmp_path_factory) -> Path:
    """The folder of the probe, where traps are laid."""
    folder = tmp_path_factory.mktemp("probe")
    code = PROBE.format(high=planted.HIGH, low=planted.LOW, patience=PATIENCE)
    (folder / "probe.py").write_text(code)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, traps):
    folder = tmp_path_factory.mktemp("inputs")
    rows = [
        f'{{"text": "label {word} {other}", "label": {int(words is planted.HIGH)}}}'
        for words in (planted.HIGH, planted.LOW)
        for word in words
        for other in planted.NEUTRAL[:2]
    ]
    (folder / "labelled.jsonl").write_text("\n".join(rows))
    return SMALL | {
        "prompts": planted.prompt_file(folder, 12),
        "probe": f"{traps / 'probe.py'}:score",
        "labelled": str(folder / "labelled.jsonl"),
    }


@pytest.fixture(scope="module")
def pool(ray, source):
    """Three workers on a cluster of two machines, as Ray sees them."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False},
    )
    cluster.add_node(num_cpus=2, num_gpus=0)
    try:
        # One thread, as in this process: sums in the same order.
        with Pool(
            NUM_WORKERS, address=cluster.address, model=source, threads=1
        ) as opened:
            yield opened
    finally:
        cluster.shutdown()


def run_in(folder, lm, inputs, workers=None, **options) -> Run:
    vector = planted.trait_vector()
    return audit(lm, vector, out=folder, workers=workers, **inputs, **options)


@pytest.fixture(scope="module")
def alone(lm, inputs, tmp_path_factory) -> Run:
    return run_in(tmp_path_factory.mktemp("alone") / "run", lm, inputs)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its place on the disk and the time of its last change."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime)
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_same(run: Run, other: Run) -> None:
    ours, theirs = run.store, other.store
    assert ours.generations() == theirs.generations()
    names = [place.folder / "findings.json" for place in (ours, theirs)]
    assert names[0].read_bytes() == names[1].read_bytes()
    # A worker that is being killed may leave a file that it had begun.
    kept = [
        {name for name in files(place.folder) if not name.endswith(".part")}
        for place in (ours, theirs)
    ]
    assert kept[0] == kept[1]


def test_a_wrong_model_is_refused_before_any_work_and_nothing_is_left_running(
    ray, source
):
    before = ray.is_initialized()
    wrong = replace(source, fingerprint="0123")
    with pytest.raises(ModelError, match="0123"), Pool(1, model=wrong):
        pass
    assert ray.is_initialized() == before


def test_a_run_with_workers_is_the_run_without_to_the_last_byte(
    pool, lm, inputs, alone, tmp_path
):
    before = len(pool.records)
    run = run_in(tmp_path / "run", lm, inputs, pool)
    assert_same(run, alone)
    # Not vacuous: all of them worked, this process did not, on many cells.
    made = pool.records[before:]
    cells = [name for name in files(run.store.folder) if name.endswith(".parquet")]
    assert sorted(record.name for record in made) == sorted(
        Path(name).stem for name in cells if name.startswith("cells/")
    )
    assert len(made) > 20
    assert len({record.pid for record in made} - {os.getpid()}) == NUM_WORKERS
    assert {record.worker for record in made} == set(range(NUM_WORKERS))


def test_a_finished_run_is_returned_without_asking_the_workers(pool, lm, inputs, alone):
    before = len(pool.records), files(alone.store.folder)
    again = run_in(alone.store.folder, lm, inputs, pool)
    assert again.findings == alone.findings
    assert (len(pool.records), files(alone.store.folder)) == before


def killed_by(caught: Path) -> threading.Thread:
    """Kills the process that is caught, once it is."""

    def kill() -> None:
        deadline = time.monotonic() + PATIENCE
        while not caught.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(int(caught.read_text()), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_a_worker_that_is_killed_in_a_cell_costs_that_cell_alone(
    pool, lm, inputs, alone, traps, tmp_path
):
    folder, kept = tmp_path / "run", {}

    class Watching:
        """Looks at the folder and lays a trap when scores of the test begin."""

        def begin(self, label: str, total: int) -> None:
            if label == "test: scores":
                kept.update(files(folder))
                (traps / "armed").write_text(f"wait {os.getpid()}")

        def advance(self, num: int) -> None:
            pass

    before, lost = len(pool.records), len(pool.lost)
    killer = killed_by(traps / "caught-armed")
    run = run_in(folder, lm, inputs, pool, progress=Watching())
    killer.join()
    dead = int((traps / "caught-armed").read_text())
    assert_same(run, alone)
    # One cell was begun twice, the second time by somebody else; every cell was
    # finished once, and those before it stayed as they were.
    (name,) = pool.lost[lost:]
    assert name.startswith("scores-test-")
    made = pool.records[before:]
    assert set(Counter(record.name for record in made).values()) == {1}
    pids = {record.name: record.pid for record in made}
    assert dead in pids.values()
    assert pids[name] != dead
    assert len([name for name in kept if name.startswith("cells/")]) > 10
    now = files(folder)
    assert {name: now[name] for name in kept} == kept


def test_a_cell_that_kills_every_worker_is_an_error_that_names_it(
    pool, lm, inputs, traps, tmp_path, monkeypatch
):
    monkeypatch.setattr(distributed, "ATTEMPTS", 1)
    (traps / "caught-armed").unlink(missing_ok=True)
    (traps / "armed").write_text(f"wait {os.getpid()}")
    killer = killed_by(traps / "caught-armed")
    with pytest.raises(SteergaugeError, match=r"scores-dose-\d+ was begun 1 times"):
        run_in(tmp_path / "run", lm, inputs, pool)
    killer.join()
    assert not (tmp_path / "run" / "findings.json").exists()


def test_an_error_in_a_cell_ends_the_run_as_the_same_error_and_it_can_go_on(
    pool, lm, inputs, alone, traps, tmp_path
):
    (traps / "armed").write_text(f"fail {os.getpid()}")
    with pytest.raises(BadProbe) as caught:
        run_in(tmp_path / "run", lm, inputs, pool)
    assert "ValueError: out of words" in caught.value.found
    assert caught.value.remedy.startswith("Define a function")
    kept = files(tmp_path / "run")
    assert not [name for name in kept if name.startswith("workers.")]
    run = run_in(tmp_path / "run", lm, inputs, pool)
    assert_same(run, alone)
    now = files(tmp_path / "run")
    finished = {name for name in kept if not name.endswith(".part")}
    assert len(finished) > 5
    assert {name: now[name] for name in finished} == {n: kept[n] for n in finished}


def test_a_driver_that_is_stopped_goes_on_with_the_cells_that_are_missing(
    pool, lm, inputs, alone, tmp_path
):
    class Stopping:
        """Ctrl-C in the middle of the test's texts."""

        def __init__(self) -> None:
            self.label, self.count = "", 0

        def begin(self, label: str, total: int) -> None:
            self.label = label

        def advance(self, num: int) -> None:
            self.count += self.label == "test: texts"
            if self.count == 2:
                raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_in(folder, lm, inputs, pool, progress=Stopping())
    kept = {name for name in files(folder) if not name.endswith(".part")}
    assert 5 < len(kept) < len(files(alone.store.folder)) - 5
    before = len(pool.records)
    run = run_in(folder, lm, inputs, pool)
    assert_same(run, alone)
    again = {f"cells/{record.name}.parquet" for record in pool.records[before:]}
    assert not again & kept


def test_as_many_runs_as_workers_are_done_whole_and_one_that_is_killed_goes_on(
    pool, lm, inputs, traps, tmp_path
):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "\n".join(
            f'{{"positive": "{word} {high}", "negative": "{word} {low}"}}'
            for word in planted.NEUTRAL[:6]
            for high, low in zip(planted.HIGH[:2], planted.LOW[:2], strict=True)
        )
    )
    small = inputs | {"pairs": str(pairs), "alpha": 1.0, "audits": ("manipulation",)}
    spec = spec_from(small | {"num_dose_prompts": 1, "num_prompts": 4})
    specs = layer_specs(spec, (0, 1, 2))
    before, lost = len(pool.records), len(pool.lost)
    (traps / "caught-armed").unlink(missing_ok=True)
    (traps / "armed").write_text(f"wait {os.getpid()}")
    killer = killed_by(traps / "caught-armed")
    ours = audit_layers(lm, specs, out=tmp_path / "ours", workers=pool)
    killer.join()
    made = pool.records[before:]
    assert sorted(record.name for record in made) == sorted(specs)
    assert os.getpid() not in {record.pid for record in made}
    (killed,) = pool.lost[lost:]
    assert killed in specs
    theirs = audit_layers(lm, specs, out=tmp_path / "theirs")
    for name, run in ours.items():
        assert_same(run, theirs[name])
    # Fewer runs than workers: their cells are shared out.
    before = len(pool.records)
    two = {name: specs[name] for name in list(specs)[:2]}
    again = audit_traits(lm, two, out=tmp_path / "again", workers=pool)
    for name, run in again.items():
        assert_same(run, theirs[name])
    assert not {*two} & {record.name for record in pool.records[before:]}
    assert len(pool.records) - before > 4


def test_arrays_are_made_by_the_workers_too_and_only_once(pool, lm, inputs, tmp_path):
    spec = spec_from(inputs)
    gathered = plan.gather(lm, spec, planted.trait_vector())
    own = Store(tmp_path / "run")
    own.open(gathered.spec, gathered.hashes(lm))
    stages = Stages(lm, gathered, own, Silent(), None, pool)

    def make(there):
        return {"seen": np.array([os.getpid(), there.lm.num_layers])}

    pool.arrays(stages, [(f"part-{k}", make, 1) for k in range(4)])
    found = [own.arrays(f"part-{k}", dict)["seen"].tolist() for k in range(4)]
    assert {layers for _, layers in found} == {lm.num_layers}
    assert os.getpid() not in {pid for pid, _ in found}
    before = files(own.folder)
    pool.arrays(stages, [("part-0", make, 1)])
    assert files(own.folder) == before


def test_another_model_than_the_workers_is_refused_by_name(pool, inputs, tmp_path):
    with pytest.raises(ModelError, match=r"another (model|tokenizer)"):
        run_in(tmp_path, tiny("llama"), inputs, pool)


@pytest.mark.parametrize("number", [0, -1])
def test_a_pool_of_no_workers_is_refused(number):
    with pytest.raises(InputError, match="at least 1"):
        Pool(number, model=ModelSource())
    with pytest.raises(InputError, match="at least 1"):
        Pool(1, model=ModelSource(), threads=number)


def test_more_workers_than_the_cluster_has_room_for_are_refused(pool, source):
    with pytest.raises(InputError, match="5 workers were asked for; Ray has 4 CPUs"):
        Pool(5, address="auto", model=source).__enter__()


def test_without_ray_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InputError, match="steergauge\\[ray\\]"):
        Pool(1, model=ModelSource()).__enter__()


KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_comes_over_as_it_was(kind):
    sent = worker._failure(kind("It is so.", cause="Why.", remedy="Do so."))
    raised = sent.error()
    assert type(raised) is kind
    assert (raised.found, raised.cause) == ("It is so.", "Why.")
    assert raised.remedy == "Do so."


def test_a_folder_that_is_not_the_drivers_is_seen_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "DISK_PATIENCE", 0.1)
    with distributed._shared(tmp_path / "run") as shared:
        shared.check()
        # A folder of the same name on another disk.
        shared.path.write_text("another")
        with pytest.raises(StoreError, match="does not see the folder"):
            shared.check()
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(StoreError, match="does not see the folder"):
        shared.check()


def test_what_a_killed_driver_left_goes_and_that_of_a_living_one_stays(
    tmp_path, monkeypatch
):
    left = [tmp_path / "workers.0a-1.part"]
    for pid in (os.getpid(), os.getppid()):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        left.append(part_of(tmp_path / "workers"))
    monkeypatch.undo()
    for path in left:
        path.touch()
    monkeypatch.setattr(store, "_is_running", lambda pid: pid == os.getppid())
    with distributed._shared(tmp_path):
        assert [path.exists() for path in left] == [True, False, True]


def test_an_engine_that_the_spec_does_not_name_cannot_be_opened_elsewhere(lm):
    class Other(LocalEngine):
        pass

    class Mine:
        generate, close = LocalEngine.generate, LocalEngine.close

    spec = spec_from({"trait": "formality"})
    assert engine_name(None, spec) == engine_name(LocalEngine(lm), spec) == ""
    with pytest.raises(InputError, match="Mine"):
        engine_name(Mine(), spec)
