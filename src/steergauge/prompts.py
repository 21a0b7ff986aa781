"""Texts that go in: contrast pairs (x+, x-), environments, traits, padding.

A *trait* is data (`traits/*.toml`): contrast pairs from templates and topics, and a
lexical probe. *Environments* are families of neutral prompts, shared by all traits.
A text is an instruction, or an instruction with a response; instructions go through
the model's chat template where it has one, unless `chat=False`.
"""

import hashlib
import importlib.resources
import itertools
import json
import random
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steergauge.errors import BadPairs, BadPrompts, BadTrait, NoSuchFile
from steergauge.split import LanguageModel
from steergauge.types import Mask, TokenIds

TRAITS = ("formality", "politeness", "humor")
ENVIRONMENTS = ("in-distribution", "topic-shift", "genre-shift", "safety-style")


@dataclass(frozen=True, slots=True)
class Text:
    """An instruction, and the response to it if it is known."""

    prompt: str
    response: str = ""


@dataclass(frozen=True, slots=True)
class ContrastPair:
    """x+ and x-: two texts that differ in the trait only."""

    positive: Text
    negative: Text


@dataclass(frozen=True, slots=True)
class Environment:
    """A family of neutral prompts."""

    name: str
    prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trait:
    """A trait with two poles; a positive alpha should move texts towards `high`."""

    name: str
    high: str
    low: str
    all_pairs: tuple[ContrastPair, ...]
    probe: Mapping[str, Any]

    def pairs(self, num: int = 50, *, seed: int = 0) -> list[ContrastPair]:
        """`num` contrast pairs, drawn without replacement in an order set by `seed`.

        Raises:
            BadTrait: the trait has fewer.
        """
        if not 1 <= num <= len(self.all_pairs):
            raise BadTrait(
                f"{num} contrast pairs of {self.name} were asked for, it has "
                f"{len(self.all_pairs)}.",
                remedy="Ask for another number (--num-pairs), or add templates or "
                "topics to its file.",
            )
        return random.Random(seed).sample(self.all_pairs, num)


def trait(name: str) -> Trait:
    """A built-in trait by name, or one from a TOML file of the same form.

    Raises:
        BadTrait: no such trait, or a malformed file.
    """
    builtin = name in TRAITS
    path = _traits_folder() / f"{name}.toml" if builtin else Path(name)
    if not builtin and not Path(name).is_file():
        raise BadTrait(
            f"there is no trait {name!r}.",
            remedy=f"Built in are {', '.join(TRAITS)}; a file of your own is given by "
            "its path.",
        )
    table = _toml(path, BadTrait)
    try:
        return Trait(
            name=table["name"],
            high=table["high"],
            low=table["low"],
            all_pairs=_pairs_of(table["pairs"]),
            probe=table.get("probe", {}),
        )
    except (KeyError, TypeError) as error:
        raise BadTrait(
            f"the trait file {name} has no usable entry {error}.",
            remedy="It needs name, high, low and [pairs] with positive, negative "
            "(equally many templates) and topics; see the built-in files.",
        ) from error


def environment(name: str = "in-distribution") -> Environment:
    """A built-in family of neutral prompts, in a fixed shuffled order.

    Raises:
        BadPrompts: no such environment.
    """
    table = _toml(_traits_folder() / "environments.toml", BadPrompts)
    if name not in table:
        raise BadPrompts(
            f"there is no environment {name!r}.",
            remedy=f"There are {', '.join(table)}.",
        )
    entry = table[name]
    prompts = [
        _filled(template, topic)
        for template, topic in itertools.product(entry["templates"], entry["topics"])
    ]
    prompts = list(dict.fromkeys(prompts))
    random.Random(name).shuffle(prompts)
    return Environment(name, tuple(prompts))


def read_pairs(path: str | Path) -> list[ContrastPair]:
    """Contrast pairs from a file of one JSON object a line.

    Each has `positive` and `negative`: an instruction, or an object with `prompt`
    and `response`.

    Raises:
        NoSuchFile: there is no such file.
        BadPairs: it is empty, or a line is malformed; the line's number is named.
    """
    lines = _lines(path, BadPairs, "contrast pair")
    return [_pair(path, number, line) for number, line in lines]


def read_prompts(path: str | Path) -> list[str]:
    """Prompts from a file: one a line, or one JSON object with `prompt` a line.

    Raises:
        NoSuchFile: there is no such file.
        BadPrompts: it is empty, or a line is malformed; the line's number is named.
    """
    prompts = []
    for number, line in _lines(path, BadPrompts, "prompt"):
        if Path(path).suffix != ".jsonl":
            prompts.append(line)
            continue
        row = _json(path, number, line, BadPrompts)
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise BadPrompts(
                f"line {number} of {path} has no text under `prompt`.",
                remedy='Write one object a line, such as {"prompt": "..."}.',
            )
        prompts.append(row["prompt"])
    return prompts


def read_labelled(path: str | Path) -> tuple[list[str], list[str]]:
    """High and low texts from a file of {"text": ..., "label": 1 or 0} a line.

    Raises:
        NoSuchFile: there is no such file.
        BadPrompts: it is empty, or a line is malformed; the line's number is named.
    """
    sides: tuple[list[str], list[str]] = ([], [])
    for number, line in _lines(path, BadPrompts, "labelled text"):
        row = _json(path, number, line, BadPrompts)
        good = isinstance(row, dict) and isinstance(row.get("text"), str)
        if not good or row.get("label") not in (0, 1):
            raise BadPrompts(
                f"line {number} of {path} is no labelled text: {line[:60]!r}.",
                remedy='Write {"text": "...", "label": 1} (high) or 0 (low) a line.',
            )
        sides[0 if row["label"] else 1].append(row["text"])
    return sides


def pairs_hash(pairs: Sequence[ContrastPair]) -> str:
    """A short hash of the pairs' texts and order."""
    return short_hash(repr([(p.positive, p.negative) for p in pairs]))


def short_hash(text: str) -> str:
    """16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def uses_chat(lm: LanguageModel, chat: bool | None) -> bool:
    """Whether prompts go through the chat template: by default if there is one.

    Raises:
        BadPrompts: the template was asked for and the tokenizer has none.
    """
    has_one = bool(getattr(lm.tokenizer, "chat_template", None))
    if chat and not has_one:
        raise BadPrompts(
            f"the chat template was asked for, the tokenizer of {lm.name} has none.",
            cause="It is a base model.",
            remedy="Leave --chat out; texts are then taken as they are.",
        )
    return has_one if chat is None else chat


def chat_template_hash(lm: LanguageModel, chat: bool | None) -> str:
    """Hash of the template that prompts go through; empty if they are taken raw."""
    if not uses_chat(lm, chat):
        return ""
    return short_hash(str(lm.tokenizer.chat_template))


def encode(
    lm: LanguageModel, text: Text, *, chat: bool | None = None
) -> tuple[list[int], int]:
    """Token ids of a text, and how many of them are the prompt's.

    Raises:
        BadPrompts: the text is empty.
    """
    tokenizer = lm.tokenizer
    if uses_chat(lm, chat):
        messages = [{"role": "user", "content": text.prompt}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(text.prompt)["input_ids"]
    if not ids:
        raise BadPrompts(
            f"the prompt {text.prompt!r} has no tokens.",
            remedy="Give it some text, or use a tokenizer that adds a start token.",
        )
    response = tokenizer(text.response, add_special_tokens=False)["input_ids"]
    return list(ids) + list(response), len(ids)


def padded(
    rows: Sequence[Sequence[int]], *, device: torch.device | str = "cpu"
) -> tuple[TokenIds, Mask]:
    """Rows of token ids as one left-padded batch with its mask."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[i, width - len(row) :] = True
    return ids.to(device), mask.to(device)


def _traits_folder() -> Path:
    return Path(str(importlib.resources.files("steergauge") / "traits"))


def _pairs_of(table: Mapping[str, Any]) -> tuple[ContrastPair, ...]:
    """Every template with every topic."""
    lists = {key: table[key] for key in ("positive", "negative", "topics")}
    for key, texts in lists.items():
        good = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        if not good or not texts:
            raise TypeError(f"{key}: no list of texts")
    if len(lists["positive"]) != len(lists["negative"]):
        raise TypeError("positive and negative: they differ in number")
    templates = list(zip(lists["positive"], lists["negative"], strict=True))
    return tuple(
        ContrastPair(Text(_filled(plus, topic)), Text(_filled(minus, topic)))
        for (plus, minus), topic in itertools.product(templates, lists["topics"])
    )


def _filled(template: str, topic: str) -> str:
    if "{topic}" not in template:
        raise TypeError(f"the template {template!r}: it has no {{topic}}")
    return template.replace("{topic}", topic)


Complaint = Callable[..., Exception]


def _toml(path: Path, complaint: Complaint) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise complaint(
            f"{path} is no readable TOML file: {error}.",
            remedy="See the built-in files for the form.",
        ) from error


def _lines(path: str | Path, complaint: Complaint, thing: str) -> list[tuple[int, str]]:
    """Numbered lines that are not blank."""
    try:
        content = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise NoSuchFile(
            f"the file {path} cannot be read: {error}.",
            remedy="Check its name; it must be UTF-8 text.",
        ) from error
    lines = [
        (number, line.strip())
        # Not splitlines(), which also cuts at characters that JSON strings may hold.
        for number, line in enumerate(content.split("\n"), start=1)
        if line.strip()
    ]
    if not lines:
        raise complaint(
            f"{path} is empty: it holds no {thing}.",
            remedy=f"Write one {thing} a line.",
        )
    return lines


def _json(path: str | Path, number: int, line: str, complaint: Complaint) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise complaint(
            f"line {number} of {path} is no JSON: {error.msg} at column "
            f"{error.colno}: {line[:60]!r}.",
            remedy="Write one JSON object a line.",
        ) from error


def _pair(path: str | Path, number: int, line: str) -> ContrastPair:
    row = _json(path, number, line, BadPairs)
    if not isinstance(row, dict) or not {"positive", "negative"} <= set(row):
        raise BadPairs(
            f"line {number} of {path} lacks `positive` or `negative`: {line[:60]!r}.",
            remedy='Write {"positive": "...", "negative": "..."} on each line.',
        )
    return ContrastPair(
        _side(path, number, "positive", row["positive"]),
        _side(path, number, "negative", row["negative"]),
    )


def _side(path: str | Path, number: int, name: str, side: Any) -> Text:
    if isinstance(side, str):
        side = {"prompt": side}
    if isinstance(side, dict) and set(side) <= {"prompt", "response"}:
        prompt, response = side.get("prompt"), side.get("response", "")
        if isinstance(prompt, str) and prompt.strip() and isinstance(response, str):
            return Text(prompt, response)
    raise BadPairs(
        f"`{name}` on line {number} of {path} is neither a text nor an object with "
        f"`prompt` and `response`: {str(side)[:60]!r}.",
        remedy='Write "..." or {"prompt": "...", "response": "..."}.',
    )
