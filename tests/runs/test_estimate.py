"""A forecast counts what a run then does, and bounds what it cannot know."""

import itertools
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tests.models import tiny
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

import steergauge
from steergauge.errors import CannotLoadModel, InputError, LayerOutOfRange, NoSuchFile
from steergauge.prompts import Text, encode, environment
from steergauge.runs import arms, plan
from steergauge.runs.estimate import (
    ModelSize,
    forecast,
    measured_speed,
    model_size,
    num_test_arms,
)
from steergauge.runs.execute import audit
from steergauge.runs.spec import AUDITS, PRESETS, REACHABILITY, spec_from
from steergauge.runs.store import Store
from steergauge.vector import Site, SteeringVector

QWEN = "Qwen/Qwen2.5-3B-Instruct"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
SMALL = {
    "trait": "humor",
    "num_pairs": 8,
    "num_prompts": 3,
    "num_dose_prompts": 2,
    "num_environment_prompts": 2,
    "samples": 2,
    "environment_samples": 1,
    "max_new_tokens": 3,
    "num_perpendicular": 2,
    "num_random": 3,
    "reach_prompts": 2,
    "reach_tokens": 4,
    "search_tokens": 2,
    "search_evaluations": 16,
    "num_hidden": 2,
}
ALL = {
    "audits": AUDITS,
    "alphas": (0.5, 1.0),
    "alpha": 1.0,
    "environments": ("in-distribution", "genre-shift", "safety-style"),
    "published_code": True,
}


@pytest.fixture(scope="module")
def organism():
    return steergauge.load("builtin:organism")


def quick(spec, **options):
    return forecast(spec, **{"speed": 1e12, "device": "cpu", **options})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        ALL,
        {**ALL, "num_perpendicular": 7, "alphas": (0.5, 1.0, -2.0)},
        {**ALL, "alpha": None, "published_code": False},
        {"audits": ("scale",), "alphas": (0.5,), "num_random": 1},
        {"audits": ("replication",), "num_perpendicular": 1},
        {"published_code": True, "layer": 0},
    ],
)
def test_as_many_arms_are_counted_as_the_run_makes(changes, organism, tmp_path):
    spec = spec_from({**SMALL, **changes})
    inputs = plan.gather(organism, spec)
    store = Store(tmp_path)
    store.open(inputs.spec, {})
    v = arms.extract_or_load(organism, inputs, store)
    found = arms.control_vectors(organism, inputs, v, store)
    alpha = spec.alpha or 3.0
    made = arms.test_arms(inputs.spec, alpha, v, found)
    assert len(made) > 10
    added = 2 if "alternative" in spec.audits else 0  # T10's, found during the run
    assert quick(spec).num_test_arms == len(made) + added


def test_the_default_of_the_counting_believes_the_spec():
    spec = spec_from({**SMALL, **ALL})
    counted = num_test_arms(spec, num_other_traits=2, num_against=0)
    assert counted + 2 == quick(spec).num_test_arms
    more = num_test_arms(spec, num_other_traits=2, num_against=3)
    assert more == counted + 3
    bare = num_test_arms(
        spec, num_other_traits=2, num_against=0, has_code_variant=False
    )
    assert bare == counted - (1 + 2 * spec.num_perpendicular)


# Reachability has a test of its own, on a smaller model.
OTHERS = ALL | {"audits": tuple(name for name in AUDITS if name not in REACHABILITY)}


@pytest.mark.parametrize("changes", [{}, OTHERS], ids=["core", "paper"])
def test_a_run_writes_as_many_texts_as_were_forecast(changes, organism, tmp_path):
    spec = spec_from({**SMALL, **changes})
    seen = quick(spec)
    audit(organism, out=tmp_path / "run", spec=spec)
    rows = pq.read_table(tmp_path / "run" / "generations.parquet")
    assert seen.num_generations == rows.num_rows
    drawn = sum(rows["num_tokens"].to_pylist())
    # Every text of three tokens is cut short: the bound is reached.
    assert 0.9 * seen.num_tokens_generated < drawn <= seen.num_tokens_generated


def test_a_forecast_grows_with_what_it_is_of():
    base = quick(spec_from(SMALL))
    for key in ("num_prompts", "samples", "num_perpendicular", "num_random"):
        more = quick(spec_from({**SMALL, key: SMALL[key] + 1}))
        assert more.num_generations > base.num_generations
        assert more.flops > base.flops
    longer = quick(spec_from({**SMALL, "max_new_tokens": 6}))
    assert longer.num_tokens_generated == 2 * base.num_tokens_generated
    assert longer.cache_bytes > base.cache_bytes
    everywhere = quick(spec_from({**SMALL, "scope": "all"}))
    assert everywhere.flops > base.flops
    fewer = quick(spec_from({**SMALL, "batch_size": 8}))
    assert fewer.cache_bytes < base.cache_bytes
    assert fewer.flops == base.flops
    # A vector at a later block leaves fewer blocks to go through again.
    assert quick(spec_from({**SMALL, "layer": 4})).flops < base.flops


REACH = {
    "trait": "humor",
    "audits": ("states", "inversion", "access"),
    "alpha": 1.0,
    "num_prompts": 60,
    "reach_tokens": 32,
}


def added(model: str, **changes) -> float:
    """FLOPs of the searches among states: of a run with them, less one without."""
    options = REACH | {"model": model, "dtype": "bfloat16"} | changes
    with_them = quick(spec_from(options))
    without = quick(spec_from(options | {"audits": ("plumbing", "access")}))
    return with_them.flops - without.flops


def test_searches_among_states_grow_with_tokens_and_prompts_and_depth():
    few = added(LLAMA, reach_prompts=5)
    assert few > 0
    assert added(LLAMA, reach_prompts=15) == pytest.approx(3 * few)
    assert added(LLAMA, reach_prompts=5, reach_tokens=16) == pytest.approx(few / 2)
    # There are 60 prompts: no more can be searched for.
    most = added(LLAMA, reach_prompts=60)
    assert added(LLAMA, reach_prompts=99) == most
    # Twice as many blocks on the way to where states are read, of 32.
    blocks = [
        added(LLAMA, reach_prompts=5, layer=7, read_layer=read) for read in (7, 15, 23)
    ]
    assert blocks[2] - blocks[1] == pytest.approx(blocks[1] - blocks[0])
    size = model_size(LLAMA)
    # 5 prompts, 32 places: all of V through eight more blocks, by either audit, and a
    # thousand candidates of natural states besides.
    stream = 2 * (size.num_multiplied - size.d_vocab * size.d_model) / 4
    candidates = 2 * size.d_vocab + 1024
    assert blocks[1] - blocks[0] == pytest.approx(5 * 32 * candidates * stream)


def test_searches_for_prompts_grow_with_what_they_may_try():
    def cost(**changes) -> float:
        options = REACH | {"audits": "access", "search_tokens": 4} | changes
        return quick(spec_from(options)).flops

    base, more, most = (cost(search_evaluations=n) for n in (100, 200, 400))
    assert most - more == pytest.approx(2 * (more - base))
    assert more > base
    assert cost(search_evaluations=100, num_hidden=16) > base


@pytest.mark.parametrize("audits", [*REACHABILITY, "reachability"])
@pytest.mark.parametrize("steering", ["addition", "ablation"])
def test_every_text_of_reachability_was_forecast(audits, steering, tmp_path):
    prompts = tmp_path / "prompts.txt"
    # Of 14 reference prompts one or two are examples, of 12 none.
    num = 18 if steering == "addition" else 16
    prompts.write_text("\n".join(f"tarenoli{chr(97 + k)}" for k in range(num)))
    lm = tiny("llama")
    lm.model.config.save_pretrained(tmp_path / "model")
    v = SteeringVector(torch.arange(1.0, 1 + lm.d_model), Site(1))
    options = SMALL | {"trait": "", "prompts": str(prompts), "audits": audits}
    options |= {"alpha": 1.0, "num_prompts": 4, "steering": steering}
    run = audit(lm, v, out=tmp_path / "run", **options)
    there = spec_from(options | {"model": str(tmp_path / "model")})
    seen = quick(there, vector=v)
    assert seen.num_generations == len(run.store.generations())
    assert seen.num_test_arms == 2


def test_seconds_are_work_over_speed():
    spec = spec_from(SMALL)
    slow, fast = quick(spec), quick(spec, speed=2e12)
    assert slow.seconds == 2 * fast.seconds > 0
    assert slow.speed == 1e12


def test_the_bound_on_a_prompts_tokens_holds(organism):
    # The reference model's tokens are short, for it knows 2,048 of them.
    texts = environment("genre-shift").prompts
    longest = max(len(encode(organism, Text(text))[0]) for text in texts)
    spec = spec_from({**SMALL, "environment": "genre-shift", "batch_size": 1})
    size = quick(spec).size
    a_token = 2 * size.num_layers * size.num_kv_heads * size.head_dim * 4
    assert quick(spec).cache_bytes >= a_token * (longest + spec.max_new_tokens)


def test_the_speed_is_that_of_this_device():
    # No machine of the last twenty years is slower, none of today is faster.
    assert 1e8 < measured_speed("float32") < 1e17
    spec = spec_from(SMALL)
    assert forecast(spec, device="cpu").speed > 1e8


def test_the_size_of_a_model_is_that_of_its_weights(organism, tmp_path):
    size = model_size("builtin:organism")
    parameters = sum(p.numel() for p in organism.model.parameters())
    assert size.num_parameters == parameters == size.num_multiplied
    assert (size.num_layers, size.d_model) == (organism.num_layers, 128)
    assert size.d_vocab == organism.d_vocab
    for family in ("gpt2", "gemma2", "mixtral"):
        lm = tiny(family)
        lm.model.config.save_pretrained(tmp_path / family)
        size = model_size(str(tmp_path / family))
        model = AutoModelForCausalLM.from_config(lm.model.config)
        assert size.num_parameters == sum(p.numel() for p in model.parameters())
        assert size.num_layers == lm.num_layers
        assert size.d_vocab == lm.d_vocab


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (
            QWEN,
            Qwen2Config(
                hidden_size=2048, intermediate_size=11008, num_attention_heads=16,
                num_hidden_layers=36, num_key_value_heads=2, vocab_size=151936,
                tie_word_embeddings=True,
            ),
        ),
        (
            LLAMA,
            LlamaConfig(
                hidden_size=4096, intermediate_size=14336, num_attention_heads=32,
                num_hidden_layers=32, num_key_value_heads=8, vocab_size=128256,
                tie_word_embeddings=False,
            ),
        ),
    ],
)  # fmt: skip
def test_the_table_of_known_models_agrees_with_their_configurations(
    name, config, tmp_path
):
    path = Path(steergauge.__file__).parent / "runs" / "known_models.toml"
    known = tomllib.loads(path.read_text(encoding="utf-8"))[name]
    assert known.pop("source").startswith(f"https://huggingface.co/{name}/")
    config.save_pretrained(tmp_path)
    assert ModelSize(**known) == model_size(str(tmp_path)) == model_size(name)


def test_the_known_models_have_their_published_sizes():
    qwen, llama = model_size(QWEN), model_size(LLAMA)
    assert qwen == ModelSize(36, 2048, 2, 128, 151936, 3_085_938_688, True)
    # The model cards say 3.09B, of which 2.77B are no embedding, and 8.03B.
    assert round(qwen.num_parameters / 1e9, 2) == 3.09
    assert round((qwen.num_parameters - 151936 * 2048) / 1e9, 2) == 2.77
    assert round(llama.num_parameters / 1e9, 2) == 8.03
    assert llama.num_parameters - llama.num_multiplied == 128256 * 4096


def test_a_model_that_nobody_knows_is_refused_at_once():
    with pytest.raises(CannotLoadModel, match=r"nobody/nothing is not known.*config"):
        model_size("nobody/nothing")
    with pytest.raises(CannotLoadModel, match="no configuration here"):
        quick(spec_from({**SMALL, "model": "./no-such-folder"}))


def test_what_no_run_could_do_is_refused_before_it_is_counted(tmp_path):
    with pytest.raises(LayerOutOfRange, match=r"layer 5 .* has 5 blocks"):
        quick(spec_from({**SMALL, "layer": 5}))
    with pytest.raises(InputError, match="no precision 'int8'"):
        quick(spec_from({**SMALL, "dtype": "int8"}))
    with pytest.raises(NoSuchFile):
        quick(spec_from({**SMALL, "prompts": str(tmp_path / "none.txt")}))


def test_prompts_and_vectors_of_ones_own_are_counted_as_they_are(organism, tmp_path):
    v = steergauge.extract(organism, steergauge.trait("humor").pairs(8), layer=1)
    file = tmp_path / "v.safetensors"
    v.with_direction(-v.direction, "backwards").save(file)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"Say {k} things." for k in range(9)))
    spec = spec_from({"prompts": str(prompts), "against": (str(file),), "samples": 1})
    seen = quick(spec, vector=v)
    assert seen.layer == 1
    inputs = plan.read(spec, v)
    dose, test = len(inputs.dose_prompts), len(inputs.test_prompts)
    assert (dose, test) == (3, 6)
    known = num_test_arms(
        spec, num_other_traits=2 if inputs.pairs else 0, num_against=1
    )
    assert seen.num_test_arms == known
    assert seen.num_generations == 9 * dose + known * test


def test_memory_is_that_of_the_dtype():
    half, single = (
        quick(spec_from({**SMALL, "model": QWEN, "dtype": dtype}))
        for dtype in ("bfloat16", "float32")
    )
    assert half.weight_bytes * 2 == single.weight_bytes
    assert half.cache_bytes * 2 == single.cache_bytes
    assert half.weight_bytes == pytest.approx(6.17e9, rel=1e-2)
    assert half.num_bytes == half.weight_bytes + half.cache_bytes + half.logit_bytes


def test_the_cache_is_what_a_cache_of_so_many_rows_takes(organism):
    spec = spec_from({**SMALL, "batch_size": 4})
    seen = quick(spec)
    length = seen.cache_bytes / (4 * 2 * 5 * 4 * 32 * 4)
    assert length == int(length) > spec.max_new_tokens
    ids = torch.zeros(4, int(length), dtype=torch.long)
    kept = organism.model(ids, use_cache=True).past_key_values
    tensors = itertools.chain.from_iterable(
        (layer.keys, layer.values) for layer in kept.layers
    )
    assert sum(t.numel() * t.element_size() for t in tensors) == seen.cache_bytes


def test_the_presets_can_be_forecast():
    ranked = [
        quick(spec_from({"trait": "humor"}, preset=name)).flops
        for name in ("quick", "standard", "paper")
    ]
    assert set(PRESETS) == {"quick", "standard", "paper"}
    assert ranked == sorted(ranked)
