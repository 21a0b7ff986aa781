"""The numbers and sentences of the paper's page are those of the findings."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.report.papers import PAPERS
from tests.report.stores import write_store
from tests.report.trees import plain_text, table, tree

from steergauge.audits.finding import Finding, Verdict
from steergauge.report import glance, write_report
from steergauge.report.cases import Case, single
from steergauge.report.lifted import sentence
from steergauge.report.paper import render
from steergauge.report.perp_only import figure_2, lift_ratios, raw_ratios
from steergauge.report.verdicts import vocabulary
from steergauge.runs.store import Store
from steergauge.statistics import Estimate

SCORED = [name for name in PAPERS if name != "paper unscored"]
FULL = ["paper", "paper nothing", "paper backward", "paper hostile"]
MINUS, NARROW = "\N{MINUS SIGN}", " "  # `tables` reads every blank as a plain one.


def shown(value: float, form: str = ".3f") -> str:
    return f"{value:{form}}".replace("-", MINUS)


def in_percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}{NARROW}%".replace("-", MINUS)


def bracketed(low: float, high: float, form: str = "+.3f") -> str:
    return f"[{shown(low, form)},{NARROW}{shown(high, form)}]"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for name, scenario in PAPERS.items():
        folders[name] = tmp_path_factory.mktemp("one") / "run"
        write_store(folders[name], scenario)
        write_report(folders[name])
    return folders


@pytest.fixture(scope="module")
def pages(runs) -> dict[str, str]:
    return {
        name: (folder / "paper.html").read_text(encoding="utf-8")
        for name, folder in runs.items()
    }


@pytest.fixture(scope="module")
def found(runs) -> dict[str, dict[str, Finding]]:
    return {name: Store(folder).findings() for name, folder in runs.items()}


def row_of(rows: list[list[str]], *parts: str) -> list[str]:
    """The only row whose first cells hold the parts."""
    (row,) = [row for row in rows if all(part in row[:2] for part in parts)]
    return row


def strength_row(rows: list[list[str]], alpha: float) -> list[str]:
    """The only row of a strength, whatever is said beside it."""
    (row,) = [row for row in rows if row[0].split()[:1] == [shown(alpha, "g")]]
    return row


@pytest.mark.parametrize("name", SCORED)
def test_every_published_number_of_table_1_is_the_findings(pages, found, name) -> None:
    details = found[name]["replication"].details
    rows = table(pages[name], "Table 1, as published")[2:]
    assert len(rows) == len(details["published"]) + bool(details["code"])
    for row, told in zip(rows, details["published"], strict=False):
        assert row[1] == f"n = {told['seeds']}"
        assert row[2].startswith(shown(told["d_mean"]))
        assert row[3].startswith(shown(told["r_mean"]))
        assert row[4] == in_percent(told["perp_only_percent"] / 100)
        assert row[5].startswith(shown(details["itself"]["d_mean"]))
        scores = details["raw_scores"]
        assert row[7] == in_percent(scores["unsteered"] / scores["v"])
        if told["num"] > 1:
            assert row[2].endswith(f"±{NARROW}{shown(told['d_sd'])}")
            assert row[3].endswith(f"±{NARROW}{shown(told['r_sd'])}")
    if details["code"]:
        assert rows[-1][2].startswith(shown(details["code"]["d_mean"]))
        percent = details["code"]["perp_only_percent"] / 100
        assert rows[-1][4] == in_percent(percent)


@pytest.mark.parametrize("name", SCORED)
def test_every_number_beside_table_1_is_the_findings(pages, found, name) -> None:
    seen = found[name]["replication"]
    details, estimate = seen.details, seen.estimate
    value, low, high = details["hedges"]
    row = table(pages[name], "The same data")[-1]
    assert row[1] == f"{shown(value, '+.3f')} {bracketed(low, high)}"
    assert (estimate is None) is (name == "paper sparse")
    if estimate is not None:
        tested = bracketed(estimate.low, estimate.high)
        assert row[8].endswith(f"{shown(estimate.value, '+.3f')} {tested}")
    keys = ("icc", "r_expected", "reliability")
    assert row[2] == shown(details["noise_floor"]["shared_prompts"])
    assert row[3:6] == [shown(details[key]) for key in keys]
    lifts = table(pages[name], "Scores and lifts")[-1]
    value, low, high = details["lift_ratio"]
    ends = "[unbounded]" if low is None else None
    assert lifts[7].startswith(in_percent(value))
    assert lifts[7].endswith(ends or f"{NARROW}{in_percent(high)}]")
    said = table(pages[name], "What may be said")[-1]
    for cell, key in ((1, "equivalence"), (2, "equivalence[v_perp alone]")):
        assert str(found[name][key].verdict) in said[cell]
    certificate = found[name]["divergence"].details["certificate"]
    assert said[4] == shown(certificate)


def test_a_vector_without_effect_has_an_unbounded_ratio_and_no_equivalence(
    pages, found
) -> None:
    details = found["paper nothing"]["replication"].details
    assert details["lift_ratio"][1] is None
    assert "[unbounded]" in table(pages["paper nothing"], "Scores and lifts")[-1][7]
    page = plain_text(tree(pages["paper nothing"]))
    assert "cannot be told from 0" in page
    assert "cannot be read as equivalence" in page
    assert "as far as v does, within" not in page


@pytest.mark.parametrize("name", FULL)
def test_environments_strengths_and_slopes_are_the_findings(pages, found, name) -> None:
    cells = found[name]["environments"].details["cells"]
    published = table(pages[name], "Table 2, as published")
    diagonal = [cell for cell in cells if cell["source"] == cell["target"]]
    shared = [cell for cell in diagonal if cell["published_d"] is not None]
    assert shared
    for cell in shared:
        place = published[0].index(cell["target"])
        floor = shown(cell["floor"], ".2f")
        assert published[1][place] == f"{cell['published_d']:.2f} floor {floor}"
    matrix = table(pages[name], "Extracted in a row")
    for cell in cells:
        row = row_of(matrix[3:], cell["source"])
        place = matrix[1].index(cell["target"])
        assert row[place].startswith(shown(cell["lift"][0], "+.2f"))
        assert row[place].endswith(cell["verdict"].lower())
    scale = found[name]["scale[every alpha]"].details
    rows = table(pages[name], "Figure 3 in figures")
    for point in scale["curve"]:
        row = strength_row(rows, point["alpha"])
        assert row[1].startswith(shown(point["v"][0]))
        assert row[2].startswith(shown(point["v_plus_perp"][0]))
    for cell in scale["cells"]:
        row = strength_row(rows, float(cell["name"]))
        assert row[5].startswith(shown(cell["difference"][0], "+.3f"))
        assert row[6].endswith(cell["verdict"])
    slopes = found[name]["reliability"]
    row = table(pages[name], "Per-prompt steerability")[-1]
    assert row[1] == in_percent(slopes.details["raw_share"], 0)
    assert slopes.estimate is not None
    assert row[3].startswith(in_percent(slopes.estimate.value))


@pytest.mark.parametrize("name", [*FULL, "paper unscored"])
def test_every_number_of_table_3_is_the_findings(pages, found, name) -> None:
    seen = found[name]["logits"]
    details, measures = seen.details, seen.details["measures"]
    row = table(pages[name], "Table 3, as published")[-1]
    assert row[1] == shown(details["ratio_published"])
    assert row[2] == in_percent(measures["v_plus_perp"]["agreement"][0], 0)
    assert row[7] == in_percent(measures["unsteered"]["overlap"][0], 0)
    row = table(pages[name], "R beside what geometry")[-1]
    for place, key in enumerate(("rho", "ratio_null", "ratio_rms", "excess"), start=1):
        assert float(row[place].split()[0]) == pytest.approx(details[key][0], rel=0.01)
    assert row[6].endswith(str(seen.verdict))
    arms = table(pages[name], "Next-token distributions")
    assert len(arms) == 2 + len(measures)


@pytest.mark.parametrize("name", PAPERS)
def test_the_matrix_shows_every_verdict_and_no_other(pages, found, name) -> None:
    rows = table(pages[name], "Verdicts")[1:]
    audits = found[name].values()
    named = [str(one.verdict) for one in audits if one.audit != "plumbing"]
    told = [key for key in found[name] if key.startswith("divergence[")]
    for key in told:
        named.remove(str(found[name][key].verdict))
    assert sorted(row[1].split(maxsplit=1)[1] for row in rows) == sorted(named)


def test_the_scenarios_between_them_have_every_verdict(found) -> None:
    seen = {one.verdict for findings in found.values() for one in findings.values()}
    assert seen == set(vocabulary(()))


@pytest.mark.parametrize("name", SCORED)
def test_ratios_of_lifts_by_direction_have_the_findings_mean(found, name) -> None:
    details = found[name]["replication"].details
    ratios = lift_ratios(details)
    assert len(ratios) == len(details["per_seed"]) == len(raw_ratios(details))
    # The stored ratio is of means over the same texts: the same number up to rounding.
    assert sum(ratios) / len(ratios) == pytest.approx(details["lift_ratio"][0])


def test_marks_of_figure_2_lie_where_their_numbers_are(runs) -> None:
    (block,) = figure_2([single(Store(runs["paper"]))])
    raw, lifts = block.strips
    (row,), (lift,) = raw.rows, lifts.rows
    assert row.reference is not None
    assert row.reference < raw.lines[0].at
    assert min(dot.at for dot in row.dots) <= row.mean <= max(d.at for d in row.dots)
    idle, whole = lifts.lines
    assert lift.low < lift.mean < lift.high < whole.at
    assert lift.low < idle.at < lift.high


def test_a_ratio_without_bounds_is_drawn_over_the_whole_axis(runs) -> None:
    (block,) = figure_2([single(Store(runs["paper nothing"]))])
    (row,) = block.strips[1].rows
    assert (row.low, row.high) == (0, 100)


@pytest.mark.parametrize("verdict", Verdict)
def test_a_sentence_says_no_more_than_its_verdict(found, verdict) -> None:
    changed = replace(found["paper"]["equivalence"], verdict=verdict)
    said = sentence("v + it", changed)
    assert ("as far as v does" in said) is (verdict is Verdict.EQUIVALENT)
    assert ("differs" in said) is (verdict is Verdict.DIFFERENT)
    assert ("could not be told" in said) is (verdict is Verdict.INCONCLUSIVE)
    assert bool(said) is (
        verdict in (Verdict.EQUIVALENT, Verdict.DIFFERENT, Verdict.INCONCLUSIVE)
    )


@pytest.mark.parametrize("verdict", Verdict)
def test_the_page_claims_equivalence_of_strengths_only_with_that_verdict(
    runs, verdict
) -> None:
    case = single(Store(runs["paper"]))
    key = "scale[every alpha]"
    changed = dict(case.findings)
    changed[key] = replace(changed[key], verdict=verdict)
    page = plain_text(tree(render([replace(case, findings=changed)])))
    claim = "does what v does at every strength, within the margin"
    assert (claim in page) is (verdict is Verdict.EQUIVALENT)


def test_the_first_sentence_counts_cases_by_their_verdicts(runs) -> None:
    case = single(Store(runs["paper"]))

    def judged(move: Verdict, added: Verdict, alone: Verdict) -> Case:
        new = {
            "manipulation": move,
            "equivalence": added,
            "equivalence[v_perp alone]": alone,
        }
        findings = {
            key: replace(one, verdict=new.get(key, one.verdict))
            for key, one in case.findings.items()
        }
        return replace(case, findings=findings)

    same, other, unknown = Verdict.EQUIVALENT, Verdict.DIFFERENT, Verdict.INCONCLUSIVE
    several = [
        judged(Verdict.PASS, same, other),
        judged(Verdict.PASS, unknown, other),
        judged(Verdict.FAIL, Verdict.UNINFORMATIVE, Verdict.UNINFORMATIVE),
    ]
    said = glance.opening(several)
    assert "in 2 of 3 cases. Of those, v + " in said
    assert "moves it as far in 1, is undecided in 1;" in said
    assert "alone does not move it as far in 2." in said
    assert "Of those" not in glance.opening(several[:2])
    key = "equivalence[v_perp alone]"
    alone = replace(several[0].findings[key], estimate=Estimate(0.2, 0.1, 0.3))
    farther = replace(several[0], findings={**several[0].findings, key: alone})
    assert "alone moves it farther in 2." in glance.opening([farther, farther])
    assert "In none of 2 cases" in glance.opening([several[2], several[2]])
