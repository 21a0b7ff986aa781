"""A sequential run ends when all is decided, and is otherwise the run that it was."""

import re
import sys
from pathlib import Path

import pytest
from tests import planted

from steergauge import engines
from steergauge.audits.comparison import EVERY_LOOK
from steergauge.audits.finding import Verdict
from steergauge.errors import BadSpec, EngineError
from steergauge.report import words, write_report
from steergauge.report.lifts import lifts
from steergauge.report.lifts import looks_of as looks_in
from steergauge.runs import judge, plan
from steergauge.runs import spec as specs
from steergauge.runs.execute import audit, audit_traits
from steergauge.runs.progress import Silent
from steergauge.runs.spec import CORE, read_spec, spec_from
from steergauge.runs.stopping import decided, looks_of

PLANNED = 60
SIZES = {
    "num_prompts": PLANNED,
    "num_dose_prompts": 2,
    "samples": 2,
    "margin": 0.35,
    "budget": 0.2,
    "max_new_tokens": planted.LENGTH,
    "num_perpendicular": 2,
    "num_random": 20,
    "prompts_per_cell": 10,
    "alpha": 1.0,
}
EARLY = ("plumbing", "manipulation")
BORDER = 0.2
"""The alpha at which v's lift is near the smallest that counts, 0.05."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return SIZES | {
        "prompts": planted.prompt_file(folder, 90),
        "probe": planted.probe_file(folder),
    }


def run_in(folder, inputs, **changes):
    lm, v = planted.planted(), planted.trait_vector()
    return audit(lm, v, out=folder, **(inputs | changes))


@pytest.fixture(scope="module")
def early(tmp_path_factory, inputs):
    """A clear case: v's lift is 0.26, and no null comes near it."""
    folder = tmp_path_factory.mktemp("early") / "run"
    return run_in(folder, inputs, sequential=True, audits=EARLY)


@pytest.fixture(scope="module")
def in_order(inputs, tmp_path_factory):
    """The same inputs, with a file of the prompts in the order of a sequential run."""
    path = tmp_path_factory.mktemp("order") / "prompts.txt"
    path.write_text("\n".join(_prompts_of(inputs, sequential=True)), encoding="utf-8")
    return inputs | {"prompts": str(path)}


def _prompts_of(inputs, **changes):
    read = plan.read(spec_from(inputs | changes), planted.trait_vector())
    return [*read.dose_prompts, *read.test_prompts]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, in_order):
    """The same prompts without looks."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return run_in(folder, in_order, audits=EARLY)


def test_the_prompts_of_a_sequential_run_are_in_an_order_of_the_seed(inputs):
    listed = _prompts_of(inputs)
    assert listed == planted.prompts(90)[: len(listed)]
    mixed = _prompts_of(inputs, sequential=True)
    assert mixed == _prompts_of(inputs, sequential=True)
    other = _prompts_of(inputs, sequential=True, seed=1)
    assert len({*map(tuple, (listed, mixed, other))}) == 3


def texts_of(run, stage="test"):
    return [row for row in run.store.generations() if row["stage"] == stage]


def _plan(run):
    """How a sequential run was planned, without what it told."""
    kept = dict(run.facts["sequential"])
    return {key: kept[key] for key in kept if key not in ("reason", "decisions")}


def verdicts_of(run):
    return {key: found.verdict for key, found in run.findings.items()}


def test_a_sequential_run_of_a_clear_case_ends_early_and_says_so(early):
    plan = {"planned": PLANNED, "every": 10, "first": 20, "used": 20}
    assert plan | {"looks": [20, 30, 40, 50, 60]} == _plan(early)
    assert early.facts["num_prompts"] == 20
    assert {row["prompt_index"] for row in texts_of(early)} == {*range(20)}
    check = early.findings["manipulation"]
    assert check.verdict is Verdict.PASS
    assert check.num_prompts == 20
    assert check.details["planned_prompts"] == PLANNED
    assert EVERY_LOOK in check.reasons
    # Once a run, not once a finding.
    assert "used 20 of 60 planned prompts" in early.facts["sequential"]["reason"]
    assert not any("planned prompts" in line for line in check.reasons)
    kept = spec_from(read_spec(early.store.folder / "run.toml"))
    assert (kept.sequential, kept.num_prompts) == (True, PLANNED)


def test_its_page_and_card_count_the_prompts_that_were_used(early):
    write_report(early.store.folder)
    page = (early.store.folder / "report.html").read_text(encoding="utf-8")
    page = re.sub(r"<(style|script)\b.*?</\1>", " ", page, flags=re.DOTALL)
    page = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    card = (early.store.folder / "card.md").read_text(encoding="utf-8")
    assert page.count("used 20 of 60 planned prompts") == 1
    assert card.count("used 20 of 60 planned prompts") == 1
    assert "these 20 prompts" in page
    assert "sequential 20 of 60 planned prompts" in page
    assert "looked every 10 from 20 to 60, until" in page
    assert "95 % at every look" in page
    (look,) = early.facts["sequential"]["decisions"]
    assert words.typeset(look["reason"]) in page
    assert re.search(r"prompts of the test 20\b", page)
    for text in (page, card):
        assert re.search(r"\b20 prompts", text)
        assert not re.search(r"\b60 (test )?prompts", text)


def test_the_lifts_on_its_page_are_those_of_its_findings(early, whole):
    found = early.findings["manipulation"]
    rows, facts = early.store.generations(), early.facts
    given = {"alpha": facts["alpha"], "seed": facts["seed"]}
    shown = lifts(rows, looks=looks_in(facts), **given)
    assert shown["v"].estimate == found.estimate
    for control in found.controls:
        assert shown[control.name].estimate == control.estimate
    # Not vacuous: those of a single look are others.
    assert lifts(rows, **given)["v"].estimate != found.estimate
    assert looks_in(whole.facts) is None


def test_each_look_is_told_while_the_run_goes_on(inputs, tmp_path):
    told = Watched()
    run_in(
        tmp_path, inputs, sequential=True, audits=EARLY, alpha=BORDER,
        num_prompts=25, progress=told,
    )  # fmt: skip
    assert [label for label in told.labels if label.startswith("look")] == [
        "look at 20 of 25 prompts: open manipulation",
        "look at 25 of 25 prompts: open manipulation",
    ]


@pytest.mark.parametrize(("planned", "noted"), [(50, True), (51, False)])
def test_a_plan_that_no_equivalence_can_end_is_said(inputs, planned, noted):
    def said(**changes):
        wanted = spec_from(inputs | {"num_prompts": planned} | changes)
        read = plan.read(wanted, planted.trait_vector())
        return any("sequential" in line for line in judge._not_run(read))

    assert said(sequential=True) == noted
    assert not said(sequential=True, audits=EARLY)
    assert not said()


def test_its_texts_and_decision_are_those_of_the_same_prompts_in_one_go(early, whole):
    used = early.facts["num_prompts"]
    rows = [row for row in texts_of(whole) if row["prompt_index"] < used]
    assert len(texts_of(whole)) == len(rows) * PLANNED // used
    assert texts_of(early) == rows
    spec = spec_from(read_spec(early.store.folder / "run.toml"))
    seen = decided(
        spec,
        [arm["name"] for arm in early.facts["arms"]],
        rows,
        [],
        alpha=early.facts["alpha"],
        plumbing=early.findings["plumbing"],
        looks=looks_of(spec, PLANNED),
    )
    assert seen.stop
    found = verdicts_of(early)
    assert seen.verdicts == {"manipulation": found["manipulation"]}
    # More prompts, and intervals of a single look, say the same of so clear a case.
    assert found == verdicts_of(whole)


def test_a_run_that_is_not_sequential_says_nothing_of_looks(whole):
    assert "sequential" not in whole.facts
    assert whole.facts["num_prompts"] == PLANNED
    for found in whole.findings.values():
        assert not {"looks", "planned_prompts"} & {*found.details}
        assert not any("sequential" in line for line in found.reasons)


def test_all_of_t1_t3_and_t4_end_a_run_at_the_fewest_prompts_of_an_equivalence(
    inputs, tmp_path
):
    sizes = {"samples": 4, "num_prompts": 60, "prompts_per_cell": 25}
    run = run_in(tmp_path / "run", inputs, sequential=True, **sizes)
    plan = {"planned": 60, "every": 25, "first": 20, "used": 50}
    assert plan | {"looks": [25, 50, 60]} == _plan(run)
    first, last = run.facts["sequential"]["decisions"]
    assert (first["num_prompts"], first["stop"]) == (25, False)
    assert {"equivalence", "divergence"} <= {*first["open"]}
    assert (last["num_prompts"], last["stop"], last["open"]) == (50, True, [])
    assert last["verdicts"] == {
        key: str(found.verdict)
        for key, found in run.findings.items()
        if key != "plumbing"
    }
    assert not run.facts["not_run"] or "sequential" not in run.facts["not_run"][-1]
    assert verdicts_of(run) == {
        "plumbing": Verdict.PASS,
        "manipulation": Verdict.PASS,
        "equivalence": Verdict.EQUIVALENT,
        "equivalence[v_perp alone]": Verdict.DIFFERENT,
        "divergence": Verdict.EQUIVALENT,
        "divergence[v_perp alone]": Verdict.DIFFERENT,
    }
    for found in run.findings.values():
        assert (EVERY_LOOK in found.reasons) == (found.audit != "plumbing")


class Died(BaseException):
    """What a kill looks like from inside: nobody catches it."""


KILLED = {
    "sequential": True, "num_prompts": 65, "num_random": 2,
    "audits": ("plumbing", "divergence"),
}  # fmt: skip
"""Looked at after 20, 30, 40 and 50 of 65 prompts, and then ended."""

MOMENTS = (
    "test-0000", "test-0001", "scores-test-0000", "divergences-0001", "test-0002",
    "scores-test-0002", "divergences-0002", "test-0004", "divergences-0004",
    "likelihoods-0003", "generations", "findings",
)  # fmt: skip
"""Files before which it is killed."""


def test_a_sequential_run_that_is_killed_and_resumed_is_the_same_bytes(
    inputs, tmp_path, monkeypatch
):
    alone = run_in(tmp_path / "alone", inputs, **KILLED)
    replace, folder = Path.replace, tmp_path / "run"
    for moment in MOMENTS:

        def dying(part, target, moment=moment):
            if Path(target).stem == moment:
                raise Died
            replace(part, target)

        monkeypatch.setattr(Path, "replace", dying)
        with pytest.raises(Died):
            run_in(folder, inputs, **KILLED)
    monkeypatch.undo()
    again = run_in(folder, inputs, **KILLED)
    for name in ("findings.json", "run.toml", "generations.parquet"):
        assert (folder / name).read_bytes() == (_of(alone) / name).read_bytes(), name
    names = [
        {p.name for p in (one / "cells").iterdir() if p.suffix != ".part"}
        for one in (folder, _of(alone))
    ]
    assert names[0] == names[1]
    # Not vacuous: it ended before its planned end, at the last look but one.
    assert again.facts["sequential"]["used"] == 50


def _of(run) -> Path:
    return run.store.folder


def test_what_is_not_decided_runs_to_its_planned_end_also_off_a_whole_cell(
    inputs, in_order, tmp_path
):
    changes = {"audits": EARLY, "alpha": BORDER, "num_prompts": 25}
    run = run_in(tmp_path / "looked", inputs, sequential=True, **changes)
    plan = {"planned": 25, "every": 10, "first": 20, "used": 25}
    assert plan | {"looks": [20, 25]} == _plan(run)
    trail = run.facts["sequential"]["decisions"]
    assert [(seen["num_prompts"], seen["stop"]) for seen in trail] == [
        (20, False),
        (25, False),
    ]
    assert trail[-1]["open"] == ["manipulation"]
    assert run.findings["manipulation"].num_prompts == 25
    once = run_in(tmp_path / "once", in_order, **changes)
    assert run.store.generations() == once.store.generations()
    # The price of looking: the same number, and a wider interval.
    ours, theirs = (one.findings["manipulation"].estimate for one in (run, once))
    assert ours.value == theirs.value
    assert ours.low < theirs.low < theirs.high < ours.high


def test_a_step_that_does_nothing_fails_at_the_first_look(inputs, tmp_path):
    run = run_in(tmp_path, inputs, sequential=True, audits=EARLY, alpha=1e-3)
    assert run.findings["manipulation"].verdict is Verdict.FAIL
    assert run.findings["manipulation"].estimate.high < 0.05
    assert run.facts["num_prompts"] == 20


class Watched(Silent):
    """Counts the stages that were begun."""

    def __init__(self):
        self.labels = []

    @property
    def begun(self):
        return len(self.labels)

    def begin(self, label, total):
        self.labels.append(label)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"audits": (*CORE, "reliability")}, "with reliability"),
        ({"audits": (*CORE, "spectrum", "nulls")}, "with spectrum, nulls"),
        ({"audits": ("plumbing",)}, "T0 alone"),
        ({"num_prompts": 20}, "20 prompts in cells of 10"),
        ({"num_prompts": 20}, "at least 21 prompts"),
        ({"num_prompts": 24, "prompts_per_cell": 25}, "at least 26 prompts"),
        ({"audits": (*CORE, "reliability")}, "--audits core"),
        ({"prompts_per_cell": PLANNED}, "60 prompts in cells of 60"),
    ],
)
def test_a_run_that_cannot_be_sequential_is_refused_before_it_begins(
    inputs, tmp_path, changes, named
):
    changes = inputs | changes | {"sequential": True}
    progress, lm, v = Watched(), planted.planted(), planted.trait_vector()
    with pytest.raises(BadSpec, match=named):
        audit(lm, v, out=tmp_path / "run", progress=progress, **changes)
    v.save(tmp_path / "v.safetensors")
    bad = spec_from(changes | {"vector": str(tmp_path / "v.safetensors")})
    good = spec_from(inputs | {"vector": str(tmp_path / "v.safetensors")})
    out = tmp_path / "traits"
    with pytest.raises(BadSpec, match=named):
        audit_traits(lm, {"good": good, "bad": bad}, out=out, progress=progress)
    assert progress.begun == 0
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors"]


SMALL = {"num_prompts": 6, "num_random": 3, "prompts_per_cell": 4}


def test_arms_in_cells_of_their_own_give_the_same_rows_and_findings(inputs, tmp_path):
    one = run_in(tmp_path / "one", inputs, **SMALL)
    cut = run_in(tmp_path / "cut", inputs, **SMALL, arms_per_cell=4)
    assert cut.store.generations() == one.store.generations()
    name = "findings.json"
    assert (_of(cut) / name).read_bytes() == (_of(one) / name).read_bytes()
    cells = [len([*(_of(run) / "cells").glob("test-*")]) for run in (one, cut)]
    num_arms = len(one.facts["arms"])
    assert cells == [2, 2 * -(-num_arms // 4)]


def test_the_engines_of_a_spec_are_those_that_can_be_opened():
    assert tuple(engines.ENGINES) == specs.ENGINES


@pytest.mark.parametrize("how", ["audit", "spec", "other workers", "traits"])
def test_an_engine_that_is_not_installed_is_never_replaced_by_the_local_one(
    inputs, tmp_path, monkeypatch, how
):
    monkeypatch.setitem(sys.modules, "vllm", None)  # As if it were not there.
    lm, v, out = planted.planted(), planted.trait_vector(), tmp_path / "runs"
    v.save(tmp_path / "v.safetensors")
    wanted = inputs | SMALL | {"engine": "vllm"}
    whole = spec_from(wanted | {"vector": str(tmp_path / "v.safetensors")})
    calls = {
        "audit": lambda: audit(lm, v, out=out / "one", **wanted),
        "spec": lambda: audit(lm, out=out / "one", spec=whole),
        "other workers": lambda: audit(
            lm, out=out / "one", spec=whole, workers=Nobody()
        ),
        "traits": lambda: audit_traits(lm, {"one": whole}, out=out),
    }
    with pytest.raises(EngineError, match="vLLM cannot be imported"):
        calls[how]()
    assert not [*(out / "one" / "cells").glob("*")]


class Nobody:
    """Workers who leave all cells to whoever asked them."""

    def make(self, run, todo):
        """Nothing."""

    def arrays(self, run, todo):
        """Nothing."""
