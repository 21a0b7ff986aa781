"""A step in fixed shapes draws the ordinary one's tokens, and is given up if not."""

from weakref import WeakSet

import pytest
import torch
from tests.models import borrowed, network, tiny
from tests.test_generation import MANY_ENDS, PROMPTS, add, tokens

from steergauge import decoding, fixed_step
from steergauge.fixed_step import FixedStep
from steergauge.generation import Decoding, generate
from steergauge.intervention import Ablate, Scope

ARMS = {
    "plain": None,
    "one": add(1),
    "all": add(2, -2.0, Scope.ALL),
    "prompt": add(0, 3.0, Scope.PROMPT),
    "response": add(1, 2.0, Scope.RESPONSE),
    "ablated": Ablate(add().vector),
    "everywhere": Ablate(add().vector, Scope.GENERATING, (0, 1, 2, 3)),
}


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """Fixed steps are used on the processor too; the rows of each."""
    monkeypatch.setattr(fixed_step, "DEVICES", ("cpu",))
    taken: list[int] = []
    whole = FixedStep.__call__

    def counted(self, token):
        taken.append(len(token))
        return whole(self, token)

    monkeypatch.setattr(FixedStep, "__call__", counted)
    return taken


def both(family: str, steps: list[int], how: Decoding, ends=MANY_ENDS) -> list[dict]:
    lm = tiny(family, ends=ends)
    found = []
    for devices in (("cpu",), ()):
        fixed_step.DEVICES = devices
        found.append(tokens(generate(lm, PROMPTS[:3], ARMS, samples=3, decoding=how)))
        steps.append(-1)
    return found


@pytest.mark.parametrize("temperature", [0, 1.0], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "phi3", "gpt_neox"])
def test_fixed_shapes_give_the_ordinary_tokens(steps, family, temperature):
    how = Decoding(max_new_tokens=10, temperature=temperature, seed=5)
    fixed, ordinary = both(family, steps, how)
    assert fixed == ordinary
    # Not vacuous: they were used in the first run alone, and sampled rows left in time.
    taken = steps[: steps.index(-1)]
    assert steps == [*taken, -1, -1]
    assert len(taken) >= 7
    assert how.temperature == 0 or taken[-1] <= taken[0] / 2


def test_batches_to_the_last_token_fit_their_room(steps):
    how = Decoding(max_new_tokens=10, seed=5)
    fixed, ordinary = both("llama", steps, how, ends=())
    assert fixed == ordinary
    assert steps[: steps.index(-1)] == [63] * 10  # Two in the proof


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_windows_keep_the_ordinary_step(steps, family):
    both(family, steps, Decoding(max_new_tokens=4))
    assert steps == [-1, -1]


@pytest.mark.parametrize("fault", ["other logits", "an error"])
def test_a_step_that_is_not_proved_leaves_nothing_behind(monkeypatch, steps, fault):
    whole = FixedStep._run

    def wrong(self):
        # It has written other keys and values by then.
        self._token += 1
        logits = whole(self)
        if fault == "an error":
            raise ValueError("no mask of four axes")
        return logits

    monkeypatch.setattr(FixedStep, "_run", wrong)
    fixed, ordinary = both("llama", steps, Decoding(max_new_tokens=8, seed=1))
    assert fixed == ordinary
    # One try a batch, of at most two tokens.
    assert steps == [*steps[:-2], -1, -1]
    assert 1 <= len(steps[:-2]) <= 2


def test_memory_that_runs_out_in_the_proof_is_not_taken_for_a_fault(monkeypatch, steps):
    def refused(self):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(FixedStep, "_run", refused)
    tried: list[int] = []
    whole = decoding.proved

    def counted(step, told):
        tried.append(len(told[0][0]))
        return whole(step, told)

    monkeypatch.setattr(decoding, "proved", counted)
    with pytest.raises(torch.OutOfMemoryError):
        generate(tiny("llama"), PROMPTS[:2], {"a": None}, samples=2)
    assert tried == [4, 2, 1]


def test_attention_that_adds_a_mask_is_not_fixed(steps):
    # It would add True and False as 1 and 0; half precision alone might not show it.
    model = network("llama").bfloat16()
    model.set_attn_implementation("eager")
    lm = borrowed(model, ends=())
    how = Decoding(max_new_tokens=6, temperature=0)
    found = tokens(generate(lm, PROMPTS, ARMS, decoding=how))
    assert not steps
    fixed_step.DEVICES = ()
    assert tokens(generate(lm, PROMPTS, ARMS, decoding=how)) == found


def test_in_half_precision_fixed_shapes_are_proved_and_a_wrong_mask_is_not(
    monkeypatch, steps
):
    proofs: list[bool] = []
    whole = decoding.proved

    def noted(step, told):
        proofs.append(whole(step, told))
        return proofs[-1]

    monkeypatch.setattr(decoding, "proved", noted)
    how = Decoding(max_new_tokens=4, temperature=0)
    lm = borrowed(network("llama").bfloat16(), ends=())
    generate(lm, PROMPTS, {"plain": None}, decoding=how)
    assert proofs == [True]
    monkeypatch.setattr(fixed_step, "ATTENTION", ("eager",))
    lm.model.set_attn_implementation("eager")
    generate(lm, PROMPTS, {"plain": None}, decoding=how)
    assert proofs == [True, False]


def test_a_step_that_does_not_answer_to_its_token_is_not_proved(monkeypatch, steps):
    # As a recording made on another device than the model's: replayed, it does nothing.
    whole, first = FixedStep._run, []

    def dead(self):
        first.append(first[0] if first else whole(self))
        return first[0]

    monkeypatch.setattr(FixedStep, "_run", dead)
    fixed, ordinary = both("llama", steps, Decoding(max_new_tokens=6, temperature=0))
    assert fixed == ordinary
    assert len(steps) == 4  # Two tokens of the proof, and no more.


def test_a_model_that_cannot_be_recorded_is_not_tried_again(monkeypatch, steps):
    lm = tiny("llama", seed=1)
    monkeypatch.setattr(fixed_step, "_UNRECORDABLE", WeakSet([lm.model]))
    generate(lm, PROMPTS, ARMS, decoding=Decoding(max_new_tokens=4))
    assert not steps
    # Seen in the proof, it is not proved.
    monkeypatch.setattr(fixed_step, "_UNRECORDABLE", WeakSet())
    whole = FixedStep._run

    def refused(self):
        fixed_step._UNRECORDABLE.add(lm.model)
        return whole(self)

    monkeypatch.setattr(FixedStep, "_run", refused)
    for _ in range(2):
        generate(lm, PROMPTS, ARMS, decoding=Decoding(max_new_tokens=4))
    assert len(steps) == 2  # One proof in two batches.


def test_a_recording_is_made_on_the_models_device():
    # What one GPU can tell of two: the place, not the recording.
    found = fixed_step._on(torch.device("cuda", 1))
    assert isinstance(found, torch.cuda.device)
    assert found.idx == 1
