"""Arms of the paper's experiments: which vector, which strength, whose noise."""

import pytest
import tomli_w
import torch

from steergauge.activations import Reader
from steergauge.extraction.mean_difference import mean_difference
from steergauge.loading import load
from steergauge.runs import arms, plan
from steergauge.runs.spec import spec_from
from steergauge.runs.store import Store

ALPHA = 0.5
SIZES = {"num_perpendicular": 7, "num_random": 8, "num_pairs": 12, "seed": 3}


@pytest.fixture(scope="module")
def lm():
    return load("builtin:organism")


@pytest.fixture(scope="module")
def made(lm, tmp_path_factory):
    spec = spec_from(
        {}, preset="paper", trait="formality", alpha=ALPHA, alphas=(0.5, 2.0),
        published_code=True, **SIZES,
    )  # fmt: skip
    inputs = plan.gather(lm, spec)
    store = Store(tmp_path_factory.mktemp("run"))
    v = arms.extract_or_load(lm, inputs, store)
    found = arms.control_vectors(lm, inputs, v, store)
    return inputs, v, found


@pytest.fixture(scope="module")
def tested(made):
    inputs, v, found = made
    return arms.test_arms(inputs.spec, ALPHA, v, found)


def family(tested, name):
    return {key: arm for key, arm in tested.items() if key.partition("[")[0] == name}


def test_the_published_comparison_has_random_numbers_of_its_own(tested):
    for name in ("v_again", "v_plus_perp_fresh"):
        noises = [arm.noise for arm in family(tested, name).values()]
        assert noises == list(range(1, 8))
    for name in ("v", "v_plus_perp", "perp", "v_turned", "unsteered", "minus_v"):
        assert {arm.noise for arm in family(tested, name).values()} == {0}
    for j in range(7):
        pair = [tested[f"{name}[{j}]"] for name in ("v_plus_perp", "v_plus_perp_fresh")]
        assert pair[0].intervention.vector is pair[1].intervention.vector


def test_other_strengths_are_run_beside_the_tests_own(tested):
    assert tested["v"].intervention.alpha == ALPHA
    assert tested["v@2"].intervention.alpha == 2.0
    assert len(family(tested, "v_plus_perp@2")) == arms.FEW
    assert not family(tested, "v@0.5")  # It is v itself.
    for j in range(arms.FEW):
        other = tested[f"v_plus_perp@2[{j}]"].intervention
        assert other.vector is tested[f"v_plus_perp[{j}]"].intervention.vector


def test_v_turned_has_vs_norm_at_45_degrees(made):
    _, v, found = made
    for j in range(arms.FEW):
        turned = found[f"v_turned[{j}]"]
        assert turned.norm == pytest.approx(v.norm, rel=1e-5)
        cosine = torch.cosine_similarity(turned.direction, v.direction, dim=0)
        assert float(cosine) == pytest.approx(0.5**0.5, abs=1e-5)
    assert f"v_turned[{arms.FEW}]" not in found


def test_the_published_codes_vector_is_read_one_block_below(lm, made):
    inputs, v, found = made
    below = mean_difference(lm, inputs.pairs, Reader(v.site.layer - 1)).vector
    assert torch.equal(found["code_v"].direction, below.direction)
    assert found["code_v"].site == v.site
    # Not vacuous: it is another vector.
    assert not torch.allclose(below.direction, v.direction, rtol=0.1)
    for j in range(7):
        perp = found[f"code_perp[{j}]"]
        total = found[f"code_v_plus_perp[{j}]"]
        assert perp.norm == pytest.approx(below.norm, rel=1e-5)
        assert float(perp.direction @ below.direction) == pytest.approx(
            0, abs=1e-4 * below.norm**2
        )
        expected = below.direction + perp.direction
        assert torch.allclose(total.direction, expected, atol=1e-5)


def test_the_published_codes_variant_needs_pairs_and_a_block_below(lm, tmp_path, made):
    inputs, _, found = made
    spec = spec_from(inputs.spec.to_table(), layer=0)
    first = plan.gather(lm, spec)
    store = Store(tmp_path)
    v = arms.extract_or_load(lm, first, store)
    without = arms.control_vectors(lm, first, v, store)
    assert not [name for name in without if name.startswith("code_")]
    assert [name for name in found if name.startswith("code_")]


def test_every_environment_has_a_vector_of_vs_norm(made):
    _, v, found = made
    others = ("topic-shift", "genre-shift", "safety-style")
    for name in others:
        own = found[f"environment_v({name})"]
        assert own.norm == pytest.approx(v.norm, rel=1e-5)
        assert not torch.equal(own.direction, v.direction)
    assert "environment_v(in-distribution)" not in found


@pytest.mark.parametrize("target", ["in-distribution", "genre-shift"])
def test_an_environment_is_tested_with_every_vector_on_its_own_prompts(made, target):
    inputs, v, found = made
    here = arms.environment_arms(inputs.spec, ALPHA, v, found, target)
    sources = {name for name in here if name.startswith("v(")}
    assert sources == {
        f"v({name})"
        for name in ("in-distribution", "topic-shift", "genre-shift", "safety-style")
    }
    assert here["v(in-distribution)"].intervention.vector is v
    assert {arm.noise for name, arm in here.items() if "fresh" not in name} == {0}
    fresh = {name.partition("[")[0] for name in here if "fresh" in name}
    own = {"in-distribution", target}
    assert fresh == {f"v_plus_perp_fresh({name})" for name in own}


def test_prompts_of_the_environments_are_never_among_the_pairs(made):
    inputs, _, _ = made
    used = {
        text.prompt
        for pairs in (inputs.pairs, *inputs.environment_pairs.values())
        for pair in pairs
        for text in (pair.positive, pair.negative)
    }
    assert len(inputs.environments) == 4
    for prompts in inputs.environments.values():
        assert len(prompts) == 50
        assert not used & set(prompts)
        assert not set(inputs.dose_prompts) & set(prompts)


def test_without_the_papers_audits_the_arms_are_those_of_a_quick_run(lm, tmp_path):
    inputs = plan.gather(lm, spec_from({}, trait="humor", num_random=4))
    store = Store(tmp_path)
    v = arms.extract_or_load(lm, inputs, store)
    found = arms.control_vectors(lm, inputs, v, store)
    made = arms.test_arms(inputs.spec, 1.0, v, found)
    assert {name.partition("[")[0] for name in made} == {
        "unsteered", "v", "v_again", "minus_v", "v_plus_perp", "perp", "random",
        "sign_flip", "other_trait",
    }  # fmt: skip


def test_prompts_that_another_environments_vector_was_made_of_are_not_tested_on(
    lm, tmp_path
):
    leaked = ["Describe the tea tour.", "Describe the kite museum."]
    prompts = [*leaked, *(f"Describe the {noun}." for noun in ("moon", "sea", "sun"))]
    topics = ["the sea", "the sun", "the moon", "the tea", "the sky", "the sand"]
    words = {"high": ["good"] * 10, "low": ["bad"] * 10}
    diary = {
        "positive": ["Describe {topic}."],
        "negative": ["Write of {topic}."],
        "topics": ["the tea tour", "the kite museum"],
        "prompts": prompts,
    }
    table = {
        "name": "mine",
        "high": "a",
        "low": "b",
        "pairs": {"positive": ["Praise {topic}."], "negative": ["Blame {topic}."]}
        | {"topics": topics},
        "probe": words | {"validation": words},
        "environments": {"diary": diary},
    }
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    spec = spec_from(
        {},
        trait=str(path),
        environments=("in-distribution", "diary"),
        num_pairs=6,
    )
    inputs = plan.gather(lm, spec)
    assert {p.positive.prompt for p in inputs.environment_pairs["diary"]} == {*leaked}
    assert set(inputs.environments["diary"]) == set(prompts) - {*leaked}


def test_without_a_probe_nothing_is_generated_that_only_a_probe_could_judge(lm):
    spec = spec_from({}, preset="paper", **SIZES)
    pairs_only = plan.gather(lm, spec_from({**spec.to_table(), "trait": "formality"}))
    assert "replication" in pairs_only.spec.audits
    v = mean_difference(lm, pairs_only.pairs, Reader(2)).vector
    anonymous = v.with_direction(v.direction * 2, "somebody's")
    inputs = plan.gather(lm, spec, anonymous)
    assert inputs.probe is None
    assert not set(plan.NEED_A_PROBE) & set(inputs.spec.audits)
    assert {"logits", "divergence", "plumbing"} <= set(inputs.spec.audits)
