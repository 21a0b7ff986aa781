"""Findings of geometry made by hand, as the audits T6 to T13 keep their details."""

import math
from dataclasses import replace
from typing import Any

from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.statistics import Estimate

WIDTH = 48
FLOOR = 1e-6
HOSTILE = "<script>u</script> {{ 7 * 7 }}"
FACTS: dict[str, Any] = {
    "model": "a/model", "trait": "formality", "layer": 3, "num_layers": 8,
    "num_pairs": 40, "alpha": 1.5, "step": 0.24, "num_prompts": 60,
    "num_samples": 2, "max_new_tokens": 8, "steergauge": "0.1.0", "not_run": [],
    "probe": {"name": "formality", "high_words": ["therefore"],
              "low_words": ["gonna"], "auc": 0.9},
}  # fmt: skip


def finding(
    audit: str,
    code: str,
    verdict: Verdict,
    details: dict[str, Any],
    estimate: tuple[float, float, float] | None = None,
) -> Finding:
    """A finding with a reason and a control of its own."""
    seen = Estimate(*estimate) if estimate else None
    return Finding(
        audit, code, "", f"The claim of {code}.", f"the number of {code}", seen,
        "that of noise", verdict, (f"The reason of {code}: v' is measured.",),
        (Control("v", "nothing is seen", Estimate(0.0, 0.0, 0.0), "", True),),
        60, 1, details,
    )  # fmt: skip


def eigenvalues() -> list[float]:
    """Those of a spectrum that falls by eight decades of sigma, two of them null."""
    sigma = [10 ** (-5.0 * k / (WIDTH - 1)) for k in range(WIDTH - 2)]
    return [one**2 for one in (*sigma, 3e-7, 1e-7)]


def family(scale: float) -> dict[str, Any]:
    ranks = {"0.1": 10, "0.05": 13, "0.01": 19, "0.001": 29, "1e-06": None}
    return {
        "ranks": ranks, "stable": 3.1 * scale, "participation_ratio": 5.2 * scale,
        "erank_lambda": 8.4 * scale, "erank_sigma": 15.5, "floor": FLOOR,
        "width": WIDTH,
    }  # fmt: skip


def spectrum() -> Finding:
    names = ("J_h", "J centred", "F_x", "F_bar")
    details = {
        "values": eigenvalues(), "shares": [1 / WIDTH] * WIDTH, "floor": FLOOR,
        "strength": 2.5, "effect": 0.8, "num_texts": 64, "num_tokens": 8,
        "families": {name: family(1 + k / 4) for k, name in enumerate(names)},
        "erank": [14.7, 13.9, 15.6],
        "equivalent": {"nats": [0.04, 1e-3, 1e-2, 0.1], "dimensions": [31, 20, 27, 35]},
        "identifiable": {"tokens": [1e2, 1e3, 1e4, 1e5, 1e6],
                         "dimensions": [4, 9, 16, 25, 33], "accuracy": 0.1},
        "published": [
            {"label": "an emulation", "dtype": dtype, "num_probes": 1000,
             "epsilon": 0.01, "threshold": 0.05, "rank": rank,
             "null_fraction": 1 - rank / 1000, "error": error,
             "exact": {"rank": 13, "null_fraction": 0.73}}
            for dtype, rank, error in (("float16", 741, 1.94), ("float32", 13, 1e-3))
        ],
        "covariance": {"num_states": 900, "threshold": 1e-6, "dimension": 5,
                       "counted": False, "angles_deg": [31.0, 55.0, 71.0, 80.0, 88.0],
                       "mean_cos2": 0.21, "expected_cos2": 5 / WIDTH,
                       "answer": "The two null spaces are not the same."},
    }  # fmt: skip
    return finding("spectrum", "T6", Verdict.MEASURED, details, (14.7, 13.9, 15.6))


def nulls(name: str = "all-ones") -> Finding:
    steps = [0.01, 0.03, 0.1, 0.3, 1.0, 10.0, 100.0]

    def ray(kind: str, power: float, size: float) -> dict[str, Any]:
        nats = [min(size * at**power, 9.0) for at in steps]
        at = size * 0.24**power
        return {
            "class": kind, "slope": power or None, "steps": steps, "nats": nats,
            "mean": nats, "floors": [1e-12] * len(steps),
            "at_strength": [at, 0.8 * at, 1.2 * at],
        }  # fmt: skip

    directions = {
        name: ray("EXACT NULL", 0.0, 3e-13),
        "smallest 1": ray("FIRST-ORDER NULL", 4.0, 2e-3),
        "smallest 2": ray("EFFECTIVE NULL", 2.0, 1e-3),
        "random": ray("VISIBLE", 2.0, 2.0),
        "top": ray("VISIBLE", 2.0, 90.0),
        "v": ray("VISIBLE", 2.0, 12.0),
    }
    details = {
        "directions": directions, "effect": [0.8, 0.7, 0.9], "budget": 0.05,
    }  # fmt: skip
    return finding("nulls", "T7", Verdict.EXACT_NULL, details, (3e-13, 2e-13, 4e-13))


def saturation() -> Finding:
    num = [1, 2, 4, 8, 16, 32, 64]

    def curve(mean: Any) -> list[list[float]]:
        blocks = [64 // n for n in num]
        return [
            [mean(n), 0.1 * mean(n) if b > 1 else 0.0, b]
            for n, b in zip(num, blocks, strict=True)
        ]

    details = {
        "num": num,
        "ranks": {"0.1": curve(lambda n: 10 + 2 * math.log2(n)),
                  "0.01": curve(lambda n: 19 + 3 * math.log2(n))},
        "erank_lambda": curve(lambda n: 8 + math.log2(n)),
        "null_dim": curve(lambda n: 2.0 + 6 / n),
        "ratio": curve(lambda n: 1e-7 * n),
        "null_cosine": {"median": 0.31, "low": 0.02, "high": 0.8},
        "floor": FLOOR, "width": WIDTH,
    }  # fmt: skip
    return finding("saturation", "T8", Verdict.SHRINKING, details, (2.0, 2.0, 3.0))


def decomposition() -> Finding:
    dims = list(range(0, WIDTH + 1, 4))
    details = {
        "rho": [6.9, 5.8, 8.1],
        "hard": {"dim": 2, "share": 0.001, "expected": [2 / WIDTH, 0.001, 0.12]},
        "soft": {"tau": 0.04, "dim": 31, "share": 0.22, "expected": [0.65, 0.5, 0.78]},
        "canonical": {"cosine": 0.9995, "norm": 0.9995, "nats": [1e-9, 1e-10, 2e-9],
                      "relative": 1e-9},
        "canonical_soft": {"cosine": 0.92, "norm": 0.85, "nats": None,
                           "relative": None},
        "effect": [0.8, 0.7, 0.9],
        "pairs": {"num": 40, "split_half": [0.93, 0.88, 0.96], "radius_deg": 14.2,
                  "radius_visible_deg": 6.1, "noise_in_null": 0.7,
                  "noise_expected": 31 / WIDTH},
        "cumulative": {"dims": dims, "v": [(k / WIDTH) ** 0.4 for k in dims],
                       "random": [k / WIDTH for k in dims]},
    }  # fmt: skip
    return finding("decomposition", "T9", Verdict.VISIBLE, details, (6.9, 5.8, 8.1))


def alternative(verdict: Verdict = Verdict.STRUCTURED) -> Finding:
    def candidate(budget: float, cosine: float, nats: float) -> dict[str, Any]:
        return {
            "budget": budget, "cosine_planned": cosine - 0.1, "cosine": cosine,
            "angle_deg": math.degrees(math.acos(cosine)), "shrink": 0.8, "norm": 0.98,
            "predicted": 0.8 * budget, "validation": 0.9 * nats,
            "nats": [nats, 0.8 * nats, 1.2 * nats],
            "control": [0.4, 0.35, 0.45], "verified": budget < 0.1,
            "verified_main": budget < 0.1,
        }  # fmt: skip

    details = {
        "candidates": [candidate(0.01, 0.71, 0.006), candidate(0.05, 0.42, 0.025),
                       candidate(0.2, 0.1, 0.2)],
        "effect": [0.8, 0.7, 0.9], "budget": 0.05, "rho": 6.9,
        "best": {"cosine": 0.42, "angle_deg": math.degrees(math.acos(0.42))},
        "within_deg": math.degrees(math.acos(0.42))
        if verdict is Verdict.IDENTIFIABLE else None,
        "generic_limit": 1 / 6.9, "radius": 1.4, "added": [0.12, 0.1, 0.14],
    }  # fmt: skip
    return finding("alternative", "T10", verdict, details, (0.031, 0.025, 0.038))


def linearity(verdict: Verdict = Verdict.LOCAL) -> Finding:
    steps = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]

    def ray(off: float) -> dict[str, Any]:
        return {
            "steps": steps, "ratio": [None, *(1 - off * at for at in steps[1:])],
            "departure": [off * at for at in steps], "radius": 0.25 / off,
            "radius_logits": None,
        }  # fmt: skip

    details = {
        "strength": 2.5, "tolerance": 0.25, "tolerance_logits": 0.1,
        "directions": {"v": ray(0.17), "top": ray(0.3), "random[0]": ray(0.05),
                       "random[1]": ray(0.06), "smallest": ray(0.1)},
        "radius": [1.4, 1.2, 1.7],
    }  # fmt: skip
    return finding("linearity", "T11", verdict, details, (1.4, 1.2, 1.7))


def gauge() -> Finding:
    details = {
        "kind": "rotation",
        "invariants": {
            name: {"before": 1.0, "after": 1.0, "error": 2e-8}
            for name in ("spectrum", "rho_F", "nats of v")
        },
        "dependent": {"largest coordinate share": [0.31, 0.04],
                      "cosine(v, v')": [1.0, 0.1]},
        "tolerance": 1e-5,
        "reason": "Every reader and writer was turned.",
    }  # fmt: skip
    return finding("gauge", "T12", Verdict.PASS, details)


def methods() -> Finding:
    names = ["mean_difference", "discriminant", "sign_flip"]
    details = {
        "names": names,
        "cosine": [[1.0, 0.61, 0.02], [0.61, 1.0, -0.1], [0.02, -0.1, 1.0]],
        "cosine_fisher": [[1.0, 0.98, 0.1], [0.98, 1.0, 0.05], [0.1, 0.05, 1.0]],
        "relative": {"discriminant": [0.03, 0.02, 0.045], "sign_flip": [1.4, 1.2, 1.6]},
        "strengths": {"discriminant": 1.2, "sign_flip": 3.1},
        "classes": [["mean_difference", "discriminant"]],
        "effect": [0.8, 0.7, 0.9],
    }  # fmt: skip
    return finding("methods", "T13", Verdict.ONE_CLASS, details, (0.03, 0.02, 0.045))


def whole() -> dict[str, Finding]:
    """Every audit of geometry."""
    made = (spectrum(), decomposition(), nulls(), saturation(), alternative(),
            linearity(), gauge(), methods())  # fmt: skip
    return {one.key: one for one in made}


def bare() -> dict[str, Finding]:
    """Every audit, none of which could measure anything."""
    return {
        key: replace(one, verdict=Verdict.UNINFORMATIVE, estimate=None, details={},
                     controls=())
        for key, one in whole().items()
    }  # fmt: skip


def unknown() -> dict[str, Finding]:
    """Every audit with None wherever a number may be missing."""
    return {key: replace(one, details=_unknown(one.details))
            for key, one in whole().items()}  # fmt: skip


def _unknown(value: Any) -> Any:
    """The same shape without a number; names and numbers of texts stay."""
    if isinstance(value, dict):
        kept = ("num", "steps", "names", "classes", "tokens", "budget", "width")
        return {
            key: one if key in kept else _unknown(one) for key, one in value.items()
        }
    if isinstance(value, list):
        return [_unknown(one) for one in value]
    return None if isinstance(value, float | int) else value


def rows(texts: tuple[str, ...] = ("Therefore it rains.", "gonna rain")) -> list:
    """Texts of the four arms to three prompts, and what the page must not show."""
    arms = ("v", "most_different", "same_cosine[0]", "unsteered", "random[0]")
    made = [
        {
            "stage": stage, "arm": arm, "prompt_index": index,
            "prompt": f"Write of lake {index}.", "sample": sample,
            "text": f"{texts[(index + sample) % len(texts)]} {arm} {stage}",
            "finished": sample == 0, "num_tokens": 8, "score": 0.5,
        }
        for stage in ("dose", "test")
        for arm in arms
        for index in range(3)
        for sample in range(2)
    ]  # fmt: skip
    return [row for row in made if (row["arm"], row["prompt_index"])
            != ("most_different", 1)]  # fmt: skip
