"""How costs grow: what doubles when the work doubles, and what stays as it was.

    python benchmarks/growth.py [--turns 3] [--svg FILE] [--no-memory]

On small Llamas with random weights, on the CPU in float32, one of these is doubled at a
time while the others stay as they are:

prompts     of `generate`; of the mean difference, four contrast pairs for each
arms        of `generate`, each with a vector of its own
layers      L; the mean difference is read at the middle
d           width of the stream; the blocks' matrices grow as d^2
vocabulary  V; the mean difference needs no logits

The exponent is the slope of log seconds on log size, of each turn by itself: 1 where
cost doubles with the size, 0 where it does not change. Turns go through all sizes of
all kinds, so that a machine that is busy for a while slows all alike. `doubled` is the
factor of the last doubling alone, where what does not grow weighs least.

Peak memory is that of a process of its own: the most that it ever held, beyond what it
held once the model was there, in which all rows share one batch size. Against prompts
and arms it must be flat, but for the responses that are handed back.
The last line is all of it in JSON.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from gpu_shapes import NO_SPECIALS, middle
from numerals import Numerals, texts
from transformers import AutoConfig, AutoModelForCausalLM

from geometry import machine, spread, timed
from steergauge.activations import Reader
from steergauge.extraction.mean_difference import mean_difference
from steergauge.generation import Decoding, generate
from steergauge.intervention import Add
from steergauge.loading import load
from steergauge.prompts import ContrastPair, Text
from steergauge.split import LanguageModel
from steergauge.vector import Site, SteeringVector

PROMPT_LENGTH = 12
PAIRS_A_PROMPT = 4
"""An extraction is so much faster than a generation."""

Sizes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Work:
    """What is done, on which model.

    Attributes:
        prompts: of a generation, or contrast pairs.
        arms: of a generation.
        layers: blocks of the model.
        d: width of its stream.
        vocabulary: number of its tokens.
        tokens: of a response.
        batch: most rows that go through the model together.
    """

    prompts: int = 32
    arms: int = 4
    layers: int = 4
    d: int = 128
    vocabulary: int = 2048
    tokens: int = 12
    batch: int = 64


BASE = Work()
SIZES = {
    "prompts": (32, 64, 128, 256),
    "arms": (4, 8, 16, 32),
    "layers": (2, 4, 8, 16),
    "d": (64, 128, 256, 512),
    "vocabulary": (2048, 4096, 8192, 16384),
}
"""Batches are full in all of them."""

WIDTH = 100
"""Columns of the tables."""

FEWEST = {"prompts": (2,), "arms": (2,)}
"""To warm up."""

MEMORY_BASE = Work(vocabulary=8192, tokens=24, batch=128)
MEMORY = {"prompts": (32, 64, 128, 256), "arms": (4, 8, 16, 32)}
"""Of generations in processes of their own: one full batch, then more of them."""

QUICK_BASE = Work(prompts=4, arms=2, layers=2, d=32, vocabulary=64, tokens=2, batch=8)
QUICK_SIZES = {
    "prompts": (4, 8),
    "arms": (2, 4),
    "layers": (2, 4),
    "d": (32, 64),
    "vocabulary": (64, 128),
}


def varied(work: Work, axis: str, size: int) -> Work:
    """The work with one number changed."""
    return replace(work, **{axis: size})


@cache
@torch.no_grad()
def model_of(layers: int, d: int, vocabulary: int) -> LanguageModel:
    """A Llama that never ends a response, its matrices N(0, 1 / fan_in)."""
    heads = max(1, d // 64)
    config = AutoConfig.for_model(
        "llama",
        **NO_SPECIALS,
        hidden_size=d,
        intermediate_size=4 * d,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=128,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.normal_(0, weight.shape[-1] ** -0.5, generator=generator)
    return load(model, tokenizer=Numerals(), device="cpu")


def responses(lm: LanguageModel, work: Work) -> int:
    """Generate, every arm with a vector of its own; how many responses there were."""
    generator = torch.Generator().manual_seed(1)
    steps = torch.randn(work.arms, lm.d_model, generator=generator)
    site = Site(middle(lm))
    arms = {f"v{i}": Add(SteeringVector(step, site)) for i, step in enumerate(steps)}
    prompts = texts(work.prompts, PROMPT_LENGTH, PROMPT_LENGTH, lm.d_vocab, seed=2)
    how = Decoding(max_new_tokens=work.tokens)
    return len(generate(lm, prompts, arms, decoding=how, batch_size=work.batch))


def extracted(lm: LanguageModel, work: Work) -> float:
    """The norm of the mean difference of `PAIRS_A_PROMPT` pairs a prompt."""
    num = 2 * PAIRS_A_PROMPT * work.prompts
    both = texts(num, PROMPT_LENGTH, PROMPT_LENGTH, lm.d_vocab, seed=3)
    pairs = [
        ContrastPair(Text(plus), Text(minus))
        for plus, minus in zip(both[::2], both[1::2], strict=True)
    ]
    reader = Reader(middle(lm))
    return mean_difference(lm, pairs, reader, batch_size=work.batch // 2).vector.norm


ACTS: dict[str, Callable[[LanguageModel, Work], Any]] = {
    "generate": responses,
    "extraction": extracted,
}


def one_turn(base: Work, sizes: Sizes) -> dict[tuple[str, str], list[float]]:
    """{(kind, axis): seconds of each size}; extraction knows no arms."""
    found: dict[tuple[str, str], list[float]] = {}
    for axis, values in sizes.items():
        works = [varied(base, axis, value) for value in values]
        for kind, act in ACTS.items():
            if (kind, axis) != ("extraction", "arms"):
                found[kind, axis] = [seconds(act, work) for work in works]
    return found


def seconds(act: Callable[[LanguageModel, Work], Any], work: Work) -> float:
    """Of the work, its model and arguments made beforehand."""
    lm = model_of(work.layers, work.d, work.vocabulary)
    return timed(lambda: act(lm, work))[1]


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of the least-squares line of log seconds on log size.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    return statistics.linear_regression(
        [math.log(size) for size in sizes], [math.log(second) for second in seconds]
    ).slope


def curves(base: Work, sizes: Sizes, *, turns: int) -> list[dict[str, Any]]:
    """Seconds, exponents and the last doubling of each kind and axis, with spread."""
    # The first use of every model is slower.
    one_turn(replace(base, prompts=2, arms=2), sizes | FEWEST)
    seen = [one_turn(base, sizes) for _ in range(turns)]
    rows = []
    for kind, axis in seen[0]:
        values, each = sizes[axis], [turn[kind, axis] for turn in seen]
        rows.append(
            {
                "kind": kind,
                "axis": axis,
                "sizes": list(values),
                "seconds": [spread(column) for column in zip(*each, strict=True)],
                "exponent": spread([exponent(values, turn) for turn in each]),
                "doubled": spread([turn[-1] / turn[-2] for turn in each]),
            }
        )
    return rows


def high_water() -> int:
    """Most bytes that this process ever held, since it was started.

    Not `getrusage`: its number survives the start of a program, and so is at first
    that of the process that started this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("this system does not tell how much memory was ever held")


def own_peak(work: Work) -> dict[str, int]:
    """Peak bytes of a generation in this process, which must be a fresh one."""
    lm = model_of(work.layers, work.d, work.vocabulary)
    before = high_water()
    num = responses(lm, work)
    return {"responses": num, "before": before, "peak": high_water() - before}


def memory(base: Work, sizes: Sizes) -> list[dict[str, Any]]:
    """Peaks of generations, each in a process of its own, against prompts and arms."""
    rows = []
    for axis, values in sizes.items():
        found = []
        for value in values:
            work = json.dumps(asdict(varied(base, axis, value)))
            command = [sys.executable, __file__, "--peak-of", work]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        more = found[-1]["responses"] - found[0]["responses"]
        grown = found[-1]["peak"] - found[0]["peak"]
        rows.append(
            {
                "axis": axis,
                "sizes": list(values),
                "peaks": [one["peak"] for one in found],
                "responses": [one["responses"] for one in found],
                "bytes_a_response": grown / more,
                "last / first": found[-1]["peak"] / found[0]["peak"],
            }
        )
    return rows


def show(report: dict[str, Any]) -> None:
    """Tables for readers."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=WIDTH)
    console.print(report["machine"])
    table = Table(title="what a cost grows with: median [lowest, highest] of turns")
    for column in ("", "against", "seconds", "exponent", "doubled"):
        right = column not in ("", "against")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for row in report["curves"]:
        against = f"{row['sizes'][0]} to {row['sizes'][-1]} {row['axis']}"
        ends = (row["seconds"][0]["median"], row["seconds"][-1]["median"])
        told = [_told(row[key]) for key in ("exponent", "doubled")]
        table.add_row(row["kind"], against, "{:.3g} to {:.3g}".format(*ends), *told)
    console.print(table)
    if report["memory"]:
        console.print(_memory_table(report["memory"]))


def _memory_table(rows: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="peak memory of a generation, beyond the model's process")
    for column in ("against", "MB", "last / first", "bytes a response"):
        table.add_column(column, justify="left" if column == "against" else "right")
    for row in rows:
        peaks = " ".join(f"{peak / 1e6:.1f}" for peak in row["peaks"])
        against = f"{row['sizes'][0]} to {row['sizes'][-1]} {row['axis']}"
        ratio, each = f"{row['last / first']:.2f}", f"{row['bytes_a_response']:,.0f}"
        table.add_row(against, peaks, ratio, each)
    return table


def _told(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} [{values['low']:.2f}, {values['high']:.2f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and draw where that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--svg", type=Path, help="draw the curves there")
    parser.add_argument("--no-memory", action="store_true", help="without the peaks")
    parser.add_argument("--quick", action="store_true", help="tiny, two turns")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak_of:
        return print(json.dumps(own_peak(Work(**json.loads(options.peak_of)))))
    base, sizes, peaks = BASE, SIZES, (MEMORY_BASE, MEMORY)
    if options.quick:
        base, sizes = QUICK_BASE, QUICK_SIZES
        peaks = base, {axis: sizes[axis] for axis in MEMORY}
        options.turns = 2
    report = {
        "machine": machine(),
        "base": asdict(base),
        "curves": curves(base, sizes, turns=options.turns),
        "memory": [] if options.no_memory else memory(*peaks),
    }
    show(report)
    if options.svg:
        from growth_picture import picture

        options.svg.write_text(picture(report), encoding="utf-8")
    return print(json.dumps(report))


if __name__ == "__main__":
    main()
