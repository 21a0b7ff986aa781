"""Forest plots: named numbers with intervals on one axis, in a table.

Lifts on a linear axis, divergences from v on a logarithmic one. The table's middle
column is drawn, its last one says the same in figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.report import words
from steergauge.report.axis import Axis, Line, Tick, linear_axis
from steergauge.report.lifts import Lift
from steergauge.statistics import Estimate

LIFT_ORDER = (
    ("v", "own"),
    ("v_again", "own"),
    ("minus_v", "own"),
    ("v_plus_perp", "candidate"),
    ("v_turned", "candidate"),
    ("perp", "candidate"),
    ("against", "candidate"),
    ("random", "control"),
    ("sign_flip", "control"),
    ("other_trait", "control"),
)
KL_CONTROLS = ("minus_v", "random", "other_trait")


@dataclass(frozen=True, slots=True)
class ForestRow:
    """A named estimate with its interval, and the dots that it is the mean of.

    `reference` is the place of a number of this row to hold it against, such as its
    noise floor.
    """

    label: str
    note: str
    style: str
    mean: float
    low: float
    high: float
    dots: tuple[Tick, ...]
    number: str
    interval: str
    beyond: bool = False
    reference: float | None = None


@dataclass(frozen=True, slots=True)
class Forest:
    """Rows on one axis; `reference` and `dots` say what those of its rows are."""

    caption: str
    unit: str
    rows: tuple[ForestRow, ...]
    ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    reference: str = ""
    dots: str = "each random direction"


def lift_forest(seen: Mapping[str, Lift], findings: Mapping[str, Finding]) -> Forest:
    """Lifts of v, of what is compared with it and of the controls, on one axis."""
    shown = [
        (seen[name], style)
        for kind, style in LIFT_ORDER
        for name in seen
        if name == kind or name.startswith(f"{kind}[")
    ]
    values = [0.0]
    for lift, _ in shown:
        values += [lift.estimate.low, lift.estimate.high, *lift.values]
    lines = _lift_lines(findings)
    axis = linear_axis([*values, *(start + width for start, _, _, width in lines)])
    rows = [_lift_row(axis, lift, style) for lift, style in shown]
    return Forest(
        caption="Lift of every arm",
        unit="lift: mean score minus the unsteered score, on the probe's score from "
        "0 to 1",
        rows=tuple(rows),
        ticks=tuple(axis.ticks()),
        lines=tuple(_line(axis, *line) for line in lines),
    )


RawLine = tuple[float, str, str, float]


def _lift_lines(findings: Mapping[str, Finding]) -> list[RawLine]:
    """(value, label, kind, width): 0, the matched nulls' quantile, the margin."""
    lines: list[RawLine] = [(0.0, "no effect", "zero", 0.0)]
    check, same = findings.get("manipulation"), findings.get("equivalence")
    if check and "null_quantile" in check.details:
        quantile = check.details["null_quantile"]
        label = "95\N{NO-BREAK SPACE}% of the matched random steps lie below"
        lines.append((quantile, label, "limit", 0.0))
    if same and same.verdict is not Verdict.UNINFORMATIVE:
        margin, lift = same.details["margin"], same.details["reference_lift"]
        label = f"the same as v, within {words.percent(margin)}"
        lines.append(((1 - margin) * lift, label, "band", 2 * margin * lift))
    return lines


def _line(axis: Axis, value: float, label: str, kind: str, width: float) -> Line:
    start = axis.at(value)
    wide = round(axis.at(value + width) - start, 2)
    return Line(start, label, kind, max(wide, 0.4) if width else 0.0)


def _lift_row(axis: Axis, lift: Lift, style: str) -> ForestRow:
    seen = lift.estimate
    several = len(lift.values) > 1
    dots = [
        Tick(axis.at(value), f"{words.arm_name(arm)}: {words.signed(value)}")
        for arm, value in zip(lift.arms, lift.values, strict=True)
    ]
    label = words.arm_name(lift.family)
    return ForestRow(
        label=f"{label} ({len(dots)})" if several else label,
        note=words.arm_note(lift.family),
        style=style,
        mean=axis.at(seen.value),
        low=axis.at(seen.low),
        high=axis.at(seen.high),
        dots=tuple(dots) if several else (),
        number=words.number(seen),
        interval=words.interval(seen),
    )


def kl_forest(findings: Mapping[str, Finding]) -> Forest | None:
    """Divergences from v on a logarithmic axis; None if T4 was not run."""
    compared = [f for f in findings.values() if f.audit == "divergence" and f.estimate]
    if not compared:
        return None
    main = compared[0]
    effect = Estimate(*main.details["effect"])
    entries = [("unsteered", "what v itself changes", "own", effect, ())]
    for finding in compared:
        assert finding.estimate is not None
        dots = tuple(finding.details.get("directions", ()))
        entries.append(
            (words.subject_name(finding), "", "candidate", finding.estimate, dots)
        )
    entries += [_control_entry(c) for c in main.controls if c.name in KL_CONTROLS]
    floor, share = main.details["floor"], main.details["budget"]
    budget, most = share * effect.low, share * effect.high
    axis = _kl_axis([entry[3] for entry in entries], floor, budget)
    itself = (
        "v against itself",
        "noise floor κ₀",
        "own",
        Estimate(floor, floor, floor),
        (),
    )
    label = (
        f"{words.percent(share)} of what v changes, with its interval: left of it "
        "counts as the same, right of it as different"
    )
    return Forest(
        caption="Distance of the texts from v's",
        unit="sequence KL from v, nats a text, logarithmic",
        rows=tuple(_kl_row(axis, *entry) for entry in (itself, *entries)),
        ticks=tuple(axis.ticks()),
        lines=(_line(axis, budget, label, "budget", most - budget),),
    )


KlEntry = tuple[str, str, str, Estimate, tuple[float, ...]]


def _control_entry(control: Control) -> KlEntry:
    name, note = words.control_name(control.name)
    assert control.estimate is not None
    return name, note, "control", control.estimate, ()


def _kl_axis(seen: Sequence[Estimate], floor: float, budget: float) -> Axis:
    """Holds all estimates and the budget; the floor may lie far to the left of it."""
    highest = max([budget, *(e.high for e in seen)]) * 2
    lowest = min([budget, *(e.low for e in seen if e.low > 0)]) / 2
    if floor > lowest / 10:
        lowest = min(lowest, floor / 2)
    return Axis(max(lowest, highest * 1e-12), max(highest, 1e-12), log=True)


def _kl_row(
    axis: Axis,
    label: str,
    note: str,
    style: str,
    seen: Estimate,
    dots: tuple[float, ...],
) -> ForestRow:
    many = len(dots) > 1
    return ForestRow(
        label=f"{label} ({len(dots)})" if many else label,
        note=note,
        style=style,
        mean=axis.at(seen.value),
        low=axis.at(seen.low),
        high=axis.at(seen.high),
        dots=tuple(Tick(axis.at(d), words.plain(d)) for d in dots) if many else (),
        number=words.number(seen, "nats")
        if seen.high > seen.low
        else words.plain(seen.value),
        interval=words.interval(seen, "nats") if seen.high > seen.low else "",
        beyond=seen.high < axis.low,
    )
