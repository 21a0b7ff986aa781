"""A worker makes what the driver would make, or refuses; here it is this process."""

import copy
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests import planted

from steergauge import architectures, widening
from steergauge.engines import LocalEngine
from steergauge.errors import ModelError
from steergauge.generation import Decoding
from steergauge.runs import execute, plan, worker
from steergauge.runs.spec import spec_from
from steergauge.runs.worker import (
    ModelSource,
    Part,
    Share,
    Shared,
    SharedRun,
    Worker,
    made_arrays,
)

SMALL = {"num_prompts": 6, "num_dose_prompts": 3, "samples": 1, "max_new_tokens": 2}
PROBE = (
    "def score(texts):\n    return [{value} * text.count('good') for text in texts]\n"
)


@pytest.fixture
def lm():
    return planted.planted()


@pytest.fixture
def own(lm, tmp_path) -> Worker:
    """A worker with a model of its own, the same one."""
    made = Worker(0, str(tmp_path / "nowhere"))
    made._source, made._lm = ModelSource(), lm
    return made


@pytest.fixture
def wanted(lm, tmp_path):
    """The run as a driver with the model `lm` sends it."""

    def wanted(driver=lm, **changes) -> SharedRun:
        spec = spec_from(
            SMALL | {"prompts": planted.prompt_file(tmp_path, 12)} | changes
        )
        given = planted.trait_vector()
        inputs = plan.gather(driver, spec, given)
        shared = Shared(tmp_path / "seen", "secret")
        shared.path.write_text("secret")
        hashes = inputs.hashes(driver)
        return SharedRun(shared, tmp_path / "run", inputs.spec, given, hashes, "")

    return wanted


def in_half(lm):
    """The model as if it were loaded in half precision, of the same fingerprint."""
    model = copy.deepcopy(lm.model).to(torch.bfloat16)
    return replace(lm, model=model, blocks=architectures.blocks(model), _proved=set())


def counted_copies(monkeypatch) -> list:
    """Every model that is copied to be widened."""
    copies = []

    def copied(model):
        copies.append(model)
        return copy.deepcopy(model)

    monkeypatch.setattr(widening, "copy", SimpleNamespace(deepcopy=copied))
    return copies


HERE = Share(1)


def test_a_worker_in_another_precision_is_refused_by_name(own, lm, wanted):
    half = in_half(lm)
    with pytest.raises(ModelError, match=r"computes in float32, .* in bfloat16"):
        own._run(wanted(half), HERE)
    own._run(wanted(lm), HERE)
    own._lm, own._known = half, None
    with pytest.raises(ModelError, match=r"computes in bfloat16, .* in float32"):
        own._run(wanted(lm), HERE)
    own._run(wanted(half), HERE)


def test_a_whole_run_by_a_worker_in_another_precision_is_refused_too(own, lm, wanted):
    run = wanted()
    job = execute.partial(
        execute._run_apart,
        name=lm.name,
        fingerprint=lm.fingerprint,
        dtype="float32",
        out=run.folder,
        spec=replace(run.spec, trait="formality"),
        engine="",
    )
    own._lm = in_half(lm)
    answer = own.run(run.shared, "run", job, Share(torch.get_num_threads()))
    assert answer.kind == "ModelError"
    assert "bfloat16" in answer.found
    assert not run.folder.exists()


def test_another_value_of_the_spec_is_refused_by_name(own, wanted):
    run = wanted()
    with pytest.raises(ModelError, match=r"another position .*: '\w+', not 'nowhere'"):
        worker._refuse_another(
            run.spec.to_table() | {"position": "nowhere"}, run.spec.to_table()
        )


def test_what_a_run_reads_is_gathered_once_while_nothing_of_it_changes(
    own, lm, wanted, monkeypatch
):
    gathered, inside = [], plan.gather

    def counted(*given):
        gathered.append(given)
        return inside(*given)

    run = wanted()
    # The driver has another name for the same model.
    named = replace(run, spec=replace(run.spec, model="theirs"))
    monkeypatch.setattr(plan, "gather", counted)
    for _ in range(3):
        assert own._run(named, HERE).spec == named.spec
    assert len(gathered) == 1


def test_a_probe_that_was_edited_scores_as_the_new_one(own, wanted, tmp_path):
    probe, labelled = tmp_path / "probe.py", tmp_path / "labelled.jsonl"
    rows = [(f"good {k}", 1) for k in range(10)] + [(f"bad {k}", 0) for k in range(10)]
    labelled.write_text(
        "\n".join(f'{{"text": "{text}", "label": {label}}}' for text, label in rows)
    )
    files = {"probe": f"{probe}:score", "labelled": str(labelled)}
    found = []
    for value in ("0.25", "0.125"):
        probe.write_text(PROBE.format(value=value))
        stages = own._run(wanted(**files), HERE)
        found += stages.inputs.probe(["a good text"]).tolist()
    assert found == [0.25, 0.125]


def test_the_engine_is_the_one_that_is_asked_for_now(own, wanted):
    run, other = wanted(), LocalEngine(own._lm)
    own._engines["vllm"] = other
    assert own._run(replace(run, engine="vllm"), HERE).engine is other
    assert own._run(run, HERE).engine is not other
    assert own._run(run, Share(1, 0.25)).engine == LocalEngine(own._lm, 0.25)


def test_the_local_engine_takes_its_share_of_the_memory(lm, monkeypatch):
    from steergauge import generation

    shares, inside = [], generation.rows_that_fit

    def watched(*given, share, **options):
        shares.append(share)
        return inside(*given, share=share, **options)

    monkeypatch.setattr(generation, "rows_that_fit", watched)
    LocalEngine(lm, 0.25).generate(["word"], {"": None}, decoding=Decoding(1))
    assert shares == [0.25]


def test_a_whole_run_without_a_name_of_an_engine_is_of_the_workers_model(
    own, lm, wanted, monkeypatch
):
    """Also if the spec names another, for the driver was given the model itself."""
    used = []
    monkeypatch.setattr(execute, "audit", lambda *_, engine, **__: used.append(engine))
    run = wanted()
    job = execute.partial(
        execute._run_apart,
        name=lm.name,
        fingerprint=lm.fingerprint,
        dtype="float32",
        out=run.folder,
        spec=replace(run.spec, engine="vllm"),
        engine="",
    )
    own.run(run.shared, "run", job, Share(torch.get_num_threads(), 0.5))
    assert used == [LocalEngine(lm, 0.5)]


def test_a_model_in_half_precision_is_copied_once_for_all_matrices(
    own, lm, wanted, monkeypatch
):
    own._lm = in_half(lm)
    run, copies = wanted(in_half(lm)), counted_copies(monkeypatch)
    seen = []

    def make(stages):
        seen.append(stages.lm)
        return {"pid": torch.tensor([os.getpid()]).numpy()}

    def part(name: str, *, wide: bool) -> Part:
        put = worker.partial(made_arrays, name=name, make=make)
        return Part(name, put, 1, wide)

    share = Share(torch.get_num_threads())
    for k in range(3):
        own.make(run, part(f"wide-{k}", wide=True), share)
    assert len(copies) == 1
    assert len({id(one.model) for one in seen}) == 1
    assert seen[0].dtype == torch.float32
    # What needs no derivatives is made with the model as it is, and the room is free.
    own.make(run, part("narrow", wide=False), share)
    assert seen[-1].model is own._lm.model
    assert own._wide is None


def test_a_worker_begins_in_the_folder_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.chdir(Path.cwd())
    Worker(0, str(tmp_path))
    assert Path.cwd() == tmp_path.resolve()
