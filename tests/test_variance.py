"""What the benchmark of variances calls saved is what closed forms say."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "variance.py"
PAGE = Path(__file__).parents[1] / "docs" / "cost.md"


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


@pytest.mark.parametrize("samples", [2, 3, 8])
def test_noise_of_correlation_rho_saves_1_over_1_minus_rho_at_any_number_of_samples(
    benchmark, samples
):
    rng, rho, shape = np.random.default_rng(2), 0.8, (1, 4000, samples)
    shared = np.sqrt(rho) * rng.normal(size=shape)
    first, second = (
        shared + np.sqrt(1 - rho) * rng.normal(size=shape) for _ in range(2)
    )
    found = benchmark.compared("", first, second, 0.0).saved["samples"]
    # Ratio of two variances of 4000 to 28000 numbers: 4 % at most, to three of them.
    # Texts held against the next sample of their prompt gave 1 + rho / (samples - 1)
    # times as much.
    assert found.value == pytest.approx(1 / (1 - rho), rel=0.1)


def test_prompts_that_differ_limit_what_several_directions_save(benchmark):
    rng, prompts, samples = np.random.default_rng(3), 2000, 4
    between = rng.normal(size=(1, prompts, 1))
    own, other = 6.0, 30.0
    with_ = between + np.sqrt(own) * rng.normal(size=(3, prompts, samples))
    saved = benchmark.savings(with_, np.full(prompts, other), None)
    # The noise of the mean of three directions is a third of one's: taken off whole,
    # 6 / 4 of a spread of 1 + 6 / 12 would leave nothing between prompts.
    expected = (1 + other / samples) / (1 + own / samples)
    assert saved["prompts, S = 4"].value == pytest.approx(expected, rel=0.1)
    assert saved["prompts, S = 4"].value < 0.8 * saved["samples"].value


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_exact_divergences_save_what_their_variances_say(benchmark, spread):
    rng, shape = np.random.default_rng(4), (1, 4000, 6)
    text = 5 + spread * rng.normal(size=(1, 4000, 1)) + rng.normal(size=shape)
    die = np.sqrt(8) * rng.normal(size=shape)
    within = (text + die).var(axis=2, ddof=1).mean(0)
    saved = benchmark.savings(text, within, None)
    expected = (spread**2 + 9 / 4) / (spread**2 + 1 / 4)
    assert saved["samples"].value == pytest.approx(9.0, rel=0.1)
    assert saved["prompts, S = 4"].value == pytest.approx(expected, rel=0.1)


def test_the_printed_tables_have_the_columns_of_the_page(benchmark, capsys):
    options = "--prompts 8 --samples 2 --tokens 4 --alphas 1 --markdown"
    benchmark.main(options.split())
    printed = capsys.readouterr().out.strip().split("\n\n")
    page = PAGE.read_text(encoding="utf-8")
    assert len(printed) == 2
    for table in printed:
        head, rule, *rows = table.splitlines()
        assert f"\n{head}\n{rule}\n" in page
        assert rows
        assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}
        for line in rows:  # Of the same comparisons.
            name = line.split("|")[1]
            assert f"|{name}|" in page


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
