"""Where a Hugging Face decoder keeps its blocks: the only knowledge per family.

Everything else (embedding, masks, rotary angles, final norm, soft caps, head) stays
the model's own code; see `split.py`. A list of blocks found here is believed only
after `LanguageModel.prove` has seen the law `suffix(prefix(x)) == model(x)` hold.
"""

from torch import nn

from steergauge.errors import UnknownArchitecture

KNOWN_PATHS = (
    "model.layers",  # llama, qwen, mistral, mixtral, gemma, olmo, phi, ...
    "model.language_model.layers",  # text decoder of gemma3, qwen-vl, ...
    "transformer.h",  # gpt2, gpt-j, falcon, bloom
    "gpt_neox.layers",
    "model.decoder.layers",  # opt
    "transformer.blocks",  # mpt
)


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a causal language model, in order.

    Known paths first, then the only module list as long as the configuration's
    number of layers.

    Raises:
        UnknownArchitecture: no such list, or several.
    """
    for path in KNOWN_PATHS:
        found = _at(model, path)
        if found is not None and len(found) > 0:
            return found
    depth = _num_layers(model)
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    }
    if len(lists) == 1:
        return next(iter(lists.values()))
    raise UnknownArchitecture(
        f"the decoder blocks of {type(model).__name__} were not found: {len(lists)} "
        f"module lists have length {depth} ({', '.join(lists) or 'none'}).",
        cause="It is no decoder-only language model, or of a family we do not know.",
        remedy=f"Known places are {', '.join(KNOWN_PATHS)}; please report the model.",
    )


def _at(model: nn.Module, path: str) -> nn.ModuleList | None:
    module: object = model
    for name in path.split("."):
        module = getattr(module, name, None)
    return module if isinstance(module, nn.ModuleList) else None


def _num_layers(model: nn.Module) -> int | None:
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", lambda: config)()
    return getattr(text_config, "num_hidden_layers", None)
