"""Whole runs of reachability: every audit of it, alone and together, stopped and not.

Runs are as small as they can be. What an audit then says is looked at where it is
known, and not where a search of sixteen prompts may or may not find one.
"""

import json
import math
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import planted
from tests.models import D_MODEL, D_VOCAB, borrowed, config, reinitialised, tiny
from transformers import LlamaForCausalLM

from steergauge.audits.finding import Verdict
from steergauge.errors import BadPrompts, BadSpec, LayerOutOfRange
from steergauge.report import write_report
from steergauge.runs.execute import audit
from steergauge.runs.manifold import NUM_NATURAL
from steergauge.runs.reachability import NUM_OTHERS, NUM_RANDOM
from steergauge.runs.spec import REACHABILITY, layer_specs, spec_from
from steergauge.runs.sweep import audit_layers
from steergauge.vector import Provenance, Site, SteeringVector

SMALL = {
    "num_prompts": 4,
    "num_dose_prompts": 4,
    "samples": 1,
    "max_new_tokens": 4,
    "alpha": 1.0,
    "audits": "reachability",
    "reach_prompts": 2,
    "reach_tokens": 4,
    "search_tokens": 2,
    "search_evaluations": 16,
    "num_hidden": 2,
}


def prompt_file(folder: Path, num: int = 20) -> str:
    """Different prompts of five tokens of the tiny models' tokenizer."""
    draw = random.Random(0)
    syllables = [first + second for first in "thrsnlc" for second in "aeiou"]
    found = {"".join(draw.choices(syllables, k=5)): None for _ in range(num)}
    assert len(found) == num
    path = folder / "prompts.txt"
    path.write_text("\n".join(found), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> str:
    return prompt_file(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def run_of(prompts, tmp_path_factory):
    def run(lm, vector=None, **changes):
        options = SMALL | {"prompts": prompts} | changes
        folder = tmp_path_factory.mktemp("runs") / "run"
        given = {key: value for key, value in options.items() if value is not None}
        return audit(lm, vector, out=folder, **given)

    return run


def drawn(layer: int = 1, length: float = 3.0, seed: int = 0) -> SteeringVector:
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))
    return SteeringVector(length * direction / direction.norm(), Site(layer))


def details(run, name: str) -> dict:
    return run.findings[name].details


def targets(run) -> list[str]:
    """Families of the states that were searched for."""
    named = details(run, "states")["targets"]
    return [*dict.fromkeys(name.partition("[")[0] for name in named)]


class Stopped(BaseException):
    """What a kill looks like from inside."""


class Told:
    """Counts the units of every stage; stops a run before a stage, or within it."""

    def __init__(self, last: int | None = None, *, within: bool = False) -> None:
        self.stages: list[list] = []
        self.last, self.within = last, within

    def begin(self, label: str, total: int) -> None:
        if not self.within and len(self.stages) == self.last:
            raise Stopped
        self.stages.append([label, total, 0])

    def advance(self, num: int) -> None:
        self.stages[-1][2] += num
        if self.within and len(self.stages) - 1 == self.last:
            raise Stopped


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def whole(run_of, told):
    return run_of(tiny("llama"), drawn(), progress=told)


def test_every_audit_of_reachability_is_made_of_a_vector_alone(whole):
    assert list(whole.findings) == ["plumbing", *REACHABILITY]
    assert whole.findings["plumbing"].verdict is Verdict.PASS
    text = (whole.store.folder / "findings.json").read_text()
    json.loads(text, parse_constant=pytest.fail)
    assert whole.facts["steering"] == "addition"
    assert any("table has no behaviour" in line for line in whole.facts["not_run"])


def test_natural_states_come_back_and_those_of_a_long_step_do_not(whole):
    for name in ("states", "inversion"):
        assert all(control.holds for control in whole.findings[name].controls)
    assert whole.findings["inversion"].verdict is Verdict.UNREACHED
    families = {row["name"]: row for row in details(whole, "states")["by_target"]}
    for name in ("natural", "constructed"):
        assert families[name]["accepted"] == 1
    for name in ("v", "random", "other_pair"):
        assert families[name]["accepted"] == 0
    places = details(whole, "states")["positions"]
    assert len(places) == 2 * SMALL["reach_tokens"]
    # Steered at every position and read where it is written: the step is v.
    for place in places:
        assert place["length"] == pytest.approx(3.0, rel=1e-5)
        assert place["natural_d1"] < place["tolerance"] < 0.01 * place["d1"]


def test_without_pairs_there_are_no_sign_flips_and_without_a_probe_no_scores(whole):
    assert targets(whole) == ["natural", "constructed", "v", "random", "other_pair"]
    rows = details(whole, "access")["rows"]
    names = {"unsteered", "steered", "token_search", "projected", "soft_prefix"}
    assert {row["name"] for row in rows} == {*names, "many_shot"}
    assert {row["score"] for row in rows} == {row["lift"] for row in rows} == {None}
    assert {row["score"] for row in whole.store.generations()} == {None}


def test_all_texts_of_a_run_are_kept(whole):
    rows = whole.store.generations()
    stages = {row["stage"] for row in rows}
    assert {"test", "reach-natural", "reach-goal-v", "reach-goal-hidden-01"} <= stages
    natural = [row for row in rows if row["stage"] == "reach-natural"]
    assert len(natural) >= NUM_NATURAL
    found = {r["name"]: r["prompt"] for r in details(whole, "access")["rows"]}
    searched = [row for row in rows if row["stage"] == "access token_search"]
    # As a user would read them: without the prompt, which is in the table.
    assert {row["arm"] for row in searched} == {"token_search"}
    assert found["token_search"]
    assert not any(row["prompt"].startswith(found["token_search"]) for row in searched)


def test_prompts_under_test_are_no_reference_of_anything(whole):
    rows = whole.store.generations()
    tested = {row["prompt"] for row in rows if row["stage"] == "test"}
    for stage in ("reach-natural", "reach-goal-v"):
        assert tested.isdisjoint(r["prompt"] for r in rows if r["stage"] == stage)
    assert {*details(whole, "states")["prompts"]} <= tested


def test_the_pages_are_made_again_without_torch(whole):
    page = write_report(whole.store.folder)
    assert page.name == "reachability.html"
    before = page.read_bytes()
    page.unlink()
    program = f"""
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ImportError(name)
sys.meta_path.insert(0, Refused())
import steergauge
steergauge.write_report({str(whole.store.folder)!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert page.read_bytes() == before


def cells(folder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").glob("*")}


def test_a_run_that_is_stopped_anywhere_ends_with_the_same_bytes(
    whole, told, prompts, tmp_path
):
    folder, options = tmp_path / "run", SMALL | {"prompts": prompts}

    def run(progress: Told):
        lm, v = tiny("llama"), drawn()
        return audit(lm, v, out=folder, progress=progress, **options)

    assert all(done == total for _, total, done in told.stages)
    first = [label for label, _, _ in told.stages].index("reachability: noise")
    assert len(told.stages) - first > 10
    kept: dict[str, int] = {}
    for last in range(first, len(told.stages), 2):
        # Before every fourth stage, and after the first of the work of every fourth.
        with pytest.raises(Stopped):
            run(Told(last, within=(last - first) % 4 > 0))
        now = cells(folder)
        assert {name: now[name] for name in kept} == kept
        kept = now
    again = Told()
    resumed = run(again)
    # What was done before is told of as done.
    assert again.stages == told.stages
    assert {name: cells(folder)[name] for name in kept} == kept
    names = [one.store.folder / "findings.json" for one in (whole, resumed)]
    assert names[0].read_bytes() == names[1].read_bytes()
    assert whole.store.generations() == resumed.store.generations()


@pytest.mark.parametrize("name", REACHABILITY)
def test_an_audit_alone_says_what_it_says_in_company(name, whole, run_of):
    run = run_of(tiny("llama"), drawn(), audits=name)
    assert list(run.findings) == ["plumbing", name]
    assert run.findings[name].to_json() == whole.findings[name].to_json()


def test_audits_of_texts_and_of_reachability_make_one_run(prompts, tmp_path):
    options = SMALL | {
        "prompts": planted.prompt_file(tmp_path, 24),
        "probe": planted.probe_file(tmp_path),
        "audits": "core,reachability",
        "num_perpendicular": 1,
        "num_random": 1,
        "alpha": -1.0,
    }
    lm, v = planted.planted(), planted.trait_vector()
    run = audit(lm, v, out=tmp_path / "run", **options)
    found = {finding.audit for finding in run.findings.values()}
    assert {"manipulation", "divergence", *REACHABILITY} <= found
    rows = {row["name"]: row for row in details(run, "access")["rows"]}
    assert rows["unsteered"]["lift"] is None
    # v lifts the score by this against the direction of alpha.
    manipulated = run.findings["manipulation"].estimate
    assert rows["steered"]["lift"]["value"] == pytest.approx(manipulated.value)
    for row in rows.values():
        assert 0 <= row["score"]["value"] <= 1
    page = write_report(run.store.folder).read_text(encoding="utf-8")
    assert "reachability" in page.lower()


@pytest.mark.parametrize("chat", [True, False])
def test_prompts_are_read_as_the_model_would_see_them(chat, run_of):
    run = run_of(
        tiny("llama", chat=True), drawn(), chat=chat, audits="inversion,access"
    )
    first = details(run, "inversion")["sequences"][0]
    assert (first["tokens"][0] == "<user>") == chat
    assert run.findings["inversion"].verdict is Verdict.UNREACHED
    rows = details(run, "access")["rows"]
    assert all(row["kl"] for row in rows if row["name"] != "steered")


def test_ablation_takes_out_what_lies_along_v_and_has_no_strength(run_of):
    run = run_of(
        tiny("llama"), drawn(), alpha=None, steering="ablation", audits="states,density"
    )
    assert run.facts["steering"] == details(run, "states")["steering"] == "ablation"
    assert run.facts["alpha"] == 1
    assert not run.facts["alpha_was_recommended"]
    lengths = [row["length"] for row in details(run, "states")["positions"]]
    # (u'h) u is as long as the part of h along v: another one at every position.
    assert max(lengths) > 1.5 * min(lengths)
    assert all(abs(length - 3.0) > 1e-3 for length in lengths)
    assert {row["stage"] for row in run.store.generations()}.isdisjoint({"dose"})
    assert write_report(run.store.folder).name == "reachability.html"


def test_above_the_vector_the_step_is_what_the_blocks_make_of_it(run_of):
    run = run_of(
        tiny("llama"), drawn(), read_layer=3, audits="states,inversion,density"
    )
    found = run.findings["states"]
    assert (details(run, "states")["layer"], details(run, "states")["read_layer"]) == (
        1,
        3,
    )
    assert all(control.holds for control in found.controls)
    assert any("what the blocks between make of it" in text for text in found.reasons)
    lengths = [row["length"] for row in details(run, "states")["positions"]]
    assert all(abs(length - 3.0) > 1e-3 for length in lengths)
    assert run.findings["inversion"].verdict is Verdict.UNREACHED


@pytest.mark.parametrize(
    ("read_layer", "error"), [(0, BadSpec), (4, LayerOutOfRange)], ids=["below", "none"]
)
def test_states_are_read_at_or_above_the_vector(read_layer, error, prompts, tmp_path):
    options = SMALL | {"prompts": prompts, "read_layer": read_layer}
    with pytest.raises(error):
        audit(tiny("llama"), drawn(), out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_somebody_elses_vector_is_searched_for_without_their_pairs(prompts, tmp_path):
    direction = drawn().direction
    theirs = SteeringVector(
        direction, Site(1), Provenance(method="mean_difference", model="another")
    )
    file = theirs.save(tmp_path / "theirs.safetensors")
    options = SMALL | {"vector": str(file), "other_model": True, "prompts": prompts}
    spec = spec_from(options | {"audits": "states,access"})
    run = audit(tiny("llama"), out=tmp_path / "run", spec=spec)
    assert list(run.findings) == ["plumbing", "states", "access"]
    assert "sign_flip" not in targets(run)
    assert details(run, "access")["rows"][0]["score"] is None


def pair_file(folder) -> str:
    rows = [
        {"positive": f"the {word} of a sunny day", "negative": f"the {word} of rain"}
        for word in planted.NEUTRAL[:10]
    ]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_each_layer_of_a_sweep_has_its_own_states(prompts, tmp_path):
    options = SMALL | {"prompts": prompts, "pairs": pair_file(tmp_path)}
    spec = spec_from(options | {"audits": "states"})
    specs = layer_specs(spec, (0, 2))
    runs = audit_layers(tiny("llama"), specs, out=tmp_path / "sweep")
    for layer, run in zip((0, 2), runs.values(), strict=True):
        assert details(run, "states")["read_layer"] == layer
        assert "sign_flip" in targets(run)
        assert len(details(run, "states")["targets"]) == 3 + NUM_RANDOM + 2 * NUM_OTHERS
    assert write_report(tmp_path / "sweep").is_file()
    # A layer above the one where states are read cannot be a part of it.
    reading = layer_specs(spec_from(options | {"read_layer": 1}), (0, 2))
    with pytest.raises(BadSpec, match="after block 2"):
        audit_layers(tiny("llama"), reading, out=tmp_path / "reading")
    assert not (tmp_path / "reading").exists()


@pytest.mark.parametrize("num", [16, 17])
def test_controls_are_steps_however_many_prompts_there_are(num, run_of, tmp_path):
    # With 13 reference prompts, one stands in the middle of them.
    few = prompt_file(tmp_path, num)
    assert num - SMALL["num_prompts"] in (12, 13)
    run = run_of(tiny("llama"), drawn(), prompts=few, audits="states")
    cell = run.store.arrays("reach-states-0000", dict)
    assert np.isfinite(cell["d1"]).all()
    column = details(run, "states")["targets"].index("other_pair[0]")
    lengths = cell["length"][:, column:]
    assert lengths.shape[1] == NUM_OTHERS
    np.testing.assert_allclose(lengths, cell["length"][:, [2]].repeat(10, 1), rtol=1e-6)


def test_too_few_prompts_are_refused_before_the_run(tmp_path):
    few = prompt_file(tmp_path, 15)
    options = SMALL | {"prompts": few}
    with pytest.raises(
        BadPrompts, match="needs 12 prompts of its own, and 11 are left"
    ):
        audit(tiny("llama"), drawn(), out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_failed_plumbing_check_overrules_reachability(run_of, tmp_path):
    class IgnoresMask(LlamaForCausalLM):
        """Attends to padding, so that texts depend on what they are batched with."""

        def forward(self, *args, attention_mask=None, position_ids=None, **options):
            return super().forward(*args, **options)

    lm = borrowed(reinitialised(IgnoresMask(config("llama"))).eval())
    # Of different lengths, so that some are padded.
    uneven = planted.prompt_file(tmp_path, 20)
    run = run_of(lm, drawn(), audits="states,inversion", prompts=uneven)
    assert run.findings["plumbing"].verdict is Verdict.FAIL
    for name in ("states", "inversion"):
        finding = run.findings[name]
        assert finding.verdict is Verdict.UNINFORMATIVE
        assert "plumbing check failed" in finding.reasons[0]
        assert finding.estimate is not None


def test_the_smallest_vocabulary_is_searched_whole(tmp_path):
    # 31 tokens: fewer than are drawn for swaps, or taken as the likeliest.
    options = SMALL | {"prompts": planted.prompt_file(tmp_path, 20)}
    options |= {"audits": "states,density"}
    lm, v = planted.planted(), planted.trait_vector()
    run = audit(lm, v, out=tmp_path / "run", **options)
    found = details(run, "states")
    assert found["num_vocabulary"] == found["num_kl"] == lm.d_vocab < D_VOCAB
    for row in found["positions"]:
        assert sum(row["histogram"]) == lm.d_vocab
        assert 0 <= row["kl_least"] <= row["kl_none"] + 1e-6
        assert math.isfinite(row["eta"])


def test_a_run_that_is_killed_ends_with_the_findings_of_one_left_alone(
    whole, prompts, tmp_path
):
    folder = tmp_path / "killed"
    program = f"""
import os, signal
import torch
from tests.models import tiny
from tests.runs.test_reachability import drawn
from steergauge.runs.execute import audit

class Told:
    def begin(self, label, total):
        if label == "reachability: natural states":
            os.kill(os.getpid(), signal.SIGKILL)

    def advance(self, num):
        pass

torch.set_num_threads({torch.get_num_threads()})
options = {SMALL | {"prompts": prompts}!r}
audit(tiny("llama"), drawn(), out={str(folder)!r}, progress=Told(), **options)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], check=False, cwd=root)
    assert done.returncode == -signal.SIGKILL
    kept = cells(folder)
    assert "reach-search-v.json" in kept
    (folder / "cells" / "reach-natural-states.safetensors.part").write_bytes(b"half")
    options = SMALL | {"prompts": prompts}
    resumed = audit(tiny("llama"), drawn(), out=folder, **options)
    assert {name: cells(folder)[name] for name in kept} == kept
    names = [one.store.folder / "findings.json" for one in (whole, resumed)]
    assert names[0].read_bytes() == names[1].read_bytes()
