"""Figure 2: ratios of v_perp to v, direction by direction, raw and as lifts.

A raw ratio is drawn beside that of no steering at all, which has one too. The ratio of
lifts follows from the same numbers: (q m(v) - m_0) / (m(v) - m_0), with q the raw one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from steergauge.report import words
from steergauge.report.axis import Axis, Line, Tick, linear_axis
from steergauge.report.cases import Case, having
from steergauge.report.forest import Forest, ForestRow
from steergauge.report.grid import ends, known, number, share, span
from steergauge.report.orthogonal import unsteered_ratio
from steergauge.report.parts import Block, said
from steergauge.report.words import PERP

_FARTHEST = (-1.5, 2.5)
"""Ratios of lifts beyond lie at the ends of the axis."""

_CARRIES = (
    "The left ratio is near 1 for every vector that leaves the score near its "
    "unsteered value, one that does nothing among them: the dashed mark is where that "
    "lies. So a value near 1 carries “as effective as v” only where the mark is far "
    "from 1. The right ratio has the unsteered score taken out: 0 is no effect, 1 is "
    "v's."
)


def figure_2(cases: list[Case]) -> tuple[Block, ...]:
    """Raw ratios as published, and ratios of lifts beside them."""
    found = [
        (case, details)
        for case, details in having(cases, "replication")
        if any(known(one["perp_percent"]) for one in details["per_seed"])
    ]
    if not found:
        return ()
    return (
        Block(
            strips=(_raw(found), *_of_lifts(found)),
            said=said((case, _told(details)) for case, details in found),
            carries=_CARRIES,
        ),
    )


Found = Sequence[tuple[Case, Mapping[str, Any]]]


def raw_ratios(details: Mapping[str, Any]) -> list[float]:
    """Raw score of each v_perp over v's."""
    return [
        one["perp_percent"] / 100
        for one in details["per_seed"]
        if known(one["perp_percent"])
    ]


def lift_ratios(details: Mapping[str, Any]) -> list[float]:
    """Lift of each v_perp over v's; empty where v's is 0."""
    scores = details["raw_scores"]
    own, base = scores["v"], scores["unsteered"]
    if own == base:
        return []
    return [(ratio * own - base) / (own - base) for ratio in raw_ratios(details)]


def _raw(found: Found) -> Forest:
    everything = [1.0]
    for _, details in found:
        everything += raw_ratios(details)
        idle = unsteered_ratio(details)
        everything += [idle] if known(idle) else []
    axis = linear_axis(everything, room=0.08)
    rows = []
    for case, details in found:
        seen = raw_ratios(details)
        mean = sum(seen) / len(seen)
        idle = unsteered_ratio(details)
        rows.append(
            _row(case, axis, seen, (mean, mean, mean))
            | {
                "number": words.plain(mean),
                "interval": f"no steering: {words.plain(idle)}" if known(idle) else "",
                "reference": axis.at(idle) if known(idle) else None,
            }
        )
    return Forest(
        caption="Figure 2, as published: raw scores",
        unit=f"mean score of {PERP} over mean score of v",
        rows=tuple(ForestRow(**row) for row in rows),
        ticks=tuple(axis.ticks()),
        lines=(Line(axis.at(1.0), "the raw score of v", "zero"),),
        reference="no steering at all",
    )


def _of_lifts(everyone: Found) -> tuple[Forest, ...]:
    """None where no case has a lift to divide by."""
    found = [pair for pair in everyone if known(pair[1]["lift_ratio"][0])]
    if not found:
        return ()
    everything = [0.0, 1.0]
    for _, details in found:
        everything += lift_ratios(details)
        everything += [end for end in details["lift_ratio"] if known(end)]
    least, most = _FARTHEST
    axis = linear_axis([min(max(one, least), most) for one in everything], room=0.05)
    rows = []
    for case, details in found:
        value, low, high = details["lift_ratio"]
        shown = (low, high) if known(low) and known(high) else (axis.low, axis.high)
        rows.append(
            _row(case, axis, lift_ratios(details), (value, *shown))
            | {"number": words.signed(value), "interval": ends(low, high)}
        )
    figure = Forest(
        caption="The same, with the unsteered score taken out",
        unit=f"lift of {PERP} over lift of v, Fieller's interval",
        rows=tuple(ForestRow(**row) for row in rows),
        ticks=tuple(axis.ticks()),
        lines=(
            Line(axis.at(0.0), "no steering at all", "limit"),
            Line(axis.at(1.0), "the lift of v", "zero"),
        ),
    )
    return (figure,)


def _row(
    case: Case,
    axis: Axis,
    dots: list[float],
    seen: tuple[float, float, float],
) -> dict[str, Any]:
    mean, low, high = (axis.at(number) for number in seen)
    return {
        "label": case.trait,
        "note": case.note,
        "style": "candidate",
        "mean": mean,
        "low": low,
        "high": high,
        "dots": tuple(Tick(axis.at(dot), words.plain(dot)) for dot in dots),
    }


def _told(details: Mapping[str, Any]) -> str:
    seen, idle = raw_ratios(details), unsteered_ratio(details)
    text = f"The raw ratio is {span(seen)} over {len(seen)} directions"
    if known(idle):
        text += f", and {number(idle, digits=2)} without any steering"
    value, low, high = details["lift_ratio"]
    if not known(value):
        return f"{text}. v's own lift is 0, so there is no ratio of lifts."
    if not (known(low) and known(high)):
        return f"{text}. v's own lift may be 0, so a ratio to it says nothing."
    text += (
        f". As a lift, {PERP} has {share(value, 1)} {ends(low, high, 'share')} of v's"
    )
    return text + (", which cannot be told from none." if low <= 0 <= high else ".")
