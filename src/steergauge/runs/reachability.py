"""Reachability of a run's steered states, measured in cells that survive a kill.

::

    reference prompts  ->  noise of two compute paths  ->  tolerance at every place
    test prompts       ->  states h and h~ at every place
                       ->  every token's distance (T16)
                       ->  inversion of the whole sequence (T17)

States are those of steering at *every* position (arXiv 2604.09839, Definition 4.1),
whatever the scope in which the run's texts are steered: a state within that scope is
the same in both as long as it is read where it is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steergauge import readout
from steergauge.audits import controls
from steergauge.generation import Arm
from steergauge.intervention import Ablate, Add, Intervention, Scope, edits
from steergauge.prompts import Text, encode, padded
from steergauge.reachability.candidates import Prefix, prefix_of
from steergauge.reachability.inversion import Inversion, invert
from steergauge.reachability.nearest import least_kl, nearest
from steergauge.reachability.tolerance import (
    Tolerance,
    calibrated,
    natural_states,
    steered_states,
)
from steergauge.runs.arms import direction_seed
from steergauge.runs.plan import read_at
from steergauge.runs.stages import Stages
from steergauge.runs.store import Rows
from steergauge.split import LanguageModel, positions
from steergauge.vector import SteeringVector

NUM_RANDOM = 20
"""Random steps of the step's length; the 5 % quantile of their distances is a bar."""

NUM_OTHERS = 10
"""Sign flips, and differences of two other prompts, rescaled likewise."""

NUM_DRAWN = 8
"""Tokens of which one makes the state that is reachable by construction."""

NUM_CALIBRATED = 16
"""Reference prompts whose states measure the noise."""

ALL_TOKENS = 4096
"""Vocabularies up to this size are searched whole for the smallest KL; of larger ones
half as many tokens are: the nearest, the likeliest, and random ones."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Reach:
    """What a run knows of its steered states; each property is made once and kept."""

    stages: Stages
    vector: SteeringVector
    alpha: float
    flips: Sequence[SteeringVector]
    texts: Rows = field(default_factory=list)
    """Texts that were drawn for it, once they are."""

    def drawn(
        self,
        stage: str,
        arms: Mapping[str, Arm],
        prompts: Sequence[str],
        samples: int,
    ) -> Rows:
        """Texts that nothing scores, kept with those of the run."""
        rows = self.stages.drawn(stage, arms, prompts, samples)
        self.texts.extend(row | {"score": None} for row in rows)
        return rows

    @property
    def lm(self) -> LanguageModel:
        """The run's model."""
        return self.stages.lm

    @property
    def layer(self) -> int:
        """The block after which states are compared."""
        return read_at(self.stages.spec, self.vector.site.layer)

    @property
    def everywhere(self) -> Intervention:
        """The run's steering, at every position."""
        return self.steering(Scope.ALL)

    def steering(self, scope: Scope) -> Intervention:
        """The run's steering within a scope."""
        if self.stages.spec.steering == "ablation":
            return Ablate(self.vector, scope)
        return Add(self.vector, self.alpha, scope)

    @cached_property
    def prompts(self) -> list[str]:
        """Prompts whose states are searched for."""
        return list(self.stages.inputs.test_prompts[: self.stages.spec.reach_prompts])

    @cached_property
    def ids(self) -> list[list[int]]:
        """Their tokens."""
        return [self.encoded(prompt) for prompt in self.prompts]

    def encoded(self, prompt: str) -> list[int]:
        """Token ids of a prompt as the model sees it."""
        return encode(self.lm, Text(prompt), chat=self.stages.spec.chat)[0]

    @cached_property
    def tolerance(self) -> Tolerance:
        """Calibrated on prompts that are not searched for."""
        some = self.stages.inputs.reference_prompts[:NUM_CALIBRATED]
        rows = [self.encoded(prompt) for prompt in some]
        self.stages.progress.begin("reachability: noise", 1)

        def make() -> dict[str, Any]:
            last = self.stages.spec.reach_tokens
            seen = calibrated(self.lm, rows, layer=self.layer, last=last)
            return {
                "first": seen.first,
                "rest": seen.rest,
                "ulp": seen.ulp,
                "num": seen.num,
            }

        found = Tolerance(**self.stages.store.record("reach-tolerance", make))
        self.stages.progress.advance(1)
        return found

    @cached_property
    def arrival(self) -> float:
        """Most that a steered state differs from what it is meant to be, as a share.

        Where it is written, h' is T(h) worked out by hand in float64. Of the longer of
        the two states, which rounding is a share of.
        """
        lm, site = self.lm, self.vector.site.layer

        def make() -> dict[str, float]:
            worst = 0.0
            for ids in self.ids:
                natural = natural_states(lm, ids, layer=site)
                steered = steered_states(lm, ids, self.everywhere, layer=site)
                away = torch.linalg.vector_norm(steered - self._moved(natural), dim=-1)
                both = torch.stack([natural, steered])
                norms = torch.linalg.vector_norm(both, dim=-1).amax(0)
                worst = max(worst, float((away / norms).max()))
            return {"worst": worst}

        return self.stages.store.record("reach-arrival", make)["worst"]

    def _moved(self, states: Tensor) -> Tensor:
        """T(h) by its formula."""
        v = self.vector.direction.to(states)
        if self.stages.spec.steering == "addition":
            return states + self.alpha * v
        return states - torch.outer(states @ v, v) / (v @ v)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the states that are searched for at every place."""
        families = {
            "random": NUM_RANDOM,
            "sign_flip": min(NUM_OTHERS, len(self.flips)),
            "other_pair": NUM_OTHERS,
        }
        named = [f"{name}[{k}]" for name, num in families.items() for k in range(num)]
        return ("natural", "constructed", "v", *named)

    @cached_property
    def directions(self) -> Float[Tensor, "controls d_model"]:
        """Directions of the controls, in the order of `targets`: of length 1, or 0."""
        spec = self.stages.spec
        seeds = [direction_seed(spec, "reach", k) for k in range(NUM_RANDOM)]
        rows = [controls.random_direction(self.vector, seed=s).direction for s in seeds]
        rows += [flip.direction for flip in self.flips[:NUM_OTHERS]]
        drawn = torch.stack([row.double().cpu() for row in rows])
        both = torch.cat([drawn, self._other_pairs()])
        norms = torch.linalg.vector_norm(both, dim=-1, keepdim=True)
        # Prompts whose last states are the same differ by no direction: no step.
        return both / norms.where(norms > 0, 1.0)

    def _other_pairs(self) -> Tensor:
        """Differences of the last states of two reference prompts."""
        some = self.stages.inputs.reference_prompts[: NUM_OTHERS + 1]
        last = [
            natural_states(self.lm, self.encoded(text), layer=self.layer)[-1].cpu()
            for text in some
        ]
        return torch.stack(last).diff(dim=0)

    def searched(self) -> list[Arrays]:
        """T16: what the vocabulary holds at every place of every prompt."""
        found = []
        tolerance, spec = self.tolerance, self.stages.spec
        total = sum(min(len(ids), spec.reach_tokens) for ids in self.ids)
        self.stages.progress.begin("reachability: next-token search", total)
        for i, ids in enumerate(self.ids):
            arrays = self.stages.store.arrays(
                f"reach-states-{i:04d}",
                lambda ids=ids, i=i: self._search(ids, tolerance, prompt=i),
            )
            self.stages.progress.advance(len(arrays["places"]))
            found.append(arrays)
        return found

    def _search(
        self, ids: Sequence[int], tolerance: Tolerance, *, prompt: int
    ) -> Arrays:
        """Distances of every token at the last places of one prompt."""
        lm, layer = self.lm, self.layer
        natural = natural_states(lm, ids, layer=layer)
        steered = steered_states(lm, ids, self.everywhere, layer=layer)
        own, other = self._logits(ids, self.everywhere), self._logits(ids, None)
        start = max(0, len(ids) - self.stages.spec.reach_tokens)
        prefix = prefix_of(lm, ids[:start], layer=layer, whole=True)
        rows: list[dict[str, Any]] = []
        for place in range(start, len(ids)):
            token = ids[place]
            norm = float(torch.linalg.vector_norm(natural[place]))
            built = self._another(prefix, token, norm=norm, prompt=prompt)
            reached = natural_states(lm, [*ids[:place], built], layer=layer)[-1]
            step = steered[place] - natural[place]
            length = float(torch.linalg.vector_norm(step))
            around = natural[place] + length * self.directions.to(natural)
            first = torch.stack([natural[place], reached, steered[place]])
            seen = nearest(
                prefix, torch.cat([first, around]), token=token, origin=natural[place]
            )
            near = int(seen.first[2])
            looked_at = self._looked_at(prefix, near, token)
            chosen, least = least_kl(prefix, own[place], tokens=looked_at)
            rows.append(
                {
                    "places": place,
                    "token_ids": token,
                    "constructed": built,
                    "tolerance": tolerance.at(place, norm),
                    "norm": norm,
                    "first": seen.first,
                    "second": seen.second,
                    "aligned": seen.aligned,
                    "d1": seen.d1,
                    "d2": seen.d2,
                    "length": seen.length,
                    "shorter": seen.shorter,
                    "cosine": seen.cosine,
                    "histogram": seen.histogram[2],
                    "kl_none": float(readout.kl(own[place], other[place])),
                    "kl_least": least,
                    "kl_token": chosen,
                    "num_kl": len(looked_at),
                }
            )
            prefix = prefix.then([token])
        return {
            key: np.stack([np.asarray(row[key]) for row in rows]) for key in rows[0]
        }

    def _logits(self, ids: Sequence[int], steering: Intervention | None) -> Tensor:
        """Next-token logits (pos, d_vocab) at every place of one prompt."""
        tokens, mask = padded([ids], device=self.lm.device)
        length = torch.tensor([len(ids)], device=self.lm.device)
        steered = edits([steering], positions(mask), mask, length)
        return self.lm.logits(tokens, mask, edits=steered)[0]

    def _another(self, prefix: Prefix, token: int, *, norm: float, prompt: int) -> int:
        """A token other than the prompt's own, whose state is about as long.

        The tolerance follows the length of the prompt's own state; rounding follows
        that of the state itself.
        """
        place = len(prefix.ids)
        seed = direction_seed(self.stages.spec, f"constructed {prompt}", place)
        num = min(NUM_DRAWN, self.lm.d_vocab - 1)
        drawn = np.random.default_rng(seed).choice(
            self.lm.d_vocab - 1, num, replace=False
        )
        others = drawn + (drawn >= token)
        tokens = torch.tensor(others, device=self.lm.device)
        norms = torch.linalg.vector_norm(prefix.states(tokens).double(), dim=-1)
        return int(tokens[int((norms - norm).abs().argmin())])

    def _looked_at(self, prefix: Prefix, near: int, token: int) -> Tensor:
        """Tokens among which the smallest KL is looked for.

        Of a large vocabulary the prompt's own, the one of the nearest state, those
        that the model itself expects at this place, and random ones. Nothing expects
        the first token of a text: there is no likeliest one at place 0.
        """
        num = self.lm.d_vocab
        if num <= ALL_TOKENS:
            return torch.arange(num, device=self.lm.device)
        half = ALL_TOKENS // 4
        seed = len(prefix.ids)
        drawn = np.random.default_rng(seed).choice(num, half, replace=False)
        ranking = prefix.ranking
        likely = [] if ranking is None else ranking[:half].tolist()
        tokens = dict.fromkeys([token, int(near), *likely, *drawn.tolist()])
        return torch.tensor(list(tokens), device=self.lm.device)

    def inverted(self) -> list[dict[str, Any]]:
        """T17: the natural and the steered states of every prompt, inverted."""
        tolerance, spec = self.tolerance, self.stages.spec
        self.stages.progress.begin("reachability: inversion", 2 * len(self.ids))
        found = []
        for i, whole in enumerate(self.ids):
            ids = whole[: spec.reach_tokens]

            def make(ids: Sequence[int] = ids) -> dict[str, Any]:
                lm, layer = self.lm, self.layer
                natural = natural_states(lm, ids, layer=layer)
                steered = steered_states(lm, ids, self.everywhere, layer=layer)
                own = invert(lm, natural, layer=layer, tolerance=tolerance, go_on=True)
                other = invert(
                    lm, steered, layer=layer, tolerance=tolerance, go_on=True
                )
                # What the text that was found makes, computed as the text itself is.
                again = natural_states(lm, own.tokens, layer=layer)
                return {
                    "ids": list(ids),
                    "step": _lengths(steered - natural),
                    "apart": _lengths(again - natural),
                    "natural": _tried(own),
                    "steered": _tried(other),
                }

            found.append(self.stages.store.record(f"reach-inversion-{i:04d}", make))
            self.stages.progress.advance(2)
        return found


def _lengths(rows: Tensor) -> list[float]:
    return torch.linalg.vector_norm(rows, dim=-1).tolist()


def _tried(found: Inversion) -> dict[str, list[Any]]:
    """The steps of an inversion by column."""
    names = ("token", "accepted", "distance", "second", "tolerance", "tested")
    columns = {name: [getattr(step, name) for step in found.steps] for name in names}
    # JSON knows no NaN.
    columns["second"] = [None if x != x else x for x in columns["second"]]
    return columns


def unsteered_arms() -> dict[str, Arm]:
    """The only arm of natural texts."""
    return {"unsteered": Arm()}
