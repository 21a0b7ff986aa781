"""What the reference model does: obedience, held-out loss, and the steering check.

The steering check is the manipulation check in its plainest form, written without the
toolkit, so that the model can be judged before the toolkit is trusted:
v = mean(h+) - mean(h-) over 50 pairs, read after block l at the last prompt token; then
the stream after block l becomes h + alpha v at the last prompt token and at every
generated token. Lift: mean probe score steered minus mean probe score unsteered.
"""

import math
import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from . import corpus
from .grammar import TRAITS, marker_balance

TRAIT_FOLDER = Path(__file__).parent.parent / "traits"
NUM_NEW_TOKENS = 32
ENVIRONMENTS = ("in-distribution", "topic-shift", "genre-shift", "safety-style")
ALPHAS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class TraitFile:
    """Contrast pairs and the lexical probe of one trait."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    high: re.Pattern[str]
    low: re.Pattern[str]

    def score(self, text: str) -> float:
        """The sigmoid of high words minus low words."""
        balance = len(self.high.findall(text)) - len(self.low.findall(text))
        return 1 / (1 + math.exp(-balance))


def _words(words: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    inner = "|".join(re.escape(word) for word in longest_first)
    return re.compile(rf"(?<!\w)(?:{inner})(?!\w)", re.IGNORECASE)


def trait_file(name: str) -> TraitFile:
    """The trait file of that name."""
    data = tomllib.loads((TRAIT_FOLDER / f"{name}.toml").read_text("utf-8"))
    pairs, probe = data["pairs"], data["probe"]
    filled = {
        side: tuple(t.format(topic=x) for x in pairs["topics"] for t in pairs[side])
        for side in ("positive", "negative")
    }
    return TraitFile(
        filled["positive"],
        filled["negative"],
        _words(probe["high"]),
        _words(probe["low"]),
    )


def neutral_prompts(environment: str) -> list[str]:
    """All held-out neutral prompts of an environment."""
    data = tomllib.loads((TRAIT_FOLDER / "environments.toml").read_text("utf-8"))
    family = data[environment]
    return [t.format(topic=x) for x in family["topics"] for t in family["templates"]]


@dataclass(frozen=True, slots=True)
class Subject:
    """The model under test, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    @property
    def width(self) -> int:
        """d_model."""
        return self.model.config.hidden_size


def loaded(folder: Path) -> Subject:
    """The model and tokenizer in a folder, in single precision."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Subject(model.eval(), PreTrainedTokenizerFast.from_pretrained(folder))


def prompt_ids(subject: Subject, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts in the chat format, padded on the left."""
    texts = [f"<s><|user|>{p}<|end|><|assistant|>" for p in prompts]
    encoded = subject.tokenizer(
        texts, return_tensors="pt", padding=True, add_special_tokens=False
    )
    return encoded["input_ids"], encoded["attention_mask"]


def _places(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def last_streams(subject: Subject, prompts: Sequence[str], *, layer: int) -> Tensor:
    """The stream after block `layer` at the last prompt token of each prompt."""
    ids, mask = prompt_ids(subject, prompts)
    out = subject.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=_places(mask),
        output_hidden_states=True,
    )
    return out.hidden_states[layer + 1][:, -1]


def direction(subject: Subject, trait: TraitFile, *, layer: int) -> Tensor:
    """The mean difference over 50 pairs of the trait file, chosen with a fixed seed."""
    chosen = random.Random(0).sample(range(len(trait.positive)), 50)
    high = last_streams(subject, [trait.positive[i] for i in chosen], layer=layer)
    low = last_streams(subject, [trait.negative[i] for i in chosen], layer=layer)
    return high.mean(0) - low.mean(0)


@torch.no_grad()
def continuations(
    subject: Subject,
    prompts: Sequence[str],
    *,
    layer: int,
    shift: Tensor,
    seed: int,
    num_new: int = NUM_NEW_TOKENS,
) -> tuple[list[str], Tensor]:
    """Sampled continuations with a shift of the stream, and their unsteered NLL.

    Args:
        subject: the model.
        prompts: plain instructions.
        layer: block after which the shift is added, at the last position of each call.
        shift: (d_model,).
        seed: of the sampling noise.
        num_new: tokens at most.
    """
    ids, mask = prompt_ids(subject, prompts)
    width, new, cache = ids.shape[1], ids, DynamicCache()
    noise = torch.Generator().manual_seed(seed)
    running = torch.ones(len(prompts), 1, dtype=torch.long)

    def add(_module: object, _args: object, stream: Tensor) -> Tensor:
        stream = stream.clone()
        stream[:, -1] += shift
        return stream

    handle = subject.model.model.layers[layer].register_forward_hook(add)
    try:
        for _ in range(num_new):
            logits = subject.model(
                input_ids=new,
                attention_mask=mask,
                position_ids=_places(mask)[:, -new.shape[1] :],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            new = torch.multinomial(logits.softmax(-1), 1, generator=noise)
            new = new * running + subject.tokenizer.pad_token_id * (1 - running)
            ids, mask = torch.cat([ids, new], 1), torch.cat([mask, running], 1)
            running = running * (new != subject.tokenizer.eos_token_id)
    finally:
        handle.remove()
    texts = subject.tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
    return texts, unsteered_nll(subject, ids, mask, width)


@torch.no_grad()
def unsteered_nll(subject: Subject, ids: Tensor, mask: Tensor, width: int) -> Tensor:
    """Summed NLL of the tokens from `width` on, and their number."""
    logits = subject.model(
        input_ids=ids, attention_mask=mask, position_ids=_places(mask)
    ).logits[:, width - 1 : -1]
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, width:].flatten(), reduction="none"
    )
    kept = mask[:, width:].flatten()
    return torch.stack([(nll * kept).sum(), kept.sum()])


@dataclass(frozen=True, slots=True)
class ArmResult:
    """Mean scores of one arm, and its perplexity under the unsteered model."""

    scores: Mapping[str, float]
    perplexity: float
    texts: tuple[str, ...]


def arm(
    subject: Subject,
    prompts: Sequence[str],
    shift: Tensor,
    *,
    layer: int,
    samples: int,
    seed: int = 0,
) -> ArmResult:
    """Sample every prompt `samples` times with the shift, and score the texts."""
    texts, total = continuations(
        subject, list(prompts) * samples, layer=layer, shift=shift, seed=seed
    )
    traits = {name: trait_file(name) for name in TRAITS}
    scores = {
        name: sum(trait.score(text) for text in texts) / len(texts)
        for name, trait in traits.items()
    }
    return ArmResult(scores, math.exp(float(total[0] / total[1])), tuple(texts))


def random_direction(width: int, *, norm: float, seed: int) -> Tensor:
    """A direction uniform on the sphere of the given radius."""
    draw = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return draw / draw.norm() * norm


def obedience(subject: Subject, *, num: int, seed: int) -> dict[str, float]:
    """The share of messages whose marker balance has the instructed sign, by trait.

    Instructions name one trait, plainly or with "very"; templates are the training
    ones, topics are held out. Messages are sampled to their end.
    """
    rng = random.Random(seed)
    prompts, wanted = [], []
    for index in range(num):
        trait, high = TRAITS[index % len(TRAITS)], rng.random() < 0.5
        word = corpus.WORDS[trait][0 if high else 1][0]
        framed = rng.random() < 0.6
        templates = corpus.TEMPLATES if framed else corpus.FREE_TEMPLATES
        prompts.append(
            corpus.instruction(
                rng.choice(templates),
                topic=corpus.noun_phrase(rng.choice(corpus.subjects.KEPT_BACK), ""),
                genre=rng.choice(corpus.GENRES),
                words=rng.choice(("", "", "very ")) + word,
                style="" if framed else rng.choice(corpus.STYLES),
            )
        )
        wanted.append((trait, 1 if high else -1))
    still = torch.zeros(subject.width)
    texts, _ = continuations(
        subject, prompts, layer=0, shift=still, seed=seed, num_new=64
    )
    obeyed: dict[str, list[bool]] = {trait: [] for trait in TRAITS}
    for text, (trait, sign) in zip(texts, wanted, strict=True):
        obeyed[trait].append(marker_balance(text, trait) * sign > 0)
    return {trait: sum(hits) / len(hits) for trait, hits in obeyed.items()}


@torch.no_grad()
def held_out_loss(subject: Subject, *, num: int, seed: int) -> float:
    """Mean NLL in nats of a response token, on held-out templates and topics."""
    rng = random.Random(seed)
    total = torch.zeros(2)
    drawn = [corpus.held_out_record(rng) for _ in range(num)]
    for start in range(0, num, 100):
        part = drawn[start : start + 100]
        heads, head_mask = prompt_ids(subject, [r.prompt for r in part])
        tails = subject.tokenizer(
            [f"{r.response}<|end|>" for r in part],
            return_tensors="pt",
            padding=True,
            padding_side="right",
            add_special_tokens=False,
        )
        ids = torch.cat([heads, tails["input_ids"]], 1)
        mask = torch.cat([head_mask, tails["attention_mask"]], 1)
        total += unsteered_nll(subject, ids, mask, heads.shape[1])
    return float(total[0] / total[1])


@dataclass(frozen=True, slots=True)
class Steering:
    """The steering check of one trait in one environment.

    Args:
        ratio: ||v|| as a share of the median ||h|| at the last prompt token.
        base: mean probe score without steering.
        lifts: alpha to lift, for both signs of alpha.
        coherence: alpha to perplexity ratio, steered over unsteered.
    """

    ratio: float
    base: float
    lifts: Mapping[float, float]
    coherence: Mapping[float, float]


def steering_check(
    subject: Subject,
    environment: str,
    *,
    layer: int,
    alphas: Sequence[float] = ALPHAS,
    num_prompts: int = 100,
    samples: int = 4,
) -> dict[str, Steering]:
    """The steering check of every trait on neutral prompts of an environment."""
    pool = neutral_prompts(environment)
    prompts = random.Random(1).sample(pool, min(num_prompts, len(pool)))
    usual = float(last_streams(subject, prompts, layer=layer).norm(dim=1).median())
    still = torch.zeros(subject.width)
    base = arm(subject, prompts, still, layer=layer, samples=samples)
    checks = {}
    for name in TRAITS:
        v = direction(subject, trait_file(name), layer=layer)
        lifts, coherence = {}, {}
        for alpha in [sign * size for size in alphas for sign in (1, -1)]:
            run = arm(subject, prompts, alpha * v, layer=layer, samples=samples)
            lifts[alpha] = run.scores[name] - base.scores[name]
            coherence[alpha] = run.perplexity / base.perplexity
        ratio = float(v.norm()) / usual
        checks[name] = Steering(ratio, base.scores[name], lifts, coherence)
    return checks
