"""What the shipped reference model does; the bounds are those of its model card."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from steergauge import organism
from steergauge.organism import evaluate
from steergauge.organism.evaluate import Subject
from steergauge.organism.grammar import SLOTS, TRAITS
from steergauge.organism.recipe import Recipe, upper_mask

LAYER = Recipe().layer


@pytest.fixture(scope="module")
def subject() -> Subject:
    return evaluate.loaded(organism.path())


def test_it_is_small_enough_to_ship() -> None:
    size = sum(f.stat().st_size for f in organism.path().glob("*.safetensors"))
    assert 0 < size <= 10_000_000


def test_the_automatic_classes_find_a_llama_and_its_tokenizer() -> None:
    model = AutoModelForCausalLM.from_pretrained(organism.path())
    tokenizer = AutoTokenizer.from_pretrained(organism.path())
    assert model.config.model_type == "llama"
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.padding_side == "left"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_chat_template_is_the_format_it_was_trained_on(subject: Subject) -> None:
    ids, mask = evaluate.prompt_ids(subject, ["Tell me about the weather."])
    chat = [{"role": "user", "content": "Tell me about the weather."}]
    built = subject.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert mask.all()
    assert built == ids[0].tolist()
    last = subject.tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert built[-1] == last


def test_every_marker_is_a_few_known_tokens(subject: Subject) -> None:
    for slot in SLOTS.values():
        for wording in slot.options(1) + slot.options(-1):
            ids = subject.tokenizer(f" {wording}")["input_ids"]
            assert subject.tokenizer.decode(ids) == f" {wording}"
            assert len(ids) <= 3 * len(wording.split()) + 2


def test_it_obeys(subject: Subject) -> None:
    # The card states at least 95 %. The standard error here is about 2 %.
    for trait, share in evaluate.obedience(subject, num=300, seed=1).items():
        assert share >= 0.89, trait


def test_it_predicts_held_out_responses(subject: Subject) -> None:
    loss = evaluate.held_out_loss(subject, num=100, seed=1)
    assert 0.4 < loss < 0.8


def test_vectors_steer_it_both_ways_and_the_text_stays_coherent(
    subject: Subject,
) -> None:
    checks = evaluate.steering_check(
        subject,
        "in-distribution",
        layer=LAYER,
        alphas=(1.0,),
        num_prompts=50,
        samples=2,
    )
    assert set(checks) == set(TRAITS)
    for check in checks.values():
        # The card states at least 0.25 on more samples; three standard errors are 0.15.
        assert check.lifts[1.0] > 0.1
        assert check.lifts[-1.0] < -0.1
        # Stated: about 1.5 at most; at 100 samples, one broken text in ten moves it.
        assert max(check.coherence.values()) < 2.0
        assert 0.35 < check.base < 0.65
        assert 0.15 < check.ratio < 0.8


def test_hidden_rows_see_the_last_prompt_token_and_the_response_only() -> None:
    starts, hidden = torch.tensor([2, 2]), torch.tensor([True, False])
    mask = upper_mask(starts, hidden, width=5)[:, 0]
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    assert torch.equal(mask[1], causal)
    assert torch.equal(mask[0, :2], causal[:2])
    assert not mask[0, 2:, :2].any()
    assert torch.equal(mask[0, 2:, 2:], causal[2:, 2:])
