"""Where the texts of a strength are no longer coherent, as the dose curve has it.

The dose curve (T1) measures the perplexity of v's texts at each strength, on prompts of
its own. A score at a strength beyond the limit is a score of broken texts, so pages
that compare strengths say where that is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from steergauge.report.cases import Case
from steergauge.report.words import plain
from steergauge.runs.spec import PERPLEXITY_LIMIT


def mark(case: Case, alpha: float) -> str:
    """A warning beside a strength; empty if its texts are coherent or not known."""
    dose = _dose(case, alpha)
    if dose is None or dose["perplexity_high"] <= PERPLEXITY_LIMIT:
        return ""
    if dose["perplexity_ratio"] <= PERPLEXITY_LIMIT:
        highest = plain(dose["perplexity_high"])
        return f"texts perhaps not coherent: perplexity up to {highest} times"
    ratio = plain(dose["perplexity_ratio"])
    return f"texts no longer coherent: perplexity {ratio} times"


def told(case: Case, alphas: Sequence[float]) -> str:
    """A sentence on the strengths whose texts are no longer coherent, if any are."""
    seen = [
        (alpha, dose["perplexity_ratio"])
        for alpha in alphas
        if (dose := _dose(case, alpha)) and dose["perplexity_ratio"] > PERPLEXITY_LIMIT
    ]
    if not seen:
        return ""
    where = " and ".join(f"alpha = {plain(alpha)}" for alpha, _ in seen)
    ratios = " and ".join(plain(ratio) for _, ratio in seen)
    return (
        f"At {where} v's texts are no longer coherent: on the prompts of the dose "
        f"curve their perplexity is {ratios} times that of unsteered texts, and at "
        f"most {plain(PERPLEXITY_LIMIT)} times counts as coherent. Scores there are "
        "scores of such texts."
    )


def _dose(case: Case, alpha: float) -> Mapping[str, Any] | None:
    """What the dose curve has at this strength, sign and all."""
    details = case.details("manipulation") or {}
    for dose in details.get("dose", ()):
        if math.isclose(dose["alpha"], alpha, rel_tol=1e-6):
            return dose
    return None
