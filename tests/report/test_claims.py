"""Pages claim no more than was measured, and say what a number is of."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.report.papers import PAPERS
from tests.report.stores import ALL, write_store
from tests.report.trees import plain_text, table, tree

from steergauge.audits.finding import Verdict
from steergauge.report import coherence, write_report
from steergauge.report.cases import Case, single
from steergauge.report.paper import render
from steergauge.report.words import fixed, padded, percent, plain, signed
from steergauge.runs.spec import PERPLEXITY_LIMIT
from steergauge.runs.store import Store

NARROW = "\N{NO-BREAK SPACE}"
JUDGE = {
    "name": "politeness", "auc": 0.9, "num_labelled": 40, "kind": "judge",
    "high_words": [], "low_words": [],
    "record": {
        "model": "a/judge", "base_url": "http://host/v1", "revision": "",
        "prompt": "Rate <b>this</b> | text: {text}",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for name, scenario in (ALL | PAPERS).items():
        folders[name] = tmp_path_factory.mktemp("one") / "run"
        write_store(folders[name], scenario)
        write_report(folders[name])
    return folders


@pytest.fixture
def case(runs) -> Case:
    return single(Store(runs["paper"]))


def changed(case: Case, key: str, **fields) -> Case:
    found = replace(case.findings[key], **fields)
    return replace(case, findings={**case.findings, key: found})


def text_of(case: Case) -> str:
    return plain_text(tree(render([case])))


def section(page: str, name: str) -> str:
    return page.partition(f'<section id="{name}"')[2].partition("</section>")[0]


def test_no_page_names_a_cause_that_was_not_measured(runs) -> None:
    pages = [page for folder in runs.values() for page in folder.glob("*.*")]
    texts = [
        page.read_text(encoding="utf-8")
        for page in pages
        if page.suffix in (".html", ".md")
    ]
    assert len(texts) > 2 * len(runs)
    for text in texts:
        assert not re.search(
            r"\bhonest|\bbend|steps are long|fewer texts than|more than geometry", text
        )


@pytest.mark.parametrize("verdict", Verdict)
def test_the_sentence_on_t5_is_that_of_its_verdict(case, verdict) -> None:
    page = render([changed(case, "logits", verdict=verdict)])
    said = plain_text(tree(section(page, "table-3")))
    endings = {
        Verdict.EXPLAINED: f": T is 1 within 25{NARROW}%.".replace(NARROW, " "),
        Verdict.NONLINEAR: "so R differs from what first-order geometry gives.",
        Verdict.INCONCLUSIVE: "R is what first-order geometry gives could not be told.",
    }
    for own, ending in endings.items():
        assert (ending in said) is (own is verdict), own


def test_a_verdict_on_v_plus_perp_stands_below_vs_lift_and_names_itself(case) -> None:
    rows = table(render([case]), "Lift of v in each environment")
    cells = case.findings["environments"].details["cells"]
    assert len(rows) == 2
    for name, shown in zip(rows[0][1:], rows[1][1:], strict=True):
        (cell,) = [
            c for c in cells if c["source"] == rows[0][1] and c["target"] == name
        ]
        assert re.fullmatch(
            rf"\S+ \[.*\] v \+ v\N{{UP TACK}}: \S {cell['verdict']}", shown
        )


def test_incoherent_strengths_are_marked_by_the_sign_and_size_of_alpha(case) -> None:
    doses = case.findings["manipulation"].details["dose"]
    limits = [dose["perplexity_ratio"] > PERPLEXITY_LIMIT for dose in doses]
    assert set(limits) == {True, False}
    for dose, beyond in zip(doses, limits, strict=True):
        assert ("no longer" in coherence.mark(case, dose["alpha"])) is beyond
    one_sided = [
        dose | ({} if dose["alpha"] > 0 else {"perplexity_ratio": 1.0,
                                              "perplexity_high": 1.0})
        for dose in doses
    ]  # fmt: skip
    details = case.findings["manipulation"].details | {"dose": one_sided}
    here = changed(case, "manipulation", details=details)
    assert coherence.mark(here, 2.0)
    assert not coherence.mark(here, -2.0)
    assert not coherence.mark(here, 0.0)
    assert not coherence.mark(here, 1.7)


def test_a_strength_that_may_be_incoherent_is_not_said_to_be(case) -> None:
    doses = [
        dose | {"perplexity_ratio": 1.4, "perplexity_high": 1.6}
        for dose in case.findings["manipulation"].details["dose"]
    ]
    here = changed(case, "manipulation", details={"dose": doses})
    assert "perhaps not coherent" in coherence.mark(here, 2.0)
    assert coherence.told(here, [2.0]) == ""


@pytest.mark.parametrize("name", ["figure-3", "steerability"])
def test_incoherent_strengths_are_in_the_table_and_in_the_paragraph(case, name) -> None:
    said = plain_text(tree(section(render([case]), name)))
    assert "texts no longer coherent: perplexity 2.2 times" in said
    assert re.search("At . = 2 v.s texts are no longer coherent", said)


def test_coherent_strengths_are_not_marked(case) -> None:
    doses = [
        dose | {"perplexity_ratio": 1.2, "perplexity_high": 1.4}
        for dose in case.findings["manipulation"].details["dose"]
    ]
    page = text_of(changed(case, "manipulation", details={"dose": doses}))
    assert "no longer coherent" not in page
    assert "perhaps not coherent" not in page


def test_every_page_names_how_the_probe_scores_and_nothing_of_it_is_markup(
    runs, tmp_path
) -> None:
    store = write_store(tmp_path / "run", replace(PAPERS["paper"], num_prompts=6))
    store.write_findings(store.findings(), {**store.facts(), "probe": JUDGE})
    write_report(store.folder)
    for file in ("report.html", "paper.html", "card.md"):
        raw = (store.folder / file).read_text(encoding="utf-8")
        shown = raw if file == "card.md" else plain_text(tree(raw))
        for part in ("judge", "a/judge", "http://host/v1", "base url"):
            assert part in shown, (file, part)
        assert "<b>" not in raw
        assert "revision: ;" not in raw
        assert "Rate &lt;b&gt;this&lt;/b&gt;" in raw
    for name, kind in (("paper", "lexical"), ("strong", "lexical")):
        for file in ("report.html", "card.md"):
            assert kind in (runs[name] / file).read_text(encoding="utf-8")


def test_a_run_whose_facts_lack_source_kind_and_record_has_its_pages(tmp_path) -> None:
    store = write_store(tmp_path / "run", replace(PAPERS["paper"], num_prompts=6))
    facts = store.facts()
    probe = {k: v for k, v in facts["probe"].items() if k not in ("kind", "record")}
    facts = {k: v for k, v in facts.items() if k != "source"} | {"probe": probe}
    store.write_findings(store.findings(), facts)
    write_report(store.folder)
    page = (store.folder / "paper.html").read_text(encoding="utf-8")
    row = table(page, "The run")[-1]
    assert row[3] == "50"
    assert row[6] == "formality , lexical, AUC 0.98"


@pytest.mark.parametrize(
    ("bound", "told"),
    [(0.29, "none reliability too low"), (0.3, "0.500"), (0.8, "0.500")],
)
def test_r_is_corrected_from_a_reliability_of_three_tenths_on(
    case, bound, told
) -> None:
    seen = case.findings["replication"].details
    details = seen | {"r_prompts_bound": bound, "r_disattenuated": 0.5}
    page = render([changed(case, "replication", details=details)])
    assert table(page, "The same data")[-1][7] == told
    assert ("too noisy for a correction" in page) is (bound < 0.3)
    assert f"correlate by {bound:.3f} on average" in page


def test_hedges_d_is_left_out_where_a_finding_has_none(case) -> None:
    assert "Hedges" in table(render([case]), "The same data")[1][1]
    seen = dict(case.findings["replication"].details)
    del seen["hedges"]
    heads = table(
        render([changed(case, "replication", details=seen)]), "The same data"
    )[1]
    assert not any("Hedges" in head for head in heads)


def test_the_layer_is_written_in_one_way_on_every_page(runs) -> None:
    for file in ("report.html", "paper.html", "card.md"):
        text = (runs["paper"] / file).read_text(encoding="utf-8")
        assert "3 (of 0 to 5)" in text
        assert "3 of 5" not in text
        assert "3 of 0 to 5" not in text


def test_a_page_of_runs_without_a_probe_says_so(runs) -> None:
    page = (runs["paper unscored"] / "paper.html").read_text(encoding="utf-8")
    notes = plain_text(tree(page)).partition("Notes on what was run")[2]
    assert "Figure 3: every strength : no probe" in notes
    sparse = (runs["paper sparse"] / "paper.html").read_text(encoding="utf-8")
    notes = plain_text(tree(sparse)).partition("Notes on what was run")[2]
    assert "Figure 3: every strength : not asked for" in notes
    assert "no probe" not in notes


def test_what_the_paper_does_not_claim_is_not_called_its_claim(runs) -> None:
    page = (runs["paper"] / "paper.html").read_text(encoding="utf-8")
    assert "<strong>Not in the paper</strong>" in section(page, "steerability")
    claims = re.compile("The paper.s claim")
    assert not claims.search(section(page, "steerability"))
    assert claims.search(section(page, "table-1"))


def test_the_opening_says_once_how_long_v_plus_perp_is(runs) -> None:
    page = (runs["paper"] / "paper.html").read_text(encoding="utf-8")
    opening = plain_text(tree(page.partition("<header>")[2].partition("</header>")[0]))
    assert opening.count("1.41 times as long") == 1
    assert "a row of its own" in opening
    sparse = (runs["paper sparse"] / "paper.html").read_text(encoding="utf-8")
    assert "a row of its own" not in sparse


def test_large_numbers_have_three_significant_digits_in_every_form() -> None:
    written = [fixed(12345.6), padded(12345.6, 5), plain(12345.6, 5), signed(12345.6)]
    assert written == ["12300", "12300", "12300", "+12300"]
    assert percent(123.456) == f"12300{NARROW}%"
    assert signed(-12345.6) == "\N{MINUS SIGN}12300"
    assert [fixed(9999.4), plain(9999.4, 4)] == ["9999.400", "9999"]
