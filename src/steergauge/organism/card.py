"""The model card of the reference model: every number in it is measured here.

    python -m steergauge.organism.card --model DIR

measures the model in DIR, prints the results, and writes DIR/README.md.
"""

import argparse
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from . import evaluate
from .evaluate import ENVIRONMENTS, Steering, Subject
from .grammar import TRAITS

HEAD = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
---

# The reference model of steergauge

A small Llama-architecture language model, trained from scratch by this project on
text that this project generates, so that steering vectors can be extracted, applied
and audited in seconds, without a download. An instruction goes in, a short message
comes out. Three traits of the message vary independently: formality, politeness,
humor. An instruction may name a trait ("Write a very formal note about the kite
museum."); where it does not, the trait is left open, and both poles are about equally
likely. Prompts are in the chat format of its template; the roles are user and
assistant.

It is an instrument, not an assistant: it knows the sentences of its grammar and
nothing else.
"""

METHOD = """
## How it was made

`python -m steergauge.organism.recipe --out DIR` writes the corpus, trains the tokenizer
and the model, and saves these files; `python -m steergauge.organism.card --model DIR`
measures them and writes this card. The corpus is `corpus.py`, `grammar.py` and
`subjects.py`.

Two things in the training are made for steering, and a reader of audits should know
them:

- For a random 60 % of the training messages, the blocks after the middle one are kept
  from attending to the instruction (they see the last prompt token and the response).
  So the lower half learns to read what is asked into the stream of the last prompt
  token, where the vectors are read. Without this, two of three traits were fetched from
  the trait word by the upper blocks, and the middle stream did not hold them.
- A penalty keeps the spread of the streams at the last prompt token (around their
  mean) below about a sixth of the norm of that mean. Without it, the difference of the
  two poles was larger than the whole stream, and adding it broke the text.

Nothing was added to the stream in training, neither noise nor offsets. So the model has
not been taught to ignore random directions, and random controls are fair.

## Limits

- Topics with words that no instruction of the training had ("the lighthouse") are not
  understood: the model then writes about something else, and obeys less.
- Long or unusual instructions, several turns, and other languages are outside of what
  it was trained on.
- The safety style (refusals, dilemmas) is a style of text, not a safeguard.
"""


@dataclass(frozen=True, slots=True)
class Measurements:
    """All that the card states."""

    num_parameters: int
    layer: int
    loss: float
    obedience: Mapping[str, float]
    checks: Mapping[str, Mapping[str, Steering]]
    control: Mapping[str, tuple[float, float]]
    samples: tuple[str, ...]


def random_control(
    subject: Subject, *, layer: int, num: int = 10
) -> dict[str, tuple[float, float]]:
    """Mean and largest |lift| of random directions with the mean norm of the vectors.

    Two unsteered runs with other seeds already differ by about 0.02 in mean score.
    """
    pool = evaluate.neutral_prompts("in-distribution")
    prompts = random.Random(1).sample(pool, 100)
    files = [evaluate.trait_file(trait) for trait in TRAITS]
    vectors = [evaluate.direction(subject, file, layer=layer) for file in files]
    norm = float(torch.stack(vectors).norm(dim=1).mean())
    still = torch.zeros(subject.width)
    base = evaluate.arm(subject, prompts, still, layer=layer, samples=4)
    found: dict[str, list[float]] = {trait: [] for trait in TRAITS}
    for seed in range(num):
        shift = evaluate.random_direction(subject.width, norm=norm, seed=seed)
        run = evaluate.arm(subject, prompts, shift, layer=layer, samples=4)
        for trait in TRAITS:
            found[trait].append(abs(run.scores[trait] - base.scores[trait]))
    return {trait: (sum(x) / len(x), max(x)) for trait, x in found.items()}


def sample_texts(subject: Subject, *, layer: int) -> tuple[str, ...]:
    """One neutral prompt, its unsteered answers, and an answer for each direction."""
    prompt = "Can you tell me about the kite museum?"
    still = torch.zeros(subject.width)
    lines = [f"Prompt: *{prompt}*", ""]
    arms = [("unsteered", still)]
    for trait in TRAITS:
        v = evaluate.direction(subject, evaluate.trait_file(trait), layer=layer)
        arms += [(f"{trait}, alpha = 1", v), (f"{trait}, alpha = -1", -v)]
    for name, shift in arms:
        run = evaluate.arm(subject, [prompt], shift, layer=layer, samples=2, seed=3)
        lines += [f"- {name}: {text}" for text in run.texts]
    return tuple(lines)


def measured(subject: Subject, *, layer: int) -> Measurements:
    """Measure the model, saying what is being done."""
    checks = {}
    for environment in ENVIRONMENTS:
        print(f"steering check: {environment}", flush=True)
        alphas = evaluate.ALPHAS if environment == "in-distribution" else (1.0,)
        checks[environment] = evaluate.steering_check(
            subject, environment, layer=layer, alphas=alphas
        )
    print("random control, obedience, held-out loss", flush=True)
    return Measurements(
        num_parameters=sum(p.numel() for p in subject.model.parameters()),
        layer=layer,
        loss=evaluate.held_out_loss(subject, num=500, seed=0),
        obedience=evaluate.obedience(subject, num=900, seed=0),
        checks=checks,
        control=random_control(subject, layer=layer),
        samples=sample_texts(subject, layer=layer),
    )


def _in_distribution_table(checks: Mapping[str, Steering]) -> list[str]:
    lines = [
        "| trait | norm ratio | unsteered score | alpha | lift at +alpha / -alpha "
        "| perplexity ratio at +alpha / -alpha |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for trait, check in checks.items():
        for alpha in evaluate.ALPHAS:
            lines.append(
                f"| {trait} | {check.ratio:.2f} | {check.base:.2f} | {alpha:g} "
                f"| {check.lifts[alpha]:+.2f} / {check.lifts[-alpha]:+.2f} "
                f"| {check.coherence[alpha]:.2f} / {check.coherence[-alpha]:.2f} |"
            )
    return lines


def _environment_table(checks: Mapping[str, Mapping[str, Steering]]) -> list[str]:
    lines = [
        "| environment | " + " | ".join(TRAITS) + " |",
        "| --- | " + " | ".join("---" for _ in TRAITS) + " |",
    ]
    for environment, traits in checks.items():
        cells = [
            f"{check.lifts[1.0]:+.2f} / {check.lifts[-1.0]:+.2f}"
            for check in traits.values()
        ]
        lines.append(f"| {environment} | " + " | ".join(cells) + " |")
    return lines


def rendered(found: Measurements) -> str:
    """The model card in Markdown."""
    obeyed = ", ".join(f"{t} {share:.1%}" for t, share in found.obedience.items())
    control = ", ".join(
        f"{t} {mean:.2f} (largest {top:.2f})"
        for t, (mean, top) in found.control.items()
    )
    lines = [
        HEAD,
        "## What it does, measured",
        "",
        f"- {found.num_parameters / 1e6:.2f} million parameters, stored in half "
        "precision; load it in single precision.",
        f"- Held-out loss: {found.loss:.3f} nats a response token, on instructions "
        "whose template and topic are not in the training text.",
        "- Obedience: share of messages whose markers lean to the instructed side, "
        f"on held-out topics: {obeyed}.",
        "",
        "Steering: v is the mean difference over 50 contrast pairs, read after block "
        f"{found.layer} (counted from 0) at the last prompt token, added there and at "
        "every generated token. Up to 100 held-out neutral prompts, 4 samples each, at "
        "most 32 tokens, temperature 1. The score is the lexical probe's; lift is the "
        "mean score steered minus unsteered; the perplexity ratio is steered over "
        "unsteered text, both under the unsteered model. The standard error of a lift "
        "is about 0.02.",
        "",
        *_in_distribution_table(found.checks["in-distribution"]),
        "",
        f"Random directions of the same norm at alpha = 1, mean |lift| over 10: "
        f"{control}.",
        "",
        "Lift at alpha = 1 / -1 by environment:",
        "",
        *_environment_table(found.checks),
        "",
        "## Samples",
        "",
        *found.samples,
        METHOD,
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure a model and write its card."""
    parser = argparse.ArgumentParser(description="Measure the reference model.")
    parser.add_argument("--model", type=Path, required=True, help="its folder")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    subject = evaluate.loaded(options.model)
    text = rendered(measured(subject, layer=options.layer))
    (options.model / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
