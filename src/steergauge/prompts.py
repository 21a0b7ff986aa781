"""Texts that go in: contrast pairs (x+, x-), environments, traits, padding.

A *trait* is data (`traits/*.toml`): contrast pairs from templates and topics, and a
lexical probe. *Environments* are families of neutral prompts, shared by all traits; in
each of them a trait may have contrast pairs of its own.
A text is an instruction, or an instruction with a response; instructions go through
the model's chat template where it has one, unless `chat=False`.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from steergauge import trait_files
from steergauge.errors import BadPairs, BadPrompts, BadTrait, NoSuchFile
from steergauge.split import LanguageModel
from steergauge.types import Mask, TokenIds

TRAITS = trait_files.TRAITS
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
class TraitEnvironment:
    """A trait in one environment: pairs to extract from, neutral prompts to test on."""

    pairs: tuple[ContrastPair, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trait:
    """A trait with two poles; a positive alpha should move texts towards `high`.

    Attributes:
        name: of the trait.
        high: name of the pole of x+.
        low: name of the pole of x-.
        all_pairs: every contrast pair; some are drawn from them.
        probe: table of a lexical probe; empty if it has none.
        prompts: neutral prompts that come with it; empty means the built-in ones.
        environments: by name; a trait that was loaded has in-distribution at least.
    """

    name: str
    high: str
    low: str
    all_pairs: tuple[ContrastPair, ...]
    probe: Mapping[str, Any]
    prompts: tuple[str, ...] = ()
    environments: Mapping[str, TraitEnvironment] = field(
        default_factory=lambda: MappingProxyType({})
    )

    def pairs(
        self, num: int = 50, *, seed: int = 0, environment: str = ""
    ) -> list[ContrastPair]:
        """`num` contrast pairs, drawn without replacement in an order set by `seed`.

        Args:
            num: how many.
            seed: of the draw.
            environment: whose pairs are meant; the default is the trait's own.

        Raises:
            BadTrait: there are fewer, or no such environment.
        """
        there = self.all_pairs
        if environment:
            there = self.in_environment(environment).pairs
        if not 1 <= num <= len(there):
            where = f" in {environment}" if environment else ""
            raise BadTrait(
                f"{num} contrast pairs of {self.name}{where} were asked for, it has "
                f"{len(there)}.",
                remedy=f"Ask for {len(there)} or fewer (--num-pairs {len(there)}), or "
                "add templates or topics to its file.",
            )
        return random.Random(seed).sample(there, num)

    def in_environment(self, name: str) -> TraitEnvironment:
        """Its pairs and prompts in the environment of that name.

        Raises:
            BadTrait: it has none.
        """
        if name not in self.environments:
            raise BadTrait(
                f"the trait {self.name} has no contrast pairs in the environment "
                f"{name!r}.",
                remedy=f"It has {', '.join(self.environments) or 'none'}; add "
                f"[environments.{name}] to its file, or leave that environment out.",
            )
        return self.environments[name]


def trait(name: str) -> Trait:
    """A trait: built in by name, or from a file.

    Args:
        name: a built-in trait, a TOML file of the same form, or `prompts.json:NAME`
            for a trait of the prompts published with arXiv 2602.06801. That file has
            no probes and does not name the poles. Where its trait is one of ours
            (`formality_updated` counts as formality), our poles and probe are taken.

    Raises:
        BadTrait: no such trait, or a malformed file.
        NoSuchFile: the prompts.json cannot be read.
    """
    table = trait_files.trait_table(name)
    try:
        there = trait_files.environment_tables(table)
        own = trait_files.texts_of(table, "prompts") if "prompts" in table else ()
        return Trait(
            name=table["name"],
            high=table["high"],
            low=table["low"],
            all_pairs=_pairs_of(table["pairs"]),
            probe=table.get("probe", {}),
            prompts=own,
            environments=MappingProxyType(
                {where: _in_environment(entry) for where, entry in there.items()}
            ),
        )
    except (KeyError, TypeError) as error:
        raise BadTrait(
            f"the trait file {name} has no usable entry {error}.",
            remedy="It needs name, high, low and [pairs] with positive, negative "
            "(equally many templates) and topics; [environments.NAME] may have these "
            "too, and prompts. See the built-in files.",
        ) from error


def environment(name: str = "in-distribution") -> Environment:
    """A built-in family of neutral prompts, in a fixed shuffled order.

    Raises:
        BadPrompts: no such environment.
    """
    return Environment(name, trait_files.neutral_prompts(name))


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
    (found,) = encoded(lm, [text], chat=chat)
    return found


def encoded(
    lm: LanguageModel, texts: Sequence[Text], *, chat: bool | None = None
) -> list[tuple[list[int], int]]:
    """What `encode` says of each text, every distinct string tokenised once.

    Raises:
        BadPrompts: a text is empty.
    """
    if not texts:
        return []
    prompts = list(dict.fromkeys(text.prompt for text in texts))
    responses = list(dict.fromkeys(text.response for text in texts))
    chatting, shown = uses_chat(lm, chat), prompts
    if chatting:
        shown = lm.tokenizer.apply_chat_template(
            [[{"role": "user", "content": prompt}] for prompt in prompts],
            add_generation_prompt=True,
            tokenize=False,
        )
    # A chat template writes the special tokens itself.
    ids = lm.tokenizer(shown, add_special_tokens=not chatting)["input_ids"]
    before = dict(zip(prompts, ids, strict=True))
    ids = lm.tokenizer(responses, add_special_tokens=False)["input_ids"]
    after = dict(zip(responses, ids, strict=True))
    empty = [prompt for prompt, row in before.items() if not row]
    if empty:
        raise BadPrompts(
            f"the prompt {empty[0]!r} has no tokens.",
            remedy="Give it some text, or use a tokenizer that adds a start token.",
        )
    sides = ((before[text.prompt], after[text.response]) for text in texts)
    return [([*prompt, *response], len(prompt)) for prompt, response in sides]


def padded(
    rows: Sequence[Sequence[int]], *, device: torch.device | str = "cpu"
) -> tuple[TokenIds, Mask]:
    """Rows of token ids as one left-padded batch with its mask."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    mask = torch.arange(width) >= width - lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long)
    # Where a mask is True is gone through row by row, as the tokens are here.
    ids[mask] = torch.tensor([*chain.from_iterable(rows)], dtype=torch.long)
    return ids.to(device), mask.to(device)


def _in_environment(table: Mapping[str, Any]) -> TraitEnvironment:
    return TraitEnvironment(_pairs_of(table), trait_files.texts_of(table, "prompts"))


def _pairs_of(table: Mapping[str, Any]) -> tuple[ContrastPair, ...]:
    return tuple(
        ContrastPair(Text(plus), Text(minus))
        for plus, minus in trait_files.text_pairs(table)
    )


Complaint = Callable[..., Exception]


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
