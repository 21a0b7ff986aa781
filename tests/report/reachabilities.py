"""Findings of reachability made by hand, as T16 to T19 keep their details."""

import math
import random
from dataclasses import asdict, replace
from typing import Any

from tests.report.geometries import finding

from steergauge.audits.finding import Finding, Verdict
from steergauge.statistics import Estimate

VOCABULARY = 2048
EDGES = [0.125 * 2 ** (k / 6) for k in range(55)]
WORDS = (" Write", " a", " message", " about", " the", " lake", ".", "\n")
PROMPTS = ("Write a message about the lake.", "Tell me of the weather.", "Hello!")
STEP, TOLERANCE = 8.0, 0.25
HOSTILE = "</text><script>u</script> {{ 7 * 7 }}\u202e"


def told(value: float, low: float, high: float) -> dict[str, float]:
    """An estimate as details keep it."""
    return asdict(Estimate(value, low, high))


def histogram(eta: float, seed: int) -> list[int]:
    """All tokens: one at the nearest distance, most of them around six steps."""
    rng = random.Random(seed)
    counts = [0] * (len(EDGES) - 1)
    for one in [eta, *(rng.lognormvariate(math.log(6), 0.25) for _ in range(2047))]:
        place = sum(edge <= one for edge in EDGES[1:-1])
        counts[place] += 1
    return counts


def position(prompt: int, place: int, token: str) -> dict[str, Any]:
    """A position at which nothing is nearer than the origin."""
    eta = 0.96 + 0.02 * (place % 4)
    return {
        "prompt": prompt, "place": place, "token": token, "nearest": token,
        "second": " an", "d1": eta * STEP, "d2": 4.1 * STEP, "length": STEP,
        "eta": eta, "tolerance": TOLERANCE, "natural_d1": 0.06, "natural_d2": 30.0,
        "random_low": 0.97 * STEP, "random_median": 0.99 * STEP, "shorter": 0.003,
        "cosine": 0.31, "aligned": " Dear", "kl_none": 0.42, "kl_least": 0.17,
        "kl_token": " Sir", "histogram": histogram(eta, 8 * prompt + place),
        "verdict": str(Verdict.ORIGIN_NEAREST),
    }  # fmt: skip


def target(name: str, num: int, eta: float | None, accepted: float) -> dict[str, Any]:
    low, high = (None, None) if eta is None else (0.9 * eta, 1.1 * eta)
    return {
        "name": name, "num": num, "eta": eta, "eta_low": low, "eta_high": high,
        "nearest_is_original": 0.97, "accepted": accepted, "margin": 0.24,
        "cosine": 0.31, "shorter": 0.003,
    }  # fmt: skip


def states(verdict: Verdict = Verdict.ORIGIN_NEAREST) -> Finding:
    details = {
        "targets": ["natural", "constructed", "v", "random[0]", "random[1]"],
        "num_vocabulary": VOCABULARY, "num_kl": 64, "steering": "addition",
        "layer": 3, "read_layer": 4, "edges": EDGES,
        "shares": {str(Verdict.ORIGIN_NEAREST): 0.96, str(Verdict.UNREACHED): 0.04},
        "nearest_is_original": told(0.96, 0.91, 1.0), "eta": told(0.98, 0.96, 1.01),
        "margin": 0.24, "shorter": 0.003, "cosine": 0.31,
        "by_target": [
            target("natural", 1, None, 1.0), target("constructed", 1, 0.007, 1.0),
            target("v", 1, 0.98, 0.0), target("random", 20, 0.99, 0.0),
            target("sign_flip", 10, 0.95, 0.0), target("other_pair", 10, 0.93, 0.0),
        ],
        "kl": {"none": 0.42, "least": 0.17, "share": 0.405},
        "collisions": [[" the", " The"]], "num_positions": 24, "num_resolvable": 23,
        "published_tolerance": {"tolerance": 1e-5, "natural": 0.0, "v": 0.0},
        "order_of_magnitude": {"natural": 0.97, "v": 0.02},
        "prompts": list(PROMPTS),
        "positions": [
            position(prompt, place, token)
            for prompt in range(len(PROMPTS))
            for place, token in enumerate(WORDS)
        ],
    }  # fmt: skip
    return finding("states", "T16", verdict, details, (0.98, 0.96, 1.01))


def inversion(verdict: Verdict = Verdict.UNREACHED) -> Finding:
    num = len(WORDS)
    steered = {
        "recovered": [*WORDS[:3]], "accepted": [True, True, False],
        "distance": [0.05, 0.06, 7.9], "second": [30.0, 31.0, 33.0],
        "tolerance": [TOLERANCE] * 3, "first_failure": 2,
    }  # fmt: skip
    natural = {
        "recovered": [*WORDS[:4], " The", *WORDS[5:]], "accepted": [True] * num,
        "distance": [0.06] * num, "tolerance": [TOLERANCE] * num,
        "tested": [40] * num,
    }  # fmt: skip
    details = {
        "num_vocabulary": VOCABULARY,
        "natural": {"recovered": told(0.996, 0.99, 1.0), "exact": 2, "num": 3,
                    "tested": 0.02},
        "steered": {"reached": 0, "num": 3, "first_failure": [2, 2, 2],
                    "same_text": 1.0},
        "published": {"tolerance": 1e-5, "natural": 0.0, "steered": 0.0,
                      "natural_exact": 0.0},
        "sequences": [
            {"prompt": prompt, "tokens": list(WORDS), "natural": natural,
             "steered": steered}
            for prompt in PROMPTS
        ],
    }  # fmt: skip
    return finding("inversion", "T17", verdict, details, (0.25, 0.25, 0.25))


def row(name: str, label: str, access: str, **other: Any) -> dict[str, Any]:
    none = dict.fromkeys(
        ("lift", "score", "kl", "relative", "eta", "perplexity", "round_trips")
    )
    plain = {"name": name, "label": label, "access": access, "prompt": ""}
    return {**plain, **none, "evaluations": 0, **other}


def access(verdict: Verdict = Verdict.NOT_FOUND) -> Finding:
    best = {
        "lift": told(0.11, 0.07, 0.15), "score": told(0.58, 0.53, 0.62),
        "kl": told(0.9, 0.8, 1.0), "relative": 0.45, "eta": told(1.7, 1.5, 2.0),
        "perplexity": 9.1, "evaluations": 512, "round_trips": True,
    }  # fmt: skip
    details = {
        "rows": [
            row("unsteered", "unsteered", "none", score=told(0.47, 0.43, 0.5),
                lift=told(0.0, 0.0, 0.0), kl=told(2.0, 1.8, 2.2), relative=1.0,
                eta=told(1.0, 1.0, 1.0), perplexity=7.5),
            row("v", "steered with v", "weights", score=told(0.83, 0.8, 0.86),
                lift=told(0.36, 0.32, 0.41), perplexity=8.2),
            row("token_search", "token search, 8 tokens", "prompt",
                prompt=" dear sir formal\nletter  kindly", **best),
            row("many_shot[4]", "4 steered answers in front", "prompt",
                prompt="Write of rain.\nIt would rain.\n" * 4,
                **best | {"kl": told(1.4, 1.2, 1.6), "relative": 0.7}),
            row("soft", "soft prefix, 8 embeddings", "embeddings",
                prompt="8 embeddings", **best | {"kl": told(0.3, 0.2, 0.4),
                "relative": 0.15, "round_trips": False}),
        ],
        "best_prompt": "token_search", "best_soft": "soft",
        "methods": [
            {"name": "token_search", "label": "token search", "hidden": 8, "found": 6,
             "power": told(0.75, 0.41, 0.93),
             "relative": [0.0005, 0.01, 0.02, 0.03, 0.04, 0.04, 0.3, 0.5],
             "effect": [2.0] * 8},
            {"name": "soft", "label": "soft prefix", "hidden": 8, "found": 7,
             "power": told(0.875, 0.53, 0.98),
             "relative": [0.01, 0.01, 0.02, 0.02, 0.02, 0.03, 0.04, 0.2],
             "effect": [2.0] * 8},
        ],
        "threshold": 0.05,
        "budget": {"tokens": 8, "evaluations": 512, "texts": 24},
        "white_box": {"lift": told(0.36, 0.32, 0.41)},
        "black_box": {"lift": told(0.11, 0.07, 0.15), "relative": 0.45},
    }  # fmt: skip
    return finding("access", "T18", verdict, details, (0.45, 0.39, 0.52))


def density(verdict: Verdict = Verdict.OFF_MANIFOLD) -> Finding:
    rng = random.Random(0)

    def family(name: str, power: float, angle: float | None) -> dict[str, Any]:
        p = [max(2 / 401, min(1.0, rng.random() ** power)) for _ in range(60)]
        rare = sum(one < 0.01 for one in p) / 60
        return {
            "name": name, "label": name, "p": p, "median_p": sorted(p)[30],
            "share": told(rare, 0.8 * rare, min(1.0, 1.2 * rare + 0.01)),
            "mahalanobis": 20.0 + power, "neighbours": 9.0 + power,
            "norm": {"median": 1.02, "low": 0.98, "high": 1.07}, "angle": angle,
        }  # fmt: skip

    details = {
        "num_reference": 4000, "num_calibration": 400, "num_test": 60,
        "components": 48, "smallest_p": 2 / 401,
        "families": [family("natural", 1.0, None), family("v", 9.0, 13.0),
                     family("random", 12.0, 13.1), family("swap", 3.0, 12.8)],
        "uniform": {"statistic": 0.08, "p": 0.4},
        "norm_of_natural": {"median": 1.0, "low": 0.9, "high": 1.1},
    }  # fmt: skip
    return finding("density", "T19", verdict, details, (0.7, 0.58, 0.81))


def whole() -> dict[str, Finding]:
    """Every audit of reachability."""
    made = (states(), inversion(), access(), density())
    return {one.key: one for one in made}


def bare() -> dict[str, Finding]:
    """Every audit, none of which could measure anything."""
    return {
        key: replace(one, verdict=Verdict.UNINFORMATIVE, estimate=None, details={},
                     controls=())
        for key, one in whole().items()
    }  # fmt: skip


def still() -> Finding:
    """T16 where steering moved nothing: no ratio is known."""
    unknown = {
        "eta": None, "length": 0.0, "cosine": None, "random_low": None,
        "random_median": None, "verdict": str(Verdict.UNINFORMATIVE),
    }  # fmt: skip
    details = dict(states().details)
    details["positions"] = [one | unknown for one in details["positions"]]
    details["by_target"] = [
        one | {"eta": None, "eta_low": None, "eta_high": None, "cosine": None}
        for one in details["by_target"]
    ]
    details |= {
        "kl": {"none": 0.0, "least": 0.0, "share": None}, "eta": None,
        "nearest_is_original": None, "cosine": None, "collisions": [],
    }  # fmt: skip
    found = states(Verdict.UNINFORMATIVE)
    return replace(found, details=details, estimate=None)


def unscored() -> Finding:
    """T18 without a probe, whose only method is many-shot."""
    details = dict(access().details)
    details["rows"] = [
        one | {"lift": None, "score": None} for one in details["rows"][:4]
    ]
    details |= {
        "best_soft": None, "white_box": {"lift": None},
        "black_box": {"lift": None, "relative": 0.45}, "methods": [],
    }  # fmt: skip
    return replace(access(), details=details)


def hostile() -> dict[str, Finding]:
    """Prompts, tokens and labels that try to become markup."""
    found = whole()
    details = dict(found["states"].details)
    details["prompts"] = [HOSTILE, *PROMPTS[1:]]
    details["positions"] = [
        one | {"token": HOSTILE, "nearest": "\x00\x1b", "second": ""}
        for one in details["positions"]
    ]
    details["collisions"] = [[HOSTILE, "\ud800"]]
    found["states"] = replace(found["states"], details=details)
    details = dict(found["inversion"].details)
    details["sequences"] = [
        one | {"prompt": HOSTILE, "tokens": [HOSTILE] * len(WORDS)}
        for one in details["sequences"]
    ]
    found["inversion"] = replace(found["inversion"], details=details)
    details = dict(found["access"].details)
    details["rows"] = [
        one | {"label": HOSTILE, "prompt": one["prompt"] and 2 * HOSTILE + "\x00"}
        for one in details["rows"]
    ]
    found["access"] = replace(found["access"], details=details)
    return found
