"""The benchmark's yardsticks measure the same thing, and say what they measure."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from steergauge.geometry.published_nullspace import Recipe, published_nullspace
from steergauge.jacobian import Shift, suffix_jacobian
from steergauge.vector import Site

PATH = Path(__file__).parents[1] / "benchmarks" / "geometry.py"
FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2"])


@pytest.fixture(scope="module")
def benchmark():
    """The script as a module, which its dataclasses need to be found by name."""
    spec = importlib.util.spec_from_file_location("benchmarks_geometry", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def search(benchmark):
    """The other script, which takes its models from the first one."""
    path = PATH.with_name("reachability.py")
    spec = importlib.util.spec_from_file_location("benchmarks_reachability", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    added = {spec.name: module, "geometry": benchmark}
    sys.modules.update(added)
    spec.loader.exec_module(module)
    yield module
    for name in added:
        del sys.modules[name]


@FAMILIES
def test_the_exact_spectrum_is_that_of_the_prompts_fisher_matrix(benchmark, family):
    lm = benchmark.Shape(family, 32, 3, 101).build()
    prompt = benchmark.prompt_of(lm)
    values, parts = benchmark.exact_spectrum(lm, prompt, layer=1)
    jacobian = suffix_jacobian(lm, (prompt, len(prompt)), shift=Shift(Site(1)))
    expected = torch.linalg.eigvalsh(jacobian.fisher()).flip(0)
    assert values[0] > 0
    assert torch.allclose(values, expected, atol=1e-12 * float(values[0]))
    assert all(seconds > 0 for seconds in parts.values())


@FAMILIES
def test_one_probe_at_a_time_and_many_at_once_give_the_same_rank(benchmark, family):
    lm = benchmark.Shape(family, 32, 3, 101).build()
    # A step long enough for float32, so that both agree in every singular value.
    recipe = Recipe(dtype=torch.float32, num_probes=20, epsilon=1.0)
    prompt = benchmark.prompt_of(lm)
    sizes = benchmark.published_sizes(lm, prompt, layer=1, recipe=recipe)
    assert sizes.shape == (20,)
    slow = int((sizes > recipe.threshold * sizes[0]).sum())
    assert 1 < slow <= 20
    assert np.all(np.abs(sizes - 0.05 * sizes[0]) > 1e-4 * sizes[0])
    assert benchmark.batched_rank(lm, prompt, layer=1, recipe=recipe) == slow
    row = (prompt, len(prompt))
    assert published_nullspace(lm, row, layer=1, recipe=recipe).rank == slow


def test_the_ceiling_counts_the_blocks_above_the_layer_alone(benchmark):
    lm = benchmark.Shape("llama", 32, 4, 101).build()
    block = sum(weight.numel() for weight in lm.blocks[0].parameters())
    assert benchmark.ceiling_flops(lm, layer=1) == 4 * 32 * 2 * block
    assert benchmark.ceiling_flops(lm, layer=3) == 0
    assert benchmark.matrix_rate(lm) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="counted by the GPU's allocator")
def test_the_peak_counts_what_is_held_at_once_not_what_was_ever_held(benchmark):
    before = torch.zeros(1000, 1000)

    def act() -> torch.Tensor:
        first = torch.zeros(1000, 1000)
        second = first + before
        del first
        return second.double()

    # 4 MB and 4 MB; then 4 MB and 8 MB.
    assert benchmark.peak_bytes(act) == pytest.approx(12e6, rel=1e-3)


def test_the_exact_spectrum_holds_no_matrix_of_the_vocabulary_by_the_width(
    benchmark, monkeypatch
):
    # The unembedding is gone through in parts; in small ones, for a small model.
    monkeypatch.setattr("steergauge.jacobian.ENTRIES_AT_ONCE", 2**15)
    shapes = [benchmark.Shape("llama", 128, 2, d_vocab) for d_vocab in (4000, 24_000)]
    few, many = (benchmark.memory(shape, layer=0) for shape in shapes)
    dense = many["dense"] - few["dense"]
    assert dense == 4 * 128 * 20_000
    # Some vectors of the vocabulary in float64, of 8 bytes a token where J has 512.
    assert 0 < many["peak"] - few["peak"] < 0.2 * dense
    lm = shapes[1].build()
    head = lm.model.get_output_embeddings().weight.detach()
    seen = benchmark.peak_bytes(lambda: head @ torch.eye(128))
    assert seen >= many["dense"]


def test_a_run_prints_and_writes_every_number(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    monkeypatch.setattr(benchmark, "RATE_SIZE", 64)
    tiny = {"tiny": benchmark.Shape("llama", 32, 3, 101)}
    monkeypatch.setattr(benchmark, "SHAPES", tiny)
    path = tmp_path / "numbers.json"
    options = "--shapes tiny --repeats 2 --probes 5 --vocabularies 300 --json"
    benchmark.main([*options.split(), str(path)])
    printed = capsys.readouterr().out
    assert "published / exact" in printed
    assert "peak, MB" in printed
    report = json.loads(path.read_text())
    result = report["models"]["tiny"]
    assert result["shape"]["num_probes"] == 5
    for values in (*result["seconds"].values(), *result["ratios"].values()):
        assert 0 < values["low"] <= values["median"] <= values["high"]
    seconds = {name: values["high"] for name, values in result["seconds"].items()}
    parts = seconds["jacobian"] + seconds["metric"] + seconds["eigen"]
    assert seconds["exact"] <= parts * (1 + 1e-9)
    assert report["memory"][0]["d_vocab"] == 300


@FAMILIES
def test_every_way_to_search_computes_the_same_states(search, family):
    lm = search.Shape(family, 64, 3, 700).build()
    ids = search.prompt_of(lm)
    expected = search.ours(search.prefix_of(lm, ids[:-1], layer=1), ids[-1])
    tokens = torch.arange(700)
    for way in (search.published, search.stopped, search.one_a_row):
        found = way(lm, ids, tokens, layer=1)
        assert found.shape == expected.shape == (700 - search.TOKENS_AT_ONCE, 64)
        # Two blocks in float32, in states of a norm of about 1.
        assert float((found - expected).abs().max()) < 1e-5
    # Not vacuous: each candidate has another state.
    assert float((expected - expected.roll(1, 0)).norm(dim=-1).min()) > 1e-2


def test_the_searchs_ceiling_counts_the_blocks_up_to_the_layer_alone(search):
    lm = search.Shape("llama", 32, 4, 101).build()
    block = sum(weight.numel() for weight in lm.blocks[0].parameters())
    assert search.ceiling_flops(lm, layer=0) == 2 * 101 * block
    assert search.ceiling_flops(lm, layer=3) == 2 * 101 * 4 * block
    assert search.matrix_rate(lm) > 0


def test_a_search_holds_as_much_for_a_large_vocabulary_as_for_a_small_one(
    search, monkeypatch, capsys
):
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    search.main(["--quick"])
    printed = capsys.readouterr().out
    assert "published / ours" in printed
    report = json.loads(printed.splitlines()[-1])
    few, many = report["models"]
    assert many["shape"]["d_vocab"] == 2 * few["shape"]["d_vocab"]
    for values in (*few["seconds"].values(), *many["ratios"].values()):
        assert 0 < values["low"] <= values["median"] <= values["high"]
    # Both have a batch that is full, and some that is not.
    assert few["shape"]["d_vocab"] > search.TOKENS_AT_ONCE
    assert many["dense"] == 2 * few["dense"]
    assert many["peak"] < 1.1 * few["peak"]
