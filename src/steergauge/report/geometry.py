"""geometry.html: what the output can see of a vector, audit by audit (T6 to T13).

Made from findings and texts alone, like the other pages; an audit that was not run is
left out, and named.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.report import words
from steergauge.report.equivalent import equivalent
from steergauge.report.frame import frame, missing
from steergauge.report.geometry_headline import headline
from steergauge.report.glossary import geometry_glossary
from steergauge.report.null_rays import null_directions
from steergauge.report.placement import placement
from steergauge.report.saturation_curve import saturation
from steergauge.report.sections import Section
from steergauge.report.side_by_side import side_by_side
from steergauge.report.spectrum_figure import spectrum
from steergauge.report.templating import environment
from steergauge.report.theory import gauge, linearity, methods
from steergauge.report.verdicts import GEOMETRY_VERDICTS

MAKERS: dict[str, Callable[[Finding], Section]] = {
    "spectrum": spectrum,
    "decomposition": placement,
    "nulls": null_directions,
    "saturation": saturation,
    "alternative": lambda finding: equivalent(finding, ()),
    "linearity": linearity,
    "gauge": gauge,
    "methods": methods,
}
"""Audits of geometry in the order of the page, and what makes their sections."""


def has_geometry(findings: Mapping[str, Finding]) -> bool:
    """Whether any audit of geometry was run."""
    return any(finding.audit in MAKERS for finding in findings.values())


def render(
    facts: Mapping[str, Any],
    findings: Mapping[str, Finding],
    rows: Sequence[Mapping[str, Any]],
) -> str:
    """The page as text; the same store gives the same text.

    Args:
        facts: what the run was.
        findings: by key.
        rows: texts of the run.
    """
    probe = facts.get("probe") or {}
    counted = (probe.get("high_words", []), probe.get("low_words", []))
    return environment().get_template("geometry.html.j2").render(
        frame(facts, headline(findings), GEOMETRY_VERDICTS),
        lede=_lede(facts),
        sections=sections(findings, rows, counted),
        has_words=any(counted),
        missing=missing(MAKERS, findings),
        glossary=geometry_glossary(),
    )  # fmt: skip


def sections(
    findings: Mapping[str, Finding],
    rows: Sequence[Mapping[str, Any]],
    counted: tuple[Sequence[str], Sequence[str]],
) -> list[Section]:
    """A section for each audit of geometry that was run, in the order of the page."""
    made = []
    for audit, make in MAKERS.items():
        finding = findings.get(audit)
        if finding is None:
            continue
        if audit == "alternative":
            made.append(equivalent(finding, side_by_side(rows, counted)))
        else:
            made.append(make(finding))
    return made


def _lede(facts: Mapping[str, Any]) -> str:
    """What v is, where and how strongly it was added."""
    pairs = facts.get("num_pairs")
    source = f"extracted from {pairs} contrast pairs" if pairs else "given as a file"
    step = facts.get("step")
    length = "" if step is None else f", a step of {words.percent(step)} of its length"
    return (
        f"The steering vector v was {source}. While the model writes, alpha v is "
        f"added to its inner state after block {words.layer(facts)}, with alpha = "
        f"{words.plain(facts['alpha'])}{length}. This page asks which other vectors "
        "the model's output could not tell from it: the exact Fisher matrix of what is "
        "written next says what any small step costs, and the model itself says what "
        "long ones do. K and KL are in nats a text."
    )
