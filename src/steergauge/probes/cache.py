"""Scores that were paid for, one JSON object a line: nothing is paid for twice.

Lines are only ever added, each as soon as its answer is there, so a run that is killed
loses at most the answers it was still waiting for. A line that was torn by the kill is
skipped when the file is read, and closed before the next one is written.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from steergauge.errors import BadProbe

Keep = Callable[[str, float, str], None]
"""Writes down the key, the score and the answer that it was read from."""


def kept_scores(path: Path) -> dict[str, float]:
    """Scores by key; empty if there is no such file yet.

    Raises:
        BadProbe: the file cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise _unusable(path, error) from error
    scores = {}
    for line in lines:
        try:
            row = json.loads(line)
            scores[str(row["key"])] = float(row["score"])
        except (ValueError, TypeError, KeyError):
            continue  # torn
    return scores


@contextmanager
def keeping(path: Path) -> Iterator[Keep]:
    """A function that adds a score to the file, from any thread.

    Raises:
        BadProbe: the file cannot be written.
    """
    lock = Lock()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise _unusable(path, error) from error
    with file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")

        def keep(key: str, score: float, answer: str) -> None:
            row = json.dumps({"key": key, "score": score, "answer": answer})
            with lock:
                file.write(row.encode() + b"\n")
                file.flush()

        yield keep


def _unusable(path: Path, error: OSError) -> BadProbe:
    return BadProbe(
        f"the scores of a judge cannot be kept in {path}: {error}.",
        cause="The folder of the probe file cannot be written to.",
        remedy="Copy the probe file to a folder of yours. Nothing was asked.",
    )
