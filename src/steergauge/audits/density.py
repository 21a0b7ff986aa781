"""T19, density: do steered states lie among natural ones?

No prompt makes a steered state (T16); whether it lies where natural states lie is asked
here. It has two scores against natural states of other texts (`reachability.density`),
each with its conformal p among the states of further texts, the calibration, and it is
*off* if its joint p is below .01.

================  =====================================================================
UNINFORMATIVE     there are too few calibration states for a p below .01, or they are
                  of too few prompts, or natural states of the test's own prompts
                  score higher than the calibration's
OFF MANIFOLD      steering takes most states off: v's state is off where the natural
                  one is not, at more than half of the prompts; and at more than half
                  v's state is more extreme than that of a token swap of the same length
ON MANIFOLD       at most 10 % of v's states are off, a greater share of those after
                  random steps of the same length, and v's are not more extreme
INCONCLUSIVE      anything else, such as random steps that look natural as well: then
                  the instrument is blind to steps of this length
================  =====================================================================

Shares are means over prompts, and each rule is held to the end of a 95 % interval that
is against it: a bootstrap over prompts, widened to the exact binomial interval of as
many (Clopper and Pearson 1934), since prompts that agree leave nothing to resample.

A swap has to be a step that owes nothing to the state it starts from: the difference of
two other tokens at that place. A step towards another natural state ends between two
of them, where any state is less extreme.

Four choices keep the level. Calibration states are of 50 prompts or more: texts of one
prompt are alike, and of few prompts they would not stand for those of another. Natural
states of the test are held against the calibration's by a two-sample test (Kolmogorov
and Smirnov; of both one state a prompt), since all p share one calibration and would
fail a test of uniformity too often; one-sided, as only small p count as off. The more
extreme of two states is the one whose larger score in units of the calibration, (s -
median) / (q99 - median), is larger, which treats both alike. And a state that was off
before the step is not counted against the step.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.errors import InputError
from steergauge.reachability.density import conformal, joint_p
from steergauge.statistics import Draws, Estimate, estimate, two_way_bootstrap

LEVEL = 0.01
"""p below which a state is off the manifold."""

MOST = 0.5
"""Share of prompts above which v's states are off, and beyond token swaps."""

FEW = 0.1
"""Share of prompts up to which v's states are on the manifold."""

FEWEST_PROMPTS = 50
"""Prompts of the calibration. With 12, and nine tenths of the variance between prompts,
4.5 % of natural states had p below .01 in a simulation; with 74, 1.1 %."""

UNIFORM_LEVEL = 1e-3
"""p below which the test's natural states are no more like the calibration's."""

LABELS = {
    "natural": "natural states",
    "v": "steered states",
    "random": "random steps of the same length",
    "swap": "token swaps of the same length",
}

States = Float[np.ndarray, " states"]
Prompts = Int[np.ndarray, " states"]
Clusters = Int[np.ndarray, " calibration"]


@dataclass(frozen=True, slots=True)
class Family:
    """States of one kind, one of each test text, in the same order in all families.

    Attributes:
        name: natural, v, random or swap; calibration.
        mahalanobis: first score.
        neighbours: second score.
        norm: ||h'|| / ||h||; of the calibration, ||h|| over the typical ||h||.
        angle: between h' and h in radians; 0 of natural states.
    """

    name: str
    mahalanobis: States
    neighbours: States
    norm: States
    angle: States

    @property
    def scores(self) -> tuple[States, States]:
        """Both scores."""
        return self.mahalanobis, self.neighbours


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the verdict rests on, by family where there is one for each.

    Attributes:
        p: joint p of each state.
        off: share of states that are off.
        taken: share of places where v's state is off and the natural one is not.
        beyond: share of places where v's state is more extreme than the family's.
        uniform: statistic and p of the natural states against the calibration's.
        num_calibration: states of the calibration.
        num_prompts: prompts that they are of.
    """

    p: Mapping[str, States]
    off: Mapping[str, Estimate]
    taken: Estimate
    beyond: Mapping[str, Estimate]
    uniform: tuple[float, float]
    num_calibration: int
    num_prompts: int

    @property
    def smallest_p(self) -> float:
        """That any state can have."""
        return min(1.0, 2 / (self.num_calibration + 1))


def density(
    families: Mapping[str, Family],
    calibration: Family,
    *,
    prompts: Prompts,
    num_reference: int,
    components: int,
    calibration_prompts: Clusters | None = None,
    seed: int = 0,
) -> Finding:
    """Whether steered states could be told from natural ones by where they lie.

    Args:
        families: natural, v, random and swap: states at the same places, with random
            steps and swaps as long as v's step there.
        calibration: natural states of other texts, one a text.
        prompts: which prompt each state under test is of.
        num_reference: states that the density was fitted to.
        components: principal directions that it keeps.
        calibration_prompts: which prompt each calibration state is of; None means that
            no two are of the same.
        seed: of the bootstrap.

    Raises:
        InputError: a family is missing, or its states are not those of the others.
    """
    _check(families, calibration, prompts)
    num = len(calibration.norm)
    clusters = np.arange(num) if calibration_prompts is None else calibration_prompts
    seen = _seen(families, calibration, (prompts, clusters), seed)
    verdict, reason = _judge(seen)
    numbers = () if seen.smallest_p >= LEVEL else _numbers(seen)
    return Finding(
        audit="density",
        code="T19",
        subject="",
        claim="Steered states lie where natural states lie.",
        quantity=f"share of steered states with a conformal p below {LEVEL:g}",
        estimate=seen.off["v"],
        null=f"at most {LEVEL:g} of natural states",
        verdict=verdict,
        reasons=(reason, *numbers, _drift(families, calibration), LIMIT),
        controls=_controls(seen),
        num_prompts=len(np.unique(prompts)),
        num_samples=1,
        details={
            "num_reference": num_reference,
            "num_calibration": seen.num_calibration,
            "num_calibration_prompts": seen.num_prompts,
            "num_test": len(prompts),
            "components": components,
            "smallest_p": seen.smallest_p,
            "families": [_plain(name, families[name], seen) for name in LABELS],
            "uniform": {"statistic": seen.uniform[0], "p": seen.uniform[1]},
            "norm_of_natural": _quantiles(calibration.norm),
        },
    )


def _check(
    families: Mapping[str, Family], calibration: Family, prompts: Prompts
) -> None:
    if missing := [name for name in LABELS if name not in families]:
        raise InputError(
            f"the density was asked of {', '.join(families) or 'no family'}; "
            f"{', '.join(missing)} is missing, and without it no verdict is possible.",
            remedy="Score steps of all four kinds at the same places.",
        )
    for family in (calibration, *(families[name] for name in LABELS)):
        columns = (*family.scores, family.norm, family.angle)
        num = len(family.norm)
        if not num or (family is not calibration and num != len(prompts)):
            raise InputError(
                f"{family.name} has {num} states, and {len(prompts)} are tested.",
                cause="They are of different texts, or there are none.",
            )
        if not all(np.isfinite(column).all() for column in columns):
            raise InputError(
                f"scores of {family.name} hold NaN or infinity.",
                cause="Steering drove the stream out of the model's precision.",
                remedy="Steer with a smaller alpha.",
            )


def _seen(
    families: Mapping[str, Family],
    calibration: Family,
    clusters: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> _Seen:
    prompts, _ = clusters
    p = {name: _joint(families[name], calibration) for name in LABELS}
    extremity = {name: _extremity(families[name], calibration) for name in LABELS}
    rows = {f"off {name}": np.where(p[name] < LEVEL, 1.0, 0.0) for name in LABELS}
    rows["taken"] = rows["off v"] * (1 - rows["off natural"])
    for other in ("random", "swap"):
        rows[f"beyond {other}"] = _beyond(extremity["v"], extremity[other])
    shares = _shares(rows, prompts, seed)
    return _Seen(
        p=p,
        off={name: shares[f"off {name}"] for name in LABELS},
        taken=shares["taken"],
        beyond={other: shares[f"beyond {other}"] for other in ("random", "swap")},
        uniform=_uniform(families["natural"], calibration, clusters),
        num_calibration=len(calibration.norm),
        num_prompts=len(np.unique(clusters[1])),
    )


def _joint(family: Family, calibration: Family) -> States:
    pairs = zip(family.scores, calibration.scores, strict=True)
    return joint_p(*(conformal(own, natural) for own, natural in pairs))


def _extremity(family: Family, calibration: Family) -> States:
    """The larger of the two scores, in units of the calibration's upper half."""
    found = []
    for own, natural in zip(family.scores, calibration.scores, strict=True):
        middle, high = np.quantile(natural, [0.5, 0.99])
        # Natural states that all have the same score leave no unit but the score's.
        found.append((own - middle) / (high - middle if high > middle else 1.0))
    return np.maximum(*found)


def _beyond(first: States, second: States) -> States:
    """1 where the first is larger, 0 where the second is, half for a tie."""
    return (np.sign(first - second) + 1) / 2


def _shares(
    rows: Mapping[str, States], prompts: Prompts, seed: int
) -> dict[str, Estimate]:
    """Means over prompts with intervals, resampled jointly."""
    _, which, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    tables = {
        name: (np.bincount(which, weights=row) / counts)[None, :]
        for name, row in rows.items()
    }
    draws = two_way_bootstrap(tables, fixed=tuple(tables), seed=seed)
    return {name: _share(table, draws[name]) for name, table in tables.items()}


def _share(table: Float[np.ndarray, "1 prompts"], draws: Draws) -> Estimate:
    """A share with the wider of both intervals; see the module."""
    seen, num = estimate(table, draws), table.shape[1]
    found = seen.value * num
    low = stats.beta.ppf(0.025, found, num - found + 1) if found > 0 else 0.0
    high = stats.beta.ppf(0.975, found + 1, num - found) if found < num else 1.0
    low, high = min(seen.low, float(low)), max(seen.high, float(high))
    return Estimate(seen.value, max(0.0, low), min(1.0, high))


def _uniform(
    natural: Family, calibration: Family, clusters: tuple[np.ndarray, np.ndarray]
) -> tuple[float, float]:
    """Whether natural states score higher than the calibration's do."""
    first, second = (np.unique(own, return_index=True)[1] for own in clusters)
    found = [
        # "less": the distribution function lies below, so that the scores lie above.
        stats.ks_2samp(own[first], other[second], alternative="less", method="asymp")
        for own, other in zip(natural.scores, calibration.scores, strict=True)
    ]
    worst = min(found, key=lambda test: test.pvalue)
    return float(worst.statistic), min(1.0, 2 * float(worst.pvalue))


def _judge(seen: _Seen) -> tuple[Verdict, str]:
    if seen.smallest_p >= LEVEL:
        return Verdict.UNINFORMATIVE, (
            f"With {seen.num_calibration} calibration states no p can be below "
            f"{seen.smallest_p:.2g}, whatever the state: it takes "
            f"{2 / LEVEL:.0f} or more to find one below {LEVEL:g}."
        )
    if seen.num_prompts < FEWEST_PROMPTS:
        return Verdict.UNINFORMATIVE, (
            f"The calibration is of {seen.num_prompts} prompts, and it takes "
            f"{FEWEST_PROMPTS}: texts of one prompt are alike, and what is rare among "
            "so few prompts may be common among others."
        )
    if seen.uniform[1] < UNIFORM_LEVEL:
        return Verdict.UNINFORMATIVE, (
            "Unsteered states of the test's prompts score higher than those of the "
            f"calibration (Kolmogorov-Smirnov p = {seen.uniform[1]:.2g}): the texts "
            "are of different kinds, and what would look off after steering may have "
            "looked so before."
        )
    if seen.taken.low > MOST and seen.beyond["swap"].low > MOST:
        return Verdict.OFF_MANIFOLD, (
            f"Steering takes {_percent(seen.taken)} of the states off the manifold, "
            f"and at {_percent(seen.beyond['swap'])} of the places further than a "
            f"token swap of the same length does. {_as_random(seen)}"
        )
    if seen.off["v"].high <= FEW:
        return _among_natural(seen)
    if seen.taken.low > MOST:
        return Verdict.INCONCLUSIVE, (
            "Steering takes most states off the manifold, but is not shown to take "
            "them further than a token swap of the same length does (v's state is the "
            f"more extreme at {_percent(seen.beyond['swap'])} of the places): a step "
            "of this length may be enough, whatever its direction."
        )
    return Verdict.INCONCLUSIVE, (
        f"Steering takes {_percent(seen.taken)} of the states off the manifold, and "
        f"the interval lies neither above {MOST:.0%} nor below {FEW:.0%}."
    )


def _as_random(seen: _Seen) -> str:
    """Whether being off is v's own, or that of any step so long."""
    if seen.beyond["random"].low > MOST:
        return "It also goes further than random steps of the same length."
    return (
        "It is not shown to go further than a random step of the same length "
        f"({_percent(seen.beyond['random'])} of the places): the length may be all "
        "there is to it, whatever the direction."
    )


def _among_natural(seen: _Seen) -> tuple[Verdict, str]:
    """Few of v's states are off: is that so of any step?"""
    few = f"Only {_percent(seen.off['v'])} of the steered states are off the manifold"
    if seen.off["random"].low <= seen.off["v"].high:
        return Verdict.INCONCLUSIVE, (
            f"{few}, but random steps of the same length are not shown to take more "
            f"off ({_percent(seen.off['random'])}): the instrument is blind to steps "
            "of this length, whatever their direction."
        )
    if seen.beyond["random"].low > MOST:
        return Verdict.INCONCLUSIVE, (
            f"{few}, yet at {_percent(seen.beyond['random'])} of the places they are "
            "more extreme than those after a random step of the same length."
        )
    return Verdict.ON_MANIFOLD, (
        f"{few}, where random steps of the same length take "
        f"{_percent(seen.off['random'])} off: v moves states along directions in "
        "which natural ones differ."
    )


def _numbers(seen: _Seen) -> tuple[str, str]:
    off = {name: _percent(share) for name, share in seen.off.items()}
    return (
        f"A conformal p below {LEVEL:g} is that of {off['v']} of the steered states, "
        f"of {off['swap']} after a token swap of the same length, of {off['random']} "
        f"after a random step of the same length, and of {off['natural']} of the "
        "natural ones.",
        "The steered state is more extreme than that of the swap at "
        f"{_percent(seen.beyond['swap'])} of the places, and than that of the random "
        f"step at {_percent(seen.beyond['random'])}: 50 % if they were alike.",
    )


def _drift(families: Mapping[str, Family], calibration: Family) -> str:
    def moved(name: str) -> str:
        norm, angle = np.median(families[name].norm), np.median(families[name].angle)
        return f"{norm:.3g} times as long and turns it by {np.degrees(angle):.3g}"

    low, high = np.quantile(calibration.norm, [0.05, 0.95])
    return (
        f"Steering makes a state {moved('v')} degrees (medians), a token swap "
        f"{moved('swap')}, a random step {moved('random')}; natural states themselves "
        f"are {low:.3g} to {high:.3g} times as long as is typical (5 to 95 %)."
    )


LIMIT = (
    "Natural states are those of the texts that were read: a state off that manifold "
    "may be natural in other texts, and one on it need not be the state of any text."
)


def _controls(seen: _Seen) -> tuple[Control, ...]:
    alike = "unsteered states of the test's prompts score as the calibration's do"
    leave = f"random steps of v's length take more than {MOST:.0%} of the states off"
    natural, random = seen.off["natural"], seen.off["random"]
    return (
        Control("natural", alike, natural, "", seen.uniform[1] >= UNIFORM_LEVEL),
        Control("random", leave, random, "", random.low > MOST),
    )


def _plain(name: str, family: Family, seen: _Seen) -> dict[str, Any]:
    p, angle = seen.p[name], float(np.degrees(np.median(family.angle)))
    return {
        "name": name,
        "label": LABELS[name],
        "p": p.tolist(),
        "share": asdict(seen.off[name]),
        "median_p": float(np.median(p)),
        "mahalanobis": float(np.median(family.mahalanobis)),
        "neighbours": float(np.median(family.neighbours)),
        "norm": _quantiles(family.norm),
        "angle": None if name == "natural" else angle,
    }


def _quantiles(values: States) -> dict[str, float]:
    """The median, and between what the middle 90 % lie."""
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    return {"median": float(median), "low": float(low), "high": float(high)}


def _percent(share: Estimate) -> str:
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"
