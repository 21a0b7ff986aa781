"""What the files of traits and environments say, checked, as plain data.

::

    [pairs]               x+ and x- = every template with every topic
    [environments.NAME]   the same in the environment NAME, where it differs

A trait's table comes from a TOML file (`traits/*.toml` or the user's) or from the
published prompts.json; from here on they are the same. KeyError and TypeError say
what of a table cannot be used; whoever reads the file says which file it was.
"""

import importlib.resources
import itertools
import random
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from steergauge import persona_prompts
from steergauge.errors import BadPrompts, BadTrait

TRAITS = ("formality", "politeness", "humor")
POLES_AND_PROBE = ("high", "low", "probe")
KEYS_OF_AN_ENVIRONMENT = ("positive", "negative", "topics", "prompts")

Table = Mapping[str, Any]


def trait_table(name: str) -> dict[str, Any]:
    """The table that describes a trait, whatever file it comes from.

    Args:
        name: a built-in trait, a TOML file, or `prompts.json:NAME`.

    Raises:
        BadTrait: no such trait, or a file that is no TOML or JSON of the known form.
        NoSuchFile: the prompts.json cannot be read.
    """
    if name in TRAITS:
        return _toml(_folder() / f"{name}.toml", BadTrait)
    file, chosen = persona_prompts.file_and_trait(name)
    if file:
        table = persona_prompts.trait_table(file, chosen)
        ours = chosen.removesuffix("_updated")
        shared = trait_table(ours) if ours in TRAITS else {}
        return table | {key: shared[key] for key in POLES_AND_PROBE if key in shared}
    if not Path(name).is_file():
        raise BadTrait(
            f"there is no trait {name!r}.",
            remedy=f"Built in are {', '.join(TRAITS)}; a file of your own is given by "
            "its path, a trait of a published prompts.json by path:name.",
        )
    return _toml(Path(name), BadTrait)


def neutral_prompts(environment: str) -> tuple[str, ...]:
    """A built-in environment's prompts, in a fixed shuffled order.

    Raises:
        BadPrompts: no such environment.
    """
    table = _built_in_environments()
    if environment not in table:
        raise BadPrompts(
            f"there is no environment {environment!r}.",
            remedy=f"There are {', '.join(table)}.",
        )
    entry = table[environment]
    prompts = [
        _filled(template, topic)
        for template, topic in itertools.product(entry["templates"], entry["topics"])
    ]
    prompts = list(dict.fromkeys(prompts))
    random.Random(environment).shuffle(prompts)
    return tuple(prompts)


def environment_tables(trait: Table) -> dict[str, dict[str, Any]]:
    """Templates, topics and neutral prompts of a trait in each of its environments.

    In-distribution is always one of them. What an environment leaves out is taken
    from [pairs]; topics rather from `pair_topics` of the built-in environment, and
    prompts from that environment, or in-distribution from the trait's own `prompts`.

    Raises:
        KeyError: [pairs] is missing.
        TypeError: an environment's table is malformed.
    """
    given = trait.get("environments", {})
    if not isinstance(given, Mapping):
        raise TypeError("environments: no table")
    named = {"in-distribution": {}, **given}
    built_in = _built_in_environments()
    tables = {}
    for name, entry in named.items():
        _check_environment(name, entry, known=name in built_in)
        own = {"topics": built_in.get(name, {}).get("pair_topics")}
        if name == "in-distribution":
            own["prompts"] = trait.get("prompts")
        own = {key: value for key, value in own.items() if value}
        table = {**trait["pairs"], **own, **entry}
        if "prompts" not in table:
            table["prompts"] = list(neutral_prompts(name))
        tables[name] = table
    return tables


def text_pairs(table: Table) -> list[tuple[str, str]]:
    """Every template with every topic, positive and negative.

    Raises:
        KeyError: `positive`, `negative` or `topics` is missing.
        TypeError: one of them is no list of texts, or they do not go together.
    """
    plus, minus = (texts_of(table, key) for key in ("positive", "negative"))
    if len(plus) != len(minus):
        raise TypeError("positive and negative: they differ in number")
    templates = list(zip(plus, minus, strict=True))
    return [
        (_filled(high, topic), _filled(low, topic))
        for (high, low), topic in itertools.product(
            templates, texts_of(table, "topics")
        )
    ]


def texts_of(table: Table, key: str) -> tuple[str, ...]:
    """The texts in a list of at least one.

    Raises:
        KeyError: there is no such entry.
        TypeError: it is no list of texts.
    """
    texts = table[key]
    good = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    if not good or not texts:
        raise TypeError(f"{key}: no list of texts")
    return tuple(texts)


def _check_environment(name: str, entry: Any, *, known: bool) -> None:
    """Refuse a table that holds something else, half of a pair, or nothing to test."""
    here = f"environments.{name}"
    if not re.fullmatch(r"[\w ./-]+", name):
        raise TypeError(f"{here}: letters, digits, spaces and ._/- only in its name")
    if not isinstance(entry, Mapping):
        raise TypeError(f"{here}: no table")
    if strange := sorted(set(entry) - set(KEYS_OF_AN_ENVIRONMENT)):
        raise TypeError(f"{here}: unknown key {', '.join(strange)}")
    if ("positive" in entry) != ("negative" in entry):
        raise TypeError(f"{here}: templates for one side only")
    if not known and "prompts" not in entry:
        raise TypeError(f"{here}: not built in, and no prompts of its own")


def _filled(template: str, topic: str) -> str:
    if "{topic}" not in template:
        raise TypeError(f"the template {template!r}: it has no {{topic}}")
    return template.replace("{topic}", topic)


def _folder() -> Path:
    return Path(str(importlib.resources.files("steergauge") / "traits"))


def _built_in_environments() -> dict[str, Any]:
    return _toml(_folder() / "environments.toml", BadPrompts)


def _toml(path: Path, complaint: Callable[..., Exception]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise complaint(
            f"{path} is no readable TOML file: {error}.",
            remedy="See the built-in files for the form.",
        ) from error
