"""Whole audits of models with known answers, built without anything of this package.

The all-ones direction is an exact null of every LayerNorm model and of no RMSNorm one;
a vector is equivalent to itself and to nothing that points elsewhere; a trait that was
planted along w is found along w, as large as it is.
"""

import math

import numpy as np
import pytest
import torch
from tests import planted
from tests.models import D_MODEL, tiny

from steergauge.audits.finding import Verdict
from steergauge.runs.execute import audit
from steergauge.vector import Site, SteeringVector

SMALL = {
    "num_prompts": 12,
    "num_dose_prompts": 4,
    "samples": 2,
    "max_new_tokens": 6,
    "num_perpendicular": 2,
    "num_random": 1,
}
PROMPTS = [
    f"{first} {second} {third}"
    for first in ("then", "so")
    for second in ("old", "lost")
    for third in ("man", "sea", "moon", "door")
]


def ones(layer: int, width: int = D_MODEL) -> SteeringVector:
    return SteeringVector(torch.ones(width), Site(layer))


def audited(lm, vector, folder, alpha, **sizes):
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    options = SMALL | {"prompts": str(prompts), "alpha": alpha} | sizes
    return audit(lm, vector, out=folder / "run", **options).findings


def of(findings, audit_name: str):
    return {key: f for key, f in findings.items() if f.audit == audit_name}


@pytest.mark.parametrize("alpha", [1.0, 5.0, -20.0, 1e4])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_all_ones_in_gpt2_is_uninformative_at_every_layer_and_strength(
    layer, alpha, tmp_path
):
    found = audited(tiny("gpt2"), ones(layer), tmp_path, alpha)
    assert found["plumbing"].verdict is Verdict.PASS
    for finding in of(found, "divergence").values():
        assert finding.verdict is Verdict.UNINFORMATIVE
        effect, floor = finding.details["effect"], finding.details["floor"]
        assert effect[1] <= 10 * floor
        # Rounding only: h + alpha 1 in float32 has lost alpha x 6e-8 of h, twice
        # that in the logits, and KL is quadratic; three orders of safety.
        assert effect[0] < 1e3 * (abs(alpha) * 6e-8) ** 2 * SMALL["max_new_tokens"]
    for finding in of(found, "equivalence").values():
        assert finding.verdict is Verdict.UNINFORMATIVE


def test_all_ones_in_gpt_neox_is_uninformative(tmp_path):
    found = audited(tiny("gpt_neox"), ones(1), tmp_path, 5.0)
    verdicts = {finding.verdict for finding in of(found, "divergence").values()}
    assert verdicts == {Verdict.UNINFORMATIVE}


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_all_ones_in_a_model_without_mean_subtraction_is_far_above_the_floor(
    family, tmp_path
):
    found = audited(tiny(family), ones(1), tmp_path, 1.0)
    for finding in of(found, "divergence").values():
        assert finding.verdict is not Verdict.UNINFORMATIVE
        assert finding.details["effect"][1] > 1e4 * finding.details["floor"]


def test_another_direction_in_gpt2_is_far_above_the_floor(tmp_path):
    direction = torch.ones(D_MODEL)
    direction[0] = -1
    found = audited(tiny("gpt2"), SteeringVector(direction, Site(1)), tmp_path, 5.0)
    for finding in of(found, "divergence").values():
        assert finding.verdict is not Verdict.UNINFORMATIVE
        assert finding.details["effect"][1] > 1e4 * finding.details["floor"]


RIVALS = ("same", "minus", "unrelated")


@pytest.fixture(scope="module")
def planted_run(tmp_path_factory):
    """v along the planted direction, against itself, -v and an unrelated vector."""
    folder = tmp_path_factory.mktemp("planted")
    v = planted.trait_vector()
    v.save(folder / "same.safetensors")
    v.with_direction(-v.direction, "minus v").save(folder / "minus.safetensors")
    planted.unrelated_vector().save(folder / "unrelated.safetensors")
    return audit(
        planted.planted(),
        v,
        out=folder / "run",
        prompts=planted.prompt_file(folder),
        probe=planted.probe_file(folder),
        against=tuple(str(folder / f"{name}.safetensors") for name in RIVALS),
        alpha=1.0,
        num_prompts=50,
        num_dose_prompts=4,
        samples=6,
        max_new_tokens=planted.LENGTH,
        num_perpendicular=2,
    )


def test_a_planted_trait_passes_its_manipulation_check(planted_run):
    found = planted_run.findings["manipulation"]
    assert planted_run.findings["plumbing"].verdict is Verdict.PASS
    assert found.verdict is Verdict.PASS
    assert all(control.holds for control in found.controls)


def test_the_lift_of_a_planted_trait_is_the_exact_one(planted_run):
    prompts = planted.prompts(54)[4:]
    step = planted.trait_vector().direction
    base = np.array([planted.exact_score(prompt, None) for prompt in prompts])
    up = np.array([planted.exact_score(prompt, step) for prompt in prompts])
    exact = float((up - base).mean())
    # Not vacuous: large, and in every prompt.
    assert exact > 0.15
    assert (up > base).all()
    # The prompts are these 50, so only the sampling of six texts is left: a score's
    # standard deviation is below 0.25, of a difference of means of 300 below 0.02.
    seen = planted_run.findings["manipulation"].estimate
    assert abs(seen.value - exact) < 3 * 0.25 * math.sqrt(2 / 300)
    assert seen.low < exact < seen.high


def test_the_unsteered_score_is_the_exact_one(planted_run):
    prompts = planted.prompts(54)[4:]
    exact = np.mean([planted.exact_score(prompt, None) for prompt in prompts])
    seen = planted_run.findings["manipulation"].details["unsteered_score"]
    assert abs(seen - exact) < 3 * 0.25 / math.sqrt(300)


def test_v_against_itself_is_equivalent_in_trait_and_in_texts(planted_run):
    for audit_name in ("equivalence", "divergence"):
        found = planted_run.findings[f"{audit_name}[against[same]]"]
        assert found.verdict is Verdict.EQUIVALENT
        assert found.estimate.value == found.estimate.low == found.estimate.high == 0
        assert found.num_prompts == 50


@pytest.mark.parametrize("rival", ["minus", "unrelated"])
def test_v_against_minus_v_and_against_another_vector_is_different(planted_run, rival):
    for audit_name in ("equivalence", "divergence"):
        found = planted_run.findings[f"{audit_name}[against[{rival}]]"]
        assert found.verdict is Verdict.DIFFERENT


def test_v_perp_alone_is_different_from_v(planted_run):
    for audit_name in ("equivalence", "divergence"):
        found = planted_run.findings[f"{audit_name}[v_perp alone]"]
        assert found.verdict is Verdict.DIFFERENT


def test_every_control_with_a_known_answer_holds(planted_run):
    controls = {
        (key, control.name): control.holds
        for key, finding in planted_run.findings.items()
        for control in finding.controls
    }
    assert len(controls) > 20
    assert all(controls.values()), controls


def test_only_the_continuation_is_scored_in_a_whole_run(tmp_path):
    # Prompts full of high words; a probe of other words, which no text can hold.
    prompts = [" ".join((*planted.HIGH, word)) for word in planted.NEUTRAL[:12]]
    (tmp_path / "p.txt").write_text("\n".join(prompts), encoding="utf-8")
    source = f"HIGH = {planted.HIGH}\n" + (
        "def full(texts):\n"
        "    return [all(w in t for w in HIGH) * 0.5 + 0.5 for t in texts]\n"
    )
    (tmp_path / "probe.py").write_text(source, encoding="utf-8")
    labelled = [f'{{"text": "{prompts[0]} {i}", "label": 1}}' for i in range(10)]
    labelled += [f'{{"text": "{i}", "label": 0}}' for i in range(10)]
    (tmp_path / "l.jsonl").write_text("\n".join(labelled), encoding="utf-8")
    run = audit(
        planted.planted(),
        planted.trait_vector(),
        out=tmp_path / "run",
        prompts=str(tmp_path / "p.txt"),
        probe=f"{tmp_path / 'probe.py'}:full",
        labelled=str(tmp_path / "l.jsonl"),
        alpha=1.0,
        **SMALL | {"num_prompts": 8, "num_random": 20},
    )
    rows = run.store.generations()
    assert all(row["text"] for row in rows if row["num_tokens"] > 1)
    assert all(planted.HIGH[0] in row["prompt"] for row in rows)
    # Five tokens cannot hold six words: with the prompt, every score would be 1.
    assert {row["score"] for row in rows} == {0.5}
    assert run.findings["manipulation"].estimate.value == 0.0
    assert run.findings["manipulation"].verdict is Verdict.FAIL


def test_all_ones_is_uninformative_where_a_trait_could_have_moved(tmp_path):
    run = audit(
        planted.planted(),
        ones(planted.LAYER, planted.D_MODEL),
        out=tmp_path / "run",
        prompts=planted.prompt_file(tmp_path),
        probe=planted.probe_file(tmp_path),
        alpha=20.0,
        **SMALL | {"num_prompts": 50, "num_random": 20, "max_new_tokens": 2},
    )
    found = run.findings
    assert found["manipulation"].verdict is Verdict.FAIL
    assert found["manipulation"].estimate.value == 0.0
    for key in ("equivalence", "equivalence[v_perp alone]"):
        assert found[key].verdict is Verdict.UNINFORMATIVE
        assert "did not pass its manipulation check" in found[key].reasons[0]
    for key in ("divergence", "divergence[v_perp alone]"):
        assert found[key].verdict is Verdict.UNINFORMATIVE
        assert "nothing to compare" in found[key].reasons[0]
