"""A model that is shared out is the model: split, texts, Fisher matrix, fingerprint.

Without a GPU, what can be run is: blocks that are offloaded to disk, between blocks
that are not (accelerate's hooks, with weights on `meta` between passes), and two
tensor-parallel processes. Streams that cross from one GPU to another are not run here.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import D_MODEL, NUM_LAYERS, ids_and_mask, network, tiny, tokenizer

from steergauge import sharding
from steergauge.errors import CannotLoadModel, InputError, ModelError
from steergauge.fisher import fisher
from steergauge.intervention import Add, Scope
from steergauge.jacobian import Shift, layer_jacobians, logit_tangents
from steergauge.loading import fingerprint, load
from steergauge.scoring import Continuation, sequence_kl
from steergauge.split import LanguageModel
from steergauge.vector import Site, SteeringVector

needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None,
    reason="accelerate is not installed: pip install 'steergauge[sharded]'",
)
FAMILIES = ("llama", "gpt2", "mixtral")
"""Untied; tied, with blocks elsewhere; experts that disk holds apart and converted."""

ROW = ([5, 6, 7, 8, 9, 10], 4)
EVERYWHERE = {"": "disk"}


def folder(family: str, path: Path) -> str:
    """The tiny model of a family on disk."""
    network(family).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Family to folder."""
    return {name: folder(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


def placement(lm: LanguageModel) -> dict[str, str]:
    """Every second block, the embedding and the head on disk; the rest on the CPU."""
    names = {id(module): name for name, module in lm.model.named_modules()}
    blocks = names[id(lm.blocks)]
    body, head = blocks.rpartition(".")[0], lm.model.get_output_embeddings()
    found = {
        names[id(head)]: "disk",
        names[id(lm.model.get_input_embeddings())]: "disk",
    }
    for name, _ in lm.model.get_submodule(body).named_children():
        if f"{body}.{name}" != blocks:
            found.setdefault(f"{body}.{name}", "cpu")
    return found | {
        f"{blocks}.{layer}": ("cpu", "disk")[layer % 2] for layer in range(NUM_LAYERS)
    }


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, saved):
    """A model with weights on disk, and the same model in memory."""
    whole = tiny(request.param)
    return load(saved[request.param], device_map=placement(whole)), whole


def steering() -> Add:
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))
    return Add(SteeringVector(direction, Site(1)), scope=Scope.ALL)


def tokens(lm: LanguageModel, **options: Any) -> list[tuple[int, ...]]:
    prompts = ["one", "and then two"]
    found = lm.generate(prompts, steering(), max_new_tokens=6, **options)
    return [sample.token_ids for sample in found]


@needs_accelerate
def test_weights_on_disk_are_without_values_between_passes(pair):
    lm, whole = pair
    on_meta = [layer for layer in range(NUM_LAYERS) if is_on_meta(lm.blocks[layer])]
    assert on_meta == [1, 3]
    assert sharding.is_sharded(lm.model)
    assert not sharding.is_sharded(whole.model)
    assert lm.model.get_input_embeddings().weight.is_meta
    assert (lm.device, lm.dtype) == (torch.device("cpu"), torch.float32)
    assert (lm.d_model, lm.d_vocab) == (whole.d_model, whole.d_vocab)


def is_on_meta(module: torch.nn.Module) -> bool:
    return all(weight.is_meta for weight in module.parameters())


@needs_accelerate
def test_the_law_holds_and_logits_are_those_of_the_whole_model(pair):
    lm, whole = pair
    ids, mask = ids_and_mask(7, 3)
    # The same kernels on the same numbers, wherever they were kept.
    assert torch.equal(lm.logits(ids, mask), whole.logits(ids, mask))
    assert lm.prove(again=True) == 0


@needs_accelerate
def test_the_fingerprint_and_the_unembedding_are_those_of_the_whole_model(pair):
    lm, whole = pair
    assert lm.fingerprint == fingerprint(lm.model) == whole.fingerprint
    assert torch.equal(lm.unembedding, whole.unembedding)


@needs_accelerate
def test_steered_texts_are_those_of_the_whole_model(pair):
    lm, whole = pair
    for options in ({"temperature": 0.0}, {"samples": 3, "seed": 1}):
        assert tokens(lm, **options) == tokens(whole, **options)
    plain = whole.generate(["one"], max_new_tokens=6)[0].token_ids
    assert tokens(whole)[0] != plain


@needs_accelerate
def test_scores_are_those_of_the_whole_model(pair):
    rows = [Continuation([5, 6, 7], [8, 9]), Continuation([3, 4], [10, 11, 12])]
    ours, theirs = (
        sequence_kl(model, rows, None, {"v": steering()})["v"] for model in pair
    )
    assert (theirs > 0.01).all()
    assert (ours == theirs).all()


@needs_accelerate
def test_derivatives_are_those_of_the_whole_model(pair):
    lm, whole = pair
    shift = Shift(Site(0))
    exact = fisher(whole, [ROW], shift=shift).matrix
    found = fisher(lm, [ROW], shift=shift).matrix
    assert float(exact.diagonal().min()) > 0
    assert torch.equal(found, exact)
    shifts = [Shift(Site(layer)) for layer in (2, 0)]
    for ours, theirs in zip(
        layer_jacobians(lm, ROW, shifts=shifts),
        layer_jacobians(whole, ROW, shifts=shifts),
        strict=True,
    ):
        assert torch.equal(ours.matrices, theirs.matrices)
    directions = torch.eye(D_MODEL)[:2]
    ours, theirs = (
        logit_tangents(model, ROW, directions, shift=shift) for model in pair
    )
    assert torch.equal(ours.tangents, theirs.tangents)


@needs_accelerate
def test_skipped_blocks_do_not_load_their_weights(pair, monkeypatch):
    lm, _ = pair
    ids, mask = ids_and_mask(5)
    loaded: list[str] = []
    for layer in range(NUM_LAYERS):
        for part in lm.blocks[layer].modules():
            if hook := getattr(part, "_hf_hook", None):
                watch(monkeypatch, hook, loaded, layer)
    stream = lm.prefix(ids, mask, layer=1)
    assert set(loaded) == {0, 1}
    loaded.clear()
    lm.suffix(stream, mask, layer=1)
    assert set(loaded) == {2, 3}


def watch(monkeypatch: Any, hook: Any, loaded: list[Any], layer: int) -> None:
    before = hook.pre_forward

    def watching(*args: Any, **options: Any) -> Any:
        loaded.append(layer)
        return before(*args, **options)

    monkeypatch.setattr(hook, "pre_forward", watching)


@needs_accelerate
def test_a_shared_out_model_is_unchanged_by_what_is_done_with_it(saved):
    lm = load(saved["llama"], device_map=placement(tiny("llama")))
    ids, mask = ids_and_mask(5, 3)
    names = {n: p.device for n, p in lm.model.named_parameters()}
    forwards = [block.forward for block in lm.blocks]
    for layer in range(NUM_LAYERS):
        lm.suffix(lm.prefix(ids, mask, layer=layer), mask, layer=layer)
    tokens(lm)
    assert {n: p.device for n, p in lm.model.named_parameters()} == names
    assert all(
        block.forward is forward
        for block, forward in zip(lm.blocks, forwards, strict=True)
    )


@needs_accelerate
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_the_fingerprint_on_disk_is_that_of_the_stored_weights(saved, family, dtype):
    lm = load(saved[family], device_map=EVERYWHERE, dtype=dtype)
    assert lm.dtype == getattr(torch, dtype)
    assert lm.fingerprint == tiny(family).fingerprint
    # Offloading makes two of a tied weight: it would count twice.
    assert len(dict(sharding.weights(lm.model))) == len(
        dict(tiny(family).model.named_parameters())
    )


@needs_accelerate
def test_a_shared_out_model_in_half_precision_is_not_copied_to_be_widened(saved):
    lm = load(saved["llama"], device_map=EVERYWHERE, dtype="bfloat16")
    with pytest.raises(ModelError, match=r"shared out.*--dtype float32"):
        fisher(lm, [ROW], shift=Shift(Site(1)))


@needs_accelerate
def test_a_device_map_that_is_none_of_transformers_is_refused(saved):
    with pytest.raises(CannotLoadModel, match="could not be loaded"):
        load(saved["llama"], device_map="everywhere")


def test_two_ways_to_place_a_model_are_refused(saved):
    with pytest.raises(InputError, match=r"device and device_map.*one of them"):
        load(saved["llama"], device="cpu", device_map="auto")
    with pytest.raises(InputError, match="device_map and tp_plan"):
        load(saved["llama"], device_map="auto", tp_plan="auto")


def test_a_model_in_memory_is_not_placed():
    with pytest.raises(InputError, match="in memory"):
        load(network("llama"), tokenizer=tokenizer(), device_map="auto")


@needs_accelerate
def test_a_plan_for_one_process_is_refused_and_so_is_an_unknown_one(saved):
    with pytest.raises(InputError, match="torchrun"):
        load(saved["llama"], tp_plan="auto")
    with pytest.raises(InputError, match="no tensor-parallel plan 'rows'"):
        load(saved["llama"], tp_plan="rows")


def test_without_accelerate_the_remedy_is_to_install_it(saved, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(CannotLoadModel, match=r"steergauge\[sharded\]"):
        load(saved["llama"], device_map="auto")


def test_weights_that_nobody_keeps_are_an_error():
    with torch.device("meta"):
        model = network("gpt2").to("meta")
    with pytest.raises(ModelError, match=r"is on the device 'meta', without values"):
        fingerprint(model)


def agree_with_the_whole_model(path: str) -> None:
    """What each of several tensor-parallel processes checks."""
    lm, whole = load(path, tp_plan="auto", tokenizer=tokenizer()), tiny("llama")
    assert sharding.is_tensor_parallel(lm.model)
    assert lm.fingerprint == whole.fingerprint
    assert (lm.d_model, lm.d_vocab) == (whole.d_model, whole.d_vocab)
    ids, mask = ids_and_mask(7, 3)
    exact = whole.logits(ids, mask)
    # Slices are summed in another order: a few units of float32's rounding.
    assert float((lm.logits(ids, mask) - exact).abs().max()) < 1e-5 * float(exact.max())
    assert lm.prove(again=True) < 1e-5
    for options in ({"temperature": 0.0}, {"samples": 3, "seed": 1}):
        assert tokens(lm, **options) == tokens(whole, **options)
    exact = fisher(whole, [ROW], shift=Shift(Site(1))).matrix
    error = fisher(lm, [ROW], shift=Shift(Site(1))).matrix - exact
    assert float(error.abs().max()) < 1e-5 * float(exact.abs().max())
    torch.distributed.destroy_process_group()


@needs_accelerate
def test_two_tensor_parallel_processes_agree_with_one(saved):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = [str(Path(__file__).with_name("tensor_parallel.py")), saved["llama"]]
    done = subprocess.run(
        [*launch, "--nproc-per-node", "2", *script],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("agrees") == 2
