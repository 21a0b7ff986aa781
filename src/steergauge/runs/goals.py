"""What T18 looks for in a run: what v does, and what hidden prompts do.

::

    goal      searched on (reference prompts)    judged on (test prompts)
    v         v's responses                      v's responses of the test
    hidden k  responses behind a hidden prompt   the same

Power is for tasks like the hidden ones. So more pieces of text are drawn than are
hidden, of 1, 2, 4, ... tokens, and those are that do about as much as v does: whose
K(hidden || unsteered) on the fit texts is nearest to K(v || unsteered), in log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from steergauge.audits.access import FLOOR_FACTOR
from steergauge.errors import BadPrompts, InputError
from steergauge.generation import Arm, Decoding, generate
from steergauge.intervention import Intervention, scope_named
from steergauge.reachability import objective
from steergauge.reachability.objective import Target
from steergauge.reachability.token_search import hidden_prompts
from steergauge.runs.plan import Inputs
from steergauge.runs.reachability import Reach
from steergauge.runs.store import Rows
from steergauge.split import LanguageModel

NUM_FIT = 8
"""Texts that a search is made on."""

NUM_SHOTS = 16
"""Texts that examples are taken from."""

RESPONSE_TOKENS = 16
"""Tokens of each text that a prompt is judged by."""

DRAWN_PER_HIDDEN = 6
"""Pieces of text that are measured for each that is hidden."""

_TINY = float(np.finfo(float).tiny)
"""Nats of a v that does nothing, of which there is no logarithm otherwise."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a prompt is to do: texts of an arm, or of the model behind a hidden prompt.

    Attributes:
        name: v, or `hidden-00` on.
        fit: user texts with responses, to search on.
        held_out: to judge by.
        examples: user texts with the responses' text, for many-shot prompts.
        steering: of the target.
        hidden: the target's prompt.
    """

    name: str
    fit: Sequence[tuple[str, Sequence[int]]]
    held_out: Sequence[tuple[str, Sequence[int]]]
    examples: Sequence[tuple[str, str]]
    steering: Intervention | None = None
    hidden: str = ""


def num_searched_on(inputs: Inputs) -> int:
    """Reference prompts to search on and to take examples from: two thirds at most."""
    num = len(inputs.reference_prompts)
    return min(NUM_FIT + NUM_SHOTS, num - num // 3)


def hidden_from(lm: LanguageModel, inputs: Inputs) -> list[str]:
    """Pieces of the reference prompts that no search is made on, to hide some of them.

    Raises:
        BadPrompts: those do not hold enough pieces, or the model lets none stand.
    """
    spec = inputs.spec
    # 1, 2, 4, ... and the length that is searched for.
    powers = {2**k for k in range(spec.search_tokens.bit_length())}
    try:
        return hidden_prompts(
            lm,
            inputs.reference_prompts[num_searched_on(inputs) :],
            lengths=sorted({*powers, spec.search_tokens}),
            num=DRAWN_PER_HIDDEN * spec.num_hidden,
            least=spec.num_hidden,
            seed=spec.seed,
            chat=spec.chat,
        )
    except InputError as error:
        raise BadPrompts(
            f"the power of a search for prompts cannot be measured: {error.found}",
            cause=error.cause,
            remedy="Give more or longer neutral prompts, set a smaller search_tokens "
            "or num_hidden in a run file, or leave the audit access out.",
        ) from error


@dataclass(frozen=True)
class Goals:
    """The goals of a run; each property is made once."""

    reach: Reach
    tested: Rows
    """Texts of the test, with scores."""
    floor: float
    """Nats by which two compute paths of one text differ."""

    @cached_property
    def all(self) -> list[Goal]:
        """What v does, and what each of the hidden prompts does."""
        hidden = [
            self._behind(f"hidden-{k:02d}", prompt)
            for k, prompt in enumerate(self.hidden)
        ]
        return [self.of_v, *hidden]

    @cached_property
    def of_v(self) -> Goal:
        """What v does."""
        steering = self.reach.steering(scope_named(self.reach.stages.spec.scope))
        own = {"v": Arm(steering)}
        drawn = self.reach.drawn("reach-goal-v", own, self._searched_on, 1)
        held = [r for r in self.tested if r["arm"] == "v" and r["sample"] == 0]
        return self._goal("v", drawn, held, steering=steering)

    def _behind(self, name: str, prompt: str) -> Goal:
        """The goal of the unsteered model behind a hidden prompt."""
        texts = [*self._searched_on, *self.judged_on]
        whole = [prompt + text for text in texts]
        stage = f"reach-goal-{name}"
        drawn = self.reach.drawn(stage, {"unsteered": Arm()}, whole, 1)
        rows = [row | {"prompt": texts[row["prompt_index"]]} for row in drawn]
        num = len(self._searched_on)
        fit = [row for row in rows if row["prompt_index"] < num]
        held = [row for row in rows if row["prompt_index"] >= num]
        return self._goal(name, fit, held, hidden=prompt)

    @property
    def _searched_on(self) -> list[str]:
        """Fit texts, then texts of examples."""
        inputs = self.reach.stages.inputs
        return list(inputs.reference_prompts[: num_searched_on(inputs)])

    @property
    def judged_on(self) -> list[str]:
        """Prompts of held-out texts."""
        return list(self.reach.stages.inputs.test_prompts)

    @cached_property
    def hidden(self) -> list[str]:
        """The pieces that do about as much as v, by what they do to the fit texts.

        Fewer than were asked for, if fewer do anything at all.
        """
        of_v = self.of_v
        aim = self.aimed(of_v, of_v.fit)
        wanted = max(float(objective.loss(self.reach.lm, aim, "").mean()), _TINY)
        seen = self.measured
        visible = [one for one in seen if one["nats"] > FLOOR_FACTOR * self.floor]
        # Python's sort is stable: of two as near, the one that was drawn first.
        visible.sort(key=lambda one: abs(np.log(one["nats"] / wanted)))
        return [one["prompt"] for one in visible[: self.reach.stages.spec.num_hidden]]

    @cached_property
    def measured(self) -> list[dict[str, Any]]:
        """Every piece that was drawn, and what it does to the fit texts, in nats."""
        stages = self.reach.stages
        pieces = hidden_from(self.reach.lm, stages.inputs)
        stages.progress.begin("reachability: hidden prompts", len(pieces))
        found = []
        for k, piece in enumerate(pieces):
            name = f"reach-effect-{k:03d}"
            found.append(stages.store.record(name, lambda p=piece: self._effect(p)))
            stages.progress.advance(1)
        return found

    def _effect(self, piece: str) -> dict[str, Any]:
        """Nats a text by which the model behind a piece differs from the unsteered."""
        lm, spec = self.reach.lm, self.reach.stages.spec
        texts = self._searched_on[:NUM_FIT]
        tokens = min(RESPONSE_TOKENS, spec.max_new_tokens)
        drawn = generate(
            lm,
            [piece + text for text in texts],
            {"unsteered": None},
            decoding=Decoding(tokens, spec.temperature, seed=spec.seed),
            chat=spec.chat,
        )
        rows = [(texts[one.index], one.token_ids) for one in drawn]
        goal = Goal("", rows, (), (), hidden=piece)
        nats = objective.loss(lm, self.aimed(goal, rows), "")
        return {"prompt": piece, "nats": float(nats.mean())}

    def _goal(
        self,
        name: str,
        drawn: Rows,
        held: Rows,
        *,
        steering: Intervention | None = None,
        hidden: str = "",
    ) -> Goal:
        rows = [(row["prompt"], _cut(row)) for row in drawn]
        examples = [(row["prompt"], row["text"]) for row in drawn[NUM_FIT:]]
        judged = [(row["prompt"], _cut(row)) for row in held]
        return Goal(name, rows[:NUM_FIT], judged, examples, steering, hidden)

    def aimed(self, goal: Goal, rows: Sequence[tuple[str, Sequence[int]]]) -> Target:
        """The target that wrote the responses of `rows`."""
        spec = self.reach.stages.spec
        return objective.aimed(
            self.reach.lm,
            rows,
            goal.steering,
            prompt=goal.hidden,
            chat=spec.chat,
            temperature=spec.temperature,
        )


def _cut(row: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(row["token_ids"][:RESPONSE_TOKENS])
