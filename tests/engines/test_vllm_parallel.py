"""vLLM with every weight matrix shared by two processes makes the same texts."""

import pytest
import torch

from steergauge import loading
from steergauge.engines import Serving
from steergauge.engines.vllm import open_vllm
from steergauge.generation import Decoding, generate
from steergauge.intervention import Ablate, Add, Scope
from steergauge.vector import Site, SteeringVector

pytest.importorskip(
    "vllm",
    reason="vLLM is not installed: `make test-vllm` installs and runs these",
    exc_type=ImportError,
)
pytestmark = pytest.mark.filterwarnings("ignore")


def test_two_processes_make_the_local_engines_tokens():
    lm = loading.load(device="cpu")
    generator = torch.Generator().manual_seed(0)
    vector = SteeringVector(torch.randn(lm.d_model, generator=generator), Site(2))
    arms = {f"v {scope}": Add(vector, 2.0, scope) for scope in Scope}
    arms |= {"unsteered": None, "out": Ablate(vector, Scope.ALL, (0, 1, 2, 3, 4))}
    prompts = ["Write a message about the weather.", "Write."]
    serving = Serving(tensor_parallel=2, cache_bytes=2**28)
    source = loading._source("builtin:organism")
    with open_vllm(lm, source, serving=serving) as engine:
        for temperature in (0.0, 1.0):
            how = Decoding(max_new_tokens=12, temperature=temperature, seed=1)
            theirs = engine.generate(prompts, arms, samples=2, decoding=how)
            ours = generate(lm, prompts, arms, samples=2, decoding=how)
            assert theirs == ours
            assert len({text.token_ids for text in ours}) > 4
