"""Attention of one query is PyTorch's, and the user's model does not keep it."""

import copy
from contextlib import nullcontext

import pytest
import torch
from tests.models import network, tiny
from tests.test_generation import PROMPTS, SAMPLED, add, tokens
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from steergauge import attention as ours
from steergauge import generation
from steergauge.attention import NAME, attention, one_query
from steergauge.errors import InputError
from steergauge.generation import generate

ROUNDING = 1e-5
"""Sums of 40 products of standard normal numbers, in float32 in two orders."""


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
def test_one_query_is_attended_to_as_by_torch(monkeypatch, at_once, length, masked):
    monkeypatch.setattr(ours, "AT_ONCE", at_once)
    query, key, value, mask = states(7, length)
    seen = mask if masked else None
    with torch.no_grad():
        found, _ = attention(Layer(), query, key, value, seen, scaling=0.3)
        usual, _ = sdpa_attention_forward(Layer(), query, key, value, seen, scaling=0.3)
    assert found.shape == usual.shape == (7, 1, 4, 12)
    assert (found - usual).abs().max() < ROUNDING


def test_padding_that_sees_nothing_stays_finite():
    query, key, value, mask = states(3, 5)
    mask[1] = False
    with torch.no_grad():
        found, _ = attention(Layer(), query, key, value, mask)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    "case", ["long", "two queries", "half", "gradient", "additive mask", "bias"]
)
def test_what_it_does_not_know_is_left_to_torch(monkeypatch, case):
    query, key, value, mask = states(3, 5, queries=2 if case == "two queries" else 1)
    options = {}
    if case == "long":
        monkeypatch.setattr(ours, "LONGEST", 4)
    elif case == "half":
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


def test_the_model_is_as_before_whatever_happens_within():
    model = network("llama")
    before = copy.deepcopy(model.config.to_dict())

    def fails() -> None:
        with one_query(model):
            assert model.config._attn_implementation == NAME
            raise InputError("stop.", remedy="None.")

    with pytest.raises(InputError):
        fails()
    assert model.config._attn_implementation == "sdpa"
    assert model.config.to_dict() == before
    assert all(
        m.config is model.config for m in model.modules() if hasattr(m, "config")
    )


def test_eager_models_and_other_precisions_keep_their_own_attention():
    for model in (network("gemma2"), network("llama").double()):
        if model.dtype == torch.float32:
            model.set_attn_implementation("eager")
        name = model.config._attn_implementation
        with one_query(model):
            assert model.config._attn_implementation == name


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mixtral", "phi3"])
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
    monkeypatch.setattr(generation, "one_query", lambda _model: nullcontext())
    assert tokens(generate(lm, PROMPTS, arms, samples=3, decoding=SAMPLED)) == found
    assert not calls
