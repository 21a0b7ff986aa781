"""The mean difference is its formula, at any batch size, in bounded memory."""

import importlib.metadata

import pytest
import torch
from tests.models import D_MODEL, D_VOCAB, tiny

from steergauge.activations import Position, Reader
from steergauge.errors import BadPairs, LayerOutOfRange
from steergauge.extraction.mean_difference import NUM_NORMS, mean_difference
from steergauge.prompts import (
    ContrastPair,
    Text,
    chat_template_hash,
    encode,
    pairs_hash,
)
from steergauge.vector import Site

LAYER = 1
TOPICS = ("rain", "a lake", "the long winter", "tea", "my neighbor's dog", "Mars", "x")
PAIRS = [
    ContrastPair(
        Text(f"Write a formal letter about {topic}.", " Dear Sir or Madam,"),
        Text(f"Say hi to {topic}", " yo"),
    )
    for topic in TOPICS
]
FLOAT_NOISE = 5e-5
"""Batches of other shapes take other float32 kernels: up to 6e-6 seen in a stream."""


def streams(family: str, text: Text, rule: str) -> torch.Tensor:
    """One text's stream by Hugging Face's hidden states, without padding."""
    lm = tiny(family)
    ids, prompt_length = encode(lm, text)
    with torch.no_grad():
        states = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    stream = states[LAYER + 1][0].double()
    return stream[-1] if rule == "last" else stream[prompt_length:].mean(0)


@pytest.mark.parametrize("rule", ["last", "response-mean"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_it_is_the_mean_of_the_pairs_differences(family, rule):
    result = mean_difference(tiny(family), PAIRS, Reader(LAYER, Position(rule)))
    differences = torch.stack(
        [
            streams(family, pair.positive, rule) - streams(family, pair.negative, rule)
            for pair in PAIRS
        ]
    )
    direction = result.vector.direction
    assert (direction.double() - differences.mean(0)).abs().max() < FLOAT_NOISE
    assert result.vector.norm > 0.5
    # sqrt(tr Cov / n), with the unbiased covariance.
    error = (differences.var(0, unbiased=True).sum() / len(PAIRS)).sqrt()
    assert abs(result.standard_error - float(error)) < 1e-4 * float(error)


def test_batch_size_and_order_of_pairs_do_not_matter():
    lm, reader = tiny("llama"), Reader(LAYER)
    whole = mean_difference(lm, PAIRS, reader, batch_size=100)
    for batch_size in (1, 2, 3, None):
        other = mean_difference(lm, PAIRS[::-1], reader, batch_size=batch_size)
        gap = (whole.vector.direction - other.vector.direction).abs().max()
        assert gap < FLOAT_NOISE
        assert other.differences.count == len(PAIRS)
        assert abs(whole.standard_error - other.standard_error) < FLOAT_NOISE


def test_exchanging_the_sides_turns_the_vector_round():
    lm, reader = tiny("llama"), Reader(LAYER)
    swapped = [ContrastPair(pair.negative, pair.positive) for pair in PAIRS]
    forth = mean_difference(lm, PAIRS, reader).vector.direction
    back = mean_difference(lm, swapped, reader).vector.direction
    assert (forth + back).abs().max() < FLOAT_NOISE


def test_equal_sides_give_zero():
    same = [ContrastPair(pair.positive, pair.positive) for pair in PAIRS]
    # The two sides are rows of one batch, equal up to the kernels' order of summing.
    assert mean_difference(tiny("llama"), same, Reader(LAYER)).vector.norm < FLOAT_NOISE


def test_no_block_above_the_layer_and_no_head_is_run():
    lm = tiny("llama")
    lm.prove()
    ran: set[int | str] = set()
    head = lm.model.get_output_embeddings()
    handles = [head.register_forward_pre_hook(lambda *_: ran.add("head"))]
    for layer, block in enumerate(lm.blocks):
        note = lambda *_, layer=layer: ran.add(layer)  # noqa: E731
        handles.append(block.register_forward_pre_hook(note))
    mean_difference(lm, PAIRS, Reader(LAYER))
    for handle in handles:
        handle.remove()
    assert ran == {0, 1}


def test_memory_does_not_grow_with_the_number_of_pairs():
    lm = tiny("llama")
    lm.prove()
    tokens_at_once: list[int] = []
    handle = lm.blocks[0].register_forward_hook(
        lambda _m, _a, out: tokens_at_once.append(out.shape[0] * out.shape[1])
    )
    peaks = []
    for num in (20, 200):
        tokens_at_once.clear()
        pairs = [ContrastPair(Text("a" * (1 + i % 7)), Text("b")) for i in range(num)]
        result = mean_difference(lm, pairs, Reader(LAYER), batch_size=5)
        assert len(tokens_at_once) == num / 5
        peaks.append(max(tokens_at_once))
        # What is kept is two rows of moments, whatever the number of pairs.
        kept = result.differences
        assert kept.mean.shape == kept.squares.shape == (D_MODEL,)
    handle.remove()
    # At most 5 pairs of at most 7 tokens at a time.
    assert peaks[0] == peaks[1] <= 2 * 5 * 7


def test_the_provenance_says_how_to_do_it_again():
    lm = tiny("llama", chat=True)
    reader = Reader(LAYER, Position("index:-2"))
    vector = mean_difference(lm, PAIRS, reader, seed=11).vector
    assert vector.site == Site(LAYER)
    provenance = vector.provenance
    assert provenance.method == "mean_difference"
    assert provenance.position == "index:-2"
    assert (provenance.model, provenance.revision) == (lm.name, lm.revision)
    assert provenance.fingerprint == lm.fingerprint
    assert provenance.chat_template == chat_template_hash(lm, None) != ""
    assert provenance.pairs == pairs_hash(PAIRS)
    assert (provenance.num_pairs, provenance.seed) == (len(PAIRS), 11)
    assert provenance.versions["torch"] == importlib.metadata.version("torch")
    raw = mean_difference(lm, PAIRS, Reader(LAYER, chat=False)).vector
    assert raw.provenance.chat_template == ""
    vector.check_fits(lm)


def test_the_median_norm_is_that_of_the_streams_that_were_read():
    lm, reader = tiny("llama"), Reader(LAYER)
    texts = [text for pair in PAIRS for text in (pair.positive, pair.negative)]
    norms = torch.linalg.vector_norm(reader.read(lm, texts), dim=-1)
    recorded = mean_difference(lm, PAIRS, reader).vector.provenance.median_norm
    assert norms.min() < recorded < norms.max()
    assert abs(recorded - float(norms.median())) < FLOAT_NOISE
    assert len(texts) < NUM_NORMS


def test_progress_counts_every_pair_once():
    done: list[int] = []
    lm = tiny("llama")
    mean_difference(lm, PAIRS, Reader(LAYER), batch_size=3, progress=done.append)
    assert done == [3, 3, 1]


def test_what_cannot_be_extracted_is_refused():
    lm = tiny("llama")
    with pytest.raises(BadPairs, match="no contrast pairs"):
        mean_difference(lm, [], Reader(LAYER))
    with pytest.raises(LayerOutOfRange, match="layer 9"):
        mean_difference(lm, PAIRS, Reader(9))
    bare = [ContrastPair(Text("a"), Text("b"))]
    with pytest.raises(BadPairs, match="no response"):
        mean_difference(lm, bare, Reader(LAYER, Position("response-mean")))


def test_an_extracted_vector_moves_the_model():
    lm = tiny("llama")
    vector = mean_difference(lm, PAIRS, Reader(LAYER)).vector
    ids = torch.arange(6)[None] % D_VOCAB
    mask = torch.ones_like(ids, dtype=torch.bool)
    stream = lm.prefix(ids, mask, layer=LAYER)
    moved = lm.suffix(stream + vector.direction, mask, layer=LAYER)
    assert (moved - lm.logits(ids, mask)).abs().max() > 0.1
