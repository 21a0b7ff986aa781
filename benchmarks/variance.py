"""What common random numbers and the exact KL save: variances on the same texts.

    python benchmarks/variance.py [--prompts 50] [--samples 8] [--json FILE]
                                  [--markdown]

On the built-in reference model and its formality vector. Two questions:

scores     the difference of mean score between two arms. Texts of the same prompt and
           sample share their random numbers. With independent noise the variance of
           their difference would be the sum of both arms' variances between the
           samples of a prompt. With sigma^2 the variance of the true difference
           between prompts and w that of one pair of samples within a prompt, an
           interval from n prompts and S samples is as wide as
           sqrt((sigma^2 + w / S) / n).
KL         the exact sum of per-step divergences of a text against the log-ratio of its
           probabilities. Both have the mean K(v || c); the first is the second with
           the drawn token averaged over (Rao and Blackwell).

    samples    w without / w with: samples a prompt that are saved
    prompts    (sigma^2 + w / S) without / with, at S samples: prompts that are saved
    from others  the same against other prompts, too, at one sample a prompt

Intervals of 95 % resample prompts. The last line is all of it in JSON; with
--markdown, all that is printed are the two tables of docs/cost.md.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from steergauge import scoring
from steergauge.audits.controls import perpendicular, total
from steergauge.extraction.methods import extract
from steergauge.generation import Arm, Decoding, Sample, generate
from steergauge.intervention import Add
from steergauge.loading import load
from steergauge.prompts import Text, encode
from steergauge.runs import plan
from steergauge.runs.spec import spec_from
from steergauge.split import LanguageModel
from steergauge.vector import SteeringVector

NUM_DRAWS = 2000
NUM_PERPENDICULAR = 3
Scores = Float[np.ndarray, "directions prompts samples"]


@dataclass(frozen=True, slots=True)
class Saved:
    """How many times fewer samples or prompts, with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As in the table."""
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True, slots=True)
class Measured:
    """One comparison: two numbers that name it, and what is saved, by kind.

    Attributes:
        name: of the comparison.
        first: the mean difference of scores, or the mean exact KL.
        second: the share of texts that are the same, or the mean log-ratio.
        saved: by kind, how many times fewer.
    """

    name: str
    first: float
    second: float
    saved: Mapping[str, Saved]


def savings(
    with_: Scores,
    without: Float[np.ndarray, " prompts"],
    apart: Float[np.ndarray, " prompts"] | None,
) -> dict[str, Saved]:
    """Ratios of variances with intervals over prompts.

    Args:
        with_: differences of texts with common random numbers, or exact divergences.
        without: variance within each prompt of one sample without.
        apart: per prompt, squared deviations of either arm's single samples from its
            own grand mean, summed: the variance without a common prompt.
    """
    means, within = with_.mean((0, 2)), with_.var(axis=2, ddof=1).mean(0)
    # Directions have noise of their own, so their mean has less than one of them.
    noise = with_.mean(0).var(axis=1, ddof=1) / with_.shape[2]
    num = len(means)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(num, np.full(num, 1 / num), size=NUM_DRAWS) / num
    weights = np.concatenate([np.full((1, num), 1 / num), drawn])
    own, other = weights @ within, weights @ without
    spread = weights @ means**2 - (weights @ means) ** 2
    # Between prompts, what the samples' own noise adds to it taken off.
    between = np.maximum(spread * num / (num - 1) - weights @ noise, 0)
    found = {"samples": _ratio(other, own)}
    for count in (1, 4, 10):
        found[f"prompts, S = {count}"] = _ratio(
            between + other / count, between + own / count
        )
    if apart is not None:
        found["from others, S = 1"] = _ratio(weights @ apart, between + own)
    return found


def _ratio(top: np.ndarray, bottom: np.ndarray) -> Saved:
    """The first entry is the measured one, the rest are resamples."""
    values = top / np.maximum(bottom, 1e-12)  # Resamples of few prompts may not vary.
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Saved(float(values[0]), float(low), float(high))


def compared(name: str, first: Scores, second: Scores, same: float) -> Measured:
    """The difference first - second, with and without common random numbers."""
    with_ = first - second
    # Not of texts held against another sample: their differences are not independent.
    without = sum(scores.var(axis=2, ddof=1).mean(0) for scores in (first, second))
    apart = sum(
        ((scores - scores.mean((1, 2), keepdims=True)) ** 2).mean((0, 2))
        for scores in (first, second)
    )
    saved = savings(with_, np.asarray(without), np.asarray(apart))
    return Measured(name, float(with_.mean()), same, saved)


def scores_of(
    drawn: Sequence[Sample], scores: Sequence[float], arm: str, shape: tuple[int, int]
) -> Scores:
    """Scores of one arm as (1, prompts, samples)."""
    found = np.full(shape, np.nan)
    for sample, score in zip(drawn, scores, strict=True):
        if sample.arm == arm:
            found[sample.index, sample.sample] = score
    return found[None]


def arms_of(vector: SteeringVector, alphas: Sequence[float]) -> dict[str, Arm]:
    """Unsteered, and at each strength v, v + v_perp and a slightly stronger v."""
    arms = {"unsteered": Arm()}
    added = [perpendicular(vector, seed=j) for j in range(NUM_PERPENDICULAR)]
    for alpha in alphas:
        arms[f"v@{alpha:g}"] = Arm(Add(vector, alpha))
        arms[f"more@{alpha:g}"] = Arm(Add(vector, 1.1 * alpha))
        for j, other in enumerate(added):
            both = total(vector, other, f"v + v_perp, seed {j}")
            arms[f"perp@{alpha:g}[{j}]"] = Arm(Add(both, alpha))
    return arms


def identical(drawn: Sequence[Sample], first: str, second: str) -> float:
    """Share of prompts and samples at which both arms wrote the same tokens."""
    texts: dict[str, dict[tuple[int, int], tuple[int, ...]]] = {}
    for sample in drawn:
        own = texts.setdefault(sample.arm, {})
        own[sample.index, sample.sample] = sample.token_ids
    one, other = texts[first], texts[second]
    return float(np.mean([one[key] == other[key] for key in one]))


def score_savings(
    drawn: Sequence[Sample],
    scores: Sequence[float],
    alpha: float,
    shape: tuple[int, int],
) -> list[Measured]:
    """The comparisons that T1 and T3 make, at one strength."""
    v, more = f"v@{alpha:g}", f"more@{alpha:g}"
    perps = [f"perp@{alpha:g}[{j}]" for j in range(NUM_PERPENDICULAR)]

    def of(*names: str) -> Scores:
        return np.concatenate([scores_of(drawn, scores, one, shape) for one in names])

    same = float(np.mean([identical(drawn, one, v) for one in perps]))
    return [
        compared(
            f"v - unsteered, alpha {alpha:g}",
            of(v),
            of("unsteered"),
            identical(drawn, v, "unsteered"),
        ),
        compared(f"v + v_perp - v, alpha {alpha:g}", of(*perps), of(v), same),
        compared(
            f"1.1 v - v, alpha {alpha:g}", of(more), of(v), identical(drawn, more, v)
        ),
    ]


def kl_savings(
    lm: LanguageModel,
    drawn: Sequence[Sample],
    arms: Mapping[str, Arm],
    alpha: float,
    shape: tuple[int, int],
) -> list[Measured]:
    """The divergences that T4 takes of v's texts, exactly and by log-ratios."""
    v = f"v@{alpha:g}"
    own = sorted(
        (one for one in drawn if one.arm == v), key=lambda one: (one.index, one.sample)
    )
    rows = [
        scoring.Continuation(encode(lm, Text(one.prompt))[0], one.token_ids)
        for one in own
    ]
    others = {"unsteered": "unsteered", "v + v_perp": f"perp@{alpha:g}[0]"}
    steering = {name: arms[arm].intervention for name, arm in others.items()}
    exact = scoring.sequence_kl(lm, rows, arms[v].intervention, steering)
    base = scoring.negative_log_likelihood(lm, rows, arms[v].intervention)
    found = []
    for name, other in steering.items():
        drawn_kl = scoring.negative_log_likelihood(lm, rows, other) - base
        table, ratio = (values.reshape(1, *shape) for values in (exact[name], drawn_kl))
        saved = savings(table, ratio.var(axis=2, ddof=1).mean(0), None)
        label = f"K(v || {name}), alpha {alpha:g}"
        found.append(Measured(label, float(table.mean()), float(ratio.mean()), saved))
    return found


def measured(
    prompts: int, samples: int, tokens: int, alphas: Sequence[float]
) -> tuple[list[Measured], list[Measured]]:
    """Everything, on the reference model."""
    lm = load("builtin:organism")
    spec = spec_from({}, preset="quick", trait="formality", num_prompts=prompts)
    inputs = plan.gather(lm, spec, None)
    assert inputs.probe is not None, "formality has a probe"
    vector = extract(lm, inputs.pairs, layer=inputs.spec.layer)
    arms = arms_of(vector, alphas)
    drawn = generate(
        lm,
        inputs.test_prompts,
        arms,
        samples=samples,
        decoding=Decoding(tokens, seed=0),
    )
    scores = inputs.probe([one.text for one in drawn])
    shape = (len(inputs.test_prompts), samples)
    by_score, by_kl = [], []
    for alpha in alphas:
        by_score += score_savings(drawn, scores, alpha, shape)
        by_kl += kl_savings(lm, drawn, arms, alpha, shape)
    return by_score, by_kl


def shown(title: str, means: tuple[str, str], rows: Sequence[Measured]) -> Table:
    """A table of what is saved."""
    found = Table(title=title)
    for column in ("comparison", *means, *rows[0].saved):
        found.add_column(column)
    for one in rows:
        numbers = (f"{one.first:.3f}", f"{one.second:.3f}")
        found.add_row(one.name, *numbers, *map(str, one.saved.values()))
    return found


KINDS = {
    "samples": "samples",
    "prompts": "prompts, S = 4",
    "from others": "from others, S = 1",
}
"""Columns of the published tables."""


def markdown(
    by_score: Sequence[Measured], by_kl: Sequence[Measured]
) -> tuple[str, str]:
    """The tables of docs/cost.md: of differences of scores, and of divergences."""
    scores = [
        [one.name, f"{one.first:+.3f}", f"{100 * one.second:.0f}"] for one in by_score
    ]
    # A bar would end the cell.
    divergences = [
        [one.name.replace(" || ", ", "), f"{one.first:.3f}", f"{one.second:.3f}"]
        for one in by_kl
    ]
    return (
        _rows(("difference of scores", "mean", "same text, %"), scores, by_score),
        _rows(("divergence", "exact, nats", "log-ratio, nats"), divergences, by_kl),
    )


def _rows(
    names: Sequence[str], cells: Sequence[Sequence[str]], rows: Sequence[Measured]
) -> str:
    kinds = [kind for kind, key in KINDS.items() if key in rows[0].saved]
    columns = (*names, *kinds)
    lines = [columns, ("---",) * len(columns)]
    for own, row in zip(cells, rows, strict=True):
        lines.append((*own, *(_published(row.saved[KINDS[kind]]) for kind in kinds)))
    told = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([told[0], told[1].replace(" ", ""), *told[2:]])


def _published(saved: Saved) -> str:
    """To a tenth; whole where that says nothing."""
    form = ".0f" if saved.value >= 30 else ".1f"
    return f"{saved.value:{form}} [{saved.low:{form}}, {saved.high:{form}}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args(arguments)
    by_score, by_kl = measured(given.prompts, given.samples, given.tokens, given.alphas)
    report = {
        "prompts": given.prompts,
        "samples": given.samples,
        "tokens": given.tokens,
        "scores": [asdict(one) for one in by_score],
        "kl": [asdict(one) for one in by_kl],
    }
    text = json.dumps(report)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    if given.markdown:
        print(*markdown(by_score, by_kl), sep="\n\n")
        return
    console = Console(width=180)
    means = ("mean", "same text")
    console.print(shown("common random numbers, times fewer", means, by_score))
    means = ("exact", "log-ratio")
    console.print(shown("exact KL of each step, times fewer", means, by_kl))
    print(text)


if __name__ == "__main__":
    main()
