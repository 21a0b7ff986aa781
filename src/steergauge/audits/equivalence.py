"""T3, behavioural equivalence: is the lift of v' that of v, within a stated margin?

Two one-sided tests on the lift (TOST), never the absence of a significant difference:
a small standardised difference from few samples is noise, not equivalence. EQUIVALENT
needs both the 5 % quantile of L(v') - (1 - m) L(v) above 0 and the 95 % quantile of
L(v') - (1 + m) L(v) below 0, with the margin m set beforehand. A score is one
shadow of a distribution: equal lifts do not make equal texts (see divergence).
"""

from collections.abc import Mapping

from steergauge.audits.comparison import (
    MINIMUM_DIRECTIONS,
    MINIMUM_PROMPTS,
    ONE_DIRECTION,
    Comparison,
    at_looks,
    compared,
    is_drawn,
    reach,
)
from steergauge.audits.finding import FIXED_FAMILIES, Control, Finding, Verdict
from steergauge.sequential import Looks
from steergauge.statistics import Draws, Table, two_way_bootstrap

MARGIN = 0.2
QUANTITY = "difference of lifts L(v') - L(v) (probe score, 0 to 1)"

EXPECTATIONS = {
    "unsteered": ("no steering at all differs from v", {Verdict.DIFFERENT}),
    "v_again": (
        "v with fresh random numbers does not differ from v",
        {Verdict.EQUIVALENT, Verdict.INCONCLUSIVE},
    ),
    "minus_v": ("-v differs from v", {Verdict.DIFFERENT}),
    "random": ("random steps of v's norm differ from v", {Verdict.DIFFERENT}),
    "other_trait": (
        "other traits' vectors at v's norm differ from v",
        {Verdict.DIFFERENT},
    ),
}
"""Controls with known answers: what must come out if the comparison can tell."""


def equivalence(
    lifts: Mapping[str, Table],
    candidate: str,
    *,
    subject: str,
    manipulation: Verdict,
    num_samples: int,
    margin: float = MARGIN,
    seed: int = 0,
    looks: Looks | None = None,
) -> Finding:
    """Whether the lift of `candidate` equals that of `v` within `margin`.

    Args:
        lifts: tables (directions, prompts) of score minus unsteered score, positive
            in the direction of alpha: `v`, the candidate and any controls.
        candidate: key of the vector, or family of vectors, that is compared with v.
        subject: how a reader knows it; empty for the run's main comparison.
        manipulation: verdict of T1 on v; anything but PASS makes this UNINFORMATIVE.
        num_samples: samples a prompt behind each entry.
        margin: largest relative difference that still counts as the same.
        seed: of the bootstrap.
        looks: of a sequential run, whose intervals hold at all of them.
    """
    draws = two_way_bootstrap(
        lifts, fixed=FIXED_FAMILIES, seed=seed, stretch=reach(looks, lifts["v"])
    )
    seen = compared(lifts, draws, candidate, margin=margin, looks=looks)
    num_prompts = lifts["v"].shape[1]
    verdict, reasons = _judge(seen, manipulation, _power(seen, candidate))
    if len(lifts[candidate]) < MINIMUM_DIRECTIONS and is_drawn(candidate):
        verdict = Verdict.UNINFORMATIVE
        reasons.insert(0, ONE_DIRECTION)
    found = Finding(
        audit="equivalence",
        code="T3",
        subject=subject,
        claim=f"{subject or 'v + v_perp'} does what v does to the trait "
        f"(within {margin:.0%} of its lift).",
        quantity=QUANTITY,
        estimate=seen.difference,
        null=f"within {margin:.0%} of L(v) = {seen.reference:+.3f}",
        verdict=verdict,
        reasons=tuple(reasons),
        controls=tuple(_controls(lifts, draws, candidate, margin)),
        num_prompts=num_prompts,
        num_samples=num_samples,
        details={
            "reference_lift": seen.reference,
            "candidate_lift": seen.candidate,
            "margin": margin,
            "tost_above": seen.test.above,
            "tost_below": seen.test.below,
            "prompts_to_decide": seen.prompts_to_decide,
            "short_of_directions": seen.short_of_directions,
            "drawn": is_drawn(candidate),
        },
    )
    return at_looks(found, looks, (lifts[candidate] - lifts["v"]).mean(0))


def without_probe(subject: str) -> Finding:
    """The comparison of a run without a probe: it cannot be made."""
    return Finding(
        audit="equivalence",
        code="T3",
        subject=subject,
        claim=f"{subject or 'v + v_perp'} does what v does to the trait.",
        quantity=QUANTITY,
        estimate=None,
        null="",
        verdict=Verdict.UNINFORMATIVE,
        reasons=("No probe was given, so the trait cannot be scored.",),
    )


def _power(seen: Comparison, candidate: str) -> str:
    """What would decide, if neither equality nor a difference is shown."""
    needed = max(seen.prompts_to_decide, MINIMUM_PROMPTS)
    enough = needed <= seen.num_prompts
    if is_drawn(candidate) and (enough or seen.short_of_directions):
        return (
            f"{seen.num_prompts} prompts are enough; more random directions are needed."
            if enough
            else "More random directions are needed: their spread alone exceeds the "
            "margin."
        )
    if not enough:
        return (
            f"About {needed} prompts would decide if the two were truly the same (80 % "
            "power)."
        )
    return (
        f"{seen.num_prompts} prompts would mostly have decided if the two were truly "
        "the same: they may differ by about the margin, and many more would tell."
    )


def _judge(
    seen: Comparison, manipulation: Verdict, power: str
) -> tuple[Verdict, list[str]]:
    difference, num_prompts = seen.difference, seen.num_prompts
    numbers = (
        f"L(v') = {seen.candidate:+.3f} against L(v) = {seen.reference:+.3f}; the "
        f"difference is {difference.value:+.3f} [{difference.low:+.3f}, "
        f"{difference.high:+.3f}]."
    )
    if manipulation is not Verdict.PASS:
        return Verdict.UNINFORMATIVE, [
            f"v did not pass its manipulation check ({manipulation}), so it has no "
            "lift that another vector could equal.",
            numbers,
        ]
    if num_prompts < MINIMUM_PROMPTS and seen.verdict is Verdict.EQUIVALENT:
        return Verdict.INCONCLUSIVE, [
            numbers,
            f"Both one-sided tests pass, but on {num_prompts} prompts; an equivalence "
            f"is stated from {MINIMUM_PROMPTS} on.",
        ]
    if seen.verdict is Verdict.EQUIVALENT:
        reasons = [numbers, f"Both one-sided 5 % tests of {seen.test.margin:.0%} pass."]
        if difference.excludes_zero:
            reasons.append(
                "The difference is nevertheless measurably not 0: equal within the "
                "margin, not identical."
            )
        return Verdict.EQUIVALENT, reasons
    if seen.verdict is Verdict.DIFFERENT:
        return Verdict.DIFFERENT, [numbers, "Its 95 % interval excludes 0."]
    return Verdict.INCONCLUSIVE, [
        numbers,
        "Neither equality within the margin nor a difference is shown.",
        power,
    ]


def _controls(
    lifts: Mapping[str, Table],
    draws: Mapping[str, Draws],
    candidate: str,
    margin: float,
) -> list[Control]:
    controls = []
    for name, (expected, allowed) in EXPECTATIONS.items():
        if name not in lifts or name == candidate:
            continue
        seen = compared(lifts, draws, name, margin=margin)
        verdict = seen.verdict
        controls.append(
            Control(name, expected, seen.difference, str(verdict), verdict in allowed)
        )
    return controls
