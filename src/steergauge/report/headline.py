"""The report's first sentence: what may be said of this vector, and what may not."""

from collections.abc import Mapping
from typing import Any

from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.manipulation import MINIMUM_LIFT
from steergauge.report.geometry_headline import headline as geometry_headline
from steergauge.report.reachability_headline import has_reachability
from steergauge.report.reachability_headline import headline as reach_headline
from steergauge.report.verdicts import UNSOUND, overruled
from steergauge.report.words import interval, padded, percent, signed, typeset
from steergauge.statistics import Estimate

ADDITION = "a random perpendicular addition of the same length"


def headline(findings: Mapping[str, Finding], facts: Mapping[str, Any]) -> str:
    """One sentence in plain language; nothing in it goes beyond the verdicts."""
    if overruled(findings):
        return UNSOUND
    check = findings.get("manipulation")
    if check is None and "divergence" not in findings:
        told = reach_headline if has_reachability(findings) else geometry_headline
        return " ".join(told(findings)[:2])
    if check is None:
        return _texts_only(findings, "This run did not ask whether the trait moves")
    if check.estimate is None:
        return _texts_only(
            findings,
            "Without a probe nobody can say whether this vector moves its trait",
        )
    if check.verdict is Verdict.PASS:
        return (
            f"This vector moves {trait_name(facts)}{_toward(facts)} "
            f"({_lift(check)}){_comparison(findings, facts)}"
        )
    if check.verdict is Verdict.FAIL:
        return (
            f"This vector {_failure(check, facts)}, so comparing it with other "
            f"vectors says nothing about {trait_name(facts)}."
        )
    return f"Nothing can be said of this vector. {typeset(check.reasons[0])}"


def subline(findings: Mapping[str, Finding]) -> str:
    """What v does to the texts as such, and how far the controls can be trusted."""
    sentences = []
    check = findings.get("manipulation")
    # Without a lift the headline itself is about the texts.
    text = findings.get("divergence") if check and check.estimate else None
    effect = text.details.get("effect") if text else None
    if text and text.verdict is Verdict.UNINFORMATIVE and not overruled(findings):
        sentences.append("It does not measurably change the texts at all.")
    elif text and effect and not overruled(findings):
        between = interval(Estimate(*effect), "nats")
        sentences.append(
            f"Regardless of the trait, it changes the texts by {padded(effect[0])} "
            f"nats each {between}."
        )
    controls = [control for found in findings.values() for control in found.controls]
    if controls:
        held = sum(control.holds for control in controls)
        sentences.append(
            f"{held} of {len(controls)} controls with known answers came out as "
            "expected."
        )
    return " ".join(sentences)


def trait_name(facts: Mapping[str, Any]) -> str:
    """What the vector is said to move."""
    probe = facts.get("probe") or {}
    return facts.get("trait") or probe.get("name") or "its trait"


def subject(facts: Mapping[str, Any]) -> str:
    """What a heading calls the vector: its trait, or else the file it came from."""
    probe = facts.get("probe") or {}
    named = facts.get("trait") or probe.get("name") or facts.get("source")
    return named or "no trait named"


def of_subject(facts: Mapping[str, Any]) -> str:
    """What follows “a steering vector”: for the trait, or from the file."""
    probe = facts.get("probe") or {}
    if facts.get("trait") or probe.get("name"):
        return f"for {trait_name(facts)}"
    return f"from {facts['source']}" if facts.get("source") else ""


def _toward(facts: Mapping[str, Any]) -> str:
    """The pole that alpha's sign points to, where the trait names its poles."""
    poles = facts.get("poles") or []
    if len(poles) != 2:
        return ""
    return f" toward {poles[0] if facts['alpha'] > 0 else poles[1]}"


def _lift(check: Finding) -> str:
    assert check.estimate is not None
    between = interval(check.estimate)
    return f"{signed(check.estimate.value)} {between} on a score from 0 to 1"


def _failure(check: Finding, facts: Mapping[str, Any]) -> str:
    """Why T1 failed, the strongest reason first."""
    seen, trait = check.estimate, trait_name(facts)
    assert seen is not None
    if seen.high < 0:
        return f"moves {trait} the other way ({_lift(check)})"
    if seen.low <= 0:
        return f"does not measurably move {trait} ({_lift(check)})"
    if seen.value <= check.details.get("null_quantile", float("-inf")):
        return f"moves {trait} no more than matched random steps do ({_lift(check)})"
    if seen.value < MINIMUM_LIFT:
        return (
            f"moves {trait} by less than {MINIMUM_LIFT:g}, the least that is worth "
            f"auditing ({_lift(check)})"
        )
    return f"seems to move {trait} ({_lift(check)}), but its manipulation check failed"


def _comparison(findings: Mapping[str, Finding], facts: Mapping[str, Any]) -> str:
    """What adding v_perp changes, given that v moves the trait."""
    lift, text = findings.get("equivalence"), findings.get("divergence")
    verdicts = (lift.verdict if lift else None, text.verdict if text else None)
    num = f"{facts['num_prompts']} prompts"
    margin = percent(lift.details.get("margin", 0.2)) if lift else ""
    untold = f"could not be told from {num}"
    same = f"leaves that as it is (within {margin})"
    sentences = {
        (Verdict.EQUIVALENT, Verdict.EQUIVALENT): (
            f"leaves both that (within {margin}) and the texts as they are"
        ),
        (Verdict.EQUIVALENT, Verdict.DIFFERENT): f"{same}, but makes other texts",
        (Verdict.DIFFERENT, Verdict.DIFFERENT): "changes both that and the texts",
        (Verdict.DIFFERENT, Verdict.EQUIVALENT): (
            "changes that, though hardly the texts"
        ),
        (Verdict.INCONCLUSIVE, Verdict.DIFFERENT): (
            f"makes other texts; whether it moves {trait_name(facts)} as far {untold}"
        ),
        (Verdict.INCONCLUSIVE, Verdict.EQUIVALENT): (
            "leaves the texts as they are, within the budget"
        ),
    }
    if verdicts in sentences:
        return f"; {ADDITION} {sentences[verdicts]}."
    if lift and lift.verdict is Verdict.EQUIVALENT:
        return f"; {ADDITION} {same}."
    if Verdict.DIFFERENT in verdicts:
        what = "that" if verdicts[0] is Verdict.DIFFERENT else "the texts"
        return f"; {ADDITION} changes {what}."
    if Verdict.INCONCLUSIVE in verdicts:
        return f"; whether {ADDITION} changes what it does {untold}."
    return "."


def _texts_only(findings: Mapping[str, Finding], beginning: str) -> str:
    """T4 alone: the texts change, or not; the trait was not scored."""
    text = findings.get("divergence")
    if text is None:
        return f"{beginning}."
    effect = text.details.get("effect")
    if text.verdict is Verdict.UNINFORMATIVE or not effect:
        return f"{beginning}, and the texts do not measurably change."
    ending = {
        Verdict.DIFFERENT: f"and {ADDITION} changes them again",
        Verdict.EQUIVALENT: f"and {ADDITION} leaves that as it is",
    }.get(text.verdict, f"but whether {ADDITION} changes that could not be told")
    return f"{beginning}; it changes the texts by {padded(effect[0])} nats, {ending}."
