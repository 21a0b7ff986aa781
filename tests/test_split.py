"""The law suffix(prefix(x)) == model(x), and what each half runs and leaves behind."""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import (
    D_MODEL,
    D_VOCAB,
    FAMILIES,
    NUM_LAYERS,
    borrowed,
    ids_and_mask,
    network,
    tiny,
)
from transformers import DynamicCache, GPT2LMHeadModel

from steergauge.errors import LayerOutOfRange, NotTheSuffix
from steergauge.loading import load
from steergauge.prompts import padded
from steergauge.split import LanguageModel, positions

SAME_KERNELS = 1e-5
"""The same kernels on the same numbers: 0.0 is what is measured. A BLAS may sum in
another order when memory lies differently, which moves float32 logits near 1 by a few
1e-7; the smallest real error of a split that we know of is 1e-2."""

OTHER_KERNELS = 5e-5
"""Other shapes take other kernels: float32 noise through four blocks, seen up to
6e-6 in streams and logits of size 1 to 10."""

REAL = Path(__file__).parents[1] / "../shared/models/stories260K"
PADDINGS = {"equal lengths": (9, 9, 9), "left padding": (9, 4, 1)}
WITH_TUPLES = (*FAMILIES, "gptj")
"""A gptj block returns a tuple; blocks of the other families return the stream."""


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def filled_cache(lm: LanguageModel, ids: torch.Tensor, mask: torch.Tensor) -> Any:
    cache = DynamicCache(config=lm.model.config)
    lm.logits(ids, mask, cache=cache)
    return cache


@contextmanager
def calls(lm: LanguageModel) -> Iterator[Counter[int | str]]:
    """How often the parts of each block, and the head, run inside the `with`."""
    seen: Counter[int | str] = Counter()
    head = lm.model.get_output_embeddings()
    handles = [head.register_forward_pre_hook(lambda *_: seen.update(["head"]))]
    for layer, block in enumerate(lm.blocks):
        for part in block.modules():
            if part is not block:
                count = lambda *_, layer=layer: seen.update([layer])  # noqa: E731
                handles.append(part.register_forward_pre_hook(count))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("lengths", PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize("family", WITH_TUPLES)
def test_suffix_of_prefix_is_the_model(family, lengths):
    lm = tiny(family)
    ids, mask = ids_and_mask(*lengths)
    whole = lm.logits(ids, mask)
    for layer in range(NUM_LAYERS):
        stream = lm.prefix(ids, mask, layer=layer)
        assert worst(lm.suffix(stream, mask, layer=layer)[mask], whole[mask]) < (
            SAME_KERNELS
        )
        # Not vacuous: the suffix reads the stream that it is given.
        other = lm.suffix(stream.flip(-1), mask, layer=layer)
        assert worst(other[mask], whole[mask]) > 0.1


@pytest.mark.parametrize("family", WITH_TUPLES)
def test_a_padded_row_is_the_unpadded_row_of_hugging_face(family):
    lm = tiny(family)
    ids, mask = ids_and_mask(9, 4, 1)
    logits = lm.logits(ids, mask)
    streams = lm.streams(ids, mask, layers=range(NUM_LAYERS))
    for row, length in enumerate(mask.sum(-1).tolist()):
        alone = ids[row : row + 1, -length:]
        with torch.no_grad():
            theirs = lm.model(alone, output_hidden_states=True)
        assert worst(logits[row, -length:], theirs.logits[0]) < OTHER_KERNELS
        for layer in range(NUM_LAYERS - 1):
            stream = streams[layer][row, -length:]
            assert worst(stream, theirs.hidden_states[layer + 1][0]) < OTHER_KERNELS
    # Not vacuous: without the mask the padded rows come out otherwise.
    unmasked = lm.logits(ids, torch.ones_like(mask))
    assert worst(unmasked[1, -1], logits[1, -1]) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_last_hidden_state_of_hugging_face_is_not_the_last_blocks_output(family):
    lm = tiny(family)
    ids, mask = ids_and_mask(9)
    with torch.no_grad():
        theirs = lm.model(ids, output_hidden_states=True).hidden_states
    ours = lm.streams(ids, mask, layers=range(NUM_LAYERS))
    for layer in range(NUM_LAYERS - 1):
        assert worst(theirs[layer + 1], ours[layer]) < SAME_KERNELS
    assert worst(theirs[NUM_LAYERS], ours[NUM_LAYERS - 1]) > 0.1


@pytest.mark.parametrize("lengths", PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize("family", WITH_TUPLES)
def test_the_law_holds_on_the_last_tokens_over_a_cache(family, lengths):
    lm = tiny(family)
    ids, mask = ids_and_mask(*lengths)
    # Six of nine tokens are past: more than a sliding window holds.
    cache = filled_cache(lm, ids[:, :6], mask[:, :6])
    new = ids[:, 6:]
    step = lm.logits(new, mask, cache=copy.deepcopy(cache))
    here = mask[:, 6:]
    assert worst(step[here], lm.logits(ids, mask)[:, 6:][here]) < OTHER_KERNELS
    for layer in range(NUM_LAYERS):
        stream = lm.prefix(new, mask, layer=layer, cache=cache)
        logits = lm.suffix(stream, mask, layer=layer, cache=cache)
        assert worst(logits[here], step[here]) < SAME_KERNELS
        full = lm.prefix(ids, mask, layer=layer)[:, 6:]
        assert worst(stream[here], full[here]) < OTHER_KERNELS
    # Not vacuous: the earlier tokens matter.
    forgotten = lm.logits(new, here)
    assert worst(forgotten[0], step[0]) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_and_suffix_leave_the_cache_as_it_was(family):
    lm = tiny(family)
    ids, mask = ids_and_mask(9, 4)
    cache = filled_cache(lm, ids[:, :6], mask[:, :6])
    before = copy.deepcopy(cache)
    for layer in range(NUM_LAYERS):
        stream = lm.prefix(ids[:, 6:], mask, layer=layer, cache=cache)
        lm.suffix(stream, mask, layer=layer, cache=cache)
    assert cache.get_seq_length() == before.get_seq_length() == 6
    for now, then in zip(cache.layers, before.layers, strict=True):
        assert torch.equal(now.keys, then.keys)
        assert torch.equal(now.values, then.values)
    # Not vacuous: the model's own pass does extend its cache.
    lm.logits(ids[:, 6:], mask, cache=cache)
    assert cache.get_seq_length() == 9


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_keep_gives_the_logits_of_the_last_positions(family):
    lm = tiny(family)
    ids, mask = ids_and_mask(9, 4)
    whole = lm.logits(ids, mask)
    assert whole.shape == (2, 9, D_VOCAB)
    stream = lm.prefix(ids, mask, layer=1)
    for keep in (1, 3):
        kept = lm.logits(ids, mask, keep=keep)
        assert kept.shape == (2, keep, D_VOCAB)
        assert worst(kept, whole[:, -keep:]) < OTHER_KERNELS
        entered = lm.suffix(stream, mask, layer=1, keep=keep)
        assert worst(entered, kept) < SAME_KERNELS


class ComputesAllLogits(GPT2LMHeadModel):
    """As a family whose forward knows neither `logits_to_keep` nor positions."""

    def forward(
        self,
        input_ids: Any = None,
        inputs_embeds: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        use_cache: Any = None,
    ) -> Any:
        return super().forward(
            input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )


def test_keep_holds_for_a_model_that_computes_all_logits():
    model = network("gpt2")
    plain = ComputesAllLogits(model.config).eval()
    plain.load_state_dict(model.state_dict())
    ids, mask = ids_and_mask(9, 9)
    whole = tiny("gpt2").logits(ids, mask)
    kept = borrowed(plain).logits(ids, mask, keep=2)
    assert kept.shape == (2, 2, D_VOCAB)
    assert worst(kept, whole[:, -2:]) < OTHER_KERNELS


@pytest.mark.parametrize("family", WITH_TUPLES)
def test_prefix_runs_no_block_above_and_no_head(family):
    lm = tiny(family)
    lm.prove()
    ids, mask = ids_and_mask(9, 4)
    for layer in range(NUM_LAYERS):
        with calls(lm) as seen:
            lm.prefix(ids, mask, layer=layer)
        assert set(seen) == set(range(layer + 1))


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_streams_are_read_as_edited(family):
    lm = tiny(family)
    ids, mask = ids_and_mask(9, 4)
    plain = lm.streams(ids, mask, layers=(0, 1, 2))
    edited = lm.streams(ids, mask, layers=(0, 1, 2), edits={1: lambda h: h + 1})
    assert torch.equal(edited[0], plain[0])
    assert torch.equal(edited[1], plain[1] + 1)
    assert worst(edited[2][mask], plain[2][mask]) > 0.1


@pytest.mark.parametrize("family", WITH_TUPLES)
def test_suffix_runs_no_block_below(family):
    lm = tiny(family)
    lm.prove()
    ids, mask = ids_and_mask(9, 4)
    for layer in range(NUM_LAYERS):
        stream = lm.prefix(ids, mask, layer=layer)
        with calls(lm) as seen:
            lm.suffix(stream, mask, layer=layer)
        assert set(seen) == {*range(layer + 1, NUM_LAYERS), "head"}


def test_gradient_of_the_suffix_is_its_finite_difference():
    lm = tiny("gpt2", dtype=torch.float64)
    ids, mask = ids_and_mask(9, 4)
    generator = torch.Generator().manual_seed(1)
    for layer in range(NUM_LAYERS):
        stream = lm.prefix(ids, mask, layer=layer).requires_grad_()
        logits = lm.suffix(stream, mask, layer=layer, keep=1)
        readout = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((logits * readout).sum(), stream)
        towards = torch.randn(stream.shape, generator=generator, dtype=torch.float64)
        step = 1e-4 * towards
        ends = [
            (lm.suffix(stream.detach() + sign * step, mask, layer=layer, keep=1))
            for sign in (1, -1)
        ]
        difference = ((ends[0] - ends[1]) * readout).sum() / 2e-4
        slope = (gradient * towards).sum()
        size = torch.linalg.vector_norm(gradient)
        assert size > 1
        # Central differences err by step^2 = 1e-8 times a third derivative.
        assert abs(difference - slope) < 1e-6 * size


def test_suffix_of_a_stream_without_gradient_builds_no_graph():
    lm = tiny("llama")
    ids, mask = ids_and_mask(9)
    stream = lm.prefix(ids, mask, layer=1)
    assert not stream.requires_grad
    assert not lm.suffix(stream, mask, layer=1).requires_grad
    assert lm.suffix(stream.requires_grad_(), mask, layer=1).requires_grad


class Stashing(torch.nn.Module):
    """Leaves a part of its output for `Using`, past the residual stream."""

    def __init__(self, block: torch.nn.Module, shelf: dict[str, Any]) -> None:
        super().__init__()
        self.block, self.shelf = block, shelf

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        self.shelf["left"] = self.block(hidden_states, *args, **kwargs)
        return self.shelf["left"]


class Using(Stashing):
    """Adds what was left for it, as models with value residuals do."""

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        out = self.block(hidden_states, *args, **kwargs)
        return out + 0.1 * self.shelf["left"]


def test_a_block_that_passes_something_beside_the_stream_is_refused():
    model = network("llama")
    shelf: dict[str, Any] = {}
    layers = model.model.layers
    layers[0], layers[3] = Stashing(layers[0], shelf), Using(layers[3], shelf)
    ids = ids_and_mask(9)[0]
    with torch.no_grad():
        model(ids)
        left = shelf["left"]
    assert left.shape == (1, 9, D_MODEL)
    with pytest.raises(NotTheSuffix, match=r"differs .* by .* logits at layer 0"):
        borrowed(model)


@pytest.mark.parametrize("layer", [-1, NUM_LAYERS])
def test_a_layer_out_of_range_is_refused_by_name(layer):
    lm = tiny("llama")
    ids, mask = ids_and_mask(3)
    with pytest.raises(LayerOutOfRange, match=f"layer {layer} .* blocks 0 to 3"):
        lm.prefix(ids, mask, layer=layer)
    stream = torch.zeros(1, 3, D_MODEL)
    with pytest.raises(LayerOutOfRange, match=f"layer {layer} .* blocks 0 to 3"):
        lm.suffix(stream, mask, layer=layer)


def test_positions_count_the_real_tokens_of_a_row():
    mask = ids_and_mask(4, 2, 1)[1]
    assert positions(mask).tolist() == [[0, 1, 2, 3], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_the_law_holds_on_a_pretrained_model():
    if not REAL.is_dir():
        pytest.skip(f"the pretrained model is not at {REAL.resolve()}")
    lm = load(str(REAL), device="cpu")
    assert lm.num_layers == 5
    assert lm.prove(again=True) < SAME_KERNELS
    rows = lm.tokenizer(["Once upon a time, there was", "Lily"])["input_ids"]
    ids, mask = padded(rows)
    whole = lm.logits(ids, mask)
    for layer in range(lm.num_layers):
        stream = lm.prefix(ids, mask, layer=layer)
        logits = lm.suffix(stream, mask, layer=layer)
        assert worst(logits[mask], whole[mask]) < SAME_KERNELS
