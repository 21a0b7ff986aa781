"""What the benchmark of variances calls saved is what closed forms say."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "variance.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmarks_variance", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_shared_noise_saves_the_ratio_of_the_variances_within_a_prompt(benchmark):
    rng, shape = np.random.default_rng(0), (1, 400, 20)
    shared = rng.normal(size=shape)
    prompt = rng.normal(0, 2, (1, 400, 1))
    effect = rng.normal(0.3, 1, (1, 400, 1))
    first = prompt + effect + shared + 0.5 * rng.normal(size=shape)
    second = prompt + shared + 0.5 * rng.normal(size=shape)
    seen = benchmark.compared("", first, second, 0.0)
    # With: 2 * 0.25; without: 2 * 1.25; between prompts 1; apart 2 * (4 + 1.25) + 1.
    expected = {
        "samples": 5.0,
        "prompts, S = 1": (1 + 2.5) / (1 + 0.5),
        "prompts, S = 10": (1 + 0.25) / (1 + 0.05),
        "from others, S = 1": 11.5 / 1.5,
    }
    assert seen.first == pytest.approx(0.3, abs=0.15)
    for name, value in expected.items():
        found = seen.saved[name]
        # Variances of 8000 and of 400 numbers, to three of their own deviations.
        assert found.value == pytest.approx(value, rel=0.25)
        assert found.low <= found.value <= found.high


def test_arms_that_share_nothing_save_nothing(benchmark):
    rng, shape = np.random.default_rng(1), (1, 200, 20)
    seen = benchmark.compared("", rng.normal(size=shape), rng.normal(size=shape), 0.0)
    found = seen.saved["samples"]
    assert found.low < 1 < found.high
    assert found.high < 1.2


def test_a_run_prints_every_number_and_the_two_kls_agree(benchmark, capsys, tmp_path):
    path = tmp_path / "numbers.json"
    options = "--prompts 12 --samples 3 --tokens 6 --alphas 0.5 --json"
    benchmark.main([*options.split(), str(path)])
    assert "times fewer" in capsys.readouterr().out
    report = json.loads(path.read_text())
    v, perp, more = report["scores"]
    assert v["second"] < perp["second"] < more["second"]
    exact = report["kl"][0]
    # One is an unbiased estimate of the other, from 36 short texts.
    assert exact["first"] > 0
    assert abs(exact["first"] - exact["second"]) < exact["first"]
