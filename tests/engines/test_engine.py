"""Engines by name, and the local one; what needs vLLM is in test_vllm.py."""

import sys

import pytest
import torch
from tests import models

from steergauge.engines import Engine, LocalEngine, opened
from steergauge.errors import EngineError, InputError
from steergauge.generation import Decoding, generate
from steergauge.intervention import Add
from steergauge.vector import Site, SteeringVector


def test_the_local_engine_is_generate():
    lm = models.tiny("llama")
    vector = SteeringVector(torch.ones(lm.d_model), Site(1))
    arms = {"unsteered": None, "v": Add(vector, 1.0)}
    how = Decoding(max_new_tokens=6, seed=4)
    with_engine = opened("local", lm, source="anything")
    assert isinstance(with_engine, Engine)
    texts = with_engine.generate(["ab", "cde"], arms, samples=2, decoding=how)
    assert texts == generate(lm, ["ab", "cde"], arms, samples=2, decoding=how)
    assert len({text.token_ids for text in texts}) > 4
    with_engine.close()
    assert isinstance(LocalEngine(lm), Engine)


def test_an_unknown_engine_is_refused_by_name():
    with pytest.raises(InputError, match=r"no engine 'vlm'.*Choose from local, vllm"):
        opened("vlm", models.tiny("llama"), source="x")


def test_a_missing_vllm_is_an_error_with_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineError, match=r"cannot be imported.*docs/vllm\.md"):
        opened("vllm", models.tiny("llama"), source="builtin:organism")
