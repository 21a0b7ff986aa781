"""Tiny random language models of many families, and a tokenizer made in memory.

Every weight matrix is drawn from N(0, 1 / fan_in), because Hugging Face's own
initialisation makes models almost linear and hides errors; norm weights and biases
are off their neutral values. Windows of sliding attention are shorter than the
sequences of the tests. `tiny(family)` is the entry.
"""

import functools
from typing import Any

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

from steergauge.loading import load
from steergauge.split import LanguageModel

FAMILIES = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "olmo2",
    "phi3",
    "gpt2",
    "gpt_neox",
    "mixtral",
)
SLIDING = ("mistral", "gemma2", "gemma3")
"""Families whose attention sees a window of the last `WINDOW` tokens only."""

WINDOW = 5
NUM_LAYERS = 4
D_MODEL = 48
SPECIALS = ("<unk>", "<s>", "</s>", "<user>", "<bot>")
TEMPLATE = (
    "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
_CHARACTERS = ["\n", *(chr(code) for code in range(32, 127))]
_SYLLABLES = [first + second for first in "thrsnlcmdp" for second in "aeiouthrsl"]
D_VOCAB = 211


def ids_and_mask(
    *lengths: int, d_vocab: int = D_VOCAB, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random rows of the given lengths, left-padded with random ids.

    Padding holds arbitrary tokens, so that a law which holds under it does not
    depend on which token is the pad token.
    """
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(0, d_vocab, (len(lengths), width), generator=generator)
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return ids, mask


@functools.cache
def tokenizer(*, chat: bool = False, ends: bool = True) -> Any:
    """A tokenizer of 211 tokens for ASCII text; what it encodes it decodes exactly.

    Without `ends` it knows no end token.
    """
    alphabet = [*SPECIALS, *_CHARACTERS, *_SYLLABLES]
    words = [f"<extra{i}>" for i in range(D_VOCAB - len(alphabet))]
    vocab = {token: i for i, token in enumerate([*alphabet, *words])}
    merges = [(pair[0], pair[1]) for pair in _SYLLABLES]
    backend = Tokenizer(BPE(vocab, merges, unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>" if ends else None,
        pad_token="<unk>",
        padding_side="left",
        additional_special_tokens=["<user>", "<bot>"],
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE if chat else None,
    )


def config(family: str) -> Any:
    """A Hugging Face configuration of the family, as small as it can be."""
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if family in ("gpt2", "gptj"):
        sizes = {"n_embd": D_MODEL, "n_layer": NUM_LAYERS, "n_head": 4}
        sizes |= {"n_positions": 96, "rotary_dim": 6}
        return AutoConfig.for_model(family, vocab_size=D_VOCAB, **sizes, **ids)
    sizes = {
        "vocab_size": D_VOCAB,
        "hidden_size": D_MODEL,
        "intermediate_size": 96,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
    }
    special: dict[str, dict[str, Any]] = {
        "qwen3": {"head_dim": 12},
        "mistral": {"sliding_window": WINDOW},
        "gemma2": {
            "sliding_window": WINDOW,
            "head_dim": 12,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 5.0,
        },
        "gemma3_text": {
            "sliding_window": WINDOW,
            "head_dim": 12,
            "query_pre_attn_scalar": 12,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        "gpt_neox": {"rotary_pct": 0.5},
        "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    }
    kind = "gemma3_text" if family == "gemma3" else family
    return AutoConfig.for_model(kind, **sizes, **ids, **special.get(kind, {}))


def network(family: str, *, seed: int = 0) -> Any:
    """A fresh Hugging Face model with weights that make every part of it matter."""
    model = AutoModelForCausalLM.from_config(config(family))
    return reinitialised(model, seed=seed).eval()


@torch.no_grad()
def reinitialised(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Weight matrices N(0, 1 / fan_in); norms and biases near, not at, neutral."""
    generator = torch.Generator().manual_seed(seed)
    transposed = {
        id(module.weight) for module in model.modules() if isinstance(module, Conv1D)
    }
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        if parameter.ndim == 1:
            # HF starts norm weights at 1 (at 0 where the code adds 1), biases at 0.
            parameter.add_(0.1 * noise)
        else:
            fan_in = parameter.shape[0 if id(parameter) in transposed else -1]
            parameter.copy_(noise * fan_in**-0.5)
    return model


def borrowed(
    model: Any, *, chat: bool = False, ends: tuple[int, ...] = (2,)
) -> LanguageModel:
    """A model in memory, with the tiny tokenizer.

    `ends` are its end tokens: none, or token 2 and any others.
    """
    model.generation_config.eos_token_id = list(ends) or None
    return load(model, tokenizer=tokenizer(chat=chat, ends=bool(ends)))


@functools.cache
def tiny(
    family: str = "llama",
    *,
    chat: bool = False,
    ends: tuple[int, ...] = (2,),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """One tiny model a session and set of arguments: tests must not change it."""
    return borrowed(network(family, seed=seed).to(dtype), chat=chat, ends=ends)
