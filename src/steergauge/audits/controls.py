"""Matched nulls: directions that are like v in everything but what v is said to be.

All have v's norm and site. *Random* directions ask whether any step of this length
would do; *sign flips*, mean_i s_i (h(x_i+) - h(x_i-)) with half of the s_i = +1 and
half -1, less their part along v, ask the same within the span of the very differences
that made v, which isotropic directions nearly miss (arXiv 2608.24335);
*perpendicular* ones are the v_perp of arXiv 2602.06801.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from steergauge.activations import Reader, pair_rows
from steergauge.errors import BadPairs
from steergauge.prompts import ContrastPair
from steergauge.split import LanguageModel
from steergauge.vector import SteeringVector


def random_direction(vector: SteeringVector, *, seed: int) -> SteeringVector:
    """An isotropic random direction of v's norm."""
    drawn = _normal(len(vector.direction), seed)
    return _matched(vector, drawn, f"random direction, seed {seed}")


def perpendicular(vector: SteeringVector, *, seed: int) -> SteeringVector:
    """v_perp: an isotropic random direction perpendicular to v, of v's norm."""
    unit = vector.direction.double() / vector.norm
    drawn = _normal(len(unit), seed)
    # Twice, because one projection leaves a remainder of the order of rounding.
    for _ in range(2):
        drawn = drawn - (drawn @ unit) * unit
    return _matched(vector, drawn, f"perpendicular direction, seed {seed}")


def total(first: SteeringVector, second: SteeringVector, parent: str) -> SteeringVector:
    """The vector first + second, at the site of the first."""
    return first.with_direction(first.direction + second.direction, parent)


def sign_flips(
    lm: LanguageModel,
    vector: SteeringVector,
    pairs: Sequence[ContrastPair],
    reader: Reader,
    *,
    num: int,
    seed: int = 0,
    batch_size: int | None = None,
) -> list[SteeringVector]:
    """`num` differences between two random halves of the pairs, of v's norm.

    Exactly half of the signs are +1, and what is left along v is projected out. With
    independent signs, sum s_i is not 0 and a share of v itself stays in the mean; with
    balanced ones, a share stays where some pairs show the trait more than others.
    Scaling to v's norm would turn such a "null" into v or -v.
    """
    signs = _balanced_signs(num, len(pairs), seed)
    sums, done = torch.zeros(num, lm.d_model, dtype=torch.float64), 0
    # The signs are dealt by the texts' length, whatever shares a batch.
    dealt = sorted(pairs, key=_length)
    for plus, minus in pair_rows(lm, dealt, reader, batch_size=batch_size):
        sums += signs[:, done : done + len(plus)] @ (plus - minus)
        done += len(plus)
    unit = vector.direction.double() / vector.norm
    sums = sums - torch.outer(sums @ unit, unit)
    least = float(torch.linalg.vector_norm(sums, dim=-1).min())
    if least <= 1e-6 * len(pairs) * vector.norm:
        raise BadPairs(
            f"the differences of the {len(pairs)} pairs are all the same, so flipping "
            "signs leaves nothing.",
            cause="The pairs repeat one text, or a template ignores its topic.",
            remedy="Give pairs that differ, or none and only a vector.",
        )
    return [
        _matched(vector, row, f"sign flip {i} of the pairs, seed {seed}")
        for i, row in enumerate(sums)
    ]


def _length(pair: ContrastPair) -> int:
    """Characters of the longer side."""
    return max(len(t.prompt + t.response) for t in (pair.positive, pair.negative))


def _balanced_signs(num: int, num_pairs: int, seed: int) -> Tensor:
    """Rows of +1 and -1 in equal number, shuffled; an odd pair is left out by a 0."""
    generator = torch.Generator().manual_seed(seed)
    half = num_pairs // 2
    signs = torch.zeros(num_pairs, dtype=torch.float64)
    signs[:half], signs[half : 2 * half] = 1, -1
    rows = [torch.randperm(num_pairs, generator=generator) for _ in range(num)]
    return torch.stack([signs[row] for row in rows])


def rescaled(vector: SteeringVector, like: SteeringVector) -> SteeringVector:
    """`vector` with the norm of `like`."""
    parent = vector.provenance.parent or vector.provenance.method
    return _matched(vector, vector.direction.double(), f"{parent}, rescaled", like.norm)


def _normal(width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(width, generator=generator, dtype=torch.float64)


def _matched(
    vector: SteeringVector, drawn: Tensor, parent: str, norm: float | None = None
) -> SteeringVector:
    length = torch.linalg.vector_norm(drawn)
    scaled = drawn * ((vector.norm if norm is None else norm) / length)
    return vector.with_direction(scaled.float(), parent)
