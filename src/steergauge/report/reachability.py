"""reachability.html: whether a prompt could do what steering does (T16 to T19).

One token further, whole texts, prompts that were searched for, and the density of
natural states. Made from findings alone; an audit that was not run is left out, and
named.
"""

from collections.abc import Callable, Mapping
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.report import access_table, distance_figure, inversions, steering
from steergauge.report.density_figure import density, strips
from steergauge.report.distances import distances
from steergauge.report.frame import frame, missing
from steergauge.report.glossary import reachability_glossary
from steergauge.report.reachability_headline import AUDITS, headline, two_numbers
from steergauge.report.sections import Section
from steergauge.report.templating import environment
from steergauge.report.verdicts import REACHABILITY_VERDICTS

MAKERS: dict[str, Callable[[Finding], Section]] = dict(
    zip(
        AUDITS,
        (distances, inversions.inversions, access_table.access_table, density),
        strict=True,
    )
)
"""Audits of reachability in the order of the page, and what makes their sections."""


def render(facts: Mapping[str, Any], findings: Mapping[str, Finding]) -> str:
    """The page as text; the same store gives the same text.

    Args:
        facts: what the run was.
        findings: by key.
    """
    details = {audit: found.details for audit, found in findings.items()}
    judged = findings.get("access")
    return environment().get_template("reachability.html.j2").render(
        frame(facts, headline(findings), REACHABILITY_VERDICTS),
        lede=_lede(facts, findings),
        numbers=two_numbers(findings),
        judged=judged,
        sections=sections(findings),
        figures=distance_figure.figures(details.get("states") or {}),
        first_figures=distance_figure.OPEN,
        marks=distance_figure.MARKS,
        below=distance_figure.STRIP,
        sequences=inversions.sequences(details.get("inversion") or {}),
        first_sequences=inversions.OPEN,
        signs=inversions.SIGNS,
        meanings=inversions.MEANINGS,
        prompts=access_table.prompts(details.get("access") or {}),
        power=access_table.power(judged) if judged else None,
        strips=strips(details.get("density") or {}),
        has_words=False,
        missing=missing(MAKERS, findings),
        glossary=reachability_glossary(facts),
    )  # fmt: skip


def sections(findings: Mapping[str, Finding]) -> list[Section]:
    """A section for each audit that was run, in the order of the page."""
    return [
        make(findings[audit]) for audit, make in MAKERS.items() if audit in findings
    ]


def _lede(facts: Mapping[str, Any], findings: Mapping[str, Finding]) -> str:
    """What was done to the stream, where, and what the page asks."""
    where = steering.scope(facts, findings)
    told = (
        f"While the model reads, {steering.deed(facts, findings)}",
        where,
        "This page asks whether a prompt could do the same, in two ways that are kept "
        "apart: could some text give that state, and could some text make the "
        "unsteered model write what the steered one writes? The questions are those of "
        "arXiv 2604.09839, the reading of states that of 2510.15511; controls and "
        "intervals are added here. Distances are Euclidean, K and KL in nats a text.",
    )
    return " ".join(sentence for sentence in told if sentence)
