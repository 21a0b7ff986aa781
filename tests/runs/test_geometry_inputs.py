"""What a run of the geometry is given: signs, names, other vectors, or nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import planted
from tests.models import D_MODEL, borrowed, network, tiny
from tests.runs.test_geometry import SMALL, direction, vector

from steergauge.audits.finding import Verdict
from steergauge.errors import BadPairs
from steergauge.extraction.methods import extract
from steergauge.geometry.rays import costs_along
from steergauge.intervention import Add
from steergauge.jacobian import Shift
from steergauge.prompts import Text, encode, read_pairs
from steergauge.runs.execute import audit
from steergauge.runs.stages import Stages
from steergauge.scoring import Continuation, sequence_kl


@pytest.fixture
def folder(tmp_path) -> Path:
    planted.prompt_file(tmp_path, 20)
    return tmp_path


def run_of(lm, v, folder, **changes):
    options = SMALL | {"prompts": str(folder / "prompts.txt")} | changes
    return audit(lm, v, out=folder / "run", **options)


def pair_file(folder: Path, num: int = 6) -> Path:
    lines = [
        json.dumps({"positive": f"{word} happy", "negative": f"{word} sad"})
        for word in planted.NEUTRAL[:num]
    ]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_with_a_negative_alpha_the_ray_of_v_points_where_v_points(folder):
    lm, v, alpha = tiny("llama"), vector(direction(length=8.0)), -1.0
    run = run_of(lm, v, folder, alpha=alpha, audits="nulls")
    own = [
        row
        for row in run.store.generations()
        if (row["stage"], row["arm"]) == ("test", "unsteered")
    ]
    texts = [
        Continuation(encode(lm, Text(row["prompt"]))[0], row["token_ids"][:2])
        for row in own
    ]
    there, back = (
        float(sequence_kl(lm, texts, None, {"": Add(v, a)})[""].mean())
        for a in (alpha, -alpha)
    )
    # Far beyond second order, where a cost is not even in the step.
    assert abs(there - back) > 0.02 * there
    seen = run.findings["nulls"].details["effect"][0]
    assert seen == pytest.approx(there, rel=1e-4)


def test_a_rival_of_any_name_is_a_candidate_of_its_own(folder):
    lm, v = tiny("llama"), vector(direction())
    names = ("v", "top", "random things")
    for name in names:
        other = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(5))
        vector(other).save(folder / f"{name}.safetensors")
    files = tuple(str(folder / f"{name}.safetensors") for name in names)
    alone = run_of(lm, v, folder, audits="nulls")
    run = audit(
        lm,
        v,
        out=folder / "other",
        **SMALL | {"prompts": str(folder / "prompts.txt"), "audits": "nulls"},
        against=files,
    )
    found, before = (one.findings["nulls"].details for one in (run, alone))
    added = {f"against[{name}]" for name in names}
    assert set(found["directions"]) == set(before["directions"]) | added
    for name in ("v", "top", "random"):
        assert found["directions"][name]["nats"] == before["directions"][name]["nats"]


def test_a_failed_plumbing_check_overrules_the_geometry(folder, monkeypatch):
    honest = Stages.plumbing

    def failing(self, *arguments):
        return replace(honest(self, *arguments), verdict=Verdict.FAIL)

    monkeypatch.setattr(Stages, "plumbing", failing)
    run = run_of(tiny("gpt2"), vector(direction()), folder, audits="nulls,spectrum")
    found = dict(run.findings)
    assert found.pop("plumbing").verdict is Verdict.FAIL
    assert {one.verdict for one in found.values()} == {Verdict.UNINFORMATIVE}
    assert all("plumbing check failed" in one.reasons[0] for one in found.values())


def test_pairs_that_made_the_vector_are_not_what_it_is_tested_on(folder):
    lm, path = tiny("llama"), pair_file(folder, 12)
    v = extract(lm, read_pairs(path), layer=1)
    with pytest.raises(BadPairs, match="none of them is left"):
        run_of(lm, v, folder, pairs=str(path), prompts="")
    # With prompts of their own there is nothing to hold out.
    run = run_of(lm, v, folder, pairs=str(path), audits="decomposition")
    assert run.findings["decomposition"].details["pairs"]["num"] == 12


def test_a_mean_difference_of_other_pairs_is_audited_as_somebody_elses(folder):
    lm, path = tiny("llama"), pair_file(folder, 8)
    others = pair_file(folder, 14)
    v = extract(lm, read_pairs(others)[8:], layer=1)
    path = pair_file(folder, 8)
    run = run_of(lm, v, folder, pairs=str(path), audits="decomposition,methods")
    assert run.findings["decomposition"].details["pairs"] is None
    names = run.findings["methods"].details["names"]
    assert names[0] == "v"
    assert "mean_difference" in names


def test_without_a_probe_the_most_different_vector_is_judged_all_the_same(folder):
    lm = tiny("llama")
    run = run_of(lm, vector(direction()), folder, audits="core,alternative")
    assert run.findings["manipulation"].verdict is Verdict.UNINFORMATIVE
    reasons = " ".join(run.findings["alternative"].reasons)
    assert "manipulation" not in reasons


def test_a_model_whose_output_sees_nothing_ends_uninformative(folder):
    net = network("llama")
    torch.nn.init.zeros_(net.lm_head.weight)
    run = run_of(borrowed(net), vector(direction()), folder)
    for name in ("spectrum", "saturation", "decomposition", "alternative"):
        assert run.findings[name].verdict is Verdict.UNINFORMATIVE
    numbers = run.findings["spectrum"].details["values"]
    assert np.allclose(numbers, 0)


def test_fewer_tokens_than_asked_for_are_counted_as_they_are(folder):
    v = vector(direction())
    run = run_of(tiny("llama"), v, folder, audits="spectrum", geometry_tokens=50)
    seen = run.findings["spectrum"].details["num_tokens"]
    assert seen <= SMALL["max_new_tokens"]


def test_costs_know_nothing_of_how_long_the_direction_is(folder):
    lm, u = tiny("llama"), direction()
    shift = Shift(vector(u).site)
    rows = [([5, 6, 7, 8], 3)]
    one, two = (
        costs_along(lm, rows, {"u": size * u}, [0.5], shift=shift)["u"].nats
        for size in (1.0, 40.0)
    )
    assert one == pytest.approx(two, rel=1e-4)
