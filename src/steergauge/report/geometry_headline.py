"""The geometry page's first sentences: what the output can see of this vector."""

from collections.abc import Mapping

from steergauge.audits.finding import Finding, Verdict
from steergauge.report.equivalent import angle, widest
from steergauge.report.grid import known, measured
from steergauge.report.sections import numbers, value
from steergauge.report.verdicts import UNSOUND, overruled
from steergauge.report.words import interval, padded, percent, plain

MOST = 4
"""As many sentences as the page begins with."""

Findings = Mapping[str, Finding]


def headline(findings: Findings) -> list[str]:
    """At most four sentences, none of which goes beyond the verdicts."""
    if overruled(findings):
        return [UNSOUND]
    warning = _theory(findings)
    told = [
        sentence
        for make in (_equivalent, _placement, _spectrum, _nulls)
        if (sentence := make(findings))
    ]
    kept = told[: MOST - 1] if warning else told[:MOST]
    made = [*kept, *([warning] if warning else [])]
    return made or ["Nothing could be said of what the output sees of this vector."]


def _equivalent(findings: Findings) -> str:
    """What T10 found."""
    finding = findings.get("alternative")
    if finding is None:
        return ""
    details, best = finding.details, widest(finding.details)
    budget = percent(value(details, "budget") or 0.05)
    theta = angle(best) if best else None
    random = (
        "v with a random vector of its length added"
        if numbers(details, "added")
        else "a random vector at that angle"
    )
    if finding.verdict is Verdict.STRUCTURED and theta is not None:
        return (
            f"A vector {theta:.0f}° away from v, and no longer than v, writes the same "
            f"texts within {budget} of v's effect; {random} does not."
        )
    if finding.verdict is Verdict.GENERIC:
        found = "" if theta is None else f", and so does a vector {theta:.0f}° from v"
        return (
            f"Within {budget} of v's effect {random} writes the same texts{found}: the "
            "output hardly tells v's direction from others."
        )
    within = value(details, "within_deg")
    if finding.verdict is Verdict.IDENTIFIABLE and within is not None:
        return (
            f"No vector further than {within:.0f}° from v was found that writes the "
            f"same texts within {budget} of v's effect; that is a limit of the search, "
            "and no proof."
        )
    return ""


def _placement(findings: Findings) -> str:
    finding = findings.get("decomposition")
    if finding is None or finding.estimate is None:
        return ""
    rho = finding.estimate
    seen = f"{padded(rho.value)} times {interval(rho, 'ratio')}"
    costs = f"A small step along v costs {seen} what one in a random direction costs"
    if finding.verdict is Verdict.VISIBLE:
        return f"{costs}: the output sees v better than chance."
    if finding.verdict is Verdict.HIDDEN:
        return f"{costs}: the output sees v worse than chance."
    if finding.verdict is Verdict.INCONCLUSIVE:
        return f"{costs}, which is no clear difference from chance."
    return ""


def _spectrum(findings: Findings) -> str:
    finding = findings.get("spectrum")
    if finding is None or finding.verdict is not Verdict.MEASURED:
        return ""
    details = finding.details
    width, effective = len(numbers(details, "values")), details.get("erank")
    if not width or not effective or not known(effective[0]):
        return ""
    seen = measured(effective, "ratio")
    sentence = (
        f"What the output sees of the stream's {width} dimensions is spread as over "
        f"{seen.text} {seen.small} equal ones (entropy rank)"
    )
    equal = details.get("equivalent") or {}
    counts, budgets = numbers(equal, "dimensions"), numbers(equal, "nats")
    effect = value(details, "effect")
    if counts and budgets and effect:
        share = percent(budgets[0] / effect)
        sentence += (
            f", and by the quadratic form a step as long as v's would cost at most "
            f"{share} of what v costs along {plain(counts[0], 6)} of its directions"
        )
    return f"{sentence}."


def _nulls(findings: Findings) -> str:
    finding = findings.get("saturation")
    if finding is None or finding.estimate is None:
        return ""
    dim = finding.estimate.value
    texts = max(numbers(finding.details, "num"), default=None)
    over = "the texts" if texts is None else f"{texts:g} texts"
    if finding.verdict is Verdict.FULL:
        return f"No direction is unseen by all of {over}."
    if finding.verdict is Verdict.SHARED_NULL:
        return f"{dim:g} of the stream's dimensions are unseen by all of {over}."
    if finding.verdict is Verdict.SHRINKING:
        return (
            f"{dim:g} of the stream's dimensions are unseen by all of {over}, and the "
            "number still falls as texts are added."
        )
    return ""


def _theory(findings: Findings) -> str:
    """A warning where local numbers do not reach v's strength."""
    finding = findings.get("linearity")
    if finding is None or finding.verdict is not Verdict.NONLINEAR:
        return ""
    radius = value(finding.details, "radius")
    reach = "" if radius is None else f", but to {plain(radius, 2)} times it"
    return (
        f"Second-order theory does not reach this strength{reach}: ranks and shares "
        "below describe small steps, not v's full length."
    )
