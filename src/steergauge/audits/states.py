"""T16, reachability of one state: does some next token make what steering makes?

At each place of a prompt the tokens pi before it are kept, and every token w of the
vocabulary is read after them (arXiv 2510.15511; of steered states, arXiv 2604.09839) ::

    d_1 = min_w || h(pi + w) - h' ||        eta = d_1 / || h' - h ||

with h the natural state of the prompt's own token and h' the steered one. No state but
a natural one is ever at distance 0, and eta is 1 for any step that has nothing nearer
than its origin, however short. So a distance says nothing alone; what it is held to is

- epsilon, the tolerance: what two compute paths of one natural state may differ by. A
  step of less than 2 epsilon could be accepted as the token it started from, and is
  none;
- natural states through another compute path, which have to be found, and states of
  another token, which have to be found as that token;
- random steps of the same length. v ranks below all but 5 % of them or it does not.

=================  ====================================================================
REACHABLE          d_1 <= epsilon at every position that is steered
EPSILON-CLOSE      the median eta is below 1/2, ranks below 95 % of the random steps',
                   and at more than half of the positions so does d_1
ORIGIN-NEAREST     at most positions nothing is nearer than the prompt's own token, and
                   eta is 1: unreached
UNREACHED          anything else
=================  ====================================================================

Intervals are over prompts: the positions of one prompt share its tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np

from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.audits.positions import (
    CLOSE,
    LEVEL,
    Mask,
    Searched,
    Seen,
    family,
    joined,
    middle,
    position,
    ratios,
)
from steergauge.statistics import Estimate, median, share

LEAST_NATURAL = 0.99
"""Share of natural states that have to be found for the rest to mean anything."""

FLOORS_TO_SEE = 10
"""How many times the precision floor a KL is that the output can be said to see."""

SHOWN = 5
"""Collisions that a reason names; the details have all."""

PUBLISHED_TOLERANCE = 1e-5
"""Distance below which the code of arXiv 2604.09839 calls a state found."""

PUBLISHED_MARGIN = 0.1
"""d_1 / d_2 below which its text does: an order of magnitude."""


def states(
    searched: Sequence[Searched],
    targets: Sequence[str],
    *,
    decode: Mapping[int, str],
    d_vocab: int,
    num_kl: int,
    floor_kl: float,
    edges: Sequence[float],
    steering: str = "addition",
    read_layer: int,
    layer: int,
    seed: int = 0,
) -> Finding:
    """Whether next tokens make the states that steering makes.

    Args:
        searched: what was seen of each prompt.
        targets: names of the states searched for: `natural`, `constructed`, `v`, and
            numbered ones of the families `random`, `sign_flip` and `other_pair`.
        decode: the text of every token that occurs.
        d_vocab: how many tokens were searched.
        num_kl: candidates at least that the smallest KL is over.
        floor_kl: nats by which two compute paths of one text differ.
        edges: of the histograms, in lengths of the step.
        steering: `addition` or `ablation`.
        read_layer: after which block the states were read.
        layer: after which block they were steered.
        seed: of the bootstrap over prompts.

    Raises:
        ValueError: there is no prompt, or no target `natural`, `constructed` or `v`.
    """
    seen = joined(searched, targets)
    eta = nearest = None
    if seen.judged.any():
        own = seen.columns["v"][0]
        eta = median(seen.by_prompt(seen.eta[:, own], np.median))
        nearest = share(seen.by_prompt(seen.origin[:, own], np.mean), seed=seed)
    failures = _preconditions(seen)
    verdict, reasons = Verdict.UNINFORMATIVE, failures
    if eta is not None and nearest is not None and not failures:
        verdict = _verdict(seen, eta, nearest)
        reasons = [
            *_reasons(seen, verdict, eta, nearest, d_vocab),
            *_random(seen),
            *_output(seen, verdict, floor_kl, num_kl),
            *_scope(seen, verdict, decode),
        ]
    if read_layer != layer:
        where = f"Steering acts after block {layer}; states are read after {read_layer}"
        reasons.append(
            f"{where}, where the step is what the blocks between make of it."
        )
    return Finding(
        audit="states",
        code="T16",
        subject="",
        claim="The states that steering makes are states that some next token makes.",
        quantity="eta, the distance of the nearest token's state over the length of "
        "the step (median over positions)",
        estimate=eta,
        null="eta = 1: nothing is nearer than where the step began",
        verdict=verdict,
        reasons=tuple(reasons),
        controls=_controls(seen),
        num_prompts=len(searched),
        num_samples=1,
        details={
            "targets": list(targets),
            "num_vocabulary": d_vocab,
            "num_kl": num_kl,
            "steering": steering,
            "layer": layer,
            "read_layer": read_layer,
            "edges": [float(edge) for edge in edges],
            "nearest_is_original": None if nearest is None else asdict(nearest),
            "eta": None if eta is None else asdict(eta),
            **_details(seen, decode, floor_kl),
            "prompts": [one.prompt for one in searched],
        },
    )


def _preconditions(seen: Seen) -> list[str]:
    """Why nothing may be said of v, whatever it shows; empty if something may be."""
    num, clear = len(seen.prompt), seen.resolvable
    if not clear.any():
        return [
            f"At none of {num} positions is the tolerance below half the distance from "
            "the prompt's own token to the next: noise alone could change the answer."
        ]
    found = {name: mask[clear] for name, mask in _controlled(seen).items()}
    if found["natural"].mean() < LEAST_NATURAL:
        return [
            f"Only {found['natural'].sum()} of {clear.sum()} natural states came back "
            f"as their own token within the tolerance, and {LEAST_NATURAL:.0%} have "
            "to: a search that misses those says nothing of a state that it misses."
        ]
    if not found["constructed"].all():
        return [
            f"Only {found['constructed'].sum()} of {clear.sum()} states that another "
            "token was known to make came back as that token, and all have to: what "
            "this search does not reach may still be reachable."
        ]
    if not seen.stepped.any():
        return [
            f"At none of {num} positions does steering move the state by more than "
            "twice the tolerance: there is no step whose end could be searched for."
        ]
    if not seen.judged.any():
        return [
            "Wherever steering moves the state, a token was accepted within a "
            "tolerance that is too wide to tell tokens apart."
        ]
    return []


def _controlled(seen: Seen) -> dict[str, Mask]:
    return {
        "natural": seen.found("natural", seen.whole.token_ids),
        "constructed": seen.found("constructed", seen.whole.constructed),
    }


def _controls(seen: Seen) -> tuple[Control, ...]:
    expected = {
        "natural": "natural states come back as their own token through another "
        "compute path",
        "constructed": "states of another token come back as that token",
    }
    controls = []
    for name, mask in _controlled(seen).items():
        value = float(mask[seen.resolvable].mean()) if seen.resolvable.any() else 0.0
        least = LEAST_NATURAL if name == "natural" else 1.0
        seen_of = Estimate(value, value, value)
        controls.append(Control(name, expected[name], seen_of, "", value >= least))
    return tuple(controls)


def _verdict(seen: Seen, eta: Estimate, nearest: Estimate) -> Verdict:
    judged = seen.judged
    if seen.accepted[judged].all():
        return Verdict.REACHABLE
    often = seen.close[judged].mean() > 0.5
    if eta.high < CLOSE and often and seen.rank <= LEVEL:
        return Verdict.EPSILON_CLOSE
    noise = seen.whole.tolerance / seen.one("length", "v").clip(
        min=np.finfo(float).tiny
    )
    slack = float(np.median(noise[judged]))
    if nearest.low > 0.5 and eta.low - slack <= 1 <= eta.high + slack:
        return Verdict.ORIGIN_NEAREST
    return Verdict.UNREACHED


def _reasons(
    seen: Seen, verdict: Verdict, eta: Estimate, nearest: Estimate, d_vocab: int
) -> list[str]:
    reached = int((seen.accepted & seen.judged).sum())
    num = f"{seen.judged.sum()} positions that steering moves"
    of_v = f"{eta.value:.3g} [{eta.low:.3g}, {eta.high:.3g}]"
    at_origin = f"{nearest.value:.0%} [{nearest.low:.0%}, {nearest.high:.0%}]"
    if verdict is Verdict.REACHABLE:
        return [
            f"At each of the {num}, another token makes the state, to within what two "
            "compute paths of one state differ by."
        ]
    if verdict is Verdict.EPSILON_CLOSE:
        return [
            f"The nearest token's state is at {of_v} of the step, nearer than those of "
            f"random steps of the same length (rank p = {seen.rank:.3f}): close to a "
            f"natural state, and within the tolerance of one at {reached} of the {num}."
        ]
    if verdict is Verdict.ORIGIN_NEAREST:
        return [
            f"At {at_origin} of the {num}, none of {d_vocab:,} next tokens makes a "
            "state nearer to the steered one than the prompt's own token does: the "
            "state is not reached.",
            f"Its distance is then simply the length of the step (eta {of_v}), which "
            "any step has that is not 0.",
        ]
    reasons = [
        f"{reached} of the {num} are reached by one of {d_vocab:,} next tokens; the "
        f"nearest token's state is at {of_v} of the step, and that token is the "
        f"prompt's own at {at_origin} of them."
    ]
    if nearest.value > 0.5 >= nearest.low:
        reasons.append(
            "So few prompts do not bear out that it mostly is: that interval, which is "
            "over prompts, reaches one half."
        )
    return reasons


def _random(seen: Seen) -> list[str]:
    """What steps in no particular direction show at the same positions."""
    columns = seen.columns.get("random", [])
    if not columns:
        return ["No random step was searched for, so nothing says how near is near."]
    etas = seen.eta[seen.judged][:, columns]
    low, typical, high = np.quantile(etas, [0.05, 0.5, 0.95])
    reasons = [
        f"Random steps of the same length have an eta of {typical:.3g} (median; the "
        f"middle 90 %: {low:.3g} to {high:.3g})."
    ]
    if not seen.allowed:
        reasons.append(
            f"{len(columns)} of them are too few for v to rank below 95 %; that takes "
            f"{math.ceil(1 / LEVEL) - 1}."
        )
    return reasons


def _output(seen: Seen, verdict: Verdict, floor: float, num_kl: int) -> list[str]:
    """What the next token's distribution says of the same two states."""
    if verdict is Verdict.REACHABLE:
        return []
    nats = _kl(seen, floor)
    if nats["none"] is not None and nats["none"] <= FLOORS_TO_SEE * floor:
        return [
            f"The output cannot tell the steered state from the natural one (KL "
            f"{nats['none']:.2g} nats at the median position, precision floor "
            f"{floor:.2g}): that a state is unreached says nothing of behaviour."
        ]
    if nats["share"] is None:
        return []
    return [
        f"In output, the best of at least {num_kl:,} next tokens leaves "
        f"{nats['share']:.0%} of the KL of steering ({nats['none']:.2g} nats at the "
        "median position)."
    ]


def _scope(seen: Seen, verdict: Verdict, decode: Mapping[int, str]) -> list[str]:
    """Which positions the verdict leaves out, and which texts the search did."""
    num, still = len(seen.prompt), int((~seen.stepped).sum())
    noisy = int((~seen.resolvable & ~seen.collision).sum())
    twins = [f"{one!r} and {other!r}" for one, other in _collisions(seen, decode)]
    reasons = []
    if still:
        reasons.append(
            f"{still} of {num} positions are left out: steering moves them by no more "
            "than twice the tolerance."
        )
    if twins:
        some = ", ".join(twins[:SHOWN]) + (", and more" if twins[SHOWN:] else "")
        reasons.append(f"Collisions, two tokens that have one state: {some}.")
    if noisy:
        reasons.append(
            f"At {noisy} of {num} positions the tolerance is more than half the "
            "distance between tokens; a token accepted there is not counted."
        )
    if verdict is not Verdict.REACHABLE:
        reasons.append(
            "All next tokens were tried after the prompt's own beginning; what other "
            "beginnings make was not."
        )
    return reasons


def _collisions(seen: Seen, decode: Mapping[int, str]) -> list[tuple[str, str]]:
    found = set()
    own = [seen.one(name, "natural") for name in ("first", "second")]
    for i in np.flatnonzero(seen.collision):
        twins = sorted({int(seen.whole.token_ids[i]), *(int(x[i]) for x in own)})
        found |= {(one, other) for one, other in pairwise(twins)}
    return [(decode[one], decode[other]) for one, other in sorted(found)]


def _details(seen: Seen, decode: Mapping[int, str], floor: float) -> dict[str, Any]:
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
        "kl": _kl(seen, floor),
        "collisions": [list(pair) for pair in _collisions(seen, decode)],
        "num_positions": len(verdicts),
        "num_resolvable": int(seen.resolvable.sum()),
        "num_steps": int(stepped.sum()),
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


def _kl(seen: Seen, floor: float) -> dict[str, float | None]:
    none, least = seen.whole.kl_none[seen.stepped], seen.whole.kl_least[seen.stepped]
    # Of a KL that rounding may have made, no share says anything.
    felt = none > FLOORS_TO_SEE * floor
    left = middle(ratios(least[felt], none[felt]))
    return {"none": middle(none), "least": middle(least), "share": left}


def _below(numbers: np.ndarray, bound: float) -> float | None:
    return float((numbers < bound).mean()) if numbers.size else None
