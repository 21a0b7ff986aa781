"""What the geometry page is made of: a section for each audit, from its finding.

A section asks its question, shows the finding's verdict, number, interval, reasons and
controls, then plots and tables, and says what they can carry and what not. Details of
a finding may be missing or None, where something was not run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.report.grid import Grid, Numbers, known
from steergauge.report.plots import Plot
from steergauge.report.samples import PromptSamples

Details = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Arrow:
    """A vector of the drawing: where its tip is, and what is written there."""

    style: str
    x: float
    y: float
    label: str
    text_x: float
    text_y: float
    anchor: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """v and another vector at their true angle, in the plane of both.

    Attributes:
        caption: what is drawn.
        arrows: v, v' and the control.
        arc: path of the angle between v and v'.
        notes: what each costs, as style and sentence.
        described: the drawing in words, for those who do not see it.
    """

    caption: str
    arrows: tuple[Arrow, ...]
    arc: str
    notes: tuple[tuple[str, str], ...]
    described: str


@dataclass(frozen=True, slots=True)
class Section:
    """One audit on the page.

    Attributes:
        name: anchor.
        title: heading.
        finding: verdict, number, reasons, controls.
        plots: side by side.
        grids: tables.
        folded: tables behind a summary.
        told: numbers in sentences.
        drawing: v and its most different equivalent.
        texts: texts side by side.
        carries: what this can carry, and what it cannot.
    """

    name: str
    title: str
    finding: Finding
    carries: str
    plots: tuple[Plot, ...] = ()
    grids: tuple[Grid, ...] = ()
    folded: tuple[Grid, ...] = ()
    told: tuple[str, ...] = ()
    drawing: Drawing | None = None
    texts: tuple[PromptSamples, ...] = ()


def value(details: Details, name: str) -> float | None:
    """A number of the details, or the first of a number with its interval.

    >>> value({"rho": [2.0, 1.0, 3.0]}, "rho"), value({}, "rho")
    (2.0, None)
    """
    seen = details.get(name)
    if isinstance(seen, Sequence):
        seen = seen[0] if seen else None
    return seen if known(seen) else None


def estimated(details: Details, name: str) -> Numbers | None:
    """A number of the details with its interval, kept under names.

    >>> estimated({"eta": {"value": 2.0, "low": 1.0, "high": 3.0}}, "eta")
    [2.0, 1.0, 3.0]
    """
    seen = details.get(name)
    return [seen[end] for end in ("value", "low", "high")] if seen else None


def numbers(details: Details, name: str) -> list[float]:
    """A list of numbers of the details; empty if any of it is missing."""
    seen = details.get(name) or []
    return list(seen) if all(known(one) for one in seen) else []


def present(*plots: Plot | None) -> tuple[Plot, ...]:
    """Those plots that could be made."""
    return tuple(one for one in plots if one is not None)
