"""A probe: text -> score in [0, 1], validated on labelled texts before it judges.

The gate: on labelled texts the score must tell high from low with an AUC of at least
0.8, the probability that a text of the high label scores above one of the low label,
ties counting half. A probe that cannot do that cannot judge a steering vector either.
It holds for every kind of probe, however it makes its score; it is the answer to the
sign-blind and saturated scores in the code of arXiv 2602.06801.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from steergauge.errors import BadProbe, ProbeRefused
from steergauge.statistics import auc

MINIMUM_AUC = 0.8
FEWEST_LABELLED = 10
"""Of each label."""

Score = Callable[[Sequence[str]], Float[np.ndarray, " texts"]]


@dataclass(frozen=True, slots=True)
class Probe:
    """A score of texts that has passed the gate.

    Attributes:
        name: what it measures.
        score: texts -> scores in [0, 1].
        auc: its AUC on the labelled texts.
        num_labelled: how many of those, both labels together.
        words: the words it counts, high then low; empty unless it is lexical.
        kind: lexical, function, classifier, zero-shot or judge.
        record: what a reader must know to repeat it, such as a model's id and label.
    """

    name: str
    score: Score
    auc: float
    num_labelled: int
    words: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    kind: str = "function"
    record: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """Scores of `texts`.

        Raises:
            BadProbe: a score is not a number in [0, 1].
        """
        return _scores(self.name, self.score, texts)


def validated(
    name: str,
    score: Score,
    *,
    high: Sequence[str],
    low: Sequence[str],
    words: tuple[Sequence[str], Sequence[str]] = ((), ()),
    kind: str = "function",
    record: Mapping[str, str] | None = None,
) -> Probe:
    """The probe, if it tells labelled texts apart.

    Args:
        name: what it measures.
        score: texts -> scores.
        high: labelled texts that should score high.
        low: labelled texts that should score low.
        words: the words it counts, for the record.
        kind: how it makes its scores, for the record.
        record: what a reader must know to repeat it.

    Raises:
        BadProbe: there are fewer than 10 texts of a label, or a score is not a number
            in [0, 1].
        ProbeRefused: the AUC is below 0.8.
    """
    check_labelled(name, high=high, low=low)
    value = auc(_scores(name, score, high), _scores(name, score, low))
    if value < MINIMUM_AUC:
        raise ProbeRefused(
            f"the probe {name!r} tells its labelled texts apart with an AUC of "
            f"{value:.2f}; at least {MINIMUM_AUC} is needed.",
            cause="These texts lack what it looks for, its poles are swapped, or the "
            "texts are labelled wrongly.",
            remedy="Mend it, or run without a probe: audits that need none still run.",
        )
    counted = (tuple(words[0]), tuple(words[1]))
    num_labelled = len(high) + len(low)
    return Probe(name, score, value, num_labelled, counted, kind, dict(record or {}))


def check_labelled(name: str, *, high: Sequence[str], low: Sequence[str]) -> None:
    """Passes if there are labelled texts enough for the gate; costs nothing.

    Raises:
        BadProbe: there are fewer than 10 of a label.
    """
    if min(len(high), len(low)) < FEWEST_LABELLED:
        raise BadProbe(
            f"the probe {name!r} comes with {len(high)} high and {len(low)} low "
            f"labelled texts; at least {FEWEST_LABELLED} of each are needed.",
            cause="A probe that nobody checked cannot judge a vector.",
            remedy="Add [validation] with `high` and `low` texts to its file, or give "
            "them with --labelled.",
        )


def _scores(name: str, score: Score, texts: Sequence[str]) -> np.ndarray:
    values = np.asarray(score(texts), dtype=float)
    good = values.shape == (len(texts),) and bool(np.all((values >= 0) & (values <= 1)))
    if not good:
        raise BadProbe(
            f"the probe {name!r} gave {values.shape} values from {values.min():g} to "
            f"{values.max():g} for {len(texts)} texts."
            if values.size
            else f"the probe {name!r} gave no values for {len(texts)} texts.",
            cause="A score must be one number in [0, 1] a text.",
            remedy="Rescale it.",
        )
    return values
