"""Models whose geometry is planted, built without anything of this package's geometry.

Plain torch and transformers, in float64 but for the last, and each a `LanguageModel`,
so that the whole package can be tried on it. What is planted, and so has to be found:

=====================  ===============================================================
`linear`               every singular value of do/dh, and one null space for all texts
`softmax2`             two live tokens: rank 1, and KL in closed form at any distance
`block_switch`         two null spaces, one for each kind of text, that share a part
`narrow_llama`         a Llama in float64; one text has one null direction, the radial
`widened_llama`        the same function with k dead coordinates: a first-order null
`masked_llama`         the same once more: an exact null, however far one goes
`rotated_llama`        the same function with its stream in another basis
`duplicate_embedding`  two texts with the same streams: the model is not injective
`trained`              a trained model, of which more texts see more directions
=====================  ===============================================================

In LayerNorm models (`models.tiny("gpt2")`) the all-ones direction is an exact null;
`planted.py` has a model with a planted trait.
"""

import copy
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tests.models import D_VOCAB, borrowed, config, ids_and_mask, network
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from steergauge.loading import load
from steergauge.split import LanguageModel

WIDTH = 16
"""Of the toys' stream."""

SINGULAR = tuple(40 * 0.75**i for i in range(10))
"""Of the linear model by default: a planted rank of 10 in 16 dimensions."""

SILENT = 10
"""A token after which all tokens that `linear` and `softmax2` know are as likely."""

LIVE = (40, 50)
"""The tokens that the model of two live tokens can predict."""

DEAD = 8
"""Dead coordinates; a Llama's width has to be a multiple of its number of heads."""

TWINS = (40, 50)
"""The tokens with one and the same embedding."""

EPS = 1e-8
"""Of the norms: what is left of the radial direction, relative to mean h^2."""


@dataclass(frozen=True, slots=True)
class Planted:
    """A model with orthonormal bases (columns) of what its output can and cannot see.

    Whether `null` is exact or of first order is said where the model is made.
    """

    lm: LanguageModel
    visible: Tensor
    null: Tensor


class Toy(PreTrainedModel, GenerationMixin):
    """A causal model of given blocks between an embedding and an unembedding.

    A token's logits depend on that token alone: nothing mixes positions, so there is
    nothing to keep in a cache, and every scope that has the predicting positions in it
    is the same.
    """

    def __init__(
        self, embedding: Tensor, head: Tensor, *, bias: Tensor, blocks: list[nn.Module]
    ) -> None:
        sizes = config("llama")
        sizes.vocab_size, sizes.hidden_size = embedding.shape
        sizes.num_hidden_layers = len(blocks)
        super().__init__(sizes)
        self.embedding = nn.Embedding.from_pretrained(embedding, freeze=False)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(*head.T.shape, dtype=torch.float64)
        self.head.load_state_dict({"weight": head, "bias": bias})

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutput:
        stream = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        for block in self.blocks:
            stream = block(stream)
        return CausalLMOutput(logits=self.head(stream[:, -logits_to_keep:]))


@functools.cache
def linear(singular: tuple[float, ...] = SINGULAR, *, seed: int = 0) -> Planted:
    """The model o = W (h + delta) + b, with these singular values of W.

    Planted: W = U S V', the same at every text and position, with U orthonormal and
    perpendicular to the direction that all logits share, which no softmax sees. So

    - F_x has the rank len(singular) and the kernel `null`, for every text, and a step
      of any length in it changes nothing;
    - after `SILENT` all tokens are equally likely, and the eigenvalues of F are
      singular^2 / vocabulary with the columns of `visible` as directions;
    - the logits are linear in delta, everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    rank = len(singular)
    basis = _orthogonal(WIDTH, generator)
    left = _normal(D_VOCAB, rank, generator=generator)
    left = torch.linalg.qr(left - left.mean(0)).Q
    weight = (
        left @ torch.tensor(singular, dtype=torch.float64).diag() @ basis[:, :rank].T
    )
    embedding = _normal(D_VOCAB, WIDTH, generator=generator)
    offset = _normal(WIDTH, generator=generator)
    # b = W g, and the silent token's stream is -g and something that no logit sees.
    embedding[SILENT] = basis[:, rank:].sum(1) - offset
    lm = _toy(embedding, weight, bias=weight @ offset)
    return Planted(lm, basis[:, :rank], basis[:, rank:])


@functools.cache
def softmax2(slope: float = 2.0, *, seed: int = 0) -> Planted:
    """Two tokens that can follow, with the log-odds a(x) + slope (w . delta).

    Planted: F_x = p (1 - p) slope^2 w w', with w = `visible` and p the probability of
    either token; KL is `two_token_nats`, after `SILENT` log cosh(slope t / 2) for t w;
    all other directions are null at any distance, all other tokens impossible.
    """
    generator = torch.Generator().manual_seed(seed)
    basis = _orthogonal(WIDTH, generator)
    weight = torch.zeros(D_VOCAB, WIDTH, dtype=torch.float64)
    weight[LIVE[0]] = slope * basis[:, 0]
    bias = torch.full((D_VOCAB,), -1e4, dtype=torch.float64)
    bias[list(LIVE)] = 0
    embedding = _normal(D_VOCAB, WIDTH, generator=generator)
    embedding[SILENT] = basis[:, 1:].sum(1)
    lm = _toy(embedding, weight, bias=bias)
    return Planted(lm, basis[:, :1], basis[:, 1:])


def two_token_nats(log_odds: float, step: float) -> float:
    """KL(p || q) where p has the log-odds a and q has a + step: in closed form.

    log(1 + e^(a + step)) - log(1 + e^a) - p step, with p = 1 / (1 + e^-a); to second
    order, p (1 - p) step^2 / 2.
    """
    share = 1 / (1 + math.exp(-log_odds))
    before, after = np.logaddexp(0, log_odds), np.logaddexp(0, log_odds + step)
    return float(after - before - share * step)


@dataclass(frozen=True, slots=True)
class Switched:
    """A model of two kinds of text, with bases (columns) of what each does not see.

    `nulls` are of texts that end in an even token and of those that end in an odd one,
    `shared` is their intersection, `switch` the direction in it that tells them apart.
    """

    lm: LanguageModel
    nulls: tuple[Tensor, Tensor]
    shared: Tensor
    switch: Tensor


class Switch(nn.Module):
    """A block h -> A h or B h, by the sign of the stream along one direction."""

    def __init__(self, switch: Tensor, even: Tensor, odd: Tensor) -> None:
        super().__init__()
        self.switch = nn.Parameter(switch)
        self.even, self.odd = nn.Parameter(even), nn.Parameter(odd)

    def forward(self, stream: Tensor) -> Tensor:
        positive = (stream @ self.switch)[..., None] > 0
        return torch.where(positive, stream @ self.even.T, stream @ self.odd.T)


@functools.cache
def block_switch(*, seed: int = 0) -> Switched:
    """Block 1 projects away 6 directions of 16, others after even and odd tokens.

    Planted, for a shift at layer 0: ker F_x is one of `nulls`, by the last token; they
    share 3 directions, ker F_bar of texts of both kinds. Two of these are exact at any
    distance. The third is `switch`, at +1 or -1 in the streams: no step shorter than 1
    along it changes anything, one of more than 1 changes the kind of the text.
    """
    generator = torch.Generator().manual_seed(seed)
    basis = _orthogonal(WIDTH, generator)
    switch = basis[:, 0]
    dark = (basis[:, [0, 1, 2, 3, 4, 5]], basis[:, [0, 1, 2, 6, 7, 8]])
    even, odd = (torch.eye(WIDTH).double() - part @ part.T for part in dark)
    embedding = _normal(D_VOCAB, WIDTH, generator=generator)
    signs = 1 - 2 * (torch.arange(D_VOCAB) % 2).double()
    embedding += torch.outer(signs - embedding @ switch, switch)
    weight = 0.5 * _normal(D_VOCAB, WIDTH, generator=generator)
    bias = torch.zeros(D_VOCAB, dtype=torch.float64)
    lm = _toy(embedding, weight, bias=bias, middle=Switch(switch, even, odd))
    return Switched(lm, dark, basis[:, :3], switch)


class RMS(nn.Module):
    """RMSNorm in the stream's own precision, of its first `live` coordinates.

    gamma h / sqrt(mean of h_i^2 over i < live + eps). Hugging Face's own casts to
    float32, also in a model in float64. With `live` short of the width, coordinates
    from there on go through it without a share in the mean.
    """

    def __init__(self, weight: Tensor, *, eps: float, live: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.eps, self.live = eps, live

    def forward(self, stream: Tensor) -> Tensor:
        square = stream[..., : self.live].square().mean(-1, keepdim=True)
        return self.weight * stream * torch.rsqrt(square + self.eps)


READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def _llama(*, eps: float) -> Any:
    """The tiny Llama of random weights in float64, with norms that stay in it."""
    return _with_norms(network("llama").double(), eps=eps)


@torch.no_grad()
def _with_norms(model: Any, *, eps: float, live: int | None = None) -> Any:
    """The model with each of its norms replaced by `RMS`, of the same weights."""
    live = live or model.config.hidden_size
    for block in model.model.layers:
        for name in READERS:
            weight = getattr(block, name).weight.detach()
            setattr(block, name, RMS(weight, eps=eps, live=live))
    model.model.norm = RMS(model.model.norm.weight.detach(), eps=eps, live=live)
    return model


@functools.cache
def narrow_llama(*, eps: float = EPS) -> LanguageModel:
    """A tiny random Llama in float64: the function that the next three models share.

    Planted: nothing is null for several texts. For one text and one prediction there is
    one null direction, up to eps: the last norm does not see the length of its input,
    and the direction of that length is pulled back to the stream, another one on each
    text. After the last block it is the stream itself.
    """
    return borrowed(_llama(eps=eps))


@functools.cache
def widened_llama(dead: int = DEAD, *, eps: float = EPS) -> Planted:
    """`narrow_llama` with dead coordinates that only its norms can see.

    Nothing writes them, nothing reads them, but a norm's mean runs over them. With
    gamma / sqrt((d + k) / d) and eps d / (d + k) the logits are those of the narrow
    model. Planted, where the stream has no dead part: a step s along dead coordinates
    adds s^2 / (d + k) to the mean, so they are null to first order, for any texts; KL
    grows as the fourth power of the distance, beside the square along `visible`. One
    text with one prediction has dead + 1 null directions.
    """
    model = _wider(_llama(eps=eps), dead)
    narrow = model.config.hidden_size - dead
    share = narrow / model.config.hidden_size
    model = _with_norms(model, eps=eps * share)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, RMS):
                module.weight[:narrow] *= math.sqrt(share)
    return _with_dead(model, dead)


@functools.cache
def masked_llama(dead: int = DEAD, *, eps: float = EPS) -> Planted:
    """`narrow_llama` with dead coordinates that nothing sees, its norms included.

    Planted: `null` changes no bit of any logit at any distance, for any texts.
    """
    model = _wider(_llama(eps=eps), dead)
    live = model.config.hidden_size - dead
    return _with_dead(_with_norms(model, eps=eps, live=live), dead)


@torch.no_grad()
def _wider(narrow: Any, dead: int) -> Any:
    """The narrow model's weights in the corners of wider ones, 0 beyond; norms 1."""
    sizes = copy.deepcopy(narrow.config)
    sizes.hidden_size += dead  # The width of heads and of the MLP is stored apart.
    wide = type(narrow)(sizes).eval().double()
    weights = dict(narrow.named_parameters())
    for name, weight in wide.named_parameters():
        weight.fill_(1 if weight.ndim == 1 else 0)
        corner = tuple(slice(size) for size in weights[name].shape)
        weight[corner] = weights[name]
    return wide


def _with_dead(model: Any, dead: int) -> Planted:
    axes = torch.eye(model.config.hidden_size).double()
    return Planted(borrowed(model), axes[:, :-dead], axes[:, -dead:])


@functools.cache
@torch.no_grad()
def rotated_llama(*, eps: float = EPS, seed: int = 0) -> tuple[LanguageModel, Tensor]:
    """`narrow_llama` in another basis, and Q: rows h of its streams become h Q.

    The norms' weights are folded into the matrices that read after them; then a norm
    commutes with Q, readers become W Q, writers Q' W and embeddings E Q. Planted: the
    same logits; F' = Q' F Q, with the same eigenvalues; the vector v becomes Q' v.
    """
    model = _llama(eps=eps)
    width = model.config.hidden_size
    rotation = _orthogonal(width, torch.Generator().manual_seed(seed))
    embedding = model.model.embed_tokens.weight
    embedding.copy_(embedding @ rotation)
    for block in model.model.layers:
        for norm, readers in READERS.items():
            gamma = block.get_submodule(norm).weight
            for name in readers:
                weight = block.get_submodule(name).weight
                weight.copy_((weight * gamma) @ rotation)
            gamma.fill_(1)
        for name in WRITERS:
            weight = block.get_submodule(name).weight
            weight.copy_(rotation.T @ weight)
    head, gamma = model.lm_head.weight, model.model.norm.weight
    head.copy_((head * gamma) @ rotation)
    gamma.fill_(1)
    return borrowed(model), rotation


@functools.cache
@torch.no_grad()
def duplicate_embedding() -> LanguageModel:
    """`narrow_llama` in which both tokens of `TWINS` have one embedding.

    Planted: texts that differ by one for the other have the same streams at every
    layer, to the last bit, so no inversion of a stream can tell which was there.
    """
    model = _llama(eps=EPS)
    first, second = TWINS
    model.model.embed_tokens.weight[second] = model.model.embed_tokens.weight[first]
    return borrowed(model)


@functools.cache
def trained() -> LanguageModel:
    """The reference model of the package, in float32.

    What its training made, and no random weights do: one text sees few directions
    well, other texts see others, so the effective rank of F_bar grows with the texts.
    """
    return load("builtin:organism", device="cpu")


def texts(num: int, *, d_vocab: int = D_VOCAB, seed: int = 0) -> list[list[int]]:
    """Token ids of different texts of seven tokens, without special ones."""
    ids, _ = ids_and_mask(*[7] * num, d_vocab=d_vocab - 10, seed=seed)
    return (ids + 10).tolist()


def _toy(
    embedding: Tensor, head: Tensor, *, bias: Tensor, middle: nn.Module | None = None
) -> LanguageModel:
    """A toy of three blocks that do nothing, but for the middle one if it is given."""
    blocks = [nn.Identity(), middle or nn.Identity(), nn.Identity()]
    return borrowed(Toy(embedding, head, bias=bias, blocks=blocks).eval())


def _normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _orthogonal(width: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(_normal(width, width, generator=generator)).Q
