"""The pages of geometry show every finding as it is, and nothing that is not there."""

import itertools
import json
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from tests.report import geometries as made
from tests.report.geometry_audits import audited
from tests.report.stores import NASTY
from tests.report.trees import (
    check_filled,
    check_said,
    check_sound,
    plain_text,
    table,
    tables,
    tree,
)

from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.report import equivalent, words
from steergauge.report.depth import render_depth
from steergauge.report.geometry import MAKERS, has_geometry, render, sections
from steergauge.report.geometry_headline import MOST, headline
from steergauge.report.grid import UNKNOWN
from steergauge.report.plots import thinned
from steergauge.report.side_by_side import ARMS, side_by_side
from steergauge.report.spectrum_figure import spectrum
from steergauge.report.templating import environment
from steergauge.report.verdicts import GEOMETRY_VERDICTS
from steergauge.statistics import Estimate

Findings = dict[str, Finding]
HOSTILE = made.FACTS | {"model": "<script>m</script>", "trait": "<b>t</b> alpha's"}


def hostile() -> Findings:
    found = made.whole()
    name = made.HOSTILE
    found["nulls"] = made.nulls(name)
    details = dict(found["methods"].details)
    details["names"] = [name, *details["names"][1:]]
    details["classes"] = [[name, "discriminant"]]
    found["methods"] = replace(
        found["methods"], details=details, reasons=(f"Of {name}.",)
    )
    return found


def unverified() -> Finding:
    """T10 without a candidate that was verified."""
    found = made.alternative(Verdict.INCONCLUSIVE)
    no = {"verified": False, "verified_main": False}
    tried = [one | no for one in found.details["candidates"]]
    return replace(found, details={**found.details, "candidates": tried})


def layers() -> list[tuple[int, dict[str, Any], Findings]]:
    """Three layers in no order: one lacks two audits, one verified nothing."""
    swept = []
    for layer, rho in ((12, 0.5), (2, 6.0), (7, 2.0)):
        found = made.whole()
        seen = Estimate(rho, 0.8 * rho, 1.2 * rho)
        found["decomposition"] = replace(found["decomposition"], estimate=seen)
        if layer == 12:
            del found["alternative"], found["saturation"]
        if layer == 7:
            found["alternative"] = unverified()
        swept.append((layer, made.FACTS | {"layer": layer}, found))
    return swept


PAGES = {
    "whole": lambda: render(made.FACTS, made.whole(), made.rows()),
    "bare": lambda: render(made.FACTS, made.bare(), []),
    "unknown": lambda: render(made.FACTS, made.unknown(), made.rows()),
    "hostile": lambda: render(HOSTILE, hostile(), made.rows(NASTY)),
    "unscored": lambda: render(made.FACTS | {"probe": None}, made.whole(), []),
    "depth": lambda: render_depth(layers()),
    "depth bare": lambda: render_depth([(3, made.FACTS, made.bare())]),
    "depth hostile": lambda: render_depth([(3, HOSTILE, hostile())]),
}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: make() for name, make in PAGES.items()}


@pytest.mark.parametrize("name", PAGES)
def test_a_geometry_page_is_well_formed_and_loads_nothing(pages, name) -> None:
    below = {f"layer-{layer:02d}/geometry.html" for layer in (2, 3, 7, 12)}
    check_sound(pages[name], {"report.html", *below})


@pytest.mark.parametrize("name", [name for name in PAGES if "hostile" not in name])
def test_nothing_on_a_geometry_page_is_empty_or_a_python_word(pages, name) -> None:
    check_filled(pages[name])


def test_every_verdict_number_interval_reason_and_control_is_on_the_page(
    pages,
) -> None:
    check_said(pages["whole"], made.whole())
    captions = tables(pages["whole"])
    assert sum(rows[0][0] == "control" for rows in captions.values()) == len(MAKERS)
    assert pages["whole"].count("What it can carry.") == len(MAKERS)


@pytest.mark.parametrize("absent", MAKERS)
def test_an_audit_that_was_not_run_is_left_out_and_named(absent) -> None:
    found = made.whole()
    question = words.question(found.pop(absent))
    assert has_geometry(found)
    page = render(made.FACTS, found, made.rows())
    ids = set(re.findall(r'<section id="([\w-]+)"', page))
    assert len(ids) == len(MAKERS) - 1 + len({"verdicts", "glossary"})
    text = plain_text(tree(page))
    assert text.count(question) == 1
    assert f"{question} Not asked in this run." in text


def test_a_run_without_geometry_has_none() -> None:
    assert not has_geometry({})
    other = replace(made.spectrum(), audit="equivalence")
    assert not has_geometry({"equivalence": other})


def test_the_same_findings_give_the_same_page_in_any_order(pages) -> None:
    found = list(made.whole().items())
    random.Random(0).shuffle(found)
    assert render(made.FACTS, dict(found), made.rows()) == pages["whole"]
    assert render_depth(layers()[::-1]) == pages["depth"]


@pytest.mark.parametrize("name", ["hostile", "depth hostile"])
def test_hostile_names_and_texts_of_geometry_are_no_markup(pages, name) -> None:
    page = pages[name]
    for trace in ("<script", "<img", "<b>", "<i>hey", "onerror=alert(1)>"):
        assert trace not in page.replace('<i aria-hidden="true">', "")
    shown = "".join(tree(page).text)
    assert "<script>m</script>" in shown
    if name == "hostile":
        assert shown.count("<script>u</script> {{ 7 * 7 }}") > 3
        assert NASTY[0] in shown
        assert "49" not in re.sub(r"\d+\.\d+|\d{3,}", "", shown.partition("Words")[0])


def test_every_verdict_has_a_sign_of_its_own_a_meaning_and_a_colour() -> None:
    assert set(words.VERDICTS) == set(Verdict)
    assert len({word.icon for word in words.VERDICTS.values()}) == len(Verdict)
    assert set(GEOMETRY_VERDICTS) < set(Verdict)
    loader = environment().loader
    assert loader is not None
    sheets = "".join(
        loader.get_source(environment(), name)[0]
        for name in ("report.css", "verdicts.css")
    )
    for verdict in Verdict:
        style = words.verdict_style(verdict)
        assert re.search(rf"^[^{{]*\.{style}\b[^{{]*\{{\s*--badge", sheets, re.M)


def test_the_line_of_the_spectrum_lies_where_the_eigenvalues_are() -> None:
    (figure, _) = spectrum(made.spectrum()).plots
    (line,) = figure.traces
    places = [tuple(map(float, pair.split(","))) for pair in line.path.split()]
    values = made.eigenvalues()
    assert len(places) == len(values)
    sigma = [math.log(value / values[0]) / 2 for value in values]
    heights = [height for _, height in places]
    # Heights are linear in log sigma: two points fix the scale, to rounding of 0.01.
    scale = (heights[-1] - heights[0]) / (sigma[-1] - sigma[0])
    for seen, height in zip(sigma, heights, strict=True):
        assert height == pytest.approx(heights[0] + scale * seen, abs=0.03)
    lines = {guide.kind: guide.places for guide in figure.guides}
    assert len(lines["limit"]) == 3
    (floor,), (zone,) = lines["floor"], lines["zone"]
    assert floor - zone == pytest.approx(-scale * math.log(10), abs=0.03)
    assert heights[-3] < zone < heights[-2]


def test_a_wide_spectrum_keeps_both_of_its_ends() -> None:
    kept = thinned(4096)
    assert len(kept) <= 240
    assert kept[:30] == list(range(30))
    assert kept[-30:] == list(range(4066, 4096))
    steps = [after - before for before, after in itertools.pairwise(kept)]
    # Evenly between the ends: (4096 - 80) / 160 is 25.1.
    assert max(steps) <= 27


def test_a_rank_below_the_floor_is_not_given_as_a_number(pages) -> None:
    rows = table(pages["whole"], "The family of effective ranks")
    heads, body = rows[1], rows[2:]
    masked = next(
        k for k, head in enumerate(heads) if head.startswith(words.plain(1e-6))
    )
    assert [row[masked] for row in body] == ["below the floor"] * 4
    assert [row[heads.index("0.01")] for row in body] == ["19"] * 4


def test_the_published_estimate_is_labelled_as_an_emulation_that_is_biased(
    pages,
) -> None:
    text = plain_text(tree(pages["whole"]))
    assert words.typeset("emulation of the published code, not the authors'") in text
    rows = table(pages["whole"], "The null-space estimate of arXiv 2602.06801")
    assert [row[0].split()[0] for row in rows[2:]] == ["float16", "float32"]
    assert [row[5] for row in rows[2:]] == ["1.94", "0.00100"]


@pytest.mark.parametrize("cosine", [0.98, 0.42, 0.0, -0.6])
def test_the_drawn_angle_is_the_angle_between_the_vectors(cosine) -> None:
    main = {
        "budget": 0.05, "cosine": cosine, "norm": 1.0, "verified_main": True,
        "nats": [0.02, 0.01, 0.03], "control": [0.4, 0.3, 0.5],
    }  # fmt: skip
    details = {**made.alternative().details, "candidates": [main]}
    found = replace(made.alternative(), details=details)
    drawing = equivalent.equivalent(found, ()).drawing
    assert drawing is not None
    tips = {arrow.style: (arrow.x - 160, 150 - arrow.y) for arrow in drawing.arrows}
    assert tips["own"][1] == 0
    theta = math.acos(cosine)
    for style, sign in (("candidate", 1), ("control", -1)):
        # Tips are kept to a tenth of a unit, of a radius of 112.
        assert math.atan2(tips[style][1], tips[style][0]) == pytest.approx(
            sign * theta, abs=2e-3
        )
    assert f"{math.degrees(theta):.0f} degrees" in drawing.described


def test_what_was_not_verified_is_not_drawn_as_if_it_were() -> None:
    found = unverified()
    page = render(made.FACTS, {found.key: found}, [])
    assert "which was not verified" in page
    assert [row[-1] for row in table(page, "Candidates")[2:]] == ["✕ no"] * 3
    assert headline({found.key: found})[0].startswith("Nothing could be said")


def test_texts_of_both_are_the_first_of_the_test_and_only_these_arms() -> None:
    shown = side_by_side(made.rows(), ((), ()))
    assert [one.prompt for one in shown] == ["Write of lake 0.", "Write of lake 2."]
    for prompt in shown:
        assert tuple(column.arm for column in prompt.columns) == ARMS
        for column in prompt.columns:
            assert len(column.texts) == 2
            assert all(
                str(text.html).endswith(f"{column.arm} test") for text in column.texts
            )
    alone = [row for row in made.rows() if row["arm"] != "most_different"]
    assert side_by_side(alone, ((), ())) == ()


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Verdict.STRUCTURED, "with a random vector of its length added does not"),
        (Verdict.GENERIC, "with a random vector of its length added writes the same"),
        (Verdict.IDENTIFIABLE, "no proof"),
    ],
)
def test_the_headline_says_what_the_verdict_says(verdict, said) -> None:
    found = made.whole() | {"alternative": made.alternative(verdict)}
    told = headline(found)
    assert 2 <= len(told) <= MOST
    assert said in told[0]
    assert "65°" in told[0]


def test_the_headline_claims_nothing_of_what_could_not_be_told() -> None:
    for verdict in (Verdict.UNINFORMATIVE, Verdict.INCONCLUSIVE):
        found = made.alternative(verdict)
        assert headline({found.key: found})[0].startswith("Nothing could be said")
    assert headline(made.bare())[0].startswith("Nothing could be said")
    broken = made.finding("plumbing", "T0", Verdict.FAIL, {})
    told = headline(made.whole() | {"plumbing": broken})
    assert len(told) == 1
    assert "do not describe this vector" in told[0]


def test_a_strength_beyond_second_order_theory_is_said_in_the_headline() -> None:
    quiet = " ".join(headline(made.whole()))
    assert "Second-order" not in quiet
    found = made.whole() | {"linearity": made.linearity(Verdict.NONLINEAR)}
    told = headline(found)
    assert len(told) == MOST
    assert told[-1].startswith("Second-order theory does not reach this strength")


def test_a_control_that_failed_is_open_and_the_others_are_not() -> None:
    good = made.spectrum()
    failed = Control("top", "it is visible", None, "EXACT NULL", False)
    bad = replace(made.nulls(), controls=(failed,))
    page = render(made.FACTS, {good.key: good, bad.key: bad}, [])
    assert re.search(r'class="block" open><summary>0 of 1 control as', page)
    assert re.search(r'class="block"><summary>1 of 1 control as', page)


def test_the_depth_page_links_each_layer_and_leaves_out_what_is_not_there(
    pages,
) -> None:
    page = pages["depth"]
    links = re.findall(r'href="(layer[^"]+)"', page)
    assert links == [f"layer-{layer}/geometry.html" for layer in ("02", "07", "12")]
    rows = table(page, "Each layer, with its page")
    assert [row[0] for row in rows[1:]] == ["layer 2", "layer 7", "layer 12"]
    heads = rows[0]
    angle, null = heads.index("angle"), heads.index("null dimension")
    assert rows[1][angle].endswith("65°")
    assert rows[2][angle].split()[-2:] == ["INCONCLUSIVE", UNKNOWN.text]
    assert rows[3][angle] == rows[3][null] == UNKNOWN.text
    text = plain_text(tree(page))
    assert "(layer 12) to 6.00" in text
    for title in ("Directions that are seen", "Widest verified angle", "Null dimension",
                  "Radius of linearisation"):  # fmt: skip
        assert title in text
    figures = page.split("<figure")[1:]
    dots = {
        re.sub("<.*?>", "", figure.partition("<bdi>")[2].partition("</bdi>")[0]):
        len(re.findall("<title>", figure))
        for figure in figures
    }  # fmt: skip
    assert (dots["Widest verified angle"], dots["Null dimension"]) == (1, 2)
    assert dots["Radius of linearisation"] == 3


def test_what_the_audits_keep_is_what_the_page_reads() -> None:
    found = {
        key: Finding.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False)))
        for key, one in audited().items()
    }
    shown = {one.name: one for one in sections(found, made.rows(), ((), ()))}
    counts = {
        name: (len(one.plots), len(one.grids), len(one.folded))
        for name, one in shown.items()
    }
    assert counts == {
        "spectrum": (2, 2, 0), "placement": (1, 3, 0), "nulls": (2, 1, 1),
        "saturation": (3, 0, 1), "equivalent": (1, 1, 0), "linearity": (2, 1, 0),
        "gauge": (0, 2, 0), "methods": (0, 3, 0),
    }  # fmt: skip
    assert shown["equivalent"].drawing is not None
    page = render(made.FACTS, found, made.rows())
    text = plain_text(tree(page))
    assert not re.search(r"\b(None|nan|inf|True|False)\b", text)
    for one in found.values():
        for reason in one.reasons:
            assert " ".join(words.typeset(reason).split()) in text
    (rank, *_) = (row for row in table(page, "The family") if row[0].startswith("F_x"))
    assert UNKNOWN.text not in rank


def test_geometry_pages_need_no_torch() -> None:
    program = (
        "import sys\n"
        "import steergauge.report.geometry, steergauge.report.depth\n"
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
