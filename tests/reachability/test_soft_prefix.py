"""A soft prefix that holds tokens is those tokens, and the best one is no worse."""

import math

import pytest
import torch
from tests import planted
from tests.models import tiny

from steergauge.errors import InputError, LayerOutOfRange
from steergauge.generation import Decoding, Noise, draw, generate, noise_key
from steergauge.intervention import Add
from steergauge.prompts import Text, encode
from steergauge.reachability.objective import Target, aimed, loss
from steergauge.reachability.soft_prefix import (
    embedded_tokens,
    projected,
    soft,
    soft_loss,
    soft_responses,
    soft_states,
)
from steergauge.reachability.token_search import hidden_prompts, search
from steergauge.vector import Site, SteeringVector

FAMILIES = ("llama", "gpt2", "gemma2", "gemma3", "mistral")
TEXTS = ["the tale of moss", "seas", "hot irons melt", "a man"]
PROMPT = "the sun is"

OTHER_KERNELS = 1e-4
"""Nats, and parts of a stream: float32 noise, seen up to 1e-5."""


def own_tokens(lm, text: str = PROMPT) -> list[int]:
    return lm.tokenizer(text, add_special_tokens=False)["input_ids"]


def target_of(lm, texts=TEXTS, *, arm=None, prompt="", chat=None) -> Target:
    drawn = generate(
        lm,
        [prompt + text for text in texts],
        {"": arm},
        decoding=Decoding(max_new_tokens=4),
        chat=chat,
    )
    rows = [(x, one.token_ids) for x, one in zip(texts, drawn, strict=True)]
    return aimed(lm, rows, arm, prompt=prompt, chat=chat)


def step(lm) -> Add:
    generator = torch.Generator().manual_seed(0)
    return Add(SteeringVector(torch.randn(lm.d_model, generator=generator), Site(1)))


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_embeddings_of_tokens_have_the_loss_of_their_text(family, chat):
    lm = tiny(family, chat=True)
    target = target_of(lm, arm=step(lm), chat=chat)
    embeddings = embedded_tokens(lm, own_tokens(lm))
    found = soft_loss(lm, target, embeddings)
    wanted = loss(lm, target, PROMPT + "\n")
    assert found == pytest.approx(wanted, abs=OTHER_KERNELS)
    assert abs(wanted - loss(lm, target, "")).min() > 1e-3
    assert projected(lm, embeddings) == own_tokens(lm)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_state_behind_embeddings_of_tokens_is_the_state_behind_their_text(family):
    lm = tiny(family, chat=True)
    embeddings = embedded_tokens(lm, own_tokens(lm))
    for layer in (0, lm.num_layers - 1):
        found = soft_states(lm, TEXTS, embeddings, layer=layer)
        assert found.dtype == torch.float64
        for text, state in zip(TEXTS, found, strict=True):
            ids, _ = encode(lm, Text(PROMPT + "\n" + text))
            row = torch.tensor([ids])
            mask = torch.ones_like(row, dtype=torch.bool)
            wanted = lm.streams(row, mask, layers=(layer,))[layer][0, -1].double()
            assert torch.allclose(state, wanted, atol=OTHER_KERNELS)
            bare, _ = encode(lm, Text(text))
            mask = torch.ones(1, len(bare), dtype=torch.bool)
            other = lm.streams(torch.tensor([bare]), mask, layers=(layer,))[layer]
            # A window may not reach back to the prompt, but that of two blocks does.
            near = torch.allclose(other[0, -1].double(), wanted, atol=1e-2)
            assert not near or layer == 0
    with pytest.raises(LayerOutOfRange):
        soft_states(lm, TEXTS, embeddings, layer=lm.num_layers)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_greedy_responses_behind_tokens_embeddings_are_those_behind_their_text(family):
    lm = tiny(family, chat=True)
    how = Decoding(max_new_tokens=6, temperature=0.0)
    found = soft_responses(
        lm, TEXTS, embedded_tokens(lm, own_tokens(lm)), samples=2, decoding=how
    )
    prompts = [PROMPT + "\n" + text for text in TEXTS]
    wanted = generate(lm, prompts, {"": None}, samples=2, decoding=how)
    assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
    assert [one.finished for one in found] == [one.finished for one in wanted]
    assert [one.text for one in found] == [one.text for one in wanted]
    places = [(i, text, s) for i, text in enumerate(TEXTS) for s in range(2)]
    assert [(one.index, one.prompt, one.sample) for one in found] == places
    plain = generate(lm, TEXTS, {"": None}, samples=2, decoding=how)
    assert [one.token_ids for one in plain] != [one.token_ids for one in wanted]


def test_samples_take_the_random_numbers_of_the_text_without_a_prefix():
    """By a plain loop without a cache, with the noise that the text has elsewhere."""
    lm = tiny("llama", chat=True, ends=(2, 60, 61, 62, 63, 64, 65, 66))
    how = Decoding(max_new_tokens=5, temperature=0.8, seed=3)
    tokens = own_tokens(lm)
    found = soft_responses(
        lm, TEXTS, embedded_tokens(lm, tokens), samples=8, decoding=how
    )
    for one in found:
        bare, _ = encode(lm, Text(one.prompt))
        ids, _ = encode(lm, Text(PROMPT + "\n" + one.prompt))
        noise = Noise([noise_key(3, 0, tuple(bare), one.sample)], lm.device)
        wanted: list[int] = []
        while len(wanted) < 5 and not set(wanted) & {2, 60, 61, 62, 63, 64, 65, 66}:
            row = torch.tensor([[*ids, *wanted]])
            logits = lm.logits(row, torch.ones_like(row, dtype=torch.bool))[:, -1]
            here = noise.of(torch.tensor([0]), len(wanted), lm.d_vocab)
            wanted.append(int(draw(logits, how, here)))
        assert list(one.token_ids) == wanted
    # Some end early and some do not, so both were seen.
    assert {one.finished for one in found} == {True, False}
    assert len({len(one.token_ids) for one in found}) > 2


@pytest.mark.parametrize("length", [1, 2])
def test_a_soft_prefix_from_the_searchs_tokens_is_no_worse_than_they_are(length):
    lm = planted.planted()
    texts = planted.prompts(6)
    for hidden in hidden_prompts(lm, texts, lengths=[length], num=2):
        target = target_of(lm, texts, prompt=hidden)
        found = search(lm, target, length=length, evaluations=32)
        better = soft(lm, target, length=length, evaluations=60, start=found.tokens)
        assert better.loss <= found.loss + OTHER_KERNELS
        assert loss(lm, target, "").mean() > 0.01


def test_the_loss_goes_down_and_is_the_one_that_its_embeddings_have():
    lm = planted.planted()
    target = target_of(lm, planted.prompts(6), arm=Add(planted.trait_vector()))
    found = soft(lm, target, length=3, evaluations=120)
    assert soft_loss(lm, target, found.embeddings).mean() == pytest.approx(
        found.loss, abs=OTHER_KERNELS
    )
    first = found.curve[0][1]
    assert found.loss < 0.3 * first
    assert found.loss == min(one[1] for one in found.curve)
    # Where tokens cannot follow: the nearest tokens are another prompt.
    tokens = projected(lm, found.embeddings)
    assert soft_loss(lm, target, embedded_tokens(lm, tokens)).mean() > found.loss


def test_steps_are_counted_and_the_seed_decides():
    lm = planted.planted()
    target = target_of(lm, planted.prompts(3), prompt="happy\n")
    told: list[int] = []
    passes: list[bool] = []
    handle = lm.model.register_forward_pre_hook(lambda *_: passes.append(True))
    try:
        found = soft(lm, target, length=2, evaluations=31, progress=told.append)
    finally:
        handle.remove()
    assert len(passes) == 10
    assert found.evaluations == sum(told) == 30
    again = soft(lm, target, length=2, evaluations=31)
    assert torch.equal(again.embeddings, found.embeddings)
    other = soft(lm, target, length=2, evaluations=31, seed=1)
    assert not torch.equal(other.embeddings, found.embeddings)
    assert math.isfinite(other.loss)


def test_the_model_is_left_as_it_was():
    lm = planted.planted()
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    target = target_of(lm, planted.prompts(3), prompt="happy\n")
    soft(lm, target, length=2, evaluations=9)
    search(lm, target, length=2, evaluations=16)
    for name, parameter in lm.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_a_start_of_another_length_is_refused():
    lm = planted.planted()
    target = target_of(lm, planted.prompts(3))
    with pytest.raises(InputError, match="3 was to start from 2 tokens"):
        soft(lm, target, length=3, evaluations=9, start=[4, 5])
