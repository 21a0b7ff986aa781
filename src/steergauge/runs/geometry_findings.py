"""T6 to T13: from what a run measured of its geometry to findings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from steergauge.audits import nulls as null_audit
from steergauge.audits.alternative import Alternatives, Candidate, alternative
from steergauge.audits.decomposition import Decomposed, decomposition
from steergauge.audits.finding import MOST_DIFFERENT, SAME_COSINE, Finding
from steergauge.audits.gauge import gauge
from steergauge.audits.linearity import LinearRay, Rays, linearity
from steergauge.audits.methods import Extracted, methods
from steergauge.audits.saturation import Blocks, saturation
from steergauge.audits.spectrum import Spectra, spectrum
from steergauge.generation import Arm
from steergauge.geometry.survey import Survey
from steergauge.intervention import Add
from steergauge.runs import evidence
from steergauge.runs.along import MULTIPLES, STEPS, linear_rays, null_rays
from steergauge.runs.alternatives import (
    NUM_CONTROLS,
    alternative_name,
    alternatives,
    control_name,
    others,
)
from steergauge.runs.forms import SIGN_FLIP, Forms, forms, streams_of, writings
from steergauge.runs.geometry import Geometry
from steergauge.runs.plan import made_of
from steergauge.runs.stages import Stages
from steergauge.vector import SteeringVector

if TYPE_CHECKING:
    from steergauge.runs.judge import Evidence


@dataclass(frozen=True)
class Measured:
    """What is known of the geometry before the texts of the test.

    Attributes:
        geometry: the matrices and what was found with them.
        forms: vectors of other methods; None if T13 is not asked for.
    """

    geometry: Geometry
    forms: Forms | None

    @cached_property
    def _found(self) -> dict[str, Add]:
        return others(self.geometry)

    @property
    def arms(self) -> dict[str, Arm]:
        """Arms whose texts are generated: the most different vector and a control."""
        return {
            name: Arm(self._found[name])
            for name in (MOST_DIFFERENT, f"{SAME_COSINE}[0]")
            if name in self._found
        }

    @property
    def others(self) -> dict[str, Add]:
        """Those that are compared with v on its texts only."""
        rest = {k: u for k, u in self._found.items() if k not in self.arms}
        return rest | (self.forms.arms if self.forms else {})


def measured(
    stages: Stages, vector: SteeringVector, alpha: float, median_norm: float
) -> Measured:
    """All that comes before the texts of the test."""
    geometry = Geometry(stages, vector, alpha, median_norm)
    wanted = "methods" in stages.spec.audits
    return Measured(geometry, forms(geometry) if wanted else None)


def findings(
    shapes: Measured, seen: "Evidence", before: Mapping[str, Finding]
) -> dict[str, Finding]:
    """Every finding of the geometry that the spec asks for, by key.

    Args:
        shapes: what was measured.
        seen: the rest of the run.
        before: findings on the plumbing and on texts.
    """
    judge = _Judge(shapes, seen, before)
    audits: dict[str, Callable[[], Finding]] = {
        "spectrum": judge.spectrum,
        "nulls": judge.nulls,
        "saturation": judge.saturation,
        "decomposition": judge.decomposition,
        "alternative": judge.alternative,
        "linearity": lambda: judge.linearity,
        "gauge": lambda: gauge(writings(shapes.geometry)),
        "methods": judge.methods,
    }
    wanted = seen.inputs.spec.audits
    found = [audit() for name, audit in audits.items() if name in wanted]
    return {finding.key: finding for finding in found}


@dataclass(frozen=True)
class _Judge:
    """The inputs of each audit, from stored numbers."""

    shapes: Measured
    seen: "Evidence"
    before: Mapping[str, Finding]

    @property
    def geometry(self) -> Geometry:
        return self.shapes.geometry

    @property
    def floor_nats(self) -> float:
        """Nats by which two compute paths of one arm differ, as T0 measured them."""
        return self.seen.plumbing.details["floor_kl"]

    @cached_property
    def nats(self) -> dict[str, np.ndarray]:
        """K(v || .) of the test's prompts, as tables by family."""
        return evidence.per_prompt(self.seen.divergences, "nats", "other")

    @property
    def shares(self) -> np.ndarray:
        unit = self.seen.vector.direction.double() / self.seen.vector.norm
        directions = self.geometry.spectrum.directions.cpu()
        return (directions.T @ unit).square().numpy()

    def spectrum(self) -> Finding:
        geometry = self.geometry
        found = spectrum(
            Spectra(
                values=geometry.spectrum.values.cpu().numpy(),
                shares=self.shares,
                left_out=geometry.unsteered.left_out,
                single=geometry.single,
                floor=geometry.facts["floor"],
                strength=geometry.strength,
                effect=geometry.facts["effect"],
                num_texts=geometry.unsteered.num_texts,
                num_tokens=geometry.num_tokens,
                published=geometry.published["found"],
                covariance=geometry.covariance,
            )
        )
        failed = [
            f"The published estimate could not be emulated in {reason}"
            for reason in geometry.published["failed"]
        ]
        return replace(found, reasons=(*found.reasons, *failed))

    def nulls(self) -> Finding:
        geometry = self.geometry
        rows = null_rays(geometry, self.seen.texts)
        lengths = np.array(STEPS) * geometry.median_norm
        share = geometry.num_tokens / self.seen.inputs.spec.max_new_tokens
        rays = {
            row["direction"]: null_audit.Ray(
                steps=np.array(STEPS),
                nats=np.array(row["nats"]),
                floors=np.maximum(row["floors"], share * self.floor_nats),
                at_strength=np.array(row["at_strength"]),
                quadratic=0.5 * lengths**2 * row["visibility"],
            )
            for row in rows
        }
        spec = self.seen.inputs.spec
        return null_audit.nulls(
            rays, effect=rays["v"].at_strength, budget=spec.budget, seed=spec.seed
        )

    def saturation(self) -> Finding:
        survey = self.geometry.unsteered
        weakest = survey.weakest
        cosines = np.abs(weakest @ weakest.T)[np.triu_indices(len(weakest), 1)]
        return saturation(
            Blocks(
                values=survey.blocks,
                floor=self.geometry.facts["floor"],
                null_cosines=cosines if len(cosines) else None,
                num_tokens=self.geometry.num_tokens,
            )
        )

    def decomposition(self) -> Finding:
        geometry = self.geometry
        survey, spectrum = geometry.unsteered, geometry.spectrum
        vector, streams = self.seen.vector, streams_of(geometry)
        inputs = self.seen.inputs
        kept = ("unsteered", "canonical", "canonical_soft")
        differences = None
        averaged = vector.provenance.method == "mean_difference"
        if streams is not None and averaged and made_of(vector, inputs.pairs):
            differences = streams.differences
        return decomposition(
            Decomposed(
                direction=vector.direction.double().numpy(),
                values=spectrum.values.cpu().numpy(),
                directions=spectrum.directions.cpu().numpy(),
                floor=geometry.facts["floor"],
                strength=geometry.strength,
                gain=survey.gains[:, 0],
                trace=survey.traces / len(survey.matrix),
                tau=geometry.soft_nats,
                nats={name: self.nats[name] for name in kept if name in self.nats},
                differences=differences,
            ),
            seed=self.seen.inputs.spec.seed,
        )

    def alternative(self) -> Finding:
        survey, spec = self.geometry.unsteered, self.seen.inputs.spec
        check, has_probe = self.before.get("manipulation"), bool(self.seen.inputs.probe)
        candidates = []
        for record in alternatives(self.geometry)["candidates"]:
            name = alternative_name(record["budget"], spec.budget)
            if name not in self.nats:
                continue
            drawn = [
                self.nats[control_name(record["budget"], spec.budget, j)]
                for j in range(NUM_CONTROLS)
            ]
            candidates.append(
                Candidate(**record, nats=self.nats[name], control=np.stack(drawn))
            )
        return alternative(
            Alternatives(
                candidates=candidates,
                effect=self.nats["unsteered"],
                floor=self.floor_nats,
                rho=_rho(survey),
                # Without a probe T1 was not asked; nats need none.
                manipulation=check.verdict if check and has_probe else None,
                budget=spec.budget,
                radius=self.linearity.details["directions"]["v"]["radius"],
                num_validation=len(self.seen.inputs.validation_prompts),
                added=evidence.families(self.nats)["v_plus_perp"],
            ),
            seed=spec.seed,
        )

    @cached_property
    def linearity(self) -> Finding:
        arrays = linear_rays(self.geometry)
        names = dict.fromkeys(key.partition("/")[0] for key in arrays)
        rays = {
            name: LinearRay(
                steps=np.array(MULTIPLES),
                nats=arrays[f"{name}/nats"],
                quadratic=arrays[f"{name}/quadratic"],
                logits=arrays[f"{name}/departures"],
            )
            for name in names
        }
        return linearity(
            Rays(rays=rays, floor=self.floor_nats, strength=self.geometry.strength),
            seed=self.seen.inputs.spec.seed,
        )

    def methods(self) -> Finding:
        found = self.shapes.forms
        assert found is not None
        return methods(
            Extracted(
                vectors={
                    name: vector.direction.double().numpy()
                    for name, vector in found.vectors.items()
                },
                fisher=self.geometry.unsteered.matrix.cpu().numpy(),
                nats={
                    name: self.nats[f"method({name})"]
                    for name in found.vectors
                    if name != found.own
                },
                effect=self.nats["unsteered"],
                nulls=(SIGN_FLIP,),
                own=found.own,
                strengths=found.strengths,
                threshold=self.seen.inputs.spec.budget,
                floor=self.floor_nats,
            ),
            seed=self.seen.inputs.spec.seed,
        )


def _rho(survey: Survey) -> float:
    """The rho_F of v; 0 where the output sees nothing."""
    mean = float(survey.traces.mean()) / len(survey.matrix)
    return float(survey.gains[:, 0].mean()) / mean if mean > 0 else 0.0
