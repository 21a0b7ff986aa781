"""T0 passes sound plumbing in every family and scope, and finds every real fault."""

import dataclasses
import functools
from contextlib import contextmanager

import pytest
import torch
from tests.models import D_MODEL, borrowed, config, reinitialised, tiny
from transformers import LlamaForCausalLM

from steergauge import generation, intervention, split
from steergauge.audits import plumbing as t0
from steergauge.audits.finding import Verdict
from steergauge.audits.plumbing import SMALLEST_FLOOR, plumbing
from steergauge.errors import NotTheSuffix
from steergauge.hooks import editing
from steergauge.intervention import Add, Scope
from steergauge.split import LanguageModel
from steergauge.vector import Site, SteeringVector

PROMPTS = ["then there", "so", "lost in the old chair", "a cat then"]
FAMILIES = ("llama", "gpt2", "gemma3", "mistral")


def step(scope: Scope = Scope.GENERATING, *, layer: int = 1, alpha=0.7) -> Add:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(D_MODEL, generator=generator)
    return Add(SteeringVector(direction, Site(layer)), alpha, scope)


def check(lm=None, scope: Scope = Scope.GENERATING, **options):
    return plumbing(
        lm or tiny("llama"), step(scope, **options), PROMPTS, max_new_tokens=5
    )


def failed(finding) -> set[str]:
    """First words of every check that failed, which its reasons repeat."""
    names = {name for name, passed, _ in finding.details["checks"] if not passed}
    assert all(any(name in why for why in finding.reasons) for name in names)
    assert finding.verdict is (Verdict.FAIL if names else Verdict.PASS)
    return {" ".join(name.split()[:3]) for name in names}


@pytest.mark.parametrize("scope", list(Scope))
@pytest.mark.parametrize("family", FAMILIES)
def test_sound_plumbing_passes(family, scope):
    found = check(tiny(family), scope)
    assert failed(found) == set()
    assert len(found.details["checks"]) == 9
    # Not vacuous: the step moves logits while it is there.
    (moved,) = (seen for name, _, seen in found.details["checks"] if "trace" in name)
    assert float(moved.split()[3]) > 0.01


@pytest.mark.parametrize("layer", [0, 3])
def test_sound_plumbing_passes_at_the_first_and_the_last_block(layer):
    assert failed(check(layer=layer)) == set()


@pytest.mark.parametrize("alpha", [-2.0, 1e-3, 50.0])
def test_sound_plumbing_passes_at_any_strength(alpha):
    assert failed(check(alpha=alpha)) == set()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_sound_plumbing_passes_in_other_precisions(dtype):
    assert failed(check(tiny("gpt2", dtype=dtype))) == set()


def test_the_floors_are_measured_and_far_below_any_effect():
    found = check()
    assert 0 < found.details["measured_floor_kl"] < 1e-6
    assert found.details["floor_kl"] >= SMALLEST_FLOOR
    assert 0 < found.details["floor_stream"] < 1e-4


def test_the_floor_grows_with_the_length_of_the_step():
    # Rounding of h + alpha v - alpha v is alpha |v| x 6e-8 in float32.
    near, far = (check(alpha=alpha).details["measured_floor_kl"] for alpha in (1, 1e4))
    assert far > 100 * near


@contextmanager
def adding(monkeypatch, change):
    """Every `edits` of the package goes through `change` on its way."""
    name = "_adding" if change in (twice, normalised) else "_covered"
    sound = getattr(intervention, name)
    monkeypatch.setattr(intervention, name, functools.partial(change, sound))
    yield
    monkeypatch.undo()


def twice(sound, *args):
    edit = sound(*args)
    return lambda stream: edit(edit(stream))


def one_late(sound, interventions, rows, where, mask, lengths):
    return sound(interventions, rows, where - 1, mask, lengths)


def one_early(sound, interventions, rows, where, mask, lengths):
    return sound(interventions, rows, where + 1, mask, lengths)


def relative_to_chunk(sound, interventions, rows, where, mask, lengths):
    return sound(interventions, rows, where - where[:, :1], mask, lengths)


def from_the_row_start(sound, interventions, rows, where, mask, lengths):
    columns = torch.arange(where.shape[1]).expand_as(where)
    return sound(interventions, rows, columns, mask, lengths)


def normalised(sound, *args):
    edit = sound(*args)
    return lambda h: h + torch.nn.functional.normalize(edit(h) - h, dim=-1)


def half_of_the_batch(sound, interventions, rows, *args):
    return sound(interventions, rows[: -(-len(rows) // 2)], *args)


@pytest.mark.parametrize("scope", [Scope.GENERATING, Scope.ALL])
@pytest.mark.parametrize("fault", [twice, normalised, half_of_the_batch])
def test_a_step_of_the_wrong_size_is_found(monkeypatch, fault, scope):
    with adding(monkeypatch, fault):
        assert "alpha v arrives" in failed(check(scope=scope))


@pytest.mark.parametrize("scope", [Scope.GENERATING, Scope.RESPONSE, Scope.PROMPT])
@pytest.mark.parametrize("fault", [one_late, one_early, from_the_row_start])
def test_a_step_at_the_wrong_positions_is_found(monkeypatch, fault, scope):
    with adding(monkeypatch, fault):
        found = failed(check(scope=scope))
    assert found & {"alpha v arrives", "nothing outside the"}


@pytest.mark.parametrize("scope", [Scope.GENERATING, Scope.RESPONSE, Scope.PROMPT])
def test_a_scope_relative_to_the_chunk_is_found_under_a_cache(monkeypatch, scope):
    with adding(monkeypatch, relative_to_chunk):
        assert "every token in" in failed(check(scope=scope))


def another_layer(blocks, edits):
    return editing(blocks, {layer + 1: edit for layer, edit in edits.items()})


def rounded(blocks, edits):
    def in_half_precision(edit):
        return lambda stream: edit(stream.bfloat16().float())

    wrapped = {layer: in_half_precision(edit) for layer, edit in edits.items()}
    return editing(blocks, wrapped)


@contextmanager
def leaving(blocks, edits):
    """Leaves a weight of the model a little changed."""
    with editing(blocks, edits):
        yield
    if edits:
        next(blocks[0].parameters()).data.mul_(1.001)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (another_layer, "alpha v arrives"),
        (rounded, "a zero edit"),
        (leaving, "hooks leave no"),
    ],
)
def test_faulty_hooks_are_found(monkeypatch, fault, expected):
    lm = borrowed(reinitialised(LlamaForCausalLM(config("llama"))).eval())
    lm.prove()
    assert failed(check(lm)) == set()
    monkeypatch.setattr(split, "editing", fault)
    assert expected in failed(check(lm))


def test_a_prompt_in_the_scored_text_is_found(monkeypatch):
    def with_prompt(*args, **options):
        texts = generation.generate(*args, **options)
        return [dataclasses.replace(t, text=t.prompt + t.text) for t in texts]

    monkeypatch.setattr(t0, "generate", with_prompt)
    assert failed(check()) == {"scored text is"}


class IgnoresMask(LlamaForCausalLM):
    """Attends to padding."""

    def forward(self, *args, attention_mask=None, position_ids=None, **options):
        return super().forward(*args, **options)


class IgnoresCache(LlamaForCausalLM):
    """Forgets what it has read."""

    def forward(self, *args, past_key_values=None, use_cache=False, **options):
        mask = options.pop("attention_mask", None)
        options.pop("position_ids", None)
        inputs = options.get("input_ids", options.get("inputs_embeds"))
        if mask is not None and inputs is not None:
            mask = mask[:, -inputs.shape[1] :]
        return super().forward(*args, attention_mask=mask, **options)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (IgnoresMask, {"left and right", "alone, in a"}),
        (IgnoresCache, {"alone, in a"}),
    ],
)
def test_a_model_whose_compute_paths_disagree_is_found(model, expected):
    lm = borrowed(reinitialised(model(config("llama"))).eval())
    assert expected <= failed(check(lm))
    # The disagreement is part of the floor, below which nothing is claimed.
    assert check(lm).details["floor_kl"] > 1e-3


def test_the_law_of_the_split_is_measured_again_on_a_model_that_was_proved(monkeypatch):
    lm = tiny("llama")
    lm.prove()
    assert check(lm).details["law"] < 1e-5
    sound = LanguageModel._suffix
    monkeypatch.setattr(
        LanguageModel, "_suffix", lambda *args, **kwargs: sound(*args, **kwargs) + 5e-5
    )
    assert check(lm).details["law"] == pytest.approx(5e-5, rel=0.1)
    monkeypatch.setattr(
        LanguageModel, "_suffix", lambda *args, **kwargs: sound(*args, **kwargs) + 1.0
    )
    with pytest.raises(NotTheSuffix):
        check(lm)


def test_only_the_first_8_prompts_are_used():
    found = plumbing(tiny("llama"), step(), PROMPTS * 4, max_new_tokens=2)
    assert (found.num_prompts, found.num_samples) == (8, 1)
