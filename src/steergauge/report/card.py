"""card.md: the audit on one page of Markdown, for a repository or a model card.

Every expression of the template is escaped for Markdown unless it says otherwise, the
reverse of forgetting to escape one.
"""

import re
from collections.abc import Mapping
from typing import Any

import jinja2

from steergauge.audits.finding import Finding
from steergauge.report import probe, steering, words
from steergauge.report.cases import has_experiments
from steergauge.report.geometry import has_geometry
from steergauge.report.headline import headline, of_subject
from steergauge.report.limits import limits
from steergauge.report.reachability_headline import has_reachability

LONGEST = 1000
_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$])")


def render(findings: Mapping[str, Finding], facts: Mapping[str, Any]) -> str:
    """The card as text."""
    findings = steering.annotated(findings, facts)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("steergauge.report"),
        autoescape=False,
        finalize=lambda value: escaped(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "typeset": words.typeset,
        "plain": words.plain,
        "percent": words.percent,
    }
    return environment.get_template("card.md.j2").render(
        words=words,
        probe_kind=probe.kind,
        probe_record=probe.brief,
        verdicts=words.VERDICTS,
        headline=headline(findings, facts),
        of_subject=of_subject(facts),
        strength=steering.strength(facts),
        ablated=steering.ablated(facts),
        read_after=steering.read_after(findings),
        facts=facts,
        findings=findings,
        limits=limits(facts, findings),
        paper=has_experiments(findings),
        geometry=has_geometry(findings),
        reachability=has_reachability(findings),
    )


def escaped(text: str) -> str:
    r"""`text` as itself in Markdown, also within a table's cell; one line.

    >>> escaped("a|b <i> *c*")
    'a\\|b &lt;i&gt; \\*c\\*'
    """
    line = " ".join(text.split())
    if len(line) > LONGEST:
        line = line[:LONGEST] + "…"
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", line)
