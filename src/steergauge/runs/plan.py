"""From a spec to a plan: the vector, its controls, the arms, the prompts, the probe.

Everything here is decided before a token is generated. Prompts are split once: those
of the dose curve choose the strength, those of the test judge it, and neither occurs
among the contrast pairs.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from steergauge import prompts as texts
from steergauge.activations import Position, Reader
from steergauge.audits import controls
from steergauge.errors import BadPairs, BadPrompts, BadSpec, ShapeMismatch
from steergauge.extraction.mean_difference import mean_difference
from steergauge.generation import Arm
from steergauge.intervention import Add, scope_named
from steergauge.probes import Probe, lexical_probe, load_probe
from steergauge.prompts import ContrastPair, Text, Trait
from steergauge.runs.spec import Spec
from steergauge.runs.store import Store, write_text
from steergauge.split import LanguageModel
from steergauge.vector import SteeringVector, load_vector

ALPHAS = (0.25, 0.5, 1.0, 2.0)
"""Strengths of the dose curve, in both directions, in units of the stored vector."""


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
        probe: None if texts cannot be scored.
        given: the vector to be audited, if it was given.
        rivals: vectors to compare with it, by name.
    """

    spec: Spec
    trait: Trait | None
    pairs: tuple[ContrastPair, ...]
    dose_prompts: tuple[str, ...]
    test_prompts: tuple[str, ...]
    probe: Probe | None
    given: SteeringVector | None
    rivals: Mapping[str, SteeringVector]

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
        rivals = {f"against {k}": _vector_hash(v) for k, v in self.rivals.items()}
        return {key: value for key, value in {**known, **rivals}.items() if value}


def read(spec: Spec, vector: SteeringVector | None = None) -> Inputs:
    """Everything that the spec names, read and checked without the model.

    Raises:
        SteergaugeError: whatever is wrong with what was given.
    """
    scope_named(spec.scope)
    Position(spec.position)
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
    dose, test = _prompts(spec, fit, held_out)
    probe = _probe(spec, trait)
    return Inputs(spec, trait, tuple(fit), dose, test, probe, given, _rivals(spec))


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
    texts.uses_chat(lm, spec.chat)
    for rival in inputs.rivals.values():
        rival.check_fits(lm, other_model=spec.other_model)
    dtype = str(lm.dtype).removeprefix("torch.")
    return replace(inputs, spec=replace(spec, model=lm.name, dtype=dtype))


def extract_or_load(lm: LanguageModel, inputs: Inputs, store: Store) -> SteeringVector:
    """The vector to be audited, kept in the store."""
    path = store.vectors / "v.safetensors"
    if not path.is_file():
        vector = inputs.given
        if vector is None:
            vector = mean_difference(
                lm, inputs.pairs, _reader(inputs.spec), seed=inputs.spec.seed
            ).vector
        vector.check_fits(lm, other_model=True)
        vector.save(path)
    # Read back, also if it was just written: a resumed run sees the same numbers.
    return load_vector(path)


def control_vectors(
    lm: LanguageModel, inputs: Inputs, vector: SteeringVector, store: Store
) -> dict[str, SteeringVector]:
    """Every control by arm name, at v's norm and site, kept in the store."""
    made = store.vectors / "controls.done"
    if not made.is_file():
        found = dict(_made_controls(lm, inputs, vector))
        for name, rival in inputs.rivals.items():
            found[f"against[{name}]"] = controls.rescaled(rival, vector)
        for name, control in found.items():
            control.save(_file(store, name))
        write_text(made, "\n".join(found))
    names = made.read_text(encoding="utf-8").split("\n")
    return {name: load_vector(_file(store, name)) for name in names}


def test_arms(
    spec: Spec,
    alpha: float,
    vector: SteeringVector,
    found: Mapping[str, SteeringVector],
) -> dict[str, Arm]:
    """All arms of the test by name; they share their random numbers but for v_again."""
    scope = scope_named(spec.scope)
    arms = {
        "unsteered": Arm(),
        "v": Arm(Add(vector, alpha, scope)),
        "v_again": Arm(Add(vector, alpha, scope), noise=1),
        "minus_v": Arm(Add(vector, -alpha, scope)),
    }
    return arms | {name: Arm(Add(w, alpha, scope)) for name, w in found.items()}


def dose_arms(spec: Spec, vector: SteeringVector) -> dict[str, Arm]:
    """Unsteered, and v at every strength of the curve in both directions."""
    unit = abs(spec.alpha) if spec.alpha is not None else 1.0
    alphas = [sign * unit * a for sign in (1, -1) for a in ALPHAS]
    scope = scope_named(spec.scope)
    arms = {f"dose[{alpha:g}]": Arm(Add(vector, alpha, scope)) for alpha in alphas}
    return {"unsteered": Arm(), **arms}


def median_norm(lm: LanguageModel, inputs: Inputs) -> float:
    """Median norm of h at the last prompt token of the dose prompts."""
    spec = inputs.spec
    assert spec.layer is not None
    reader = Reader(spec.layer, chat=spec.chat)
    rows = reader.read(lm, [Text(prompt) for prompt in inputs.dose_prompts])
    return float(torch.linalg.vector_norm(rows, dim=-1).median())


def _made_controls(
    lm: LanguageModel, inputs: Inputs, vector: SteeringVector
) -> dict[str, SteeringVector]:
    spec = inputs.spec
    found: dict[str, SteeringVector] = {}
    for j in range(spec.num_perpendicular):
        perp = controls.perpendicular(vector, seed=_seed(spec, "perp", j))
        parent = f"v + {perp.provenance.parent}"
        found[f"v_plus_perp[{j}]"] = controls.total(vector, perp, parent)
        found[f"perp[{j}]"] = perp
    flips = spec.num_random // 2 if len(inputs.pairs) >= FEWEST_PAIRS_TO_FLIP else 0
    for k in range(spec.num_random - flips):
        seed = _seed(spec, "random", k)
        found[f"random[{k}]"] = controls.random_direction(vector, seed=seed)
    if flips:
        drawn = controls.sign_flips(
            lm, vector, inputs.pairs, _reader(spec), num=flips, seed=spec.seed
        )
        found |= {f"sign_flip[{k}]": flipped for k, flipped in enumerate(drawn)}
    for name in _other_traits(inputs):
        rest = texts.trait(name)
        num = min(len(inputs.pairs), len(rest.all_pairs))
        pairs = rest.pairs(num, seed=spec.seed)
        other = mean_difference(lm, pairs, _reader(spec)).vector
        found[f"other_trait[{name}]"] = controls.rescaled(other, vector)
    return found


def _other_traits(inputs: Inputs) -> list[str]:
    trait = inputs.trait
    if trait is None or trait.name not in texts.TRAITS or not inputs.pairs:
        return []
    return [name for name in texts.TRAITS if name != trait.name]


def _reader(spec: Spec) -> Reader:
    assert spec.layer is not None
    return Reader(spec.layer, Position(spec.position), spec.chat)


def _seed(spec: Spec, family: str, index: int) -> int:
    """A seed for each direction of each family; runs with other seeds share none."""
    return int(texts.short_hash(f"{spec.seed} {family} {index}"), 16) >> 1


def _file(store: Store, name: str) -> Path:
    return store.vectors / f"{name.replace('[', '-').replace(']', '')}.safetensors"


def _probe_hash(spec: Spec, probe: Probe) -> str:
    """Of the words or the code that score, and of how well they passed the gate."""
    file, _, function = spec.probe.rpartition(":")
    code = Path(file).read_bytes() if file.endswith(".py") else b""
    return texts.short_hash(
        repr((function, code, probe.words, probe.auc, probe.num_labelled))
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


def _prompts(
    spec: Spec, fit: Sequence[ContrastPair], held_out: Sequence[ContrastPair]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts of the dose curve and of the test, disjoint, none of them in `fit`."""
    if spec.prompts:
        candidates = texts.read_prompts(spec.prompts)
    elif held_out:
        # One side of each pair, in turn: the two are variants of one prompt, and a
        # bootstrap over prompts takes them for independent ones.
        sides = [(pair.positive.prompt, pair.negative.prompt) for pair in held_out]
        candidates = [side[i % 2] for i, side in enumerate(sides)]
    else:
        candidates = list(texts.environment(spec.environment).prompts)
    seen = {text.prompt for pair in fit for text in (pair.positive, pair.negative)}
    usable = [text for text in dict.fromkeys(candidates) if text not in seen]
    num_dose = min(spec.num_dose_prompts, len(usable) // 3)
    dose, test = usable[:num_dose], usable[num_dose : num_dose + spec.num_prompts]
    if num_dose < 1 or len(test) < 2:
        raise BadPrompts(
            f"only {len(usable)} prompts are left that the vector was not extracted "
            "from; at least 3 are needed, and 74 to state an equivalence.",
            remedy="Give more neutral prompts with --prompts.",
        )
    return tuple(dose), tuple(test)


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
    return lexical_probe(trait.name, trait.probe)
