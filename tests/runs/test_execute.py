"""A run: the same call gives the same bytes, and a stopped one goes on where it was."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from tests import planted
from tests.models import borrowed, config, reinitialised
from transformers import LlamaForCausalLM

from steergauge.audits.finding import Verdict
from steergauge.errors import BadSpec, StoreError
from steergauge.prompts import Text, encode
from steergauge.runs import store as stores
from steergauge.runs.execute import audit
from steergauge.runs.spec import CORE, PERPLEXITY_LIMIT, read_spec, spec_from
from steergauge.vector import SteeringVector

SMALL = {
    "num_prompts": 5,
    "num_dose_prompts": 2,
    "samples": 2,
    "max_new_tokens": 2,
    "num_perpendicular": 2,
    "num_random": 3,
    "prompts_per_cell": 2,
}
NUM_ARMS = 4 + 2 * 2 + 3
NUM_DOSES = 9


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return {
        "prompts": planted.prompt_file(folder, 12),
        "probe": planted.probe_file(folder),
    }


def run_in(folder, inputs, vector=None, **changes):
    options = SMALL | inputs | changes
    return audit(
        planted.planted(), vector or planted.trait_vector(), out=folder, **options
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, inputs):
    return run_in(tmp_path_factory.mktemp("first") / "run", inputs)


def state(folder: Path) -> dict[str, int]:
    """Every file with the time of its last change."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


def findings_of(folder: Path) -> bytes:
    return (folder / "findings.json").read_bytes()


def test_a_runs_folder_holds_what_the_design_says(finished):
    names = {path.name for path in finished.store.folder.iterdir()}
    assert names == {
        "run.toml",
        "vectors",
        "cells",
        "generations.parquet",
        "findings.json",
    }
    assert not [name for name in state(finished.store.folder) if ".part" in name]
    assert spec_from(read_spec(finished.store.folder / "run.toml")).layer == 1


def test_every_text_of_every_arm_prompt_and_sample_is_kept(finished):
    rows = finished.store.generations()
    cells = {(r["stage"], r["arm"], r["prompt_index"], r["sample"]) for r in rows}
    assert len(cells) == len(rows) == NUM_DOSES * 2 * 2 + NUM_ARMS * 5 * 2
    by_stage = {
        stage: {r["prompt"] for r in rows if r["stage"] == stage}
        for stage in ("dose", "test")
    }
    assert len(by_stage["dose"]) == 2
    assert len(by_stage["test"]) == 5
    assert not by_stage["dose"] & by_stage["test"]


def test_a_kept_text_is_its_tokens_decoded_and_its_score_the_probes(finished):
    lm = planted.planted()
    for row in finished.store.generations():
        assert row["text"] == lm.tokenizer.decode(
            row["token_ids"], skip_special_tokens=True
        )
        assert row["num_tokens"] == len(row["token_ids"]) <= SMALL["max_new_tokens"]
        words = row["text"].split()
        count = sum((w in planted.HIGH) - (w in planted.LOW) for w in words)
        assert row["score"] == pytest.approx(1 / (1 + math.exp(-count)))
        assert (row["arm"] == "unsteered") == (row["alpha"] == 0)


def test_findings_are_those_that_were_asked_for_in_their_order(finished, inputs):
    audits = [finding.audit for finding in finished.findings.values()]
    assert audits == sorted(audits, key=CORE.index)
    assert set(audits) == set(CORE)
    folder = finished.store.folder.parent / "two"
    some = run_in(folder, inputs, audits=("divergence", "plumbing"))
    assert list(some.findings) == ["plumbing", "divergence", "divergence[v_perp alone]"]
    for key, finding in some.findings.items():
        if key != "plumbing":
            assert finding == finished.findings[key]


def test_a_run_is_the_same_bytes_in_another_folder(finished, inputs, tmp_path):
    again = run_in(tmp_path / "elsewhere", inputs)
    assert findings_of(again.store.folder) == findings_of(finished.store.folder)
    assert again.store.generations() == finished.store.generations()
    # Not vacuous: another seed gives other bytes.
    other = run_in(tmp_path / "other", inputs, seed=1)
    assert findings_of(other.store.folder) != findings_of(finished.store.folder)


def test_a_finished_run_is_returned_as_it_is(finished, inputs):
    before = state(finished.store.folder)
    again = run_in(finished.store.folder, inputs)
    assert again.findings == finished.findings
    assert again.facts == finished.facts
    assert state(finished.store.folder) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"alpha": 1.5}, "alpha"),
        ({"samples": 3}, "samples"),
        ({"scope": "all"}, "scope"),
    ],
)
def test_another_spec_does_not_resume_the_run(finished, inputs, changes, named):
    with pytest.raises(StoreError, match=f"{named} differ"):
        run_in(finished.store.folder, inputs, **changes)


def test_other_contents_of_the_same_files_do_not_resume_the_run(tmp_path):
    mine = {
        "prompts": planted.prompt_file(tmp_path, 12),
        "probe": planted.probe_file(tmp_path),
    }
    run_in(tmp_path / "run", mine)
    words = Path(mine["probe"])
    words.write_text(words.read_text().replace("merry", "cheery"), encoding="utf-8")
    with pytest.raises(StoreError, match="probe"):
        run_in(tmp_path / "run", mine)
    planted.probe_file(tmp_path)
    run_in(tmp_path / "run", mine)
    prompts = Path(mine["prompts"])
    prompts.write_text(prompts.read_text().replace("lake", "moon", 1), encoding="utf-8")
    with pytest.raises(StoreError, match="prompts"):
        run_in(tmp_path / "run", mine)
    planted.prompt_file(tmp_path, 12)
    with pytest.raises(StoreError, match="vector"):
        run_in(tmp_path / "run", mine, planted.unrelated_vector())


class Died(BaseException):
    """What a kill looks like from inside: nobody catches it."""


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_a_run_that_dies_at_every_single_write_ends_with_the_same_bytes(
    inputs, tmp_path, monkeypatch, after
):
    """Dies after so many new files, or before the next one gets its name."""
    replace, folder = Path.replace, tmp_path / "run"
    tiny = {"num_prompts": 3, "num_random": 1, "num_perpendicular": 1}
    whole = run_in(tmp_path / "whole", inputs, **tiny)
    written, allowed, deaths = [], 1, 0

    def dying(part, target):
        if not after and len(written) == allowed:
            raise Died
        written.append(target)
        replace(part, target)
        if after and len(written) == allowed:
            raise Died

    monkeypatch.setattr(Path, "replace", dying)
    # Whoever died is not this process, as far as the next one can see.
    monkeypatch.setattr(stores, "_is_running", lambda pid: pid != os.getpid())
    while True:
        before = state(folder)
        written.clear()
        try:
            run_in(folder, inputs, **tiny)
            break
        except Died:
            deaths += 1
        now = state(folder)
        kept = {n for n in before if n.startswith("cells/") and ".part" not in n}
        assert all(now[name] == before[name] for name in kept)
        # Work that is made together, as the controls are, needs several writes.
        allowed = 1 if len(now) > len(before) else allowed + 1
        assert allowed < 10
    assert deaths > 15
    assert findings_of(folder) == findings_of(whole.store.folder)
    assert not [name for name in state(folder) if name.endswith(".part")]


def _die(*_args):
    raise Died


def test_a_resumed_run_sees_the_vector_that_was_kept_not_the_one_in_memory(
    inputs, tmp_path, monkeypatch
):
    # In float64 in memory, in float32 on the disk.
    precise = planted.trait_vector().direction.double() * (1 + 1e-9)
    v = SteeringVector(precise, planted.trait_vector().site)
    whole = run_in(tmp_path / "whole", inputs, v)
    monkeypatch.setattr("steergauge.runs.execute.arms.dose_arms", _die)
    with pytest.raises(Died):
        run_in(tmp_path / "stopped", inputs, v)
    monkeypatch.undo()
    resumed = run_in(tmp_path / "stopped", inputs, v)
    assert findings_of(resumed.store.folder) == findings_of(whole.store.folder)


class Counter:
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}

    def begin(self, label: str, total: int) -> None:
        self.last = self.stages[label] = [total, 0]

    def advance(self, num: int) -> None:
        self.last[1] += num


def test_every_stage_ends_at_its_total_also_when_it_was_done_before(inputs, tmp_path):
    first = Counter()
    run_in(tmp_path / "run", inputs, progress=first)
    (tmp_path / "run" / "findings.json").unlink()
    (tmp_path / "run" / "cells" / "test-0001.parquet").unlink()
    second = Counter()
    run_in(tmp_path / "run", inputs, progress=second)
    assert set(first.stages) == set(second.stages)
    for stages in (first.stages, second.stages):
        assert {label: total for label, (total, _) in stages.items()} == {
            label: done for label, (_, done) in stages.items()
        }


def test_the_recommended_strength_is_coherent_and_is_the_one_tested(finished):
    facts, check = finished.facts, finished.findings["manipulation"].details
    assert facts["alpha_was_recommended"]
    assert facts["alpha"] == check["recommended_alpha"]
    worst: dict[float, float] = {}
    for dose in check["dose"]:
        size = abs(dose["alpha"])
        worst[size] = max(worst.get(size, 0), dose["perplexity_high"])
    assert len(check["dose"]) == 8
    # The largest strength up to which every text is coherent, if there is one.
    coherent = [size for size in worst if worst[size] <= PERPLEXITY_LIMIT]
    assert check["coherent"] == bool(coherent)
    if not coherent:  # of so few prompts the interval is wide
        assert facts["alpha"] == min(worst)
        return
    assert facts["alpha"] in coherent
    assert all(
        worst[size] <= PERPLEXITY_LIMIT for size in worst if size <= facts["alpha"]
    )
    larger = [size for size in worst if size > facts["alpha"]]
    assert not larger or worst[min(larger)] > PERPLEXITY_LIMIT
    alphas = {
        row["arm"]: row["alpha"]
        for row in finished.store.generations()
        if row["stage"] == "test"
    }
    assert alphas.pop("unsteered") == 0
    assert alphas.pop("minus_v") == -facts["alpha"]
    assert set(alphas.values()) == {facts["alpha"]}


def test_coherence_is_judged_on_the_texts_of_the_test(finished):
    check = finished.findings["manipulation"].details
    assert set(check["perplexity"]) == {"unsteered", "v", "minus_v"}
    ratios = [
        check["perplexity"][arm] / check["perplexity"]["unsteered"]
        for arm in ("v", "minus_v")
    ]
    assert check["coherent_in_test"] == (max(ratios) <= PERPLEXITY_LIMIT)


def test_a_negative_alpha_promises_the_other_pole(inputs, tmp_path):
    sizes = {"num_prompts": 9, "num_dose_prompts": 1, "samples": 8, "num_random": 20}
    plus = run_in(tmp_path / "plus", inputs, alpha=1.0, **sizes)
    minus = run_in(tmp_path / "minus", inputs, alpha=-1.0, **sizes)
    for run, sign in ((plus, 1), (minus, -1)):
        assert run.findings["manipulation"].verdict is Verdict.PASS
        assert run.findings["manipulation"].estimate.value > 0.1
        rows = [r for r in run.store.generations() if r["stage"] == "test"]
        means = {
            arm: sum(r["score"] for r in rows if r["arm"] == arm) / 72
            for arm in ("unsteered", "v")
        }
        assert (means["v"] - means["unsteered"]) * sign > 0.1


def test_greedy_texts_have_no_distribution_to_audit(inputs, tmp_path):
    with pytest.raises(BadSpec, match="temperature"):
        run_in(tmp_path / "run", inputs, temperature=0.0)
    assert not (tmp_path / "run").exists()


def test_a_whole_spec_is_given_alone(inputs, tmp_path):
    spec = spec_from(SMALL | inputs)
    lm, v = planted.planted(), planted.trait_vector()
    with pytest.raises(BadSpec, match="seed"):
        audit(lm, v, out=tmp_path / "run", spec=spec, seed=1)
    assert audit(lm, v, out=tmp_path / "run", spec=spec).facts["seed"] == 0


class IgnoresMask(LlamaForCausalLM):
    """Attends to padding, so that texts depend on what they are batched with."""

    def forward(self, *args, attention_mask=None, position_ids=None, **options):
        return super().forward(*args, **options)


def test_failed_plumbing_overrules_every_other_finding(tmp_path):
    lm = borrowed(reinitialised(IgnoresMask(config("llama"))).eval())
    prompts = ["so", "lost in the old chair", "then", "a cat then a", "moon", "a lake"]
    (tmp_path / "p.txt").write_text("\n".join(prompts))
    texts = [json.dumps(f"so {i}") for i in range(10)]
    others = [json.dumps(str(i)) for i in range(10)]
    (tmp_path / "words.toml").write_text(
        f'high = ["so"]\nlow = ["zz"]\n[validation]\nhigh = [{",".join(texts)}]\n'
        f"low = [{','.join(others)}]\n"
    )
    vector = SteeringVector(torch.ones(lm.d_model), planted.trait_vector().site)
    mine = {"prompts": str(tmp_path / "p.txt"), "probe": str(tmp_path / "words.toml")}
    run = audit(lm, vector, out=tmp_path / "run", **SMALL | mine)
    assert run.findings["plumbing"].verdict is Verdict.FAIL
    others = [f for key, f in run.findings.items() if key != "plumbing"]
    assert len(others) == 5
    for finding in others:
        assert finding.verdict is Verdict.UNINFORMATIVE
        assert "plumbing check failed" in finding.reasons[0]
        assert finding.estimate is not None


def test_without_a_probe_what_needs_none_is_run_and_the_rest_says_so(inputs, tmp_path):
    run = run_in(tmp_path, inputs | {"probe": ""})
    for key, finding in run.findings.items():
        needs_a_probe = finding.audit in ("manipulation", "equivalence")
        assert (finding.verdict is Verdict.UNINFORMATIVE) == needs_a_probe, key
        assert (finding.estimate is None) == (needs_a_probe or key == "plumbing")
    assert any("probe" in line for line in run.facts["not_run"])
    assert {row["score"] for row in run.store.generations()} == {None}
    assert len(run.findings["manipulation"].details["dose"]) == 8


def test_the_facts_say_what_was_run(finished, inputs):
    facts, lm = finished.facts, planted.planted()
    v = planted.trait_vector()
    assert facts["fingerprint"] == lm.fingerprint
    assert (facts["layer"], facts["num_layers"]) == (1, planted.NUM_LAYERS)
    assert facts["norm"] == pytest.approx(v.norm)
    arms = {arm["name"]: arm for arm in facts["arms"]}
    assert len(arms) == NUM_ARMS
    assert arms["v"]["cosine"] == pytest.approx(1)
    assert arms["v_plus_perp[0]"]["cosine"] == pytest.approx(math.sqrt(0.5))
    assert abs(arms["perp[1]"]["cosine"]) < 1e-6
    prompt = Path(inputs["prompts"]).read_text().splitlines()[0]
    ids, _ = encode(lm, Text(prompt))
    h = lm.prefix(torch.tensor([ids]), torch.ones(1, len(ids), dtype=bool), layer=1)
    assert facts["median_stream_norm"] == pytest.approx(float(h[0, -1].norm()), rel=0.5)
    assert facts["step"] == pytest.approx(
        abs(facts["alpha"]) * facts["norm"] / facts["median_stream_norm"]
    )
    assert any("contrast pairs" in line for line in facts["not_run"])
