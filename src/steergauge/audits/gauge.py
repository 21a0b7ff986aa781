"""T12, gauge: does a number belong to v, or to the basis that v is written in?

A model can be written in other numbers that compute the same, and v along with it:
a rotation h -> Q' h of an RMSNorm model's stream with v -> Q' v, or a shift of v to
v + c 1 in a LayerNorm model (see `geometry.twin`). What the output sees of v cannot
depend on such a choice ::

    spectrum of F_bar, rho_F, nats of v, cos_F        the same in both writings
    cos(v, v'), largest coordinate, kurtosis          whatever the writing makes them

The first are measured in both writings and have to agree within rounding; if they do
not, the toolkit has an error or the number is not what it claims to be. The second
show what a claim about single coordinates of v, its sparsity say, is worth.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.errors import InputError
from steergauge.statistics import Estimate

CHANGED = 0.01
"""By what share a number has to change to count as changed."""

KINDS = {
    "rotation": "the same model in a random orthonormal basis, and v in it",
    "shift": "v plus the same number in every coordinate",
    "none": "nothing",
}

Numbers = Float[np.ndarray, "..."]


@dataclass(frozen=True, slots=True)
class Writings:
    """Numbers of one vector in two writings of the same model and vector.

    Attributes:
        kind: `rotation`, `shift`, or `none` if the model has no such freedom that is
            known.
        invariants: by name, what must agree: arrays before and after.
        dependent: by name, what may differ, and shows that v is written otherwise:
            numbers before and after, such as the cosine of v with itself, 1, and with
            its other writing.
        tolerance: largest error of an invariant, as a share of its largest entry.
        reason: why the kind is `none`, in a sentence.
    """

    kind: str
    invariants: Mapping[str, tuple[Numbers, Numbers]] = field(default_factory=dict)
    dependent: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    tolerance: float = 1e-3
    reason: str = ""


def gauge(seen: Writings) -> Finding:
    """Whether the numbers of the audit are the same in both writings.

    Raises:
        InputError: the kind is unknown, or an invariant has two shapes.
    """
    if seen.kind not in KINDS:
        raise InputError(
            f"there is no gauge transformation {seen.kind!r}.",
            remedy=f"Choose from {', '.join(KINDS)}.",
        )
    errors = {name: _error(name, *pair) for name, pair in seen.invariants.items()}
    moved = [name for name, pair in seen.dependent.items() if _changed(*pair)]
    verdict, reasons = _judge(seen, errors, moved)
    worst = max(errors.values(), default=math.nan)
    return Finding(
        audit="gauge",
        code="T12",
        subject="",
        claim="What is measured of v does not depend on the basis it is written in.",
        quantity="largest relative error of a number that must not change",
        # No interval: both writings are measured on the same texts.
        estimate=Estimate(worst, worst, worst) if math.isfinite(worst) else None,
        null=f"at most {seen.tolerance:g}, which rounding makes",
        verdict=verdict,
        reasons=reasons,
        controls=_controls(seen, moved),
        details=_details(seen, errors),
    )


def _error(name: str, before: Numbers, after: Numbers) -> float:
    """Largest difference as a share of the largest entry; infinite if undefined."""
    if np.shape(before) != np.shape(after):
        raise InputError(
            f"{name} has shape {np.shape(before)} before and {np.shape(after)} after "
            "the gauge transformation.",
            cause="Something else was measured than before.",
        )
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return math.inf
    size = max(np.abs(before).max(initial=0.0), np.abs(after).max(initial=0.0))
    difference = np.abs(after - before).max(initial=0.0)
    return float(difference / size) if size > 0 else 0.0


def _changed(before: float, after: float) -> bool:
    return abs(after - before) > CHANGED * max(abs(before), abs(after))


def _judge(
    seen: Writings, errors: Mapping[str, float], moved: list[str]
) -> tuple[Verdict, tuple[str, ...]]:
    if seen.kind == "none":
        reason = seen.reason or "No gauge transformation of this model is known."
        return Verdict.UNINFORMATIVE, (reason,)
    off = [name for name, error in errors.items() if not error <= seen.tolerance]
    what = KINDS[seen.kind]
    if off:
        return Verdict.FAIL, (
            f"The other writing is {what}. It must change nothing that the output can "
            f"see, and changes {_listed(off, errors)}; {seen.tolerance:g} is what "
            "rounding may do. The audits of geometry are not to be trusted on this "
            "model; please report it.",
        )
    if not errors or not moved:
        missing = "no number was compared" if not errors else "v is hardly changed"
        return Verdict.UNINFORMATIVE, (
            f"The other writing is {what}, but {missing}: agreement says nothing.",
        )
    worst = max(errors, key=errors.__getitem__)
    reasons = [
        f"The other writing is {what}. {len(errors)} numbers that must not change "
        f"agree, {worst} the least, to {errors[worst]:.1g} of its size.",
        f"The same transformation changes {_told(seen.dependent, moved)}: such numbers "
        "say something of the basis, and nothing of what v does.",
    ]
    return Verdict.PASS, tuple(reasons)


def _listed(names: list[str], errors: Mapping[str, float]) -> str:
    return ", ".join(f"{name} by {errors[name]:.2g} of its size" for name in names)


def _told(dependent: Mapping[str, tuple[float, float]], moved: list[str]) -> str:
    return ", ".join(
        f"{name} from {dependent[name][0]:.3g} to {dependent[name][1]:.3g}"
        for name in moved
    )


def _controls(seen: Writings, moved: list[str]) -> tuple[Control, ...]:
    if seen.kind == "none":
        return ()
    expected = f"some number of v's coordinates changes by {CHANGED:.0%} or more"
    return (Control("v is written otherwise", expected, None, "", bool(moved)),)


def _details(seen: Writings, errors: Mapping[str, float]) -> dict[str, Any]:
    return {
        "kind": seen.kind,
        "invariants": {
            name: {
                "before": _first(before),
                "after": _first(after),
                "error": _known(errors[name]),
            }
            for name, (before, after) in seen.invariants.items()
        },
        "dependent": {
            name: [_known(before), _known(after)]
            for name, (before, after) in seen.dependent.items()
        },
        "tolerance": seen.tolerance,
        "reason": seen.reason,
    }


def _first(numbers: Numbers) -> float | None:
    """The first entry, which stands for the array in the record."""
    flat = np.ravel(numbers)
    return _known(float(flat[0])) if flat.size else None


def _known(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None
