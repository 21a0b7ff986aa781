"""Finished runs made by the real audits from invented texts: no model, no torch.

A scenario says how strongly each arm pushes (the chance that a word of a text is a
high word, over the unsteered 0.5) and how many nats its texts lie from v's. Scores
are those of the real lexical probe, findings those of the real audits.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tests.report.experiments import Design

from steergauge.audits import divergence, equivalence, manipulation
from steergauge.audits.finding import Finding, Verdict
from steergauge.probes import lexical_score
from steergauge.runs import evidence
from steergauge.runs.spec import Spec
from steergauge.runs.store import Rows, Store
from steergauge.statistics import Table

HIGH, LOW = ("therefore", "moreover", "wish to state"), ("gonna", "hey", "kinda")
NEUTRAL = ("the lake", "is calm", "today", "and the boats", "rest", "in the sun")
SCORE = lexical_score(HIGH, LOW)
DIRECTIONS = {"v_plus_perp": 5, "perp": 5, "random": 10, "sign_flip": 10}
ALPHAS = (-2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Scenario:
    """What a run found, and how it was set up."""

    pushes: Mapping[str, float] = field(
        default_factory=lambda: {
            "unsteered": 0.0, "v": 0.4, "v_again": 0.4, "minus_v": -0.4,
            "v_plus_perp": 0.4, "perp": 0.0, "random": 0.0, "sign_flip": 0.0,
        }
    )  # fmt: skip
    nats: Mapping[str, float] = field(
        default_factory=lambda: {
            "unsteered": 3.0, "v_plus_perp": 3.4, "perp": 6.0, "minus_v": 11.0,
            "random": 6.0,
        }
    )  # fmt: skip
    num_prompts: int = 50
    num_samples: int = 3
    alpha: float = 1.0
    probe: bool = True
    trait: str = "formality"
    model: str = "builtin:organism"
    hostile: tuple[str, ...] = ()
    plumbing: Verdict = Verdict.PASS
    audits: tuple[str, ...] = (
        "plumbing", "manipulation", "equivalence", "divergence",
    )  # fmt: skip
    seed: int = 0
    directions: Mapping[str, int] = field(default_factory=lambda: dict(DIRECTIONS))
    experiments: Design | None = None

    @property
    def arms(self) -> list[str]:
        """Every arm, random families by direction."""
        return [
            name
            for family in self.pushes
            for name in (
                [f"{family}[{k}]" for k in range(self.directions[family])]
                if family in self.directions
                else [family]
            )
        ]


STRONG = Scenario()
"""The trait moves; v + v_perp moves it too, but writes other texts."""

SAME = replace(
    STRONG,
    num_prompts=60,
    nats={**STRONG.nats, "v_plus_perp": 0.02, "against[twin]": 0.0},
    pushes={**STRONG.pushes, "against[twin]": 0.4},
)
"""v + v_perp is v in both respects; a rival too."""

OTHER = replace(
    STRONG,
    pushes={**STRONG.pushes, "v_plus_perp": 0.1, "other_trait[humor]": -0.1},
    nats={**STRONG.nats, "other_trait[humor]": 7.0},
)
"""v + v_perp moves the trait much less."""

FEW = replace(STRONG, num_prompts=8, nats={**STRONG.nats, "v_plus_perp": 0.15})
"""Too few prompts to tell."""

NOTHING = replace(
    STRONG, pushes=dict.fromkeys(STRONG.pushes, 0.0), num_prompts=16, seed=1
)
"""v does not move the trait, yet changes the texts."""

SILENT = replace(NOTHING, nats=dict.fromkeys(STRONG.nats, 1e-9))
"""v does nothing at all."""

UNSCORED = replace(STRONG, probe=False, trait="", num_prompts=16)
"""A vector without a probe."""

BROKEN = replace(STRONG, plumbing=Verdict.FAIL, num_prompts=16)
"""The plumbing check failed, so all verdicts are withheld."""

BACKWARD = replace(
    STRONG,
    num_prompts=16,
    alpha=-1.0,
    pushes={name: -push for name, push in STRONG.pushes.items()},
)
"""Steering against v."""

NASTY = (
    "<script>alert('boo')</script>",
    "</style></p></td><img src=x onerror=alert(1)>",
    "\"quotes\" & 'apostrophes' &amp; {{ 7 * 7 }} {% raw %}",
    "therefore <b>gonna</b> moreover</mark><i>hey",
    "x" * 5000,
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd \U0001f3c4\U0001f3fd\u200d",
    "\x00\x07\x1b[31m null and bell",
    "| a | b |\n|---|\n# title\n[link](javascript:alert(1)) `code`",
    "",
)

HOSTILE = replace(
    STRONG,
    num_prompts=16,
    trait="<script>trait</script> | a*b*",
    model='"><script>model</script>',
    hostile=NASTY,
    pushes={**STRONG.pushes, "against[<b>rival|</b>]": 0.2},
    nats={**STRONG.nats, "against[<b>rival|</b>]": 5.0},
)
"""Texts and names that try to become markup."""

ALL = {
    "strong": STRONG, "same": SAME, "other": OTHER, "few": FEW, "nothing": NOTHING,
    "silent": SILENT, "unscored": UNSCORED, "broken": BROKEN, "backward": BACKWARD,
    "hostile": HOSTILE,
}  # fmt: skip


def write_store(folder: Path, scenario: Scenario) -> Store:
    """A finished run in `folder`."""
    store = Store(folder)
    store.open(Spec(model=scenario.model, seed=scenario.seed), {"model": "0123abcd"})
    rows = [*_rows(scenario, "dose"), *_rows(scenario, "test")]
    store.write_generations(rows)
    found = _findings(scenario, [row for row in rows if row["stage"] == "test"])
    store.write_findings(found, _facts(scenario))
    return store


def _rows(scenario: Scenario, stage: str) -> Rows:
    """Every text of a stage."""
    if stage == "dose":
        pushes = {"unsteered": 0.0, "dose[1]": scenario.pushes["v"]}
        num_prompts = 3
    else:
        pushes = {
            arm: scenario.pushes.get(arm, scenario.pushes.get(arm.partition("[")[0]))
            for arm in scenario.arms
        }
        num_prompts = scenario.num_prompts
    rows = []
    for index in range(num_prompts):
        prompt = f"Write a message about lake {index}."
        if index == 0 and scenario.hostile:
            prompt = "<script>prompt</script>"
        for sample in range(scenario.num_samples):
            for place, (arm, push) in enumerate(pushes.items()):
                rng = random.Random(f"{scenario.seed} {index} {sample} {place}")
                text = _text(rng, push)
                if stage == "test" and index < 2 and scenario.hostile:
                    text = scenario.hostile[(place + sample) % len(scenario.hostile)]
                rows.append(_row(scenario, stage, arm, index, prompt, sample, text))
    if scenario.probe:
        scores = SCORE([row["text"] for row in rows]).tolist()
        rows = [row | {"score": score} for row, score in zip(rows, scores, strict=True)]
    return rows


def _row(
    scenario: Scenario,
    stage: str,
    arm: str,
    index: int,
    prompt: str,
    sample: int,
    text: str,
) -> dict[str, Any]:
    return {
        "stage": stage, "arm": arm, "prompt_index": index, "prompt": prompt,
        "sample": sample, "text": text, "finished": sample % 2 == 0,
        "num_tokens": 32, "token_ids": [1, 2, 3], "alpha": scenario.alpha,
        "layer": 3, "seed": scenario.seed, "noise": 0,
        "score": None,
    }  # fmt: skip


def _text(rng: random.Random, push: float) -> str:
    marked = [
        rng.choice(HIGH if rng.random() < 0.5 + push else LOW)
        for _ in range(rng.randint(1, 3))
    ]
    words = [*marked, *rng.choices(NEUTRAL, k=6)]
    rng.shuffle(words)
    return " ".join(words).capitalize() + "."


def _findings(scenario: Scenario, rows: Rows) -> dict[str, Finding]:
    lifts = _lifts(scenario, rows) if scenario.probe else {}
    found = [_plumbing(scenario), _manipulation(scenario, lifts)]
    compared = _compared(scenario)
    found += [_equivalence(scenario, lifts, name, found[1]) for name in compared]
    found += [_divergence(scenario, name) for name in compared]
    if scenario.experiments:
        found += scenario.experiments.findings(
            rows, scenario.alpha, found[1].verdict, seed=scenario.seed
        )
    if scenario.plumbing is Verdict.FAIL:
        found[1:] = [
            replace(
                finding,
                verdict=Verdict.UNINFORMATIVE,
                reasons=("The plumbing check failed.", *finding.reasons),
            )
            for finding in found[1:]
        ]
    kept = [
        finding
        for finding in found
        if finding.audit in scenario.audits or scenario.experiments
    ]
    return {finding.key: finding for finding in kept}


def _compared(scenario: Scenario) -> dict[str, str]:
    rivals = {name: name for name in scenario.pushes if name.startswith("against[")}
    turned = {"v_turned": "v turned"} if "v_turned" in scenario.pushes else {}
    return {"v_plus_perp": "", "perp": "v_perp alone", **turned, **rivals}


def _plumbing(scenario: Scenario) -> Finding:
    good = scenario.plumbing is Verdict.PASS
    checks = [
        ["a zero edit changes no logit", True, "0"],
        ["alpha v arrives in scope, and is read back, to 1 ulp", good, "off by 1e-07"],
    ]
    return Finding(
        "plumbing", "T0", "",
        "alpha v is added where it is said to be, once, and nothing else is.",
        "checks", None, "", scenario.plumbing,
        ("All 2 checks hold." if good else "alpha v arrives elsewhere: off by 1.",),
        num_prompts=8, num_samples=1,
        details={"checks": checks, "floor_kl": 1e-8, "floor_stream": 4e-6, "law": 0.0},
    )  # fmt: skip


def _lifts(scenario: Scenario, rows: Rows) -> dict[str, Table]:
    sign = np.sign(scenario.alpha)
    return {
        name: table * sign
        for name, table in evidence.lifts(rows).items()
        if evidence.shares_noise_and_alpha(name)
    }


def _manipulation(scenario: Scenario, lifts: Mapping[str, Table]) -> Finding:
    details: dict[str, Any] = {
        "dose": [_dose(scenario, alpha) for alpha in ALPHAS],
        "recommended_alpha": 1.0,
        "coherent": True,
        "perplexity": {"unsteered": 4.0, "v": 4.4, "minus_v": 5.0},
    }
    if not scenario.probe:
        return manipulation.without_probe(details)
    details |= {"unsteered_score": 0.5, "icc": None}
    return manipulation.manipulation(
        lifts,
        num_samples=scenario.num_samples,
        seed=scenario.seed,
        details=details,
    )


def _dose(scenario: Scenario, alpha: float) -> dict[str, Any]:
    def interval(value: float, half: float) -> dict[str, float]:
        low, high = value - half, value + half
        return {"value": value, "low": low, "high": high, "level": 0.95}

    lift = float(scenario.pushes["v"] * np.tanh(alpha))
    return {
        "alpha": alpha,
        "step": 0.3 * abs(alpha),
        "lift": interval(lift, 0.04) if scenario.probe else None,
        "nats": interval(3.0 * alpha**2, 0.2 * alpha**2),
        "perplexity_ratio": 1.0 + 0.3 * alpha**2,
        "perplexity_high": 1.1 + 0.33 * alpha**2,
    }


def _equivalence(
    scenario: Scenario, lifts: Mapping[str, Table], family: str, first: Finding
) -> Finding:
    subject = _compared(scenario)[family]
    if not scenario.probe:
        return equivalence.without_probe(subject)
    return equivalence.equivalence(
        lifts,
        family,
        subject=subject,
        manipulation=first.verdict,
        num_samples=scenario.num_samples,
        seed=scenario.seed,
    )


def _divergence(scenario: Scenario, family: str) -> Finding:
    rng = np.random.default_rng(scenario.seed)
    tables = {}
    for name, nats in scenario.nats.items():
        shape = (scenario.directions.get(name, 1), scenario.num_prompts)
        tables[name.partition("[")[0] if name.startswith("other") else name] = (
            nats * rng.gamma(8, 1 / 8, shape)
        )
    return divergence.divergence(
        tables,
        family,
        subject=_compared(scenario)[family],
        floor=1e-8,
        tokens=32.0,
        num_samples=scenario.num_samples,
        seed=scenario.seed,
    )


def _facts(scenario: Scenario) -> dict[str, Any]:
    probe = {
        "name": scenario.trait, "auc": 0.98, "num_labelled": 40,
        "kind": "lexical", "record": {"formula": "sigmoid(#high - #low)"},
        "high_words": list(HIGH), "low_words": list(LOW),
    }  # fmt: skip
    return {
        "steergauge": "0.1.0", "model": scenario.model, "revision": "",
        "fingerprint": "0123abcd", "num_layers": 6, "d_model": 192,
        "dtype": "float32", "chat_template": True, "trait": scenario.trait,
        "poles": ["formal", "casual"] if scenario.trait else [],
        "probe": probe if scenario.probe else None,
        "method": "mean_difference", "position": "last", "num_pairs": 50, "layer": 3,
        "source": f"prompts.json:{scenario.trait}",
        "scope": "generating", "alpha": scenario.alpha, "alpha_was_recommended": True,
        "norm": 1.4, "median_stream_norm": 4.7, "step": 0.298,
        "num_prompts": scenario.num_prompts, "num_dose_prompts": 24,
        "num_samples": scenario.num_samples, "max_new_tokens": 32,
        "temperature": 1.0, "seed": scenario.seed,
        "arms": [_arm(scenario, name) for name in scenario.arms],
        "not_run": [] if scenario.probe else ["T1 and T3 need a probe."],
    }  # fmt: skip


def _arm(scenario: Scenario, name: str) -> dict[str, Any]:
    if name == "unsteered":
        return {"name": name, "alpha": 0.0, "norm": 0.0, "cosine": None}
    alpha = -scenario.alpha if name == "minus_v" else scenario.alpha
    shape = {"v_plus_perp": (1.98, 0.7071), "perp": (1.4, 1e-9)}
    norm, cosine = shape.get(name.partition("[")[0], (1.4, 1.0))
    return {
        "name": name, "alpha": alpha, "norm": norm, "cosine": cosine, "layer": 3,
        "origin": name,
    }  # fmt: skip
