"""Figure 3: the curve over alpha as published, and as lifts that can be compared.

Left, mean scores with bands as if all texts were independent. Right, the lift of v with
its interval, and that of v + v_perp with the interval of their difference, which is
what the verdict of each strength rests on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from steergauge.audits.finding import Verdict
from steergauge.report import coherence
from steergauge.report.axis import Axis, Line, Tick, linear_axis
from steergauge.report.cases import Case, having
from steergauge.report.curves import Curves, Seen, down, series
from steergauge.report.grid import (
    UNKNOWN,
    Cell,
    Column,
    Grid,
    Row,
    measured,
    number,
    tables,
    verdict_cell,
)
from steergauge.report.parts import Block, said
from steergauge.report.words import MINUS, PERP, plain

KEY = "scale[every alpha]"
_ADDED = f"v + {PERP}"
_CARRIES = (
    "Two curves that lie together show that two vectors do the same only as far as the "
    "curves move: a curve that does not rise is followed by every vector, and at alpha "
    "= 0 both are the same unsteered model. So each strength is compared by lifts, "
    "where v has one. “The same at every strength” needs every strength to be "
    "EQUIVALENT; one that is DIFFERENT refutes it, with intervals widened for their "
    "number."
)


def figure_3(cases: list[Case]) -> tuple[Block, ...]:
    """Curves over alpha, and the verdict at each."""
    found = list(having(cases, KEY))
    if not found:
        return ()
    curves = [panel for pair in found for panel in (_scores(*pair), _lifts(*pair))]
    return (
        Block(
            grids=tables(_table(found)),
            curves=tuple(curves),
            said=said((case, _told(case, details)) for case, details in found),
            carries=_CARRIES,
        ),
    )


def _name(case: Case) -> str:
    return f"{case.trait} ({case.note})"


def _scores(case: Case, details: Mapping[str, Any]) -> Curves:
    curve = details["curve"]
    own: list[Seen] = [(point["alpha"], *point["v"]) for point in curve]
    added: list[Seen] = [(point["alpha"], *point["v_plus_perp"]) for point in curve]
    axes = _axes([*own, *added])
    return Curves(
        title=f"{_name(case)}: score",
        unit="as published: mean score from 0 to 1, texts as independent",
        series=(
            series("v", own, axes, style="own", band=True),
            series(_ADDED, added, axes, style="candidate", band=True, shift=1.0),
        ),
        x_ticks=_ticks(axes[0], own),
        y_ticks=down(axes[1].ticks(5)),
        lines=(),
        x_label="strength alpha",
    )


def _lifts(case: Case, details: Mapping[str, Any]) -> Curves:
    own: list[Seen] = []
    added: list[Seen] = []
    for cell in details["cells"]:
        alpha = float(cell["name"])
        own.append((alpha, *cell["lift"]))
        if cell["difference"]:
            _, low, high = cell["difference"]
            start = cell["lift"][0]
            added.append((alpha, cell["candidate"], start + low, start + high))
    axes = _axes([*own, *added, (0.0, 0.0, 0.0, 0.0)])
    shown = [
        series("v", own, axes, style="own"),
        series(_ADDED, added, axes, style="candidate", shift=1.8),
    ]
    return Curves(
        title=f"{_name(case)}: lift",
        unit=f"of v with its interval; of {_ADDED} with that of the difference",
        series=tuple(one for one in shown if one.spots),
        x_ticks=_ticks(axes[0], [(0.0, 0.0, 0.0, 0.0), *own]),
        y_ticks=down(axes[1].ticks(5)),
        lines=(Line(round(100 - axes[1].at(0.0), 2), "no effect", "zero"),),
        x_label="strength alpha",
    )


def _axes(points: Sequence[Seen]) -> tuple[Axis, Axis]:
    x = linear_axis([at for at, *_ in points], room=0.08)
    y = linear_axis([end for _, *numbers in points for end in numbers], room=0.1)
    return x, y


def _ticks(axis: Axis, points: Sequence[Seen]) -> tuple[Tick, ...]:
    """A tick at every strength that was run."""
    return tuple(Tick(axis.at(at), plain(at)) for at, *_ in points)


def _table(found: Sequence[tuple[Case, Mapping[str, Any]]]) -> Grid:
    score, lift = "mean score, as published", "lift"
    columns = (
        Column("v", score),
        Column(_ADDED, score),
        Column("v", lift),
        Column(_ADDED, lift),
        Column("difference", lift, f"{_ADDED} less v"),
        Column(f"does {_ADDED} do what v does?", "", "T3"),
    )
    bodies = tuple(
        (_name(case), tuple(_row(case, point, details) for point in details["curve"]))
        for case, details in found
    )
    return Grid(
        caption="Figure 3 in figures",
        note="lifts are positive in the direction of alpha; intervals of "
        "differences are widened for the number of strengths",
        corner="alpha",
        columns=columns,
        bodies=bodies,
    )


def _row(case: Case, point: Mapping[str, Any], details: Mapping[str, Any]) -> Row:
    cells = {float(cell["name"]): cell for cell in details["cells"]}
    cell = cells.get(point["alpha"])
    label = plain(point["alpha"])
    scores = [
        Cell(number(value), f"[{number(low)},\N{NO-BREAK SPACE}{number(high)}]")
        for value, low, high in (point["v"], point["v_plus_perp"])
    ]
    if cell is None:
        same = Cell("the same model", "by construction")
        return Row(label, "", (*scores, UNKNOWN, UNKNOWN, UNKNOWN, same))
    return Row(
        label,
        coherence.mark(case, point["alpha"]),
        (
            *scores,
            measured(cell["lift"]),
            Cell(number(cell["candidate"], signed=True)),
            measured(cell["difference"]),
            verdict_cell(cell["verdict"]),
        ),
    )


def _told(case: Case, details: Mapping[str, Any]) -> str:
    curve, cells = details["curve"], details["cells"]
    apart = max(abs(point["v"][0] - point["v_plus_perp"][0]) for point in curve)
    means = [point["v"][0] for point in curve]
    text = (
        f"The curves lie at most {number(apart)} apart; v's own moves by "
        f"{number(max(means) - min(means))}. "
    )
    told = coherence.told(case, [point["alpha"] for point in curve])
    return " ".join(part for part in (text + _judged(case, cells), told) if part)


def _judged(case: Case, cells: Sequence[Mapping[str, Any]]) -> str:
    verdict = case.verdict(KEY)
    refuted = [
        cell["name"].replace("-", MINUS)
        for cell in cells
        if cell["verdict"] == Verdict.DIFFERENT
    ]
    if verdict is Verdict.DIFFERENT:
        return f"{_ADDED} does not do what v does at alpha = {', '.join(refuted)}."
    if verdict is Verdict.EQUIVALENT:
        return f"{_ADDED} does what v does at every strength, within the margin."
    if verdict is Verdict.INCONCLUSIVE:
        return f"Whether {_ADDED} follows v at every strength could not be told."
    if all(cell["verdict"] == Verdict.UNINFORMATIVE for cell in cells):
        return "v has no lift at any strength, so any curve would follow it."
    return ""
