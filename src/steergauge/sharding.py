"""A model larger than one device: where its weights are, and what they are, whole.

Three ways to share a model out, all of them Hugging Face's own:

===============  ==================================================================
blocks           each block on a device of its own (accelerate's device map); a
                 stream crosses from device to device between two blocks
offloaded        a block's weights are read from memory or disk for each of its
                 passes, and are on the device `meta`, without values, in between
tensor parallel  every weight in slices, one a process (`DTensor`); streams and
                 logits are whole in every process
===============  ==================================================================

Where a weight itself is needed, such as the unembedding W in the metric of the logits
or all of them in a fingerprint, it is asked for here and comes whole.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from steergauge.errors import ModelError


def is_sharded(model: nn.Module) -> bool:
    """Whether not all of the weights are whole, and on one device."""
    weights = list(model.parameters())
    return (
        len({weight.device for weight in weights}) > 1
        or any(weight.is_meta for weight in weights)
        or is_tensor_parallel(model)
    )


def is_tensor_parallel(model: nn.Module) -> bool:
    """Whether weights are slices, with the rest of them in other processes."""
    return any(_is_sliced(weight) for weight in model.parameters())


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes, which is not where an offloaded weight is."""
    for hook in _placing(module):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


def input_device(model: Any) -> torch.device:
    """Where token ids go: to the embedding, if it is known."""
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return model.device
    return device_of(embedding)


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, whole, one at a time; on whichever device it is kept.

    A weight that two modules share is named once, also where offloading has made two
    of it. In a tensor-parallel model all processes must run this together.

    Raises:
        ModelError: a weight has no values and nobody keeps them.
    """
    found = dict(model.named_parameters())
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for name in sorted(found):
        if tied.get(name) not in found:
            yield name, _whole(model, name, found[name])


def weight_of(model: nn.Module, module: nn.Module) -> Tensor:
    """The `weight` of a module of the model, whole, on the device that it computes on.

    Raises:
        ModelError: it has no values and nobody keeps them.
    """
    weight: Any = module.weight
    if weight.is_meta:
        path = next(name for name, part in model.named_modules() if part is module)
        weight = _kept(model, f"{path}.weight").to(device_of(module))
    return (weight.full_tensor() if _is_sliced(weight) else weight).detach()


def _whole(model: nn.Module, name: str, weight: Any) -> Tensor:
    if weight.is_meta:
        weight = _kept(model, name)
    return (weight.full_tensor() if _is_sliced(weight) else weight).detach()


def _kept(model: nn.Module, name: str) -> Tensor:
    """An offloaded weight, from the map of the hook that reads it for each pass."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, -1, -1):
        module = model.get_submodule(".".join(parts[:cut]))
        for hook in _placing(module):
            kept = getattr(hook, "weights_map", None)
            key = ".".join(parts[cut:])
            if kept is not None and key in kept:
                return kept[key]
    raise ModelError(
        f"the weight {name} is on the device 'meta', without values.",
        cause="The model was made without its weights, or whoever offloaded them has "
        "kept them in a way that we do not know.",
        remedy="Load it by its name, with device_map= where it is larger than a GPU.",
    )


def _placing(module: nn.Module) -> list[Any]:
    """Accelerate's hooks of a module: none, one, or several in a row."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def _is_sliced(weight: object) -> bool:
    return hasattr(weight, "full_tensor")
