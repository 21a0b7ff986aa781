"""J and F: what the next token can see of a shift of the stream after block l.

With z_k the input of the unembedding W (the stream after the final norm) where the
k-th token is predicted, p_k that prediction, and delta a shift that is added to the
stream after block l at every position of a scope ::

    J_k = dz_k / ddelta                           (d x d, never V x d)
    M_k = W' (diag p_k - p_k p_k') W              W with its rows times D_k
    F   = sum_k J_k' M_k J_k                      KL ~ delta' F delta / 2

where D_k is the slope of what a family does to its logits after W, such as Gemma-2's
soft cap. The sum over a response is the Fisher matrix of the whole response, by the
chain rule; its mean over sampled responses and over prompts is F_bar. The policies:

============  ==================  ==================================================
policy        scope, response     delta is added at
============  ==================  ==================================================
last          generating, none    the last prompt token
all           all, none           every prompt token, the same delta
generated     generating, given   the last prompt token and each response token
============  ==================  ==================================================

Tokens before the first shifted one run once, into a cache. The rows of J_k come from
one pass and its batched reverse mode; with many k, forward mode makes all J_k together.
Both are exact, in float32 at least, and use attention's plain formula: the only kernel
with all derivatives.
"""

import copy
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad, grad
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache

from steergauge import architectures
from steergauge.errors import InputError, ModelError
from steergauge.intervention import Scope
from steergauge.prompts import padded
from steergauge.readout import log_likelihood
from steergauge.split import LanguageModel, positions
from steergauge.types import Direction, Logits
from steergauge.vector import Site

TOKENS_AT_ONCE = 1024
"""Tokens of a batch of columns: rows at once times tokens from the first shifted on."""

ENTRIES_AT_ONCE = 2**23
"""Entries of W held in float64 at once, 64 MB."""

LARGEST_COPY = 2**33
"""Bytes of the largest copy of a model that is made to widen it, 8 GiB."""

FORWARD_FROM = 4
"""Predictions from which on forward mode is faster: it costs three reverse modes."""

Row = tuple[Sequence[int], int]
"""Token ids of a prompt and its response, and how many are the prompt's."""

Square = Float[Tensor, "d_model d_model"]


class Mode(StrEnum):
    """Of differentiation: a row of J at a time, or a column."""

    REVERSE = "reverse"
    FORWARD = "forward"


@dataclass(frozen=True, slots=True)
class Shift:
    """Where delta is added, and the point `at` which derivatives are taken (or 0)."""

    site: Site
    scope: Scope = Scope.GENERATING
    at: Direction | None = None


@dataclass(frozen=True, slots=True)
class Jacobian:
    """J_k of one text for each prediction k, and the metric of its logits, in float64.

    Attributes:
        matrices: J_k; entry (i, j) is the derivative of z_i by delta_j.
        probabilities: p_k.
        slopes: D_k, derivative of each logit by its entry of W z; 1 in most families.
        unembedding: W, the model's own.
        mode: the mode of differentiation that was used.
    """

    matrices: Float[Tensor, "predictions d_model d_model"]
    probabilities: Float[Tensor, "predictions d_vocab"]
    slopes: Float[Tensor, "predictions d_vocab"]
    unembedding: Float[Tensor, "d_vocab d_model"]
    mode: Mode

    def metric(self, k: int) -> Square:
        """M_k, as a sum of squares, so that rounding cannot make it indefinite."""
        shares, slopes = self.probabilities[k], self.slopes[k]
        size = max(1, ENTRIES_AT_ONCE // self.unembedding.shape[1])
        parts = [part.split(size) for part in (self.unembedding, shares, slopes)]
        mean = sum((p * d) @ w.double() for w, p, d in zip(*parts, strict=True))
        total = torch.zeros_like(self.matrices[k])
        for w, p, d in zip(*parts, strict=True):
            factor = p.sqrt()[:, None] * (d[:, None] * w.double() - mean)
            total.addmm_(factor.T, factor)
        return total

    def fisher(self) -> Square:
        """F = sum_k J_k' M_k J_k of this text."""
        total = torch.zeros_like(self.matrices[0])
        for k, matrix in enumerate(self.matrices):
            total += matrix.T @ self.metric(k) @ matrix
        return (total + total.T) / 2


def suffix_jacobian(
    lm: LanguageModel,
    row: Row,
    *,
    shift: Shift,
    mode: Mode | None = None,
    cached: bool = True,
) -> Jacobian:
    """J_k of one text at each of its predictions, of which a mere prompt has one.

    Args:
        lm: the model; one in half precision is copied in float32, see `widened`.
        row: token ids and how many are the prompt's, as from `prompts.encode`.
        shift: site, scope and point.
        mode: preferred one, by default the faster; where the model does not allow
            forward mode, it is reverse mode.
        cached: without it the same numbers come with other rounding, and more slowly.

    Raises:
        InputError: no token is in scope, or the row has no prompt.
        ModelError: the model mixes its logits, or is too large to be widened.
    """
    entry = _entry(widened(lm), row, shift, cached=cached)
    used = _allowed(entry, mode)
    logits, slopes = _logits_and_slopes(entry)
    return Jacobian(
        matrices=(_forward if used is Mode.FORWARD else _reverse)(entry).double(),
        probabilities=logits.double().softmax(-1),
        slopes=slopes.double(),
        unembedding=entry.lm.model.get_output_embeddings().weight.detach(),
        mode=used,
    )


@torch.enable_grad()
def score(lm: LanguageModel, row: Row, *, shift: Shift) -> Direction:
    """g, the derivative of log P(response) by delta, in float64.

    Over responses drawn from the model its mean is 0, and that of g g' is F. The
    arguments are those of `suffix_jacobian`.

    Raises:
        InputError: the row has no response.
    """
    entry = _entry(widened(lm), row, shift)
    if not len(entry.targets):
        raise InputError(
            "the score of a response was asked for on a row that has none.",
            remedy="Give responses drawn from the model, or use the exact `fisher`.",
        )
    delta = torch.zeros_like(entry.stream[0, 0]).requires_grad_()
    logits = entry.logits(entry.stream + entry.covered * delta)[0]
    (gradient,) = grad(log_likelihood(logits, entry.targets).sum(), delta)
    return gradient.double()


def widened(lm: LanguageModel, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """The model itself if its weights are as wide as `dtype`, else a copy that is.

    The copy is exact: every weight keeps its value. A borrowed model is not converted
    in place, for its owner may go on using it.

    Raises:
        ModelError: the copy would be too large.
    """
    weights = list(lm.model.parameters())
    if all(weight.dtype.itemsize >= dtype.itemsize for weight in weights):
        return lm
    num_weights = sum(weight.numel() for weight in weights)
    if num_weights * dtype.itemsize > LARGEST_COPY:
        raise ModelError(
            f"{lm.name} computes in {str(lm.dtype).removeprefix('torch.')}, and a "
            f"wider copy of its {num_weights:,} weights beside it would be too large.",
            cause="Derivatives in half precision would be mostly rounding.",
            remedy="Load it with --dtype float32, which needs no copy.",
        )
    model = copy.deepcopy(lm.model).to(dtype)
    blocks = architectures.blocks(model)
    return replace(lm, model=model, blocks=blocks, _proved=set())


@dataclass(frozen=True, slots=True)
class _Entry:
    """A text up to block l: the stream from the first shifted token on, and a cache.

    `covered` (pos, 1) is 1 where the stream is shifted, else 0.
    """

    lm: LanguageModel
    layer: int
    stream: Float[Tensor, "1 pos d_model"]
    covered: Float[Tensor, "pos 1"]
    mask: Tensor
    cache: DynamicCache | None
    targets: Tensor
    predictions: int

    def hidden(self, stream: Tensor) -> Float[Tensor, "batch predictions d_model"]:
        """Each z_k, of rows of `stream`; the head is not run."""
        with sdpa_kernel(SDPBackend.MATH), _head_reached(self.lm) as seen:
            self.logits(stream)
        return seen[0][:, -self.predictions :]

    def logits(self, stream: Tensor) -> Logits:
        """Logits where tokens are predicted, of rows of `stream`."""
        rows = len(stream)
        return self.lm.suffix(
            stream,
            self.mask.expand(rows, -1),
            layer=self.layer,
            cache=None if self.cache is None else _repeated(self.cache, rows),
            keep=self.predictions,
        )

    def batches(self) -> Iterator[Tensor]:
        """The rows of the identity, as many at once as memory is meant to hold."""
        width = self.stream.shape[-1]
        rows = max(1, TOKENS_AT_ONCE // len(self.covered))
        yield from torch.eye(width).to(self.stream).split(rows)


def _entry(lm: LanguageModel, row: Row, shift: Shift, *, cached: bool = True) -> _Entry:
    ids, prompt_length = row
    if not 0 < prompt_length <= len(ids):
        raise InputError(f"a row of {len(ids)} tokens has {prompt_length} of a prompt.")
    response = list(ids[prompt_length:])
    # The last token of a response is predicted, not read.
    tokens, mask = padded([ids[: len(ids) - bool(response)]], device=lm.device)
    length = torch.tensor([prompt_length], device=lm.device)
    covered = shift.scope.covers(positions(mask), length)[0]
    if not bool(covered.any()):
        raise InputError(
            f"no token of the text lies in the scope {shift.scope}.",
            remedy="Give a response of two tokens or more, or another scope.",
        )
    first = min(int(covered.nonzero()[0]), prompt_length - 1) if cached else 0
    cache = DynamicCache(config=lm.model.config) if first else None
    if first:
        lm.logits(tokens[:, :first], mask[:, :first], cache=cache, keep=1)
    layer = shift.site.layer
    stream = lm.prefix(tokens[:, first:], mask, layer=layer, cache=cache)
    where = covered[first:, None].to(stream)
    if shift.at is not None:
        stream = stream + where * shift.at.to(stream)
    targets = torch.tensor(response, dtype=torch.long, device=lm.device)
    predictions = max(1, len(response))
    return _Entry(lm, layer, stream, where, mask, cache, targets, predictions)


def _repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """The same keys and values for several rows, without a copy of them."""
    repeated = copy.deepcopy(cache)
    layers: list[Any] = repeated.layers
    for layer in layers:
        if layer.is_initialized:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
    return repeated


class _HeadReached(Exception):
    """Raised once the input of the unembedding is known."""


@contextmanager
def _head_reached(lm: LanguageModel) -> Generator[list[Tensor]]:
    """End a pass, and the `with`, before the unembedding; its input is in the list."""
    seen: list[Tensor] = []

    def hook(_module: Any, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise _HeadReached

    handle = lm.model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        with suppress(_HeadReached):
            yield seen
    finally:
        handle.remove()


def _allowed(entry: _Entry, preferred: Mode | None) -> Mode:
    """The preferred mode, or the faster one, if the model allows it."""
    if preferred is None:
        many = entry.predictions >= FORWARD_FROM
        preferred = Mode.FORWARD if many else Mode.REVERSE
    forward = preferred is Mode.FORWARD and _has_forward(entry)
    return Mode.FORWARD if forward else Mode.REVERSE


@torch.enable_grad()
def _graph(entry: _Entry) -> tuple[Tensor, Tensor]:
    """A delta of 0 and z (predictions, d_model) as a differentiable function of it."""
    delta = torch.zeros_like(entry.stream[0, 0]).requires_grad_()
    return delta, entry.hidden(entry.stream + entry.covered * delta)[0]


@torch.enable_grad()
def _reverse(entry: _Entry) -> Tensor:
    """J_k, row by row: the graph of one pass serves all rows."""
    delta, hidden = _graph(entry)
    rows = [[_rows(z, delta, batch) for batch in entry.batches()] for z in hidden]
    return torch.stack([torch.cat(batches) for batches in rows])


def _rows(z: Tensor, delta: Tensor, batch: Tensor) -> Tensor:
    """Rows `batch` of dz / ddelta."""
    try:
        (rows,) = grad(z, delta, batch, retain_graph=True, is_grads_batched=True)
    except RuntimeError:  # An operation of the model's own that has no batched form.
        each = [grad(z, delta, row, retain_graph=True)[0] for row in batch]
        rows = torch.stack(each)
    return rows


def _forward(entry: _Entry) -> Tensor:
    """J_k, column by column, of all k together: a copy of the text for each column."""
    columns = [_tangents(entry, batch) for batch in entry.batches()]
    return torch.cat(columns).permute(1, 2, 0)


@torch.no_grad()
def _tangents(
    entry: _Entry, batch: Float[Tensor, "rows d_model"]
) -> Float[Tensor, "rows predictions d_model"]:
    """J_k u for each row u of `batch`."""
    stream = entry.stream.expand(len(batch), -1, -1).contiguous()
    with forward_ad.dual_level(), warnings.catch_warnings():
        # Of torch's own use of torch.jit, the first time that a dual is made.
        warnings.filterwarnings("ignore", message=r"`torch\.jit", append=False)
        dual: Any = forward_ad.make_dual(stream, entry.covered * batch[:, None])
        hidden = entry.hidden(dual)
        tangent = forward_ad.unpack_dual(hidden).tangent
    return torch.zeros_like(hidden) if tangent is None else tangent


def _has_forward(entry: _Entry) -> bool:
    """Whether forward mode runs, and agrees with reverse mode in c' J u."""
    delta, hidden = _graph(entry)
    u, c = torch.cos(torch.arange(delta.numel()).to(delta)), torch.sin(hidden.detach())
    try:
        column = _tangents(entry, u[None])[0]
    except RuntimeError:  # NotImplementedError is one.
        return False
    (row,) = grad(hidden, delta, c)
    scale = torch.linalg.vector_norm(column) * torch.linalg.vector_norm(c)
    return bool(((c * column).sum() - row @ u).abs() <= 1e-3 * scale)


@torch.enable_grad()
def _logits_and_slopes(entry: _Entry) -> tuple[Tensor, Tensor]:
    """Logits where tokens are predicted, and their derivatives by W z, entry by entry.

    Raises:
        ModelError: a logit depends on other entries of W z than its own.
    """
    inputs: list[Tensor] = []

    def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
        inputs.append(output.detach().requires_grad_())
        return inputs[-1]

    handle = entry.lm.model.get_output_embeddings().register_forward_hook(hook)
    try:
        logits = entry.logits(entry.stream.detach().requires_grad_())
    finally:
        handle.remove()
    (slopes,) = grad(logits.sum(), inputs[-1], retain_graph=True)
    weights = torch.cos(torch.arange(logits.shape[-1])).to(logits)
    (weighted,) = grad((weights * logits).sum(), inputs[-1])
    if float((weighted - weights * slopes).abs().max()) > 1e-4 * float(slopes.max()):
        raise ModelError(
            f"{entry.lm.name} mixes its logits after the unembedding.",
            remedy="Please report the model id; its Fisher matrix is not known.",
        )
    return logits.detach()[0], slopes[0, -entry.predictions :]
