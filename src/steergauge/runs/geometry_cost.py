"""What the geometry of a run will cost: the part of `estimate` that is not texts.

With M_l = 2 M (1 - (l + 1) / L) FLOPs for a token through the blocks above l, N texts
of K tokens in a Fisher matrix of width d, and T tokens of a whole text ::

    columns   2 N d K c M_l        of two Fisher matrices; c = 3 in forward mode
    metric    2 N K x 4 V d^2      in float64, which counts twice
    rays      steps x candidates x test prompts x K x 2 M_l         and rounding
    search    budgets x trials x checked texts x T x M_l
    published 4000 x M_l           two steps for 1000 probes, in two precisions at most
"""

from steergauge.geometry.search import HALVINGS, SHRINKAGES
from steergauge.jacobian import FORWARD_FROM
from steergauge.runs.along import MULTIPLES, NUM_LINEAR, NUM_SMALLEST, STEPS
from steergauge.runs.alternatives import BUDGETS
from steergauge.runs.plan import Inputs

NUM_CANDIDATES = 4 + NUM_SMALLEST
"""Of T7: all-ones, random, top and v, and the smallest ones."""

PUBLISHED_STEPS = 4000


def geometry_texts(inputs: Inputs) -> tuple[int, int]:
    """Texts drawn for the geometry alone, and arms that it adds to the test."""
    wanted = {*inputs.spec.audits}
    prompts = len(inputs.fit_prompts) + len(inputs.validation_prompts)
    added = 2 if "alternative" in wanted else 0
    return 2 * prompts, added


def geometry_flops(
    inputs: Inputs, *, above: float, prompt: int, d_model: int, d_vocab: int
) -> float:
    """FLOPs of Fisher matrices, rays and search together.

    Args:
        inputs: of the run.
        above: FLOPs of one token through the blocks above the layer, and the head.
        prompt: tokens of a prompt.
        d_model: width of the stream.
        d_vocab: tokens.
    """
    spec, wanted = inputs.spec, {*inputs.spec.audits}
    num = len(inputs.fit_prompts)
    tokens = min(spec.geometry_tokens, spec.max_new_tokens)
    if not num:
        return 0.0
    mode = 3 if tokens >= FORWARD_FROM else 1
    matrices = 1 + ("alternative" in wanted)
    a_text = d_model * tokens * mode * above + 8.0 * tokens * d_vocab * d_model**2
    total = matrices * num * a_text
    if "nulls" in wanted:
        short = len(inputs.test_prompts) * tokens
        total += 2 * (len(STEPS) + 1) * NUM_CANDIDATES * short * above
    if "alternative" in wanted:
        whole = len(inputs.validation_prompts) * (prompt + spec.max_new_tokens)
        trials = len(SHRINKAGES) * (HALVINGS + 2) + 1
        total += (len(BUDGETS) + 1) * trials * whole * above
    if not wanted.isdisjoint({"linearity", "alternative"}):
        total += 4 * len(MULTIPLES) * min(num, NUM_LINEAR) * tokens * above
    if "spectrum" in wanted:
        total += PUBLISHED_STEPS * above
    return total
