"""Options that several verbs of the command line share, with their help."""

from typing import Annotated

import typer

MODEL, WHERE, DRAWS, SIZES = "Model", "Where to read and write", "Sampling", "Sizes"
Model = Annotated[
    str,
    typer.Option(
        help="Hugging Face id, local folder, or builtin:organism.",
        rich_help_panel=MODEL,
    ),
]
Revision = Annotated[
    str,
    typer.Option(help="Commit, tag or branch of an id.", rich_help_panel=MODEL),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Compute precision: float32, bfloat16, float16.", rich_help_panel=MODEL
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:1, ... [dim]default: a GPU if there is one[/dim]",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="Share a model larger than one GPU out over devices: auto, balanced or "
        "sequential; what no GPU has room for is read from memory or disk at each "
        r"pass. Needs pip install 'steergauge\[sharded]'.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run code that comes with the weights.",
        rich_help_panel=MODEL,
    ),
]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--raw",
        help="Prompts through the chat template, or as they are. "
        "[dim]default: the template if there is one[/dim]",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
Layer = Annotated[
    int | None,
    typer.Option(
        help="Block (0-based) whose output is read and written. "
        "[dim]default: the middle one[/dim]",
        show_default=False,
        rich_help_panel=WHERE,
    ),
]
Position = Annotated[
    str,
    typer.Option(
        help="Which token stands for a text of a pair: last, response-mean or "
        "index:K, such as index:-2.",
        rich_help_panel=WHERE,
    ),
]
Scope = Annotated[
    str,
    typer.Option(
        help="Positions that are steered: generating (last prompt token and all "
        "generated ones), response, prompt or all.",
        rich_help_panel=WHERE,
    ),
]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
