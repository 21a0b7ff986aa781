"""T19 on the reachability page: how rare steered states are among natural ones."""

from collections.abc import Mapping
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.report.axis import Axis, Line, Tick
from steergauge.report.cells import degrees, size
from steergauge.report.forest import Forest, ForestRow
from steergauge.report.grid import (
    UNKNOWN,
    Cell,
    Column,
    Grid,
    Row,
    ends,
    known,
    measured,
    tables,
    written,
)
from steergauge.report.plots import thinned
from steergauge.report.sections import Details, Section, estimated, numbers, value
from steergauge.report.words import padded, plain, typeset

Record = Mapping[str, Any]

RARE = 0.01
"""States at or below count as rare, as the audit has it."""

MOST_DOTS = 120
_STYLES = {"natural": "control", "v": "own", "random": "candidate", "swap": "candidate"}
_NAMES = {
    "natural": ("natural states", "held out: at most one in a hundred should be rare"),
    "v": ("v", "the vector under audit"),
    "random": ("random steps", "of v's length: the negative control"),
    "swap": ("token swaps", "differences of two tokens' states, of v's length"),
}
_CARRIES = (
    "A conformal p is the rank of a state's strangeness among natural states that the "
    "fit has not seen, so it needs no assumption about their shape; being of two "
    "scores, it is no smaller than two over their number. But it sees only what these "
    "scores see, the distance in a fitted Gaussian and that to the nearest natural "
    "states, and only the natural texts of this sample. A step that is long enough "
    "looks strange whatever its direction; whether v's looks stranger than a step "
    "between two tokens of the same length is the question. States that look strange "
    "need not be out of a prompt's reach, nor the reverse."
)


def density(finding: Finding) -> Section:
    """The section of T19, but for its strips."""
    details = finding.details
    return Section(
        "density",
        "Among natural states: how rare the steered ones are",
        finding,
        _CARRIES,
        grids=tables(_table(details)),
        told=_told(details),
    )


def strips(details: Details) -> Forest | None:
    """Every state's p, family by family, on a logarithmic axis."""
    families = [one for one in details.get("families") or () if numbers(one, "p")]
    if not families:
        return None
    least = value(details, "smallest_p")
    low = min([*(p for one in families for p in one["p"] if p > 0), least or RARE])
    axis = Axis(0.8 * min(low, RARE), 1.0, log=True)
    lines = [Line(axis.at(RARE), f"rare: p < {plain(RARE)}", "limit")]
    if least:
        lines.append(Line(axis.at(least), "smallest p that there can be", "zero"))
    return Forest(
        "How many natural states are as strange",
        "conformal p of each state, log scale; the disc is the median, the number the "
        f"share with p < {plain(RARE)}",
        tuple(_row(one, axis) for one in families),
        tuple(axis.ticks(5)),
        tuple(lines),
        dots="a state",
    )


def _row(one: Record, axis: Axis) -> ForestRow:
    name, note = _name(one)
    ordered = sorted(one["p"])
    dots = tuple(
        Tick(axis.at(ordered[k]), f"p = {plain(ordered[k])}")
        for k in thinned(len(ordered), MOST_DOTS)
    )
    middle = axis.at(value(one, "median_p") or ordered[len(ordered) // 2])
    share = measured(estimated(one, "share"), "whole")
    style = _STYLES.get(str(one["name"]), "candidate")
    return ForestRow(
        name, note, style, middle, middle, middle, dots, share.text, share.small
    )


def _name(one: Record) -> tuple[str, str]:
    default = str(one.get("label") or one["name"]), ""
    name, note = _NAMES.get(str(one["name"]), default)
    return name, typeset(note)


def _table(details: Details) -> Grid:
    columns = (
        Column("rare", "", f"share with p < {plain(RARE)}"),
        Column("median p"),
        Column("Mahalanobis", "strangeness", "median distance from the centre"),
        Column("neighbours", "strangeness", "median, over that of natural neighbours"),
        Column("length", "shape", "of the natural state's; median [5 %, 95 %]"),
        Column("angle", "shape", "from the natural state, median"),
    )
    rows = tuple(
        Row(*_name(one), _cells(one), aside=one["name"] != "v")
        for one in details.get("families") or ()
    )
    note = "one state a text; random steps and token swaps are as long as v's step"
    return Grid("States by what was done to them", note, "", columns, (("", rows),))


def _cells(one: Record) -> tuple[Cell, ...]:
    return (
        measured(estimated(one, "share"), "whole"),
        size(one.get("median_p")),
        size(one.get("mahalanobis")),
        size(one.get("neighbours")),
        _norm(one.get("norm")),
        degrees(one.get("angle")) if one["name"] != "natural" else UNKNOWN,
    )


def _norm(seen: Record | None) -> Cell:
    """The ratio of lengths, and between what the middle 90 % of them lie."""
    if not seen or not known(seen.get("median")):
        return UNKNOWN
    return Cell(padded(seen["median"]), ends(seen["low"], seen["high"], "ratio"))


def _told(details: Details) -> tuple[str, ...]:
    told = []
    fitted = details.get("num_reference")
    if fitted is not None:
        told.append(
            f"Natural states: {fitted} to fit {details.get('components')} components, "
            f"{details.get('num_calibration')} others to rank against, "
            f"{details.get('num_test')} to test."
        )
    seen = details.get("uniform") or {}
    if known(seen.get("p")):
        told.append(
            "If the measurement is sound, natural states of the test are no stranger "
            f"than those they are ranked against; the test of that has p = "
            f"{plain(seen['p'])}."
        )
    spread = details.get("norm_of_natural") or {}
    if known(spread.get("median")):
        told.append(
            f"Natural states themselves are {plain(spread['low'])} to "
            f"{plain(spread['high'])} times as long as is typical (5 % to 95 %)."
        )
    families = {one["name"]: one for one in details.get("families") or ()}
    shares = [
        f"{_NAMES[name][0]} {written(estimated(families[name], 'share'), 'whole')}"
        for name in ("v", "random", "swap")
        if name in families and families[name].get("share")
    ]
    if shares:
        told.append(f"Rare among natural states: {', '.join(shares)}.")
    return tuple(told)
