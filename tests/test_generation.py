"""Unsteered decoding is Hugging Face's own; batches, noise, ends and errors."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.models import D_MODEL, FAMILIES, NUM_LAYERS, borrowed, network, tiny

from steergauge.errors import InputError, NonFiniteLogits, ShapeMismatch, WrongModel
from steergauge.generation import Arm, Decoding, Sample, end_tokens, generate
from steergauge.intervention import Ablate, Add, Scope
from steergauge.split import LanguageModel
from steergauge.vector import Provenance, Site, SteeringVector

PROMPTS = [
    "Write a message about the weather.",
    "Hi",
    "Tell me more about the lake, please.",
    "x",
]
NO_ENDS: tuple[int, ...] = ()
MANY_ENDS = tuple(range(2, 40))
"""End tokens so frequent that responses end at many different steps."""

GREEDY = Decoding(max_new_tokens=12, temperature=0)
SAMPLED = Decoding(max_new_tokens=12, seed=3)


def add(layer: int = 1, alpha: float = 1.0, scope: Scope = Scope.GENERATING) -> Add:
    generator = torch.Generator().manual_seed(layer)
    direction = torch.randn(D_MODEL, generator=generator)
    return Add(SteeringVector(direction, Site(layer)), alpha, scope)


def tokens(samples: list[Sample]) -> dict[tuple[str, str, int], tuple[int, ...]]:
    return {(s.arm, s.prompt, s.sample): s.token_ids for s in samples}


@contextmanager
def passes(lm: LanguageModel) -> Iterator[list[torch.Size]]:
    """Shapes (rows, positions, width) of what goes through block 0."""
    shapes: list[torch.Size] = []
    handle = lm.blocks[0].register_forward_pre_hook(
        lambda _m, args, kwargs: shapes.append((*args, *kwargs.values())[0].shape),
        with_kwargs=True,
    )
    yield shapes
    handle.remove()


def huggingface(lm: LanguageModel, prompts: list[str]) -> list[tuple[int, ...]]:
    """Greedy responses by `model.generate`, up to and with the end token."""
    model = copy.deepcopy(lm.model)
    batch = lm.tokenizer(prompts, return_tensors="pt", padding=True)
    out = model.generate(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        do_sample=False,
        max_new_tokens=GREEDY.max_new_tokens,
        pad_token_id=0,
    )
    ends = end_tokens(lm)
    responses = []
    for row in out[:, batch["input_ids"].shape[1] :].tolist():
        stop = next((i + 1 for i, t in enumerate(row) if t in ends), len(row))
        responses.append(tuple(row[:stop]))
    return responses


@pytest.mark.parametrize("ends", [(2,), MANY_ENDS], ids=["one end", "many ends"])
@pytest.mark.parametrize("family", [*FAMILIES, "gptj"])
def test_greedy_unsteered_decoding_is_hugging_faces(family, ends):
    lm = tiny(family, ends=ends)
    ours = generate(lm, PROMPTS, {"plain": None}, decoding=GREEDY)
    assert [s.token_ids for s in ours] == huggingface(lm, PROMPTS)
    # And alone, where theirs has no padding at all.
    assert [ours[1].token_ids] == huggingface(lm, PROMPTS[1:2])
    # Not vacuous: different prompts are continued differently.
    assert len({s.token_ids for s in ours}) >= 3


def ablated(
    lm: LanguageModel, prompt: str, arm: Ablate, layers: tuple[int, ...]
) -> tuple[int, ...]:
    """Greedy tokens of whole passes without a cache, by hooks of our own."""
    ids = list(lm.tokenizer(prompt)["input_ids"])
    num_prompt = len(ids)
    v = arm.vector.direction
    first = {Scope.ALL: 0, Scope.RESPONSE: num_prompt, Scope.GENERATING: num_prompt - 1}
    stop = num_prompt if arm.scope is Scope.PROMPT else None

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        stream = (output[0] if isinstance(output, tuple) else output).clone()
        here = stream[:, first.get(arm.scope, 0) : stop]
        here -= (here @ v / (v @ v))[..., None] * v
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    handles = [lm.blocks[layer].register_forward_hook(hook) for layer in layers]
    with torch.no_grad():
        for _ in range(GREEDY.max_new_tokens):
            logits = lm.model(torch.tensor([ids]), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
    for handle in handles:
        handle.remove()
    return tuple(ids[num_prompt:])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mixtral"])
def test_generation_under_ablation_is_a_plain_loop_with_hooks(family):
    lm = tiny(family, ends=NO_ENDS)
    everywhere = tuple(range(NUM_LAYERS))
    arms = {
        f"{scope} {layers}": (Ablate(add().vector, scope, layers), layers or (1,))
        for scope in Scope
        for layers in ((), everywhere)
    }
    # In one batch with rows that add, and with rows that are left alone.
    mixed = {"plain": None, "added": add(1), **{k: arm for k, (arm, _) in arms.items()}}
    found = tokens(generate(lm, PROMPTS, mixed, decoding=GREEDY))
    for name, (arm, layers) in arms.items():
        for prompt in PROMPTS:
            assert found[name, prompt, 0] == ablated(lm, prompt, arm, layers), name
    # Not vacuous: one direction of 48 less, and many texts are others.
    changed = [
        found[name, prompt, 0] != found["plain", prompt, 0]
        for name in arms
        for prompt in PROMPTS
    ]
    assert sum(changed) > len(changed) / 3


def test_an_ablation_that_breaks_the_model_is_named():
    lm = borrowed(network("llama"))
    with torch.no_grad():
        lm.model.model.layers[2].mlp.down_proj.weight[7] = torch.inf
    with pytest.raises(NonFiniteLogits, match=r"^ablation at layer 1 drove"):
        generate(lm, PROMPTS[:1], {"a": Ablate(add().vector)}, decoding=GREEDY)


def test_results_come_by_arm_prompt_and_sample_whatever_the_batches():
    lm = tiny("llama")
    arms = {"b": None, "a": add()}
    for batch_size in (3, 100):
        samples = generate(
            lm, PROMPTS, arms, samples=2, decoding=SAMPLED, batch_size=batch_size
        )
        found = [(s.arm, s.prompt, s.index, s.sample) for s in samples]
        assert found == [
            (arm, prompt, index, sample)
            for arm in ("b", "a")
            for index, prompt in enumerate(PROMPTS)
            for sample in (0, 1)
        ]


def test_a_response_does_not_depend_on_what_else_is_generated():
    lm = tiny("llama", ends=MANY_ENDS)
    arms = {
        "plain": None,
        "one": add(1),
        "two": add(2, -2.0, Scope.ALL),
        "prompt": add(0, 3.0, Scope.PROMPT),
    }
    whole = tokens(generate(lm, PROMPTS, arms, samples=3, decoding=SAMPLED))
    assert len(set(whole.values())) > 20
    variants = [
        generate(lm, PROMPTS, arms, decoding=SAMPLED, batch_size=1),
        generate(lm, PROMPTS, arms, samples=3, decoding=SAMPLED, batch_size=5),
        generate(lm, PROMPTS[::-1], arms, samples=2, decoding=SAMPLED),
        generate(lm, PROMPTS[1:2], {"two": arms["two"]}, decoding=SAMPLED),
        generate(lm, PROMPTS[2:], {"one": arms["one"]}, samples=3, decoding=SAMPLED),
    ]
    for variant in variants:
        for key, ids in tokens(variant).items():
            assert ids == whole[key]


def test_seed_sample_prompt_and_stream_of_noise_each_change_the_response():
    lm = tiny("llama")
    seeded = Decoding(max_new_tokens=12, seed=4)
    one = generate(lm, PROMPTS[:1], {"plain": None}, samples=2, decoding=SAMPLED)
    other = generate(lm, PROMPTS[:1], {"plain": None}, samples=2, decoding=seeded)
    again = generate(
        lm, PROMPTS[:1], {"plain": Arm(noise=1)}, samples=2, decoding=SAMPLED
    )
    assert len({s.token_ids for s in (*one, *other, *again)}) == 6


def test_arms_share_their_noise_unless_they_ask_for_their_own():
    lm = tiny("llama")
    arms = {"a": None, "b": Arm(), "c": Arm(add(1, 1e-6)), "d": Arm(noise=1)}
    samples = generate(lm, PROMPTS, arms, samples=4, decoding=SAMPLED)
    by_arm: dict[str, list[tuple[int, ...]]] = {}
    for s in samples:
        by_arm.setdefault(s.arm, []).append(s.token_ids)
    # A millionth of a step changes logits by 1e-6: hardly ever the largest of them.
    assert by_arm["a"] == by_arm["b"] == by_arm["c"]
    assert all(x != y for x, y in zip(by_arm["a"], by_arm["d"], strict=True))


def test_the_same_prompt_twice_has_the_same_samples():
    samples = generate(
        tiny("llama"), ["Hi", "Hi"], {"plain": None}, samples=2, decoding=SAMPLED
    )
    assert [s.index for s in samples] == [0, 0, 1, 1]
    assert samples[0].token_ids == samples[2].token_ids != samples[1].token_ids


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_response_stops_at_its_first_end_token(family):
    endless, lm = tiny(family, ends=NO_ENDS), tiny(family, ends=MANY_ENDS)
    how = Decoding(max_new_tokens=20, seed=1)
    long = tokens(generate(endless, PROMPTS, {"a": None}, samples=20, decoding=how))
    samples = generate(lm, PROMPTS, {"a": None}, samples=20, decoding=how)
    for s in samples:
        whole = long[s.arm, s.prompt, s.sample]
        stop = next((i + 1 for i, t in enumerate(whole) if t in MANY_ENDS), 20)
        assert s.token_ids == whole[:stop]
        assert s.finished == (s.token_ids[-1] in MANY_ENDS)
    # Not vacuous: rows left the batch at many steps, and some never ended.
    assert len({len(s.token_ids) for s in samples}) > 10
    assert 0 < sum(s.finished for s in samples) < len(samples)


def test_rows_that_have_finished_leave_the_batch():
    lm = tiny("llama", ends=MANY_ENDS)
    how = Decoding(max_new_tokens=20, seed=1)
    with passes(lm) as shapes:
        samples = generate(lm, ["Hi"], {"a": None}, samples=64, decoding=how)
    rows = [shape[0] for shape in shapes[1:]]
    alive = [sum(len(s.token_ids) > step for s in samples) for step in range(len(rows))]
    for computed, needed in zip(rows, alive, strict=True):
        assert needed <= computed <= needed / 0.875 + 1
    assert rows[-1] < 10 < 64 == rows[0]


def test_a_model_that_never_ends_fills_its_budget():
    lm = tiny("llama", ends=NO_ENDS)
    assert end_tokens(lm) == frozenset()
    samples = generate(lm, PROMPTS, {"a": None}, samples=5, decoding=SAMPLED)
    assert {(len(s.token_ids), s.finished) for s in samples} == {(12, False)}


def test_end_tokens_are_the_models_and_the_tokenizers():
    assert end_tokens(tiny("llama", ends=(7, 9))) == {2, 7, 9}
    assert end_tokens(tiny("llama")) == {2}


def test_the_text_is_the_continuation_without_special_tokens():
    lm = tiny("llama", ends=MANY_ENDS)
    for s in generate(lm, PROMPTS, {"a": None}, samples=9, decoding=SAMPLED):
        assert s.text == lm.tokenizer.decode(s.token_ids, skip_special_tokens=True)
        assert "</s>" not in s.text
        assert not s.text.startswith(s.prompt)


def test_every_prompt_is_prefilled_once_for_all_arms_and_samples():
    lm = tiny("llama", ends=NO_ENDS)
    prompts, steps, samples = ["vvvvvv", "wwwwww", "xxxxxx"], 4, 5
    length = len(lm.tokenizer(prompts[0])["input_ids"])
    arms = {"plain": None, "one": add(1), "two": add(2, 3.0, Scope.RESPONSE)}
    how = Decoding(max_new_tokens=steps, temperature=0)
    with passes(lm) as shapes:
        generate(lm, prompts, arms, samples=samples, decoding=how)
    rows = len(prompts) * len(arms) * samples
    assert shapes == [
        (len(prompts), length - 1, D_MODEL),
        *[(rows, 1, D_MODEL)] * steps,
    ]


def test_an_arm_that_steers_the_prompt_is_prefilled_on_its_own():
    lm = tiny("llama", ends=NO_ENDS)
    prompts = ["vvvvvv", "wwwwww"]
    arms = {
        "plain": None,
        "generating": add(1),
        "all": add(1, 1.0, Scope.ALL),
        "prompt": add(1, 1.0, Scope.PROMPT),
    }
    with passes(lm) as shapes:
        generate(lm, prompts, arms, samples=5, decoding=GREEDY)
    assert shapes[0][0] == len(prompts) * 3


def test_small_batches_prefill_hardly_more_prompts_than_there_are():
    lm = tiny("llama", ends=NO_ENDS)
    prompts = [a + b for a in "vwxyz" for b in "fgbk"]
    arms = {"plain": None, "one": add(1), "two": add(2)}
    how = Decoding(max_new_tokens=2)
    with passes(lm) as shapes:
        generate(lm, prompts, arms, samples=4, decoding=how, batch_size=24)
    num_batches = len(prompts) * len(arms) * 4 // 24
    prefills = [shape[0] for shape in shapes[:: 1 + how.max_new_tokens]]
    assert len(prefills) == num_batches == 10
    # Each batch shares at most one prompt with the one before.
    assert sum(prefills) <= len(prompts) + num_batches - 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gemma3", "mistral"])
def test_prompts_of_one_token_work_alone_and_beside_longer_ones(family):
    lm = tiny(family)
    assert len(lm.tokenizer("x")["input_ids"]) == 1
    mixed = tokens(generate(lm, PROMPTS, {"a": add()}, samples=3, decoding=SAMPLED))
    alone = tokens(generate(lm, ["x"], {"a": add()}, samples=3, decoding=SAMPLED))
    for key, ids in alone.items():
        assert mixed[key] == ids


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_strength_that_breaks_the_model_is_named(family):
    lm = tiny(family)
    # 1e39 is beyond float32: the stream itself becomes infinite.
    arms = {"plain": None, "broken": add(2, 1e39)}
    with pytest.raises(NonFiniteLogits, match=r"alpha = 1e\+39 at layer 2"):
        generate(lm, PROMPTS, arms, decoding=GREEDY)


def test_a_damaged_model_is_not_blamed_on_the_steering():
    lm = borrowed(network("llama"))
    with torch.no_grad():
        lm.model.lm_head.weight[7] = torch.nan
    with pytest.raises(NonFiniteLogits, match="the unsteered model"):
        generate(lm, PROMPTS, {"plain": None}, decoding=GREEDY)


def test_a_vector_that_does_not_fit_is_refused_before_anything_runs():
    lm = tiny("llama")
    wide = Add(SteeringVector(torch.ones(64), Site(1)))
    with passes(lm) as shapes, pytest.raises(ShapeMismatch, match="64 wide"):
        generate(lm, PROMPTS, {"plain": None, "wide": wide})
    assert shapes == []


def test_a_vector_of_another_model_needs_to_be_accepted_on_purpose():
    lm = tiny("llama")
    origin = Provenance(fingerprint=tiny("qwen3").fingerprint)
    vector = SteeringVector(torch.ones(D_MODEL), Site(1), origin)
    with pytest.raises(WrongModel):
        generate(lm, ["Hi"], {"a": Add(vector)})
    own = SteeringVector(vector.direction, vector.site)
    accepted = generate(
        lm, ["Hi"], {"a": Add(vector)}, decoding=GREEDY, other_model=True
    )
    assert accepted == generate(lm, ["Hi"], {"a": Add(own)}, decoding=GREEDY)


def test_one_text_is_no_list_of_prompts():
    with pytest.raises(InputError, match=r"must be a list"):
        generate(tiny("llama"), "Hi", {"a": None})


def test_progress_counts_every_response_once():
    lm = tiny("llama", ends=MANY_ENDS)
    done: list[int] = []
    options: dict[str, Any] = {"samples": 9, "batch_size": 16, "progress": done.append}
    arms = {"plain": None, "one": add()}
    generate(lm, PROMPTS, arms, decoding=SAMPLED, **options)
    assert sum(done) == len(PROMPTS) * 2 * 9


def test_the_models_own_generate_is_this_one():
    lm = tiny("llama", ends=MANY_ENDS)
    how = Decoding(max_new_tokens=9, temperature=0.7, seed=2)
    expected = generate(lm, PROMPTS, {"steered": add()}, samples=2, decoding=how)
    settings: dict[str, Any] = {"max_new_tokens": 9, "temperature": 0.7, "seed": 2}
    assert lm.generate(PROMPTS, add(), samples=2, **settings) == expected
    plain = lm.generate(PROMPTS, samples=2, **settings)
    assert {s.arm for s in plain} == {"unsteered"}
    assert [s.token_ids for s in plain] != [s.token_ids for s in expected]


def test_prompts_go_through_the_chat_template_where_there_is_one():
    chat, raw = tiny("llama", chat=True), tiny("llama")
    templated = generate(chat, ["Hi"], {"a": None}, decoding=GREEDY)
    by_hand = generate(raw, ["<user>Hi<bot>"], {"a": None}, decoding=GREEDY)
    bare = generate(chat, ["Hi"], {"a": None}, decoding=GREEDY, chat=False)
    plain = generate(raw, ["Hi"], {"a": None}, decoding=GREEDY)
    assert templated[0].token_ids == by_hand[0].token_ids != plain[0].token_ids
    assert bare[0].token_ids == plain[0].token_ids


def test_no_prompts_no_samples():
    lm = tiny("llama")
    assert generate(lm, [], {"a": None}) == []
    assert generate(lm, PROMPTS, {}) == []
    assert generate(lm, PROMPTS, {"a": None}, samples=0) == []


def test_an_empty_prompt_is_refused():
    with pytest.raises(InputError, match="has no tokens"):
        generate(tiny("llama"), ["Hi", ""], {"a": None})
