"""Models of random weights in the shapes of published ones, and how much is measured.

The numbers are those of the published configurations. There are no special tokens, so
that every response has its full length, and nothing is downloaded.
"""

from dataclasses import dataclass
from typing import Any

import torch
from numerals import Numerals
from transformers import AutoConfig, AutoModelForCausalLM

from steergauge.loading import load
from steergauge.split import LanguageModel

NO_SPECIALS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

QWEN_3B = NO_SPECIALS | {
    "model_type": "qwen2",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
LLAMA_8B = NO_SPECIALS | {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
MODELS = {"qwen2.5-3b": QWEN_3B, "llama-3.1-8b": LLAMA_8B}

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 600,
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything is done.

    Attributes:
        product: side of the square matrices of the matrix rate.
        copied: bytes of the copy.
        pairs: (contrast pairs, fewest tokens, most tokens) of each extraction.
        vectors: different vectors in a batch.
        rows: rows in a batch; 64 at least, or as many as vectors.
        tokens: tokens of a response.
        table_prompts: prompts of Table 1.
        samples: of each prompt and arm of Table 1.
        arms: of Table 1.
        table_tokens: of a response there.
        peer_arms: arms that plain `generate` is timed on.
        peer_prompts: prompts that the published way is timed on.
    """

    product: int = 8192
    copied: int = 2**32
    pairs: tuple[tuple[int, int, int], ...] = ((2048, 12, 40), (256, 128, 512))
    vectors: tuple[int, ...] = (1, 8, 64)
    rows: tuple[int, ...] = (256, 1024)
    tokens: int = 64
    table_prompts: int = 20
    samples: int = 10
    arms: int = 22
    table_tokens: int = 50
    peer_arms: int = 2
    peer_prompts: int = 3


FULL = Sizes()
SMALL = Sizes(
    product=128,
    copied=2**16,
    pairs=((8, 4, 9), (4, 10, 20)),
    vectors=(1, 4),
    rows=(4, 8),
    tokens=4,
    table_prompts=2,
    samples=2,
    arms=3,
    table_tokens=4,
    peer_arms=1,
    peer_prompts=1,
)


@torch.no_grad()
def built(name: str, device: str, *, tiny: bool, seed: int = 0) -> LanguageModel:
    """A model of random weights, made on the device: matrices N(0, 1 / fan_in)."""
    numbers = MODELS[name] | (TINY if tiny else {})
    family = numbers.pop("model_type")
    config = AutoConfig.for_model(family, **numbers)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    generator = torch.Generator(device).manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.normal_(0, weight.shape[-1] ** -0.5, generator=generator)
    return load(model, tokenizer=Numerals())


def middle(lm: LanguageModel) -> int:
    """The last block of the lower half."""
    return lm.num_layers // 2 - 1


def num_weights(modules: Any) -> int:
    """Parameters of the modules."""
    return sum(weight.numel() for weight in modules.parameters())
