"""Steered decoding is what a slow reference does: no cache, no batch, no padding."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.models import D_MODEL, NUM_LAYERS, borrowed, network, tiny

from steergauge.generation import Decoding, generate
from steergauge.intervention import Add, Scope
from steergauge.split import LanguageModel
from steergauge.vector import Site, SteeringVector

FAMILIES = ("llama", "gpt2", "gemma3", "mistral", "gptj")
PROMPTS = [
    "Write a message about the weather.",
    "Hi",
    "Tell me more about the lake, please.",
    "x",
]
NUM_NEW = 8
GREEDY = Decoding(max_new_tokens=NUM_NEW, temperature=0)


def add(
    scope: Scope = Scope.GENERATING,
    *,
    layer: int = 1,
    alpha: float = 2.0,
    seed: int = 0,
) -> Add:
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(D_MODEL, generator=generator)
    return Add(SteeringVector(direction, Site(layer)), alpha, scope)


def steered_positions(scope: Scope, num_prompt: int, length: int) -> range:
    """Absolute positions in scope, from the words of the definition."""
    return {
        Scope.ALL: range(length),
        Scope.PROMPT: range(num_prompt),
        Scope.RESPONSE: range(num_prompt, length),
        Scope.GENERATING: range(num_prompt - 1, length),
    }[scope]


def reference(
    lm: LanguageModel, prompt: str, response: tuple[int, ...], steering: Add | None
) -> torch.Tensor:
    """Logits after the prompt and after each token of the response.

    One pass over the whole sequence for each: no cache, batch or padding. The hook is
    on Hugging Face's own block and edits absolute positions.
    """
    prompt_ids = lm.tokenizer(prompt)["input_ids"]
    num_prompt, logits = len(prompt_ids), []

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        assert steering is not None
        stream = (output[0] if isinstance(output, tuple) else output).clone()
        for position in steered_positions(steering.scope, num_prompt, stream.shape[1]):
            stream[0, position] += steering.alpha * steering.vector.direction
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    handles = []
    if steering is not None:
        block = lm.blocks[steering.site.layer]
        handles.append(block.register_forward_hook(hook))
    for step in range(len(response) + 1):
        ids = torch.tensor([[*prompt_ids, *response[:step]]])
        with torch.no_grad():
            out = lm.model(ids, attention_mask=torch.ones_like(ids), use_cache=False)
        logits.append(out.logits[0, -1])
    for handle in handles:
        handle.remove()
    return torch.stack(logits)


@contextmanager
def recorded_logits(lm: LanguageModel) -> Iterator[list[torch.Tensor]]:
    """Everything that comes out of the head inside the `with`."""
    out: list[torch.Tensor] = []
    head = lm.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _m, _a, output: out.append(output))
    yield out
    handle.remove()


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_scope_is_that_of_the_slow_reference(family, layer):
    lm = tiny(family, ends=())
    arms: dict[str, Add | None] = {
        scope.value: add(scope, layer=layer) for scope in Scope
    }
    arms["plain"] = None
    how = Decoding(max_new_tokens=NUM_NEW, seed=layer)
    for prompt in PROMPTS:
        with recorded_logits(lm) as out:
            samples = generate(lm, [prompt], arms, decoding=how)
        # One row an arm; before the steps there is the prefill, if there is any.
        ours = torch.stack([logits[:, -1] for logits in out[-NUM_NEW:]], dim=1)
        theirs = torch.stack(
            [reference(lm, prompt, s.token_ids[:-1], arms[s.arm]) for s in samples]
        )
        # Float32 noise of other kernels and of a cache: up to 4e-6 is seen.
        assert (ours - theirs).abs().max() < 1e-4
        # Not vacuous: the five arms differ. Only "all" is "generating" where the prompt
        # is one token, or where no block above could carry the prompt's shift along.
        gaps = torch.pdist(theirs.flatten(1))
        one_token = len(lm.tokenizer(prompt)["input_ids"]) == 1
        assert (gaps < 0.1).sum() == (one_token or layer == NUM_LAYERS - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_of_a_padded_batch_are_those_of_the_slow_reference(family):
    lm = tiny(family, ends=())
    arms = {scope.value: add(scope, alpha=0.7) for scope in Scope}
    samples = generate(lm, PROMPTS, {"plain": None, **arms}, decoding=GREEDY)
    for s in samples:
        logits = reference(lm, s.prompt, s.token_ids[:-1], arms.get(s.arm))
        assert s.token_ids == tuple(logits.argmax(-1).tolist())
    assert len({s.token_ids for s in samples}) > len(PROMPTS)


def test_at_the_last_block_steering_the_prompt_is_steering_its_last_token():
    lm = tiny("llama", ends=())
    first = Decoding(max_new_tokens=1, temperature=0)
    arms = {scope.value: add(scope, layer=3, alpha=5.0) for scope in Scope}
    samples = generate(lm, PROMPTS, {"plain": None, **arms}, decoding=first)
    by_arm: dict[str, list[int]] = {}
    for s in samples:
        by_arm.setdefault(s.arm, []).append(s.token_ids[0])
    assert by_arm["all"] == by_arm["prompt"] == by_arm["generating"]
    assert by_arm["response"] == by_arm["plain"] != by_arm["all"]


@pytest.mark.parametrize("scope", list(Scope))
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_alpha_zero_is_bitwise_the_unsteered_run(family, scope):
    lm = tiny(family, ends=tuple(range(2, 40)))
    how = Decoding(max_new_tokens=NUM_NEW, seed=1)
    runs = []
    for steering in (None, add(scope, alpha=0.0), add(scope, alpha=1e-3)):
        with recorded_logits(lm) as logits:
            samples = generate(lm, PROMPTS, {"a": steering}, samples=5, decoding=how)
        runs.append((samples, logits))
    (plain, logits), (zero, logits_zero), (_, logits_near) = runs
    assert plain == zero
    assert len(logits) == len(logits_zero)
    for ours, theirs in zip(logits, logits_zero, strict=True):
        assert torch.equal(ours, theirs)
    # Not vacuous: a thousandth of a step is seen.
    gaps = [
        float((a - b).abs().max())
        for a, b in zip(logits, logits_near, strict=False)
        if a.shape == b.shape
    ]
    assert max(gaps) > 1e-5


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_unsteered_rows_of_a_steered_batch_are_unsteered_bitwise(family):
    lm = tiny(family, ends=())
    one = Decoding(max_new_tokens=1, temperature=0)
    names = ("a", "b", "c", "d")
    logits = {}
    for steered in (False, True):
        arms = dict.fromkeys(names)
        arms |= {"b": add(alpha=0.0)}
        if steered:
            arms |= {"a": add(alpha=3.0), "d": add(layer=2)}
        with recorded_logits(lm) as out:
            generate(lm, ["Tell me"], arms, decoding=one)
        logits[steered] = out[-1]
    assert torch.equal(logits[True][1:3], logits[False][1:3])
    for row in (0, 3):
        assert not torch.equal(logits[True][row], logits[False][row])


@pytest.mark.parametrize("family", ["llama", "gemma3", "gptj"])
def test_arms_together_are_the_arms_alone(family):
    lm = tiny(family, ends=tuple(range(2, 20)))
    how = Decoding(max_new_tokens=NUM_NEW, seed=1)
    same = add(layer=2, seed=3)
    arms = {
        "plain": None,
        "weak": add(alpha=0.5),
        "strong": add(alpha=-4.0),
        "everywhere": add(Scope.ALL, layer=0, alpha=1.0, seed=1),
        "prompt": add(Scope.PROMPT, layer=3, seed=2),
        "prompt again": add(Scope.PROMPT, layer=0, seed=2),
        "response": Add(same.vector, 1.5, Scope.RESPONSE),
        "shared vector": Add(same.vector, -1.5, Scope.ALL),
        "zero": add(Scope.ALL, alpha=0.0),
    }
    together = generate(lm, PROMPTS, arms, samples=3, decoding=how)
    alone = [
        sample
        for name, arm in arms.items()
        for sample in generate(lm, PROMPTS, {name: arm}, samples=3, decoding=how)
    ]
    assert together == alone
    texts = {name: [s.text for s in together if s.arm == name] for name in arms}
    assert texts["zero"] == texts["plain"]
    assert len({tuple(text) for text in texts.values()}) == len(arms) - 1


def test_equal_interventions_that_are_different_objects_act_equally():
    lm = tiny("llama", ends=())
    arms = {"one": add(Scope.ALL), "two": add(Scope.ALL)}
    assert arms["one"] is not arms["two"]
    samples = generate(lm, PROMPTS, arms, decoding=GREEDY)
    ids = {name: [s.token_ids for s in samples if s.arm == name] for name in arms}
    assert ids["one"] == ids["two"]


def test_a_bigger_step_moves_the_logits_further():
    lm = tiny("llama", ends=())
    one = Decoding(max_new_tokens=1, temperature=0)
    moves = []
    for alpha in (0.0, 0.1, 1.0, 10.0):
        with recorded_logits(lm) as out:
            generate(lm, ["Tell me"], {"a": add(alpha=alpha)}, decoding=one)
        moves.append(out[-1])
    distances = [float((move - moves[0]).norm()) for move in moves]
    assert distances == sorted(distances)
    assert distances[1] > 0.01


def test_steering_leaves_nothing_behind():
    lm = borrowed(network("llama"), ends=(2,))
    before = generate(lm, PROMPTS, {"a": None}, decoding=GREEDY)
    steered = generate(lm, PROMPTS, {"a": add(alpha=5.0)}, decoding=GREEDY)
    after = generate(lm, PROMPTS, {"a": None}, decoding=GREEDY)
    assert before == after != steered
