"""T6, the spectrum: through how many dimensions does the output see the stream?

With F_bar the mean Fisher matrix of texts (`fisher.py`), lambda_i its eigenvalues,
sigma_i = sqrt(lambda_i) and s = ||alpha v||, one spectrum answers several questions::

    effective ranks     the family of `linalg.py`: one number each, far apart
    D_eq(tau)           #{i: s^2 lambda_i / 2 <= tau}       a step of v's length along
                                                            i costs tau nats at most
    k_id(n, delta)      #{i: n s^2 lambda_i delta^2 >= 1}   n texts tell coordinate i
                                                            to delta ||v|| at best

The last is the bound of Cramer and Rao: a small lambda is slow, and only 0 is never.
Both counts are of second order; the control compares s^2 v^'F_bar v^ / 2 (v^ of
length 1) with the nats that v was seen to cost. What lies below ten times the precision
floor is not counted.

F_bar over N texts has a smaller rank than over all: erank_lambda is biased downwards.
The number is that of these texts. Its interval is for all texts: that of the block
jackknife (Quenouille; Tukey), which corrects the bias, with Student's t over blocks,
stretched to the number itself, since the correction overshoots where few texts decide.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

from steergauge import linalg
from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.statistics import Estimate

EFFECT_SHARE = 0.05
"""First budget of D_eq, as a share of v's own effect: the budget of T4."""

BUDGETS = (1e-3, 1e-2, 0.1)
"""The other budgets of D_eq, in nats a text."""

TOKENS = (100, 1000, 10_000, 100_000, 1_000_000)
"""Observed tokens at which k_id is counted."""

ACCURACY = 0.1
"""delta of k_id: standard error of a coordinate as a share of v's norm."""

TOLERANCE = 0.25
"""Largest relative error up to which the quadratic cost of v counts as its cost."""

QUANTITY = "erank_lambda of F_bar on these texts; the interval is for all texts"

Values = Float[np.ndarray, " d_model"]


@dataclass(frozen=True, slots=True)
class Spectra:
    """Eigenvalues lambda = sigma^2 of F_bar and of its parts, each in falling order.

    Attributes:
        values: of F_bar.
        shares: (u_i . v)^2 / ||v||^2, v's share along each eigenvector of F_bar.
        left_out: of F_bar without one block of texts, a row a block; the blocks are
            of equal size and hold every text once.
        single: of one text alone, by name: J_h, J centred and F_x.
        floor: relative precision of sigma of one Jacobian, as measured.
        strength: s = ||alpha v||.
        effect: mean nats that v itself costs on these texts, as measured.
        num_texts: texts behind F_bar.
        num_tokens: tokens of a text.
        published: records of the published estimator on the same model.
        covariance: record of the null space of the activations' covariance.
    """

    values: Values
    shares: Values
    left_out: Float[np.ndarray, "blocks d_model"]
    single: Mapping[str, Values]
    floor: float
    strength: float
    effect: float
    num_texts: int
    num_tokens: int
    published: Sequence[Mapping[str, Any]] = ()
    covariance: Mapping[str, Any] | None = None

    @property
    def smallest(self) -> float:
        """Smallest sigma / sigma_1 that rounding could not make."""
        return max(self.floor, linalg.resolution(len(self.values)))

    @property
    def blind(self) -> float:
        """Eigenvalue of F_bar below which nothing is told from rounding."""
        return (linalg.FLOORS_APART * self.smallest) ** 2 * float(self.values.max())

    @property
    def predicted(self) -> float:
        """Nats that v costs to second order."""
        return self.strength**2 / 2 * float(self.values @ self.shares)


def spectrum(seen: Spectra) -> Finding:
    """Every effective dimension of one spectrum; none of them is called the dimension.

    MEASURED, or UNINFORMATIVE if no text's output depends on the stream at this site.

    Args:
        seen: eigenvalues and what they are compared with.
    """
    families = {
        name: _family(values, seen.smallest)
        for name, values in {**seen.single, "F_bar": seen.values}.items()
    }
    erank = _jackknife(seen) if families["F_bar"] else None
    counts = {"equivalent": _equivalent(seen), "identifiable": _identifiable(seen)}
    return Finding(
        audit="spectrum",
        code="T6",
        subject="",
        claim="The output sees the stream at v's site through so many dimensions.",
        quantity=QUANTITY,
        estimate=erank,
        null="1 if the output sees one direction only, and the width of the stream if "
        "it sees all equally well",
        verdict=Verdict.MEASURED if families["F_bar"] else Verdict.UNINFORMATIVE,
        reasons=_reasons(seen, families["F_bar"], erank, counts),
        controls=_controls(seen),
        num_prompts=seen.num_texts,
        num_samples=1,
        details={
            "families": families,
            "erank": [erank.value, erank.low, erank.high] if erank else None,
            **counts,
            **_plain(seen),
        },
    )


def _plain(seen: Spectra) -> dict[str, Any]:
    """What was given, as plain data."""
    return {
        "values": seen.values.tolist(),
        "shares": seen.shares.tolist(),
        "floor": seen.smallest,
        "strength": seen.strength,
        "effect": seen.effect,
        "predicted": seen.predicted,
        "num_texts": seen.num_texts,
        "num_tokens": seen.num_tokens,
        "published": [dict(record) for record in seen.published],
        "covariance": dict(seen.covariance) if seen.covariance else None,
    }


def _family(values: Values, floor: float) -> dict[str, Any] | None:
    """Effective ranks as plain data; None for a matrix that is 0 and has none."""
    if not values.max(initial=0.0) > 0:
        return None
    found = linalg.effective_ranks(torch.from_numpy(values), floor=floor)
    ranks = {f"{epsilon:g}": rank for epsilon, rank in found.ranks.items()}
    return dataclasses.asdict(found) | {"ranks": ranks}


def _jackknife(seen: Spectra) -> Estimate | None:
    """The erank_lambda of these texts, with an interval for that of all texts.

    The corrected one of B blocks is B e - (B - 1) mean e_b, with e_b that of F_bar
    without block b. None without two blocks that see anything.
    """
    num = len(seen.left_out)
    if num < 2 or not (seen.left_out.max(axis=1) > 0).all():
        return None
    without = np.array([_erank(values) for values in seen.left_out])
    value = num * _erank(seen.values) - (num - 1) * without.mean()
    error = np.sqrt((num - 1) * without.var())
    half = stats.t.ppf(0.975, num - 1) * error
    plain, most = _erank(seen.values), float(len(seen.values))
    low, high = np.clip([value - half, value + half], 1.0, most)
    return Estimate(plain, min(float(low), plain), max(float(high), plain))


def _erank(values: Values) -> float:
    return linalg.effective_ranks(torch.from_numpy(values), floor=0).erank_lambda


def _equivalent(seen: Spectra) -> dict[str, Any]:
    """D_eq at each budget; None where rounding alone could cost as much."""
    values = torch.from_numpy(seen.values)
    budgets = (EFFECT_SHARE * seen.effect, *BUDGETS)
    dimensions = [
        linalg.equivalent_dimensions(values, nats=nats, strength=seen.strength)
        if seen.strength**2 / 2 * seen.blind <= nats
        else None
        for nats in budgets
    ]
    return {"nats": list(budgets), "dimensions": dimensions}


def _identifiable(seen: Spectra) -> dict[str, Any]:
    """k_id at each number of tokens; None where it would count rounding."""
    values, dimensions = torch.from_numpy(seen.values), []
    for tokens in TOKENS:
        texts = tokens // seen.num_tokens
        told = linalg.identifiable_dimensions(
            values, samples=texts, accuracy=ACCURACY, strength=seen.strength
        )
        measured = texts * (seen.strength * ACCURACY) ** 2 * seen.blind <= 1
        dimensions.append(told if measured else None)
    return {"tokens": list(TOKENS), "dimensions": dimensions, "accuracy": ACCURACY}


def _controls(seen: Spectra) -> tuple[Control, ...]:
    expected = (
        f"to second order v costs what it was seen to cost, to within {TOLERANCE:.0%}"
    )
    holds = bool(abs(seen.predicted - seen.effect) <= TOLERANCE * seen.effect)
    both = Estimate(seen.predicted, seen.predicted, seen.predicted)
    return (Control("v", expected, both, "", holds),)


def _reasons(
    seen: Spectra,
    family: dict[str, Any] | None,
    erank: Estimate | None,
    counts: Mapping[str, dict[str, Any]],
) -> tuple[str, ...]:
    if family is None:
        return (
            f"F_bar is 0 over {seen.num_texts} texts: nothing that is added at this "
            "site reaches the output, so there is no spectrum to describe.",
        )
    return (
        f"Of {family['width']} dimensions the output sees {family['stable']:.1f} "
        f"(stable rank), {family['participation_ratio']:.1f} (participation ratio), "
        f"{family['erank_lambda']:.1f} or {family['erank_sigma']:.1f} (entropy of "
        "lambda, of sigma): one spectrum, and none of them is the dimension.",
        _ranks(family),
        _growth(seen, family, erank),
        _budget(seen, counts["equivalent"]),
        _samples(counts["identifiable"]),
        f"To second order v costs {seen.predicted:.3g} nats a text, and was seen to "
        f"cost {seen.effect:.3g}; budgets hold as far as these two agree.",
    )


def _ranks(family: dict[str, Any]) -> str:
    counted = {e: rank for e, rank in family["ranks"].items() if rank is not None}
    masked = [e for e in family["ranks"] if e not in counted]
    numbers = ", ".join(f"{rank} above {e}" for e, rank in counted.items())
    parts = [f"Of the sigma / sigma_1, {numbers} are counted."] if counted else []
    if masked:
        parts.append(
            f"Nothing is counted at {', '.join(masked)}, which is less than "
            f"{linalg.FLOORS_APART} times the {family['floor']:.2g} of rounding."
        )
    return " ".join(parts)


def _growth(seen: Spectra, family: dict[str, Any], erank: Estimate | None) -> str:
    own = f"erank_lambda of F_bar over {seen.num_texts} texts is "
    own += f"{family['erank_lambda']:.1f}"
    if erank is None:
        return f"{own}; too few blocks of texts see anything to give it an interval."
    return (
        f"{own}; more texts add directions, and over all of them it lies between "
        f"{erank.low:.1f} and {erank.high:.1f}, as far as leaving out blocks tells."
    )


def _budget(seen: Spectra, equivalent: dict[str, Any]) -> str:
    nats, dimensions = equivalent["nats"][0], equivalent["dimensions"][0]
    budget = f"{EFFECT_SHARE:.0%} of v's effect, {nats:.2g} nats"
    if dimensions is None:
        return f"A cost of {budget}, is less than what rounding alone could make."
    return (
        f"A step of v's length costs at most {budget}, along {dimensions} of "
        f"{len(seen.values)} eigen-directions."
    )


def _samples(identifiable: dict[str, Any]) -> str:
    counted = [
        f"{tokens:,} tokens tell {num}"
        for tokens, num in zip(
            identifiable["tokens"], identifiable["dimensions"], strict=True
        )
        if num is not None
    ]
    if not counted:
        return "How many coordinates of v texts could tell is hidden by rounding."
    return (
        f"Of v's coordinates, at best and to {ACCURACY:.0%} of its norm, "
        f"{', '.join(counted)}."
    )
