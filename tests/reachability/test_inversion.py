"""A text comes back from its own states, and from no others."""

import copy
import math
from pathlib import Path
from statistics import median

import pytest
import torch
from tests.ground_truth import TWINS, duplicate_embedding, trained
from tests.models import D_VOCAB, borrowed, ids_and_mask, network, tiny, tokenizer

from steergauge.errors import InputError, LayerOutOfRange, ShapeMismatch
from steergauge.loading import load
from steergauge.prompts import Text, encode, environment
from steergauge.reachability.inversion import FIRST, Absolute, Ball, invert
from steergauge.reachability.tolerance import calibrated

STORIES = Path(__file__).parents[2] / "../shared/models/stories260K"
STORY = "Once upon a time, there was a little girl named Lily. She loved to play."
OTHERS = ("One day, Tim found a big red ball.", "The cat sat in the sun and slept.")
ASKED = "Write a message to my neighbour about the flower market on Sunday, please."
LOOSE = Absolute(1e-3)
"""Float32 states of these models, near 10 long, are seen to differ by 1e-5 between two
ways to compute them; those of different tokens by 1 and more."""


def states_of(lm, ids, layer):
    """By one pass over the text alone, as no candidate is computed."""
    tokens = torch.tensor([list(ids)], device=lm.device)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return lm.streams(tokens, mask, layers=(layer,))[layer][0].double()


def text_of(num_tokens, *, seed=0):
    return ids_and_mask(num_tokens, seed=seed)[0][0].tolist()


def distances(lm, before, target, layer):
    """From the state of every token after `before`, each by a pass of its own."""
    vocabulary = torch.arange(lm.d_vocab)[:, None]
    rows = torch.cat([torch.tensor([before]).expand(lm.d_vocab, -1), vocabulary], 1)
    mask = torch.ones_like(rows, dtype=torch.bool)
    states = lm.streams(rows.long(), mask, layers=(layer,))[layer][:, -1]
    return (states.double() - target).norm(dim=-1)


@pytest.fixture(scope="module", params=["organism", "stories260K"])
def natural(request):
    """A trained model, twenty tokens of a text, and texts to calibrate on."""
    if request.param == "organism":
        lm, asked = trained(), [ASKED, *environment().prompts[:2]]
        rows = [encode(lm, Text(prompt))[0][:20] for prompt in asked]
        return lm, rows[0], [row[:12] for row in rows[1:]]
    if not STORIES.is_dir():
        pytest.skip("the model stories260K is not beside this checkout, in ../shared")
    lm = load(str(STORIES), device="cpu")
    rows = [lm.tokenizer(story)["input_ids"] for story in (STORY, *OTHERS)]
    return lm, rows[0][:20], [row[:12] for row in rows[1:]]


@pytest.mark.parametrize("depth", ["low", "middle", "last"])
def test_a_natural_text_comes_back_for_a_small_part_of_the_vocabulary(natural, depth):
    lm, ids, others = natural
    layer = {"low": 0, "middle": lm.num_layers // 2, "last": lm.num_layers - 1}[depth]
    assert len(ids) == 20
    ball = calibrated(lm, others, layer=layer)
    done = []
    found = invert(
        lm,
        states_of(lm, ids, layer),
        layer=layer,
        tolerance=ball,
        progress=done.append,
    )
    assert found.exact(ids)
    assert not found.exact([*ids[:-1], ids[0]])
    assert found.first_failure is None
    assert done == [1] * 20
    tested = [step.tested for step in found.steps]
    print(f"{lm.name}, layer {layer}: {median(tested):g} of {lm.d_vocab}, {tested}")
    # Seen: 16 to 80, and 4 % at most; in an order without sense it would be a half.
    assert median(tested) < 0.1 * lm.d_vocab
    for step in found.steps:
        assert step.accepted
        assert step.distance <= step.tolerance
        assert math.isnan(step.second) == (step.tested < lm.d_vocab)


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "gemma3", "mistral"])
def test_each_family_gives_back_the_text_whose_states_they_are(family, layer):
    lm = tiny(family)
    for seed in (0, 1):
        # Longer than the windows of sliding attention.
        ids = text_of(8, seed=seed)
        states = states_of(lm, ids, layer)
        assert invert(lm, states, layer=layer, tolerance=LOOSE).exact(ids)


def test_a_state_of_another_text_ends_in_that_text():
    lm, layer = tiny("llama"), 2
    ids = text_of(6)
    other = [*ids[:3], 77, *ids[4:]]
    states = states_of(lm, ids, layer)
    swapped = states_of(lm, other, layer)
    # Only what comes after the swapped token differs.
    assert torch.equal(states[:3], swapped[:3])
    assert ids[3] != 77
    found = invert(lm, swapped, layer=layer, tolerance=LOOSE)
    assert found.exact(other)
    mixed = torch.cat([swapped[:4], states[4:]])
    found = invert(lm, mixed, layer=layer, tolerance=LOOSE)
    assert (found.tokens[:4], found.first_failure) == (tuple(other[:4]), 4)


@pytest.mark.parametrize("length", [0.02, 1.0, 30.0])
def test_a_shifted_state_fails_at_once_with_the_nearest_of_all_tokens(length):
    lm, layer = tiny("llama"), 1
    ids = text_of(4)
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(1)).double()
    states = states_of(lm, ids, layer) + length * v / v.norm()
    found = invert(lm, states, layer=layer, tolerance=LOOSE)
    assert (len(found.steps), found.first_failure) == (1, 0)
    found = invert(lm, states, layer=layer, tolerance=LOOSE, go_on=True)
    assert (len(found.steps), found.first_failure) == (4, 0)
    for place, step in enumerate(found.steps):
        by_hand = distances(lm, found.tokens[:place], states[place], layer)
        first, second = by_hand.topk(2, largest=False).values.tolist()
        assert not step.accepted
        assert (step.token, step.tested) == (int(by_hand.argmin()), D_VOCAB)
        # Two ways to compute a state differ by 1e-6 or so in float32.
        assert step.distance == pytest.approx(first, abs=1e-5)
        assert step.second == pytest.approx(second, abs=1e-5)
        assert first < second
    # A short step leaves every token its own nearest; a long one leads elsewhere.
    if length < 1:
        assert found.tokens == tuple(ids)
        assert found.steps[0].distance == pytest.approx(length, abs=1e-5)
    if length > 10:
        assert found.tokens != tuple(ids)


def test_an_exhaustive_search_tries_all_and_finds_the_same():
    lm, layer = tiny("gpt2"), 3
    ids = text_of(5)
    states = states_of(lm, ids, layer)
    quick = invert(lm, states, layer=layer, tolerance=LOOSE)
    whole = invert(lm, states, layer=layer, tolerance=LOOSE, exhaustive=True)
    assert quick.exact(ids)
    assert whole.exact(ids)
    assert min(step.tested for step in quick.steps) < D_VOCAB
    for place, step in enumerate(whole.steps):
        by_hand = distances(lm, ids[:place], states[place], layer)
        assert step.tested == D_VOCAB
        second = float(by_hand.topk(2, largest=False).values[1])
        assert step.second == pytest.approx(second, abs=1e-5)
        assert step.second > 100 * LOOSE.radius
        assert step.other == step.second


def test_of_two_tokens_with_one_state_either_is_accepted_and_the_other_is_seen():
    lm, layer = duplicate_embedding(), 1
    ids = [70, TWINS[0], 80]
    for own in TWINS:
        ids[1] = own
        states = states_of(lm, ids, layer)
        found = invert(lm, states, layer=layer, tolerance=LOOSE, exhaustive=True)
        assert found.first_failure is None
        assert found.tokens[1] in TWINS
        step = found.steps[1]
        assert step.second <= step.tolerance
        assert found.steps[0].second > step.tolerance
        assert found.tokens[::2] == (70, 80)


def test_a_loose_tolerance_takes_the_nearest_of_a_batch_and_tells_how_near_others_are():
    lm, layer = tiny("llama"), 2
    own = 90
    (state,) = states_of(lm, [own], layer)
    vocabulary = torch.arange(lm.d_vocab)[:, None]
    mask = torch.ones_like(vocabulary, dtype=torch.bool)
    states = lm.streams(vocabulary, mask, layers=(layer,))[layer][:, 0].double()
    away = (states - state).norm(dim=-1)
    # No model ranks the first token: what starts texts is tried, then by number.
    start = lm.tokenizer.bos_token_id
    batch = [*dict.fromkeys([start, *range(FIRST)] if start else range(FIRST))][:FIRST]
    assert own not in batch
    first, second = away[batch].topk(2, largest=False).values.tolist()
    found = invert(lm, state[None], layer=layer, tolerance=Absolute(1e3))
    (step,) = found.steps
    assert (step.accepted, step.tested) == (True, FIRST)
    assert step.token == batch[int(away[batch].argmin())] != own
    # Two ways to compute a state differ by 1e-6 or so in float32.
    assert step.distance == pytest.approx(first, abs=1e-5)
    assert step.other == pytest.approx(second, abs=1e-5)
    assert first < second < 2 * step.tolerance
    assert math.isnan(step.second)


def test_in_half_precision_the_published_tolerance_refuses_natural_states():
    lm, layer = borrowed(network("llama").to(torch.bfloat16)), 3
    ids = text_of(12)
    states = states_of(lm, ids, layer)
    ball = calibrated(lm, [text_of(12, seed=seed) for seed in range(1, 5)], layer=layer)
    published = invert(
        lm, states, layer=layer, tolerance=Absolute(1e-5), go_on=True, exhaustive=True
    )
    found = invert(lm, states, layer=layer, tolerance=ball)
    # Not for want of the token: it is the nearest, and its state is rounded elsewhere.
    assert published.tokens == tuple(ids)
    refused = [step for step in published.steps if not step.accepted]
    assert refused
    assert max(step.distance for step in refused) > 1e-3
    assert found.exact(ids)


@pytest.mark.parametrize("starts", [True, False])
def test_what_starts_texts_is_tried_first_where_the_tokenizer_has_it(starts):
    pieces = copy.deepcopy(tokenizer())
    # In neither the first batch by number nor by embedding: all else is equal.
    pieces.bos_token = pieces.convert_ids_to_tokens(200) if starts else None
    lm, layer = load(network("llama"), tokenizer=pieces), 3
    assert lm.tokenizer.bos_token_id == (200 if starts else None)
    ids = [200, 70]
    found = invert(lm, states_of(lm, ids, layer), layer=layer, tolerance=LOOSE)
    assert found.exact(ids)
    assert (found.steps[0].tested == FIRST) == starts


def test_the_states_of_no_text_are_no_text():
    lm = tiny("llama")
    nothing = torch.zeros(0, lm.d_model, dtype=torch.float64)
    found = invert(lm, nothing, layer=1, tolerance=LOOSE)
    assert (found.steps, found.tokens, found.first_failure) == ((), (), None)
    assert found.exact([])


def test_inverting_leaves_the_model_as_it_was():
    lm = borrowed(network("gemma3"))
    ids, mask = ids_and_mask(9)
    before = lm.logits(ids, mask)
    weights = {name: value.clone() for name, value in lm.model.state_dict().items()}
    invert(lm, states_of(lm, ids[0].tolist(), 2), layer=2, tolerance=LOOSE)
    assert torch.equal(lm.logits(ids, mask), before)
    for name, value in lm.model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_what_no_inversion_can_start_from_is_refused():
    lm = tiny("llama")
    states = states_of(lm, text_of(3), 1)
    with pytest.raises(LayerOutOfRange, match="layer 4"):
        invert(lm, states, layer=4, tolerance=LOOSE)
    with pytest.raises(ShapeMismatch, match="48 wide"):
        invert(lm, states[:, :-1], layer=1, tolerance=LOOSE)
    states[1, 5] = torch.nan
    with pytest.raises(InputError, match="place 1 holds NaN"):
        invert(lm, states, layer=1, tolerance=LOOSE)


@pytest.mark.parametrize("radius", [-1e-5, math.nan, math.inf])
def test_a_tolerance_is_a_distance(radius):
    assert isinstance(Absolute(0.0), Ball)
    assert Absolute(0.5).at(3, 100.0) == 0.5
    with pytest.raises(InputError, match="tolerance"):
        Absolute(radius)
