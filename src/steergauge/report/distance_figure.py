"""T16's figure: how far every token's state lies from the steered one, place by place.

A column is a position of a prompt. Its shape is the histogram of all tokens by their
distance from the steered state, in lengths of the step, on a logarithmic axis: wide
where many tokens lie, a thin line where few do. Marks say where the nearest and the
second nearest token are, how near a natural and a random state come, and how near is
near enough. What lies below the axis is drawn in a strip of its own under it, in order
and not to scale. Everything is in percent of the plot, y from the top.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from steergauge.report import words
from steergauge.report.axis import Axis, Tick
from steergauge.report.grid import known
from steergauge.report.samples import printable
from steergauge.report.sections import Details, numbers
from steergauge.report.tokens import quoted, visible
from steergauge.report.verdicts import sign

Record = Mapping[str, Any]

LOWEST = 1e-3
"""The axis goes no lower; marks below stand in the strip, their titles say where."""

STRIP = (86.0, 100.0)
"""Top and bottom of the strip, where there is one."""

FOOT = 78.0
"""Where the axis ends above a strip; between the two stands the strip's name."""

OPEN = 2
"""Figures of so many prompts are open, the rest are folded."""

_THINNEST = 0.05
"""Half the width of a bin that holds a token at all, of the column's."""

MARKS = {
    "nearest": "nearest token",
    "second": "second nearest",
    "tolerance": "tolerance: nearer than this would be reached",
    "natural": "nearest to the natural state, a control",
    "random": "nearest to random steps, median",
}
"""Kinds of marks, in the order of the legend."""

_SHIFT = {"natural": -0.28, "random": 0.28}
"""Where in its column a mark stands, so that none hides another."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Places of distances: on the axis down to `foot`, or below it in the strip."""

    axis: Axis
    foot: float

    def y(self, value: float) -> float:
        """The place of a distance on the axis; one below it lies at its end."""
        return round(self.foot * (1 - self.axis.at(value) / 100), 2)

    def places(self, values: Sequence[float]) -> list[float]:
        """Places of the distances of one column; the strip has them in order."""
        low = [value < LOWEST for value in values]
        ranked = sorted({v for v, below in zip(values, low, strict=True) if below})
        top, bottom = STRIP
        room = (bottom - top) / (len(ranked) + 1)
        return [
            round(bottom - room * (1 + ranked.index(value)), 2) if below
            else self.y(value)
            for value, below in zip(values, low, strict=True)
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mark:
    """A distance, in lengths of the step."""

    kind: str
    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Level:
    """The tolerance of a column: a line through it."""

    left: float
    right: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Place:
    """A column: where it is, its token, and the verdict's sign."""

    x: float
    token: str
    sign: str
    label: str


@dataclass(frozen=True, slots=True)
class Distances:
    """The figure of one prompt.

    Attributes:
        prompt: its text.
        places: columns.
        shapes: the path of all histograms.
        marks: distances.
        levels: tolerances.
        ticks: of distance, from the top.
        step: where the length of the step itself lies.
        strip: name of the strip below the axis; empty if nothing lies there.
        width: that the figure needs, in rem.
        described: the figure in words.
    """

    prompt: str
    places: tuple[Place, ...]
    shapes: str
    marks: tuple[Mark, ...]
    levels: tuple[Level, ...]
    ticks: tuple[Tick, ...]
    step: float
    strip: str
    width: float
    described: str


def figures(details: Details) -> tuple[Distances, ...]:
    """A figure for each prompt with a step, in the order of the prompts."""
    prompts = details.get("prompts") or []
    edges = numbers(details, "edges")
    drawn = []
    for index, prompt in enumerate(prompts):
        own = [
            one
            for one in details.get("positions") or []
            if one["prompt"] == index and known(one["eta"])
        ]
        if own:
            drawn.append(_figure(printable(str(prompt)), own, edges))
    return tuple(drawn)


def _figure(prompt: str, own: Sequence[Record], edges: Sequence[float]) -> Distances:
    scale = _scale(own, edges)
    width = 100 / len(own)
    marks = [
        mark
        for place, one in enumerate(own)
        for mark in _marks(one, scale, (place + 0.5) * width, width)
    ]
    reach = 0.46 * width
    return Distances(
        prompt,
        tuple(_place(one, (k + 0.5) * width) for k, one in enumerate(own)),
        " ".join(
            _shape(one.get("histogram") or (), edges, scale, (k + 0.5) * width, width)
            for k, one in enumerate(own)
        ).strip(),
        tuple(mark for mark in marks if mark.kind != "tolerance"),
        tuple(
            Level(
                round(mark.x - reach, 2), round(mark.x + reach, 2), mark.y, mark.label
            )
            for mark in marks
            if mark.kind == "tolerance"
        ),
        tuple(
            Tick(round(scale.foot * (1 - tick.at / 100), 2), tick.label)
            for tick in scale.axis.ticks(7)
        ),
        scale.y(1.0),
        f"below {words.plain(LOWEST)} of the step" if scale.foot < 100 else "",
        round(5 + 1.7 * len(own), 1),
        _described(own),
    )


def _scale(own: Sequence[Record], edges: Sequence[float]) -> Scale:
    """From the smallest mark that is not below `LOWEST` to the farthest token."""
    every = [value for one in own for _, value, _ in _values(one)]
    seen = [value for value in every if value >= LOWEST]
    taken = [
        edge
        for one in own
        for count, edge in zip(one.get("histogram") or (), edges[1:], strict=False)
        if count
    ]
    low = max(LOWEST, 0.7 * min([*seen, 0.5]))
    axis = Axis(low, 1.15 * max([*seen, *taken, 2.0]), log=True)
    return Scale(axis, FOOT if len(seen) < len(every) else 100.0)


def _values(one: Record) -> list[tuple[str, float, str]]:
    """Kind, distance over the step's length, and what it is, of each mark."""
    step = one["length"]
    named = (
        ("nearest", one["d1"], f"nearest, {quoted(one['nearest'])}"),
        ("second", one["d2"], f"second nearest, {quoted(one['second'])}"),
        ("tolerance", one["tolerance"], "tolerance"),
        ("natural", one["natural_d1"], "nearest to the natural state"),
        ("random", one.get("random_median"), "nearest to random steps, median"),
    )
    return [(kind, value / step, what) for kind, value, what in named if known(value)]


def _marks(one: Record, scale: Scale, centre: float, width: float) -> list[Mark]:
    where = f"{quoted(one['token'])}, place {one['place']}"
    seen = _values(one)
    places = scale.places([value for _, value, _ in seen])
    return [
        Mark(
            kind,
            round(centre + _SHIFT.get(kind, 0.0) * width, 2),
            place,
            f"{where}: {what}: {words.plain(value)} of the step",
        )
        for (kind, value, what), place in zip(seen, places, strict=True)
    ]


def _place(one: Record, x: float) -> Place:
    return Place(
        round(x, 2),
        visible(one["token"], 11),
        sign(one["verdict"]),
        f"{quoted(one['token'])}, place {one['place']}: {one['verdict']}",
    )


def _shape(
    counts: Sequence[int],
    edges: Sequence[float],
    scale: Scale,
    centre: float,
    width: float,
) -> str:
    """A closed outline for each run of bins that hold tokens, mirrored at `centre`."""
    most = max(counts, default=0)
    if not most or len(edges) != len(counts) + 1:
        return ""
    return " ".join(_outline(run) for run in _runs(_bars(
        counts, [scale.y(edge) for edge in edges], centre, width / most
    )))  # fmt: skip


Bar = tuple[float, float, float, float]
"""Left, right, bottom and top of a bin that holds tokens."""


def _bars(
    counts: Sequence[int], heights: Sequence[float], centre: float, unit: float
) -> list[Bar | None]:
    bars: list[Bar | None] = []
    for count, (bottom, top) in zip(counts, pairwise(heights), strict=True):
        half = 0.44 * unit * max(count, _THINNEST * max(counts))
        bars.append((centre - half, centre + half, bottom, top) if count else None)
    return bars


def _runs(bars: Iterable[Bar | None]) -> list[list[Bar]]:
    """Neighbouring bins together."""
    runs: list[list[Bar]] = [[]]
    for bar in bars:
        if bar is None:
            runs.append([])
        else:
            runs[-1].append(bar)
    return [run for run in runs if run]


def _outline(run: Sequence[Bar]) -> str:
    """Up the right side and down the left one."""
    corners = [point for _, x, low, top in run for point in ((x, low), (x, top))]
    corners += [
        point for x, _, low, top in reversed(run) for point in ((x, top), (x, low))
    ]
    return f"M{' '.join(f'{x:.2f},{y:.2f}' for x, y in corners)}Z"


def _described(own: Sequence[Record]) -> str:
    """What the figure shows, for those who do not see it."""
    eta = sorted(one["eta"] for one in own)
    middle = eta[math.floor(len(eta) / 2)]
    places = f"{len(own)} position{'s' if len(own) != 1 else ''}"
    return (
        f"Distances of all tokens' states from the steered state at {places}. "
        f"The nearest token is {words.plain(eta[0])} to {words.plain(eta[-1])} steps "
        f"away, {words.plain(middle)} in the middle. The table of positions has the "
        "numbers."
    )
