"""T18 on the reachability page: what weights do and what prompts do, in one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steergauge.audits.finding import Finding, Verdict
from steergauge.report.axis import Axis, Line, Tick
from steergauge.report.cells import count, part, portion, size
from steergauge.report.forest import Forest, ForestRow
from steergauge.report.grid import (
    UNKNOWN,
    Cell,
    Column,
    Grid,
    Row,
    known,
    measured,
    tables,
    written,
)
from steergauge.report.plots import log_axis
from steergauge.report.samples import printable
from steergauge.report.sections import Details, Section, estimated, value
from steergauge.report.words import percent, plain

Record = Mapping[str, Any]

LEAST_LEFT = 1e-3
"""A smaller relative loss is drawn at the axis's end."""

ACCESS = {
    "none": ("none", ""),
    "prompt": ("black box", "a prompt"),
    "weights": ("white box", "the state inside"),
    "embeddings": ("white box", "the input's embeddings"),
}
_CARRIES = (
    "A prompt that was found is found: its text stands here and can be tried. That "
    "none was found is a statement about this search and this budget. What the search "
    "finds where a prompt is known to exist is printed beside it; those prompts are "
    "pieces of real text, chosen for changing about as much as v does, and one for v "
    "may be easier or harder to find. A soft prefix is no prompt and no bound on "
    "prompts: it is what gradient descent over embeddings reached, on a few texts; "
    "with embeddings that much can be had, and more may be. arXiv 2604.09839 asks that "
    "the two numbers, what weights do and what prompts do, be given side by side and "
    "not be merged; a state that no prompt gives and a text that no prompt gives are "
    "two different things."
)


@dataclass(frozen=True, slots=True)
class Prompted:
    """A prompt in full: which condition it is of, and its text."""

    name: str
    note: str
    text: str
    open: bool


def access_table(finding: Finding) -> Section:
    """The section of T18, but for the power and the prompts."""
    details = finding.details
    first, rest = _split(details)
    return Section(
        "access",
        "What weights do and what prompts do",
        finding,
        _CARRIES,
        grids=tables(_table(first, "Access, behaviour, texts and states")),
        folded=tables(
            _table(rest, f"{len(rest)} more condition{'s' if len(rest) > 1 else ''}")
        ),
        told=_told(finding),
    )


def prompts(details: Details) -> tuple[Prompted, ...]:
    """Every prompt that was tried, in full; the best one first and open."""
    best = details.get("best_prompt")
    shown = [
        Prompted(
            str(one["label"]),
            ACCESS.get(one["access"], (str(one["access"]), ""))[0],
            printable(str(one["prompt"])),
            one["name"] == best,
        )
        for one in details.get("rows") or ()
        if one["prompt"] and one["access"] == "prompt"
    ]
    return tuple(sorted(shown, key=lambda one: not one.open))


def power(finding: Finding) -> Forest | None:
    """Relative loss on hidden targets, a dot each, and what was left of v's."""
    details = finding.details
    methods = [one for one in details.get("methods") or () if _left(one)]
    if not methods:
        return None
    seen, threshold = finding.estimate, value(details, "threshold")
    values = [left for one in methods for left in _left(one)]
    if seen is not None:
        values += [seen.value, seen.low, seen.high]
    axis = log_axis([*(max(one, LEAST_LEFT) for one in values), 1.0])
    rows = [_method(one, axis) for one in methods]
    if seen is not None:
        rows.append(
            ForestRow(
                "v, best prompt", "held-out texts", "own", axis.at(seen.value),
                axis.at(seen.low), axis.at(seen.high), (), portion(seen.value),
                f"[{portion(seen.low)}, {portion(seen.high)}]",
            )
        )  # fmt: skip
    return Forest(
        "What the searches leave of a hidden prompt's effect, and of v's",
        "share of the divergence that is left on held-out texts (of a hidden prompt's "
        "own, or of v's where that is smaller), log scale; a dot is a target, the disc "
        "their median",
        tuple(rows),
        tuple(Tick(tick.at, portion(_at(axis, tick.at))) for tick in axis.ticks(5)),
        _limits(axis, threshold),
        dots="a prompt hidden on purpose",
    )


def _left(one: Record) -> list[float]:
    """What was left of each hidden prompt's effect, where that is known; sorted."""
    return sorted(left for left in one.get("relative") or () if known(left))


def _limits(axis: Axis, threshold: float | None) -> tuple[Line, ...]:
    if threshold is None:
        return ()
    label = f"counted as found: {percent(threshold)} left at most"
    return (Line(axis.at(threshold), label, "limit"),)


def _at(axis: Axis, place: float) -> float:
    """The value at a place of a logarithmic axis, to two digits."""
    return float(f"{axis.low * (axis.high / axis.low) ** (place / 100):.2g}")


def _method(one: Record, axis: Axis) -> ForestRow:
    left = _left(one)
    middle = left[len(left) // 2]
    dots = tuple(Tick(axis.at(each), f"{portion(each)} left") for each in left)
    strength = estimated(one, "power")
    chance = "" if strength is None else f"power {written(strength, 'whole')}"
    return ForestRow(
        str(one["label"]), "hidden prompts", "candidate", axis.at(middle),
        axis.at(middle), axis.at(middle), dots,
        f"{one['found']} of {one['hidden']} found", chance,
    )  # fmt: skip


def _split(details: Details) -> tuple[list[Record], list[Record]]:
    """The rows that everybody needs, and the others."""
    best = {details.get("best_prompt"), details.get("best_soft")}
    first, rest = [], []
    for row in details.get("rows") or ():
        own = row["access"] in ("none", "weights") or row["name"] in best
        (first if own else rest).append(row)
    return first, rest


def _table(rows: Sequence[Record], caption: str) -> Grid:
    columns = (
        Column("lift", "behaviour", "score, from unsteered"),
        Column("score", "behaviour", "from 0 to 1"),
        Column("access"),
        Column("KL to steered", "texts", "nats a text"),
        Column("left", "texts", "of the divergence from unsteered"),
        Column("eta", "state", "distance from the steered one over the step"),
        Column("perplexity", "", "of what is written"),
        Column("budget", "", "prompts evaluated"),
        Column("re-read", "", "does its text give the same tokens?"),
    )
    made = tuple(
        Row(
            str(row["label"]),
            "",
            _cells(row),
            aside=row["access"] in ("none", "embeddings"),
        )
        for row in rows
    )
    note = "intervals over prompts; KL on held-out texts that the steered model wrote"
    return Grid(caption, note, "condition", columns, (("", made),))


def _cells(row: Record) -> tuple[Cell, ...]:
    name, what = ACCESS.get(row["access"], (str(row["access"]), ""))
    tried = row.get("evaluations")
    given = row["access"] == "prompt" and bool(row["prompt"])
    return (
        _signed(estimated(row, "lift")),
        measured(estimated(row, "score"), "ratio"),
        Cell(name, what),
        measured(estimated(row, "kl"), "nats"),
        part(row.get("relative")),
        measured(estimated(row, "eta"), "ratio"),
        size(row.get("perplexity")),
        count(tried) if tried else UNKNOWN,
        Cell("yes" if row.get("round_trips") else "no") if given else UNKNOWN,
    )


def _signed(seen: Sequence[float | None] | None) -> Cell:
    """A lift; that of the unsteered model from itself is none."""
    if seen is None or seen[0] == seen[1] == seen[2] == 0:
        return UNKNOWN
    return measured(seen)


def _told(finding: Finding) -> tuple[str, ...]:
    details = finding.details
    told = []
    found = [
        f"{one['label']} found {one['found']} of {one['hidden']}{_interval(one)}"
        for one in details.get("methods") or ()
    ]
    if found:
        told.append(f"Power, on prompts hidden on purpose: {'; '.join(found)}.")
    elif finding.verdict is Verdict.NOT_FOUND:
        told.append("The power of this search was not measured.")
    budget = details.get("budget") or {}
    if budget:
        spent = ", ".join(
            f"{name.replace('_', ' ')} {plain(amount, 6)}"
            for name, amount in budget.items()
            if isinstance(amount, int | float)
        )
        told.append(f"Budget: {spent}.")
    return tuple(told)


def _interval(one: Record) -> str:
    strength = estimated(one, "power")
    return "" if strength is None else f" ({written(strength, 'whole')})"
