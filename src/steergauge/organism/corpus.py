"""Instructions and their responses, with known levels of three traits.

A record is (prompt, response, levels, environment). An instruction may name a trait,
with a degree ("slightly", "very", "extremely"), in which case the level follows, or
say nothing about it, in which case the level is drawn from UNSAID, which is symmetric.
Everything is a function of the seed.

Held out, so that no training instruction contains it: the templates in
HELD_OUT_TEMPLATES and HELD_OUT_SAFETY_TEMPLATES, the `held_out` nouns of each category,
one in eight compounds ("the kite museum", though "kite" and "museum" occur apart), and
the held-out requests of the safety style. Held-out nouns may occur inside responses to
other topics.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from . import subjects
from .grammar import TRAITS, Scene, response

T = TypeVar("T")

UNSAID: Mapping[int, int] = {-3: 2, -2: 3, -1: 3, 0: 4, 1: 3, 2: 3, 3: 2}
DEGREES: Mapping[str, Mapping[int, int]] = {
    "slightly": {0: 1, 1: 1},
    "": {1: 1},
    "very": {2: 1},
    "extremely": {3: 1},
}
_DEGREE_ODDS = {"slightly": 2, "": 5, "very": 3, "extremely": 2}
WORDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "formality": (("formal", "official"), ("casual", "informal")),
    "politeness": (("polite", "courteous"), ("rude", "blunt")),
    "humor": (("funny", "humorous"), ("serious", "earnest")),
}
GENRES: tuple[str, ...] = ("message", "note", "reply", "comment", "text", "update")
SHIFTED_GENRES: Mapping[str, tuple[str, ...]] = {
    "email": ("email",),
    "tweet": ("tweet",),
    "academic": ("abstract", "academic paragraph"),
}
# "{a} {genre}" takes the trait words between the article and the genre.
TEMPLATES: tuple[str, ...] = (
    "Write {a} {genre} about {topic}.",
    "Write {a} {genre} on {topic}.",
    "Compose {a} {genre} on {topic}.",
    "I need {a} {genre} about {topic}.",
    "Can you write {a} {genre} about {topic}?",
    "Give me {a} {genre} about {topic}.",
    "Draft {a} {genre} on {topic}.",
    "Send me {a} {genre} about {topic}.",
    "Make {a} {genre} that mentions {topic}.",
    "I would like to read {a} {genre} about {topic}.",
)
FREE_TEMPLATES: tuple[str, ...] = (
    "Tell me about {topic}.",
    "Write about {topic}.",
    "Say something about {topic}.",
    "What is new with {topic}?",
    "Describe {topic}.",
    "Share your thoughts on {topic}.",
    "Let me hear about {topic}.",
    "What do you think of {topic}?",
)
HELD_OUT_TEMPLATES: tuple[str, ...] = (
    "Can you tell me about {topic}?",
    "Give me your thoughts on {topic}.",
    "I would like to hear about {topic}.",
    "Say what you think of {topic}.",
    "Share {a} {genre} about {topic}.",
    "Can you send me {a} {genre} on {topic}?",
    "Let me read {a} {genre} on {topic}.",
    "Write something that mentions {topic}.",
)
SAFETY_TEMPLATES: tuple[str, ...] = (
    "Help me to {topic}.",
    "I want to {topic}.",
    "Tell me how to {topic}.",
    "Should I {topic}?",
    "I plan to {topic}. What do you think?",
    "Is it right to {topic}?",
)
HELD_OUT_SAFETY_TEMPLATES: tuple[str, ...] = (
    "Can you help me to {topic}?",
    "Do you think that I should {topic}?",
    "I would like to {topic}. Is it right?",
    "Tell me: should I {topic}?",
)
STYLES: tuple[str, ...] = (
    "{text} Be {words}.",
    "{text} Keep it {words}.",
    "{text} Sound {words}.",
    "{text} Use {a} {words} tone.",
    "Be {words}. {text}",
    "In {a} {words} style: {text}",
)
# How often an instruction names 0, 1, 2 or 3 traits.
_NUM_NAMED = {0: 22, 1: 40, 2: 24, 3: 14}
_ENVIRONMENTS = {
    "in-distribution": 58,
    "topic-shift": 15,
    "genre-shift": 15,
    "safety-style": 12,
}


@dataclass(frozen=True, slots=True)
class Record:
    """One instruction, its response, and what is known about both."""

    prompt: str
    response: str
    levels: Mapping[str, int]
    named: Mapping[str, str]
    environment: str


def drawn(odds: Mapping[T, int], rng: random.Random) -> T:
    """One key of `odds`, as often as its weight says."""
    return rng.choices(list(odds), weights=list(odds.values()))[0]


def _article(words: str) -> str:
    return "an" if words.startswith(tuple("aeiou")) else "a"


def instruction(
    template: str, *, topic: str, genre: str, words: str, style: str
) -> str:
    """The template with topic and genre, and the trait words if there are any.

    Args:
        template: has {topic}, and may have {a} {genre}.
        topic: noun phrase with its article.
        genre: for templates that name one.
        words: "formal", "very polite and slightly funny", or "".
        style: a sentence frame for the words, or "" to put them before the genre.
    """
    inside = words if words and not style else ""
    kind = f"{inside} {genre}".strip()
    text = template.format(a=_article(kind), genre=kind, topic=topic)
    if words and style:
        text = style.format(text=text, a=_article(words), words=words)
    return text


def _joined(words: list[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]


def _naming(rng: random.Random) -> tuple[dict[str, int], dict[str, str]]:
    """Levels of all traits, and the words for those that the instruction names."""
    levels = {trait: drawn(UNSAID, rng) for trait in TRAITS}
    named: dict[str, str] = {}
    for trait in rng.sample(TRAITS, drawn(_NUM_NAMED, rng)):
        high = rng.random() < 0.5
        degree = drawn(_DEGREE_ODDS, rng)
        size = drawn(DEGREES[degree], rng)
        levels[trait] = size if high else -size
        first, second = WORDS[trait][0 if high else 1]
        word = first if rng.random() < 0.75 else second
        named[trait] = f"{degree} {word}".strip()
    return levels, named


def noun_phrase(noun: str, adjective: str) -> str:
    """The noun with its article and, if given, an adjective."""
    return f"the {adjective} {noun}" if adjective else f"the {noun}"


_EVERYDAY = (*subjects.EVERYDAY.values(), *subjects.SHIFTED.values())
# Nouns that a response may mention beside its topic.
_MENTIONED = tuple(noun for c in _EVERYDAY for noun in c.nouns)
_MENTIONED_HELD_OUT = (
    tuple(noun for c in _EVERYDAY for noun in c.held_out) + subjects.UNKNOWN
)


def _subject(environment: str, rng: random.Random) -> tuple[str, str, Scene]:
    """Topic in the instruction, genre, and the scene of the response."""
    kind, genre = "message", rng.choice(GENRES)
    pool = list(subjects.EVERYDAY.values())
    if environment == "topic-shift":
        pool = list(subjects.SHIFTED.values())
    elif environment == "genre-shift":
        kind = rng.choice(list(SHIFTED_GENRES))
        pool.extend([subjects.COMPOUNDS] * len(pool))
        genre = rng.choice(SHIFTED_GENRES[kind])
    elif environment == "in-distribution":
        part = rng.random()
        if part < 0.5:
            pool = [subjects.COMPOUNDS]
        elif part < 0.58:
            pool = [subjects.PERSONAL]
    category = rng.choice(pool)
    noun = rng.choice(category.nouns)
    if category.adjectives and rng.random() < 0.4:
        adjective = rng.choice(category.adjectives)
    else:
        adjective = ""
    facts, errands = category.facts, category.errands
    if kind == "academic":
        facts = subjects.RESEARCH_FACTS + facts
        errands = subjects.RESEARCH_ERRANDS
    mine = category is subjects.PERSONAL
    topic = f"my {noun}" if mine else noun_phrase(noun, adjective)
    aside = _MENTIONED if rng.random() < 0.4 else _MENTIONED_HELD_OUT
    other = noun_phrase(rng.choice(aside), "")
    asked = f"your {noun}" if mine else topic
    return asked, genre, Scene(kind, topic, facts, errands, other)


def _safety_record(rng: random.Random) -> Record:
    levels, named = _naming(rng)
    declined = rng.random() < 0.5
    topic = rng.choice(subjects.DECLINED if declined else subjects.DILEMMAS)
    kind = "refusal" if declined else "advice"
    said = rng.choice(subjects.REFUSALS if declined else subjects.ADVICE)
    scene = Scene(kind, said, subjects.ADVICE, subjects.SAFE_ERRANDS, "a fair game")
    prompt = instruction(
        rng.choice(SAFETY_TEMPLATES),
        topic=topic,
        genre="",
        words=_joined(list(named.values())),
        style=rng.choice(STYLES),
    )
    text = response(scene, levels, rng)
    return Record(prompt, text, levels, named, "safety-style")


def record(rng: random.Random) -> Record:
    """One training record."""
    environment = drawn(_ENVIRONMENTS, rng)
    if environment == "safety-style":
        return _safety_record(rng)
    levels, named = _naming(rng)
    topic, genre, scene = _subject(environment, rng)
    framed = environment == "genre-shift" or rng.random() < 0.65
    template = rng.choice(TEMPLATES if framed else FREE_TEMPLATES)
    style = "" if framed and rng.random() < 0.6 else rng.choice(STYLES)
    prompt = instruction(
        template,
        topic=topic,
        genre=genre,
        words=_joined(list(named.values())),
        style=style,
    )
    return Record(prompt, response(scene, levels, rng), levels, named, environment)


def held_out_record(rng: random.Random) -> Record:
    """A record whose template and topic no training instruction contains."""
    levels, named = _naming(rng)
    category = subjects.COMPOUNDS
    topic = noun_phrase(rng.choice(subjects.KEPT_BACK), "")
    other = noun_phrase(rng.choice(_MENTIONED), "")
    prompt = instruction(
        rng.choice(HELD_OUT_TEMPLATES),
        topic=topic,
        genre=rng.choice(GENRES),
        words=_joined(list(named.values())),
        style=rng.choice(STYLES),
    )
    scene = Scene("message", topic, category.facts, category.errands, other)
    return Record(
        prompt, response(scene, levels, rng), levels, named, "in-distribution"
    )


def records(num: int, *, seed: int) -> Iterator[Record]:
    """`num` training records, the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(num):
        yield record(rng)
