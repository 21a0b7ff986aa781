"""Every ready run file is a run that can be had, and says what it claims to say."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Qwen2Config

from steergauge.probes.load import load_probe
from steergauge.prompts import read_pairs, read_prompts
from steergauge.runs.estimate import forecast, model_size
from steergauge.runs.plan import read
from steergauge.runs.spec import PRESETS, Spec, read_spec, spec_from, specs_from
from steergauge.vector import load_vector

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "setups"
EVERY = sorted(FOLDER.glob("*.toml"))
STATES = [path for path in EVERY if path.stem.endswith(("-evil", "-refusal"))]
"""Run files of arXiv 2604.09839; the others are of arXiv 2602.06801."""

FILES = [path for path in EVERY if path not in STATES]
TRAITS = ["formality", "politeness", "humor"]
GB = 1e9


def specs(name):
    return specs_from(read_spec(FOLDER / name))


def line_of_readme(name: str) -> str:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    return next(x for x in text.splitlines() if name in x and x.startswith("|"))


def only_spec(path: Path, monkeypatch) -> Spec:
    """The run of a file whose paths are those of the repository's root."""
    monkeypatch.chdir(ROOT)
    (spec,) = specs(path.name).values()
    return spec


def test_there_is_a_file_for_each_model_and_layer_of_the_paper():
    assert [path.name for path in EVERY] == [
        "gemma-3-1b-it-evil.toml",
        "gemma-3-1b-it-refusal.toml",
        "llama-3.1-8b-instruct-layer16.toml",
        "llama-3.2-1b-instruct-evil.toml",
        "llama-3.2-1b-instruct-refusal.toml",
        "paper.toml",
        "qwen2.5-0.5b-instruct-evil.toml",
        "qwen2.5-0.5b-instruct-refusal.toml",
        "qwen2.5-3b-instruct-layer12.toml",
        "qwen2.5-3b-instruct-layer18.toml",
    ]
    assert (len(FILES), len(STATES)) == (4, 6)
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in readme for path in EVERY)


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
    # Whose None TOML cannot write.
    assert fields - set(table) == {"batch_size", "chat", "layer", "read_layer"}
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
    assert f"| {memory} GB |" in line_of_readme(name)


PUBLISHED = {
    # The layer l of the stored results, and the coefficient; None: nothing is stored.
    "llama-3.2-1b-instruct-refusal": (8, -1.0),
    "llama-3.2-1b-instruct-evil": (8, 1.0),
    "qwen2.5-0.5b-instruct-refusal": (18, -1.0),
    "qwen2.5-0.5b-instruct-evil": (12, 2.0),
    "gemma-3-1b-it-refusal": (None, -1.0),
    "gemma-3-1b-it-evil": (None, 1.0),
}


@pytest.mark.parametrize("path", STATES, ids=lambda path: path.stem)
def test_a_run_of_states_steers_and_reads_where_the_published_code_does(
    path, monkeypatch
):
    spec = only_spec(path, monkeypatch)
    layer, alpha = PUBLISHED[path.stem]
    num_layers = model_size(spec.model).num_layers
    middle = num_layers // 2
    # Theirs is the input of block l, which is the output of block l - 1.
    assert (spec.layer, spec.read_layer) == ((layer or middle) - 1, layer or middle)
    if path.stem.endswith("-evil"):
        assert spec.read_layer == middle
    assert (spec.alpha, spec.scope, spec.steering) == (alpha, "all", "addition")
    assert spec.audits == ("plumbing", "states", "inversion", "access", "density")
    assert (spec.method, spec.position) == ("mean-difference", "last")
    assert spec.reach_prompts == 10
    said = path.read_text(encoding="utf-8")
    assert (
        f"l = {layer}" in said if layer else "No result of this model is stored" in said
    )


@pytest.mark.parametrize("path", STATES, ids=lambda path: path.stem)
def test_a_run_of_states_has_all_that_it_names(path, monkeypatch):
    spec = only_spec(path, monkeypatch)
    inputs = read(spec)
    assert inputs.spec.audits == spec.audits
    assert len(inputs.pairs) >= 32
    assert len(inputs.test_prompts) == spec.num_prompts >= spec.reach_prompts
    assert len(inputs.reference_prompts) >= 120
    assert inputs.probe is not None
    seen = forecast(spec, speed=1e12, device="cpu")
    assert 0 < seen.flops < math.inf
    assert 0 < seen.seconds < math.inf
    assert seen.num_bytes > seen.weight_bytes > 0


@pytest.mark.parametrize("kind", ["refusal", "evil"])
def test_pairs_prompts_and_probe_are_of_one_kind_and_share_no_text(kind):
    pairs = read_pairs(FOLDER / f"{kind}.jsonl")
    prompts = read_prompts(FOLDER / f"{kind}-prompts.txt")
    sides = [text.prompt for p in pairs for text in (p.positive, p.negative)]
    assert len(pairs) >= 32
    assert len({*sides, *prompts}) == len(sides) + len(prompts)
    assert len(prompts) >= 120
    assert all(text.isascii() and len(text) < 150 for text in (*sides, *prompts))
    # The gate asks for 0.8.
    assert load_probe(str(FOLDER / "probes" / f"{kind}.toml")).auc > 0.95


def test_the_sides_of_a_pair_begin_alike_or_ask_the_same():
    for pair in read_pairs(FOLDER / "refusal.jsonl"):
        first, second = pair.positive.prompt.split(), pair.negative.prompt.split()
        assert first[0] == second[0]
    for pair in read_pairs(FOLDER / "evil.jsonl"):
        asked = [
            re.split(r"[.] ", side.prompt)[-1]
            for side in (pair.positive, pair.negative)
        ]
        assert asked[0] == asked[1]
        assert asked[0].endswith("?")


@pytest.mark.parametrize("path", STATES, ids=lambda path: path.stem)
def test_the_lines_that_turn_the_authors_vector_into_ours_do(
    path, tmp_path, monkeypatch
):
    said = path.read_text(encoding="utf-8").splitlines()
    code = "\n".join(line[4:] for line in said if line.startswith("#   "))
    assert 3 <= len(code.splitlines()) <= 4
    spec = only_spec(path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    num_layers, block = model_size(spec.model).num_layers, spec.read_layer
    if path.stem.endswith("-evil"):
        # One row for the embedding and one for each block.
        rows = torch.arange(num_layers + 1.0)[:, None].expand(-1, 6).half()
        torch.save(rows.clone(), "evil_prompt_last_diff.pt")
    else:
        torch.save(torch.full((6,), float(block), dtype=torch.float64), "direction.pt")
        Path("direction_metadata.json").write_text(
            json.dumps({"pos": -5, "layer": block})
        )
    exec(code, {})
    vector = load_vector("theirs.safetensors")
    assert vector.direction.tolist() == [float(block)] * 6
    assert vector.site.layer == spec.layer == block - 1


@pytest.mark.parametrize("path", STATES, ids=lambda path: path.stem)
def test_the_memory_of_a_run_of_states_is_that_of_the_readme(path, monkeypatch):
    spec = only_spec(path, monkeypatch)
    seen = forecast(spec, speed=1e12, device="cuda")
    (memory,) = re.findall(r"\| (\d+) GB \|", line_of_readme(path.name))
    assert int(memory) - 2 < seen.num_bytes / GB < int(memory)


@pytest.mark.parametrize(
    ("name", "billions", "config"),
    [
        (
            "meta-llama/Llama-3.2-1B-Instruct", 1.24,
            LlamaConfig(
                hidden_size=2048, intermediate_size=8192, num_attention_heads=32,
                num_hidden_layers=16, num_key_value_heads=8, head_dim=64,
                vocab_size=128256, tie_word_embeddings=True,
            ),
        ),
        (
            "Qwen/Qwen2.5-0.5B-Instruct", 0.49,
            Qwen2Config(
                hidden_size=896, intermediate_size=4864, num_attention_heads=14,
                num_hidden_layers=24, num_key_value_heads=2, vocab_size=151936,
                tie_word_embeddings=True,
            ),
        ),
        (
            "google/gemma-3-1b-it", 1.00,
            Gemma3TextConfig(
                hidden_size=1152, intermediate_size=6912, num_attention_heads=4,
                num_hidden_layers=26, num_key_value_heads=1, head_dim=256,
                vocab_size=262144,
            ),
        ),
    ],
)  # fmt: skip
def test_sizes_of_the_models_follow_from_their_configurations(
    name, billions, config, tmp_path
):
    config.save_pretrained(tmp_path)
    assert model_size(name) == model_size(str(tmp_path))
    # As their authors round it.
    assert round(model_size(name).num_parameters / 1e9, 2) == billions
