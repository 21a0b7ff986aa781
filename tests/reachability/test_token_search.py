"""A search finds prompts that are there and keeps its budget; its text is judged."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tests import planted
from tests.models import tiny

from steergauge.errors import InputError
from steergauge.generation import Decoding, generate
from steergauge.intervention import Add
from steergauge.prompts import Text, encode
from steergauge.reachability import token_search
from steergauge.reachability.objective import JOINT, Target, aimed, loss, text_of
from steergauge.reachability.token_search import hidden_prompts, search

TEXTS = planted.prompts(8)


def target_of(lm, *, prompt="", arm=None, texts=TEXTS, chat=None) -> Target:
    drawn = generate(
        lm,
        [prompt + text for text in texts],
        {"": arm},
        decoding=Decoding(max_new_tokens=2),
        chat=chat,
    )
    rows = [(x, one.token_ids) for x, one in zip(texts, drawn, strict=True)]
    return aimed(lm, rows, arm, prompt=prompt, chat=chat)


@contextmanager
def counted(lm):
    """Rows that go through the model; those of a pass with a way back three times."""
    rows: list[int] = []

    def hook(_module, _args, inputs):
        ids = inputs.get("input_ids")
        given = ids if ids is not None else inputs["inputs_embeds"]
        rows.append(len(given) * (3 if given.requires_grad else 1))

    handle = lm.model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize("length", [1, 2])
def test_a_hidden_prompt_is_found_by_most_seeds(length):
    lm = planted.planted()
    pieces = hidden_prompts(lm, planted.prompts(20), lengths=[length], num=4, seed=1)
    found = 0
    for seed, hidden in enumerate(pieces):
        target = target_of(lm, prompt=hidden)
        effect = loss(lm, target, "").mean()
        assert effect > 0.05
        result = search(lm, target, length=length, evaluations=160, seed=seed)
        found += result.loss <= 0.05 * effect
    assert found >= 3


def test_what_a_search_reports_is_the_loss_of_its_text_encoded_afresh():
    lm = tiny("llama", chat=True)
    for chat in (True, False):
        texts = ["the tale of moss", "seas", "hot irons melt", "a man"]
        target = target_of(lm, prompt="melted\n", texts=texts, chat=chat)
        found = search(lm, target, length=3, evaluations=40)
        afresh = loss(lm, target, found.prompt)
        assert found.loss == afresh.mean()
        assert found.prompt == text_of(lm, found.tokens)
        assert found.prompt.endswith(JOINT)
        for text in texts:
            row, _ = encode(lm, Text(found.prompt + text), chat=chat)
            at = range(len(row) - len(found.tokens) + 1)
            assert found.tokens in [tuple(row[i : i + len(found.tokens)]) for i in at]
        # The search saw on tokens what the judge sees on the text, but for kernels.
        assert found.curve[-1][1] == pytest.approx(found.loss, abs=1e-4)


@pytest.mark.parametrize("evaluations", [16, 37, 80])
@pytest.mark.parametrize("num", [1, 3, 8])
def test_no_more_goes_through_the_model_than_the_budget_allows(evaluations, num):
    lm = planted.planted()
    target = target_of(lm, prompt="happy stone\n", texts=TEXTS[:num])
    told: list[int] = []
    with counted(lm) as rows:
        found = search(
            lm, target, length=2, evaluations=evaluations, progress=told.append
        )
    assert (found.evaluations - 1) * num < sum(rows) <= found.evaluations * num
    assert found.evaluations <= evaluations
    # The rest is less than a round of all steps.
    assert found.evaluations > evaluations - 8
    assert sum(told) == found.evaluations
    assert [one[0] for one in found.curve] == sorted({one[0] for one in found.curve})
    losses = [one[1] for one in found.curve]
    assert losses == sorted(losses, reverse=True)


def test_the_same_seed_finds_the_same_prompt_and_another_may_not():
    lm = planted.planted()
    target = target_of(lm, arm=Add(planted.trait_vector()))
    first, again, other = (
        search(lm, target, length=3, evaluations=32, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert other.tokens != first.tokens


def test_a_text_to_start_from_is_tried():
    lm = planted.planted()
    hidden = "merry stone cloud salt\n"
    target = target_of(lm, prompt=hidden)
    start = hidden + "lake moon"
    found = search(lm, target, length=4, evaluations=16, starts=[start])
    assert found.prompt == hidden
    assert found.loss == 0
    alone = search(lm, target, length=4, evaluations=16)
    assert alone.loss > 0.01


def test_the_search_goes_on_where_the_gradient_says_nothing(monkeypatch):
    lm = planted.planted()
    target = target_of(lm, prompt="happy\n")
    flat = torch.zeros(1, lm.d_vocab)
    monkeypatch.setattr(token_search, "promised_gains", lambda *_: flat)
    found = search(lm, target, length=1, evaluations=64)
    assert found.loss < 0.05 * loss(lm, target, "").mean()


def test_the_gradient_makes_a_search_better(monkeypatch):
    """Over several targets, at equal budgets: else it would not be worth its cost."""
    lm = planted.planted()
    hidden = hidden_prompts(lm, planted.prompts(20), lengths=[3], num=6, seed=2)
    targets = [target_of(lm, prompt=one) for one in hidden]
    nats = {}
    for blind in (0.25, 1.0):
        monkeypatch.setattr(token_search, "BLIND", blind)
        found = [search(lm, one, length=3, evaluations=64).loss for one in targets]
        # Logarithms, for some are found and then at 0 but for rounding.
        nats[blind] = np.log(np.array(found) + 1e-4).mean()
    guided, blindly = nats.values()
    assert guided < blindly


def test_a_budget_or_a_length_that_is_too_small_is_refused():
    lm = planted.planted()
    target = target_of(lm, prompt="happy\n")
    for length, evaluations in [(0, 64), (2, 15)]:
        with pytest.raises(
            InputError, match=f"{length} tokens were .* {evaluations} eval"
        ):
            search(lm, target, length=length, evaluations=evaluations)
    with pytest.raises(InputError, match="reads 32 at most"):
        search(lm, target, length=40, evaluations=64)


def test_hidden_prompts_are_pieces_of_the_texts_that_read_back():
    lm = tiny("llama", chat=True)
    texts = ["the tale of moss and stone", "hot irons melt in the sun", "sea"]
    found = hidden_prompts(lm, texts, lengths=[5], num=6, seed=3)
    assert len(set(found)) == 6
    for one in found:
        assert one.endswith(JOINT)
        piece = one.removesuffix(JOINT)
        assert any(piece in text for text in texts)
        ids = lm.tokenizer(piece, add_special_tokens=False)["input_ids"]
        assert len(ids) == 5
    assert found == hidden_prompts(lm, texts, lengths=[5], num=6, seed=3)
    assert found != hidden_prompts(lm, texts, lengths=[5], num=6, seed=4)


def test_hidden_prompts_are_of_all_lengths_that_the_texts_have():
    lm = tiny("llama", chat=True)
    texts = ["the tale of moss and stone", "hot irons melt in the sun", "sea"]
    found = hidden_prompts(lm, texts, lengths=[1, 2, 4, 100], num=12, seed=3)
    assert len(set(found)) == 12
    sizes = [
        len(lm.tokenizer(one.removesuffix(JOINT), add_special_tokens=False).input_ids)
        for one in found
    ]
    assert {*sizes} == {1, 2, 4}
    # In turn: about a third each, fewer of short ones, of which some come twice.
    assert min(sizes.count(size) for size in (1, 2, 4)) >= 2


def test_no_search_starts_from_a_users_text():
    """Hidden prompts are pieces of such texts: it would have them given."""
    lm = planted.planted()
    target = target_of(lm, prompt=" ".join(TEXTS[0].split()[:3]) + "\n")
    goal = token_search._goal(lm, target, 3, np.random.default_rng(0))
    users = {tuple(lm.tokenizer(text)["input_ids"][:3]) for text in TEXTS}
    assert all(goal.usable(one) for one in users)
    starts = token_search._starts(goal, (), token_search._Budget(256 * len(TEXTS)))
    assert len(starts) == token_search.PROPOSED
    # By chance one in 31^3 / 8 is.
    assert not users & {*starts}
    given = token_search._starts(goal, TEXTS[:1], token_search._Budget(2048))
    assert users & {*given}


def test_texts_that_are_too_short_for_hidden_prompts_are_refused():
    lm = tiny("llama")
    for texts, num in [(["sea", "moss"], 1), (["hot irons melt"], 100)]:
        with pytest.raises(InputError, match=f"{num} hidden prompts of 5 tokens"):
            hidden_prompts(lm, texts, lengths=[5], num=num)
    with pytest.raises(InputError, match="50 hidden prompts of 1, 5 tokens"):
        hidden_prompts(lm, ["hot irons"], lengths=[1, 5], num=100, least=50)
    some = hidden_prompts(lm, ["hot irons melt"], lengths=[5], num=100, least=3)
    assert 3 <= len(some) < 100
