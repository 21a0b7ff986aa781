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
import hashlib
import importlib.resources
import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from steergauge import architectures
from steergauge.errors import (
    CannotLoadModel,
    InputError,
    LayerOutOfRange,
    ModelError,
    NoTokenizer,
    NotTheSuffix,
)
from steergauge.hooks import editing, entering, form_of, recording
from steergauge.types import Edit, Logits, Mask, SeenMask, Stream, TokenIds

if TYPE_CHECKING:
    from steergauge.generation import Sample
    from steergauge.intervention import Intervention

BUILTIN = {"builtin:organism": "organism/weights"}
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
        """Where token ids go."""
        return self.model.device

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
        return streams

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
        return logits[:, -keep:]

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


def load(
    model: Any = "builtin:organism",
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """A language model whose split is proved.

    Args:
        model: a Hugging Face id, a local folder, `builtin:organism`, or a causal
            language model already in memory.
        tokenizer: needed only with a model in memory, or to replace the model's own.
        revision: commit, tag or branch of a Hugging Face id.
        dtype: compute precision of a model that is loaded; half-precision weights
            are widened exactly.
        device: default is a GPU where there is one, else the CPU.
        trust_remote_code: run code that comes with the weights.

    Raises:
        CannotLoadModel: no such model, or its files are damaged.
        NoTokenizer: the model has none.
        UnknownArchitecture: its blocks were not found.
        NotTheSuffix: the law does not hold on it.
    """
    name = model if isinstance(model, str) else _name_of(model)
    if isinstance(model, str):
        source = _source(model)
        options = {"revision": revision, "trust_remote_code": trust_remote_code}
        # In this order, for a misspelt id has no tokenizer either.
        precision = _precision(dtype)
        model = _load_model(source, name, options)
        tokenizer = tokenizer or _load_tokenizer(source, name, options)
        mark = fingerprint(model)
        # Parameters only: rotary frequencies stay in float32 in every precision.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(precision)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    else:
        mark = fingerprint(model)
    if tokenizer is None:
        raise NoTokenizer(
            f"{name} was given as a model in memory, without a tokenizer.",
            remedy="Pass tokenizer=... beside it.",
        )
    if model.training:
        raise ModelError(
            f"{name} is in training mode, so dropout would make it random.",
            remedy="Call model.eval() first.",
        )
    return _wrap(model, tokenizer, name, revision, mark)


def _wrap(
    model: Any, tokenizer: Any, name: str, revision: str | None, mark: str
) -> LanguageModel:
    blocks = architectures.blocks(model)
    language_model = LanguageModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        revision=revision or getattr(model.config, "_commit_hash", None) or "",
        fingerprint=mark,
        blocks=blocks,
        forms=_forms(model, blocks),
    )
    last = len(blocks) - 1
    language_model.prove(sorted({0, last // 2, last}))
    return language_model


def _forms(model: Any, blocks: nn.ModuleList) -> tuple[int | None, ...]:
    """How each block returns its stream, observed in one pass over one token."""
    forms: dict[int, int | None] = {}

    def observe(layer: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            forms[layer] = form_of(output)

        return hook

    handles = [
        block.register_forward_hook(observe(layer))
        for layer, block in enumerate(blocks)
    ]
    try:
        with torch.no_grad():
            ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
            model(ids, attention_mask=torch.ones_like(ids))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(forms[layer] for layer in range(len(blocks)))


def fingerprint(model: nn.Module) -> str:
    """A short hash of shapes and sampled weights: the same for every copy of a model.

    64 evenly spaced entries of every parameter, rounded to bfloat16, so that copies in
    float32 and bfloat16 agree. `load` takes it of the weights as they are stored,
    before they are converted to the precision that was asked for.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        stride = max(1, flat.numel() // 64)
        sampled = flat[::stride][:64].to(torch.bfloat16).float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sampled.numpy().tobytes())
    return digest.hexdigest()[:16]


def _source(model: str) -> str:
    if model in BUILTIN:
        return str(importlib.resources.files("steergauge") / BUILTIN[model])
    looks_local = model.startswith((".", "/", "~")) or Path(model).is_dir()
    if looks_local and not (Path(model).expanduser() / "config.json").is_file():
        raise CannotLoadModel(
            f"there is no model in the folder {model}: it has no config.json.",
            remedy="Give a folder in Hugging Face's format, a Hugging Face id, or "
            f"one of {', '.join(BUILTIN)}.",
        )
    return str(Path(model).expanduser()) if looks_local else model


def _precision(name: str) -> torch.dtype:
    known = {
        str(dtype).removeprefix("torch."): dtype
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    }
    if name not in known:
        raise InputError(
            f"there is no precision {name!r}.",
            remedy=f"Choose from {', '.join(known)}.",
        )
    return known[name]


def _load_model(source: str, name: str, options: dict[str, Any]) -> Any:
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source, dtype="auto", output_loading_info=True, **options
        )
    except Exception as error:
        raise CannotLoadModel(
            f"the model {name} could not be loaded: {_first_line(error)}",
            cause="The id or folder is misspelt, the files are damaged, the model "
            "needs a login or its own code, or there is no network.",
            remedy="Check the name; for a gated model log in with `hf auth login`; "
            "for code that comes with the weights add --trust-remote-code.",
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise CannotLoadModel(
            f"the files of the model {name} lack {len(missing)} of its weights, such "
            f"as {missing[0]}; transformers would fill them with random numbers.",
            cause="The download is not complete, or it is no causal language model.",
            remedy="Download or save it again, whole.",
        )
    return model.eval()


def _load_tokenizer(source: str, name: str, options: dict[str, Any]) -> Any:
    if Path(source).is_dir() and not any(
        (Path(source) / file).is_file()
        for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    ):
        raise _no_tokenizer(name, "the folder holds no tokenizer file.")
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:
        raise _no_tokenizer(name, _first_line(error)) from error


def _no_tokenizer(name: str, reason: str) -> NoTokenizer:
    return NoTokenizer(
        f"no tokenizer could be loaded for {name}: {reason}",
        cause="The folder was saved without its tokenizer, or the name is misspelt.",
        remedy="Save it there too, with tokenizer.save_pretrained(folder).",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _name_of(model: Any) -> str:
    return getattr(model, "name_or_path", "") or type(model).__name__


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
