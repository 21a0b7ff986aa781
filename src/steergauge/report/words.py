"""The words and number formats of a report: one name for a thing, one way to write it.

Audits speak ASCII (`v_perp`, `kappa_0`, `||`), because a terminal may show them;
`typeset` turns that into the signs that a page has.
"""

import re
from collections.abc import Mapping
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.report.expected import NULL_LEAD as NULL_LEAD
from steergauge.report.verdicts import VERDICTS as VERDICTS
from steergauge.report.verdicts import verdict_style as verdict_style
from steergauge.statistics import Estimate

MINUS = "\N{MINUS SIGN}"
PERP = "v\N{UP TACK}"
LARGE = 1e4
"""From here on three significant digits are printed."""

TIMES = "\N{MULTIPLICATION SIGN}"
_ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
_PRIME = "\N{PRIME}"
_SIGNS = tuple(
    (re.compile(pattern), sign)
    for pattern, sign in (
        (r"(?<!\w)v_perp(?!\w)", PERP),
        (r"(?<!\w)kappa_0(?!\w)", "\N{GREEK SMALL LETTER KAPPA}\N{SUBSCRIPT ZERO}"),
        (r"(?<!\w)alpha v(?!\w)", f"{_ALPHA}v"),
        (r"(?<!\w)alpha(?!\w)", _ALPHA),
        (r"(?<!\w)rho(?=_F\b|(?!\w))", "\N{GREEK SMALL LETTER RHO}"),
        (r"(?<!\w)erank_(?=lambda|sigma)", "erank "),
        (r"(?<!\w)sigma_1(?!\w)", "\N{GREEK SMALL LETTER SIGMA}\N{SUBSCRIPT ONE}"),
        (
            r"(?<!\w)sigma_i(?!\w)",
            "\N{GREEK SMALL LETTER SIGMA}\N{LATIN SUBSCRIPT SMALL LETTER I}",
        ),
        (r"(?<!\w)sigma(?!\w)", "\N{GREEK SMALL LETTER SIGMA}"),
        (r"(?<!\w)lambda(?!\w)", "\N{GREEK SMALL LETTER LAMDA}"),
        (r"(?<!\w)F_bar(?!\w)", "F\N{COMBINING MACRON}"),
        (r"\^2", "\N{SUPERSCRIPT TWO}"),
        (r"->", "\N{RIGHTWARDS ARROW}"),
        (r"<=", "\N{LESS-THAN OR EQUAL TO}"),
        (r">=", "\N{GREATER-THAN OR EQUAL TO}"),
        (r"\|\|", "\N{DOUBLE VERTICAL LINE}"),
        (r"(?<=\bv)'(?!s)", "\N{PRIME}"),
        (r"(?<=\w)'", "\N{RIGHT SINGLE QUOTATION MARK}"),
        (r"(?<![\w.])-(?=[\dv])", MINUS),
        (r"(?<= )-(?= )", MINUS),
        (r"(\d)%", "\\1\N{NO-BREAK SPACE}%"),
    )
)
_SCIENTIFIC = re.compile(r"\b\d(?:\.\d+)?e[+-]\d+\b")
_PLAIN_SHARE = re.compile(r"(?:(?<=^)|(?<=^at most ))(?:1|0\.\d+)(?![\w.%]| %)")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


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
    "v_turned": (
        "v turned",
        f"v + {PERP} scaled back to v's length: 45 degrees from v",
    ),
    "v_plus_perp_fresh": (
        f"v + {PERP}, drawn anew",
        f"the same v + {PERP}, random numbers of their own",
    ),
    "v_recomputed": ("v recomputed", "v through another compute path"),
    "code_v": ("v of the code", "read a block below, scored with its prompt"),
    "code_v_plus_perp": (f"v + {PERP} of the code", "as the published code does it"),
    "code_perp": (f"{PERP} of the code", "as the published code does it"),
    "most_different": (
        f"v{_PRIME}, most different",
        "as far from v as the output lets it be, no longer than v",
    ),
    "soft_null": (
        "v + soft null",
        "v and a step of its length where second order sees next to nothing",
    ),
    "same_cosine": (
        "same angle, random",
        f"random, at the angle from v and the length of v{_PRIME}",
    ),
}
_SUBJECTS = {
    "v most different": f"v{_PRIME}, the most different equivalent,",
    "v_perp alone": f"{PERP} alone",
    "v turned": "v turned",
    "every alpha": f"v + {PERP} at every {_ALPHA}",
    "v + v_perp in every environment": f"v + {PERP} in every environment",
}
_CONTROLS = {
    "v": ("v against itself", "the same arm through other compute paths"),
    "natural": ("natural states", "the prompts' own, unsteered"),
    "arrival": ("arrival", "steered states against those worked out by hand"),
    "constructed": ("constructed states", "those of another token, read as a target"),
    "many_shot": ("many-shot", "prompts made of answers"),
    "token_search": ("token search", "prompts made token by token"),
    "projected": ("nearest tokens", "those nearest to the soft prefix"),
    **dict.fromkeys(
        ("soft", "soft_prefix"), ("soft prefix", "embeddings that are no token's")
    ),
    "certificate": ("probe against certificate", "a consistency check of the tool"),
}


def family(arm: str) -> str:
    """`perp[3]` -> `perp`; rivals stay apart, as in `runs.evidence.families`."""
    return arm if arm.startswith("against[") else arm.partition("[")[0]


def arm_name(arm: str) -> str:
    """An arm, or family of arms, as a reader knows it.

    >>> arm_name("v@0.5").replace(_ALPHA, "alpha"), arm_name("v_again[3]")
    ('v at alpha = 0.5', 'v again [3]')
    """
    if arm.startswith("against["):
        return f"“{arm.removeprefix('against[').removesuffix(']')}”"
    kind, _, strength = family(arm).partition("@")
    name = _ARMS.get(kind, (kind, ""))[0]
    if strength:
        name = f"{name} at {_ALPHA} = {strength.replace('-', MINUS)}"
    return name if family(arm) == arm else f"{name} [{arm.partition('[')[2][:-1]}]"


def arm_note(arm: str) -> str:
    """What the arm does, in a few words."""
    if arm.startswith("against["):
        return typeset("a vector given for comparison, at v's length")
    return typeset(_ARMS.get(family(arm).partition("@")[0], ("", ""))[1])


def control_name(name: str) -> tuple[str, str]:
    """A control's name and note."""
    return _CONTROLS.get(name) or (arm_name(name), arm_note(name))


def subject_name(finding: Finding) -> str:
    """What a finding compares with v, or where it looks."""
    if finding.subject in _SUBJECTS:
        return _SUBJECTS[finding.subject]
    return arm_name(finding.subject) if finding.subject else f"v + {PERP}"


def question(finding: Finding) -> str:
    """The question that a finding answers, as a heading."""
    if finding.audit == "environments" and finding.subject:
        return f"Does v + {PERP} follow v in every environment?"
    return {
        "plumbing": "Is the measurement sound?",
        "manipulation": "Does the vector move the trait?",
        "equivalence": "Does it move the trait as far as v?",
        "divergence": "Does it write the same texts as v?",
        "replication": f"Is |d| of v + {PERP} above that of v against itself?",
        "scale": f"Does v + {PERP} follow v at every {_ALPHA}?",
        "logits": "Is R what geometry alone gives?",
        "environments": "Does v move the trait in every environment?",
        "reliability": "Does v steer every prompt the same way?",
        "spectrum": "How many directions does the output see?",
        "nulls": "Is there a direction that the output cannot see at all?",
        "saturation": "Do all texts share a null space?",
        "decomposition": "Does the output see v more than a random direction?",
        "alternative": "How different a vector does what v does?",
        "linearity": "Does second-order theory hold at this strength?",
        "gauge": "Do the numbers survive a change of basis?",
        "methods": "Do other ways of extraction give a vector of like effect?",
        "states": "Does any token lead to the steered state?",
        "inversion": "Is there a text whose states are the steered ones?",
        "access": "Does a prompt write what the steered model writes?",
        "density": "Do steered states lie among natural ones?",
    }.get(finding.audit, finding.audit)


def claim(finding: Finding) -> str:
    """The claim, with the subject under the name that a reader knows."""
    if not finding.subject or finding.audit == "scale":
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
    return fixed(value, sign="+")


def fixed(value: float, digits: int = 3, *, sign: str = "") -> str:
    """A number to so many decimals; a large one to three significant digits.

    >>> fixed(3.3392, 2), fixed(28570.0), fixed(28570.0, sign="+")
    ('3.34', '28600', '+28600')
    """
    if abs(value) >= LARGE:
        return (sign if value > 0 else "") + plain(value)
    return f"{value:{sign}.{digits}f}".replace("-", MINUS)


def plain(value: float, digits: int = 3) -> str:
    r"""Any other number, to `digits` significant digits, and 3 if it is large.

    >>> plain(3.339), plain(28570.0), ascii(plain(1e-8))
    ('3.34', '28600', "'1 \\xd7 10\\u207b\\u2078'")
    """
    text = f"{value:.{min(digits, 3) if abs(value) >= LARGE else digits}g}"
    mantissa, _, exponent = text.partition("e")
    if exponent:
        if int(exponent) in range(6):
            return f"{float(text):.0f}".replace("-", MINUS)
        text = f"{mantissa} {TIMES} 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return text.replace("-", MINUS)


def percent(share: float, digits: int = 0) -> str:
    """0.204 -> 20 %."""
    return f"{fixed(100 * share, digits)}\N{NO-BREAK SPACE}%"


def padded(value: float, digits: int = 3) -> str:
    """`plain` with its zeros, so that numbers under each other look alike.

    >>> padded(5.2), padded(10.0), padded(123.4), padded(28570.0), padded(0.0)
    ('5.20', '10.0', '123', '28600', '0')
    """
    if value and 1e-4 <= abs(value) < min(10**digits, LARGE):
        return f"{value:#.{digits}g}".rstrip(".").replace("-", MINUS)
    return plain(value, digits)


def number(estimate: Estimate, form: str = "score") -> str:
    """The value alone, written as numbers of its `form` are."""
    return _WRITERS[form](estimate.value)


def interval(estimate: Estimate, form: str = "score") -> str:
    """[low, high]."""
    write = _WRITERS[form]
    return f"[{write(estimate.low)}, {write(estimate.high)}]"


def _share(value: float) -> str:
    return percent(value, 1)


def _count(value: float) -> str:
    return plain(value, 6)


_WRITERS = {
    "score": signed,
    "nats": padded,
    "ratio": padded,
    "share": _share,
    "whole": percent,
    "count": _count,
}
"""How numbers are written: differences of scores, divergences, ratios, shares to a
tenth of a percent and to a whole one, counts."""


_FORMS = {
    "divergence": "nats",
    "logits": "ratio",
    "reliability": "share",
    "spectrum": "ratio",
    "nulls": "ratio",
    "saturation": "count",
    "decomposition": "ratio",
    "alternative": "ratio",
    "linearity": "ratio",
    "gauge": "ratio",
    "methods": "ratio",
    "states": "ratio",
    "inversion": "share",
    "access": "share",
    "density": "share",
}


def form(finding: Finding) -> str:
    """How the finding's number is written."""
    return _FORMS.get(finding.audit, "score")


def null(finding: Finding) -> str:
    """The null, in percent where the finding's number is."""
    text = finding.null
    if form(finding) == "share":
        text = _PLAIN_SHARE.sub(lambda seen: percent(float(seen[0])), text)
    return typeset(text)


def control_form(finding: Finding, name: str) -> str:
    """How the number of a finding's control is written; not always as its own."""
    if name == "certificate":
        return "score"
    return "share" if finding.audit in ("logits", "states") else form(finding)


def layer(facts: Mapping[str, Any]) -> str:
    """Where v is read and added: the block, and the blocks that there are.

    >>> layer({"layer": 2, "num_layers": 5})
    '2 (of 0 to 4)'
    """
    return f"{facts['layer']} (of 0 to {facts['num_layers'] - 1})"


def unit(finding: Finding) -> str:
    """The unit of the finding's number, in words."""
    units = {
        "divergence": "nats a text",
        "replication": "pooled standard deviations",
        "logits": "T, which is 1 if R is what geometry gives",
        "reliability": "of the prompts",
        "spectrum": "dimensions",
        "nulls": "nats a text",
        "saturation": "dimensions",
        "decomposition": "times what a random direction costs",
        "alternative": "of v's effect",
        "linearity": "ratios",
        "gauge": "relative error",
        "methods": "of v's effect",
        "states": "of the length of the step",
        "inversion": "of the tokens",
        "access": "of v's effect",
        "density": "of the states",
    }
    return units.get(finding.audit) or typeset("on the probe's score from 0 to 1")


def control_unit(finding: Finding) -> str:
    """The unit of its controls' numbers."""
    named = {
        "logits": "of the prompts",
        "states": "of the positions",
        "access": "of the hidden prompts",
    }
    return named.get(finding.audit) or unit(finding)
