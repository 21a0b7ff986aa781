"""What was done to the stream, in words: v added, or what lies along it taken out.

One place for all pages, so that ablation is called addition nowhere, and only what has
a strength is given one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.report import words

SCOPES = {
    "all": "every token, of prompt and response",
    "prompt": "the prompt's tokens",
    "response": "the response's tokens",
    "generating": "every position that predicts a token of the response: the last "
    "token of the prompt and the response's",
}
"""Which positions a scope steers."""

ABLATION = "v taken out (ablation), no strength"

READ = {"states": "T16", "inversion": "T17", "density": "T19"}
"""Audits that read states, and steer every position for it."""

Facts = Mapping[str, Any]
Findings = Mapping[str, Finding]


def ablated(facts: Facts) -> bool:
    """Whether v was taken out instead of added."""
    return facts.get("steering") == "ablation"


def read_after(findings: Findings) -> int | None:
    """The block after which states were read, where it is not v's own."""
    details = findings["states"].details if "states" in findings else {}
    read = details.get("read_layer")
    return None if read == details.get("layer") else read


def origin(facts: Facts) -> str:
    """Who chose alpha; empty if the run does not say."""
    chosen = facts.get("alpha_was_recommended")
    if chosen is None:
        return ""
    return "recommended by the dose curve" if chosen else "as asked for"


def deed(facts: Facts, findings: Findings) -> str:
    """What is done to the model's stream while it works: the rest of a sentence."""
    block, step = words.layer(facts), facts.get("step")
    if ablated(facts):
        done = (
            "what lies along v is taken out of its inner state after block "
            f"{block}: ablation, which has no strength"
        )
    else:
        chosen = f" ({origin(facts)})" if origin(facts) else ""
        long = "" if step is None else (
            f": a step {words.percent(step)} as long as that state is at the median"
        )  # fmt: skip
        done = (
            f"alpha v is added to its inner state after block {block}, with "
            f"alpha = {words.plain(facts['alpha'])}{chosen}{long}"
        )
    return f"{done}.{_read(findings)}"


def _read(findings: Findings) -> str:
    read = read_after(findings)
    return "" if read is None else f" States are read after block {read}."


def scope(facts: Facts, findings: Findings) -> str:
    """Which positions are steered, of states and of texts; empty if none is looked at.

    States are those of steering at every position, whatever the run's scope.
    """
    told = []
    codes = [code for audit, code in READ.items() if audit in findings]
    if codes:
        told.append(
            f"States ({', '.join(codes)}) are those of steering at every position, as "
            "arXiv 2604.09839 defines it"
        )
    named = facts.get("scope")
    if "access" in findings and named:
        where = SCOPES.get(named, "").replace(": ", ", ")
        told.append(
            "texts (T18) are steered where the run says: in the scope "
            f"“{named}”" + (f", {where}" if where else "")
        )
    text = "; ".join(told)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def strength(facts: Facts) -> str:
    """How far the stream is moved, for the card."""
    if ablated(facts):
        return ABLATION
    chosen = facts.get("alpha_was_recommended")
    how = "recommended by the dose curve" if chosen else "given"
    return (
        f"alpha = {words.plain(facts['alpha'])} ({how}); step ||alpha v|| is "
        f"{words.percent(facts['step'], 1)} of the median ||h||"
    )


def dose_untold(facts: Facts) -> str:
    """What to say of the dose curve where T1, which keeps it, was not run."""
    if ablated(facts):
        return "Ablation has no strength, and so no dose curve."
    kept = "The dose curve is kept with T1, which this run did not ask for."
    if not facts.get("alpha_was_recommended"):
        return f"{kept} alpha was given."
    return (
        f"{kept} It chose alpha = {words.plain(facts['alpha'])}, on "
        f"{facts['num_dose_prompts']} prompts that are not in the test, as the largest "
        "strength at which the texts stay coherent in both directions."
    )


def annotated(findings: Findings, facts: Facts) -> dict[str, Finding]:
    """The findings; of ablation, T0 says which check is not its own."""
    check = findings.get("plumbing")
    if check is None or not ablated(facts):
        return dict(findings)
    controls = findings["states"].controls if "states" in findings else ()
    had = any(control.name == "arrival" for control in controls)
    note = (
        "T0 checked adding v; that ablation does what it is meant to is T16's control "
        f'"arrival"{"" if had else ", which this run does not have"}.'
    )
    return {**findings, "plumbing": replace(check, reasons=(*check.reasons, note))}
