"""Reachability where the answer is known: trained models, twins, swaps, exact nulls.

A natural state is some token's, that of a step in the direction of another token's
state is that token's, and a step of no direction in particular is nobody's. Whole runs
where an audit's verdict is meant, the package alone where a state is.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import ground_truth
from tests.models import D_MODEL, tiny
from tests.runs.test_reachability import SMALL, drawn, prompt_file

from steergauge.audits.finding import Verdict
from steergauge.audits.states import Searched, states
from steergauge.loading import load
from steergauge.prompts import environment
from steergauge.reachability.candidates import prefix_of
from steergauge.reachability.inversion import invert
from steergauge.reachability.nearest import EDGES, nearest
from steergauge.reachability.tolerance import calibrated, natural_states
from steergauge.runs.execute import audit
from steergauge.runs.reachability import NUM_RANDOM
from steergauge.vector import Site, SteeringVector

STORIES = Path(__file__).parents[1] / "../shared/models/stories260K"
THINGS = ("ball", "cake", "tree", "dog", "boat", "car", "cat", "bird", "book", "hat")
OPENINGS = ("One day, Lily found a {} and", "Tim and Mom went to buy a {}, but the")
NUM_TOKENS = 20


def stories() -> str:
    if not STORIES.is_dir():
        pytest.skip("the model stories260K is not beside this checkout, in ../shared")
    return str(STORIES)


def shown(thing: str, word: str) -> str:
    return f"Tim saw a {thing}. He was {word}"


@pytest.fixture(scope="module", params=["builtin:organism", "stories260K"])
def trained(request, tmp_path_factory):
    """A trained model, texts to invert, and the options of a run of it."""
    folder = tmp_path_factory.mktemp("trained")
    sizes = SMALL | {"audits": "states,inversion", "num_prompts": 10}
    sizes |= {"reach_prompts": 10, "reach_tokens": 2}
    if request.param == "builtin:organism":
        texts = list(environment("genre-shift").prompts)
        return load("builtin:organism", device="cpu"), texts, sizes | {"trait": "humor"}
    lm = load(stories(), device="cpu")
    texts = [opening.format(thing) for opening in OPENINGS for thing in THINGS]
    more = [f"Once upon a time there was a {thing}" for thing in THINGS]
    (folder / "prompts.txt").write_text("\n".join([*texts, *more]))
    pairs = [
        {"positive": shown(thing, "happy"), "negative": shown(thing, "sad")}
        for thing in THINGS
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    files = {name: str(folder / f"{name}.txt") for name in ("prompts",)}
    files["pairs"] = str(folder / "pairs.jsonl")
    return lm, texts, sizes | files


def test_texts_of_twenty_tokens_come_back_from_their_states(trained):
    lm, texts, _ = trained
    rows = [lm.tokenizer(text)["input_ids"][:NUM_TOKENS] for text in texts]
    long = [row for row in rows if len(row) == NUM_TOKENS]
    # Texts of few tokens are put together until they are long enough.
    joined = lm.tokenizer(" ".join(texts[:6]))["input_ids"]
    long += [joined[:NUM_TOKENS], joined[-NUM_TOKENS:]]
    layer = lm.num_layers // 2
    tolerance = calibrated(lm, rows[-4:], layer=layer)
    for row in (long[0], long[-1]):
        found = invert(
            lm, natural_states(lm, row, layer=layer), layer=layer, tolerance=tolerance
        )
        assert found.exact(row)
        # Found, and not merely the last that was left.
        tested = np.median([step.tested for step in found.steps])
        assert tested < lm.d_vocab / 2


def test_an_extracted_vectors_states_are_nobodys_and_the_origin_is_nearest(
    trained, tmp_path
):
    lm, _, options = trained
    run = audit(lm, out=tmp_path / "run", **options)
    found = run.findings["states"]
    assert found.verdict is Verdict.ORIGIN_NEAREST
    assert all(control.holds for control in found.controls)
    # Without what is nearer, eta is 1 to the tolerance that a state has.
    assert found.estimate.value == pytest.approx(1, abs=1e-3)
    families = {row["name"]: row for row in found.details["by_target"]}
    assert families["natural"]["accepted"] == families["constructed"]["accepted"] == 1
    assert families["natural"]["nearest_is_original"] == 1
    assert families["constructed"]["nearest_is_original"] == 0
    assert families["sign_flip"]["num"] == 10
    inverted = run.findings["inversion"]
    assert inverted.verdict is Verdict.UNREACHED
    natural = inverted.details["natural"]
    # Prompts that begin with the same two tokens are one sequence.
    assert natural["exact"] == natural["num"] > 0
    assert inverted.details["steered"]["first_failure"] == [0] * natural["num"]


def test_two_tokens_with_one_state_are_named_and_do_not_stop_the_audit(tmp_path):
    lm = ground_truth.duplicate_embedding()
    first, second = (lm.tokenizer.decode([token]) for token in ground_truth.TWINS)
    # A twin in every prompt.
    starts = Path(prompt_file(tmp_path)).read_text().splitlines()
    prompts = tmp_path / "twins.txt"
    prompts.write_text("\n".join(f"{start}{first}ta" for start in starts))
    options = SMALL | {"audits": "states,inversion", "prompts": str(prompts)}
    run = audit(lm, drawn(), out=tmp_path / "run", **options)
    found = run.findings["states"]
    assert found.details["collisions"] == [[first, second]]
    named = f"Collisions, two tokens that have one state: {first!r} and {second!r}."
    assert named in found.reasons
    # One of four places has no single answer; the others do, and are what is judged by.
    assert found.details["num_positions"] == 8
    assert found.details["num_resolvable"] == 6
    assert all(control.holds for control in found.controls)
    assert found.verdict is not Verdict.UNINFORMATIVE


def test_all_ones_in_gpt2_is_out_of_reach_as_a_state_and_nothing_as_behaviour(tmp_path):
    ones = SteeringVector(0.1 * torch.ones(D_MODEL), Site(1))
    prompts = prompt_file(tmp_path, 24)
    options = SMALL | {"audits": "states,access", "prompts": prompts}
    options |= {"reach_prompts": 6, "num_prompts": 6}
    run = audit(tiny("gpt2"), ones, out=tmp_path / "run", **options)
    found = run.findings["states"]
    assert found.verdict in (Verdict.ORIGIN_NEAREST, Verdict.UNREACHED)
    assert found.estimate.value == pytest.approx(1, abs=1e-6)
    families = {row["name"]: row for row in found.details["by_target"]}
    assert families["v"]["accepted"] == 0
    # Rounding only: float32 has lost 6e-8 of h, and KL is quadratic in that.
    assert found.details["kl"]["none"] < 1e-10
    assert any("output cannot tell" in text for text in found.reasons)
    assert run.findings["access"].verdict is Verdict.UNINFORMATIVE
    # Not vacuous: a step of that length elsewhere is seen.
    other = drawn(length=ones.norm)
    seen = audit(
        tiny("gpt2"), other, out=tmp_path / "o", **options | {"audits": "states"}
    )
    assert seen.findings["states"].details["kl"]["none"] > 1e-5
    assert not any(
        "output cannot tell" in text for text in seen.findings["states"].reasons
    )


LAYER = 1


def at_one_place(lm, ids, step, tolerance) -> Searched:
    """The last place of a row, steered by `step` there and nowhere else."""
    *before, token = ids
    prefix = prefix_of(lm, before, layer=LAYER)
    place, h = len(before), natural_states(lm, ids, layer=LAYER)[-1]
    other = (token + 1) % lm.d_vocab
    reached = natural_states(lm, [*before, other], layer=LAYER)[-1]
    generator = torch.Generator().manual_seed(place)
    random = torch.randn(NUM_RANDOM, lm.d_model, generator=generator).double()
    random *= (step.norm() / random.norm(dim=-1))[:, None]
    ends = torch.cat([torch.stack([h, reached, h + step]), h + random])
    seen = nearest(prefix, ends, token=token, origin=h)
    arrays = {
        "places": [place],
        "token_ids": [token],
        "constructed": [other],
        "tolerance": [tolerance.at(place, float(h.norm()))],
        "norm": [float(h.norm())],
        "kl_none": [1.0],
        "kl_least": [0.0],
        "kl_token": [token],
        "histogram": seen.histogram[2][None],
    }
    names = ("first", "second", "aligned", "d1", "d2", "length", "shorter", "cosine")
    arrays |= {name: getattr(seen, name)[None] for name in names}
    made = {name: np.array(values) for name, values in arrays.items()}
    text = lm.tokenizer.decode(ids)
    return Searched(prompt=text, tokens=(lm.tokenizer.decode([token]),), **made)


def judged(lm, rows, step, tolerance):
    targets = ["natural", "constructed", "v"]
    targets += [f"random[{k}]" for k in range(NUM_RANDOM)]
    return states(
        [at_one_place(lm, row, step, tolerance) for row in rows],
        targets,
        decode={token: str(token) for token in range(lm.d_vocab)},
        d_vocab=lm.d_vocab,
        num_kl=lm.d_vocab,
        floor_kl=1e-12,
        edges=EDGES.tolist(),
        read_layer=LAYER,
        layer=LAYER,
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_swap_of_tokens_is_reached_where_it_was_taken_and_nowhere_else(family):
    lm = tiny(family)
    rows = [row[:4] for row in ground_truth.texts(8)]
    tolerance = calibrated(lm, rows[5:], layer=LAYER)
    here, swapped = rows[0], 77
    assert here[-1] != swapped
    ends = ([*here[:-1], swapped], here)
    natural, other = (natural_states(lm, ids, layer=LAYER)[-1] for ids in ends)
    # In the precision that a vector is kept in.
    step = (natural - other).float().double()
    # One place says so; four prompts are the fewest that the audit says it of.
    at_home = judged(lm, [here] * 4, step, tolerance)
    assert at_home.verdict is Verdict.REACHABLE
    position, *_ = at_home.details["positions"]
    assert (position["nearest"], position["aligned"]) == (str(swapped), str(swapped))
    assert position["cosine"] == pytest.approx(1, abs=1e-6)
    # The same vector after other tokens leads to no token's state.
    elsewhere = judged(lm, rows[1:5], step, tolerance)
    assert elsewhere.verdict not in (Verdict.REACHABLE, Verdict.UNINFORMATIVE)
    assert all(
        position["d1"] > 10 * position["tolerance"]
        for position in elsewhere.details["positions"]
    )
