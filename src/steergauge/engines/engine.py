"""Who makes texts: the local model, or another program that gives the same ones.

Every engine has the same interface, order and random numbers as `generation.generate`,
so that an audit does not know which one it has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from steergauge.generation import Arm, Decoding, Sample, generate
from steergauge.intervention import Intervention
from steergauge.split import LanguageModel


@runtime_checkable
class Engine(Protocol):
    """Makes texts; see `generation.generate` for every argument."""

    def generate(
        self,
        prompts: Sequence[str],
        arms: Mapping[str, Arm | Intervention | None],
        *,
        samples: int = 1,
        decoding: Decoding | None = None,
        chat: bool | None = None,
        batch_size: int | None = None,
        other_model: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> list[Sample]:
        """`samples` responses to every prompt under every arm."""
        ...

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """The local model itself.

    Attributes:
        lm: the model.
        memory_share: of the machine's memory that is its own, above 0 and at most 1;
            see `generation.generate`.
    """

    lm: LanguageModel
    memory_share: float = 1.0

    def generate(
        self,
        prompts: Sequence[str],
        arms: Mapping[str, Arm | Intervention | None],
        *,
        samples: int = 1,
        decoding: Decoding | None = None,
        chat: bool | None = None,
        batch_size: int | None = None,
        other_model: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> list[Sample]:
        """As `generation.generate`."""
        return generate(
            self.lm,
            prompts,
            arms,
            samples=samples,
            decoding=decoding,
            chat=chat,
            batch_size=batch_size,
            other_model=other_model,
            progress=progress,
            memory_share=self.memory_share,
        )

    def close(self) -> None:
        """Nothing: the model is the caller's."""
