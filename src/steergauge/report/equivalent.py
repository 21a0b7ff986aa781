"""T10 on the geometry page: v and the most different vector that does what v does."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from steergauge.audits.finding import Finding, Verdict
from steergauge.report.axis import Axis
from steergauge.report.cells import cosine, degrees, portion, size
from steergauge.report.curves import Seen
from steergauge.report.grid import UNKNOWN, Cell, Column, Grid, Row, known, measured
from steergauge.report.grid import tables as filled
from steergauge.report.plots import Plot, guide, log_axis, plot, trace
from steergauge.report.samples import PromptSamples
from steergauge.report.sections import (
    Arrow,
    Details,
    Drawing,
    Section,
    numbers,
    present,
    value,
)
from steergauge.report.words import padded, percent, plain, typeset

Record = Mapping[str, Any]

_CARRIES = (
    "A verified vector writes what v writes, within the budget, on prompts that took "
    "no part in its making. Where it lies far from v, an effect of v on the texts does "
    "not single out v's direction. That no wider angle was found is a limit of the "
    "search and no proof; the bound of the quadratic model holds only as far as "
    "second-order theory does. If random vectors of v's length can be added to v "
    "within the budget, the freedom is that of any vector in a space of so many "
    "dimensions, and says nothing of v. All of it concerns these prompts, this "
    "strength and this many tokens."
)
_CENTRE = (160.0, 150.0)
_RADIUS = 112.0
_LONGEST = 1.1


def equivalent(finding: Finding, texts: Sequence[PromptSamples]) -> Section:
    """The section of T10.

    Args:
        finding: of the audit.
        texts: of v and of its most different equivalent.
    """
    details = finding.details
    tried = details.get("candidates") or []
    return Section(
        "equivalent",
        "v and its most different equivalent",
        finding,
        _CARRIES,
        plots=present(_costs(details, tried)),
        grids=filled(*_table(details, tried)),
        told=_told(details),
        drawing=_drawing(finding),
        texts=tuple(texts),
    )


def shown(details: Details) -> Record | None:
    """The widest candidate verified at the main budget, or else the main one.

    >>> tried = [{"budget": 0.01, "cosine": 0.9, "verified_main": True},
    ...          {"budget": 0.05, "cosine": 0.7, "verified_main": False}]
    >>> shown({"budget": 0.05, "candidates": tried})["cosine"]
    0.9
    >>> tried[1] = tried[1] | {"budget": 0.2, "verified_main": True}
    >>> shown({"budget": 0.05, "candidates": tried})["cosine"]
    0.7
    """
    best = widest(details)
    if best is not None:
        return best
    budget = value(details, "budget") or 0.0
    tried = [one for one in details.get("candidates") or [] if known(one.get("cosine"))]
    within = [one for one in tried if one["budget"] <= budget * (1 + 1e-9)]
    return max(within, key=lambda one: one["budget"]) if within else None


def widest(details: Details) -> Record | None:
    """The candidate at the widest angle that is verified at the main budget."""
    verified = [
        one
        for one in details.get("candidates") or []
        if known(one.get("cosine")) and one.get("verified_main")
    ]
    return min(verified, key=lambda one: one["cosine"]) if verified else None


def angle(record: Record) -> float | None:
    """The angle from v in degrees."""
    if known(record.get("angle_deg")):
        return record["angle_deg"]
    if not known(record.get("cosine")):
        return None
    return math.degrees(math.acos(min(1.0, max(-1.0, record["cosine"]))))


def _drawing(finding: Finding) -> Drawing | None:
    """The two vectors in their plane, the control mirrored in it."""
    main = shown(finding.details)
    theta = angle(main) if main else None
    if main is None or theta is None or finding.verdict is Verdict.UNINFORMATIVE:
        return None
    norm = min(value(main, "norm") or 1.0, _LONGEST)
    arrows = [
        _arrow("own", 0.0, 1.0, "v"),
        _arrow("candidate", theta, norm, f"v\N{PRIME}, {theta:.0f}°"),
    ]
    notes = [("candidate", _cost("v'", main.get("nats"), finding.details))]
    if known(value(main, "control")):
        arrows.append(_arrow("control", -theta, norm, "random, same angle"))
        who = "random vectors at the same angle and length"
        notes.append(("control", _cost(who, main.get("control"), finding.details)))
    state = "" if main.get("verified_main") else ", which was not verified"
    return Drawing(
        f"v and v'{state}",
        tuple(arrows),
        _arc(theta),
        tuple(notes),
        f"An angle of {theta:.0f} degrees between v and v\N{PRIME}.",
    )


def _arrow(style: str, theta: float, norm: float, label: str) -> Arrow:
    """An arrow at an angle from v, which points to the right."""
    turn = math.radians(theta)
    across, up = math.cos(turn), math.sin(turn)
    x = _CENTRE[0] + _RADIUS * norm * across
    y = _CENTRE[1] - _RADIUS * norm * up
    anchor = "end" if x > 250 else "start" if x < 70 else "middle"
    above = -10.0 if up >= 0 else 18.0
    return Arrow(style, round(x, 1), round(y, 1), label, round(x, 1),
                 round(y + above, 1), anchor)  # fmt: skip


def _arc(theta: float) -> str:
    """The arc from v to v'."""
    turn, radius = math.radians(theta), 0.3 * _RADIUS
    x = _CENTRE[0] + radius * math.cos(turn)
    y = _CENTRE[1] - radius * math.sin(turn)
    return (
        f"M {_CENTRE[0] + radius:.1f} {_CENTRE[1]:.1f} "
        f"A {radius:.1f} {radius:.1f} 0 0 0 {x:.1f} {y:.1f}"
    )


def _cost(who: str, nats: Sequence[float] | None, details: Details) -> str:
    """What it costs to replace v, as a sentence."""
    seen, effect = measured(nats, "nats"), value(details, "effect")
    if seen == UNKNOWN or not nats:
        return f"K(v || {who}) was not measured"
    relative = f", {portion(nats[0] / effect)} of v's effect" if effect else ""
    return f"K from v to {who}: {seen.text} nats a text {seen.small}{relative}"


def _costs(details: Details, tried: Sequence[Record]) -> Plot | None:
    """K over the angle: candidates, and controls at their angles."""
    effect = value(details, "effect")
    rows = [
        (theta, one)
        for one in tried
        if (theta := angle(one)) is not None and known(value(one, "nats"))
    ]
    if not rows or not effect:
        return None
    points = {key: _relative(rows, key, effect) for key in ("nats", "control")}
    budget = value(details, "budget") or 0.05
    ends = [end for found in points.values() for _, *three in found for end in three]
    axes = (
        Axis(0.0, max(95.0, 1.08 * max(theta for theta, _ in rows))),
        log_axis([*ends, budget, 1.0], least=1e-6),
    )
    return plot(
        "What it costs to replace v",
        [
            trace("v'", points["nats"], axes=axes, style="candidate", joined=False),
            trace(
                "random, same angle and length",
                points["control"],
                axes=axes,
                style="control",
                joined=False,
            ),
        ],
        unit="K(v || other) over v's own effect, log scale, on prompts of the test",
        axes=axes,
        x_label="angle from v, degrees",
        guides=[
            guide(f"budget, {percent(budget)}", [budget], axes=axes, kind="limit"),
            guide("v's own effect", [1.0], axes=axes, kind="zero"),
        ],
        tall=True,
    )


def _relative(
    rows: Sequence[tuple[float, Record]], key: str, effect: float
) -> list[Seen]:
    """Angles with K over v's effect, and its interval."""
    found = []
    for theta, one in sorted(rows, key=lambda row: row[0]):
        if known(value(one, key)):
            seen, low, high = (max(end, 0.0) / effect for end in one[key])
            found.append((theta, seen, low, high))
    return found


def _table(details: Details, tried: Sequence[Record]) -> list[Grid]:
    main = value(details, "budget")
    rows = tuple(
        Row(
            typeset(f"{portion(one['budget'])} of v's effect"),
            "the budget of the verdict" if one["budget"] == main else "",
            _cells(one),
        )
        for one in tried
        if known(one.get("budget"))
    )
    columns = (
        Column("planned", "cosine with v", "optimum of the quadratic model"),
        Column("after", "cosine with v", "budget scaled on VAL"),
        Column("angle"),
        Column("length", "", "of v's"),
        Column("predicted", "K(v || v'), nats a text", "by F_bar"),
        Column("VAL", "K(v || v'), nats a text", "scaled on these"),
        Column("TEST", "K(v || v'), nats a text", "not seen before"),
        Column("random, same angle", "control", "K, nats a text"),
        Column("its own budget", "verified"),
        Column("main budget", "verified"),
    )
    note = "v' is the vector furthest from v, no longer than it, within the budget"
    if not rows:
        return []
    return [Grid("Candidates by budget", note, "budget", columns, (("", rows),))]


def _cells(one: Record) -> tuple[Cell, ...]:
    back = one.get("shrink")
    small = f"{padded(back)} times the budget by F" if known(back) else ""
    after = cosine(one.get("cosine"))
    if after != UNKNOWN:
        after = Cell(after.text, small)
    return (
        cosine(one.get("cosine_planned")),
        after,
        degrees(angle(one)),
        cosine(one.get("norm")),
        size(value(one, "predicted")),
        size(value(one, "validation")),
        measured(one.get("nats"), "nats"),
        measured(one.get("control"), "nats"),
        *(
            Cell("✓ yes" if one.get(key) else "✕ no")
            for key in ("verified", "verified_main")
        ),
    )


def _told(details: Details) -> tuple[str, ...]:
    told = []
    rho, limit = value(details, "rho"), value(details, "generic_limit")
    if rho is not None and limit is not None:
        told.append(
            "By the quadratic form, to add a random vector of v's length to v costs "
            f"1 / rho_F = {padded(limit)} of v's effect (rho_F = {padded(rho)})."
        )
    added, effect = numbers(details, "added"), numbers(details, "effect")
    if added and effect and effect[0] > 0:
        told.append(
            f"Measured, it costs {padded(added[0] / effect[0])} of it: surely within "
            "the budget, any such vector would do; surely beyond it, a vector at 60 "
            "degrees or more that keeps to it is a special one."
        )
    radius = value(details, "radius")
    if radius is not None:
        place = "reaches" if radius >= 1 else "does not reach"
        told.append(
            f"Along v, second-order theory {place} this strength (radius "
            f"{plain(radius)} times ||alpha v||); the verdict rests on measured K."
        )
    effect = details.get("effect")
    if effect and known(effect[0]):
        seen = measured(effect, "nats")
        told.insert(0, f"v's own effect is {seen.text} nats a whole text {seen.small}.")
    told.append(
        "Verified: the upper end of K is at most that share of the lower end of v's "
        "own effect. The verdict is about the main budget, which every candidate is "
        "held against."
    )
    if widest(details):
        told.append(
            "The vector of the main budget is kept in the run's folder as "
            "vectors/most_different.safetensors."
        )
    return (" ".join(told),)
