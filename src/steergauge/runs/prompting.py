"""T18 in a run: prompts that do what v does, and the power of the searches for them.

Every goal is given to every search with the same budget. What a search finds on the
fit texts is judged on the held-out ones, from its text alone. Examples for many-shot
prompts are of reference prompts that no search is made on. What the goals are: `goals`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steergauge import scoring
from steergauge.audits.access import Power, Row
from steergauge.generation import Arm, Decoding
from steergauge.reachability.many_shot import best, many_shot
from steergauge.reachability.objective import loss, text_of
from steergauge.reachability.slots import frame_of, reads_back
from steergauge.reachability.soft_prefix import (
    projected,
    soft,
    soft_loss,
    soft_responses,
    soft_states,
)
from steergauge.reachability.token_search import search
from steergauge.reachability.tolerance import natural_states, steered_states
from steergauge.runs.arms import direction_seed
from steergauge.runs.goals import NUM_FIT, RESPONSE_TOKENS, Goal, Goals
from steergauge.runs.reachability import Reach
from steergauge.runs.store import Rows
from steergauge.scoring import Continuation

LABELS = {
    "many_shot": "many-shot examples",
    "token_search": "token search",
    "projected": "tokens nearest to the soft prefix",
    "soft_prefix": "soft prefix",
}
"""Ways to look for a prompt; the last writes none."""


@dataclass(frozen=True)
class Prompting:
    """The searches of a run, and the access table; each property is made once."""

    reach: Reach
    tested: Rows
    """Texts of the test, with scores."""
    floor: float
    """Nats by which two compute paths of one text differ."""

    @property
    def budget(self) -> dict[str, Any]:
        """Of each search of each goal."""
        spec = self.reach.stages.spec
        return {
            "prompts_tried": spec.search_evaluations,
            "prompt_tokens": spec.search_tokens,
            "fit_texts": NUM_FIT,
            "response_tokens": min(RESPONSE_TOKENS, spec.max_new_tokens),
        }

    @cached_property
    def goals(self) -> Goals:
        """What v does, and what each of the hidden prompts does."""
        return Goals(self.reach, self.tested, self.floor)

    @cached_property
    def found(self) -> dict[str, dict[str, Any]]:
        """For each goal, what each search found: prompts, losses on held-out texts."""
        reach, found = self.reach, {}
        stages = reach.stages
        stages.progress.begin("reachability: prompt search", len(self.goals.all))
        for goal in self.goals.all:
            name = f"reach-search-{goal.name}"
            found[goal.name] = stages.store.record(name, lambda g=goal: self._search(g))
            stages.progress.advance(1)
        return found

    def _search(self, goal: Goal) -> dict[str, Any]:
        """Every search on one goal, judged on held-out texts."""
        lm, spec = self.reach.lm, self.reach.stages.spec
        fit, held = (
            self.goals.aimed(goal, goal.fit),
            self.goals.aimed(goal, goal.held_out),
        )
        # The first is the unsteered model; nothing follows where no example fits.
        tried = many_shot(
            lm,
            fit,
            goal.examples,
            room=spec.max_new_tokens,
            texts=self.goals.judged_on,
        )[1:]
        sizes = {"length": spec.search_tokens, "evaluations": spec.search_evaluations}
        seed = direction_seed(spec, f"search {goal.name}", 0)
        written = search(lm, fit, seed=seed, **sizes)
        # From the tokens that were found: no worse than they are, on the fit texts.
        continuous = soft(lm, fit, seed=seed, start=written.tokens, **sizes)
        nearest = projected(lm, continuous.embeddings)
        both = written.evaluations + continuous.evaluations
        prompts = {
            "token_search": (written.prompt, written.evaluations),
            "projected": (text_of(lm, nearest), both),
        }
        if tried:
            prompts = {"many_shot": (best(tried).prompt, len(tried))} | prompts
        made: dict[str, Any] = {
            name: {
                "prompt": prompt,
                "evaluations": evaluations,
                "reads_back": name != "projected" or self._reads_back(nearest, goal),
                "nats": loss(lm, held, prompt).tolist(),
            }
            for name, (prompt, evaluations) in prompts.items()
        }
        made["soft_prefix"] = {
            "prompt": "",
            "evaluations": both,
            "reads_back": True,
            "nats": soft_loss(lm, held, continuous.embeddings).tolist(),
            "embeddings": continuous.embeddings.tolist(),
        }
        return {"unsteered": loss(lm, held, "").tolist(), "searches": made}

    def _reads_back(self, tokens: Sequence[int], goal: Goal) -> bool:
        """Whether the text of these tokens gives them back."""
        lm, chat = self.reach.lm, self.reach.stages.spec.chat
        text = goal.fit[0][0]
        return reads_back(
            lm, tokens, frame_of(lm, text, chat=chat), text=text, chat=chat
        )

    @property
    def powers(self) -> list[Power]:
        """How many of the hidden prompts each search found.

        What is left is held against a hidden prompt's own effect, or against v's where
        that is smaller: found is what comes as near as a prompt for v would have to.
        A search that had nothing to try for a goal, such as examples that fit, has not
        found it.
        """
        hidden = [self.found[goal.name] for goal in self.goals.all[1:]]
        effect = np.array([np.mean(one["unsteered"]) for one in hidden])
        of_v = np.mean(self.found["v"]["unsteered"])
        scale = np.minimum(effect, of_v)
        threshold = self.reach.stages.spec.budget
        made = []
        for method in self.found["v"]["searches"]:
            tried = [one["searches"].get(method) for one in hidden]
            left = [np.mean(one["nats"]) if one else np.inf for one in tried]
            relative = np.array(left) / np.where(scale > 0, scale, np.nan)
            made.append(Power(method, relative, effect, relative <= threshold))
        return made

    @cached_property
    def rows(self) -> list[Row]:
        """The access table: unsteered, steered, and what each search found for v."""
        own = self.found["v"]
        rows = [
            self._row("unsteered", "unsteered", "none", own["unsteered"]),
            self._row("steered", "steered", "weights", None),
        ]
        for method, seen in own["searches"].items():
            access = "embeddings" if method == "soft_prefix" else "prompt"
            rows.append(self._row(method, LABELS[method], access, seen["nats"], seen))
        return rows

    def _row(
        self,
        name: str,
        label: str,
        access: str,
        nats: Sequence[float] | None,
        seen: Mapping[str, Any] | None = None,
    ) -> Row:
        texts = self._texts_of(name, seen)
        return Row(
            name=name,
            label=label,
            access=access,
            prompt=seen["prompt"] if seen else "",
            kl=None if nats is None else np.array(nats),
            eta=self._eta(name, seen),
            scores=_scores(texts),
            perplexity=self._perplexity(name, texts),
            evaluations=seen["evaluations"] if seen else 0,
            round_trips=seen is None or seen["reads_back"],
        )

    def _texts_of(self, name: str, seen: Mapping[str, Any] | None) -> Rows:
        """Texts of a row of the table on the test prompts, with scores."""
        stages, prompts = self.reach.stages, self.goals.judged_on
        if seen is None:
            arm = "v" if name == "steered" else "unsteered"
            return [row for row in self.tested if row["arm"] == arm]
        stage, samples = f"access {name}", stages.spec.samples
        if name != "soft_prefix":
            whole = [seen["prompt"] + text for text in prompts]
            found = stages.texts(stage, {"unsteered": Arm()}, whole, samples)
        else:
            drawn = stages.by_cells(stage, prompts, self._soft_drawn, samples)
            found = stages.with_scores(stage, drawn)
        made = [
            row | {"arm": name, "prompt": prompts[row["prompt_index"]]} for row in found
        ]
        self.reach.texts.extend(made)
        return made

    def _soft_drawn(self, prompts: Sequence[str], start: int) -> Rows:
        """Rows of texts behind the soft prefix."""
        reach, spec = self.reach, self.reach.stages.spec
        drawn = soft_responses(
            reach.lm,
            prompts,
            self._embeddings,
            samples=spec.samples,
            decoding=Decoding(spec.max_new_tokens, spec.temperature, seed=spec.seed),
            chat=spec.chat,
        )
        arms = {sample.arm: Arm() for sample in drawn[:1]}
        found = [
            reach.stages.row("access soft_prefix", sample, arms, start)
            for sample in drawn
        ]
        reach.stages.progress.advance(len(found))
        return found

    @property
    def _embeddings(self) -> Tensor:
        seen = self.found["v"]["searches"]["soft_prefix"]
        return torch.tensor(seen["embeddings"], device=self.reach.lm.device)

    def _eta(self, name: str, seen: Mapping[str, Any] | None) -> np.ndarray | None:
        """Distance from the steered state at the last prompt token, over the step."""
        if name == "steered":
            return None
        steered, natural = self._last_states
        length = torch.linalg.vector_norm(steered - natural, dim=-1)
        if not bool((length > 0).all()):
            return None
        states = natural if seen is None else self._states_behind(name, seen)
        away = torch.linalg.vector_norm(states - steered, dim=-1)
        return (away / length).numpy()

    @cached_property
    def _last_states(self) -> tuple[Tensor, Tensor]:
        """Steered and natural states at the last token of every test prompt."""
        reach = self.reach
        rows = [reach.encoded(text) for text in self.goals.judged_on]
        lm, layer = reach.lm, reach.layer
        natural = [natural_states(lm, row, layer=layer)[-1] for row in rows]
        steered = [
            steered_states(lm, row, reach.everywhere, layer=layer)[-1] for row in rows
        ]
        return torch.stack(steered).cpu(), torch.stack(natural).cpu()

    def _states_behind(self, name: str, seen: Mapping[str, Any]) -> Tensor:
        reach = self.reach
        if name == "soft_prefix":
            chat = reach.stages.spec.chat
            found = soft_states(
                reach.lm,
                self.goals.judged_on,
                self._embeddings,
                layer=reach.layer,
                chat=chat,
            )
            return found.cpu()
        rows = [reach.encoded(seen["prompt"] + text) for text in self.goals.judged_on]
        last = [natural_states(reach.lm, row, layer=reach.layer)[-1] for row in rows]
        return torch.stack(last).cpu()

    def _perplexity(self, name: str, texts: Rows) -> float | None:
        """Of the texts under the unsteered model that reads the user's text alone."""
        stages = self.reach.stages
        if not texts:
            return None

        def make() -> dict[str, Any]:
            rows = [
                Continuation(c.prompt_ids, c.response_ids)
                for c in stages.continuations(texts)
            ]
            nats = scoring.negative_log_likelihood(self.reach.lm, rows)
            tokens = sum(len(row.response_ids) for row in rows)
            return {"perplexity": float(np.exp(nats.sum() / max(1, tokens)))}

        return stages.store.record(f"access-perplexity-{name}", make)["perplexity"]


def _scores(texts: Rows) -> np.ndarray | None:
    """Mean score of each prompt's texts; None without a probe."""
    if not texts or texts[0].get("score") is None:
        return None
    num = 1 + max(row["prompt_index"] for row in texts)
    by_prompt: list[list[float]] = [[] for _ in range(num)]
    for row in texts:
        by_prompt[row["prompt_index"]].append(row["score"])
    return np.array([np.mean(scores) for scores in by_prompt])
