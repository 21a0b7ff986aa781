"""The log and the clock of a benchmark that nobody watches.

What is measured is printed as soon as it is known and kept for the end; a stage that
takes too long or fails ends alone.
"""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from geometry import timed


class OutOfTime(BaseException):
    """A stage's time is used up; no `except Exception` on the way may hold it."""


@dataclass(slots=True)
class Log:
    """What was measured so far, and how much time is left."""

    device: str
    seconds: float
    model: str = ""
    start: float = field(default_factory=time.monotonic)
    rates: dict[str, float] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds until the whole run has to be over."""
        return self.start + self.seconds - time.monotonic()

    def add(self, name: str, **facts: Any) -> None:
        """Keep what is known, and print it."""
        self.records.append({"model": self.model, "name": name} | facts)
        told = [f"{key.replace('_', ' ')} {_short(facts[key])}" for key in facts]
        passed = time.monotonic() - self.start
        subject = f"{self.model} {name}".strip()
        print(f"[{passed:5.1f} s] {subject}: {', '.join(told)}", flush=True)

    def measured(
        self,
        name: str,
        act: Callable[[], Any],
        *,
        tokens: float,
        bounds: Mapping[str, float] | None = None,
        warm: bool = True,
    ) -> None:
        """Run `act` (twice if it warms up first), and say what it took.

        Args:
            name: of the measurement.
            act: the work.
            tokens: how many it treats.
            bounds: least seconds by what bounds them; shares of the time are told.
            warm: whether a first run comes before the one that counts.
        """
        first = timed(act)[1] if warm else None
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        _, seconds = timed(act)
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else None
        shares = {f"of {by}": least / seconds for by, least in (bounds or {}).items()}
        facts = {"tokens_per_s": tokens / seconds, "seconds": seconds} | shares
        if first is not None:
            facts["first_run"] = first
        if peak is not None:
            facts["peak_gb"] = peak / 1e9
        self.add(name, **facts)

    def speed(self, name: str) -> float | None:
        """Tokens a second of the model's last measurement of that name, if it has one.

        Args:
            name: what the measurement's name begins with.
        """
        found = [
            record["tokens_per_s"]
            for record in self.records
            if record["model"] == self.model
            and record["name"].startswith(name)
            and "tokens_per_s" in record
        ]
        return found[-1] if found else None

    def stage(self, name: str, most: float, act: Callable[[], None]) -> None:
        """Run `act` for `most` seconds at most; a failure ends this stage only."""
        if self.left < min(5, most / 4):
            return self.add(name, skipped="no time left")
        before = time.monotonic()
        try:
            with alarm(min(most, self.left)):
                act()
        except OutOfTime:
            after = time.monotonic() - before
            self.add(name, broken_off=f"after {after:.0f} s, its time")
        except Exception as error:  # The next stage may do.
            first_line = next(iter(str(error).splitlines()), "")
            self.add(name, failed=f"{type(error).__name__}: {first_line}")
        return None


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """OutOfTime is raised in the main thread after so many seconds."""

    def ring(_number: int, _frame: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
