"""A run that is killed at any moment and started again ends with the same findings."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

STORIES = Path(__file__).parents[2] / "../shared/models/stories260K"
WORDS = {
    "high": ["happy", "smiled", "fun", "love", "loved", "nice", "good", "glad"],
    "low": ["sad", "cried", "scared", "angry", "hurt", "bad", "mean", "alone"],
}
PATIENCE = 120
"""Seconds that a run of three seconds may take on a machine that does other work."""

MAIN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from steergauge.cli import main; main()"
)
"""The console script, with Ctrl-C as a shell in the foreground leaves it."""


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> Path:
    """A small run on a real model, as a TOML file beside the files that it names."""
    if not STORIES.is_dir():
        pytest.skip("the model stories260K is not beside this checkout, in ../shared")
    folder = tmp_path_factory.mktemp("inputs")
    things = ("ball", "cake", "tree", "dog", "boat", "car", "cat", "bird")
    rows = [
        {pole: f"Tim saw a {thing}. He was {word}" for pole, word in sides}
        for thing in things
        for sides in [(("positive", "happy"), ("negative", "sad"))]
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts = [f"One day, Lily found a {thing} and" for thing in things]
    (folder / "prompts.txt").write_text("\n".join(prompts))
    texts = {pole: [f"He said {w}." for w in words] for pole, words in WORDS.items()}
    texts = {pole: [*listed, *listed[:4]] for pole, listed in texts.items()}
    words = tomli_w.dumps({**WORDS, "validation": texts})
    (folder / "words.toml").write_text(words)
    table = {
        "model": str(STORIES),
        "pairs": str(folder / "pairs.jsonl"),
        "prompts": str(folder / "prompts.txt"),
        "probe": str(folder / "words.toml"),
        "num_prompts": 5,
        "num_dose_prompts": 2,
        "samples": 1,
        "max_new_tokens": 6,
        "num_perpendicular": 1,
        "num_random": 2,
        "prompts_per_cell": 1,
    }
    (folder / "spec.toml").write_text(tomli_w.dumps(table))
    return folder / "spec.toml"


def start(spec: Path, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", MAIN]
    return subprocess.Popen(
        [*command, "audit", "--config", str(spec), "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # One thread: sums in the same order in every process.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finished(spec: Path, folder: Path) -> bytes:
    """The findings of a run that is left alone."""
    process = start(spec, folder)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return (folder / "findings.json").read_bytes()


def stopped(
    spec: Path, folder: Path, when: Callable[[], bool], how: signal.Signals
) -> tuple[int, str]:
    """Exit code and errors of a run that is stopped once `when` is true."""
    process = start(spec, folder)
    deadline = time.monotonic() + PATIENCE
    while not when():
        assert process.poll() is None, "the run was over before it was stopped"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(how)
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors


def cells(folder: Path) -> dict[str, int]:
    """Finished pieces of work, with the time at which they were finished."""
    return {
        path.name: path.stat().st_mtime_ns
        for path in (folder / "cells").glob("*")
        if path.suffix != ".part"
    }


def test_a_run_killed_again_and_again_ends_with_the_findings_of_one_left_alone(
    spec, tmp_path
):
    folder = tmp_path / "killed"
    moments = {
        "at its first file": folder.exists,
        "in the dose curve": lambda: len(cells(folder)) >= 3,
        "in the test": lambda: len(cells(folder)) >= 14,
    }
    kept: dict[str, int] = {}
    for moment, when in moments.items():
        code, _ = stopped(spec, folder, when, signal.SIGKILL)
        assert code == -signal.SIGKILL, moment
        now = cells(folder)
        assert {name: now[name] for name in kept} == kept, moment
        assert not (folder / "findings.json").exists()
        kept = now
    assert len(kept) >= 14
    # Whatever a kill left half-written has no meaning.
    for name in ("test-0004.parquet", "likelihoods-0004.parquet", "plumbing.json"):
        (folder / "cells" / f"{name}.part").write_bytes(b"half")
    ours = finished(spec, folder)
    now = cells(folder)
    assert {name: now[name] for name in kept} == kept
    assert len(now) > len(kept)
    assert ours == finished(spec, tmp_path / "alone")
    verdicts = {
        key: finding["verdict"] for key, finding in json.loads(ours)["findings"].items()
    }
    assert verdicts["plumbing"] == "PASS"
    assert len(verdicts) == 6


def test_ctrl_c_ends_a_run_with_one_sentence_and_code_130(spec, tmp_path):
    folder = tmp_path / "interrupted"
    # Long enough that it cannot end between two looks at its folder.
    long = spec.with_name("long.toml")
    long.write_text(spec.read_text().replace("samples = 1", "samples = 20"))
    code, errors = stopped(long, folder, lambda: len(cells(folder)) >= 2, signal.SIGINT)
    assert code == 130
    assert "The same command goes on where it was." in errors
    assert "Traceback" not in errors
    # What was finished is kept.
    assert len(cells(folder)) >= 2
