"""T7 on the geometry page: candidates for null directions, and the KL along their rays.

A slope of 2 in a log-log plot is an ordinary direction, 4 a null of first order; an
exact null stays at what rounding alone makes of a step of that length.
"""

from collections.abc import Mapping
from typing import Any

from steergauge.audits.comparison import MINIMUM_PROMPTS
from steergauge.audits.finding import Finding
from steergauge.report.cells import part
from steergauge.report.grid import (
    UNKNOWN,
    Cell,
    Column,
    Grid,
    Row,
    known,
    measured,
    tables,
    verdict_cell,
)
from steergauge.report.plots import Axes, Plot, Trace, exact, log_axis, plot, trace
from steergauge.report.sections import Details, Section, numbers, value
from steergauge.report.words import padded, percent, plain, typeset

_REFERENCES = {
    "v": "the vector under audit, for comparison",
    "random": "a random direction, for comparison",
    "top": "the direction that the output sees best, a control",
}
PANELS = 6
"""More candidates than these are in the table only."""

_NOTES = {"all-ones": "null in models whose norms subtract the mean"} | _REFERENCES
_CARRIES = (
    "A step along a ray is made in the real model, so this holds at any length, and "
    "not to second order only. An exact null is a statement about the prompts and the "
    "lengths that were tried, and about reading the output: something else that reads "
    "the stream may see it. An effective null is one at v's strength and this budget, "
    "and a longer step will be seen. Only candidates were tried: that none is null "
    "does not show that there is none."
)

Record = Mapping[str, Any]


def null_directions(finding: Finding) -> Section:
    """The section of T7."""
    details = finding.details
    directions = details.get("directions") or {}
    return Section(
        "nulls",
        "Null directions, tried one by one",
        finding,
        _CARRIES,
        plots=_rays(directions),
        grids=tables(*_classes(directions, value(details, "effect"))),
        folded=tables(*_steps(directions)),
        told=_told(details),
    )


def candidates(directions: Mapping[str, Record]) -> list[str]:
    """Names of the directions that are no references, in the audit's order."""
    return [name for name in directions if _kind(name) not in _REFERENCES]


def _kind(name: str) -> str:
    """`random[2]` -> `random`."""
    return name.partition("[")[0]


def _rays(directions: Mapping[str, Record]) -> tuple[Plot, ...]:
    """One panel a candidate, all on the same axes."""
    shown = [name for name in candidates(directions) if _points(directions[name])]
    every = [shape for record in directions.values() for shape in _points(record)]
    if not shown or not every:
        return ()
    axes = (
        log_axis(at for at, *_ in every),
        log_axis((nats for _, nats, *_ in every), least=1e-16),
    )
    return tuple(_panel(name, directions, axes) for name in shown[:PANELS])


def _panel(name: str, directions: Mapping[str, Record], axes: Axes) -> Plot:
    traces: list[Trace] = []
    random = next((one for one in directions if _kind(one) == "random"), "random")
    for key, label, style in (
        (name, name, "candidate"),
        ("v", "v", "own"),
        (random, "random direction", "control"),
    ):
        points = _points(directions.get(key) or {})
        if points:
            traces.append(trace(label, points, axes=axes, style=style))
    steps, floors = (numbers(directions[name], key) for key in ("steps", "floors"))
    if floors and len(floors) == len(steps):
        floor = exact(zip(steps, floors, strict=True))
        traces.append(
            trace("rounding alone", floor, axes=axes, style="other", dots=False)
        )
    verdict = directions[name].get("class") or ""
    return plot(
        name,
        traces,
        unit=f"{verdict.capitalize()}. Largest KL of the prompts, nats a text"
        if verdict
        else "Largest KL of the prompts, nats a text",
        axes=axes,
        x_label="length of the step, in median ||h||",
    )


def _points(record: Record) -> list[tuple[float, float, float, float]]:
    steps, nats = numbers(record, "steps"), numbers(record, "nats")
    return exact(zip(steps, nats, strict=True)) if len(steps) == len(nats) else []


def _classes(directions: Mapping[str, Record], effect: float | None) -> list[Grid]:
    own = candidates(directions)
    order = [*own, *(name for name in directions if name not in own)]
    rows = tuple(
        Row(
            name,
            _NOTES.get(_kind(name), ""),
            _cells(directions[name], effect),
            aside=name not in own,
        )
        for name in order
    )
    columns = (
        Column("class"),
        Column("slope", "", "of log KL over log step; 2 is ordinary"),
        Column(typeset("KL at v's length"), "", "mean nats a text"),
        Column(typeset("of v's effect")),
        Column("KL at the longest step", "", "largest of the prompts, nats"),
    )
    note = "steps along the direction in the real model, on prompts of the test"
    return (
        [Grid("What each direction costs", note, "direction", columns, (("", rows),))]
        if rows
        else []
    )


def _cells(record: Record, effect: float | None) -> tuple[Cell, ...]:
    steps, nats = numbers(record, "steps"), numbers(record, "nats")
    cost, slope = value(record, "at_strength"), value(record, "slope")
    far = UNKNOWN
    if steps and len(steps) == len(nats):
        far = Cell(padded(nats[-1]), f"at {plain(steps[-1])} ‖h‖")
    return (
        verdict_cell(record.get("class")),
        UNKNOWN if slope is None else Cell(f"{slope:.2f}"),
        measured(record.get("at_strength"), "nats"),
        part(cost / effect) if cost is not None and effect else UNKNOWN,
        far,
    )


def _steps(directions: Mapping[str, Record]) -> list[Grid]:
    """Every step of every ray, as numbers."""
    every = sorted({at for one in directions.values() for at in numbers(one, "steps")})
    rows = []
    for name, record in directions.items():
        seen = {at: nats for at, nats, *_ in _points(record)}
        cells = (Cell(padded(seen[at])) if at in seen else UNKNOWN for at in every)
        rows.append(Row(name, "", tuple(cells)))
    columns = tuple(Column(f"{plain(at)} ‖h‖") for at in every)
    note = "largest of the prompts, nats a text; the step in median ||h||"
    return [
        Grid("KL along every ray", note, "direction", columns, (("", tuple(rows)),))
    ]


def _told(details: Details) -> tuple[str, ...]:
    budget, effect = value(details, "budget"), details.get("effect")
    told = []
    if effect and known(effect[0]):
        seen = measured(effect, "nats")
        told.append(f"v itself costs {seen.text} nats a text {seen.small}.")
    if budget is not None:
        told.append(
            f"Effective null: the cost's upper end is at most {percent(budget)} of the "
            f"lower end of v's, on {MINIMUM_PROMPTS} prompts or more."
        )
    rest = len(candidates(details.get("directions") or {})) - PANELS
    if rest > 0:
        told.append(f"{rest} more candidates are in the table only.")
    return (" ".join(told),) if told else ()
