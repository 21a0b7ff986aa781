"""Gauge transformations: the same model and vector, written in other numbers.

An RMSNorm model that reads and writes its stream h (a row) through linear maps only
is the same function in every orthonormal basis of the stream. For an orthogonal Q ::

    RMSNorm(h Q) = RMSNorm(h) Q        once its weights gamma are in what reads it,
    embeddings  E -> E Q               readers W -> W diag(gamma) Q
    writers     W -> Q' W, b -> Q' b   vectors v -> Q' v

(the computational invariance of SliceGPT, arXiv 2401.15024). A LayerNorm model has
no such freedom, but another: it takes the mean of h away wherever it reads h, so that
v and v + c 1 are the same. What the output sees of v cannot depend on either choice;
whatever does is a statement about the basis.

Neither is believed by a model's name: a twin or a shift is given only after logits
on a specimen have been compared. A wrong one would blame the audits for its error.
"""

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steergauge import architectures
from steergauge.errors import ModelError
from steergauge.jacobian import ENTRIES_AT_ONCE, LARGEST_COPY, widened
from steergauge.loading import fingerprint
from steergauge.sharding import is_sharded
from steergauge.split import LanguageModel
from steergauge.types import Logits, Mask, Stream, TokenIds
from steergauge.vector import SteeringVector

TOLERANCE = {torch.float64: 1e-5}
"""Largest error of the proof, as a share of the size of what is compared; 1e-3 in
float32. The norms of most families compute in float32 whatever the weights are: seen
were 1e-6 in tiny models of both precisions. One forgotten map makes 0.1 or more."""

NORMS = {
    "q_proj": "input_layernorm",
    "k_proj": "input_layernorm",
    "v_proj": "input_layernorm",
    "qkv_proj": "input_layernorm",
    "gate_proj": "post_attention_layernorm",
    "up_proj": "post_attention_layernorm",
    "gate_up_proj": "post_attention_layernorm",
}
"""Maps of a block that read the stream, and the norm through which they do."""

WRITERS = ("o_proj", "down_proj")
"""Maps of a block that add to the stream."""

WITHIN_HEADS = ("q_norm", "k_norm")
"""Parts of a block that never see the stream, only queries and keys."""


@dataclass(frozen=True, slots=True)
class Twin:
    """The same function of tokens in another basis of the stream: h -> h Q.

    Attributes:
        lm: a model of its own, in float32 at least; its head is tied to nothing.
        rotation: Q, orthogonal, in float64 on the CPU.
        error: largest deviation that the proof saw, as a share of what it compared.
    """

    lm: LanguageModel
    rotation: Float[Tensor, "d_model d_model"]
    error: float

    def rotated(self, vector: SteeringVector) -> SteeringVector:
        """Q' v, which does in the twin what v does in the original."""
        direction = vector.direction.double().cpu() @ self.rotation
        turned = vector.with_direction(direction.to(vector.direction), "v, rotated")
        provenance = dataclasses.replace(
            turned.provenance, model=self.lm.name, fingerprint=self.lm.fingerprint
        )
        return dataclasses.replace(turned, provenance=provenance)


@torch.no_grad()
def rotated_twin(lm: LanguageModel, *, seed: int) -> Twin:
    """A copy of the model in a random orthonormal basis, proved to be the same.

    Args:
        lm: the model; it is not changed. One in half precision is copied in float32.
        seed: of the rotation, which is uniform among all.

    Raises:
        ModelError: the model has a part that may not commute with a rotation, its
            copy would be too large, or the copy is not the same function.
    """
    _check_parts(lm)
    own = _copied(lm)
    before = _seen(own)
    rotation = _random_rotation(own.d_model, seed)
    _untie(own.model)
    for norm, readers in _readers(own):
        for reader in readers:
            _turn(reader.weight.detach(), rotation, gains=norm.weight)
        norm.weight.fill_(1)
    for writer in _writers(own):
        _turn(writer.weight.detach().T, rotation)
        if writer.bias is not None:
            _turn(writer.bias.detach()[None], rotation)
    _turn(own.model.get_input_embeddings().weight.detach(), rotation)
    twin = dataclasses.replace(
        own,
        name=f"{lm.name}, rotated",
        fingerprint=fingerprint(own.model),
        _proved=set(),
    )
    after = _seen(twin)
    turned = {layer: _times(h, rotation) for layer, h in before.streams.items()}
    errors = [
        _error(before.logits, after.logits, about=float(before.logits.mean())),
        *(_error(turned[layer], h) for layer, h in after.streams.items()),
    ]
    return Twin(twin, rotation, _proved(lm, errors, "a rotation of its stream"))


@torch.no_grad()
def shifted(
    lm: LanguageModel, vector: SteeringVector, *, size: float
) -> SteeringVector:
    """The vector v + c 1 with ||c 1|| = `size`, proved to be v in this model.

    Raises:
        ModelError: the model sees the mean of the stream, as RMSNorm models do.
    """
    wide = widened(lm)
    amount = size / math.sqrt(len(vector.direction))
    layer = vector.site.layer
    ids, mask = _specimen(wide)
    before = wide.logits(ids, mask)
    after = wide.logits(ids, mask, edits={layer: lambda h: h + amount})
    error = _error(before, after, about=float(before.mean()))
    _proved(lm, [error], "the same number added to every coordinate of its stream")
    return vector.with_direction(vector.direction + amount, "v plus a constant")


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a model makes of the specimen."""

    logits: Logits
    streams: Mapping[int, Stream]


def _seen(lm: LanguageModel) -> _Seen:
    ids, mask = _specimen(lm)
    streams = lm.streams(ids, mask, layers=range(lm.num_layers))
    return _Seen(lm.logits(ids, mask), streams)


def _specimen(lm: LanguageModel) -> tuple[TokenIds, Mask]:
    """Two rows of random tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, lm.d_vocab, (2, 12), generator=generator).to(lm.device)
    return ids, torch.ones_like(ids, dtype=torch.bool)


def _error(expected: Tensor, found: Tensor, *, about: float = 0.0) -> float:
    """Size of the difference as a share of that of `expected` (as it is `about`)."""
    expected, found = expected.double(), found.double()
    size = float(torch.linalg.vector_norm(expected - about))
    return float(torch.linalg.vector_norm(found - expected)) / max(size, 1e-300)


def _proved(lm: LanguageModel, errors: list[float], what: str) -> float:
    """The largest error, if it is one that rounding makes."""
    error = float(torch.tensor(errors).max())  # NaN if any of them is.
    tolerance = TOLERANCE.get(lm.dtype, 1e-3)
    if error <= tolerance:
        return error
    raise ModelError(
        f"{what} changes what {lm.name} computes, by {error:.2g} of its size on a "
        f"specimen (tolerance {tolerance:g}).",
        cause="A part of this architecture reads or writes the stream in a way that "
        "does not allow for it.",
        remedy="Leave the audit of gauge out for this model; the others do not need "
        "it.",
    )


def _check_parts(lm: LanguageModel) -> None:
    """Raise ModelError if a weight of the model is not one whose part is known."""
    known = {id(norm.weight) for norm, _ in _readers(lm)}
    known |= {id(p) for _, maps in _readers(lm) for m in maps for p in m.parameters()}
    known |= {id(p) for writer in _writers(lm) for p in writer.parameters()}
    embeddings = lm.model.get_input_embeddings()
    if type(embeddings) is nn.Embedding:
        known.add(id(embeddings.weight))
    for name, parameter in lm.model.named_parameters():
        part = name.rpartition(".")[0].rpartition(".")[2]
        if id(parameter) not in known and part not in WITHIN_HEADS:
            raise ModelError(
                f"{lm.name} has a part that may not commute with a rotation of its "
                f"stream: {name} {tuple(parameter.shape)}.",
                cause="It normalises what a block writes, has experts or LayerNorms, "
                "is quantised, or is of a family that we do not know.",
                remedy="Leave the audit of gauge out for this model; the others do "
                "not need it.",
            )


def _readers(lm: LanguageModel) -> list[tuple[Any, list[nn.Linear]]]:
    """Every norm of the stream with the maps that read what it makes."""
    found: list[tuple[Any, list[nn.Linear]]] = []
    for block in lm.blocks:
        linear = _linear_maps(block)
        for place in dict.fromkeys(NORMS.values()):
            norm = getattr(block, place, None)
            maps = [m for name, m in linear.items() if NORMS.get(name) == place]
            if _has_only_weight(norm) and maps:
                found.append((norm, maps))
    last = getattr(lm.model.base_model, "norm", None)
    head = lm.model.get_output_embeddings()
    if _has_only_weight(last) and type(head) is nn.Linear:
        found.append((last, [head]))
    return found


def _writers(lm: LanguageModel) -> list[nn.Linear]:
    maps = [_linear_maps(block) for block in lm.blocks]
    return [one[name] for one in maps for name in WRITERS if name in one]


def _linear_maps(block: nn.Module) -> dict[str, nn.Linear]:
    """Plain linear maps by the last part of their names.

    A quantised or adapted map is a subclass, and its weight not what it applies.
    """
    return {
        name.rpartition(".")[2]: module
        for name, module in block.named_modules()
        if type(module) is nn.Linear
    }


def _has_only_weight(norm: Any) -> bool:
    if not isinstance(norm, nn.Module):
        return False
    return [name for name, _ in norm.named_parameters()] == ["weight"]


def _copied(lm: LanguageModel) -> LanguageModel:
    """A copy in float32 at least that shares no weight with the model.

    Raises:
        ModelError: it would be too large.
    """
    wide = widened(lm)
    if wide is not lm:
        return wide
    if is_sharded(lm.model):
        raise ModelError(
            f"{lm.name} is shared out over devices, and a rotated copy is needed.",
            remedy="Leave the audit of gauge out for this model.",
        )
    parameters = lm.model.parameters()
    size = sum(weight.numel() * weight.element_size() for weight in parameters)
    if size > LARGEST_COPY:
        raise ModelError(
            f"a rotated copy of {lm.name} beside it would take {size / 2**30:.1f} GiB, "
            f"and {LARGEST_COPY / 2**30:g} GiB is the most that is copied.",
            remedy="Leave the audit of gauge out for this model.",
        )
    model = copy.deepcopy(lm.model)
    blocks = architectures.blocks(model)
    return dataclasses.replace(lm, model=model, blocks=blocks, _proved=set())


def _untie(model: Any) -> None:
    """Give the head a weight of its own: it reads behind a norm, embeddings write."""
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.get_text_config().tie_word_embeddings = False


def _random_rotation(width: int, seed: int) -> Float[Tensor, "d_model d_model"]:
    """Uniform among the orthogonal matrices, by the signs of R's diagonal."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(width, width, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(drawn)
    return q * r.diagonal().sign()


def _times(rows: Tensor, rotation: Tensor) -> Tensor:
    return rows.double() @ rotation.to(rows.device)


def _turn(rows: Tensor, rotation: Tensor, gains: Tensor | None = None) -> None:
    """Rows that live in the stream, as they are in the new basis, in place.

    In float64, a part at a time, so that one rounding is all that a weight suffers.
    """
    for part in rows.split(max(1, ENTRIES_AT_ONCE // rows.shape[1])):
        wide = part.double() if gains is None else part.double() * gains.double()
        part.copy_(_times(wide, rotation))
