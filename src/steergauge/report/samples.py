"""Sample texts of the arms side by side, the probe's words marked in them.

The first prompts and the first samples, never chosen ones. A text is split at the
words' places first and each piece escaped then, so no generated character can become
markup.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from steergauge.report.words import arm_name, arm_note, family

NUM_PROMPTS = 6
NUM_SAMPLES = 10
LONGEST = 800
SHOWN = ("unsteered", "v", "minus_v", "v_plus_perp", "perp", "against", "random")

# What a browser would drop or refuse is shown as its sign: NUL as U+2400, and so on.
_CONTROL_SIGNS = {
    code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"
} | {0x7F: "\u2421"}


@dataclass(frozen=True, slots=True)
class SampleText:
    """One response, ready to be shown."""

    html: Markup
    score: float | None
    finished: bool
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Column:
    """The responses of one arm to one prompt."""

    arm: str
    name: str
    note: str
    texts: tuple[SampleText, ...]


@dataclass(frozen=True, slots=True)
class PromptSamples:
    """One prompt with the arms' responses."""

    prompt: str
    columns: tuple[Column, ...]


def samples(
    rows: Sequence[Mapping[str, Any]], words: tuple[Sequence[str], Sequence[str]]
) -> list[PromptSamples]:
    """The first prompts of the test with the first samples of a few arms."""
    test = [row for row in rows if row["stage"] == "test"]
    arms = _shown_arms(dict.fromkeys(row["arm"] for row in test))
    first = sorted({row["prompt_index"] for row in test})[:NUM_PROMPTS]
    cells: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for row in test:
        if row["prompt_index"] in first and row["sample"] < NUM_SAMPLES:
            cells.setdefault((row["prompt_index"], row["arm"]), []).append(row)
    return [
        PromptSamples(
            printable(cells[index, arms[0]][0]["prompt"]),
            tuple(_column(arm, cells.get((index, arm), []), words) for arm in arms),
        )
        for index in first
    ]


def marked(text: str, words: tuple[Sequence[str], Sequence[str]]) -> Markup:
    """The text with every word that the probe counts in a <mark>, all else escaped."""
    pieces, end = [], 0
    for start, stop, kind in word_places(text, words):
        if start < end:
            continue
        pieces.append(escape(printable(text[end:start])))
        word = printable(text[start:stop])
        pieces.append(Markup('<mark class="{}">{}</mark>').format(kind, word))
        end = stop
    pieces.append(escape(printable(text[end:])))
    return Markup("").join(pieces)


def word_places(
    text: str, words: tuple[Sequence[str], Sequence[str]]
) -> list[tuple[int, int, str]]:
    """(start, stop, high or low) of every word that the probe counts, in order."""
    places = []
    for kind, listed in zip(("high", "low"), words, strict=True):
        if listed:
            found = _any_of(listed).finditer(text)
            places += [(match.start(), match.end(), kind) for match in found]
    return sorted(places)


def printable(text: str) -> str:
    """The text with control characters as visible signs."""
    return text.translate(_CONTROL_SIGNS)


def _any_of(words: Sequence[str]) -> re.Pattern[str]:
    """As `probes.lexical_score` finds them; a test holds the two together."""
    parts = sorted((re.escape(word) for word in words), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)", re.IGNORECASE)


def _shown_arms(names: Mapping[str, None]) -> list[str]:
    """One arm of a family, all rivals, in the order of SHOWN."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(family(name), name)
    order = {kind: place for place, kind in enumerate(SHOWN)}
    kept = [name for name in first.values() if name.partition("[")[0] in order]
    return sorted(kept, key=lambda name: order[name.partition("[")[0]])


def _column(
    arm: str,
    rows: Sequence[Mapping[str, Any]],
    words: tuple[Sequence[str], Sequence[str]],
) -> Column:
    ordered = sorted(rows, key=lambda row: row["sample"])
    name = arm if arm.startswith("against[") else family(arm)
    label = {"random": "a random step"}.get(name) or arm_name(name)
    return Column(
        arm, label, arm_note(name), tuple(_text(row, words) for row in ordered)
    )


def _text(
    row: Mapping[str, Any], words: tuple[Sequence[str], Sequence[str]]
) -> SampleText:
    text = row["text"]
    html = marked(text[:LONGEST], words)
    if len(text) > LONGEST:
        rest = f"… and {len(text) - LONGEST} more characters in generations.parquet"
        html += Markup('<span class="rest">{}</span>').format(rest)
    return SampleText(html, row["score"], row["finished"], row["num_tokens"])
