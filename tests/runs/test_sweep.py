"""Many layers at once are the same runs one by one, for what the lowest one costs."""

import json
from typing import Any

import numpy as np
import pytest
from tests import planted
from tests.models import tiny
from tests.runs.test_worker import counted_copies, in_half

from steergauge import engines
from steergauge.audits.finding import Finding
from steergauge.engines import engine
from steergauge.errors import BadSpec, LayerOutOfRange, StoreError
from steergauge.generation import generate
from steergauge.geometry import survey
from steergauge.jacobian import FORWARD_FROM
from steergauge.runs import sweep
from steergauge.runs.execute import Run, audit, audit_traits
from steergauge.runs.spec import Spec, layer_specs, spec_from
from steergauge.runs.store import Store
from steergauge.runs.sweep import audit_layers

LAYERS = (0, 2)
SIZES = {
    "num_prompts": 4,
    "num_dose_prompts": 2,
    "samples": 1,
    "max_new_tokens": 3,
    "geometry_prompts": 8,
    "geometry_tokens": 2,
    "alpha": 1.0,
    "audits": "saturation,decomposition,alternative",
}

SHARED = 1e-3
"""Relative. The matrices of several layers come from one pass of the lowest one, whose
float32 sums have another order: 1e-6 of a matrix, and a root of it in the directions
of its small eigenvalues, with which the most different vectors are made."""


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> Spec:
    folder = tmp_path_factory.mktemp("inputs")
    rows = [
        {"positive": f"the {word} of a sunny day", "negative": f"the {word} of rain"}
        for word in planted.NEUTRAL[:10]
    ]
    pairs = folder / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, rows)))
    prompts = planted.prompt_file(folder, 20)
    return spec_from(SIZES | {"pairs": str(pairs), "prompts": prompts})


@pytest.fixture(scope="module")
def specs(spec) -> dict[str, Spec]:
    return layer_specs(spec, LAYERS)


class Stopped(BaseException):
    """What a kill looks like from inside."""


class Told:
    """Keeps the labels and counts of stages; stops at a label that has some words."""

    def __init__(self, words: str = "") -> None:
        self.stages: list[list] = []
        self.words = words

    @property
    def labels(self) -> list[str]:
        return [label for label, _, _ in self.stages]

    def begin(self, label: str, total: int) -> None:
        if self.words and self.words in label:
            raise Stopped
        self.stages.append([label, total, 0])

    def advance(self, num: int) -> None:
        self.stages[-1][2] += num


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def swept(specs, told, tmp_path_factory) -> dict[str, Run]:
    out = tmp_path_factory.mktemp("swept")
    return audit_layers(tiny("llama"), specs, out=out, progress=told)


def plain(finding: Finding) -> dict[str, Any]:
    return json.loads(json.dumps(finding.to_json()))


def apart(first: Any, second: Any, path: str = "") -> list[str]:
    """Where two records differ, numbers by more than rounding may make of them."""
    if isinstance(first, dict) and isinstance(second, dict):
        assert first.keys() == second.keys()
        return [x for key in first for x in apart(first[key], second[key], key)]
    if isinstance(first, list) and isinstance(second, list):
        if first and all(isinstance(x, float) for x in [*first, *second]):
            size = np.abs(first).max()
            same = np.allclose(first, second, rtol=SHARED, atol=SHARED * size)
            return [] if same else [path]
        pairs = zip(first, second, strict=True)
        return [x for one, other in pairs for x in apart(one, other, path)]
    if isinstance(first, float) and isinstance(second, float):
        return [] if second == pytest.approx(first, rel=SHARED, abs=1e-9) else [path]
    return [] if first == second else [path]


NOT_NUMBERS = {"floor", "reasons", "null"}
"""The floor is itself the size of rounding, and sentences round numbers."""


def test_a_layer_of_a_sweep_is_that_layer_audited_alone(specs, swept, tmp_path):
    assert list(swept) == ["layer-00", "layer-02"]
    name = "layer-02"
    alone = audit(tiny("llama"), out=tmp_path / name, spec=specs[name])
    own = swept[name]
    verdicts = [
        {key: finding.verdict for key, finding in run.findings.items()}
        for run in (alone, own)
    ]
    assert verdicts[0] == verdicts[1]
    assert alone.store.generations()[:16] == own.store.generations()[:16]
    for key, finding in alone.findings.items():
        records = [plain(finding), plain(own.findings[key])]
        assert {*apart(*records)} <= NOT_NUMBERS, (key, *records)
    # Not vacuous: another layer has other numbers.
    here, there = (
        run.findings["decomposition"].details["rho"][0]
        for run in (alone, swept["layer-00"])
    )
    assert here != pytest.approx(there, rel=0.01)


def test_the_lowest_layer_alone_is_the_same_to_the_last_byte(specs, swept, tmp_path):
    # Of so few tokens both are made in reverse mode, from the same place.
    assert SIZES["geometry_tokens"] < FORWARD_FROM
    name = "layer-00"
    alone = audit(tiny("llama"), out=tmp_path / name, spec=specs[name])
    findings = [run.store.folder / "findings.json" for run in (alone, swept[name])]
    assert findings[0].read_bytes() == findings[1].read_bytes()


def test_each_layer_has_its_own_vector_and_one_set_of_texts(swept):
    for layer, run in zip(LAYERS, swept.values(), strict=True):
        assert run.facts["layer"] == layer
    texts = [
        [row["text"] for row in run.store.generations() if row["arm"] == "unsteered"]
        for run in swept.values()
    ]
    assert texts[0] == texts[1]
    norms = {run.facts["norm"] for run in swept.values()}
    assert len(norms) == len(LAYERS)


def test_a_sweep_that_is_stopped_goes_on_and_ends_with_the_same_bytes(
    specs, swept, tmp_path, monkeypatch
):
    made = []
    inside = survey.layers_surveyed

    def counted(*args, **options):
        made.append(len(args[1]))
        return inside(*args, **options)

    monkeypatch.setattr(survey, "layers_surveyed", counted)
    moments = ("Fisher matrices of", "layer-00 (1 of 2): test", "layer-02 (2 of 2")
    for words in moments:
        with pytest.raises(Stopped):
            audit_layers(tiny("llama"), specs, out=tmp_path, progress=Told(words))
    done = [Store(tmp_path / name).folder / "findings.json" for name in specs]
    assert [path.is_file() for path in done] == [True, False]
    runs = audit_layers(tiny("llama"), specs, out=tmp_path)
    # The eight texts went through the model once for all layers and all attempts.
    assert sum(made) == SIZES["geometry_prompts"]
    for name, run in runs.items():
        ours, theirs = (
            (one.store.folder / "findings.json").read_bytes()
            for one in (run, swept[name])
        )
        assert ours == theirs


def test_progress_says_which_layer_it_is_and_what_is_left(swept, told):
    assert len(swept) == len(LAYERS)
    assert f"Fisher matrices of {len(LAYERS)} layers" in told.labels
    first = [label for label in told.labels if label.startswith("layer-00 (1 of 2):")]
    last = [label for label in told.labels if label.startswith("layer-02 (2 of 2, ")]
    assert len(first) == len(last) > 5
    # Once a layer is done it is known how long the rest takes.
    assert all("about 1 min left):" in label for label in last)
    assert all(done == total for _, total, done in told.stages)


def test_a_sweep_without_geometry_is_so_many_runs(spec, tmp_path):
    plain = spec_from(spec.to_table() | {"audits": ["plumbing"]})
    told = Told()
    runs = audit_layers(
        tiny("llama"), layer_specs(plain, (1, 2)), out=tmp_path, progress=told
    )
    assert [list(run.findings) for run in runs.values()] == [["plumbing"]] * 2
    assert not [label for label in told.labels if "Fisher" in label]


@pytest.mark.parametrize("layers", [(), (1, 1)])
def test_a_sweep_needs_different_layers(spec, layers):
    with pytest.raises(BadSpec, match="layers"):
        layer_specs(spec, layers)


def test_a_vector_belongs_to_one_layer(tmp_path):
    file = planted.trait_vector().save(tmp_path / "v.safetensors")
    with pytest.raises(BadSpec, match="belongs to one"):
        layer_specs(spec_from({"vector": str(file)}), (0, 1))


def test_a_layer_out_of_range_is_refused_before_the_first_run(spec, tmp_path):
    out = tmp_path / "sweep"
    with pytest.raises(LayerOutOfRange):
        audit_layers(tiny("llama"), layer_specs(spec, (0, 7)), out=out)
    assert not out.exists()


def test_another_sweep_does_not_go_on_in_the_same_folder(spec, swept):
    out = next(iter(swept.values())).store.folder.parent
    other = layer_specs(spec_from(spec.to_table() | {"seed": 1}), LAYERS)
    with pytest.raises(StoreError, match="seed"):
        audit_layers(tiny("llama"), other, out=out)


class Served:
    """Another engine, which is opened and closed, and makes the local model's texts."""

    def __init__(self, lm, source, **options) -> None:
        self.lm, self.open, self.stages = lm, True, 0

    def generate(self, *given, **options):
        assert self.open
        self.stages += 1
        return generate(self.lm, *given, **options)

    def close(self) -> None:
        self.open = False


@pytest.fixture
def served(monkeypatch) -> list[Served]:
    """Every engine that was opened, while the local one is not to be had."""
    opened: list[Served] = []

    def open_one(*given, **options):
        opened.append(Served(*given, **options))
        return opened[-1]

    def refused(*_given, **_options):
        raise AssertionError("the local model makes texts")

    monkeypatch.setitem(engines.ENGINES, "vllm", open_one)
    monkeypatch.setattr(engine, "generate", refused)
    return opened


def test_a_sweep_opens_the_engine_of_its_spec_once_and_for_all_its_texts(
    spec, swept, served, tmp_path
):
    other = layer_specs(spec_from(spec.to_table() | {"engine": "vllm"}), LAYERS)
    runs = audit_layers(tiny("llama"), other, out=tmp_path)
    (one,) = served
    assert one.stages > len(LAYERS)
    assert not one.open
    for name, run in runs.items():
        assert run.store.generations() == swept[name].store.generations()
    # What is finished is read without an engine.
    audit_layers(tiny("llama"), other, out=tmp_path)
    assert len(served) == 1


def test_traits_open_the_engine_of_their_specs_once(spec, served, tmp_path):
    small = {"audits": ["manipulation"], "engine": "vllm", "samples": 1}
    own = spec_from(spec.to_table() | small)
    runs = audit_traits(tiny("llama"), {"one": own, "two": own}, out=tmp_path)
    assert len(runs) == 2
    assert len(served) == 1
    assert not served[0].open


def test_runs_of_one_call_have_one_engine(spec, served, tmp_path):
    other = spec_from(spec.to_table() | {"engine": "vllm"})
    for call in (audit_layers, audit_traits):
        with pytest.raises(BadSpec, match="different engines"):
            call(tiny("llama"), {"one": spec, "two": other}, out=tmp_path / "runs")
    assert not served
    assert not (tmp_path / "runs").exists()


def test_a_model_in_half_precision_is_copied_once_and_only_for_what_is_missing(
    spec, tmp_path, monkeypatch
):
    half, own = in_half(tiny("llama")), layer_specs(spec, (1,))["layer-01"]
    given = (half, own, tmp_path / "run", Told(), None, None)
    copies = counted_copies(monkeypatch)
    monkeypatch.setattr(survey, "TEXTS_A_PART", 3)
    first = sweep._opened(*given).unsteered
    assert len([*(tmp_path / "run" / "cells").glob("fisher-*")]) > 1
    assert len(copies) == 1
    again = sweep._opened(*given).unsteered
    assert len(copies) == 1
    assert np.array_equal(first.matrix, again.matrix)
