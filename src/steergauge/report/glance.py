"""At a glance: each claim of the paper, and the verdict that it gets here."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from steergauge.audits.finding import Finding, Verdict
from steergauge.report.cases import ALONE, EVERYWHERE, TURNED, Case
from steergauge.report.grid import Column, Grid, Row, tables, verdict_cell
from steergauge.report.headline import headline
from steergauge.report.lifted import sentence
from steergauge.report.parts import Said
from steergauge.report.words import PERP, typeset

_QUESTIONS = (
    ("manipulation", "Does v move the trait?", "supposed throughout"),
    ("equivalence", f"Does v + {PERP} move it as far as v?", "Table 1, |d| and r"),
    (
        f"equivalence[{ALONE}]",
        f"Does {PERP} alone move it as far?",
        "Table 1, perp-only; Figure 2",
    ),
    (
        f"equivalence[{TURNED}]",
        f"Does v + {PERP}, scaled to v's length, move it as far?",
        "Section 6.1, of equal norm",
    ),
    ("divergence", f"Does v + {PERP} write v's texts?", "not in the paper"),
    ("replication", "Is |d| above that of v against itself?", "Table 1"),
    ("scale[every alpha]", f"Does v + {PERP} follow v at every strength?", "Figure 3"),
    (
        "environments",
        "Does v move the trait in every environment?",
        "Table 2, Figure 4",
    ),
    (
        EVERYWHERE,
        f"Does v + {PERP} follow v in every environment?",
        "Table 2, Figure 4",
    ),
    ("logits", "Is R what geometry alone gives?", "Table 3"),
    ("reliability", "Does v steer every prompt the same way?", "not in the paper"),
)  # fmt: skip


def matrix(cases: list[Case]) -> Grid | None:
    """Questions by cases, each with its verdict."""
    rows = tuple(
        Row(
            typeset(question),
            source,
            tuple(verdict_cell(case.verdict(key)) for case in cases),
        )
        for key, question, source in _QUESTIONS
    )
    made = tables(
        Grid(
            caption="Verdicts",
            note="in grey, where the paper asks it; what the words mean is at the end",
            corner="question",
            columns=tuple(Column(case.trait, "", case.note) for case in cases),
            bodies=(("", rows),),
        )
    )
    return made[0] if made else None


def opening(cases: list[Case]) -> str:
    """How many cases there are, and what their verdicts amount to."""
    if len(cases) == 1:
        return headline(cases[0].findings, cases[0].facts)
    moving = [case for case in cases if case.moves]
    if not moving:
        return (
            f"In none of {len(cases)} cases did v pass its manipulation check, so "
            "nothing can be said of vectors that would do the same."
        )
    parts = [
        f"{subject} {counted}"
        for subject, key in (
            (f"v + {PERP}", "equivalence"),
            (f"{PERP} alone", f"equivalence[{ALONE}]"),
        )
        if (counted := _counted(case.findings.get(key) for case in moving))
    ]
    counts = f"v moves its trait in {len(moving)} of {len(cases)} cases."
    if not parts:
        return counts
    of_those = "" if len(moving) == len(cases) else "Of those, "
    return f"{counts} {of_those}{'; '.join(parts)}."


_OUTCOMES = (
    "moves it as far",
    "does not move it as far",
    "moves it farther",
    "is undecided",
    "is not judged",
)


def _counted(findings: Iterable[Finding | None]) -> str:
    """Verdicts on “moves it as far” by their number."""
    seen = Counter(_outcome(finding) for finding in findings if finding)
    return ", ".join(f"{one} in {seen[one]}" for one in _OUTCOMES if seen[one])


def _outcome(finding: Finding) -> str:
    same, less, more, unknown, unjudged = _OUTCOMES
    if finding.verdict is Verdict.DIFFERENT and finding.estimate:
        return more if finding.estimate.value > 0 else less
    by_verdict = {Verdict.EQUIVALENT: same, Verdict.INCONCLUSIVE: unknown}
    return by_verdict.get(finding.verdict, unjudged)


def verdicts(cases: Sequence[Case]) -> tuple[Said, ...]:
    """A sentence a case, and one of v_perp alone where it can be told."""
    return tuple(
        Said(case.trait, case.note, _in_short(case.findings, case)) for case in cases
    )


def _in_short(findings: Mapping[str, Finding], case: Case) -> str:
    alone = findings.get(f"equivalence[{ALONE}]")
    parts = [headline(findings, case.facts)]
    if alone and alone.verdict in (Verdict.EQUIVALENT, Verdict.DIFFERENT):
        parts.append(sentence(f"{PERP} alone", alone))
    return " ".join(parts)
