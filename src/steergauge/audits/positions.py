"""One position of T16: what the vocabulary holds around a steered state, and a word.

=================  ====================================================================
UNINFORMATIVE      steering moves the state by no more than 2 epsilon; or a token is
                   accepted where noise could have changed which
REACHABLE          a token's state is within epsilon of the steered one
EPSILON-CLOSE      eta is below 1/2, and all but 5 % of random steps end farther away
ORIGIN-NEAREST     the nearest token is the prompt's own: unreached
UNREACHED          anything else
=================  ====================================================================

epsilon is what two compute paths of one natural state may differ by. A step of less
than twice that could be accepted as the token it started from, and is no step. Two
tokens within epsilon of each other have one state, a collision; whatever is found there
is found for both.

Where epsilon is at least half the distance to the next token, a position is
unresolvable. A token accepted there could be another and is not counted; a state that
is within epsilon of no token is missed whichever is meant, and is counted. That goes
one way, towards UNREACHED, and so half of all positions have to be resolvable.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from steergauge.audits.finding import Verdict
from steergauge.statistics import rank_p

CLOSE = 0.5
"""eta below which a state is said to be near to a token's."""

LEVEL = 0.05
"""Of v's rank among random steps of the same length."""

FLOORS_TO_SEE = 10
"""How many times the precision floor a KL is that the output can be said to see."""

PUBLISHED_TOLERANCE = 1e-5
"""Distance below which the code of arXiv 2604.09839 calls a state found."""

PUBLISHED_MARGIN = 0.1
"""d_1 / d_2 below which its text does: an order of magnitude."""

KNOWN = ("natural", "constructed", "v")
"""Targets of which there is one each; those of other families are numbered."""

Places = Float[np.ndarray, " positions"]
Mask = Bool[np.ndarray, " positions"]
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Searched:
    """What the vocabulary holds at every position of one prompt.

    Attributes:
        prompt: its text.
        tokens: decoded, one a position.
        places: 0-based, in the whole row.
        token_ids: the prompt's own.
        tolerance: epsilon, in the unit of distances.
        norm: ||h||.
        constructed: the token whose state the target `constructed` is.
        first: token of the nearest state, by position and target.
        second: of the second nearest.
        aligned: the token whose swap points most nearly along the step.
        d1: distance of the nearest state.
        d2: of the second nearest.
        length: of the step from h to the target.
        shorter: share of token swaps that are shorter than the step.
        cosine: between the step and that of `aligned`; nan where there is no step.
        histogram: tokens by distance from h' over the length of the step.
        kl_none: KL of the next token, steered from unsteered, in nats.
        kl_least: the smallest KL of the steered next token from that after a candidate.
        kl_token: that candidate.
    """

    prompt: str
    tokens: tuple[str, ...]
    places: Int[np.ndarray, " positions"]
    token_ids: Int[np.ndarray, " positions"]
    tolerance: Places
    norm: Places
    constructed: Int[np.ndarray, " positions"]
    first: Int[np.ndarray, "positions targets"]
    second: Int[np.ndarray, "positions targets"]
    aligned: Int[np.ndarray, "positions targets"]
    d1: Float[np.ndarray, "positions targets"]
    d2: Float[np.ndarray, "positions targets"]
    length: Float[np.ndarray, "positions targets"]
    shorter: Float[np.ndarray, "positions targets"]
    cosine: Float[np.ndarray, "positions targets"]
    histogram: Int[np.ndarray, "positions bins"]
    kl_none: Places
    kl_least: Places
    kl_token: Int[np.ndarray, " positions"]


@dataclass(frozen=True, slots=True)
class Seen:
    """The positions of all prompts, one after another, and what may be said of each."""

    whole: Searched
    prompt: Int[np.ndarray, " positions"]
    columns: Mapping[str, list[int]]

    def one(self, name: str, family: str) -> np.ndarray:
        """A field for the only target of a family."""
        return getattr(self.whole, name)[:, self.columns[family][0]]

    @property
    def eta(self) -> Float[np.ndarray, "positions targets"]:
        """Distance of the nearest over the length of the step; nan if there is none."""
        return ratios(self.whole.d1, self.whole.length)

    @property
    def resolvable(self) -> Mask:
        """Where no second token can be taken for the prompt's own."""
        return self.whole.tolerance < self.one("d2", "natural") / 2

    @property
    def collision(self) -> Mask:
        """Where a second token has the same state."""
        return self.one("d2", "natural") <= self.whole.tolerance

    @property
    def stepped(self) -> Mask:
        """Where the state moved too far to be accepted as what it was."""
        moved = self.one("length", "v") > 2 * self.whole.tolerance
        return moved & np.isfinite(self.one("d1", "v"))

    @property
    def accepted(self) -> Mask:
        """Where some token's state is the steered one, within the tolerance."""
        return self.one("d1", "v") <= self.whole.tolerance

    @property
    def judged(self) -> Mask:
        """Steered positions, less those accepted where that could be any token.

        Of unresolvable positions the missed ones stay: see the head of this file.
        """
        return self.stepped & (self.resolvable | ~self.accepted)

    @property
    def origin(self) -> Bool[np.ndarray, "positions targets"]:
        """Whether the nearest token is the prompt's own, or has the same state."""
        twins = [self.one(name, "natural")[:, None] for name in ("first", "second")]
        same = (self.whole.first == twins[0]) | (self.whole.first == twins[1])
        own = self.whole.first == self.whole.token_ids[:, None]
        return own | (same & self.collision[:, None])

    def found(self, family: str, tokens: Int[np.ndarray, " positions"]) -> Mask:
        """Whether the state came back as this token, or as one with the same state."""
        within = self.one("d1", family) <= self.whole.tolerance
        twin = self.one("d2", family) <= self.whole.tolerance
        second = twin & (self.one("second", family) == tokens)
        return within & ((self.one("first", family) == tokens) | second)

    @property
    def allowed(self) -> int:
        """How many random steps may be as near as one that ranks at `LEVEL`."""
        return int(LEVEL * (len(self.columns.get("random", ())) + 1) + 1e-9)

    @property
    def bar(self) -> Places:
        """The distance below which v ranks at `LEVEL` among random steps, if any can.

        An interpolated 5 % quantile of 20 lies above their smallest: it is a test of
        nearly twice that level.
        """
        random = np.sort(self.whole.d1[:, self.columns.get("random", [])], axis=1)
        if not random.shape[1]:
            return np.full(len(self.prompt), np.nan)
        return random[:, max(0, self.allowed - 1)]

    @property
    def close(self) -> Mask:
        """Where v's end is near to a token's state, and random steps' ends are not."""
        near = self.eta[:, self.columns["v"][0]] < CLOSE
        return near & (self.one("d1", "v") < self.bar) & (self.allowed > 0)

    @property
    def verdicts(self) -> list[Verdict]:
        """What may be said of each position."""
        cases = (
            (~self.judged, Verdict.UNINFORMATIVE),
            (self.accepted, Verdict.REACHABLE),
            (self.close, Verdict.EPSILON_CLOSE),
            (self.origin[:, self.columns["v"][0]], Verdict.ORIGIN_NEAREST),
            (np.ones_like(self.judged), Verdict.UNREACHED),
        )
        return [
            next(verdict for holds, verdict in cases if holds[i])
            for i in range(len(self.prompt))
        ]

    def by_prompt(
        self, values: np.ndarray, reduced: Callable[[np.ndarray], float]
    ) -> np.ndarray:
        """A number for each prompt that has judged positions."""
        prompts = np.unique(self.prompt[self.judged])
        rows = [values[self.judged & (self.prompt == i)] for i in prompts]
        return np.array([float(reduced(row)) for row in rows])

    @property
    def rank(self) -> float:
        """Rank p of v's median eta among those of random steps: smaller is nearer.

        Random directions are the same at all positions, so that positions are no
        independent trials: one direction may rank first at many of them by chance.
        """
        every = [
            np.median(self.by_prompt(self.eta[:, j], np.median))
            for j in [*self.columns["v"], *self.columns.get("random", ())]
        ]
        return rank_p(-float(every[0]), -np.array(every[1:]))


def joined(searched: Sequence[Searched], targets: Sequence[str]) -> Seen:
    """The positions of all prompts by family of targets.

    Raises:
        ValueError: there is no prompt, or no target `natural`, `constructed` or `v`.
    """
    columns: dict[str, list[int]] = {}
    for j, name in enumerate(targets):
        columns.setdefault(name.partition("[")[0], []).append(j)
    missing = [name for name in KNOWN if name not in columns]
    if missing or not searched:
        raise ValueError(f"{len(searched)} prompts, and no targets {missing}")
    names = [f.name for f in fields(Searched) if f.name not in ("prompt", "tokens")]
    flat = {n: np.concatenate([getattr(one, n) for one in searched]) for n in names}
    tokens = tuple(token for one in searched for token in one.tokens)
    prompt = np.repeat(np.arange(len(searched)), [len(one.places) for one in searched])
    return Seen(Searched(prompt="", tokens=tokens, **flat), prompt, columns)


def ratios(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Elementwise quotients; nan where the lower number is not above 0.

    >>> import numpy as np
    >>> ratios(np.array([1.0, 1.0]), np.array([2.0, 0.0])).tolist()
    [0.5, nan]
    """
    blank = np.full(np.shape(above), np.nan)
    return np.divide(above, below, out=blank, where=below > 0)


def family(seen: Seen, name: str) -> Record:
    """One row of the table of targets: medians over positions and members."""
    # The targets of length ||h' - h|| are the natural state where there is no step.
    known = name in ("natural", "constructed")
    rows = np.ones_like(seen.stepped) if known else seen.stepped
    at = np.ix_(rows, np.array(seen.columns[name]))
    eta = seen.eta[at]
    eta = eta[np.isfinite(eta) & (name != "natural")]
    low, high = np.quantile(eta, [0.05, 0.95]) if eta.size else (np.nan, np.nan)
    accepted = seen.whole.d1[at] <= seen.whole.tolerance[rows, None]
    return {
        "name": name,
        "num": len(seen.columns[name]),
        "eta": middle(eta),
        "eta_low": number(low),
        "eta_high": number(high),
        "nearest_is_original": float(seen.origin[at].mean()) if rows.any() else None,
        "accepted": float(accepted.mean()) if rows.any() else None,
        "margin": middle(ratios(seen.whole.d1, seen.whole.d2)[at]),
        "cosine": None if name == "natural" else middle(seen.whole.cosine[at]),
        "shorter": None if name == "natural" else middle(seen.whole.shorter[at]),
    }


def position(seen: Seen, i: int, verdict: Verdict, decode: Mapping[int, str]) -> Record:
    """One row of the table of positions, for the record."""
    whole, random = seen.whole, seen.whole.d1[i, seen.columns.get("random", [])]
    numbers = {
        **{name: seen.one(name, "v")[i] for name in ("d1", "d2", "length")},
        "eta": seen.eta[i, seen.columns["v"][0]],
        "tolerance": whole.tolerance[i],
        "natural_d1": seen.one("d1", "natural")[i],
        "natural_d2": seen.one("d2", "natural")[i],
        "random_low": seen.bar[i],
        "random_median": np.median(random) if len(random) else np.nan,
        "shorter": seen.one("shorter", "v")[i],
        "cosine": seen.one("cosine", "v")[i],
        "kl_none": whole.kl_none[i],
        "kl_least": whole.kl_least[i],
    }
    tokens = {
        "nearest": seen.one("first", "v")[i],
        "second": seen.one("second", "v")[i],
        "aligned": seen.one("aligned", "v")[i],
        "kl_token": whole.kl_token[i],
    }
    return {
        "prompt": int(seen.prompt[i]),
        "place": int(whole.places[i]),
        "token": whole.tokens[i],
        # Where there is no step, no token is aligned with it: -1.
        **{k: decode[int(t)] if t >= 0 else "" for k, t in tokens.items()},
        **{name: number(value) for name, value in numbers.items()},
        "histogram": whole.histogram[i].tolist(),
        "verdict": str(verdict),
    }


def number(value: float) -> float | None:
    """A number that JSON knows."""
    return float(value) if math.isfinite(value) else None


def middle(numbers: np.ndarray) -> float | None:
    """The median of what is known; None if nothing is."""
    known = numbers[np.isfinite(numbers)]
    return float(np.median(known)) if known.size else None


def record(seen: Seen, decode: Mapping[int, str], floor: float) -> Record:
    """All that was seen of v and of what it is held to, for the record."""
    verdicts = seen.verdicts
    margins = ratios(seen.whole.d1, seen.whole.d2)
    v, natural = seen.columns["v"][0], seen.columns["natural"][0]
    stepped, every = seen.stepped, np.ones_like(seen.stepped)
    return {
        "shares": {
            str(name): verdicts.count(name) / len(verdicts)
            for name in dict.fromkeys(verdicts)
        },
        "margin": middle(margins[stepped, v]),
        "shorter": middle(seen.one("shorter", "v")[stepped]),
        "cosine": middle(seen.one("cosine", "v")[stepped]),
        "by_target": [family(seen, name) for name in seen.columns],
        "kl": nats(seen, floor),
        "collisions": [list(pair) for pair in collisions(seen, decode)],
        "num_positions": len(verdicts),
        "num_resolvable": int(seen.resolvable.sum()),
        "num_steps": int(stepped.sum()),
        "num_judged": int(seen.judged.sum()),
        "tolerance": rounding(seen),
        "published_tolerance": {
            "tolerance": PUBLISHED_TOLERANCE,
            "natural": _below(seen.whole.d1[every, natural], PUBLISHED_TOLERANCE),
            "v": _below(seen.whole.d1[stepped, v], PUBLISHED_TOLERANCE),
        },
        "order_of_magnitude": {
            "natural": _below(margins[every, natural], PUBLISHED_MARGIN),
            "v": _below(margins[stepped, v], PUBLISHED_MARGIN),
        },
        "positions": [
            position(seen, i, verdicts[i], decode) for i in range(len(every))
        ],
    }


def collisions(seen: Seen, decode: Mapping[int, str]) -> list[tuple[str, str]]:
    """Pairs of tokens that have one state, of which one is a prompt's own."""
    found = set()
    own = [seen.one(name, "natural") for name in ("first", "second")]
    for i in np.flatnonzero(seen.collision):
        twins = sorted({int(seen.whole.token_ids[i]), *(int(x[i]) for x in own)})
        found |= {(one, other) for one, other in pairwise(twins)}
    return [(decode[one], decode[other]) for one, other in sorted(found)]


def nats(seen: Seen, floor: float) -> dict[str, float | None]:
    """Median KL of steering on the next token, the least there is, and their ratio."""
    none, least = seen.whole.kl_none[seen.stepped], seen.whole.kl_least[seen.stepped]
    # Of a KL that rounding may have made, no share says anything.
    felt = none > FLOORS_TO_SEE * floor
    left = middle(ratios(least[felt], none[felt]))
    return {"none": middle(none), "least": middle(least), "share": left}


def rounding(seen: Seen) -> dict[str, float | None]:
    """Medians at judged positions: epsilon over ||h||, and d_1 over epsilon.

    Of a state that is accepted they say what decided: rounding, if v's is about as near
    as natural states come back, or the width of the tolerance.
    """
    whole, judged = seen.whole, seen.judged
    shares = {
        "of_norm": ratios(whole.tolerance, whole.norm),
        "v": ratios(seen.one("d1", "v"), whole.tolerance),
        "natural": ratios(seen.one("d1", "natural"), whole.tolerance),
    }
    return {name: middle(values[judged]) for name, values in shares.items()}


def _below(numbers: np.ndarray, bound: float) -> float | None:
    return float((numbers < bound).mean()) if numbers.size else None
