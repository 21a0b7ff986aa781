"""The words and number formats of a report: one name for a thing, one way to write it.

Audits speak ASCII (`v_perp`, `kappa_0`, `||`), because a terminal may show them;
`typeset` turns that into the signs that a page has.
"""

import re
from dataclasses import dataclass

from steergauge.audits.finding import Finding, Verdict
from steergauge.statistics import Estimate

MINUS = "\N{MINUS SIGN}"
PERP = "v\N{UP TACK}"
_TIMES = "\N{MULTIPLICATION SIGN}"
_ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
_SIGNS = tuple(
    (re.compile(pattern), sign)
    for pattern, sign in (
        (r"(?<!\w)v_perp(?!\w)", PERP),
        (r"(?<!\w)kappa_0(?!\w)", "\N{GREEK SMALL LETTER KAPPA}\N{SUBSCRIPT ZERO}"),
        (r"(?<!\w)alpha v(?!\w)", f"{_ALPHA}v"),
        (r"(?<!\w)alpha(?!\w)", _ALPHA),
        (r"\|\|", "\N{DOUBLE VERTICAL LINE}"),
        (r"(?<=\bv)'(?!s)", "\N{PRIME}"),
        (r"(?<=\w)'", "\N{RIGHT SINGLE QUOTATION MARK}"),
        (r"(?<![\w.])-(?=[\dv])", MINUS),
        (r"(?<= )-(?= )", MINUS),
        (r"(\d)%", "\\1\N{NO-BREAK SPACE}%"),
    )
)
_SCIENTIFIC = re.compile(r"\b\d(?:\.\d+)?e[+-]\d+\b")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class VerdictWord:
    """How a verdict is shown: never by colour alone."""

    icon: str
    meaning: str


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
        "∅", "A precondition failed; whatever the numbers are, they mean nothing here."
    ),
}

_ARMS = {
    "unsteered": ("unsteered", "no steering"),
    "v": ("v", "the vector under audit"),
    "v_again": ("v again", "the same vector, fresh random numbers"),
    "minus_v": (f"{MINUS}v", "the opposite direction, same length"),
    "v_plus_perp": (f"v + {PERP}", f"v plus a random perpendicular {PERP}"),
    "perp": (f"{PERP} alone", "random, perpendicular to v, of v's length"),
    "random": ("random steps", "random directions of v's length"),
    "sign_flip": ("sign flips", "v's contrast pairs with random signs"),
    "other_trait": ("other traits", "their vectors, at v's length"),
    "dose": ("dose", "v at another strength"),
}
_CONTROLS = {
    "v": ("v against itself", "the same arm through other compute paths"),
    "certificate": ("probe against certificate", "a consistency check of the tool"),
}


NULL_LEAD = {
    "plumbing": "If nothing were there:",
    "manipulation": "If the direction of v did not matter:",
    "equivalence": "If the two did the same, the difference would lie",
    "divergence": "If the two were one and the same:",
}
"""How a finding's null, the number if there were nothing to see, is introduced."""


def family(arm: str) -> str:
    """`perp[3]` -> `perp`; rivals stay apart, as in `runs.evidence.families`."""
    return arm if arm.startswith("against[") else arm.partition("[")[0]


def arm_name(arm: str) -> str:
    """An arm, or family of arms, as a reader knows it."""
    if arm.startswith("against["):
        return f"“{arm.removeprefix('against[').removesuffix(']')}”"
    name = _ARMS.get(family(arm), (arm, ""))[0]
    return name if family(arm) == arm else f"{name} [{arm.partition('[')[2][:-1]}]"


def arm_note(arm: str) -> str:
    """What the arm does, in a few words."""
    if arm.startswith("against["):
        return typeset("a vector given for comparison, at v's length")
    return typeset(_ARMS.get(family(arm), ("", ""))[1])


def control_name(name: str) -> tuple[str, str]:
    """A control's name and note."""
    return _CONTROLS.get(name) or (arm_name(name), arm_note(name))


def subject_name(finding: Finding) -> str:
    """What a comparison compares with v."""
    if finding.subject == "v_perp alone":
        return f"{PERP} alone"
    return arm_name(finding.subject) if finding.subject else f"v + {PERP}"


def question(finding: Finding) -> str:
    """The question that a finding answers, as a heading."""
    return {
        "plumbing": "Is the measurement sound?",
        "manipulation": "Does the vector move the trait?",
        "equivalence": "Does it move the trait as far as v?",
        "divergence": "Does it write the same texts as v?",
    }.get(finding.audit, finding.audit)


def claim(finding: Finding) -> str:
    """The claim, with the subject under the name that a reader knows."""
    if not finding.subject:
        return typeset(finding.claim)
    before, subject, after = finding.claim.partition(finding.subject)
    if not subject:
        return typeset(finding.claim)
    return typeset(before) + subject_name(finding) + typeset(after)


def title(finding: Finding) -> str:
    """The question with its subject, for where no heading names the subject."""
    if finding.audit not in ("equivalence", "divergence"):
        return question(finding)
    return question(finding).replace("it ", f"{subject_name(finding)} ", 1)


def typeset(text: str) -> str:
    r"""ASCII mathematics and apostrophes of the audits in a page's signs.

    >>> typeset("L(v') is -0.1; alpha v") == "L(v\N{PRIME}) is {}0.1; {}v".format(
    ...     MINUS, "\N{GREEK SMALL LETTER ALPHA}"
    ... )
    True
    """
    for pattern, sign in _SIGNS:
        text = pattern.sub(sign, text)
    return _SCIENTIFIC.sub(lambda found: plain(float(found[0])), text)


def signed(value: float) -> str:
    """A lift or difference of lifts: +0.031."""
    return f"{value:+.3f}".replace("-", MINUS)


def plain(value: float, digits: int = 3) -> str:
    r"""Any other number, to `digits` significant digits.

    >>> plain(3.339), plain(28570.0), ascii(plain(1e-8))
    ('3.34', '28600', "'1 \\xd7 10\\u207b\\u2078'")
    """
    text = f"{value:.{digits}g}"
    mantissa, _, exponent = text.partition("e")
    if exponent:
        if int(exponent) in range(6):
            return f"{float(text):.0f}".replace("-", MINUS)
        text = f"{mantissa} {_TIMES} 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return text.replace("-", MINUS)


def percent(share: float, digits: int = 0) -> str:
    """0.204 -> 20 %."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%".replace("-", MINUS)


def padded(value: float, digits: int = 3) -> str:
    """`plain` with its zeros, so that numbers under each other look alike.

    >>> padded(5.2), padded(10.0), padded(123.4), padded(28570.0), padded(0.0)
    ('5.20', '10.0', '123', '28600', '0')
    """
    if value and 1e-4 <= abs(value) < 10**digits:
        return f"{value:#.{digits}g}".rstrip(".").replace("-", MINUS)
    return plain(value, digits)


def number(estimate: Estimate, *, nats: bool) -> str:
    """The value alone."""
    return padded(estimate.value) if nats else signed(estimate.value)


def interval(estimate: Estimate, *, nats: bool) -> str:
    """[low, high]."""
    write = padded if nats else signed
    return f"[{write(estimate.low)}, {write(estimate.high)}]"


def in_nats(finding: Finding) -> bool:
    """Whether the finding's number is a divergence; else it is a lift."""
    return finding.audit == "divergence"


def unit(finding: Finding) -> str:
    """The unit of the finding's number, in words."""
    if in_nats(finding):
        return "nats a text"
    return typeset("on the probe's score from 0 to 1")
