"""The dose curve: lift, divergence and coherence over alpha, one panel each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steergauge.report import words
from steergauge.report.axis import Axis, Line, Tick, linear_axis
from steergauge.statistics import Estimate


@dataclass(frozen=True, slots=True)
class Point:
    """A point with its interval, in percent of the panel; y counts from the top."""

    x: float
    y: float
    low: float
    high: float
    label: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity over alpha."""

    title: str
    unit: str
    runs: tuple[tuple[Point, ...], ...]
    x_ticks: tuple[tuple[float, str, str], ...]
    y_ticks: tuple[Tick, ...]
    chosen: float
    line: Line | None


def dose_panels(
    doses: Sequence[Mapping[str, Any]], alpha: float, limit: float
) -> list[Panel]:
    """Lift, divergence and coherence over alpha, both directions.

    Args:
        doses: records of `runs.evidence.Dose`.
        alpha: the strength at which the run was made.
        limit: largest perplexity ratio of a coherent text.
    """
    panels = []
    if all(dose["lift"] for dose in doses):
        lift = [(dose["alpha"], Estimate(**dose["lift"])) for dose in doses]
        lift.append((0.0, Estimate(0.0, 0.0, 0.0)))
        panels.append(
            _panel("Lift", "change of the score, 0 to 1", lift, doses, alpha, 0.0, "")
        )
    nats = [(dose["alpha"], Estimate(**dose["nats"])) for dose in doses]
    panels.append(
        _panel("KL from unsteered", "nats a text, log scale", nats, doses, alpha)
    )
    ratios = [(dose["alpha"], _exact(dose["perplexity_ratio"])) for dose in doses]
    ratios.append((0.0, _exact(1.0)))
    panels.append(
        _panel(
            "Perplexity ratio",
            "over unsteered texts",
            ratios,
            doses,
            alpha,
            limit,
            f"coherent below {limit:g}",
        )
    )
    return panels


def _exact(value: float) -> Estimate:
    return Estimate(value, value, value)


def _panel(
    title: str,
    unit: str,
    points: Sequence[tuple[float, Estimate]],
    doses: Sequence[Mapping[str, Any]],
    alpha: float,
    line: float | None = None,
    line_label: str = "",
) -> Panel:
    """One panel; a logarithmic one if it has no reference line."""
    numbers = [n for _, e in points for n in (e.low, e.high)]
    if line is None:
        positive = [n for n in numbers if n > 0] or [1e-8]
        y = Axis(min(positive) / 1.5, max(positive) * 1.5, log=True)
    else:
        y = linear_axis([*numbers, line], room=0.08)
    step = max(d["step"] / abs(d["alpha"]) for d in doses)
    x = linear_axis([*(a for a, _ in points), alpha], room=0.06)
    ticks = [(x.at(a), words.plain(a), a) for a in _alpha_ticks(doses)]
    return Panel(
        title=title,
        unit=unit,
        runs=_runs(points, x, y),
        x_ticks=tuple(
            (at, label, words.percent(abs(a) * step)) for at, label, a in ticks
        ),
        y_ticks=tuple(Tick(100 - tick.at, tick.label) for tick in y.ticks(5)),
        chosen=x.at(alpha),
        line=None if line is None else Line(100 - y.at(line), line_label, "limit"),
    )


def _alpha_ticks(doses: Sequence[Mapping[str, Any]]) -> list[float]:
    """0, and the largest and second largest strength in each direction."""
    sizes = sorted({abs(dose["alpha"]) for dose in doses})[-2:]
    return sorted({0.0, *sizes, *(-size for size in sizes)})


def _runs(
    points: Sequence[tuple[float, Estimate]], x: Axis, y: Axis
) -> tuple[tuple[Point, ...], ...]:
    """Points in order of alpha; a logarithmic panel breaks at alpha = 0."""
    made = [
        (
            alpha,
            Point(
                x.at(alpha),
                round(100 - y.at(seen.value), 2),
                round(100 - y.at(seen.low), 2),
                round(100 - y.at(seen.high), 2),
                f"alpha = {words.plain(alpha)}: {words.plain(seen.value)}",
            ),
        )
        for alpha, seen in sorted(points, key=lambda point: point[0])
    ]
    if not y.log:
        return (tuple(point for _, point in made),)
    sides = (
        tuple(point for alpha, point in made if alpha < 0),
        tuple(point for alpha, point in made if alpha > 0),
    )
    return tuple(side for side in sides if side)
