"""Figure 4: |d| by environment beside its floor, and the lifts that can be told."""

from collections.abc import Mapping, Sequence
from typing import Any

from steergauge.report.axis import Axis, Line, linear_axis
from steergauge.report.cases import Case, having
from steergauge.report.forest import Forest, ForestRow
from steergauge.report.grid import known, measured, number
from steergauge.report.parts import Block
from steergauge.report.shifts import in_itself
from steergauge.report.words import PERP

_CARRIES = (
    "On the left, how far a mark lies beyond its dashed floor is what |d| tells; its "
    "size alone depends on the number of texts. On the right, an interval that reaches "
    "0 says that v may do nothing in that environment."
)
Entry = tuple[Case, Mapping[str, Any]]


def figure_4(cases: list[Case]) -> tuple[Block, ...]:
    """Both figures, a row for each trait and environment."""
    found = list(having(cases, "environments"))
    published = [
        (case, cell)
        for case, details in found
        for name in dict.fromkeys(one["target"] for one in details["cells"])
        if (cell := in_itself(details["cells"], name)) and known(cell["published_d"])
    ]
    lifts = [
        (case, cell)
        for case, details in found
        for cell in details["cells"]
        if cell["source"] == details["source"]
    ]
    strips = [_distances(published)] if published else []
    strips += [_lifts(lifts)] if lifts else []
    return (Block(strips=tuple(strips), carries=_CARRIES),) if strips else ()


def _note(case: Case, entries: Sequence[Entry]) -> str:
    """The trait, and the model where there are several."""
    several = len({other.note for other, _ in entries}) > 1
    return f"{case.trait}, {case.note}" if several else case.trait


def _distances(entries: Sequence[Entry]) -> Forest:
    seen = [cell["published_d"] for _, cell in entries]
    axis = linear_axis([0.0, *seen, *(cell["floor"] for _, cell in entries)])
    axis = Axis(0.0, axis.high)
    rows = []
    for case, cell in entries:
        place = axis.at(cell["published_d"])
        rows.append(
            ForestRow(
                label=cell["target"],
                note=_note(case, entries),
                style="candidate",
                mean=place,
                low=place,
                high=place,
                dots=(),
                number=number(cell["published_d"], digits=2),
                interval=f"floor {number(cell['floor'], digits=2)}",
                reference=axis.at(cell["floor"]),
            )
        )
    return Forest(
        caption="Figure 4, as published: |d|",
        unit=f"of v against v + {PERP}, vector and prompts of the same environment",
        rows=tuple(rows),
        ticks=tuple(axis.ticks()),
        lines=(),
        reference="floor: |d| of identical vectors",
    )


def _lifts(entries: Sequence[Entry]) -> Forest:
    axis = linear_axis([0.0, *(end for _, cell in entries for end in cell["lift"])])
    rows = []
    for case, cell in entries:
        mean, low, high = (axis.at(end) for end in cell["lift"])
        seen = measured(cell["lift"])
        rows.append(
            ForestRow(
                label=cell["target"],
                note=_note(case, entries),
                style="own",
                mean=mean,
                low=low,
                high=high,
                dots=(),
                number=seen.text,
                interval=seen.small,
            )
        )
    return Forest(
        caption="Lift of v by environment",
        unit="of the vector under audit, with 95\N{NO-BREAK SPACE}% intervals",
        rows=tuple(rows),
        ticks=tuple(axis.ticks()),
        lines=(Line(axis.at(0.0), "no effect", "zero"),),
    )
