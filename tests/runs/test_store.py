"""A run's folder: files are whole or not there, and only its own run resumes it."""

import dataclasses
import json
import os
import subprocess
import sys
from array import array
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.audits.test_finding import EMPTY, FULL

from steergauge.errors import StoreError
from steergauge.runs import store as stores
from steergauge.runs.spec import Spec, read_spec, spec_from
from steergauge.runs.store import SCHEMA, SCHEMA_VERSION, Rows, Store

INPUTS = {"model": "0123", "prompts": "4567"}
ROWS = [
    {"arm": "v", "text": 'naïve "quotes"\n', "nats": 1 / 3, "token_ids": [1, 2]},
    {"arm": "unsteered", "text": "", "nats": 1e-300, "token_ids": [3]},
    {"arm": "unsteered", "text": "b", "nats": 0.0, "token_ids": []},
]


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "runs" / "first")
    made.open(Spec(), INPUTS)
    return made


def files(store: Store) -> dict[str, int]:
    return {
        path.relative_to(store.folder).as_posix(): path.stat().st_mtime_ns
        for path in store.folder.rglob("*")
        if path.is_file()
    }


def plain(rows: Rows) -> Rows:
    """The rows with lists in the place of arrays."""
    assert all(isinstance(row["token_ids"], array) for row in rows)
    return [row | {"token_ids": list(row["token_ids"])} for row in rows]


class Died(BaseException):
    """What a kill looks like from inside: nobody catches it."""


def test_opening_writes_the_whole_spec_and_the_inputs(store):
    path = store.folder / "run.toml"
    assert spec_from(read_spec(path)) == Spec()
    assert "0123" in path.read_text()
    assert list(files(store)) == ["run.toml"]


def test_the_same_run_opens_the_folder_again_and_changes_nothing(store):
    before = files(store)
    store.open(Spec(), INPUTS)
    assert files(store) == before


@pytest.mark.parametrize(
    ("changes", "inputs", "named"),
    [
        ({"seed": 1}, INPUTS, ["seed", "0 there", "1 asked for"]),
        ({"alpha": 2.0}, INPUTS, ["alpha", "None there", "2.0 asked for"]),
        ({"against": ("a",)}, INPUTS, ["against", "'a'"]),
        ({"seed": 1, "samples": 9}, INPUTS, ["samples", "seed"]),
        ({}, INPUTS | {"model": "9999"}, ["contents of model", "0123", "9999"]),
        ({}, {"model": "0123"}, ["contents of", "4567"]),
    ],
)
def test_another_run_is_refused_and_the_difference_is_named(
    store, changes, inputs, named
):
    before = files(store)
    with pytest.raises(StoreError) as caught:
        store.open(dataclasses.replace(Spec(), **changes), inputs)
    assert all(word in str(caught.value) for word in named)
    assert files(store) == before


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="something else"):
        Store(tmp_path).open(Spec(), INPUTS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    path = tmp_path / "out"
    path.write_text("a file")
    with pytest.raises(StoreError, match="something else"):
        Store(path).open(Spec(), INPUTS)
    assert path.read_text() == "a file"


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    Store(tmp_path).open(Spec(), INPUTS)
    assert (tmp_path / "run.toml").is_file()


def test_a_run_killed_while_it_wrote_its_first_file_can_begin_again(tmp_path):
    (tmp_path / "run.toml.part").write_text("model = ")
    Store(tmp_path).open(Spec(), INPUTS)
    assert spec_from(read_spec(tmp_path / "run.toml")) == Spec()


def test_a_cell_is_made_once_and_read_back_as_it_was_made(store):
    calls = []

    def make():
        calls.append(1)
        return ROWS

    assert not store.has_cell("test-0000")
    assert plain(store.cell("test-0000", make)) == ROWS
    assert store.has_cell("test-0000")
    before = files(store)
    assert plain(store.cell("test-0000", make)) == ROWS
    assert len(calls) == 1
    assert files(store) == before


def test_an_empty_cell_is_finished_too(store):
    assert store.cell("none", list) == []
    assert store.cell("none", lambda: ROWS) == []


def test_a_finding_is_made_once_and_read_back_as_it_was_made(store):
    assert store.finding("plumbing", lambda: FULL) == FULL
    assert store.finding("plumbing", lambda: EMPTY) == FULL


def test_a_half_written_file_counts_as_not_written(store, monkeypatch):
    def die(*_args):
        raise Died

    monkeypatch.setattr("pathlib.Path.replace", die)
    with pytest.raises(Died):
        store.cell("test-0000", lambda: ROWS)
    with pytest.raises(Died):
        store.finding("plumbing", lambda: FULL)
    monkeypatch.undo()
    # Not vacuous: something was written, under another name.
    parts = [name for name in files(store) if name.endswith(".part")]
    assert {name.rsplit(".", 2)[0] for name in parts} == {
        "cells/test-0000.parquet",
        "cells/plumbing.json",
    }
    assert not store.has_cell("test-0000")
    assert plain(store.cell("test-0000", lambda: ROWS[:1])) == ROWS[:1]
    assert store.finding("plumbing", lambda: EMPTY) == EMPTY


def test_rubbish_in_a_part_file_is_ignored(store):
    (store.folder / "cells").mkdir()
    (store.folder / "cells" / "test-0000.parquet.part").write_bytes(b"rubbish")
    assert not store.has_cell("test-0000")
    assert plain(store.cell("test-0000", lambda: ROWS)) == ROWS


def test_a_cell_that_fails_leaves_nothing(store):
    with pytest.raises(ZeroDivisionError):
        store.cell("test-0000", lambda: 1 / 0)
    assert list(files(store)) == ["run.toml"]


def test_findings_come_back_in_their_order_with_the_facts(store):
    given = {"b": FULL, "a": EMPTY}
    store.write_findings(given, {"alpha": 1 / 3, "arms": [{"name": "v"}]})
    assert store.findings() == given
    assert list(store.findings()) == ["b", "a"]
    assert store.facts() == {"alpha": 1 / 3, "arms": [{"name": "v"}]}


def test_the_same_findings_are_the_same_bytes(store, tmp_path):
    other = Store(tmp_path / "other")
    other.open(Spec(), INPUTS)
    for place in (store, other):
        place.write_findings({"a": FULL}, {"alpha": 0.1})
    name = "findings.json"
    assert (store.folder / name).read_bytes() == (other.folder / name).read_bytes()


def test_findings_hold_no_number_that_json_does_not_know(store):
    with pytest.raises(ValueError, match="JSON"):
        store.write_findings({}, {"alpha": float("nan")})
    assert not (store.folder / "findings.json").exists()


@pytest.mark.parametrize(
    "change", [{"schema_version": SCHEMA_VERSION + 1}, {"schema": "other"}, {}]
)
def test_another_schema_or_version_is_refused(store, change):
    store.write_findings({"a": FULL}, {})
    path = store.folder / "findings.json"
    record = json.loads(path.read_text())
    assert (record["schema"], record["schema_version"]) == (SCHEMA, SCHEMA_VERSION)
    path.write_text(json.dumps(record | change if change else {}))
    for read in (store.findings, store.facts):
        with pytest.raises(StoreError, match=f"version {SCHEMA_VERSION}"):
            read()


def test_damaged_files_are_named(store):
    store.cell("test-0000", lambda: ROWS)
    store.finding("plumbing", lambda: FULL)
    store.write_generations(ROWS)
    store.write_findings({}, {})
    for name, read in {
        "cells/test-0000.parquet": lambda: store.cell("test-0000", list),
        "cells/plumbing.json": lambda: store.finding("plumbing", lambda: FULL),
        "generations.parquet": store.generations,
        "findings.json": store.findings,
    }.items():
        read()
        (store.folder / name).write_bytes(b"{")
        with pytest.raises(StoreError, match=name):
            read()


def test_an_unfinished_run_says_what_is_missing(store):
    for read, missing in (
        (store.findings, "findings.json"),
        (store.facts, "findings.json"),
        (store.generations, "generations.parquet"),
    ):
        with pytest.raises(StoreError, match=missing):
            read()


def test_every_text_is_kept_in_an_ordinary_parquet_file(store):
    store.write_generations(iter(ROWS))
    assert plain(store.generations()) == ROWS
    table = pq.read_table(store.folder / "generations.parquet")
    assert table.column("text").to_pylist() == [row["text"] for row in ROWS]


def test_a_large_file_of_texts_is_the_same_columns_however_many_at_a_time(
    store, monkeypatch
):
    # A score is missing in the first rows, and a column of one's own has a type too.
    rows = [
        {
            "arm": f"random[{i % 3}]",
            "prompt_index": i,
            "token_ids": array("i", range(i)),
            "finished": i % 2 == 0,
            "alpha": 0.5 * i,
            "own": i,
            "score": None if i < 8 else i / 20,
        }
        for i in range(20)
    ]
    store.write_generations(rows)
    whole = pq.read_table(store.folder / "generations.parquet")
    monkeypatch.setattr(stores, "ROWS_AT_ONCE", 3)
    store.write_generations(rows)
    file = pq.ParquetFile(store.folder / "generations.parquet")
    assert file.num_row_groups == 7
    assert file.read().equals(whole)
    types = {field.name: str(field.type) for field in whole.schema}
    assert list(types) == list(rows[0])
    assert types["score"] == "double"
    assert types["own"] == "int64"
    assert types["token_ids"] in ("list<item: int64>", "list<element: int64>")
    assert store.generations() == rows


def test_rows_read_back_are_numbers_of_python_in_little_room(store):
    rows = [
        {"arm": "v", "prompt": "a b c", "token_ids": list(range(1000, 1050))}
        for _ in range(8)
    ]
    for found in (store.cell("a", lambda: rows), store.cell("a", list)):
        ids = found[-1]["token_ids"]
        assert ids == array("i", range(1000, 1050))
        assert type(ids[0]) is int
        assert [7, *ids][:2] == [7, 1000]
        # Lists of 50 numbers take 456 bytes, and each number 28 more.
        assert sys.getsizeof(ids) <= 4 * 50 + 100
        assert found[0]["prompt"] is found[7]["prompt"]


def test_two_who_write_one_cell_at_a_time_do_not_disturb_each_other(store):
    def make():
        # Somebody else begins and ends the same cell meanwhile.
        store.cell("test-0000", lambda: ROWS[:1])
        return ROWS

    assert plain(store.cell("test-0000", make)) == ROWS
    assert plain(store.cell("test-0000", list)) == ROWS
    assert not [name for name in files(store) if name.endswith(".part")]


@pytest.fixture
def gone() -> int:
    """The id of a process that is no more."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def begun(path: Path, pid: int, monkeypatch) -> Path:
    """What a process with this id had begun to write."""
    with monkeypatch.context() as other:
        other.setattr(os, "getpid", lambda: pid)
        part = stores.part_of(path)
    part.write_bytes(b"half")
    return part


def test_what_a_kill_left_half_written_goes_when_the_run_goes_on(
    store, monkeypatch, gone
):
    store.cell("test-0000", lambda: ROWS)
    names = ("cells/test-0001.parquet", "cells/test-00010.json", "findings.json")
    first, *left = [begun(store.folder / name, gone, monkeypatch) for name in names]
    store.tidy("test-0001")
    assert [first.exists(), *(part.exists() for part in left)] == [False, True, True]
    store.open(Spec(), INPUTS)
    assert list(files(store)) == ["run.toml", "cells/test-0000.parquet"]


def test_what_another_process_is_writing_stays_when_the_run_goes_on(
    store, monkeypatch, gone
):
    parts = [begun(store.folder / "findings.json", os.getppid(), monkeypatch)]
    parts.append(begun(store.folder / "findings.json", os.getpid(), monkeypatch))
    # On another machine that number is another process.
    monkeypatch.setattr(stores, "_machine", lambda: "01234567")
    parts.append(begun(store.folder / "findings.json", gone, monkeypatch))
    monkeypatch.undo()
    store.open(Spec(), INPUTS)
    assert all(part.exists() for part in parts)
    store.write_findings({}, {})
    assert all(part.exists() for part in parts)


def test_a_write_that_fails_half_way_leaves_nothing(store, monkeypatch):
    monkeypatch.setattr(stores, "ROWS_AT_ONCE", 1)
    with pytest.raises(pa.ArrowException):
        store.write_generations([{"own": "text"}, {"own": 1}])
    assert list(files(store)) == ["run.toml"]
