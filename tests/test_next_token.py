"""Next-token distances and gains equal those of the plain model with our own hook."""

from dataclasses import replace

import pytest
import torch
from tests.models import D_MODEL, tiny

from steergauge.intervention import Add, Scope
from steergauge.next_token import (
    PROMPTS_AT_ONCE,
    RECOMPUTED,
    gains,
    next_token_distances,
)
from steergauge.vector import Site, SteeringVector

FAMILIES = ("llama", "gpt2")
LAYER = 1
PROMPTS = [
    "so",
    "lost in the old chair",
    "then a cat",
    "the long road to the sea and the moon",
    "the old chair",
]
"""Of other lengths, so that a batch of them is padded."""

MEASURES = ("l2", "l2_centred", "agreement", "overlap", "kl", "js", "tv")
OTHER_KERNELS = 1e-4
"""Padded batches take other kernels than single rows: float32 rounding of logits of
size 1 to 10, seen up to 1e-5 in their distances."""


def vector(seed: int, norm: float = 4.0) -> SteeringVector:
    drawn = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))
    return SteeringVector(drawn * (norm / drawn.norm()), Site(LAYER))


def arms(scope: Scope) -> tuple[Add, dict[str, Add | None]]:
    others = {
        "unsteered": None,
        "other": Add(vector(1), 1.5, scope),
        "minus_v": Add(vector(0), -1.5, scope),
    }
    return Add(vector(0), 1.5, scope), others


def plain_logits(lm, prompt: str, step: torch.Tensor | None, scope: Scope):
    """Of the token after the prompt, which goes through the model alone, unpadded."""
    ids = torch.tensor([lm.tokenizer(prompt)["input_ids"]])
    first = 0 if scope in (Scope.ALL, Scope.PROMPT) else ids.shape[1] - 1

    def hook(_module, _args, output):
        stream = output[0] if isinstance(output, tuple) else output
        added = torch.zeros_like(stream)
        added[:, first:] = step
        stream = stream + added
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    layers = lm.model.transformer.h if lm.model.config.model_type == "gpt2" else None
    block = (layers or lm.model.model.layers)[LAYER]
    handle = block.register_forward_hook(hook) if step is not None else None
    try:
        return lm.model(ids, use_cache=False).logits[0, -1].double()
    finally:
        if handle is not None:
            handle.remove()


def expected(own: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Every measure by its formula."""
    p, q = own.softmax(-1), other.softmax(-1)
    m = (p + q) / 2
    gap = own - other
    tops = [{*x.argsort(descending=True)[:10].tolist()} for x in (own, other)]
    return {
        "l2": float(gap.square().sum().sqrt()),
        "l2_centred": float((gap - gap.mean()).square().sum().sqrt()),
        "agreement": float(own.argmax() == other.argmax()),
        "overlap": len(tops[0] & tops[1]) / 10,
        "kl": float((p * (p / q).log()).sum()),
        "js": float((p * (p / m).log() + q * (q / m).log()).sum() / 2),
        "tv": float((p - q).abs().sum() / 2),
    }


@pytest.mark.parametrize("scope", [Scope.GENERATING, Scope.ALL])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_distances_are_those_of_the_plain_model_one_prompt_at_a_time(family, scope):
    lm, (v, others) = tiny(family), arms(scope)
    lengths = {len(lm.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS}
    assert len(lengths) == len(PROMPTS)
    rows = next_token_distances(lm, PROMPTS, v, others)
    assert len(rows) == len(PROMPTS) * (len(others) + 1)
    for row in rows:
        if row["other"] == RECOMPUTED:
            continue
        prompt, other = PROMPTS[row["prompt_index"]], others[row["other"]]
        own = plain_logits(lm, prompt, 1.5 * v.vector.direction, scope)
        step = other and other.alpha * other.vector.direction
        theirs = expected(own, plain_logits(lm, prompt, step, scope))
        assert theirs["l2"] > 1
        for measure in MEASURES:
            assert row[measure] == pytest.approx(
                theirs[measure], abs=OTHER_KERNELS, rel=OTHER_KERNELS
            ), (measure, row)


@torch.no_grad()
def test_the_scope_reaches_the_whole_prompt_only_if_it_says_so():
    lm = tiny("llama")
    seen = {}
    for scope in (Scope.GENERATING, Scope.ALL):
        v, others = arms(scope)
        rows = next_token_distances(lm, PROMPTS, v, {"unsteered": others["unsteered"]})
        seen[scope] = [row["l2"] for row in rows if row["other"] == "unsteered"]
    first, second = seen.values()
    for prompt, here, there in zip(PROMPTS, first, second, strict=True):
        alone = len(lm.tokenizer(prompt)["input_ids"]) == 1
        assert (abs(here - there) < OTHER_KERNELS) == alone


@pytest.mark.parametrize("family", FAMILIES)
def test_v_through_another_path_differs_by_rounding_and_by_no_more(family):
    v, others = arms(Scope.GENERATING)
    rows = next_token_distances(tiny(family), PROMPTS, v, others)
    again = [row for row in rows if row["other"] == RECOMPUTED]
    assert [row["prompt_index"] for row in again] == list(range(len(PROMPTS)))
    for row in again:
        assert row["l2"] < OTHER_KERNELS
        assert row["tv"] < OTHER_KERNELS
        # Second order in the logits: rounding of 1e-5 is a KL of 1e-10.
        assert max(row["kl"], row["js"]) < 1e-8
        assert row["agreement"] == 1
    # Another path, not the same numbers again: some of them are rounded otherwise.
    assert max(row["l2"] for row in again) > 0


def test_prompts_keep_their_places_in_more_than_one_batch():
    lm, (v, _) = tiny("llama"), arms(Scope.GENERATING)
    prompts = [f"{prompt} {i}" for i in range(4) for prompt in PROMPTS]
    assert len(prompts) > PROMPTS_AT_ONCE
    rows = next_token_distances(lm, prompts, v, {"unsteered": None})
    gained = gains(lm, prompts, v, {})
    for index in (0, PROMPTS_AT_ONCE - 1, PROMPTS_AT_ONCE, len(prompts) - 1):
        (alone, _) = next_token_distances(lm, [prompts[index]], v, {"unsteered": None})
        (here,) = (
            row
            for row in rows
            if row["prompt_index"] == index and row["other"] == "unsteered"
        )
        assert here["l2"] == pytest.approx(alone["l2"], rel=OTHER_KERNELS)
    assert [row["prompt_index"] for row in gained] == list(range(len(prompts)))


def dense_gain(lm, prompt: str, unit: torch.Tensor, scope: Scope) -> float:
    """||J u||^2 with all columns of J from reverse mode, at the unsteered state."""

    def logits(step: torch.Tensor) -> torch.Tensor:
        return plain_logits(lm, prompt, step, scope)

    start = torch.zeros(D_MODEL, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(logits, start)
    return float((jacobian @ unit).square().sum())


@pytest.mark.parametrize("scope", [Scope.GENERATING, Scope.ALL])
def test_gains_are_those_of_the_dense_jacobian(scope):
    lm = tiny("gpt2", dtype=torch.float64)
    v = vector(0, norm=0.5)
    others = {"a": vector(2, norm=0.5), "b": vector(3, norm=0.5)}
    prompts = PROMPTS[:3]
    rows = gains(lm, prompts, Add(v, 1.5, scope), others)
    units = {"v": v, **others}
    assert len(rows) == len(prompts) * len(units)
    for row in rows:
        direction = units[row["direction"]].direction.double()
        unit = direction / torch.linalg.vector_norm(direction)
        exact = dense_gain(lm, prompts[row["prompt_index"]], unit, scope)
        assert exact > 0.1
        # A step of .005 has a third-order error of .005^2 times some curvature of
        # size 1 in logits, and float32 displacements one of 1e-7.
        assert row["gain"] == pytest.approx(exact, rel=1e-4)


def test_gains_do_not_depend_on_strength_or_sign():
    lm, prompts = tiny("llama"), PROMPTS[:2]
    v = Add(vector(0), 1.0)
    plain = gains(lm, prompts, v, {})
    for alpha in (-1.0, 7.0):
        assert gains(lm, prompts, replace(v, alpha=alpha), {}) == plain


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Rounding of logits of size 1 to 10 by the step's .1 to 1: 2^-24, 2^-11 and 2^-8.
    # In half precision a mean over prompts and directions is held to it.
    [(torch.float32, 1e-3), (torch.float16, 0.02), (torch.bfloat16, 0.06)],
)
@pytest.mark.parametrize("norm", [1.0, 4.0])
def test_gains_are_the_same_in_every_precision(family, dtype, tolerance, norm):
    v = Add(vector(0, norm))
    random = {str(k): vector(k, norm) for k in range(2, 6)}
    exact, ours = (
        torch.tensor(
            [row["gain"] for row in gains(tiny(family, dtype=d), PROMPTS, v, random)]
        )
        for d in (torch.float64, dtype)
    )
    assert float((ours / exact).mean()) == pytest.approx(1, abs=tolerance)
    # And v's among random ones, which is what R is held against.
    shares = [(one.view(-1, 5)[:, 0].mean() / one.mean()) for one in (ours, exact)]
    assert float(shares[0] / shares[1]) == pytest.approx(1, abs=2 * tolerance)


def test_distances_through_a_chat_template_are_those_of_the_templated_prompt():
    lm, (v, _) = tiny("llama", chat=True), arms(Scope.GENERATING)
    templated, _ = next_token_distances(lm, ["then"], v, {"unsteered": None})
    raw, _ = next_token_distances(lm, ["then"], v, {"unsteered": None}, chat=False)
    spelt, _ = next_token_distances(
        lm, ["<user>then<bot>"], v, {"unsteered": None}, chat=False
    )
    assert templated == spelt
    assert abs(templated["l2"] - raw["l2"]) > 0.01


def test_the_distance_from_itself_is_exactly_0():
    lm, (v, _) = tiny("llama"), arms(Scope.GENERATING)
    rows = next_token_distances(lm, PROMPTS[:2], v, {"same": v})
    for row in rows:
        if row["other"] == "same":
            assert {row[key] for key in ("l2", "l2_centred", "kl", "tv")} == {0.0}
            assert row["js"] == pytest.approx(0, abs=1e-12)
            assert row["agreement"] == row["overlap"] == 1
