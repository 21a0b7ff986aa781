"""Steered generation: what it costs here, and with what others would use.

    python benchmarks/steering.py [--models organism llama] [--prompts 20] [--repeats 3]

In one run and by turns, so that a busy machine slows all alike. First the protocol of
arXiv 2602.06801's Table 1: 100 prompts x 10 samples x 22 arms x 50 tokens, sampled
(`--prompts` is how many of the 100; a model that is slow here has its own default):

ours       `steergauge.generation.generate`, all arms together
hf         `model.generate` used well: an arm at a time through a hook, all prompts and
           samples in one left-padded batch; timed on `--slow-arms`, scaled to all
published  a prompt at a time, its samples in one call, an arm at a time; timed on
           `--slow-prompts` prompts of one arm, scaled to all
ceiling    2 FLOPs a generated token and parameter of blocks and head, and every prompt
           once, at the rate at which this machine multiplies a batch by this model's
           own matrices, just then; what attention does between tokens is not in it

Then greedy texts of a fixed number of tokens from the same prompts under 1, 8 and 64
vectors: ours, hf as above, and the libraries of `peers/` (`--peers` without names
leaves them out), a vector at a time, timed on at most `--slow-vectors` and scaled.
All steer all positions there; in the first part, those that predict a response token.
What each writes is compared with ours' texts, token by token. Memory is the most that
tensors held beyond the model's: of ours' largest batch, of one call of the others'.
The last line is all of it in JSON.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer import Peer, PeerFailed, as_read, job, names_of
from random_llamas import Given, Sizes, given
from rich.console import Console
from steering_tables import greedy_table, protocol_table
from steering_ways import (
    ROWS,
    Protocol,
    Texts,
    call,
    ceiling_flops,
    directions,
    ours,
    published,
    used_well,
)
from torch import Tensor

from geometry import machine, peak_bytes, spread, timed
from reachability import matrix_rate
from steergauge.intervention import Scope
from steergauge.prompts import Text

MODELS: dict[str, tuple[Sizes | None, int]] = {
    "organism": (None, 100),
    "llama": (Sizes(512, 8, 8192), 5),
}
"""Sizes, and how many prompts of the protocol's 100."""

PARTS = ("protocol", "greedy")
QUICK = ("quick", Sizes(64, 3, 300), 2)


@dataclass(frozen=True, slots=True)
class Slow:
    """What the slow ways are timed on."""

    arms: int = 1
    prompts: int = 3
    vectors: int = 4


def protocol(work: Given, how: Protocol, slow: Slow, *, repeats: int) -> dict[str, Any]:
    """Seconds of the protocol, ratios within each turn, with their spread; memory."""
    arms = [None, *directions(work, how.arms - 1)]
    few = arms[-min(slow.arms, how.arms) :]
    one, prompts = arms[-1:], min(slow.prompts, len(work.prompts))
    ways: dict[str, tuple[Callable[[], Texts], float]] = {
        "ours": (lambda: ours(work, arms, how), 1),
        "hf": (lambda: used_well(work, few, how), how.arms / len(few)),
        "published": (
            lambda: published(work, one, how, prompts=prompts),
            how.arms * len(work.prompts) / prompts,
        ),
    }
    ours(work, one, how)  # The first use of everything is slower.
    call(work, work.prompts[:1], how)
    fitting = max(1, ROWS // (len(work.prompts) * how.samples))
    return {
        "model": work.title,
        "work": f"{len(work.prompts)} prompts x {how.samples} samples x {how.arms} "
        f"arms x {how.new} tokens",
        "timed on": {
            "hf": f"{len(few)} of the arms",
            "published": f"{prompts} of the prompts, 1 arm",
        },
        **_sampled(work, ways, repeats),
        "peak": {
            "ours": peak_bytes(lambda: ours(work, arms[-fitting:], how)),
            "hf": peak_bytes(lambda: used_well(work, one, how)),
            "published": peak_bytes(lambda: published(work, one, how, prompts=1)),
        },
    }


def _sampled(
    work: Given, ways: Mapping[str, tuple[Callable[[], Texts], float]], repeats: int
) -> dict[str, Any]:
    """Turns of the ways, each with what its seconds are multiplied by."""
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, "ceiling")}
    lengths: dict[str, float] = {}
    for _ in range(repeats):
        before = matrix_rate(work.lm)
        for name, (act, scale) in ways.items():
            texts, took = timed(act)
            seconds[name].append(took * scale)
            rows = list(itertools.chain(*texts))
            lengths[name] = statistics.mean(map(len, rows))
            if name == "ours":
                rate = statistics.mean((before, matrix_rate(work.lm)))
                flops = ceiling_flops(work, sum(map(len, rows)))
                seconds["ceiling"].append(flops / rate)
    return {
        "tokens a text": lengths,
        "seconds": {name: spread(found) for name, found in seconds.items()},
        "ratios": ratios(seconds),
    }


def ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Within each turn, everything by ours."""
    own = seconds["ours"]
    return {
        f"{name} / ours": spread([a / b for a, b in zip(found, own, strict=True)])
        for name, found in seconds.items()
        if name != "ours"
    }


def share_equal(texts: Texts, expected: Texts) -> float:
    """Share of texts that are token by token those expected."""
    pairs = [
        (one, other)
        for few, more in zip(texts, expected, strict=False)
        for one, other in zip(few, more, strict=True)
    ]
    return statistics.mean(one == other for one, other in pairs)


Way = Callable[[int], tuple[Texts, float]]
"""So many vectors: the texts under each, and its seconds."""


def greedy(
    work: Given,
    counts: Sequence[int],
    new: int,
    slow: Slow,
    *,
    libraries: Sequence[str],
    repeats: int,
) -> list[dict[str, Any]]:
    """Seconds of greedy texts under each number of vectors, for every way."""
    vectors = directions(work, max(counts))
    how = Protocol(samples=1, new=new, temperature=0.0)

    def of(way: Callable[..., Texts], num: int) -> Texts:
        return way(work, vectors[:num].unbind(), how, scope=Scope.ALL)

    ways: dict[str, Way] = {
        "ours": lambda num: timed(lambda: of(ours, num)),
        "hf": lambda num: timed(lambda: of(used_well, num)),
    }
    with ExitStack() as stack:
        asked = _asked(work, vectors[: slow.vectors], new)
        peers, failed = _started(stack, libraries, asked)
        ways |= {name: _there(peer) for name, peer in peers.items()}
        ways["ours"](1), ways["hf"](1)  # The first use of everything is slower.
        found = [_under(work, ways, num, slow, repeats=repeats) for num in counts]
        called = {name: p.turn(num=1, peak=True)["peak"] for name, p in peers.items()}
    called["hf"] = peak_bytes(lambda: of(used_well, 1))
    common = {
        "model": work.title,
        "prompts": len(work.prompts),
        "new": new,
        "versions": {name: peer.versions for name, peer in peers.items()},
        "failed": failed,
    }
    for result in found:
        num = min(result["vectors"], max(1, ROWS // len(work.prompts)))
        own = peak_bytes(lambda num=num: of(ours, num))
        result |= {**common, "peak": {"ours": own, **called}}
    return found


def _asked(work: Given, vectors: Tensor, new: int) -> dict[str, Any]:
    return job(
        work.lm,
        work.folder,
        layer=work.layer,
        task="tokens",
        prompts=[as_read(work.lm, Text(prompt)) for prompt in work.prompts],
        vectors=vectors.tolist(),
        max_new_tokens=new,
    )


def _started(
    stack: ExitStack, libraries: Sequence[str], asked: Mapping[str, Any]
) -> tuple[dict[str, Peer], dict[str, str]]:
    """Libraries that have had a first turn, and why others have not."""
    peers, failed = {}, {}
    for name in libraries:
        try:
            peer = stack.enter_context(Peer(name, asked))
            peer.turn(num=1)
        except PeerFailed as error:
            failed[name] = str(error)
        else:
            peers[name] = peer
    return peers, failed


def _there(peer: Peer) -> Way:
    def way(num: int) -> tuple[Texts, float]:
        answer = peer.turn(num=num)
        return answer["result"], answer["seconds"]

    return way


def _under(
    work: Given, ways: Mapping[str, Way], num: int, slow: Slow, *, repeats: int
) -> dict[str, Any]:
    """One number of vectors: ours whole, the others on some of them and scaled."""
    few = min(num, slow.vectors)
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, "ceiling")}
    equal: dict[str, float] = {}
    for _ in range(repeats):
        before = matrix_rate(work.lm)
        expected, took = ways["ours"](num)
        seconds["ours"].append(took)
        rate = statistics.mean((before, matrix_rate(work.lm)))
        num_new = sum(len(row) for row in itertools.chain(*expected))
        seconds["ceiling"].append(ceiling_flops(work, num_new) / rate)
        for name, way in ways.items():
            if name == "ours":
                continue
            texts, took = way(few)
            seconds[name].append(took * num / few)
            equal[name] = share_equal(texts, expected)
    return {
        "vectors": num,
        "timed on": few,
        "equal": equal,
        "seconds": {name: spread(found) for name, found in seconds.items()},
        "ratios": ratios(seconds),
    }


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--prompts", type=int, help="default: each model's own number")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slow-arms", type=int, default=1)
    parser.add_argument("--slow-prompts", type=int, default=3)
    parser.add_argument("--slow-vectors", type=int, default=4)
    parser.add_argument("--vectors", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--greedy-prompts", type=int, default=8)
    parser.add_argument("--greedy-tokens", type=int, default=32)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--peers", nargs="*", help="default: those that are installed")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one turn")
    options = parser.parse_args(arguments)
    options.chosen = {name: MODELS[name] for name in options.models}
    options.how = Protocol()
    if options.quick:
        name, *work = QUICK
        options.chosen, options.how = {name: tuple(work)}, Protocol(3, 2, 5)
        options.repeats, options.vectors = 1, [1, 3]
        options.greedy_prompts, options.greedy_tokens = 2, 5
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print what was measured, for readers and in JSON."""
    options = parsed(arguments)
    # The record of allocations announces itself on every start otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    console = Console(highlight=False)
    report: dict[str, Any] = {"machine": machine(), "protocol": [], "greedy": []}
    console.print(report["machine"])
    for (name, (sizes, num)), part in itertools.product(
        options.chosen.items(), options.parts
    ):
        sampled = part == "protocol"
        texts = (options.prompts or num) if sampled else options.greedy_prompts
        with tempfile.TemporaryDirectory() as folder:
            work = given(name, sizes, Path(folder), ends=sampled, num_texts=texts)
            results = _results(work, options, sampled=sampled)
        report[part] += results
        drawn = protocol_table(results[0]) if sampled else greedy_table(results)
        console.print(drawn)
    print(json.dumps(report))


def _results(
    work: Given, options: argparse.Namespace, *, sampled: bool
) -> list[dict[str, Any]]:
    slow = Slow(options.slow_arms, options.slow_prompts, options.slow_vectors)
    if sampled:
        return [protocol(work, options.how, slow, repeats=options.repeats)]
    return greedy(
        work,
        options.vectors,
        options.greedy_tokens,
        slow,
        libraries=names_of(options.peers),
        repeats=options.repeats,
    )


if __name__ == "__main__":
    main()
