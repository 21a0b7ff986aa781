"""The verb `invert`: the text of a prompt's states, and where steered states have none.

Natural states come from a pass over the whole prompt alone, candidates from one token
after a cached prefix, so that to recover the prompt is no comparison of a number with
itself. Steered states are those of the prompt with every token steered, as arXiv
2604.09839 (Definition 4.1) has it.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steergauge.errors import BadPrompts, BadSpec
from steergauge.inverted import Inverted, Search, show, write
from steergauge.options import (
    SIZES,
    WHERE,
    Chat,
    Device,
    Dtype,
    Layer,
    Model,
    Revision,
    TrustRemoteCode,
)
from steergauge.terminal import bars, err, loaded_model, out

if TYPE_CHECKING:
    from steergauge.intervention import Intervention
    from steergauge.reachability.inversion import Ball, Inversion
    from steergauge.split import LanguageModel

PUBLISHED = 1e-5
"""The tolerance of the code of arXiv 2604.09839."""

HELD_OUT = 10
"""Built-in prompts that the tolerance is calibrated on."""

STEERING = "Steering"


def invert(
    prompt: Annotated[list[str], typer.Option(help="May be given several times.")],
    model: Model = "builtin:organism",
    vector: Annotated[
        Path | None,
        typer.Option(
            help="Steer every token with this vector, and invert that too.",
            rich_help_panel=STEERING,
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Strength; multiplies the vector as stored. [dim]default: 1[/dim]",
            show_default=False,
            rich_help_panel=STEERING,
        ),
    ] = None,
    ablate: Annotated[
        bool,
        typer.Option(
            "--ablate",
            help="Take the vector's direction out instead of adding it.",
            rich_help_panel=STEERING,
        ),
    ] = False,
    other_model: Annotated[
        bool,
        typer.Option(
            "--other-model",
            help="Accept a vector of another model.",
            rich_help_panel=STEERING,
        ),
    ] = False,
    layer: Layer = None,
    read_layer: Annotated[
        int | None,
        typer.Option(
            help="Block whose output is inverted. [dim]default: the vector's[/dim]",
            show_default=False,
            rich_help_panel=WHERE,
        ),
    ] = None,
    tolerance: Annotated[
        str,
        typer.Option(
            help="When a token is accepted: calibrated (on built-in prompts), "
            "published (1e-5, as in the code of arXiv 2604.09839), or a distance."
        ),
    ] = "calibrated",
    exhaustive: Annotated[
        bool,
        typer.Option(
            "--exhaustive", help="Try every token at every place, found or not."
        ),
    ] = False,
    go_on: Annotated[
        bool,
        typer.Option(
            "--go-on", help="After a failure too, with the nearest token in its place."
        ),
    ] = False,
    max_tokens: Annotated[
        int,
        typer.Option(
            help="Tokens of a prompt that are inverted.", rich_help_panel=SIZES
        ),
    ] = 64,
    json_file: Annotated[
        Path | None, typer.Option("--out", help="Write all of it to a JSON file.")
    ] = None,
    chat: Chat = None,
    revision: Revision = "",
    dtype: Dtype = "float32",
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Recover a prompt from its states, token by token; do steered states have one?

    SipIt (arXiv 2510.15511): with the tokens before it known, the state of a
    token is compared with that of every token that could stand in its place.

    [bold]steergauge invert --prompt "Tell me about the lake."[/bold]

    [bold]steergauge invert --prompt "..." --vector v.safetensors --alpha 2[/bold]

    [bold]steergauge invert --prompt "..." --tolerance published --go-on[/bold]
    """
    _check(prompt, max_tokens, json_file)
    _check_steering(vector, alpha, ablate=ablate, read_layer=read_layer)
    steering = _steering(vector, alpha, ablate=ablate)
    if steering is not None and layer not in (None, steering.site.layer):
        raise BadSpec(
            f"--layer {layer} was given with a vector of layer {steering.site.layer}.",
            remedy="Leave --layer out; --read-layer reads above the vector's.",
        )
    fixed = _ball(tolerance)
    lm = loaded_model(model, revision, dtype, device, trust_remote_code)
    if steering is not None:
        steering.check_fits(lm, other_model=other_model)
        layer = steering.site.layer if read_layer is None else read_layer
        _check_order(steering.site.layer, layer)
    layer = lm.num_layers // 2 if layer is None else layer
    lm.check_layer(layer)
    rows = _rows(lm, prompt, chat)
    ball = fixed or _calibrated(lm, prompt, chat, layer)
    search = Search(lm, layer, steering, ball, go_on, exhaustive)
    config = lm.model.config.get_text_config()
    longest = min(max_tokens, getattr(config, "max_position_embeddings", max_tokens))
    found = []
    with bars() as shown:
        for number, (text, ids) in enumerate(zip(prompt, rows, strict=True), start=1):
            places = min(len(ids), longest)
            passes = 1 if steering is None else 2
            shown.begin(f"places of prompt {number} of {len(rows)}", passes * places)
            found.append(_inverted(search, text, ids[:places], len(ids), shown.advance))
    for one in found:
        show(search, one, tolerance)
    if json_file is not None:
        write(json_file, search, found, tolerance)
        out.print(f"All of it: [bold]{json_file}[/bold]", soft_wrap=True)


def _check(prompts: Sequence[str], max_tokens: int, json_file: Path | None) -> None:
    """Refuse what is wrong whatever the model is."""
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise BadPrompts(
                f"prompt {number} of {len(prompts)} is empty.",
                remedy="Give it some text.",
            )
    if max_tokens < 1:
        raise BadSpec(
            f"--max-tokens is {max_tokens}.", remedy="Invert one token or more."
        )
    if json_file is not None and json_file.is_dir():
        raise BadSpec(f"{json_file} is a folder; --out names the file to write.")


def _check_steering(
    vector: Path | None, alpha: float | None, *, ablate: bool, read_layer: int | None
) -> None:
    """Refuse options of steering without a vector, and two kinds of it at once."""
    given = {
        "--alpha": alpha is not None,
        "--ablate": ablate,
        "--read-layer": read_layer is not None,
    }
    named = [name for name, there in given.items() if there]
    if vector is None and named:
        raise BadSpec(
            f"{' and '.join(named)} given without a --vector.",
            remedy="Give the --vector; without one, --layer says what is inverted.",
        )
    if ablate and alpha is not None:
        raise BadSpec(
            "--alpha and --ablate were both given.",
            cause="A direction that is taken out has no strength.",
            remedy="Give one of them.",
        )


def _check_order(written: int, read: int) -> None:
    if read < written:
        raise BadSpec(
            f"--read-layer {read} is below layer {written}, where the vector is.",
            cause="States there are not steered yet.",
            remedy=f"Read at layer {written} or above.",
        )


def _steering(
    vector: Path | None, alpha: float | None, *, ablate: bool
) -> "Intervention | None":
    """What is done to every token; None without a vector."""
    if vector is None:
        return None
    from steergauge.intervention import Ablate, Add, Scope
    from steergauge.vector import load_vector

    loaded = load_vector(vector)
    if ablate:
        return Ablate(loaded, Scope.ALL)
    return Add(loaded, 1.0 if alpha is None else alpha, Scope.ALL)


def _ball(tolerance: str) -> "Ball | None":
    """The tolerance that was named; None if the model has to be asked."""
    from steergauge.reachability.inversion import Absolute

    if tolerance == "calibrated":
        return None
    if tolerance == "published":
        return Absolute(PUBLISHED)
    try:
        return Absolute(float(tolerance))
    except ValueError as error:
        raise BadSpec(
            f"there is no tolerance {tolerance!r}.",
            remedy="Choose calibrated, published, or a distance such as 1e-5.",
        ) from error


def _calibrated(
    lm: "LanguageModel", prompts: Sequence[str], chat: bool | None, layer: int
) -> "Ball":
    """From built-in prompts that are not the given ones."""
    from steergauge.prompts import environment
    from steergauge.reachability.tolerance import calibrated

    others = [text for text in environment().prompts if text not in prompts]
    with err.status("calibrating the tolerance"):
        return calibrated(lm, _rows(lm, others[:HELD_OUT], chat), layer=layer)


def _rows(
    lm: "LanguageModel", prompts: Sequence[str], chat: bool | None
) -> list[list[int]]:
    from steergauge.prompts import Text, encode

    return [encode(lm, Text(text), chat=chat)[0] for text in prompts]


def _inverted(
    search: Search, prompt: str, ids: Sequence[int], num_tokens: int, progress: Any
) -> Inverted:
    """Both inversions of a prompt's first tokens `ids`, timed."""
    from steergauge.reachability.inversion import invert as inverted
    from steergauge.reachability.tolerance import natural_states, steered_states

    began = time.perf_counter()

    def found(states: Any) -> "Inversion":
        done = inverted(
            search.lm,
            states,
            layer=search.layer,
            tolerance=search.tolerance,
            go_on=search.go_on,
            exhaustive=search.exhaustive,
            progress=progress,
        )
        progress(len(ids) - len(done.steps))
        return done

    states = natural_states(search.lm, ids, layer=search.layer)
    natural, steered, step = found(states), None, ()
    if search.steering is not None:
        moved = steered_states(search.lm, ids, search.steering, layer=search.layer)
        steered = found(moved)
        step = tuple((moved - states).norm(dim=-1).tolist())
    seconds = time.perf_counter() - began
    return Inverted(prompt, tuple(ids), num_tokens, natural, steered, step, seconds)
