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

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad, grad

from steergauge.batching import ran_out_of_memory
from steergauge.entry import Entry, Row, Shift, entered
from steergauge.errors import InputError, ModelError
from steergauge.readout import log_likelihood
from steergauge.sharding import is_tensor_parallel
from steergauge.split import LanguageModel
from steergauge.types import Direction
from steergauge.widening import LARGEST_COPY, widened

__all__ = [
    "LARGEST_COPY",
    "Jacobian",
    "LogitTangents",
    "Mode",
    "Row",
    "Shift",
    "Square",
    "layer_jacobians",
    "logit_tangents",
    "score",
    "suffix_jacobian",
    "widened",
]

ENTRIES_AT_ONCE = 2**23
"""Entries of W held in float64 at once, 64 MB."""

FORWARD_FROM = 4
"""Predictions from which on forward mode is faster: it costs three reverse modes."""

Square = Float[Tensor, "d_model d_model"]


class Mode(StrEnum):
    """Of differentiation: a row of J at a time, or a column."""

    REVERSE = "reverse"
    FORWARD = "forward"


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
    entry = entered(widened(lm), row, shift, cached=cached)
    used = _allowed(entry, mode)
    logits, slopes = _logits_and_slopes(entry)
    return Jacobian(
        matrices=_matrices(entry, used).double().to(logits.device),
        probabilities=logits.double().softmax(-1),
        slopes=slopes.double(),
        unembedding=entry.lm.unembedding,
        mode=used,
    )


def layer_jacobians(
    lm: LanguageModel, row: Row, *, shifts: Sequence[Shift]
) -> list[Jacobian]:
    """J_k of one text for each of several blocks, from one pass.

    What flows back from z to the lowest block passes all others on its way, so that
    all blocks cost what the lowest one costs, in reverse mode.

    Args:
        lm: the model.
        row: token ids and how many are the prompt's.
        shifts: one a block, of one scope, and none with a point.

    Raises:
        InputError: scopes differ, a point is given, a block is named twice, or as
            `suffix_jacobian`.
        ModelError: as `suffix_jacobian`.
    """
    layers = sorted(shift.site.layer for shift in shifts)
    if len({*layers}) != len(shifts) or len({shift.scope for shift in shifts}) != 1:
        raise InputError(
            "several Jacobians were asked for at once, and their shifts differ in more "
            "than their block.",
            remedy="Give each block once, all with the same scope.",
        )
    if any(shift.at is not None for shift in shifts):
        raise InputError("Jacobians of several blocks are those at no shift at all.")
    lowest = min(shifts, key=lambda shift: shift.site.layer)
    entry = entered(widened(lm), row, lowest)
    matrices = dict(zip(layers, _reverse(entry, layers[1:]), strict=True))
    logits, slopes = _logits_and_slopes(entry)
    shared = Jacobian(
        matrices=matrices[layers[0]],
        probabilities=logits.double().softmax(-1),
        slopes=slopes.double(),
        unembedding=entry.lm.unembedding,
        mode=Mode.REVERSE,
    )
    return [
        replace(shared, matrices=matrices[shift.site.layer].double().to(logits.device))
        for shift in shifts
    ]


@dataclass(frozen=True, slots=True)
class LogitTangents:
    """Logits of one text where tokens are predicted, and J u for some directions u.

    Attributes:
        logits: o_k at the point.
        tangents: do_k / dt along h + t u.
    """

    logits: Float[Tensor, "predictions d_vocab"]
    tangents: Float[Tensor, "directions predictions d_vocab"]

    @property
    def visibility(self) -> Float[Tensor, " directions"]:
        """The u' F u: variance of the tangents under p_k, summed over predictions."""
        p = self.logits.softmax(-1)
        centred = self.tangents - (p * self.tangents).sum(-1, keepdim=True)
        return (p * centred.square()).sum((-2, -1))


def logit_tangents(
    lm: LanguageModel,
    row: Row,
    directions: Float[Tensor, "directions d_model"],
    *,
    shift: Shift,
) -> LogitTangents:
    """J u of the logits for a few directions, at the cost of as many columns.

    Arguments and errors are those of `suffix_jacobian`; in float64 from z on.
    """
    entry = entered(widened(lm), row, shift)
    if _has_forward(entry):
        batches = entry.batches(directions)
        tangents = torch.cat([_tangents(entry, batch) for batch in batches])
    else:
        (matrices,) = _reverse(entry)
        tangents = torch.einsum("kij,nj->nki", matrices, directions.to(matrices))
    logits, slopes = _logits_and_slopes(entry)
    head = entry.lm.unembedding
    wide = (tangents.to(head) @ head.T).double()
    return LogitTangents(logits.double(), slopes.double() * wide)


@torch.enable_grad()
def score(lm: LanguageModel, row: Row, *, shift: Shift) -> Direction:
    """g, the derivative of log P(response) by delta, in float64.

    Over responses drawn from the model its mean is 0, and that of g g' is F. The
    arguments are those of `suffix_jacobian`.

    Raises:
        InputError: the row has no response.
    """
    entry = entered(widened(lm), row, shift)
    if not len(entry.targets):
        raise InputError(
            "the score of a response was asked for on a row that has none.",
            remedy="Give responses drawn from the model, or use the exact `fisher`.",
        )
    delta = torch.zeros_like(entry.stream[0, 0]).requires_grad_()
    logits = entry.logits(entry.stream + entry.covered * delta)[0]
    (gradient,) = grad(log_likelihood(logits, entry.targets).sum(), delta)
    return gradient.double().to(lm.device)


def _matrices(entry: Entry, mode: Mode) -> Tensor:
    return _forward(entry) if mode is Mode.FORWARD else _reverse(entry)[0]


def _allowed(entry: Entry, preferred: Mode | None) -> Mode:
    """The preferred mode, or the faster one, if the model allows it."""
    if preferred is None:
        many = entry.predictions >= FORWARD_FROM
        preferred = Mode.FORWARD if many else Mode.REVERSE
    forward = preferred is Mode.FORWARD and _has_forward(entry)
    return Mode.FORWARD if forward else Mode.REVERSE


@torch.enable_grad()
def _graph(
    entry: Entry, above: Sequence[int] = (), rows: int = 1
) -> tuple[list[Tensor], Tensor]:
    """Deltas of 0, after block l and after those above it, and z as a function of them.

    Each delta is (rows, d_model), of as many copies of the text, and z is
    (rows, predictions, d_model).
    """
    zeros = entry.stream.new_zeros(rows, 1, entry.stream.shape[-1])
    deltas = [zeros.clone().requires_grad_() for _ in (entry.layer, *above)]
    stream = entry.stream + entry.covered * deltas[0]
    return deltas, entry.hidden(stream, dict(zip(above, deltas[1:], strict=True)))


def _reverse(entry: Entry, above: Sequence[int] = ()) -> list[Tensor]:
    """J_k by block, row by row: the graph of one pass serves all rows and blocks."""
    # The sums of tensor-parallel processes have no batched form, nor have some
    # operations of models of their own.
    if not is_tensor_parallel(entry.lm.model):
        try:
            return _rows(entry, above, batched=True)
        except RuntimeError as error:
            if ran_out_of_memory(error):
                raise
    return _rows(entry, above, batched=False)


@torch.enable_grad()
def _rows(entry: Entry, above: Sequence[int], *, batched: bool) -> list[Tensor]:
    """J_k by block, from one graph, or from one of a copy of the text for each row."""
    identity = torch.eye(entry.stream.shape[-1])
    deltas, hidden = _graph(entry, above) if batched else ([], entry.stream)
    parts = []
    for batch in entry.batches(identity):
        if not batched:
            deltas, hidden = _graph(entry, above, len(batch))
        of_batch = []
        for z in hidden.unbind(1):
            back = batch[:, None] if batched else batch
            by_block = grad(
                z, deltas, back, retain_graph=True, is_grads_batched=batched
            )
            of_batch.append(torch.stack([rows.flatten(1) for rows in by_block]))
        parts.append(torch.stack(of_batch, dim=1))
    return list(torch.cat(parts, dim=2))


def _forward(entry: Entry) -> Tensor:
    """J_k, column by column, of all k together: a copy of the text for each column."""
    identity = torch.eye(entry.stream.shape[-1])
    columns = [_tangents(entry, batch) for batch in entry.batches(identity)]
    return torch.cat(columns).permute(1, 2, 0)


@torch.no_grad()
def _tangents(
    entry: Entry, batch: Float[Tensor, "rows d_model"]
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


def _has_forward(entry: Entry) -> bool:
    """Whether forward mode runs, and agrees with reverse mode in c' J u."""
    if is_tensor_parallel(entry.lm.model):
        return False  # The sums over processes know nothing of tangents.
    (delta,), hidden = _graph(entry)
    u, c = torch.cos(torch.arange(delta.numel()).to(delta)), torch.sin(hidden.detach())
    try:
        column = _tangents(entry, u[None])
    except RuntimeError:  # NotImplementedError is one.
        return False
    (row,) = grad(hidden, delta, c)
    scale = torch.linalg.vector_norm(column) * torch.linalg.vector_norm(c)
    return bool(((c * column).sum() - row.flatten() @ u).abs() <= 1e-3 * scale)


@torch.enable_grad()
def _logits_and_slopes(entry: Entry) -> tuple[Tensor, Tensor]:
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
    slopes, weighted = slopes.to(logits.device), weighted.to(logits.device)
    if float((weighted - weights * slopes).abs().max()) > 1e-4 * float(slopes.max()):
        raise ModelError(
            f"{entry.lm.name} mixes its logits after the unembedding.",
            remedy="Please report the model id; its Fisher matrix is not known.",
        )
    return logits.detach()[0], slopes[0, -entry.predictions :]
