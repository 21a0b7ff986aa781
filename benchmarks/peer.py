"""Another library at work in an environment of its own, a turn whenever it is asked.

`peers/serve.py` is the other side. A `Peer` loads a model once; `turn` has it work and
waits, so that this process and several peers take turns on one machine, and a peer that
is not asked does nothing.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from steergauge.prompts import Text, uses_chat
from steergauge.split import LanguageModel

ROOT = Path(__file__).parents[1]
"""Where the environments are, `.venv-peers-*`."""

ENVIRONMENTS = {
    "steering_vectors": "a",
    "repeng": "b",
    "pyvene": "b",
    "nnterp": "b",
    "nnsight": "c",
}
"""Which environment holds a library; its script is `peers/with_LIBRARY.py`."""


class PeerFailed(Exception):
    """A library could not do its work; the message is its own."""


def interpreter(library: str) -> Path:
    """Python of the library's environment, which need not be there."""
    return ROOT / f".venv-peers-{ENVIRONMENTS[library]}" / "bin" / "python"


def available() -> list[str]:
    """Libraries whose environments were made."""
    return [name for name in ENVIRONMENTS if interpreter(name).exists()]


def job(lm: LanguageModel, folder: Path, *, layer: int, **work: Any) -> dict[str, Any]:
    """What all tasks have in common, and `work`, which `peers/serve.py` explains."""
    return {
        "folder": str(folder),
        "layer": layer,
        "device": str(lm.device),
        "threads": torch.get_num_threads(),
        "pad_token": lm.tokenizer.pad_token,
        **work,
    }


def as_read(lm: LanguageModel, text: Text) -> str:
    """The text as one string, of which a bare tokenizer makes the same tokens."""
    if not uses_chat(lm, None):
        return text.prompt + text.response
    messages = [{"role": "user", "content": text.prompt}]
    prompt = lm.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    return prompt + text.response


class Peer:
    """A library with its model loaded; inside a `with`, after which it is gone.

    Raises:
        PeerFailed: it did not start, or a turn failed.
    """

    def __init__(self, library: str, asked: Mapping[str, Any]) -> None:
        self.library, self.asked = library, asked
        self.versions: dict[str, str] = {}

    def __enter__(self) -> "Peer":
        """Start it, and wait until its model is loaded."""
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name)
        (path / "job.json").write_text(json.dumps(self.asked), encoding="utf-8")
        self._said = (path / "said").open("w+", encoding="utf-8")
        script = Path(__file__).with_name("peers") / "serve.py"
        self._process = subprocess.Popen(
            [interpreter(self.library), script, self.library, path / "job.json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            bufsize=1,
        )
        try:
            self.versions = self._answer()["versions"]
        except PeerFailed:
            self.close()
            raise
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """End it."""
        self.close()

    def turn(self, **settings: Any) -> dict[str, Any]:
        """One turn's answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(settings) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerFailed(f"{self.library} has ended.") from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            last = self._said.read().strip().splitlines()[-1:]
            raise PeerFailed(f"{self.library} ended: {''.join(last)}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerFailed(f"{self.library}: {answer['error'].splitlines()[0]}")
        return answer

    def close(self) -> None:
        """Its input ends, and with it the process; waits for that."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._said.close()
        self._folder.cleanup()


def names_of(listed: Sequence[str] | None) -> list[str]:
    """The libraries of `--peers`: those asked for, or all whose environments exist."""
    return available() if listed is None else list(listed)
