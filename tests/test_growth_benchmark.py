"""The growth curves measure what they say, and a peak is of one process alone."""

import importlib
import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
MODULES = ("growth", "growth_picture", "gpu_shapes", "numerals", "geometry")


@pytest.fixture(scope="module")
def scripts():
    """The script and its picture as modules, by name."""
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def growth(scripts):
    """The script."""
    return scripts["growth"]


def test_the_exponent_is_that_of_a_power_whatever_its_factor(growth):
    sizes = [3, 6, 12, 24]
    for power in (0.0, 1.0, 2.5):
        costs = [7 * size**power for size in sizes]
        assert growth.exponent(sizes, costs) == pytest.approx(power, abs=1e-12)
    # A constant part lowers it: that is why the last doubling is told as well.
    assert growth.exponent(sizes, [100 + size for size in sizes]) < 0.1


def test_each_size_changes_one_number_and_every_batch_is_full(growth):
    parts = ((growth.BASE, growth.SIZES), (growth.MEMORY_BASE, growth.MEMORY))
    for base, sizes in parts:
        for axis, values in sizes.items():
            assert all(later == 2 * size for size, later in pairwise(values))
            assert getattr(base, axis) in values
            for value in values:
                work = growth.varied(base, axis, value)
                assert replace(work, **{axis: getattr(base, axis)}) == base
                # A batch that is not full would make the first sizes too cheap.
                assert work.prompts * work.arms >= work.batch


def test_the_work_grows_with_prompts_arms_and_model(growth):
    work = growth.QUICK_BASE
    lm = growth.model_of(work.layers, work.d, work.vocabulary)
    assert growth.responses(lm, work) == work.prompts * work.arms
    assert growth.responses(lm, replace(work, arms=3)) == work.prompts * 3
    assert (lm.num_layers, lm.d_model, lm.d_vocab) == (2, 32, 64)
    few, many = (growth.extracted(lm, replace(work, prompts=n)) for n in (1, 16))
    # Random texts: their mean difference shrinks like 1 / sqrt(n), here by 4.
    assert many < few / 2


def test_a_run_prints_every_curve_and_draws_it(growth, tmp_path, capsys):
    path = tmp_path / "growth.svg"
    growth.main(["--quick", "--no-memory", "--svg", str(path)])
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    seen = {(row["kind"], row["axis"]) for row in report["curves"]}
    axes = set(growth.QUICK_SIZES)
    expected = {("generate", axis) for axis in axes}
    expected |= {("extraction", axis) for axis in axes - {"arms"}}
    assert seen == expected
    for row in report["curves"]:
        assert f"{row['sizes'][0]} to {row['sizes'][-1]} {row['axis']}" in printed
        assert all(0 < each["low"] <= each["high"] for each in row["seconds"])
        for key in ("exponent", "doubled"):
            assert row[key]["low"] <= row[key]["median"] <= row[key]["high"]
        # Of two sizes, the slope is that of their ratio.
        assert row["exponent"]["low"] == pytest.approx(math.log2(row["doubled"]["low"]))
    svg = ElementTree.fromstring(path.read_text())
    lines = [e for e in svg.iter() if e.tag.endswith("polyline")]
    # Three in the legend, one of slope 1 a panel, and the curves.
    assert len(lines) == 3 + len(axes) + len(expected)
    words = {element.text for element in svg.iter()}
    assert {"generate", "extraction", *axes} <= words


def test_the_picture_puts_proportional_growth_on_the_line(scripts):
    row = {"kind": "generate", "axis": "d", "sizes": [1, 2, 4]}
    row["seconds"] = [{"median": x, "low": x, "high": x} for x in (0.3, 0.6, 1.2)]
    shown = scripts["growth_picture"].panel("d", [row])
    line, curve = shown.traces
    assert line.path == curve.path
    slower = {**row, "seconds": [row["seconds"][0]] * 3}
    line, curve = scripts["growth_picture"].panel("d", [slower]).traces
    assert line.path != curve.path


def test_a_peak_is_of_a_process_of_its_own(growth):
    # Touched, so that it counts; a child must not inherit it as its own peak.
    ballast = bytearray(b"x") * 500_000_000
    own = growth.high_water()
    work = json.dumps(asdict(growth.QUICK_BASE))
    command = [sys.executable, str(FOLDER / "growth.py"), "--peak-of", work]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(ballast) < own
    assert 0 < found["before"] < own - 300_000_000
    assert 0 <= found["peak"] < 200_000_000
    assert found["responses"] == growth.QUICK_BASE.prompts * growth.QUICK_BASE.arms


def test_memory_is_told_for_each_further_response(growth, monkeypatch, capsys):
    asked = []

    def run(command, **_options):
        work = json.loads(command[-1])
        asked.append(work)
        num = work["prompts"] * work["arms"]
        told = {"responses": num, "before": 1, "peak": 1000 + 10 * num}
        return subprocess.CompletedProcess(command, 0, json.dumps(told) + "\n", "")

    monkeypatch.setattr(growth.subprocess, "run", run)
    sizes = {"prompts": (4, 8), "arms": (2, 4)}
    rows = growth.memory(growth.QUICK_BASE, sizes)
    assert [work["prompts"] for work in asked] == [4, 8, 4, 4]
    assert [row["bytes_a_response"] for row in rows] == [10, 10]
    assert rows[0]["last / first"] == pytest.approx(1160 / 1080)
    growth.show({"machine": {}, "curves": [], "memory": rows})
    assert "bytes a response" in capsys.readouterr().out
