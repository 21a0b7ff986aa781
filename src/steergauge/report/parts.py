"""What the paper's page is made of: parts, and in them blocks of tables and figures."""

from collections.abc import Iterable
from dataclasses import dataclass

from steergauge.report.cases import Case
from steergauge.report.curves import Curves
from steergauge.report.forest import Forest
from steergauge.report.grid import Grid


@dataclass(frozen=True, slots=True)
class Said:
    """What was found in one case, in words."""

    who: str
    note: str
    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """Tables or figures, and the paragraph below them.

    Attributes:
        grids: tables.
        folded: tables behind a summary.
        strips: forests side by side.
        curves: panels side by side.
        said: what was found, case by case.
        carries: what the published number can carry, and what it cannot.
    """

    grids: tuple[Grid, ...] = ()
    folded: tuple[Grid, ...] = ()
    strips: tuple[Forest, ...] = ()
    curves: tuple[Curves, ...] = ()
    said: tuple[Said, ...] = ()
    carries: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """An experiment of the paper.

    Attributes:
        name: anchor on the page.
        title: heading.
        source: where it is in the paper; empty if it is not.
        claim: what the paper concludes from it, or else what is asked here.
        blocks: what was found here.
    """

    name: str
    title: str
    source: str
    claim: str
    blocks: tuple[Block, ...]


def said(pairs: Iterable[tuple[Case, str]]) -> tuple[Said, ...]:
    """Sentences by case; empty ones are left out."""
    return tuple(Said(case.trait, case.note, text) for case, text in pairs if text)
