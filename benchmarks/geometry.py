"""The exact Fisher spectrum of one prompt: its cost beside two yardsticks.

    python benchmarks/geometry.py [--shapes llama-256 ...] [--repeats 3] [--json FILE]

On models with random weights, of which the cost does not depend, in one run and by
turns, so that a busy machine slows all alike:

exact      Jacobian of the stream, metric of the logits, F and its d eigenvalues
published  the null-space estimate of the code beside arXiv 2602.06801 as it is done
           there: 1000 probes one at a time, two passes through the whole model each,
           singular values of the d_vocab x 1000 matrix; here in the model's own
           float32, which is faster on a CPU than the original's float16
batched    the same numbers from many probes at once above block l, by a Gram matrix
ceiling    4 d FLOPs a parameter of the blocks above l, forward and tangent of each of
           d columns, at the rate of this machine's largest matrix products

and the memory that the exact spectrum takes beyond the model's, while the vocabulary
grows: it must not hold a d_vocab x d matrix.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import profiler
from transformers import AutoConfig, AutoModelForCausalLM

from steergauge import linalg
from steergauge.geometry.published_nullspace import (
    Recipe,
    differences,
    rank_above,
    unit_probes,
)
from steergauge.jacobian import Shift, suffix_jacobian
from steergauge.loading import load
from steergauge.split import LanguageModel
from steergauge.vector import Site

if TYPE_CHECKING:  # `gpu.py` runs where there is no rich.
    from rich.table import Table

PROMPT_LENGTH = 10
"""About that of the published prompt, a sentence of nine words."""

SHORT_RUNS = 4
"""Of the exact spectrum and the ceiling, before the long parts of a turn and again
after them; their medians count."""

RATE_SIZE = 2048
"""Of the matrices whose product gives the machine's rate."""

GROWING = (2**15, 2**16, 2**17, 2**18, 2**19)
"""Vocabularies for the memory, with a d of 256 and 4 blocks."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model of random weights."""

    family: str
    d_model: int
    num_layers: int
    d_vocab: int

    def build(self, *, seed: int = 0) -> LanguageModel:
        """The model, which is made from its configuration: nothing is downloaded."""
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        heads = max(1, self.d_model // 64)
        sizes = {
            "gpt2": {
                "n_embd": self.d_model,
                "n_layer": self.num_layers,
                "n_head": heads,
                "n_positions": 128,
            },
            "llama": {
                "hidden_size": self.d_model,
                "intermediate_size": 4 * self.d_model,
                "num_hidden_layers": self.num_layers,
                "num_attention_heads": heads,
                "max_position_embeddings": 128,
                "tie_word_embeddings": True,
            },
        }[self.family]
        config = AutoConfig.for_model(
            self.family, vocab_size=self.d_vocab, **ids, **sizes
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config).eval()
        # No text is read or written, so that any object does for a tokenizer.
        return load(model, tokenizer=object())


SHAPES = {
    "llama-256": Shape("llama", 256, 8, 2048),
    "llama-512": Shape("llama", 512, 8, 2048),
    "gpt2-small": Shape("gpt2", 768, 12, 50257),
}


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one turn; `jacobian`, `metric` and `eigen` are parts of `exact`."""

    jacobian: float
    metric: float
    eigen: float
    published: float
    batched: float
    ceiling: float

    @property
    def exact(self) -> float:
        """Of the exact spectrum."""
        return self.jacobian + self.metric + self.eigen


def prompt_of(lm: LanguageModel, *, seed: int = 0) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(3, lm.d_vocab, (PROMPT_LENGTH,), generator=generator)
    return drawn.tolist()


def exact_spectrum(
    lm: LanguageModel, prompt: list[int], *, layer: int
) -> tuple[Tensor, dict[str, float]]:
    """Eigenvalues of F of one prompt, and the seconds of each part."""
    shift = Shift(Site(layer))
    jacobian, first = timed(
        lambda: suffix_jacobian(lm, (prompt, len(prompt)), shift=shift)
    )
    matrix, second = timed(jacobian.fisher)
    values, third = timed(lambda: linalg.spectrum(matrix).values)
    return values, {"jacobian": first, "metric": second, "eigen": third}


@torch.no_grad()
def published_sizes(
    lm: LanguageModel, prompt: list[int], *, layer: int, recipe: Recipe
) -> np.ndarray:
    """Singular values of the published estimate, a probe and a pass at a time."""
    ids = torch.tensor([prompt], device=lm.device)
    epsilon = recipe.epsilon

    def logits(step: Tensor) -> Tensor:
        def shifting(_module: Any, _args: Any, output: Any) -> Any:
            stream = (output[0] if isinstance(output, tuple) else output).clone()
            stream[:, -1] += step
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        handle = lm.blocks[layer].register_forward_hook(shifting)
        try:
            return lm.model(ids).logits[0, -1]
        finally:
            handle.remove()

    columns = [
        (logits(epsilon * probe) - logits(-epsilon * probe)) / (2 * epsilon)
        for probe in unit_probes(recipe, lm.d_model).to(lm.device)
    ]
    matrix = torch.stack(columns, dim=1).float().cpu().numpy()
    return np.linalg.svd(matrix, full_matrices=False)[1]


def batched_rank(
    lm: LanguageModel, prompt: list[int], *, layer: int, recipe: Recipe
) -> int:
    """The rank of the same estimate, as fast as this package makes it."""
    probes, epsilon = unit_probes(recipe, lm.d_model), recipe.epsilon
    found = differences(lm, prompt, layer=layer, probes=probes, epsilon=epsilon)
    return rank_above(found @ found.T, recipe.threshold)


def times(lm: LanguageModel, *, layer: int, num_probes: int) -> Times:
    """One turn of everything; the short parts before and after the long ones."""
    prompt = prompt_of(lm)
    recipe = Recipe(dtype=lm.dtype, num_probes=num_probes)
    short = [_short_parts(lm, prompt, layer) for _ in range(SHORT_RUNS)]
    _, published = timed(
        lambda: published_sizes(lm, prompt, layer=layer, recipe=recipe)
    )
    _, batched = timed(lambda: batched_rank(lm, prompt, layer=layer, recipe=recipe))
    short += [_short_parts(lm, prompt, layer) for _ in range(SHORT_RUNS)]
    parts = {name: statistics.median(run[name] for run in short) for name in short[0]}
    return Times(published=published, batched=batched, **parts)


def _short_parts(lm: LanguageModel, prompt: list[int], layer: int) -> dict[str, float]:
    _, parts = exact_spectrum(lm, prompt, layer=layer)
    return parts | {"ceiling": ceiling_flops(lm, layer=layer) / matrix_rate(lm)}


def ceiling_flops(lm: LanguageModel, *, layer: int) -> int:
    """4 d times the parameters of the blocks above `layer`."""
    above = lm.blocks[layer + 1 :].parameters()
    return 4 * lm.d_model * sum(weight.numel() for weight in above)


def matrix_rate(lm: LanguageModel) -> float:
    """FLOPs a second of a product of square matrices, in the model's precision."""
    size = RATE_SIZE
    first = torch.ones(size, size, dtype=lm.dtype, device=lm.device)
    _, seconds = timed(lambda: first @ first)
    return 2 * size**3 / seconds


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and how many seconds it took."""
    _wait()
    start = time.perf_counter()
    result = act()
    _wait()
    return result, time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(act: Callable[[], Any]) -> int:
    """Most bytes of tensors that it holds at once, beyond those that were there.

    Every allocation is counted, by torch's own record; on a GPU, by its allocator.
    """
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        act()
        return torch.cuda.max_memory_allocated() - before
    record = profiler.profile(profile_memory=True)
    with record:
        act()
    assert record.kineto_results is not None
    events: list[Any] = [
        e for e in record.kineto_results.events() if e.name() == "[memory]"
    ]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def memory(shape: Shape, *, layer: int) -> dict[str, int]:
    """Bytes of the exact spectrum, and of the Jacobian that it does without."""
    lm = shape.build()
    prompt = prompt_of(lm)
    exact_spectrum(lm, prompt, layer=layer)  # What is made once is made before.
    return {
        "d_model": shape.d_model,
        "d_vocab": shape.d_vocab,
        "peak": peak_bytes(lambda: exact_spectrum(lm, prompt, layer=layer)),
        "dense": lm.dtype.itemsize * shape.d_model * shape.d_vocab,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and both ends."""
    middle = statistics.median(values)
    return {"median": middle, "low": min(values), "high": max(values)}


def measured(shape: Shape, *, repeats: int, num_probes: int) -> dict[str, Any]:
    """Medians of the turns and the ratios within each turn, with their spread."""
    lm = shape.build()
    layer = lm.num_layers // 2
    times(lm, layer=layer, num_probes=2)  # The first use of everything is slower.
    turns = [times(lm, layer=layer, num_probes=num_probes) for _ in range(repeats)]
    parts = ("exact", *(field.name for field in fields(Times)))
    return {
        "shape": asdict(shape) | {"layer": layer, "num_probes": num_probes},
        "seconds": {name: spread([getattr(t, name) for t in turns]) for name in parts},
        "ratios": {
            "published / exact": spread([t.published / t.exact for t in turns]),
            "batched / exact": spread([t.batched / t.exact for t in turns]),
            "exact / ceiling": spread([t.exact / t.ceiling for t in turns]),
            "jacobian / ceiling": spread([t.jacobian / t.ceiling for t in turns]),
        },
    }


def times_table(name: str, result: dict[str, Any]) -> "Table":
    """Seconds and ratios of one model."""
    from rich.table import Table

    shape = result["shape"]
    table = Table(
        title=f"{name}: d {shape['d_model']}, {shape['num_layers']} blocks, "
        f"V {shape['d_vocab']:,}, after block {shape['layer']}, "
        f"{shape['num_probes']:,} probes"
    )
    for column in ("", "median", "lowest", "highest"):
        table.add_column(column, justify="right" if column else "left")
    for group, unit in (("seconds", " s"), ("ratios", "")):
        for row, values in result[group].items():
            table.add_row(row, *(f"{number:.3g}{unit}" for number in values.values()))
        table.add_section()
    return table


def memory_table(rows: Sequence[dict[str, int]]) -> "Table":
    """Peaks by vocabulary."""
    from rich.table import Table

    table = Table(title="memory beyond the model, exact spectrum of one prompt")
    for column in ("d", "V", "peak, MB", "one V x d in float32, MB"):
        table.add_column(column, justify="right")
    for row in rows:
        sizes = (f"{row[key] / 1e6:,.0f}" for key in ("peak", "dense"))
        table.add_row(str(row["d_model"]), f"{row['d_vocab']:,}", *sizes)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was measured where that was asked for."""
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--shapes", nargs="*", choices=SHAPES, default=["llama-256", "llama-512"]
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--probes", type=int, default=1000)
    parser.add_argument("--vocabularies", nargs="*", type=int, default=GROWING)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    options = parser.parse_args(arguments)
    # The record of allocations announces itself on every start otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    console = Console(highlight=False)
    report: dict[str, Any] = {"machine": machine(), "models": {}, "memory": []}
    console.print(report["machine"])
    for name in options.shapes:
        report["models"][name] = measured(
            SHAPES[name], repeats=options.repeats, num_probes=options.probes
        )
        console.print(times_table(name, report["models"][name]))
    for d_vocab in options.vocabularies:
        report["memory"].append(memory(Shape("llama", 256, 4, d_vocab), layer=1))
    if report["memory"]:
        console.print(memory_table(report["memory"]))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
