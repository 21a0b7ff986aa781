"""Panels over alpha or over prompts: series with bands or whiskers, in percent."""

from collections.abc import Sequence
from dataclasses import dataclass

from steergauge.report import words
from steergauge.report.axis import Axis, Line, Tick

Seen = tuple[float, float, float, float]
"""x, and a value with the ends of its interval."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A point with its interval; y counts from the top."""

    x: float
    y: float
    low: float
    high: float
    label: str


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one kind.

    Attributes:
        name: in the legend.
        style: own or candidate: a disc or a square, beside the colour.
        spots: in order of x.
        band: corners of the band around them, as an SVG polygon has it; or empty.
        joined: whether lines join the points.
    """

    name: str
    style: str
    spots: tuple[Spot, ...]
    band: str = ""
    joined: bool = True


@dataclass(frozen=True, slots=True)
class Curves:
    """One panel."""

    title: str
    unit: str
    series: tuple[Series, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    x_label: str


def series(
    name: str,
    points: Sequence[Seen],
    axes: tuple[Axis, Axis],
    *,
    style: str,
    band: bool = False,
    joined: bool = True,
    shift: float = 0.0,
) -> Series:
    """Points placed in a panel.

    Args:
        name: in the legend.
        points: in order of x.
        axes: x and y.
        style: own or candidate.
        band: whether the intervals are drawn as a band.
        joined: whether lines join the points.
        shift: to the right, in percent, so that equal points do not hide each other.
    """
    x, y = axes
    spots = tuple(
        Spot(
            round(x.at(at) + shift, 2),
            *(round(100 - y.at(number), 2) for number in (value, low, high)),
            label=f"{words.plain(at)}: {words.plain(value)}",
        )
        for at, value, low, high in points
    )
    corners = [(spot.x, spot.high) for spot in spots]
    corners += [(spot.x, spot.low) for spot in reversed(spots)]
    polygon = " ".join(f"{left},{top}" for left, top in corners) if band else ""
    return Series(name, style, spots, polygon, joined)


def down(ticks: Sequence[Tick]) -> tuple[Tick, ...]:
    """Ticks of a vertical axis, counted from the top."""
    return tuple(Tick(round(100 - tick.at, 2), tick.label) for tick in ticks)
