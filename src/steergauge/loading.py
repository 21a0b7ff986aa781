"""From an id, a folder or a model in memory to a `LanguageModel` with a proved law.

A model that fits on one device is loaded as it is stored, and then converted. One that
does not is shared out by Hugging Face while it is loaded, by a map of devices or a
tensor-parallel plan, in the precision that was asked for; see `sharding.py`.
"""

import hashlib
import importlib.resources
import importlib.util
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from steergauge import architectures, sharding
from steergauge.errors import CannotLoadModel, InputError, ModelError, NoTokenizer
from steergauge.hooks import form_of
from steergauge.split import LanguageModel

BUILTIN = {"builtin:organism": "organism/weights"}


def load(
    model: Any = "builtin:organism",
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
    device_map: str | Mapping[str, int | str] | None = None,
    tp_plan: str | None = None,
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
        device_map: of a model larger than one GPU: "auto", "balanced", "sequential",
            or {module: device}, where a device may also be "cpu" or "disk".
        tp_plan: "auto" cuts every weight into slices, one for each of the processes
            that torchrun has started; all of them must then make the same calls.

    Raises:
        CannotLoadModel: no such model, its files are damaged, or it cannot be shared
            out as was asked.
        InputError: no such precision, or two ways to place the model.
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
        shares = _shares(device, device_map, tp_plan)
        if shares:
            model, mark = _load_shared_out(source, name, options, shares, precision)
        else:
            model, mark = _load_whole(source, name, options, precision, device)
        tokenizer = tokenizer or _load_tokenizer(source, name, options)
    else:
        _refuse_to_place(name, device_map, tp_plan)
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


def _load_whole(
    source: str,
    name: str,
    options: dict[str, Any],
    precision: torch.dtype,
    device: str | None,
) -> tuple[Any, str]:
    """The model on one device, and its fingerprint."""
    model = _load_model(source, name, {"dtype": "auto", **options})
    mark = fingerprint(model)
    # Parameters only: rotary frequencies stay in float32 in every precision.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(precision)
    _move(model, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model, mark


def _load_shared_out(
    source: str,
    name: str,
    options: dict[str, Any],
    shares: dict[str, Any],
    precision: torch.dtype,
) -> tuple[Any, str]:
    """The model on several devices, and the fingerprint that it has on one."""
    # A weight that is no file's as it stands, such as an expert of several, is written
    # here if it is offloaded to disk.
    folder = tempfile.TemporaryDirectory(prefix="steergauge-offload-")
    try:
        chosen = {"dtype": precision, "offload_folder": folder.name, **options}
        model = _load_model(source, name, chosen | shares)
    except BaseException:
        folder.cleanup()
        raise
    weakref.finalize(model, folder.cleanup)
    # Float16 rounds, and cuts off, otherwise than the bfloat16 of a fingerprint.
    rounded = precision is torch.float16
    mark = _stored_fingerprint(source, name, options) if rounded else fingerprint(model)
    return model, mark


def _stored_fingerprint(source: str, name: str, options: dict[str, Any]) -> str:
    """Of the weights as they are stored, read one by one."""
    with tempfile.TemporaryDirectory(prefix="steergauge-offload-") as folder:
        chosen = {"device_map": {"": "disk"}, "offload_folder": folder, **options}
        return fingerprint(_load_model(source, name, {"dtype": "auto", **chosen}))


def _shares(
    device: str | None,
    device_map: str | Mapping[str, int | str] | None,
    tp_plan: str | None,
) -> dict[str, Any]:
    """How transformers is told to share the model out; empty if it need not."""
    asked = {"device": device, "device_map": device_map, "tp_plan": tp_plan}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise InputError(
            f"{' and '.join(given)} were given, and each says where the model goes.",
            remedy="Give one of them.",
        )
    if device_map is None and tp_plan is None:
        return {}
    if importlib.util.find_spec("accelerate") is None:
        raise CannotLoadModel(
            "a model cannot be shared out over devices without accelerate.",
            cause="It is an optional package, which is not installed.",
            remedy="Install it: pip install 'steergauge[sharded]'.",
        )
    if tp_plan is not None:
        return {"distributed_config": _tensor_parallel(tp_plan)}
    named = isinstance(device_map, str)
    return {"device_map": device_map if named else dict(device_map or {})}


def _tensor_parallel(plan: str) -> Any:
    """Transformers' own word for one slice a process, by the model's own plan."""
    if plan != "auto":
        raise InputError(
            f"there is no tensor-parallel plan {plan!r}.",
            remedy='The only one is "auto", which is the model\'s own.',
        )
    try:
        from transformers.distributed import DistributedConfig

        config = DistributedConfig(tp_plan="auto")
    except (ImportError, TypeError) as error:
        raise CannotLoadModel(
            "this version of transformers has no tensor-parallel plans that we know.",
            remedy="Install transformers 5.23 or later, or use a device map.",
        ) from error
    if config.tp_size == 1:
        raise InputError(
            "a tensor-parallel plan was given, and there is only this one process.",
            cause="The processes are not started here, but by torchrun.",
            remedy="Run: torchrun --nproc-per-node GPUS your_script.py",
        )
    return config


def _refuse_to_place(name: str, device_map: object, tp_plan: object) -> None:
    if device_map is not None or tp_plan is not None:
        raise InputError(
            f"{name} was given as a model in memory, with a device map or a plan.",
            cause="A model is shared out while it is loaded.",
            remedy="Give its name or folder, or share it out yourself beforehand.",
        )


def _move(model: Any, device: str) -> None:
    """To the device, or say that there is none."""
    try:
        model.to(device)
    except (AssertionError, RuntimeError) as error:
        # PyTorch says "Torch not compiled with CUDA enabled" by an AssertionError.
        raise CannotLoadModel(
            f"the device {device!r} cannot be used: {str(error).splitlines()[0]}.",
            cause="There is no such device, its driver is missing, or it is full.",
            remedy="Leave --device out, or use --device cpu.",
        ) from error


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
            device = sharding.input_device(model)
            ids = torch.zeros(1, 1, dtype=torch.long, device=device)
            model(ids, attention_mask=torch.ones_like(ids))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(forms[layer] for layer in range(len(blocks)))


def fingerprint(model: nn.Module) -> str:
    """A short hash of shapes and sampled weights: the same for every copy of a model.

    64 evenly spaced entries of every parameter, rounded to bfloat16, so that copies in
    float32 and bfloat16 agree. `load` takes it of the weights as they are stored,
    before they are converted to the precision that was asked for. A model that is
    shared out has that of a whole copy; tensor-parallel processes take it together.
    """
    digest = hashlib.sha256()
    for name, parameter in sharding.weights(model):
        flat = parameter.flatten()
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
            source, output_loading_info=True, **options
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
