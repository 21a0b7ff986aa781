"""The state of every next token is that of a whole pass, however it is computed."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ground_truth import linear
from tests.models import (
    D_VOCAB,
    FAMILIES,
    NUM_LAYERS,
    SLIDING,
    WINDOW,
    borrowed,
    ids_and_mask,
    network,
    tiny,
)
from torch import nn

from steergauge.errors import InputError, LayerOutOfRange, ModelError
from steergauge.loading import load
from steergauge.reachability import candidates
from steergauge.reachability.candidates import (
    Prefix,
    every_token,
    prefix_of,
    rounded,
    rounding,
)
from steergauge.split import LanguageModel

ROUNDING = 1e-5
"""Of a state's norm, in float32: up to 1e-6 is seen through four blocks. A candidate
that saw another one, or a place too many, would be 1e-2 off or more."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STORIES = Path(__file__).parents[2] / "../shared/models/stories260K"

PREFIXES = {"empty": 0, "one token": 1, "within a window": 3, "long": 40}
WITH_TUPLES = (*FAMILIES, "gptj")
TOKENS = torch.arange(0, D_VOCAB, 3)


def text(length: int, seed: int = 0) -> list[int]:
    return ids_and_mask(max(length, 1), seed=seed)[0][0, :length].tolist()


def whole(lm: LanguageModel, ids: list[int], tokens: torch.Tensor) -> torch.Tensor:
    """Streams of every layer at the last token, by plain passes without a cache."""
    rows = torch.tensor([[*ids, token] for token in tokens.tolist()])
    mask = torch.ones_like(rows, dtype=torch.bool)
    streams = lm.streams(rows, mask, layers=range(lm.num_layers))
    return torch.stack([streams[layer][:, -1] for layer in range(lm.num_layers)])


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest distance of a row, as a share of its norm."""
    wide = expected.double()
    gap = torch.linalg.vector_norm(found.double() - wide, dim=-1)
    return float((gap / torch.linalg.vector_norm(wide, dim=-1)).max())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", WITH_TUPLES)
def test_a_candidates_state_is_that_of_a_whole_pass_at_every_layer(family, attention):
    if (family, attention) in {("gemma2", "sdpa"), ("gptj", "sdpa")}:
        pytest.skip(f"{family} has no such attention in transformers")
    model = network(family)
    if family != "gptj":  # It has one kind of attention, its own.
        model.set_attn_implementation(attention)
    lm, few = borrowed(model), TOKENS[::10]
    for length in PREFIXES.values():
        ids = text(length)
        expected = whole(lm, ids, few)
        for layer in range(NUM_LAYERS):
            prefix = prefix_of(lm, ids, layer=layer)
            assert prefix.packed
            # A row and a bit: two rows, of which one is filled up.
            states = prefix.states(TOKENS)
            assert states.shape == (len(TOKENS), lm.d_model)
            assert apart(states[::10], expected[layer]) < ROUNDING
            # Not vacuous: candidates differ, and so do prefixes.
            assert apart(states[10::10], expected[layer][:-1]) > 0.1
        if length:
            other = prefix_of(lm, text(length, seed=1), layer=NUM_LAYERS - 1)
            assert apart(other.states(few), expected[NUM_LAYERS - 1]) > 1e-2


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_states_are_right_to_half_precision_too(family):
    lm = borrowed(network(family).to(torch.bfloat16))
    for length in PREFIXES.values():
        prefix = prefix_of(lm, text(length), layer=2)
        assert prefix.packed
        states = prefix.states(TOKENS[::10])
        assert states.dtype == torch.bfloat16
        # A relative step is 0.008; some of them through three blocks.
        expected = whole(lm, text(length), TOKENS[::10])[2]
        assert apart(states, expected) < 0.03
        assert apart(states[1:], expected[:-1]) > 0.1


@pytest.mark.parametrize("family", SLIDING)
def test_a_window_is_crossed_while_tokens_are_read_one_by_one(family):
    lm, ids = tiny(family), text(2 * WINDOW)
    prefix = prefix_of(lm, (), layer=3)
    for place, token in enumerate(ids):
        expected = whole(lm, ids[:place], TOKENS[:5])[3]
        assert apart(prefix.states(TOKENS[:5]), expected) < ROUNDING
        prefix = prefix.then([token])
    assert prefix.ids == tuple(ids)
    assert prefix.packed


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_a_prefix_is_the_same_after_it_was_used(family):
    lm, ids = tiny(family), text(7)
    prefix = prefix_of(lm, ids, layer=2, whole=True)
    states, logits = prefix.states(TOKENS), prefix.logits(TOKENS)
    before = copy.deepcopy(prefix.cache)
    longer = prefix.then([5, 6])
    longer.states(TOKENS)
    assert longer.ids == (*ids, 5, 6)
    assert prefix.ids == tuple(ids)
    layers: Any = zip(prefix.cache.layers, before.layers, strict=True)
    for now, then in layers:
        assert torch.equal(now.keys, then.keys)
        assert torch.equal(now.values, then.values)
    assert torch.equal(prefix.states(TOKENS), states)
    assert torch.equal(prefix.logits(TOKENS), logits)
    assert prefix.then([]) is prefix
    together = prefix_of(lm, [*ids, 5, 6], layer=2)
    assert apart(longer.states(TOKENS), together.states(TOKENS)) < ROUNDING
    assert apart(longer.states(TOKENS), states) > 1e-2


def test_the_users_model_is_left_as_it_was():
    lm = borrowed(network("llama"))
    weights = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    names = [set(vars(module)) for module in lm.model.modules()]
    prefix_of(lm, text(7), layer=1, whole=True).logits(TOKENS)
    prefix_of(lm, text(7), layer=1).states(TOKENS)
    for name, weight in lm.model.state_dict().items():
        assert torch.equal(weight, weights[name])
    assert [set(vars(module)) for module in lm.model.modules()] == names
    hooks = [len(module._forward_hooks) for module in lm.model.modules()]
    assert not any(hooks)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "mixtral"])
def test_a_state_does_not_depend_on_the_other_candidates(family):
    prefix = prefix_of(tiny(family), text(9), layer=3)
    alone = prefix.states(torch.tensor([17]))
    # At the end of a full row, beside its own copies, and in a row that is filled up.
    for others in (range(63), [17] * 30, range(64)):
        batch = torch.tensor([*others, 17])
        assert apart(prefix.states(batch)[-1:], alone) < ROUNDING
    assert apart(prefix.states(torch.tensor([18])), alone) > 1e-2


@pytest.mark.parametrize("length", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_logits_are_the_models_after_prefix_and_candidate(family, length):
    lm, ids = tiny(family), text(length)
    prefix = prefix_of(lm, ids, layer=1, whole=True)
    logits = prefix.logits(TOKENS)
    assert logits.shape == (len(TOKENS), lm.d_vocab)
    for place in (0, 30, len(TOKENS) - 1):
        row = torch.tensor([[*ids, int(TOKENS[place])]])
        expected = lm.logits(row, torch.ones_like(row, dtype=torch.bool))[0, -1]
        assert apart(logits[place], expected) < ROUNDING
        assert apart(logits[place - 1], expected) > 1e-2


def test_the_ranking_is_the_models_own_of_the_next_token():
    lm, ids = tiny("llama"), text(9)
    assert prefix_of(lm, ids, layer=1).ranking is None
    empty = prefix_of(lm, (), layer=1, whole=True)
    assert empty.ranking is None
    row = torch.tensor([ids])
    expected = lm.logits(row, torch.ones_like(row, dtype=torch.bool))[0, -1]
    # In one go, and token by token.
    stepwise = empty
    for token in ids:
        stepwise = stepwise.then([token])
    for prefix in (prefix_of(lm, ids, layer=1, whole=True), stepwise):
        ranking = prefix.ranking
        assert ranking is not None
        assert ranking.sort().values.tolist() == list(range(lm.d_vocab))
        steps = expected[ranking].diff()
        assert float(steps.max()) <= 1e-5
        assert float(expected[ranking[0]] - expected[ranking[-1]]) > 1


def test_every_token_comes_once_in_batches(monkeypatch):
    monkeypatch.setattr(candidates, "TOKENS_AT_ONCE", 50)
    prefix = prefix_of(tiny("llama"), text(4), layer=2)
    batches = list(every_token(prefix))
    assert [len(ids) for ids, _ in batches] == [50, 50, 50, 50, 11]
    assert torch.cat([ids for ids, _ in batches]).tolist() == list(range(D_VOCAB))
    states = torch.cat([states for _, states in batches])
    assert apart(states, prefix.states(torch.arange(D_VOCAB))) < ROUNDING
    chosen = torch.tensor([7, 3, 7])
    ((ids, states),) = every_token(prefix, tokens=chosen)
    assert ids.tolist() == [7, 3, 7]
    assert apart(states, prefix.states(chosen)) < ROUNDING


class OwnMask(nn.Module):
    """A model that sees its own mask only: whatever it is told, all real tokens."""

    def __init__(self, model: Any, *, forgets: bool = False) -> None:
        super().__init__()
        self.inner, self.forgets = model, forgets
        self.config, self.generation_config = model.config, model.generation_config
        self.model = model.model
        self.dtype, self.device = model.dtype, model.device

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
    ) -> Any:
        if attention_mask is not None and attention_mask.ndim == 4:
            attention_mask = None
        if self.forgets:
            past_key_values = None
            if attention_mask is not None:
                given = input_ids if inputs_embeds is None else inputs_embeds
                attention_mask = attention_mask[:, -given.shape[1] :]
        return self.inner(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )


def with_own_mask(**options: bool) -> LanguageModel:
    plain = tiny("llama")
    model = OwnMask(network("llama"), **options).eval()
    return LanguageModel(
        model=model,
        tokenizer=plain.tokenizer,
        name="own mask",
        revision="",
        fingerprint="",
        blocks=model.inner.model.layers,
        forms=plain.forms,
    )


@pytest.mark.parametrize("length", PREFIXES.values(), ids=PREFIXES)
def test_where_rows_cannot_be_shared_each_candidate_has_its_own(length, monkeypatch):
    monkeypatch.setattr(candidates, "KEYS_AT_ONCE", 128)  # Several passes.
    lm, ids = with_own_mask(), text(length)
    prefix = prefix_of(lm, ids, layer=2, whole=True)
    assert not prefix.packed
    expected = whole(tiny("llama"), ids, TOKENS[::5])[2]
    assert apart(prefix.states(TOKENS)[::5], expected) < ROUNDING
    assert prefix.logits(TOKENS).shape == (len(TOKENS), D_VOCAB)
    # Not vacuous: packed, the same model gives other states.
    packed = Prefix(lm, 2, prefix.ids, prefix.cache).states(TOKENS)
    assert apart(packed[::5], expected) > 1e-2


def test_a_model_that_knows_no_positions_and_keeps_nothing_has_candidates_too():
    lm = linear().lm
    prefix = prefix_of(lm, [3, 4], layer=1)
    expected = whole(lm, [3, 4], TOKENS[lm.d_vocab > TOKENS])[1]
    assert apart(prefix.states(TOKENS[lm.d_vocab > TOKENS]), expected) < 1e-12


def test_a_model_that_forgets_its_cache_is_refused():
    lm = with_own_mask(forgets=True)
    assert not prefix_of(lm, (), layer=2).packed
    with pytest.raises(ModelError, match=r"after 9 cached tokens of own mask.*layer 2"):
        prefix_of(lm, text(9), layer=2)


def test_what_was_not_kept_is_not_guessed():
    lm = tiny("llama")
    prefix = prefix_of(lm, text(4), layer=1)
    with pytest.raises(InputError, match="kept up to block 1 only"):
        prefix.logits(TOKENS)
    with pytest.raises(InputError, match="no candidate"):
        prefix.states(TOKENS[:0])
    with pytest.raises(LayerOutOfRange):
        prefix_of(lm, text(4), layer=NUM_LAYERS)


def leaking(since: int):
    """A mask with which candidates see those at least `since` places before them."""

    def mask(lm: LanguageModel, seen: int, width: int) -> torch.Tensor:
        hidden = torch.ones(width, width, dtype=torch.bool).tril(-since).logical_not()
        hidden.fill_diagonal_(False)
        made = torch.zeros(width, seen + width, dtype=lm.dtype)
        made[:, seen:] = hidden * torch.finfo(lm.dtype).min
        return made[None, None]

    return mask


def refused(lm: LanguageModel, ids: list[int], since: int, monkeypatch) -> bool:
    """Whether rows that leak are not shared, though right ones are."""
    right = prefix_of(lm, ids, layer=0)
    assert right.packed
    batch = torch.arange(2, 66)
    expected = right.states(batch)
    monkeypatch.setattr(candidates, "_mask", leaking(since))
    # Not vacuous: the states are far off then, in a batch that fills a row.
    assert apart(right.states(batch), expected) > 0.1
    return not prefix_of(lm, ids, layer=0).packed


@pytest.mark.parametrize("length", [0, 7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_whose_ends_see_their_beginnings_are_not_shared(
    dtype, length, monkeypatch
):
    """No three candidates show it: none of them is three places after another."""
    lm = borrowed(network("llama").to(dtype))
    assert refused(lm, text(length), 3, monkeypatch)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_whose_candidates_see_those_before_are_not_shared(dtype, monkeypatch):
    """Of a trained model, where three candidates hardly differ by it."""
    if not STORIES.is_dir():
        pytest.skip("the model stories260K is not beside this checkout, in ../shared")
    trained = load(str(STORIES), device="cpu")
    lm = load(copy.deepcopy(trained.model).to(dtype), tokenizer=trained.tokenizer)
    ids = ids_and_mask(20, d_vocab=lm.d_vocab)[0][0].tolist()
    assert refused(lm, ids, 1, monkeypatch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mixtral"])
def test_right_rows_are_shared_in_every_precision(family, dtype):
    lm = borrowed(network(family).to(dtype))
    for length in PREFIXES.values():
        for layer in (0, NUM_LAYERS - 1):
            assert prefix_of(lm, text(length), layer=layer).packed


@pytest.mark.parametrize("dtype", DTYPES)
def test_storing_a_state_moves_it_by_its_rms_rounding_or_less(dtype):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(100, 512, generator=generator, dtype=torch.float64)
    norms = torch.linalg.vector_norm(states, dim=-1)
    moved = torch.linalg.vector_norm(states.to(dtype).double() - states, dim=-1)
    rms = float((moved / norms).square().mean().sqrt())
    bound = rounding(torch.finfo(dtype).eps)
    # The numbers next to x are ulp |x| apart where x is a power of 2, down to half.
    assert bound / 2 < rms < bound
    assert rounded(dtype, layer=3) == pytest.approx(2 * rounded(dtype, layer=0))
