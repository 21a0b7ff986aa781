"""The page of reachability shows every finding as it is, and nothing beside it."""

import itertools
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.report import reachabilities as made
from tests.report.geometries import FACTS
from tests.report.geometries import finding as plain_finding
from tests.report.reachability_audits import NUM, audited
from tests.report.stores import STRONG, write_store
from tests.report.trees import (
    check_filled,
    check_said,
    check_sound,
    contrast,
    plain_text,
    table,
    tables,
    tree,
)

from steergauge.audits.finding import Finding, Verdict
from steergauge.report import words
from steergauge.report.access_table import power
from steergauge.report.distance_figure import FOOT, LOWEST, STRIP, figures
from steergauge.report.geometry import has_geometry
from steergauge.report.grid import UNKNOWN
from steergauge.report.headline import headline as first_of_report
from steergauge.report.inversions import FAILED, RECOVERED, TWIN, UNTRIED, sequences
from steergauge.report.page import write_report
from steergauge.report.reachability import MAKERS, render, sections
from steergauge.report.reachability_headline import (
    NOTHING,
    has_reachability,
    headline,
    two_numbers,
)
from steergauge.report.templating import environment
from steergauge.report.tokens import visible
from steergauge.report.verdicts import REACHABILITY_VERDICTS, UNSOUND, vocabulary

Findings = dict[str, Finding]
HOSTILE = FACTS | {"model": "<script>m</script>", "trait": "<b>t</b> alpha's"}

PAGES: dict[str, Callable[[], str]] = {
    "whole": lambda: render(FACTS, made.whole()),
    "bare": lambda: render(FACTS, made.bare()),
    "still": lambda: render(FACTS, {"states": made.still()}),
    "unscored": lambda: render(FACTS | {"probe": None}, {"access": made.unscored()}),
    "hostile": lambda: render(HOSTILE, made.hostile()),
}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: make() for name, make in PAGES.items()}


@pytest.mark.parametrize("name", PAGES)
def test_a_reachability_page_is_well_formed_and_loads_nothing(pages, name) -> None:
    check_sound(pages[name], {"report.html"})


@pytest.mark.parametrize("name", [name for name in PAGES if name != "hostile"])
def test_nothing_on_a_reachability_page_is_empty_or_a_python_word(pages, name) -> None:
    check_filled(pages[name])


def test_every_verdict_number_interval_reason_and_control_is_on_the_page(
    pages,
) -> None:
    check_said(pages["whole"], made.whole())
    text = plain_text(tree(pages["whole"]))
    heads = [rows[0][0] for rows in tables(pages["whole"]).values()]
    assert heads.count("control") == len(MAKERS)
    assert pages["whole"].count("What it can carry.") == len(MAKERS)
    for number in ("2604.09839", "2510.15511"):
        assert number in text


@pytest.mark.parametrize("num", [1, 2, 3, 4])
def test_a_run_may_have_any_of_the_audits(num) -> None:
    for names in itertools.combinations(MAKERS, num):
        found = {name: made.whole()[name] for name in names}
        assert has_reachability(found)
        assert [one.name for one in sections(found)] == list(names)
        assert len(headline(found)) == num


@pytest.mark.parametrize("absent", MAKERS)
def test_an_audit_that_was_not_run_is_left_out_and_named(absent) -> None:
    names = [name for name in MAKERS if name != absent]
    found = {name: made.whole()[name] for name in names}
    page = render(FACTS, found)
    ids = set(re.findall(r'<section id="([\w-]+)"', page))
    assert ids == {*names, "verdicts", "glossary"}
    text = plain_text(tree(page))
    for audit in MAKERS:
        question = words.question(made.whole()[audit])
        assert (f"{question} Not asked in this run." in text) == (audit == absent)


def test_a_run_without_reachability_has_none() -> None:
    assert not has_reachability({})
    assert not has_reachability({"other": replace(made.states(), audit="spectrum")})
    assert not has_geometry(made.whole())


def test_the_same_findings_give_the_same_page_in_any_order(pages) -> None:
    found = list(made.whole().items())
    random.Random(0).shuffle(found)
    assert render(FACTS, dict(found)) == pages["whole"]


def test_the_report_links_to_the_page_and_the_page_back(tmp_path) -> None:
    store = write_store(tmp_path, replace(STRONG, num_prompts=4, num_samples=1))
    write_report(tmp_path)
    assert not (tmp_path / "reachability.html").exists()
    assert "reachability.html" not in (tmp_path / "report.html").read_text("utf-8")
    both = store.findings() | made.whole()
    store.write_findings(both, store.facts())
    assert write_report(tmp_path).name == "report.html"
    report = (tmp_path / "report.html").read_text("utf-8")
    assert report.count('href="reachability.html"') == 2
    assert "reachability.html" in (tmp_path / "card.md").read_text("utf-8")
    page = (tmp_path / "reachability.html").read_text("utf-8")
    assert 'href="report.html"' in page
    for found in made.whole().values():
        assert words.question(found) in plain_text(tree(report))
    store.write_findings(made.whole(), store.facts())
    assert write_report(tmp_path).name == "reachability.html"


def test_hostile_prompts_tokens_and_labels_are_no_markup(pages) -> None:
    page = pages["hostile"]
    for trace in ("<script", "<b>", "\x00", "\x1b"):
        assert trace not in page
    shown = "".join(tree(page).text)
    assert "<script>m</script>" in shown
    assert shown.count("<script>u</script> {{ 7 * 7 }}") >= 2
    assert "<U+202E>" in shown
    assert "<U+D800>" in shown


@pytest.mark.parametrize("token", ["", " ", "\n", "\u202e", "\ud800", "\x00", "a" * 99])
def test_a_token_is_shown_in_one_short_line_of_visible_signs(token) -> None:
    shown = visible(token)
    assert shown.strip() == shown != ""
    assert "\n" not in shown
    assert len(shown) <= 18
    shown.encode("utf-8")


def places(path: str) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in (p.split(",") for p in outline.split())]
        for outline in re.findall(r"M([^Z]*)Z", path)
    ]


def test_the_columns_are_as_wide_as_there_are_tokens_and_as_high_as_they_lie() -> None:
    details = dict(made.states().details)
    counts = [0] * (len(made.EDGES) - 1)
    counts[18], counts[19], counts[40] = 1000, 500, 1
    one = details["positions"][0] | {"histogram": counts}
    (figure,) = figures(details | {"positions": [one]})
    assert [len(outline) for outline in places(figure.shapes)] == [8, 4]
    first, alone = places(figure.shapes)
    width = [max(x for x, _ in run) - min(x for x, _ in run) for run in (first, alone)]
    upper = {x for x, y in first if y == min(y for _, y in first)}
    # Half as many tokens, half as wide; a single token is a thin line, and seen.
    assert max(upper) - min(upper) == pytest.approx(width[0] / 2, abs=0.02)
    assert 0.02 * width[0] < width[1] < 0.1 * width[0]
    # Heights are linear in the logarithm: the step itself and its first edge agree.
    heights = sorted({y for outline in places(figure.shapes) for _, y in outline})
    edges = [math.log(made.EDGES[k]) for k in (41, 40, 20, 19, 18)]
    slope = (heights[-1] - heights[0]) / (edges[-1] - edges[0])
    for height, edge in zip(heights, edges, strict=True):
        # Places are kept to a hundredth.
        assert height == pytest.approx(heights[0] + slope * (edge - edges[0]), abs=0.03)
    assert figure.step == pytest.approx(heights[0] - slope * edges[0], abs=0.03)
    marks = {mark.kind: mark.y for mark in figure.marks}
    assert marks["nearest"] == pytest.approx(
        heights[0] + slope * (math.log(0.96) - edges[0]), abs=0.03
    )
    assert marks["second"] < figure.step < marks["natural"]
    (level,) = figure.levels
    assert figure.step < level.y < marks["natural"]


def test_a_mark_far_below_the_axis_stands_in_a_strip_that_is_named() -> None:
    details = dict(made.states().details)
    tiny = {"natural_d1": 0.0, "tolerance": 1e-9}
    (figure,) = figures(details | {"positions": [details["positions"][0] | tiny]})
    (natural,) = (mark for mark in figure.marks if mark.kind == "natural")
    (level,) = figure.levels
    top, bottom = STRIP
    # The nearer is the lower one, and neither lies on an edge.
    assert top < level.y < natural.y < bottom
    assert "natural state: 0 of the step" in natural.label
    assert figure.strip == f"below {words.plain(LOWEST)} of the step"
    # All that is on the axis stays above the strip, and fills the axis.
    others = [mark.y for mark in figure.marks if mark is not natural]
    heights = [y for outline in places(figure.shapes) for _, y in outline]
    assert max([*others, *heights, *(tick.at for tick in figure.ticks)]) <= FOOT < top
    assert min(float(tick.label) for tick in figure.ticks) > 0.1
    page = render(FACTS, {"states": replace(made.states(), details=details | {
        "positions": [details["positions"][0] | tiny]})})  # fmt: skip
    assert f"{figure.strip}, in order, not to scale" in page


def test_a_figure_with_nothing_below_its_axis_has_no_strip(pages) -> None:
    assert {one.strip for one in figures(made.states().details)} == {""}
    assert 'class="strip"' not in pages["whole"]


def test_what_is_wider_than_a_phone_scrolls_in_its_own_box_and_fades_there(
    pages,
) -> None:
    page = pages["whole"]
    assert page.count('class="scroll wide"') > len(MAKERS)
    wide = r'(?:table class="grid|div class="chart" style="min-width)'
    boxes = re.findall(rf'<div class="([^"]*)"[^>]*>\s*<{wide}', page)
    assert set(boxes) == {"scroll wide"}
    sheet = page.partition("<style>")[2].partition("</style>")[0]
    assert re.search(r"\.scroll \{ overflow-x: auto", sheet)
    assert re.search(r"\.wide \{ animation: cut[^}]*scroll\(self x\)", sheet)


def test_positions_without_a_step_are_in_the_table_and_in_no_figure(pages) -> None:
    assert figures(made.still().details) == ()
    rows = table(pages["still"], "Every position")
    assert len(rows) == 2 + len(made.PROMPTS) * (1 + len(made.WORDS))
    assert len(figures(made.states().details)) == len(made.PROMPTS)


def test_every_position_and_every_target_is_in_a_table(pages) -> None:
    rows = table(pages["whole"], "Every position")
    assert rows[3][0].startswith("␣Write")
    assert f"{Verdict.ORIGIN_NEAREST}" in rows[3][1]
    named = [row[0] for row in table(pages["whole"], "What was searched for")[1:]]
    for row, start in zip(
        named,
        ("natural", "constructed", "v ", "random", "sign flips", "other pairs"),
        strict=True,
    ):
        assert row.startswith(start)
    text = plain_text(tree(pages["whole"]))
    assert "Collisions" in text
    assert "“␣the” and “␣The”" in text


def test_published_rules_are_labelled_as_emulations_beside_the_calibrated(
    pages,
) -> None:
    rows = table(pages["whole"], "When a state counts as reached")[2:]
    assert [row[0].split()[0] for row in rows] == ["calibrated", "d1", "d1"]
    assert [row[1:] for row in rows] == [
        ["100 %", "0 %"],
        ["0 %", "0 %"],
        ["97 %", "2 %"],
    ]
    assert all("emulation" in row[0] for row in rows[1:])
    assert all(
        row[0].endswith(words.typeset("not the authors' run")) for row in rows[1:]
    )


def test_each_token_of_a_sequence_has_a_sign_a_word_and_the_first_failure(
    pages,
) -> None:
    natural, steered = sequences(made.inversion().details)[0].readings
    assert [one.status for one in natural.tokens] == [
        *[RECOVERED] * 4, TWIN, *[RECOVERED] * 3
    ]  # fmt: skip
    assert [one.status for one in steered.tokens] == [
        RECOVERED, RECOVERED, FAILED, *[UNTRIED] * 5
    ]  # fmt: skip
    assert [one.first for one in steered.tokens].index(True) == 2
    assert steered.note.startswith("first failure at place 2")
    page = pages["whole"]
    items = re.findall(r'<li class="token (\w+)[^>]*><i role="img" aria-label="(\w+)"',
                       page)  # fmt: skip
    assert len(items) == 2 * len(made.WORDS) * len(made.PROMPTS)
    assert all(style == said for style, said in items)


def test_a_sequence_without_failures_says_how_many_were_recovered() -> None:
    details = json.loads(json.dumps(made.inversion(Verdict.REACHABLE).details))
    for one in details["sequences"]:
        one["steered"] = one["natural"] | {"recovered": one["tokens"]}
    _, steered = sequences(details)[0].readings
    assert steered.note == "8 of 8 tokens recovered"


def test_the_two_numbers_stand_apart_and_are_never_merged(pages) -> None:
    white, black = two_numbers(made.whole())
    assert (white.number, black.number) == ("+0.360", "+0.110")
    assert f"leaves {words.percent(0.45)} of" in black.note
    text = plain_text(tree(pages["whole"]))
    assert text.index("With access to the weights") < text.index("+0.360")
    assert text.index("+0.360") < text.index("With a prompt alone")
    box = pages["whole"].partition('class="twice"')[2].partition("</section>")[0]
    assert len(re.findall(r'class="big"', box)) == 2
    # A difference or a ratio of the two would be a merged number.
    for merged in ("0.250", "0.306", "0.31", "31"):
        assert merged not in box


def test_what_was_not_measured_is_said_to_be_not_measured() -> None:
    white, black = two_numbers({"states": made.states()})
    assert white.number == black.number == "not measured"
    white, black = two_numbers({"access": made.unscored()})
    assert white.number == "not measured"
    assert black.number.startswith("45")
    check = plain_finding("manipulation", "T1", Verdict.PASS, {}, (0.2, 0.1, 0.3))
    assert two_numbers({"manipulation": check})[0].number == "+0.200"


def test_the_access_table_has_the_rows_of_the_design_and_folds_the_others(
    pages,
) -> None:
    rows = table(pages["whole"], "Access, behaviour, texts and states")[2:]
    assert [row[0] for row in rows] == [
        "unsteered", "steered with v", "token search, 8 tokens",
        "soft prefix, 8 embeddings",
    ]  # fmt: skip
    heads = table(pages["whole"], "Access, behaviour, texts and states")[1]
    assert [head.split()[0] for head in heads[1:]] == [
        "lift", "score", "access", "KL", "left", "eta", "perplexity", "budget",
        "re-read",
    ]  # fmt: skip
    assert [row[3].split()[0] for row in rows] == ["none", "white", "black", "white"]
    assert rows[2][4] == "0.900 [0.800, 1.00]"
    folded = table(pages["whole"], "1 more condition")
    assert folded[2][0].startswith("4 steered answers")


def test_not_found_is_never_said_without_the_power_of_each_search(pages) -> None:
    text = plain_text(tree(pages["whole"]))
    after = text.partition("What weights do and what prompts do T18")[2]
    assert after.index("NOT FOUND AT BUDGET") < after.index("token search found 6 of 8")
    assert "soft prefix found 7 of 8 (88 % [53 %, 98 %])" in after
    (sentence,) = headline({"access": made.access()})
    assert "token search 6 of 8, soft prefix 7 of 8" in sentence
    # In the lead and in the section; the tile beside the verdict has no counts.
    assert "of 8" not in two_numbers(made.whole())[1].note
    alone = plain_text(tree(pages["unscored"]))
    assert "The power of this search was not measured." in alone


def test_every_hidden_target_is_a_dot_and_v_stands_beside_them() -> None:
    figure = power(made.access())
    assert figure is not None
    assert [len(row.dots) for row in figure.rows] == [8, 8, 0]
    *methods, own = figure.rows
    (limit,) = figure.lines
    for row, found in zip(methods, (6, 7), strict=True):
        assert sum(dot.at <= limit.at for dot in row.dots) == found
        assert row.number == f"{found} of 8 found"
    assert own.low < own.mean < own.high
    assert own.mean > limit.at


def test_prompts_are_shown_in_full_the_best_one_open(pages) -> None:
    page = pages["whole"]
    shown = re.findall(r'<p class="text given" dir="auto"><bdi>(.*?)</bdi>', page, re.S)
    assert shown == [
        row["prompt"]
        for row in made.access().details["rows"]
        if row["access"] == "prompt"
    ]
    assert (
        len(re.findall('<details class="block" open><summary><bdi>token s', page)) == 1
    )


def test_rare_states_are_counted_and_drawn_family_by_family(pages) -> None:
    rows = table(pages["whole"], "How many natural states are as strange")
    names = [row[0] for row in rows[1:5]]
    for name, start in zip(names, ("natural", "v ", "random", "token"), strict=True):
        assert name.startswith(start)
    drawn = pages["whole"].partition("How many natural states")[2]
    drawn = drawn.partition("</table>")[0]
    assert drawn.count('<circle class="dot"') == 4 * 60
    cells = table(pages["whole"], "States by what was done to them")[2:]
    assert [row[-1] for row in cells] == [UNKNOWN.text, "13°", "13°", "13°"]
    assert cells[1][-2] == "1.02 [0.980, 1.07]"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (made.states(Verdict.REACHABLE), "one of 2,048 tokens gives the steered state"),
        (made.states(Verdict.EPSILON_CLOSE), "lie near those of tokens: of all 2,048"),
        (made.states(), "none of all 2,048 tokens comes nearer"),
        (
            made.states(Verdict.UNREACHED),
            "None of the 24 steered states is reached: of",
        ),
        (made.inversion(), "not one of 3 texts has the steered states"),
        (made.inversion(Verdict.REACHABLE), "all of 3 texts could be read off"),
        (made.access(Verdict.FOUND), "A prompt makes the unsteered model write"),
        (made.access(), "No prompt was found, at this budget"),
        (made.density(), "rarer than token swaps of that length"),
        (made.density(Verdict.ON_MANIFOLD), "Steered states look natural"),
    ],
    ids=lambda one: str(one.verdict) if isinstance(one, Finding) else "",
)
def test_the_headline_says_what_the_verdict_says(found, said) -> None:
    (sentence,) = headline({found.key: found})
    assert said in sentence


def test_the_headline_claims_nothing_of_what_could_not_be_told() -> None:
    assert headline(made.bare()) == [NOTHING]
    broken = plain_finding("plumbing", "T0", Verdict.FAIL, {})
    assert headline(made.whole() | {"plumbing": broken}) == [UNSOUND]
    assert first_of_report(made.whole(), FACTS).startswith("None of the 24 steered")
    assert first_of_report(made.bare(), FACTS) == NOTHING


def test_ablation_is_called_ablation() -> None:
    details = {**made.states().details, "steering": "ablation", "read_layer": 3}
    found = replace(made.states(), details=details)
    facts = FACTS | {"steering": "ablation"}
    text = plain_text(tree(render(facts, {found.key: found})))
    assert "is taken out of its inner state" in text
    assert "v was taken out after block 3." in text


def test_verdicts_of_reachability_are_explained_on_its_page_and_elsewhere_if_had(
    pages,
) -> None:
    text = plain_text(tree(pages["bare"]))
    for verdict in REACHABILITY_VERDICTS:
        assert words.VERDICTS[verdict].meaning in text
    assert not set(vocabulary([])) & set(REACHABILITY_VERDICTS)
    assert Verdict.FOUND in vocabulary([made.access(Verdict.FOUND)])


def test_marks_of_the_figure_stand_out_from_the_page_in_both_schemes() -> None:
    loader = environment().loader
    assert loader is not None
    sheet = loader.get_source(environment(), "report.css")[0]
    colours = re.findall(r"--([\w-]+): (#[0-9a-f]{6})", sheet)
    half = len(colours) // 2
    for scheme in (dict(colours[:half]), dict(colours[half:])):
        for name in ("own", "candidate", "explained-ink", "pass-ink", "fail-ink"):
            # WCAG asks 3 of marks.
            assert contrast(scheme[name], scheme["surface"]) >= 3


def test_what_the_page_reads_survives_json(pages) -> None:
    found = {
        key: Finding.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False)))
        for key, one in made.whole().items()
    }
    assert render(FACTS, found) == pages["whole"]
    assert [one.name for one in sections(found)] == list(MAKERS)


def test_what_the_audits_keep_is_what_the_page_reads() -> None:
    found = {
        key: Finding.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False)))
        for key, one in audited().items()
    }
    assert [one.verdict for one in found.values()] == [
        Verdict.ORIGIN_NEAREST, Verdict.UNREACHED, Verdict.NOT_FOUND,
        Verdict.OFF_MANIFOLD,
    ]  # fmt: skip
    shown = {one.name: one for one in sections(found)}
    counts = {name: (len(one.grids), len(one.folded)) for name, one in shown.items()}
    assert counts == {
        "states": (2, 1), "inversion": (1, 0), "access": (1, 1), "density": (1, 0),
    }  # fmt: skip
    page = render(FACTS, found)
    check_sound(page, {"report.html"})
    check_filled(page)
    text = plain_text(tree(page))
    for one in found.values():
        for reason in one.reasons:
            assert " ".join(words.typeset(reason).split()) in text
    assert len(headline(found)) == len(found)
    assert len(figures(found["states"].details)) == NUM
    assert len(sequences(found["inversion"].details)) == NUM
    for caption in ("What the searches leave", "How many natural states"):
        assert len(table(page, caption)) > 2


def test_the_reachability_page_needs_no_torch() -> None:
    program = (
        "import sys, steergauge.report.reachability\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
