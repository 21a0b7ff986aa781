"""Batches are as large as memory holds, and smaller when it did not after all."""

import pytest
import torch
from tests.models import tiny
from tests.test_generation import MANY_ENDS, PROMPTS, SAMPLED, add, passes, tokens

from steergauge import batching, generation
from steergauge.batching import (
    bytes_of_a_row,
    free_bytes,
    ran_out_of_memory,
    rows_that_fit,
)
from steergauge.errors import InputError
from steergauge.generation import generate
from steergauge.intervention import Scope

ARMS = {"plain": None, "one": add(1)}


def short_of_memory(monkeypatch, *, most: int, error: Exception) -> list[int]:
    """Decoding fails half-way for more rows than `most`; the batches tried."""
    tried: list[int] = []
    whole = generation.decode

    def decode(lm, rows, *args, ended):
        tried.append(len(rows))
        found = whole(lm, rows, *args, ended=ended)  # All is reported, then lost.
        if len(rows) > most:
            raise error
        return found

    monkeypatch.setattr(generation, "decode", decode)
    return tried


@pytest.mark.parametrize("most", [5, 1])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["cuda", "cpu", "posix"],
)
def test_a_batch_that_memory_refuses_is_halved_and_nothing_is_lost(
    monkeypatch, most, error
):
    lm = tiny("llama", ends=MANY_ENDS)
    whole = generate(lm, PROMPTS, ARMS, samples=3, decoding=SAMPLED)
    tried = short_of_memory(monkeypatch, most=most, error=error)
    counts: list[int] = []
    found = generate(
        lm, PROMPTS, ARMS, samples=3, decoding=SAMPLED, progress=counts.append
    )
    assert tokens(found) == tokens(whole)
    # Not vacuous: it was tried at full size, and then in halves that stay small.
    assert tried[: 3 if most == 5 else 5] == [24, 12, 6, 3, 1][: 3 if most == 5 else 5]
    assert max(tried[5:]) <= most
    # Lost batches had reported their responses; no response counts twice.
    assert sum(counts) == len(found)
    assert min(counts) > 0


def test_one_row_that_does_not_fit_and_other_errors_are_not_hidden(monkeypatch):
    lm = tiny("llama")
    tried = short_of_memory(monkeypatch, most=0, error=torch.OutOfMemoryError("no"))
    with pytest.raises(torch.OutOfMemoryError):
        generate(lm, PROMPTS, ARMS, decoding=SAMPLED)
    assert tried[-1] == 1
    monkeypatch.undo()
    other = RuntimeError("shapes cannot be multiplied")
    tried = short_of_memory(monkeypatch, most=0, error=other)
    with pytest.raises(RuntimeError, match="multiplied"):
        generate(lm, PROMPTS, ARMS, decoding=SAMPLED)
    assert len(tried) == 1


def test_what_the_allocators_say_is_understood():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60)
    assert ran_out_of_memory(refused.value)
    assert not ran_out_of_memory(RuntimeError("index out of range"))
    assert not ran_out_of_memory(ValueError("not enough memory"))


def test_rows_are_those_that_half_the_free_memory_holds(monkeypatch):
    lm = tiny("llama")
    # 2 (keys, values) x 4 blocks x 2 key heads x 12 wide x 30 tokens x 4 bytes, then
    # 8 bytes a logit and 24 numbers a width of the stream.
    a_row = 2 * 4 * 2 * 12 * 30 * 4 + 8 * lm.d_vocab + 24 * lm.d_model * 4
    assert bytes_of_a_row(lm, 30) == a_row
    # Besides, those of the prompts that are read together, or of one longer prompt.
    monkeypatch.setattr(batching, "PREFILL_TOKENS", {"cpu": 100})
    for prompt, num_read in ((7, 100), (300, 300)):
        besides = 24 * lm.d_model * 4 * num_read
        for rows, expected in ((1, 1), (7, 4), (8, 8), (15, 8), (100_000, 1024)):
            free = 2 * (rows * a_row + besides)
            monkeypatch.setattr(batching, "free_bytes", lambda _, free=free: free)
            assert rows_that_fit(lm, 30, prompt=prompt) == expected
            monkeypatch.setattr(batching, "free_bytes", lambda _, free=free: 3 * free)
            assert rows_that_fit(lm, 30, prompt=prompt, share=1 / 3) == expected
    monkeypatch.setattr(batching, "free_bytes", lambda _: 10)
    assert rows_that_fit(lm, 30) == 1
    monkeypatch.setattr(batching, "free_bytes", lambda _: None)
    assert rows_that_fit(lm, 30) == 1024


def test_free_memory_is_some_of_the_machines():
    free = free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(InputError, match="share"):
        generate(tiny("llama"), PROMPTS, ARMS, memory_share=share)


def test_a_share_of_the_memory_reaches_the_batches(monkeypatch):
    seen: list[float] = []

    def rows(*_args, share: float, **_how) -> int:
        seen.append(share)
        return 4

    monkeypatch.setattr(generation, "rows_that_fit", rows)
    generate(tiny("llama"), PROMPTS, ARMS, decoding=SAMPLED, memory_share=0.25)
    assert seen == [0.25]


def test_a_containers_limit_counts_and_what_it_read_from_files_does_not(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(batching, "CGROUP", tmp_path)
    free = free_bytes(torch.device("cpu"))
    if free is None:
        pytest.skip("nothing tells the free memory of this machine")
    told = {"max": "5000", "current": "3000", "stat": "anon 9\ninactive_file 100\n"}
    for name, text in told.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert free_bytes(torch.device("cpu")) == 5000 - 3000 + 100
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) > 2**20


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_prompts_are_read_in_parts_and_their_tokens_stay(monkeypatch, family):
    lm = tiny(family, ends=MANY_ENDS)
    arms = {**ARMS, "all": add(2, -2.0, Scope.ALL)}
    whole = tokens(generate(lm, PROMPTS, arms, samples=2, decoding=SAMPLED))
    monkeypatch.setattr(batching, "PREFILL_TOKENS", {"cpu": 100})
    with passes(lm) as shapes:
        found = tokens(generate(lm, PROMPTS, arms, samples=2, decoding=SAMPLED))
    assert found == whole
    # Not vacuous: eight prefixes, three at a time.
    width = max(shape[1] for shape in shapes)
    read = [shape[0] for shape in shapes if shape[1] == width]
    assert sum(read) == 8
    assert set(read[:-1]) == {100 // width} == {read[0]}
    assert len(read) > 1


def test_unasked_for_batches_follow_memory(monkeypatch):
    lm = tiny("llama", ends=())
    monkeypatch.setattr(generation, "rows_that_fit", lambda *_args, **_how: 4)
    with passes(lm) as shapes:
        generate(lm, PROMPTS, ARMS, samples=2, decoding=SAMPLED)
    assert {shape[0] for shape in shapes if shape[1] == 1} <= {1, 2, 4}
    assert max(shape[0] for shape in shapes) == 4
