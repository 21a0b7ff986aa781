"""When a sequential run has seen enough: T1, T3 and T4 asked of the prompts so far.

The run stops at the first look at which every audit that was asked for has a verdict
that is decided: more prompts could change it only where an always-valid interval has
missed. Each interval misses in at most 5 of 100 runs, however often is looked
(`sequential`); several findings of one run are not corrected for each other, as in any
run.

T1    PASS: the lift's interval lies above the smallest lift, and v's rank among the
      nulls is settled. FAIL: the interval lies below that lift, or the rank is
      settled the other way. The rank is settled by the intervals of v - null_j,
      prompts paired. A run that stops with v falsely on top has an interval of
      v minus one certain null, the best one, that missed on one side: nominally 2.5 %
      more than the level of the permutation test, 1 in 21, and no more than that in
      the simulation (`stopping_rates`).
T3    EQUIVALENT: both one-sided tests pass. DIFFERENT: the difference excludes 0, and
      the margin is excluded too, or more prompts could make it EQUIVALENT.
T4    EQUIVALENT or DIFFERENT, which exclude each other; UNINFORMATIVE once v's effect
      is known to lie below what the floor allows.

What no prompt can change is decided at once: a missing probe, too few nulls or
directions, a failed T0.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from steergauge.audits.comparison import MINIMUM_DIRECTIONS, is_drawn, reach
from steergauge.audits.divergence import FLOOR_FACTOR, divergence
from steergauge.audits.equivalence import equivalence
from steergauge.audits.finding import FIXED_FAMILIES, Finding, Verdict
from steergauge.audits.manipulation import (
    MINIMUM_LIFT,
    MINIMUM_NULLS,
    allowed_above,
    manipulation,
)
from steergauge.errors import BadSpec
from steergauge.runs import evidence
from steergauge.runs.spec import CORE, Spec
from steergauge.runs.store import Rows
from steergauge.sequential import ALPHA, FIRST_LOOK, ONE_SIDED, Looks, level_at
from steergauge.statistics import Table, two_way_bootstrap

DECIDED = (Verdict.EQUIVALENT, Verdict.DIFFERENT)


@dataclass(frozen=True, slots=True)
class Question:
    """What a run asks of its prompts.

    Attributes:
        audits: those asked for.
        subjects: arm family -> how a reader knows it.
        floor: kappa_0 of T0, in nats.
        margin: of T3.
        budget: of T4.
        num_samples: samples a prompt.
        seed: of the bootstrap.
    """

    audits: Sequence[str]
    subjects: Mapping[str, str]
    floor: float
    margin: float
    budget: float
    num_samples: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a run may stop at a look.

    Attributes:
        stop: whether every verdict is decided.
        num_prompts: behind it.
        level: of the ordinary intervals that are as wide as those it was made with.
        verdicts: what each finding says so far, by key.
        open: keys of the findings that are not decided.
        reasons: why, in full sentences.
    """

    stop: bool
    num_prompts: int
    level: float
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    open: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What is kept of it: a run's trail of looks."""
        return {
            "num_prompts": self.num_prompts,
            "stop": self.stop,
            "verdicts": {key: str(verdict) for key, verdict in self.verdicts.items()},
            "open": list(self.open),
            "reason": " ".join(self.reasons),
        }


def looks_of(spec: Spec, num_prompts: int) -> Looks:
    """The looks of a run: after every cell of prompts from 20 prompts on.

    Args:
        spec: the run's.
        num_prompts: test prompts that there are, the planned end.

    Raises:
        BadSpec: an audit that was asked for cannot be stopped early, or there are too
            few prompts for a look before the end.
    """
    others = [audit for audit in spec.audits if audit not in CORE]
    if not {*spec.audits} - {"plumbing"}:
        raise BadSpec(
            "a sequential run was asked for, and T0 alone.",
            remedy="T0 has no looks: leave --sequential out.",
        )
    if others:
        raise BadSpec(
            f"a sequential run was asked for with {', '.join(others)}.",
            cause="Only T1, T3 and T4 have intervals that hold at every look.",
            remedy="Ask for --audits core, or leave --sequential out.",
        )
    try:
        return Looks(num_prompts, spec.prompts_per_cell)
    except ValueError as error:
        raise BadSpec(
            f"a sequential run of {num_prompts} prompts in cells of "
            f"{spec.prompts_per_cell} has nowhere to stop.",
            cause=f"The first look is at {FIRST_LOOK} prompts, after a whole cell.",
            remedy=f"Ask for at least {_fewest(spec.prompts_per_cell)} prompts, or "
            "leave --sequential out.",
        ) from error


def _fewest(every: int) -> int:
    """Prompts from which on there is a look before the end."""
    return 1 + -(-FIRST_LOOK // every) * every


def decided(
    spec: Spec,
    arms: Collection[str],
    texts: Rows,
    divergences: Rows,
    *,
    alpha: float,
    plumbing: Finding,
    looks: Looks,
) -> Decision:
    """Whether the run may stop, from its rows so far.

    Args:
        spec: the run's.
        arms: names of the test's.
        texts: the test's texts so far, with their scores.
        divergences: rows of the sequence KL of the same prompts; only read if T4 was
            asked for.
        alpha: of v; its sign says which lifts count as positive.
        plumbing: T0.
        looks: of the run.
    """
    num_prompts = len({row["prompt_index"] for row in texts})
    if num_prompts not in looks.numbers:
        return _not_a_look(num_prompts, looks)
    if plumbing.verdict is not Verdict.PASS:
        reason = "T0 failed: no number of prompts makes the run informative."
        return Decision(
            True, num_prompts, _level(num_prompts, looks), reasons=(reason,)
        )
    question = Question(
        audits=spec.audits,
        subjects=evidence.subjects(arms),
        floor=plumbing.details["floor_kl"],
        margin=spec.margin,
        budget=spec.budget,
        num_samples=spec.samples,
        seed=spec.seed,
    )
    scored = all(row["score"] is not None for row in texts)
    if not scored and "divergence" not in spec.audits:
        reason = (
            "Without a probe, T1 and T3 say nothing, however many prompts there are."
        )
        return Decision(
            True, num_prompts, _level(num_prompts, looks), reasons=(reason,)
        )
    lifts = evidence.compared_lifts(texts, alpha) if scored else {}
    nats = evidence.families(evidence.per_prompt(divergences, "nats", "other"))
    return decision(question, lifts, nats, looks)


def decision(
    question: Question,
    lifts: Mapping[str, Table],
    nats: Mapping[str, Table],
    looks: Looks,
) -> Decision:
    """Whether the run may stop, from its tables so far.

    Args:
        question: what is asked.
        lifts: tables (directions, prompts) of lifts, as T1 and T3 take them; empty
            without a probe.
        nats: tables of sequence KL from v, as T4 takes them; empty if it is not asked.
        looks: of the run.
    """
    num_prompts = next(iter({**nats, **lifts}.values())).shape[1]
    seen: list[tuple[Finding, bool]] = []
    if lifts and not {"manipulation", "equivalence"}.isdisjoint(question.audits):
        first, settled = moves(lifts, question, looks)
        seen.append((first, settled))
        if "equivalence" in question.audits:
            seen += [
                same_lift(lifts, family, question, (first.verdict, settled), looks)
                for family in question.subjects
            ]
    if "divergence" in question.audits:
        seen += [
            same_texts(nats, family, question, looks) for family in question.subjects
        ]
    undecided = tuple(finding.key for finding, settled in seen if not settled)
    return Decision(
        stop=not undecided,
        num_prompts=num_prompts,
        level=_level(num_prompts, looks),
        verdicts={finding.key: finding.verdict for finding, _ in seen},
        open=undecided,
        reasons=(_sentence(seen, undecided, num_prompts, looks),),
    )


def moves(
    lifts: Mapping[str, Table], question: Question, looks: Looks
) -> tuple[Finding, bool]:
    """T1 so far, and whether its verdict is decided."""
    found = manipulation(
        lifts, num_samples=question.num_samples, seed=question.seed, looks=looks
    )
    nulls = np.concatenate(
        [lifts[name] for name in ("random", "sign_flip") if name in lifts]
        or [np.empty((0, lifts["v"].shape[1]))]
    )
    if len(nulls) < MINIMUM_NULLS:
        return found, True
    lift = found.estimate
    assert lift is not None, "a lift was measured"
    rank = settled_rank(lifts["v"][0], nulls, looks)
    if found.verdict is Verdict.PASS:
        return found, rank is True and lift.low > MINIMUM_LIFT
    return found, rank is False or lift.high < MINIMUM_LIFT


def settled_rank(
    v: Float[np.ndarray, " prompts"],
    nulls: Float[np.ndarray, "nulls prompts"],
    looks: Looks,
) -> bool | None:
    """Whether v is above so many nulls that p <= 0.05; None if that is not settled.

    If v is truly not, more than the allowed number of nulls are above it, and True is
    only said if the interval of one of the best `allowed + 1` misses: alpha is divided
    by their number, which is 1 with 20 nulls.
    """
    allowed = allowed_above(len(nulls))
    differences = v - nulls
    num_prompts = differences.shape[1]
    half = np.array(
        [
            looks.half_width(sd, num_prompts, alpha=ALPHA / (allowed + 1))
            for sd in differences.std(axis=1, ddof=1)
        ]
    )
    means = differences.mean(1)
    if np.sum(means - half <= 0) <= allowed:
        return True
    if np.sum(means + half < 0) > allowed:
        return False
    return None


def same_lift(
    lifts: Mapping[str, Table],
    family: str,
    question: Question,
    first: tuple[Verdict, bool],
    looks: Looks | None,
) -> tuple[Finding, bool]:
    """T3 of one subject so far, and whether its verdict is decided.

    Args:
        lifts: tables (directions, prompts) of lifts.
        family: of the subject.
        question: what is asked.
        first: verdict of T1 so far, and whether it is decided.
        looks: of the run; None is the naive rule, any verdict of ordinary intervals.
    """
    found = equivalence(
        lifts,
        family,
        subject=question.subjects[family],
        manipulation=first[0],
        num_samples=question.num_samples,
        margin=question.margin,
        seed=question.seed,
        looks=looks,
    )
    if _one_direction(lifts, family) or first[0] is not Verdict.PASS:
        return found, first[1] or _one_direction(lifts, family)
    if found.verdict is Verdict.DIFFERENT and looks is not None:
        return found, outside_margin(lifts, family, question, looks)
    return found, found.verdict in DECIDED


def outside_margin(
    lifts: Mapping[str, Table], family: str, question: Question, looks: Looks
) -> bool:
    """Whether L(v') is known to lie beyond the margin and cannot be the same."""
    draws = two_way_bootstrap(
        lifts,
        fixed=FIXED_FAMILIES,
        seed=question.seed,
        stretch=reach(looks, lifts["v"]),
    )
    below = draws[family] - (1 - question.margin) * draws["v"]
    above = draws[family] - (1 + question.margin) * draws["v"]
    return bool(
        np.quantile(below, 1 - ONE_SIDED) < 0 or np.quantile(above, ONE_SIDED) > 0
    )


def same_texts(
    nats: Mapping[str, Table], family: str, question: Question, looks: Looks | None
) -> tuple[Finding, bool]:
    """T4 of one subject so far, and whether its verdict is decided; looks as for T3."""
    found = divergence(
        nats,
        family,
        subject=question.subjects[family],
        floor=question.floor,
        tokens=1.0,
        num_samples=question.num_samples,
        budget=question.budget,
        seed=question.seed,
        looks=looks,
    )
    if _one_direction(nats, family):
        return found, True
    if found.verdict is Verdict.UNINFORMATIVE:
        highest = found.details["effect"][2]
        least = max(FLOOR_FACTOR, 1 / question.budget) * question.floor
        return found, highest <= least
    return found, found.verdict in DECIDED


def _one_direction(tables: Mapping[str, Table], family: str) -> bool:
    return len(tables[family]) < MINIMUM_DIRECTIONS and is_drawn(family)


def _level(num_prompts: int, looks: Looks) -> float:
    return level_at(num_prompts, looks.planned)


def _not_a_look(num_prompts: int, looks: Looks) -> Decision:
    reason = f"{num_prompts} prompts are no look; the first is at {looks.numbers[0]}."
    return Decision(False, num_prompts, _level(num_prompts, looks), reasons=(reason,))


def _sentence(
    seen: Sequence[tuple[Finding, bool]],
    undecided: Sequence[str],
    num_prompts: int,
    looks: Looks,
) -> str:
    if not seen:
        return "Nothing that was asked for depends on how many prompts there are."
    verdicts = ", ".join(f"{finding.key}: {finding.verdict}" for finding, _ in seen)
    if undecided:
        return f"At {num_prompts} prompts not decided: {', '.join(undecided)}."
    return (
        f"Decided at {num_prompts} of {looks.planned} planned prompts, with "
        f"always-valid intervals: {verdicts}."
    )
