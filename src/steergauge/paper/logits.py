"""What Table 3 says of logits, and what it does not, with the formulas.

The ratio R, token agreement and top-10 overlap of arXiv 2602.06801v3 (Appendix A), or
of another study in the same columns.
"""

import math

from steergauge.paper.printed import LogitTable, Printed
from steergauge.paper.published import expected_ratio
from steergauge.paper.section import Section, Statement, listed, span


def logits(printed: Printed) -> Section:
    """Table 3: R as the gain of v, and what agreement is to be compared with."""
    table = printed.logits
    return Section(
        "Table 3: logits",
        "rho: the gain of v over that of random directions, if logits are linear; "
        "reach: sqrt(rho). top-1, top-10: agreement and overlap in percent.",
        ("model", "trait", "R", "rho", "reach", "top-1", "top-10"),
        tuple(
            (row.model, row.trait, f"{row.ratio_R:.2f}", f"{row.gain:.2f}",
             "-" if math.isnan(row.reach) else f"{row.reach:.2f}",
             f"{row.token_agreement_percent:.0f}", f"{row.top10_overlap_percent:.0f}")
            for row in table.rows
        ),
        (),
        (_identity(), _gains(table)),
        (_lengths(), _agreement(table)),
    )  # fmt: skip


def _identity() -> Statement:
    return Statement(
        "Where logits are linear in the stream, R is a function of one number, the "
        "gain rho of v (its squared effect on the logits over that of random "
        "directions), and lies below 1 for every v whose rho is above 1/d; for a "
        f"random v it is {expected_ratio(1.0):.2f}. So R < 1 holds with a null space "
        "and without one, and is no evidence of either.",
        "R^2 = (1 - rho/d) / ((1 - 1/d) (1 + rho)), about 1 / (1 + rho)",
    )


def _gains(table: LogitTable) -> Statement:
    said = []
    for model in dict.fromkeys(row.model for row in table.rows):
        reach = [row.reach for row in table.rows if row.model == model]
        said.append(f"{span(reach, '.2f')} times as far on {model}")
    weaker = sum(row.gain < 1 for row in table.rows)
    return Statement(
        f"Read so, v moves the logits {listed(said)} as a random vector of its norm "
        f"does. In {weaker} of {len(table.rows)} rows rho is below 1: v moves them "
        "less than a random vector would.",
        "rho = 1/R^2 - 1; v moves the logits sqrt(rho) times as far",
        "the steps are short enough for linearity, and R is an average over enough "
        "random directions; how many is not printed",
    )


def _lengths() -> Statement:
    return Statement(
        "The two steps that R compares are not equally long: from v to v + v_perp it "
        "is |v|, from v to v_rand it is sqrt(2) |v|. This alone makes R "
        f"{expected_ratio(1.0):.2f} where every direction counts the same. For steps "
        "of equal length, both added to v, the value without any structure is 1.",
        "|v - v_rand|^2 = |v|^2 + |v_rand|^2 on average",
    )


def _agreement(table: LogitTable) -> Statement:
    top1 = span([row.token_agreement_percent for row in table.rows], ".0f")
    top10 = span([row.top10_overlap_percent for row in table.rows], ".0f")
    return Statement(
        f"An agreement of {top1} % and an overlap of {top10} % between v and v + "
        "v_perp have no scale by themselves. They need the same numbers for v against "
        "the unsteered model (if v rarely changes the next token, it agrees with most "
        "things), for v against a random vector, and for v against itself on another "
        "compute path.",
        "A(v, v + v_perp) beside A(v, 0), A(v, v_rand) and A(v, v)",
    )
