"""A printed table, what follows from it beside it, and statements about both.

A statement is arithmetic if it follows from the printed numbers and its formula. It is
an inference if it also needs something that is not printed. That is then named, for
such a conclusion may be likely, even very likely, and is not proved.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Statement:
    """What can be said, by which formula, and what must be assumed for it."""

    text: str
    formula: str
    assumes: str = ""

    @property
    def kind(self) -> str:
        """`arithmetic` if it needs the printed numbers alone, else `inference`."""
        return "inference" if self.assumes else "arithmetic"


@dataclass(frozen=True, slots=True)
class Section:
    """A printed table with what follows from it beside it, and what that says.

    Attributes:
        title: which table.
        legend: what the columns are that the paper does not have.
        columns: heads of the columns.
        rows: cells as text.
        summary: rows about all of them.
        headlines: the statements that matter most.
        details: further statements.
    """

    title: str
    legend: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    summary: tuple[tuple[str, ...], ...]
    headlines: tuple[Statement, ...]
    details: tuple[Statement, ...]


def span(values: Iterable[float], form: str) -> str:
    """The smallest and the largest of some numbers as text; NaN is left out."""
    known = [value for value in values if not math.isnan(value)] or [math.nan]
    low, high = f"{min(known):{form}}", f"{max(known):{form}}"
    return low if low == high else f"{low} to {high}"


def listed(parts: Sequence[str]) -> str:
    """Parts of a sentence as `a, b and c`."""
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)
