"""What every page of sections has: its headline, the run, and the words of verdicts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steergauge.audits.finding import Finding, Verdict
from steergauge.report import words
from steergauge.report.headline import subject
from steergauge.report.verdicts import COMMON_VERDICTS


def frame(
    facts: Mapping[str, Any], told: Sequence[str], verdicts: Iterable[Verdict]
) -> dict[str, Any]:
    """What the template sections.html.j2 shows around the sections.

    Args:
        facts: what the run was.
        told: sentences of the headline.
        verdicts: those that are explained, beside the common ones.
    """
    opening, *rest = told
    explained = (*verdicts, *COMMON_VERDICTS)
    return {
        "words": words,
        "verdicts": words.VERDICTS,
        "vocabulary": {verdict: words.VERDICTS[verdict] for verdict in explained},
        "Verdict": Verdict,
        "len": len,
        "facts": facts,
        "trait": subject(facts),
        "opening": opening,
        "rest": " ".join(rest),
        "not_run": list(facts.get("not_run") or []),
    }


def missing(audits: Iterable[str], findings: Mapping[str, Finding]) -> list[str]:
    """Questions of the audits that were not run."""
    return [words.question(_absent(audit)) for audit in audits if audit not in findings]


def _absent(audit: str) -> Finding:
    """A finding that only lends its name to a question."""
    return Finding(audit, "", "", "", "", None, "", Verdict.UNINFORMATIVE, ())
