"""The published estimate of a null space, emulated, beside the exact number.

The code that accompanies arXiv 2602.06801 (`nullspace_dimensionality.py`) estimates
the null space of J = do/dh, the Jacobian of the next-token logits o by the stream h
after block l at the last token of one prompt, by central differences along N random
unit directions e_i ::

    A e_i = [o(h + epsilon e_i) - o(h - epsilon e_i)] / 2 epsilon       i = 1..N
    rank  = #{sigma_i(A P) > 0.05 sigma_1(A P)},     P = [e_1 ... e_N]
    null fraction = (N - rank) / N

with N = 1000, epsilon = 0.01 and the model in float16. Two things move the estimate
away from J, and each can be seen by itself:

rounding  in float16 the step is lost in the rounding of h and of the logits; `error`
          is ||A P - J P|| / ||J P||, which bending alone (in float32) leaves near 0;
          it holds the rounding of the weights too
counting  J P has rank d at most, so N > d shows a null fraction of 1 - d/N and more
          when J has none, and N < d shows none when J hides as many as d - N

The settings are theirs; the pass is ours: the prompt's earlier tokens run once, and
the upper blocks see many perturbed copies of the last token together.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from steergauge import architectures, jacobian
from steergauge.entry import repeated
from steergauge.errors import InputError, ModelError, NonFiniteLogits
from steergauge.jacobian import Jacobian, Row, Shift, suffix_jacobian
from steergauge.prompts import padded
from steergauge.sharding import is_sharded
from steergauge.split import LanguageModel
from steergauge.vector import Site

LABEL = "emulation of the published estimate"

PROBES_AT_ONCE = 64
"""Of which each is two rows of a batch: a step forth and a step back."""

Probes = Float[Tensor, "probes d_model"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of the estimate; those of the published code, if none are given.

    Attributes:
        dtype: in which model, step and difference are computed.
        num_probes: N, random unit directions.
        epsilon: length of the step.
        threshold: share of sigma_1 above which a singular value counts.
        seed: of the directions.
    """

    dtype: torch.dtype = torch.float16
    num_probes: int = 1000
    epsilon: float = 0.01
    threshold: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be estimated."""
        sound = self.num_probes >= 1 and self.epsilon > 0 and 0 < self.threshold < 1
        if not (sound and self.dtype.is_floating_point):
            raise InputError(
                f"no null space can be estimated with {self}.",
                remedy="Give probes, a step above 0 and a threshold between 0 and 1.",
            )


@dataclass(frozen=True, slots=True)
class PublishedNullSpace:
    """What the published estimate says of one prompt, and what is true of it.

    Attributes:
        recipe: the settings.
        layer: block l after which the stream is shifted.
        width: d.
        rank: singular values of A P above the threshold.
        error: ||A P - J P|| / ||J P|| in the Frobenius norm; from 1 on the estimate is
            more error than signal.
        exact_rank: singular values of J above the same threshold.
    """

    recipe: Recipe
    layer: int
    width: int
    rank: int
    error: float
    exact_rank: int

    @property
    def null_fraction(self) -> float:
        """(N - rank) / N, as published."""
        return 1 - self.rank / self.recipe.num_probes

    @property
    def exact_null_fraction(self) -> float:
        """(d - rank of J) / d at the same threshold."""
        return 1 - self.exact_rank / self.width

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the details of a finding."""
        return {
            "label": LABEL,
            "dtype": str(self.recipe.dtype).removeprefix("torch."),
            "num_probes": self.recipe.num_probes,
            "epsilon": self.recipe.epsilon,
            "threshold": self.recipe.threshold,
            "seed": self.recipe.seed,
            "layer": self.layer,
            "width": self.width,
            "rank": self.rank,
            "null_fraction": self.null_fraction,
            "error": self.error,
            "exact": {
                "rank": self.exact_rank,
                "null_fraction": self.exact_null_fraction,
            },
        }


def published_nullspace(
    lm: LanguageModel, row: Row, *, layer: int, recipe: Recipe | None = None
) -> PublishedNullSpace:
    """The estimate of one prompt by the published settings, and the exact number.

    Holds num_probes x d_vocab logits in the recipe's precision, as the original does.

    Args:
        lm: the model; in another precision than the recipe's it is copied.
        row: token ids and how many are the prompt's; the others are not looked at.
        layer: l.
        recipe: settings, by default the published ones.

    Raises:
        InputError: the row has no prompt.
        ModelError: the model is too large to be copied.
        NonFiniteLogits: it has no finite logits in the recipe's precision.
    """
    recipe = recipe or Recipe()
    prompt = list(row[0][: row[1]])
    exact = suffix_jacobian(lm, (prompt, len(prompt)), shift=Shift(Site(layer)))
    probes = unit_probes(recipe, lm.d_model)
    narrow = converted(lm, recipe.dtype)
    # Before the first use of the copy's split, whose law would be said not to hold.
    _check_finite(narrow, narrow.logits(*padded([prompt], device=lm.device), keep=1))
    estimate = differences(
        narrow, prompt, layer=layer, probes=probes, epsilon=recipe.epsilon
    )
    _check_finite(narrow, estimate)
    squares, error, size = _compared(estimate, exact, probes)
    return PublishedNullSpace(
        recipe=recipe,
        layer=layer,
        width=lm.d_model,
        rank=rank_above(squares, recipe.threshold),
        error=(error / size) ** 0.5 if size else 0.0,
        exact_rank=rank_above(_gram_of_logits(exact), recipe.threshold),
    )


def unit_probes(recipe: Recipe, d_model: int) -> Probes:
    """Random directions of length 1, drawn in float32 and then rounded."""
    generator = torch.Generator().manual_seed(recipe.seed)
    drawn = torch.randn(recipe.num_probes, d_model, generator=generator)
    return (drawn / drawn.norm(dim=-1, keepdim=True)).to(recipe.dtype)


def converted(lm: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    """The model itself if it is of that precision, else a copy that is.

    Weights alone are converted: rotary frequencies stay as they are, as in a model
    that was loaded in half precision. The borrowed model is not touched.

    Raises:
        ModelError: the copy would be too large.
    """
    weights = list(lm.model.parameters())
    if all(weight.dtype is dtype for weight in weights):
        return lm
    if is_sharded(lm.model):
        raise ModelError(
            f"{lm.name} is shared out over devices, and a copy in {dtype} is needed.",
            remedy="Leave the published estimate out.",
        )
    num_weights = sum(weight.numel() for weight in weights)
    if num_weights * dtype.itemsize > jacobian.LARGEST_COPY:
        raise ModelError(
            f"a copy of {lm.name} in {dtype}, of {num_weights:,} weights, would be too "
            "large beside it.",
            remedy="Leave the published estimate out.",
        )
    # What the memo holds is not copied: there never is a copy in the old precision.
    memo = {
        id(weight): nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        for weight in weights
    }
    model = copy.deepcopy(lm.model, memo)
    return replace(lm, model=model, blocks=architectures.blocks(model), _proved=set())


@torch.no_grad()
def differences(
    lm: LanguageModel,
    prompt: list[int],
    *,
    layer: int,
    probes: Probes,
    epsilon: float,
) -> Float[Tensor, "probes d_vocab"]:
    """(A P)', the central differences of the last logits, in the model's precision."""
    tokens, mask = padded([prompt], device=lm.device)
    cache = DynamicCache(config=lm.model.config) if len(prompt) > 1 else None
    if cache is not None:
        lm.logits(tokens[:, :-1], mask[:, :-1], cache=cache, keep=1)
    stream = lm.prefix(tokens[:, -1:], mask, layer=layer, cache=cache)
    found = []
    for batch in probes.to(stream).split(PROBES_AT_ONCE):
        steps = epsilon * torch.cat([batch, -batch])[:, None]
        rows = len(steps)
        logits = lm.suffix(
            stream + steps,
            mask.expand(rows, -1),
            layer=layer,
            cache=None if cache is None else repeated(cache, rows),
            keep=1,
        )
        plus, minus = logits[:, 0].chunk(2)
        found.append((plus - minus) / (2 * epsilon))
    return torch.cat(found)


def rank_above(gram: Float[Tensor, "n n"], threshold: float) -> int:
    """Singular values of A above `threshold` times the largest, from A'A in float64.

    Float64 resolves squares down to 1e-16 of the largest, a threshold of 1e-7.

    >>> rank_above(torch.diag(torch.tensor([100.0, 1.0, 0.1])), 0.05)
    2
    """
    values = torch.linalg.eigvalsh(gram.double())
    return int((values > threshold**2 * values[-1]).sum())


def _check_finite(lm: LanguageModel, numbers: Tensor) -> None:
    if not bool(numbers.isfinite().all()):
        raise NonFiniteLogits(
            f"{lm.name} has logits of inf or NaN in {lm.dtype}.",
            cause="Its activations are larger than that precision can hold.",
            remedy="Leave the published estimate out, or run it in float32.",
        )


def _unembeddings(exact: Jacobian) -> Iterator[tuple[slice, Tensor]]:
    """D W in float64, some tokens at a time."""
    num_tokens, width = exact.unembedding.shape
    size = max(1, jacobian.ENTRIES_AT_ONCE // width)
    for start in range(0, num_tokens, size):
        part = slice(start, start + size)
        slopes = exact.slopes[0, part, None]
        yield part, slopes * exact.unembedding[part].double()


def _gram_of_logits(exact: Jacobian) -> Float[Tensor, "d_model d_model"]:
    """J'J with J = D W J_h: of raw logits, which the original does not centre."""
    total = torch.zeros_like(exact.matrices[0])
    for _, weights in _unembeddings(exact):
        total.addmm_(weights.T, weights)
    return exact.matrices[0].T @ total @ exact.matrices[0]


def _compared(
    estimate: Float[Tensor, "probes d_vocab"], exact: Jacobian, probes: Probes
) -> tuple[Float[Tensor, "probes probes"], float, float]:
    """(A P)'(A P), ||A P - J P||^2 and ||J P||^2, some tokens at a time."""
    hidden = exact.matrices[0] @ probes.T.to(exact.matrices)
    gram = torch.zeros(len(probes), len(probes)).to(hidden)
    error = size = 0.0
    for part, weights in _unembeddings(exact):
        seen, true = estimate[:, part].to(hidden), (weights @ hidden).T
        gram.addmm_(seen, seen.T)
        error += float((seen - true).square().sum())
        size += float(true.square().sum())
    return gram, error, size
