"""Tables 1 to 3 of arXiv 2602.06801v3, and what follows from the printed numbers alone.

The numbers are in `tables/`, one CSV file a table, one line a row; tables of another
study with the same columns are read from a folder. Nothing is measured here: every
property of a row or table is a closed form of the numbers in it (`published`).
"""

import csv
import dataclasses
import math
import statistics
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from steergauge.errors import InputError, NoSuchFile
from steergauge.paper.published import implied_gain, samples_at_floor

FOLDER = Path(__file__).parent / "tables"


@dataclass(frozen=True, slots=True)
class OrthogonalRow:
    """A row of Table 1: v against v + v_perp over seeds of v_perp, and v_perp alone.

    `cohens_d` and `correlation` are means over the seeds, with standard deviations;
    `perp_only_percent` is the mean score under v_perp as a percentage of that under v.
    """

    model: str
    trait: str
    seeds: int
    cohens_d: float
    cohens_d_sd: float
    correlation: float
    correlation_sd: float
    perp_only_percent: float

    @property
    def spread(self) -> float:
        """The sd of |d| over its mean; 0.756 for many draws of noise around 0."""
        return self.cohens_d_sd / self.cohens_d if self.cohens_d else math.nan

    @property
    def idle_lift_percent(self) -> float:
        """What v adds, in percent of the unsteered score, if v_perp adds nothing.

        The perp-only ratio q is then m_0 / m(v), so that m(v) / m_0 - 1 = 1 / q - 1.
        """
        ratio = self.perp_only_percent / 100
        return 100 * (1 / ratio - 1) if ratio else math.inf


@dataclass(frozen=True, slots=True)
class OrthogonalMean:
    """The mean over traits of the rows of Table 1 of one model and number of seeds."""

    model: str
    seeds: int
    num_rows: int
    cohens_d: float
    spread: float
    correlation: float


@dataclass(frozen=True, slots=True)
class OrthogonalTable:
    """Table 1: the orthogonal perturbation test."""

    rows: tuple[OrthogonalRow, ...]

    @property
    def most_seeds(self) -> int:
        """The largest number of seeds of a row; the paper reports means at that."""
        return max(row.seeds for row in self.rows)

    def at(self, seeds: int) -> tuple[OrthogonalRow, ...]:
        """The rows with that number of seeds."""
        return tuple(row for row in self.rows if row.seeds == seeds)

    def means_at_most_seeds(self) -> tuple[OrthogonalMean, ...]:
        """The mean over traits for each model, at the largest number of seeds."""
        return tuple(mean for mean in self.means() if mean.seeds == self.most_seeds)

    def means(self) -> tuple[OrthogonalMean, ...]:
        """The mean over traits for each model and number of seeds, in their order."""
        groups: dict[tuple[str, int], list[OrthogonalRow]] = {}
        for row in self.rows:
            groups.setdefault((row.model, row.seeds), []).append(row)
        return tuple(
            OrthogonalMean(
                model,
                seeds,
                len(rows),
                statistics.fmean(row.cohens_d for row in rows),
                statistics.fmean(row.spread for row in rows),
                statistics.fmean(row.correlation for row in rows),
            )
            for (model, seeds), rows in groups.items()
        )


@dataclass(frozen=True, slots=True)
class ShiftRow:
    """A row of Table 2: mean |d| of v against v + v_perp in four environments."""

    model: str
    trait: str
    in_distribution: float
    topic_shift: float
    genre_shift: float
    safety_style: float


ENVIRONMENTS = tuple(field.name for field in dataclasses.fields(ShiftRow))[2:]


@dataclass(frozen=True, slots=True)
class ShiftTable:
    """Table 2: the same test in other environments."""

    rows: tuple[ShiftRow, ...]

    def cells(self, *environments: str) -> tuple[float, ...]:
        """The values in those environments; in all, if none is named."""
        names = environments or ENVIRONMENTS
        return tuple(getattr(row, name) for row in self.rows for name in names)

    @property
    def mean(self) -> float:
        """The mean of all cells."""
        return statistics.fmean(self.cells())

    def num_below(self, bound: float) -> int:
        """How many cells are smaller than `bound`."""
        return sum(value < bound for value in self.cells())

    def growth(self) -> tuple[float, float]:
        """Mean of the shifted cells minus the unshifted ones, and its standard error.

        The standard error is that of independent cells; NaN for a single row.
        """
        usual, shifted = self.cells(ENVIRONMENTS[0]), self.cells(*ENVIRONMENTS[1:])
        gap = statistics.fmean(shifted) - statistics.fmean(usual)
        if len(usual) < 2:
            return gap, math.nan
        parts = (statistics.variance(part) / len(part) for part in (usual, shifted))
        return gap, math.sqrt(sum(parts))


@dataclass(frozen=True, slots=True)
class LogitRow:
    """A row of Table 3: next-token logits under v against those under v + v_perp."""

    model: str
    trait: str
    ratio_R: float
    token_agreement_percent: float
    top10_overlap_percent: float

    @property
    def gain(self) -> float:
        """Of v over the mean gain of random directions: rho = 1 / R^2 - 1."""
        return implied_gain(self.ratio_R)

    @property
    def reach(self) -> float:
        """How far v moves the logits, over a random vector of its norm: sqrt(rho).

        NaN for R > 1, which no large linear map gives.
        """
        return math.sqrt(self.gain) if self.gain >= 0 else math.nan


@dataclass(frozen=True, slots=True)
class LogitTable:
    """Table 3: the logit-level equivalence test."""

    rows: tuple[LogitRow, ...]


@dataclass(frozen=True, slots=True)
class Printed:
    """The three tables of one study."""

    orthogonal: OrthogonalTable
    shift: ShiftTable
    logits: LogitTable

    @property
    def of_paper(self) -> bool:
        """Whether these are the paper's own numbers, about which its text speaks."""
        return self == read_tables()

    def scores_ratio(self) -> float:
        """Scores an arm in Table 1 over those in Table 2, if both print pure noise.

        (d_2 / d_1)^2 for the mean |d| of Table 1 at its most seeds, and of the
        unshifted column of Table 2: both are on prompts of the vector's own family.
        """
        rows = self.orthogonal.at(self.orthogonal.most_seeds)
        first = statistics.fmean(row.cohens_d for row in rows)
        second = statistics.fmean(self.shift.cells(ENVIRONMENTS[0]))
        return (second / first) ** 2 if first else math.nan


def floors(mean_d: float) -> tuple[float, float]:
    """Scores an arm at which noise gives this mean |d|: without ICC, and at 0.5."""
    return samples_at_floor(mean_d), samples_at_floor(mean_d, icc=0.5)


def read_tables(folder: str | Path = FOLDER) -> Printed:
    """The three tables of a folder; the paper's own by default.

    Args:
        folder: holds `table1.csv`, `table2.csv` and `table3.csv` with the columns of
            the paper's; further columns are ignored.

    Raises:
        NoSuchFile: the folder or a file in it does not exist.
        InputError: a column is missing, or a value is no number or an impossible one.
    """
    path = Path(folder)
    if not path.is_dir():
        raise NoSuchFile(
            f"there is no folder {path} to read tables from.",
            remedy="Leave it out for the paper's own tables, or name a folder with "
            "table1.csv, table2.csv and table3.csv.",
        )
    return Printed(
        OrthogonalTable(_rows(path / "table1.csv", OrthogonalRow)),
        ShiftTable(_rows(path / "table2.csv", ShiftRow)),
        LogitTable(_rows(path / "table3.csv", LogitRow)),
    )


Row = TypeVar("Row", OrthogonalRow, ShiftRow, LogitRow)


def _not_negative(value: float) -> bool:
    return value >= 0


_ALLOWED: dict[str, tuple[str, Callable[[float], bool]]] = {
    "seeds": ("a whole number from 1 on", lambda value: value >= 1),
    "correlation": ("a number from -1 to 1", lambda value: abs(value) <= 1),
    "ratio_R": ("a number above 0", lambda value: value > 0),
}
_OTHERWISE = ("a number from 0 on", _not_negative)


def _rows(path: Path, kind: type[Row]) -> tuple[Row, ...]:
    """The lines of a CSV file as rows of that kind."""
    try:
        # Spreadsheets put a byte-order mark in front.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True, skipinitialspace=True)
            _check_columns(path, reader.fieldnames or (), kind)
            rows = tuple(
                kind(**_typed(path, reader.line_num, line, kind)) for line in reader
            )
    except FileNotFoundError as error:
        raise NoSuchFile(
            f"{path} does not exist.",
            cause="A study's numbers are read from table1.csv, table2.csv and "
            "table3.csv in one folder.",
        ) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no CSV file in UTF-8: {error}.") from error
    if not rows:
        raise InputError(f"{path} has no rows below its line of column names.")
    return rows


def _check_columns(path: Path, found: Sequence[str], kind: type) -> None:
    """Refuse a table in which a column is missing."""
    wanted = [field.name for field in dataclasses.fields(kind)]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise InputError(
            f"{path} lacks the column {', '.join(missing)}; it has "
            f"{', '.join(found) or 'none'}.",
            cause="The first line must name the columns.",
            remedy=f"Its columns are {','.join(wanted)}.",
        )


def _typed(path: Path, number: int, line: dict[str, Any], kind: type) -> dict[str, Any]:
    """The cells of one line as their field's types, or InputError."""
    cells = {}
    for name, hint in typing.get_type_hints(kind).items():
        text = " ".join((line[name] or "").split())
        expected, allowed = _ALLOWED.get(name, _OTHERWISE)
        try:
            value = hint(text)
        except ValueError:
            value = math.nan
        known = bool(text) if hint is str else math.isfinite(value) and allowed(value)
        if not known:
            raise InputError(
                f"line {number} of {path}: {name} is {text!r}, expected "
                f"{'a name' if hint is str else expected}.",
                cause="" if text else "The line has fewer cells than columns.",
            )
        cells[name] = value
    return cells
