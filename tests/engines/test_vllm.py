"""vLLM makes the local model's texts: greedy, sampled, chunked, cached, mixed.

Two engines are opened for the whole file, which takes about 10 s each: a random Llama
with small blocks and chunks and the prefix cache, and the reference model without one.
In float32 vLLM's logits differ from ours by rounding, about 1e-5; a token would only
differ where the two likeliest are closer than that.
"""

import pytest
import torch
from tests import models
from transformers import AutoConfig, AutoModelForCausalLM

from steergauge import engines, loading
from steergauge.engines import Serving, VllmEngine
from steergauge.engines import vllm as engine_module
from steergauge.engines.requests import Request
from steergauge.engines.vllm import open_vllm
from steergauge.engines.vllm_proof import (
    our_log_probabilities,
    their_log_probabilities,
)
from steergauge.errors import EngineError, InputError
from steergauge.generation import Decoding, generate
from steergauge.intervention import Ablate, Add, Scope
from steergauge.vector import Site, SteeringVector

pytest.importorskip(
    "vllm",
    reason="vLLM is not installed: `make test-vllm` installs and runs these",
    exc_type=ImportError,
)
# vLLM and what it imports warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

CHUNK = 48
PROMPTS = [
    "Write a message about the weather.",
    "Tell me about the kite museum, the old harbour and the garden behind the station, "
    "and say what a person could do there on a rainy day in autumn with two children, "
    "a dog and no umbrella, before the last bus leaves for the village on the hill.",
    "Write.",
]
GREEDY = Decoding(max_new_tokens=20, temperature=0)
SAMPLED = Decoding(max_new_tokens=20, seed=3)
NARROW = Decoding(max_new_tokens=20, seed=3, temperature=0.7, top_k=20, top_p=0.9)
NEAR = 2e-5
"""Nats: twice the rounding that `prove` sees on the reference model (1e-5)."""


@pytest.fixture(scope="module")
def random_llama(tmp_path_factory):
    """A Llama with random weights, blocks of 32, chunks of 48 tokens, a full cache.

    25 blocks of 80 KB hold 800 tokens, fewer than 16 rows need: some are preempted.
    """
    folder = tmp_path_factory.mktemp("llama")
    weights = loading._source("builtin:organism")
    config = AutoConfig.from_pretrained(weights, dtype="float32")
    config.num_key_value_heads = 2
    model = AutoModelForCausalLM.from_config(config)
    models.reinitialised(model).float().save_pretrained(folder)
    tokenizer = loading.load(device="cpu").tokenizer
    tokenizer.save_pretrained(folder)
    lm = loading.load(str(folder), device="cpu")
    serving = Serving(
        block_size=32, max_batched_tokens=CHUNK, max_rows=16, cache_bytes=2**21
    )
    with open_vllm(lm, str(folder), serving=serving) as engine:
        yield engine


@pytest.fixture(scope="module")
def organism():
    """The reference model, without a prefix cache."""
    lm = loading.load(device="cpu")
    found = engines.opened(
        "vllm", lm, source="builtin:organism", serving=Serving(prefix_cache=False)
    )
    yield found
    found.close()


@pytest.fixture(params=["random_llama", "organism"])
def engine(request) -> VllmEngine:
    return request.getfixturevalue(request.param)


def vector(engine: VllmEngine, layer: int, seed: int = 0) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(engine.lm.d_model, generator=generator)
    return SteeringVector(direction, Site(layer))


def mixed_arms(engine: VllmEngine):
    """Different vectors, layers, strengths and scopes, ablation, and unsteered."""
    first, second = vector(engine, 1), vector(engine, 3, seed=1)
    added = {f"1 {scope}": Add(first, 1.5, scope) for scope in Scope}
    taken = {f"3 {scope}": Add(second, -2.0, scope) for scope in Scope}
    out = {f"out {scope}": Ablate(first, scope, (0, 1, 2, 3)) for scope in Scope}
    zero = {"unsteered": None, "zero": Add(first, 0.0)}
    return zero | added | taken | out


def gap(engine: VllmEngine, requests: list[Request]) -> float:
    """Largest difference of a response token's log-probability, in nats."""
    made = engine._served(requests, GREEDY, {"logprobs": 0}, None)
    worst = 0.0
    for request in requests:
        response = made[request.key].outputs[0]
        ids = [*request.prompt_ids, *response.token_ids]
        ours = our_log_probabilities(
            engine.lm, ids, len(request.prompt_ids), request.intervention
        )[-len(response.token_ids) :]
        tables = zip(response.logprobs, response.token_ids, strict=True)
        theirs = torch.tensor([table[token].logprob for table, token in tables])
        worst = max(worst, float((ours - theirs).abs().max()))
    return worst


def encoded(engine: VllmEngine, prompt: str) -> tuple[int, ...]:
    return tuple(engine.lm.tokenizer(prompt)["input_ids"])


@pytest.mark.parametrize("how", [GREEDY, SAMPLED, NARROW], ids=["greedy", "all", "top"])
def test_every_token_of_a_mixed_batch_is_the_local_engines(engine, how):
    arms = mixed_arms(engine)
    finished = []
    theirs = engine.generate(
        PROMPTS, arms, samples=2, decoding=how, progress=finished.append
    )
    ours = generate(engine.lm, PROMPTS, arms, samples=2, decoding=how)
    assert theirs == ours
    assert sum(finished) == len(ours)
    # Not vacuous: the arms differ from each other, and samples where there is chance.
    per_arm = {arm: tuple(t.token_ids for t in ours if t.arm == arm) for arm in arms}
    assert len(set(per_arm.values())) > len(arms) // 2
    assert per_arm["unsteered"] == per_arm["zero"]


def test_log_probabilities_are_the_local_models(engine):
    rules = mixed_arms(engine)
    requests = [
        Request(key, name, None if name == "zero" else rule, 0, 0, ids, 0)
        for key, (name, rule, ids) in enumerate(
            (name, rule, encoded(engine, prompt))
            for name, rule in rules.items()
            for prompt in PROMPTS
        )
    ]
    assert gap(engine, requests) < NEAR


def test_a_prompt_longer_than_a_chunk_is_steered_throughout(random_llama):
    ids = encoded(random_llama, PROMPTS[1])
    assert len(ids) > CHUNK
    rules = [Add(vector(random_llama, 2), 3.0, scope) for scope in Scope]
    requests = [Request(key, "v", rule, 0, 0, ids, 0) for key, rule in enumerate(rules)]
    assert gap(random_llama, requests) < NEAR


def test_a_preempted_request_is_steered_again_from_its_start(random_llama, monkeypatch):
    seen = []
    check = engine_module._check

    def noted(report, requests, made):
        for request in requests:
            response = made[request.key].outputs[0].token_ids
            cached = made[request.key].num_cached_tokens
            planned = request.planned(cached, len(response))
            seen.append(report["edits"][request.key] - planned)
        check(report, requests, made)

    monkeypatch.setattr(engine_module, "_check", noted)
    arms = {"v": Add(vector(random_llama, 2), 2.0, Scope.ALL)}
    how = Decoding(max_new_tokens=90, seed=5)
    prompts = [f"{PROMPTS[1]} Tell it in {num} words." for num in range(16)]
    theirs = random_llama.generate(prompts, arms, decoding=how)
    assert theirs == generate(random_llama.lm, prompts, arms, decoding=how)
    assert min(seen) == 0
    assert max(seen) > 0, "some were preempted, and counted again"


def test_rules_never_share_the_prefixes_of_another(random_llama):
    ids = encoded(random_llama, PROMPTS[1] + " Say it twice.")
    rules = [
        None,
        Add(vector(random_llama, 0), 3.0, Scope.ALL),
        Add(vector(random_llama, 0), -3.0, Scope.PROMPT),
        Ablate(vector(random_llama, 0), Scope.ALL),
    ]
    requests = [
        [Request(0, "v", rule, 0, 0, ids, 0)] for rule in [*rules, *reversed(rules)]
    ]
    assert max(gap(random_llama, request) for request in requests) < NEAR
    # And each does reuse its own.
    made = random_llama._served(requests[1], GREEDY, {}, None)
    assert made[0].num_cached_tokens >= 32


def test_without_a_salt_a_prefix_of_another_rule_is_reused(random_llama, monkeypatch):
    monkeypatch.setattr(engine_module, "salt", lambda _rule, _length: "one for all")
    ids = encoded(random_llama, PROMPTS[1] + " Say it three times.")
    rules = [Add(vector(random_llama, 0), alpha, Scope.ALL) for alpha in (3.0, -3.0)]
    gaps = [gap(random_llama, [Request(0, "v", rule, 0, 0, ids, 0)]) for rule in rules]
    assert gaps[0] < NEAR
    assert gaps[1] > 1000 * NEAR


@pytest.mark.parametrize("scope", Scope)
def test_a_response_is_not_reused_as_a_prompt_where_the_scope_forbids_it(
    random_llama, scope
):
    ids = encoded(random_llama, PROMPTS[1] + f" In the scope {scope}.")
    rule = Add(vector(random_llama, 0), 3.0, scope)
    first = [Request(0, "v", rule, 0, 0, ids, 0)]
    how = Decoding(max_new_tokens=70, temperature=0)
    made = random_llama._served(first, how, {}, None)[0].outputs[0].token_ids
    assert len(made) > 40, "at least one block of generated tokens is full"
    longer = Request(0, "v", rule, 0, 0, (*ids, *made[:66]), 0)
    assert gap(random_llama, [longer]) < NEAR


def test_unsteered_rows_are_bitwise_the_same_beside_steered_ones(engine):
    ids = encoded(engine, PROMPTS[0])
    rule = Add(vector(engine, 1), 4.0, Scope.ALL)
    found = []
    # Prompt log-probabilities keep the prefix cache out: the same batches each time.
    extra = {"logprobs": 0, "prompt_logprobs": 0}
    for beside in (None, rule):
        requests = [
            Request(key, "v", given, 0, 0, ids, 0)
            for key, given in enumerate((None, beside))
        ]
        made = engine._served(requests, GREEDY, extra, None)
        found.append([their_log_probabilities(made[k]) for k in (0, 1)])
    (alone, same), (mixed, steered) = found
    assert torch.equal(alone[0], mixed[0])
    assert alone[1] == mixed[1]
    assert not torch.equal(same[0], steered[0])


def test_hooks_that_do_not_fire_are_an_error(organism, monkeypatch):
    stepped = VllmEngine._stepped

    def unhooked(self, *args):
        self.llm.collective_rpc("steergauge_unhook")
        return stepped(self, *args)

    monkeypatch.setattr(VllmEngine, "_stepped", unhooked)
    arms = {"v": Add(vector(organism, 1), 1.0)}
    with pytest.raises(EngineError, match=r"arm 'v'.* \d+ edits .*planned, 0 were"):
        organism.generate(PROMPTS[:1], arms, decoding=GREEDY)
    monkeypatch.undo()
    assert organism.generate(PROMPTS[:1], arms, decoding=GREEDY)


def test_an_interrupted_call_leaves_nothing_behind(organism):
    def interrupt(_finished: int) -> None:
        raise KeyboardInterrupt

    arms = {"v": Add(vector(organism, 1), 1.0)}
    short = Decoding(max_new_tokens=1, temperature=0)
    with pytest.raises(KeyboardInterrupt):
        organism.generate(PROMPTS * 200, arms, decoding=short, progress=interrupt)
    assert not organism.llm.llm_engine.has_unfinished_requests()
    theirs = organism.generate(PROMPTS, arms, decoding=SAMPLED)
    assert theirs == generate(organism.lm, PROMPTS, arms, decoding=SAMPLED)


def test_other_weights_are_refused(organism, random_llama):
    mixed_up = VllmEngine(organism.lm, random_llama.llm, "float32")
    with pytest.raises(EngineError, match=r"not the local model.*unsteered.*tolerance"):
        mixed_up.prove()


def test_another_number_of_layers_is_refused(organism):
    shallow = VllmEngine(models.tiny("llama"), organism.llm, "float32")
    with pytest.raises(EngineError, match=r"5 decoder layers in vLLM .* has 4"):
        shallow.generate(["ab"], {"v": Add(vector(shallow, 1), 1.0)}, decoding=GREEDY)


def test_a_response_that_does_not_fit_is_refused(organism):
    long = Decoding(max_new_tokens=256)
    with pytest.raises(InputError, match=r"may have 256; vLLM was opened for 256"):
        organism.generate(PROMPTS[:1], {"unsteered": None}, decoding=long)
