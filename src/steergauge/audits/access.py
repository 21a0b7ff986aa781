"""T18, access: is there a prompt that makes the model write as if it were steered?

Steering needs the weights; a prompt needs a text box. What each of them makes a model
do are two numbers, and they are never merged (arXiv 2604.09839). Every row is a way to
reach the model, held to the steered texts of held-out prompts ::

    K(v || row)  nats a text        relative = K(v || row) / K(v || unsteered)

FOUND says that the best prompt leaves no more than a threshold of it, over as many
tokens as the texts are compared by, and is said even of a search that finds nothing
else: there it is. The opposite is never said. A search that ends empty-handed is NOT
FOUND AT BUDGET, next to how often the same search found a prompt that was hidden from
it. That is its power for prompts like those, pieces of real text; one for v may be
easier or harder to find. Where not even the best search among texts has a power of 5 %
by the lower end of its interval, as 2 of 8 have and 1 of 8 has not, nothing is said:
UNINFORMATIVE.

The interval of `relative` takes the far end of both means, and that of the best of m
prompts is widened for having been chosen among m (Bonferroni).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.statistics import Estimate, estimate, two_way_bootstrap, wilson

FLOOR_FACTOR = 10
"""How many times the precision floor a KL is that can be divided by."""

LEAST_POWER = 0.05
"""Lower end of Wilson's interval of the power of the best search among texts, below
which its finding nothing says nothing: 1 of 8 may be luck, 2 of 8 have 7 %."""

MINIMUM_TEXTS = 2
"""Held-out texts without which no interval has a width."""

Texts = Float[np.ndarray, " texts"]
Prompts = Float[np.ndarray, " prompts"]


@dataclass(frozen=True, slots=True)
class Row:
    """One way to reach the model, and what it makes the model write.

    Attributes:
        name: such as `unsteered`, `steered`, `token_search`, `many_shot[4]`, `soft`.
        label: for a reader.
        access: what it needs: `none`, `weights`, `prompt` or `embeddings`.
        prompt: the text put in front; empty where there is none.
        kl: K(v || row) of each held-out text, in nats; None of the steered row.
        eta: distance of its state at the last prompt token from the steered state, in
            lengths of the step, one a prompt; None where it was not read.
        scores: mean probe score of each prompt; None without a probe.
        perplexity: of its texts under the unsteered model.
        evaluations: prompts that were tried to find it.
        round_trips: whether its text is read as the tokens that were searched.
    """

    name: str
    label: str
    access: str
    prompt: str
    kl: Texts | None
    eta: Float[np.ndarray, " _"] | None
    scores: Prompts | None
    perplexity: float | None
    evaluations: int
    round_trips: bool


@dataclass(frozen=True, slots=True)
class Power:
    """What a search found of prompts that were hidden from it, at the same budget.

    Attributes:
        method: of the search, as its row is called.
        relative: K(hidden || found) on held-out texts over K(hidden || unsteered), or
            over K(v || unsteered) where that is smaller: a prompt for v has to come as
            near in nats.
        effect: K(hidden || unsteered), in nats a text.
        found: whether that is within the threshold.
    """

    method: str
    relative: Float[np.ndarray, " hidden"]
    effect: Float[np.ndarray, " hidden"]
    found: Bool[np.ndarray, " hidden"]

    def visible(self, floor: float) -> Bool[np.ndarray, " hidden"]:
        """Hidden prompts that change what the model writes: others cannot be found."""
        return self.effect > FLOOR_FACTOR * floor


@dataclass(frozen=True, slots=True)
class _Search:
    """The prompts that were tried, beside what there was to find.

    Attributes:
        effect: K(v || unsteered).
        num_texts: held-out texts behind it.
        best: the prompt with the smallest mean KL.
        relative: its share of the effect; None if there is no effect to divide by.
    """

    effect: Estimate
    num_texts: int
    best: Row | None
    relative: Estimate | None


def access(
    rows: Sequence[Row],
    powers: Sequence[Power],
    *,
    sign: float,
    floor: float,
    threshold: float = 0.05,
    budget: Mapping[str, Any],
    seed: int = 0,
) -> Finding:
    """Whether a prompt was found that does what steering does, and what each does.

    Args:
        rows: one unsteered (access `none`), one steered (`weights`), and others.
        powers: of each method of search.
        sign: of alpha: the direction in which scores are to move.
        floor: nats by which two compute paths of one text differ.
        threshold: largest relative KL that counts as found.
        budget: of each search, JSON-compatible.
        seed: of the bootstrap over texts and prompts.

    Raises:
        ValueError: no unsteered row has a KL, or scores are of different prompts.
    """
    seen = _searched(rows, seed)
    methods = [_method(power, rows, floor) for power in powers]
    verdict, reasons = _judge(seen, methods, floor, threshold, budget)
    reasons += _hidden(seen, powers, floor) if methods else []
    base = next((_known(row.scores) for row in rows if row.access == "none"), None)
    effect = seen.effect.value
    table = [_line(row, base, effect, sign=sign, seed=seed) for row in rows]
    details = _details(seen, table)
    return Finding(
        audit="access",
        code="T18",
        subject="",
        claim=f"There is a prompt that leaves at most {threshold:.0%} of the KL "
        f"between the steered texts and the unsteered model{_span(budget)}.",
        quantity="K(v || best prompt) / K(v || unsteered) on held-out texts",
        estimate=seen.relative,
        null="1, as of no prompt",
        verdict=verdict,
        reasons=(*reasons, *_two_numbers(details), *_soft(details, threshold)),
        controls=_controls(methods),
        num_prompts=seen.num_texts,
        num_samples=1,
        details={
            **details,
            "methods": methods,
            "threshold": threshold,
            "budget": dict(budget),
        },
    )


def _searched(rows: Sequence[Row], seed: int) -> _Search:
    """The best prompt. The unsteered model, a prompt of no text, is none."""
    unsteered = [_known(row.kl) for row in rows if row.access == "none"]
    if not unsteered or unsteered[0] is None:
        raise ValueError(f"no unsteered row has a KL: {[row.name for row in rows]}")
    effect, num = _not_negative(_mean(unsteered[0], seed)), len(unsteered[0])
    read = [(row, _known(row.kl)) for row in rows if row.access == "prompt"]
    prompts = [(row, kl) for row, kl in read if kl is not None and row.prompt]
    if not prompts:
        return _Search(effect, num, None, None)
    best, kl = min(prompts, key=lambda one: float(one[1].mean()))
    if effect.low <= 0:
        return _Search(effect, num, best, None)
    seen = _not_negative(_mean(kl, seed, level=1 - 0.05 / len(prompts)))
    relative = Estimate(
        seen.value / effect.value, seen.low / effect.high, seen.high / effect.low
    )
    return _Search(effect, num, best, relative)


def _judge(
    seen: _Search,
    methods: Sequence[Mapping[str, Any]],
    floor: float,
    threshold: float,
    budget: Mapping[str, Any],
) -> tuple[Verdict, list[str]]:
    nothing = _nothing(seen, floor, threshold)
    if nothing or seen.best is None or seen.relative is None:
        return Verdict.UNINFORMATIVE, [nothing]
    best = (
        f"The best prompt ({seen.best.label}) leaves {seen.relative.value:.1%} "
        f"[{seen.relative.low:.1%}, {seen.relative.high:.1%}] of the KL of steering"
    )
    if seen.relative.high <= threshold:
        return Verdict.FOUND, [
            f"{best}, within the threshold of {threshold:.0%}: what the steered model "
            f"writes, this prompt makes the model write{_span(budget)}."
        ]
    if seen.relative.value <= threshold:
        return Verdict.INCONCLUSIVE, [
            f"{best}, within the threshold of {threshold:.0%}, but the interval over "
            f"{seen.num_texts} texts is not."
        ]
    power = "; ".join(map(_power, methods)) or "no power was measured"
    texts = [one["power"] for one in methods if one["writes_text"]]
    if max((one["low"] for one in texts if one), default=0.0) < LEAST_POWER:
        return Verdict.UNINFORMATIVE, [
            f"Of prompts that were hidden from it, no search surely finds as many as "
            f"{LEAST_POWER:.0%} ({power}), so that it finds none here says nothing.",
            f"{best}; the threshold is {threshold:.0%}.",
        ]
    spent = ", ".join(f"{name.replace('_', ' ')} {x}" for name, x in budget.items())
    return Verdict.NOT_FOUND, [
        f"No prompt was found at this budget ({spent}); of prompts hidden from it, "
        f"each search found: {power}.",
        f"{best}; the threshold is {threshold:.0%}.",
        "A larger budget or another search may find one: it is not said that there is "
        "none.",
    ]


def _nothing(seen: _Search, floor: float, threshold: float) -> str:
    """Why there is nothing to divide by, or to divide; empty if there is."""
    if seen.num_texts < MINIMUM_TEXTS:
        return f"{seen.num_texts} held-out text is too few for an interval."
    if not seen.effect.low > FLOOR_FACTOR * floor:
        return (
            f"Steering changes the texts by {seen.effect.value:.2g} nats, not more "
            f"than {FLOOR_FACTOR} times the {floor:.2g} by which two compute paths "
            "differ: there is nothing for a prompt to do."
        )
    if threshold * seen.effect.low <= floor:
        return (
            f"{threshold:.0%} of what steering changes, {seen.effect.value:.2g} nats, "
            f"is below the {floor:.2g} nats by which two compute paths differ: no "
            "prompt could be told to be that near."
        )
    return "" if seen.best is not None else "No prompt was tried."


def _span(budget: Mapping[str, Any]) -> str:
    """How much of a text is compared, where the budget says it."""
    num = budget.get("response_tokens")
    return "" if num is None else f", over the first {num} tokens of a text"


def _hidden(seen: _Search, powers: Sequence[Power], floor: float) -> list[str]:
    """How much there was to find, and what the power is the power for."""
    effects = [power.effect[power.visible(floor)] for power in powers]
    nats = np.concatenate(effects)
    if not nats.size:
        return []
    return [
        f"The hidden prompts change the texts by {np.median(nats):.2g} nats (median; "
        f"{nats.min():.2g} to {nats.max():.2g}), steering by {seen.effect.value:.2g}. "
        "The power is that for prompts like them, pieces of real text; one that does "
        "what steering does may be easier or harder to find."
    ]


def _power(method: Mapping[str, Any]) -> str:
    if method["power"] is None:
        return f"{method['label']}, none that has an effect"
    low, high = (method["power"][end] for end in ("low", "high"))
    return (
        f"{method['label']}, {method['found']} of {method['hidden']} "
        f"[{low:.0%}, {high:.0%}]"
    )


def _method(power: Power, rows: Sequence[Row], floor: float) -> dict[str, Any]:
    """The power of one search, counted where there was something to find."""
    row = next((row for row in rows if row.name == power.method), None)
    visible = power.visible(floor)
    found, hidden = int((power.found & visible).sum()), int(visible.sum())
    return {
        "name": power.method,
        "label": power.method.replace("_", " ") if row is None else row.label,
        # That embeddings are found says nothing of a search among texts.
        "writes_text": row is None or row.access == "prompt",
        "hidden": hidden,
        "found": found,
        "power": asdict(wilson(found, hidden)) if hidden else None,
        "relative": [_number(x) for x in power.relative],
        "effect": [_number(x) for x in power.effect],
    }


def _controls(methods: Sequence[Mapping[str, Any]]) -> tuple[Control, ...]:
    return tuple(
        Control(
            one["name"],
            f"{one['label']} finds at least one of the hidden prompts",
            None if one["power"] is None else Estimate(**one["power"]),
            "",
            one["found"] > 0,
        )
        for one in methods
    )


def _line(
    row: Row, base: Prompts | None, effect: float, *, sign: float, seed: int
) -> dict[str, Any]:
    """One row with its intervals, for the record."""
    scores, kl, eta = _known(row.scores), _known(row.kl), _known(row.eta)
    lift = None
    if scores is not None and base is not None and row.access != "none":
        if len(scores) != len(base):
            raise ValueError(f"{row.name}: {len(scores)} scores, not {len(base)}")
        lift = asdict(_mean(sign * (scores - base), seed))
    return {
        "name": row.name,
        "label": row.label,
        "access": row.access,
        "prompt": row.prompt,
        "lift": lift,
        "score": None if scores is None else asdict(_mean(scores, seed)),
        "kl": None if kl is None else asdict(_not_negative(_mean(kl, seed))),
        "relative": None if kl is None or effect <= 0 else float(kl.mean()) / effect,
        "eta": None if eta is None else asdict(_not_negative(_mean(eta, seed))),
        "perplexity": None if row.perplexity is None else _number(row.perplexity),
        "evaluations": row.evaluations,
        "round_trips": row.round_trips,
    }


def _details(seen: _Search, table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table and its two headline numbers."""
    soft = [one for one in table if one["access"] == "embeddings" and one["kl"]]
    white = next((one for one in table if one["access"] == "weights"), None)
    name = None if seen.best is None else seen.best.name
    black = next((one for one in table if one["name"] == name), None)
    return {
        "rows": list(table),
        "best_prompt": name,
        "best_soft": min(soft, key=_nats)["name"] if soft else None,
        "white_box": {"lift": white["lift"] if white else None},
        "black_box": {
            "lift": black["lift"] if black else None,
            "relative": black["relative"] if black else None,
        },
    }


def _two_numbers(details: Mapping[str, Any]) -> list[str]:
    """What weights do and what a prompt does, side by side."""
    white, black = details["white_box"]["lift"], details["black_box"]["lift"]
    if white is None or black is None:
        return []
    ends = [
        f"{one['value']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
        for one in (white, black)
    ]
    return [
        f"With the weights, steering lifts the score by {ends[0]}; with a text box, "
        f"the best prompt lifts it by {ends[1]}. The one is no measure of the other."
    ]


def _soft(details: Mapping[str, Any], threshold: float) -> list[str]:
    """What was reached with embeddings that are no token's, which no text box takes."""
    left = details["black_box"]["relative"]
    found = left is not None and left <= threshold
    for one in details["rows"]:
        if one["name"] == details["best_soft"] and one["relative"] is not None:
            within = {
                (True, True): "within the threshold as well",
                (True, False): "not within the threshold, though the best prompt is",
                (False, True): "within the threshold",
                (False, False): "not within the threshold either",
            }[found, one["relative"] <= threshold]
            return [
                "What gradient descent over embeddings reached "
                f"({one['label']}) leaves {one['relative']:.1%} on average, which is "
                f"{within}. No text has these embeddings, and others may do more: it "
                "bounds nothing."
            ]
    return []


def _nats(row: Mapping[str, Any]) -> float:
    return row["kl"]["value"]


def _known(
    numbers: Float[np.ndarray, " _"] | None,
) -> Float[np.ndarray, " _"] | None:
    """The numbers, if there are any and all of them are finite."""
    if numbers is None or not numbers.size or not np.isfinite(numbers).all():
        return None
    return numbers


def _mean(
    values: Float[np.ndarray, " _"], seed: int, *, level: float = 0.95
) -> Estimate:
    draws = two_way_bootstrap({"": values[None]}, seed=seed)[""]
    return estimate(values[None], draws, level=level)


def _not_negative(seen: Estimate) -> Estimate:
    """A divergence or distance is at least 0, whatever stretched weights make of it."""
    return replace(seen, low=max(0.0, seen.low))


def _number(number: float) -> float | None:
    """A number that JSON knows."""
    return float(number) if math.isfinite(number) else None
