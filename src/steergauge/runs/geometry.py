"""The geometry of a run, measured in stages that survive a kill.

::

    texts of FIT and VAL  ->  F_bar unsteered, F steered  ->  vectors to be compared
    test texts            ->  KL along rays, linearity, gauge

F_bar is of unsteered responses, F of v's own at the point h + alpha v. What is found
with FIT is checked on VAL and judged on the prompts of the test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steergauge import fisher, linalg
from steergauge.audits import controls
from steergauge.entry import Row, Shift
from steergauge.errors import BadPrompts, ModelError
from steergauge.generation import Arm
from steergauge.geometry import activation_nullspace as activations
from steergauge.geometry import rays, survey
from steergauge.geometry.most_different import canonical, canonical_soft, same_cosine
from steergauge.geometry.published_nullspace import Recipe, published_nullspace
from steergauge.geometry.search import Found, Texts, searched
from steergauge.intervention import Add, Scope, scope_named
from steergauge.jacobian import widened
from steergauge.linalg import Spectrum
from steergauge.runs.arms import direction_seed
from steergauge.runs.stages import Progress, Stages
from steergauge.runs.store import Rows
from steergauge.scoring import Continuation, sequence_kl
from steergauge.vector import SteeringVector, load_vector

BUDGETS = (0.01, 0.05, 0.2)
"""Shares of v's effect within which a most different vector is looked for; that of the
run is added."""

NUM_CONTROLS = 5
"""Random vectors at the cosine of the most different one."""

STEPS = (0.01, 0.03, 0.1, 0.3, 1.0, 10.0, 100.0)
"""Of the rays of T7, in median ||h||."""

MULTIPLES = tuple(2.0**k for k in range(-5, 3))
"""Of the rays of T11, in ||alpha v||."""

NUM_SMALLEST = 3
NUM_LINEAR = 32
"""Texts of T11."""

PRECISIONS = (torch.float16, torch.float32)
"""In which the published estimate is emulated; the first is the published one."""


@dataclass(frozen=True)
class Geometry:
    """What a run knows of its geometry; each property is made once and kept."""

    stages: Stages
    vector: SteeringVector
    alpha: float
    median_norm: float

    @property
    def strength(self) -> float:
        """The length s = ||alpha v||."""
        return abs(self.alpha) * self.vector.norm

    @property
    def scope(self) -> Scope:
        """The run's."""
        return scope_named(self.stages.spec.scope)

    @property
    def shift(self) -> Shift:
        """Delta at v's site, taken where there is none."""
        return Shift(self.vector.site, self.scope)

    @cached_property
    def v(self) -> Add:
        """The arm v."""
        return Add(self.vector, self.alpha, self.scope)

    @property
    def step(self) -> Tensor:
        """The step alpha v in float64."""
        return self.v.displacement.double()

    @property
    def texts(self) -> Rows:
        """Texts of the prompts of FIT and VAL, as far as they were needed."""
        return [row for name in self._texts for row in self._texts[name]]

    @cached_property
    def _texts(self) -> dict[str, Rows]:
        return {"unsteered": self._drawn("unsteered", Arm())}

    def _drawn(self, name: str, arm: Arm) -> Rows:
        inputs = self.stages.inputs
        prompts = [*inputs.fit_prompts, *inputs.validation_prompts]
        return self.stages.drawn(f"geometry-{name}", {name: arm}, prompts, 1)

    def continuations(self, arm: str, *, fit: bool, whole: bool) -> list[Continuation]:
        """Texts of an arm, to their end or as many tokens as F is of."""
        if arm not in self._texts:
            self._texts[arm] = self._drawn(arm, Arm(self.v))
        num_fit = len(self.stages.inputs.fit_prompts)
        own = [
            row for row in self._texts[arm] if (row["prompt_index"] < num_fit) == fit
        ]
        found = self.stages.continuations(own)
        kept = found if whole else self.cut(found)
        if not kept:
            raise BadPrompts(
                f"none of the {len(found)} texts drawn for the geometry is long enough "
                f"for a shift in the scope {self.scope}.",
                cause="They end before a token that was shifted is read.",
                remedy="Use a larger --max-new-tokens, other prompts or another scope.",
            )
        return kept

    def cut(self, found: Sequence[Continuation]) -> list[Continuation]:
        """The first tokens of each; texts too short for the scope are left out."""
        least = 2 if self.scope is Scope.RESPONSE else 1
        num = max(least, self.stages.spec.geometry_tokens)
        return [
            Continuation(one.prompt_ids, one.response_ids[:num])
            for one in found
            if len(one.response_ids) >= least
        ]

    @property
    def unit(self) -> Float[Tensor, "1 d_model"]:
        """V at length 1, as the only row."""
        return (self.vector.direction.double() / self.vector.norm)[None]

    @cached_property
    def unsteered(self) -> survey.Survey:
        """F_bar of unsteered texts; its only direction is v at length 1."""
        return self._surveyed("unsteered", self.unit, self.shift)

    @cached_property
    def steered(self) -> survey.Survey:
        """F of v's texts at the point h + alpha v."""
        at = Shift(self.vector.site, self.scope, self.v.displacement)
        return self._surveyed("v", self.step[None], at)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Of F_bar."""
        return linalg.spectrum(self.unsteered.matrix)

    @cached_property
    def facts(self) -> dict[str, float]:
        """The precision floor, and v's effect in nats.

        `effect` is KL(p_0 || p_v) on the texts of F_bar, `effect_check` is
        K(v || unsteered) on v's texts of VAL.
        """
        stages = self.stages
        # Drawn or read in any case: a resumed run keeps the same texts.
        texts = self.continuations("unsteered", fit=True, whole=False)
        own = self.continuations("v", fit=False, whole=False)

        def make() -> dict[str, float]:
            temperature = stages.spec.temperature
            from_v = self.nats(own, {"": None})
            to_v = sequence_kl(
                stages.lm, texts, None, {"": self.v}, temperature=temperature
            )
            wide, row = widened(stages.lm), rows_of(texts)[0]
            return {
                "floor": fisher.precision_floor(wide, row, shift=self.shift),
                "effect": float(to_v[""].mean()),
                "effect_check": float(from_v[""].mean()),
            }

        return stages.store.record("geometry-facts", make)

    def nats(
        self, texts: Sequence[Continuation], others: Mapping[str, Add | None]
    ) -> dict[str, np.ndarray]:
        """K(v || other) of each text of v."""
        temperature = self.stages.spec.temperature
        return sequence_kl(
            self.stages.lm, texts, self.v, others, temperature=temperature
        )

    @cached_property
    def single(self) -> dict[str, np.ndarray]:
        """Spectra of the first text's J_h, J and F_x."""
        row = rows_of(self.continuations("unsteered", fit=True, whole=False))[0]

        def make() -> dict[str, np.ndarray]:
            return survey.single_spectra(
                widened(self.stages.lm),
                row,
                shift=self.shift,
                temperature=self.stages.spec.temperature,
            )

        return self.stages.store.arrays("geometry-single", make)

    @cached_property
    def published(self) -> dict[str, list[Any]]:
        """The published estimate on the first prompt, as published and in float32.

        Records `found`, and why any precision `failed`.
        """
        stages, layer = self.stages, self.vector.site.layer
        row = rows_of(self.continuations("unsteered", fit=True, whole=False))[0]

        def make() -> dict[str, Any]:
            found, failed = [], []
            for dtype in PRECISIONS:
                recipe = Recipe(dtype=dtype, seed=stages.spec.seed)
                try:
                    seen = published_nullspace(
                        stages.lm, row, layer=layer, recipe=recipe
                    )
                except ModelError as error:
                    name = str(dtype).removeprefix("torch.")
                    failed.append(f"{name}: {error.found}")
                    continue
                found.append(seen.to_json())
            return {"found": found, "failed": failed}

        return stages.store.record("geometry-published", make)

    @cached_property
    def covariance(self) -> dict[str, Any]:
        """The null space of the activations beside that of the output."""
        rows = rows_of(self.continuations("unsteered", fit=True, whole=True))

        def make() -> dict[str, Any]:
            layer = self.vector.site.layer
            seen = activations.activation_covariance(self.stages.lm, rows, layer=layer)
            spectrum, floor = self.spectrum, self.facts["floor"]
            return activations.activation_nullspace(
                seen, spectrum, floor=floor
            ).to_json()

        return self.stages.store.record("geometry-covariance", make)

    def _surveyed(self, arm: str, directions: Tensor, shift: Shift) -> survey.Survey:
        stages = self.stages
        rows = rows_of(self.continuations(arm, fit=True, whole=False))
        wide = widened(stages.lm)
        stages.progress.begin(f"geometry: Fisher matrix, {arm}", len(rows))
        parts = []
        for k, texts in enumerate(survey.parts_of(len(rows))):

            def make(own: Sequence[Row]) -> survey.Part:
                return survey.surveyed(
                    wide,
                    own,
                    directions,
                    shift=shift,
                    temperature=stages.spec.temperature,
                )

            own = [rows[i] for i in texts]
            parts.append(stages.store.arrays(part_name(arm, k), lambda o=own: make(o)))
            stages.progress.advance(len(own))
        return survey.merged(parts)

    @cached_property
    def alternatives(self) -> dict[str, Any]:
        """Most different vectors within each budget, with their random controls.

        A dictionary of `candidates` (records) whose vectors are in the store, by the
        names `most_different` and `same_cosine[j]`, with `@budget` behind the first
        word if the budget is not the run's.
        """
        stages, spec = self.stages, self.stages.spec
        spectrum = linalg.spectrum(self.steered.matrix)
        texts = Texts(
            stages.lm,
            self.continuations("v", fit=False, whole=True),
            self.v,
            spec.temperature,
        )
        effect = self.facts["effect_check"]
        budgets = sorted({*BUDGETS, spec.budget})
        told = _Told(stages.progress, "geometry: most different vectors", len(budgets))

        def make() -> dict[str, Any]:
            records = []
            # Where v itself does nothing, there is no budget to keep to.
            for budget in budgets if effect > 0 else ():
                found = searched(texts, spectrum, budget=budget, nats=budget * effect)
                self._keep_with_controls(texts, found)
                records.append(found.to_json())
                told.advance()
            return {"candidates": records}

        return told.to_the_end(stages.store.record("geometry-alternatives", make))

    def _keep_with_controls(self, texts: Texts, found: Found) -> None:
        """The vector that was found, if any, and random ones at its cosine."""
        if found.kept is None:
            return
        spec, budget, other = self.stages.spec, found.budget, found.kept.direction
        self._keep(alternative_name(budget, spec.budget), texts.added(other).vector)
        for j in range(NUM_CONTROLS):
            seed = direction_seed(spec, f"same cosine {budget:g}", j)
            control = same_cosine(self.step, other.cpu(), seed=seed)
            named = control_name(budget, spec.budget, j)
            self._keep(named, texts.added(control).vector)

    @cached_property
    def others(self) -> dict[str, Add]:
        """Everything that is compared with v on its test texts, by name."""
        found: dict[str, Add] = {}
        wanted = {*self.stages.spec.audits}
        if "alternative" in wanted:
            for record in self.alternatives["candidates"]:
                found |= self._alternative(record["budget"])
            found |= self._additions()
        if "decomposition" in wanted:
            nats = self.soft_nats
            floor = self.facts["floor"]
            hard = canonical(self.step, self.spectrum, floor=floor)
            found["canonical"] = self._added(hard.direction)
            if nats > 0:
                soft = canonical_soft(self.step, self.spectrum, nats=nats)
                found["canonical_soft"] = self._added(soft.direction)
        return found

    def _additions(self) -> dict[str, Add]:
        """The arms v + v_perp, unless the test has them anyway."""
        if self.stages.spec.behaves:
            return {}
        found = {}
        for j in range(NUM_CONTROLS):
            seed = direction_seed(self.stages.spec, "perp", j)
            perp = controls.perpendicular(self.vector, seed=seed)
            total = controls.total(self.vector, perp, "v + v_perp")
            found[f"v_plus_perp[{j}]"] = Add(total, self.alpha, self.scope)
        return found

    @property
    def soft_nats(self) -> float:
        """The budget in nats of the soft null space."""
        return self.stages.spec.budget * self.facts["effect"]

    def soft_null_vectors(self) -> dict[str, SteeringVector]:
        """The sum v + n for some n of v's norm in the soft null space, as of T5."""
        seen = self.spectrum
        hidden = 0.5 * self.strength**2 * seen.values <= self.soft_nats
        columns = seen.directions[:, hidden].cpu()
        found = {}
        for k in range(NUM_CONTROLS if columns.shape[1] else 0):
            seed = direction_seed(self.stages.spec, "soft null", k)
            generator = torch.Generator().manual_seed(seed)
            n = columns @ torch.randn(
                columns.shape[1], generator=generator, dtype=torch.float64
            )
            total = self.vector.direction.double() + n * (self.vector.norm / n.norm())
            found[f"soft_null[{k}]"] = self.vector.with_direction(
                total.float(), "v + a direction of the soft null space"
            )
        return found

    def _alternative(self, budget: float) -> dict[str, Add]:
        own = self.stages.spec.budget
        names = [alternative_name(budget, own)]
        names += [control_name(budget, own, j) for j in range(NUM_CONTROLS)]
        kept = {name: self.stages.store.vector_file(name) for name in names}
        return {
            name: Add(load_vector(path), self.alpha, self.scope)
            for name, path in kept.items()
            if path.is_file()
        }

    def _keep(self, name: str, vector: SteeringVector) -> None:
        vector.save(self.stages.store.vector_file(name))

    def _added(self, step: Tensor) -> Add:
        direction = (step / self.alpha).float().cpu()
        vector = self.vector.with_direction(direction, "canonical representative")
        return Add(vector, self.alpha, self.scope)

    def candidates(self) -> dict[str, Tensor]:
        """Directions that T7 tries, by name."""
        columns = self.spectrum.directions.cpu()
        generator = torch.Generator().manual_seed(
            direction_seed(self.stages.spec, "null", 0)
        )
        width = len(columns)
        found = {"all-ones": torch.ones(width, dtype=torch.float64)}
        found |= {
            f"smallest {k + 1}": columns[:, -1 - k]
            for k in range(min(NUM_SMALLEST, width - 2))
        }
        drawn = torch.randn(width, generator=generator, dtype=torch.float64)
        found |= {"random": drawn, "top": columns[:, 0]}
        found["v"] = self.vector.direction.double()
        rivals = self.stages.inputs.rivals
        return found | {n: rival.direction.double() for n, rival in rivals.items()}

    def rays(self, test: Rows) -> Rows:
        """KL and rounding along every candidate of T7, on unsteered texts of the test.

        One row a direction: `nats` (steps x texts), `floors` and `at_strength`.
        """
        stages = self.stages
        texts = self.cut(stages.continuations(first_samples(test, "unsteered")))
        tried = self.candidates()
        told = _Told(stages.progress, "geometry: null directions", len(tried))

        def make() -> Rows:
            found = []
            for name, direction in tried.items():
                found.append({"direction": name, **self._ray(texts, direction)})
                told.advance()
            return found

        return told.to_the_end(stages.store.cell("geometry-rays", make))

    def _ray(self, texts: Sequence[Continuation], direction: Tensor) -> dict[str, Any]:
        lm, temperature = self.stages.lm, self.stages.spec.temperature
        options: dict[str, Any] = {"shift": self.shift, "temperature": temperature}
        lengths = [share * self.median_norm for share in STEPS]
        nats = rays.divergence_along(
            lm, texts, direction, [*lengths, self.strength], **options
        )
        floors = rays.rounding_along(lm, texts, direction, lengths, **options)
        return {
            "nats": nats[:-1].tolist(),
            "floors": floors.tolist(),
            "at_strength": nats[-1].tolist(),
        }

    def linearity(self) -> dict[str, np.ndarray]:
        """KL and logits along v and others against their expansions, by name and kind.

        Keys are `direction/nats`, `direction/quadratic`, `direction/departures`.
        """
        stages = self.stages
        rows = rows_of(self.continuations("unsteered", fit=True, whole=False))
        rows = rows[:NUM_LINEAR]
        chosen = ("v", "top", "random", "smallest 1")
        tried = {k: u for k, u in self.candidates().items() if k in chosen}
        stages.progress.begin("geometry: linearity", 1)

        def make() -> dict[str, np.ndarray]:
            found = rays.linearity_along(
                widened(stages.lm),
                rows,
                tried,
                MULTIPLES,
                length=self.strength,
                shift=self.shift,
                temperature=stages.spec.temperature,
            )
            return {
                f"{name}/{kind}": array
                for name, ray in found.items()
                for kind, array in (
                    ("nats", ray.nats),
                    ("quadratic", ray.quadratic),
                    ("departures", ray.departures),
                )
            }

        arrays = stages.store.arrays("geometry-linearity", make)
        stages.progress.advance(1)
        return arrays


@dataclass(slots=True)
class _Told:
    """A stage of the progress that ends at its total, also if it was done before."""

    progress: Progress
    label: str
    left: int

    def __post_init__(self) -> None:
        self.progress.begin(self.label, self.left)

    def advance(self) -> None:
        """One more unit is done."""
        self.left -= 1
        self.progress.advance(1)

    def to_the_end(self, found: Any) -> Any:
        """What was found; units that needed no work are done as well."""
        self.progress.advance(self.left)
        return found


def part_name(arm: str, k: int) -> str:
    """The cell of the k-th part of a Fisher matrix."""
    return f"fisher-{arm}-{k:04d}"


def rows_of(texts: Sequence[Continuation]) -> list[Row]:
    """Texts as rows of token ids with the length of their prompts."""
    return [
        ([*text.prompt_ids, *text.response_ids], len(text.prompt_ids)) for text in texts
    ]


def first_samples(rows: Rows, arm: str) -> Rows:
    """One text of an arm for each prompt, in the order of the prompts."""
    own = [row for row in rows if row["arm"] == arm and row["sample"] == 0]
    return sorted(own, key=lambda row: row["prompt_index"])


def alternative_name(budget: float, own: float) -> str:
    """The arm of the most different vector within a budget; the run's has no suffix."""
    return "most_different" if budget == own else f"most_different@{budget:g}"


def control_name(budget: float, own: float, j: int) -> str:
    """The arm of a random vector at the same cosine."""
    name = "same_cosine" if budget == own else f"same_cosine@{budget:g}"
    return f"{name}[{j}]"
