"""Scores of given responses equal slow sums over tokens, whatever the batching."""

import math

import numpy as np
import pytest
import torch
from tests.models import D_MODEL, D_VOCAB, NUM_LAYERS, tiny

from steergauge import scoring
from steergauge.generation import Decoding, generate
from steergauge.intervention import Ablate, Add, Scope, blocks_of
from steergauge.prompts import Text, encode
from steergauge.scoring import Continuation, negative_log_likelihood, sequence_kl
from steergauge.vector import Site, SteeringVector

FAMILIES = ("llama", "gpt2", "gemma3", "mistral", "mixtral")
RAGGED = [(9, 1), (1, 7), (4, 4), (6, 0), (2, 9)]
"""Lengths of prompts and responses: padding on the left, and of the responses."""

OTHER_KERNELS = 1e-5
"""Nats. Padded batches take other kernels than single rows: float32 noise in logits
of size 1 to 10, seen up to 2e-6 nats a response of nine tokens."""


def rows(*lengths: tuple[int, int], seed: int = 0) -> list[Continuation]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Continuation(
            torch.randint(3, D_VOCAB, (prompt,), generator=generator).tolist(),
            torch.randint(3, D_VOCAB, (response,), generator=generator).tolist(),
        )
        for prompt, response in lengths
    ]


def step(layer: int, seed: int, *, alpha: float = 1.0, scope=Scope.GENERATING) -> Add:
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(D_MODEL, generator=generator)
    return Add(SteeringVector(direction, Site(layer)), alpha, scope)


def ablation(layer: int, seed: int, **how) -> Ablate:
    return Ablate(step(layer, seed).vector, **how)


def log_p(
    lm, ids: list[int], num_prompt: int, arm: Add | Ablate | None
) -> torch.Tensor:
    """Of every next token, by the whole model on one row alone, with hooks of ours."""

    def hook(_module, _args, output):
        stream = output[0] if isinstance(output, tuple) else output
        places = {
            Scope.ALL: slice(0, None),
            Scope.PROMPT: slice(0, num_prompt),
            Scope.RESPONSE: slice(num_prompt, None),
            Scope.GENERATING: slice(num_prompt - 1, None),
        }
        stream, v = stream.clone(), arm.vector.direction
        here = stream[:, places[arm.scope]]
        if isinstance(arm, Ablate):
            here -= (here @ v / (v @ v))[..., None] * v
        else:
            here += arm.alpha * v
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    blocks = [lm.blocks[layer] for layer in blocks_of(arm)] if arm else []
    handles = [block.register_forward_hook(hook) for block in blocks]
    try:
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return logits.double().log_softmax(-1)


def slow_kl(
    lm, row: Continuation, p_arm: Add | Ablate | None, q_arm: Add | Ablate | None
) -> float:
    """Sum of KL over the response, each token from the text up to it alone."""
    total, num_prompt = 0.0, len(row.prompt_ids)
    for k in range(len(row.response_ids)):
        seen = [*row.prompt_ids, *row.response_ids[:k]]
        p = log_p(lm, seen, num_prompt, p_arm)[-1]
        q = log_p(lm, seen, num_prompt, q_arm)[-1]
        total += float((p.exp() * (p - q)).sum())
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_sequence_kl_is_the_sum_over_single_tokens_of_the_whole_model(family):
    lm, texts = tiny(family), rows(*RAGGED)
    reference = step(1, 0)
    others = {
        "unsteered": None,
        "minus": step(1, 0, alpha=-1.0),
        "another layer": step(3, 1),
        "everywhere": step(2, 2, scope=Scope.ALL),
        "in the prompt": step(0, 3, scope=Scope.PROMPT),
        "in the response": step(0, 3, scope=Scope.RESPONSE),
    }
    found = sequence_kl(lm, texts, reference, others)
    assert list(found) == list(others)
    for name, other in others.items():
        wanted = [slow_kl(lm, row, reference, other) for row in texts]
        assert found[name] == pytest.approx(wanted, abs=OTHER_KERNELS), name
        # Not vacuous: where there is a response, the arms differ visibly.
        assert min(found[name][[0, 1, 2, 4]]) > 1e-3, name


@pytest.mark.parametrize("family", FAMILIES)
def test_sequence_kl_to_and_from_ablations_is_that_of_the_whole_model(family):
    lm, texts = tiny(family), rows(*RAGGED)
    everywhere = tuple(range(NUM_LAYERS))
    arms = {
        "one block": ablation(1, 0),
        "another block": ablation(1, 0, layers=(3,)),
        "all blocks": ablation(1, 0, layers=everywhere),
        "two blocks, in the prompt": ablation(0, 1, layers=(0, 2), scope=Scope.PROMPT),
        "in the response": ablation(2, 2, scope=Scope.RESPONSE),
        "generating": ablation(1, 3, layers=everywhere, scope=Scope.GENERATING),
        "added": step(1, 0),
        "unsteered": None,
    }
    for reference in (arms["one block"], arms["all blocks"], None):
        found = sequence_kl(lm, texts, reference, arms)
        for name, other in arms.items():
            wanted = [slow_kl(lm, row, reference, other) for row in texts]
            assert found[name] == pytest.approx(wanted, abs=OTHER_KERNELS), name
            # Not vacuous: different arms differ, by far more than rounding does.
            different = other is not reference
            assert bool(found[name].sum() > 1000 * OTHER_KERNELS) is different, name


def test_temperature_divides_the_logits_of_both_arms():
    lm, texts = tiny("llama"), rows((4, 5))
    (row,) = texts
    warm = sequence_kl(lm, texts, step(1, 0), {"": None}, temperature=2.0)[""]
    total = 0.0
    for k in range(len(row.response_ids)):
        seen = [*row.prompt_ids, *row.response_ids[:k]]
        p = (log_p(lm, seen, 4, step(1, 0))[-1] / 2).log_softmax(-1)
        q = (log_p(lm, seen, 4, None)[-1] / 2).log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
    assert warm == pytest.approx(total, abs=OTHER_KERNELS)
    cold = sequence_kl(lm, texts, step(1, 0), {"": None})[""]
    assert abs(warm - cold) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_an_arm_is_at_distance_0_from_itself(family):
    lm, texts = tiny(family), rows(*RAGGED)
    for arm in (None, step(1, 0), step(3, 1, scope=Scope.ALL)):
        same = sequence_kl(lm, texts, arm, {"itself": arm})["itself"]
        assert same.tolist() == [0.0] * len(texts)


def test_a_step_of_length_0_is_the_unsteered_arm():
    lm, texts = tiny("llama"), rows(*RAGGED)
    found = sequence_kl(lm, texts, None, {"zero": step(1, 0, alpha=0.0)})
    assert found["zero"].tolist() == [0.0] * len(texts)


def test_an_empty_response_is_at_distance_0_and_has_probability_1():
    lm, texts = tiny("llama"), rows((3, 0), (1, 0))
    assert sequence_kl(lm, texts, step(1, 0), {"": None})[""].tolist() == [0.0, 0.0]
    assert negative_log_likelihood(lm, texts).tolist() == [0.0, 0.0]
    assert sequence_kl(lm, [], step(1, 0), {"": None})[""].shape == (0,)


@pytest.mark.parametrize("rows_at_once", [1, 2, 3])
def test_the_size_of_the_chunks_does_not_matter(rows_at_once, monkeypatch):
    lm, texts = tiny("llama"), rows(*RAGGED, seed=1)
    arms = {"unsteered": None, "another layer": step(2, 1)}
    whole = sequence_kl(lm, texts, step(1, 0), arms)
    likelihood = negative_log_likelihood(lm, texts, step(1, 0))
    longest = 1 + max(response for _, response in RAGGED)
    limit = rows_at_once * longest * D_VOCAB
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", limit)
    # Not vacuous: the batch is cut indeed, and no chunk is larger than asked for.
    sizes = [len(chunk.ids) for chunk in scoring._chunks(lm, texts)]
    assert max(sizes) == rows_at_once < len(texts) == sum(sizes)
    for name, values in sequence_kl(lm, texts, step(1, 0), arms).items():
        assert values == pytest.approx(whole[name], abs=OTHER_KERNELS)
    again = negative_log_likelihood(lm, texts, step(1, 0))
    assert again == pytest.approx(likelihood, abs=OTHER_KERNELS)


@pytest.mark.parametrize("family", FAMILIES)
def test_negative_log_likelihood_is_the_loss_of_hugging_face(family):
    lm, texts = tiny(family), rows(*RAGGED)
    for row, found in zip(texts, negative_log_likelihood(lm, texts), strict=True):
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        labels = ids.clone()
        labels[:, : len(row.prompt_ids)] = -100
        if row.response_ids:
            with torch.no_grad():
                loss = lm.model(ids, labels=labels).loss
            wanted = float(loss) * len(row.response_ids)
            # The loss is a float32 mean of numbers near 5: five digits.
            assert found == pytest.approx(wanted, rel=1e-5)
            assert found > 1


def test_a_steered_likelihood_is_that_of_the_steered_model():
    lm, texts = tiny("gpt2"), rows((4, 6), (2, 3))
    for arm in (
        None,
        step(1, 0),
        step(NUM_LAYERS - 1, 1, alpha=-2.0),
        ablation(1, 2, layers=(0, 2)),
    ):
        found = negative_log_likelihood(lm, texts, arm)
        wanted = []
        for row in texts:
            ids = [*row.prompt_ids, *row.response_ids]
            table = log_p(lm, ids, len(row.prompt_ids), arm)
            start = len(row.prompt_ids) - 1
            steps = [table[start + k, t] for k, t in enumerate(row.response_ids)]
            wanted.append(-float(sum(steps)))
        assert found == pytest.approx(wanted, abs=OTHER_KERNELS)


def test_the_kl_of_drawn_texts_is_the_mean_of_their_log_likelihood_ratios():
    lm, num = tiny("llama"), 1500
    arm, other = step(1, 0, alpha=0.5), step(2, 1, alpha=0.5)
    prompt = "then there"
    drawn = generate(
        lm, [prompt], {"v": arm}, samples=num, decoding=Decoding(max_new_tokens=3)
    )
    ids = encode(lm, Text(prompt))[0]
    texts = [Continuation(ids, sample.token_ids) for sample in drawn]
    nats = sequence_kl(lm, texts, arm, {"": other})[""]
    own = negative_log_likelihood(lm, texts, arm)
    theirs = negative_log_likelihood(lm, texts, other)
    gap = nats - (theirs - own)
    # Both have the mean K(v || v'); the chain rule's sum has the smaller variance.
    error = gap.std() / math.sqrt(num)
    assert nats.mean() > 10 * error
    assert abs(gap.mean()) < 4 * error
    assert nats.std() < np.std(theirs - own)
