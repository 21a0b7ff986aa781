"""Exhaustive search over the next token: its cost beside four yardsticks.

    python benchmarks/reachability.py [--vocabularies 2048 32768] [--repeats 5]

On a Llama with random weights, of which the cost does not depend, in one run and by
turns, so that a busy machine slows all alike:

ours       h_l of every token after a cached prefix, many candidates to a row; the last
           token of the prefix is read in the same time, as it is for each position
nearest    the same, with every distance that T16 asks of 45 targets
published  as the code beside arXiv 2604.09839 does it: a whole pass over prefix and
           candidate through all blocks and the head, streams of all layers kept
stopped    the same without what is not needed: it ends after block l
one a row  from the cached prefix, each candidate in a row of its own
ceiling    2 FLOPs a candidate and parameter of the blocks 0..l, at the rate at which
           this machine multiplies a batch by this model's own matrices, just then

All in batches of the same size. A candidate costs the slow ones as much as the next
one does: they are timed on the first `--sample` tokens, and their time is scaled up.
Beside it, the memory that `nearest` takes beyond the model's: it must not grow with
the vocabulary. The last line is all of it in JSON.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from geometry import Shape, machine, peak_bytes, prompt_of, spread, timed
from steergauge.reachability.candidates import (
    TOKENS_AT_ONCE,
    Prefix,
    every_token,
    prefix_of,
)
from steergauge.reachability.nearest import Nearest, nearest
from steergauge.split import LanguageModel

NUM_TARGETS = 45
"""Natural, constructed, v, 20 random, 10 of flipped signs, 10 of other pairs, and two
to spare."""

RATE_RUNS = 5
"""Products with each matrix of a block, before and after the search that they bound."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one turn, for the whole vocabulary."""

    ours: float
    nearest: float
    published: float
    stopped: float
    one_a_row: float
    ceiling: float


def ours(before: Prefix, token: int) -> Tensor:
    """States of the last batch of all tokens after `before` and `token`."""
    *_, (_, states) = every_token(before.then([token]))
    return states


def distances(before: Prefix, token: int) -> Nearest:
    """All that is asked of a position, of targets at random."""
    generator = torch.Generator().manual_seed(0)
    width = before.lm.d_model
    targets = torch.randn(NUM_TARGETS, width, generator=generator, dtype=torch.float64)
    return nearest(before.then([token]), targets, token=3, origin=targets[0])


@torch.no_grad()
def published(
    lm: LanguageModel, ids: Sequence[int], tokens: Tensor, *, layer: int
) -> Tensor:
    """States of `tokens`' last batch, by whole passes that keep every layer."""
    states = torch.empty(0)
    for batch in _texts(lm, ids, tokens):
        found = lm.model(batch, output_hidden_states=True, use_cache=False)
        states = found.hidden_states[layer + 1][:, -1]
    return states


def stopped(
    lm: LanguageModel, ids: Sequence[int], tokens: Tensor, *, layer: int
) -> Tensor:
    """The same by passes that end after block `layer`."""
    states = torch.empty(0)
    for batch in _texts(lm, ids, tokens):
        mask = torch.ones_like(batch, dtype=torch.bool)
        states = lm.streams(batch, mask, layers=(layer,))[layer][:, -1]
    return states


@torch.no_grad()
def one_a_row(
    lm: LanguageModel, ids: Sequence[int], tokens: Tensor, *, layer: int
) -> Tensor:
    """The same by steps from a cache that is repeated for each candidate."""
    row = torch.tensor([list(ids)], device=lm.device)
    cache = lm.model(row, use_cache=True).past_key_values
    states = torch.empty(0)
    for batch in tokens.to(lm.device).split(TOKENS_AT_ONCE):
        mask = torch.ones(len(batch), len(ids) + 1, dtype=torch.bool, device=lm.device)
        past = _repeated(cache, len(batch))
        found = lm.streams(batch[:, None], mask, layers=(layer,), cache=past)
        states = found[layer][:, -1]
    return states


def _repeated(cache: Any, rows: int) -> Any:
    repeated = type(cache)()
    for place, layer in enumerate(cache.layers):
        keys = layer.keys.expand(rows, -1, -1, -1)
        repeated.update(keys, layer.values.expand(rows, -1, -1, -1), place)
    return repeated


def _texts(lm: LanguageModel, ids: Sequence[int], tokens: Tensor) -> list[Tensor]:
    before = torch.tensor(list(ids))
    return [
        torch.cat([before.expand(len(part), -1), part[:, None]], dim=1).to(lm.device)
        for part in tokens.split(TOKENS_AT_ONCE)
    ]


def ceiling_flops(lm: LanguageModel, *, layer: int) -> int:
    """2 d_vocab times the parameters of the blocks up to `layer`."""
    below = lm.blocks[: layer + 1].parameters()
    return 2 * lm.d_vocab * sum(weight.numel() for weight in below)


@torch.no_grad()
def matrix_rate(lm: LanguageModel) -> float:
    """FLOPs a second of a batch times each matrix of the first block."""
    matrices = [weight for weight in lm.blocks[0].parameters() if weight.ndim == 2]
    batches = [
        torch.ones(TOKENS_AT_ONCE, matrix.shape[1], dtype=lm.dtype, device=lm.device)
        for matrix in matrices
    ]

    def act() -> None:
        for _ in range(RATE_RUNS):
            for batch, matrix in zip(batches, matrices, strict=True):
                torch.nn.functional.linear(batch, matrix)

    _, seconds = timed(act)
    entries = sum(matrix.numel() for matrix in matrices)
    return 2 * RATE_RUNS * TOKENS_AT_ONCE * entries / seconds


def times(lm: LanguageModel, *, layer: int, sample: int) -> Times:
    """One turn of everything; the rate right before and after what it bounds."""
    ids = prompt_of(lm)
    read = prefix_of(lm, ids[:-1], layer=layer)
    tokens = torch.arange(min(sample, lm.d_vocab))
    scale = lm.d_vocab / len(tokens)
    before = matrix_rate(lm)
    _, fast = timed(lambda: ours(read, ids[-1]))
    rate = statistics.mean((before, matrix_rate(lm)))
    _, asked = timed(lambda: distances(read, ids[-1]))
    slow: list[Callable[..., Any]] = [published, stopped, one_a_row]
    scaled = [
        scale * timed(lambda act=act: act(lm, ids, tokens, layer=layer))[1]
        for act in slow
    ]
    return Times(fast, asked, *scaled, ceiling_flops(lm, layer=layer) / rate)


def measured(shape: Shape, *, layer: int, repeats: int, sample: int) -> dict[str, Any]:
    """Medians of the turns, ratios within each turn, with their spread, and memory."""
    lm = shape.build()
    times(lm, layer=layer, sample=TOKENS_AT_ONCE)  # The first use is slower.
    turns = [times(lm, layer=layer, sample=sample) for _ in range(repeats)]
    names = [field.name for field in fields(Times)]
    ids = prompt_of(lm)
    read = prefix_of(lm, ids[:-1], layer=layer)
    return {
        "shape": asdict(shape) | {"layer": layer, "prefix": len(ids)},
        "sample": min(sample, shape.d_vocab),
        "seconds": {name: spread([getattr(t, name) for t in turns]) for name in names},
        "ratios": {
            "published / ours": spread([t.published / t.ours for t in turns]),
            "stopped / ours": spread([t.stopped / t.ours for t in turns]),
            "one a row / ours": spread([t.one_a_row / t.ours for t in turns]),
            "nearest / ours": spread([t.nearest / t.ours for t in turns]),
            "ceiling / ours": spread([t.ceiling / t.ours for t in turns]),
        },
        "peak": peak_bytes(lambda: distances(read, ids[-1])),
        "dense": lm.dtype.itemsize * shape.d_model * shape.d_vocab,
    }


def table(result: dict[str, Any]) -> Table:
    """Seconds, ratios and memory of one model."""
    shape = result["shape"]
    found = Table(
        title=f"d {shape['d_model']}, {shape['num_layers']} blocks, "
        f"V {shape['d_vocab']:,}, after block {shape['layer']}"
    )
    for column in ("", "median", "lowest", "highest"):
        found.add_column(column, justify="right" if column else "left")
    for group, unit in (("seconds", " s"), ("ratios", "")):
        for row, values in result[group].items():
            name = row.replace("_", " ")
            found.add_row(name, *(f"{number:.3g}{unit}" for number in values.values()))
        found.add_section()
    found.add_row("memory of nearest", f"{result['peak'] / 1e6:.1f} MB")
    found.add_row("one V x d of the model", f"{result['dense'] / 1e6:.1f} MB")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print what was measured, for readers and in JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[2048, 32768])
    parser.add_argument("--layer", type=int, help="default: the last of the first half")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sample", type=int, default=2048)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one turn")
    options = parser.parse_args(arguments)
    if options.quick:
        options.d_model, options.blocks, options.repeats = 32, 2, 1
        options.vocabularies, options.sample = [520, 1040], 520
    layer = options.blocks // 2 - 1 if options.layer is None else options.layer
    # The record of allocations announces itself on every start otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    console = Console(highlight=False)
    report: dict[str, Any] = {"machine": machine(), "models": []}
    console.print(report["machine"])
    for d_vocab in options.vocabularies:
        result = measured(
            Shape("llama", options.d_model, options.blocks, d_vocab),
            layer=layer,
            repeats=options.repeats,
            sample=options.sample,
        )
        report["models"].append(result)
        console.print(table(result))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
