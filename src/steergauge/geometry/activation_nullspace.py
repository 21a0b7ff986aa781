"""The null space of the activations, which is not the null space of the output.

Where the stream h after block l never goes is one question, and what the output
cannot see of it is another ::

    activation null space   {u: u' C u <= threshold tr C},   C = Cov h over tokens
    output null space       {u: u' F_bar u = 0},             F_bar, the Fisher matrix

Neither contains the other. If h lies in k dimensions and the output reads all of them,
C has a null space of d - k and F_bar none: a vector in it is one the model never sees
in use, and the output may answer to it strongly. If h fills all dimensions and the
output reads one, C has none and F_bar has d - 1. Version 4 of arXiv 2602.06801 speaks
of activation covariance matrices, so both are shown together, with the principal
angles between the null directions of C and as many of the output's weakest; two
random subspaces of k of d dimensions have a mean cos^2 of k / d.

The *gain* of the null directions of C, tr(N' F_bar N) / k over tr F_bar / d, says the
same in one number: 0 if the output cannot see them, 1 if it sees them as it sees
random ones.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steergauge import linalg
from steergauge.errors import InputError
from steergauge.jacobian import Row
from steergauge.linalg import FLOORS_APART, Basis, Spectrum
from steergauge.prompts import padded
from steergauge.split import LanguageModel

THRESHOLD = 1e-8
"""Share of the variance below which a direction counts as null, if none is given: an
amplitude of a ten-thousandth of the whole."""

TEXTS_AT_ONCE = 16
MOST_ANGLES = 32
"""Angles that are kept, evenly chosen among all of them."""


@dataclass(frozen=True, slots=True)
class Covariance:
    """Covariance of the stream after one block, over tokens, in float64.

    Attributes:
        matrix: C, with n - 1 below the line.
        num_states: n, how many tokens.
        precision: relative rounding of the stream itself, that of its dtype.
    """

    matrix: Float[Tensor, "d_model d_model"]
    num_states: int
    precision: float


@dataclass(frozen=True, slots=True)
class ActivationNullSpace:
    """The null space of C, and how it lies to the output's weakest directions.

    Attributes:
        num_states: tokens that C is made of.
        width: d.
        threshold: share of tr C that the null directions stay below.
        dimension: k, of the null space of C.
        output_dimension: of the null space of F_bar, by its own floor.
        angles_deg: between the null directions of C and the k weakest of F_bar,
            ascending, at most 32 of them; none if k is 0.
        mean_cos2: mean of cos^2 of all of these angles; None if k is 0.
        weakest: the largest sigma / sigma_1 among those k of F_bar; if it is not near
            the floor, the output does see them. None if k is 0.
        gain: of the null directions of C; None if k is 0 or F_bar is.
    """

    num_states: int
    width: int
    threshold: float
    dimension: int
    output_dimension: int
    angles_deg: tuple[float, ...]
    mean_cos2: float | None
    weakest: float | None
    gain: float | None

    @property
    def expected_cos2(self) -> float:
        """The mean cos^2 of two random subspaces of this dimension."""
        return self.dimension / self.width

    @property
    def counted(self) -> bool:
        """Whether there were too few tokens for C to have full rank.

        Then at least width - num_states + 1 of its null directions say how many
        tokens were taken, and nothing of the model.
        """
        return self.num_states <= self.width

    @property
    def answer(self) -> str:
        """What may be said, in a sentence or two."""
        if self.counted:
            return (
                f"{self.num_states} tokens show a rank of {self.num_states - 1} at "
                f"most in {self.width} dimensions: the null space of the activations "
                "is a count of tokens here, not a property of the model."
            )
        if not self.dimension:
            return (
                f"The activations vary in all {self.width} dimensions, and the output "
                f"hides {self.output_dimension or 'none'} of them."
            )
        if not self.output_dimension:
            return (
                f"The activations leave {self.dimension} of {self.width} dimensions "
                "empty, and the output hides none: a shift along an empty one is seen."
            )
        return (
            f"The activations leave {self.dimension} of {self.width} dimensions empty "
            f"and the output hides {self.output_dimension}; the principal angles say "
            "whether they are the same ones."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the details of a finding."""
        return {
            "num_states": self.num_states,
            "width": self.width,
            "threshold": self.threshold,
            "dimension": self.dimension,
            "counted": self.counted,
            "output_dimension": self.output_dimension,
            "angles_deg": list(self.angles_deg),
            "mean_cos2": self.mean_cos2,
            "expected_cos2": self.expected_cos2,
            "weakest": self.weakest,
            "gain": self.gain,
            "answer": self.answer,
        }


def activation_covariance(
    lm: LanguageModel, rows: Sequence[Row], *, layer: int
) -> Covariance:
    """C over every token of the texts, a batch at a time: memory is d x d.

    Batches are merged by the pairwise formula of `streaming.Moments`. The first token
    counts like any other; in many models it holds a stream far longer than the rest,
    and with it much of tr C.

    Args:
        lm: the model.
        rows: token ids of texts, with their responses if they have one.
        layer: block after which the stream is read.

    Raises:
        InputError: the texts have fewer than two tokens together, or the stream is
            not finite.
    """
    count, mean = 0, torch.zeros(lm.d_model, dtype=torch.float64)
    scatter = mean.outer(mean)
    for states in _states(lm, rows, layer):
        gap, together = states.mean(0) - mean, count + len(states)
        centred = states - states.mean(0)
        scatter += centred.T @ centred
        scatter += (count * len(states) / together) * gap.outer(gap)
        mean = mean + gap * (len(states) / together)
        count = together
    if count < 2 or not bool(scatter.isfinite().all()):
        raise InputError(
            f"the covariance of {count} activations after block {layer} is not "
            "defined.",
            cause="There are fewer than two tokens, or some have no finite stream.",
            remedy="Give texts of more tokens.",
        )
    return Covariance(scatter / (count - 1), count, torch.finfo(lm.dtype).eps)


def activation_nullspace(
    covariance: Covariance,
    output: Spectrum,
    *,
    floor: float,
    threshold: float = THRESHOLD,
) -> ActivationNullSpace:
    """The null space of C beside as many of the output's weakest directions.

    Args:
        covariance: C.
        output: spectrum of F_bar, at the same site.
        floor: measured relative precision of its singular values.
        threshold: share of tr C; raised to what the precision of the stream can tell.

    Raises:
        InputError: the widths differ.
    """
    width = len(covariance.matrix)
    if (given := tuple(output.directions.shape)) != (width, width):
        raise InputError(
            f"activations of width {width} stand beside output directions of {given}.",
            cause="They are of different models, or some directions were left out.",
        )
    own = linalg.spectrum(covariance.matrix)
    threshold = max(threshold, (FLOORS_APART * covariance.precision) ** 2)
    dimension = int((own.values <= threshold * own.values.sum()).sum())
    sizes, null = output.singular_values, own.directions[:, width - dimension :]
    angles, mean_cos2 = _angles(null, output)
    return ActivationNullSpace(
        num_states=covariance.num_states,
        width=width,
        threshold=threshold,
        dimension=dimension,
        output_dimension=int((sizes <= FLOORS_APART * floor * sizes[0]).sum()),
        angles_deg=angles,
        mean_cos2=mean_cos2,
        weakest=_weakest(sizes, dimension),
        gain=_gain(output, null),
    )


def _states(
    lm: LanguageModel, rows: Sequence[Row], layer: int
) -> Iterator[Float[Tensor, "tokens d_model"]]:
    """The stream at every token, of some texts at a time."""
    # Texts of like length together, so that little is spent on padding.
    texts = sorted((list(ids) for ids, _ in rows), key=len)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        ids, mask = padded(texts[start : start + TEXTS_AT_ONCE], device=lm.device)
        yield lm.prefix(ids, mask, layer=layer)[mask].double().cpu()


def _angles(null: Basis, output: Spectrum) -> tuple[tuple[float, ...], float | None]:
    """Some of the principal angles in degrees, and the mean cos^2 of all."""
    dimension = null.shape[1]
    if not dimension:
        return (), None
    weakest = output.directions[:, -dimension:].to(null)
    angles = linalg.principal_angles(null, weakest)
    kept = torch.linspace(0, dimension - 1, min(dimension, MOST_ANGLES)).round().long()
    degrees = tuple(math.degrees(angle) for angle in angles[kept].tolist())
    return degrees, float(angles.cos().square().mean())


def _weakest(sizes: Float[Tensor, " d_model"], dimension: int) -> float | None:
    if not (dimension and float(sizes[0])):
        return None
    return float(sizes[-dimension] / sizes[0])


def _gain(output: Spectrum, null: Basis) -> float | None:
    """tr(N' F_bar N) / k over tr F_bar / d."""
    if not (null.shape[1] and float(output.values.sum())):
        return None
    shares = (output.directions.T @ null.to(output.directions)).square().mean(1)
    return float(shares @ output.values / output.values.mean())
