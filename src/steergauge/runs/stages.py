"""The stages of a run: cells of work one after another, kept in the store.

A cell is a block of prompts under all arms, so prefills and noise are shared within
it. Texts are scored in cells of their own: a probe may be slow, cost money, or answer
otherwise when asked again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

from steergauge import scoring
from steergauge.audits.finding import Finding
from steergauge.audits.plumbing import plumbing
from steergauge.engines import Engine, LocalEngine
from steergauge.generation import Arm, Decoding, Sample
from steergauge.intervention import Add, Intervention, Scope, scope_named
from steergauge.next_token import gains, next_token_distances
from steergauge.prompts import Text, encode
from steergauge.runs.plan import Inputs
from steergauge.runs.progress import Progress, label_of
from steergauge.runs.spec import Spec
from steergauge.runs.store import Rows, Store
from steergauge.scoring import Continuation
from steergauge.split import LanguageModel
from steergauge.vector import SteeringVector

NUM_RANDOM_SCORED = 5
"""Random directions whose texts' divergence is computed, as a control of T4."""

PUBLISHED_LENGTH = 512
"""Characters of prompt and continuation that the published code scores."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One unit of work, which is one file of the store.

    Attributes:
        name: of the file.
        block: its prompts, or what was made of them.
        start: place of its first prompt among all.
        units: what progress counts.
    """

    name: str
    block: Any
    start: int
    units: int


Make = Callable[["Stages", Cell], Rows]
"""How the rows of a cell are made. Others can do it with their own model if it can be
pickled: a function of this package with plain arguments, held by `partial`."""


@runtime_checkable
class Workers(Protocol):
    """Who else can make cells; see `distributed`."""

    def make(self, run: "Stages", todo: Sequence[tuple[Make, Cell]]) -> None:
        """Put every cell into the store of `run`, and tell its progress."""

    def arrays(
        self,
        run: "Stages",
        todo: "Sequence[tuple[str, Callable[[Stages], Mapping[str, Any]], int]]",
    ) -> None:
        """Put arrays into the store of `run`: name, how they are made, and units."""


@dataclass(frozen=True, slots=True)
class Stages:
    """Every piece of a run that costs time, cut into cells that survive a kill.

    Attributes:
        lm: the model.
        inputs: what the run's specification turned out to hold.
        store: its folder.
        progress: who is told how far the work is.
        engine: who makes texts; None is the local model itself.
        workers: who else makes cells; None is nobody.
    """

    lm: LanguageModel
    inputs: Inputs
    store: Store
    progress: Progress
    engine: Engine | None = None
    workers: Workers | None = None

    @property
    def spec(self) -> Spec:
        """The run's, with its layer resolved."""
        return self.inputs.spec

    def plumbing(self, vector: SteeringVector, alpha: float) -> Finding:
        """T0 on the first prompts of the dose curve."""
        spec = self.spec
        self.progress.begin("T0 plumbing", 1)

        def make() -> Finding:
            return plumbing(
                self.lm,
                Add(vector, alpha, scope_named(spec.scope)),
                self.inputs.dose_prompts,
                chat=spec.chat,
                max_new_tokens=spec.max_new_tokens,
                temperature=spec.temperature,
                seed=spec.seed,
            )

        found = self.store.finding("plumbing", make)
        self.progress.advance(1)
        return found

    def texts(
        self,
        stage: str,
        arms: Mapping[str, Arm],
        prompts: Sequence[str],
        samples: int,
    ) -> Rows:
        """Texts of all arms on all prompts with their scores, by cells of prompts."""
        return self.with_scores(stage, self.drawn(stage, arms, prompts, samples))

    def drawn(
        self,
        stage: str,
        arms: Mapping[str, Arm],
        prompts: Sequence[str],
        samples: int,
    ) -> Rows:
        """Texts of all arms on all prompts, by cells of prompts and of arms."""
        size = self.spec.arms_per_cell or len(arms)
        names = list(arms)
        blocks = [names[start : start + size] for start in range(0, len(arms), size)]
        todo: list[tuple[Make, Cell]] = []
        for cell in self._cells_of(stage, prompts, samples):
            for place, block in enumerate(blocks):
                own = {name: arms[name] for name in block}
                part = f"-{place:02d}" if len(blocks) > 1 else ""
                cut = replace(cell, name=cell.name + part, units=cell.units * len(own))
                make = partial(Stages._draw, stage=stage, arms=own, samples=samples)
                todo.append((make, cut))
        return self._made(label_of(stage, "texts"), todo)

    def _draw(
        self, cell: Cell, *, stage: str, arms: Mapping[str, Arm], samples: int
    ) -> Rows:
        spec = self.spec
        drawn = (self.engine or LocalEngine(self.lm)).generate(
            cell.block,
            arms,
            samples=samples,
            decoding=Decoding(spec.max_new_tokens, spec.temperature, seed=spec.seed),
            chat=spec.chat,
            batch_size=spec.batch_size,
            other_model=True,
            progress=self.progress.advance,
        )
        return [self.row(stage, sample, arms, cell.start) for sample in drawn]

    def with_scores(self, stage: str, texts: Rows) -> Rows:
        """The rows with the probe's score of each text; None if nothing needs it."""
        probe = self.inputs.probe
        if probe is None or not self.spec.scores:
            return [row | {"score": None} for row in texts]

        label = label_of(stage, "scores")
        scores = self._by_prompt(f"scores-{stage}", label, texts, Stages._score)
        by_text = {_key(row): row["score"] for row in scores}
        return [row | {"score": by_text[_key(row)]} for row in texts]

    def _score(self, cell: Cell) -> Rows:
        probe, rows = self.inputs.probe, cell.block
        assert probe is not None
        scores = probe([self._scored_text(row) for row in rows])
        self.progress.advance(len(rows))
        return _scored(rows, {"score": scores})

    def _scored_text(self, row: Mapping[str, Any]) -> str:
        """The continuation alone; what the published code scored, for its variant."""
        if not row["arm"].startswith("code_"):
            return row["text"]
        prompt, _ = encode(self.lm, Text(row["prompt"]), chat=self.spec.chat)
        whole = self.lm.tokenizer.decode(
            [*prompt, *row["token_ids"]], skip_special_tokens=True
        )
        return whole[:PUBLISHED_LENGTH]

    def row(
        self, stage: str, sample: Sample, arms: Mapping[str, Arm], start: int
    ) -> dict[str, Any]:
        """A sample as a row of the store."""
        arm = arms[sample.arm]
        steering = arm.intervention
        return {
            "stage": stage,
            "arm": sample.arm,
            "prompt_index": start + sample.index,
            "prompt": sample.prompt,
            "sample": sample.sample,
            "text": sample.text,
            "finished": sample.finished,
            "num_tokens": len(sample.token_ids),
            "token_ids": list(sample.token_ids),
            "alpha": steering.alpha if steering else 0.0,
            "layer": steering.site.layer if steering else -1,
            "seed": self.spec.seed,
            "noise": arm.noise,
        }

    def dose_scores(self, arms: Mapping[str, Arm], texts: Rows) -> Rows:
        """Per dose text: KL from unsteered, and -log P under the unsteered model."""
        steered = {name: arm.intervention for name, arm in arms.items()}
        make = partial(Stages._dose_score, steered=steered)
        return self._by_prompt("dose-scores", "dose curve: KL of texts", texts, make)

    def _dose_score(
        self, cell: Cell, *, steered: Mapping[str, Intervention | None]
    ) -> Rows:
        out: Rows = []
        for name, intervention in steered.items():
            rows = [row for row in cell.block if row["arm"] == name]
            continuations = self.continuations(rows)
            nats = scoring.sequence_kl(
                self.lm,
                continuations,
                intervention,
                {"unsteered": None},
                temperature=self.spec.temperature,
            )["unsteered"]
            nll = scoring.negative_log_likelihood(self.lm, continuations)
            out += _scored(rows, {"nats": nats, "nll": nll})
            self.progress.advance(len(rows))
        return out

    def divergences(
        self, arms: Mapping[str, Arm], texts: Rows, more: Mapping[str, Add]
    ) -> Rows:
        """KL from v of every arm that T4 compares and of some `more`, on v's texts."""
        others: dict[str, Intervention | None] = {
            name: arm.intervention
            for name, arm in arms.items()
            if _is_diverged_from(name)
        }
        others |= more
        own = [row for row in texts if row["arm"] == "v"]

        v = arms["v"].intervention
        make = partial(Stages._diverge, v=v, others=others)
        return self._by_prompt("divergences", "test: KL of texts", own, make)

    def _diverge(
        self,
        cell: Cell,
        *,
        v: Intervention | None,
        others: Mapping[str, Intervention | None],
    ) -> Rows:
        nats = scoring.sequence_kl(
            self.lm,
            self.continuations(cell.block),
            v,
            others,
            temperature=self.spec.temperature,
        )
        self.progress.advance(len(cell.block))
        return [
            row
            for name, values in nats.items()
            for row in _scored(cell.block, {"nats": values}, other=name)
        ]

    def next_tokens(
        self,
        arms: Mapping[str, Arm],
        vector: SteeringVector,
        alpha: float,
        geometry: Mapping[str, SteeringVector],
    ) -> Rows:
        """Distances from v's next-token logits, of every arm and of more directions."""
        scope = self._prompt_scope
        v = Add(vector, alpha, scope)
        others: dict[str, Intervention | None] = {}
        for name, arm in arms.items():
            steering = arm.intervention
            if steering is None:
                others[name] = None
            elif _is_compared_at_the_next_token(name):
                others[name] = replace(steering, scope=scope)
        others |= {name: Add(added, alpha, scope) for name, added in geometry.items()}

        make = partial(Stages._next_token, v=v, others=others)
        label = "next token: distances of prompts"
        return self._by_test_prompts("next-token", label, make)

    def _next_token(
        self, cell: Cell, *, v: Add, others: Mapping[str, Intervention | None]
    ) -> Rows:
        chat = self.spec.chat
        found = next_token_distances(self.lm, cell.block, v, others, chat=chat)
        self.progress.advance(len(cell.block))
        return _shifted(found, cell.start)

    def gains(
        self,
        vector: SteeringVector,
        alpha: float,
        directions: Mapping[str, SteeringVector],
    ) -> Rows:
        """First-order gain of v and of other directions at the next token."""
        v = Add(vector, alpha, self._prompt_scope)

        make = partial(Stages._gain, v=v, directions=directions)
        return self._by_test_prompts("gains", "next token: gains of prompts", make)

    def _gain(
        self, cell: Cell, *, v: Add, directions: Mapping[str, SteeringVector]
    ) -> Rows:
        found = gains(self.lm, cell.block, v, directions, chat=self.spec.chat)
        self.progress.advance(len(cell.block))
        return _shifted(found, cell.start)

    @property
    def _prompt_scope(self) -> Scope:
        """The run's scope, or one that reaches the prompt's last token if it does not.

        The next token after a prompt cannot see a step that begins after it.
        """
        scope = scope_named(self.spec.scope)
        return Scope.GENERATING if scope is Scope.RESPONSE else scope

    def likelihoods(self, texts: Rows) -> Rows:
        """The coherence of v's, -v's and unsteered texts under the unsteered model."""
        own = [row for row in texts if row["arm"] in ("unsteered", "v", "minus_v")]

        label = "test: coherence of texts"
        return self._by_prompt("likelihoods", label, own, Stages._likelihood)

    def _likelihood(self, cell: Cell) -> Rows:
        rows = self.continuations(cell.block)
        nll = scoring.negative_log_likelihood(self.lm, rows)
        self.progress.advance(len(cell.block))
        return _scored(cell.block, {"nll": nll})

    def continuations(self, rows: Rows) -> list[Continuation]:
        """The texts as token ids, with their prompts'."""
        chat = self.spec.chat
        return [
            Continuation(
                encode(self.lm, Text(row["prompt"]), chat=chat)[0], row["token_ids"]
            )
            for row in rows
        ]

    def _by_prompt(self, name: str, label: str, texts: Rows, make: Make) -> Rows:
        """Cells over texts, cut at the same prompts as the cells that made them."""
        by_prompt: dict[int, Rows] = {}
        for row in texts:
            by_prompt.setdefault(row["prompt_index"], []).append(row)
        groups = [by_prompt[index] for index in sorted(by_prompt)]
        todo: list[tuple[Make, Cell]] = []
        for cell in self._cells_of(name, groups, 1):
            rows = [row for group in cell.block for row in group]
            todo.append((make, replace(cell, block=rows, units=len(rows))))
        return self._made(label, todo)

    def _by_test_prompts(self, name: str, label: str, make: Make) -> Rows:
        cells = self._cells_of(name, self.inputs.test_prompts, 1)
        return self._made(label, [(make, cell) for cell in cells])

    def by_cells(
        self,
        stage: str,
        prompts: Sequence[str],
        make: Callable[[Sequence[str], int], Rows],
        samples: int,
    ) -> Rows:
        """Rows of texts that `make` draws for each block of prompts, here."""
        here = replace(self, workers=None)
        cells = self._cells_of(stage, prompts, samples)
        todo = [(lambda _, one: make(one.block, one.start), cell) for cell in cells]
        return here._made(label_of(stage, "texts"), todo)

    def _cells_of(self, name: str, items: Sequence[Any], units: int) -> list[Cell]:
        """Blocks of items, each with its name and place; `units` an item."""
        size = self.spec.prompts_per_cell
        starts = range(0, len(items), size)
        blocks = [items[start : start + size] for start in starts]
        return [
            Cell(f"{name}-{start // size:04d}", block, start, units * len(block))
            for start, block in zip(starts, blocks, strict=True)
        ]

    def _made(self, label: str, todo: Sequence[tuple[Make, Cell]]) -> Rows:
        """Rows of all cells in their order; only missing ones are made."""
        self.progress.begin(label, sum(cell.units for _, cell in todo))
        missing = []
        for make, cell in todo:
            if self.store.has_cell(cell.name):
                self.progress.advance(cell.units)
            else:
                missing.append((make, cell))
        if missing and self.workers is not None:
            self.workers.make(self, missing)
        rows: Rows = []
        for make, cell in todo:
            rows += self.made(make, cell)
        return rows

    def made(self, make: Make, cell: Cell) -> Rows:
        """The rows of a cell, made here unless they were made before."""
        return self.store.cell(cell.name, lambda: make(self, cell))


def _scored(rows: Rows, values: Mapping[str, Any], **constant: str) -> Rows:
    """Rows of numbers that refer to texts by arm, prompt and sample."""
    return [
        {
            "arm": row["arm"],
            "prompt_index": row["prompt_index"],
            "sample": row["sample"],
            "num_tokens": row["num_tokens"],
            **constant,
            **{key: float(column[i]) for key, column in values.items()},
        }
        for i, row in enumerate(rows)
    ]


def _shifted(rows: Rows, start: int) -> Rows:
    """Rows of a block with the prompts' places in the whole."""
    return [row | {"prompt_index": start + row["prompt_index"]} for row in rows]


def _key(row: Mapping[str, Any]) -> tuple[str, int, int]:
    return row["arm"], row["prompt_index"], row["sample"]


def _is_diverged_from(name: str) -> bool:
    """Whether T4 computes the divergence of v's texts from the arm."""
    if name.startswith("random"):
        return name in [f"random[{k}]" for k in range(NUM_RANDOM_SCORED)]
    own = name == "v" or name.startswith(("v_again", "v_plus_perp_fresh"))
    return not (own or "@" in name or name.startswith(("sign_flip", "code_")))


def _is_compared_at_the_next_token(name: str) -> bool:
    return _is_diverged_from(name) or name.startswith("random")
