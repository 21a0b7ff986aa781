"""What a run will cost, before any weights are loaded.

With M weights that a token is multiplied with (all parameters, but for an embedding
matrix that is only looked up), L blocks, layer l, V = d_vocab and b bytes a number::

    generations  dose prompts x samples x 9 arms  +  test prompts x samples x test arms
                 +  per environment: its prompts x environment samples x arms there
    tokens       generations x max_new_tokens: an upper bound, for texts end earlier
    T            P + max_new_tokens, where P bounds the tokens of the longest prompt:
                 its characters / 3, and 48 for a chat template
    scored       tokens of the passes over finished texts, T a text. Whole passes: 3 a
                 dose text; of the test v's own, under v and unsteered, and one each of
                 v's, -v's and unsteered texts. Upper blocks only: v's texts under
                 every other arm that is held against v. With the logits audit, P a
                 test prompt and arm.
    FLOPs        2 M x (tokens + prefilled tokens + scored tokens x share), share 1 for
                 a whole pass and 1 - (l + 1) / L for upper blocks only; attention over
                 contexts as short as these adds less than a tenth and is left out
                 the geometry and reachability add their own: see `geometry_cost` and
                 `reach_cost`
    weights      parameters x b
    cache        2 L x KV heads x head width x T x rows x b; rows is batch_size (1024
                 if it is left open), or all rows of a cell if they are fewer
    logits       of one decoding step, rows x V x (b + 12): as computed, and three times
                 in float32 for draws; or of scoring, if that is more, min(2^25, those
                 of a cell) x (b + 32): as computed, and four times in float64
    seconds      FLOPs / (speed x EFFICIENCY); speed is that of a matrix product in the
                 run's precision, measured on this device now

A mixture of experts is counted as if every expert saw every token, and a sequential run
as if it went on to its planned end.
"""

import importlib.resources
import math
import time
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from steergauge.batching import MOST_ROWS
from steergauge.errors import CannotLoadModel, InputError, LayerOutOfRange
from steergauge.intervention import scope_named
from steergauge.loading import BUILTIN
from steergauge.prompts import TRAITS
from steergauge.runs import plan
from steergauge.runs.arms import ALPHAS, FEW, FEWEST, NUM_GAINS
from steergauge.runs.geometry_cost import geometry_flops, geometry_texts
from steergauge.runs.plan import FEWEST_PAIRS_TO_FLIP, Inputs
from steergauge.runs.reach_cost import reach_flops, reach_texts
from steergauge.runs.spec import Spec
from steergauge.runs.stages import NUM_RANDOM_SCORED
from steergauge.runs.tested import looks
from steergauge.scoring import LOGITS_AT_ONCE
from steergauge.sequential import Looks
from steergauge.vector import SteeringVector

EFFICIENCY = {"cpu": 0.25, "cuda": 0.1}
"""Share of a large matrix product's speed that a run reaches: decoding multiplies thin
matrices, and draws tokens in between. Measured for the reference model on a CPU core,
0.23 to 0.39; a guess for a GPU. The order of magnitude is meant, no more."""

CHARACTERS_PER_TOKEN = 3
TEMPLATE_TOKENS = 48
NUM_DOSE_ARMS = 1 + 2 * len(ALPHAS)
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A model's shape, without its weights.

    Attributes:
        num_layers: blocks.
        d_model: width of the stream.
        num_kv_heads: heads whose keys and values are kept.
        head_dim: width of one head.
        d_vocab: tokens.
        num_parameters: weights, tied ones once.
        tied: whether one matrix embeds and unembeds.
    """

    num_layers: int
    d_model: int
    num_kv_heads: int
    head_dim: int
    d_vocab: int
    num_parameters: int
    tied: bool

    @property
    def num_multiplied(self) -> int:
        """Weights that every token is multiplied with."""
        looked_up = 0 if self.tied else self.d_vocab * self.d_model
        return self.num_parameters - looked_up


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will do and need; formulas and bounds are in the module's docstring.

    Attributes:
        model: as the spec names it.
        layer: block that is read and written, resolved.
        size: of the model.
        num_test_arms: conditions of the test.
        num_generations: texts of all stages together.
        num_tokens_generated: at most.
        num_tokens_scored: of passes over finished texts.
        flops: of all of it.
        weight_bytes: of the model.
        cache_bytes: keys and values of one batch.
        logit_bytes: logits held at once.
        speed: FLOPs a second of a large matrix product.
        seconds: how long it will take, to an order of magnitude.
        looks: of a sequential run, which may end at any of them; None of any other.
    """

    model: str
    layer: int
    size: ModelSize
    num_test_arms: int
    num_generations: int
    num_tokens_generated: int
    num_tokens_scored: int
    flops: float
    weight_bytes: int
    cache_bytes: int
    logit_bytes: int
    speed: float
    seconds: float
    looks: Looks | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of the device: weights, cache and logits together."""
        return self.weight_bytes + self.cache_bytes + self.logit_bytes


@dataclass(frozen=True, slots=True)
class _Stage:
    """Texts that are made together."""

    num_prompts: int
    num_arms: int
    samples: int

    @property
    def num_texts(self) -> int:
        return self.num_prompts * self.num_arms * self.samples


def forecast(
    spec: Spec,
    vector: SteeringVector | None = None,
    *,
    device: str | None = None,
    speed: float | None = None,
) -> Forecast:
    """The cost of the run that `spec` describes.

    Args:
        spec: the run.
        vector: to be audited, if it is not in a file.
        device: where it will run; the default is a GPU where there is one.
        speed: FLOPs a second of a large matrix product; measured by default.

    Raises:
        CannotLoadModel: the model's configuration cannot be found.
        LayerOutOfRange: it has no such block.
        SteergaugeError: whatever is wrong with the spec or the files that it names.
    """
    if spec.dtype not in BYTES:
        raise InputError(
            f"there is no precision {spec.dtype!r}.",
            remedy=f"Choose from {', '.join(BYTES)}.",
        )
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    inputs = plan.read(spec, vector)
    planned = looks(inputs)  # A run that would be refused has no cost.
    size = model_size(
        spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code
    )
    pace = speed or measured_speed(spec.dtype, device=where)
    seen = _costed(inputs, size, _layer(spec, inputs, size), pace=pace, device=where)
    return replace(seen, looks=planned)


def _costed(
    inputs: Inputs, size: ModelSize, layer: int, *, pace: float, device: str
) -> Forecast:
    spec = inputs.spec
    stages = _stages(inputs, layer)
    passes = _passes(inputs, layer, size.num_layers)
    prompt = _prompt_tokens(inputs)
    num_texts = sum(stage.num_texts for stage in stages)
    tokens = num_texts * spec.max_new_tokens
    prefilled = prompt * sum(_num_prefills(spec, stage) for stage in stages)
    through = tokens + prefilled + sum(num * share for num, share in passes)
    a_token = 2.0 * size.num_multiplied
    flops = a_token * through + geometry_flops(
        inputs,
        above=a_token * (1 - (layer + 1) / size.num_layers),
        prompt=prompt,
        d_model=size.d_model,
        d_vocab=size.d_vocab,
    )
    read = plan.read_at(spec, layer)
    blocks = size.num_multiplied - size.d_vocab * size.d_model
    flops += reach_flops(
        inputs,
        below=2.0 * blocks * (read + 1) / size.num_layers,
        whole=a_token,
        prompt=prompt,
        d_model=size.d_model,
        d_vocab=size.d_vocab,
    )
    rows = max(_rows_at_once(spec, stage) for stage in stages)
    efficiency = EFFICIENCY.get(device.partition(":")[0], EFFICIENCY["cuda"])
    return Forecast(
        model=spec.model,
        layer=layer,
        size=size,
        num_test_arms=stages[0].num_arms,
        num_generations=num_texts,
        num_tokens_generated=tokens,
        num_tokens_scored=sum(num for num, _ in passes),
        flops=flops,
        weight_bytes=size.num_parameters * BYTES[spec.dtype],
        cache_bytes=_cache_bytes(spec, size, rows * (prompt + spec.max_new_tokens)),
        logit_bytes=_logit_bytes(spec, size, rows),
        speed=pace,
        seconds=flops / (pace * efficiency),
    )


def num_test_arms(
    spec: Spec,
    *,
    num_other_traits: int,
    num_against: int,
    has_code_variant: bool | None = None,
) -> int:
    """Conditions of the test: as many as `arms.test_arms` makes.

    Args:
        spec: the run; an alpha of None may equal none of its other strengths.
        num_other_traits: built-in traits whose vectors are controls.
        num_against: vectors given to be compared.
        has_code_variant: whether the published code's variant can be made; the default
            believes the spec.
    """
    n = spec.num_perpendicular
    replicated = "replication" in spec.audits
    arms = 3 + 2 * n + spec.num_random + num_other_traits + num_against
    arms += 2 * n + min(FEW, n) if replicated else 1
    if spec.published_code if has_code_variant is None else has_code_variant:
        arms += 1 + 2 * n
    if "scale" in spec.audits:
        arms += len({*spec.alphas} - {spec.alpha}) * (1 + min(FEW, n))
    return arms


def model_size(
    name: str, *, revision: str = "", trust_remote_code: bool = False
) -> ModelSize:
    """A model's shape from its configuration: no weights are read or made.

    From a local folder, a download that is already there, the table of known models,
    or the hub, in this order, so that nothing waits for a network without need.

    Raises:
        CannotLoadModel: none of them has it.
    """
    source = str(Path(name).expanduser())
    if name in BUILTIN:
        source = str(importlib.resources.files("steergauge") / BUILTIN[name])
    options = {"revision": revision or None, "trust_remote_code": trust_remote_code}
    read = AutoConfig.from_pretrained
    try:
        config = read(source, local_files_only=True, **options)
        return _size_of(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        file = importlib.resources.files("steergauge") / "runs" / "known_models.toml"
        known = tomllib.loads(file.read_text(encoding="utf-8"))
    if name in known:
        return ModelSize(**{k: v for k, v in known[name].items() if k != "source"})
    try:
        config = read(source, **options)
        return _size_of(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise CannotLoadModel(
            f"the size of the model {name} is not known: it has no configuration here, "
            "and none could be fetched.",
            cause="The id or folder is misspelt, the model needs a login or its own "
            "code, or there is no network.",
            remedy="Check the name; download its config.json into a folder and name "
            "the folder, or run where the hub can be reached.",
        ) from error


def measured_speed(dtype: str, *, device: str = "cpu") -> float:
    """FLOPs a second of a large matrix product on this device, in half a second."""
    width = 512 if device == "cpu" else 8192
    a = torch.ones(width, width, dtype=getattr(torch, dtype), device=device)
    float((a @ a)[0, 0])  # The first one also starts the device.
    num, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < 0.5:
        for _ in range(4):
            product = a @ a
        float(product[0, 0])  # Reading a number waits until it is there.
        num += 4
    return num * 2.0 * width**3 / elapsed


def _layer(spec: Spec, inputs: Inputs, size: ModelSize) -> int:
    layer = size.num_layers // 2 if spec.layer is None else spec.layer
    if inputs.given is not None:
        layer = inputs.given.site.layer
    for asked in (layer, plan.read_at(spec, layer)):
        if not 0 <= asked < size.num_layers:
            raise LayerOutOfRange(
                f"layer {asked} was asked for, {spec.model} has {size.num_layers} "
                "blocks.",
                remedy=f"Choose from 0 to {size.num_layers - 1}.",
            )
    return layer


def _stages(inputs: Inputs, layer: int) -> list[_Stage]:
    """The test, the dose curve, the geometry's texts, and each environment's test."""
    spec = inputs.spec
    drawn, added = geometry_texts(inputs)
    tested = _num_test_arms(inputs, layer) + added
    stages = [_Stage(len(inputs.test_prompts), tested, spec.samples)]
    if spec.behaves or spec.alpha is None:
        stages.append(_Stage(len(inputs.dose_prompts), NUM_DOSE_ARMS, spec.samples))
    if drawn:
        stages.append(_Stage(drawn // 2, 2, 1))
    stages += [_Stage(*texts) for texts in reach_texts(inputs)]
    if "environments" not in spec.audits:
        return stages
    n, others = min(FEWEST, spec.num_perpendicular), inputs.environment_pairs
    for name, prompts in inputs.environments.items():
        # v and n v + v_perp of each; drawn anew, those of the run and the target.
        arms = 1 + (1 + len(others)) * (1 + n) + (1 + (name in others)) * n
        stages.append(_Stage(len(prompts), arms, spec.environment_samples))
    return stages


def _num_test_arms(inputs: Inputs, layer: int) -> int:
    """Conditions of the test but for what the geometry adds."""
    spec = inputs.spec
    if not spec.behaves:
        return 2
    return num_test_arms(
        spec,
        num_other_traits=_num_other_traits(inputs),
        num_against=len(inputs.rivals),
        has_code_variant=bool(spec.published_code and inputs.pairs and layer),
    )


def _num_other_traits(inputs: Inputs) -> int:
    ours = inputs.trait is not None and inputs.trait.name in TRAITS
    return len(TRAITS) - 1 if ours and inputs.pairs else 0


def _passes(inputs: Inputs, layer: int, num_layers: int) -> list[tuple[int, float]]:
    """Tokens of the passes over finished texts, and the share of the model of each."""
    spec = inputs.spec
    above = 1 - (layer + 1) / num_layers
    prompt = _prompt_tokens(inputs)
    text = prompt + spec.max_new_tokens
    dose = len(inputs.dose_prompts) * NUM_DOSE_ARMS * spec.samples * text
    own = len(inputs.test_prompts) * spec.samples * text
    flips = spec.num_random // 2 if len(inputs.pairs) >= FEWEST_PAIRS_TO_FLIP else 0
    random = spec.num_random - flips
    turned = min(FEW, spec.num_perpendicular) if "replication" in spec.audits else 0
    named = 1 + _num_other_traits(inputs) + len(inputs.rivals)  # 1 is minus v.
    vectors = named + turned + 2 * spec.num_perpendicular
    held = vectors + min(NUM_RANDOM_SCORED, random)
    if not spec.behaves:
        return [(own, 1.0), (20 * own, above)]
    passes = [(3 * dose, 1.0), (5 * own, 1.0), (held * own, above)]
    if "logits" in spec.audits:
        at_prompts = len(inputs.test_prompts) * prompt
        # v, unsteered and v recomputed; then v and each random direction both ways.
        passes.append(((3 + 2 * (1 + NUM_GAINS)) * at_prompts, 1.0))
        others = vectors + random + 3 * NUM_GAINS
        passes.append((others * at_prompts, above))
    return passes


def _prompt_tokens(inputs: Inputs) -> int:
    prompts = [*inputs.dose_prompts, *inputs.test_prompts]
    prompts += [text for some in inputs.environments.values() for text in some]
    return math.ceil(max(map(len, prompts)) / CHARACTERS_PER_TOKEN) + TEMPLATE_TOKENS


def _num_prefills(spec: Spec, stage: _Stage) -> int:
    """Prompts that are read before decoding: one for all arms, if none touches them."""
    own = scope_named(spec.scope).touches_prefill
    return stage.num_prompts * (stage.num_arms if own else 1)


def _rows_at_once(spec: Spec, stage: _Stage) -> int:
    prompts = min(spec.prompts_per_cell, stage.num_prompts)
    most = spec.batch_size or MOST_ROWS["cpu"]
    return min(most, prompts * stage.num_arms * stage.samples)


def _cache_bytes(spec: Spec, size: ModelSize, num_tokens: int) -> int:
    a_token = 2 * size.num_layers * size.num_kv_heads * size.head_dim
    return a_token * num_tokens * BYTES[spec.dtype]


def _logit_bytes(spec: Spec, size: ModelSize, rows: int) -> int:
    drawn = rows * size.d_vocab * (BYTES[spec.dtype] + 3 * 4)
    texts = spec.prompts_per_cell * spec.samples
    of_a_cell = texts * (spec.max_new_tokens + 1) * size.d_vocab
    scored = min(LOGITS_AT_ONCE, of_a_cell) * (BYTES[spec.dtype] + 4 * 8)
    return max(drawn, scored)


def _size_of(config: Any, *, trust_remote_code: bool) -> ModelSize:
    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, trust_remote_code=trust_remote_code
        )
    head = model.get_output_embeddings()
    num_heads = text.num_attention_heads
    return ModelSize(
        num_layers=text.num_hidden_layers,
        d_model=text.hidden_size,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // num_heads,
        d_vocab=text.vocab_size,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        tied=head is not None and head.weight is model.get_input_embeddings().weight,
    )
