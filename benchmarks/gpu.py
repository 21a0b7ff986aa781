"""The package on one GPU, beside what the GPU could do: one run, nobody watching.

    python benchmarks/gpu.py [--minutes 9] [--models qwen2.5-3b llama-3.1-8b]
    python benchmarks/gpu.py --device cpu --tiny      the same code in a minute

On models of random weights, of the shapes of Qwen2.5-3B and Llama-3.1-8B in bfloat16.
It needs torch, transformers 5, safetensors, numpy, scipy and jaxtyping, no network, and
not the package itself, which it finds beside itself. First the ceilings: the rate of
large matrix products, and of a copy (bytes read and written). Then, in blocks of time:

extraction  mean difference at the middle block, short and longer texts; the ceiling is
            2 FLOPs a token and parameter of blocks 0..l
generation  so many vectors in so many rows, greedy, some sampled; a step's ceilings are
            one reading of weights, keys and values, and 2 FLOPs a row and parameter
            (attention's own products are in neither): the longer one binds
table 1     22 arms x 10 samples x 50 tokens, on fewer prompts than the protocol's 100
peers       the same by `model.generate`: all rows of an arm in one batch, and as
            published, a prompt and an arm at a time; on a few arms and prompts
search      the states of every next token after the middle block
fisher      exact Fisher spectrum of one prompt, in float32 as always

The first run of each measurement warms up (and captures what is captured); the second
is the number. Lines are printed as they are known; the last is all of it in JSON, which
is also written to $OUT/gpu.json if OUT is set. A stage that outlasts its time is broken
off, one for which none is left is skipped; both are said, and what was measured stays.
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

if importlib.util.find_spec("steergauge") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from gpu_shapes import FULL, MODELS, SMALL, Sizes, built, middle, num_weights
from numerals import Numerals, texts
from unattended import Log

from geometry import exact_spectrum, timed
from steergauge.activations import Reader
from steergauge.extraction.mean_difference import mean_difference
from steergauge.generation import Decoding, generate
from steergauge.intervention import Add
from steergauge.loading import load
from steergauge.prompts import ContrastPair, Text
from steergauge.reachability.candidates import every_token, prefix_of
from steergauge.split import LanguageModel
from steergauge.vector import Site, SteeringVector

RATES = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""Precisions whose matrix rate is a ceiling of some stage."""


def measure_rates(log: Log, sizes: Sizes) -> None:
    """FLOPs a second of matrix products, and bytes a second of a copy."""
    for name, dtype in RATES.items():
        square = torch.randn(sizes.product, sizes.product, device=log.device).to(dtype)
        seconds = _median_time(lambda square=square: square @ square)
        log.rates[name] = 2 * sizes.product**3 / seconds
        log.add(f"matrix product {name}", tflops=log.rates[name] / 1e12)
    source = torch.zeros(sizes.copied, dtype=torch.uint8, device=log.device)
    target = torch.empty_like(source)
    log.rates["copy"] = 2 * sizes.copied / _median_time(lambda: target.copy_(source))
    log.add("copy", tb_per_s=log.rates["copy"] / 1e12)


def _median_time(act: Callable[[], Any], *, turns: int = 7, repeats: int = 8) -> float:
    """Seconds of one `act`, of which several are timed together."""

    def several() -> None:
        for _ in range(repeats):
            act()

    several()
    return sorted(timed(several)[1] / repeats for _ in range(turns))[turns // 2]


def vectors(lm: LanguageModel, num: int) -> list[SteeringVector]:
    """Different directions of one norm at the middle block."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(num, lm.d_model, generator=generator)
    rows = 5 * torch.nn.functional.normalize(rows)
    return [SteeringVector(row, Site(middle(lm))) for row in rows]


def extraction(log: Log, lm: LanguageModel, sizes: Sizes) -> None:
    """Mean difference, short texts and longer ones."""
    reader = Reader(middle(lm))
    weights = num_weights(lm.blocks[: middle(lm) + 1])
    for num, shortest, longest in sizes.pairs:
        both = texts(2 * num, shortest, longest, lm.d_vocab, seed=2)
        pairs = [
            ContrastPair(Text(plus), Text(minus))
            for plus, minus in zip(both[::2], both[1::2], strict=True)
        ]
        tokens = sum(len(text.split()) for text in both)
        log.measured(
            f"extraction, {num} pairs of {shortest}-{longest} tokens",
            lambda pairs=pairs: mean_difference(lm, pairs, reader),
            tokens=tokens,
            bounds={"matrix rate": 2 * weights * tokens / log.rates["bf16"]},
        )


def step_bounds(
    log: Log, lm: LanguageModel, *, rows: int, prompt: int, tokens: int
) -> dict[str, float]:
    """Least seconds of `tokens` decoding steps, by bandwidth and by matrix products."""
    config, size = lm.model.config, lm.dtype.itemsize
    embedding = lm.model.get_input_embeddings()
    tied = embedding.weight is lm.model.get_output_embeddings().weight
    weights = num_weights(lm.model) - (0 if tied else num_weights(embedding))
    heads = config.num_key_value_heads
    width = config.hidden_size // config.num_attention_heads
    column = 2 * lm.num_layers * heads * width * size  # Keys and values of one token.
    read = weights * size + rows * (prompt + tokens / 2) * column
    return {
        "bandwidth bound": tokens * read / log.rates["copy"],
        "matrix rate": tokens * 2 * weights * rows / log.rates["bf16"],
    }


def generation(log: Log, lm: LanguageModel, sizes: Sizes) -> None:
    """So many vectors in so many rows; the prompts are the same for all vectors."""
    length, most = 16, max(sizes.vectors)
    steered = vectors(lm, most)
    for rows in sizes.rows:
        prompts = texts(rows // most, length, length, lm.d_vocab, seed=3)
        bounds = step_bounds(log, lm, rows=rows, prompt=length, tokens=sizes.tokens)
        for num in sizes.vectors:
            arms = {f"v{i}": Add(vector) for i, vector in enumerate(steered[:num])}
            ways = {"greedy": 0.0, "sampled": 1.0}
            if num != sizes.vectors[1]:
                del ways["sampled"]
            for way, temperature in ways.items():
                how = Decoding(max_new_tokens=sizes.tokens, temperature=temperature)
                log.measured(
                    f"generation, {rows} rows, {num} vectors, {way}",
                    partial(
                        generate,
                        lm,
                        prompts,
                        arms,
                        samples=most // num,
                        decoding=how,
                        batch_size=rows,
                    ),
                    tokens=rows * sizes.tokens,
                    bounds=bounds,
                )


def table_1(log: Log, lm: LanguageModel, sizes: Sizes) -> None:
    """The protocol of Table 1 of arXiv 2602.06801, on fewer prompts."""
    prompts = _table_prompts(lm, sizes)
    arms: dict[str, Add | None] = {"unsteered": None}
    arms |= {f"v{i}": Add(v) for i, v in enumerate(vectors(lm, sizes.arms - 1))}
    how = Decoding(max_new_tokens=sizes.table_tokens)
    rows = len(prompts) * sizes.samples * sizes.arms
    bounds = step_bounds(log, lm, rows=rows, prompt=16, tokens=sizes.table_tokens)
    log.measured(
        f"table 1, {len(prompts)} of 100 prompts x {sizes.samples} samples x "
        f"{sizes.arms} arms",
        lambda: generate(lm, prompts, arms, samples=sizes.samples, decoding=how),
        tokens=rows * sizes.table_tokens,
        bounds={"matrix rate": bounds["matrix rate"]},
        warm=False,
    )


def _table_prompts(lm: LanguageModel, sizes: Sizes) -> list[str]:
    return texts(sizes.table_prompts, 12, 20, lm.d_vocab, seed=4)


def peers(log: Log, lm: LanguageModel, sizes: Sizes) -> None:
    """Plain `generate`, an arm at a time: all in one batch, and as published."""
    rows = [Numerals()(text)["input_ids"] for text in _table_prompts(lm, sizes)]
    for way, few, batches in (
        ("generate used well", sizes.peer_arms, [rows]),
        ("the published way", 1, [[row] for row in rows[: sizes.peer_prompts]]),
    ):
        steered = [v.direction.to(lm.device, lm.dtype) for v in vectors(lm, few)]

        def act(batches: Any = batches, steered: Any = steered) -> None:
            for step in steered:
                for batch in batches:
                    plain(lm, batch, step, sizes)

        num = few * sum(len(batch) for batch in batches)
        log.measured(
            f"{way}, {few} of {sizes.arms} arms, {num // few} prompts",
            act,
            tokens=num * sizes.samples * sizes.table_tokens,
            warm=way == "the published way",
        )
        ours, theirs = log.speed("table 1"), log.speed(way)
        if ours and theirs:
            log.add("table 1", **{f"times as fast as {way}": ours / theirs})


@torch.no_grad()
def plain(
    lm: LanguageModel, rows: Sequence[Sequence[int]], step: torch.Tensor, sizes: Sizes
) -> torch.Tensor:
    """Token ids that `model.generate` samples of each row, with `step` added."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])

    def adding(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + step, *output[1:])
        return output + step

    handle = lm.blocks[middle(lm)].register_forward_hook(adding)
    try:
        return lm.model.generate(
            ids.to(lm.device),
            attention_mask=mask.to(lm.device),
            do_sample=True,
            top_k=0,
            num_return_sequences=sizes.samples,
            max_new_tokens=sizes.table_tokens,
            pad_token_id=0,
        )
    finally:
        handle.remove()


def search(log: Log, lm: LanguageModel) -> None:
    """Every next token's state, after a prompt that is read beforehand."""
    (prompt,) = texts(1, 16, 16, lm.d_vocab, seed=5)
    prefix = prefix_of(lm, Numerals()(prompt)["input_ids"], layer=middle(lm))
    weights = num_weights(lm.blocks[: middle(lm) + 1])

    def act() -> None:
        for _ in every_token(prefix):
            pass

    log.measured(
        "every next token" + ("" if prefix.packed else ", each in a row of its own"),
        act,
        tokens=lm.d_vocab,
        bounds={"matrix rate": 2 * weights * lm.d_vocab / log.rates["bf16"]},
    )


def spectrum(log: Log, lm: LanguageModel) -> None:
    """The exact spectrum, on the same weights widened where they are."""
    for weight in lm.model.parameters():
        weight.data = weight.data.float()
    wide = load(lm.model, tokenizer=lm.tokenizer)
    (prompt,) = texts(1, 16, 16, lm.d_vocab, seed=6)
    ids = Numerals()(prompt)["input_ids"]
    flops = 4 * wide.d_model * num_weights(wide.blocks[middle(wide) + 1 :])
    parts: dict[str, float] = {}

    def act() -> None:
        parts.update(exact_spectrum(wide, ids, layer=middle(wide))[1])

    bounds = {"fp32 matrix rate": flops / log.rates["fp32"]}
    log.measured("fisher spectrum of a prompt", act, tokens=len(ids), bounds=bounds)
    log.add("fisher spectrum, parts", **parts)


def all_of(log: Log, name: str, sizes: Sizes, *, tiny: bool) -> None:
    """Every stage on one model, which is given back at the end."""
    log.model, made = name, []
    log.stage("model", 60, lambda: made.append(built(name, log.device, tiny=tiny)))
    if made:
        lm = made.pop()
        log.add("model", billions=num_weights(lm.model) / 1e9, layer=middle(lm))
        log.stage("extraction", 40, lambda: extraction(log, lm, sizes))
        log.stage("generation", 90, lambda: generation(log, lm, sizes))
        log.stage("table 1", 45, lambda: table_1(log, lm, sizes))
        log.stage("peers", 45, lambda: peers(log, lm, sizes))
        log.stage("search", 25, lambda: search(log, lm))
        log.stage("fisher", 40, lambda: spectrum(log, lm))
        del lm
    gc.collect()
    if log.device == "cuda":
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print as it comes, end with the JSON; 1 if a stage failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try it")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    sizes = SMALL if options.tiny else FULL
    log = Log(options.device, 60 * options.minutes)
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("torch sees no GPU; try it by --device cpu --tiny")
    log.add(
        "machine",
        gpu=torch.cuda.get_device_name() if cuda else None,
        processor=platform.machine(),
        torch=torch.__version__,
        tiny=options.tiny,
    )
    log.stage("rates", 30, lambda: measure_rates(log, sizes))
    if "copy" not in log.rates:
        print("without the ceilings nothing else is measured", file=sys.stderr)
        return 1
    for name in options.models:
        all_of(log, name, sizes, tiny=options.tiny)
    known = {"rates": log.rates, "sizes": asdict(sizes), "records": log.records}
    report = json.dumps(known)
    if "OUT" in os.environ:
        (Path(os.environ["OUT"]) / "gpu.json").write_text(report + "\n")
    print(report)
    return int(any("failed" in record for record in log.records))


if __name__ == "__main__":
    sys.exit(main())
