"""The nearest tokens of a state, against whole passes over the whole vocabulary."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.ground_truth import TWINS, duplicate_embedding
from tests.models import D_MODEL, D_VOCAB, borrowed, config, ids_and_mask, network, tiny
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from steergauge.errors import InputError
from steergauge.reachability import candidates
from steergauge.reachability.candidates import prefix_of
from steergauge.reachability.nearest import EDGES, Nearest, least_kl, nearest
from steergauge.reachability.tolerance import natural_states
from steergauge.runs import plan, reachability
from steergauge.runs.progress import Silent
from steergauge.runs.reachability import Reach
from steergauge.runs.spec import spec_from
from steergauge.runs.stages import Stages
from steergauge.runs.store import Store
from steergauge.split import LanguageModel
from steergauge.vector import Site, SteeringVector

LAYER = 2
PREFIX = ids_and_mask(6)[0][0].tolist()
TOKEN = 100
"""The prompt's own next one."""

OTHER = 17
"""One whose state is constructed."""

ROUNDING = 1e-5
"""Of a norm: what two ways to compute a state differ by is seen up to 1e-6."""


def brute_force(lm: LanguageModel, prefix: list[int]) -> np.ndarray:
    """States of every token after the prefix, by one plain pass each, in numpy."""
    return np.stack(
        [
            natural_states(lm, [*prefix, token], layer=LAYER)[-1].numpy()
            for token in range(lm.d_vocab)
        ]
    )


def targets(states: np.ndarray) -> torch.Tensor:
    """Natural, constructed, and random steps of several lengths from the token's own.

    Lengths from far below a swap's, which is about 10, to far above.
    """
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(5, states.shape[1], generator=generator, dtype=torch.float64)
    steps /= torch.linalg.vector_norm(steps, dim=-1, keepdim=True)
    lengths = torch.tensor([0.01, 1.0, 5.0, 10.0, 300.0], dtype=torch.float64)
    own = torch.from_numpy(states[TOKEN])
    rows = [
        own[None],
        torch.from_numpy(states[[OTHER]]),
        own + lengths[:, None] * steps,
    ]
    return torch.cat(rows)


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    return brute_force(tiny("llama"), PREFIX)


@pytest.fixture(scope="module")
def found(states) -> Nearest:
    prefix = prefix_of(tiny("llama"), PREFIX, layer=LAYER)
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "TOKENS_AT_ONCE", 64)  # Several batches.
        result = nearest(
            prefix,
            targets(states),
            token=TOKEN,
            origin=torch.from_numpy(states[TOKEN]),
            progress=seen.append,
        )
    assert seen == [64, 64, 64, 19]
    return result


def distances(states: np.ndarray) -> np.ndarray:
    gaps = states[None] - targets(states).numpy()[:, None]
    return np.linalg.norm(gaps, axis=-1)


def test_first_and_second_are_the_nearest_of_all_tokens(found, states):
    expected = distances(states)
    order = expected.argsort(axis=1)
    norm = np.linalg.norm(states, axis=1).max()
    # Not vacuous: no two tokens are as near within rounding, and answers differ.
    three = np.sort(expected, axis=1)[:, :3]
    assert np.diff(three, axis=1).min() > 2 * ROUNDING * norm
    assert len({*order[:, 0]}) >= 2
    assert found.first.tolist() == order[:, 0].tolist()
    assert found.second.tolist() == order[:, 1].tolist()
    np.testing.assert_allclose(found.d1, three[:, 0], atol=ROUNDING * norm)
    np.testing.assert_allclose(found.d2, three[:, 1], atol=ROUNDING * norm)


def test_a_natural_and_a_constructed_state_give_their_tokens(found, states):
    norm = np.linalg.norm(states[[TOKEN, OTHER]], axis=1)
    assert found.first[:2].tolist() == [TOKEN, OTHER]
    assert np.all(found.d1[:2] < ROUNDING * norm)
    assert np.all(found.d2[:2] > 100 * ROUNDING * norm)
    # A step of a hundredth stays nearest to where it began, at its own length.
    assert found.first[2] == TOKEN
    assert found.d1[2] == pytest.approx(0.01, abs=ROUNDING * norm[0])


def test_share_of_shorter_swaps_is_that_of_all_other_tokens(found, states):
    swaps = np.linalg.norm(np.delete(states - states[TOKEN], TOKEN, axis=0), axis=1)
    expected = [np.mean(swaps < length) for length in found.length]
    assert expected[0] == 0
    assert 0 < expected[1] < 1
    assert expected[-1] == 1
    assert found.length[2:].tolist() == pytest.approx([0.01, 1, 5, 10, 300])
    # The constructed step is a swap itself: rounding may put it on either side.
    assert found.shorter.tolist() == pytest.approx(expected, abs=1 / (D_VOCAB - 1))
    rest = np.arange(len(expected)) != 1
    assert np.array_equal(found.shorter[rest], np.array(expected)[rest])


def test_the_best_aligned_token_is_that_of_the_largest_cosine(found, states):
    steps = targets(states).numpy() - states[TOKEN]
    swaps = states - states[TOKEN]
    sizes = np.linalg.norm(swaps, axis=1)
    cosines = steps @ swaps.T / np.where(sizes > 0, sizes, np.inf)
    cosines[:, TOKEN] = -np.inf
    assert found.aligned[0] == -1
    assert math.isnan(found.cosine[0])
    expected = cosines[1:] / np.linalg.norm(steps[1:], axis=1, keepdims=True)
    assert found.aligned[1:].tolist() == expected.argmax(axis=1).tolist()
    assert found.aligned[1] == OTHER
    # A state's rounding is 1e-6 of a norm of about 7, a swap is as long as 5 or more.
    np.testing.assert_allclose(found.cosine[1:], expected.max(axis=1), atol=1e-5)
    assert found.cosine[1] == pytest.approx(1, abs=1e-9)
    assert np.all(found.cosine[2:] < 0.9)


def test_the_histogram_counts_every_token_in_lengths_of_the_step(found, states):
    assert EDGES[0] == 1 / 8
    assert EDGES[-1] == 64
    assert len(EDGES) == 55
    np.testing.assert_allclose(EDGES[6:] / EDGES[:-6], 2, rtol=1e-12)
    assert found.histogram[0].sum() == 0
    assert np.all(found.histogram[1:].sum(axis=1) == D_VOCAB)
    ratios = distances(states)[1:] / found.length[1:, None]
    # One token is at exactly 1, an edge, where rounding decides: left out on both
    # sides, as the sum of the bins beside it shows.
    at_one = int(np.flatnonzero(EDGES == 1)[0])
    for counts, row in zip(found.histogram[1:], ratios, strict=True):
        expected, _ = np.histogram(row.clip(EDGES[0], EDGES[-1]), EDGES)
        both = slice(at_one - 1, at_one + 1)
        assert counts[both].sum() == expected[both].sum()
        assert np.delete(counts, both).tolist() == np.delete(expected, both).tolist()
    # Not vacuous: many bins are used, the last one by what lies beyond it.
    assert (found.histogram.sum(axis=0) > 0).sum() > 10
    assert found.histogram[2, -1] == D_VOCAB - 1


@pytest.mark.parametrize("batch", [64, 512], ids=["in two batches", "in one"])
@pytest.mark.parametrize("asked", TWINS)
def test_two_tokens_with_one_state_are_both_found(asked, batch, monkeypatch):
    monkeypatch.setattr(candidates, "TOKENS_AT_ONCE", batch)
    lm = duplicate_embedding()
    prefix = prefix_of(lm, PREFIX, layer=LAYER)
    natural = natural_states(lm, [*PREFIX, asked], layer=LAYER)[-1]
    step = torch.zeros_like(natural)
    step[0] = 1
    found = nearest(
        prefix, torch.stack([natural, natural + step]), token=asked, origin=natural
    )
    assert sorted([found.first[0], found.second[0]]) == sorted(TWINS)
    # In float64 the model's rounding is 1e-15; other tokens are farther than 0.1.
    assert found.d1[0] == pytest.approx(found.d2[0], abs=1e-12)
    assert found.d1[0] < 1e-12
    # The other twin is no swap, whose direction would be that of rounding.
    assert found.aligned[1] not in TWINS
    assert found.aligned[1] >= 0


def test_of_two_equal_states_the_lower_id_is_first():
    """With states that are the same bit by bit, as rounding cannot be told here."""
    lm = duplicate_embedding()
    prefix = prefix_of(lm, (), layer=0)
    # At an empty prefix attention is the identity: each row is computed alone.
    states = prefix.states(torch.tensor(TWINS))
    assert torch.equal(states[0], states[1])
    found = nearest(
        prefix, states[:1], token=3, origin=prefix.states(torch.tensor([3]))[0]
    )
    assert (found.first[0], found.second[0]) == TWINS
    assert found.d1[0] == found.d2[0]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_least_kl_is_that_of_every_token_tried_by_hand(temperature):
    lm = tiny("llama")
    prefix = prefix_of(lm, PREFIX, layer=LAYER, whole=True)
    tokens = torch.arange(5, 65)
    rows = torch.tensor([[*PREFIX, token] for token in tokens.tolist()])
    logits = lm.logits(rows, torch.ones_like(rows, dtype=torch.bool), keep=1)[:, 0]
    q = (logits.double() / temperature).log_softmax(-1)
    steered = logits[20] + 0.05 * torch.randn(
        lm.d_vocab, generator=torch.Generator().manual_seed(0)
    )
    p = (steered.double() / temperature).log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1)
    token, nats = least_kl(prefix, steered, tokens=tokens, temperature=temperature)
    assert token == int(tokens[expected.argmin()]) == 25
    assert nats == pytest.approx(float(expected.min()), rel=1e-3)
    assert nats > 1e-4
    # Only among the tokens that are asked about, and itself at no cost.
    others = tokens[tokens != 25]
    token, nats = least_kl(prefix, steered, tokens=others, temperature=temperature)
    assert nats == pytest.approx(float(expected.sort().values[1]), rel=1e-3)
    assert token != 25
    same = prefix.logits(tokens)[20]
    assert least_kl(prefix, same, tokens=tokens)[1] < 1e-10


def test_the_least_kl_goes_through_the_tokens_in_parts(monkeypatch):
    prefix = prefix_of(tiny("llama"), PREFIX, layer=LAYER, whole=True)
    tokens = torch.arange(D_VOCAB)
    steered = prefix.logits(torch.tensor([77]))[0] + 0.1
    once = least_kl(prefix, steered, tokens=tokens)
    monkeypatch.setattr("steergauge.reachability.nearest.LOGITS_AT_ONCE", 30 * D_VOCAB)
    assert least_kl(prefix, steered, tokens=tokens)[0] == once[0] == 77
    with pytest.raises(InputError, match="no token"):
        least_kl(prefix, steered, tokens=tokens[:0])


class Largest(TorchDispatchMode):
    """Size of the largest tensor made inside the `with`, in numbers of 4 bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args=(), kwargs=None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor) and one._base is None:
                self.elements = max(self.elements, one.untyped_storage().size() // 4)
        return made


def test_no_tensor_grows_with_the_vocabulary():
    largest = {}
    for d_vocab in (2**11, 2**15):
        sizes = config("llama")
        sizes.vocab_size = d_vocab
        lm = borrowed(AutoModelForCausalLM.from_config(sizes).eval())
        prefix = prefix_of(lm, PREFIX, layer=LAYER)
        generator = torch.Generator().manual_seed(0)
        wanted = torch.randn(20, lm.d_model, generator=generator)
        with Largest() as seen:
            nearest(prefix, wanted, token=TOKEN, origin=wanted[0])
        largest[d_vocab] = seen.elements
    # Not vacuous: what a batch makes is seen, and so would be a number for each token.
    assert largest[2**11] >= candidates.TOKENS_AT_ONCE * lm.d_model
    assert largest[2**15] == largest[2**11]
    with Largest() as seen:
        prefix.lm.model.get_input_embeddings().weight.detach().clone()
    assert seen.elements > 4 * largest[2**15]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_swap_of_a_few_hundredths_is_one_in_half_precision_too(dtype):
    model = network("llama")
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[OTHER] = weight[TOKEN] + 0.03 * weight[OTHER]
    lm = borrowed(model.to(dtype))
    prefix = prefix_of(lm, (), layer=0)
    own, other = prefix.states(torch.tensor([TOKEN, OTHER])).double()
    share = float((other - own).norm() / own.norm())
    # Not vacuous: above what rounding makes of it, and below 8 units of bfloat16.
    assert candidates.rounded(dtype, layer=0) < share < 8 * 2.0**-7
    found = nearest(prefix, other[None], token=TOKEN, origin=own)
    assert found.aligned.tolist() == [OTHER]
    assert found.cosine[0] == pytest.approx(1, abs=1e-9)


def test_of_a_large_vocabulary_what_the_model_expects_here_is_looked_at(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(reachability, "ALL_TOKENS", 40)
    lm = tiny("llama")
    spec = spec_from({}, trait="formality", audits="states", alpha=1.0, layer=LAYER)
    stages = Stages(lm, plan.gather(lm, spec), Store(tmp_path), Silent())
    reach = Reach(stages, SteeringVector(torch.ones(D_MODEL), Site(LAYER)), 1.0, [])
    prefix = prefix_of(lm, PREFIX, layer=LAYER, whole=True)
    row = torch.tensor([PREFIX])
    here = lm.logits(row, torch.ones_like(row, dtype=torch.bool))[0, -1].topk(10)
    looked_at = reach._looked_at(prefix, OTHER, TOKEN).tolist()
    assert looked_at[:2] == [TOKEN, OTHER]
    assert {*here.indices.tolist()} <= {*looked_at}
    assert len({*looked_at}) == len(looked_at) <= 2 + 10 + 10
    # Not vacuous: what comes after the token here is another list.
    after = prefix.logits(torch.tensor([TOKEN]))[0].topk(10).indices.tolist()
    assert not {*after} <= {*looked_at}
    empty = prefix_of(lm, (), layer=LAYER, whole=True)
    assert len(reach._looked_at(empty, OTHER, TOKEN)) <= 2 + 10
