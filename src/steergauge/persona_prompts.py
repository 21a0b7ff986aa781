"""The prompts published with arXiv 2602.06801, read as they are, as a trait's table.

The file (`config/prompts.json` of its code) holds, for each trait, one positive and one
negative template with the contexts that go into both, and in
`multi_environment_prompts` the same for four environments, where templates may have a
second place to fill: a domain, a genre, or the reason of a refusal. Every entry of the
one list is put together with every entry of the other::

    x+ = "Write a formal {domain} document about {context}."      3 domains x 9 contexts
    x- = "Write an informal {domain} discussion about {context}."           = 27 pairs

(The published code walks both lists in step, so it has 9 different pairs, or 6 in the
safety style, and counts them up to 30 times.) A place that only one of the templates
has is filled in that one: politeness in the safety style has "... why {request} is
problematic." against "... rejection of {request} citing {issue}.", so its 36 pairs
have 6 different x+.

Neutral prompts are its `test_prompts` and `validation_prompts`, 49 in all.
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steergauge.errors import BadTrait, NoSuchFile

ENVIRONMENTS = {
    "in_distribution": "in-distribution",
    "topic_shift": "topic-shift",
    "genre_shift": "genre-shift",
    "safety_style": "safety-style",
}
SUBJECTS = ("context", "request")
"""What a pair is about; the first that a trait lists becomes its topic."""

SECOND_PLACES = ("domain", "genre", "reason", "issue")


def file_and_trait(name: str) -> tuple[str, str]:
    """The file and the trait in `prompts.json:NAME`; ("", "") if it is nothing such.

    >>> file_and_trait("data/prompts.json:formality")
    ('data/prompts.json', 'formality')
    >>> file_and_trait("formality.toml")
    ('', '')
    """
    file, _, trait = name.rpartition(":")
    if file.endswith(".json"):
        return file, trait
    return (name, "") if name.endswith(".json") else ("", "")


def trait_table(path: str | Path, name: str) -> dict[str, Any]:
    """One trait in the form of a trait's TOML file, its poles positive and negative.

    Raises:
        NoSuchFile: the file cannot be read.
        BadTrait: it has another shape, or no such trait; those in it are named.
    """
    content = _content(path)
    traits = content["persona_prompts"]
    if name not in traits:
        raise BadTrait(
            f"{path} has no trait {name!r}."
            if name
            else f"{path} holds several traits, and none of them was chosen.",
            remedy=f"Write one of them after the file's name, as in {path}:"
            f"{next(iter(traits), 'NAME')}; it has {', '.join(traits) or 'none'}.",
        )
    families = content.get("multi_environment_prompts", {})
    try:
        table = {
            "name": name,
            "high": "positive",
            "low": "negative",
            "pairs": _pairs_table(traits[name]),
            "environments": {
                ours: _pairs_table(families[theirs][name])
                for theirs, ours in ENVIRONMENTS.items()
                if name in families.get(theirs, {})
            },
        }
        neutral = [
            *_texts(content, "test_prompts"),
            *_texts(families, "validation_prompts"),
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise _other_shape(path, f"the trait {name!r} has no usable {error}") from error
    return table | ({"prompts": neutral} if neutral else {})


def orthogonal_prompts(path: str | Path) -> tuple[str, ...]:
    """Its `orthogonal_prompts`: the beginnings on which the published code tests.

    They are fragments such as "Write about your thoughts on", without an object. A
    base model goes on with them; through a chat template they are half a question, and
    the answer asks what was meant. So they are not among a trait's neutral prompts. To
    test on them, write them into a file, one a line, and give it with `--prompts`.

    Raises:
        NoSuchFile: the file cannot be read.
        BadTrait: it has another shape.
    """
    try:
        return tuple(_texts(_content(path), "orthogonal_prompts"))
    except TypeError as error:
        raise _other_shape(path, f"it has no usable {error}") from error


def _pairs_table(entry: Mapping[str, Any]) -> dict[str, list[str]]:
    """Templates with {topic}, all other places filled, and the topics."""
    plus, minus = entry["positive_template"], entry["negative_template"]
    if not isinstance(plus, str) or not isinstance(minus, str):
        raise TypeError("templates: no texts")
    subject = next((s for s in SUBJECTS if f"{s}s" in entry), SUBJECTS[0])
    places = [place for place in SECOND_PLACES if f"{{{place}}}" in plus + minus]
    lists = [_required(entry, f"{place}s") for place in places]
    fillings = [
        {subject: "{topic}", **dict(zip(places, words, strict=True))}
        for words in itertools.product(*lists)
    ]
    return {
        "positive": [_filled(plus, filling) for filling in fillings],
        "negative": [_filled(minus, filling) for filling in fillings],
        "topics": _required(entry, f"{subject}s"),
    }


def _filled(template: str, filling: Mapping[str, str]) -> str:
    """The template with words in all its places but {topic}."""
    text = template
    for place, words in filling.items():
        text = text.replace(f"{{{place}}}", words)
    if "{" in text.replace("{topic}", ""):
        raise TypeError(f"place to fill in {text!r}")
    return text


def _required(entry: Mapping[str, Any], key: str) -> list[str]:
    if not entry[key]:
        raise TypeError(f"{key}: it is empty")
    return _texts(entry, key)


def _texts(table: Mapping[str, Any], key: str) -> list[str]:
    """The texts under `key`, none if it is not there."""
    texts = table.get(key, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{key}: no list of texts")
    return texts


def _content(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise BadTrait(
            f"{path} is no JSON: {error.msg} on line {error.lineno}.",
            remedy="Give prompts.json as the code of arXiv 2602.06801 has it.",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise NoSuchFile(
            f"the file {path} cannot be read: {error}.",
            remedy="Check its name; it must be UTF-8 text.",
        ) from error
    traits = content.get("persona_prompts") if isinstance(content, dict) else None
    if not isinstance(traits, dict):
        raise _other_shape(path, "it has no table `persona_prompts`")
    return content


def _other_shape(path: str | Path, found: str) -> BadTrait:
    return BadTrait(
        f"{path} is not of the form of the published prompts: {found}.",
        cause="It is another JSON file, or another version of it.",
        remedy="Write the templates and topics into a trait file (TOML) instead.",
    )
