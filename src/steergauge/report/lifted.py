"""Lifts of v, v_perp and v + v_perp, and verdicts that rest on them (T1, T3, T4)."""

from collections.abc import Sequence

from steergauge.audits.comparison import MINIMUM_PROMPTS
from steergauge.audits.finding import Finding, Verdict
from steergauge.report.cases import ALONE, Case
from steergauge.report.grid import (
    UNKNOWN,
    Cell,
    Column,
    Grid,
    Row,
    ends,
    known,
    measured,
    number,
    share,
    tables,
    verdict_cell,
    written,
)
from steergauge.report.parts import Block, said
from steergauge.report.words import PERP, percent

_CARRIES = (
    "A lift is the score less the unsteered one, so a vector that does nothing has a "
    "lift of 0, and a lift ratio of 0. “The same” is claimed only if two one-sided "
    "tests pass within a margin that was set beforehand. The certificate bounds every "
    "score of these texts, thought of or not."
)


def lifted(cases: list[Case]) -> tuple[Block, ...]:
    """Scores and lifts, and what may be said."""
    seen = [case for case in cases if "manipulation" in case.findings]
    grids = tables(*_lifts(seen))
    told = said((case, _told(case)) for case in seen)
    return (Block(grids=grids, said=told, carries=_CARRIES),) if grids else ()


def _lifts(cases: list[Case]) -> tuple[Grid, Grid]:
    raw, lift = "raw score", "lift"
    columns = (
        Column("unsteered", raw),
        Column("v", raw),
        Column(PERP, raw),
        Column(f"v + {PERP}", raw),
        Column("v", lift, "T1"),
        Column(PERP, lift),
        Column(f"{PERP} over v", "lift ratio", "Fieller's interval"),
        Column("v moves the trait?", "", "T1"),
    )
    verdicts = (
        Column(f"v + {PERP}: lift", "does it move the trait as far as v?", "T3"),
        Column(f"{PERP} alone: lift", "does it move the trait as far as v?", "T3"),
        Column("KL from v", f"does v + {PERP} write v's texts?", "nats a text"),
        Column("certificate", f"does v + {PERP} write v's texts?", "most of any score"),
        Column("verdict", f"does v + {PERP} write v's texts?", "T4"),
    )
    return (
        Grid(
            caption="Scores and lifts",
            note="lift: the score less the unsteered one, 0 if a vector does nothing; "
            "95\N{NO-BREAK SPACE}% intervals over prompts and directions",
            corner="trait",
            columns=columns,
            bodies=(("", tuple(_lift_row(case) for case in cases)),),
        ),
        Grid(
            caption="What may be said",
            note="equality of lifts by two one-sided tests; equality of texts by their "
            "divergence",
            corner="trait",
            columns=verdicts,
            bodies=(("", tuple(_verdict_row(case) for case in cases)),),
        ),
    )


def _lift_row(case: Case) -> Row:
    details = case.details("replication") or {}
    scores = details.get("raw_scores", {})
    ratio = details.get("lift_ratio")
    check = case.findings["manipulation"].estimate
    lift = [check.value, check.low, check.high] if check else None
    cells = [
        Cell(number(scores.get(name)))
        for name in ("unsteered", "v", "perp", "v_plus_perp")
    ]
    cells += [measured(lift), measured(details.get("lift_perp")), ratio_cell(ratio)]
    return Row(
        case.trait, case.note, (*cells, verdict_cell(case.verdict("manipulation")))
    )


def ratio_cell(ratio: Sequence[float | None] | None) -> Cell:
    """A ratio of lifts in percent; `unbounded` where v's own lift may be 0."""
    value, low, high = ratio or (None, None, None)
    if not known(value):
        return UNKNOWN
    return Cell(share(value, 1), ends(low, high, "share"))


def _verdict_row(case: Case) -> Row:
    text = case.findings.get("divergence")
    nats = text.estimate if text else None
    bound = text.details.get("certificate") if text else None
    return Row(
        case.trait,
        case.note,
        (
            _same(case.findings.get("equivalence")),
            _same(case.findings.get(f"equivalence[{ALONE}]")),
            measured([nats.value, nats.low, nats.high], "nats") if nats else UNKNOWN,
            Cell(number(bound)) if known(bound) else UNKNOWN,
            verdict_cell(text.verdict if text else None),
        ),
    )


def _same(finding: Finding | None) -> Cell:
    """The verdict of T3 with the difference of lifts that it rests on."""
    if finding is None:
        return UNKNOWN
    seen = finding.estimate
    small = written([seen.value, seen.low, seen.high]) if seen else ""
    if needed := still_needed(finding):
        small = f"{small}; {needed}"
    return Cell("", small, str(finding.verdict))


def still_needed(finding: Finding) -> str:
    """What would decide an open comparison; empty if it is decided.

    The number of prompts concerns the noise of prompts alone, so it is no promise
    where there are already more.
    """
    if finding.verdict is not Verdict.INCONCLUSIVE:
        return ""
    needed, had = finding.details["prompts_to_decide"], finding.num_prompts
    short = finding.details.get("short_of_directions", False)
    if needed > had and not short:
        return f"about {max(needed, MINIMUM_PROMPTS)} prompts would decide, not {had}"
    if had < MINIMUM_PROMPTS and not short:
        return f"sameness is stated from {MINIMUM_PROMPTS} prompts on, not {had}"
    if not finding.details.get("drawn", True):
        return "they may differ by about the margin; many more prompts would decide"
    return "more directions rather than more prompts would decide"


def _told(case: Case) -> str:
    check = case.findings["manipulation"].estimate
    if check is None:
        return "The texts were not scored, so there are no lifts."
    lift = written([check.value, check.low, check.high])
    parts = [
        f"v lifts the score by {lift} and "
        + ("passes" if case.moves else "does not pass")
        + " its manipulation check."
    ]
    details = case.details("replication")
    if details and known(details["lift_ratio"][0]):
        parts.append(_of_lifts(details["lift_ratio"]))
    parts += [
        sentence(f"v + {PERP}", case.findings.get("equivalence")),
        sentence(f"{PERP} alone", case.findings.get(f"equivalence[{ALONE}]")),
        _texts(case.findings.get("divergence")),
    ]
    return " ".join(part for part in parts if part)


def _of_lifts(ratio: Sequence[float | None]) -> str:
    value, low, high = ratio
    if low is None or high is None:
        return (
            f"The lift ratio of {PERP} has no bounded interval: v's own lift cannot be "
            "told from 0."
        )
    return (
        f"{PERP} alone has {share(value, 1)} {ends(low, high, 'share')} of that lift."
    )


def sentence(subject: str, finding: Finding | None) -> str:
    """A verdict of T3 in words; nothing beyond it."""
    if finding is None or finding.estimate is None:
        return ""
    seen = finding.estimate
    gap = written([seen.value, seen.low, seen.high])
    if finding.verdict is Verdict.EQUIVALENT:
        margin = percent(finding.details["margin"])
        return f"{subject} moves the trait as far as v does, within {margin}."
    if finding.verdict is Verdict.DIFFERENT:
        return f"The lift of {subject} differs from v's by {gap}."
    if finding.verdict is Verdict.INCONCLUSIVE:
        return (
            f"Whether {subject} moves the trait as far could not be told from "
            f"{finding.num_prompts} prompts; {still_needed(finding)}."
        )
    return ""


def _texts(finding: Finding | None) -> str:
    if finding is None or finding.estimate is None:
        return ""
    if finding.verdict is Verdict.EQUIVALENT:
        return (
            "Its texts are the same within the budget: no score of them differs by "
            f"more than {number(finding.details['certificate'])}."
        )
    if finding.verdict is Verdict.DIFFERENT:
        return f"The texts of v + {PERP} are others than v's (T4)."
    return ""
