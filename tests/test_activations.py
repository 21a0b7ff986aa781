"""Streams read in batches are those of each text alone, at the position asked for."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models import D_MODEL, NUM_LAYERS, tiny

from steergauge.activations import Position, Reader, length_sorted
from steergauge.errors import BadPairs, InputError, LayerOutOfRange
from steergauge.prompts import Text, encode

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
def test_weights_sum_to_one_over_the_tokens_that_are_asked_for(prompt, response):
    length = prompt + response
    assert Position("last").weights(length, prompt).tolist() == [0.0] * (length - 1) + [
        1.0
    ]
    assert Position(f"index:{-length}").weights(length, prompt)[0] == 1
    if response:
        weights = Position("response-mean").weights(length, prompt)
        assert (weights[:prompt] == 0).all()
        # float32 division, summed over at most 20 terms.
        assert abs(float(weights.sum()) - 1) < 1e-5


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


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 7), st.integers(1, 4))
def test_every_group_is_in_exactly_one_batch(lengths, batch_size, window):
    groups = [(Text("x" * n, str(i)),) for i, n in enumerate(lengths)]
    batches = list(length_sorted(groups, batch_size, window=window))
    assert Counter(group for batch in batches for group in batch) == Counter(groups)
    assert all(1 <= len(batch) <= batch_size for batch in batches)


def test_batches_within_a_window_are_sorted_by_length():
    groups = [(Text("x" * n),) for n in (5, 1, 4, 2, 3, 0)]
    flat = [g for batch in length_sorted(groups, 2, window=3) for g in batch]
    assert [len(group[0].prompt) for group in flat] == [0, 1, 2, 3, 4, 5]


def test_groups_are_taken_one_window_at_a_time():
    taken = []

    def groups():
        for i in range(100):
            taken.append(i)
            yield (Text(str(i)),)

    batches = length_sorted(groups(), 4, window=2)
    next(batches)
    assert len(taken) == 8
