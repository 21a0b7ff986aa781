"""The texts of the test: of all prompts, or look after look until all is decided.

A look is at whole cells of prompts, so a run that goes on with more of them finds the
cells of the last look finished.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from steergauge.audits.finding import Finding
from steergauge.generation import Arm
from steergauge.intervention import Add
from steergauge.runs.plan import Inputs
from steergauge.runs.stages import Stages
from steergauge.runs.stopping import Decision, decided, looks_of
from steergauge.runs.store import Rows
from steergauge.sequential import Looks


@dataclass(frozen=True, slots=True)
class Tested:
    """What the test gave.

    Attributes:
        texts: of every arm, scored.
        divergences: of v's texts from other arms.
        looks: of a sequential run; None of any other.
        decisions: at each look that was reached, the last included.
    """

    texts: Rows
    divergences: Rows
    looks: Looks | None = None
    decisions: tuple[Decision, ...] = ()


def looks(inputs: Inputs) -> Looks | None:
    """The looks of a sequential run, None of any other.

    Raises:
        BadSpec: an audit that was asked for cannot be stopped early.
    """
    if not inputs.spec.sequential:
        return None
    return looks_of(inputs.spec, len(inputs.test_prompts))


def tested(
    stages: Stages,
    arms: Mapping[str, Arm],
    alpha: float,
    plumbing: Finding,
    more: Mapping[str, Add],
) -> Tested:
    """Texts and divergences of the test, of as many prompts as are needed.

    Args:
        stages: of the run.
        arms: of the test, by name.
        alpha: of v.
        plumbing: T0.
        more: further arms of which the divergence is measured.
    """
    planned, spec = looks(stages.inputs), stages.spec
    prompts = stages.inputs.test_prompts
    decisions: list[Decision] = []
    for num in planned.numbers if planned else (len(prompts),):
        texts = stages.texts("test", arms, prompts[:num], spec.samples)
        divergences = stages.divergences(arms, texts, more)
        if planned is None:
            break
        seen = decided(
            spec,
            arms,
            texts,
            divergences,
            alpha=alpha,
            plumbing=plumbing,
            looks=planned,
        )
        decisions.append(seen)
        stages.progress.begin(_told(seen, planned), 1)
        stages.progress.advance(1)
        if seen.stop:
            break
    return Tested(texts, divergences, planned, tuple(decisions))


def _told(seen: Decision, planned: Looks) -> str:
    """A look, to whoever watches the run."""
    left = ", ".join(seen.open)
    return f"look at {seen.num_prompts} of {planned.planned} prompts: " + (
        f"open {left}" if left else "decided"
    )
