"""Vectors and arms of a run: v, every control at its site, and who gets what noise.

Arms share their random numbers, so that two of them differ by the vector only. Three
families have random numbers of their own: `v_again[j]` and `v_plus_perp_fresh[j]`,
which the published statistics compare with v as with an independent sample, and the
published code's variant `code_*`.
"""

from collections.abc import Mapping

import torch

from steergauge import prompts as texts
from steergauge.activations import Position, Reader
from steergauge.audits import controls
from steergauge.extraction.mean_difference import mean_difference
from steergauge.extraction.methods import extraction_by
from steergauge.generation import Arm
from steergauge.intervention import Ablate, Add, scope_named
from steergauge.prompts import Text
from steergauge.runs.plan import FEWEST_PAIRS_TO_FLIP, Inputs
from steergauge.runs.spec import Spec
from steergauge.runs.store import Store, write_text
from steergauge.split import LanguageModel
from steergauge.vector import SteeringVector, load_vector

ALPHAS = (0.25, 0.5, 1.0, 2.0)
"""Strengths of the dose curve, in both directions, in units of the stored vector."""

FEW = 5
"""Directions of a family that is shown beside another: v turned, other strengths."""

FEWEST = 3
"""Directions v_perp of each environment's vector."""

NUM_GAINS = 32
"""Perpendicular directions whose gain stands for the rest of the trace of J'J."""


def extract_or_load(lm: LanguageModel, inputs: Inputs, store: Store) -> SteeringVector:
    """The vector to be audited, kept in the store."""
    path = store.vectors / "v.safetensors"
    if not path.is_file():
        vector = inputs.given
        if vector is None:
            vector = extraction_by(
                lm,
                inputs.pairs,
                reader_of(inputs.spec),
                method=inputs.spec.method,
                seed=inputs.spec.seed,
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
            control.save(store.vector_file(name))
        write_text(made, "\n".join(found))
    names = made.read_text(encoding="utf-8").split("\n")
    return {name: load_vector(store.vector_file(name)) for name in names}


def test_arms(
    spec: Spec,
    alpha: float,
    vector: SteeringVector,
    found: Mapping[str, SteeringVector],
) -> dict[str, Arm]:
    """All arms of the test by name.

    Args:
        spec: of the run.
        alpha: strength of all arms but those of other strengths.
        vector: v.
        found: what `control_vectors` made.
    """
    scope = scope_named(spec.scope)

    def arm(added: SteeringVector, strength: float = alpha, noise: int = 0) -> Arm:
        return Arm(Add(added, strength, scope), noise)

    if spec.steering == "ablation":
        return {"unsteered": Arm(), "v": Arm(Ablate(vector, scope))}
    if not spec.behaves:
        return {"unsteered": Arm(), "v": arm(vector)}
    arms = {"unsteered": Arm(), "v": arm(vector), "minus_v": arm(vector, -alpha)}
    arms |= {
        name: arm(vector, noise=1 + j) for j, name in enumerate(_again_names(spec))
    }
    for name, control in found.items():
        if name.startswith("environment"):
            continue
        if name.startswith("code_"):
            arms[name] = arm(control, noise=1 + _index(name))
        else:
            arms[name] = arm(control)
    if "replication" in spec.audits:
        for j in range(spec.num_perpendicular):
            total = found[f"v_plus_perp[{j}]"]
            arms[f"v_plus_perp_fresh[{j}]"] = arm(total, noise=1 + j)
    for other in other_strengths(spec, alpha):
        arms[f"v@{other:g}"] = arm(vector, other)
        for j in range(min(FEW, spec.num_perpendicular)):
            total = found[f"v_plus_perp[{j}]"]
            arms[f"v_plus_perp@{other:g}[{j}]"] = arm(total, other)
    return arms


def other_strengths(spec: Spec, alpha: float) -> list[float]:
    """Strengths of the scale audit that are not the test's own."""
    if "scale" not in spec.audits:
        return []
    return [other for other in dict.fromkeys(spec.alphas) if other != alpha]


def environment_arms(
    spec: Spec,
    alpha: float,
    vector: SteeringVector,
    found: Mapping[str, SteeringVector],
    target: str,
) -> dict[str, Arm]:
    """Unsteered, and v_e and v_e + v_perp of every environment e with a vector.

    The target's own and the run's own come with random numbers of their own as well.
    """
    scope = scope_named(spec.scope)
    own = f"v({spec.environment})"
    arms = {"unsteered": Arm(), own: Arm(Add(vector, alpha, scope))}
    for j in range(min(FEWEST, spec.num_perpendicular)):
        total = found[f"v_plus_perp[{j}]"]
        arms[f"v_plus_perp({spec.environment})[{j}]"] = Arm(Add(total, alpha, scope))
    for name, control in found.items():
        if name.startswith("environment"):
            plain = name.removeprefix("environment_")
            arms[plain] = Arm(Add(control, alpha, scope))
    for name, arm in list(arms.items()):
        for drawn_anew in (spec.environment, target):
            if name.startswith(f"v_plus_perp({drawn_anew})"):
                fresh = name.replace("v_plus_perp", "v_plus_perp_fresh")
                arms[fresh] = Arm(arm.intervention, noise=1 + _index(name))
    return arms


def geometry_vectors(spec: Spec, vector: SteeringVector) -> dict[str, SteeringVector]:
    """Random directions r, v + r, and v + the part of r across v, all of v's norm.

    The same seed gives r and its part across v (see `controls`): rows are pairs.
    """
    found: dict[str, SteeringVector] = {}
    for k in range(NUM_GAINS):
        seed = direction_seed(spec, "gain", k)
        random = controls.random_direction(vector, seed=seed)
        perp = controls.perpendicular(vector, seed=seed)
        found[f"geometry_random[{k}]"] = random
        found[f"geometry_added[{k}]"] = controls.total(vector, random, "v + random")
        found[f"geometry_perp[{k}]"] = controls.total(vector, perp, "v + v_perp")
    return found


def gain_directions(spec: Spec, vector: SteeringVector) -> dict[str, SteeringVector]:
    """Random directions perpendicular to v: tr(J'J) without v's own share."""
    seeds = [direction_seed(spec, "gain", k) for k in range(NUM_GAINS)]
    return {
        f"perp[{k}]": controls.perpendicular(vector, seed=seed)
        for k, seed in enumerate(seeds)
    }


def _again_names(spec: Spec) -> list[str]:
    if "replication" not in spec.audits:
        return ["v_again"]
    return [f"v_again[{j}]" for j in range(spec.num_perpendicular)]


def _index(name: str) -> int:
    """J of `family[j]`; -1 without brackets."""
    return int(name.rpartition("[")[2].rstrip("]")) if "[" in name else -1


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
        perp = controls.perpendicular(vector, seed=direction_seed(spec, "perp", j))
        total = controls.total(vector, perp, f"v + {perp.provenance.parent}")
        found[f"v_plus_perp[{j}]"], found[f"perp[{j}]"] = total, perp
        if "replication" in spec.audits and j < FEW:
            found[f"v_turned[{j}]"] = controls.rescaled(total, vector)
    flips = spec.num_random // 2 if len(inputs.pairs) >= FEWEST_PAIRS_TO_FLIP else 0
    for k in range(spec.num_random - flips):
        seed = direction_seed(spec, "random", k)
        found[f"random[{k}]"] = controls.random_direction(vector, seed=seed)
    if flips:
        drawn = controls.sign_flips(
            lm, vector, inputs.pairs, reader_of(spec), num=flips, seed=spec.seed
        )
        found |= {f"sign_flip[{k}]": flipped for k, flipped in enumerate(drawn)}
    for name in _other_traits(inputs):
        rest = texts.trait(name)
        num = min(len(inputs.pairs), len(rest.all_pairs))
        pairs = rest.pairs(num, seed=spec.seed)
        other = mean_difference(lm, pairs, reader_of(spec)).vector
        found[f"other_trait[{name}]"] = controls.rescaled(other, vector)
    found |= _code_vectors(lm, inputs, vector)
    return found | _environment_vectors(lm, inputs, vector)


def _code_vectors(
    lm: LanguageModel, inputs: Inputs, vector: SteeringVector
) -> dict[str, SteeringVector]:
    """The published code's v: read from the block below the one that it is added to."""
    spec = inputs.spec
    wanted = spec.published_code and "replication" in spec.audits
    if not (wanted and inputs.pairs and spec.layer):
        return {}
    below = Reader(spec.layer - 1, Position(spec.position), spec.chat)
    read = mean_difference(lm, inputs.pairs, below).vector
    own = vector.with_direction(read.direction, f"read after block {spec.layer - 1}")
    found = {"code_v": own}
    for j in range(spec.num_perpendicular):
        perp = controls.perpendicular(own, seed=direction_seed(spec, "code perp", j))
        total = controls.total(own, perp, f"code v + {perp.provenance.parent}")
        found[f"code_v_plus_perp[{j}]"], found[f"code_perp[{j}]"] = total, perp
    return found


def _environment_vectors(
    lm: LanguageModel, inputs: Inputs, vector: SteeringVector
) -> dict[str, SteeringVector]:
    """v_e of every other environment with pairs, at v's norm, with its v_e + v_perp."""
    spec = inputs.spec
    found: dict[str, SteeringVector] = {}
    for name, pairs in inputs.environment_pairs.items():
        read = mean_difference(lm, pairs, reader_of(spec)).vector
        own = controls.rescaled(read, vector)
        found[f"environment_v({name})"] = own
        for j in range(min(FEWEST, spec.num_perpendicular)):
            perp = controls.perpendicular(
                own, seed=direction_seed(spec, f"perp {name}", j)
            )
            parent = f"v of {name} + {perp.provenance.parent}"
            total = controls.total(own, perp, parent)
            found[f"environment_v_plus_perp({name})[{j}]"] = total
    return found


def _other_traits(inputs: Inputs) -> list[str]:
    trait = inputs.trait
    if trait is None or trait.name not in texts.TRAITS or not inputs.pairs:
        return []
    return [name for name in texts.TRAITS if name != trait.name]


def reader_of(spec: Spec) -> Reader:
    """How the run reads streams; its layer is resolved."""
    assert spec.layer is not None
    return Reader(spec.layer, Position(spec.position), spec.chat)


def direction_seed(spec: Spec, family: str, index: int) -> int:
    """A seed for each direction of each family; runs with other seeds share none."""
    return int(texts.short_hash(f"{spec.seed} {family} {index}"), 16) >> 1
