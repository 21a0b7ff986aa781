"""Probes: text -> score in [0, 1], each validated on labelled texts before it judges.

*Lexical* probes count words, as arXiv 2602.06801 does for its traits::

    score = sigmoid(number of high words - number of low words)

in the continuation alone, so that a text without any of them scores 0.5. (The
published code adds a term in sentence length, by which a text without any marker
scores 0.73; it is left out here.) Or any Python callable from texts to scores.

The gate: on labelled texts the score must tell high from low with an AUC of at least
0.8. A probe that cannot do that cannot judge a steering vector either.
"""

import importlib.util
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from steergauge.errors import BadProbe, NoSuchFile, ProbeRefused
from steergauge.statistics import auc

MINIMUM_AUC = 0.8
Score = Callable[[Sequence[str]], Float[np.ndarray, " texts"]]


@dataclass(frozen=True, slots=True)
class Probe:
    """A score of texts that has passed the gate.

    Attributes:
        name: what it measures.
        score: texts -> scores in [0, 1].
        auc: its AUC on the labelled texts.
        num_labelled: how many of those, both labels together.
        words: the words it counts, high then low; empty for a callable.
    """

    name: str
    score: Score
    auc: float
    num_labelled: int
    words: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """Scores of `texts`.

        Raises:
            BadProbe: a score is not a number in [0, 1].
        """
        return _scores(self.name, self.score, texts)


def lexical_score(high: Sequence[str], low: Sequence[str]) -> Score:
    """sigmoid(#high - #low): whole words or phrases, whatever their case.

    >>> lexical_score(["therefore"], ["gonna"])(["Therefore I am.", "I am."]).round(2)
    array([0.73, 0.5 ])
    """
    find_high, find_low = _any_of(high), _any_of(low)

    def score(texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        counts = [len(find_high(text)) - len(find_low(text)) for text in texts]
        return expit(np.array(counts, dtype=float))

    return score


def _any_of(words: Sequence[str]) -> Callable[[str], list[str]]:
    """Finds every occurrence; longer phrases win over words inside them."""
    parts = sorted((re.escape(word) for word in words), key=len, reverse=True)
    # Lookarounds instead of \b, so that "u.s." or "lol!" may end in punctuation.
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)", re.IGNORECASE).findall


def validated(
    name: str,
    score: Score,
    *,
    high: Sequence[str],
    low: Sequence[str],
    words: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> Probe:
    """The probe, if it tells labelled texts apart.

    Args:
        name: what it measures.
        score: texts -> scores.
        high: labelled texts that should score high.
        low: labelled texts that should score low.
        words: the words it counts, for the record.

    Raises:
        BadProbe: there are fewer than 10 texts of a label.
        ProbeRefused: the AUC is below 0.8.
    """
    if min(len(high), len(low)) < 10:
        raise BadProbe(
            f"the probe {name!r} comes with {len(high)} high and {len(low)} low "
            "labelled texts; at least 10 of each are needed.",
            cause="A probe that nobody checked cannot judge a vector.",
            remedy="Add [validation] with `high` and `low` texts to its file, or give "
            "them with --labelled.",
        )
    value = auc(_scores(name, score, high), _scores(name, score, low))
    if value < MINIMUM_AUC:
        raise ProbeRefused(
            f"the probe {name!r} tells its labelled texts apart with an AUC of "
            f"{value:.2f}; at least {MINIMUM_AUC} is needed.",
            cause="Its words are missing from these texts, its poles are swapped, or "
            "the texts are labelled wrongly.",
            remedy="Mend the probe, or run without one: audits that need none "
            "still run.",
        )
    return Probe(
        name, score, value, len(high) + len(low), (tuple(words[0]), tuple(words[1]))
    )


def lexical_probe(name: str, table: Mapping[str, Any]) -> Probe:
    """A lexical probe from `high`, `low` and `validation` = {`high`, `low`}.

    Raises:
        BadProbe: an entry is missing or is no list of texts.
        ProbeRefused: it does not tell the validation texts apart.
    """
    high, low = _texts(name, table, "high"), _texts(name, table, "low")
    labelled = table.get("validation", {})
    if not isinstance(labelled, Mapping):
        raise BadProbe(
            f"`validation` of the probe {name!r} is no table.",
            remedy='Write [validation], and under it high = ["..."], low = ["..."].',
        )
    return validated(
        name,
        lexical_score(high, low),
        high=_texts(name, labelled, "high", may_be_empty=True),
        low=_texts(name, labelled, "low", may_be_empty=True),
        words=(high, low),
    )


def load_probe(
    source: str, labelled: tuple[Sequence[str], Sequence[str]] | None = None
) -> Probe:
    """A probe from `words.toml`, or from `file.py:function`.

    Args:
        source: a TOML file with `high`, `low` and [validation], or a Python file and
            the name of a function in it that maps a list of texts to scores.
        labelled: high and low texts for the gate, for a function or a file without.

    Raises:
        NoSuchFile: there is no such file.
        BadProbe: it is malformed.
        ProbeRefused: its AUC is too low.
    """
    file, _, function = source.rpartition(":")
    path = Path(file if file.endswith(".py") else source)
    if not path.is_file():
        raise NoSuchFile(
            f"there is no probe file {path}.",
            remedy="Give words.toml, or file.py:function.",
        )
    if path.suffix == ".py":
        high, low = labelled or ((), ())
        return validated(function, _callable(path, function), high=high, low=low)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadProbe(
            f"{path} is no readable TOML file: {error}.",
            remedy='Write high = ["..."], low = ["..."] and a [validation] table.',
        ) from error
    if labelled:
        table["validation"] = {"high": list(labelled[0]), "low": list(labelled[1])}
    return lexical_probe(str(table.get("name", path.stem)), table)


def _callable(path: Path, function: str) -> Score:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    with _theirs(path, function):
        specification.loader.exec_module(module)
        scored = getattr(module, function)

    def score(texts: Sequence[str]) -> np.ndarray:
        with _theirs(path, function):
            return np.asarray(scored(list(texts)), dtype=float)

    return score


@contextmanager
def _theirs(path: Path, function: str) -> Iterator[None]:
    """Whatever goes wrong inside is the user's code's."""
    try:
        yield
    except Exception as error:
        raise BadProbe(
            f"{path}:{function} cannot be used: {type(error).__name__}: {error}.",
            remedy="Define a function that maps a list of texts to a list of scores.",
        ) from error


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


def _texts(
    name: str, table: Mapping[str, Any], key: str, *, may_be_empty: bool = False
) -> list[str]:
    texts = table.get(key, [])
    good = isinstance(texts, list) and all(
        isinstance(text, str) and text.strip() for text in texts
    )
    if not good or not (texts or may_be_empty):
        raise BadProbe(
            f"the probe {name!r} has no list of texts under `{key}`, or a blank one.",
            remedy=f'Write {key} = ["...", "..."].',
        )
    return texts
