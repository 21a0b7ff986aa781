"""The prompt searches of a run: what each is made on, judged by, and may spend."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tests import planted
from tests.models import tiny
from tests.runs.test_reachability import SMALL, drawn, prompt_file

from steergauge.audits.access import FLOOR_FACTOR
from steergauge.audits.finding import Verdict
from steergauge.errors import BadPrompts
from steergauge.reachability.objective import JOINT, loss
from steergauge.runs import plan
from steergauge.runs.execute import audit
from steergauge.runs.goals import DRAWN_PER_HIDDEN, NUM_FIT
from steergauge.runs.progress import Silent
from steergauge.runs.prompting import Prompting
from steergauge.runs.reachability import Reach
from steergauge.runs.spec import spec_from
from steergauge.runs.stages import Stages
from steergauge.runs.store import Store

FLOOR = 1e-9
OPTIONS = SMALL | {"audits": "access", "num_prompts": 6, "samples": 2}
WRITTEN = ("many_shot", "token_search", "projected")


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("inputs")
    files = {
        "prompts": planted.prompt_file(folder, 24),
        "probe": planted.probe_file(folder),
    }
    return OPTIONS | files


@pytest.fixture(scope="module")
def run(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return audit(planted.planted(), planted.trait_vector(), out=folder, **options)


@pytest.fixture(scope="module")
def tried(run, options) -> Prompting:
    """What the run did, from what it kept."""
    lm, v = planted.planted(), planted.trait_vector()
    inputs = plan.gather(lm, spec_from(options), v)
    stages = Stages(lm, inputs, run.store, Silent())
    tested = [row for row in run.store.generations() if row["stage"] == "test"]
    return Prompting(Reach(stages, v, 1.0, []), tested, FLOOR)


@pytest.fixture(scope="module")
def details(run) -> dict:
    return run.findings["access"].details


def test_no_text_is_searched_on_and_judged_by_and_hidden(tried, run):
    references = tried.reach.stages.inputs.reference_prompts
    for goal in tried.goals.all:
        fit = {text for text, _ in goal.fit}
        examples = {text for text, _ in goal.examples}
        held = {text for text, _ in goal.held_out}
        assert len(fit) == NUM_FIT
        assert examples
        assert fit <= {*references}
        assert held == {*tried.reach.stages.inputs.test_prompts}
        assert not fit & examples
        assert not (fit | examples) & held
        used = fit | examples
        # A hidden prompt is a piece of a text that is none of these.
        whole = [text for text in references if goal.hidden.strip() in text]
        assert not goal.hidden or any(text not in used for text in whole)
    assert [goal.name for goal in tried.goals.all] == ["v", "hidden-00", "hidden-01"]
    assert len({goal.hidden for goal in tried.goals.all}) == 3


def effect(tried: Prompting, goal) -> float:
    """K(goal || unsteered) on the texts that a search is made on."""
    return float(loss(planted.planted(), tried.goals.aimed(goal, goal.fit), "").mean())


def test_hidden_prompts_are_those_that_do_about_as_much_as_v(tried):
    of_v, *hidden = (effect(tried, goal) for goal in tried.goals.all)
    pieces = {one["prompt"]: one["nats"] for one in tried.goals.measured}
    assert len(pieces) == DRAWN_PER_HIDDEN * OPTIONS["num_hidden"]
    # What a piece was measured to do is what its goal's texts, drawn later, do.
    measured = [pieces[goal.hidden] for goal in tried.goals.all[1:]]
    np.testing.assert_allclose(hidden, measured, rtol=1e-5)
    away = {piece: abs(np.log(nats / of_v)) for piece, nats in pieces.items()}
    nearest = sorted(away, key=away.get)[: OPTIONS["num_hidden"]]
    assert [goal.hidden for goal in tried.goals.all[1:]] == nearest
    # Not vacuous: pieces differ in what they do, and the first drawn are others.
    assert max(pieces.values()) > 2 * min(pieces.values())
    assert {*nearest} != {*list(pieces)[: OPTIONS["num_hidden"]]}


def test_pieces_are_of_one_token_and_of_all_that_a_search_may_write(tried):
    sizes = {len(one["prompt"].split()) for one in tried.goals.measured}
    assert sizes == {1, OPTIONS["search_tokens"]} == {1, 2}


def test_a_piece_that_does_nothing_is_not_hidden(tried):
    nats = sorted(one["nats"] for one in tried.goals.measured)
    loud = Prompting(tried.reach, tried.tested, nats[-2] / FLOOR_FACTOR)
    kept = [one["prompt"] for one in tried.goals.measured if one["nats"] == nats[-1]]
    assert loud.goals.hidden == kept
    assert Prompting(tried.reach, tried.tested, nats[-1]).goals.hidden == []


def test_a_search_with_nothing_to_try_for_a_goal_has_not_found_it(tried):
    """Examples that fit in front of v's texts may be too long in front of another's."""
    found = json.loads(json.dumps(tried.found))
    del found["hidden-01"]["searches"]["many_shot"]
    missing = Prompting(tried.reach, tried.tested, FLOOR)
    missing.__dict__["found"] = found
    powers = {power.method: power for power in missing.powers}
    assert np.isfinite(powers["many_shot"].relative[0])
    assert np.isinf(powers["many_shot"].relative[1])
    assert not powers["many_shot"].found[1]
    assert np.isfinite(powers["token_search"].relative).all()


def test_examples_leave_room_for_the_longest_text_that_they_are_judged_on(tmp_path):
    # Of 32 positions in all: examples of four words and more, or a text of 25.
    options = OPTIONS | {"prompts": planted.prompt_file(tmp_path, 24)}
    v, lm = planted.trait_vector(), planted.planted()
    inputs = plan.gather(lm, spec_from(options), v)
    long = replace(inputs, test_prompts=(*inputs.test_prompts[:5], "lake " * 25))
    fitted = []
    for given in (inputs, long):
        store = Store(tmp_path / str(len(fitted)))
        tested = [
            {"arm": "v", "sample": 0, "prompt": text, "token_ids": [1, 2]}
            for text in given.test_prompts
        ]
        stages = Stages(lm, given, store, Silent())
        tried = Prompting(Reach(stages, v, 1.0, []), tested, FLOOR)
        fitted.append("many_shot" in tried._search(tried.goals.of_v)["searches"])
    assert fitted == [True, False]


def test_the_unsteered_row_is_the_divergence_that_the_run_measured_itself(tried, run):
    cells = run.store.folder / "cells"
    kept = [run.store.cell(path.stem, list) for path in cells.glob("divergences-*")]
    nats = {
        (row["prompt_index"], row["sample"]): row["nats"]
        for rows in kept
        for row in rows
        if row["other"] == "unsteered"
    }
    expected = [nats[i, 0] for i in range(OPTIONS["num_prompts"])]
    own = next(row for row in tried.rows if row.name == "unsteered")
    assert min(expected) > 0
    # The same numbers by passes of another shape, in float32.
    np.testing.assert_allclose(own.kl, expected, rtol=1e-4)


def test_a_prompt_is_judged_from_its_text_on_texts_it_was_not_made_on(tried, details):
    (goal, *_) = tried.goals.all
    held = tried.goals.aimed(goal, goal.held_out)
    rows = {row["name"]: row for row in details["rows"]}
    for name in WRITTEN:
        prompt = rows[name]["prompt"]
        assert prompt.endswith(JOINT)
        again = loss(planted.planted(), held, prompt).mean()
        assert rows[name]["kl"]["value"] == pytest.approx(again, rel=1e-6)
    # What is one line of tokens is no list of examples.
    assert rows["many_shot"]["prompt"].count(JOINT) > 1
    assert rows["token_search"]["prompt"].count(JOINT) == 1


def test_the_unsteered_state_is_one_step_away_and_no_row_is_at_it(details):
    rows = {row["name"]: row for row in details["rows"]}
    assert rows["steered"]["eta"] is None
    assert rows["unsteered"]["eta"]["value"] == pytest.approx(1, abs=1e-9)
    for name in (*WRITTEN, "soft_prefix"):
        assert rows[name]["eta"]["low"] > 0.1


def test_no_search_spends_more_than_the_budget_and_each_goal_has_the_same(tried):
    for seen in tried.found.values():
        assert {*seen["searches"]} == {*WRITTEN, "soft_prefix"}
        for name, found in seen["searches"].items():
            # The soft prefix begins with what the token search has found, at its cost.
            budgets = 2 if name in ("projected", "soft_prefix") else 1
            most = budgets * OPTIONS["search_evaluations"]
            assert 0 < found["evaluations"] <= most
    assert tried.budget["prompts_tried"] == OPTIONS["search_evaluations"]
    assert tried.budget["prompt_tokens"] == OPTIONS["search_tokens"]


def test_the_power_of_every_search_is_counted_on_all_hidden_prompts(tried, details):
    of_v = np.mean(tried.found["v"]["unsteered"])
    powers = {power.method: power for power in tried.powers}
    assert {*powers} == {*WRITTEN, "soft_prefix"}
    for method, power in powers.items():
        assert len(power.relative) == len(power.effect) == OPTIONS["num_hidden"]
        for k, (left, effect) in enumerate(
            zip(power.relative, power.effect, strict=True)
        ):
            seen = tried.found[f"hidden-{k:02d}"]
            nats = np.mean(seen["searches"][method]["nats"])
            assert effect == np.mean(seen["unsteered"])
            # As near as a prompt for v would have to come, if v does less.
            assert left == pytest.approx(nats / min(effect, of_v))
        assert (power.found == (power.relative <= 0.05)).all()
    listed = {one["name"]: one for one in details["methods"]}
    assert {*listed} == {*powers}


def test_texts_behind_each_prompt_are_scored_as_the_steered_ones_are(run, details):
    rows = run.store.generations()
    for row in details["rows"]:
        arm = {"steered": "v"}.get(row["name"], row["name"])
        stage = "test" if arm in ("v", "unsteered") else f"access {arm}"
        texts = [r for r in rows if r["stage"] == stage and r["arm"] == arm]
        assert len(texts) == OPTIONS["num_prompts"] * OPTIONS["samples"]
        mean = np.mean([text["score"] for text in texts])
        assert row["score"]["value"] == pytest.approx(mean)
        assert row["perplexity"] > 1
    steered = next(row for row in details["rows"] if row["name"] == "steered")
    assert steered["lift"]["low"] > 0


def test_without_texts_to_spare_no_examples_are_shown(tmp_path):
    # 12 reference prompts: eight to search on, four to hide in.
    options = SMALL | {"audits": "access", "prompts": prompt_file(tmp_path, 16)}
    run = audit(tiny("llama"), drawn(), out=tmp_path / "run", **options)
    names = {row["name"] for row in run.findings["access"].details["rows"]}
    assert "many_shot" not in names
    assert {"token_search", "soft_prefix"} <= names
    assert run.findings["access"].verdict is not None


def test_prompts_that_nothing_can_be_hidden_in_are_refused_before_the_run(tmp_path):
    # Of five tokens each.
    options = SMALL | {"prompts": prompt_file(tmp_path), "num_hidden": 200}
    with pytest.raises(BadPrompts, match="search_tokens") as refused:
        audit(tiny("llama"), drawn(), out=tmp_path / "run", **options)
    assert "leave the audit access out" in refused.value.remedy
    assert not (tmp_path / "run").exists()


def test_what_the_output_cannot_see_is_no_goal_for_a_prompt(tmp_path):
    ones = drawn().with_direction(0.1 + 0 * drawn().direction, "all ones")
    options = SMALL | {"audits": "access", "prompts": prompt_file(tmp_path)}
    run = audit(tiny("gpt2"), ones, out=tmp_path / "run", **options)
    assert run.findings["access"].verdict is Verdict.UNINFORMATIVE
    assert "nothing for a prompt to do" in run.findings["access"].reasons[0]
