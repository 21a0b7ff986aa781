"""T9, how much of v the output sees, and which part of v it is that does nothing.

With v^ of length 1 and F_bar = mean of F_x over texts, in d dimensions ::

    rho_F = v^' F_bar v^ / (tr F_bar / d)        what v costs over what a random
                                                 direction of its length costs

and v = v_R + v_N, of which v_N lies in a null space of F_bar: the *hard* one, where
sigma is below ten times its measured precision, or the *soft* one of a budget of tau
nats, where a step of the whole length s = ||alpha v|| costs s^2 lambda / 2 <= tau. A
random direction has a share of Beta(k/2, (d - k)/2) of its length squared in k given
dimensions, so a share says something only beside k/d.

The canonical representatives are the shortest vectors that do the same: v_R (hard),
and F (F + lambda I)^-1 v at a cost of tau (soft); see `geometry.most_different`.

If v is a mean of differences, one a contrast pair, it estimates the vector that ever
more pairs would give. The radius is the angle within which v lies of that vector, with
95 % confidence (bootstrap over pairs). The mean that is resampled around is shortened
by its own noise first, since a mean is longer than what it estimates and so would look
more certain than it is.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats

from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.errors import InputError
from steergauge.geometry.most_different import Equivalent, canonical, canonical_soft
from steergauge.linalg import FLOORS_APART, Spectrum
from steergauge.statistics import (
    NUM_DRAWS,
    Estimate,
    estimate,
    resampling_weights,
    two_way_bootstrap,
)

Vector = Float[np.ndarray, " d_model"]
Gram = Float[np.ndarray, "pairs pairs"]
Weights = Float[np.ndarray, "draws pairs"]

MINIMUM_PAIRS = 4
"""Two halves of two."""

NUM_SPLITS = 200
NUM_POINTS = 64
"""Of the cumulative shares, at most."""

RELATIVE_BUDGET = 0.05
"""Of v's effect, which v without its hard null part may cost."""

MINIMUM_TEXTS = 32
"""Texts without which no verdict is stated: a few of them can hold most of tr F_bar,
and a sample that has none of these does not know."""

MUCH = 0.2
"""Share of tr F_bar of one text that is worth a warning."""

PARALLEL = 0.99
"""Least cosine between v and the mean of differences that are said to make it."""


@dataclass(frozen=True, slots=True)
class Decomposed:
    """A vector, what the output sees of every direction, and what took its place.

    Attributes:
        direction: v, of any length.
        values: eigenvalues of F_bar, descending.
        directions: its eigenvectors as columns, in the same order.
        floor: relative precision of sigma = sqrt(lambda), as measured.
        strength: s = ||alpha v||.
        gain: v^' F_x v^ of every text.
        trace: tr F_x / d of the same texts.
        tau: budget in nats of the soft null space, on the texts of `gain`.
        nats: K(v || .) of every test prompt, in nats: `unsteered`, `canonical` and
            `canonical_soft`, of which any may be missing.
        differences: one a contrast pair, whose mean is v; None if v is no such mean.
    """

    direction: Vector
    values: Vector
    directions: Float[np.ndarray, "d_model d_model"]
    floor: float
    strength: float
    gain: Float[np.ndarray, " texts"]
    trace: Float[np.ndarray, " texts"]
    tau: float
    nats: Mapping[str, Float[np.ndarray, " prompts"]] = field(default_factory=dict)
    differences: Float[np.ndarray, "pairs d_model"] | None = None

    @property
    def unit(self) -> Vector:
        """The direction at length 1."""
        return self.direction / np.linalg.norm(self.direction)

    @property
    def hard(self) -> Bool[np.ndarray, " d_model"]:
        """Which eigenvectors the output is not seen to see."""
        sizes = np.sqrt(self.values)
        return sizes <= FLOORS_APART * self.floor * sizes.max()

    @property
    def soft(self) -> Bool[np.ndarray, " d_model"]:
        """Along which eigenvectors a step of v's length stays within the budget."""
        return 0.5 * self.strength**2 * self.values <= self.tau


def decomposition(seen: Decomposed, *, seed: int = 0) -> Finding:
    """Whether the output sees v more than a random direction, and v's null parts.

    VISIBLE needs rho_F's interval above 1 and above what 97.5 % of random directions
    have, HIDDEN likewise below: under a steep spectrum a random direction is seldom at
    1, so being on one side of it is no property of v. Both need 32 texts, and that no
    single text decides.

    Args:
        seen: the vector and its surroundings.
        seed: of the bootstrap and the random splits.

    Raises:
        InputError: v is 0, or not the mean of the differences.
    """
    _check(seen)
    rho, chance = _rho(seen, seed), _chance(seen.values, seed)
    nats = {name: _mean(table, seed) for name, table in seen.nats.items()}
    shares = {
        "hard": _share(seen, seen.hard),
        "soft": {"tau": seen.tau} | _share(seen, seen.soft),
    }
    pairs = _pairs(seen, seed)
    others = _representatives(seen)
    largest = _largest(seen)
    verdict = _verdict(rho, chance, largest, len(seen.gain))
    return Finding(
        audit="decomposition",
        code="T9",
        subject="",
        claim="The output sees v more than it sees a random direction of its length.",
        quantity="rho_F = v^' F v^ / (tr F / d)",
        estimate=rho,
        null=f"rho_F = 1; 95 % of random directions lie in [{chance[0]:.2f}, "
        f"{chance[1]:.2f}]",
        verdict=verdict,
        reasons=(
            *_reasons(verdict, rho, chance, shares, pairs),
            *_caution(rho, largest, len(seen.gain)),
        ),
        controls=_controls(nats, seen.floor, shares["hard"]["share"]),
        num_prompts=len(seen.gain),
        num_samples=1,
        details={
            "rho": _plain(rho),
            "rho_random": list(chance),
            "largest_text": largest,
            **shares,
            **{k: _record(other, nats, k) for k, other in others.items()},
            "effect": _plain(nats.get("unsteered")),
            "pairs": pairs,
            "cumulative": _cumulative(seen),
        },
    )


def _check(seen: Decomposed) -> None:
    if not float(np.linalg.norm(seen.direction)) > 0:
        raise InputError("the vector to be taken apart is 0 and has no parts.")
    if seen.differences is None:
        return
    mean = seen.differences.mean(0)
    cosine = float(mean @ seen.unit / max(float(np.linalg.norm(mean)), 1e-300))
    if cosine < PARALLEL:
        raise InputError(
            f"the mean of the {len(seen.differences)} differences has a cosine of "
            f"{cosine:.3f} with v, so v is not their mean.",
            cause="They belong to another vector, site or sign.",
            remedy="Leave the differences out if v is no mean of differences.",
        )


def _rho(seen: Decomposed, seed: int) -> Estimate | None:
    """The ratio of means over texts, with its interval; None if nothing is seen."""
    mean = float(seen.trace.mean())
    if mean <= 0:
        return None
    generator = np.random.default_rng(seed)
    weights = resampling_weights(generator, NUM_DRAWS, len(seen.gain))
    # Stretched weights may turn negative, which a mean of squares cannot.
    gains, traces = (np.maximum(weights @ x, 0.0) for x in (seen.gain, seen.trace))
    draws = gains / np.maximum(traces, 1e-6 * mean)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(seen.gain.mean()) / mean, float(low), float(high))


def _chance(values: Vector, seed: int) -> tuple[float, float]:
    """Between which rho_F 95 % of random directions lie."""
    mean = float(values.mean())
    if mean <= 0:
        return (0.0, 0.0)
    generator = np.random.default_rng(seed)
    squares = generator.standard_normal((NUM_DRAWS, len(values))) ** 2
    low, high = np.quantile(squares @ values / squares.sum(1) / mean, [0.025, 0.975])
    return float(low), float(high)


def _largest(seen: Decomposed) -> dict[str, float] | None:
    """The share of tr F_bar that one text holds, and rho_F without this text."""
    total, most = float(seen.trace.sum()), int(seen.trace.argmax())
    rest = np.delete(np.arange(len(seen.trace)), most)
    without = float(seen.trace[rest].sum())
    if total <= 0 or without <= 0:
        return None
    return {
        "share": float(seen.trace[most]) / total,
        "rho_without": float(seen.gain[rest].sum()) / without,
    }


def _verdict(
    rho: Estimate | None,
    chance: tuple[float, float],
    largest: Mapping[str, float] | None,
    num_texts: int,
) -> Verdict:
    """VISIBLE and HIDDEN hold without the largest text too, and of enough texts."""
    if rho is None:
        return Verdict.UNINFORMATIVE
    if largest is None or num_texts < MINIMUM_TEXTS:
        return Verdict.INCONCLUSIVE
    above, below = max(1.0, chance[1]), min(1.0, chance[0])
    if rho.low > above and largest["rho_without"] > above:
        return Verdict.VISIBLE
    if rho.high < below and largest["rho_without"] < below:
        return Verdict.HIDDEN
    return Verdict.INCONCLUSIVE


def _caution(
    rho: Estimate | None, largest: Mapping[str, float] | None, num_texts: int
) -> list[str]:
    """What a mean over few or very unequal texts is worth."""
    if rho is None or largest is None:
        return []
    reasons = []
    if largest["share"] > MUCH:
        reasons.append(
            f"One text of {num_texts} holds {largest['share']:.0%} of tr F_bar; "
            f"without it rho_F is {largest['rho_without']:.2f}. Where texts are so "
            "unequal, more of them may say otherwise."
        )
    if num_texts < MINIMUM_TEXTS:
        reasons.append(
            f"A verdict is stated from {MINIMUM_TEXTS} texts on; these are {num_texts}."
        )
    return reasons


def _share(seen: Decomposed, null: Bool[np.ndarray, " d_model"]) -> dict[str, Any]:
    """Of v's length squared in the null space, beside that of a random direction."""
    dim, width = int(null.sum()), len(null)
    ends = [float(dim > 0)] * 2
    if 0 < dim < width:
        ends = stats.beta.ppf([0.025, 0.975], dim / 2, (width - dim) / 2).tolist()
    parts = seen.directions[:, null].T @ seen.unit
    return {
        "dim": dim,
        "share": min(1.0, float(parts @ parts)),
        "expected": [dim / width, *ends],
    }


def _representatives(seen: Decomposed) -> dict[str, Equivalent | None]:
    """The shortest vectors that do what v does; None without a budget."""
    step = torch.tensor(seen.strength * seen.unit)
    spectrum = Spectrum(torch.tensor(seen.values), torch.tensor(seen.directions))
    affordable = 0 < seen.tau < math.inf
    return {
        "canonical": canonical(step, spectrum, floor=seen.floor),
        "canonical_soft": canonical_soft(step, spectrum, nats=seen.tau)
        if affordable
        else None,
    }


def _record(
    other: Equivalent | None, nats: Mapping[str, Estimate], name: str
) -> dict[str, Any] | None:
    if other is None:
        return None
    cost, effect = nats.get(name), nats.get("unsteered")
    known = cost is not None and effect is not None and effect.value > 0
    return {
        "cosine": other.cosine,
        "norm": other.norm,
        "predicted": other.nats,
        "nats": _plain(cost),
        "relative": cost.value / effect.value if known else None,
    }


def _pairs(seen: Decomposed, seed: int) -> dict[str, Any] | None:
    """How far v may lie from the vector that ever more contrast pairs would give."""
    if seen.differences is None or len(seen.differences) < MINIMUM_PAIRS:
        return None
    parts = seen.differences @ seen.directions
    plain, visible = parts @ parts.T, (parts * seen.values) @ parts.T
    spread = (parts - parts.mean(0)) ** 2
    generator = np.random.default_rng(seed)
    weights = resampling_weights(generator, NUM_DRAWS, len(parts))
    return {
        "num": len(parts),
        "split_half": _split_half(plain, generator),
        "radius_deg": _radius(plain, weights),
        "radius_visible_deg": _radius(visible, weights),
        "noise_in_null": float(spread[:, seen.soft].sum() / spread.sum())
        if spread.sum() > 0
        else None,
        "noise_expected": float(seen.soft.mean()),
    }


def _split_half(gram: Gram, generator: np.random.Generator) -> list[float]:
    """Cosine between the means of random halves: median and the middle 95 %."""
    half = np.arange(len(gram)) < len(gram) // 2
    first = generator.permuted(np.tile(half, (NUM_SPLITS, 1)), axis=1).astype(float)
    second = 1 - first
    across, one, other = (
        ((left @ gram) * right).sum(1)
        for left, right in ((first, second), (first, first), (second, second))
    )
    cosines = across / np.sqrt(np.maximum(one * other, 1e-300))
    return np.quantile(cosines, [0.5, 0.025, 0.975]).tolist()


def _radius(gram: Gram, weights: Weights) -> float | None:
    """Within which angle the mean lies of its limit with 95 % confidence, in degrees.

    Angles are those of the Gram's metric.
    """
    num = len(gram)
    square = float(gram.mean())
    if square <= 0:
        return None
    noise = max(float(np.trace(gram)) / num - square, 0.0) / (num - 1)
    length = math.sqrt(max(square - noise, 0.0))
    away = weights - 1 / num
    pulled = away @ gram
    along = pulled.mean(1) / math.sqrt(square)
    across = (pulled * away).sum(1) - along**2
    angles = np.arctan2(np.sqrt(np.maximum(across, 0.0)), length + along)
    return math.degrees(float(np.quantile(angles, 0.95)))


def _cumulative(seen: Decomposed) -> dict[str, list[float]]:
    """Share of v in the first k eigenvectors, beside that of a random direction."""
    width = len(seen.values)
    dims = np.unique(np.geomspace(1, width, min(width, NUM_POINTS)).round().astype(int))
    shares = np.cumsum((seen.directions.T @ seen.unit) ** 2)[dims - 1]
    return {
        "dims": dims.tolist(),
        "v": np.minimum(shares, 1.0).tolist(),
        "random": (dims / width).tolist(),
    }


def _mean(table: Float[np.ndarray, " prompts"], seed: int) -> Estimate:
    rows = table[None, :]
    seen = estimate(rows, two_way_bootstrap({"": rows}, seed=seed)[""])
    return Estimate(seen.value, max(0.0, seen.low), seen.high)


def _plain(seen: Estimate | None) -> list[float] | None:
    return None if seen is None else [seen.value, seen.low, seen.high]


_CONCLUSIONS = {
    Verdict.VISIBLE: "v is seen more than 97.5 % of random directions are.",
    Verdict.HIDDEN: "v is seen less than 97.5 % of random directions are.",
    Verdict.INCONCLUSIVE: "a random direction could be seen as much.",
}


def _reasons(
    verdict: Verdict,
    rho: Estimate | None,
    chance: tuple[float, float],
    shares: Mapping[str, Mapping[str, Any]],
    pairs: Mapping[str, Any] | None,
) -> list[str]:
    if rho is None:
        return ["The Fisher matrix is 0: on these texts the output sees nothing."]
    hard, soft = shares["hard"], shares["soft"]
    reasons = [
        f"A step along v costs {rho.value:.2f} [{rho.low:.2f}, {rho.high:.2f}] times "
        f"what a random step costs on average, and 95 % of random directions cost "
        f"between {chance[0]:.2f} and {chance[1]:.2f} times so much: "
        + _CONCLUSIONS[verdict],
        f"{hard['share']:.1%} of v's length squared lies in the {hard['dim']} "
        f"dimensions that the output is not seen to see (a random direction: "
        f"{hard['expected'][0]:.1%}), and {soft['share']:.1%} in the {soft['dim']} "
        f"along which a step of its length costs at most {soft['tau']:.3g} nats (a "
        f"random direction: {soft['expected'][0]:.1%}).",
    ]
    if pairs is not None and pairs["radius_deg"] is not None:
        reasons.append(
            f"v, the mean of {pairs['num']} contrast pairs, lies within "
            f"{pairs['radius_deg']:.0f} degrees of the vector that ever more pairs "
            "would give, with 95 % confidence."
        )
    return reasons


def _controls(
    nats: Mapping[str, Estimate], floor: float, share: float
) -> tuple[Control, ...]:
    """Taking out of v what the output does not see must not change what v writes.

    Both sides are of the test texts. A v that is all null has nothing left to compare.
    """
    cost, effect = nats.get("canonical"), nats.get("unsteered")
    if cost is None or effect is None or 1 - share <= FLOORS_APART * floor:
        return ()
    expected = (
        f"v without its hard null part costs at most {RELATIVE_BUDGET:.0%} of v's own "
        f"{effect.value:.3g} nats, on the same texts"
    )
    holds = cost.high <= RELATIVE_BUDGET * effect.low
    return (Control("canonical", expected, cost, "", holds),)
