"""The depth page of a layer sweep: what the output sees of a vector, layer by layer.

One panel a quantity over the layers, each layer linked to its own page. Vectors of
different layers are different vectors, at strengths of their own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from steergauge.audits.finding import Finding, Verdict
from steergauge.report import words
from steergauge.report.axis import Axis, Tick
from steergauge.report.curves import Seen
from steergauge.report.equivalent import angle, widest
from steergauge.report.glossary import geometry_glossary
from steergauge.report.grid import UNKNOWN, Cell, known, measured
from steergauge.report.headline import subject
from steergauge.report.plots import Axes, Plot, guide, log_axis, plot, trace
from steergauge.report.sections import present
from steergauge.report.templating import environment
from steergauge.report.words import interval, padded, percent

RANK = "0.01"
"""Threshold of the rank that is shown beside the effective rank."""

Layer = tuple[int, Mapping[str, Any], Mapping[str, Finding]]
"""A layer, what its run was, and its findings."""

Reader = Callable[[Mapping[str, Finding]], Sequence[float] | None]


@dataclass(frozen=True, slots=True)
class DepthRow:
    """A layer in the table.

    Attributes:
        layer: its number.
        link: its page.
        step: ||alpha v|| over the median ||h||.
        cells: in the order of the columns.
    """

    layer: int
    link: str
    step: str
    cells: tuple[Cell, ...]


def render_depth(layers: Sequence[Layer]) -> str:
    """The page as text; the same findings give the same text.

    Args:
        layers: finished runs of one vector's recipe, one a layer; at least one.
    """
    order = sorted(layers, key=lambda layer: layer[0])
    page = environment().get_template("depth.html.j2")
    facts = order[0][1]
    return page.render(
        words=words,
        verdicts=words.VERDICTS,
        Verdict=Verdict,
        len=len,
        facts=facts,
        trait=subject(facts),
        opening=_placing(order) or "What the output sees of a vector, layer by layer.",
        rest=_widest(order),
        plots=_plots(order),
        rows=[_row(*layer) for layer in order],
        glossary=geometry_glossary(),
    )


def _spread(findings: Mapping[str, Finding]) -> Sequence[float] | None:
    found = findings.get("spectrum")
    return found.details.get("erank") if found else None


def _rank(findings: Mapping[str, Finding]) -> Sequence[float] | None:
    found = findings.get("spectrum")
    family = (found.details.get("families") or {}).get("F_bar") if found else None
    rank = ((family or {}).get("ranks") or {}).get(RANK)
    return [rank] * 3 if known(rank) else None


def _estimate(audit: str) -> Reader:
    """The number of an audit, unless its verdict is that it carries nothing."""

    def read(findings: Mapping[str, Finding]) -> Sequence[float] | None:
        found = findings.get(audit)
        if found is None or found.verdict is Verdict.UNINFORMATIVE:
            return None
        seen = found.estimate
        return [seen.value, seen.low, seen.high] if seen else None

    return read


def _angle(findings: Mapping[str, Finding]) -> Sequence[float] | None:
    """The widest verified angle within the main budget."""
    found = findings.get("alternative")
    best = widest(found.details) if found else None
    if found is None or best is None:
        return None
    theta = angle(best)
    return (
        None if theta is None or found.verdict is Verdict.UNINFORMATIVE else [theta] * 3
    )


_placed, _reach, _null = (
    _estimate(audit) for audit in ("decomposition", "linearity", "saturation")
)


def _points(order: Sequence[Layer], read: Reader) -> list[Seen]:
    """A quantity over the layers; those without it are left out."""
    found: list[Seen] = []
    for layer, _, findings in order:
        seen = read(findings)
        if seen and all(known(one) for one in seen):
            found.append((float(layer), seen[0], seen[1], seen[2]))
    return found


def _plots(order: Sequence[Layer]) -> tuple[Plot, ...]:
    return present(
        _dimensions(order),
        _over(order, _placed, "rho_F", "over what a random direction costs, log scale",
              log=True, line=("random direction", 1.0)),
        _over(order, _angle, "Widest verified angle",
              "degrees; the most different vector that does what v does",
              most=95.0),
        _over(order, _reach, "Radius of linearisation",
              "times ||alpha v||, log scale", log=True,
              line=("the strength in use", 1.0)),
        _over(order, _null, "Null dimension", "unseen by all texts"),
    )  # fmt: skip


def _dimensions(order: Sequence[Layer]) -> Plot | None:
    """Effective rank and rank at a threshold."""
    spread, rank = _points(order, _spread), _points(order, _rank)
    ends = [end for _, *three in (*spread, *rank) for end in three]
    if not ends:
        return None
    axes = _layers(order), Axis(0.0, 1.1 * max(ends))
    traces = []
    if spread:
        traces.append(trace("erank lambda", spread, axes=axes, style="own", band=True))
    if rank:
        traces.append(trace(f"rank at {RANK}", rank, axes=axes, style="candidate"))
    made = plot(
        "Directions that are seen",
        traces,
        unit="dimensions, of F_bar",
        axes=axes,
        x_label="layer",
    )
    return _numbered(made, order, axes)


def _over(
    order: Sequence[Layer],
    read: Reader,
    title: str,
    unit: str,
    *,
    log: bool = False,
    line: tuple[str, float] | None = None,
    most: float = 0.0,
) -> Plot | None:
    """One quantity, with its intervals as a band."""
    points = _points(order, read)
    if log:
        points = [point for point in points if min(point[1:]) > 0]
    if not points:
        return None
    ends = [end for _, *three in points for end in three]
    ends += [line[1]] if line else []
    highest = max(most, 1.1 * max(ends), 1.0)
    axes = _layers(order), log_axis(ends) if log else Axis(0.0, highest)
    guides = [guide(line[0], [line[1]], axes=axes, kind="zero")] if line else []
    made = plot(
        title,
        [trace("v", points, axes=axes, style="own", band=True)],
        unit=unit,
        axes=axes,
        x_label="layer",
        guides=guides,
    )
    return _numbered(made, order, axes)


def _layers(order: Sequence[Layer]) -> Axis:
    first, last = order[0][0], order[-1][0]
    return Axis(first - 0.5, last + 0.5)


def _numbered(made: Plot, order: Sequence[Layer], axes: Axes) -> Plot:
    """Layers are whole numbers; at most eight of them are written."""
    step = math.ceil(len(order) / 8)
    ticks = [Tick(axes[0].at(layer), str(layer)) for layer, *_ in order[::step]]
    return replace(made, x_ticks=tuple(ticks))


def _row(
    layer: int, facts: Mapping[str, Any], findings: Mapping[str, Finding]
) -> DepthRow:
    theta = _angle(findings)
    step = facts.get("step")
    return DepthRow(
        layer,
        f"layer-{layer:02d}/geometry.html",
        "" if step is None else percent(step),
        (
            measured(_spread(findings), "ratio"),
            _judged(measured(_placed(findings), "ratio"), findings, "decomposition"),
            _judged(
                Cell(f"{theta[0]:.0f}°") if theta else UNKNOWN, findings, "alternative"
            ),
            _judged(measured(_reach(findings), "ratio"), findings, "linearity"),
            _judged(measured(_null(findings), "count"), findings, "saturation"),
        ),
    )


def _judged(cell: Cell, findings: Mapping[str, Finding], audit: str) -> Cell:
    found = findings.get(audit)
    return cell if found is None else replace(cell, verdict=str(found.verdict))


def _placing(order: Sequence[Layer]) -> str:
    """Where the output sees v least and best."""
    rho = [
        (layer, found.estimate)
        for layer, _, findings in order
        if (found := findings.get("decomposition")) and found.estimate
    ]
    if not rho:
        return ""
    (least, low), (most, high) = (
        end(rho, key=lambda pair: pair[1].value) for end in (min, max)
    )
    return (
        f"A small step along v costs {padded(low.value)} {interval(low, 'ratio')} "
        f"(layer {least}) to {padded(high.value)} {interval(high, 'ratio')} (layer "
        f"{most}) times what one in a random direction costs."
    )


def _widest(order: Sequence[Layer]) -> str:
    """The widest verified angle of all layers."""
    angles = [
        (seen[0], -layer) for layer, _, findings in order if (seen := _angle(findings))
    ]
    if not angles:
        return ""
    theta, layer = max(angles)
    return (
        "The most different vector that was verified to do what v does lies "
        f"{theta:.0f}° from it, at layer {-layer}."
    )
