"""The curves of `growth.py` as one SVG file, a panel for each thing that is doubled.

Seconds relative to the smallest size, both axes logarithmic, beside a line of slope 1.
Places come from the plots of the package's reports; here they get ink, for a file that
stands alone and follows the reader's light or dark theme.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from steergauge.report.axis import Tick
from steergauge.report.plots import Axes, Plot, Trace, log_axis, plot, trace

COLUMNS = 3
WIDTH, HEIGHT = 280, 260
"""Of a panel with its margins, in pixels."""

LEFT, TOP, INNER_WIDTH, INNER_HEIGHT = 50, 40, 210, 160
LEGEND = 40
NAMES = {"own": "generate", "candidate": "extraction", "control": "in proportion"}
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 }
.title { font-weight: 600 }
.grid { stroke: #ddd }
polyline { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke }
.own { stroke: #2a6fb5; fill: #2a6fb5 }
.candidate { stroke: #c05a1f; fill: #c05a1f }
.control { stroke: #888; fill: #888; stroke-dasharray: 4 4 }
@media (prefers-color-scheme: dark) {
  text { fill: #ccc }
  .grid { stroke: #444 }
}
"""


def picture(report: dict[str, Any]) -> str:
    """The SVG of what `growth.py` measured."""
    rows = report["curves"]
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    panels = [panel(axis, [r for r in rows if r["axis"] == axis]) for axis in axes]
    height = LEGEND + HEIGHT * -(-len(panels) // COLUMNS)
    width = WIDTH * min(COLUMNS, len(panels))
    parts = [
        f'<g transform="translate({WIDTH * (i % COLUMNS)},'
        f'{LEGEND + HEIGHT * (i // COLUMNS)})">{drawn(one)}</g>'
        for i, one in enumerate(panels)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'role="img"><title>How costs grow</title><style>{STYLE}</style>'
        f"{_legend()}{''.join(parts)}</svg>\n"
    )


def panel(axis: str, rows: Sequence[dict[str, Any]]) -> Plot:
    """Curves of one axis; each is in multiples of its own first median."""
    sizes = rows[0]["sizes"]
    points = {row["kind"]: _relative(row) for row in rows}
    line = [(size, *[size / sizes[0]] * 3) for size in sizes]
    seen = [*line, *(point for curve in points.values() for point in curve)]
    heights = [value for point in seen for value in point[1:]]
    axes: Axes = (log_axis(sizes), log_axis(heights))
    traces = [trace("", line, axes=axes, style="control", dots=False)]
    for style, kind in list(NAMES.items())[:2]:
        if kind in points:
            traces.append(trace(kind, points[kind], axes=axes, style=style))
    title = f"time against {axis}"
    made = plot(title, traces, unit="times the first", axes=axes, x_label=axis)
    ticks = tuple(Tick(axes[0].at(size), str(size)) for size in sizes)
    return replace(made, x_ticks=ticks)


def _relative(row: dict[str, Any]) -> list[tuple[float, float, float, float]]:
    first = row["seconds"][0]["median"]
    return [
        (size, *(each[end] / first for end in ("median", "low", "high")))
        for size, each in zip(row["sizes"], row["seconds"], strict=True)
    ]


def drawn(one: Plot) -> str:
    """The ink of one panel."""
    bottom = TOP + INNER_HEIGHT
    ink = [_text(LEFT, 24, f"{one.title}, {one.unit}", kind="title", anchor="start")]
    for tick in one.y_ticks:
        y = TOP + INNER_HEIGHT * tick.at / 100
        ink.append(_grid(LEFT, y, LEFT + INNER_WIDTH, y))
        ink.append(_text(LEFT - 6, y + 4, tick.label, anchor="end"))
    for tick in one.x_ticks:
        x = LEFT + INNER_WIDTH * tick.at / 100
        ink.append(_grid(x, TOP, x, bottom))
        ink.append(_text(x, bottom + 18, tick.label))
    ink.append(_text(LEFT + INNER_WIDTH / 2, bottom + 36, one.x_label))
    return "".join([*ink, *(_curve(each) for each in one.traces)])


def _curve(one: Trace) -> str:
    corners = [tuple(map(float, pair.split(","))) for pair in one.path.split()]
    ink = [f'<polyline points="{_placed(corners)}"/>']
    for dot in one.dots:
        x, y = _place(dot.x, dot.y)
        (_, low), (_, high) = _place(dot.x, dot.low), _place(dot.x, dot.high)
        ink.append(f'<line x1="{x:g}" x2="{x:g}" y1="{low:g}" y2="{high:g}"/>')
        ink.append(f'<circle cx="{x:g}" cy="{y:g}" r="3"/>')
    return f'<g class="{one.style}">{"".join(ink)}</g>'


def _place(x: float, y: float) -> tuple[float, float]:
    """Pixels of a place in percent."""
    across, down = LEFT + INNER_WIDTH * x / 100, TOP + INNER_HEIGHT * y / 100
    return round(across, 1), round(down, 1)


def _placed(corners: Iterable[tuple[float, ...]]) -> str:
    places = (_place(x, y) for x, y in corners)
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def _text(
    x: float, y: float, text: str, *, kind: str = "", anchor: str = "middle"
) -> str:
    start = f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">'
    return f"{start}{escape(text)}</text>"


def _legend() -> str:
    ink = []
    for place, (style, name) in enumerate(NAMES.items()):
        x = LEFT + 150 * place
        ends = f'points="{x},20 {x + 30},20"'
        ink.append(f'<g class="{style}"><polyline {ends}/></g>')
        ink.append(_text(x + 38, 24, name, anchor="start"))
    return "".join(ink)
