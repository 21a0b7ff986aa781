"""The experiments of arXiv 2602.06801, from stored rows to their findings.

Evidence in, findings out, as in `judge`; an audit that the spec does not ask for, or
whose arms were not run, is left out.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from steergauge.audits.comparison import oriented
from steergauge.audits.environments import Tested, environments
from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.logits import Distances, logits
from steergauge.audits.manipulation import MINIMUM_LIFT
from steergauge.audits.reliability import reliability_of_steering
from steergauge.audits.replication import replication
from steergauge.audits.scale import Strength, scale
from steergauge.paper import published
from steergauge.runs import evidence
from steergauge.runs.arms import other_strengths
from steergauge.runs.store import Rows
from steergauge.statistics import intraclass_correlation

if TYPE_CHECKING:
    from steergauge.runs.judge import Evidence

MEASURES = ("agreement", "overlap", "kl", "js", "tv", "l2", "l2_centred")
Scores = Mapping[str, np.ndarray]


def findings(seen: "Evidence", manipulation: Verdict) -> list[Finding]:
    """T2, the curve over alpha, T5, T14 and T20, as far as the spec asks for them."""
    wanted = seen.inputs.spec.audits
    found: list[Finding] = []
    if seen.inputs.probe is None:
        return [_logits(seen)] if "logits" in wanted else []
    scores = evidence.score_arrays(seen.texts)
    if "replication" in wanted:
        oriented_scores = _oriented(scores, seen.alpha)
        found.append(
            replication(
                oriented_scores, manipulation=manipulation, seed=seen.inputs.spec.seed
            )
        )
    if "scale" in wanted:
        found.append(_scale(seen, scores, manipulation))
    if "logits" in wanted:
        found.append(_logits(seen))
    if "environments" in wanted:
        found += _environments(seen, manipulation)
    if "reliability" in wanted:
        found.append(_reliability(seen, scores, manipulation))
    return found


def _oriented(scores: Scores, alpha: float) -> Scores:
    """Scores of the pole that alpha points to, so that v's lift counts as positive."""
    if alpha > 0:
        return scores
    return {name: 1 - values for name, values in scores.items()}


def _scale(seen: "Evidence", scores: Scores, manipulation: Verdict) -> Finding:
    spec = seen.inputs.spec
    own = [Strength(seen.alpha, scores["v"], scores["v_plus_perp"])]
    others = [
        Strength(alpha, scores[f"v@{alpha:g}"], scores[f"v_plus_perp@{alpha:g}"])
        for alpha in other_strengths(spec, seen.alpha)
    ]
    return scale(
        sorted([*own, *others], key=lambda one: one.alpha),
        scores["unsteered"],
        manipulation=manipulation,
        margin=spec.margin,
        minimum_lift=MINIMUM_LIFT,
        seed=spec.seed,
    )


def _logits(seen: "Evidence") -> Finding:
    columns = {
        measure: evidence.families(
            evidence.per_prompt(seen.next_tokens, measure, "other")
        )
        for measure in MEASURES
    }
    gain = evidence.families(evidence.per_prompt(seen.gains, "gain", "direction"))
    distances = columns["l2"]
    shown = [name for name in distances if not name.startswith("geometry_")]
    return logits(
        Distances(
            published_perp=distances["v_plus_perp"],
            published_random=distances["random"],
            perp=distances["geometry_perp"],
            random=distances["geometry_random"],
            random_added=distances["geometry_added"],
            gain=gain["v"],
            perp_gain=gain["perp"],
            measures={
                name: {measure: columns[measure][name] for measure in MEASURES}
                for name in shown
            },
            d_model=seen.lm.d_model,
            soft=distances.get("soft_null"),
        ),
        seed=seen.inputs.spec.seed,
    )


def _environments(seen: "Evidence", manipulation: Verdict) -> list[Finding]:
    spec = seen.inputs.spec
    tested = [
        one
        for target, rows in seen.environments.items()
        for one in _tested(target, rows, seen.alpha)
    ]
    return environments(
        tested,
        source=spec.environment,
        manipulation=manipulation,
        margin=spec.margin,
        minimum_lift=MINIMUM_LIFT,
        num_samples=spec.environment_samples,
        seed=spec.seed,
    )


def _tested(target: str, rows: Rows, alpha: float) -> Iterator[Tested]:
    """Every vector's lifts on one environment's prompts."""
    scores = evidence.score_arrays(rows)
    base = scores["unsteered"].mean(-1)
    for name, own in scores.items():
        if not name.startswith("v("):
            continue
        source = name.removeprefix("v(").removesuffix(")")
        added = scores[f"v_plus_perp({source})"]
        fresh = scores.get(f"v_plus_perp_fresh({source})", ())
        icc = intraclass_correlation(own[0])
        yield Tested(
            source=source,
            target=target,
            own=oriented(own.mean(-1) - base, alpha),
            added=oriented(added.mean(-1) - base, alpha),
            published_d=_mean_d(own[0], fresh),
            floor=published.noise_floor(
                own[0].size, own[0].size, icc=0.0 if np.isnan(icc) else icc
            ),
            num_texts=own[0].size,
        )


def _mean_d(own: np.ndarray, others: Iterable[np.ndarray]) -> float | None:
    """Mean |d|; None where nothing was drawn, or scores that never vary differ."""
    values = [published.cohens_d(own, other) for other in others]
    return float(np.mean(values)) if values and np.isfinite(values).all() else None


def _reliability(seen: "Evidence", scores: Scores, manipulation: Verdict) -> Finding:
    by_alpha = {
        -seen.alpha: scores["minus_v"],
        0.0: scores["unsteered"],
        seen.alpha: scores["v"],
    }
    for alpha in other_strengths(seen.inputs.spec, seen.alpha):
        by_alpha.setdefault(alpha, scores[f"v@{alpha:g}"])
    alphas = sorted(by_alpha)
    return reliability_of_steering(
        np.stack([by_alpha[alpha][0] for alpha in alphas]),
        np.array(alphas),
        manipulation=manipulation,
        seed=seen.inputs.spec.seed,
    )
