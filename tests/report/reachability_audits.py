"""Findings of reachability as the audits themselves make them, from invented states."""

import numpy as np

from steergauge.audits.access import Power, Row, access
from steergauge.audits.density import Family, density
from steergauge.audits.finding import Finding
from steergauge.audits.inversion import Inverted, Tried, inversion
from steergauge.audits.positions import Searched
from steergauge.audits.states import states

NUM, PLACES, TOKENS, TEXTS = 8, 6, 256, 40
DECODE = {token: f" t{token}" for token in range(TOKENS)}
EDGES = [0.125 * 2 ** (k / 6) for k in range(55)]
TARGETS = (
    "natural",
    "constructed",
    "v",
    *(f"{family}[{k}]" for family in ("random", "other_pair") for k in range(20)),
)


def audited() -> dict[str, Finding]:
    """One finding of each audit: v's states are off, and as far as its step is long."""
    rng = np.random.default_rng(0)
    made = (
        states(
            [_searched(rng, prompt) for prompt in range(NUM)],
            TARGETS,
            decode=DECODE,
            d_vocab=TOKENS,
            num_kl=32,
            floor_kl=1e-9,
            edges=EDGES,
            layer=2,
            read_layer=3,
        ),
        inversion(
            [_inverted(rng, prompt) for prompt in range(NUM)],
            decode=DECODE,
            d_vocab=TOKENS,
        ),
        _access(rng),
        _density(rng),
    )
    return {one.key: one for one in made}


def _searched(rng: np.random.Generator, prompt: int) -> Searched:
    shape = (PLACES, len(TARGETS))
    own = rng.integers(0, TOKENS // 2, PLACES)
    other = own + TOKENS // 2
    first = np.repeat(own[:, None], shape[1], axis=1)
    first[:, 1] = other
    d1 = 4.0 * rng.uniform(0.97, 1.03, shape)
    d1[:, :2] = 0.01
    length = np.full(shape, 4.0)
    length[:, :2] = 0.01, 20.0
    counts = np.zeros((PLACES, len(EDGES) - 1), dtype=int)
    counts[:, 18], counts[:, 30] = 1, TOKENS - 1
    return Searched(
        prompt=f"Write of lake {prompt}.",
        tokens=tuple(DECODE[int(token)] for token in own),
        places=np.arange(PLACES),
        token_ids=own,
        tolerance=np.full(PLACES, 0.1),
        norm=np.full(PLACES, 18.0),
        constructed=other,
        first=first,
        second=np.repeat(other[:, None] - 1, shape[1], axis=1),
        aligned=np.repeat(other[:, None], shape[1], axis=1),
        d1=d1,
        d2=np.full(shape, 16.0),
        length=length,
        shorter=np.full(shape, 0.004),
        cosine=rng.uniform(0.1, 0.3, shape),
        histogram=counts,
        kl_none=rng.uniform(0.3, 0.5, PLACES),
        kl_least=rng.uniform(0.1, 0.2, PLACES),
        kl_token=other,
    )


def _inverted(rng: np.random.Generator, prompt: int) -> Inverted:
    own = rng.integers(0, TOKENS, PLACES)

    def tried(places: int, distance: float, accepted: bool) -> Tried:
        return Tried(
            tokens=own[:places],
            accepted=np.full(places, accepted),
            distance=np.full(places, distance),
            second=np.full(places, np.nan if accepted else 16.0),
            tolerance=np.full(places, 0.1),
            tested=np.full(places, 20 if accepted else TOKENS),
        )

    return Inverted(
        prompt=f"Write of lake {prompt}.",
        tokens=tuple(DECODE[int(token)] for token in own),
        token_ids=own,
        step=np.full(PLACES, 4.0),
        apart=np.zeros(PLACES),
        natural=tried(PLACES, 0.01, accepted=True),
        steered=tried(1, 4.0, accepted=False),
    )


def _access(rng: np.random.Generator) -> Finding:
    def row(
        name: str, needs: str, prompt: str, nats: float | None, score: float
    ) -> Row:
        kl = None if nats is None else nats * rng.uniform(0.8, 1.2, TEXTS)
        return Row(
            name=name,
            label=name.replace("_", " "),
            access=needs,
            prompt=prompt,
            kl=kl,
            eta=None if nats is None else rng.uniform(1.0, 2.0, TEXTS),
            scores=score + rng.normal(0, 0.05, TEXTS),
            perplexity=8.0,
            evaluations=256 if prompt else 0,
            round_trips=bool(prompt),
        )

    rows = (
        row("unsteered", "none", "", 2.0, 0.45),
        row("steered", "weights", "", None, 0.8),
        row("token_search", "prompt", " dear\nsir", 0.9, 0.55),
        row("many_shot", "prompt", "One.\nTwo.\n", 1.3, 0.6),
        row("soft", "embeddings", "8 embeddings", 0.4, 0.7),
    )
    powers = []
    for method, hard in (("token_search", 0.3), ("many_shot", 0.9), ("soft", 0.02)):
        relative = np.append(np.full(5, 0.01), np.full(3, hard))
        powers.append(Power(method, relative, np.full(8, 2.0), relative < 0.05))
    return access(rows, powers, sign=1.0, floor=1e-9, budget={"evaluations": 256})


def _density(rng: np.random.Generator) -> Finding:
    def family(name: str, off: float, num: int) -> Family:
        scores = rng.normal(10 + off, 1.0, (2, num))
        angle = np.full(num, 0.0 if not off else 0.2)
        return Family(name, *scores, rng.uniform(0.95, 1.05, num), angle)

    offs = {"natural": 0.0, "v": 8.0, "random": 9.0, "swap": 3.0}
    return density(
        {name: family(name, off, TEXTS) for name, off in offs.items()},
        family("calibration", 0.0, 400),
        prompts=np.arange(TEXTS),
        num_reference=4000,
        components=48,
    )
