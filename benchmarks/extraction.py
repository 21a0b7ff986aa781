"""Mean-difference directions: what they cost here, and with what others would use.

    python benchmarks/extraction.py [--models small ...] [--repeats 3] [--peers ...]

The same contrast pairs at the middle layer of the same model, by turns in one run:

ours      `steergauge.extraction.mean_difference`
hf        plain transformers: `output_hidden_states`, and the last token's row
others    the libraries of `peers/`, each in an environment of its own; `--peers`
          without names leaves them out
ceiling   2 FLOPs a token and parameter of the blocks 0..l, padding not counted, at the
          rate at which this machine multiplies a batch by this model's own matrices,
          just then; what attention does between tokens is not in it

Each goes in batches of the size out of 8, 32 and 128 that was fastest for itself, on
some of the pairs, in this run: pairs for ours and steering-vectors, texts for the
rest, as each counts them. A direction that is not ours' own (cosine below 0.9999) is
said to be another one, and its time bounds nothing. The last line is all of it in JSON.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from peer import Peer, PeerFailed, as_read, job, names_of
from random_llamas import Given, Sizes, given
from rich.console import Console
from rich.table import Table
from torch import Tensor

from geometry import machine, spread, timed
from reachability import matrix_rate
from steergauge.activations import Reader
from steergauge.extraction.mean_difference import mean_difference
from steergauge.prompts import ContrastPair, encode, padded
from steergauge.split import LanguageModel, positions

MODELS: dict[str, tuple[Sizes | None, int]] = {
    "small": (Sizes(256, 8, 4096), 512),
    "gpt2-small": (Sizes(768, 12, 32_000, tied=True), 128),
    "organism": (None, 512),
}
"""Sizes, and how many pairs; the reference model has its own."""

QUICK = ("quick", Sizes(64, 3, 300), 12)
BATCH_SIZES = (8, 32, 128)
NUM_TO_CHOOSE = 128
"""Pairs on which each way's batch size is chosen."""

SAME = 0.9999
"""Least cosine of two readings of one direction: float32 of some blocks is far above,
another token or layer far below."""

Way = Callable[[int, int], tuple[Tensor, float]]
"""So many of the pairs in batches of such a size: the direction, and its seconds."""


def ours(work: Given, num: int, batch_size: int) -> Tensor:
    """The direction as the package extracts it."""
    found = mean_difference(
        work.lm, work.pairs[:num], Reader(work.layer), batch_size=batch_size
    )
    return found.vector.direction.double()


@torch.no_grad()
def plain(work: Given, num: int, batch_size: int) -> Tensor:
    """The direction from `output_hidden_states` of whole passes."""
    pairs, lm = work.pairs[:num], work.lm
    texts = [p.positive for p in pairs] + [p.negative for p in pairs]
    rows = []
    for start in range(0, len(texts), batch_size):
        batch = [encode(lm, text)[0] for text in texts[start : start + batch_size]]
        ids, mask = padded(batch, device=lm.device)
        found = lm.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions(mask),  # GPT-2 counts its padding otherwise.
            output_hidden_states=True,
        )
        rows.append(found.hidden_states[work.layer + 1][:, -1])
    states = torch.cat(rows).double()
    return (states[: len(pairs)] - states[len(pairs) :]).mean(0).cpu()


def here(act: Callable[[Given, int, int], Tensor], work: Given) -> Way:
    """A way that is in this process."""
    return lambda num, batch_size: timed(lambda: act(work, num, batch_size))


def there(peer: Peer) -> Way:
    """A way that is a peer's."""

    def way(num: int, batch_size: int) -> tuple[Tensor, float]:
        answer = peer.turn(num=num, batch_size=batch_size)
        direction = torch.tensor(answer["result"], dtype=torch.float64)
        return direction, answer["seconds"]

    return way


def num_tokens(lm: LanguageModel, pairs: Sequence[ContrastPair]) -> int:
    """Tokens of all texts, padding not counted."""
    return sum(
        len(encode(lm, text)[0]) for p in pairs for text in (p.positive, p.negative)
    )


def ceiling_flops(work: Given) -> int:
    """2 FLOPs a token and parameter of the blocks 0..l."""
    below = work.lm.blocks[: work.layer + 1].parameters()
    return 2 * num_tokens(work.lm, work.pairs) * sum(w.numel() for w in below)


def same(direction: Tensor, expected: Tensor) -> bool:
    """Whether both are one direction, as far as float32 tells."""
    return float(torch.cosine_similarity(direction, expected, dim=0)) >= SAME


def fastest_size(way: Way, num: int) -> int:
    """The batch size that was fastest on `num` pairs; a first turn warms up."""
    way(min(num, BATCH_SIZES[0]), BATCH_SIZES[0])
    return min(BATCH_SIZES, key=lambda size: way(num, size)[1])


def measured(work: Given, ways: Mapping[str, Way], *, repeats: int) -> dict[str, Any]:
    """Seconds of every way and ratios within each turn, with their spread."""
    num = len(work.pairs)
    sizes, failed = {}, {}
    for name, way in ways.items():
        try:
            sizes[name] = fastest_size(way, min(num, NUM_TO_CHOOSE))
        except PeerFailed as error:
            failed[name] = str(error)
    seconds: dict[str, list[float]] = {name: [] for name in (*sizes, "ceiling")}
    agrees = dict.fromkeys(sizes, True)
    expected = ours(work, num, BATCH_SIZES[-1])
    for _ in range(repeats):
        before = matrix_rate(work.lm)
        for name, batch_size in sizes.items():
            direction, took = ways[name](num, batch_size)
            seconds[name].append(took)
            agrees[name] &= same(direction, expected)
            if name == "ours":
                rate = statistics.mean((before, matrix_rate(work.lm)))
                seconds["ceiling"].append(ceiling_flops(work) / rate)
    others = [name for name in sizes if name != "ours" and agrees[name]]
    return {
        "model": work.title,
        "pairs": num,
        "tokens": num_tokens(work.lm, work.pairs),
        "batch_sizes": sizes,
        "agrees": agrees,
        "failed": failed,
        "seconds": {name: spread(found) for name, found in seconds.items()},
        "ratios": ratios(seconds, others),
    }


def ratios(
    seconds: Mapping[str, Sequence[float]], others: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Within each turn: the others by ours, the best of them, and ours' share."""
    own = seconds["ours"]
    found = {
        f"{name} / ours": [a / b for a, b in zip(seconds[name], own, strict=True)]
        for name in (*others, "ceiling")
    }
    if others:
        best = min(others, key=lambda name: statistics.median(seconds[name]))
        found[f"best of the others ({best}) / ours"] = found[f"{best} / ours"]
    return {name: spread(values) for name, values in found.items()}


def table(result: Mapping[str, Any]) -> Table:
    """Seconds and ratios of one model."""
    found = Table(
        title=f"{result['model']}: {result['pairs']} pairs, {result['tokens']:,} tokens"
    )
    for column in ("", "batch", "median", "lowest", "highest", "direction"):
        found.add_column(column, justify="left" if column == "" else "right")
    for name, values in result["seconds"].items():
        size = str(result["batch_sizes"].get(name, ""))
        numbers = (f"{number:.3g} s" for number in values.values())
        agrees = result["agrees"].get(name)
        said = "" if agrees is None else "ours" if agrees else "ANOTHER"
        found.add_row(name, size, *numbers, said)
    for name, reason in result["failed"].items():
        found.add_row(name, "", "failed", "", "", reason[:60])
    found.add_section()
    for name, values in result["ratios"].items():
        found.add_row(name, "", *(f"{number:.3g}" for number in values.values()), "")
    return found


def compared(work: Given, libraries: Sequence[str], *, repeats: int) -> dict[str, Any]:
    """One model's numbers, with the versions of every library that took part."""
    ways = {"ours": here(ours, work), "hf": here(plain, work)}
    pairs = [
        [as_read(work.lm, pair.positive), as_read(work.lm, pair.negative)]
        for pair in work.pairs
    ]
    asked = job(work.lm, work.folder, layer=work.layer, task="direction", pairs=pairs)
    versions, failed = {}, {}
    with ExitStack() as stack:
        for name in libraries:
            try:
                peer = stack.enter_context(Peer(name, asked))
            except PeerFailed as error:
                failed[name] = str(error)
                continue
            versions[name], ways[name] = peer.versions, there(peer)
        result = measured(work, ways, repeats=repeats)
    result["failed"] |= failed
    return result | {"versions": versions}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print what was measured, for readers and in JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--pairs", type=int, help="default: each model's own number")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", nargs="*", help="default: those that are installed")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one turn")
    options = parser.parse_args(arguments)
    chosen = {name: MODELS[name] for name in options.models}
    if options.quick:
        name, *work = QUICK
        chosen, options.repeats = {name: tuple(work)}, 1
    console = Console(highlight=False)
    report: dict[str, Any] = {"machine": machine(), "models": []}
    console.print(report["machine"])
    for name, (sizes, num) in chosen.items():
        num = options.pairs or num
        with tempfile.TemporaryDirectory() as folder:
            work = given(name, sizes, Path(folder), ends=True, num_texts=num)
            libraries = names_of(options.peers)
            result = compared(work, libraries, repeats=options.repeats)
        report["models"].append(result)
        console.print(table(result))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
