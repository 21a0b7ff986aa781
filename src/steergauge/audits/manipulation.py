"""T1, manipulation check: does v move the trait, and more than a random step does?

::

    L(v) = mean_x [ phi_v(x) - phi_0(x) ]

with phi the probe's mean score of the continuations. Without it every comparison of v
with another vector is empty: two vectors that do nothing are perfectly equivalent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steergauge.audits.finding import Control, Finding, Verdict
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
    """
    draws = two_way_bootstrap(lifts, seed=seed)
    lift = estimate(lifts["v"], draws["v"])
    nulls = np.concatenate(
        [lifts[name].mean(1) for name in ("random", "sign_flip") if name in lifts]
    )
    threshold = float(np.quantile(nulls, 0.95))
    p_value = rank_p(lift.value, nulls)
    failures = _failures(lift, threshold, len(nulls), minimum_lift)
    reasons = failures or [
        f"The lift is {lift.value:+.3f} [{lift.low:+.3f}, {lift.high:+.3f}], above 0, "
        f"above {minimum_lift:g}, and above the 95 % quantile {threshold:+.3f} of "
        f"{len(nulls)} matched random steps (rank p = {p_value:.3f})."
    ]
    return Finding(
        audit="manipulation",
        code="T1",
        subject="",
        claim=CLAIM,
        quantity=QUANTITY,
        estimate=lift,
        null=f"95 % of {len(nulls)} matched random steps lift less than "
        f"{threshold:+.3f}",
        verdict=Verdict.FAIL if failures else Verdict.PASS,
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
    if lift.low <= 0:
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
            f"The lift {lift.value:+.3f} is not above {threshold:+.3f}, the 95 % "
            f"quantile of {num_nulls} matched random steps: any step of this length "
            "does as much."
        )
    return failures


def _controls(
    lifts: Mapping[str, Table], draws: Mapping[str, np.ndarray]
) -> Sequence[Control]:
    controls = []
    own = float(lifts["v"].mean())
    expectations = {
        "random": "random steps of v's norm lift less than v",
        "sign_flip": "randomly signed pair differences lift less than v",
        "minus_v": "-v moves the trait the other way",
    }
    for name, expected in expectations.items():
        if name not in lifts:
            continue
        seen = estimate(lifts[name], draws[name])
        holds = seen.high < 0 if name == "minus_v" else seen.high < own
        controls.append(Control(name, expected, seen, "", holds))
    return controls
