"""How often our own verdicts are right: whole studies with known answers, counted.

A study is simulated, not measured: the probe's scores of every arm are drawn from a
model whose lifts are known, and the real T1 and T3 judge them. Counted over many
seeds, the verdicts are the audits' operating characteristics: false EQUIVALENT and
false DIFFERENT each at most 5 in 100, everything else honest or right.

    python -m steergauge.calibration docs/calibration.md

writes the tables of that page again; the page states the model in full.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from steergauge.audits.comparison import MINIMUM_PROMPTS
from steergauge.audits.equivalence import equivalence
from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.manipulation import MINIMUM_NULLS, manipulation
from steergauge.errors import InputError, NoSuchFile
from steergauge.statistics import Table

BASE = 0.5
HALF_WIDTH = 0.12
"""Of the prompts' means around `BASE`: effects of up to 0.25 stay inside [0, 1]."""

BETWEEN = HALF_WIDTH**2 / 3
"""Variance of a uniform distribution of that half width."""

LIFT = 0.15
NUM_DIRECTIONS = 5
ALIKE, VARIED = 0.05, 0.15
"""Standard deviations of the true lifts of v' over directions, as shares of L(v)."""

SIZES = ((20, 5), (50, 10), (100, 10))
"""Prompts and samples a prompt."""

NUM_STUDIES = 400
LEVEL = 0.05
MARKS = ("<!-- the tables begin -->", "<!-- the tables end -->")
COMPARISONS = (
    Verdict.EQUIVALENT,
    Verdict.DIFFERENT,
    Verdict.INCONCLUSIVE,
    Verdict.UNINFORMATIVE,
)


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """A simulated experiment: scores with known lifts, in [0, 1], seen through noise.

    The score of a sample is drawn from Beta(c m, c (1 - m)), whose mean is exactly ::

        m = BASE + prompt + effect (1 + interaction U)

    with `prompt` uniform on +-HALF_WIDTH and shared by all arms, and U uniform on
    [-1, 1], drawn for every direction and prompt. The concentration c is that at which
    `icc` of the variance of a score of mean BASE lies between prompts ::

        c = BASE (1 - BASE) / w - 1,    w = BETWEEN (1 - icc) / icc

    Attributes:
        num_prompts: prompts.
        num_samples: samples a prompt, in every arm and direction.
        icc: share of the variance of the unsteered score that lies between prompts.
        interaction: by how much, at most, a prompt's effect differs from the mean
            effect, as a share of it.
        seed: of all that is drawn.
    """

    num_prompts: int = 50
    num_samples: int = 4
    icc: float = 0.3
    interaction: float = 0.3
    seed: int = 0

    def lifts(
        self, effects: Mapping[str, float | Sequence[float]]
    ) -> dict[str, np.ndarray]:
        """{family: (directions, prompts)} of mean score minus mean unsteered score.

        Args:
            effects: per family the true lift of each of its directions.

        Raises:
            ValueError: an effect takes a prompt's mean score out of (0, 1).
        """
        rng = np.random.default_rng(self.seed)
        means = BASE + rng.uniform(-HALF_WIDTH, HALF_WIDTH, self.num_prompts)
        unsteered = self._scores(rng, means)
        families = {}
        for name, given in effects.items():
            true = np.atleast_1d(np.asarray(given, dtype=float))[:, None]
            spread = rng.uniform(-1, 1, (len(true), self.num_prompts))
            shifted = means + true * (1 + self.interaction * spread)
            families[name] = self._scores(rng, shifted) - unsteered
        return families

    def scores(self, effect: float = 0.0) -> np.ndarray:
        """Scores of every sample of one arm, (prompts, samples).

        Raises:
            ValueError: the effect takes a prompt's mean score out of (0, 1).
        """
        rng = np.random.default_rng(self.seed)
        means = BASE + rng.uniform(-HALF_WIDTH, HALF_WIDTH, self.num_prompts)
        return self._samples(rng, means + effect)

    def _scores(self, rng: np.random.Generator, means: np.ndarray) -> np.ndarray:
        return self._samples(rng, means).mean(-1)

    def _samples(self, rng: np.random.Generator, means: np.ndarray) -> np.ndarray:
        within = BETWEEN * (1 - self.icc) / self.icc
        concentration = BASE * (1 - BASE) / within - 1
        a, b = means * concentration, (1 - means) * concentration
        size = (*means.shape, self.num_samples)
        return rng.beta(a[..., None], b[..., None], size)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is true in a simulated study, and so what may and may not be said of it.

    Attributes:
        name: in the published table.
        lift: L(v).
        ratio: the mean of L(v') over directions, as a share of L(v).
        truth: the verdict that is right, given data enough.
        errors: the verdicts that are false.
        spread: standard deviation of L(v') over directions, as a share of L(v).
    """

    name: str
    lift: float
    ratio: float
    truth: Verdict
    errors: tuple[Verdict, ...]
    spread: float = ALIKE

    @property
    def difference(self) -> float:
        """The true L(v') - L(v), in the mean over directions."""
        return (self.ratio - 1) * self.lift

    def right(self, num_prompts: int) -> Verdict:
        """The best that may be said; equivalence is not stated of few prompts."""
        if self.truth is Verdict.EQUIVALENT and num_prompts < MINIMUM_PROMPTS:
            return Verdict.INCONCLUSIVE
        return self.truth


NEITHER = (Verdict.EQUIVALENT, Verdict.DIFFERENT)
SAME, OTHER = (Verdict.DIFFERENT,), (Verdict.EQUIVALENT,)
SCENARIOS = (
    Scenario("no effect", 0.0, 1.0, Verdict.UNINFORMATIVE, NEITHER),
    Scenario("equal effect", LIFT, 1.0, Verdict.EQUIVALENT, SAME),
    Scenario("equal, varied", LIFT, 1.0, Verdict.EQUIVALENT, SAME, VARIED),
    Scenario("80 % effect", LIFT, 0.8, Verdict.DIFFERENT, OTHER),
    Scenario("80 %, varied", LIFT, 0.8, Verdict.DIFFERENT, OTHER, VARIED),
    Scenario("70 % effect", LIFT, 0.7, Verdict.DIFFERENT, OTHER),
    Scenario("opposite effect", LIFT, -1.0, Verdict.DIFFERENT, OTHER),
)
"""80 % lies exactly at the margin: the hardest case of a false EQUIVALENT."""


@dataclass(frozen=True, slots=True)
class Characteristics:
    """How often each verdict fell in the studies of one scenario and size.

    Attributes:
        scenario: what was true.
        num_prompts: of every study.
        num_samples: samples a prompt.
        passed: studies in which v passed T1.
        verdicts: of T3, and in how many studies.
        covered: studies whose 95 % interval of L(v') - L(v) holds the truth.
    """

    scenario: Scenario
    num_prompts: int
    num_samples: int
    passed: int
    verdicts: Mapping[Verdict, int]
    covered: int

    @property
    def num_studies(self) -> int:
        """Studies that were counted."""
        return sum(self.verdicts.values())


def study(
    scenario: Scenario, *, num_prompts: int, num_samples: int, seed: int
) -> tuple[Finding, Finding]:
    """What T1 says of v, and then T3 of v', in one simulated study.

    The arms are v, five directions of v', whose true lifts are normal around that of
    the scenario, and 20 random nulls that do nothing. Scores, directions and bootstrap
    have seeds of their own, made from `seed`.

    Raises:
        ValueError: a direction takes a prompt's mean score out of (0, 1); more than
            six standard deviations away in every scenario here.
    """
    seeds = [int(state) for state in np.random.SeedSequence(seed).generate_state(3)]
    normal = np.random.default_rng(seeds[1]).standard_normal(NUM_DIRECTIONS)
    true = scenario.ratio + scenario.spread * normal
    scores = ScoreTable(num_prompts=num_prompts, num_samples=num_samples, seed=seeds[0])
    lifts: dict[str, Table] = scores.lifts(
        {
            "v": scenario.lift,
            "v_plus_perp": (scenario.lift * true).tolist(),
            "random": [0.0] * MINIMUM_NULLS,
        }
    )
    nulls = {name: lifts[name] for name in ("v", "random")}
    pair = {name: lifts[name] for name in ("v", "v_plus_perp")}
    first = manipulation(nulls, num_samples=num_samples, seed=seeds[2])
    second = equivalence(
        pair,
        "v_plus_perp",
        subject="",
        manipulation=first.verdict,
        num_samples=num_samples,
        seed=seeds[2],
    )
    return first, second


def operating_characteristics(
    scenario: Scenario,
    *,
    num_prompts: int,
    num_samples: int,
    seeds: Iterable[int] = range(NUM_STUDIES),
) -> Characteristics:
    """How often each verdict falls where `scenario` is true, one study a seed.

    Args:
        scenario: what is true.
        num_prompts: of every study.
        num_samples: samples a prompt.
        seeds: one for each study.
    """
    studies = [
        study(scenario, num_prompts=num_prompts, num_samples=num_samples, seed=seed)
        for seed in seeds
    ]
    counts = Counter(second.verdict for _, second in studies)
    return Characteristics(
        scenario=scenario,
        num_prompts=num_prompts,
        num_samples=num_samples,
        passed=sum(first.verdict is Verdict.PASS for first, _ in studies),
        verdicts={verdict: counts[verdict] for verdict in COMPARISONS},
        covered=sum(_covers(second, scenario.difference) for _, second in studies),
    )


def _covers(finding: Finding, truth: float) -> bool:
    seen = finding.estimate
    assert seen is not None, "a simulated study has scores"
    return seen.low <= truth <= seen.high


def most_allowed(num_studies: int, *, confidence: float = 0.99) -> int:
    """The most false verdicts that a true rate of 5 % gives, 99 times in 100.

    >>> most_allowed(400)
    31
    """
    return int(stats.binom.ppf(confidence, num_studies, LEVEL))


def percent(count: int, num: int) -> str:
    """A rate in percent with its 95 % interval (Wilson).

    >>> percent(20, 400)
    '5.0 [3.3, 7.6]'
    """
    interval = stats.binomtest(count, num).proportion_ci(0.95, method="wilson")
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * count / num:.1f} [{low:.1f}, {high:.1f}]"


def row(seen: Characteristics) -> str:
    """One line of the published table; the right verdict is bold, a false one italic.

    The columns are scenario, size, T1's PASS, the verdicts of T3 and coverage.
    """
    num, scenario = seen.num_studies, seen.scenario
    marks = dict.fromkeys(scenario.errors, "*")
    marks[scenario.right(seen.num_prompts)] = "**"
    cells = [scenario.name, _size(seen), percent(seen.passed, num)]
    for verdict, count in seen.verdicts.items():
        mark = marks.get(verdict, "")
        cells.append(f"{mark}{percent(count, num)}{mark}")
    return _line([*cells, percent(seen.covered, num)])


def worst(cells: Iterable[Characteristics], verdict: Verdict) -> str:
    """The line of a false verdict: in how many cells it is one, and the worst of them.

    The columns are the verdict, the cells where it is false, the worst cell, the rate
    there and the most that a true rate of 5 % gives.
    """
    wrong = [seen for seen in cells if verdict in seen.scenario.errors]
    seen = max(wrong, key=lambda cell: cell.verdicts[verdict] / cell.num_studies)
    num = seen.num_studies
    return _line(
        [
            f"false {verdict}",
            str(len(wrong)),
            f"{seen.scenario.name}, {_size(seen)}",
            percent(seen.verdicts[verdict], num),
            f"{100 * most_allowed(num) / num:.1f}",
        ]
    )


def tables(cells: Sequence[Characteristics]) -> str:
    """The two published tables, in Markdown: the false verdicts, then every cell."""
    errors = ("error", "cells", "worst cell", "percent there", "5 % may give")
    columns = ("scenario", "size", "T1: PASS", *COMPARISONS, "coverage")
    return "\n".join(
        [
            *(_line(errors), "|---" * len(errors) + "|"),
            *(worst(cells, verdict) for verdict in NEITHER),
            "",
            *(_line(columns), "|---" * len(columns) + "|"),
            *(row(seen) for seen in cells),
        ]
    )


def _size(seen: Characteristics) -> str:
    return f"{seen.num_prompts} x {seen.num_samples}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def rewrite(page: Path, text: str) -> None:
    """Put `text` between the two marks of `page`; all else stays as it is.

    Raises:
        InputError: the page does not exist, or lacks the marks.
    """
    before, after = _around(page)
    page.write_text(f"{before}\n\n{text}\n\n{after}", encoding="utf-8")


def _around(page: Path) -> tuple[str, str]:
    """What stands before and after the tables, marks included."""
    if not page.is_file():
        raise NoSuchFile(
            f"there is no file {page}.", remedy="Give a page of the manual."
        )
    before, begin, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (begin and end):
        raise InputError(
            f"{page} has no place for the tables.",
            cause="It is another page of the manual than the one with these tables.",
            remedy=f"Give that page, or write {MARKS[0]} and {MARKS[1]} where the "
            "tables shall stand.",
        )
    return before + begin, end + after


def main(arguments: Sequence[str] | None = None) -> None:
    """Count every cell and write the page's tables."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("page", type=Path, help="such as docs/calibration.md")
    page = parser.parse_args(arguments).page
    _around(page)  # A wrong page is refused now, not after two minutes.
    cells = []
    for scenario in SCENARIOS:
        for num_prompts, num_samples in SIZES:
            start = time.perf_counter()
            seen = operating_characteristics(
                scenario, num_prompts=num_prompts, num_samples=num_samples
            )
            cells.append(seen)
            print(row(seen), f"{time.perf_counter() - start:.0f} s", flush=True)
    rewrite(page, tables(cells))


if __name__ == "__main__":
    main()
