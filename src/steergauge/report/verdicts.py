"""Verdicts as a page shows them: a sign and a meaning for each, never colour alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.logits import TOLERANCE


@dataclass(frozen=True, slots=True)
class VerdictWord:
    """How a verdict is shown: never by colour alone."""

    icon: str
    meaning: str


def verdict_style(verdict: str) -> str:
    """The CSS class of a verdict: its first word.

    >>> verdict_style(Verdict.EXPLAINED)
    'explained'
    """
    return verdict.partition(" ")[0].lower()


def sign(verdict: str) -> str:
    """The sign of a verdict.

    >>> sign("FAIL")
    '✕'
    """
    return VERDICTS[Verdict(verdict)].icon


VERDICTS = {
    Verdict.PASS: VerdictWord("✓", "A check came out as it must."),
    Verdict.FAIL: VerdictWord("✕", "A check did not come out as it must."),
    Verdict.EQUIVALENT: VerdictWord(
        "=", "Shown to be the same, within a margin that was fixed beforehand."
    ),
    Verdict.DIFFERENT: VerdictWord(
        "≠", "Shown not to be the same: the interval leaves no room for it."
    ),
    Verdict.INCONCLUSIVE: VerdictWord(
        "?", "Neither could be shown with this many prompts. More might decide."
    ),
    Verdict.UNINFORMATIVE: VerdictWord(
        "∅",
        "A precondition failed, or the number is what noise alone gives: it carries "
        "nothing here.",
    ),
    Verdict.EXPLAINED: VerdictWord(
        "∠", f"T is 1 within {100 * TOLERANCE:.0f}\N{NO-BREAK SPACE}%."
    ),
    Verdict.NONLINEAR: VerdictWord(
        "∿", "What is seen departs from what local theory predicts."
    ),
    Verdict.LOCAL: VerdictWord(
        "∂",
        "At the strength in use, second-order theory predicts the effect within its "
        "tolerance.",
    ),
    Verdict.MEASURED: VerdictWord("#", "A measurement; no claim is judged."),
    Verdict.EXACT_NULL: VerdictWord(
        "0", "No step along it, however long, changes the output above rounding."
    ),
    Verdict.FIRST_ORDER_NULL: VerdictWord(
        "⁴", "Small steps along it cost nothing to second order; long ones do."
    ),
    Verdict.EFFECTIVE_NULL: VerdictWord(
        "≈", "A step of v's length along it costs less than the budget."
    ),
    Verdict.VISIBLE: VerdictWord("◉", "The output sees it."),
    Verdict.HIDDEN: VerdictWord(
        "◌", "The output sees it less than a random direction of its length."
    ),
    Verdict.SHARED_NULL: VerdictWord(
        "∩", "Directions that no text of the sample sees, told apart by a clear gap."
    ),
    Verdict.SHRINKING: VerdictWord(
        "↘", "The null space still becomes smaller as texts are added."
    ),
    Verdict.FULL: VerdictWord("●", "No direction is unseen by all texts."),
    Verdict.STRUCTURED: VerdictWord(
        "⇄",
        "A vector at 60 degrees or more from v does what v does, and v with a random "
        "vector of its length added surely does not (or, where none was added, a "
        "random vector at that angle).",
    ),
    Verdict.GENERIC: VerdictWord(
        "∀",
        "Random vectors of v's length, added to v or, where none was added, at the "
        "angle of a far one, leave what v does.",
    ),
    Verdict.IDENTIFIABLE: VerdictWord(
        "⊂",
        "Of all that the search tried, nothing beyond this angle does what v does. "
        "That is no proof that there is nothing.",
    ),
    Verdict.ONE_CLASS: VerdictWord(
        "1", "All methods' vectors do the same within the threshold."
    ),
    Verdict.SEVERAL: VerdictWord(
        "⋮", "The methods' vectors fall into several classes of like effect."
    ),
    Verdict.REACHABLE: VerdictWord(
        "→", "Some token gives the steered state, within the calibrated tolerance."
    ),
    Verdict.EPSILON_CLOSE: VerdictWord(
        "ε",
        "Some token's state is nearer than half the step, and nearer than random "
        "steps of that length leave any token; but it is not within the tolerance.",
    ),
    Verdict.ORIGIN_NEAREST: VerdictWord(
        "⟲",
        "Not reached, and no other token's state is nearer than the unsteered one: "
        "the distance is the length of the step, which any step has.",
    ),
    Verdict.UNREACHED: VerdictWord(
        "↛", "No token that was tried gives the steered state within the tolerance."
    ),
    Verdict.FOUND: VerdictWord(
        "★",
        "A prompt was found that writes the same first tokens, within the threshold.",
    ),
    Verdict.NOT_FOUND: VerdictWord(
        "⌕",
        "No such prompt was found with this much search. That is no proof that there "
        "is none; the power says what such a search finds where there is one.",
    ),
    Verdict.ON_MANIFOLD: VerdictWord(
        "⊙", "Steered states look like natural ones to these scores."
    ),
    Verdict.OFF_MANIFOLD: VerdictWord(
        "⊘",
        "Steered states are rare among natural ones, and more so than swaps of a "
        "token that are as long.",
    ),
}

_SPOKEN = tuple(VERDICTS)
_REACH = _SPOKEN.index(Verdict.REACHABLE)

GEOMETRY_VERDICTS = _SPOKEN[_SPOKEN.index(Verdict.NONLINEAR) : _REACH]
"""What only the audits of geometry say, and NONLINEAR, which T5 says too."""

REACHABILITY_VERDICTS = _SPOKEN[_REACH:]
"""What only the audits of reachability say."""

COMMON_VERDICTS = (
    Verdict.PASS,
    Verdict.FAIL,
    Verdict.INCONCLUSIVE,
    Verdict.UNINFORMATIVE,
)
"""What every audit may say."""

UNSOUND = (
    "A plumbing check failed on this model, so the numbers below do not describe this "
    "vector."
)
"""All that a page may begin with where T0 failed."""

_ELSEWHERE = {*_SPOKEN} - {*_SPOKEN[_SPOKEN.index(Verdict.LOCAL) :]}


def overruled(findings: Mapping[str, Finding]) -> bool:
    """Whether a failed T0 has made every other finding meaningless."""
    checks = findings.get("plumbing")
    return checks is not None and checks.verdict is Verdict.FAIL


def vocabulary(findings: Iterable[Finding]) -> dict[Verdict, VerdictWord]:
    """The verdicts that a page on these findings explains.

    Those of geometry and reachability are left out unless a finding has them.
    """
    shown = _ELSEWHERE | {finding.verdict for finding in findings}
    return {verdict: word for verdict, word in VERDICTS.items() if verdict in shown}
