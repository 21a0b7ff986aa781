"""Attention of one query is PyTorch's, and the user's model does not keep it."""

import copy
from contextlib import nullcontext
from weakref import WeakKeyDictionary

import pytest
import torch
from tests.models import borrowed, network, tiny
from tests.test_generation import (
    GREEDY,
    NO_ENDS,
    PROMPTS,
    SAMPLED,
    add,
    huggingface,
    tokens,
)
from transformers import FalconPreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from steergauge import attention as ours
from steergauge import generation
from steergauge.attention import NAME, attention, one_query
from steergauge.errors import InputError
from steergauge.generation import generate

ROUNDING = 1e-5
"""Sums of 40 products of standard normal numbers, in float32 in two orders."""


@pytest.fixture
def always(monkeypatch) -> None:
    """It is used for few rows, and for heads that share keys, too."""
    monkeypatch.setattr(ours, "FEWEST", 3)
    monkeypatch.setattr(ours, "_pays", lambda *_sizes: True)
    monkeypatch.setattr(ours, "_PROVED", WeakKeyDictionary())


class Layer:
    num_key_value_groups = 2
    is_causal = True


def states(rows: int, length: int, *, queries: int = 1) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows + length)
    shapes = [(rows, 4, queries, 12), (rows, 2, length, 12), (rows, 2, length, 12)]
    query, key, value = (torch.randn(s, generator=generator) for s in shapes)
    mask = torch.rand(rows, 1, queries, length, generator=generator) < 0.7
    mask[..., -1] = True
    return query, key, value, mask


@pytest.mark.parametrize("at_once", [1, 700, 2**20])
@pytest.mark.parametrize("length", [1, 2, 40])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("always")
def test_one_query_is_attended_to_as_by_torch(monkeypatch, at_once, length, masked):
    monkeypatch.setattr(ours, "AT_ONCE", at_once)
    query, key, value, mask = states(7, length)
    seen = mask if masked else None
    with torch.no_grad():
        found, _ = attention(Layer(), query, key, value, seen, scaling=0.3)
        usual, _ = sdpa_attention_forward(Layer(), query, key, value, seen, scaling=0.3)
    assert found.shape == usual.shape == (7, 1, 4, 12)
    assert (found - usual).abs().max() < ROUNDING


@pytest.mark.usefixtures("always")
def test_padding_that_sees_nothing_stays_finite():
    query, key, value, mask = states(3, 5)
    mask[1] = False
    with torch.no_grad():
        found, _ = attention(Layer(), query, key, value, mask)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    "case", ["two queries", "half", "gradient", "additive mask", "bias"]
)
@pytest.mark.usefixtures("always")
def test_what_it_does_not_know_is_left_to_torch(monkeypatch, case):
    query, key, value, mask = states(3, 5, queries=2 if case == "two queries" else 1)
    options = {}
    if case == "half":
        query, key, value = query.half(), key.half(), value.half()
    elif case == "additive mask":
        mask = torch.where(mask, 0.0, -1e9)
    elif case == "bias":
        options["position_bias"] = torch.randn(1, 1, 1, 5)
        mask = None
    monkeypatch.setattr(ours, "_one_query", None)
    with torch.set_grad_enabled(case == "gradient"):
        found, _ = attention(Layer(), query, key, value, mask, **options)
        usual, _ = sdpa_attention_forward(Layer(), query, key, value, mask, **options)
    assert torch.equal(found, usual)


@pytest.mark.usefixtures("always")
def test_the_model_is_as_before_whatever_happens_within():
    model = network("llama")
    before = copy.deepcopy(model.config.to_dict())

    def fails() -> None:
        with one_query(borrowed(model)):
            assert model.config._attn_implementation == NAME
            raise InputError("stop.", remedy="None.")

    with pytest.raises(InputError):
        fails()
    assert model.config._attn_implementation == "sdpa"
    assert model.config.to_dict() == before
    assert all(
        m.config is model.config for m in model.modules() if hasattr(m, "config")
    )


@pytest.mark.usefixtures("always")
def test_eager_models_and_other_precisions_keep_their_own_attention():
    for model in (network("gemma2"), network("llama").double()):
        if model.dtype == torch.float32:
            model.set_attn_implementation("eager")
        name = model.config._attn_implementation
        with one_query(borrowed(model)):
            assert model.config._attn_implementation == name


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mixtral", "phi3"])
@pytest.mark.usefixtures("always")
def test_it_changes_no_token_and_it_is_used(monkeypatch, family):
    lm = tiny(family)
    arms = {"plain": None, "one": add(1)}
    calls: list[int] = []
    whole = ours._one_query

    def counted(query, *args):
        calls.append(len(query))
        return whole(query, *args)

    monkeypatch.setattr(ours, "_one_query", counted)
    found = tokens(generate(lm, PROMPTS, arms, samples=3, decoding=SAMPLED))
    assert calls
    calls.clear()
    monkeypatch.setattr(generation, "one_query", lambda *_: nullcontext())
    assert tokens(generate(lm, PROMPTS, arms, samples=3, decoding=SAMPLED)) == found
    assert not calls


@pytest.mark.parametrize(
    ("rows", "heads", "width", "length"),
    [(127, 2, 32, 9), (128, 4, 32, 9), (128, 2, 65, 9), (128, 2, 32, 129)],
    ids=["few rows", "shared keys", "wide heads", "long"],
)
def test_where_it_does_not_pay_it_is_not_used(monkeypatch, rows, heads, width, length):
    monkeypatch.setattr(ours, "_one_query", None)
    key = torch.randn(rows, 2, length, width)
    query = torch.randn(rows, heads, 1, width)
    Layer.num_key_value_groups = heads // 2
    with torch.no_grad():
        attention(Layer(), query, key, key, None)
        # Not vacuous: where it pays, it is.
        query, key = torch.randn(128, 2, 1, 32), torch.randn(128, 2, 9, 32)
        with pytest.raises(TypeError, match="not callable"):
            attention(Layer(), query, key, key, None)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("declared", [False, True])
def test_a_model_that_asks_for_the_name_keeps_its_own_attention(monkeypatch, declared):
    # Falcon takes any name but "sdpa" for eager, and adds the mask to the scores.
    monkeypatch.setattr(FalconPreTrainedModel, "_supports_attention_backend", declared)
    lm = borrowed(network("falcon"), ends=NO_ENDS)
    found = generate(lm, PROMPTS, {"plain": None}, decoding=GREEDY)
    assert [one.token_ids for one in found] == huggingface(lm, PROMPTS)
    # Declared, it has been tried, and refused.
    assert ours._PROVED.get(lm.model) == (False if declared else None)


@pytest.mark.usefixtures("always")
def test_a_model_is_tried_once_and_few_rows_never(monkeypatch):
    lm, tried = tiny("llama"), []
    whole = ours._keeps_logits
    monkeypatch.setattr(
        ours, "_keeps_logits", lambda lm: tried.append(lm.name) or whole(lm)
    )
    for _ in range(2):
        generate(lm, PROMPTS, {"plain": None}, decoding=GREEDY)
    assert len(tried) == 1
    monkeypatch.undo()
    monkeypatch.setattr(ours, "_keeps_logits", None)
    generate(lm, PROMPTS, {"plain": None}, decoding=GREEDY)
