"""Read and edit the residual stream after a block, and enter the model half-way.

Three context managers on the user's own modules. Each leaves the model exactly as
it found it, on every exit, also when registering fails half-way:

- `recording`  reads h_l, and can stop the pass after the last layer asked for;
- `editing`    replaces h_l by T(h_l);
- `entering`   makes blocks 0..l return a given stream without computing anything.

A block returns either the stream or a tuple that starts with it; both are handled.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from steergauge.types import Edit, Stream


class _PassEnds(Exception):
    """Raised by a hook once nothing above its block is needed."""


def stream_of(output: Any) -> Stream:
    """The residual stream in what a block returned."""
    return output[0] if isinstance(output, tuple) else output


def like(output: Any, stream: Stream) -> Any:
    """`stream` in the form of `output`: bare, or first of a tuple."""
    return (stream, *output[1:]) if isinstance(output, tuple) else stream


@contextmanager
def recording(
    blocks: nn.ModuleList, layers: Sequence[int], *, stop: bool = False
) -> Generator[dict[int, Stream]]:
    """Yield a dict that forward passes inside the `with` fill with {layer: h_l}.

    Args:
        blocks: the model's decoder blocks.
        layers: blocks whose output is read.
        stop: end the pass, and the `with`, after the last of `layers`; whatever
            follows the forward call inside the `with` is then not reached.
    """
    streams: dict[int, Stream] = {}
    last = max(layers)

    def hook_at(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            streams[layer] = stream_of(output)
            if stop and layer == last:
                raise _PassEnds

        return hook

    with ExitStack() as stack:
        for layer in sorted(set(layers)):
            handle = blocks[layer].register_forward_hook(hook_at(layer))
            stack.callback(handle.remove)
        with suppress(_PassEnds):
            yield streams


@contextmanager
def editing(blocks: nn.ModuleList, edits: Mapping[int, Edit]) -> Generator[None]:
    """Replace h_l by `edits[l](h_l)` in every forward pass inside the `with`."""

    def hook_for(edit: Edit) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            return like(output, edit(stream_of(output)))

        return hook

    with ExitStack() as stack:
        for layer, edit in edits.items():
            handle = blocks[layer].register_forward_hook(hook_for(edit))
            stack.callback(handle.remove)
        yield


@contextmanager
def entering(
    blocks: nn.ModuleList, layer: int, stream: Stream, forms: Sequence[int | None]
) -> Generator[None]:
    """Make blocks 0..`layer` return `stream` at no cost: the model starts above them.

    Args:
        blocks: the model's decoder blocks.
        layer: last block to be skipped.
        stream: what it returns instead.
        forms: per block, None if it returns the bare stream, else the length of the
            tuple that it returns (see `form_of`).
    """
    with ExitStack() as stack:
        for block, form in zip(blocks[: layer + 1], forms, strict=False):
            stack.callback(_restore_forward(block))
            block.forward = _constant(stream, form)
        yield


def form_of(output: Any) -> int | None:
    """How a block returns the stream: None if bare, else the length of its tuple."""
    return len(output) if isinstance(output, tuple) else None


def _constant(stream: Tensor, form: int | None) -> Callable[..., Any]:
    output = stream if form is None else (stream, *[None] * (form - 1))
    return lambda *_args, **_kwargs: output


def _restore_forward(block: nn.Module) -> Callable[[], None]:
    """Undo an assignment to `block.forward`, whoever had assigned one before."""
    before = block.__dict__.get("forward")
    if before is None:
        return lambda: block.__dict__.pop("forward", None)
    return lambda: setattr(block, "forward", before)
