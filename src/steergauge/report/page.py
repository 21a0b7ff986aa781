"""report.html: the store's contents in a reader's order, as one file without network.

Verdict first; then numbers, dose curve, texts, method, glossary. paper.html beside it
lays the experiments of arXiv 2602.06801 out as the paper does, geometry.html says what
the output can see of v, and, for the runs of a sweep, how that goes over depth, and
reachability.html whether a prompt could do what steering does. A page has no script
and forbids itself to load anything (Content-Security-Policy), so not even a mistake in
escaping could run what a model wrote.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steergauge.audits.finding import Finding, Verdict
from steergauge.report import (
    card,
    cases,
    depth,
    forest,
    geometry,
    method,
    paper,
    reachability,
    samples,
    steering,
    words,
)
from steergauge.report.dose import dose_panels
from steergauge.report.glossary import glossary
from steergauge.report.headline import headline, subject, subline
from steergauge.report.lifts import lifts, looks_of
from steergauge.report.limits import limits
from steergauge.report.reachability_headline import AUDITS, has_reachability
from steergauge.report.templating import environment, utf8
from steergauge.report.verdicts import vocabulary
from steergauge.runs.spec import PERPLEXITY_LIMIT
from steergauge.runs.store import Store, write_text

_NAMES: dict[str, Any] = {
    "words": words,
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
    """Write the pages of a finished run, or of every run in a folder; the path of one.

    A run gets report.html and card.md, paper.html if it made any of the paper's
    experiments, geometry.html if it asked what the output sees, reachability.html if
    it asked whether a prompt could do the same. A folder of runs gets one paper.html
    of all of them besides, a sweep over layers one geometry.html.

    Raises:
        StoreError: the folder holds no finished run.
    """
    top = Path(folder)
    if top.is_dir() and not cases.is_run(top):
        found = cases.runs_in(top)
        if found.runs:
            return _write_all(top, found)
        if found.missing:
            top = top / found.missing[0]
    return _write_one(Store(top))


def _write_one(store: Store) -> Path:
    findings, facts = store.findings(), store.facts()
    page = render(findings, facts, store.generations(), spec=_spec_text(store.folder))
    write_text(store.folder / "card.md", utf8(card.render(findings, facts)))
    if cases.has_experiments(findings):
        text = paper.render([cases.single(store)])
        write_text(store.folder / "paper.html", utf8(text))
    first = path = store.folder / "report.html"
    write_text(path, utf8(page))
    if geometry.has_geometry(findings):
        first = store.folder / "geometry.html"
        text = geometry.render(facts, findings, store.generations())
        write_text(first, utf8(text))
    if has_reachability(findings):
        first = store.folder / "reachability.html"
        write_text(first, utf8(reachability.render(facts, findings)))
    return path if cases.has_behaviour(findings) else first


def _write_all(top: Path, found: cases.Folder) -> Path:
    for run in found.runs:
        _write_one(Store(run))
    layers = cases.layers_of(found.runs)
    if layers and all(geometry.has_geometry(findings) for _, _, findings in layers):
        path = top / "geometry.html"
        write_text(path, utf8(depth.render_depth(layers)))
        if not any(cases.has_behaviour(findings) for _, _, findings in layers):
            return path
    path = top / "paper.html"
    write_text(path, utf8(paper.render(cases.several(found.runs), found.missing)))
    return path


def render(
    findings: Mapping[str, Finding],
    facts: Mapping[str, Any],
    rows: list[dict[str, Any]],
    *,
    spec: str = "",
) -> str:
    """The page as text; the same store gives the same text."""
    findings = steering.annotated(findings, facts)
    check = findings.get("manipulation")
    doses = check.details.get("dose", []) if check else []
    looks = looks_of(facts)
    seen = lifts(rows, alpha=facts["alpha"], seed=facts["seed"], looks=looks)
    probe = facts["probe"] or {}
    counted = (probe.get("high_words", []), probe.get("low_words", []))
    return environment().get_template("report.html.j2").render(
        _NAMES,
        verdicts=vocabulary(findings.values()),
        headline=headline(findings, facts),
        subline=subline(findings),
        trait=subject(facts),
        facts=facts,
        steering=steering,
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
        glossary=glossary(findings, facts),
        experiments=_experiments(findings),
        geometry=[f for f in findings.values() if f.audit in geometry.MAKERS],
        reachability=[f for f in findings.values() if f.audit in AUDITS],
        limits=limits(facts, findings),
        spec=spec,
    )  # fmt: skip


def _comparisons(findings: Mapping[str, Finding]) -> list[Comparison]:
    """Findings on the same subject together, the main comparison first."""
    by_subject: dict[str, list[Finding]] = {}
    for finding in findings.values():
        if finding.audit in ("equivalence", "divergence"):
            by_subject.setdefault(words.subject_name(finding), []).append(finding)
    return [Comparison(name, tuple(group)) for name, group in by_subject.items()]


def _experiments(findings: Mapping[str, Finding]) -> list[Finding]:
    """What only the paper's experiments ask for, in the order of the audits."""
    return [found for found in findings.values() if found.audit in cases.PAPER_AUDITS]


def _spec_text(folder: Path) -> str:
    path = folder / "run.toml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""
