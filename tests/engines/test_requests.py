"""What a request carries and how many edits it must show: plain data, no vLLM."""

import itertools

import pytest
import torch
from tests import models
from torch import nn

from steergauge.engines.requests import (
    ENTRY,
    Request,
    covered,
    requested,
    salt,
)
from steergauge.engines.vllm_worker import SharedNoise, Steering, planned_step
from steergauge.generation import Arm, Decoding, Noise, draw
from steergauge.intervention import Ablate, Add, Scope, edits
from steergauge.vector import Site, SteeringVector

D = 8


def vector(seed: int = 0, layer: int = 1, d_model: int = D) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector(torch.randn(d_model, generator=generator), Site(layer))


def request(rule, length: int, key: int = 0) -> Request:
    return Request(key, "arm", rule, 0, 0, tuple(range(length)), 0)


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("length", [1, 2, 7])
def test_the_interval_of_a_scope_is_the_scope(scope, length):
    positions = torch.arange(12)
    first, beyond = covered(scope, length)
    inside = (positions >= first) & (positions < beyond)
    meant = scope.covers(positions[None], torch.tensor([length]))[0]
    assert meant.any()
    assert torch.equal(inside, meant)


@pytest.mark.parametrize("scope", Scope)
def test_planned_edits_are_the_covered_positions_that_are_computed(scope):
    rule = Ablate(vector(), scope, layers=(0, 2, 3))
    counts = set()
    for length, num_cached, num_made in itertools.product((1, 5), (0, 3), (1, 2, 6)):
        if num_cached >= length:
            continue
        # The last token is never fed back, and cached positions are not computed.
        computed = torch.arange(num_cached, length + num_made - 1)
        inside = scope.covers(computed[None], torch.tensor([length]))
        planned = request(rule, length).planned(num_cached, num_made)
        assert planned == 3 * int(inside.sum())
        counts.add(planned)
    assert len(counts) > 2
    assert request(None, 5).planned(0, 6) == 0


@pytest.mark.parametrize("sizes", [[10], [4, 6], [1] * 10, [3, 1, 1, 5]])
@pytest.mark.parametrize("scope", Scope)
def test_chunks_cover_the_same_positions_as_one_step(scope, sizes):
    length = 6
    rule = Add(vector(), 1.0, scope)
    entry = request(rule, length).carried({id(rule): 0}, Decoding())[ENTRY]
    seen = []
    done = 0
    for size in sizes:
        # Another request's rows come first, and one of them is in the batch.
        plan = planned_step([{}, entry], [0, 2, 2 + size], [9, done])
        for _, edit in plan.get(1, []):
            seen += [row - 2 + done for row in edit.rows]
        done += size
    meant = scope.covers(torch.arange(10)[None], torch.tensor([length]))[0]
    assert seen == meant.nonzero().squeeze(-1).tolist()


def test_a_salt_tells_apart_everything_that_a_cached_prefix_depends_on():
    rules = [
        Add(vector()),
        Add(vector(), 2.0),
        Add(vector(seed=1)),
        Add(vector(layer=2)),
        Ablate(vector(), Scope.GENERATING),
        Ablate(vector(), Scope.GENERATING, (1, 2)),
        *(Add(vector(), 1.0, scope) for scope in Scope if scope != Scope.GENERATING),
    ]
    salts = [salt(rule, 5) for rule in rules]
    assert len(set(salts)) == len(rules)
    assert salt(Add(vector()), 5) == salts[0], "equal rules share their prefixes"


@pytest.mark.parametrize("scope", Scope)
def test_a_salt_depends_on_the_prompts_length_where_the_scope_does(scope):
    # Response tokens of one request may be prompt tokens of a longer one.
    rule = Add(vector(), 1.0, scope)
    assert (salt(rule, 5) == salt(rule, 6)) == (scope is Scope.ALL)


def test_alpha_0_carries_no_steering():
    lm = models.tiny("llama")
    zero, one = (Add(vector(d_model=lm.d_model), alpha) for alpha in (0.0, 1.0))
    arms = {"zero": Arm(zero), "one": Arm(one)}
    first, second = requested(lm, ["ab"], arms, samples=1, seed=0, chat=None)
    assert "steer" not in first.carried({}, Decoding())[ENTRY]
    assert "steer" in second.carried({id(one): 0}, Decoding())[ENTRY]
    assert first.noise == second.noise


class Block(nn.Module):
    """Returns its stream in two parts, as vLLM's layers do."""

    def forward(self, hidden, residual):
        return hidden * 1.0, residual + 1.0


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([Block() for _ in range(3)])
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, hidden, residual, positions):
        for block in self.model.layers:
            hidden, residual = block(hidden, residual)
        return hidden, residual


class Runner:
    """As much of vLLM's model runner as the hooks look at."""

    def __init__(self, requests, steps, starts, computed) -> None:
        made = Model()
        self.get_model = lambda: made
        self.query_start_loc = type("Q", (), {"np": torch.tensor(starts).numpy()})
        self.input_batch = type("B", (), {})
        self.input_batch.num_reqs = len(requests)
        self.input_batch.req_ids = [f"{r.key}-suffix" for r in requests]
        self.input_batch.num_computed_tokens_cpu = torch.tensor(computed).numpy()
        self.requests = {
            f"{r.key}-suffix": type(
                "R",
                (),
                {
                    "sampling_params": type(
                        "P", (), {"extra_args": r.carried(steps, Decoding())}
                    )
                },
            )
            for r in requests
        }


def session():
    """Three requests in one step: a prompt, a decoding step, an unsteered prompt."""
    rules = [
        Add(vector(), 2.0, Scope.PROMPT),
        Ablate(vector(seed=1), Scope.RESPONSE, (1, 2)),
        None,
    ]
    requests = [request(rule, 4, key=key) for key, rule in enumerate(rules)]
    steps = {id(rules[0]): 0, id(rules[1]): 1}
    runner = Runner(requests, steps, starts=[0, 4, 5, 9], computed=[0, 6, 0])
    table = torch.stack([rules[0].displacement, rules[1].direction])
    positions = torch.tensor([0, 1, 2, 3, 6, 0, 1, 2, 3])
    return rules, runner, table, positions


def test_hooks_change_the_stream_as_the_local_rule_does_and_count_it():
    rules, runner, table, positions = session()
    generator = torch.Generator().manual_seed(0)
    hidden, residual = (torch.randn(9, D, generator=generator) for _ in range(2))
    steering = Steering(runner, table)
    got = sum(runner.get_model()(hidden, residual, positions=positions))
    assert not steering.fault
    assert steering.edits == {0: 4, 1: 2}
    stream = (hidden + residual)[:, None]
    one = torch.ones(9, 1, dtype=torch.bool)
    rows = [rules[0]] * 4 + [rules[1]] + [None] * 4
    edit = edits(rows, positions[:, None], one, torch.full((9,), 4))
    for layer in range(3):
        stream = edit.get(layer, lambda h: h)(stream + 1)
    assert (got - hidden - residual - 3).abs().max() > 1
    assert torch.allclose(got, stream[:, 0], atol=1e-6)


def test_nothing_is_left_when_the_hooks_are_removed():
    _, runner, table, positions = session()
    Steering(runner, table).remove()
    stream = torch.zeros(9, D)
    assert torch.equal(
        sum(runner.get_model()(stream, stream, positions=positions)), stream + 3
    )


def test_a_map_of_rows_that_the_positions_contradict_is_a_fault():
    _, runner, table, positions = session()
    steering = Steering(runner, table)
    stream = torch.zeros(9, D)
    runner.get_model()(stream, stream, positions=positions.flip(0))
    assert "row 0 is position 3, not 0" in steering.fault


class Direction:
    def __init__(self, name: str) -> None:
        self.name = name


def added(row: int, key: int, noise: int, how: Decoding, made: list[int]):
    entry = {"key": key, "noise": noise, "temperature": how.temperature}
    entry |= {"top_k": how.top_k, "top_p": how.top_p}
    parameters = type("P", (), {"extra_args": {ENTRY: entry}})
    return row, parameters, None, made


def update(added=(), removed=(), moved=()):
    return type("U", (), {"added": added, "removed": removed, "moved": moved})


def test_the_processor_draws_what_the_local_engine_draws_as_requests_come_and_move():
    how = Decoding(temperature=0.8, top_k=30, top_p=0.95)
    processor = SharedNoise(None, torch.device("cpu"), False)
    made = {key: [0] * steps for key, steps in ((7, 0), (8, 3), (9, 3))}
    noise = {7: 2**62 + 5, 8: 11, 9: 11}
    came = [added(row, key, noise[key], how, made[key]) for row, key in enumerate(made)]
    processor.update_state(update(added=came))
    processor.update_state(update(moved=[(0, 2, Direction("SWAP"))]))
    processor.update_state(update(removed=[1], moved=[(2, 1, Direction("ONE"))]))
    processor.update_state(None)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 500, generator=generator)
    drawn = processor.apply(logits.clone()).argmax(-1)
    for row, key in enumerate((9, 7)):
        own = Noise([noise[key]], logits.device)
        of_step = own.of(torch.tensor([0]), len(made[key]), 500)
        assert drawn[row] == draw(logits[row : row + 1], how, of_step)[0]
    assert (drawn != logits.argmax(-1)).all()
    assert not processor.broken


def test_the_processor_leaves_greedy_rows_alone_and_reports_broken_ones():
    processor = SharedNoise(None, torch.device("cpu"), False)
    parameters = type("P", (), {"extra_args": {ENTRY: {"key": 5}}})
    processor.update_state(update(added=[(0, parameters, None, [])]))
    logits = torch.tensor([[0.0, float("nan")], [1.0, 2.0]])
    after = processor.apply(logits.clone())
    assert torch.equal(after[1], logits[1])
    assert processor.broken == {5}
