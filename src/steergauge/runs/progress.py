"""Who is told how far a run is, and what each of its stages is called."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

_LABELS = {
    "dose": "dose curve: {0}",
    "geometry-": "geometry: {0} of {1}",
    "reach-natural": "reachability: natural {0}",
    "reach-goal-hidden-": "reachability: {0} of hidden prompt {1}",
    "reach-goal-": "reachability: {0} of {1}",
    "access ": "reachability: {0} behind {1}",
}
"""How a stage is shown, by what its name begins with: 0 its unit, 1 the rest of it."""


@runtime_checkable
class Progress(Protocol):
    """Who is told how far the work is."""

    def begin(self, label: str, total: int) -> None:
        """A stage of `total` units begins."""

    def advance(self, num: int) -> None:
        """`num` more units of the stage are done."""


class Silent:
    """Tells nobody."""

    def begin(self, label: str, total: int) -> None:
        """Nothing."""

    def advance(self, num: int) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Named:
    """Tells somebody else, with the name of the run."""

    progress: Progress
    name: str

    def begin(self, label: str, total: int) -> None:
        """A stage of `total` units begins."""
        self.progress.begin(f"{self.name}: {label}", total)

    def advance(self, num: int) -> None:
        """`num` more units of the stage are done."""
        self.progress.advance(num)


def label_of(stage: str, unit: str) -> str:
    """What is done, of what, in which unit.

    >>> label_of("reach-goal-hidden-03", "texts"), label_of("reach-goal-v", "texts")
    ('reachability: texts of hidden prompt 3', 'reachability: texts of v')
    >>> label_of("access soft_prefix", "scores"), label_of("reach-natural", "texts")
    ('reachability: scores behind soft prefix', 'reachability: natural texts')
    >>> label_of("dose", "texts"), label_of("environment {a}", "texts")
    ('dose curve: texts', 'environment {a}: texts')
    """
    start = next((start for start in _LABELS if stage.startswith(start)), stage)
    rest = stage.removeprefix(start).replace("_", " ")
    rest = str(int(rest)) if rest.isdecimal() else rest
    return _LABELS.get(start, "{2}: {0}").format(unit, rest, stage)
