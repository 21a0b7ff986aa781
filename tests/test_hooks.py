"""Hooks read, replace and enter; and the borrowed model is never changed by them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.models import D_MODEL, NUM_LAYERS, borrowed, ids_and_mask, network, tiny

from steergauge.hooks import editing, entering, recording
from steergauge.intervention import Add
from steergauge.loading import load
from steergauge.split import LanguageModel
from steergauge.vector import Site, SteeringVector

BARE_AND_TUPLE = ("llama", "gptj")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")


def portrait(model: Any) -> dict[str, Any]:
    """All of a model that a borrower could have changed."""
    return {
        "modules": {name: id(module) for name, module in model.named_modules()},
        "hooks": {
            (name, kind): list(getattr(module, kind).values())
            for name, module in model.named_modules()
            for kind in HOOKS
        },
        "attributes": {
            (name, key): id(value)
            for name, module in model.named_modules()
            for key, value in vars(module).items()
        },
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "dtypes": {name: t.dtype for name, t in model.state_dict().items()},
    }


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Check that the model after the `with` is the model before it."""
    before = portrait(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield
    assert portrait(model) == before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def run(lm: LanguageModel) -> torch.Tensor:
    ids, mask = ids_and_mask(5)
    return lm.logits(ids, mask)


@pytest.mark.parametrize("family", BARE_AND_TUPLE)
def test_recording_reads_what_the_blocks_return(family):
    lm = tiny(family)
    outputs: dict[int, torch.Tensor] = {}
    handles = []
    for layer, block in enumerate(lm.blocks):
        keep = lambda _m, _a, out, layer=layer: outputs.update({layer: out})  # noqa: E731
        handles.append(block.register_forward_hook(keep))
    with recording(lm.blocks, [2, 0]) as streams:
        run(lm)
    for handle in handles:
        handle.remove()
    assert set(streams) == {0, 2}
    assert isinstance(outputs[0], tuple) == (family == "gptj")
    for layer, stream in streams.items():
        whole = outputs[layer]
        assert stream is (whole[0] if isinstance(whole, tuple) else whole)


def test_recording_with_stop_ends_the_with_and_without_stop_does_not():
    lm = tiny("llama")
    reached = []
    with recording(lm.blocks, [1], stop=True) as streams:
        run(lm)
        reached.append("stopped")
    with recording(lm.blocks, [1]):
        run(lm)
        reached.append("ran on")
    assert reached == ["ran on"]
    assert set(streams) == {1}


@pytest.mark.parametrize("family", BARE_AND_TUPLE)
def test_an_edit_replaces_the_stream_that_the_rest_of_the_model_sees(family):
    lm = tiny(family)
    ids, mask = ids_and_mask(5)
    shift = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))
    for layer in range(NUM_LAYERS):
        with editing(lm.blocks, {layer: lambda h: h + shift}):
            edited = run(lm)
        entered = lm.suffix(
            lm.prefix(ids, mask, layer=layer) + shift, mask, layer=layer
        )
        # F(h + v) either way: the same kernels on the same numbers.
        assert torch.allclose(edited, entered, rtol=0, atol=1e-5)
        assert (edited - run(lm)).abs().max() > 0.05


def test_edits_at_several_layers_each_happen_once():
    lm = tiny("llama")
    seen: list[int] = []

    def marking(layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def edit(stream: torch.Tensor) -> torch.Tensor:
            seen.append(layer)
            return stream

        return edit

    plain = run(lm)
    with editing(lm.blocks, {2: marking(2), 0: marking(0)}):
        marked = run(lm)
    assert seen == [0, 2]
    assert torch.equal(plain, marked)


@pytest.mark.parametrize("family", BARE_AND_TUPLE)
def test_entering_makes_the_blocks_below_return_the_stream_uncomputed(family):
    lm = tiny(family)
    stream = torch.randn(1, 5, D_MODEL, generator=torch.Generator().manual_seed(0))
    with (
        recording(lm.blocks, [0, 1, 2]) as streams,
        entering(lm.blocks, 1, stream, lm.forms),
    ):
        run(lm)
    assert streams[0] is streams[1] is stream
    assert not torch.equal(streams[2], stream)


@pytest.mark.parametrize("family", BARE_AND_TUPLE)
def test_the_model_is_unchanged_by_everything_that_is_done_with_it(family):
    model = network(family)
    model.generation_config.eos_token_id = [2]
    with unchanged(model):
        lm = load(model, tokenizer=tiny(family).tokenizer)
        ids, mask = ids_and_mask(5, 3)
        lm.prove()
        for layer in range(NUM_LAYERS):
            lm.suffix(lm.prefix(ids, mask, layer=layer), mask, layer=layer)
        vector = SteeringVector(torch.ones(D_MODEL), Site(1))
        lm.generate(["one", "and two"], Add(vector), max_new_tokens=3)


class Interrupted(Exception):
    pass


def interrupt(hooks: Any, model: Any) -> None:
    before = portrait(model)
    with hooks:
        # Not vacuous: inside, the model does differ.
        assert portrait(model) != before
        raise Interrupted


@pytest.mark.parametrize("family", BARE_AND_TUPLE)
def test_the_model_is_unchanged_after_an_exception_inside_a_with(family):
    lm = borrowed(network(family))
    stream = torch.zeros(1, 5, D_MODEL)
    for hooks in (
        lambda: recording(lm.blocks, [0, 2]),
        lambda: recording(lm.blocks, [0, 2], stop=True),
        lambda: editing(lm.blocks, {0: lambda h: h, 3: lambda h: h}),
        lambda: entering(lm.blocks, 2, stream, lm.forms),
    ):
        with unchanged(lm.model), pytest.raises(Interrupted):
            interrupt(hooks(), lm.model)


def test_the_model_is_unchanged_after_an_exception_inside_an_edit():
    lm = borrowed(network("llama"))

    def failing(_stream: torch.Tensor) -> torch.Tensor:
        raise Interrupted

    ids, mask = ids_and_mask(5)
    with unchanged(lm.model), pytest.raises(Interrupted):
        lm.logits(ids, mask, edits={2: failing})


def test_the_model_is_unchanged_when_registering_fails_half_way():
    lm = borrowed(network("llama"))
    reached = []
    for hooks in (
        recording(lm.blocks, [0, 1, 99]),
        editing(lm.blocks, {0: lambda h: h, 99: lambda h: h}),
    ):
        with unchanged(lm.model), pytest.raises(IndexError), hooks:
            reached.append(hooks)
    assert not reached


class Stubborn(torch.nn.Module):
    """Lets nobody replace its forward."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":
            raise Interrupted
        super().__setattr__(name, value)

    def forward(self, hidden_states: Any, **_kwargs: Any) -> Any:
        return hidden_states


def test_the_model_is_unchanged_when_entering_fails_half_way():
    model = network("llama")
    model.model.layers[1] = Stubborn()
    stream = torch.zeros(1, 5, D_MODEL)
    with (
        unchanged(model),
        pytest.raises(Interrupted),
        entering(model.model.layers, 2, stream, (None,) * 4),
    ):
        pass


def test_somebody_elses_hooks_and_forward_are_kept_and_still_run():
    model = network("llama")
    lm = borrowed(model)
    plain = run(lm)
    original = model.model.layers[0].forward
    model.model.layers[0].forward = lambda *a, **k: original(*a, **k) * 2
    model.model.layers[1].register_forward_hook(lambda _m, _a, out: out + 1)
    with unchanged(model):
        changed = run(lm)
        ids, mask = ids_and_mask(5)
        lm.suffix(lm.prefix(ids, mask, layer=2), mask, layer=2)
        assert torch.equal(run(lm), changed)
    assert not torch.equal(plain, changed)
