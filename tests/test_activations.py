"""Streams read in batches are those of each text alone, at the position asked for."""

import random
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models import D_MODEL, NUM_LAYERS, tiny

from steergauge import activations
from steergauge.activations import (
    TOKENS_AT_ONCE,
    WINDOW,
    Position,
    Reader,
    Room,
    pair_rows,
    room_on,
    span_means,
)
from steergauge.batching import ran_out_of_memory
from steergauge.errors import BadPairs, InputError, LayerOutOfRange, ModelError
from steergauge.prompts import ContrastPair, Text, encode

TEXTS = [
    Text("Write a message about the weather.", " It rains, and then it rains."),
    Text("Hi", "!"),
    Text("Tell me more about your weekend, please.", " No."),
    Text("the lake", " is deep and cold and far away from here"),
]
FLOAT_NOISE = 5e-5
"""Batches of other shapes take other float32 kernels: up to 6e-6 seen in streams of
size 1 to 10."""


def alone(family: str, text: Text, layer: int, rule: str) -> torch.Tensor:
    """The same by Hugging Face's hidden states, one text at a time, unpadded."""
    lm = tiny(family)
    ids, prompt_length = encode(lm, text)
    with torch.no_grad():
        states = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    stream = states[layer + 1][0].double()
    if rule == "last":
        return stream[-1]
    if rule == "response-mean":
        return stream[prompt_length:].mean(0)
    return stream[int(rule.removeprefix("index:"))]


@pytest.mark.parametrize(
    "rule", ["last", "index:0", "index:1", "index:-2", "response-mean"]
)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mistral"])
def test_a_batch_reads_what_each_text_alone_has(family, rule):
    lm = tiny(family)
    for layer in range(NUM_LAYERS - 1):
        rows = Reader(layer, Position(rule)).read(lm, TEXTS)
        assert rows.dtype == torch.float64
        for row, text in zip(rows, TEXTS, strict=True):
            expected = alone(family, text, layer, rule)
            assert (row - expected).abs().max() < FLOAT_NOISE
        # Not vacuous: different texts have different streams there.
        if rule != "index:0":
            assert torch.pdist(rows).min() > 0.1


def test_neither_batch_size_nor_order_nor_padding_changes_what_is_read():
    lm = tiny("llama")
    reader = Reader(2, Position("response-mean"))
    together = reader.read(lm, TEXTS)
    backwards = reader.read(lm, TEXTS[::-1]).flip(0)
    apart = torch.cat([reader.read(lm, [text]) for text in TEXTS])
    assert (together - apart).abs().max() < FLOAT_NOISE
    assert (together - backwards).abs().max() < FLOAT_NOISE


def test_last_and_index_are_exactly_one_tokens_stream():
    lm = tiny("llama")
    ids, prompt_length = encode(lm, TEXTS[0])
    mask = torch.ones(1, len(ids), dtype=torch.bool)
    stream = lm.prefix(torch.tensor([ids]), mask, layer=1)[0].double()
    for rule, index in (("last", -1), ("index:3", 3), ("index:-4", -4)):
        (row,) = Reader(1, Position(rule)).read(lm, [TEXTS[0]])
        assert torch.equal(row, stream[index])
    assert 0 < prompt_length < len(ids)


def test_without_a_response_the_last_token_is_the_prompts():
    lm = tiny("llama", chat=True)
    (row,) = Reader(1).read(lm, [Text("Hi there")])
    (raw,) = Reader(1, chat=False).read(lm, [Text("<user>Hi there<bot>")])
    assert torch.equal(row, raw)
    (other,) = Reader(1, chat=False).read(lm, [Text("Hi there")])
    assert (row - other).abs().max() > 0.1


@given(st.integers(1, 20), st.integers(0, 20))
def test_a_span_holds_the_tokens_that_are_asked_for(prompt, response):
    length = prompt + response
    tokens = list(range(length))
    for rule, wanted in (
        ("last", tokens[-1:]),
        (f"index:{-length}", tokens[:1]),
        (f"index:{length - 1}", tokens[-1:]),
        ("response-mean", tokens[prompt:]),
    ):
        if wanted:
            assert tokens[slice(*Position(rule).span(length, prompt))] == wanted


def test_what_lies_outside_of_a_span_is_not_looked_at():
    generator = torch.Generator().manual_seed(0)
    stream = torch.randn(3, 6, 4, generator=generator)
    spans = torch.tensor([[1, 3], [5, 6], [2, 6]])
    inside = [stream[i, a:b].double() for i, (a, b) in enumerate(spans.tolist())]
    poisoned = torch.full_like(stream, torch.nan)
    for i, (a, b) in enumerate(spans.tolist()):
        poisoned[i, a:b] = stream[i, a:b]
    rows = span_means(poisoned, spans)
    assert rows.dtype == torch.float64
    for row, part in zip(rows, inside, strict=True):
        # Sums of at most four float64 numbers of size 1.
        assert (row - part.mean(0)).abs().max() < 1e-15
    # One column is itself, alone or among longer spans.
    assert torch.equal(rows[1], stream[1, 5].double())
    assert torch.equal(span_means(stream, spans[1:2].expand(3, 2))[1], rows[1])


def test_a_position_that_a_text_lacks_is_refused():
    lm = tiny("llama")
    with pytest.raises(BadPairs, match="no response"):
        Reader(1, Position("response-mean")).read(lm, [Text("Hi")])
    for rule in ("index:7", "index:-8"):
        with pytest.raises(BadPairs, match=f"{rule} was asked for.* only 2 tokens"):
            Reader(1, Position(rule)).read(lm, [Text("Hi")])


@pytest.mark.parametrize(
    "rule", ["first", "index", "index:", "index:x", "index:1.5", ""]
)
def test_an_unknown_position_rule_is_refused(rule):
    with pytest.raises(InputError, match="position rule"):
        Position(rule)


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(LayerOutOfRange, match="layer 4"):
        Reader(NUM_LAYERS).read(tiny("llama"), TEXTS)


def test_a_read_runs_no_block_above_its_layer():
    lm = tiny("llama")
    lm.prove()
    ran: Counter[int] = Counter()
    handles = [
        block.mlp.register_forward_pre_hook(lambda *_, layer=layer: ran.update([layer]))
        for layer, block in enumerate(lm.blocks)
    ]
    rows = Reader(1).read(lm, TEXTS)
    for handle in handles:
        handle.remove()
    assert ran == {0: 1, 1: 1}
    assert rows.shape == (len(TEXTS), D_MODEL)


@contextmanager
def passes(lm):
    """Inside the `with`, the masks of all passes through the model are collected."""
    lm.prove()
    masks: list[torch.Tensor] = []
    handle = lm.model.register_forward_pre_hook(
        lambda _module, _args, given: masks.append(given["attention_mask"]),
        with_kwargs=True,
    )
    try:
        yield masks
    finally:
        handle.remove()


def random_texts(num: int, *, low: int, high: int, seed: int = 0) -> list[Text]:
    """Texts of `low` to `high` tokens: the tiny tokenizer merges no digits."""
    rng = random.Random(seed)
    lengths = [rng.randint(low, high) for _ in range(num)]
    return [Text("".join(rng.choices("0123456789", k=n))) for n in lengths]


@pytest.mark.parametrize("budget", [1, 40, 64, 1000])
def test_a_batch_holds_no_more_padded_tokens_than_it_may(budget, monkeypatch):
    monkeypatch.setitem(activations.TOKENS_AT_ONCE, "cpu", budget)
    lm, texts = tiny("llama"), random_texts(50, low=1, high=30)
    with passes(lm) as masks:
        Reader(1).read(lm, texts)
    assert all(mask.numel() <= budget or len(mask) == 1 for mask in masks)
    # Every token goes through the model once.
    ran = Counter(n for mask in masks for n in mask.sum(1).tolist())
    assert ran == Counter(len(encode(lm, text)[0]) for text in texts)
    assert len(masks) > 1 or budget == 1000


def test_hardly_anything_is_spent_on_padding():
    lm, texts = tiny("llama"), random_texts(WINDOW, low=12, high=40)
    with passes(lm) as masks:
        Reader(0).read(lm, texts)
    padded, real = (sum(f(m) for m in masks) for f in (torch.numel, torch.sum))
    # Sorted texts of one batch differ by one or two of 26 tokens. Not vacuous: of the
    # texts as they come, a third would be padding.
    assert real <= padded < 1.05 * float(real)
    assert 1.4 * float(real) < WINDOW * 40
    assert max(m.numel() for m in masks) <= TOKENS_AT_ONCE["cpu"]


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_pairs_come_in_their_order_a_window_at_a_time(batch_size, monkeypatch):
    monkeypatch.setattr(activations, "WINDOW", 8)
    lm, reader = tiny("llama"), Reader(1)
    texts = random_texts(22, low=1, high=30)
    pairs = [ContrastPair(*two) for two in zip(texts[::2], texts[1::2], strict=True)]
    done: list[int] = []
    with passes(lm) as masks:
        parts = list(
            pair_rows(lm, pairs, reader, batch_size=batch_size, progress=done.append)
        )
    # Memory is that of a window and of a batch, whatever the number of pairs.
    assert [len(plus) for plus, _ in parts] == [4, 4, 3]
    assert batch_size is None or max(map(len, masks)) <= 2 * batch_size
    assert sum(done) == len(pairs)
    assert min(done) >= 1
    for side, rows in zip(
        ("positive", "negative"), map(torch.cat, zip(*parts, strict=True)), strict=True
    ):
        for pair, row in zip(pairs, rows, strict=True):
            expected = alone("llama", getattr(pair, side), 1, "last")
            assert (row - expected).abs().max() < FLOAT_NOISE
        assert torch.pdist(rows).min() > 0.1


@contextmanager
def memory_for(lm, tokens: int, error: type[RuntimeError], words: str):
    """Inside the `with`, the last block that is run fails on more padded `tokens`."""

    def fail(_module, _args, output):
        if output.shape[:2].numel() > tokens:
            raise error(words)

    lm.prove()
    handle = lm.blocks[1].register_forward_hook(fail)
    try:
        yield
    finally:
        handle.remove()


OUT_OF_MEMORY = [
    (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2 GiB."),
    (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to ..."),
]


@pytest.mark.parametrize(("error", "words"), OUT_OF_MEMORY)
@pytest.mark.parametrize("batch_size", [None, 15])
def test_a_batch_that_memory_does_not_hold_is_halved(error, words, batch_size):
    lm, reader = tiny("llama"), Reader(1)
    texts = random_texts(60, low=1, high=30)
    pairs = [ContrastPair(*two) for two in zip(texts[::2], texts[1::2], strict=True)]
    (expected,) = pair_rows(lm, pairs, reader, batch_size=batch_size)
    done: list[int] = []
    hooks = set(lm.blocks[1]._forward_hooks)
    with passes(lm) as masks, memory_for(lm, 128, error, words):
        (found,) = pair_rows(
            lm, pairs, reader, batch_size=batch_size, progress=done.append
        )
    for one, other in zip(expected, found, strict=True):
        assert (one - other).abs().max() < FLOAT_NOISE
    sizes = [mask.numel() for mask in masks]
    failed = [size for size in sizes if size > 128]
    # Halved until it fits, once for all batches; nothing is counted twice.
    assert len(failed) >= 2
    assert sizes[: len(failed)] == failed
    assert sum(done) == len(pairs)
    assert set(lm.blocks[1]._forward_hooks) == hooks


def test_room_that_was_too_large_stays_halved_in_later_windows(monkeypatch):
    monkeypatch.setattr(activations, "WINDOW", 16)
    lm, texts = tiny("llama"), random_texts(64, low=20, high=20)
    with passes(lm) as masks, memory_for(lm, 100, *OUT_OF_MEMORY[0]):
        Reader(1).read(lm, texts)
    # 320 and 160 tokens fail, 80 fit: in the first window only.
    assert [mask.numel() for mask in masks] == [320, 160, *[80] * 16]
    assert Room(None, 16).halved(16, 20).holds(10) == 16


def test_a_text_that_memory_does_not_hold_is_refused():
    lm, texts = tiny("llama"), random_texts(6, low=10, high=10)
    with (
        memory_for(lm, 9, *OUT_OF_MEMORY[0]),
        pytest.raises(ModelError, match="a text of 10 tokens alone does not fit"),
    ):
        Reader(1).read(lm, texts)


def test_an_error_that_is_not_of_memory_is_passed_on():
    lm, texts = tiny("llama"), random_texts(6, low=10, high=10)
    with (
        memory_for(lm, 9, RuntimeError, "size mismatch"),
        pytest.raises(RuntimeError, match="size mismatch"),
    ):
        Reader(1).read(lm, texts)


def test_the_allocators_own_refusal_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert ran_out_of_memory(caught.value)
    assert not ran_out_of_memory(RuntimeError("CUDA error: device-side assert"))


def test_no_text_has_no_rows_and_a_batch_of_nothing_is_refused():
    lm = tiny("llama")
    assert Reader(1).read(lm, []).shape == (0, D_MODEL)
    with pytest.raises(InputError, match="a batch of 0 pairs"):
        room_on(lm, 0)
