"""The geometry of a run, measured in stages that survive a kill.

::

    texts of FIT and VAL  ->  F_bar unsteered, F steered  ->  vectors to be compared
    test texts            ->  KL along rays, linearity, gauge

F_bar is of unsteered responses, F of v's own at the point h + alpha v. What is found
with FIT is checked on VAL and judged on the prompts of the test.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steergauge import fisher, linalg
from steergauge.entry import Row, Shift
from steergauge.errors import BadPrompts, ModelError
from steergauge.generation import Arm
from steergauge.geometry import activation_nullspace as activations
from steergauge.geometry import survey
from steergauge.geometry.published_nullspace import Recipe, published_nullspace
from steergauge.intervention import Add, Scope, scope_named
from steergauge.jacobian import widened
from steergauge.linalg import Spectrum
from steergauge.runs.progress import Progress
from steergauge.runs.stages import Stages
from steergauge.runs.store import Rows
from steergauge.scoring import Continuation, sequence_kl
from steergauge.vector import SteeringVector

PRECISIONS = (torch.float16, torch.float32)
"""In which the published estimate is emulated; the first is the published one."""


HALF_ON_CPU = 5e10
"""FLOPs in half precision beyond which a CPU is not asked for them."""


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
    def num_tokens(self) -> int:
        """Mean number of response tokens of a text of F_bar, rounded."""
        texts = self.continuations("unsteered", fit=True, whole=False)
        return max(1, round(np.mean([len(text.response_ids) for text in texts])))

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
                name = str(dtype).removeprefix("torch.")
                if dtype is torch.float16 and self._is_slow(recipe):
                    failed.append(f"{name}: on a CPU that takes long; use a GPU.")
                    continue
                try:
                    seen = published_nullspace(
                        stages.lm, row, layer=layer, recipe=recipe
                    )
                except ModelError as error:
                    failed.append(f"{name}: {error.found}")
                    continue
                found.append(seen.to_json())
            return {"found": found, "failed": failed}

        return stages.store.record("geometry-published", make)

    def _is_slow(self, recipe: Recipe) -> bool:
        """Whether half precision, which a CPU is bad at, would take minutes."""
        lm = self.stages.lm
        blocks = lm.blocks[self.vector.site.layer + 1 :]
        weights = [p for block in blocks for p in block.parameters()]
        head = lm.d_vocab * lm.d_model
        a_step = 2 * (sum(weight.numel() for weight in weights) + head)
        work = 2 * recipe.num_probes * a_step
        return lm.device.type == "cpu" and work > HALF_ON_CPU

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
        stages.progress.begin(f"geometry: Fisher matrix, {arm}", len(rows))
        todo = {
            part_name(arm, k): (
                partial(
                    _part,
                    own=[rows[i] for i in texts],
                    directions=directions.cpu(),
                    shift=shift,
                ),
                len(texts),
            )
            for k, texts in enumerate(survey.parts_of(len(rows)))
        }
        apart = self._missing(todo) if stages.workers is not None else []
        if stages.workers is not None and apart:
            stages.workers.arrays(stages, [(name, *todo[name]) for name in apart])
        here = stages
        if self._missing(todo):  # One copy of a model in half precision for all.
            here = replace(stages, lm=widened(stages.lm))
        parts = []
        for name, (make, units) in todo.items():
            parts.append(stages.store.arrays(name, lambda m=make: m(here)))
            if name not in apart:
                stages.progress.advance(units)
        return survey.merged(parts)

    def _missing(self, names: Iterable[str]) -> list[str]:
        store = self.stages.store
        return [name for name in names if not store.has_arrays(name)]

    @property
    def soft_nats(self) -> float:
        """The budget in nats of the soft null space."""
        return self.stages.spec.budget * self.facts["effect"]


@dataclass(slots=True)
class Told:
    """A stage of the progress that ends at its total, also if it was done before."""

    progress: Progress
    label: str
    left: int

    def __post_init__(self) -> None:
        self.progress.begin(self.label, self.left)

    def advance(self, num: int = 1) -> None:
        """So many more units are done."""
        self.left -= num
        self.progress.advance(num)

    def to_the_end(self, found: Any) -> Any:
        """What was found; units that needed no work are done as well."""
        self.progress.advance(self.left)
        return found


def _part(
    stages: Stages, *, own: Sequence[Row], directions: Tensor, shift: Shift
) -> survey.Part:
    """F_x of some texts, wherever they are made."""
    return survey.surveyed(
        widened(stages.lm),
        own,
        directions,
        shift=shift,
        temperature=stages.spec.temperature,
    )


def part_name(arm: str, k: int) -> str:
    """The cell of the k-th part of a Fisher matrix."""
    return f"fisher-{arm}-{k:04d}"


def rows_of(texts: Sequence[Continuation]) -> list[Row]:
    """Texts as rows of token ids with the length of their prompts."""
    return [
        ([*text.prompt_ids, *text.response_ids], len(text.prompt_ids)) for text in texts
    ]
