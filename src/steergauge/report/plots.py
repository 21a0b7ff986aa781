"""Plots of many points: lines, reference lines of both directions and shaded zones.

Everything is in percent of the plot, y from the top. A line is one SVG polyline in a
stretched view box, whose stroke keeps its width; dots keep their shape.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from steergauge.report import words
from steergauge.report.axis import Axis, Tick
from steergauge.report.curves import Seen, down

Axes = tuple[Axis, Axis]

STYLES = ("own", "candidate", "control", "other")
"""v itself, what is compared with it, controls, and one more; each has a dot and a
dash of its own."""


@dataclass(frozen=True, slots=True)
class Dot:
    """A point with its interval."""

    x: float
    y: float
    low: float
    high: float
    label: str


@dataclass(frozen=True, slots=True)
class Trace:
    """Points of one kind.

    Attributes:
        name: in the legend.
        style: one of `STYLES`.
        path: corners of the line through them, or empty.
        band: corners of the band of their intervals, or empty.
        dots: the points, or nothing where the line is enough.
    """

    name: str
    style: str
    path: str
    band: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class Guide:
    """Reference lines of one meaning.

    Attributes:
        name: in the legend.
        kind: zero, limit, floor, chosen, or zone: all that lies below is shaded.
        places: where they are.
        upright: whether they stand at places of x.
    """

    name: str
    kind: str
    places: tuple[float, ...]
    upright: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot with its legend."""

    title: str
    unit: str
    traces: tuple[Trace, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_label: str
    guides: tuple[Guide, ...] = ()
    tall: bool = False


def trace(
    name: str,
    points: Sequence[Seen],
    *,
    axes: Axes,
    style: str,
    dots: bool = True,
    joined: bool = True,
    band: bool = False,
) -> Trace:
    """Points placed in a plot.

    Args:
        name: in the legend.
        points: in order of x.
        axes: x and y.
        style: one of `STYLES`.
        dots: whether single points are marked.
        joined: whether a line joins them.
        band: whether intervals are drawn as a band and not as whiskers.
    """
    x, y = axes
    placed = [
        Dot(
            x.at(at),
            *(round(100 - y.at(number), 2) for number in (value, low, high)),
            label=f"{words.plain(at)}: {words.plain(value)}",
        )
        for at, value, low, high in points
    ]
    around = [(dot.x, dot.high) for dot in placed]
    around += [(dot.x, dot.low) for dot in reversed(placed)]
    shown = [replace(dot, low=dot.y, high=dot.y) for dot in placed] if band else placed
    return Trace(
        name,
        style,
        _corners((dot.x, dot.y) for dot in placed) if joined else "",
        _corners(around) if band else "",
        tuple(shown) if dots else (),
    )


def exact(points: Iterable[tuple[float, float]]) -> list[Seen]:
    """Points without intervals."""
    return [(at, value, value, value) for at, value in points]


def guide(name: str, values: Sequence[float], *, axes: Axes, kind: str) -> Guide:
    """Level lines at values of y; those beyond the plot are left out."""
    y = axes[1]
    inside = [value for value in values if y.low <= value <= y.high]
    return Guide(name, kind, tuple(round(100 - y.at(value), 2) for value in inside))


def upright(name: str, values: Sequence[float], *, axes: Axes, kind: str) -> Guide:
    """Upright lines at values of x; those beyond the plot are left out."""
    x = axes[0]
    inside = [value for value in values if x.low <= value <= x.high]
    return Guide(name, kind, tuple(x.at(value) for value in inside), upright=True)


def plot(
    title: str,
    traces: Sequence[Trace],
    *,
    unit: str,
    axes: Axes,
    x_label: str,
    guides: Sequence[Guide] = (),
    tall: bool = False,
) -> Plot:
    """A plot with the ticks of its axes.

    Args:
        title: what it shows.
        traces: in the order of the legend.
        unit: of y.
        axes: x and y.
        x_label: what x is.
        guides: reference lines; those without a place are left out.
        tall: whether it needs more height.
    """
    x, y = axes
    return Plot(
        title,
        unit,
        tuple(traces),
        tuple(_ticks(x, 5)),
        down(_ticks(y, 6)),
        x_label,
        tuple(each for each in guides if each.places),
        tall,
    )


def log_axis(values: Iterable[float], *, least: float = 1e-12) -> Axis:
    """A logarithmic axis that holds the positive values, with room at both ends."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    low, high = min(positive, default=0.1), max(positive, default=1.0)
    low = max(low, high * least)
    room = (high / low) ** 0.06 if high > low * 1.01 else 3.0
    return Axis(low / room, high * room, log=True)


def thinned(num: int, most: int = 240) -> list[int]:
    """Places of at most about `most` of `num` points: both ends whole, evenly between.

    >>> thinned(5)
    [0, 1, 2, 3, 4]
    >>> len(thinned(4096)) <= 240
    True
    """
    if num <= most:
        return list(range(num))
    edge = most // 6
    inner = most - 2 * edge
    step = (num - 2 * edge) / inner
    middle = {edge + int(place * step) for place in range(inner)}
    return sorted({*range(edge), *middle, *range(num - edge, num)})


def _corners(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{left:g},{top:g}" for left, top in points)


def _ticks(axis: Axis, most: int) -> list[Tick]:
    """Round numbers, also where a logarithmic axis spans less than a decade or so."""
    ticks = axis.ticks(most)
    if axis.log and len(ticks) < 2:
        width = axis.high - axis.low
        even = Axis(axis.low, axis.high).ticks(most)
        values = [(axis.low + width * tick.at / 100, tick.label) for tick in even]
        ticks = [Tick(axis.at(value), label) for value, label in values]
    start = f"1 {words.TIMES} "
    return [Tick(tick.at, tick.label.removeprefix(start)) for tick in ticks]
