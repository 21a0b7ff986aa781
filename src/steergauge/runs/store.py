"""A run's folder: every finished piece of work is one file, whole or not there.

::

    run.toml               the spec, and hashes of what it read
    vectors/*.safetensors  v and every control
    cells/*                finished work; a killed run goes on where these end
    generations.parquet    every text with its arm, prompt, sample and score
    findings.json          what was found (schema below)
    report.html, card.md   made from the files above, by `steergauge report`

A file appears under its name only when complete (written beside it under a name of its
own, then renamed), so a run may be killed at any moment, and several processes may
write into the same folder. `findings.json` holds no clock times: the same run gives the
same bytes. Needs neither torch nor a model.
"""

import json
import os
import platform
import re
import secrets
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from steergauge.audits.finding import Finding
from steergauge.errors import StoreError
from steergauge.runs.spec import Spec, read_spec

SCHEMA = "steergauge.findings"
SCHEMA_VERSION = 1
Rows = list[dict[str, Any]]

ROWS_AT_ONCE = 8192
"""Texts that are turned into columns together; all of a large run need gigabytes."""

_PART = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part$")
"""How the name ends of what is being written: the machine, the process, a number."""

_TYPES = {
    "stage": pa.string(),
    "arm": pa.string(),
    "prompt_index": pa.int64(),
    "prompt": pa.string(),
    "sample": pa.int64(),
    "text": pa.string(),
    "finished": pa.bool_(),
    "num_tokens": pa.int64(),
    "token_ids": pa.list_(pa.int64()),
    "alpha": pa.float64(),
    "layer": pa.int64(),
    "seed": pa.int64(),
    "noise": pa.int64(),
    "score": pa.float64(),
}
"""Columns of `generations.parquet`; a column that is not named here is of the type that
its first values have."""

_REPEATED = ("stage", "arm", "prompt")
"""Columns whose values are kept once for all rows that have them."""


@dataclass(frozen=True, slots=True)
class Store:
    """The folder of one run."""

    folder: Path

    @property
    def vectors(self) -> Path:
        """Folder of the vectors."""
        return self.folder / "vectors"

    def vector_file(self, name: str) -> Path:
        """Where the vector of an arm is kept."""
        plain = name.replace("[", "-").replace("]", "")
        return self.vectors / f"{plain}.safetensors"

    def open(self, spec: Spec, inputs: Mapping[str, str]) -> None:
        """Begin the run in this folder, or resume it.

        Raises:
            StoreError: the folder holds another run, or something else.
        """
        path = self.folder / "run.toml"
        wanted = {**spec.to_table(), "inputs": dict(inputs)}
        if path.is_file():
            found = read_spec(path)
            found["inputs"] = _inputs(path)
            _refuse_other_run(self.folder, found, wanted)
            self.tidy()
            return
        if self.folder.exists() and not _is_empty(self.folder):
            raise StoreError(
                f"{self.folder} exists and holds something else than a run.",
                remedy="Choose another --out.",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tidy()
        write_text(path, tomli_w.dumps(wanted))

    def cell(self, name: str, make: Callable[[], Rows]) -> Rows:
        """The rows of cell `name`, made now unless they were made before.

        Their `token_ids` are arrays of 4 bytes a token.
        """
        path = self.folder / "cells" / f"{name}.parquet"
        if path.is_file():
            return _read(path)
        rows = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, lambda part: pq.write_table(_table(rows), part))
        return [_compact(row) for row in rows]

    def tidy(self, name: str = "") -> None:
        """Removes what processes of this machine that are gone had begun to write.

        Others may be writing into the folder now: theirs stays.

        Args:
            name: of a cell which nobody makes, to remove what was to become that
                instead, whoever began it.
        """
        for folder in (self.folder, self.folder / "cells", self.vectors):
            for path in folder.glob("*.part"):
                begun = path.name.startswith(f"{name}.") if name else _is_left(path)
                if begun:
                    path.unlink(missing_ok=True)

    def has_cell(self, name: str) -> bool:
        """Whether cell `name` is finished."""
        return (self.folder / "cells" / f"{name}.parquet").is_file()

    def arrays(
        self, name: str, make: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The arrays kept under `name`, made now unless they were made before."""
        path = self.folder / "cells" / f"{name}.safetensors"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            found = {key: np.ascontiguousarray(a) for key, a in make().items()}
            _write_whole(path, lambda part: save_file(found, part))
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _damaged(path, error) from error

    def has_arrays(self, name: str) -> bool:
        """Whether the arrays `name` are finished."""
        return (self.folder / "cells" / f"{name}.safetensors").is_file()

    def record(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The plain data kept under `name`, made now unless it was made before."""
        path = self.folder / "cells" / f"{name}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(make()))
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise _damaged(path, error) from error

    def finding(self, name: str, make: Callable[[], Finding]) -> Finding:
        """The finding kept under `name`, made now unless it was made before."""
        return Finding.from_json(self.record(name, lambda: make().to_json()))

    def write_generations(self, rows: Iterable[dict[str, Any]]) -> None:
        """Every text of the run, one row each, some of them at a time."""
        path = self.folder / "generations.parquet"
        _write_whole(path, lambda part: _write_rows(part, iter(rows)))

    def write_findings(
        self, findings: Mapping[str, Finding], facts: Mapping[str, Any]
    ) -> None:
        """Facts of the run and its findings, by key."""
        record = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "facts": dict(facts),
            "findings": {key: found.to_json() for key, found in findings.items()},
        }
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        write_text(self.folder / "findings.json", text)

    def findings(self) -> dict[str, Finding]:
        """Findings by key, in the order of the audits.

        Raises:
            StoreError: the run is not finished, or of another version.
        """
        records = self._record()["findings"]
        return {key: Finding.from_json(record) for key, record in records.items()}

    def facts(self) -> dict[str, Any]:
        """What the run was: model, layer, strength, arms, probe."""
        return self._record()["facts"]

    def generations(self) -> Rows:
        """Every text of the run."""
        path = self.folder / "generations.parquet"
        if not path.is_file():
            raise _unfinished(self.folder, path.name)
        return _read(path)

    def _record(self) -> dict[str, Any]:
        path = self.folder / "findings.json"
        if not path.is_file():
            raise _unfinished(self.folder, path.name)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise _damaged(path, error) from error
        found = (record.get("schema"), record.get("schema_version"))
        if found != (SCHEMA, SCHEMA_VERSION):
            raise StoreError(
                f"{path} has schema {found[0]} version {found[1]}; this steergauge "
                f"reads {SCHEMA} version {SCHEMA_VERSION}.",
                remedy="Run the audit again, or install the version that wrote it.",
            )
        return record


def write_text(path: Path, text: str) -> None:
    """Write a text file that is complete whenever it exists."""
    _write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside `path`, then rename: it is complete whenever it exists.

    No two processes write the same file beside it, and the last to finish stays.
    """
    part = part_of(path)
    try:
        write(part)
        part.replace(path)
    except Exception:
        part.unlink(missing_ok=True)
        raise


def part_of(path: Path) -> Path:
    """A name beside `path` that no other process uses, and that tells whose it is."""
    whose = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f"{path.name}.{whose}.part")


def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _is_left(part: Path) -> bool:
    """Whether a process of this machine began to write it, and is gone."""
    found = _PART.search(part.name)
    return (
        found is not None and found[1] == _machine() and not _is_running(int(found[2]))
    )


def _is_running(pid: int) -> bool:
    if os.name != "posix":
        return True  # Elsewhere signal 0 is a signal like any other.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # It is somebody else's.
        return True
    return True


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what a killed run had not finished writing."""
    return folder.is_dir() and all(path.suffix == ".part" for path in folder.iterdir())


def _read(path: Path) -> Rows:
    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise _damaged(path, error) from error
    columns = [_values(name, table.column(name)) for name in table.column_names]
    rows = zip(*columns, strict=True)
    return [dict(zip(table.column_names, row, strict=True)) for row in rows]


def _values(name: str, column: pa.ChunkedArray) -> list[Any]:
    """The column's values in Python, in as little room as they can be."""
    if name == "token_ids" and pa.types.is_list(column.type):
        return [ids for chunk in column.chunks for ids in _token_ids(chunk)]
    if name in _REPEATED and pa.types.is_string(column.type):
        known: dict[str, str] = {}
        return [known.setdefault(value, value) for value in column.to_pylist()]
    return column.to_pylist()


def _token_ids(lists: pa.ListArray) -> Iterator[Any]:
    """Each list as an array of 32-bit integers; none of them is null."""
    whole = array("i", lists.flatten().to_numpy().astype(np.int32).tobytes())
    starts = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy())])
    return (whole[a:b] for a, b in pairwise(starts))


def _compact(row: dict[str, Any]) -> dict[str, Any]:
    ids = row.get("token_ids")
    return row | {"token_ids": array("i", ids)} if isinstance(ids, list) else row


def _table(rows: Rows) -> pa.Table:
    """The rows as columns; token ids may be arrays, which arrow does not know."""
    names = rows[0].keys() if rows else ()
    return pa.table({name: _column(name, rows, None) for name in names})


def _column(name: str, rows: Rows, kind: pa.DataType | None) -> pa.Array:
    if name == "token_ids":
        kind = _TYPES[name]
    return pa.array([row.get(name) for row in rows], type=kind)


def _write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    first = list(islice(rows, ROWS_AT_ONCE))
    names = list(first[0]) if first else list(_TYPES)
    kinds = {
        name: _TYPES.get(name) or _column(name, first, None).type for name in names
    }
    with pq.ParquetWriter(path, pa.schema(list(kinds.items()))) as writer:
        own = first
        while own:
            columns = {name: _column(name, own, kinds[name]) for name in names}
            writer.write_table(pa.table(columns))
            own = list(islice(rows, ROWS_AT_ONCE))


def _inputs(path: Path) -> dict[str, str]:
    import tomllib

    return tomllib.loads(path.read_text(encoding="utf-8")).get("inputs", {})


def _refuse_other_run(
    folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    before, now = _flat(found), _flat(wanted)
    differing = [
        key for key in sorted({*before, *now}) if before.get(key) != now.get(key)
    ]
    if differing:
        key = differing[0]
        raise StoreError(
            f"{folder} holds another run: {', '.join(differing)} differ "
            f"({key}: {before.get(key)!r} there, {now.get(key)!r} asked for).",
            remedy="Choose another --out, or repeat the first command to resume it.",
        )


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with its hashes of inputs beside the other keys."""
    hashes = {f"contents of {key}": hash for key, hash in table["inputs"].items()}
    return {key: value for key, value in table.items() if key != "inputs"} | hashes


def _damaged(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{path} cannot be read: {error}.",
        cause="The disk was full, or the file was edited or damaged.",
        remedy="Delete it and repeat the audit command; it makes what is missing.",
    )


def _unfinished(folder: Path, missing: str) -> StoreError:
    return StoreError(
        f"{folder} holds no finished run: {missing} is missing.",
        cause="The run was stopped before its end, or this is no run's folder.",
        remedy="Repeat the audit command; it goes on where it stopped.",
    )
