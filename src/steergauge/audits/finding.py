"""A finding: a claim, its number, interval, null, controls, verdict and reasons.

Audits return findings; they never print, plot or store. A finding is plain data that
survives a round trip through JSON, so a report needs neither torch nor a model.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from steergauge.statistics import Estimate


class Verdict(StrEnum):
    """What may be said. PASS and FAIL are for checks, the rest for comparisons.

    UNINFORMATIVE means that a precondition failed; it dominates every other verdict.
    EXPLAINED BY GEOMETRY is T5's; what follows it belongs to the audits of geometry.
    """

    PASS = "PASS"
    FAIL = "FAIL"
    EQUIVALENT = "EQUIVALENT"
    DIFFERENT = "DIFFERENT"
    INCONCLUSIVE = "INCONCLUSIVE"
    UNINFORMATIVE = "UNINFORMATIVE"
    EXPLAINED = "EXPLAINED BY GEOMETRY"
    NONLINEAR = "NONLINEAR"
    LOCAL = "LOCAL THEORY APPLIES"
    MEASURED = "MEASURED"
    EXACT_NULL = "EXACT NULL"
    FIRST_ORDER_NULL = "FIRST-ORDER NULL"
    EFFECTIVE_NULL = "EFFECTIVE NULL"
    VISIBLE = "VISIBLE"
    HIDDEN = "HIDDEN"
    SHARED_NULL = "SHARED NULL"
    SHRINKING = "SHRINKING"
    FULL = "FULL"
    STRUCTURED = "NON-IDENTIFIABLE-STRUCTURED"
    GENERIC = "NON-IDENTIFIABLE-GENERIC"
    IDENTIFIABLE = "IDENTIFIABLE WITHIN"
    ONE_CLASS = "ONE CLASS"
    SEVERAL = "SEVERAL CLASSES"
    REACHABLE = "REACHABLE"
    EPSILON_CLOSE = "EPSILON-CLOSE"
    ORIGIN_NEAREST = "ORIGIN-NEAREST (UNREACHED)"
    UNREACHED = "UNREACHED"
    FOUND = "FOUND"
    NOT_FOUND = "NOT FOUND AT BUDGET"
    ON_MANIFOLD = "ON MANIFOLD"
    OFF_MANIFOLD = "OFF MANIFOLD"


FIXED_FAMILIES = ("other_trait",)
"""Families of arms that are no draws of a random direction: the bootstrap resamples
their prompts only."""


MOST_DIFFERENT, SAME_COSINE = "most_different", "same_cosine"
"""Arms of T10: the vector that was found, and random ones at its cosine, `[0]` on."""


@dataclass(frozen=True, slots=True)
class Control:
    """A condition whose answer is known in advance, and whether it came out so.

    Attributes:
        name: of the condition.
        expected: what must be seen if the measurement works, in words.
        estimate: what was seen.
        verdict: what the audit says of the control, where it judges it.
        holds: whether expectation and observation agree.
    """

    name: str
    expected: str
    estimate: Estimate | None
    verdict: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """One audited claim.

    Attributes:
        audit: plumbing, manipulation, equivalence or divergence.
        code: its number in the specification, such as T3.
        subject: what is compared with v, such as `v + v_perp`; empty if v itself.
        claim: the sentence that is audited.
        quantity: what `estimate` measures, with its unit.
        estimate: the number with its interval; None if it could not be measured.
        null: what the number would be if there were nothing to see, in words.
        verdict: what may be said.
        reasons: why, in full sentences.
        controls: conditions with known answers.
        num_prompts: prompts behind the number.
        num_samples: samples a prompt.
        details: everything else, JSON-compatible.
    """

    audit: str
    code: str
    subject: str
    claim: str
    quantity: str
    estimate: Estimate | None
    null: str
    verdict: Verdict
    reasons: tuple[str, ...]
    controls: tuple[Control, ...] = ()
    num_prompts: int = 0
    num_samples: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Name in a run's findings: the audit, or audit[subject]."""
        return f"{self.audit}[{self.subject}]" if self.subject else self.audit

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Finding":
        """The finding that `to_json` wrote."""
        controls = tuple(
            Control(**control | {"estimate": _estimate(control["estimate"])})
            for control in record["controls"]
        )
        typed: dict[str, Any] = {
            "estimate": _estimate(record["estimate"]),
            "verdict": Verdict(record["verdict"]),
            "reasons": tuple(record["reasons"]),
            "controls": controls,
        }
        return cls(**{**record, **typed})


def _estimate(record: Mapping[str, Any] | None) -> Estimate | None:
    return None if record is None else Estimate(**record)
