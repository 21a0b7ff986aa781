"""T11 to T13 on the geometry page: the reach of theory, the basis, other methods.

Second-order theory holds up to some length of the step; a change of basis must change
no number of the audits; and vectors of other methods are compared in the metric of
the output beside that of the stream.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.report.axis import Axis
from steergauge.report.cells import cosine, size
from steergauge.report.grid import (
    UNKNOWN,
    Cell,
    Column,
    Grid,
    Row,
    known,
    measured,
    tables,
)
from steergauge.report.plots import (
    Axes,
    Guide,
    Plot,
    Trace,
    exact,
    guide,
    log_axis,
    plot,
    trace,
    upright,
)
from steergauge.report.sections import Details, Section, present, value
from steergauge.report.words import padded, percent, plain

HEATS = 5
DIRECTIONS = {"v": "own", "top": "candidate", "random": "control", "smallest": "other"}
"""Directions of the plot, the first of each kind, and how they are drawn."""

_LINEAR = (
    "Rank, null share and rho_F are made of second derivatives, so they describe small "
    "steps. Where the radius is below the strength in use they still say what the "
    "output can see near the unsteered state, and not what v does at its full length; "
    "what was measured with the model itself (the rays, v's most different equivalent) "
    "does not depend on this. Beyond the last step that was tried nothing is known."
)
_GAUGE = (
    "The twin computes the same function in another basis. Numbers that change with it "
    "are facts about the basis and not about what the vector does: a large coordinate, "
    "a few neurons, a cosine with something that was not turned along. Passing is a "
    "check of these audits, not evidence about the vector."
)
_METHODS = (
    "The cosine of the stream says whether two vectors point the same way, the cosine "
    "in F_bar whether the output can tell. Pairs with v are judged by the measured KL "
    "at matched strength, and a method that was measured apart from v is not of its "
    "class, whatever it resembles. Other pairs are judged by the quadratic prediction, "
    "give or take the most that it errs by with v. One class means that the texts do "
    "not tell which method was used; it does not mean that any of the vectors is the "
    "trait."
)


def linearity(finding: Finding) -> Section:
    """The section of T11."""
    details = finding.details
    directions = details.get("directions") or {}
    return Section(
        "linearity",
        "How far second-order theory holds",
        finding,
        _LINEAR,
        plots=present(
            _lines(
                details, "ratio", "Measured KL over the quadratic one", "1 is agreement"
            ),
            _lines(
                details,
                "departure",
                "Departure of the logits from linear",
                "of the linear change, median",
            ),
        ),
        grids=tables(*_radii(directions)),
    )


def _lines(details: Details, key: str, title: str, unit: str) -> Plot | None:
    """One quantity over the length of the step, in multiples of the strength."""
    shown = _shown(details.get("directions") or {}, key)
    if not shown:
        return None
    seen = [point for _, _, points in shown for point in points]
    top = max(height for _, height in seen)
    axes = log_axis([1.0, *(at for at, _ in seen)]), _upward(top, key == "ratio")
    guides = [upright("the strength in use", [1.0], axes=axes, kind="chosen")]
    radius = value(details, "radius")
    if radius is not None and key == "ratio":
        guides.append(upright("radius of v", [radius], axes=axes, kind="floor"))
    guides.append(_tolerated(details, key, axes))
    if key == "ratio":
        guides.append(guide("agreement", [1.0], axes=axes, kind="zero"))
    traces: list[Trace] = [
        trace(name, exact(points), axes=axes, style=style)
        for name, style, points in shown
    ]
    return plot(
        title,
        traces,
        unit=unit
        + ("; what lies higher is drawn at the edge" if top > axes[1].high else ""),
        axes=axes,
        x_label="step, times ||alpha v||, log scale",
        guides=guides,
    )


def _upward(top: float, ratio: bool) -> Axis:
    """From 0 to a little above what is seen; a far outlier is cut off at the edge."""
    least = 1.5 if ratio else 0.3
    return Axis(0.0, 1.08 * min(max(top, least), 4.0 if ratio else 3.0))


def _tolerated(details: Details, key: str, axes: Axes) -> Guide:
    if key == "ratio":
        off = value(details, "tolerance") or 0.25
        places = [1 - off, 1 + off]
    else:
        off = value(details, "tolerance_logits") or 0.1
        places = [off]
    return guide(f"tolerance, {percent(off)}", places, axes=axes, kind="limit")


def _shown(
    directions: Mapping[str, Mapping[str, Any]], key: str
) -> list[tuple[str, str, list[tuple[float, float]]]]:
    """Name, style and points of the first direction of each kind."""
    found: dict[str, tuple[str, str, list[tuple[float, float]]]] = {}
    for name, record in directions.items():
        kind = name.partition("[")[0]
        points = [
            (at, seen)
            for at, seen in zip(
                record.get("steps") or [], record.get(key) or [], strict=False
            )
            if known(at) and known(seen)
        ]
        if kind in DIRECTIONS and kind not in found and points:
            found[kind] = (name, DIRECTIONS[kind], points)
    return [found[kind] for kind in DIRECTIONS if kind in found]


def _radii(directions: Mapping[str, Mapping[str, Any]]) -> list[Grid]:
    rows = tuple(
        Row(
            name,
            "",
            (
                _radius(record.get("radius"), record),
                _radius(record.get("radius_logits"), record),
            ),
        )
        for name, record in directions.items()
    )
    columns = (
        Column("KL", "", "within the tolerance"),
        Column("logits", "", "within the tolerance, median"),
    )
    note = "in multiples of ||alpha v||; at the end of the grid it is a lower bound"
    return [Grid("Radius by direction", note, "direction", columns, (("", rows),))]


def _radius(radius: float | None, record: Mapping[str, Any]) -> Cell:
    if not known(radius):
        return UNKNOWN
    last = max((at for at in record.get("steps") or [] if known(at)), default=None)
    least = last is not None and radius >= last * (1 - 1e-9)
    return Cell(f"at least {padded(radius)}" if least else padded(radius))


def gauge(finding: Finding) -> Section:
    """The section of T12."""
    details = finding.details
    kinds = {
        "rotation": "The stream was turned by a random rotation of all its dimensions.",
        "shift": "A multiple of the all-ones vector was added to v.",
        "none": "No change of basis is known for this model.",
    }
    told = kinds.get(details.get("kind") or "", "")
    reason = details.get("reason") or ""
    return Section(
        "gauge",
        "The same vector in another basis",
        finding,
        _GAUGE,
        grids=tables(*_invariants(details), *_dependent(details)),
        told=tuple(one for one in (" ".join((told, reason)).strip(),) if one),
    )


def _invariants(details: Details) -> list[Grid]:
    rows = tuple(
        Row(
            name,
            "",
            (
                size(value(record, "before")),
                size(value(record, "after")),
                size(value(record, "error")),
            ),
        )
        for name, record in (details.get("invariants") or {}).items()
    )
    columns = (Column("before"), Column("after"), Column("error", "", "relative"))
    tolerance = value(details, "tolerance")
    note = "" if tolerance is None else f"tolerated: {plain(tolerance)}, relative"
    return [Grid("What must not change", note, "number", columns, (("", rows),))]


def _dependent(details: Details) -> list[Grid]:
    rows = tuple(
        Row(name, "", tuple(size(one) for one in seen))
        for name, seen in (details.get("dependent") or {}).items()
        if len(seen) == 2
    )
    columns = (Column("before"), Column("after"))
    note = "a claim made of these depends on the basis"
    return [Grid("What changes with the basis", note, "number", columns, (("", rows),))]


def methods(finding: Finding) -> Section:
    """The section of T13."""
    details = finding.details
    names = details.get("names") or []
    return Section(
        "methods",
        "Other ways to extract the vector",
        finding,
        _METHODS,
        grids=tables(
            *_matrix(names, details.get("cosine"), "Cosine in the stream", ""),
            *_matrix(
                names,
                details.get("cosine_fisher"),
                "Cosine in F_bar: as the output sees them",
                "at matched strength two differ by 2 (1 - cosine) of their effect",
            ),
            *_relative(details, names),
        ),
        told=_classes(details),
    )


def _matrix(
    names: Sequence[str],
    entries: Sequence[Sequence[float | None]] | None,
    caption: str,
    note: str,
) -> list[Grid]:
    """A square table whose ground darkens with the size of the number."""
    if not entries or len(entries) != len(names):
        return []
    rows = tuple(
        Row(name, "", tuple(_warm(one) for one in row))
        for name, row in zip(names, entries, strict=True)
    )
    columns = tuple(Column(name) for name in names)
    return [Grid(caption, note, "", columns, (("", rows),))]


def _warm(number: float | None) -> Cell:
    if not known(number):
        return UNKNOWN
    heat = min(HEATS, round(HEATS * abs(number)))
    return Cell(cosine(number, 2).text, heat=heat)


def _relative(details: Details, names: Sequence[str]) -> list[Grid]:
    relative, strengths = details.get("relative") or {}, details.get("strengths") or {}
    classes = details.get("classes") or []
    rows = tuple(
        Row(
            name,
            "",
            (
                measured(relative.get(name), "ratio"),
                size(strengths.get(name)),
                _class(name, classes),
            ),
        )
        for name in names
    )
    columns = (
        Column("KL from v", "", "over v's effect, at matched strength"),
        Column("strength", "", "times the stored vector"),
        Column("class"),
    )
    return [Grid("Against v, with the model", "", "method", columns, (("", rows),))]


def _class(name: str, classes: Sequence[Sequence[str]]) -> Cell:
    for place, members in enumerate(classes):
        if name in members:
            return Cell(str(place + 1))
    return Cell("\N{EN DASH}", "a null; in no class")


def _classes(details: Details) -> tuple[str, ...]:
    classes = details.get("classes") or []
    listed = "; ".join(
        f"{place + 1}: {', '.join(members)}" for place, members in enumerate(classes)
    )
    return (f"Classes of like effect: {listed}.",) if classes else ()
