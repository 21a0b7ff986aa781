"""What a run reads is checked before it begins, and no prompt is used twice."""

import json
import math

import pytest
import torch
from tests.models import D_MODEL, NUM_LAYERS, tiny

from steergauge.audits.controls import random_direction
from steergauge.errors import (
    BadPairs,
    BadPrompts,
    BadSpec,
    InputError,
    LayerOutOfRange,
    NoSuchFile,
    ShapeMismatch,
)
from steergauge.extraction.methods import extract
from steergauge.intervention import Scope
from steergauge.prompts import TRAITS, environment, read_pairs, trait
from steergauge.runs import arms, plan
from steergauge.runs.spec import Spec
from steergauge.runs.store import Store
from steergauge.vector import Site, SteeringVector

LM = "llama"


def vector(seed: int = 0, *, layer: int = 1, width: int = D_MODEL) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector(torch.randn(width, generator=generator), Site(layer))


def pair_file(folder, num: int = 12, *, name: str = "pairs.jsonl") -> str:
    lines = [
        json.dumps({"positive": f"so tell {i}", "negative": f"lost {i}"})
        for i in range(num)
    ]
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return str(folder / name)


def prompt_file(folder, prompts) -> str:
    (folder / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    return str(folder / "prompts.txt")


def probe_file(folder, *, word: str = "so", code: str = "") -> str:
    texts = {"high": [f"{word} {i}" for i in range(10)], "low": list("0123456789")}
    if code:
        (folder / "probe.py").write_text(code, encoding="utf-8")
        rows = [{"text": t, "label": 1} for t in texts["high"]]
        rows += [{"text": t, "label": 0} for t in texts["low"]]
        lines = "\n".join(map(json.dumps, rows))
        (folder / "labelled.jsonl").write_text(lines, encoding="utf-8")
        return f"{folder / 'probe.py'}:score"
    (folder / "words.toml").write_text(
        f'high = ["{word}"]\nlow = ["zzz"]\n[validation]\n'
        f"high = {json.dumps(texts['high'])}\nlow = {json.dumps(texts['low'])}\n",
        encoding="utf-8",
    )
    return str(folder / "words.toml")


def gathered(given=None, **fields) -> plan.Inputs:
    return plan.gather(tiny(LM), Spec(**fields), given)


def sides(pairs) -> set[str]:
    return {text.prompt for pair in pairs for text in (pair.positive, pair.negative)}


def is_split_cleanly(inputs: plan.Inputs) -> bool:
    """Prompts of dose curve, test and pairs are different texts, each used once."""
    dose, test, fit = inputs.dose_prompts, inputs.test_prompts, sides(inputs.pairs)
    distinct = len({*dose, *test}) == len(dose) + len(test)
    return bool(dose) and bool(test) and distinct and not {*dose, *test} & fit


def test_half_of_the_pairs_are_held_out_to_test_on(tmp_path):
    pairs = pair_file(tmp_path, 30)
    inputs = gathered(pairs=pairs, num_prompts=4, num_dose_prompts=3)
    assert is_split_cleanly(inputs)
    every = read_pairs(pairs)
    assert list(inputs.pairs) == every[::2]
    used = [*inputs.dose_prompts, *inputs.test_prompts]
    assert set(used) <= sides(every[1::2])
    # One side of each pair, in turn: the two sides are no independent prompts.
    assert all(len(sides([pair]) & set(used)) <= 1 for pair in every)
    assert 2 <= sum(prompt.startswith("so") for prompt in used) <= 5
    assert (len(inputs.dose_prompts), len(inputs.test_prompts)) == (3, 4)


def test_held_out_pairs_that_were_also_extracted_from_are_no_prompts(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [json.dumps({"positive": f"a {i}", "negative": f"b {i}"}) for i in range(9)]
    # The first pair once more, at an odd place: among those held out.
    path.write_text("\n".join([rows[0], rows[0], *rows[1:]]), encoding="utf-8")
    inputs = gathered(pairs=str(path), num_prompts=3, num_dose_prompts=2)
    assert is_split_cleanly(inputs)
    assert "a 0" in sides(inputs.pairs)


def test_given_prompts_lose_duplicates_and_the_pairs_own_texts(tmp_path):
    pairs = pair_file(tmp_path)
    own = sorted(sides(read_pairs(pairs)))
    prompts = [*own[:5], "then", "then", *[f"there {i}" for i in range(9)], "then"]
    inputs = gathered(
        pairs=pairs,
        prompts=prompt_file(tmp_path, prompts),
        num_prompts=50,
        num_dose_prompts=3,
    )
    assert is_split_cleanly(inputs)
    used = [*inputs.dose_prompts, *inputs.test_prompts]
    assert used == ["then", *[f"there {i}" for i in range(9)]]
    # With prompts of their own, all pairs are extracted from.
    assert len(inputs.pairs) == 12


@pytest.mark.parametrize("name", TRAITS)
def test_prompts_of_a_built_in_trait_are_neutral_ones_of_the_environment(name):
    inputs = gathered(trait=name)
    assert is_split_cleanly(inputs)
    assert {*inputs.dose_prompts, *inputs.test_prompts} <= set(environment().prompts)
    assert (len(inputs.dose_prompts), len(inputs.test_prompts)) == (24, 50)
    assert len(inputs.pairs) == 50
    assert inputs.probe is not None


def test_the_dose_curve_takes_at_most_a_third_of_few_prompts(tmp_path):
    prompts = prompt_file(tmp_path, [f"there {i}" for i in range(10)])
    inputs = gathered(vector(), prompts=prompts)
    assert (len(inputs.dose_prompts), len(inputs.test_prompts)) == (3, 7)


@pytest.mark.parametrize("num", [1, 2])
def test_too_few_prompts_are_refused(num, tmp_path):
    prompts = prompt_file(tmp_path, [f"there {i}" for i in range(num)])
    with pytest.raises(BadPrompts, match=f"only {num} prompts"):
        gathered(vector(), prompts=prompts)


def test_too_few_pairs_to_hold_some_out_are_refused(tmp_path):
    with pytest.raises(BadPairs, match="5 pairs"):
        gathered(pairs=pair_file(tmp_path, 5))
    prompts = prompt_file(tmp_path, ["then", "so", "lost"])
    assert len(gathered(pairs=pair_file(tmp_path, 5), prompts=prompts).pairs) == 5
    with pytest.raises(BadPairs, match="single pair"):
        gathered(pairs=pair_file(tmp_path, 1), prompts=prompts)


def test_a_run_without_a_source_of_a_vector_is_refused(tmp_path):
    with pytest.raises(BadSpec, match="nothing to audit"):
        gathered(prompts=prompt_file(tmp_path, ["then", "so", "lost"]))


def test_what_cannot_be_run_is_refused_before_the_folder_is_made(tmp_path):
    lm, out = tiny(LM), tmp_path / "out"
    good = {"prompts": prompt_file(tmp_path, ["then", "so", "lost"])}
    rival = vector(width=D_MODEL + 1).save(tmp_path / "wide.safetensors")
    high = vector(layer=NUM_LAYERS).save(tmp_path / "high.safetensors")
    for changes, error in (
        ({"scope": "everywhere"}, InputError),
        ({"position": "middle"}, InputError),
        ({"chat": True}, BadPrompts),
        ({"layer": 2}, ShapeMismatch),
        ({"against": (str(rival),)}, ShapeMismatch),
        ({"against": (str(high),)}, LayerOutOfRange),
        ({"against": ("nowhere.safetensors",)}, NoSuchFile),
        ({"probe": "nowhere.toml"}, NoSuchFile),
        ({"labelled": "nowhere.jsonl"}, BadSpec),
        ({"prompts": "nowhere.txt"}, NoSuchFile),
    ):
        from steergauge.runs.execute import audit

        with pytest.raises(error):
            audit(lm, vector(), out=out, **good | changes)
        assert not out.exists(), changes
    assert plan.gather(lm, Spec(**good), vector()).given is not None


@pytest.mark.parametrize("layer", [-1, NUM_LAYERS])
def test_a_layer_out_of_range_is_refused(layer):
    with pytest.raises(LayerOutOfRange):
        gathered(trait="formality", layer=layer)


def test_the_layer_is_the_vectors_or_the_one_asked_for_or_the_middle_one():
    assert gathered(trait="formality").spec.layer == NUM_LAYERS // 2
    assert gathered(trait="formality", layer=0).spec.layer == 0
    assert gathered(vector(layer=3)).spec.layer == 3
    assert gathered(vector(layer=3), layer=3).spec.layer == 3


def test_two_rivals_of_the_same_name_are_refused(tmp_path):
    paths = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        paths.append(str(vector(seed).save(folder / "mine.safetensors")))
    assert set(gathered(vector(), against=(paths[0],)).rivals) == {"mine"}
    with pytest.raises(BadSpec, match="mine"):
        gathered(vector(), against=tuple(paths))


def test_a_vector_of_a_built_in_traits_pairs_is_known_again():
    lm = tiny(LM)
    for seed in (0, 3):
        pairs = trait("humor").pairs(20, seed=seed)
        v = extract(lm, pairs, layer=1, seed=seed)
        inputs = plan.gather(lm, Spec(), v)
        assert inputs.trait is not None
        assert inputs.trait.name == "humor"
        assert inputs.probe is not None
    other = extract(lm, trait("humor").pairs(20, seed=1)[::-1], layer=1, seed=1)
    assert plan.gather(lm, Spec(), other).trait is None
    assert plan.gather(lm, Spec(), vector()).trait is None


def controls_of(folder, given, **fields):
    inputs = gathered(given, **fields)
    store = Store(folder)
    v = arms.extract_or_load(tiny(LM), inputs, store)
    return v, arms.control_vectors(tiny(LM), inputs, v, store), inputs, store


def families(found) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in found:
        family = name.partition("[")[0]
        counts[family] = counts.get(family, 0) + 1
    return counts


def test_every_control_has_the_norm_and_the_site_of_v(tmp_path):
    rival = random_direction(vector(9, layer=3), seed=1)
    path = rival.with_direction(0.01 * rival.direction, "").save(tmp_path / "r.st")
    v, found, _, _ = controls_of(
        tmp_path / "run",
        None,
        pairs=pair_file(tmp_path, 40),
        layer=1,
        against=(str(path),),
    )
    assert families(found) == {
        "v_plus_perp": 5,
        "perp": 5,
        "random": 10,
        "sign_flip": 10,
        "against": 1,
    }
    for name, control in found.items():
        length = math.sqrt(2) if name.startswith("v_plus_perp") else 1
        assert control.norm == pytest.approx(length * v.norm, rel=1e-6), name
        assert control.site == (rival.site if "against" in name else v.site)
    for j in range(5):
        perp = found[f"perp[{j}]"].direction
        assert torch.equal(found[f"v_plus_perp[{j}]"].direction, v.direction + perp)
    directions = torch.stack([c.direction for c in found.values()])
    assert len(directions.unique(dim=0)) == len(found)


def test_too_few_pairs_are_not_flipped(tmp_path):
    _, found, inputs, _ = controls_of(tmp_path, None, pairs=pair_file(tmp_path, 14))
    assert len(inputs.pairs) == plan.FEWEST_PAIRS_TO_FLIP - 1
    assert families(found) == {"v_plus_perp": 5, "perp": 5, "random": 20}


def test_without_pairs_all_matched_nulls_are_random_directions(tmp_path):
    _, found, _, _ = controls_of(tmp_path, vector(), num_random=7)
    assert families(found) == {"v_plus_perp": 5, "perp": 5, "random": 7}


def test_other_traits_are_controls_of_a_built_in_trait(tmp_path):
    _, found, _, _ = controls_of(tmp_path, None, trait="humor")
    others = {name for name in found if name.startswith("other_trait")}
    assert others == {"other_trait[formality]", "other_trait[politeness]"}


def test_controls_are_made_once_and_made_again_if_they_were_not_all_there(tmp_path):
    v, found, inputs, store = controls_of(
        tmp_path / "run", None, pairs=pair_file(tmp_path)
    )

    def again():
        return arms.control_vectors(tiny(LM), inputs, v, store)

    def times():
        return {p.name: p.stat().st_mtime_ns for p in store.vectors.iterdir()}

    before = times()
    assert list(again()) == list(found)
    assert times() == before
    # As a kill leaves it: some vectors, and no mark that they are all there.
    (store.vectors / "controls.done").unlink()
    (store.vectors / "perp-3.safetensors").unlink()
    remade = again()
    assert list(remade) == list(found)
    for name, control in remade.items():
        assert torch.equal(control.direction, found[name].direction)


def test_arms_differ_by_their_vector_alone(tmp_path):
    v, found, inputs, _ = controls_of(tmp_path, vector(), scope="all", num_random=2)
    made = arms.test_arms(inputs.spec, -0.5, v, found)
    assert set(made) == {"unsteered", "v", "v_again", "minus_v", *found}
    assert made["unsteered"].intervention is None
    assert {name: arm.noise for name, arm in made.items() if arm.noise} == {
        "v_again": 1
    }
    for name, arm in made.items():
        if name != "unsteered":
            assert arm.intervention.alpha == (0.5 if name == "minus_v" else -0.5)
            assert arm.intervention.scope is Scope.ALL
    for name, control in {"v": v, "v_again": v, "minus_v": v, **found}.items():
        assert made[name].intervention.vector is control


@pytest.mark.parametrize(("alpha", "unit"), [(None, 1.0), (3.0, 3.0), (-3.0, 3.0)])
def test_the_dose_curve_goes_both_ways_in_units_of_alpha(alpha, unit):
    made = arms.dose_arms(Spec(alpha=alpha), vector())
    doses = [arm.intervention.alpha for arm in made.values() if arm.intervention]
    wanted = [sign * unit * a for sign in (1, -1) for a in (0.25, 0.5, 1, 2)]
    assert sorted(doses) == sorted(wanted)
    assert made["unsteered"].intervention is None


def test_hashes_change_with_the_contents_of_every_input(tmp_path):
    lm, code = (
        tiny(LM),
        "def score(texts):\n    return [('so' in t) * {} for t in texts]",
    )
    pairs = pair_file(tmp_path)

    def hashes(given=None, **changes):
        coded = changes.get("probe", "").endswith(":score")
        labelled = str(tmp_path / "labelled.jsonl") if coded else ""
        return gathered(given, pairs=pairs, labelled=labelled, **changes).hashes(lm)

    first = hashes(probe=probe_file(tmp_path, code=code.format("1.0")))
    assert {"model", "tokenizer", "pairs", "prompts", "probe", "versions"} <= set(first)
    again = hashes(probe=probe_file(tmp_path, code=code.format("1.0")))
    other = hashes(probe=probe_file(tmp_path, code=code.format("0.9")))
    assert again == first
    assert {key for key in first if first[key] != other[key]} == {"probe"}
    words = [hashes(probe=probe_file(tmp_path, word=word)) for word in ("so", "tell")]
    assert words[0]["probe"] != words[1]["probe"]
    pair_file(tmp_path, 14)
    longer = hashes(probe=probe_file(tmp_path, code=code.format("1.0")))
    assert {k for k in first if first[k] != longer[k]} == {"pairs", "prompts"}
    vectors = [hashes(vector(seed))["vector"] for seed in (0, 0, 1)]
    assert vectors[0] == vectors[1] != vectors[2]
    rivals = [
        hashes(against=(str(vector(s).save(tmp_path / "r.st")),))["against r"]
        for s in (0, 1)
    ]
    assert rivals[0] != rivals[1]
