"""Cells of the geometry page's tables: counts, shares, angles; a dash where unknown."""

from steergauge.report.grid import UNKNOWN, Cell, known
from steergauge.report.words import MINUS, padded, percent, plain

LEAST = 1e-4
"""Smallest share that is written as a number."""


def count(number: float | None, small: str = "") -> Cell:
    """A whole number, written whole."""
    return Cell(plain(number, 6), small) if known(number) else UNKNOWN


def part(number: float | None) -> Cell:
    """A share in percent, with as many decimals as it needs."""
    return Cell(portion(number)) if known(number) else UNKNOWN


def portion(share: float) -> str:
    r"""A share in percent, to two digits; the smallest are only said to be small.

    >>> [portion(one).replace("\xa0", " ") for one in (6.48, 0.031, 0.05, 1e-9)]
    ['648 %', '3.1 %', '5 %', '< 0.01 %']
    """
    if 0 < share < LEAST:
        return f"< {percent(LEAST, 2)}"
    return f"{plain(100 * share, 3 if share >= 1 else 2)}\N{NO-BREAK SPACE}%"


def size(number: float | None) -> Cell:
    """Any other number, to three digits."""
    return Cell(padded(number)) if known(number) else UNKNOWN


def cosine(number: float | None, digits: int = 3) -> Cell:
    """A cosine or a ratio near 1, to so many decimals."""
    return (
        Cell(f"{number:.{digits}f}".replace("-", MINUS)) if known(number) else UNKNOWN
    )


def degrees(angle: float | None, digits: int = 0) -> Cell:
    """An angle in degrees."""
    return Cell(f"{angle:.{digits}f}°") if known(angle) else UNKNOWN
