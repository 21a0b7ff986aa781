"""Opening vLLM: what it may take of the machine, and what our hooks need of it.

Three of its public extension points are used: a worker extension (hooks and counts), a
logits processor (common random numbers) and cache salts. vLLM is imported here only,
and only when an engine is opened.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from steergauge.errors import EngineError

WORKER = "steergauge.engines.vllm_worker"

REQUIRED = {"VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Settings of vLLM that the hooks need: the second model runner hides the batch."""

DEFAULTS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Settings of vLLM that hold unless the user has set them."""

CPU_CACHE = 2**30
"""Bytes for keys and values on a CPU, where vLLM would take most of the memory."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What vLLM may take of the machine.

    Attributes:
        tensor_parallel: GPUs, or processes on a CPU, that share every weight matrix.
        gpu_memory: share of a GPU's memory that vLLM takes in all.
        cache_bytes: room for keys and values; None means what is left of
            `gpu_memory`, and 1 GiB on a CPU.
        max_model_len: longest prompt and response together, in tokens; None means the
            model's own limit.
        max_batched_tokens: most tokens of one step; longer prompts go in chunks.
        max_rows: most requests of one step.
        block_size: tokens in a block of the cache; None means vLLM's choice.
        prefix_cache: reuse the keys and values of equal prefixes.
    """

    tensor_parallel: int = 1
    gpu_memory: float = 0.9
    cache_bytes: int | None = None
    max_model_len: int | None = None
    max_batched_tokens: int | None = None
    max_rows: int = 256
    block_size: int | None = None
    prefix_cache: bool = True


def served_model(
    source: str,
    *,
    dtype: str,
    revision: str | None,
    trust_remote_code: bool,
    serving: Serving,
) -> Any:
    """The object of vLLM itself, with our extensions in its workers.

    Args:
        source: folder or Hugging Face id.
        dtype: precision that it computes in.
        revision: commit, tag or branch of a Hugging Face id.
        trust_remote_code: run code that comes with the weights.
        serving: what it may take of the machine.

    Raises:
        EngineError: vLLM is not installed or cannot open the model.
    """
    with _environment():
        vllm = library()
        try:
            return vllm.LLM(
                source,
                revision=revision,
                trust_remote_code=trust_remote_code,
                dtype=dtype,
                **_options(serving),
            )
        except Exception as error:
            importlib.import_module(
                "vllm.distributed.parallel_state"
            ).cleanup_dist_env_and_memory()
            raise _cannot_open(source, error) from error


def _options(take: Serving) -> dict[str, Any]:
    """What vLLM calls what it may take, and what the hooks need of it."""
    on_cpu = importlib.import_module("vllm.platforms").current_platform.is_cpu()
    room = take.cache_bytes
    asked = {
        "kv_cache_memory_bytes": CPU_CACHE if room is None and on_cpu else room,
        "max_model_len": take.max_model_len,
        "max_num_batched_tokens": take.max_batched_tokens,
        "block_size": take.block_size,
    }
    return {name: value for name, value in asked.items() if value is not None} | {
        "tensor_parallel_size": take.tensor_parallel,
        "gpu_memory_utilization": take.gpu_memory,
        "max_num_seqs": min(take.max_rows, take.max_batched_tokens or take.max_rows),
        "enable_prefix_caching": take.prefix_cache,
        "worker_extension_cls": f"{WORKER}.WorkerExtension",
        "logits_processors": [f"{WORKER}:SharedNoise"],
        # Hooks never fire in a compiled model, and nothing would say so.
        "enforce_eager": True,
        # With it a step is prepared before the last one's tokens are known.
        "async_scheduling": False,
        # Prompts come as token ids and responses go as such.
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
    }


@contextmanager
def _environment() -> Iterator[None]:
    """Settings of vLLM while it is opened: it has no other way to be told them."""
    wanted = {name: os.environ.get(name, value) for name, value in DEFAULTS.items()}
    wanted |= REQUIRED
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def library() -> Any:
    """The package vLLM.

    Raises:
        EngineError: it is not installed.
    """
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise EngineError(
            f"vLLM cannot be imported: {error}.",
            cause="It is not installed: it comes with its own build of PyTorch, so it "
            "is no ordinary dependency.",
            remedy="Install it in an environment of its own, as docs/vllm.md says, or "
            "use the local engine.",
        ) from error


def _cannot_open(source: str, error: Exception) -> EngineError:
    lines = str(error).strip().splitlines()
    return EngineError(
        f"vLLM could not open {source}: {lines[0] if lines else type(error).__name__}",
        cause="vLLM does not know the architecture or the precision, or there is too "
        "little memory.",
        remedy="Give it less to do (max_model_len, gpu_memory), or use the local "
        "engine.",
    )
