"""How often optional stopping errs: simulated runs that stop when the rule says so.

A run of up to 100 prompts is simulated with the scores of `calibration` or with
divergences as skewed as real ones, and is looked at every 10 prompts from 20 on. Beside
the rule of `stopping` stands the naive one: stop as soon as an ordinary interval
decides.

    python -m steergauge.runs.stopping_rates docs/cost.md

writes the table of that page again; the page says what is simulated.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.manipulation import MINIMUM_NULLS, manipulation
from steergauge.calibration import (
    LIFT,
    NUM_DIRECTIONS,
    VARIED,
    ScoreTable,
    percent,
    rewrite,
)
from steergauge.runs.spec import CORE
from steergauge.runs.stopping import Question, moves, same_lift, same_texts
from steergauge.sequential import Looks
from steergauge.statistics import Table

PLANNED, EVERY, SAMPLES = 100, 10, 10
LOOKS = Looks(PLANNED, EVERY)
NUM_STUDIES = 200
GIVEN, DRAWN = "against[w]", "v_plus_perp"
"""One vector w that was given, and five random directions."""
BUDGET, MARGIN, FLOOR = 0.05, 0.2, 1e-6
STRONG = 0.2
STEP, STEP_SPREAD = 0.10, 0.04
"""Mean and spread of the lifts of random steps, of which v is one: T1's null."""

Tables = dict[str, Table]
Answer = tuple[Finding, bool]


@dataclass(frozen=True, slots=True)
class Case:
    """What is true, how it is judged at a look, and what may not be said of it.

    Attributes:
        name: in the published table.
        errors: verdicts that are false.
        truth: of the number that the finding estimates; None if it varies by study.
        draw: a study's tables, from its seed.
        judge: the verdict at a look, and whether it is decided; `None` for looks means
            ordinary intervals, decided when they say anything.
    """

    name: str
    errors: tuple[Verdict, ...]
    truth: float | None
    draw: Callable[[int], Tables]
    judge: Callable[[Tables, int, Looks | None], Answer]


@dataclass(frozen=True, slots=True)
class Ended:
    """One simulated run: its verdict and prompts, and whether its interval missed."""

    verdict: Verdict
    used: int
    missed: bool


@dataclass(frozen=True, slots=True)
class Rates:
    """All runs of a case under one rule."""

    case: Case
    ended: Sequence[Ended]

    @property
    def errors(self) -> int:
        """Runs with a false verdict."""
        counts = Counter(one.verdict for one in self.ended)
        return sum(counts[verdict] for verdict in self.case.errors)

    @property
    def missed(self) -> int:
        """Runs whose interval, as it is reported at the end, misses the truth."""
        return sum(one.missed for one in self.ended)

    @property
    def used(self) -> float:
        """Mean share of the planned prompts."""
        return float(np.mean([one.used for one in self.ended])) / PLANNED


def run(case: Case, seed: int, looks: Looks | None) -> Ended:
    """One run, up to the look at which it stops.

    Args:
        case: what is true.
        seed: of the study.
        looks: None is the naive rule.
    """
    tables, number = case.draw(seed), 0
    found, settled = None, False
    for number in LOOKS.numbers:
        part = {name: table[:, :number] for name, table in tables.items()}
        found, settled = case.judge(part, seed, looks)
        if settled:
            break
    assert found is not None, "there are looks"
    assert found.estimate is not None, "a simulated study has numbers"
    seen, truth = found.estimate, case.truth
    missed = truth is not None and not seen.low <= truth <= seen.high
    return Ended(found.verdict, number, missed)


def rates(
    case: Case, looks: Looks | None, seeds: Iterable[int] = range(NUM_STUDIES)
) -> Rates:
    """One run a seed."""
    return Rates(case, [run(case, seed, looks) for seed in seeds])


def _question(seed: int) -> Question:
    subjects = {GIVEN: GIVEN, DRAWN: ""}
    return Question(CORE, subjects, FLOOR, MARGIN, BUDGET, SAMPLES, seed)


def _scores(seed: int) -> ScoreTable:
    return ScoreTable(num_prompts=PLANNED, num_samples=SAMPLES, seed=seed)


def _normals(seed: int, num: int) -> np.ndarray:
    """Of directions, from a stream of its own."""
    return np.random.default_rng([seed, 1]).standard_normal(num)


def _steps(seed: int) -> Tables:
    """One of 21 random steps is v, all drawn alike."""
    v, *nulls = (STEP + STEP_SPREAD * _normals(seed, MINIMUM_NULLS + 1)).tolist()
    return _scores(seed).lifts({"v": v, "random": nulls})


def _strong(seed: int) -> Tables:
    nulls = (STEP_SPREAD * _normals(seed, MINIMUM_NULLS)).tolist()
    return _scores(seed).lifts({"v": STRONG, "random": nulls})


def _lifts(ratio: float, spread: float | None) -> Callable[[int], Tables]:
    """Of one given vector; with a spread, of five directions that differ by it."""

    def draw(seed: int) -> Tables:
        if spread is None:
            return _scores(seed).lifts({"v": LIFT, GIVEN: ratio * LIFT})
        true = LIFT * (ratio + spread * _normals(seed, NUM_DIRECTIONS))
        return _scores(seed).lifts({"v": LIFT, DRAWN: true.tolist()})

    return draw


def _nats(ratio: float) -> Callable[[int], Tables]:
    """KL with mean 1 from unsteered; of a text exponential, the mean of four."""

    def draw(seed: int) -> Tables:
        rng = np.random.default_rng(seed)
        size = (1, PLANNED)
        own, other = rng.gamma(4, 0.25, size), rng.gamma(4, 0.25, size)
        return {"unsteered": own, GIVEN: ratio * other}

    return draw


def _judge_lift(tables: Tables, seed: int, looks: Looks | None) -> Answer:
    question = _question(seed)
    if looks is not None:
        return moves(tables, question, looks)
    found = manipulation(tables, num_samples=SAMPLES, seed=seed)
    return found, found.verdict is Verdict.PASS


def _judge_same(tables: Tables, seed: int, looks: Looks | None) -> Answer:
    family = GIVEN if GIVEN in tables else DRAWN
    return same_lift(tables, family, _question(seed), (Verdict.PASS, True), looks)


def _judge_texts(tables: Tables, seed: int, looks: Looks | None) -> Answer:
    return same_texts(tables, GIVEN, _question(seed), looks)


SAID = (Verdict.EQUIVALENT, Verdict.DIFFERENT)
PASS, NONE = (Verdict.PASS,), ()
EQUIVALENT, DIFFERENT = (Verdict.EQUIVALENT,), (Verdict.DIFFERENT,)


def _comparison(
    name: str, ratio: float, errors: tuple[Verdict, ...], spread: float | None = None
) -> Case:
    draw = _lifts(ratio, spread)
    return Case(f"T3: {name}", errors, (ratio - 1) * LIFT, draw, _judge_same)


def _texts(name: str, ratio: float, errors: tuple[Verdict, ...]) -> Case:
    return Case(f"T4: {name}", errors, ratio, _nats(ratio), _judge_texts)


CASES = (
    Case("T1: v is a random step", PASS, None, _steps, _judge_lift),
    Case("T1: v is strong", NONE, STRONG, _strong, _judge_lift),
    _comparison("equal effect", 1.0, DIFFERENT),
    _comparison("80 % effect", 0.8, EQUIVALENT),
    _comparison("opposite effect", -1.0, EQUIVALENT),
    _comparison("five directions, equal, varied", 1.0, DIFFERENT, VARIED),
    _comparison("five directions, 80 %, varied", 0.8, EQUIVALENT, VARIED),
    _texts("at the budget", BUDGET, SAID),
    _texts("a tenth of the budget", BUDGET / 10, DIFFERENT),
    _texts("ten times the budget", BUDGET * 10, EQUIVALENT),
)
"""80 % and the budget are the hardest; strong, opposite and ten times are clear."""


def row(valid: Rates, naive: Rates) -> str:
    """One line: errors, coverage where it stops and prompts used, by either rule."""
    num = len(valid.ended)
    false = " or ".join(valid.case.errors) or "none"
    cells = [valid.case.name, false]
    for seen in (valid, naive):
        known = seen.case.truth is not None
        cells.append(percent(seen.errors, num) if seen.case.errors else "-")
        cells.append(percent(num - seen.missed, num) if known else "-")
        cells.append(f"{100 * seen.used:.0f}")
    return f"| {' | '.join(cells)} |"


def table(rows: Sequence[str]) -> str:
    """The published table, in Markdown."""
    columns = ("true", "false verdict")
    columns += tuple(
        f"{rule}: {what}"
        for rule in ("always-valid", "naive")
        for what in ("false", "covers", "prompts used, %")
    )
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate every case and write the page's table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("page", type=Path, help="such as docs/cost.md")
    parser.add_argument("--studies", type=int, default=NUM_STUDIES)
    given = parser.parse_args(arguments)
    page: Path = given.page
    rewrite(page, "Being counted.")  # A wrong page is refused now, not after minutes.
    rows = []
    for case in CASES:
        start = time.perf_counter()
        valid, naive = (
            rates(case, looks, range(given.studies)) for looks in (LOOKS, None)
        )
        rows.append(row(valid, naive))
        print(rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
    rewrite(page, table(rows))


if __name__ == "__main__":
    main()
