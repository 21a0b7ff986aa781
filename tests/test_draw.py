"""Drawing a token: Gumbel noise is noise, and filters keep the tokens they should."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from tests.models import tiny
from torch.utils._python_dispatch import TorchDispatchMode

from steergauge.errors import InputError
from steergauge.generation import Decoding, Noise, draw, drawn, generate, gumbel

NUM_DRAWS = 20_000
LEVEL = 1e-4
"""Tests of fit reject at this level; seeds are fixed, so they never flicker."""


def distribution(d_vocab: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(d_vocab, generator=generator) * 1.5


def draws(logits: torch.Tensor, how: Decoding, *, seed: int = 0) -> np.ndarray:
    """How often each token is drawn, with keys as `generate` makes them: 63 bits."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randint(0, 2**62, (NUM_DRAWS,), generator=generator)
    noise = gumbel(keys, 0, len(logits))
    tokens = draw(logits.expand(NUM_DRAWS, -1), how, noise)
    return np.bincount(tokens.numpy(), minlength=len(logits))


def expected(logits: torch.Tensor, how: Decoding) -> np.ndarray:
    """Probabilities after temperature, top-k and top-p, from their definitions."""
    p = np.exp((logits.double() / how.temperature).log_softmax(-1).numpy())
    ranked = sorted(range(len(p)), key=lambda i: -p[i])
    if how.top_k:
        ranked = ranked[: how.top_k]
    kept = np.zeros_like(p)
    kept[ranked] = p[ranked]
    kept /= kept.sum()
    mass, chosen = 0.0, []
    for token in ranked:
        if mass >= how.top_p:
            break
        chosen.append(token)
        mass += kept[token]
    result = np.zeros_like(p)
    result[chosen] = kept[chosen]
    return result / result.sum()


@pytest.mark.parametrize(
    "how",
    [
        Decoding(),
        Decoding(temperature=0.5),
        Decoding(temperature=2.0),
        Decoding(top_k=3),
        Decoding(top_k=100),
        Decoding(top_p=0.7),
        Decoding(top_p=0.7, temperature=2.0),
        Decoding(top_k=5, top_p=0.8),
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_softmax_of_what_is_kept(how):
    logits = distribution()
    counts, p = draws(logits, how), expected(logits, how)
    assert (counts[p == 0] == 0).all()
    inside = p > 0
    assert stats.chisquare(counts[inside], NUM_DRAWS * p[inside]).pvalue > LEVEL
    # Not vacuous: the test sees a distribution that is a little sharper.
    sharper = p[inside] ** 1.2
    sharper *= NUM_DRAWS / sharper.sum()
    assert stats.chisquare(counts[inside], sharper).pvalue < LEVEL


def test_top_k_of_one_and_a_tiny_top_p_and_temperature_zero_are_greedy():
    rows = torch.stack([distribution(50, seed) for seed in range(200)])
    noise = gumbel(torch.arange(200) * 12345, 3, 50)
    best = rows.argmax(-1)
    for how in (
        Decoding(temperature=0),
        Decoding(temperature=0, top_k=5, top_p=0.1),
        Decoding(top_k=1),
        Decoding(top_p=1e-9),
        Decoding(temperature=1e-6),
    ):
        assert torch.equal(draw(rows, how, noise), best)
    # Not vacuous: sampling is not greedy.
    assert not torch.equal(draw(rows, Decoding(), noise), best)


def test_noise_is_standard_gumbel():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(0, 2**62, (300,), generator=generator)
    sample = gumbel(keys, 5, 400).flatten().double().numpy()
    num = len(sample)
    # Five standard errors of the mean and of the variance of num Gumbel variables.
    assert abs(sample.mean() - np.euler_gamma) < 5 * math.pi / math.sqrt(6 * num)
    spread = math.pi**2 / 6
    assert abs(sample.var() - spread) < 5 * spread * math.sqrt(4.4 / num)
    assert stats.kstest(sample, stats.gumbel_r.cdf).pvalue > LEVEL


@pytest.mark.parametrize("axis", ["low bits", "high bits", "step", "token"])
def test_noise_of_neighbors_is_independent(axis):
    keys = torch.arange(200) * 7
    one = gumbel(keys, 4, 300)
    other = {
        "low bits": lambda: gumbel(keys + 1, 4, 300),
        "high bits": lambda: gumbel(keys + 2**32, 4, 300),
        "step": lambda: gumbel(keys, 5, 300),
        "token": lambda: gumbel(keys, 4, 301)[:, 1:],
    }[axis]()
    assert not (one == other).any()
    pair = np.corrcoef(one.flatten().numpy(), other.flatten().numpy())
    # 60 000 pairs: five standard errors of a correlation of zero.
    assert abs(pair[0, 1]) < 5 / math.sqrt(one.numel())


def test_noise_is_a_function_of_key_step_and_token_alone():
    keys = torch.tensor([3, 2**62 + 11, 5, 3])
    noise = gumbel(keys, 2, 40)
    assert torch.equal(noise[0], noise[3])
    assert torch.equal(gumbel(keys[1:2], 2, 40)[0], noise[1])
    assert torch.equal(gumbel(keys, 2, 30), noise[:, :30])


def test_rows_with_equal_keys_share_their_noise():
    noise = Noise([7, 9, 7, 8], torch.device("cpu"))
    rows = torch.tensor([3, 0, 2])
    given = noise.of(rows, 4, 20)()
    assert torch.equal(given, gumbel(torch.tensor([8, 7, 7]), 4, 20))


def test_the_only_token_that_is_kept_is_drawn_whatever_its_noise():
    # Found by search: a key and token whose 32 random bits are so high that the uniform
    # number rounds to 1 in float32, where Gumbel noise would be minus infinity.
    key, token = torch.tensor([121319]), 114
    noise = gumbel(key, 0, 300)
    assert torch.isfinite(noise).all()
    assert noise[0, token] == noise.min() < -2.7
    logits = torch.zeros(1, 300)
    logits[0, token] = 1.0
    assert draw(logits, Decoding(top_k=1), noise).item() == token


def test_first_tokens_of_samples_follow_the_models_own_distribution():
    lm = tiny("llama")
    prompt = "Tell me"
    num = 4000
    how = Decoding(max_new_tokens=1, seed=5)
    samples = generate(lm, [prompt], {"plain": None}, samples=num, decoding=how)
    ids = torch.tensor([lm.tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        p = lm.model(ids).logits[0, -1].double().softmax(-1).numpy()
    counts = np.bincount([s.token_ids[0] for s in samples], minlength=len(p))
    # Tokens expected fewer than five times are counted together.
    rare = p * num < 5
    observed = [*counts[~rare], counts[rare].sum()]
    wanted = [*(p[~rare] * num), p[rare].sum() * num]
    assert len(wanted) > 50
    assert stats.chisquare(observed, wanted).pvalue > LEVEL


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"temperature": math.nan},
    ],
)
def test_impossible_decoding_is_refused(settings):
    with pytest.raises(InputError, match="impossible decoding"):
        Decoding(**settings)


def test_noise_that_is_hashed_in_pieces_is_the_same(monkeypatch):
    keys = list(range(40))
    rows = torch.arange(40)
    whole = Noise(keys, torch.device("cpu")).of(rows, 3, 50)()
    monkeypatch.setattr("steergauge.drawing.AT_ONCE", {"cpu": 50 * 7})
    pieces = Noise(keys, torch.device("cpu")).of(rows, 3, 50)()
    assert torch.equal(whole, pieces)
    assert len(whole.unique()) > 1000


def test_drawing_piece_by_piece_is_drawing(monkeypatch):
    rows = torch.stack([distribution(50, seed) for seed in range(60)])
    keys = [7 * (i % 9) for i in range(60)]
    noise, everyone = Noise(keys, torch.device("cpu")), torch.arange(60)
    for how in (Decoding(), Decoding(temperature=0.6, top_k=9, top_p=0.8)):
        whole = draw(rows, how, gumbel(torch.tensor(keys), 4, 50))
        for at_once in (1, 50 * 7, 2**18):
            monkeypatch.setattr("steergauge.drawing.AT_ONCE", {"cpu": at_once})
            before = rows.clone()
            assert torch.equal(drawn(rows, how, noise.pieces(everyone, 50), 4), whole)
            assert torch.equal(rows, before)
    # Not vacuous: another step draws others.
    assert not torch.equal(drawn(rows, how, noise.pieces(everyone, 50), 5), whole)


def test_noise_takes_no_more_room_than_one_piece(monkeypatch):
    d_vocab, at_once = 64, 64 * 16
    monkeypatch.setattr("steergauge.drawing.AT_ONCE", {"cpu": at_once})
    logits = torch.zeros(500, d_vocab)
    pieces = Noise([i % 40 for i in range(500)], torch.device("cpu")).pieces(
        torch.arange(500), d_vocab
    )
    # Rows with the same key lie together: each key is hashed for one piece, or two.
    assert sum(len(piece.keys) for piece in pieces) <= 40 + len(pieces)

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out is not logits:
                Largest.size = max(Largest.size, out.numel())
            return out

    with Largest():
        drawn(logits, Decoding(), pieces, 0)
    assert 0 < Largest.size <= at_once
