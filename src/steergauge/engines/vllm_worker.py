"""T inside vLLM's workers: forward hooks on its decoder layers, and our own noise.

Both classes are loaded by vLLM itself, through its public extension points:
`WorkerExtension` as `worker_extension_cls` (every attribute is prefixed, since vLLM
makes it a base of its worker), `SharedNoise` as one of `logits_processors`.

vLLM's flat batch holds one row of streams for each token of a step: rows q[i] to
q[i + 1] - 1 belong to request i and have the absolute positions c[i], c[i] + 1, ...,
with q = `query_start_loc` and c = `num_computed_tokens_cpu`. These are no stable
interface, so the map is compared in every step with the positions that the model is
given, and every edit is counted; see `requests.py` for what the count must be. Most
decoder layers return the stream in two parts, h = hidden + residual: what is added or
taken out goes to `hidden`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steergauge.architectures import blocks
from steergauge.engines.requests import ENTRY
from steergauge.generation import Decoding, Noise, gumbel, likeliest

try:
    # pyrefly: ignore[missing-import]
    from vllm.v1.sample.logits_processor import LogitsProcessor
except ImportError:  # So that this file can be read, and tested, without vLLM.
    LogitsProcessor = object


class WorkerExtension:
    """What the engine may call on every worker, by name and with plain data."""

    model_runner: Any
    steergauge_steering: "Steering | None" = None

    def steergauge_begin(self, table: list[list[float]]) -> int:
        """Put the hooks in; returns the number of decoder layers.

        Args:
            table: steps alpha v and directions u, to be named by their rows.
        """
        self.steergauge_end()
        self.steergauge_steering = Steering(self.model_runner, torch.tensor(table))
        return self.steergauge_steering.num_layers

    def steergauge_end(self) -> dict[str, Any]:
        """Take the hooks out; what was edited, by request, and what went wrong."""
        steering, self.steergauge_steering = self.steergauge_steering, None
        if steering is not None:
            steering.remove()
        noise = _shared_noise(self.model_runner)
        broken = sorted(noise.broken)
        noise.broken.clear()
        return {
            "edits": steering.edits if steering else {},
            "fault": steering.fault if steering else "",
            "broken": broken,
        }

    def steergauge_unhook(self) -> None:
        """Take the hooks out in the middle of a session: for tests of the count."""
        if self.steergauge_steering is not None:
            self.steergauge_steering.remove()


@dataclass(slots=True)
class _Edit:
    """Rows of this step's streams that one layer changes in one way."""

    rows: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    num_of: dict[int, int] = field(default_factory=dict)
    tensors: tuple[Tensor, Tensor] | None = None

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows, and each row's step, as tensors: made once a step."""
        if self.tensors is None:
            pair = torch.tensor([self.rows, self.steps]).to(device)
            self.tensors = (pair[0], pair[1])
        return self.tensors


class Steering:
    """The hooks of one session on one worker's copy of the model.

    Attributes:
        edits: pairs of position and layer that were edited, by key of request.
        fault: what the map of rows got wrong; empty if nothing.
    """

    def __init__(self, runner: Any, table: Tensor) -> None:
        model: nn.Module = runner.get_model()
        layers = blocks(model)
        self.num_layers = len(layers)
        self.edits: dict[int, int] = {}
        self.fault = ""
        self._runner = runner
        self._table = table.to(next(model.parameters()).device, torch.float32)
        self._plan: dict[int, list[tuple[bool, _Edit]]] = {}
        self._handles = [
            model.register_forward_pre_hook(self._begin_step, with_kwargs=True)
        ]
        for layer, block in enumerate(layers):
            self._handles.append(block.register_forward_hook(self._hook(layer)))

    def remove(self) -> None:
        """Take every hook out."""
        for handle in self._handles:
            handle.remove()

    def _begin_step(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Which rows of the coming step each layer changes."""
        batch = self._runner.input_batch
        num = batch.num_reqs
        starts = [int(q) for q in self._runner.query_start_loc.np[: num + 1]]
        computed = [int(c) for c in batch.num_computed_tokens_cpu[:num]]
        positions = kwargs["positions"] if "positions" in kwargs else args[1]
        self._check(positions, starts, computed)
        entries = [self._entry(name) for name in batch.req_ids[:num]]
        self._plan = planned_step(entries, starts, computed)

    def _entry(self, name: str) -> Mapping[str, Any]:
        parameters = self._runner.requests[name].sampling_params
        return ((parameters and parameters.extra_args) or {}).get(ENTRY, {})

    def _check(
        self, positions: Tensor, starts: Sequence[int], computed: Sequence[int]
    ) -> None:
        """Compare the map of rows with the positions that the model is given."""
        flat = positions[0] if positions.ndim == 2 else positions
        if starts[-1] > len(flat):
            self.fault = f"a step of {len(flat)} rows, {starts[-1]} of them expected"
            return
        seen = flat[: starts[-1]].tolist()
        meant = [
            first + i
            for first, start, end in zip(computed, starts, starts[1:], strict=False)
            for i in range(end - start)
        ]
        if seen != meant:
            row = next(i for i, s in enumerate(seen) if s != meant[i])
            self.fault = f"row {row} is position {seen[row]}, not {meant[row]}"

    def _hook(self, layer: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            for adds, edit in self._plan.get(layer, ()):
                self._apply(adds, edit, output)

        return hook

    def _apply(self, adds: bool, edit: _Edit, output: Any) -> None:
        hidden, residual = output if isinstance(output, tuple) else (output, None)
        flat = hidden.view(-1, hidden.shape[-1])
        rows, steps = edit.on(flat.device)
        part, change = flat[rows].float(), self._table[steps]
        if not adds:
            stream = part
            if residual is not None:
                stream = part + residual.view(flat.shape)[rows].float()
            change = -(stream * change).sum(-1, keepdim=True) * change
        flat.index_copy_(0, rows, (part + change).to(flat.dtype))
        for key, num in edit.num_of.items():
            self.edits[key] = self.edits.get(key, 0) + num


def planned_step(
    entries: Sequence[Mapping[str, Any]],
    starts: Sequence[int],
    computed: Sequence[int],
) -> dict[int, list[tuple[bool, _Edit]]]:
    """{layer: [(whether it adds, which rows)]} of one step of the flat batch.

    Args:
        entries: what each request carries; see `Request.carried`.
        starts: first row of each request, and the number of rows.
        computed: absolute position of each request's first row.
    """
    found: dict[tuple[int, bool], _Edit] = {}
    for i, entry in enumerate(entries):
        steer = entry.get("steer")
        if steer is None:
            continue
        shift = starts[i] - computed[i]
        first = max(starts[i], steer["first"] + shift)
        beyond = min(starts[i + 1], steer["beyond"] + shift)
        if first >= beyond:
            continue
        for layer in steer["layers"]:
            edit = found.setdefault((layer, steer["adds"]), _Edit())
            edit.rows += range(first, beyond)
            edit.steps += [steer["row"]] * (beyond - first)
            edit.num_of[entry["key"]] = beyond - first
    plan: dict[int, list[tuple[bool, _Edit]]] = {}
    for (layer, adds), edit in found.items():
        plan.setdefault(layer, []).append((adds, edit))
    return plan


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A request in the batch: its key, how its tokens are drawn, what it has so far."""

    key: int
    how: Decoding | None
    noise: int
    token_ids: list[int]


class SharedNoise(LogitsProcessor):
    """The common random numbers: argmax of likeliest(logits / T) + Gumbel noise.

    Requests run greedily (temperature 0 for vLLM), so vLLM's own argmax gives the
    token that `generation.draw` gives. The step of a request is the number of tokens
    it has so far, which neither chunks nor preemptions change.

    Attributes:
        broken: keys of requests whose logits were infinite or NaN.
    """

    def __init__(
        self, vllm_config: Any, device: torch.device, is_pin_memory: bool
    ) -> None:
        self._rows: dict[int, _Drawn] = {}
        self.broken: set[int] = set()

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Nothing to refuse: the parameters are our own."""

    def is_argmax_invariant(self) -> bool:
        """It is not: noise is what makes another token the likeliest."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow requests as they enter, leave and change rows."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, parameters, _prompt, token_ids in batch_update.added:
            self._rows.pop(row, None)
            entry = (parameters.extra_args or {}).get(ENTRY)
            if entry is not None:
                self._rows[row] = _drawn(entry, token_ids)
        for origin, target, direction in batch_update.moved:
            moved, there = self._rows.pop(origin, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if there is not None and direction.name == "SWAP":
                self._rows[origin] = there

    def apply(self, logits: Tensor) -> Tensor:
        """Logits of all rows, each with the noise of its own key and step."""
        finite = torch.isfinite(logits).all(-1)
        if not bool(finite.all()):
            bad = (~finite).nonzero().squeeze(-1).tolist()
            self.broken |= {self._rows[row].key for row in bad if row in self._rows}
        groups: dict[tuple[Decoding, int], list[int]] = {}
        for row, drawn in self._rows.items():
            if drawn.how is not None:
                groups.setdefault((drawn.how, len(drawn.token_ids)), []).append(row)
        for (how, step), rows in groups.items():
            self._add_noise(logits, how, step, rows)
        return logits

    def _add_noise(
        self, logits: Tensor, how: Decoding, step: int, rows: Sequence[int]
    ) -> None:
        """In place; equal keys are hashed once, a piece of the batch at a time."""
        noise = Noise([self._rows[row].noise for row in rows], logits.device)
        there = torch.tensor(rows, device=logits.device)
        d_vocab = logits.shape[-1]
        every = torch.arange(len(rows), device=logits.device)
        for piece in noise.pieces(every, d_vocab):
            place = there[piece.rows]
            scaled = likeliest(logits[place].float() / how.temperature, how)
            scaled += gumbel(piece.keys, step, d_vocab)[piece.place]
            logits[place] = scaled.to(logits.dtype)


def _drawn(entry: Mapping[str, Any], token_ids: list[int]) -> _Drawn:
    how = None
    if "noise" in entry:
        how = Decoding(
            temperature=entry["temperature"],
            top_k=entry["top_k"],
            top_p=entry["top_p"],
        )
    return _Drawn(entry["key"], how, entry.get("noise", 0), token_ids)


def _shared_noise(runner: Any) -> SharedNoise:
    """The worker's own logits processor."""
    processors = runner.input_batch.logitsprocs.non_argmax_invariant
    (found,) = [p for p in processors if isinstance(p, SharedNoise)]
    return found
