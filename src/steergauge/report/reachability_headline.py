"""The reachability page's first sentences, and its two numbers that are kept apart.

What access to the weights does and what a prompt does are answers to two questions:
arXiv 2604.09839 asks for both, side by side and never merged.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from steergauge.audits.finding import Finding, Verdict
from steergauge.report.cells import portion
from steergauge.report.grid import UNKNOWN, known, written
from steergauge.report.sections import Details, estimated, value
from steergauge.report.verdicts import UNSOUND, overruled
from steergauge.report.words import interval, padded, percent

AUDITS = ("states", "inversion", "access", "density")
"""T16 to T19, in the order of the page."""

MOST = 0.5
"""Of steering's lift: a prompt's that is surely larger is about as far."""

NOTHING = "Whether steered states can be reached could not be told from this run."

Findings = Mapping[str, Finding]


@dataclass(frozen=True, slots=True)
class Number:
    """One of the two numbers: a heading, the number, and what it is."""

    heading: str
    number: str
    interval: str
    note: str


def has_reachability(findings: Findings) -> bool:
    """Whether any audit of reachability was run."""
    return any(finding.audit in AUDITS for finding in findings.values())


def headline(findings: Findings) -> list[str]:
    """A sentence for each audit, none of which goes beyond its verdict."""
    if overruled(findings):
        return [UNSOUND]
    told = [
        make(findings[audit])
        for audit, make in zip(
            AUDITS, (_states, _inversion, _access, _density), strict=True
        )
        if audit in findings
    ]
    return [sentence for sentence in told if sentence] or [NOTHING]


def two_numbers(findings: Findings) -> tuple[Number, Number]:
    """What steering did, and what the best prompt did."""
    return _white(findings), _black(findings)


def _white(findings: Findings) -> Number:
    heading = "With access to the weights"
    found = findings.get("access")
    lift = estimated(found.details.get("white_box") or {}, "lift") if found else None
    check = findings.get("manipulation")
    if lift is None and check and check.estimate:
        seen = check.estimate
        lift = [seen.value, seen.low, seen.high]
    if lift is None:
        return Number(heading, "not measured", "", "No probe scored the steered texts.")
    number, _, between = written(lift).partition(" ")
    note = "is how far steering moves the trait, on a score from 0 to 1."
    return Number(heading, number, between, note)


def _black(findings: Findings) -> Number:
    heading = "With a prompt alone"
    found = findings.get("access")
    if found is None:
        note = "This run did not search for a prompt."
        return Number(heading, "not measured", "", note)
    seen = found.details.get("black_box") or {}
    lift, left = estimated(seen, "lift"), value(seen, "relative")
    if not found.details.get("best_prompt"):
        return Number(heading, "not measured", "", "No prompt was tried.")
    if lift is None:
        number = UNKNOWN.text if left is None else portion(left)
        note = (
            "of the divergence between steered and unsteered texts is left by the best "
            f"prompt{'' if left is None else _worse(left)}; no probe scored it."
        )
        return Number(heading, number, "", note)
    number, _, between = written(lift).partition(" ")
    rest = "" if left is None else (
        f" It leaves {portion(left)} of the divergence between steered and unsteered "
        f"texts{_worse(left)}."
    )  # fmt: skip
    note = f"is how far the best prompt moves the trait.{rest}{_same_lift(found)}"
    return Number(heading, number, between, note)


def _states(finding: Finding) -> str:
    """What T16 found."""
    details = finding.details
    num = details.get("num_vocabulary")
    tokens = "tokens" if num is None else f"{num:,} tokens"
    every = "all tokens" if num is None else f"all {num:,} tokens"
    same = estimated(details, "nearest_is_original")
    eta = finding.estimate
    step = "" if eta is None else f"{padded(eta.value)} {interval(eta, 'ratio')}"
    return {
        Verdict.REACHABLE: (
            f"At every position that could be judged, one of {tokens} gives the "
            "steered state."
        ),
        Verdict.EPSILON_CLOSE: (
            f"The steered states lie near those of tokens: of {every} the nearest is "
            f"at {step} of the step's length (median), nearer than random steps come."
        ),
        Verdict.ORIGIN_NEAREST: (
            f"{_reached(details)}: "
            + (f"at {written(same, 'whole')} of the positions " if same else "")
            + f"none of {every} comes nearer than the one that stands there, a whole "
            "step away, as with any step."
        ),
        Verdict.INCONCLUSIVE: (
            f"{_reached(details)}, of too few positions or prompts to say more."
        ),
        Verdict.UNREACHED: (
            f"{_reached(details)}: of {every} the nearest lies "
            f"at {step or 'an unknown share'} of the step's length (median)."
        ),
    }.get(finding.verdict, "")


def _reached(details: Details) -> str:
    """How many of the states that were judged are some token's."""
    shares, num = details.get("shares"), details.get("num_positions")
    if not shares or not num:
        return "The steered states are not reached"
    judged = round(num * (1 - shares.get(Verdict.UNINFORMATIVE, 0.0)))
    reached = round(num * shares.get(Verdict.REACHABLE, 0.0))
    if judged == 1:
        return f"The one steered state is {'' if reached else 'not '}reached"
    if not reached:
        return f"None of the {judged:,} steered states is reached"
    verb = "is" if reached == 1 else "are"
    return f"{reached:,} of the {judged:,} steered states {verb} reached"


def _inversion(finding: Finding) -> str:
    steered = finding.details.get("steered") or {}
    reached, num = steered.get("reached"), steered.get("num")
    of = "the texts" if num is None else f"{num} texts"
    return {
        Verdict.REACHABLE: f"Token by token, all of {of} could be read off the steered "
        "states.",
        Verdict.UNREACHED: f"Read back token by token, not one of {of} has the steered "
        "states, while natural ones are recovered.",
        Verdict.INCONCLUSIVE: f"Read back token by token, {reached} of {of} have "
        "the steered states."
        if reached is not None
        else "",
    }.get(finding.verdict, "")


def _access(finding: Finding) -> str:
    seen = finding.estimate
    left = "" if seen is None else f" {percent(seen.value)} {interval(seen, 'whole')}"
    if finding.verdict is Verdict.FOUND:
        return (
            "A prompt makes the unsteered model write what the steered one writes"
            f"{_span(finding)}: it leaves{left or ' little'} of the divergence."
        )
    if finding.verdict is not Verdict.NOT_FOUND:
        return ""
    best = "" if seen is None else (
        f": the best leaves{left} of the divergence{_worse(seen.value)}"
    )  # fmt: skip
    return (
        "No prompt was found, at this budget, that writes what the steered model "
        f"writes{best}.{_same_lift(finding)}{_powers(finding)}"
    )


def _worse(left: float) -> str:
    """What to add where a prompt takes the texts away from the steered ones."""
    if left <= 1:
        return ""
    nothing = percent(1.0)
    return f", on these texts worse than no prompt at all ({nothing})"


def _same_lift(finding: Finding) -> str:
    """That a prompt moves the trait, although it does not write the same texts."""
    white = estimated(finding.details.get("white_box") or {}, "lift")
    black = estimated(finding.details.get("black_box") or {}, "lift")
    if finding.verdict is not Verdict.NOT_FOUND or not white or not black:
        return ""
    steered, low = white[0], black[1]
    if not known(steered) or not known(low) or not 0 < MOST * steered < low:
        return ""
    return " It moves the trait about as far, and does not write the same texts."


def _span(finding: Finding) -> str:
    """How much of a text a prompt was judged by, where that is known."""
    num = (finding.details.get("budget") or {}).get("response_tokens")
    return "" if num is None else f", over the first {num} tokens of a text"


def _powers(finding: Finding) -> str:
    """What each search found of what was hidden, where it did not find v's."""
    methods = finding.details.get("methods") or ()
    if finding.verdict is not Verdict.NOT_FOUND or not methods:
        return ""
    found = ", ".join(
        f"{method['label']} {method['found']} of {method['hidden']}"
        for method in methods
    )
    return f" Of prompts hidden on purpose the same searches found: {found}."


def _density(finding: Finding) -> str:
    families = {one["name"]: one for one in finding.details.get("families") or []}
    share = estimated(families.get("v") or {}, "share")
    if share is None or not known(share[0]):
        return ""
    rare = f"{written(share, 'whole')} of the steered states"
    if finding.verdict is Verdict.OFF_MANIFOLD:
        return (
            f"{rare} are as rare among natural ones as one in a hundred, and rarer "
            "than token swaps of that length make them."
        )
    if finding.verdict is Verdict.ON_MANIFOLD:
        return f"Steered states look natural: {rare} are as rare as one in a hundred."
    return ""
