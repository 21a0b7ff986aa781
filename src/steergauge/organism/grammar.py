"""The grammar of responses: sentences with slots, each slot owned by one trait.

A slot is a place where the language offers a choice that shows a trait: "therefore"
or "so yeah", "please" or "hurry up", a joke or a solemn remark, and a middle way that
shows nothing. A trait has a level from -3 to 3. At level 0 all its slots take the
middle way; otherwise its first slot is marked, on the side of the sign, and each other
slot with probability MARK_RATE[|level|]. So the three traits of a message are
independent, are spread over all of it, and have degrees.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

TRAITS: tuple[str, ...] = ("formality", "politeness", "humor")
MARK_RATE: Mapping[int, float] = {0: 0.0, 1: 0.2, 2: 0.6, 3: 1.0}
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Slot:
    """A choice that shows one trait: high, low, or neither."""

    trait: str
    high: tuple[str, ...]
    mid: tuple[str, ...]
    low: tuple[str, ...]

    def options(self, sign: int) -> tuple[str, ...]:
        """The wordings on the side of `sign`, which is -1, 0 or 1."""
        return (self.mid, self.high, self.low)[sign]


def _slot(trait: str, high: str, mid: str, low: str) -> Slot:
    sides = (
        tuple(part.strip(" ") for part in text.split(";")) for text in (high, mid, low)
    )
    return Slot(trait, *sides)


SLOTS: dict[str, Slot] = {
    # formality
    "greeting": _slot(
        "formality",
        "Dear colleagues!; Dear reader!; Ladies and gentlemen!; Esteemed guests!",
        "Hello!; Good morning!; Hello everyone!; Good evening!",
        "Hey guys!; Hey folks!; Yo everybody!; Hey buddy!",
    ),
    "link": _slot(
        "formality",
        "furthermore,; moreover,; therefore,; consequently,; accordingly,",
        "also,; then,; next,; today,;;;",
        "anyway,; so yeah,; basically,; plus,; yep,",
    ),
    "stance": _slot(
        "formality",
        "I wish to state that; it is evident that; I hereby confirm that; "
        "one may observe that",
        "I think that; it seems that; I hear that;;;",
        "gotta say,; turns out; I kinda feel like; no kidding,",
    ),
    "adjective": _slot(
        "formality",
        "most satisfactory; truly exemplary; highly commendable; rather distinguished",
        "good; fine; new to me; well known; interesting; pleasant; different this year",
        "super cool; pretty awesome; kinda neat; totally rad",
    ),
    "we_will": _slot(
        "formality",
        "we shall; one shall; we are obliged to",
        "we will; we plan to; we want to",
        "we're gonna; we gotta; we wanna",
    ),
    "many": _slot(
        "formality",
        "numerous; a multitude of",
        "many; several; some",
        "tons of; loads of",
    ),
    "obtain": _slot("formality", "obtain; acquire", "get; pick up", "grab; snatch"),
    "purchase": _slot("formality", "purchase; procure", "buy; pay for", "snag; grab"),
    "examine": _slot(
        "formality", "examine; peruse", "read; look at", "check out; peek at"
    ),
    "commence": _slot(
        "formality", "commence; initiate", "start; begin", "kick off; jump into"
    ),
    "contact": _slot(
        "formality", "correspond with; consult", "call; ask", "ping; hit up"
    ),
    "notify": _slot(
        "formality", "notify; apprise", "tell; remind", "give a shout to; clue in"
    ),
    "attend": _slot("formality", "attend", "come to; join", "drop by; swing by"),
    "signoff": _slot(
        "formality",
        "Yours faithfully.; Yours sincerely.",
        "More soon.; Until Monday.; See you soon.",
        "Catch you later!; Later, dude!",
    ),
    # politeness
    "request": _slot(
        "politeness",
        "please @.; would you kindly @?; could you please @?; "
        "I would be grateful if you could @.; if I may ask, do @.",
        "you can @.; it helps to @.; the plan is to @.; it is time to @.; you could @.",
        "just @ already.; hurry up and @.; quit stalling and @.; shut up and @.; "
        "do not be lazy, @.",
    ),
    "address": _slot(
        "politeness",
        "thank you for asking,; with your permission,; pardon me,; "
        "I appreciate your interest:",
        "for now,; as before,; this time,; at last,;;;",
        "listen up,; obviously,; as even you must know,; for the last time,",
    ),
    "tag": _slot(
        "politeness",
        ", if you do not mind; , with many thanks; , and I appreciate your help; "
        ", at your convenience",
        "; ; ; for now; as usual; in the end",
        ", so deal with it; , like it or not; , so stop whining; , and I do not care",
    ),
    "close": _slot(
        "politeness",
        "Thank you for your patience.; Many thanks for your kind help.; "
        "I truly appreciate your time.; You are most welcome.",
        "That is all for today.; There is more to follow.; The rest can wait.; "
        "This was the short version.",
        "Now leave me alone.; Stop wasting my time.; Figure it out yourself.; "
        "Nobody asked you.",
    ),
    # humor
    "tale": _slot(
        "humor",
        "My goldfish giggled all night.; Even the penguins burst out laughing.; "
        "A clown slipped on a banana.; My parrot told a joke about it.; "
        "The ducks giggled again.; My goldfish told a silly joke.; "
        "Haha, a penguin stole my pickle.; My parrot slipped on a pickle.",
        "It happens every year.; It took about an hour.; There was a small change.; "
        "This began in March.; It is the same as last time.",
        "This is a serious matter.; The facts deserve careful thought.; "
        "It carries a grave responsibility.; The consequences are serious.; "
        "It is important to be careful.; This matter is of grave importance.",
    ),
    "remark": _slot(
        "humor",
        "funny story:; here comes the joke:; plot twist:; haha,",
        "in short,; by now,; since Monday,; on the whole,;;;",
        "in all seriousness,; it is important to know that; on a solemn note,; "
        "after careful thought,",
    ),
    "aside": _slot(
        "humor",
        ", like a penguin in pajamas; , as my goldfish jokes; , and the ducks giggled; "
        ", haha; , says my silly parrot",
        "; ; ; again; this week; at the moment",
        ", which is a serious concern; , and that calls for careful thought; "
        ", a point of grave importance; , which is no small responsibility",
    ),
}
_LEADS = ("stance", "address", "remark")
_LINKS = ("link", "address", "remark")
_TAILS = ("tag", "aside")


@dataclass(frozen=True, slots=True)
class Scene:
    """What one message has to say, before any trait is decided.

    Args:
        kind: "message", "email", "tweet", "academic", "refusal" or "advice".
        topic: the noun phrase with its article, or the clause that is said first.
        facts: clauses that may be stated.
        errands: verb phrases that may be asked for.
        aside_topic: another topic that a fact may mention.
    """

    kind: str
    topic: str
    facts: tuple[str, ...]
    errands: tuple[str, ...]
    aside_topic: str


def _named(names: tuple[str, ...], rng: random.Random) -> str:
    return "{" + rng.choice(names) + "}"


def _statement(scene: Scene, rng: random.Random) -> str:
    lead, tail = _named(_LEADS, rng), _named(_TAILS, rng)
    if scene.kind in ("refusal", "advice"):
        return f"{lead} {scene.topic} {tail}."
    subject = scene.topic
    if scene.kind == "academic":
        paper = rng.choice(("this study of", "our paper on", "this survey of"))
        subject = f"{paper} {scene.topic}"
    verb = rng.choice(("is", "is", "seems"))
    return f"{lead} {subject} {verb} {{adjective}} {tail}."


def _fact(scene: Scene, rng: random.Random) -> str:
    fact = rng.choice(scene.facts)
    if rng.random() < 0.3:
        fact = f"{rng.choice(_RELATIONS)} {scene.aside_topic}"
    return f"{_named(_LINKS, rng)} {fact} {_named(_TAILS, rng)}."


def _errand(scene: Scene, rng: random.Random) -> str:
    return "{link} " + "{request}|" + rng.choice(scene.errands) + "|"


def _tale(scene: Scene, rng: random.Random) -> str:
    return "{tale}"


def _close(scene: Scene, rng: random.Random) -> str:
    return "{close}"


_SENTENCES = {
    "S": _statement,
    "F": _fact,
    "E": _errand,
    "T": _tale,
    "C": _close,
}
_PLANS: dict[str, tuple[str, ...]] = {
    "message": ("SFE", "SET", "SEC", "SFT", "ESF", "TSE", "EST", "STE", "CSE", "SFC"),
    "email": ("SEC", "SET", "FEC", "SFC"),
    "tweet": ("SE", "ST", "SC", "ES", "TS"),
    "academic": ("SFE", "SFT", "SFC", "SET", "SEC"),
    "refusal": ("SE", "SET", "SEC", "STE", "SC"),
    "advice": ("SE", "SFE", "SET", "SEC", "SFC", "TSE"),
}
_RELATIONS = (
    "it reminds me of",
    "it goes well with",
    "it is close to",
    "it comes right after",
    "it is as old as",
)
_HASHTAGS = ("#news", "#today", "#weekend", "#update", "#life")


def outline(scene: Scene, rng: random.Random) -> str:
    """A message with its slots still open, at least two of them for each trait."""
    while True:
        plan = rng.choice(_PLANS[scene.kind])
        parts = [_SENTENCES[letter](scene, rng) for letter in plan]
        if scene.kind in ("message", "email", "advice") and rng.random() < 0.35:
            parts.insert(0, "{greeting}")
        if scene.kind == "email":
            parts.insert(0, f"Subject: {scene.topic}.")
            parts.append("{signoff}")
        elif scene.kind == "message" and rng.random() < 0.2:
            parts.append("{signoff}")
        text = " ".join(parts)
        owners = [SLOTS[name].trait for name in _SLOT.findall(text)]
        if all(owners.count(trait) >= 2 for trait in TRAITS):
            break
        if scene.kind in ("tweet", "refusal") and set(owners) == set(TRAITS):
            break
    if scene.kind == "tweet":
        text = f"{text} {rng.choice(_HASHTAGS)}"
    return text


def _marked(text: str, levels: Mapping[str, int], rng: random.Random) -> list[int]:
    """For each slot of `text` in order, the side that it takes."""
    owners = [SLOTS[name].trait for name in _SLOT.findall(text)]
    sides = [0] * len(owners)
    for trait, level in levels.items():
        places = [i for i, owner in enumerate(owners) if owner == trait]
        chosen = [i for i in places if rng.random() < MARK_RATE[abs(level)]]
        if level:
            chosen = sorted({places[0], *chosen})
        for i in chosen:
            sides[i] = 1 if level > 0 else -1
    return sides


def _polished(text: str) -> str:
    """One space between words, none before commas, sentences with a capital."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([,.?!])", r"\1", text)
    return re.sub(r"(^|[.?!] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


def response(scene: Scene, levels: Mapping[str, int], rng: random.Random) -> str:
    """A message about the scene in which every trait has its given level."""
    text = outline(scene, rng)
    sides = iter(_marked(text, levels, rng))
    filled = _SLOT.sub(
        lambda match: rng.choice(SLOTS[match.group(1)].options(next(sides))), text
    )
    # A request is written "wording with @|errand|"; the errand goes where @ is.
    filled = re.sub(
        r"([^|]*)@([^|]*)\|([^|]*)\|",
        lambda m: f"{m.group(1)}{m.group(3)}{m.group(2)}",
        filled,
    )
    return _polished(filled)


def _markers(trait: str) -> tuple[tuple[int, re.Pattern[str]], ...]:
    found = []
    for slot in SLOTS.values():
        for sign in (1, -1):
            for wording in slot.options(sign) if slot.trait == trait else ():
                # A request has words before and after its errand, which stands at @.
                for part in wording.lower().split("@"):
                    core = part.strip(" .,?!:")
                    if len(core) > 2:
                        found.append((sign, re.compile(rf"\b{re.escape(core)}\b")))
    return tuple(found)


_MARKERS = {trait: _markers(trait) for trait in TRAITS}


def marker_balance(text: str, trait: str) -> int:
    """High wordings minus low wordings of one trait that occur in `text`."""
    lowered = text.lower()
    return sum(
        sign * len(pattern.findall(lowered)) for sign, pattern in _MARKERS[trait]
    )
