"""The benchmark for a GPU needs six packages and nobody, and tells what it left out."""

import importlib
import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

ROOT = Path(__file__).parents[1]
THERE = {"torch", "transformers", "safetensors", "numpy", "scipy", "jaxtyping"}
"""What the machine with the GPU has, and `tokenizers`, which transformers needs."""

IMPORT_NAMES = {"scikit-learn": "sklearn", "tomli-w": "tomli_w"}
MODULES = ("gpu", "gpu_shapes", "unattended", "numerals", "geometry")
STAGES = (
    "model",
    "extraction",
    "generation",
    "table 1",
    "generate used well",
    "the published way",
    "every next token",
    "fisher spectrum",
)

PRELUDE = """
import importlib, importlib.machinery, importlib.metadata, json, pkgutil, runpy, sys

refused = set(json.loads(sys.argv[1]))
source, script = sys.argv[2:4]
sys.argv = [script, *sys.argv[4:]]
sys.path = [script.rpartition("/")[0], *(p for p in sys.path[1:] if p != source)]

class Missing(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in refused
        return None if hidden else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *arguments):
        for found in super().find_distributions(*arguments):
            name = found.metadata["Name"].lower().replace("-", "_")
            if name not in refused | {"scikit_learn", "steergauge"}:
                yield found

own = importlib.machinery.PathFinder
sys.meta_path = [Missing if one is own else one for one in sys.meta_path]
assert all(importlib.util.find_spec(name) is None for name in refused)
assert importlib.util.find_spec("steergauge") is None
code = 0
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    code = end.code
import steergauge
for name in ("extraction", "geometry", "reachability"):
    package = importlib.import_module(f"steergauge.{name}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"steergauge.{name}.{module.name}")
for name in ("scoring", "jacobian", "fisher", "next_token"):
    importlib.import_module(f"steergauge.{name}")
assert not refused & set(sys.modules), refused & set(sys.modules)
sys.exit(code)
"""


def refused() -> list[str]:
    """Every run-time dependency that the other machine lacks, as it is imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {entry.partition(">")[0] for entry in project["dependencies"]}
    return sorted(IMPORT_NAMES.get(n, n) for n in wanted - THERE - {"tokenizers"})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run of the script where nothing but the six packages is installed."""
    out = tmp_path_factory.mktemp("out")
    script = str(ROOT / "benchmarks" / "gpu.py")
    arguments = [json.dumps(refused()), str(ROOT / "src"), script]
    environment = {**os.environ, "OUT": str(out), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE, *arguments, "--device", "cpu", "--tiny"],
        env=environment,
        cwd=out,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, out


@pytest.fixture(scope="module")
def scripts():
    """The script's parts as modules, by name."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(ROOT / "benchmarks"))
    for name in MODULES:
        del sys.modules[name]


def test_the_script_runs_to_its_end_with_six_packages_and_no_others(run):
    assert {"sklearn", "rich", "pyarrow", "typer", "jinja2"} <= set(refused())
    done, _ = run
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_stage_of_both_models_is_measured_printed_and_written(run, scripts):
    done, out = run
    lines = done.stdout.splitlines()
    report = json.loads(lines[-1])
    assert report == json.loads((out / "gpu.json").read_text())
    assert not [r for r in report["records"] if {"failed", "skipped"} & r.keys()]
    assert not [r for r in report["records"] if "broken_off" in r]
    for model in scripts["gpu_shapes"].MODELS:
        own = [r for r in report["records"] if r["model"] == model]
        for stage in STAGES:
            assert any(r["name"].startswith(stage) for r in own), (model, stage)
            assert any(f"{model} {stage}" in line for line in lines[:-1])
    shares = [v for r in report["records"] for k, v in r.items() if k[:3] == "of "]
    # A tiny model is far below all ceilings; above one, it would be no ceiling.
    assert len(shares) > 20
    assert all(0 < share < 1 for share in shares)


def test_a_stage_that_outlasts_its_time_ends_alone(scripts, capsys):
    log = scripts["unattended"].Log("cpu", 60)
    reached = []

    def endless() -> None:
        log.add("half", done=1)
        while True:
            try:
                time.sleep(5)
            except Exception:  # What a library's own fallback may do.
                reached.append("swallowed")

    before = time.monotonic()
    log.stage("long", 0.2, endless)
    assert time.monotonic() - before < 4
    log.stage("next", 1, lambda: reached.append("next"))
    assert reached == ["next"]
    assert "broken_off" in log.records[-1]
    assert log.records[0]["done"] == 1
    assert "long: broken off after" in capsys.readouterr().out


def test_a_stage_without_time_is_skipped_and_a_failure_is_told(scripts, capsys):
    unattended = scripts["unattended"]
    log = unattended.Log("cpu", 60)
    log.stage("broken", 10, lambda: [][1])
    assert log.records[-1]["failed"].startswith("IndexError")
    late = unattended.Log("cpu", 0.0)
    done = []
    late.stage("never", 10, lambda: done.append(1))
    assert not done
    assert late.records[-1]["skipped"] == "no time left"
    assert "never: skipped no time left" in capsys.readouterr().out


def test_a_failed_stage_makes_the_run_fail(scripts, monkeypatch, capsys):
    gpu = scripts["gpu"]
    for stage in ("extraction", "generation", "table_1", "peers", "spectrum"):
        monkeypatch.setattr(gpu, stage, lambda *_: None)
    monkeypatch.setattr(gpu, "search", lambda *_: 1 / 0)
    options = ["--device", "cpu", "--tiny", "--models", "llama-3.1-8b"]
    assert gpu.main(options) == 1
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["records"][-1]["failed"].startswith("ZeroDivisionError")


@pytest.mark.parametrize(
    ("name", "weights"),
    # As published with the weights.
    [("qwen2.5-3b", 3_085_938_688), ("llama-3.1-8b", 8_030_261_248)],
)
def test_the_shapes_are_the_published_ones(scripts, name, weights):
    numbers = dict(scripts["gpu_shapes"].MODELS[name])
    config = AutoConfig.for_model(numbers.pop("model_type"), **numbers)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert scripts["gpu_shapes"].num_weights(model) == weights


@pytest.mark.parametrize("name", ["qwen2.5-3b", "llama-3.1-8b"])
def test_the_bound_counts_what_a_step_reads(scripts, name):
    lm = scripts["gpu_shapes"].built(name, "cpu", tiny=True)
    cache = DynamicCache(config=lm.model.config)
    ids = torch.full((1, 7), 5)
    lm.logits(ids, torch.ones_like(ids, dtype=torch.bool), cache=cache)
    held = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    log = scripts["unattended"].Log("cpu", 60)
    log.rates = {"copy": 1.0, "bf16": 1.0}
    one, two = (
        scripts["gpu"].step_bounds(log, lm, rows=rows, prompt=6, tokens=2)
        for rows in (1, 2)
    )
    # Seven tokens are held on the average of two steps after a prompt of six.
    assert two["bandwidth bound"] - one["bandwidth bound"] == 2 * held
    used = [lm.blocks, lm.model.model.norm, lm.model.get_output_embeddings()]
    weights = sum(weight.numel() for part in used for weight in part.parameters())
    assert one["bandwidth bound"] == 2 * (2 * weights + held)
    assert two["matrix rate"] == 2 * one["matrix rate"] == 2 * 2 * 2 * weights


def test_every_text_is_its_own_tokens(scripts):
    numerals = scripts["numerals"]
    tokenizer = numerals.Numerals()
    found = numerals.texts(40, 3, 9, 50, seed=1)
    rows = tokenizer(found)["input_ids"]
    assert {len(row) for row in rows} == set(range(3, 10))
    assert {token for row in rows for token in row} == set(range(3, 50))
    assert tokenizer.batch_decode(rows) == found
    assert tokenizer(found[0], add_special_tokens=False)["input_ids"] == rows[0]


def test_plain_generation_makes_full_responses_of_every_row(scripts):
    sizes = scripts["gpu_shapes"].SMALL
    lm = scripts["gpu_shapes"].built("qwen2.5-3b", "cpu", tiny=True)
    step = torch.zeros(lm.d_model, dtype=lm.dtype)
    found = scripts["gpu"].plain(lm, [[5, 6, 7], [8]], step, sizes)
    assert found.shape == (2 * sizes.samples, 3 + sizes.table_tokens)
