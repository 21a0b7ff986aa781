"""Who makes texts: the local model, or a serving program that makes the same ones."""

from collections.abc import Callable
from typing import Any

from steergauge import loading
from steergauge.engines.engine import Engine as Engine
from steergauge.engines.engine import LocalEngine as LocalEngine
from steergauge.engines.vllm import VllmEngine as VllmEngine
from steergauge.engines.vllm import open_vllm as open_vllm
from steergauge.engines.vllm_serving import Serving as Serving
from steergauge.errors import InputError
from steergauge.split import LanguageModel


def _local(lm: LanguageModel, _source: str, **_options: Any) -> Engine:
    return LocalEngine(lm)


def _vllm(lm: LanguageModel, source: str, **options: Any) -> Engine:
    return open_vllm(lm, loading._source(source), **options)


ENGINES: dict[str, Callable[..., Engine]] = {"local": _local, "vllm": _vllm}
"""Every engine, by the name that a run file and the command line use."""


def opened(
    name: str,
    lm: LanguageModel,
    *,
    source: str,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    serving: Serving | None = None,
) -> Engine:
    """The engine of that name, to be closed by the caller.

    Args:
        name: local or vllm.
        lm: the local model.
        source: what `lm` was loaded from, as given to `load`.
        dtype: precision that another engine computes in.
        revision: commit, tag or branch of a Hugging Face id.
        trust_remote_code: run code that comes with the weights.
        serving: what vLLM may take of the machine.

    Raises:
        EngineError: it is not installed, or is not the model that `lm` is.
        InputError: there is no such engine.
    """
    if name not in ENGINES:
        raise InputError(
            f"there is no engine {name!r}.",
            remedy=f"Choose from {', '.join(ENGINES)}.",
        )
    return ENGINES[name](
        lm,
        source,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        serving=serving,
    )
