"""T4, distributional equivalence: how far apart are the texts of v and v', in nats?

::

    K(v || v') = E_x E_{y ~ P_v} sum_k KL( p_v(.|x, y<k) || p_v'(.|x, y<k) )

bounds *every* probe at once. For any score phi in [0, 1] of the first K tokens::

    |E_v phi - E_v' phi| <= min( sqrt(K/2), sqrt(1 - exp(-K)) )

(Pinsker; Bretagnolle and Huber; data processing). The certificate printed uses the
upper bound of K's interval, and concerns these prompts, this alpha, this temperature
and this number of tokens only.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from steergauge.audits.comparison import (
    MINIMUM_DIRECTIONS,
    ONE_DIRECTION,
    at_looks,
    is_drawn,
    reach,
)
from steergauge.audits.finding import FIXED_FAMILIES, Control, Finding, Verdict
from steergauge.sequential import Looks
from steergauge.statistics import (
    Draws,
    Estimate,
    Table,
    estimate,
    two_way_bootstrap,
)

RELATIVE_BUDGET = 0.05
FLOOR_FACTOR = 10
MINIMUM_PROMPTS = 50
QUANTITY = "sequence KL(v || v') in nats"

EXPECTATIONS = {
    "minus_v": "-v writes other texts than v",
    "random": "random steps of v's norm write other texts than v",
    "other_trait": "other traits' vectors at v's norm write other texts than v",
}


def divergence(
    divergences: Mapping[str, Table],
    candidate: str,
    *,
    subject: str,
    floor: float,
    tokens: float,
    num_samples: int,
    score_gap: Estimate | None = None,
    budget: float = RELATIVE_BUDGET,
    seed: int = 0,
    looks: Looks | None = None,
) -> Finding:
    """Whether v' writes what v writes, to within a share of what v itself changes.

    Args:
        divergences: tables (directions, prompts) of sequence KL from v, in nats:
            `unsteered`, the candidate, and any controls.
        candidate: key of the vector, or family of vectors, that is compared with v.
        subject: how a reader knows it; empty for the run's main comparison.
        floor: kappa_0, the same divergence between two compute paths of one arm.
        tokens: mean number of tokens scored a text.
        num_samples: samples a prompt behind each entry.
        score_gap: difference of the probe's scores between the two, if there is a
            probe; it must lie below the certificate.
        budget: largest K(v || v') / K(v || unsteered) that still counts as the same.
        seed: of the bootstrap.
        looks: of a sequential run, whose intervals hold at all of them.
    """
    stretch = reach(looks, divergences["unsteered"])
    draws = two_way_bootstrap(
        divergences, fixed=FIXED_FAMILIES, seed=seed, stretch=stretch
    )
    effect = _not_negative(estimate(divergences["unsteered"], draws["unsteered"]))
    seen = _not_negative(estimate(divergences[candidate], draws[candidate]))
    num_prompts = divergences["unsteered"].shape[1]
    verdict, reasons = _judge(seen, effect, floor, budget, num_prompts)
    if len(divergences[candidate]) < MINIMUM_DIRECTIONS and is_drawn(candidate):
        verdict = Verdict.UNINFORMATIVE
        reasons.insert(0, ONE_DIRECTION)
    found = Finding(
        audit="divergence",
        code="T4",
        subject=subject,
        claim=f"{subject or 'v + v_perp'} writes the texts that v writes (KL at most "
        f"{budget:.0%} of what v changes).",
        quantity=QUANTITY,
        estimate=seen,
        null=f"two compute paths of v differ by {floor:.2g} nats",
        verdict=verdict,
        reasons=tuple(reasons),
        controls=(
            _itself(floor, effect),
            *_known(divergences, draws, candidate, effect, floor, budget),
            *_consistency(score_gap, seen),
        ),
        num_prompts=num_prompts,
        num_samples=num_samples,
        details={
            "directions": divergences[candidate].mean(1).tolist(),
            "effect": [effect.value, effect.low, effect.high],
            "relative": seen.value / effect.value if effect.value > 0 else None,
            "floor": floor,
            "budget": budget,
            "certificate": certificate(seen.high),
            "tokens": tokens,
            "tokens_to_detect": tokens_to_detect(seen.value, tokens),
        },
    )
    return at_looks(found, looks, divergences[candidate].mean(0))


def certificate(nats: float) -> float:
    """Largest difference that any score in [0, 1] can show across `nats` of KL.

    >>> round(certificate(8e-4), 3)
    0.02
    """
    nats = max(nats, 0.0)
    return min(math.sqrt(nats / 2), math.sqrt(1 - math.exp(-nats)))


def tokens_to_detect(nats: float, tokens: float) -> float | None:
    """Tokens after which the best test tells the two apart at 5 % (Stein), or None.

    >>> round(tokens_to_detect(1e-2, 1.0))
    300
    """
    if nats <= 0 or tokens <= 0:
        return None
    return math.log(20) / (nats / tokens)


def _not_negative(seen: Estimate) -> Estimate:
    """A divergence is at least 0, whatever stretched weights make of an end."""
    return replace(seen, low=max(0.0, seen.low))


def _judge(
    seen: Estimate, effect: Estimate, floor: float, budget: float, num_prompts: int
) -> tuple[Verdict, list[str]]:
    if effect.low <= FLOOR_FACTOR * floor:
        return Verdict.UNINFORMATIVE, [
            f"v itself changes the texts by {effect.value:.2g} nats, not more than "
            f"{FLOOR_FACTOR} times the {floor:.2g} by which two compute paths of the "
            "same arm differ: there is nothing to compare."
        ]
    if budget * effect.low <= floor:
        return Verdict.UNINFORMATIVE, [
            f"The budget, {budget:.0%} of v's effect of {effect.value:.2g} nats, lies "
            f"below the {floor:.2g} nats by which two compute paths of the same arm "
            "differ: nothing could be told apart within it."
        ]
    numbers = (
        f"K(v || v') = {seen.value:.3g} [{seen.low:.3g}, {seen.high:.3g}] nats; v "
        f"itself is {effect.value:.3g} [{effect.low:.3g}, {effect.high:.3g}] nats from "
        f"unsteered, so v' is off by {seen.value / effect.value:.1%} of v's effect."
    )
    if seen.high <= budget * effect.low:
        bound = (
            f"No score in [0, 1] of these texts differs by more than "
            f"{certificate(seen.high):.3f} (97.5 % confidence)."
        )
        if num_prompts < MINIMUM_PROMPTS:
            return Verdict.INCONCLUSIVE, [
                numbers,
                f"That is within the budget, but on {num_prompts} prompts; an "
                f"equivalence is stated from {MINIMUM_PROMPTS} on.",
            ]
        return Verdict.EQUIVALENT, [numbers, bound]
    if seen.low > budget * effect.high:
        return Verdict.DIFFERENT, [
            numbers,
            f"That exceeds the budget of {budget:.0%} at both ends of the intervals.",
        ]
    return Verdict.INCONCLUSIVE, [
        numbers,
        f"The intervals do not decide whether that is within the budget of {budget:.0%}"
        ".",
    ]


def _itself(floor: float, effect: Estimate) -> Control:
    """The arm v against itself through other compute paths, as T0 measured it."""
    return Control(
        "v",
        "v against itself through other compute paths stays far below v's effect",
        Estimate(floor, floor, floor),
        "",
        FLOOR_FACTOR * floor < effect.low,
    )


def _known(
    divergences: Mapping[str, Table],
    draws: Mapping[str, Draws],
    candidate: str,
    effect: Estimate,
    floor: float,
    budget: float,
) -> list[Control]:
    """Controls that must come out DIFFERENT if the measurement can tell at all."""
    controls = []
    num_prompts = divergences["unsteered"].shape[1]
    for name, expected in EXPECTATIONS.items():
        if name not in divergences or name == candidate:
            continue
        seen = estimate(divergences[name], draws[name])
        verdict, _ = _judge(seen, effect, floor, budget, num_prompts)
        holds = verdict is Verdict.DIFFERENT
        controls.append(Control(name, expected, seen, str(verdict), holds))
    return controls


def _consistency(score_gap: Estimate | None, seen: Estimate) -> list[Control]:
    """The mathematics leaves no choice here; a violation is a fault of the tool."""
    if score_gap is None:
        return []
    bound = certificate(seen.high)
    least = max(0.0, score_gap.low, -score_gap.high)
    expected = f"the probe's scores differ by no more than the certificate {bound:.3f}"
    return [Control("certificate", expected, score_gap, "", least <= bound)]
