"""A report shows every finding, loads nothing, and lets no text become markup."""

import html
import itertools
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.report.papers import PAPER, PAPER_NOTHING
from tests.report.stores import ALL as PLAIN
from tests.report.stores import NASTY, STRONG, write_store
from tests.report.trees import LOADING, contrast, plain_text, tree

from steergauge.audits.finding import Verdict
from steergauge.errors import StoreError
from steergauge.report import write_report
from steergauge.report.headline import headline
from steergauge.report.verdicts import vocabulary
from steergauge.report.words import typeset, verdict_style
from steergauge.runs.store import Store

ALL = PLAIN | {"paper": PAPER, "paper nothing": PAPER_NOTHING}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for name, scenario in ALL.items():
        folders[name] = tmp_path_factory.mktemp(name) / "run"
        write_store(folders[name], scenario)
        write_report(folders[name])
    return folders


@pytest.fixture(scope="module")
def pages(runs) -> dict[str, str]:
    return {
        name: (folder / "report.html").read_text(encoding="utf-8")
        for name, folder in runs.items()
    }


def test_the_scenarios_between_them_have_every_verdict(runs) -> None:
    seen = {
        found.verdict
        for folder in runs.values()
        for found in Store(folder).findings().values()
    }
    assert seen == set(vocabulary(()))


@pytest.mark.parametrize("name", ALL)
def test_a_page_is_well_formed_with_one_main_heading_and_unique_ids(
    pages, name
) -> None:
    parsed = tree(pages[name])
    names = [tag for tag, _ in parsed.tags]
    assert names.count("h1") == names.count("main") == 1
    levels = [int(tag[1]) for tag in names if re.fullmatch("h[1-6]", tag)]
    steps = [after - before for before, after in itertools.pairwise(levels)]
    assert max(steps) == 1
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs.get("href") for tag, attrs in parsed.tags if tag == "a"}
    assert {target for target in targets if target} <= {
        "paper.html",
        *(f"#{name}" for name in ids),
    }


@pytest.mark.parametrize("name", ALL)
def test_a_page_loads_nothing_and_runs_nothing(pages, name) -> None:
    parsed = tree(pages[name])
    for tag, attrs in parsed.tags:
        assert tag not in {"script", "img", "iframe", "object", "embed", "link"}
        assert not any(key.startswith("on") for key in attrs), (tag, attrs)
        for key in LOADING & set(attrs):
            assert tag == "a"
            assert attrs[key] == "paper.html" or attrs[key].startswith("#")
    style = re.search(r"<style>(.*?)</style>", pages[name], re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "default-src 'none'" in pages[name]


@pytest.mark.parametrize("name", ALL)
def test_every_table_has_a_caption(pages, name) -> None:
    tables = re.findall(r"<table[^>]*>\s*(<\w+)", pages[name])
    assert tables
    assert set(tables) == {"<caption"}


@pytest.mark.parametrize("name", ALL)
def test_every_verdict_number_interval_and_reason_is_on_page_and_card(
    runs, pages, name
) -> None:
    page = plain_text(tree(pages[name]))
    card = (runs[name] / "card.md").read_text(encoding="utf-8")
    for found in Store(runs[name]).findings().values():
        cards = re.findall(
            rf'<article class="card {verdict_style(found.verdict)}"', pages[name]
        )
        assert cards
        for reason in found.reasons:
            assert " ".join(typeset(reason).split()) in page
        assert f"**{found.verdict}**" in card
        if found.estimate is not None and found.audit == "equivalence":
            for number in (
                found.estimate.value,
                found.estimate.low,
                found.estimate.high,
            ):
                shown = f"{number:+.3f}".replace("-", "\N{MINUS SIGN}")
                assert shown in page
                assert shown in card


def test_a_verdict_is_shown_by_word_and_icon_and_not_by_colour_alone(pages) -> None:
    icons = re.findall(
        r'class="badge (\w+)"><i aria-hidden="true">(.)</i>([\w ]+)<', pages["strong"]
    )
    assert {word for _, _, word in icons} == {
        str(verdict) for verdict in vocabulary(())
    }
    assert all(colour == verdict_style(word) for colour, _, word in icons)
    assert len({icon for _, icon, _ in icons}) == len(vocabulary(()))


def test_no_hostile_text_becomes_markup(pages) -> None:
    page, parsed = pages["hostile"], tree(pages["hostile"])
    for trace in ("<script", "<img", "<b>", "<i>hey", "onerror=alert(1)>"):
        assert trace not in page.replace('<i aria-hidden="true">', "")
    shown = "".join(parsed.text)
    for text in NASTY[:4]:
        assert text in shown
    assert "\x00" not in page
    assert "\N{SYMBOL FOR NULL}\N{SYMBOL FOR BELL}" in shown


def test_a_text_that_turns_the_reading_direction_is_isolated(pages) -> None:
    places = re.findall(r"<(\w+) class=\"text\"([^>]*)>[^<]*\u202e", pages["hostile"])
    assert places
    assert all('dir="auto"' in attributes for _, attributes in places)
    assert "unicode-bidi: isolate" in pages["hostile"]


def test_an_endless_word_is_cut_with_a_note(pages) -> None:
    assert "x" * 800 in pages["hostile"]
    assert "x" * 801 not in pages["hostile"]
    assert "and 4200 more characters" in pages["hostile"]


def test_a_report_names_the_papers_page_if_and_only_if_there_is_one(
    runs, pages
) -> None:
    there = {name: (folder / "paper.html").is_file() for name, folder in runs.items()}
    assert set(there.values()) == {True, False}
    for name, exists in there.items():
        card = (runs[name] / "card.md").read_text(encoding="utf-8")
        assert ('href="paper.html"' in pages[name]) is exists
        assert ("`paper.html`" in card) is exists


def test_hostile_names_stay_in_their_cell_of_the_card(runs) -> None:
    card = (runs["hostile"] / "card.md").read_text(encoding="utf-8")
    assert "<script" not in card
    assert "<b>" not in card
    rows = [line for line in card.splitlines() if line.startswith("| T")]
    assert len(rows) == 8
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}


def test_the_same_store_gives_the_same_bytes(runs, tmp_path) -> None:
    for name in ("strong", "hostile"):
        first = [
            (runs[name] / file).read_bytes() for file in ("report.html", "card.md")
        ]
        write_report(str(runs[name]))
        again = [
            (runs[name] / file).read_bytes() for file in ("report.html", "card.md")
        ]
        assert first == again
        assert not list(runs[name].glob("*.part"))


def test_a_report_needs_no_torch_and_no_transformers(runs) -> None:
    program = f"""
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "tokenizers"):
            raise ImportError(name)
sys.meta_path.insert(0, Refused())
import steergauge
print(steergauge.write_report({str(runs["strong"])!r}))
"""
    before = (runs["strong"] / "report.html").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(runs["strong"] / "report.html")
    assert (runs["strong"] / "report.html").read_bytes() == before


def test_an_unfinished_run_has_no_report(tmp_path) -> None:
    with pytest.raises(StoreError, match="no finished run"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("strong", "moves formality toward formal (+0."),
        ("strong", "leaves that as it is (within 20\N{NO-BREAK SPACE}%), but makes"),
        ("same", "leaves both that (within"),
        ("other", "changes both that and the texts."),
        ("few", "could not be told from 8 prompts."),
        ("nothing", "does not measurably move formality ("),
        ("silent", "It does not measurably change the texts at all."),
        ("unscored", "Without a probe nobody can say"),
        ("broken", "A plumbing check failed"),
        ("backward", "moves formality toward casual (+0."),
    ],
)
def test_the_first_sentence_says_what_was_found(pages, name, sentence) -> None:
    assert sentence in html.unescape(pages[name])


def test_no_first_sentence_says_more_than_the_verdicts(runs) -> None:
    store = Store(runs["strong"])
    findings, facts = store.findings(), store.facts()
    for lift in Verdict:
        for text in Verdict:
            changed = {
                "manipulation": findings["manipulation"],
                "equivalence": replace(findings["equivalence"], verdict=lift),
                "divergence": replace(findings["divergence"], verdict=text),
            }
            said = headline(changed, facts)
            sure = {lift, text}
            if "changes" in said and "whether" not in said:
                assert Verdict.DIFFERENT in sure
            if "leaves" in said:
                assert Verdict.EQUIVALENT in sure
            if "other texts" in said:
                assert text is Verdict.DIFFERENT


def test_a_run_without_t1_has_a_report(tmp_path) -> None:
    scenario = replace(STRONG, audits=("plumbing", "divergence"), num_prompts=8)
    write_store(tmp_path / "run", scenario)
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "did not ask whether the trait moves" in page
    assert "The dose curve is kept with T1" in page


def test_an_incoherent_vector_and_the_versions_are_told(tmp_path) -> None:
    store = write_store(tmp_path / "run", replace(STRONG, num_prompts=8))
    findings, facts = store.findings(), store.facts()
    check = findings["manipulation"]
    findings["manipulation"] = replace(
        check, details={**check.details, "coherent": False}
    )
    store.write_findings(findings, {**facts, "versions": {"torch": "2.13.0"}})
    page = write_report(store.folder).read_text(encoding="utf-8")
    assert "At no strength were the texts coherent" in page
    assert "torch 2.13.0" in page


def test_ink_and_ground_differ_enough_to_be_read(pages) -> None:
    css = re.search(r"<style>(.*?)</style>", pages["strong"], re.S)
    assert css is not None
    light, dark = re.findall(r":root \{(.*?--low-tint[^}]*)\}", css[1], re.S)
    for block in (light, dark):
        colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        pairs = [(ink, ink.replace("-ink", "-tint")) for ink in colour if "-ink" in ink]
        pairs += [
            (ink, ground)
            for ink in ("ink", "soft", "link", "candidate", "own", "control")
            for ground in ("page", "surface")
        ]
        pairs += [("pass-ink", "surface"), ("fail-ink", "surface")]
        pairs += [("inconclusive-ink", "surface")]
        assert len(pairs) > 16
        for ink, ground in pairs:
            assert contrast(colour[ink], colour[ground]) >= 4.5, (ink, ground)
