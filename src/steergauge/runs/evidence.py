"""From stored rows to the arrays that audits take, and the dose curve.

A table has one row per random direction of a family (`perp[0]`, `perp[1]`, ... are one
family) and one column per prompt; an entry is the mean over that cell's samples.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from steergauge.audits.comparison import oriented
from steergauge.audits.finding import MOST_DIFFERENT
from steergauge.generation import Arm
from steergauge.runs.spec import PERPLEXITY_LIMIT
from steergauge.runs.store import Rows
from steergauge.statistics import (
    NUM_DRAWS,
    Estimate,
    Table,
    estimate,
    resampling_weights,
    two_way_bootstrap,
)


@dataclass(frozen=True, slots=True)
class Dose:
    """One strength of the dose curve.

    Attributes:
        alpha: the strength.
        step: ||alpha v|| as a share of the median ||h||.
        lift: of the probe score over unsteered; None without a probe.
        nats: sequence KL from unsteered.
        perplexity_ratio: perplexity under the unsteered model, over unsteered texts'.
        perplexity_high: upper end of that ratio's interval over prompts.
    """

    alpha: float
    step: float
    lift: Estimate | None
    nats: Estimate
    perplexity_ratio: float
    perplexity_high: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DoseCurve:
    """Strengths in both directions, and the one that they recommend.

    Attributes:
        doses: by strength, 0 left out.
        recommended: largest strength at which texts stay coherent both ways.
        coherent: whether there is any such strength; else the smallest is taken.
    """

    doses: tuple[Dose, ...]
    recommended: float
    coherent: bool


def score_arrays(rows: Rows) -> dict[str, np.ndarray]:
    """Scores as (directions, prompts, samples) by family, prompts in order."""
    arms: dict[str, dict[int, list[float]]] = {}
    for row in sorted(rows, key=lambda row: (row["prompt_index"], row["sample"])):
        cells = arms.setdefault(row["arm"], {})
        cells.setdefault(row["prompt_index"], []).append(row["score"])
    found: dict[str, list[np.ndarray]] = {}
    for name, cells in arms.items():
        array = np.array([cells[index] for index in sorted(cells)])
        found.setdefault(family(name), []).append(array)
    return {name: np.stack(arrays) for name, arrays in found.items()}


def family(arm: str) -> str:
    """`perp[3]` -> `perp`; rivals stay apart: they are vectors, not draws of one."""
    return arm if arm.startswith("against[") else arm.partition("[")[0]


def per_prompt(rows: Rows, column: str, by: str = "arm") -> dict[str, np.ndarray]:
    """Means over samples, (prompts,) by arm, prompts in order."""
    cells: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        arm = cells.setdefault(row[by], {})
        arm.setdefault(row["prompt_index"], []).append(row[column])
    return {
        name: np.array([np.mean(arm[index]) for index in sorted(arm)])
        for name, arm in cells.items()
    }


def shares_noise_and_alpha(name: str) -> bool:
    """Whether a family is steered at the test's alpha, with what T1 and T3 compare."""
    return "@" not in name and not name.startswith(("v_plus_perp_fresh", "code_"))


def families(columns: Mapping[str, np.ndarray]) -> dict[str, Table]:
    """Columns of one family stacked: {"perp": (directions, prompts), ...}."""
    grouped: dict[str, list[np.ndarray]] = {}
    for name, column in columns.items():
        grouped.setdefault(family(name), []).append(column)
    return {name: np.stack(rows) for name, rows in grouped.items()}


def lifts(rows: Rows) -> dict[str, Table]:
    """Score minus unsteered score, per family; `unsteered` itself is 0."""
    scores = per_prompt(rows, "score")
    base = scores["unsteered"]
    return families({name: column - base for name, column in scores.items()})


def compared_lifts(rows: Rows, alpha: float) -> dict[str, Table]:
    """Lifts of what T1 and T3 compare, positive in the direction of alpha."""
    return {
        name: oriented(table, alpha)
        for name, table in lifts(rows).items()
        if shares_noise_and_alpha(name)
    }


def subjects(arms: Collection[str]) -> dict[str, str]:
    """What is compared with v: arm family -> how a reader knows it."""
    rivals = {name: name for name in arms if name.startswith("against[")}
    turned = {"v_turned": "v turned"} if "v_turned[0]" in arms else {}
    other = {MOST_DIFFERENT: "v most different"}
    known = {"v_plus_perp": "", "perp": "v_perp alone", **turned, **rivals}
    return known | (other if MOST_DIFFERENT in arms else {})


def perplexity(rows: Rows, arm: str) -> float:
    """Exponential of the mean -log P a token of an arm's texts."""
    own = [row for row in rows if row["arm"] == arm]
    tokens = sum(row["num_tokens"] for row in own)
    mean = sum(row["nll"] for row in own) / max(1, tokens)
    return float(np.exp(min(mean, 700.0)))  # e^700 is still a float64


def dose_curve(
    texts: Rows,
    scores: Rows,
    arms: Mapping[str, Arm],
    *,
    step_unit: float,
) -> DoseCurve:
    """Lift, divergence and coherence by strength, and the strength they recommend.

    Args:
        texts: the stage's texts with their scores.
        scores: their KL from unsteered and -log P under the unsteered model.
        arms: the stage's arms.
        step_unit: ||v|| as a share of the median ||h||.
    """
    nats = families(per_prompt(scores, "nats"))["dose"]
    names = [name for name in arms if name != "unsteered"]
    has_scores = all(row["score"] is not None for row in texts)
    lift = lifts(texts)["dose"] if has_scores else None
    base = perplexity(scores, "unsteered")
    doses = []
    for i, name in enumerate(names):
        steering = arms[name].intervention
        assert steering is not None
        doses.append(
            Dose(
                alpha=steering.alpha,
                step=abs(steering.alpha) * step_unit,
                lift=None if lift is None else _alone(lift[i]),
                nats=_alone(nats[i]),
                perplexity_ratio=perplexity(scores, name) / base,
                perplexity_high=_highest_ratio(scores, name),
            )
        )
    doses.sort(key=lambda dose: dose.alpha)
    return _recommend(tuple(doses))


def _highest_ratio(scores: Rows, arm: str) -> float:
    """Upper end of the interval of an arm's perplexity over the unsteered one."""
    weights = resampling_weights(
        np.random.default_rng(0), NUM_DRAWS, _num_prompts(scores)
    )
    logs = {}
    for name in (arm, "unsteered"):
        own = [row for row in scores if row["arm"] == name]
        nll = per_prompt(own, "nll")[name]
        tokens = per_prompt(own, "num_tokens")[name]
        # Stretched weights can be negative, sums of tokens over prompts hardly.
        logs[name] = (weights @ nll) / np.maximum(weights @ tokens, 1.0)
    ratio = np.exp(np.minimum(logs[arm] - logs["unsteered"], 700.0))
    return float(np.quantile(ratio, 0.975))


def _num_prompts(rows: Rows) -> int:
    return len({row["prompt_index"] for row in rows})


def _alone(column: np.ndarray) -> Estimate:
    table = column[None, :]
    return estimate(table, two_way_bootstrap({"": table})[""])


def _recommend(doses: tuple[Dose, ...]) -> DoseCurve:
    """The largest |alpha| up to which both directions are surely coherent.

    The upper end of the ratio's interval is held against the limit, so that the texts
    of the test, whose prompts are others, are coherent too.
    """
    worst: dict[float, float] = {}
    for dose in doses:
        size = abs(dose.alpha)
        worst[size] = max(worst.get(size, 0.0), dose.perplexity_high)
    best = 0.0
    for size in sorted(worst):
        if worst[size] > PERPLEXITY_LIMIT:
            break
        best = size
    return DoseCurve(doses, best or min(worst), coherent=best > 0)
