"""Findings of geometry as the audits themselves make them, from planted matrices."""

import numpy as np

from steergauge.audits.alternative import Alternatives, Candidate, alternative
from steergauge.audits.decomposition import Decomposed, decomposition
from steergauge.audits.finding import Finding
from steergauge.audits.gauge import Writings, gauge
from steergauge.audits.linearity import LinearRay, Rays, linearity
from steergauge.audits.methods import Extracted, methods
from steergauge.audits.nulls import Ray, nulls
from steergauge.audits.saturation import Blocks, saturation
from steergauge.audits.spectrum import Spectra, spectrum

WIDTH, TEXTS, NULL = 24, 64, 2


def audited() -> dict[str, Finding]:
    """One finding of each audit, of Fisher matrices that share two null directions."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    scale = np.append(np.geomspace(1.0, 1e-2, WIDTH - NULL), np.zeros(NULL))
    # Twice the width of rows a text, so that only what is planted is null.
    rows = rng.normal(size=(TEXTS, 2 * WIDTH, WIDTH)) * scale
    fishers = turn @ (rows.transpose(0, 2, 1) @ rows / (2 * WIDTH)) @ turn.T
    mean = fishers.mean(0)
    values, directions = _eigen(mean)
    differences = directions @ rng.normal(size=WIDTH) + rng.normal(size=(30, WIDTH))
    v = differences.mean(0)
    near = v + 0.01 * rng.normal(size=WIDTH)
    effect = np.full(60, 0.5 * v @ mean @ v) * rng.uniform(0.8, 1.2, 60)
    made = (
        _spectrum(fishers, v, float(effect.mean())),
        decomposition(
            Decomposed(
                v, values, directions, 1e-6, float(np.linalg.norm(v)),
                np.einsum("i,tij,j->t", v, fishers, v) / (v @ v),
                np.trace(fishers, axis1=1, axis2=2) / WIDTH,
                0.05 * float(effect.mean()),
                {"unsteered": effect, "canonical": 1e-9 * effect},
                differences,
            )
        ),
        nulls(_rays(rng, effect), effect=effect),
        saturation(_blocks(fishers)),
        alternative(_candidates(rng, effect)),
        linearity(_linear(rng, effect)),
        gauge(
            Writings(
                "rotation",
                {"spectrum": (values, values * (1 + 1e-9))},
                {"cosine(v, v')": (1.0, 0.1)},
            )
        ),
        methods(
            Extracted(
                {"mean_difference": v, "discriminant": near,
                 "sign_flip": rng.normal(size=WIDTH)},
                mean,
                {"discriminant": 0.01 * effect, "sign_flip": 1.5 * effect},
                effect,
            )
        ),
    )  # fmt: skip
    return {one.key: one for one in made}


def _eigen(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, directions = np.linalg.eigh(matrix)
    return np.maximum(values[::-1], 0.0), directions[:, ::-1].copy()


def _spectrum(fishers: np.ndarray, v: np.ndarray, effect: float) -> Finding:
    values, directions = _eigen(fishers.mean(0))
    kept = [np.delete(fishers, range(k, k + 8), 0).mean(0) for k in range(0, TEXTS, 8)]
    return spectrum(
        Spectra(
            values,
            (directions.T @ v) ** 2 / (v @ v),
            np.stack([_eigen(one)[0] for one in kept]),
            {name: _eigen(fishers[0])[0] for name in ("J_h", "J centred", "F_x")},
            1e-6,
            float(np.linalg.norm(v)),
            effect,
            TEXTS,
            8,
        )
    )


def _rays(rng: np.random.Generator, effect: np.ndarray) -> dict[str, Ray]:
    steps = np.array([0.01, 0.03, 0.1, 0.3, 1.0, 10.0, 100.0])
    floors = np.full(len(steps), 1e-13)
    noise = rng.uniform(0.9, 1.1, 60)

    def ray(size: float, power: float) -> Ray:
        nats = np.minimum(size * steps[:, None] ** power * noise, 9.0)
        return Ray(steps, nats, floors, size * 0.2**power * noise)

    still = Ray(steps, np.full((7, 60), 1e-14), floors, np.full(60, 1e-14))
    own = ray(float(effect.mean()) / 0.04, 2.0)
    return {"all-ones": still, "smallest 1": ray(0.1, 4.0), "random": ray(2.0, 2.0),
            "top": ray(200.0, 2.0), "v": own}  # fmt: skip


def _blocks(fishers: np.ndarray) -> Blocks:
    num = [2**k for k in range(7)]
    return Blocks(
        {
            n: np.stack(
                [_eigen(fishers[k : k + n].mean(0))[0] for k in range(0, TEXTS, n)]
            )
            for n in num
        },
        1e-6,
        np.linspace(0.9, 1.0, 20),
        8,
    )


def _candidates(rng: np.random.Generator, effect: np.ndarray) -> Alternatives:
    made = [
        Candidate(
            budget, cosine - 0.1, cosine, 0.9, 0.99, 0.8 * budget,
            0.5 * budget, 0.5 * budget * effect,
            0.5 * effect * rng.uniform(0.9, 1.1, (3, 60)),
        )
        for budget, cosine in ((0.01, 0.8), (0.05, 0.4), (0.2, 0.1))
    ]  # fmt: skip
    return Alternatives(made, effect, 1e-9, 4.0, radius=1.5)


def _linear(rng: np.random.Generator, effect: np.ndarray) -> Rays:
    steps = np.array([0.01, 0.03, 0.1, 0.3, 1.0, 3.0])

    def ray(off: float) -> LinearRay:
        quadratic = effect * rng.uniform(0.9, 1.1, 60)
        curve = 1 - np.minimum(off * steps, 0.9)
        nats = steps[:, None] ** 2 * quadratic * curve[:, None]
        return LinearRay(steps, nats, quadratic, np.outer(off * steps, np.ones(60)))

    rays = {
        "v": ray(0.1),
        "top": ray(0.4),
        "random[0]": ray(0.05),
        "smallest": ray(0.2),
    }
    return Rays(rays, 1e-12, 2.0)
