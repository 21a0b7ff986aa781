"""Models and texts that the benchmarks share with other tools: a folder a model.

What a pass costs does not depend on the weights, so that the models are Llamas of any
size with random ones, and their texts are random words, a token each. `given` is the
entry; the reference model, with texts of its own, is what it gives without sizes. A
folder holds a model and a tokenizer that every version of transformers reads alike.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from steergauge.loading import load
from steergauge.prompts import ContrastPair, Text, environment, trait
from steergauge.split import LanguageModel

SPECIALS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a Llama; the feed-forward part is four times as wide as the stream."""

    d_model: int
    num_layers: int
    d_vocab: int
    tied: bool = False


@dataclass(frozen=True, slots=True)
class Given:
    """A model in memory and in a folder, with its texts."""

    name: str
    lm: LanguageModel
    folder: Path
    prompts: tuple[str, ...]
    pairs: tuple[ContrastPair, ...]

    @property
    def layer(self) -> int:
        """The middle one: of 8 blocks, the fourth."""
        return (self.lm.num_layers - 1) // 2

    @property
    def title(self) -> str:
        """Name and sizes."""
        lm = self.lm
        sizes = f"d {lm.d_model}, {lm.num_layers} blocks, V {lm.d_vocab:,}"
        return f"{self.name}: {sizes}, after block {self.layer}"


def given(
    name: str, sizes: Sizes | None, folder: Path, *, ends: bool, num_texts: int
) -> Given:
    """The reference model where there are no sizes, else a random one in `folder`.

    Args:
        name: how the tables call it.
        sizes: of the random model.
        folder: where it is saved.
        ends: whether the reference model may end a text; a random one never does.
        num_texts: how many prompts, and how many contrast pairs at most.
    """
    rng = random.Random(0)
    if sizes is None:
        lm, where = load("builtin:organism"), None
        asked = environment().prompts
        prompts = [asked[i % len(asked)] for i in range(num_texts)]
        formality = trait("formality")
        pairs = formality.pairs(min(num_texts, len(formality.all_pairs)))
    else:
        where = saved(sizes, folder)
        lm = load(str(where), tokenizer=_tokenizer(where))
        sides = [[_words(rng, sizes, 12, 40) for _ in "+-"] for _ in range(num_texts)]
        pairs = [ContrastPair(Text(plus), Text(minus)) for plus, minus in sides]
        prompts = [_words(rng, sizes, 8, 16) for _ in range(num_texts)]
    if where is not None or not ends:
        lm.model.generation_config.eos_token_id = None
        lm.tokenizer.eos_token = None
    found = where or Path(lm.model.name_or_path)
    return Given(name, lm, found, tuple(prompts), tuple(pairs))


def saved(sizes: Sizes, folder: Path, *, seed: int = 0) -> Path:
    """The folder, with a model of `sizes` and a tokenizer of its words.

    Weights are N(0, 1 / d_model): Hugging Face's own are so small that every token
    would be followed by the same one, and equal texts would prove nothing.
    """
    config = AutoConfig.for_model(
        "llama",
        vocab_size=sizes.d_vocab,
        hidden_size=sizes.d_model,
        intermediate_size=4 * sizes.d_model,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=max(1, sizes.d_model // 64),
        max_position_embeddings=256,
        tie_word_embeddings=sizes.tied,
        initializer_range=sizes.d_model**-0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    words = [*SPECIALS.values(), *(f"w{i}" for i in _ordinary(sizes))]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, "<pad>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.save(str(folder / "tokenizer.json"))
    return folder


def _ordinary(sizes: Sizes) -> range:
    return range(len(SPECIALS), sizes.d_vocab)


def _words(rng: random.Random, sizes: Sizes, fewest: int, most: int) -> str:
    num = rng.randint(fewest, most)
    return " ".join(f"w{rng.choice(_ordinary(sizes))}" for _ in range(num))


def _tokenizer(folder: Path) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), padding_side="left", **SPECIALS
    )
