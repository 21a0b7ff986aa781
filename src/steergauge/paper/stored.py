"""The nearest-token distances stored with arXiv 2604.09839, and what follows from them.

For every position of a prompt the published code ran through the vocabulary: d_1 and
d_2 are the distances of the nearest and the second nearest token's state, given the
tokens before, from the state that is looked for, natural or steered. One line of the
file is one position. With s the length of the step at the site of the comparison ::

    margin  d_1 / d_2                    0 where one token stands out
    eta     d_1 / s                      1 where no token is nearer than the origin
    at right angles  s / sqrt(s^2 + n^2)   the margin of a step that is orthogonal to
        what separates the tokens, with n the natural d_2: the original token is then
        at s, and the next one, by Pythagoras, at sqrt(s^2 + n^2)

The file is not part of steergauge. `nearest_token` puts what is here into sentences.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steergauge.errors import InputError, NoSuchFile
from steergauge.statistics import NUM_DRAWS, Estimate, resampling_weights

PUBLISHED_TOLERANCE = 1e-5
"""The absolute distance below which the published code calls a token found."""

MAGNITUDE = 0.1
"""The paper's rule for batches: found if d_1 is an order of magnitude below d_2."""

CALIBRATED = 5.0
"""A calibrated tolerance is so many times the 99 % quantile of what is noise."""

COLUMNS = (
    "model", "steering", "coefficient", "layer", "prompt", "position", "arm",
    "nearest_is_original", "d1", "d2", "mean_displacement_per_token",
    "seconds_for_prompt",
)  # fmt: skip
_WHOLE = ("layer", "prompt", "position", "nearest_is_original")
_ABOVE = ("d2", "mean_displacement_per_token")

Line = dict[str, str | float]


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One state looked for at every position, as arrays of one entry a position."""

    prompt: np.ndarray
    position: np.ndarray
    original: np.ndarray
    d1: np.ndarray
    d2: np.ndarray
    step: np.ndarray
    seconds: np.ndarray

    @property
    def margin(self) -> np.ndarray:
        """d_1 / d_2."""
        return self.d1 / self.d2

    @property
    def eta(self) -> np.ndarray:
        """d_1 over the mean length of the prompt's steps, which is what is stored."""
        return self.d1 / self.step

    @property
    def hours(self) -> float:
        """Of all prompts together."""
        return sum(dict(zip(self.prompt, self.seconds, strict=True)).values()) / 3600


@dataclass(frozen=True, slots=True)
class Run:
    """A model under one vector: natural and steered states of the same positions."""

    model: str
    steering: str
    coefficient: float
    layer: int
    natural: Arm
    steered: Arm

    @property
    def first(self) -> np.ndarray:
        """True at the first position of a prompt."""
        return self.natural.position == 0

    @property
    def right_angles(self) -> np.ndarray:
        """The margin that a step orthogonal to what separates the tokens would have."""
        return self.steered.step / np.hypot(self.steered.step, self.natural.d2)

    @property
    def tolerances(self) -> np.ndarray:
        """Of each position: 5 times q99 of the natural d_1 of all *other* prompts.

        The first position apart from the others, as its states are longer.
        """
        found = np.empty(len(self.first))
        for prompt in np.unique(self.natural.prompt):
            own = self.natural.prompt == prompt
            for place in (self.first, ~self.first):
                noise = self.natural.d1[place & ~own]
                found[place & own] = CALIBRATED * np.quantile(noise, 0.99)
        return found


def significant_bits(values: np.ndarray) -> int:
    """The most bits that any of the numbers has between its first and last 1.

    >>> significant_bits(np.array([0.5, 6.0, 5.0]))
    3
    """
    whole = [float(value).as_integer_ratio()[0] for value in values]
    return max((n // (n & -n)).bit_length() if n else 0 for n in whole)


def original_share(arm: Arm, *, seed: int = 0) -> Estimate:
    """The share of positions whose nearest token is the original, over prompts.

    Prompts are resampled, with all their positions; the share is of the positions.

    Args:
        arm: the states.
        seed: of the resampling.
    """
    ids = np.unique(arm.prompt)
    own = arm.prompt[None, :] == ids[:, None]
    weights = resampling_weights(np.random.default_rng(seed), NUM_DRAWS, len(ids))
    draws = (weights @ (own @ arm.original)) / (weights @ own.sum(1))
    low, high = np.clip(np.quantile(draws, [0.025, 0.975]), 0, 1)
    return Estimate(float(arm.original.mean()), float(low), float(high))


def read_distances(path: str | Path) -> tuple[Run, ...]:
    """The runs of a file of distances, in its order.

    Args:
        path: a CSV file with the columns `COLUMNS`; further ones are ignored.

    Raises:
        NoSuchFile: there is no such file.
        InputError: it has no such columns, a value is impossible, or the natural and
            steered positions of a run are not the same.
    """
    file = Path(path)
    runs: dict[tuple[str | float, ...], list[Line]] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True, skipinitialspace=True)
            _check_columns(file, reader.fieldnames or ())
            for raw in reader:
                line = _typed(file, reader.line_num, raw)
                key = tuple(line[name] for name in COLUMNS[:4])
                runs.setdefault(key, []).append(line)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NoSuchFile(
            f"there is no file {file} of distances.",
            cause="Stored distances are no part of steergauge; their path is given.",
            remedy=f"Give a CSV file with the columns {','.join(COLUMNS)}.",
        ) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no CSV file in UTF-8: {error}.") from error
    if not runs:
        raise InputError(f"{file} has no rows below its line of column names.")
    return tuple(_run(file, lines) for lines in runs.values())


def _check_columns(path: Path, found: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        raise InputError(
            f"{path} lacks the column {', '.join(missing)}; it has "
            f"{', '.join(found) or 'none'}.",
            cause="It is another file, or its first line does not name the columns.",
            remedy=f"Its columns are {','.join(COLUMNS)}.",
        )


def _typed(path: Path, number: int, raw: dict[str, str | None]) -> Line:
    """The cells of one line, or InputError."""
    line: Line = {}
    for name in COLUMNS:
        text = (raw[name] or "").strip()
        value, good = _cell(name, text)
        if not good:
            raise InputError(
                f"line {number} of {path}: {name} is {text!r}, which it cannot be.",
                cause="" if text else "The line has fewer cells than columns.",
                remedy="Distances are numbers from 0 on with d1 <= d2, the arm is "
                "natural or steered, and nearest_is_original 0 or 1.",
            )
        line[name] = value
    if float(line["d1"]) > float(line["d2"]):
        raise InputError(
            f"line {number} of {path}: d1 is {line['d1']}, d2 {line['d2']}.",
            cause="The nearest token is further away than the second nearest.",
        )
    return line


def _cell(name: str, text: str) -> tuple[str | float, bool]:
    """A cell's value, and whether the column can have it."""
    if name in ("model", "steering"):
        return text, bool(text)
    if name == "arm":
        return text, text in ("natural", "steered")
    try:
        value = float(text)
    except ValueError:
        return text, False
    if name == "coefficient":
        return value, math.isfinite(value)
    if name in _WHOLE and value != int(value if math.isfinite(value) else 0):
        return value, False
    least = 0 <= value < math.inf and (name not in _ABOVE or value > 0)
    return value, least and (name != "nearest_is_original" or value <= 1)


def _run(path: Path, lines: Sequence[Line]) -> Run:
    head = lines[0]
    arms = {name: _arm([line for line in lines if line["arm"] == name])
            for name in ("natural", "steered")}  # fmt: skip
    natural, steered = arms["natural"], arms["steered"]
    places = [[*zip(arm.prompt, arm.position, strict=True)] for arm in arms.values()]
    name = f"{head['model']}, {head['steering']}"
    if places[0] != places[1] or len({*places[0]}) < len(places[0]):
        raise InputError(
            f"{path}: the run {name} has {len(places[0])} natural and "
            f"{len(places[1])} steered positions, which are not the same, each once.",
            cause="Lines are missing or double; the arms are compared place by place.",
        )
    for part in (natural.position == 0, natural.position > 0):
        if len({*natural.prompt[part]}) < 2:
            raise InputError(
                f"{path}: the run {name} has fewer than 2 prompts with a first and a "
                "later position.",
                cause="A tolerance is calibrated on the other prompts.",
            )
    return Run(str(head["model"]), str(head["steering"]), float(head["coefficient"]),
               int(head["layer"]), natural, steered)  # fmt: skip


def _arm(lines: list[Line]) -> Arm:
    lines.sort(key=lambda line: (line["prompt"], line["position"]))
    columns = [np.array([float(line[name]) for line in lines]) for name in COLUMNS
               if name in ("prompt", "position") or name in COLUMNS[7:]]  # fmt: skip
    prompt, position, original, d1, d2, step, seconds = columns
    return Arm(prompt, position, original, d1, d2, step, seconds)
