"""A language model with a planted trait, built without anything of this package.

A tiny random GPT-2 whose words are tokens of their own and whose unembedding reads one
direction w: the logits of high words are raised by `GAIN` times the part of the final,
normalised stream along w, those of low words are lowered. Adding w to the stream of a
block therefore raises the share of high words, -w lowers it, and how much exactly can
be computed by going through all texts: `exact_score` does.
"""

import functools
from pathlib import Path

import torch
from tests.models import reinitialised
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from steergauge.loading import load
from steergauge.split import LanguageModel
from steergauge.vector import Site, SteeringVector

HIGH = ("happy", "glad", "merry", "jolly", "sunny", "bright")
LOW = ("sad", "glum", "sorry", "bleak", "grim", "dull")
NEUTRAL = (
    "lake", "moon", "river", "stone", "chair", "house", "tree", "road", "cloud",
    "boat", "door", "lamp", "field", "bird", "wall", "hill", "rope", "salt",
)  # fmt: skip
WORDS = ("<end>", *HIGH, *LOW, *NEUTRAL)
D_MODEL, NUM_LAYERS, LAYER = 48, 3, 1
GAIN = 1.2
LENGTH = 2
"""Tokens of a response: few enough to go through all of them."""


@functools.cache
def planted() -> LanguageModel:
    """The model; tests must not change it."""
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_embd=D_MODEL,
        n_layer=NUM_LAYERS,
        n_head=4,
        n_positions=32,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = reinitialised(GPT2LMHeadModel(config), seed=3).eval()
    signs = [0.0, *[1.0] * len(HIGH), *[-1.0] * len(LOW), *[0.0] * len(NEUTRAL)]
    with torch.no_grad():
        head = model.lm_head.weight
        # Random logits of size 0.5, so that texts vary and w decides.
        head.mul_(0.5)
        head.add_(GAIN * torch.tensor(signs)[:, None] * unit()[None, :])
    backend = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, "<end>"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", clean_up_tokenization_spaces=False
    )
    return load(model, tokenizer=tokenizer)


def unit() -> torch.Tensor:
    """w: a direction of length 1 without a part along the all-ones direction."""
    generator = torch.Generator().manual_seed(7)
    w = torch.randn(D_MODEL, generator=generator)
    w -= w.mean()
    return w / w.norm()


def trait_vector(length: float = 4.0) -> SteeringVector:
    """v along w."""
    return SteeringVector(length * unit(), Site(LAYER))


def unrelated_vector(length: float = 4.0) -> SteeringVector:
    """A direction perpendicular to w and to the all-ones direction."""
    other = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(8))
    other -= other.mean()
    other -= (other @ unit()) * unit()
    return SteeringVector(length * other / other.norm(), Site(LAYER))


def prompts(num: int) -> list[str]:
    """Different neutral prompts of three to six words."""
    generator = torch.Generator().manual_seed(5)
    found: dict[str, None] = {}
    while len(found) < num:
        length = int(torch.randint(3, 7, (), generator=generator))
        drawn = torch.randint(0, len(NEUTRAL), (length,), generator=generator)
        found[" ".join(NEUTRAL[i] for i in drawn.tolist())] = None
    return list(found)


def prompt_file(folder: Path, num: int = 54) -> str:
    """A file of `num` prompts: a third or less for the dose curve, 50 for the test."""
    path = folder / "prompts.txt"
    path.write_text("\n".join(prompts(num)), encoding="utf-8")
    return str(path)


def probe_file(folder: Path) -> str:
    """A lexical probe of the planted words, with labelled texts."""

    def listed(words: list[str]) -> str:
        return "[" + ", ".join(f'"{word}"' for word in words) + "]"

    def labelled(words: tuple[str, ...]) -> list[str]:
        return [f"{word} {NEUTRAL[i]}" for i in (0, 1) for word in words]

    path = folder / "happiness.toml"
    path.write_text(
        f"high = {listed(list(HIGH))}\nlow = {listed(list(LOW))}\n[validation]\n"
        f"high = {listed(labelled(HIGH))}\nlow = {listed(labelled(LOW))}\n",
        encoding="utf-8",
    )
    return str(path)


def exact_score(prompt: str, step: torch.Tensor | None) -> float:
    """E[sigmoid(#high - #low)] over all responses, with `step` added from P - 1 on.

    The whole model with a hook of our own, in float64 from the logits on; a response
    ends with <end> or after two tokens.
    """
    lm = planted()
    ids = torch.tensor(lm.tokenizer(prompt)["input_ids"])
    first = _next_tokens(lm, ids[None], step, len(ids))[0]
    texts = torch.cat(
        [ids.expand(len(WORDS), -1), torch.arange(len(WORDS))[:, None]], 1
    )
    second = _next_tokens(lm, texts, step, len(ids))
    counts = torch.zeros(len(WORDS), dtype=torch.double)
    counts[1 : 1 + len(HIGH)] = 1
    counts[1 + len(HIGH) : 1 + len(HIGH) + len(LOW)] = -1
    scores = torch.sigmoid(counts[:, None] + counts[None, :])
    after_end = torch.sigmoid(counts)[0]
    means = (second * scores).sum(-1)
    means[0] = after_end
    return float(first @ means)


@torch.no_grad()
def _next_tokens(
    lm: LanguageModel, ids: torch.Tensor, step: torch.Tensor | None, num_prompt: int
) -> torch.Tensor:
    def hook(_module, _args, output):
        stream = output[0] if isinstance(output, tuple) else output
        stream = stream.clone()
        stream[:, num_prompt - 1 :] += step
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    block = lm.model.transformer.h[LAYER]
    handle = block.register_forward_hook(hook) if step is not None else None
    try:
        logits = lm.model(ids, use_cache=False).logits[:, -1]
    finally:
        if handle is not None:
            handle.remove()
    return logits.double().softmax(-1)
