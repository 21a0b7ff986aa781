"""Table 1 of arXiv 2602.06801: |d|, r and perp-only, and what each of them can carry.

Two tables: the paper's own, beside the same numbers of v against itself and of no
steering at all; and forms of d and r that can carry a verdict. `lifted` has the lifts,
on which one can rest. All numbers are those of the findings.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from steergauge.audits.finding import Verdict
from steergauge.report.cases import Case, having
from steergauge.report.grid import (
    UNKNOWN,
    Cell,
    Column,
    Grid,
    Row,
    known,
    measured,
    number,
    share,
    spread,
    tables,
    verdict_cell,
    written,
)
from steergauge.report.parts import Block, said
from steergauge.report.words import PERP, arm_name, percent, typeset

PUBLISHED, ITSELF = "as published", "v against itself"
_D_AND_R = (
    "The sign of a difference is lost in |d|, so its mean over directions is above 0 "
    "also where nothing differs; that floor depends on the number of texts. r between "
    "texts for the same prompts is the share of variance that prompts make, with any "
    "two vectors. Both can show a large difference, and neither can show sameness. A "
    "ratio of raw scores is near 100\N{NO-BREAK SPACE}% wherever steering moves the "
    "score little beside its unsteered size; column “no steering” says how near."
)
_WITH_NOISE = (
    "With a sign and an interval over prompts and directions, d can speak for a "
    "difference, or leave the matter open. Means of prompts that are as noisy as these "
    "correlate by no more than their reliability on average, also where two vectors do "
    "the same, so a small r may be noise alone."
)
_LEAST_BOUND = 0.3
"""Reliability from which on r is corrected; below it the quotient is noise."""


def table_1(cases: list[Case]) -> tuple[Block, ...]:
    """The paper's table and what belongs beside it."""
    found = list(having(cases, "replication"))
    blocks = (
        Block(
            grids=tables(_published(found)),
            folded=tables(_known_answers(found)),
            said=said((case, _told(case, details)) for case, details in found),
            carries=_D_AND_R,
        ),
        Block(
            grids=tables(_with_noise(found)),
            said=said((case, _correlated(details)) for case, details in found),
            carries=_WITH_NOISE,
        ),
    )
    return tuple(block for block in blocks if block.grids)


Found = Sequence[tuple[Case, Mapping[str, Any]]]


def _published(found: Found) -> Grid:
    columns = (
        Column("seeds"),
        Column("|d|", PUBLISHED, "mean ± sd"),
        Column("r", PUBLISHED, "mean ± sd"),
        Column("perp-only", PUBLISHED, f"raw score of {PERP} over v's"),
        Column("|d|", ITSELF, "other random numbers"),
        Column("r", ITSELF, "other random numbers"),
        Column("score ratio", "no steering", "raw, unsteered over v's"),
    )
    rows = []
    for case, details in found:
        rows += [_row(case, row, details) for row in details["published"]]
        if details["code"]:
            note = typeset("the published code's own site and scored text")
            rows.append(_row(case, details["code"], None, note))
    return Grid(
        caption="Table 1, as published, and the same numbers where nothing differs",
        note=f"v against v + {PERP}: all texts as independent samples, mean and "
        "standard deviation over random directions",
        corner="trait",
        columns=columns,
        bodies=(("", tuple(rows)),),
    )


def _row(
    case: Case,
    row: Mapping[str, Any],
    details: Mapping[str, Any] | None,
    note: str = "",
) -> Row:
    """A row of the paper's, with what is known of v itself."""
    itself = details["itself"] if details else None
    return Row(
        case.trait,
        note or case.note,
        (
            Cell(f"n = {row['seeds']}"),
            spread(row["d_mean"], row["d_sd"], row["num"]),
            spread(row["r_mean"], row["r_sd"], row["num"]),
            _percent(row["perp_only_percent"]),
            spread(itself["d_mean"], itself["d_sd"], itself["num"])
            if itself
            else UNKNOWN,
            spread(itself["r_mean"], itself["r_sd"], itself["num"])
            if itself
            else UNKNOWN,
            Cell(share(unsteered_ratio(details), 1)) if details else UNKNOWN,
        ),
        aside=bool(note),
    )


def _percent(value: float | None) -> Cell:
    return UNKNOWN if value is None else Cell(percent(value / 100, 1))


def unsteered_ratio(details: Mapping[str, Any]) -> float | None:
    """The raw score without any steering over v's: the ratio of a vector that is idle.

    None where v's score is 0.
    """
    scores = details["raw_scores"]
    return scores["unsteered"] / scores["v"] if scores["v"] else None


def _known_answers(found: Found) -> Grid:
    """|d| and r of comparisons whose answer is known."""
    bodies = [
        (
            f"{case.trait}, {case.note}",
            tuple(
                Row(
                    arm_name(name),
                    "",
                    (
                        spread(one["d_mean"], one["d_sd"], one["num"]),
                        spread(one["r_mean"], one["r_sd"], one["num"]),
                        Cell(str(one["num"])),
                    ),
                )
                for name, one in details["others"].items()
            ),
        )
        for case, details in found
    ]
    return Grid(
        caption="|d| and r of v against what is known to be other",
        note="the same statistics, as published; these arms share v's random numbers",
        corner="against v",
        columns=(Column("|d|"), Column("r"), Column("vectors")),
        bodies=tuple(bodies),
    )


def _with_noise(found: Found) -> Grid:
    d, r = "effect size", "correlation"
    columns = (
        Column(typeset("Hedges' d"), d, "signed, 95\N{NO-BREAK SPACE}% interval"),
        Column("floor of |d|", d, "by formula, at this ICC"),
        Column("ICC", r, "share of variance between prompts"),
        Column("r expected", r, "from prompts alone"),
        Column("reliability", r, "of a prompt's mean"),
        Column(typeset("r of prompts' means"), r, "beside what to expect"),
        Column("r corrected", r, "for that noise; can exceed 1"),
        Column("|d| above its floor?", "", "T2, excess of mean |d|"),
    )
    rows = tuple(
        Row(case.trait, case.note, _noise_cells(case, details))
        for case, details in found
    )
    return Grid(
        caption="The same data, with what noise and prompts make of them",
        note=f"v against v + {PERP}; T2",
        corner="trait",
        columns=columns,
        bodies=(("", rows),),
    )


def _noise_cells(case: Case, details: Mapping[str, Any]) -> tuple[Cell, ...]:
    excess = case.findings["replication"].estimate
    tested = written([excess.value, excess.low, excess.high]) if excess else ""
    corrected = _corrected(details)
    return (
        measured(details.get("hedges")),
        Cell(number(details["noise_floor"]["shared_prompts"])),
        Cell(number(details["icc"])),
        Cell(number(details["r_expected"])),
        Cell(number(details["reliability"])),
        Cell(
            number(details["r_prompts"]),
            f"{number(details['r_prompts_bound'])} on average",
        ),
        Cell(number(corrected))
        if known(corrected)
        else Cell("none", "reliability too low"),
        verdict_cell(case.verdict("replication"), tested),
    )


def _corrected(details: Mapping[str, Any]) -> float | None:
    """R with the noise taken out, where enough is left to divide by."""
    if details["r_prompts_bound"] < _LEAST_BOUND:
        return None
    return details["r_disattenuated"]


def _told(case: Case, details: Mapping[str, Any]) -> str:
    row, itself = details["published"][-1], details["itself"]
    parts = [
        *_of_d(row, itself),
        _above_floor(case),
        f"r is {number(row['r_mean'])}, and {number(itself['r_mean'])} for v against "
        "itself.",
    ]
    if known(row["perp_only_percent"]):
        parts.append(
            f"{PERP} alone has {percent(row['perp_only_percent'] / 100, 1)} of v's raw "
            f"score; no steering at all has {share(unsteered_ratio(details), 1)}."
        )
    if details["code"]:
        code = details["code"]
        perp = code["perp_only_percent"]
        parts.append(
            "Read a block below and scored with the prompt, as the published code does "
            f"it, |d| is {number(code['d_mean'])}"
            + (f" and perp-only {percent(perp / 100, 1)}." if known(perp) else ".")
        )
    return " ".join(parts)


def _of_d(row: Mapping[str, Any], itself: Mapping[str, Any]) -> list[str]:
    """|d| beside its floor; it has no value where scores do not vary at all."""
    if not (known(row["d_mean"]) and known(itself["d_mean"])):
        return ["|d| has no value, for the scores of an arm are all the same."]
    return [
        f"|d| is {number(row['d_mean'])} over {row['num']} directions, and "
        f"{number(itself['d_mean'])} for v against itself."
    ]


def _above_floor(case: Case) -> str:
    verdict = case.verdict("replication")
    if verdict is Verdict.DIFFERENT:
        return f"So |d| is above its floor: it tells single v + {PERP} from v."
    if not case.moves:
        return (
            "v did not pass its manipulation check, so a small |d| cannot be read as "
            "equivalence."
        )
    if verdict is not Verdict.UNINFORMATIVE or _overruled(case):
        return ""
    if case.findings["replication"].estimate is None:
        return (
            "The spread over directions is not known, so |d| cannot be held against "
            "its floor."
        )
    return (
        "The interval of their difference holds 0: |d| is at its noise floor and says "
        f"neither that v + {PERP} does what v does, nor that it does not."
    )


def _overruled(case: Case) -> bool:
    return case.verdict("plumbing") is Verdict.FAIL


def _correlated(details: Mapping[str, Any]) -> str:
    bound, corrected = details["r_prompts_bound"], _corrected(details)
    row = details["published"][-1]
    text = (
        f"Prompts alone would give r = {number(details['r_expected'])}; seen is "
        f"{number(row['r_mean'])}. Means of prompts as reliable as these are expected "
        f"to correlate by {number(bound)} on average if the two do the same; they do "
        f"by {number(details['r_prompts'])}"
    )
    if not known(details["r_prompts"]):
        return "The means of prompts do not vary, so they have no correlation."
    if not known(corrected):
        return f"{text}, and are too noisy for a correction."
    return f"{text}, or {number(corrected)} with the noise taken out."
