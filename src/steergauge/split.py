"""The split of a language model at layer l: prefix P_l, suffix F_{l->L}, and its law.

::

    tokens --P_l--> h_l --F_{l->L}--> logits          model = F_{l->L} . P_l

`prefix` runs blocks 0..l and stops there: no block above, no head. `suffix` is the
user's own model with blocks 0..l made to return a given stream, so masks, positions,
rotary angles, final norm, soft caps and head are the model's own code. Both rest on
the law ::

    suffix(prefix(x)) == model(x)

which is proved on the loaded model before anything else is done with it, and again
at every layer before its first use.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from steergauge import sharding
from steergauge.errors import (
    LayerOutOfRange,
    NotTheSuffix,
)
from steergauge.hooks import editing, entering, recording
from steergauge.types import Edit, Logits, Mask, SeenMask, Stream, TokenIds

if TYPE_CHECKING:
    from steergauge.generation import Sample
    from steergauge.intervention import Intervention

LAW_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest |suffix(prefix(x)) - model(x)| in logits; 0.05 in half precision. The same
kernels run on the same numbers, so 0 is what is seen in practice."""


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A causal language model that can be entered and left after any block.

    The Hugging Face model is borrowed, never changed: hooks live only inside calls.
    Made by `load`.
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str
    fingerprint: str
    blocks: nn.ModuleList
    forms: tuple[int | None, ...]
    _proved: set[int] = field(default_factory=set, repr=False, compare=False)

    @property
    def num_layers(self) -> int:
        """Number of decoder blocks L."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        config = self.model.config.get_text_config()
        return int(config.hidden_size)

    @property
    def d_vocab(self) -> int:
        """Length of the logits' last axis."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def dtype(self) -> torch.dtype:
        """Precision of weights and streams."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids go, and where streams and logits come back."""
        return sharding.input_device(self.model)

    @property
    def unembedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """W, whole and on `device`; where the model is shared out, a copy of it."""
        head = self.model.get_output_embeddings()
        return sharding.weight_of(self.model, head).to(self.device)

    def logits(
        self,
        ids: TokenIds,
        mask: SeenMask,
        *,
        edits: Mapping[int, Edit] | None = None,
        cache: DynamicCache | None = None,
        keep: int = 0,
    ) -> Logits:
        """The model itself, with the streams after some blocks edited on the way.

        Args:
            ids: left-padded token ids of this pass.
            mask: True at real tokens; covers the cache's positions too.
            edits: {layer: map h -> h'}; each is applied once to this pass' stream.
            cache: keys and values of earlier tokens; extended by this pass.
            keep: compute logits of the last `keep` positions only; 0 means all.
        """
        with editing(self.blocks, edits or {}):
            return self._run(mask, ids.shape[1], cache, keep, input_ids=ids)

    def logits_from(
        self,
        embeddings: Stream,
        mask: SeenMask,
        *,
        cache: DynamicCache | None = None,
        keep: int = 0,
    ) -> Logits:
        """The model on input embeddings instead of tokens; differentiable in them.

        Args:
            embeddings: what the input embedding gives for tokens, or what no token
                gives, (batch, pos, d_model).
            mask: True at real positions; covers the cache's positions too.
            cache: keys and values of earlier positions; extended by this pass.
            keep: compute logits of the last `keep` positions only; 0 means all.
        """
        num_pos = embeddings.shape[1]
        return self._run(mask, num_pos, cache, keep, inputs_embeds=embeddings)

    def prefix(
        self,
        ids: TokenIds,
        mask: SeenMask,
        *,
        layer: int,
        cache: DynamicCache | None = None,
    ) -> Stream:
        """P_l: the residual stream after block `layer`; nothing above it is run.

        `cache` holds the keys and values of earlier tokens; it is read, not extended.
        """
        self.check_layer(layer)
        self.prove((layer,))
        return self.streams(ids, mask, layers=(layer,), cache=cache)[layer]

    def streams(
        self,
        ids: TokenIds,
        mask: SeenMask,
        *,
        layers: Sequence[int],
        edits: Mapping[int, Edit] | None = None,
        cache: DynamicCache | None = None,
    ) -> dict[int, Stream]:
        """Streams h_l, as edited, in one pass that ends after the last of `layers`."""
        past = None if cache is None else copy.deepcopy(cache)
        edited = editing(self.blocks, edits or {})
        # Hooks fire in the order of registration: what is recorded is the edited h_l.
        with edited, recording(self.blocks, layers, stop=True) as streams:
            self._run(mask, ids.shape[1], past, 1, input_ids=ids)
        return {layer: stream.to(self.device) for layer, stream in streams.items()}

    def suffix(
        self,
        stream: Stream,
        mask: SeenMask,
        *,
        layer: int,
        cache: DynamicCache | None = None,
        keep: int = 0,
    ) -> Logits:
        """F_{l->L}: logits of the model whose stream after block `layer` is `stream`.

        `cache` holds earlier tokens' keys and values of *all* blocks; it is read, not
        extended. Differentiable in `stream`.

        Raises:
            NotTheSuffix: the law does not hold at this layer.
        """
        self.check_layer(layer)
        self.prove((layer,))
        return self._suffix(stream, mask, layer=layer, cache=cache, keep=keep)

    def _suffix(
        self,
        stream: Stream,
        mask: SeenMask,
        *,
        layer: int,
        cache: DynamicCache | None = None,
        keep: int = 0,
    ) -> Logits:
        past = None if cache is None else copy.deepcopy(cache)
        with entering(self.blocks, layer, stream, self.forms):
            num_pos = stream.shape[1]
            return self._run(mask, num_pos, past, keep, inputs_embeds=stream)

    def _run(
        self,
        mask: SeenMask,
        num_pos: int,
        cache: DynamicCache | None,
        keep: int,
        **inputs: Tensor,
    ) -> Logits:
        arguments: dict[str, Any] = {
            "attention_mask": mask.long(),
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        accepted = inspect.signature(self.model.forward).parameters
        if "logits_to_keep" in accepted:
            arguments["logits_to_keep"] = keep
        if "position_ids" in accepted:
            arguments["position_ids"] = positions(mask)[:, -num_pos:]
        no_grad = nullcontext() if _wants_grad(inputs) else torch.no_grad()
        with no_grad:
            logits = self.model(**inputs, **arguments).logits
        # The last device of several, or that of a stream that was entered.
        return logits[:, -keep:].to(self.device)

    def check_layer(self, layer: int) -> None:
        """Raise LayerOutOfRange unless the model has a block `layer`."""
        if not 0 <= layer < self.num_layers:
            raise LayerOutOfRange(
                f"layer {layer} was asked for; {self.name} has blocks 0 to "
                f"{self.num_layers - 1}.",
                cause="Layers are 0-based here and mean a block's output; other "
                "tools count the embeddings as layer 0.",
                remedy=f"Choose a layer from 0 to {self.num_layers - 1}.",
            )

    def prove(
        self, layers: Sequence[int] | None = None, *, again: bool = False
    ) -> float:
        """Check the law at `layers` (default: all); the largest deviation in logits.

        Two random rows, one of them left-padded. Layers already proved cost nothing,
        and count as 0, unless `again`.

        Raises:
            NotTheSuffix: suffix(prefix(x)) differs from model(x).
        """
        asked = range(self.num_layers) if layers is None else layers
        todo = [layer for layer in asked if again or layer not in self._proved]
        worst = 0.0
        if not todo:
            return worst
        ids, mask = self._specimen()
        whole = self.logits(ids, mask)
        streams = self.streams(ids, mask, layers=todo)
        # Another text in between: what a block leaves for a later one past the stream
        # would otherwise still be there from this text, and hide itself.
        self.logits(ids.roll(1, dims=-1), mask)
        for layer, stream in streams.items():
            error = (self._suffix(stream, mask, layer=layer) - whole).abs()
            deviation = float(error[mask].max())
            tolerance = LAW_TOLERANCE.get(self.dtype, 0.05)
            if not deviation <= tolerance:
                raise _not_the_suffix(self.name, layer, deviation, tolerance)
            worst = max(worst, deviation)
            self._proved.add(layer)
        return worst

    def _specimen(self) -> tuple[TokenIds, Mask]:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.d_vocab, (2, 7), generator=generator)
        mask = torch.ones(2, 7, dtype=torch.bool)
        mask[1, :3] = False
        return ids.to(self.device), mask.to(self.device)

    def generate(
        self,
        prompts: Sequence[str],
        intervention: "Intervention | None" = None,
        *,
        samples: int = 1,
        seed: int = 0,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
    ) -> "list[Sample]":
        """Steered texts: `samples` continuations of each prompt, in order.

        A convenience over `generation.generate`, which says what every argument
        means and can do more.
        """
        from steergauge import generation

        decoding = generation.Decoding(
            max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        arms = {"steered" if intervention else "unsteered": intervention}
        return generation.generate(
            self, prompts, arms, samples=samples, decoding=decoding
        )


def positions(mask: Mask) -> Tensor:
    """Absolute position of every token of a padded row; 0 at padding on the left."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


def _wants_grad(inputs: Mapping[str, Tensor]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in inputs.values())


def _not_the_suffix(
    name: str, layer: int, deviation: float, tolerance: float
) -> NotTheSuffix:
    return NotTheSuffix(
        f"suffix(prefix(x)) differs from model(x) by {deviation:.2g} logits at layer "
        f"{layer} of {name} (tolerance {tolerance:g}).",
        cause="A block of this architecture has side effects that we do not know.",
        remedy="Please report the model id. No audit was run.",
    )
