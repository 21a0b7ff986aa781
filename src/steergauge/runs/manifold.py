"""T19 in a run: natural states, and steered ones among them.

Natural texts are unsteered responses to the reference prompts. Half of the prompts fit
the density and the other half calibrate it, with one state a text at a random place
from the last prompt token on; so the two share no prompt, and neither shares one with
the states under test, which are one a test prompt. Several texts of one prompt are
alike: the audit asks for many prompts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steergauge.audits import controls
from steergauge.intervention import Intervention, edits
from steergauge.prompts import padded
from steergauge.reachability.candidates import prefix_of
from steergauge.runs.arms import direction_seed
from steergauge.runs.reachability import Reach, unsteered_arms
from steergauge.runs.store import Rows
from steergauge.scoring import Continuation
from steergauge.split import positions

NUM_NATURAL = 1000
"""Natural texts, about: half of them calibrate, and 1 in 1000 needs many."""

PLACES_TO_FIT = 8
"""States of each text that the density is fitted on."""

NUM_SWAPS = 64
"""Random tokens, in pairs, of which the swap that is nearest in length is taken."""

ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Manifold:
    """Natural states, and the states under test by family, one row each.

    Attributes:
        reference: to fit the density on.
        calibration: one a text.
        calibration_prompts: which prompt each of them is of.
        natural: of the test texts.
        v: the same, steered.
        random: natural ones and a random step of v's length each.
        swap: natural ones and the swap of two other tokens, at v's length, each.
        prompts: which prompt each state under test is of.
    """

    reference: np.ndarray
    calibration: np.ndarray
    calibration_prompts: np.ndarray
    natural: np.ndarray
    v: np.ndarray
    random: np.ndarray
    swap: np.ndarray
    prompts: np.ndarray


def manifold(reach: Reach, texts: Rows) -> Manifold:
    """States of natural texts, and of the test's unsteered `texts`."""
    stages = reach.stages
    prompts = stages.inputs.reference_prompts
    samples = max(1, -(-NUM_NATURAL // len(prompts)))
    drawn = reach.drawn("reach-natural", unsteered_arms(), prompts, samples)
    own = [row for row in texts if row["arm"] == "unsteered" and row["sample"] == 0]
    stages.progress.begin("reachability: natural states", 2)

    def make() -> Mapping[str, np.ndarray]:
        half = len(prompts) // 2
        to_fit = [row for row in drawn if row["prompt_index"] < half]
        rest = [row for row in drawn if row["prompt_index"] >= half]
        return {
            "reference": _states(reach, to_fit, PLACES_TO_FIT)[0].numpy(),
            "calibration": _states(reach, rest, 1)[0].numpy(),
            "calibration_prompts": np.array([row["prompt_index"] for row in rest]),
        }

    natural = stages.store.arrays("reach-natural-states", make)
    stages.progress.advance(1)
    tested = stages.store.arrays("reach-test-states", lambda: _tested(reach, own))
    stages.progress.advance(1)
    return Manifold(**natural, **tested)


def _tested(reach: Reach, rows: Rows) -> dict[str, np.ndarray]:
    """States under test: natural, steered, and steps of the same length."""
    natural, places = _states(reach, rows, 1)
    steered, _ = _states(reach, rows, 1, reach.everywhere)
    length = torch.linalg.vector_norm(steered - natural, dim=-1, keepdim=True)
    seeds = [direction_seed(reach.stages.spec, "manifold", k) for k in range(len(rows))]
    drawn = torch.stack(
        [controls.random_direction(reach.vector, seed=s).direction for s in seeds]
    ).double()
    swaps = torch.stack(
        [
            _swap(reach, text, place, size=float(size), seed=seed)
            for text, place, size, seed in zip(
                _rows_of(reach, rows), places, length, seeds, strict=True
            )
        ]
    )
    return {
        "natural": natural.numpy(),
        "v": steered.numpy(),
        "random": (natural + length * _unit(drawn)).numpy(),
        "swap": (natural + length * _unit(swaps)).numpy(),
        "prompts": np.array([row["prompt_index"] for row in rows]),
    }


def _swap(
    reach: Reach, text: Continuation, place: int, *, size: float, seed: int
) -> Float[Tensor, " d_model"]:
    """The step between two tokens other than the text's, of a length nearest to `size`.

    A step from the text's own token leads towards another natural state: states in
    between are less extreme than either, and would be no bar.
    """
    ids = [*text.prompt_ids, *text.response_ids]
    prefix = prefix_of(reach.lm, ids[:place], layer=reach.layer)
    generator = np.random.default_rng(seed)
    num = min(NUM_SWAPS, 2 * ((reach.lm.d_vocab - 1) // 2))
    drawn = generator.choice(reach.lm.d_vocab - 1, num, replace=False)
    others = drawn + (drawn >= ids[place])
    tokens = torch.tensor(others, device=reach.lm.device)
    states = prefix.states(tokens).double().cpu()
    steps = states[::2] - states[1::2]
    lengths = torch.linalg.vector_norm(steps, dim=-1)
    # Two tokens with one state are no swap.
    away = torch.where(lengths > 0, (lengths - size).abs(), torch.inf)
    return steps[int(away.argmin())]


def _unit(rows: Tensor) -> Tensor:
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(1e-300)


def _rows_of(reach: Reach, rows: Rows) -> list[Continuation]:
    return reach.stages.continuations(rows)


def _states(
    reach: Reach, rows: Rows, num: int, steering: Intervention | None = None
) -> tuple[Float[Tensor, "states d_model"], list[int]]:
    """States at up to `num` places of each text, and the first of these places."""
    texts = _rows_of(reach, rows)
    places = [
        _places(reach, row, text, num) for row, text in zip(rows, texts, strict=True)
    ]
    whole = [[*text.prompt_ids, *text.response_ids] for text in texts]
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(whole[i]))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = order[start : start + ROWS_AT_ONCE]
        ids, mask = padded([whole[i] for i in some], device=reach.lm.device)
        lengths = torch.tensor([len(texts[i].prompt_ids) for i in some])
        steered = edits(
            [steering] * len(some), positions(mask), mask, lengths.to(mask.device)
        )
        layer = reach.layer
        stream = reach.lm.streams(ids, mask, layers=(layer,), edits=steered)[layer]
        for row, i in enumerate(some):
            pad = ids.shape[1] - len(whole[i])
            chosen = torch.tensor(places[i], device=stream.device) + pad
            found[i] = stream[row, chosen].double().cpu()
    return torch.cat(found), [own[0] for own in places]


def _places(
    reach: Reach, row: Mapping[str, object], text: Continuation, num: int
) -> list[int]:
    """Random places of a text from its last prompt token on, the same in every run."""
    first = len(text.prompt_ids) - 1
    length = 1 + len(text.response_ids)
    name = f"places {row['prompt_index']} {row['sample']}"
    seed = direction_seed(reach.stages.spec, name, num)
    drawn = np.random.default_rng(seed).permutation(length)[:num]
    return [first + int(place) for place in drawn]
