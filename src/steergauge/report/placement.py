"""T9 on the geometry page: where v lies in the spectrum, and how well it is known."""

from collections.abc import Mapping
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.report.axis import Axis
from steergauge.report.cells import cosine, count, degrees, part
from steergauge.report.grid import Cell, Column, Grid, Row, known, measured, tables
from steergauge.report.plots import Plot, exact, plot, trace
from steergauge.report.sections import Details, Section, numbers, present, value
from steergauge.report.words import plain, typeset

_CARRIES = (
    "rho_F is what v costs over what a random direction of its length costs, to second "
    "order. Above 1 the output sees v better than chance; that says nothing about the "
    "trait. The null share is the part of ||v||^2 that could be taken away within a "
    "budget; a random direction has one too, so it is compared with that. A canonical "
    "representative is one choice among the vectors of like effect, the shortest, and "
    "not a truer one. What the pairs leave open about v is sampling error of the "
    "extraction, which is another matter than what the output cannot see."
)


_WITHIN = "v from the vector of ever more pairs"


def placement(finding: Finding) -> Section:
    """The section of T9."""
    details = finding.details
    return Section(
        "placement",
        "Where v lies in the spectrum",
        finding,
        _CARRIES,
        plots=present(_cumulative(details)),
        grids=tables(*_shares(details), *_canonical(details), *_pairs(details)),
        told=_told(details),
    )


def _cumulative(details: Details) -> Plot | None:
    """Share of ||v||^2 within the strongest directions."""
    curve = details.get("cumulative") or {}
    dims, own = numbers(curve, "dims"), numbers(curve, "v")
    random = numbers(curve, "random")
    if not dims or len(dims) != len(own):
        return None
    if dims[0] > 0:
        dims, own = [0.0, *dims], [0.0, *own]
        random = [0.0, *random] if random else []
    axes = Axis(0, max(dims)), Axis(0, 1.04)
    traces = [
        trace(
            "v", exact(zip(dims, own, strict=True)), axes=axes, style="own", dots=False
        )
    ]
    if len(random) == len(dims):
        points = exact(zip(dims, random, strict=True))
        traces.append(
            trace("random direction", points, axes=axes, style="control", dots=False)
        )
    return plot(
        "Share of ||v||^2 in the strongest directions",
        traces,
        unit="of ||v||^2; a random direction lies on the diagonal",
        axes=axes,
        x_label="strongest directions of F_bar",
        tall=True,
    )


def _shares(details: Details) -> list[Grid]:
    """How much of v is in the hard and in the soft null space."""
    rows = []
    for key, label, note in (
        ("hard", "hard null", "below ten floors of the arithmetic"),
        ("soft", "soft null", "a step of v's length stays in the budget"),
    ):
        found = details.get(key) or {}
        if not found:
            continue
        tau = value(found, "tau")
        note = typeset(note) if tau is None else typeset(f"{note} of {plain(tau)} nats")
        rows.append(Row(label, note, _share_cells(found)))
    columns = (
        Column("dimensions"),
        Column(typeset("share of ||v||^2")),
        Column("expected", "", "random direction, 95 % range"),
    )
    caption = "How much of v is unseen"
    return [Grid(caption, "", "space", columns, (("", tuple(rows)),))] if rows else []


def _share_cells(found: Mapping[str, Any]) -> tuple[Cell, ...]:
    chance = measured(found.get("expected"), "share")
    return count(found.get("dim")), part(found.get("share")), chance


def _canonical(details: Details) -> list[Grid]:
    """What is left of v without what the output does not see."""
    rows = []
    for key, label, note in (
        ("canonical", "hard", "v without its part in the hard null space"),
        (
            "canonical_soft",
            "soft",
            "the shortest vector that the quadratic form allows",
        ),
    ):
        found = details.get(key) or {}
        if not found:
            continue
        cells = (
            cosine(found.get("cosine"), 4),
            cosine(found.get("norm"), 4),
            measured(found.get("nats"), "nats"),
            part(found.get("relative")),
        )
        rows.append(Row(label, note, cells))
    columns = (
        Column("cosine with v"),
        Column("length", "", "of v's"),
        Column("K to v", "", "nats a text, on texts of the test"),
        Column(typeset("of v's effect")),
    )
    caption = "Canonical representatives: v without what is not seen"
    note = "each is the shortest vector of its kind; K is measured with the model"
    return [Grid(caption, note, "", columns, (("", tuple(rows)),))] if rows else []


def _pairs(details: Details) -> list[Grid]:
    """What the contrast pairs leave open about v."""
    pairs = details.get("pairs") or {}
    if not pairs:
        return []
    cells = (
        count(pairs.get("num")),
        measured(pairs.get("split_half"), "ratio"),
        degrees(pairs.get("radius_deg"), 1),
        degrees(pairs.get("radius_visible_deg"), 1),
        part(pairs.get("noise_in_null")),
        part(pairs.get("noise_expected")),
    )
    columns = (
        Column("pairs"),
        Column("split halves", "", "cosine of two halves' vectors"),
        Column("radius", _WITHIN, "angle"),
        Column("visible radius", _WITHIN, "angle in F_bar"),
        Column("noise in soft null", "sampling variance of v"),
        Column("expected", "sampling variance of v", "dim / d"),
    )
    return [
        Grid(
            "How well the pairs determine v",
            "random halves; radius with 95 % confidence, bootstrap over pairs",
            "",
            columns,
            (("", (Row("v", "a mean of differences", cells),)),),
        )
    ]


def _told(details: Details) -> tuple[str, ...]:
    told = []
    effect = details.get("effect")
    if effect and known(effect[0]):
        seen = measured(effect, "nats")
        told.append(f"v itself costs {seen.text} nats a text {seen.small}.")
    if "pairs" in details and not details["pairs"]:
        told.append(
            "Nothing is said of how well v is determined: it was given, or is no mean "
            "of pairs' differences."
        )
    return (" ".join(told),) if told else ()
