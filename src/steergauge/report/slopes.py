"""Per-prompt steerability (T20): slopes of the score over alpha, prompt by prompt.

Not in arXiv 2602.06801, whose numbers are means over prompts; the question is that of
arXiv 2407.12404.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from steergauge.audits.finding import Verdict
from steergauge.audits.reliability import TOLERATED
from steergauge.report import coherence
from steergauge.report.axis import Axis, Line, linear_axis
from steergauge.report.cases import Case, having
from steergauge.report.curves import Curves, Seen, down, series
from steergauge.report.grid import (
    Cell,
    Column,
    Grid,
    Row,
    known,
    measured,
    number,
    share,
    tables,
    verdict_cell,
    written,
)
from steergauge.report.parts import Block, said
from steergauge.report.words import MINUS, percent, plain

_CARRIES = (
    "A mean lift can hide prompts that move the wrong way. But slopes are measured "
    "with noise, and the raw share of negative ones counts noise as backwardness; the "
    "corrected share takes the noise of the samples out, and supposes that what is "
    "left is about normal."
)


def steerability(cases: list[Case]) -> tuple[Block, ...]:
    """Sorted slopes, and the shares that move against alpha."""
    found = list(having(cases, "reliability"))
    if not found:
        return ()
    return (
        Block(
            grids=tables(_table(found)),
            curves=tuple(_sorted(case, details) for case, details in found),
            said=said((case, _told(case, details)) for case, details in found),
            carries=_CARRIES,
        ),
    )


def _sorted(case: Case, details: Mapping[str, Any]) -> Curves:
    slopes = sorted(details["slopes"])
    points: list[Seen] = [
        (100 * (place + 0.5) / len(slopes), slope, slope, slope)
        for place, slope in enumerate(slopes)
    ]
    axes = (Axis(0.0, 100.0), linear_axis([0.0, *slopes], room=0.1))
    against = [point for point in points if point[1] < 0]
    along = [point for point in points if point[1] >= 0]
    shown = [
        series("against alpha", against, axes, style="candidate", joined=False),
        series("with alpha", along, axes, style="own", joined=False),
    ]
    return Curves(
        title=f"{case.trait} ({case.note})",
        unit="slope of each prompt's score, a unit of alpha, sorted",
        series=tuple(one for one in shown if one.spots),
        x_ticks=tuple(axes[0].ticks()),
        y_ticks=down(axes[1].ticks(5)),
        lines=(Line(round(100 - axes[1].at(0.0), 2), "no effect", "zero"),),
        x_label="prompts, in percent",
    )


def _table(found: Sequence[tuple[Case, Mapping[str, Any]]]) -> Grid:
    moving = "share that moves against alpha"
    columns = (
        Column("raw", moving, "of measured slopes"),
        Column("beyond noise", moving, "each by itself"),
        Column("corrected", moving, "with its interval"),
        Column("mean slope"),
        Column("spread", "", "between prompts"),
        Column("noise", "", "of one slope"),
        Column("linearity", "", "of the mean curve"),
        Column("strengths", "", "that it is the slope over"),
        Column("reliable?", "", f"at most {percent(TOLERATED)}; T20"),
    )
    rows = tuple(
        Row(case.trait, case.note, _cells(case, details)) for case, details in found
    )
    return Grid(
        caption="Per-prompt steerability",
        note=f"slope of the score over alpha from {MINUS}alpha to the largest strength",
        corner="trait",
        columns=columns,
        bodies=(("", rows),),
    )


def _cells(case: Case, details: Mapping[str, Any]) -> tuple[Cell, ...]:
    seen = case.findings["reliability"].estimate
    straight = details["linearity"]
    return (
        Cell(share(details["raw_share"])),
        Cell(share(details["significant_share"])),
        measured([seen.value, seen.low, seen.high] if seen else None, "share"),
        Cell(number(details["mean_slope"], signed=True)),
        Cell(number(details["spread"])),
        Cell(number(details["noise"])),
        Cell(share(straight) if known(straight) else "\N{EN DASH}"),
        _strengths(case, details["alphas"]),
        verdict_cell(case.verdict("reliability")),
    )


def _strengths(case: Case, alphas: Sequence[float]) -> Cell:
    """The range of alpha, and where in it the texts are coherent no longer."""
    marks = [
        f"at alpha = {plain(alpha)} {mark}"
        for alpha in alphas
        if (mark := coherence.mark(case, alpha))
    ]
    return Cell(f"{plain(min(alphas))} to {plain(max(alphas))}", "; ".join(marks))


def _told(case: Case, details: Mapping[str, Any]) -> str:
    judged = _judged(case, details)
    incoherent = coherence.told(case, details["alphas"])
    return " ".join(part for part in (judged, incoherent) if part)


def _judged(case: Case, details: Mapping[str, Any]) -> str:
    seen = case.findings["reliability"].estimate
    if seen is None:
        return ""
    raw = (
        f"{share(details['raw_share'])} of {len(details['slopes'])} measured slopes "
        "are negative"
    )
    corrected = written([seen.value, seen.low, seen.high], "share")
    text = f"{raw}; with the noise taken out, an estimated {corrected} of prompts."
    endings = {
        Verdict.PASS: f" That is at most {percent(TOLERATED)}.",
        Verdict.FAIL: f" That is more than {percent(TOLERATED)}.",
        Verdict.INCONCLUSIVE: f" Whether that is more than {percent(TOLERATED)} could "
        "not be told.",
    }
    if not case.moves:
        return (
            f"{raw}. v did not pass its manipulation check: slopes around 0 have no "
            "direction that could be wrong."
        )
    verdict = case.verdict("reliability")
    return text + (endings.get(verdict, "") if verdict else "")
