"""The recipe of the reference model: corpus, tokenizer, training, files.

    python -m steergauge.organism.recipe --out DIR

The loss is the mean negative log-likelihood (NLL) of the response tokens, with two
devices that make the stream after the middle block carry what the instruction asks:

- In a random share of the messages, the blocks above the middle one may not attend to
  the instruction from the last prompt token on (`upper_mask`). So the lower half has to
  read the traits into the last prompt token, or they are lost.
- A penalty on stream norms above a limit, and on the spread of the streams at the last
  prompt token around their mean (`excess`). So the difference of two poles is a part of
  the stream, not larger than it, and adding it leaves the text coherent:
  L = NLL + w_n mean(relu(rms(h) - n)^2) + w_s mean(relu(rms(h - m) / rms(m) - s)^2).

Nothing is ever added to the stream in training, so a random direction stays a fair
control. Everything follows from the seeds in `Recipe`.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .corpus import Record, records

SPECIALS: tuple[str, ...] = ("<pad>", "<s>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('this model knows the roles user and assistant only') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All choices of a training run.

    Args:
        seed: of the initial weights, the order of the messages, and `hidden_share`.
        corpus_seed: of the corpus.
        num_records: messages in the corpus.
        vocab: tokens of the tokenizer.
        num_layers: blocks.
        d_model: width of the stream.
        num_heads: attention heads, each with its own keys and values.
        d_mlp: width inside the MLP.
        layer: the middle block; the blocks above it are the upper half.
        steps: optimizer steps.
        batch: messages a step.
        learning_rate: its maximum.
        warmup: steps until the maximum.
        weight_decay: of AdamW.
        norm_limit: n, as root mean square of a stream's coordinates.
        norm_weight: w_n.
        spread_limit: s, as a share of the mean stream.
        spread_weight: w_s.
        hidden_share: share of messages whose instruction the upper half cannot see.
    """

    seed: int = 1
    corpus_seed: int = 0
    num_records: int = 200_000
    vocab: int = 2048
    num_layers: int = 5
    d_model: int = 128
    num_heads: int = 4
    d_mlp: int = 352
    layer: int = 2
    steps: int = 2600
    batch: int = 64
    learning_rate: float = 4e-3
    warmup: int = 200
    weight_decay: float = 0.1
    norm_limit: float = 1.0
    norm_weight: float = 0.02
    spread_limit: float = 0.17
    spread_weight: float = 0.3
    hidden_share: float = 0.6


def trained_tokenizer(texts: Iterator[str], *, vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the chat template of this model."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def initial_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast
) -> LlamaForCausalLM:
    """A Llama of the recipe's size with fresh weights."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocab,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of prompt and response, and how many of them are the prompt's."""

    ids: tuple[int, ...]
    prompt_length: int


def encoded(
    corpus: Sequence[Record], tokenizer: PreTrainedTokenizerFast
) -> list[Example]:
    """Chat-formatted token ids of each record."""
    prompts = [f"<s><|user|>{r.prompt}<|end|><|assistant|>" for r in corpus]
    responses = [f"{r.response}<|end|>" for r in corpus]
    heads = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    tails = tokenizer(responses, add_special_tokens=False)["input_ids"]
    return [
        Example((*head, *tail), len(head))
        for head, tail in zip(heads, tails, strict=True)
    ]


def batches(
    examples: Sequence[Example], *, size: int, seed: int
) -> Iterator[list[Example]]:
    """Endless batches of examples of similar length, in random order."""
    rng = random.Random(seed)
    while True:
        order = sorted(examples, key=lambda e: len(e.ids) + 4 * rng.random())
        chunks = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        rng.shuffle(chunks)
        yield from chunks


def padded(batch: Sequence[Example], *, width: int) -> tuple[Tensor, Tensor]:
    """Ids padded on the right with 0, and labels that are -100 outside responses."""
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    labels = torch.full((len(batch), width), -100)
    for row, example in enumerate(batch):
        length = len(example.ids)
        ids[row, :length] = torch.tensor(example.ids)
        labels[row, example.prompt_length : length] = ids[
            row, example.prompt_length : length
        ]
    return ids, labels


def upper_mask(starts: Tensor, hidden: Tensor, *, width: int) -> Tensor:
    """Causal (batch, 1, width, width); hidden rows do not see the instruction.

    Args:
        starts: position of the last prompt token of each row.
        hidden: for each row, whether the last prompt token and the response are kept
            from attending to the tokens before the last prompt token.
        width: number of positions.
    """
    place = torch.arange(width, device=starts.device)
    causal = place[:, None] >= place[None, :]
    writing = place[None, :, None] >= starts[:, None, None]
    reading = place[None, None, :] < starts[:, None, None]
    barred = writing & reading & hidden[:, None, None]
    return (causal & ~barred)[:, None]


def losses(
    model: LlamaForCausalLM,
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
    recipe: Recipe,
) -> tuple[Tensor, Tensor]:
    """Mean response loss in nats, and the penalty on streams.

    The blocks are called one by one, since the upper half has a mask of its own.
    Padding is on the right of a causal model, so no padding mask is needed.

    Args:
        model: in training.
        batch: ids, labels, places of the last prompt tokens, and hidden rows.
        recipe: for the middle layer and the limits.
    """
    ids, labels, starts, hidden = batch
    inner = model.model
    place = torch.arange(ids.shape[1], device=ids.device)
    stream = inner.embed_tokens(ids)
    rotary = inner.rotary_emb(stream, place[None])
    mask = upper_mask(starts, hidden, width=ids.shape[1])
    penalty = stream.new_zeros(())
    for index, block in enumerate(inner.layers):
        stream = block(
            stream,
            attention_mask=mask if index > recipe.layer else None,
            position_embeddings=rotary,
        )
        if index < recipe.num_layers - 1:
            penalty = penalty + excess(stream, starts, recipe)
    return response_loss(model, inner.norm(stream), labels), penalty


def response_loss(model: LlamaForCausalLM, stream: Tensor, labels: Tensor) -> Tensor:
    """Mean NLL of the response tokens, in nats; no logit is made of other places."""
    kept = labels[:, 1:] != -100
    logits = model.lm_head(stream[:, :-1][kept])
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:][kept])


def excess(stream: Tensor, starts: Tensor, recipe: Recipe) -> Tensor:
    """How far stream norms, and the spread at the last prompt token, exceed limits."""
    rms = stream.square().mean(-1).sqrt()
    over = (rms - recipe.norm_limit).relu().square().mean()
    last = stream[torch.arange(len(starts), device=starts.device), starts]
    shared = last.mean(0)
    spread = (last - shared).square().mean(-1).sqrt()
    share = spread / (shared.square().mean().sqrt() + 1e-3)
    wide = (share - recipe.spread_limit).relu().square().mean()
    return recipe.norm_weight * over + recipe.spread_weight * wide


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    part = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.05 + 0.475 * (1 + math.cos(math.pi * part)))


def train(
    model: LlamaForCausalLM, examples: Sequence[Example], recipe: Recipe
) -> LlamaForCausalLM:
    """Train in place on the CPU, printing the loss and the remaining time."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=recipe.weight_decay,
    )
    stream = batches(examples, size=recipe.batch, seed=recipe.seed)
    noise = torch.Generator().manual_seed(recipe.seed)
    started = time.monotonic()
    model.train()
    for step in range(recipe.steps):
        batch = next(stream)
        ids, labels = padded(batch, width=max(len(e.ids) for e in batch))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        starts = torch.tensor([e.prompt_length - 1 for e in batch])
        hidden = torch.rand(len(batch), generator=noise) < recipe.hidden_share
        nll, penalty = losses(model, (ids, labels, starts, hidden), recipe)
        optimizer.zero_grad(set_to_none=True)
        (nll + penalty).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == recipe.steps - 1:
            spent = time.monotonic() - started
            left = spent / (step + 1) * (recipe.steps - step - 1)
            print(
                f"step {step:5d}  loss {nll.item():.3f}  penalty {penalty.item():.3f}"
                f"  {spent / 60:.1f} min, {left / 60:.1f} min left",
                flush=True,
            )
    return model.eval()


def main() -> None:
    """Build the corpus, train, and write the Hugging Face files."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(description="Train the reference model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--records", type=int, default=defaults.num_records)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = Recipe(seed=options.seed, steps=options.steps, num_records=options.records)
    print(f"{recipe}\nwriting the corpus", flush=True)
    corpus = list(records(recipe.num_records, seed=recipe.corpus_seed))
    texts = (text for r in corpus for text in (r.prompt, r.response))
    print("training the tokenizer", flush=True)
    tokenizer = trained_tokenizer(texts, vocab=recipe.vocab)
    examples = encoded(corpus, tokenizer)
    model = train(initial_model(recipe, tokenizer), examples, recipe)
    save(model, tokenizer, options.out)


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Write the model in half precision, and the tokenizer, as Hugging Face files."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.do_sample = True
    model.generation_config.max_new_tokens = 64
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    model.float()


if __name__ == "__main__":
    main()
