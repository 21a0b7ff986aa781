"""Axes: where a number lies, in percent of a figure's width or height.

Templates draw figures as inline SVG with percent coordinates: no script, no picture
file, text that keeps its size on a phone and in print, colours that follow the page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from steergauge.report.words import plain


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps a number to its place in percent; numbers beyond an end lie at the end."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Place of `value`, from 0 to 100."""
        low, high, here = self.low, self.high, value
        if self.log:
            low, high = math.log(low), math.log(high)
            here = math.log(max(value, self.low))
        return round(100 * min(1.0, max(0.0, (here - low) / (high - low))), 2)

    def ticks(self, most: int = 6) -> list[Tick]:
        """Round numbers inside the axis, at most `most` of them."""
        values = self._decades(most) if self.log else self._steps(most)
        while len(values) > most:
            values = values[::2]
        return [Tick(self.at(value), plain(value)) for value in values]

    def _steps(self, most: int) -> list[float]:
        step = round_step((self.high - self.low) / most)
        while True:
            first = math.ceil(self.low / step - 1e-9)
            last = math.floor(self.high / step + 1e-9)
            if last - first < most:
                return [float(f"{k * step:.10g}") for k in range(first, last + 1)]
            step = round_step(step * 1.01)

    def _decades(self, most: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        values: list[float] = []
        for factors in ((1, 2, 5), (1, 3), (1,)):
            values = [m * 10.0**k for k in range(first, last + 1) for m in factors]
            values = [value for value in values if self.low <= value <= self.high]
            if len(values) <= most:
                break
        return values


def round_step(size: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `size`.

    >>> round_step(0.03), round_step(1.0)
    (0.05, 1.0)
    """
    decade = 10.0 ** math.floor(math.log10(size) + 1e-9)
    return next(m * decade for m in (1, 2, 5, 10) if m * decade >= size * (1 - 1e-9))


def linear_axis(values: Sequence[float], room: float = 0.05) -> Axis:
    """An axis that holds all values with some room at both ends."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    margin = room * (high - low)
    return Axis(low - margin, high + margin)


@dataclass(frozen=True, slots=True)
class Line:
    """A reference line, or a band if it has a width."""

    at: float
    label: str
    kind: str
    width: float = 0.0
