"""From evidence to findings: each audit gets its arrays, a failed T0 overrules all."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from steergauge.audits.comparison import MINIMUM_PROMPTS
from steergauge.audits.divergence import divergence
from steergauge.audits.equivalence import equivalence
from steergauge.audits.equivalence import without_probe as equivalence_without_probe
from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.manipulation import manipulation
from steergauge.audits.manipulation import without_probe as manipulation_without_probe
from steergauge.generation import Arm
from steergauge.prompts import uses_chat
from steergauge.runs import evidence, experiments
from steergauge.runs.evidence import DoseCurve
from steergauge.runs.plan import FEWEST_PAIRS_TO_FLIP, NEED_A_PROBE, Inputs, made_of
from steergauge.runs.spec import PERPLEXITY_LIMIT
from steergauge.runs.stopping import Decision
from steergauge.runs.store import Rows
from steergauge.sequential import Looks
from steergauge.split import LanguageModel
from steergauge.statistics import Estimate, intraclass_correlation
from steergauge.vector import SteeringVector


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the findings are made of.

    Of a sequential run also its looks, and what was decided at each.
    """

    lm: LanguageModel
    inputs: Inputs
    vector: SteeringVector
    arms: Mapping[str, Arm]
    alpha: float
    median_norm: float
    dose: DoseCurve | None
    plumbing: Finding
    texts: Rows
    divergences: Rows
    likelihoods: Rows
    next_tokens: Rows
    gains: Rows
    environments: Mapping[str, Rows]
    looks: Looks | None = None
    decisions: Sequence[Decision] = ()

    @property
    def subjects(self) -> dict[str, str]:
        """What is compared with v: arm family -> how a reader knows it."""
        return evidence.subjects(self.arms)


def findings(seen: Evidence) -> dict[str, Finding]:
    """Every finding that the spec asks for, by key."""
    if not seen.inputs.spec.behaves:
        return {seen.plumbing.key: seen.plumbing}
    found = [seen.plumbing, *_behaviour(seen)]
    found += _divergences(seen, {finding.subject: finding for finding in found[2:]})
    found += experiments.findings(seen, found[1].verdict)
    found = [seen.plumbing, *(judged(seen, finding) for finding in found[1:])]
    wanted = seen.inputs.spec.audits
    return {finding.key: finding for finding in found if finding.audit in wanted}


def facts(seen: Evidence) -> dict[str, Any]:
    """What the run was, for the report and for whoever reads the numbers."""
    inputs, spec, lm = seen.inputs, seen.inputs.spec, seen.lm
    origin = seen.vector.provenance
    return {
        "steergauge": importlib.metadata.version("steergauge"),
        "model": lm.name,
        "revision": lm.revision,
        "fingerprint": lm.fingerprint,
        "num_layers": lm.num_layers,
        "d_model": lm.d_model,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "chat_template": uses_chat(lm, spec.chat),
        "trait": inputs.trait.name if inputs.trait else "",
        "source": Path(spec.trait or spec.pairs or spec.vector).name,
        "poles": [inputs.trait.high, inputs.trait.low] if inputs.trait else [],
        "probe": _probe_facts(inputs),
        "method": origin.method,
        "position": origin.position,
        "num_pairs": origin.num_pairs,
        "layer": seen.vector.site.layer,
        "steering": spec.steering,
        "scope": spec.scope,
        "alpha": seen.alpha,
        "alpha_was_recommended": spec.alpha is None,
        "norm": seen.vector.norm,
        "median_stream_norm": seen.median_norm,
        "step": abs(seen.alpha) * seen.vector.norm / seen.median_norm,
        "num_prompts": _num_prompts(seen),
        "num_dose_prompts": len(inputs.dose_prompts),
        "num_samples": spec.samples,
        "max_new_tokens": spec.max_new_tokens,
        "temperature": spec.temperature,
        "seed": spec.seed,
        "versions": _versions(),
        "arms": _arm_facts(seen),
        "not_run": _not_run(inputs),
        **_sequential_facts(seen),
    }


def _num_prompts(seen: Evidence) -> int:
    """Test prompts behind the findings: of a sequential run those that it used."""
    if seen.looks is None:
        return len(seen.inputs.test_prompts)
    return len({row["prompt_index"] for row in seen.texts})


def _sequential_facts(seen: Evidence) -> dict[str, Any]:
    """The plan of a sequential run and how it went; nothing of another."""
    if seen.looks is None:
        return {}
    used = _num_prompts(seen)
    told = {
        "planned": seen.looks.planned,
        "every": seen.looks.every,
        "first": seen.looks.first,
        "looks": list(seen.looks.numbers),
        "used": used,
        "reason": seen.looks.reason(used),
        "decisions": [decision.to_json() for decision in seen.decisions],
    }
    return {"sequential": told}


def _versions() -> dict[str, str]:
    libraries = ("torch", "transformers", "numpy")
    known = {name: importlib.metadata.version(name) for name in libraries}
    return {"python": platform.python_version()} | known


def _behaviour(seen: Evidence) -> list[Finding]:
    """T1, then T3 for every subject."""
    assert seen.dose is not None
    perplexity = _perplexities(seen)
    ratios = [perplexity[name] / perplexity["unsteered"] for name in ("v", "minus_v")]
    details: dict[str, Any] = {
        "dose": [dose.to_json() for dose in seen.dose.doses],
        "recommended_alpha": seen.dose.recommended,
        "coherent": seen.dose.coherent,
        "coherent_in_test": max(ratios) <= PERPLEXITY_LIMIT,
        "perplexity": perplexity,
    }
    probe, spec = seen.inputs.probe, seen.inputs.spec
    if probe is None:
        rest = [equivalence_without_probe(name) for name in seen.subjects.values()]
        return [manipulation_without_probe(details), *rest]
    rows = seen.texts
    lifts = evidence.compared_lifts(rows, seen.alpha)
    details["unsteered_score"] = float(
        evidence.per_prompt(rows, "score")["unsteered"].mean()
    )
    details["icc"] = _icc(rows)
    first = manipulation(
        lifts,
        num_samples=spec.samples,
        seed=spec.seed,
        details=details,
        looks=seen.looks,
    )
    rest = [
        equivalence(
            lifts,
            family,
            subject=subject,
            manipulation=first.verdict,
            num_samples=spec.samples,
            margin=spec.margin,
            seed=spec.seed,
            looks=seen.looks,
        )
        for family, subject in seen.subjects.items()
    ]
    return [first, *rest]


def _divergences(seen: Evidence, behaviour: Mapping[str, Finding]) -> list[Finding]:
    """T4 for every subject."""
    spec = seen.inputs.spec
    tables = evidence.families(evidence.per_prompt(seen.divergences, "nats", "other"))
    own = [row["num_tokens"] for row in seen.texts if row["arm"] == "v"]
    return [
        divergence(
            tables,
            family,
            subject=subject,
            floor=seen.plumbing.details["floor_kl"],
            tokens=sum(own) / len(own),
            num_samples=spec.samples,
            score_gap=_gap(behaviour.get(subject)),
            budget=spec.budget,
            seed=spec.seed,
            looks=seen.looks,
        )
        for family, subject in seen.subjects.items()
    ]


def _gap(finding: Finding | None) -> Estimate | None:
    return finding.estimate if finding else None


def judged(seen: Evidence, finding: Finding) -> Finding:
    """The finding, or UNINFORMATIVE in a run whose plumbing check failed."""
    if seen.plumbing.verdict is Verdict.PASS:
        return finding
    reason = "The plumbing check failed, so the numbers below describe another thing."
    return replace(
        finding,
        verdict=Verdict.UNINFORMATIVE,
        reasons=(reason, *finding.reasons),
    )


def _perplexities(seen: Evidence) -> dict[str, float]:
    names = ("unsteered", "v", "minus_v")
    return {name: evidence.perplexity(seen.likelihoods, name) for name in names}


def _icc(rows: Rows) -> float | None:
    """Share of the unsteered score's variance that lies between prompts."""
    own = [row for row in rows if row["arm"] == "unsteered"]
    num_samples = 1 + max(row["sample"] for row in own)
    ordered = sorted(own, key=lambda row: (row["prompt_index"], row["sample"]))
    scores = torch.tensor([row["score"] for row in ordered]).double()
    value = intraclass_correlation(scores.view(-1, num_samples).numpy())
    return None if value != value else value


def _probe_facts(inputs: Inputs) -> dict[str, Any] | None:
    probe = inputs.probe
    if probe is None:
        return None
    return {
        "name": probe.name,
        "auc": probe.auc,
        "num_labelled": probe.num_labelled,
        "kind": probe.kind,
        "record": dict(probe.record),
        "high_words": list(probe.words[0]),
        "low_words": list(probe.words[1]),
    }


def _arm_facts(seen: Evidence) -> list[dict[str, Any]]:
    """Norm, angle and origin of every arm's vector."""
    direction = seen.vector.direction.double()
    listed = []
    for name, arm in seen.arms.items():
        steering = arm.intervention
        if steering is None:
            listed.append({"name": name, "alpha": 0.0, "norm": 0.0, "cosine": None})
            continue
        own = steering.vector.direction.double()
        cosine = torch.nn.functional.cosine_similarity(direction, own, dim=0)
        listed.append(
            {
                "name": name,
                "alpha": steering.alpha,
                "norm": steering.vector.norm,
                "cosine": float(cosine),
                "layer": steering.site.layer,
                "origin": steering.vector.provenance.parent,
            }
        )
    return listed


def _not_run(inputs: Inputs) -> list[str]:
    """Controls and audits that could not be run, and why."""
    missing = []
    spec = inputs.spec
    if inputs.probe is None and spec.behaves:
        missing.append(
            "T1 and T3 need a probe, and none was given: the trait was not scored. So "
            f"do {', '.join(NEED_A_PROBE)}."
        )
    elif inputs.probe is None and "access" in spec.audits:
        missing.append(
            "Without a probe, the access table has no behaviour: only divergences."
        )
    if not inputs.pairs:
        missing.append(
            "Sign-flipped and other-trait controls need contrast pairs, and only a "
            "vector was given: the matched nulls of T1 and T4 are random directions."
        )
    elif len(inputs.pairs) < FEWEST_PAIRS_TO_FLIP:
        missing.append(
            f"Sign flips need {FEWEST_PAIRS_TO_FLIP} pairs; there are "
            f"{len(inputs.pairs)}, so the matched nulls of T1 and T4 are random ones."
        )
    if inputs.pairs and inputs.given and not made_of(inputs.given, inputs.pairs):
        missing.append(
            "The vector was not extracted from these pairs: sign flips are of other "
            "differences than those that made v."
        )
    asked, found = inputs.spec.num_prompts, len(inputs.test_prompts)
    if found < asked:
        missing.append(
            f"{asked} test prompts were asked for; there are {found}, beside "
            f"{len(inputs.dose_prompts)} that are kept to choose alpha."
        )
    if spec.wants_reachability and found < spec.reach_prompts:
        missing.append(
            f"States of {spec.reach_prompts} prompts were to be searched for; there "
            f"are {found} test prompts."
        )
    asks_sameness = {"equivalence", "divergence"} & {*spec.audits}
    if spec.sequential and found <= MINIMUM_PROMPTS and asks_sameness:
        missing.append(
            f"An equivalence is stated from {MINIMUM_PROMPTS} prompts on, and this "
            f"sequential run planned {found}: only differences could end it early. "
            "With --num-prompts 100 or more an equivalence can as well."
        )
    if "environments" in inputs.spec.audits and not inputs.environment_pairs:
        missing.append(
            "Across environments only v itself was tested: vectors of other "
            "environments need a trait with contrast pairs in them."
        )
    if inputs.spec.published_code and not (inputs.pairs and inputs.spec.layer):
        missing.append(
            "The published code's variant reads one block below the one it writes to, "
            "from contrast pairs: it needs pairs, and a layer above 0."
        )
    missing += [
        f"{name} was read at layer {rival.site.layer}, and is compared at layer "
        f"{spec.layer}, where it may mean something else."
        for name, rival in inputs.rivals.items()
        if rival.site.layer != spec.layer
    ]
    asked, found = spec.geometry_prompts, len(inputs.fit_prompts)
    if spec.wants_geometry and found < asked:
        missing.append(
            f"The Fisher matrix is of {found} prompts; {asked} were asked for, and a "
            "power of two is used."
        )
    if spec.wants_geometry and len(inputs.pairs) < 2:
        missing.append(
            "T13 (methods) compares extraction methods on contrast pairs, and there "
            "are none."
        )
    if inputs.pairs and inputs.trait is None:
        missing.append(
            "Other-trait controls need a built-in trait; the pairs are your own."
        )
    return missing
