"""The reachability page's first sentences, and its two numbers that are kept apart.

What access to the weights does and what a prompt does are answers to two questions:
arXiv 2604.09839 asks for both, side by side and never merged.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from steergauge.audits.finding import Finding, Verdict
from steergauge.report.cells import portion
from steergauge.report.grid import UNKNOWN, known, written
from steergauge.report.sections import estimated, value
from steergauge.report.verdicts import UNSOUND, overruled
from steergauge.report.words import interval, padded, percent

AUDITS = ("states", "inversion", "access", "density")
"""T16 to T19, in the order of the page."""

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
        note = "of the divergence between steered and unsteered texts is left by the "
        return Number(heading, number, "", f"{note}best prompt; no probe scored it.")
    number, _, between = written(lift).partition(" ")
    rest = "" if left is None else (
        f" It leaves {portion(left)} of the divergence between steered and unsteered "
        "texts."
    )  # fmt: skip
    note = f"is how far the best prompt moves the trait.{rest}{_powers(found)}"
    return Number(heading, number, between, note)


def _states(finding: Finding) -> str:
    """What T16 found."""
    details = finding.details
    num = details.get("num_vocabulary")
    tokens = "tokens" if num is None else f"{num} tokens"
    same = estimated(details, "nearest_is_original")
    eta = finding.estimate
    step = "" if eta is None else f"{padded(eta.value)} {interval(eta, 'ratio')}"
    return {
        Verdict.REACHABLE: (
            f"At every position that could be judged, one of {tokens} gives the "
            "steered state."
        ),
        Verdict.EPSILON_CLOSE: (
            f"The steered states lie near those of tokens: of {tokens} the nearest is "
            f"at {step} of the step's length (median), nearer than random steps come."
        ),
        Verdict.ORIGIN_NEAREST: (
            "The steered states are not reached: "
            + (f"at {written(same, 'whole')} of the positions " if same else "")
            + f"none of {tokens} comes nearer than the one that stands there, a whole "
            "step away, as with any step."
        ),
        Verdict.UNREACHED: (
            f"The steered states are not all reached: of {tokens} the nearest lies "
            f"at {step or 'an unknown share'} of the step's length (median)."
        ),
    }.get(finding.verdict, "")


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
            f"A prompt makes the unsteered model write what the steered one writes: it "
            f"leaves{left or ' little'} of the divergence."
        )
    if finding.verdict is not Verdict.NOT_FOUND:
        return ""
    best = f": the best leaves{left} of the divergence" if left else ""
    return (
        "No prompt was found, at this budget, that writes what the steered model "
        f"writes{best}.{_powers(finding)}"
    )


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
