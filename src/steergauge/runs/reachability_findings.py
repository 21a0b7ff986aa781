"""T16 to T19: from what a run measured of its steered states to findings."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from steergauge.audits.access import access
from steergauge.audits.density import Family, density
from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.audits.inversion import Inverted, Tried, inversion
from steergauge.audits.states import Searched, states
from steergauge.reachability.density import drift, fitted
from steergauge.reachability.nearest import EDGES
from steergauge.runs.manifold import manifold
from steergauge.runs.prompting import Prompting
from steergauge.runs.reachability import Reach
from steergauge.runs.store import Rows
from steergauge.statistics import Estimate

if TYPE_CHECKING:
    from steergauge.runs.judge import Evidence


def findings(reach: Reach, seen: "Evidence") -> tuple[dict[str, Finding], Rows]:
    """Every finding that the spec asks for, and the texts that it is made of."""
    floor = seen.plumbing.details["floor_kl"]
    tried = Prompting(reach, seen.texts, floor)
    makers: dict[str, Callable[[], Finding]] = {
        "states": lambda: _states(reach, seen),
        "inversion": lambda: _inversion(reach, seen),
        "access": lambda: _access(tried, seen),
        "density": lambda: _density(reach, seen),
    }
    wanted = seen.inputs.spec.audits
    found = [make() for audit, make in makers.items() if audit in wanted]
    return {finding.key: finding for finding in found}, reach.texts


def _states(reach: Reach, seen: "Evidence") -> Finding:
    spec = seen.inputs.spec
    cells = reach.searched()
    searched = [
        Searched(
            prompt=prompt,
            tokens=tuple(_word(reach, token) for token in cell["token_ids"].tolist()),
            **{key: value for key, value in cell.items() if key != "num_kl"},
        )
        for prompt, cell in zip(reach.prompts, cells, strict=True)
    ]
    named = ("first", "second", "aligned", "kl_token", "token_ids", "constructed")
    found = states(
        searched,
        reach.targets,
        decode=_decoded(reach, *(cell[name] for cell in cells for name in named)),
        d_vocab=reach.lm.d_vocab,
        num_kl=int(np.concatenate([cell["num_kl"] for cell in cells]).min()),
        floor_kl=seen.plumbing.details["floor_kl"],
        edges=[float(edge) for edge in EDGES],
        steering=spec.steering,
        layer=reach.vector.site.layer,
        read_layer=reach.layer,
        seed=spec.seed,
    )
    return _with_arrival(reach, found)


def _with_arrival(reach: Reach, found: Finding) -> Finding:
    """The finding, with the check that steering did what it is meant to do."""
    worst = reach.arrival
    # Places other than the first; relative, so of a state of length 1.
    most = reach.tolerance.at(1, 1.0)
    check = Control(
        "arrival",
        f"a steered state is T(h) to {most:.1g} of its length, worked out by hand",
        Estimate(worst, worst, worst),
        "",
        worst <= most,
    )
    controls = (check, *found.controls)
    if check.holds:
        return replace(found, controls=controls)
    reason = (
        f"Steered states are {worst:.2g} of their length away from what steering is "
        "meant to make of them: what follows is about something else."
    )
    return replace(
        found,
        verdict=Verdict.UNINFORMATIVE,
        reasons=(reason, *found.reasons),
        controls=controls,
    )


def _inversion(reach: Reach, seen: "Evidence") -> Finding:
    records = reach.inverted()
    found = [
        Inverted(
            prompt=prompt,
            tokens=tuple(_word(reach, token) for token in record["ids"]),
            token_ids=np.array(record["ids"]),
            step=np.array(record["step"]),
            apart=np.array(record["apart"]),
            natural=_tried(record["natural"]),
            steered=_tried(record["steered"]),
        )
        for prompt, record in zip(reach.prompts, records, strict=True)
    ]
    tokens = [tried.tokens for one in found for tried in (one.natural, one.steered)] + [
        one.token_ids for one in found
    ]
    return inversion(
        found,
        decode=_decoded(reach, *tokens),
        d_vocab=reach.lm.d_vocab,
        steering=seen.inputs.spec.steering,
        seed=seen.inputs.spec.seed,
    )


def _tried(record: Mapping[str, Any]) -> Tried:
    second = [np.nan if x is None else x for x in record["second"]]
    return Tried(
        tokens=np.array(record["token"]),
        accepted=np.array(record["accepted"]),
        distance=np.array(record["distance"]),
        second=np.array(second, dtype=float),
        tolerance=np.array(record["tolerance"]),
        tested=np.array(record["tested"]),
    )


def _access(tried: Prompting, seen: "Evidence") -> Finding:
    spec = seen.inputs.spec
    return access(
        tried.rows,
        tried.powers,
        sign=float(np.sign(seen.alpha)),
        floor=seen.plumbing.details["floor_kl"],
        threshold=spec.budget,
        budget=tried.budget,
        seed=spec.seed,
    )


def _density(reach: Reach, seen: "Evidence") -> Finding:
    found = manifold(reach, seen.texts)
    natural = fitted(found.reference)

    def family(name: str, rows: np.ndarray, origins: np.ndarray | None) -> Family:
        norm, angle = (
            (natural.norm_ratio(rows), np.zeros(len(rows)))
            if origins is None
            else drift(rows, origins)
        )
        return Family(
            name=name,
            mahalanobis=natural.mahalanobis(rows),
            neighbours=natural.neighbour_distance(rows),
            norm=norm,
            angle=angle,
        )

    return density(
        {name: family(name, getattr(found, name), found.natural) for name in _FAMILIES},
        family("calibration", found.calibration, None),
        prompts=found.prompts,
        num_reference=len(found.reference),
        components=natural.num_components,
        calibration_prompts=found.calibration_prompts,
        seed=seen.inputs.spec.seed,
    )


_FAMILIES = ("natural", "v", "random", "swap")
"""Fields of `Manifold` under test."""


def _decoded(reach: Reach, *tokens: np.ndarray) -> dict[int, str]:
    """The text of every token among these."""
    ids = {int(token) for some in tokens for token in some.ravel()}
    return {token: _word(reach, token) for token in sorted(ids) if token >= 0}


def _word(reach: Reach, token: int) -> str:
    return reach.lm.tokenizer.decode([token])
