"""T1, manipulation check: does v move the trait, and more than a random step does?

::

    L(v) = mean_x [ phi_v(x) - phi_0(x) ]

with phi the probe's mean score of the continuations. Without it every comparison of v
with another vector is empty: two vectors that do nothing are perfectly equivalent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from steergauge.audits.comparison import at_looks, reach
from steergauge.audits.finding import FIXED_FAMILIES, Control, Finding, Verdict
from steergauge.sequential import Looks
from steergauge.statistics import (
    Estimate,
    Table,
    estimate,
    rank_p,
    two_way_bootstrap,
)

MINIMUM_LIFT = 0.05
MINIMUM_NULLS = 20
CLAIM = "Adding v moves the trait, in the direction of alpha, beyond any random step."
QUANTITY = "lift of the probe score (0 to 1)"


def manipulation(
    lifts: Mapping[str, Table],
    *,
    num_samples: int,
    minimum_lift: float = MINIMUM_LIFT,
    seed: int = 0,
    details: Mapping[str, Any] | None = None,
    looks: Looks | None = None,
) -> Finding:
    """PASS if v's lift is above 0, above `minimum_lift` and above matched nulls.

    Args:
        lifts: tables (directions, prompts) of score minus unsteered score, positive
            in the direction of alpha: `v`, `minus_v`, and as nulls `random` and
            `sign_flip`, of which there must be at least 20 together.
        num_samples: samples a prompt behind each entry.
        minimum_lift: smallest lift worth auditing.
        seed: of the bootstrap.
        details: dose curve and the like, passed on to the finding.
        looks: of a sequential run, whose intervals hold at all of them.
    """
    draws = two_way_bootstrap(
        lifts, fixed=FIXED_FAMILIES, seed=seed, stretch=reach(looks, lifts["v"])
    )
    lift = estimate(lifts["v"], draws["v"])
    nulls = np.concatenate(
        [lifts[name].mean(1) for name in ("random", "sign_flip") if name in lifts]
    )
    threshold = null_threshold(nulls)
    p_value = rank_p(lift.value, nulls)
    failures = _failures(lift, threshold, len(nulls), minimum_lift)
    enough = len(nulls) >= MINIMUM_NULLS
    verdict = Verdict.FAIL if failures else Verdict.PASS
    reasons = failures or [
        f"The lift is {lift.value:+.3f} [{lift.low:+.3f}, {lift.high:+.3f}], above 0, "
        f"above {minimum_lift:g}, and above all that {len(nulls)} matched random "
        f"steps may reach by chance, {threshold:+.3f} (rank p = {p_value:.3f})."
    ]
    found = Finding(
        audit="manipulation",
        code="T1",
        subject="",
        claim=CLAIM,
        quantity=QUANTITY,
        estimate=lift,
        null=f"a random step would rank anywhere among {len(nulls)} matched random "
        f"steps; p <= 0.05 needs more than {threshold:+.3f}",
        verdict=verdict if enough else Verdict.UNINFORMATIVE,
        reasons=tuple(reasons),
        controls=tuple(_controls(lifts, draws)),
        num_prompts=lifts["v"].shape[1],
        num_samples=num_samples,
        details={
            "rank_p": p_value,
            "null_quantile": threshold,
            "null_lifts": nulls.tolist(),
            **(details or {}),
        },
    )
    return at_looks(found, looks, lifts["v"].mean(0))


def null_threshold(nulls: Float[np.ndarray, " nulls"]) -> float:
    """The smallest value that v must exceed for a rank p-value of at most 0.05.

    The largest of 20 to 38 nulls, the second largest of 39 to 58, and so on. (An
    interpolated 95 % quantile of 20 lies below their largest: a test of level 0.095.)
    """
    if len(nulls) == 0:
        return float("nan")
    return float(np.sort(nulls)[-1 - allowed_above(len(nulls))])


def allowed_above(num_nulls: int) -> int:
    """How many nulls may lie above v at a rank p-value of at most 0.05.

    >>> allowed_above(20), allowed_above(39)
    (0, 1)
    """
    return max(0, int(0.05 * (num_nulls + 1) + 1e-9) - 1)


def without_probe(details: Mapping[str, Any] | None = None) -> Finding:
    """The manipulation check of a run without a probe: it cannot be made."""
    return Finding(
        audit="manipulation",
        code="T1",
        subject="",
        claim=CLAIM,
        quantity=QUANTITY,
        estimate=None,
        null="",
        verdict=Verdict.UNINFORMATIVE,
        reasons=(
            "No probe was given, so nobody can say whether the trait moved. Give one "
            "with --probe words.toml; the audits that need none were run.",
        ),
        details=details or {},
    )


def _failures(
    lift: Estimate, threshold: float, num_nulls: int, minimum_lift: float
) -> list[str]:
    failures = []
    if num_nulls < MINIMUM_NULLS:
        failures.append(
            f"Only {num_nulls} matched random steps were run; at least "
            f"{MINIMUM_NULLS} are needed."
        )
    if lift.high < 0:
        failures.append(
            f"The lift {lift.value:+.3f} [{lift.low:+.3f}, {lift.high:+.3f}] is "
            "negative: v moves the trait the other way. Its pairs or the probe's poles "
            "are swapped."
        )
    elif lift.low <= 0:
        failures.append(
            f"The 95 % interval of the lift, [{lift.low:+.3f}, {lift.high:+.3f}], "
            "reaches 0: v has no effect that this many prompts can see."
        )
    if lift.value < minimum_lift:
        failures.append(
            f"The lift {lift.value:+.3f} is below {minimum_lift:g}, the smallest one "
            "worth auditing."
        )
    if lift.value <= threshold:
        failures.append(
            f"The lift {lift.value:+.3f} is not above {threshold:+.3f}, what matched "
            f"random steps reach by chance ({num_nulls} were run, p <= 0.05): a random "
            "step of this length does as much."
        )
    return failures


def _controls(
    lifts: Mapping[str, Table], draws: Mapping[str, np.ndarray]
) -> Sequence[Control]:
    controls = []
    own = float(lifts["v"].mean())
    expectations = {
        "random": "random steps of v's norm lift less than v",
        "sign_flip": "differences between random halves of the pairs lift less than v",
        "minus_v": "-v moves the trait the other way",
    }
    for name, expected in expectations.items():
        if name not in lifts:
            continue
        seen = estimate(lifts[name], draws[name])
        holds = seen.high < 0 if name == "minus_v" else seen.high < own
        controls.append(Control(name, expected, seen, "", holds))
    return controls
