"""From a spec to a plan: the vector, its controls, the arms, the prompts, the probe.

Everything here is decided before a token is generated. Prompts are split once: those
of the dose curve choose the strength, those of the test judge it, and neither occurs
among the contrast pairs.
"""

import importlib.metadata
import random
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from steergauge import prompts as texts
from steergauge.activations import Position
from steergauge.errors import BadPairs, BadPrompts, BadSpec, ShapeMismatch
from steergauge.extraction.methods import check_method
from steergauge.intervention import Add, scope_named
from steergauge.probes import Probe, load_probe, probe_from
from steergauge.prompts import ContrastPair, Trait
from steergauge.runs.spec import Spec
from steergauge.split import LanguageModel
from steergauge.vector import SteeringVector, load_vector

NEED_A_PROBE = ("replication", "scale", "environments", "reliability")
"""Audits of scores alone: without a probe their texts are not even generated."""

NEED_PAIRS = ("methods",)
"""Audits that compare what the same contrast pairs give."""

FEWEST_TO_FIT = 4
"""Prompts of a Fisher matrix; half as many check T10, and one has no spread."""

FEWEST_REFERENCES = 12
"""Prompts beside those of the test that reachability needs: eight to search on, and
others to measure the noise with and to hide in."""

FEWEST_PAIRS_TO_FLIP = 8
"""Below it there are too few halves of the pairs to be draws of anything."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the spec's files and names turned out to hold.

    Attributes:
        spec: with the layer resolved.
        trait: None if the run has none.
        pairs: contrast pairs to extract from; empty if only a vector is known.
        dose_prompts: prompts that choose the strength.
        test_prompts: prompts that judge it.
        fit_prompts: prompts of the Fisher matrix; a power of two of them.
        validation_prompts: prompts that check the most different vector.
        reference_prompts: prompts of natural states, of noise, and of searches.
        probe: None if texts cannot be scored.
        given: the vector to be audited, if it was given.
        rivals: vectors to compare with it, by name.
        environments: prompts of the test in each environment that is crossed.
        environment_pairs: contrast pairs of those environments that have any, but for
            the run's own, whose vector is under audit.
    """

    spec: Spec
    trait: Trait | None
    pairs: tuple[ContrastPair, ...]
    dose_prompts: tuple[str, ...]
    test_prompts: tuple[str, ...]
    probe: Probe | None
    given: SteeringVector | None
    rivals: Mapping[str, SteeringVector]
    fit_prompts: tuple[str, ...] = ()
    validation_prompts: tuple[str, ...] = ()
    reference_prompts: tuple[str, ...] = ()
    environments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    environment_pairs: Mapping[str, tuple[ContrastPair, ...]] = field(
        default_factory=dict
    )

    def hashes(self, lm: LanguageModel) -> dict[str, str]:
        """Fingerprints of all that the run reads, for the resume check."""
        known = {
            "model": lm.fingerprint,
            "pairs": texts.pairs_hash(self.pairs) if self.pairs else "",
            "prompts": texts.short_hash(repr((self.dose_prompts, self.test_prompts))),
            "probe": _probe_hash(self.spec, self.probe) if self.probe else "",
            "vector": _vector_hash(self.given) if self.given else "",
            "chat_template": texts.chat_template_hash(lm, self.spec.chat),
            "tokenizer": texts.short_hash(
                repr(sorted(lm.tokenizer.get_vocab().items()))
            ),
            "versions": " ".join(
                f"{name} {importlib.metadata.version(name)}"
                for name in ("steergauge", "torch", "transformers")
            ),
            "device": lm.device.type,
        }
        if self.fit_prompts:
            both = (self.fit_prompts, self.validation_prompts)
            known["geometry prompts"] = texts.short_hash(repr(both))
        if self.reference_prompts:
            known["reference prompts"] = texts.short_hash(repr(self.reference_prompts))
        for name, prompts in self.environments.items():
            pairs = self.environment_pairs.get(name, ())
            content = (prompts, [(p.positive, p.negative) for p in pairs])
            known[f"environment {name}"] = texts.short_hash(repr(content))
        rivals = {f"against {k}": _vector_hash(v) for k, v in self.rivals.items()}
        return {key: value for key, value in {**known, **rivals}.items() if value}


def read(spec: Spec, vector: SteeringVector | None = None) -> Inputs:
    """Everything that the spec names, read and checked without the model.

    Raises:
        SteergaugeError: whatever is wrong with what was given.
    """
    scope_named(spec.scope)
    Position(spec.position)
    check_method(spec.method)
    if spec.labelled and not spec.probe:
        raise BadSpec("labelled texts were given without a probe that they validate.")
    given = vector or (load_vector(spec.vector) if spec.vector else None)
    trait = texts.trait(spec.trait) if spec.trait else _trait_of(given)
    fit, held_out = _pairs(spec, trait, given)
    if given is None and not fit:
        raise BadSpec(
            "there is nothing to audit: neither a trait, nor contrast pairs, nor a "
            "vector was given.",
            remedy=f"Give --trait (one of {', '.join(texts.TRAITS)}), --pairs or "
            "--vector.",
        )
    if given is not None and made_of(given, fit):
        # Controls from the same pairs are read at the same tokens.
        spec = replace(spec, position=given.provenance.position)
    elsewhere = _environment_pairs(spec, trait, fit)
    used = _prompts_of(
        [*fit, *(pair for pairs in elsewhere.values() for pair in pairs)]
    )
    dose, test, rest = _prompts(spec, trait, held_out, used)
    fit_on, validation = _geometry_prompts(spec, [*rest, *dose])
    probe = _probe(spec, trait)
    if spec.steering == "ablation" and spec.alpha is None:
        spec = replace(spec, alpha=1.0)
    spec = _possible(spec, has_probe=probe is not None, has_pairs=len(fit) >= 2)
    return Inputs(
        spec=spec,
        trait=trait,
        pairs=tuple(fit),
        dose_prompts=dose,
        test_prompts=test,
        fit_prompts=fit_on,
        validation_prompts=validation,
        reference_prompts=_reference_prompts(spec, [*rest, *dose]),
        probe=probe,
        given=given,
        rivals=_rivals(spec),
        environments={
            name: _environment(spec, name, trait, used | {*dose}, test)
            for name in spec.environments
        },
        environment_pairs=elsewhere,
    )


def _possible(spec: Spec, *, has_probe: bool, has_pairs: bool) -> Spec:
    """The spec without audits that lack a probe or contrast pairs.

    Raises:
        BadSpec: none of those that were asked for is left.
    """
    lacking = () if has_probe else NEED_A_PROBE
    lacking += () if has_pairs else NEED_PAIRS
    left = tuple(audit for audit in spec.audits if audit not in lacking)
    if not left:
        raise BadSpec(
            f"none of the audits {', '.join(spec.audits)} can be made of what was "
            "given.",
            cause=f"{', '.join(NEED_A_PROBE)} need a probe; {', '.join(NEED_PAIRS)} "
            "needs contrast pairs.",
            remedy="Give --probe or --pairs, or ask for other audits.",
        )
    return replace(spec, audits=left)


def gather(
    lm: LanguageModel, spec: Spec, vector: SteeringVector | None = None
) -> Inputs:
    """What `read` reads, checked against the model, with the layer resolved.

    Raises:
        SteergaugeError: whatever is wrong with what was given.
    """
    inputs = read(spec, vector)
    given, spec = inputs.given, inputs.spec
    if given is not None:
        strength = spec.alpha if spec.alpha is not None else 1.0
        Add(given, strength).check_fits(lm, other_model=spec.other_model)
        spec = replace(spec, layer=_layer_of(spec, given))
    elif spec.layer is None:
        spec = replace(spec, layer=lm.num_layers // 2)
    assert spec.layer is not None
    lm.check_layer(spec.layer)
    lm.check_layer(read_at(spec, spec.layer))
    texts.uses_chat(lm, spec.chat)
    for rival in inputs.rivals.values():
        rival.check_fits(lm, other_model=spec.other_model)
    return replace(inputs, spec=replace(spec, model=lm.name, dtype=precision(lm)))


def precision(lm: LanguageModel) -> str:
    """What the model computes in, as a spec names it."""
    return str(lm.dtype).removeprefix("torch.")


def read_at(spec: Spec, layer: int) -> int:
    """The block after which states are compared, with the vector's at `layer`.

    Raises:
        BadSpec: it is below the vector's.
    """
    if spec.read_layer is None:
        return layer
    if spec.read_layer < layer:
        raise BadSpec(
            f"states were to be read after block {spec.read_layer}, and the vector "
            f"acts after block {layer}: they cannot know of it.",
            remedy=f"Give a --read-layer from {layer} on, or none.",
        )
    return spec.read_layer


def _probe_hash(spec: Spec, probe: Probe) -> str:
    """Of the words or the code that score, and of how well they passed the gate."""
    file, _, function = spec.probe.rpartition(":")
    code = Path(file).read_bytes() if file.endswith(".py") else b""
    return texts.short_hash(
        repr((function, code, probe.kind, probe.words, probe.auc, probe.num_labelled))
        + repr(sorted(probe.record.items()))
    )


def _vector_hash(vector: SteeringVector) -> str:
    return texts.short_hash(repr((vector.site.layer, vector.direction.tolist())))


def _layer_of(spec: Spec, given: SteeringVector) -> int:
    if spec.layer is not None and spec.layer != given.site.layer:
        raise ShapeMismatch(
            f"--layer {spec.layer} was given with a vector that was read at layer "
            f"{given.site.layer}.",
            cause="A vector belongs to the site where it was read.",
            remedy="Leave --layer out, or extract the vector at that layer.",
        )
    return given.site.layer


def _trait_of(vector: SteeringVector | None) -> Trait | None:
    """The built-in trait whose contrast pairs the vector was extracted from, if any."""
    origin = vector.provenance if vector else None
    if origin is None or not origin.pairs or not origin.num_pairs:
        return None
    for name in texts.TRAITS:
        trait = texts.trait(name)
        if origin.num_pairs <= len(trait.all_pairs):
            pairs = trait.pairs(origin.num_pairs, seed=origin.seed)
            if texts.pairs_hash(pairs) == origin.pairs:
                return trait
    return None


def made_of(vector: SteeringVector, pairs: Sequence[ContrastPair]) -> bool:
    """Whether the vector was extracted from these very pairs."""
    origin = vector.provenance
    return bool(pairs and origin.pairs) and origin.pairs == texts.pairs_hash(pairs)


def _pairs(
    spec: Spec, trait: Trait | None, given: SteeringVector | None
) -> tuple[list[ContrastPair], list[ContrastPair]]:
    """Pairs to extract from, and pairs held out as prompts of the test."""
    if spec.pairs:
        pairs = texts.read_pairs(spec.pairs)
        if len(pairs) < 2:
            raise BadPairs(
                f"{spec.pairs} holds a single pair; its difference is that of two "
                "texts, not of a trait.",
                remedy="Give at least two pairs; 50 are usual.",
            )
        if spec.prompts:
            return pairs, []
        if given is not None and made_of(given, pairs):
            raise BadPairs(
                f"the vector was extracted from all {len(pairs)} pairs of "
                f"{spec.pairs}, so none of them is left to test it on.",
                remedy="Give neutral prompts with --prompts.",
            )
        if len(pairs) < 6:
            raise BadPairs(
                f"{spec.pairs} holds {len(pairs)} pairs; without --prompts half of "
                "them are held out to test on, so at least 6 are needed.",
                remedy="Add pairs, or give neutral prompts with --prompts.",
            )
        return pairs[::2], pairs[1::2]
    if trait is None:
        return [], []
    if given is not None and trait == _trait_of(given):
        origin = given.provenance
        return trait.pairs(origin.num_pairs, seed=origin.seed), []
    return trait.pairs(spec.num_pairs, seed=spec.seed), []


def _prompts_of(pairs: Sequence[ContrastPair]) -> set[str]:
    return {text.prompt for pair in pairs for text in (pair.positive, pair.negative)}


def _environment(
    spec: Spec,
    name: str,
    trait: Trait | None,
    used: Set[str],
    test: Sequence[str],
) -> tuple[str, ...]:
    """Prompts of one environment's test; the run's own has those of its test."""
    num = spec.num_environment_prompts
    if name == spec.environment:
        return tuple(test[:num])
    known = trait.environments if trait else {}
    candidates = (
        known[name].prompts if name in known else texts.environment(name).prompts
    )
    usable = [text for text in dict.fromkeys(candidates) if text not in used][:num]
    if len(usable) < 2:
        raise BadPrompts(
            f"the environment {name!r} has {len(usable)} prompts that the vector was "
            "not extracted from; at least 2 are needed.",
            remedy="Add prompts to it, or leave it out of --environments.",
        )
    return tuple(usable)


def _environment_pairs(
    spec: Spec, trait: Trait | None, fit: Sequence[ContrastPair]
) -> dict[str, tuple[ContrastPair, ...]]:
    """Pairs to extract a vector from in each environment but the run's own."""
    found = {}
    for name in spec.environments:
        if trait is None or not fit or name == spec.environment:
            continue
        there = trait.environments.get(name)
        if there is not None and len(there.pairs) >= 2:
            num = min(spec.num_pairs, len(there.pairs))
            drawn = trait.pairs(num, seed=spec.seed, environment=name)
            found[name] = tuple(drawn)
    return found


def _prompts(
    spec: Spec,
    trait: Trait | None,
    held_out: Sequence[ContrastPair],
    used: Set[str],
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Prompts of the dose curve, of the test, and the rest; none is in `used`."""
    if spec.prompts:
        candidates = texts.read_prompts(spec.prompts)
    elif held_out:
        # One side of each pair, in turn: the two are variants of one prompt, and a
        # bootstrap over prompts takes them for independent ones.
        sides = [(pair.positive.prompt, pair.negative.prompt) for pair in held_out]
        candidates = [side[i % 2] for i, side in enumerate(sides)]
    elif trait is not None and spec.environment in trait.environments:
        candidates = list(trait.environments[spec.environment].prompts)
    else:
        candidates = list(texts.environment(spec.environment).prompts)
    usable = [text for text in dict.fromkeys(candidates) if text not in used]
    if spec.sequential:
        # A run that may stop early must not depend on the order of a file.
        random.Random(spec.seed).shuffle(usable)
    num_dose = min(spec.num_dose_prompts, len(usable) // 3)
    dose, test = usable[:num_dose], usable[num_dose : num_dose + spec.num_prompts]
    if num_dose < 1 or len(test) < 2:
        raise BadPrompts(
            f"only {len(usable)} prompts are left that the vector was not extracted "
            "from; at least 3 are needed, and 74 to state an equivalence.",
            remedy="Give more neutral prompts with --prompts.",
        )
    rest = usable[num_dose + spec.num_prompts :]
    return tuple(dose), tuple(test), tuple(rest)


def _geometry_prompts(
    spec: Spec, candidates: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts of the Fisher matrix, a power of two of them, and half as many more."""
    if not spec.wants_geometry:
        return (), ()
    num = min(spec.geometry_prompts, 2 * len(candidates) // 3)
    if num < FEWEST_TO_FIT:
        raise BadPrompts(
            f"the geometry needs prompts of its own, and {len(candidates)} are left "
            "beside those of the test.",
            remedy=f"Give at least {2 * FEWEST_TO_FIT} more neutral prompts with "
            "--prompts, or fewer to the test with --num-prompts.",
        )
    num = 1 << (num.bit_length() - 1)
    return tuple(candidates[:num]), tuple(candidates[num : num + num // 2])


def _reference_prompts(spec: Spec, candidates: Sequence[str]) -> tuple[str, ...]:
    """Prompts of natural states and of searches: all that the test leaves."""
    if not spec.wants_reachability:
        return ()
    if len(candidates) < FEWEST_REFERENCES:
        raise BadPrompts(
            f"reachability needs {FEWEST_REFERENCES} prompts of its own, and "
            f"{len(candidates)} are left beside those of the test.",
            remedy="Give more neutral prompts with --prompts, or fewer to the test "
            "with --num-prompts.",
        )
    return tuple(candidates)


def _rivals(spec: Spec) -> dict[str, SteeringVector]:
    rivals: dict[str, SteeringVector] = {}
    for path in spec.against:
        name = Path(path).stem
        if name in rivals:
            raise BadSpec(
                f"two of the vectors to compare with are called {name}.",
                remedy="Rename one of the files; a report tells them apart by name.",
            )
        rivals[name] = load_vector(path)
    return rivals


def _probe(spec: Spec, trait: Trait | None) -> Probe | None:
    if spec.probe:
        labelled = texts.read_labelled(spec.labelled) if spec.labelled else None
        return load_probe(spec.probe, labelled)
    if trait is None or not trait.probe:
        return None
    folder = Path(spec.trait).parent if Path(spec.trait).is_file() else Path()
    return probe_from(trait.name, trait.probe, folder=folder)
