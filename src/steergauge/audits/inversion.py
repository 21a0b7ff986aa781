"""T17, inversion of a sequence: does some text make the states that steering makes?

SipIt (arXiv 2510.15511, Algorithm 1) takes the states of a text one by one and looks
for the token that makes each after those it has found. Of natural states it gives back
the text; steered ones of arXiv 2604.09839 stop it at the first. Which of the two is
seen depends on the tolerance first of all: too narrow, and natural states fail as well,
for two compute paths differ; too wide, and a step is accepted as the token it was taken
from. So natural states of the same prompts have to come back, token by token. A token
that comes back as a twin, another that makes the same state, is no failure but a
collision: no inversion could tell. Nor is it a find. Left out is a prompt where no step
is longer than twice the tolerance, or whose steered states are all accepted as the text
that its natural ones gave.

A sequence is reached iff a token was accepted at each of its positions. Some reached
and some not is INCONCLUSIVE: of a vector, neither can be said. Prompts of the same
tokens, as those are that are cut within what all begin with, are one.

A search stops at the first batch that has a token within the tolerance, and does not
say how near the next one is. So that it is too wide shows in the natural states alone.

The shares accepted at 1e-5, the bound in the published code, are an emulation: those of
the distances found here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.statistics import Estimate, share, wilson

LEAST_NATURAL = 0.99
"""Share of natural tokens that have to come back for the rest to mean anything."""

PUBLISHED_TOLERANCE = 1e-5
"""Distance below which the code of arXiv 2604.09839 accepts a token."""


SHOWN = 5
"""Collisions that a reason names; the details have all."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What the inversion of one sequence found, place by place up to where it stopped.

    Attributes:
        tokens: of the nearest state among those tried.
        accepted: whether it was within the tolerance.
        distance: from the state that was given.
        second: of the next nearest; nan unless all tokens were tried.
        tolerance: at this place.
        tested: tokens tried.
    """

    tokens: Int[np.ndarray, " places"]
    accepted: Bool[np.ndarray, " places"]
    distance: Float[np.ndarray, " places"]
    second: Float[np.ndarray, " places"]
    tolerance: Float[np.ndarray, " places"]
    tested: Int[np.ndarray, " places"]

    @property
    def first_failure(self) -> int | None:
        """The first place where no token was accepted."""
        failed = np.flatnonzero(~self.accepted)
        return int(failed[0]) if len(failed) else None

    def reached(self, num: int) -> bool:
        """Whether tokens were accepted at all `num` places."""
        return len(self.accepted) == num and self.first_failure is None

    def right(self, tokens: Int[np.ndarray, " num"]) -> Bool[np.ndarray, " num"]:
        """Where the nearest token is this one; nowhere after the search stopped."""
        return _padded(self.tokens == tokens[: len(self.tokens)], len(tokens))

    def within(self, radius: float, num: int) -> Bool[np.ndarray, " num"]:
        """Where the distance is below a radius; nowhere after the search stopped."""
        return _padded(self.distance < radius, num)


@dataclass(frozen=True, slots=True)
class Inverted:
    """One prompt: its tokens, and what was found from its states.

    Attributes:
        prompt: its text.
        tokens: decoded.
        token_ids: the same.
        step: length of the steered minus the natural state.
        apart: distance of the natural state from that of the text found from natural
            states, computed likewise: 0 of a twin. nan where the search had stopped.
        natural: from the unsteered states.
        steered: from the steered ones.
    """

    prompt: str
    tokens: tuple[str, ...]
    token_ids: Int[np.ndarray, " num"]
    step: Float[np.ndarray, " num"]
    apart: Float[np.ndarray, " num"]
    natural: Tried
    steered: Tried

    @property
    def others(self) -> Bool[np.ndarray, " num"]:
        """Natural states that were accepted as a token that is not theirs."""
        accepted = _padded(self.natural.accepted, len(self.token_ids))
        return accepted & ~self.natural.right(self.token_ids)

    @property
    def twins(self) -> Bool[np.ndarray, " num"]:
        """Those of them that are that other token's as well: there are two texts."""
        return self.others & (self.apart == 0)

    @property
    def recovered(self) -> Bool[np.ndarray, " num"]:
        """Natural states that were accepted as their own token, or as its twin."""
        accepted = _padded(self.natural.accepted, len(self.token_ids))
        return (accepted & ~self.others) | self.twins

    @property
    def moved(self) -> bool:
        """Whether there is a step, and its end is not accepted as what it was."""
        num, natural = len(self.token_ids), self.natural
        rest = (0, num - len(natural.tokens))
        # After the search stopped its last radius stands for those that follow.
        radius = np.pad(natural.tolerance, rest, mode="edge")
        given = np.pad(natural.tokens, rest, constant_values=-1)
        same = self.steered.right(self.token_ids) | self.steered.right(given)
        unchanged = self.steered.reached(num) and bool(same.all())
        return bool((self.step > 2 * radius).any()) and not unchanged

    @property
    def accepted(self) -> float:
        """Share of steered states accepted before the first failure."""
        first, num = self.steered.first_failure, len(self.token_ids)
        return (len(self.steered.accepted) if first is None else first) / num


def inversion(
    found: Sequence[Inverted],
    *,
    decode: Mapping[int, str],
    d_vocab: int,
    steering: str = "addition",
    seed: int = 0,
) -> Finding:
    """Whether texts make the sequences of states that steering makes.

    Args:
        found: one a prompt, each of one token at least.
        decode: the text of every token that occurs.
        d_vocab: size of the vocabulary.
        steering: `addition` or `ablation`.
        seed: of the bootstrap over prompts.

    Raises:
        ValueError: there is no prompt.
    """
    every, found = len(found), _distinct(found)
    natural = share(np.array([one.recovered.mean() for one in found]), seed=seed)
    moved = [one for one in found if one.moved]
    shares = np.array([one.accepted for one in moved])
    estimate = share(shares, seed=seed) if moved else None
    verdict, reasons = _judge(found, moved, d_vocab, steering)
    reasons += [*_collisions(found, decode), *_coinciding(found, every)]
    return Finding(
        audit="inversion",
        code="T17",
        subject="",
        claim="The sequences of states that steering makes are those of some text.",
        quantity="share of steered states accepted before the first that is not",
        estimate=estimate,
        null="1, as of natural states",
        verdict=verdict,
        reasons=tuple(reasons),
        controls=(_control(found, natural),),
        num_prompts=len(found),
        num_samples=1,
        details={
            "num_vocabulary": d_vocab,
            "steering": steering,
            "natural": _natural(found, natural, d_vocab),
            "steered": _steered(found, moved),
            "collisions": [list(pair) for pair in _pairs(found, decode)],
            "published": _published(found),
            "sequences": [_sequence(one, decode) for one in found],
        },
    )


def _distinct(found: Sequence[Inverted]) -> list[Inverted]:
    """The first of those prompts that are the same tokens."""
    first: dict[tuple[int, ...], Inverted] = {}
    for one in found:
        first.setdefault(tuple(one.token_ids.tolist()), one)
    return list(first.values())


def _judge(
    found: Sequence[Inverted], moved: Sequence[Inverted], d_vocab: int, steering: str
) -> tuple[Verdict, list[str]]:
    recovered = np.concatenate([one.recovered for one in found])
    back = f"{recovered.sum()} of {len(recovered)} natural tokens came back"
    if recovered.mean() < LEAST_NATURAL:
        return Verdict.UNINFORMATIVE, [
            f"Only {back}, and {LEAST_NATURAL:.0%} have to: an inversion that fails on "
            "natural states says nothing by failing on steered ones.",
            *_too_wide(found),
        ]
    if not moved:
        return Verdict.UNINFORMATIVE, [
            "All steered states are the prompts' own: steering moves them by no more "
            "than twice the tolerance, or they were all accepted as the text that "
            "natural ones gave, and there is nothing to invert."
        ]
    num, reached = len(moved), _reached(moved)
    reasons = [f"{back}.", *_too_wide(found)]
    if reached == num:
        verdict = Verdict.REACHABLE
        least = wilson(num, num).low
        reasons.append(
            f"So did {num} of {num} steered sequences, as another text; of prompts "
            f"like these, {least:.0%} at least have one (95 %)."
        )
    elif reached:
        verdict = Verdict.INCONCLUSIVE
        reasons.append(
            f"Of the steered sequences, {reached} of {num} are those of a text and "
            f"{num - reached} are not: neither holds of the vector."
        )
    else:
        verdict = Verdict.UNREACHED
        most = wilson(0, num).high
        reasons.append(
            f"None of {num} steered sequences is that of a text; of prompts like "
            f"these, up to {most:.0%} may have one (95 %)."
        )
    failures = _failures(moved, d_vocab, steering)
    return verdict, [*reasons, *failures, *_left_out(found, moved)]


def _reached(moved: Sequence[Inverted]) -> int:
    return sum(one.steered.reached(len(one.token_ids)) for one in moved)


def _too_wide(found: Sequence[Inverted]) -> list[str]:
    """What it says of the tolerance that natural states were taken for another's."""
    wrong = sum(int((one.others & ~one.twins).sum()) for one in found)
    told = (
        f"{wrong} of the natural states were accepted as another token, which does not "
        "make them: the tolerance is wider there than tokens are apart, and a steered "
        "state may be accepted for no better reason."
    )
    return [told] if wrong else []


def _pairs(
    found: Sequence[Inverted], decode: Mapping[int, str]
) -> list[tuple[str, str]]:
    """Tokens that have one state, of which one is a prompt's own."""
    pairs = {
        tuple(sorted((int(one.token_ids[i]), int(one.natural.tokens[i]))))
        for one in found
        for i in np.flatnonzero(one.twins)
    }
    return [(decode[one], decode[other]) for one, other in sorted(pairs)]


def _collisions(found: Sequence[Inverted], decode: Mapping[int, str]) -> list[str]:
    pairs = [f"{one!r} and {other!r}" for one, other in _pairs(found, decode)]
    some = ", ".join(pairs[:SHOWN]) + (", and more" if pairs[SHOWN:] else "")
    told = f"Collisions, two tokens that have one state: {some}. Either will do."
    return [told] if pairs else []


def _coinciding(found: Sequence[Inverted], every: int) -> list[str]:
    told = (
        f"As far as they are inverted, the {every} prompts are {len(found)} different "
        "sequences of tokens, and count as that many."
    )
    return [told] if len(found) < every else []


def _failures(moved: Sequence[Inverted], d_vocab: int, steering: str) -> list[str]:
    """Where the steered sequences stop, and after how much of a search."""
    places = [(one, one.steered.first_failure) for one in moved]
    failed = [(one, place) for one, place in places if place is not None]
    if not failed:
        return []
    at_once = sum(place == 0 for _, place in failed)
    reasons = [f"{at_once} of the {len(failed)} that stop do so at their first token."]
    if steering == "addition":
        reasons.append(
            "In exact arithmetic, and read where it is added, all but countably many "
            "strengths of a vector that is not 0 lead to states of no text, however "
            "short the step; how far off they are is T16's to say."
        )
    least = min(int(one.steered.tested[place]) for one, place in failed)
    if least < d_vocab:
        reasons.append(
            f"Where they stop, as few as {least:,} of {d_vocab:,} tokens were tried: "
            "one of the others may be the one."
        )
    return reasons


def _left_out(found: Sequence[Inverted], moved: Sequence[Inverted]) -> list[str]:
    num = len(found) - len(moved)
    told = (
        f"{num} of {len(found)} prompts are left out: steering moves their states by "
        "no more than twice the tolerance, or all are accepted as what they were."
    )
    return [told] if num else []


def _control(found: Sequence[Inverted], natural: Estimate) -> Control:
    share_found = float(np.concatenate([one.recovered for one in found]).mean())
    expected = f"{LEAST_NATURAL:.0%} of natural tokens come back, or their twins"
    return Control("natural", expected, natural, "", share_found >= LEAST_NATURAL)


def _natural(
    found: Sequence[Inverted], recovered: Estimate, d_vocab: int
) -> dict[str, Any]:
    tested = np.concatenate([one.natural.tested for one in found])
    return {
        "recovered": asdict(recovered),
        "exact": sum(bool(one.recovered.all()) for one in found),
        "num": len(found),
        "tested": float(np.median(tested)) / d_vocab,
    }


def _steered(found: Sequence[Inverted], moved: Sequence[Inverted]) -> dict[str, Any]:
    whole = [one for one in found if len(one.steered.tokens) == len(one.token_ids)]
    same = [bool(one.steered.right(one.token_ids).all()) for one in whole]
    return {
        "reached": _reached(moved),
        "num": len(moved),
        # Where there is no step, there is none to fail.
        "first_failure": [
            one.steered.first_failure if one.moved else None for one in found
        ],
        # A text that stopped half-way is nobody's.
        "same_text": float(np.mean(same)) if same else None,
    }


def _published(found: Sequence[Inverted]) -> dict[str, Any]:
    """What the same distances come to under the bound of the published code."""
    bound = PUBLISHED_TOLERANCE
    natural = [one.natural.within(bound, len(one.token_ids)) for one in found]
    steered = [one.steered.within(bound, len(one.token_ids)) for one in found]
    exact = [
        bool((near & (one.natural.right(one.token_ids) | one.twins)).all())
        for near, one in zip(natural, found, strict=True)
    ]
    return {
        "tolerance": bound,
        "natural": float(np.concatenate(natural).mean()),
        "steered": float(np.concatenate(steered).mean()),
        "natural_exact": float(np.mean(exact)),
    }


def _sequence(one: Inverted, decode: Mapping[int, str]) -> dict[str, Any]:
    def plain(tried: Tried) -> dict[str, Any]:
        return {
            "recovered": [decode[int(token)] for token in tried.tokens],
            "accepted": tried.accepted.tolist(),
            "distance": _known(tried.distance),
            "tolerance": _known(tried.tolerance),
        }

    return {
        "prompt": one.prompt,
        "tokens": list(one.tokens),
        "natural": {**plain(one.natural), "tested": one.natural.tested.tolist()},
        "steered": {
            **plain(one.steered),
            "second": _known(one.steered.second),
            "first_failure": one.steered.first_failure,
        },
    }


def _padded(mask: Bool[np.ndarray, " places"], num: int) -> Bool[np.ndarray, " num"]:
    """The mask, and False for the places that were not looked at."""
    return np.pad(mask, (0, num - len(mask)))


def _known(numbers: Float[np.ndarray, " places"]) -> list[float | None]:
    """Numbers that JSON knows."""
    return [float(x) if math.isfinite(x) else None for x in numbers]
