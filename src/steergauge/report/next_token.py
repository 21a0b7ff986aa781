"""Table 3: R, agreement and overlap of next-token logits, and what they are held to."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from steergauge.audits.finding import Verdict
from steergauge.audits.logits import PUBLISHED, TOLERANCE
from steergauge.report import words
from steergauge.report.cases import Case, having
from steergauge.report.grid import (
    UNKNOWN,
    Cell,
    Column,
    Grid,
    Numbers,
    Row,
    between,
    measured,
    number,
    share,
    tables,
    verdict_cell,
    written,
)
from steergauge.report.parts import Block, said
from steergauge.report.words import PERP, arm_name, arm_note, percent, typeset

ORDER = (
    "v_recomputed", "v_plus_perp", "v_turned", "most_different", "same_cosine",
    "soft_null", "against", "perp", "random",
    "other_trait", "unsteered", "minus_v",
)  # fmt: skip
ROUNDING = 1e-6
"""A distance below it is what two compute paths make of one number."""

_LARGEST = {"agreement": 1.0, "overlap": 1.0, "tv": 1.0, "js": math.log(2)}
"""What a measure cannot exceed, so its interval cannot either."""

_CARRIES = (
    "The numerator of R lacks what its denominator has: v's own effect. So R is below "
    "1 for every v that moves the logits more than 1/d_model times as much as a random "
    "step does, with a null space and without one. R null is what first-order geometry "
    "gives for that gain, and T = 1 says that R is this number. R matched divides by a "
    "random addition of the same length to the same v, so that its null is 1."
)
_REFERENCE = (
    "Agreement and overlap are high wherever the next token is nearly certain. They "
    "carry something only beside the rows whose answer is known: v recomputed must "
    "agree, no steering must not. KL, JS and TV compare the whole distributions."
)


def table_3(cases: list[Case]) -> tuple[Block, ...]:
    """The paper's table, what belongs beside it, and rows for reference."""
    found = list(having(cases, "logits"))
    if not found:
        return ()
    return (
        Block(
            grids=tables(_published(found), _beside_geometry(found)),
            said=said((case, _told(case, details)) for case, details in found),
            carries=_CARRIES,
        ),
        Block(
            grids=tables(_reference(found)),
            said=said((case, _agreed(details)) for case, details in found),
            carries=_REFERENCE,
        ),
    )


Found = Sequence[tuple[Case, Mapping[str, Any]]]


def _published(found: Found) -> Grid:
    same, plain, idle = "as published", "v recomputed", "no steering"
    columns = (
        Column("R", same),
        Column("agreement", same, "likeliest token"),
        Column("overlap", same, "of the top 10"),
        Column("agreement", plain),
        Column("overlap", plain),
        Column("agreement", idle),
        Column("overlap", idle),
    )
    rows = []
    for case, details in found:
        measures = details["measures"]
        pairs = [
            _value(measures, family, measure)
            for family in ("v_plus_perp", "v_recomputed", "unsteered")
            for measure in ("agreement", "overlap")
        ]
        ratio = Cell(number(details["ratio_published"]))
        rows.append(Row(case.trait, case.note, (ratio, *pairs)))
    return Grid(
        caption="Table 3, as published, and the same shares where the answer is known",
        note=f"next-token logits of v against v + {PERP}; R from {PUBLISHED[0]} {PERP} "
        f"and {PUBLISHED[1]} random directions, or as many as were run",
        corner="trait",
        columns=columns,
        bodies=(("", tuple(rows)),),
    )


def _value(measures: Mapping[str, Any], family: str, measure: str) -> Cell:
    if family not in measures:
        return UNKNOWN
    return Cell(share(measures[family][measure][0]))


def _beside_geometry(found: Found) -> Grid:
    columns = (
        Column(typeset("rho"), "", "gain of v over a random step's"),
        Column("R null", "", "by that gain alone"),
        Column("R", "", "root mean square"),
        Column("T", "", "(R / R null)²; 1 by geometry"),
        Column("R matched", "", "null 1"),
        Column("verdict", "", "T5"),
    )
    keys = ["rho", "ratio_null", "ratio_rms", "excess", "ratio_matched"]
    if any("ratio_soft" in details for _, details in found):
        keys.append("ratio_soft")
        soft = Column("R soft", "", "added where F\N{COMBINING MACRON} is nearly 0")
        columns = (*columns[:-1], soft, columns[-1])
    rows = tuple(
        Row(
            case.trait,
            case.note,
            (
                *(
                    measured(details[key], "ratio") if key in details else UNKNOWN
                    for key in keys
                ),
                verdict_cell(case.verdict("logits")),
            ),
        )
        for case, details in found
    )
    return Grid(
        caption="R beside what geometry makes of it",
        note="all directions, with 95\N{NO-BREAK SPACE}% intervals over prompts and "
        "directions; T5",
        corner="trait",
        columns=columns,
        bodies=(("", rows),),
    )


def _reference(found: Found) -> Grid:
    columns = (
        Column("agreement", "", "likeliest token"),
        Column("overlap", "", "of the top 10"),
        Column("KL", "", "nats"),
        Column("JS", "", "nats, at most 0.69"),
        Column("TV", "", "0 to 1"),
    )
    bodies = tuple(
        (
            f"{case.trait}, {case.note}",
            tuple(
                Row(arm_name(name), arm_note(name), _measures(seen))
                for name, seen in _ordered(details["measures"])
            ),
        )
        for case, details in found
    )
    return Grid(
        caption="Next-token distributions of every arm against v's",
        note="means over prompts and directions; v + v⊥ is the paper's comparison, the "
        "others say what its numbers are worth",
        corner="arm",
        columns=columns,
        bodies=bodies,
    )


def _measures(seen: Mapping[str, Numbers]) -> tuple[Cell, ...]:
    forms = {
        "agreement": "whole", "overlap": "whole", "kl": "ratio", "js": "ratio",
        "tv": "ratio",
    }  # fmt: skip
    return tuple(_measure(name, seen[name], form) for name, form in forms.items())


def _measure(name: str, seen: Numbers, form: str) -> Cell:
    """A measure, inside its range; what is rounding alone is not spelled out."""
    bounded = between(seen, 0.0, _LARGEST.get(name, math.inf))
    if form == "ratio" and bounded[-1] < ROUNDING:
        return Cell(f"< {words.plain(ROUNDING)}")
    cell = measured(bounded, form)
    return cell if bounded[1] < bounded[-1] - ROUNDING else Cell(cell.text)


def _ordered(measures: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Numbers]]]:
    """Arms from what must agree with v to what must not; unknown ones last."""
    places = {name: place for place, name in enumerate(ORDER)}
    return sorted(
        measures.items(),
        key=lambda item: places.get(item[0].partition("[")[0], len(ORDER)),
    )


def _told(case: Case, details: Mapping[str, Any]) -> str:
    text = (
        f"R is {number(details['ratio_published'])}. A step along v moves the logits "
        f"{words.plain(details['rho'][0])} times as much (squared) as a random one, "
        f"for which first-order geometry gives R = {number(details['ratio_null'][0])}. "
        f"T is {written(details['excess'], 'ratio')}"
    )
    endings = {
        Verdict.EXPLAINED: f": T is 1 within {percent(TOLERANCE)}.",
        Verdict.NONLINEAR: ": T is not 1, so R differs from what first-order geometry "
        "gives.",
        Verdict.INCONCLUSIVE: "; whether R is what first-order geometry gives could "
        "not be told.",
    }
    verdict = case.verdict("logits")
    return text + (endings.get(verdict, ".") if verdict else ".")


def _agreed(details: Mapping[str, Any]) -> str:
    measures = details["measures"]
    if not {"v_plus_perp", "unsteered"} <= set(measures):
        return ""
    added, idle = measures["v_plus_perp"], measures["unsteered"]
    return (
        f"The likeliest token is v's in {share(added['agreement'][0])} of prompts "
        f"under v + {PERP}, and in {share(idle['agreement'][0])} without any steering; "
        f"the top ten overlap by {share(added['overlap'][0])} and "
        f"{share(idle['overlap'][0])}."
    )
