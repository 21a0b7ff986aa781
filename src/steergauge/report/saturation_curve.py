"""T8 on the geometry page: what is left unseen as more texts are added."""

from collections.abc import Sequence
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.report.axis import Axis
from steergauge.report.curves import Seen
from steergauge.report.grid import UNKNOWN, Cell, Column, Grid, Row, known, tables
from steergauge.report.plots import (
    Axes,
    Plot,
    Trace,
    guide,
    log_axis,
    plot,
    trace,
)
from steergauge.report.sections import Details, Section, numbers, present, value
from steergauge.report.words import padded, plain, typeset

_CARRIES = (
    "A direction is unseen by all texts only if each single text does not see it, so "
    "a null space can but shrink as texts are added. A curve that still falls says "
    "nothing of where it ends; a shared null space is claimed only where a clear gap "
    "stays where it is while the texts are doubled. Blocks share no text, but come "
    "from the same prompts: other kinds of prompts may see more."
)


def saturation(finding: Finding) -> Section:
    """The section of T8."""
    details = finding.details
    return Section(
        "saturation",
        "The null space over the number of texts",
        finding,
        _CARRIES,
        plots=present(_ranks(details), _nulls(details), _ratio(details)),
        folded=tables(*_table(details)),
    )


def _ranks(details: Details) -> Plot | None:
    """Ranks at the thresholds that can be measured, and the effective rank."""
    num, width = numbers(details, "num"), value(details, "width")
    if not num or width is None:
        return None
    axes = log_axis(num), Axis(0, 1.05 * width)
    traces: list[Trace] = []
    styles = iter(("candidate", "control", "other"))
    if points := _seen(num, details.get("erank_lambda")):
        traces.append(_band("erank lambda", points, axes, "own"))
    for eps, style in zip(_measurable(details)[-3:], styles, strict=False):
        points = _seen(num, details["ranks"][eps])
        if points:
            traces.append(_band(f"rank at {plain(float(eps))}", points, axes, style))
    return plot(
        "Directions that are seen",
        traces,
        unit=f"of {width:g} dimensions; bands: standard deviation over blocks",
        axes=axes,
        x_label="texts, log scale",
        guides=[guide("all dimensions", [width], axes=axes, kind="zero")],
    )


def _nulls(details: Details) -> Plot | None:
    num = numbers(details, "num")
    points = _seen(num, details.get("null_dim"))
    if not points:
        return None
    highest = max(high for *_, high in points)
    axes = log_axis(num), Axis(-0.04 * max(highest, 1.0), 1.1 * max(highest, 1.0))
    return plot(
        "Directions that are not seen",
        [_band("null dimension", points, axes, "own")],
        unit="below ten floors of the arithmetic",
        axes=axes,
        x_label="texts, log scale",
    )


def _ratio(details: Details) -> Plot | None:
    num = numbers(details, "num")
    points = [
        (at, mean, max(low, mean / 10), high)
        for at, mean, low, high in _seen(num, details.get("ratio"))
        if mean > 0
    ]
    if not points:
        return None
    floor = value(details, "floor") or 0.0
    axes = log_axis(num), log_axis([*(one for _, *p in points for one in p), floor])
    return plot(
        "The weakest direction",
        [_band("weakest over strongest", points, axes, "own")],
        unit="sigma of the weakest over sigma_1, log scale",
        axes=axes,
        x_label="texts, log scale",
        guides=[guide("floor of the arithmetic", [floor], axes=axes, kind="floor")],
    )


def _band(name: str, points: list[Seen], axes: Axes, style: str) -> Trace:
    return trace(name, points, axes=axes, style=style, band=True)


def _seen(num: Sequence[float], records: Sequence[Any] | None) -> list[Seen]:
    """Mean with one standard deviation to both sides; unknown ones are left out."""
    found = []
    for at, record in zip(num, records or (), strict=False):
        mean, sd = (record[0], record[1] or 0.0) if record else (None, 0.0)
        if known(mean):
            found.append((at, mean, mean - sd, mean + sd))
    return found


def _measurable(details: Details) -> list[str]:
    """Thresholds from the largest to the smallest."""
    return sorted(details.get("ranks") or {}, key=float, reverse=True)


def _table(details: Details) -> list[Grid]:
    num = numbers(details, "num")
    rows = [
        (f"rank at {plain(float(eps))}", details["ranks"][eps])
        for eps in _measurable(details)
    ]
    rows += [
        (typeset("erank lambda"), details.get("erank_lambda")),
        ("null dimension", details.get("null_dim")),
        ("weakest over strongest", details.get("ratio")),
    ]
    made = tuple(
        Row(name, "", tuple(_cell(records, place) for place in range(len(num))))
        for name, records in rows
        if records
    )
    columns = tuple(Column(f"{n:g}", "texts") for n in num)
    note = "mean over blocks ± standard deviation"
    return [Grid("Over the number of texts", note, "", columns, (("", made),))]


def _cell(records: Sequence[Any], place: int) -> Cell:
    record = records[place] if place < len(records) else None
    if not record or not known(record[0]):
        return UNKNOWN
    several = len(record) > 2 and (record[2] or 0) > 1 and known(record[1])
    return Cell(padded(record[0]), f"± {padded(record[1])}" if several else "")
