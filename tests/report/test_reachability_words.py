"""A first reader of a reachability run is told what was done, and nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.report import reachabilities as made
from tests.report.geometries import FACTS
from tests.report.geometries import finding as plain_finding
from tests.report.stores import STRONG, write_store
from tests.report.trees import plain_text, table, tree

from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.report import steering, words
from steergauge.report.method import NO_STRENGTH
from steergauge.report.page import write_report
from steergauge.report.reachability import render
from steergauge.report.reachability_headline import headline, two_numbers

ADDED = FACTS | {"scope": "generating", "alpha_was_recommended": True}
PLUMBING = plain_finding("plumbing", "T0", Verdict.PASS, {"checks": [["a", True, ""]],
                         "floor_kl": 1e-8, "floor_stream": 1e-6})  # fmt: skip
ARRIVAL = Control("arrival", "a steered state is T(h)", None, "", True)
ALPHA = words.typeset("alpha")


def states(**other: Any) -> Finding:
    found = made.states()
    details = {**found.details, "layer": 3, "read_layer": 3, **other}
    return replace(found, details=details, controls=(ARRIVAL, *found.controls))


def written(folder: Path, found: dict[str, Finding], **facts: Any) -> dict[str, str]:
    """Page, card and report of a run with these findings."""
    store = write_store(folder, replace(STRONG, num_prompts=4, num_samples=1))
    known = store.facts() | facts
    known["arms"] = [arm for arm in known["arms"] if arm["name"] in ("unsteered", "v")]
    store.write_findings({"plumbing": PLUMBING, **found}, known)
    write_report(folder)
    names = ("report.html", "reachability.html", "card.md")
    pages = {name: (folder / name).read_text("utf-8") for name in names}
    return {
        name: plain_text(tree(page)) if name.endswith("html") else page
        for name, page in pages.items()
    } | {"html": pages["report.html"]}


def test_a_run_of_ablation_is_nowhere_called_addition(tmp_path) -> None:
    found = {"states": states(steering="ablation", read_layer=4)}
    pages = written(tmp_path / "a", found, steering="ablation", alpha=1.0)
    strengths = (
        f"{ALPHA} = 1",
        f"{ALPHA}v is added",
        "is added to its",
        "How many times v is added",
    )
    added = written(tmp_path / "b", {"states": states()}, steering="addition")
    for name in ("report.html", "reachability.html", "card.md"):
        # Not vacuous: a run of addition says so.
        assert any(one in added[name] for one in strengths)
        for one in strengths:
            assert one not in pages[name], (name, one)
        assert "taken out" in pages[name]
        assert "ead after block 4" in pages[name]
        assert "read after block" not in added[name]
    assert "| steering | v taken out (ablation), no strength |" in pages["card.md"]
    rows = {row[0]: row[1:] for row in table(pages["html"], "Every arm")}
    assert rows["v"][0] == NO_STRENGTH
    family = next(
        row
        for row in table(pages["html"], "Conditions (arms) of the test")
        if row[0].startswith("v ")
    )
    assert family[0] == f"v {steering.ABLATION}"
    assert family[2] == NO_STRENGTH


def test_t0_says_that_it_checked_addition_and_who_checks_ablation(tmp_path) -> None:
    found = {"states": states(steering="ablation")}
    note = "T0 checked adding v; that ablation does what it is meant to is T16"
    pages = written(tmp_path / "a", found, steering="ablation")
    for name in ("report.html", "card.md"):
        assert note in pages[name]
        assert 'control "arrival".' in pages[name]
    added = written(tmp_path / "b", {"states": states()}, steering="addition")
    assert note not in added["report.html"] + added["card.md"]
    without = {"states": replace(found["states"], controls=())}
    facts = {"steering": "ablation"}
    told = steering.annotated({"plumbing": PLUMBING} | without, facts)
    assert told["plumbing"].reasons[-1].endswith("which this run does not have.")


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({Verdict.UNREACHED: 1.0}, "None of the 24 steered states is reached"),
        ({Verdict.REACHABLE: 1 / 24}, "1 of the 24 steered states is reached"),
        ({Verdict.REACHABLE: 0.5}, "12 of the 24 steered states are reached"),
        (
            {Verdict.REACHABLE: 0.25, Verdict.UNINFORMATIVE: 0.5},
            "6 of the 12 steered states are reached",
        ),
    ],
)
@pytest.mark.parametrize("verdict", [Verdict.UNREACHED, Verdict.ORIGIN_NEAREST])
def test_the_headline_says_how_many_states_are_reached(verdict, shares, said) -> None:
    found = states(shares={str(name): share for name, share in shares.items()})
    (sentence,) = headline({"states": replace(found, verdict=verdict)})
    assert sentence.startswith(f"{said}:")


def test_the_lead_says_which_positions_are_steered_and_who_chose_alpha() -> None:
    text = plain_text(tree(render(ADDED, made.whole())))
    assert "States (T16, T17, T19) are those of steering at every position" in text
    assert (
        "texts (T18) are steered where the run says: in the scope “generating”" in text
    )
    assert (
        f"{ALPHA} = 1.5 (recommended by the dose curve): a step 24 % as long as" in text
    )
    given = ADDED | {"alpha_was_recommended": False}
    assert f"{ALPHA} = 1.5 (as asked for)" in plain_text(
        tree(render(given, made.whole()))
    )
    alone = plain_text(tree(render(ADDED, {"states": made.states()})))
    assert "States (T16) are those" in alone
    assert "texts (T18)" not in alone


def test_a_strength_that_the_dose_curve_chose_says_so_without_t1(tmp_path) -> None:
    chosen = written(tmp_path / "a", {"states": states()})
    assert (
        f"It chose {ALPHA} = 1, on 24 prompts that are not in the test"
        in (chosen["report.html"])
    )
    given = written(tmp_path / "b", {"states": states()}, alpha_was_recommended=False)
    assert f"It chose {ALPHA}" not in given["report.html"]
    assert f"ask for. {ALPHA} was given." in given["report.html"]


def test_limits_of_a_run_are_those_of_the_audits_that_it_made(tmp_path) -> None:
    pages = written(tmp_path, {"states": states(), "access": spanned()})
    for text in (pages["card.md"], pages["report.html"]):
        limits = text.partition("Limits")[2].partition("Set-up")[0]
        for told in (
            "T16 searched 60 prompts, at 24 positions: all 2,048 tokens after",
            "8 tokens, 512 evaluations, 24 texts",
            "by their first 16 tokens",
        ):
            assert told in limits
        for foreign in ("certificate", "v⊥", "A lift is", "T17", "T19"):
            assert foreign not in limits
    folder = tmp_path / "both"
    store = write_store(folder, replace(STRONG, num_prompts=4, num_samples=1))
    store.write_findings(store.findings() | {"states": states()}, store.facts())
    write_report(folder)
    card = (folder / "card.md").read_text("utf-8")
    assert "so do the certificates" in card
    assert "T16 searched 60 prompts" in card


def spanned(**other: Any) -> Finding:
    found = made.access()
    budget = {**found.details["budget"], "response_tokens": 16}
    return replace(found, details={**found.details, "budget": budget, **other})


SAME_LIFT = "moves the trait about as far, and does not write the same texts"


def lifted(value: float, low: float, high: float) -> dict[str, Any]:
    return {"lift": made.told(value, low, high), "relative": 0.45}


@pytest.mark.parametrize(
    ("black", "white", "said"),
    [
        (lifted(0.25, 0.19, 0.31), lifted(0.33, 0.28, 0.38), True),
        (lifted(0.25, 0.16, 0.31), lifted(0.33, 0.28, 0.38), False),
        (lifted(0.25, 0.19, 0.31), lifted(-0.1, -0.2, 0.1), False),
        (lifted(0.25, 0.19, 0.31), {"lift": None}, False),
    ],
    ids=["as far", "perhaps half", "steering does not", "not scored"],
)
def test_a_prompt_that_moves_the_trait_as_far_is_said_to(black, white, said) -> None:
    found = spanned(white_box=white, black_box=black)
    assert (SAME_LIFT in headline({"access": found})[0]) == said
    assert (SAME_LIFT in two_numbers({"access": found})[1].note) == said
    other = replace(found, verdict=Verdict.FOUND)
    assert SAME_LIFT not in headline({"access": other})[0]


def test_a_prompt_that_leaves_more_than_everything_is_worse_than_none() -> None:
    worse = f"worse than no prompt at all ({words.percent(1.0)})"
    found = spanned(black_box={"lift": made.told(0.1, 0.0, 0.2), "relative": 1.65})
    seen = replace(found, estimate=replace(made.access().estimate, value=1.65, high=3))
    assert worse in headline({"access": seen})[0]
    assert worse in two_numbers({"access": seen})[1].note
    unscored = spanned(black_box={"lift": None, "relative": 1.65})
    assert worse in two_numbers({"access": unscored})[1].note
    assert worse not in headline({"access": spanned()})[0]
    assert worse not in two_numbers({"access": spanned()})[1].note


@pytest.mark.parametrize(
    ("audit", "null", "said"),
    [
        ("inversion", "1, as of natural states", "100 %, as of natural states"),
        ("access", "1, as of no prompt", "100 %, as of no prompt"),
        ("density", "at most 0.01 of natural states", "at most 1 % of natural states"),
        ("reliability", "at most 10%", "at most 10 %"),
        ("states", "eta = 1: nothing is nearer", "eta = 1: nothing is nearer"),
        ("methods", "at most 0.05", "at most 0.05"),
    ],
)
def test_a_null_has_the_unit_of_its_number(audit, null, said) -> None:
    found = replace(plain_finding(audit, "", Verdict.MEASURED, {}), null=null)
    assert words.null(found).replace("\xa0", " ") == said


def test_the_null_on_the_page_is_in_percent_where_the_number_is() -> None:
    found = replace(made.access(), null="1, as of no prompt")
    text = plain_text(tree(render(FACTS, {"access": found})))
    assert "If the prompt did nothing: 100 %, as of no prompt." in text


@pytest.mark.parametrize(
    "name", ["projected", "soft_prefix", "many_shot", "token_search", "arrival"]
)
def test_controls_of_reachability_have_names_and_no_identifiers(name) -> None:
    shown, note = words.control_name(name)
    assert note
    assert "_" not in shown
    control = Control(name, "it is found", None, "", True)
    page = render(FACTS, {"access": replace(made.access(), controls=(control,))})
    rows = [row[0] for row in table(page, "T18")]
    assert rows[1].startswith(shown)


def test_a_vector_without_a_trait_is_called_by_its_file_or_not_at_all(tmp_path) -> None:
    found = {"states": states()}
    nameless = {"trait": "", "probe": None}
    for source, title in (("v.npz", "vector from v.npz"), ("", "vector")):
        pages = written(tmp_path / f"s{source}", found, source=source, **nameless)
        assert pages["card.md"].startswith(f"# Audit card: a steering {title}\n\n**")
        assert "its trait" not in pages["card.md"].partition("## Verdicts")[0]
        assert "its trait" not in pages["report.html"].partition("Skip to")[0]
    named = written(tmp_path / "named", found)
    assert named["card.md"].startswith(
        "# Audit card: a steering vector for formality\n"
    )


def test_all_tokens_are_called_all_and_a_part_of_them_at_least() -> None:
    every = states(num_kl=2048)
    text = plain_text(tree(render(FACTS, {"states": every})))
    assert "of all 2,048 tokens a position, the best leaves" in text
    assert "all 2,048 tokens were put behind" in text
    some = plain_text(tree(render(FACTS, {"states": states(num_kl=64)})))
    assert "of 64 candidates or more a position, the best leaves" in some
