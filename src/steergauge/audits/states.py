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
REACHABLE          d_1 <= epsilon at every judged position
INCONCLUSIVE       the same, of less than half of all positions or of fewer than four
                   prompts
EPSILON-CLOSE      the median eta is below 1/2 (its 95 % interval, which takes six
                   prompts), ranks below 95 % of the random steps', and at more than
                   half of the positions so does d_1
ORIGIN-NEAREST     at most positions nothing is nearer than the prompt's own token, and
                   eta is 1: unreached
UNREACHED          anything else
=================  ====================================================================

Judged are the positions that steering moves by more than 2 epsilon, but not those where
a token was accepted and epsilon is at least half the distance from the prompt's own
token to the next: it could be another. Such unresolvable positions do count where no
token was accepted. That goes one way, towards UNREACHED, and so nothing is said
(UNINFORMATIVE) unless half of all positions are resolvable.

Intervals are over prompts: the positions of one prompt share its tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.audits.positions import (
    CLOSE,
    FLOORS_TO_SEE,
    LEVEL,
    Mask,
    Searched,
    Seen,
    collisions,
    joined,
    nats,
    record,
    rounding,
)
from steergauge.statistics import Estimate, median, share, wilson

HALF = 0.5
"""Share of all positions that has to be resolvable; and judged, for REACHABLE."""

FEWEST = 4
"""Prompts that REACHABLE takes: then it holds for half of those like them at least."""

CONFIDENCE = 0.95
"""Coverage of the interval that EPSILON-CLOSE takes."""

LEAST_NATURAL = 0.99
"""Share of natural states that have to be found for the rest to mean anything."""

REACHED = (Verdict.REACHABLE, Verdict.INCONCLUSIVE)
"""Every judged state is some token's; what differs is how many were judged."""

SHOWN = 5
"""Collisions that a reason names; the details have all."""


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
        floor_kl: nats by which two compute paths of one whole text differ. Of one
            token it is less, so that a KL of one that is called seen is more than
            rounding; one that is not may be so too.
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
            **record(seen, decode, floor_kl),
            "prompts": [one.prompt for one in searched],
        },
    )


def _preconditions(seen: Seen) -> list[str]:
    """Why nothing may be said of v, whatever it shows; empty if something may be."""
    num, clear = len(seen.prompt), seen.resolvable
    if clear.mean() < HALF:
        return [
            f"At only {clear.sum()} of {num} positions is the tolerance below half the "
            f"distance from the prompt's own token to the next, and {HALF:.0%} have to "
            "be: elsewhere noise alone could change the answer, and what is accepted "
            "there is not counted while what is missed is."
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
        return Verdict.INCONCLUSIVE if _thin(seen) else Verdict.REACHABLE
    if _near(seen, eta) and eta.level >= CONFIDENCE:
        return Verdict.EPSILON_CLOSE
    noise = seen.whole.tolerance / seen.one("length", "v").clip(
        min=np.finfo(float).tiny
    )
    slack = float(np.median(noise[judged]))
    if nearest.low > 0.5 and eta.low - slack <= 1 <= eta.high + slack:
        return Verdict.ORIGIN_NEAREST
    return Verdict.UNREACHED


def _thin(seen: Seen) -> bool:
    """Whether too little is judged for REACHABLE to be said of it."""
    prompts = len(np.unique(seen.prompt[seen.judged]))
    return bool(seen.judged.mean() < HALF) or prompts < FEWEST


def _near(seen: Seen, eta: Estimate) -> bool:
    """Whether v's ends are near to tokens' states as far as these prompts go."""
    often = seen.close[seen.judged].mean() > 0.5
    return bool(eta.high < CLOSE and often and seen.rank <= LEVEL)


def _reasons(
    seen: Seen, verdict: Verdict, eta: Estimate, nearest: Estimate, d_vocab: int
) -> list[str]:
    reached = int((seen.accepted & seen.judged).sum())
    num = f"{seen.judged.sum()} positions that steering moves"
    of_v = f"{eta.value:.3g} [{eta.low:.3g}, {eta.high:.3g}]"
    at_origin = f"{nearest.value:.0%} [{nearest.low:.0%}, {nearest.high:.0%}]"
    if verdict in REACHED:
        return [
            f"At each of the {num}, another token makes the state, to within what two "
            "compute paths of one state differ by.",
            *_rounded(seen),
            _borne_out(seen),
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
    if _near(seen, eta):
        reasons.append(
            "They look close to natural states, but so few prompts do not bear it out: "
            f"the interval covers {eta.level:.1%}, and {CONFIDENCE:.0%} takes six."
        )
    if nearest.value > 0.5 >= nearest.low:
        reasons.append(
            "So few prompts do not bear out that it mostly is: that interval, which is "
            "over prompts, reaches one half."
        )
    return reasons


def _rounded(seen: Seen) -> list[str]:
    """Whether rounding decided that a state is reached, or a wide tolerance."""
    of_norm, v, natural = (rounding(seen)[k] for k in ("of_norm", "v", "natural"))
    if of_norm is None or v is None or natural is None:
        return []
    return [
        f"The tolerance is {of_norm:.2g} of a state's length, and the nearest token's "
        f"state is at {v:.2g} of the tolerance; natural states, which only rounding "
        f"sets apart, come back at {natural:.2g} of it (medians)."
    ]


def _borne_out(seen: Seen) -> str:
    """How much of the run, and of prompts like these, a reached state speaks for."""
    num = len(np.unique(seen.prompt[seen.judged]))
    least = wilson(num, num).low
    of_all = f"{seen.judged.sum()} of {len(seen.prompt)} positions"
    told = (
        f"They are {of_all}, in {num} of {len(np.unique(seen.prompt))} prompts; of "
        f"prompts like these {num}, the same holds for {least:.0%} at least (95 %)."
    )
    if not _thin(seen):
        return told
    return (
        f"{told} That is too little to call v's states reachable, which takes "
        f"{HALF:.0%} of all positions and {FEWEST} prompts."
    )


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
    if verdict in REACHED:
        return []
    kl = nats(seen, floor)
    if kl["none"] is not None and kl["none"] <= FLOORS_TO_SEE * floor:
        return [
            f"The output cannot tell the steered state from the natural one (KL "
            f"{kl['none']:.2g} nats at the median position; the precision floor is "
            f"{floor:.2g}, of a whole text, which for one token is conservative): that "
            "a state is unreached says nothing of behaviour."
        ]
    if kl["share"] is None:
        return []
    return [
        f"In output, the best of at least {num_kl:,} next tokens leaves "
        f"{kl['share']:.0%} of the KL of steering ({kl['none']:.2g} nats at the "
        "median position)."
    ]


def _scope(seen: Seen, verdict: Verdict, decode: Mapping[int, str]) -> list[str]:
    """Which positions the verdict leaves out, and which texts the search did."""
    num, still = len(seen.prompt), int((~seen.stepped).sum())
    noisy = int((~seen.resolvable & ~seen.collision).sum())
    twins = [f"{one!r} and {other!r}" for one, other in collisions(seen, decode)]
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
            "distance between tokens; a token accepted there is not counted, and a "
            "state that is missed there is."
        )
    if verdict not in REACHED:
        reasons.append(
            "All next tokens were tried after the prompt's own beginning; what other "
            "beginnings make was not."
        )
    return reasons
