"""Finished runs as the rows of one page: a case is a model and a trait.

A folder is a run, or it holds runs: subfolders with `findings.json` are finished,
those with `run.toml` alone were begun.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from steergauge.audits.finding import Finding, Verdict
from steergauge.report.headline import trait_name
from steergauge.runs.spec import PAPER_TRAITS
from steergauge.runs.store import Store

PAPER_AUDITS = ("replication", "scale", "logits", "environments", "reliability")
"""Audits that only the experiments of arXiv 2602.06801 ask for."""

BEHAVIOUR = ("manipulation", "equivalence", "divergence", *PAPER_AUDITS)
"""Audits of what v does to texts."""

TURNED, ALONE = "v turned", "v_perp alone"
EVERYWHERE = "environments[v + v_perp in every environment]"


@dataclass(frozen=True, slots=True)
class Case:
    """One finished run.

    Attributes:
        findings: by key.
        facts: what the run was.
        note: what tells the case from others of the same trait.
        link: where its own report is.
    """

    findings: Mapping[str, Finding]
    facts: Mapping[str, Any]
    note: str
    link: str = "report.html"

    @property
    def trait(self) -> str:
        """What the vector is said to move."""
        return trait_name(self.facts)

    def details(self, key: str) -> Mapping[str, Any] | None:
        """The details of a finding that measured something, or None."""
        found = self.findings.get(key)
        return found.details if found and found.details else None

    def verdict(self, key: str) -> Verdict | None:
        """The verdict of a finding, or None if it was not asked for."""
        found = self.findings.get(key)
        return found.verdict if found else None

    @property
    def moves(self) -> bool:
        """Whether v passed its manipulation check."""
        return self.verdict("manipulation") is Verdict.PASS

    @property
    def order(self) -> tuple[str, int, str]:
        """Models together, traits in the paper's order."""
        known = dict(zip(PAPER_TRAITS, range(len(PAPER_TRAITS)), strict=True))
        return (self.facts["model"], known.get(self.trait, len(known)), self.trait)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of runs: those that are finished, and names of those that are not."""

    runs: tuple[Path, ...]
    missing: tuple[str, ...]


def has_experiments(findings: Mapping[str, Finding]) -> bool:
    """Whether any of the paper's experiments was run."""
    return any(finding.audit in PAPER_AUDITS for finding in findings.values())


def has_behaviour(findings: Mapping[str, Finding]) -> bool:
    """Whether any audit of what v does to texts was run."""
    return any(finding.audit in BEHAVIOUR for finding in findings.values())


def layers_of(
    runs: tuple[Path, ...],
) -> list[tuple[int, Mapping[str, Any], Mapping[str, Finding]]]:
    """The runs of a sweep, each with its layer; none if these are no sweep."""
    if len(runs) < 2 or not all(re.fullmatch(r"layer-\d+", run.name) for run in runs):
        return []
    stores = [Store(run) for run in runs]
    found = [(store.facts(), store.findings()) for store in stores]
    return [(facts["layer"], facts, findings) for facts, findings in found]


def is_run(folder: Path) -> bool:
    """Whether the folder is itself a run, finished or not."""
    return any((folder / name).is_file() for name in ("run.toml", "findings.json"))


def runs_in(folder: Path) -> Folder:
    """The runs one level below."""
    below = sorted(path for path in folder.iterdir() if path.is_dir() and is_run(path))
    done = tuple(path for path in below if (path / "findings.json").is_file())
    return Folder(done, tuple(path.name for path in below if path not in done))


def single(store: Store) -> Case:
    """The only case of a page beside its report."""
    facts = store.facts()
    return Case(store.findings(), facts, facts["model"])


def several(runs: tuple[Path, ...]) -> list[Case]:
    """A case for each run, in the order of models and traits."""
    stores = [Store(path) for path in runs]
    facts = [store.facts() for store in stores]
    names = [(each["model"], trait_name(each)) for each in facts]
    cases = [
        Case(
            store.findings(),
            own,
            own["model"]
            if names.count(name) == 1
            else f"{own['model']}, folder {store.folder.name}",
            f"{quote(store.folder.name)}/report.html",
        )
        for store, own, name in zip(stores, facts, names, strict=True)
    ]
    return sorted(cases, key=lambda case: case.order)


def having(cases: list[Case], key: str) -> Iterator[tuple[Case, Mapping[str, Any]]]:
    """The cases with a finding that measured something, and its details."""
    for case in cases:
        details = case.details(key)
        if details is not None:
            yield case, details
