"""What the figures, lifts and marked words show is what was measured."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape
from tests.report.papers import PAPER
from tests.report.stores import (
    BACKWARD,
    HIGH,
    LOW,
    SAME,
    STRONG,
    write_store,
)

from steergauge.audits.finding import Verdict
from steergauge.probes import lexical_score
from steergauge.report.axis import Axis, linear_axis
from steergauge.report.dose import dose_panels
from steergauge.report.forest import kl_forest, lift_forest
from steergauge.report.lifted import still_needed
from steergauge.report.lifts import lifts
from steergauge.report.samples import NUM_PROMPTS, marked, samples, word_places
from steergauge.report.words import arm_name, plain
from steergauge.runs import evidence
from steergauge.runs.store import Store

WORDS = (HIGH, LOW)
TEXTS = st.lists(
    st.sampled_from(
        [*HIGH, *LOW, "Hey!", "heyday", "<b>", "&amp;", "wish", "\x00", "."]
    )
    | st.text(max_size=6)
).map(" ".join)


@pytest.fixture(scope="module", params=["strong", "backward", "paper"])
def store(request, tmp_path_factory) -> Store:
    scenario = {"strong": STRONG, "backward": BACKWARD, "paper": PAPER}[request.param]
    return write_store(tmp_path_factory.mktemp(request.param) / "run", scenario)


def seen(store: Store):
    facts = store.facts()
    return lifts(store.generations(), alpha=facts["alpha"], seed=facts["seed"])


def test_lifts_and_intervals_of_the_page_are_those_of_the_audits(store) -> None:
    found, again = store.findings(), seen(store)
    assert found["manipulation"].estimate == again["v"].estimate
    controls = {c.name: c.estimate for c in found["manipulation"].controls}
    assert set(controls) == {"random", "sign_flip", "minus_v"}
    for name, estimate in controls.items():
        assert again[name].estimate == estimate


def test_lifts_are_of_the_arms_that_the_audits_compare() -> None:
    kinds = {arm: evidence.shares_noise_and_alpha(arm) for arm in PAPER.arms}
    assert set(kinds.values()) == {True, False}
    rows = [
        {"stage": "test", "arm": arm, "prompt_index": k, "sample": 0, "score": 0.5}
        for arm in PAPER.arms
        for k in range(2)
    ]
    shown = {
        arm for lift in lifts(rows, alpha=1.0, seed=0).values() for arm in lift.arms
    }
    assert shown == {arm for arm, compared in kinds.items() if compared}


@pytest.mark.parametrize(("drawn", "advised"), [(True, True), (False, False)])
def test_the_paper_page_advises_directions_only_where_they_are_drawn(
    store, drawn, advised
) -> None:
    found = store.findings()["equivalence"]
    details = {"prompts_to_decide": 1, "short_of_directions": False, "drawn": drawn}
    opened = replace(
        found, verdict=Verdict.INCONCLUSIVE, num_prompts=100, details=details
    )
    assert ("more directions" in still_needed(opened)) == advised


def test_texts_without_a_score_have_no_lifts(store) -> None:
    rows = [row | {"score": None} for row in store.generations()]
    assert lifts(rows, alpha=1.0, seed=0) == {}


def test_marks_of_a_forest_lie_where_their_numbers_are(store) -> None:
    figure = lift_forest(seen(store), store.findings())
    v = next(row for row in figure.rows if row.label == "v")
    zero = next(line for line in figure.lines if line.kind == "zero")
    limit = next(line for line in figure.lines if line.kind == "limit")
    band = next(line for line in figure.lines if line.kind == "band")
    assert max(zero.at, limit.at) < v.low < v.mean < v.high
    assert band.at < v.mean < band.at + band.width
    for row in figure.rows:
        assert 0 <= row.low <= row.mean <= row.high <= 100
        assert all(0 <= dot.at <= 100 for dot in row.dots)
    assert len(figure.rows[-1].dots) == 10


def test_the_budget_separates_same_from_different_texts(tmp_path) -> None:
    figure = kl_forest(write_store(tmp_path / "run", SAME).findings())
    assert figure is not None
    (budget,) = figure.lines
    rows = {row.label.partition(" (")[0]: row for row in figure.rows}
    assert rows["v + v\N{UP TACK}"].high < budget.at
    assert rows["v\N{UP TACK} alone"].low > budget.at + budget.width
    assert rows["v against itself"].beyond


def test_each_perpendicular_direction_has_its_dot_where_the_audit_tells(store) -> None:
    findings = store.findings()
    main = findings["divergence"]
    told = {**main.details, "directions": [2.0, 3.0, 4.0]}
    figure = kl_forest({**findings, "divergence": replace(main, details=told)})
    assert figure is not None
    row = next(row for row in figure.rows if row.label.endswith("(3)"))
    assert [dot.label for dot in row.dots] == ["2", "3", "4"]
    assert row.dots[0].at < row.mean < row.dots[2].at


def test_the_dose_panels_mark_the_chosen_strength(store) -> None:
    found, facts = store.findings(), store.facts()
    panels = dose_panels(found["manipulation"].details["dose"], facts["alpha"], 1.5)
    assert [panel.title for panel in panels] == [
        "Lift",
        "KL from unsteered",
        "Perplexity ratio",
    ]
    for panel in panels:
        points = [point for run in panel.runs for point in run]
        assert len(points) in (8, 9)
        assert any(point.x == panel.chosen for point in points)
        assert all(0 <= point.y <= 100 for point in points)
        assert len(panel.y_ticks) >= 2


@given(
    st.floats(-1e6, 1e6, allow_nan=False),
    st.floats(1e-6, 1e6, allow_nan=False),
)
def test_an_axis_has_two_to_six_ticks_inside_it(low, width) -> None:
    axis = linear_axis([low, low + width])
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 6
    assert all(0 <= tick.at <= 100 for tick in ticks)


@given(st.floats(1e-9, 1e3), st.floats(1.5, 1e9))
def test_a_logarithmic_axis_keeps_ratios(low, ratio) -> None:
    axis = Axis(low, low * ratio, log=True)
    assert axis.at(low * math.sqrt(ratio)) == pytest.approx(50, abs=0.1)
    assert axis.at(0.0) == 0
    assert len(axis.ticks()) <= 6


@given(TEXTS)
def test_marked_words_are_those_that_the_probe_counts(text) -> None:
    kinds = [kind for _, _, kind in word_places(text, WORDS)]
    score = 1 / (1 + math.exp(kinds.count("low") - kinds.count("high")))
    assert score == pytest.approx(lexical_score(HIGH, LOW)([text])[0], abs=1e-12)


@given(TEXTS)
def test_marking_escapes_everything_but_its_own_marks(text) -> None:
    page = str(marked(text, WORDS))
    for kind in ("high", "low"):
        page = page.replace(f'<mark class="{kind}">', "")
    page = page.replace("</mark>", "")
    assert "<" not in page
    assert page.replace("\u2400", "\x00") == _shown(text)


def _shown(text: str) -> str:
    """Escaped, and control characters as their signs, but for NUL."""
    signs = {
        code: chr(0x2400 + code) for code in range(1, 32) if chr(code) not in "\n\t"
    }
    text = text.replace("\u2400", "\x00")
    return str(escape(text.translate(signs | {0x7F: "\u2421"})))


def test_a_text_without_the_probes_words_is_only_escaped() -> None:
    assert marked("a < b", ((), ())) == "a &lt; b"


def test_samples_are_the_first_prompts_in_order_and_never_chosen(store) -> None:
    shown = samples(store.generations(), WORDS)
    assert [s.prompt for s in shown] == [
        f"Write a message about lake {k}." for k in range(NUM_PROMPTS)
    ]
    for prompt in shown:
        assert [column.arm for column in prompt.columns] == [
            "unsteered",
            "v",
            "minus_v",
            "v_plus_perp[0]",
            "perp[0]",
            "random[0]",
        ]
        assert len({len(column.texts) for column in prompt.columns}) == 1


def test_numbers_are_written_with_real_minus_signs_and_powers() -> None:
    assert plain(-0.25) == "\N{MINUS SIGN}0.25"
    assert plain(1e-8) == "1 \N{MULTIPLICATION SIGN} 10\u207b\u2078"
    assert plain(195687.0) == "196000"


def test_a_rival_keeps_the_name_that_its_user_gave_it() -> None:
    assert arm_name("against[my_v_perp]") == "“my_v_perp”"
