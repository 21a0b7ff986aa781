"""The whole specification of a run, as one frozen object and one TOML file.

A run is determined by its spec and the contents of the files that it names; both are
written to `run.toml`, and a folder is resumed only by the same spec and contents.
"""

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steergauge.errors import BadSpec

PAPER_TRAITS = ("formality", "politeness", "humor")
CORE = ("plumbing", "manipulation", "equivalence", "divergence")
EXPERIMENTS = ("replication", "scale", "logits", "environments", "reliability")
GEOMETRY = (
    "spectrum",
    "nulls",
    "saturation",
    "decomposition",
    "alternative",
    "linearity",
    "gauge",
    "methods",
)
REACHABILITY = ("states", "inversion", "access", "density")
AUDITS = (*CORE, *EXPERIMENTS, *GEOMETRY, *REACHABILITY)
GROUPS = {
    "core": CORE,
    "paper": (*CORE, *EXPERIMENTS),
    "geometry": GEOMETRY,
    "reachability": REACHABILITY,
}
"""Names that stand for several audits."""

NAMES = (*AUDITS, *GROUPS)

FILE_ONLY = (
    "num_dose_prompts",
    "num_environment_prompts",
    "reach_tokens",
    "search_tokens",
    "num_hidden",
    "environment_samples",
    "num_random",
    "prompts_per_cell",
    "arms_per_cell",
)
"""Counts that a run file sets and no option does."""

ENGINES = ("local", "vllm")

PERPLEXITY_LIMIT = 1.5
"""A text is coherent while its perplexity under the unsteered model is at most so many
times that of unsteered texts."""

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"num_prompts": 50, "samples": 4, "max_new_tokens": 32},
    "standard": {"num_prompts": 100, "samples": 10, "max_new_tokens": 48},
    "paper": {
        "num_prompts": 100,
        "samples": 10,
        "max_new_tokens": 32,
        "num_perpendicular": 10,
        "alpha": 1.0,
        "alphas": (0.5, 1.0, 2.0),
        "environments": (
            "in-distribution",
            "topic-shift",
            "genre-shift",
            "safety-style",
        ),
        "audits": GROUPS["paper"],
    },
}
"""quick: about a minute on the reference model; standard: more of the same; paper: the
experiments of arXiv 2602.06801, whose number of tokens a text is not printed."""


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything that a run depends on.

    Attributes:
        model: Hugging Face id, local folder or `builtin:organism`.
        revision: commit, tag or branch of a Hugging Face id.
        dtype: compute precision.
        trust_remote_code: run code that comes with the weights.
        chat: through the chat template; None means if there is one.
        trait: built-in trait or trait file: pairs, probe, other traits as controls.
        pairs: file of contrast pairs, instead of a trait's.
        vector: file of the vector to audit, instead of extracting one.
        against: files of vectors to compare with it, at its norm.
        other_model: accept vectors that were extracted from another model.
        prompts: file of neutral prompts, instead of the environment's.
        environment: built-in family of neutral prompts.
        environments: families of prompts to extract from and to test on, crossed.
        probe: words.toml or file.py:function, instead of the trait's.
        labelled: file of labelled texts for the probe's gate.
        layer: block whose output is read and written; None means the middle one.
        method: how the vector is extracted from its pairs.
        position: which token's stream stands for a text of a pair.
        scope: positions that are steered.
        alpha: strength; None means the one that the dose curve recommends.
        alphas: strengths at which v + v_perp is compared with v.
        published_code: also run the published code's variant: read and write one
            block apart, and score the prompt with the text.
        audits: which audits to run.
        num_pairs: contrast pairs to extract from.
        num_prompts: prompts of the test.
        num_dose_prompts: prompts of the dose curve; never prompts of the test.
        num_environment_prompts: prompts of the test in each of `environments`.
        geometry_prompts: prompts of the Fisher matrix, a power of two; half as many
            more check the most different vector before its test.
        geometry_tokens: response tokens that the Fisher matrix is of.
        steering: addition, or ablation, which only the reachability audits know.
        read_layer: block after which states are compared with those of prompts; None
            means where the vector is added.
        reach_prompts: prompts whose steered states are searched for.
        reach_tokens: most tokens of each that are.
        search_tokens: tokens of a prompt that the search for one may write.
        search_evaluations: prompts that each search may try.
        num_hidden: hidden prompts that measure the power of each search.
        samples: responses a prompt and arm.
        environment_samples: the same in `environments`.
        max_new_tokens: longest response.
        temperature: of the sampling, above 0.
        num_perpendicular: random directions v_perp.
        num_random: matched nulls, random and sign-flipped together.
        margin: of the equivalence of lifts, as a share of v's lift.
        budget: of the equivalence of texts, as a share of v's divergence.
        prompts_per_cell: prompts of one unit of work; a kill loses at most that.
        arms_per_cell: arms of one unit of drawing texts; 0 means all.
        engine: who makes the texts: local or vllm.
        sequential: stop the test as soon as all that was asked for is decided.
        batch_size: most rows that go through the model together; None means as many
            as memory holds.
        seed: of everything random.
    """

    model: str = "builtin:organism"
    revision: str = ""
    dtype: str = "float32"
    trust_remote_code: bool = False
    chat: bool | None = None
    trait: str = ""
    pairs: str = ""
    vector: str = ""
    against: tuple[str, ...] = ()
    other_model: bool = False
    prompts: str = ""
    environment: str = "in-distribution"
    environments: tuple[str, ...] = ()
    probe: str = ""
    labelled: str = ""
    layer: int | None = None
    method: str = "mean-difference"
    position: str = "last"
    scope: str = "generating"
    alpha: float | None = None
    alphas: tuple[float, ...] = ()
    published_code: bool = False
    audits: tuple[str, ...] = CORE
    num_pairs: int = 50
    num_prompts: int = 50
    num_dose_prompts: int = 24
    num_environment_prompts: int = 50
    geometry_prompts: int = 64
    geometry_tokens: int = 8
    steering: str = "addition"
    read_layer: int | None = None
    reach_prompts: int = 10
    reach_tokens: int = 64
    search_tokens: int = 8
    search_evaluations: int = 256
    num_hidden: int = 8
    samples: int = 4
    environment_samples: int = 4
    max_new_tokens: int = 32
    temperature: float = 1.0
    num_perpendicular: int = 5
    num_random: int = 20
    margin: float = 0.2
    budget: float = 0.05
    prompts_per_cell: int = 10
    arms_per_cell: int = 0
    engine: str = "local"
    sequential: bool = False
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        unknown = sorted(set(self.audits) - set(AUDITS))
        if unknown or not self.audits:
            raise BadSpec(
                f"there is no audit {', '.join(unknown)!r}.",
                remedy=f"{_nearest(unknown)}Choose from {', '.join(NAMES)}.",
            )
        at_least = {
            "num_pairs": 2,
            "num_prompts": 2,
            "num_dose_prompts": 1,
            "num_environment_prompts": 2,
            "geometry_prompts": 2,
            "geometry_tokens": 1,
            "reach_prompts": 2,
            "reach_tokens": 1,
            "search_tokens": 1,
            "search_evaluations": 8,
            "num_hidden": 2,
            "samples": 1,
            "environment_samples": 1,
            "max_new_tokens": 1,
            "num_perpendicular": 1,
            "num_random": 1,
            "seed": 0,
            "prompts_per_cell": 1,
            "arms_per_cell": 0,
            "batch_size": 1,
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                option, how = _option(name)
                raise BadSpec(
                    f"{name}{option} is {getattr(self, name)}; it must be at least "
                    f"{least}.",
                    remedy=f"{how}, at least {least}.",
                )
        if self.engine not in ENGINES:
            raise BadSpec(
                f"there is no engine {self.engine!r} (--engine).",
                remedy=f"Choose from {', '.join(ENGINES)}.",
            )
        if not 0 < self.temperature < math.inf:
            raise BadSpec(
                f"temperature is {self.temperature}; an audit needs one above 0.",
                cause="A greedy text has no distribution: its samples are all the "
                "same, and its divergence says nothing of other texts.",
            )
        if self.alpha is not None and (
            self.alpha == 0 or not math.isfinite(self.alpha)
        ):
            raise BadSpec(
                f"alpha is {self.alpha:g}; 0 is the unsteered model, and any other "
                "strength must be finite.",
                remedy="Leave --alpha out to have one recommended.",
            )
        self._check_sets()
        self._check_reach()
        if not (0 < self.margin < 1 and 0 < self.budget < 1):
            raise BadSpec(
                f"margin is {self.margin} and budget {self.budget}; both are shares "
                "between 0 and 1."
            )

    def _check_sets(self) -> None:
        """Refuse audits that lack what they compare."""
        if not all(0 < abs(alpha) < math.inf for alpha in self.alphas):
            raise BadSpec(
                f"alphas are {self.alphas}; each must be a finite number other than 0, "
                "where all vectors are the unsteered model.",
            )
        if len({f"{alpha:g}" for alpha in self.alphas}) != len(self.alphas):
            raise BadSpec(f"alphas are {self.alphas}; two of them are the same.")
        for audit, given in (("scale", "alphas"), ("environments", "environments")):
            if audit in self.audits and not getattr(self, given):
                raise BadSpec(
                    f"the audit {audit!r} was asked for, and `{given}` is empty.",
                    remedy=f"Give {given}, or --preset paper, which has them.",
                )
        if len({*self.environments}) != len(self.environments) or (
            len(self.environments) == 1
        ):
            raise BadSpec(
                f"environments are {', '.join(self.environments)}; they are crossed, "
                "so at least two different ones are needed.",
                remedy="Add one, or test on a single one with --environment.",
            )
        if "replication" in self.audits and self.samples < 2:
            raise BadSpec(
                "the audit 'replication' needs at least 2 samples a prompt.",
                cause="Its correlations are corrected by the spread between samples.",
                remedy="Use --samples 2 or more.",
            )

    def _check_reach(self) -> None:
        """Refuse ways to steer that there are not, or that an audit does not know."""
        if self.steering not in ("addition", "ablation"):
            raise BadSpec(
                f"steering (--steering) is {self.steering!r}.",
                remedy="Choose from addition, ablation.",
            )
        if self.steering == "ablation" and (self.behaves or self.wants_geometry):
            raise BadSpec(
                "ablation was asked for beside audits that are about adding a vector.",
                remedy="Ask for --audits reachability, or steer by addition.",
            )
        if self.steering == "ablation" and self.alpha not in (None, 1.0):
            raise BadSpec(
                f"alpha is {self.alpha:g} beside ablation, which has no strength.",
                remedy="Leave --alpha out: a direction is taken out or it is not.",
            )
        if self.read_layer is not None and not self.wants_reachability:
            raise BadSpec(
                f"read_layer (--read-layer) is {self.read_layer}, and no audit asked "
                "for compares states.",
                remedy="Add --audits reachability, or leave it out.",
            )

    @property
    def behaves(self) -> bool:
        """Whether any audit asked for is about the texts of arms."""
        return not {*self.audits} <= {"plumbing", *GEOMETRY, *REACHABILITY}

    @property
    def scores(self) -> bool:
        """Whether any audit asked for uses the probe's scores."""
        return self.behaves or "access" in self.audits

    @property
    def wants_reachability(self) -> bool:
        """Whether any audit asked for is about states that prompts can make."""
        return not {*self.audits}.isdisjoint(REACHABILITY)

    @property
    def wants_geometry(self) -> bool:
        """Whether any audit asked for needs the Fisher matrix."""
        return not {*self.audits}.isdisjoint(GEOMETRY)

    def to_table(self) -> dict[str, Any]:
        """Plain data for TOML; what is None is left out."""
        table = dataclasses.asdict(self)
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in table.items()
            if value is not None
        }


def _option(key: str) -> tuple[str, str]:
    """The option that sets a count, in brackets, and what to do to set it.

    >>> _option("reach_prompts")
    (' (--reach-prompts)', 'Give --reach-prompts another number')
    """
    if key in FILE_ONLY:
        return "", f"Set {key} in the run file to another number"
    option = f"--{key.replace('_', '-')}"
    return f" ({option})", f"Give {option} another number"


def _nearest(unknown: Sequence[str]) -> str:
    """A question after the audit or group that was meant, if one is near."""
    found = [difflib.get_close_matches(name.lower(), NAMES, n=1) for name in unknown]
    near = [names[0] for names in found if names]
    return f"Did you mean {' and '.join(near)}? " if near else ""


def spec_from(
    table: Mapping[str, Any], *, preset: str = "quick", **changes: Any
) -> Spec:
    """A spec from a preset, overridden by `table`, overridden by `changes`.

    Values of None among the changes mean: not given.

    Raises:
        BadSpec: an unknown preset or key, or a value of the wrong type.
    """
    if preset not in PRESETS:
        raise BadSpec(
            f"there is no preset {preset!r}.",
            remedy=f"Choose from {', '.join(PRESETS)}.",
        )
    given = {key: value for key, value in changes.items() if value is not None}
    asked = {**table, **given}
    merged = {**PRESETS[preset], **asked}
    if "audits" in asked:
        merged["audits"] = _ungrouped(merged["audits"])
    else:
        merged["audits"] = (*merged.get("audits", CORE), *_implied(asked, merged))
    hints = typing.get_type_hints(Spec)
    unknown = sorted(set(merged) - set(hints))
    if unknown:
        raise BadSpec(
            f"unknown key {', '.join(unknown)} in the run's specification.",
            cause="A key is misspelt, or from another version.",
            remedy=f"Known keys are {', '.join(hints)}.",
        )
    values = {key: _typed(key, value, hints[key]) for key, value in merged.items()}
    return Spec(**values)


def _ungrouped(named: Any) -> Any:
    """The audits that names and names of groups stand for, each once."""
    names = named.split(",") if isinstance(named, str) else named
    if not isinstance(names, list | tuple):
        return named
    plain = [name.strip() if isinstance(name, str) else name for name in names]
    each = [GROUPS.get(str(name), (name,)) for name in plain]
    return [*dict.fromkeys(audit for group in each for audit in group)]


def _implied(asked: Mapping[str, Any], merged: Mapping[str, Any]) -> list[str]:
    """Audits that somebody wants who gives what they need."""
    needs = {
        "alphas": "scale",
        "environments": "environments",
        "published_code": "replication",
    }
    present = merged.get("audits", CORE)
    return [
        audit for key, audit in needs.items() if asked.get(key) and audit not in present
    ]


def specs_from(
    table: Mapping[str, Any], *, preset: str = "quick", **changes: Any
) -> dict[str, Spec]:
    """One spec a trait, by the trait's name; several if `trait` is a list.

    The preset `paper` without trait, pairs or vector means the paper's three traits.

    Raises:
        BadSpec: as `spec_from`, or a trait is named twice.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    merged = {**table, **given}
    traits = merged.pop("trait", "")
    if not any((traits, merged.get("pairs"), merged.get("vector"))):
        traits = list(PAPER_TRAITS) if preset == "paper" else ""
    if isinstance(traits, str):
        traits = [traits]
    if not isinstance(traits, list | tuple) or len({*traits}) != len(traits):
        raise BadSpec(
            f"trait is {traits!r}; expected a name, or a list of different names."
        )
    folders = [folder_name(name) for name in traits]
    if len({*folders}) != len(folders):
        raise BadSpec(
            f"two of the traits {', '.join(traits)} would share the folder of one run.",
            remedy="Rename one of the files, or run them one by one.",
        )
    return {
        name: spec_from({**merged, "trait": name} if name else merged, preset=preset)
        for name in traits
    }


def layers_named(text: str, num_layers: int) -> list[int]:
    """The blocks that `text` names: numbers, ranges, or all.

    Raises:
        BadSpec: it is none of these, or the model has no such block.

    >>> layers_named("0, 2-4", 8), len(layers_named("all", 8))
    ([0, 2, 3, 4], 8)
    """
    if text.strip() == "all":
        return list(range(num_layers))
    found: list[int] = []
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        if not (low.isdigit() and (high or low).isdigit()):
            raise BadSpec(
                f"--layers is {text!r}; {part.strip()!r} is no block.",
                remedy="Give numbers and ranges such as 0,4,8-11, or all.",
            )
        found += range(int(low), int(high or low) + 1)
    beyond = [layer for layer in found if layer >= num_layers]
    if beyond:
        raise BadSpec(
            f"--layers names block {beyond[0]}; the model has blocks 0 to "
            f"{num_layers - 1}.",
            remedy=f"Choose from 0 to {num_layers - 1}; layers are 0-based.",
        )
    return found


def layer_specs(spec: Spec, layers: Sequence[int]) -> dict[str, Spec]:
    """The same run at each of several layers, by the name of its folder.

    Raises:
        BadSpec: no layers, one twice, or a vector, which belongs to its own layer.
    """
    if not layers or len({*layers}) != len(layers):
        raise BadSpec(
            f"layers are {', '.join(map(str, layers)) or 'none'}; a sweep needs "
            "different ones.",
            remedy="Give --layers 0,4,8 or --layers all.",
        )
    if spec.vector:
        raise BadSpec(
            "several layers were asked for, and a vector, which belongs to one.",
            remedy="Give --trait or --pairs, from which each layer has its own vector.",
        )
    return {
        f"layer-{layer:02d}": dataclasses.replace(spec, layer=layer) for layer in layers
    }


def folder_name(trait: str) -> str:
    """A trait's name as the name of its folder.

    >>> folder_name("a/prompts.json:humor"), folder_name("my.toml")
    ('humor', 'my')
    """
    return Path(trait.rpartition(":")[2]).stem


def read_spec(path: str | Path) -> dict[str, Any]:
    """The spec's table in a TOML file; a finished run's `run.toml` serves as well.

    Raises:
        BadSpec: the file cannot be read as TOML.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSpec(
            f"the run file {path} cannot be read: {error}.",
            remedy="Give a TOML file with the keys of a run.",
        ) from error
    table.pop("inputs", None)
    return table


def _typed(key: str, value: Any, hint: Any) -> Any:
    """`value` as its field's type, or BadSpec."""
    if typing.get_origin(hint) is tuple:
        items = value.split(",") if isinstance(value, str) else value
        found = _items(items, typing.get_args(hint)[0])
        if found is not None:
            return found
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) in kinds:
        return value
    raise BadSpec(
        f"{key} is {value!r}, of type {type(value).__name__}; expected "
        f"{' or '.join(_kind_name(kind) for kind in kinds)}."
    )


def _items(items: Any, kind: type) -> tuple[Any, ...] | None:
    """A list's items as `kind`, or None; numbers may come as text."""
    if not isinstance(items, list | tuple):
        return None
    if kind is str:
        good = all(isinstance(item, str) for item in items)
        return tuple(item.strip() for item in items) if good else None
    if any(isinstance(item, bool) for item in items):
        return None
    try:
        return tuple(kind(item) for item in items)
    except (TypeError, ValueError):
        return None


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"list of {typing.get_args(kind)[0].__name__}"
    return getattr(kind, "__name__", "None")
