"""report.html: the store's contents in a reader's order, as one file without network.

Verdict first; then numbers, dose curve, texts, method, glossary. The page has no
script and forbids itself to load anything (Content-Security-Policy), so not even a
mistake in escaping could run what a model wrote.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from steergauge.audits.finding import Finding, Verdict
from steergauge.report import card, forest, method, samples, words
from steergauge.report.dose import dose_panels
from steergauge.report.glossary import GLOSSARY, limits
from steergauge.report.headline import headline, subline, trait_name
from steergauge.report.lifts import lifts
from steergauge.runs.spec import PERPLEXITY_LIMIT
from steergauge.runs.store import Store, write_text

_NAMES: dict[str, Any] = {
    "words": words,
    "verdicts": words.VERDICTS,
    "Verdict": Verdict,
    "len": len,
    "span": method.span,
}
"""What the templates call."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All findings that compare one thing with v."""

    subject: str
    findings: tuple[Finding, ...]


def write_report(folder: str | Path) -> Path:
    """Write report.html and card.md into a finished run's folder; the report's path.

    Raises:
        StoreError: the folder holds no finished run.
    """
    store = Store(Path(folder))
    findings, facts = store.findings(), store.facts()
    page = render(findings, facts, store.generations(), spec=_spec_text(store.folder))
    write_text(store.folder / "card.md", _utf8(card.render(findings, facts)))
    path = store.folder / "report.html"
    write_text(path, _utf8(page))
    return path


def render(
    findings: Mapping[str, Finding],
    facts: Mapping[str, Any],
    rows: list[dict[str, Any]],
    *,
    spec: str = "",
) -> str:
    """The page as text; the same store gives the same text."""
    check = findings.get("manipulation")
    doses = check.details.get("dose", []) if check else []
    seen = lifts(rows, alpha=facts["alpha"], seed=facts["seed"])
    probe = facts["probe"] or {}
    counted = (probe.get("high_words", []), probe.get("low_words", []))
    return _environment().get_template("report.html.j2").render(
        _NAMES,
        headline=headline(findings, facts),
        subline=subline(findings),
        trait=trait_name(facts),
        facts=facts,
        findings=findings,
        checks=[findings[k] for k in ("plumbing", "manipulation") if k in findings],
        comparisons=_comparisons(findings),
        lift_forest=forest.lift_forest(seen, findings) if seen else None,
        kl_forest=forest.kl_forest(findings),
        dose=doses,
        panels=dose_panels(doses, facts["alpha"], PERPLEXITY_LIMIT)
        if doses
        else [],
        coherent=not check or check.details.get("coherent", True),
        coherent_in_test=not check or check.details.get("coherent_in_test", True),
        perplexity_limit=PERPLEXITY_LIMIT,
        samples=samples.samples(rows, counted),
        has_words=any(counted),
        method=method.groups(facts, findings),
        arm_families=method.arm_families(facts),
        glossary=GLOSSARY,
        limits=limits(facts),
        spec=spec,
    )  # fmt: skip


def _comparisons(findings: Mapping[str, Finding]) -> list[Comparison]:
    """Findings on the same subject together, the main comparison first."""
    by_subject: dict[str, list[Finding]] = {}
    for finding in findings.values():
        if finding.audit in ("equivalence", "divergence"):
            by_subject.setdefault(words.subject_name(finding), []).append(finding)
    return [Comparison(name, tuple(group)) for name, group in by_subject.items()]


def _environment() -> jinja2.Environment:
    # autoescape=True, not select_autoescape(): that goes by the file's ending, and
    # would leave `report.html.j2` unescaped.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("steergauge.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "typeset": words.typeset,
        "plain": words.plain,
        "signed": words.signed,
        "percent": words.percent,
    }
    return environment


def _spec_text(folder: Path) -> str:
    path = folder / "run.toml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _utf8(text: str) -> str:
    """The text without lone surrogates, which JSON may hold and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode("utf-8")
