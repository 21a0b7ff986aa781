"""A spec survives its TOML, and no impossible run can be specified."""

import dataclasses
import inspect
import math
import tomllib

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from steergauge import cli
from steergauge.errors import BadSpec
from steergauge.runs.spec import (
    AUDITS,
    CORE,
    FILE_ONLY,
    GEOMETRY,
    GROUPS,
    PAPER_TRAITS,
    PRESETS,
    Spec,
    layer_specs,
    read_spec,
    spec_from,
    specs_from,
)

CHANGED = Spec(
    model="some/model",
    revision="abc",
    dtype="bfloat16",
    trust_remote_code=True,
    chat=False,
    trait="humor",
    pairs="p.jsonl",
    vector="v.safetensors",
    against=("a.safetensors", "b.safetensors"),
    other_model=True,
    prompts="prompts.txt",
    environment="genre-shift",
    environments=("in-distribution", "topic-shift"),
    num_environment_prompts=31,
    environment_samples=5,
    geometry_prompts=32,
    geometry_tokens=3,
    steering="ablation",
    read_layer=3,
    reach_prompts=11,
    reach_tokens=33,
    search_tokens=9,
    search_evaluations=513,
    num_hidden=17,
    method="logistic",
    alphas=(0.5, -2.0),
    published_code=True,
    probe='odd "name".toml',
    labelled="l.jsonl",
    layer=0,
    position="index:-2",
    scope="all",
    alpha=1.0,
    audits=("plumbing", "states"),
    num_pairs=7,
    num_prompts=8,
    num_dose_prompts=9,
    samples=10,
    max_new_tokens=11,
    temperature=0.5,
    num_perpendicular=12,
    num_random=13,
    margin=0.3,
    budget=1 / 3,
    prompts_per_cell=14,
    arms_per_cell=17,
    engine="vllm",
    sequential=True,
    batch_size=15,
    seed=16,
)
FIELDS = {field.name for field in dataclasses.fields(Spec)}


def test_the_specimen_differs_from_the_default_in_every_field():
    default = Spec()
    same = {name for name in FIELDS if getattr(CHANGED, name) == getattr(default, name)}
    assert same == set()


@pytest.mark.parametrize("spec", [Spec(), CHANGED], ids=["default", "changed"])
def test_a_spec_survives_the_round_trip_through_toml(spec, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(spec.to_table()), encoding="utf-8")
    back = spec_from(read_spec(path))
    assert back == spec
    assert {name: type(getattr(back, name)) for name in FIELDS} == {
        name: type(getattr(spec, name)) for name in FIELDS
    }


@given(
    alpha=st.floats(allow_nan=False, allow_infinity=False).filter(bool),
    margin=st.floats(0, 1, exclude_min=True, exclude_max=True),
)
def test_every_finite_number_survives_to_the_last_bit(alpha, margin):
    table = tomllib.loads(tomli_w.dumps(Spec(alpha=alpha, margin=margin).to_table()))
    back = spec_from(table)
    assert (back.alpha, back.margin) == (alpha, margin)


def test_the_run_file_of_a_finished_run_serves_as_well(tmp_path):
    path = tmp_path / "run.toml"
    table = {**CHANGED.to_table(), "inputs": {"model": "0123"}}
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    assert spec_from(read_spec(path)) == CHANGED


@pytest.mark.parametrize(
    "content", [b"model = ", b"\xff\xfe", None], ids=["no TOML", "no text", "no file"]
)
def test_a_run_file_that_cannot_be_read_is_named(content, tmp_path):
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadSpec, match=r"mine\.toml"):
        read_spec(path)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_sets_its_sizes_and_nothing_else(preset):
    spec = spec_from({}, preset=preset)
    assert dataclasses.replace(Spec(), **PRESETS[preset]) == spec
    # Few prompts cannot state an equivalence: no preset may have fewer.
    assert spec.num_prompts >= 50


def test_the_presets_differ():
    assert spec_from({}, preset="standard").samples > spec_from({}).samples


def test_what_is_given_overrides_the_file_and_the_file_the_preset():
    table = {"samples": 7, "max_new_tokens": 9}
    spec = spec_from(table, preset="standard", max_new_tokens=3, seed=None)
    assert spec.num_prompts == PRESETS["standard"]["num_prompts"]
    assert (spec.samples, spec.max_new_tokens, spec.seed) == (7, 3, 0)


def test_an_unknown_preset_is_refused_by_name():
    with pytest.raises(BadSpec, match="enormous"):
        spec_from({}, preset="enormous")


@pytest.mark.parametrize("key", ["num_promts", "Model", "inputs", ""])
def test_an_unknown_key_is_refused_by_name(key):
    with pytest.raises(BadSpec, match=f"unknown key {key}"):
        spec_from({key: 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("samples", "4"),
        ("samples", 4.0),
        ("samples", True),
        ("layer", 1.5),
        ("layer", True),
        ("alpha", "1"),
        ("alpha", True),
        ("chat", "yes"),
        ("chat", 1),
        ("model", 3),
        ("against", 5),
        ("against", ["a", 1]),
        ("audits", {"plumbing": True}),
        ("trust_remote_code", "no"),
        ("seed", [1]),
        ("margin", "0.2"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_key_and_value(key, value):
    with pytest.raises(BadSpec) as caught:
        spec_from({key: value})
    assert key in str(caught.value)
    assert repr(value) in str(caught.value)
    assert type(value).__name__ in str(caught.value)


def test_an_integer_is_a_number_and_a_comma_separated_text_a_list():
    spec = spec_from({"alpha": 2, "audits": "plumbing, divergence"})
    assert isinstance(spec.alpha, float)
    assert spec.audits == ("plumbing", "divergence")


IMPOSSIBLE = {
    "num_pairs": (1, 0, -1),
    "num_prompts": (1, 0),
    "num_dose_prompts": (0,),
    "samples": (0, -3),
    "max_new_tokens": (0,),
    "num_perpendicular": (0,),
    "num_random": (0, -1),
    "prompts_per_cell": (0,),
    "arms_per_cell": (-1,),
    "engine": ("", "vlm", "VLLM"),
    "batch_size": (0,),
    "seed": (-1,),
    "alpha": (0.0, math.inf, -math.inf, math.nan),
    "temperature": (0.0, -0.1, math.inf, math.nan),
    "margin": (0.0, 1.0, -0.2, math.nan),
    "budget": (0.0, 1.0, math.nan),
    "audits": ((), ("plumbing", "everything")),
}


@pytest.mark.parametrize("key", list(IMPOSSIBLE))
def test_an_impossible_value_is_refused_with_its_key(key):
    for value in IMPOSSIBLE[key]:
        with pytest.raises(BadSpec, match=key.removesuffix("s")):
            Spec(**{key: value})


COUNTS = {
    field.name
    for field in dataclasses.fields(Spec)
    if field.type is int and field.name not in ("seed", "arms_per_cell")
}
"""All but those of which 0 means something."""


@pytest.mark.parametrize("key", sorted(COUNTS))
def test_a_count_that_is_too_small_is_refused_with_its_option_and_what_to_do(key):
    with pytest.raises(BadSpec) as caught:
        Spec(**{key: 0})
    option = f"--{key.replace('_', '-')}"
    has_one = key in inspect.signature(cli.audit).parameters
    assert has_one == (key not in FILE_ONLY)
    found, remedy = caught.value.found, caught.value.remedy
    least = found.removesuffix(".").rpartition("at least ")[2]
    assert int(least) > 0
    assert found.startswith(f"{key} ({option}) is 0" if has_one else f"{key} is 0")
    assert remedy.endswith(f", at least {least}.")
    assert (option in remedy) == has_one
    assert ("run file" in remedy) != has_one


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"steering": "rotation"}, "--steering"),
        ({"read_layer": 3}, "--read-layer"),
        ({"reach_prompts": 1}, "--reach-prompts"),
        ({"search_evaluations": 7}, "--search-evaluations"),
    ],
)
def test_what_an_option_of_reachability_asks_wrongly_is_refused_by_its_name(
    changes, option
):
    with pytest.raises(BadSpec, match=option):
        spec_from(changes)


def test_the_smallest_possible_run_can_be_specified():
    spec = Spec(
        num_pairs=2,
        num_prompts=2,
        num_dose_prompts=1,
        samples=1,
        max_new_tokens=1,
        temperature=0.1,
        num_perpendicular=1,
        num_random=1,
        audits=AUDITS[:1],
    )
    assert spec_from(spec.to_table()) == spec


def test_the_paper_preset_is_the_papers_three_traits_unless_something_else_is_given():
    assert list(specs_from({}, preset="paper")) == list(PAPER_TRAITS)
    assert list(specs_from({}, preset="paper", trait=["humor"])) == ["humor"]
    assert list(specs_from({}, preset="paper", pairs="mine.jsonl")) == [""]
    assert list(specs_from({"vector": "v.safetensors"}, preset="paper")) == [""]
    assert list(specs_from({})) == [""]


def test_a_list_of_traits_is_one_spec_each_that_differ_in_the_trait_alone():
    found = specs_from({"trait": ["humor", "formality"], "samples": 7})
    assert list(found) == ["humor", "formality"]
    assert {name: spec.trait for name, spec in found.items()} == {
        name: name for name in found
    }
    humor, formality = (spec.to_table() for spec in found.values())
    assert humor | {"trait": "formality"} == formality
    assert humor["samples"] == 7


@pytest.mark.parametrize("traits", [["humor", "humor"], 3, {"a": 1}])
def test_traits_that_are_no_list_of_different_names_are_refused(traits):
    with pytest.raises(BadSpec, match="trait"):
        specs_from({"trait": traits})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"audits": ("scale",)}, "alphas"),
        ({"audits": ("environments",)}, "environments"),
        ({"audits": ("replication",), "samples": 1}, "samples"),
        ({"alphas": (0.0, 1.0)}, "alphas"),
        ({"alphas": (float("inf"),)}, "alphas"),
    ],
)
def test_an_audit_that_lacks_what_it_compares_is_refused(changes, word):
    with pytest.raises(BadSpec, match=word):
        spec_from(changes)


def test_numbers_of_a_list_may_come_as_text():
    assert spec_from({}, alphas="0.5, 2").alphas == (0.5, 2.0)
    assert spec_from({"alphas": [1, 2]}).alphas == (1.0, 2.0)
    for wrong in ("0.5, two", [True], [None], 3):
        with pytest.raises(BadSpec, match="alphas"):
            spec_from({"alphas": wrong})


@pytest.mark.parametrize(
    ("changes", "audit"),
    [
        ({"alphas": (0.5,)}, "scale"),
        ({"environments": ("topic-shift", "genre-shift")}, "environments"),
        ({"published_code": True}, "replication"),
    ],
)
def test_what_an_audit_needs_asks_for_it_unless_audits_are_named(changes, audit):
    assert audit not in spec_from({}).audits
    assert audit in spec_from(changes).audits
    assert set(spec_from({}).audits) < set(spec_from(changes).audits)
    named = spec_from({**changes, "audits": ("plumbing",)})
    assert named.audits == ("plumbing",)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"environments": ("topic-shift",)}, "two different"),
        ({"environments": ("topic-shift", "topic-shift")}, "two different"),
        ({"alphas": (0.5, 0.50000001)}, "the same"),
    ],
)
def test_sets_of_one_are_no_sets(changes, word):
    with pytest.raises(BadSpec, match=word):
        spec_from(changes)


def test_two_traits_never_share_a_folder():
    traits = ["humor", "mine/prompts.json:humor"]
    for one in traits:
        assert list(specs_from({"trait": [one]})) == [one]
    with pytest.raises(BadSpec, match="share the folder"):
        specs_from({"trait": traits})


@pytest.mark.parametrize("name", list(GROUPS))
def test_the_name_of_a_group_stands_for_its_audits(name):
    needs = {"alphas": (0.5,), "environments": ("topic-shift", "genre-shift")}
    for asked in (name, [name], f" {name} "):
        assert spec_from({"audits": asked} | needs).audits == GROUPS[name]
    assert 2 < len(GROUPS[name]) < len(AUDITS)


def test_groups_and_audits_mix_and_an_audit_named_twice_is_made_once():
    spec = spec_from({}, audits="geometry,plumbing,spectrum, core")
    assert spec.audits == (*GEOMETRY, *CORE)
    assert spec_from(spec.to_table()) == spec


@pytest.mark.parametrize("named", ["geometri", ["core", "everything"], "core,"])
def test_a_name_that_is_neither_an_audit_nor_a_group_is_refused(named):
    with pytest.raises(BadSpec, match="there is no audit") as caught:
        spec_from({}, audits=named)
    for name in GROUPS:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("named", "near"),
    [
        ("geometri", "Did you mean geometry? "),
        ("core,Reachable", "Did you mean reachability? "),
        ("acces,desity", "Did you mean access and density? "),
        ("access,xyzzy", ""),
    ],
)
def test_the_nearest_name_is_suggested_before_all_of_them(named, near):
    with pytest.raises(BadSpec) as caught:
        spec_from({}, audits=named)
    names = ", ".join((*AUDITS, *GROUPS))
    assert caught.value.remedy == f"{near}Choose from {names}."


@pytest.mark.parametrize(
    ("audits", "geometry", "behaves"),
    [("geometry", True, False), ("core", False, True), ("core,nulls", True, True)],
)
def test_a_spec_knows_whether_it_needs_matrices_or_scored_texts(
    audits, geometry, behaves
):
    spec = spec_from({}, audits=audits)
    assert (spec.wants_geometry, spec.behaves) == (geometry, behaves)


@pytest.mark.parametrize("key", ["geometry_prompts", "geometry_tokens"])
def test_a_geometry_of_nothing_is_refused(key):
    with pytest.raises(BadSpec, match=key):
        Spec(**{key: 0})


def test_layers_differ_in_their_layer_alone():
    specs = layer_specs(spec_from({"trait": "humor"}), (3, 11))
    assert list(specs) == ["layer-03", "layer-11"]
    one, other = (spec.to_table() for spec in specs.values())
    assert one | {"layer": 11} == other
