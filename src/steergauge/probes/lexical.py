"""Lexical probes: the score counts words of two poles.

As arXiv 2602.06801 does for its traits::

    score = sigmoid(number of high words - number of low words)

in the continuation alone, so that a text without any of them scores 0.5.

That paper combines its words with "sentence length and stylistic features". In its
first published code a mean sentence length m enters the sigmoid as a third term, which
is left out here unless it is asked for by `length_term`::

    "longer"    + m / 20    as for formality: long sentences score high
    "shorter"   + 20 / m    as for politeness: short sentences score high

with m the number of words by the number of sentences. Either way a text of 20-word
sentences without a single marker scores sigmoid(1) = 0.73, and a vector that does
nothing but change the length of sentences moves the score. "shorter" is the worse of
the two: a one-word text scores sigmoid(20), and no number of low words in it matters.
A text of no words has no m and gets no term.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from steergauge.errors import BadProbe
from steergauge.probes import table as entries
from steergauge.probes.probe import Probe, Score, validated

USUAL_LENGTH = 20
"""Words a sentence at which the term in length is 1."""

_LENGTH_TERMS: dict[str, tuple[str, Callable[[float], float]]] = {
    "longer": ("words a sentence / 20", lambda mean: mean / USUAL_LENGTH),
    "shorter": ("20 / words a sentence", lambda mean: USUAL_LENGTH / mean),
}
_KEYS = ("high", "low", "length_term")


def lexical_score(
    high: Sequence[str], low: Sequence[str], *, length_term: str = ""
) -> Score:
    """sigmoid(#high - #low): whole words or phrases, whatever their case.

    Args:
        high: words and phrases that count up.
        low: words and phrases that count down.
        length_term: "longer" or "shorter" adds a term in the length of sentences.

    Raises:
        BadProbe: there is no such term.

    >>> lexical_score(["therefore"], ["gonna"])(["Therefore I am.", "I am."]).round(2)
    array([0.73, 0.5 ])
    >>> lexical_score(["hence"], ["gonna"], length_term="longer")(["a " * 20]).round(2)
    array([0.73])
    """
    find_high, find_low = _any_of(high), _any_of(low)
    if length_term and length_term not in _LENGTH_TERMS:
        raise BadProbe(
            f"there is no term in length {length_term!r}.",
            remedy=f"Choose from {', '.join(_LENGTH_TERMS)}, or leave it out.",
        )

    def term(text: str) -> float:
        mean = _words_a_sentence(text) if length_term else 0
        return _LENGTH_TERMS[length_term][1](mean) if mean else 0

    def score(texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        counts = [
            len(find_high(text)) - len(find_low(text)) + term(text) for text in texts
        ]
        return expit(np.array(counts, dtype=float))

    return score


def lexical_probe(name: str, table: Mapping[str, Any]) -> Probe:
    """A lexical probe from `high`, `low` and `validation` = {`high`, `low`}.

    Raises:
        BadProbe: an entry is missing, unknown or of the wrong type.
        ProbeRefused: it does not tell the validation texts apart.
    """
    entries.check_keys(name, table, _KEYS)
    high, low = entries.texts(name, table, "high"), entries.texts(name, table, "low")
    length_term = entries.text(name, table, "length_term", default="")
    score = lexical_score(high, low, length_term=length_term)
    formula = "#high - #low"
    if length_term:
        formula += f" + {_LENGTH_TERMS[length_term][0]}"
    good, bad = entries.labelled(name, table)
    return validated(
        name,
        score,
        high=good,
        low=bad,
        words=(high, low),
        kind="lexical",
        record={"formula": f"sigmoid({formula})"},
    )


def _any_of(words: Sequence[str]) -> Callable[[str], list[str]]:
    """Finds every occurrence; longer phrases win over words inside them."""
    parts = sorted((re.escape(word) for word in words), key=len, reverse=True)
    # Lookarounds instead of \b, so that "u.s." or "lol!" may end in punctuation.
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)", re.IGNORECASE).findall


def _words_a_sentence(text: str) -> float:
    """Mean number of words between full stops, marks and ends; 0 without a word."""
    # A stop inside a word, as in 3.5, ends no sentence.
    sentences = [part.split() for part in re.split(r"[.!?]+(?:\s|$)", text)]
    lengths = [len(words) for words in sentences if words]
    return sum(lengths) / len(lengths) if lengths else 0
