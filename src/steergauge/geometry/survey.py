"""F_bar of many texts in one pass over them, and what audits ask of it besides.

Exact F_x are summed as they come, in parts of a few texts that can be kept and merged.
A *block* is the mean over n texts, n = 1, 2, 4, ..., and blocks of one size share no
text, so their spread is that of independent prompts::

    F_bar = (1/N) sum_x F_x,      block of n: (1/n) sum over n texts

At most log2 N matrices are held at once. F is that of the next-token distribution at a
temperature T: its logits are o / T, so p and the slope of each logit change.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steergauge.jacobian import (
    Jacobian,
    Row,
    Shift,
    Square,
    layer_jacobians,
    suffix_jacobian,
)
from steergauge.split import LanguageModel

TEXTS_A_PART = 8
BLOCKS_A_SIZE = 4
"""Blocks of one size whose spectrum is computed, in each part."""

Part = dict[str, np.ndarray]
"""Plain arrays: `total` (d, d), `count` (1,), `trace` (texts,), `gain` (texts,
directions), `weakest` (blocks, d) and `block_n` (blocks, d) for every size n."""

Values = Float[np.ndarray, "_ d_model"]
"""A row a block, of any number."""


@dataclass(frozen=True, slots=True)
class Survey:
    """F_bar of N texts, and numbers of each text and block of texts.

    Attributes:
        matrix: F_bar, in float64.
        num_texts: N.
        traces: tr F_x, (texts,).
        gains: u' F_x u of the directions that were asked for, (texts, directions).
        blocks: eigenvalues, descending, of means over disjoint blocks, by their size.
        left_out: eigenvalues of F_bar with one part left out, (parts, d_model).
        weakest: direction of the smallest eigenvalue of single texts, (some, d_model).
    """

    matrix: Square
    num_texts: int
    traces: Float[np.ndarray, " texts"]
    gains: Float[np.ndarray, "texts directions"]
    blocks: dict[int, Values]
    left_out: Values
    weakest: Values


def surveyed(
    lm: LanguageModel,
    rows: Sequence[Row],
    directions: Float[Tensor, "directions d_model"],
    *,
    shift: Shift,
    temperature: float = 1.0,
) -> Part:
    """A part: the sum of F_x over `rows` with the numbers of its texts and blocks.

    Args:
        lm: the model; widen one in half precision beforehand.
        rows: prompts with responses drawn at the point of `shift`; at most a few.
        directions: u whose u' F_x u is wanted; of any length.
        shift: site, scope and point.
        temperature: of the next-token distribution.
    """
    matrices = (
        _tempered(suffix_jacobian(lm, row, shift=shift), temperature).fisher()
        for row in rows
    )
    return _part(matrices, directions)


def layers_surveyed(
    lm: LanguageModel,
    rows: Sequence[Row],
    directions: Sequence[Float[Tensor, "directions d_model"]],
    *,
    shifts: Sequence[Shift],
    temperature: float = 1.0,
) -> list[Part]:
    """The part of each of several blocks, for what the lowest of them costs.

    Arguments are those of `surveyed`, with directions and shift for each block.
    """
    counters = [_Counter(own) for own in directions]
    for row in rows:
        found = layer_jacobians(lm, row, shifts=shifts)
        shared = _tempered(found[0], temperature)
        metrics = [shared.metric(k) for k in range(len(shared.matrices))]
        for counter, own in zip(counters, found, strict=True):
            pairs = zip(own.matrices, metrics, strict=True)
            total = sum((j.T @ m @ j for j, m in pairs), torch.zeros_like(metrics[0]))
            counter.add((total + total.T) / 2)
    return [counter.part() for counter in counters]


def merged(parts: Sequence[Part]) -> Survey:
    """The survey of all parts' texts together."""
    totals = [torch.from_numpy(part["total"]) for part in parts]
    counts = [int(part["count"][0]) for part in parts]
    total, num = sum(totals[1:], totals[0]), sum(counts)
    sizes = sorted({int(k[6:]) for part in parts for k in part if k[:6] == "block_"})
    blocks = {
        n: np.concatenate(
            [part[f"block_{n}"] for part in parts if f"block_{n}" in part]
        )
        for n in sizes
    }
    for n, more in _larger(totals, counts).items():
        blocks[n] = np.concatenate([blocks[n], more]) if n in blocks else more
    rest = [(total - own, num - n) for own, n in zip(totals, counts, strict=True)]
    left_out = [_eigenvalues(own / n) for own, n in rest if n]
    width = len(total)
    return Survey(
        matrix=total / num,
        num_texts=num,
        traces=np.concatenate([part["trace"] for part in parts]),
        gains=np.concatenate([part["gain"] for part in parts]),
        blocks=blocks,
        left_out=np.array(left_out).reshape(-1, width),
        weakest=np.concatenate([part["weakest"] for part in parts]),
    )


def single_spectra(
    lm: LanguageModel, row: Row, *, shift: Shift, temperature: float = 1.0
) -> dict[str, Float[np.ndarray, " d_model"]]:
    """Squared singular values of one text's J_h, of W J_h centred, and of its F_x.

    The first two are of the next token after the prompt; logits mean something up to a
    constant only, so their mean is taken out. The third is of the whole response, at
    the temperature of its texts.
    """
    found = suffix_jacobian(lm, row, shift=shift)
    first = replace(
        found,
        matrices=found.matrices[:1],
        probabilities=torch.ones_like(found.probabilities[:1]),
        slopes=found.slopes[:1],
    )
    share = 1 / found.probabilities.shape[1]
    flat = replace(first, probabilities=first.probabilities * share)
    j = found.matrices[0]
    return {
        "J_h": _eigenvalues(j.T @ j),
        "J centred": _eigenvalues(flat.fisher() / share),
        "F_x": _eigenvalues(_tempered(found, temperature).fisher()),
    }


def _tempered(found: Jacobian, temperature: float) -> Jacobian:
    """The same Jacobian for logits divided by the temperature."""
    if temperature == 1:
        return found
    logs = found.probabilities.clamp_min(1e-300).log() / temperature
    return replace(
        found, probabilities=logs.softmax(-1), slopes=found.slopes / temperature
    )


def _part(matrices: Iterable[Square], directions: Tensor) -> Part:
    counter = _Counter(directions)
    for matrix in matrices:
        counter.add(matrix)
    return counter.part()


class _Counter:
    """A binary counter whose digits are sums over 1, 2, 4, ... texts."""

    def __init__(self, directions: Tensor) -> None:
        self.directions = directions.double()
        self.sums: list[tuple[int, Tensor]] = []
        self.spectra: dict[int, list[np.ndarray]] = {}
        self.weakest: list[np.ndarray] = []
        self.traces: list[float] = []
        self.gains: list[np.ndarray] = []

    def add(self, matrix: Square) -> None:
        """One more text."""
        u = self.directions.to(matrix)
        self.traces.append(float(matrix.trace()))
        self.gains.append(((u @ matrix) * u).sum(-1).cpu().numpy())
        if len(self.weakest) < BLOCKS_A_SIZE:
            values, columns = torch.linalg.eigh(matrix)
            self.weakest.append(columns[:, 0].cpu().numpy())
            self.spectra.setdefault(1, []).append(_descending(values))
        self.sums.append((1, matrix))
        while len(self.sums) > 1 and self.sums[-1][0] == self.sums[-2][0]:
            (_, last), (n, before) = self.sums.pop(), self.sums.pop()
            self.sums.append((2 * n, before + last))
            found = self.spectra.setdefault(2 * n, [])
            if len(found) < BLOCKS_A_SIZE:
                found.append(_eigenvalues(self.sums[-1][1] / (2 * n)))

    def part(self) -> Part:
        """Everything as arrays."""
        total = sum((m for _, m in self.sums[1:]), self.sums[0][1])
        arrays = {
            "total": total.cpu().numpy(),
            "count": np.array([len(self.traces)]),
            "trace": np.array(self.traces),
            "gain": np.array(self.gains),
            "weakest": np.array(self.weakest),
        }
        blocks = {f"block_{n}": np.array(found) for n, found in self.spectra.items()}
        return arrays | blocks


def _larger(totals: list[Tensor], counts: list[int]) -> dict[int, Values]:
    """Spectra of blocks of more texts than a part has; parts are taken in order."""
    found: dict[int, list[np.ndarray]] = {}
    sums: list[tuple[int, Tensor]] = []
    for count, own in zip(counts, totals, strict=True):
        sums.append((count, own))
        while len(sums) > 1 and sums[-1][0] == sums[-2][0]:
            (_, last), (n, before) = sums.pop(), sums.pop()
            sums.append((2 * n, before + last))
            found.setdefault(2 * n, []).append(_eigenvalues(sums[-1][1] / (2 * n)))
    return {n: np.array(spectra) for n, spectra in found.items()}


def _eigenvalues(matrix: Tensor) -> np.ndarray:
    return _descending(torch.linalg.eigvalsh(matrix))


def _descending(values: Tensor) -> np.ndarray:
    return values.flip(0).clamp_min(0).cpu().numpy()


def parts_of(num_texts: int) -> Iterator[range]:
    """Which texts each part has."""
    for k in range(math.ceil(num_texts / TEXTS_A_PART)):
        start = k * TEXTS_A_PART
        yield range(start, min(num_texts, start + TEXTS_A_PART))
