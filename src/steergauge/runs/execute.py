"""The run itself: cells of work one after another, then findings from what they hold.

::

    gather -> vector -> controls -> T0 -> dose curve -> alpha -> texts -> KL -> findings

A cell is a block of prompts under all arms, so prefills and noise are shared within
it. Everything after the last cell is a pure function of the store.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from steergauge import scoring
from steergauge.audits.finding import Finding
from steergauge.audits.plumbing import plumbing
from steergauge.errors import BadSpec
from steergauge.generation import Arm, Decoding, Sample, generate
from steergauge.intervention import Add, scope_named
from steergauge.prompts import Text, encode
from steergauge.runs import evidence, judge, plan
from steergauge.runs.spec import Spec, spec_from
from steergauge.runs.store import Rows, Store
from steergauge.scoring import Continuation
from steergauge.split import LanguageModel
from steergauge.vector import SteeringVector

NUM_RANDOM_SCORED = 5
"""Random directions whose texts' divergence is computed, as a control of T4."""


@runtime_checkable
class Progress(Protocol):
    """Who is told how far the work is."""

    def begin(self, label: str, total: int) -> None:
        """A stage of `total` units begins."""

    def advance(self, num: int) -> None:
        """`num` more units of the stage are done."""


class Silent:
    """Tells nobody."""

    def begin(self, label: str, total: int) -> None:
        """Nothing."""

    def advance(self, num: int) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its folder, and what was found."""

    store: Store
    findings: Mapping[str, Finding]
    facts: Mapping[str, Any]

    def report(self) -> Path:
        """Write report.html and card.md into the run's folder; the report's path."""
        from steergauge.report import write_report

        return write_report(self.store.folder)


def audit(
    lm: LanguageModel,
    vector: SteeringVector | None = None,
    *,
    out: str | Path,
    preset: str = "quick",
    spec: Spec | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Run:
    """Audit a steering vector, or the one that the spec's trait or pairs give.

    The same call on the same folder resumes a run that was stopped, and returns a
    finished one as it is.

    Args:
        lm: the model.
        vector: to be audited; None means that the spec says where it comes from.
        out: the run's folder.
        preset: quick or standard; sizes of the run.
        spec: the whole specification, instead of preset and changes.
        progress: told how far the work is.
        **changes: fields of `Spec` that differ from the preset's.

    Raises:
        SteergaugeError: whatever is wrong with what was given.
    """
    if spec is not None and changes:
        raise BadSpec(
            f"{', '.join(changes)} was given beside a whole spec.",
            remedy="Put it into the spec.",
        )
    wanted = spec or spec_from({}, preset=preset, **changes)
    inputs = plan.gather(lm, wanted, vector)
    store = Store(Path(out))
    store.open(inputs.spec, inputs.hashes(lm))
    if (store.folder / "findings.json").is_file():
        return Run(store, store.findings(), store.facts())
    _Work(lm, inputs, store, progress or Silent()).execute()
    return Run(store, store.findings(), store.facts())


@dataclass(frozen=True, slots=True)
class _Work:
    lm: LanguageModel
    inputs: plan.Inputs
    store: Store
    progress: Progress

    @property
    def spec(self) -> Spec:
        return self.inputs.spec

    def execute(self) -> None:
        """All cells that are missing, then the findings."""
        lm, inputs, store, spec = self.lm, self.inputs, self.store, self.spec
        self.progress.begin("vector and controls", 2)
        vector = plan.extract_or_load(lm, inputs, store)
        if spec.alpha is not None:
            asked = Add(vector, spec.alpha, scope_named(spec.scope))
            asked.check_fits(lm, other_model=True)
        self.progress.advance(1)
        controls = plan.control_vectors(lm, inputs, vector, store)
        self.progress.advance(1)
        doses = plan.dose_arms(spec, vector)
        dose_texts = self._texts("dose", doses, inputs.dose_prompts)
        dose_texts = evidence.with_scores(dose_texts, inputs.probe)
        dose_scores = self._dose_scores(doses, dose_texts)
        norm = plan.median_norm(lm, inputs)
        dose = evidence.dose_curve(
            dose_texts, dose_scores, doses, step_unit=vector.norm / norm
        )
        alpha = spec.alpha if spec.alpha is not None else dose.recommended
        pipes = self._plumbing(vector, alpha)
        arms = plan.test_arms(spec, alpha, vector, controls)
        test_texts = self._texts("test", arms, inputs.test_prompts)
        test_texts = evidence.with_scores(test_texts, inputs.probe)
        pairs_of_arms = self._divergences(arms, test_texts)
        likelihoods = self._likelihoods(test_texts)
        judged = judge.Evidence(
            lm, inputs, vector, arms, alpha, norm, dose, pipes,
            test_texts, pairs_of_arms, likelihoods,
        )  # fmt: skip
        store.write_generations([*dose_texts, *test_texts])
        store.write_findings(judge.findings(judged), judge.facts(judged))

    def _plumbing(self, vector: SteeringVector, alpha: float) -> Finding:
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

    def _texts(
        self, stage: str, arms: Mapping[str, Arm], prompts: Sequence[str]
    ) -> Rows:
        """Texts of all arms on all prompts, by cells of prompts."""
        spec = self.spec
        decoding = Decoding(spec.max_new_tokens, spec.temperature, seed=spec.seed)
        label = {"dose": "dose curve: texts", "test": "test: texts"}[stage]

        def make(block: Sequence[str], start: int) -> Rows:
            samples = generate(
                self.lm,
                block,
                arms,
                samples=spec.samples,
                decoding=decoding,
                chat=spec.chat,
                batch_size=spec.batch_size,
                other_model=True,
                progress=self.progress.advance,
            )
            return [self._row(stage, sample, arms, start) for sample in samples]

        return self._cells(stage, label, prompts, make, len(arms) * spec.samples)

    def _row(
        self, stage: str, sample: Sample, arms: Mapping[str, Arm], start: int
    ) -> dict[str, Any]:
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

    def _dose_scores(self, arms: Mapping[str, Arm], texts: Rows) -> Rows:
        """Per dose text: KL from unsteered, and -log P under the unsteered model."""

        def make(block: Rows, start: int) -> Rows:
            del start
            out: Rows = []
            for name, arm in arms.items():
                rows = [row for row in block if row["arm"] == name]
                continuations = self._continuations(rows)
                nats = scoring.sequence_kl(
                    self.lm,
                    continuations,
                    arm.intervention,
                    {"unsteered": None},
                    temperature=self.spec.temperature,
                )["unsteered"]
                nll = scoring.negative_log_likelihood(self.lm, continuations)
                out += _scored(rows, {"nats": nats, "nll": nll})
                self.progress.advance(len(rows))
            return out

        return self._by_prompt("dose-scores", "dose curve: KL", texts, make)

    def _divergences(self, arms: Mapping[str, Arm], texts: Rows) -> Rows:
        """KL from v of every arm that T4 compares, on v's texts."""
        few = [f"random[{k}]" for k in range(NUM_RANDOM_SCORED)]
        skipped = ("v", "v_again")
        others = {
            name: arm.intervention
            for name, arm in arms.items()
            if name not in skipped
            and not name.startswith("sign_flip")
            and (not name.startswith("random") or name in few)
        }
        own = [row for row in texts if row["arm"] == "v"]

        def make(block: Rows, start: int) -> Rows:
            del start
            nats = scoring.sequence_kl(
                self.lm,
                self._continuations(block),
                arms["v"].intervention,
                others,
                temperature=self.spec.temperature,
            )
            self.progress.advance(len(block))
            return [
                row
                for name, values in nats.items()
                for row in _scored(block, {"nats": values}, other=name)
            ]

        return self._by_prompt("divergences", "test: KL", own, make)

    def _likelihoods(self, texts: Rows) -> Rows:
        """The coherence of v's, -v's and unsteered texts under the unsteered model."""
        own = [row for row in texts if row["arm"] in ("unsteered", "v", "minus_v")]

        def make(block: Rows, start: int) -> Rows:
            del start
            rows = self._continuations(block)
            nll = scoring.negative_log_likelihood(self.lm, rows)
            self.progress.advance(len(block))
            return _scored(block, {"nll": nll})

        return self._by_prompt("likelihoods", "test: coherence", own, make)

    def _continuations(self, rows: Rows) -> list[Continuation]:
        chat = self.spec.chat
        return [
            Continuation(
                encode(self.lm, Text(row["prompt"]), chat=chat)[0], row["token_ids"]
            )
            for row in rows
        ]

    def _by_prompt(
        self, name: str, label: str, texts: Rows, make: Callable[[Rows, int], Rows]
    ) -> Rows:
        """Cells over texts, cut at the same prompts as the cells that made them."""
        by_prompt: dict[int, Rows] = {}
        for row in texts:
            by_prompt.setdefault(row["prompt_index"], []).append(row)
        groups = [by_prompt[index] for index in sorted(by_prompt)]

        def flat(block: Sequence[Rows], start: int) -> Rows:
            return make([row for group in block for row in group], start)

        return self._cells(name, label, groups, flat, len(texts) // len(groups))

    def _cells(
        self,
        name: str,
        label: str,
        items: Sequence[Any],
        make: Callable[[Any, int], Rows],
        units: int,
    ) -> Rows:
        """Rows of all cells of `items`; only missing cells are made."""
        size = self.spec.prompts_per_cell
        self.progress.begin(label, len(items) * units)
        rows: Rows = []
        for start in range(0, len(items), size):
            block = items[start : start + size]
            cell = f"{name}-{start // size:04d}"
            if self.store.has_cell(cell):
                self.progress.advance(len(block) * units)
            rows += self.store.cell(cell, lambda b=block, s=start: make(b, s))
        return rows


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
