"""How a probe makes its scores: its kind, and what a reader needs to repeat it."""

from collections.abc import Mapping
from typing import Any

LONGEST = 160


def kind(probe: Mapping[str, Any]) -> str:
    """lexical, classifier, zero-shot, judge or function.

    >>> kind({"kind": "judge"}), kind({"high_words": ["hence"]}), kind({})
    ('judge', 'lexical', 'function')
    """
    counts = probe.get("high_words") or probe.get("low_words")
    return probe.get("kind") or ("lexical" if counts else "function")


def record(probe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values, such as a model's id and label; empty ones are left out.

    >>> record({"record": {"base_url": "http://host", "revision": ""}})
    [('base url', 'http://host')]
    """
    kept = probe.get("record") or {}
    return [(name.replace("_", " "), str(kept[name])) for name in kept if kept[name]]


def brief(probe: Mapping[str, Any]) -> str:
    """The record on one line, long values cut; a run's own report has all of them."""
    return "; ".join(f"{name}: {_cut(value)}" for name, value in record(probe))


def _cut(value: str) -> str:
    line = " ".join(value.split())
    return line if len(line) <= LONGEST else line[:LONGEST] + "…"
