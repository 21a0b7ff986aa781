"""Tables of many columns: heads in groups, rows in bodies, a first column that stays.

A cell is a text with a smaller line below, or a verdict. What could not be measured
is a dash, and a column of dashes alone is left out.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeGuard

from steergauge.report import words
from steergauge.report.words import typeset
from steergauge.statistics import Estimate

Numbers = Sequence[float | None]
"""A value with the ends of its interval, as findings keep them."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a cell.

    Attributes:
        text: the number.
        small: what belongs to it, such as its interval.
        verdict: shown as a badge above both, if there is one.
        heat: from 0 to 5, how dark the ground is; the text says the number.
        of: what the verdict is of, if not of the number: it then stands below both.
    """

    text: str
    small: str = ""
    verdict: str = ""
    heat: int = 0
    of: str = ""


UNKNOWN = Cell("\N{EN DASH}")


@dataclass(frozen=True, slots=True)
class Column:
    """A column's head, the group that it stands in, and what the number is."""

    head: str
    group: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A row: what it is of, and its cells."""

    label: str
    note: str
    cells: tuple[Cell, ...]
    aside: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """A table.

    Attributes:
        caption: what it shows.
        note: how to read it.
        corner: head of the first column.
        columns: heads.
        bodies: a title, which may be empty, and the rows under it.
    """

    caption: str
    note: str
    corner: str
    columns: tuple[Column, ...]
    bodies: tuple[tuple[str, tuple[Row, ...]], ...]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Heads of groups with the number of their columns; empty without any."""
        found = groupby(self.columns, key=lambda column: column.group)
        spans = [(name, len(list(columns))) for name, columns in found]
        return spans if any(name for name, _ in spans) else []

    @property
    def rows(self) -> list[Row]:
        """The rows of all bodies."""
        return [row for _, rows in self.bodies for row in rows]


def pruned(grid: Grid) -> Grid | None:
    """The table without columns and rows that hold nothing; None if nothing is left."""
    rows = [row for row in grid.rows if any(cell != UNKNOWN for cell in row.cells)]
    if not rows:
        return None
    kept = [
        place
        for place in range(len(grid.columns))
        if any(row.cells[place] != UNKNOWN for row in rows)
    ]
    bodies = []
    for title, own in grid.bodies:
        narrow = tuple(
            replace(row, cells=tuple(row.cells[place] for place in kept))
            for row in own
            if row in rows
        )
        if narrow:
            bodies.append((title, narrow))
    columns = tuple(grid.columns[place] for place in kept)
    return replace(grid, columns=columns, bodies=tuple(bodies))


def tables(*grids: Grid) -> tuple[Grid, ...]:
    """Those of the tables that hold something."""
    return tuple(table for grid in grids if (table := pruned(grid)) is not None)


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is a number at all."""
    return value is not None and math.isfinite(value)


def number(value: float | None, *, signed: bool = False, digits: int = 3) -> str:
    """A number to so many decimals, or a dash."""
    if not known(value):
        return UNKNOWN.text
    return words.fixed(value, digits, sign="+" if signed else "")


def share(value: float | None, digits: int = 0) -> str:
    """A share in percent, or a dash."""
    if not known(value):
        return UNKNOWN.text
    return words.percent(value, digits)


def spread(mean: float | None, sd: float | None, num: int) -> Cell:
    """Mean with its standard deviation over `num` directions, if there are several."""
    if not known(mean):
        return UNKNOWN
    small = f"±\N{NO-BREAK SPACE}{number(sd)}" if num > 1 else ""
    return Cell(number(mean), small)


def ends(low: float | None, high: float | None, write: str = "score") -> str:
    """An interval; `unbounded` if it has no ends."""
    if known(low) and known(high):
        return words.interval(Estimate(low, low, high), write)
    return "[unbounded]"


def measured(seen: Numbers | None, write: str = "score") -> Cell:
    """A value with its interval, which stays on one line."""
    value, low, high = seen or (None, None, None)
    if not known(value):
        return UNKNOWN
    interval = ends(low, high, write).replace(" ", "\N{NO-BREAK SPACE}")
    return Cell(words.number(Estimate(value, 0, 0), write), interval)


def between(seen: Numbers, low: float, high: float) -> list[float]:
    """A value whose interval cannot leave the range that its quantity has."""
    return [min(max(end, low), high) for end in seen if end is not None]


def written(seen: Numbers | None, write: str = "score") -> str:
    """A value with its interval, in a sentence."""
    cell = measured(seen, write)
    return " ".join(part for part in (cell.text, cell.small) if part)


def span(values: Iterable[float | None], *, digits: int = 2) -> str:
    """The smallest and the largest, in a sentence.

    >>> span([0.2, 0.41]), span([0.2, None])
    ('0.20 to 0.41', '0.20')
    """
    seen = [value for value in values if known(value)]
    if not seen:
        return UNKNOWN.text
    low, high = (number(end, digits=digits) for end in (min(seen), max(seen)))
    return low if low == high else f"{low} to {high}"


def verdict_cell(verdict: str | None, small: str = "") -> Cell:
    """A verdict as a badge, with a line below."""
    return UNKNOWN if verdict is None else Cell("", typeset(small), str(verdict))
