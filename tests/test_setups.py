"""Every ready run file is a run that can be had, and says what it claims to say."""

import dataclasses
import math
from pathlib import Path

import pytest

from steergauge.runs.estimate import forecast
from steergauge.runs.spec import PRESETS, Spec, read_spec, spec_from, specs_from

FOLDER = Path(__file__).parents[1] / "setups"
FILES = sorted(FOLDER.glob("*.toml"))
TRAITS = ["formality", "politeness", "humor"]
GB = 1e9


def specs(name):
    return specs_from(read_spec(FOLDER / name))


def test_there_is_a_file_for_each_model_and_layer_of_the_paper():
    assert [path.name for path in FILES] == [
        "llama-3.1-8b-instruct-layer16.toml",
        "paper.toml",
        "qwen2.5-3b-instruct-layer12.toml",
        "qwen2.5-3b-instruct-layer18.toml",
    ]
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(path.name in readme for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_run_file_is_one_run_a_trait_that_a_forecast_can_be_made_of(path):
    found = specs(path.name)
    assert list(found) == TRAITS
    for spec in found.values():
        seen = forecast(spec, speed=1e12, device="cpu")
        assert seen.num_generations > 50_000
        assert seen.num_tokens_generated == seen.num_generations * spec.max_new_tokens
        assert 0 < seen.flops < math.inf
        assert 0 < seen.seconds < math.inf
        assert seen.num_bytes > seen.weight_bytes > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_file_asks_for_what_the_paper_says(path):
    spec = specs(path.name)["humor"]
    paper = PRESETS["paper"]
    same = set(paper) - {"max_new_tokens"}  # which the paper does not print
    assert {"num_prompts", "samples", "num_perpendicular", "audits"} <= same
    assert {key: getattr(spec, key) for key in same} == {
        key: paper[key] for key in same
    }


def test_the_paper_file_is_the_preset_with_every_key_written_out():
    table = read_spec(FOLDER / "paper.toml")
    fields = {field.name for field in dataclasses.fields(Spec)}
    assert fields - set(table) == {"chat", "layer"}  # whose None TOML cannot write
    for name, spec in specs_from(table).items():
        assert spec == spec_from({"trait": name}, preset="paper")


def test_layers_are_those_of_the_names():
    for path in FILES:
        spec = specs(path.name)["formality"]
        layer = forecast(spec, speed=1e12, device="cpu").layer
        assert path.stem == "paper" or path.stem.endswith(f"layer{layer}")
    middle = forecast(specs("paper.toml")["formality"], speed=1e12, device="cpu")
    assert (middle.layer, middle.size.num_layers) == (2, 5)


@pytest.mark.parametrize(
    ("name", "weights", "memory"),
    [
        ("qwen2.5-3b-instruct-layer12.toml", 6.2, 10),
        ("qwen2.5-3b-instruct-layer18.toml", 6.2, 10),
        ("llama-3.1-8b-instruct-layer16.toml", 16.1, 22),
    ],
)
def test_the_memory_that_the_readme_asks_for_is_that_of_the_forecast(
    name, weights, memory
):
    seen = forecast(specs(name)["formality"], speed=1e12, device="cuda")
    # Published sizes are rounded to a tenth of a GB.
    assert abs(seen.weight_bytes / GB - weights) < 0.05
    assert memory - 2 < seen.num_bytes / GB < memory
    line = next(
        line
        for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
        if name in line and line.startswith("|")
    )
    assert f"| {memory} GB |" in line
