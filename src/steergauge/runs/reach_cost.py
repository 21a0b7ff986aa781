"""What the reachability of a run will cost: the part of `estimate` that is not texts.

With M_r = 2 M (r + 1) / L FLOPs for a token through blocks 0..r, r where states are
read, M for one through the whole model, n places in all, V tokens ::

    search     n V M_r, and n min(V, 2048) M for the smallest KL; n V x 45 targets x 4 d
    inversion  n V M_r for steered states, and n x 1024 M_r for natural ones
    access     (1 + hidden prompts) x methods x evaluations x texts x tokens x M
"""

from steergauge.runs.goals import (
    DRAWN_PER_HIDDEN,
    NUM_FIT,
    RESPONSE_TOKENS,
    num_searched_on,
)
from steergauge.runs.manifold import NUM_NATURAL, NUM_SWAPS
from steergauge.runs.plan import Inputs
from steergauge.runs.reachability import ALL_TOKENS, NUM_OTHERS, NUM_RANDOM

NATURAL_CANDIDATES = 1024
"""Tokens that are tried until a natural one is found, to an order of magnitude."""

NUM_SEARCHES = 2
"""Methods whose cost is set by the number of evaluations."""

NUM_PROMPT_ARMS = 4
"""Rows of the access table whose texts are generated, at most."""


def reach_texts(inputs: Inputs) -> list[tuple[int, int, int]]:
    """Texts drawn for reachability alone: prompts, arms and samples of each stage."""
    wanted, found = {*inputs.spec.audits}, []
    num = len(inputs.reference_prompts)
    if "density" in wanted:
        found.append((num, 1, max(1, -(-NUM_NATURAL // num))))
    if "access" in wanted:
        tested, searched_on = len(inputs.test_prompts), num_searched_on(inputs)
        # Examples there are only beside the texts that are searched on.
        arms = NUM_PROMPT_ARMS - (searched_on <= NUM_FIT)
        found += [(tested, 1, inputs.spec.samples)] * arms
        found.append((searched_on, 1, 1))
        found += [(searched_on + tested, 1, 1)] * inputs.spec.num_hidden
    return found


def reach_flops(
    inputs: Inputs,
    *,
    below: float,
    whole: float,
    prompt: int,
    d_model: int,
    d_vocab: int,
) -> float:
    """FLOPs of the searches together.

    Args:
        inputs: of the run.
        below: FLOPs of one token through the blocks up to where states are read.
        whole: FLOPs of one token through the model.
        prompt: tokens of a prompt.
        d_model: width of the stream.
        d_vocab: tokens.
    """
    spec, wanted = inputs.spec, {*inputs.spec.audits}
    prompts = min(spec.reach_prompts, len(inputs.test_prompts))
    places = prompts * min(spec.reach_tokens, prompt)
    total = 0.0
    if "states" in wanted:
        targets = 3 + NUM_RANDOM + 2 * NUM_OTHERS
        total += places * d_vocab * (below + 4.0 * targets * d_model)
        tried = d_vocab if d_vocab <= ALL_TOKENS else ALL_TOKENS // 2
        total += places * tried * whole
    if "inversion" in wanted:
        total += places * (d_vocab + NATURAL_CANDIDATES) * below
    if "access" in wanted:
        row = prompt + spec.search_tokens + RESPONSE_TOKENS
        tried = NUM_SEARCHES * spec.search_evaluations * (1 + spec.num_hidden)
        total += tried * NUM_FIT * row * whole
        total += 3 * DRAWN_PER_HIDDEN * spec.num_hidden * NUM_FIT * row * whole
    if "density" in wanted:
        total += len(inputs.test_prompts) * NUM_SWAPS * below
    return total
