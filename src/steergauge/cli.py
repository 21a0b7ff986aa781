"""The command line: every verb with its options, and how errors end.

An error of ours is one readable block on standard error and exit code 2, never a
traceback. Heavy imports happen inside the verbs, so that `--help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steergauge.auditing import audit, audited
from steergauge.errors import BadSpec, NoSuchFile, SteergaugeError
from steergauge.inverting import invert
from steergauge.options import (
    DRAWS,
    Chat,
    Device,
    Dtype,
    Layer,
    Model,
    Position,
    Revision,
    Scope,
    Seed,
    TrustRemoteCode,
)
from steergauge.terminal import (
    bars,
    err,
    error_block,
    loaded_model,
    out,
    show_texts,
)

if TYPE_CHECKING:
    from steergauge.extraction.mean_difference import Extraction

app = typer.Typer(
    name="steergauge",
    help="Extract steering vectors from language models, steer with them, and AUDIT "
    "them: what does this vector do, and could a quite different one do the same?\n\n"
    "Start with [bold]steergauge demo[/bold]: two minutes on the built-in reference "
    "model, no download.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def extract(
    vector_file: Annotated[
        Path, typer.Option("--out", help="File to write, such as v.safetensors.")
    ],
    model: Model = "builtin:organism",
    trait: Annotated[
        str, typer.Option(help="Built-in trait, or a trait file of your own.")
    ] = "",
    pairs: Annotated[
        str,
        typer.Option(help="Your contrast pairs: JSON lines {positive, negative}."),
    ] = "",
    layer: Layer = None,
    position: Position = "last",
    method: Annotated[
        str,
        typer.Option(
            help="Formula: mean-difference, median-difference, principal-component, "
            "logistic or discriminant."
        ),
    ] = "mean-difference",
    num_pairs: Annotated[int, typer.Option(help="Pairs taken from the trait.")] = 50,
    chat: Chat = None,
    revision: Revision = "",
    dtype: Dtype = "float32",
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    seed: Seed = 0,
) -> None:
    """Extract a steering vector from contrast pairs."""
    from steergauge import activations, prompts
    from steergauge.extraction.methods import check_method, extraction_by

    check_method(method)
    if bool(trait) == bool(pairs):
        raise BadSpec(
            "either --trait or --pairs must be given, and not both.",
            remedy="Try --trait formality.",
        )
    given = (
        prompts.trait(trait).pairs(num_pairs, seed=seed)
        if trait
        else prompts.read_pairs(pairs)
    )
    rule = activations.Position(position)
    if vector_file.is_dir():
        raise BadSpec(f"{vector_file} is a folder; --out names the file to write.")
    lm = loaded_model(model, revision, dtype, device, trust_remote_code)
    chosen = lm.num_layers // 2 if layer is None else layer
    lm.check_layer(chosen)
    with bars() as shown:
        shown.begin("pairs", len(given))
        extraction = extraction_by(
            lm,
            given,
            activations.Reader(chosen, rule, chat),
            method=method,
            seed=seed,
            progress=shown.advance,
        )
    vector = extraction.vector
    vector.check_fits(lm)
    vector.save(vector_file)
    stream = vector.provenance.median_norm
    # Paths are never wrapped: they are there to be copied.
    named = method.replace("-", " ")
    head = f"[bold]{vector_file}[/bold]  {named} of {len(given)} pairs"
    out.print(head, soft_wrap=True)
    out.print(f"  site              {vector.site} of {lm.num_layers}, {position} token")
    out.print(f"  ||v||             {_length(extraction, method)}")
    out.print(f"  ||v||/median||h|| {vector.norm / stream:.2f}")
    command = f"steergauge audit --model {model} --vector {vector_file} --out DIR"
    out.print(f"Next: {command}", soft_wrap=True)


@app.command()
def steer(
    vector: Annotated[Path, typer.Option(help="A vector made by `extract`.")],
    prompt: Annotated[list[str], typer.Option(help="May be given several times.")],
    model: Model = "builtin:organism",
    alpha: Annotated[
        float, typer.Option(help="Strength; multiplies the vector as stored.")
    ] = 1.0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show the unsteered text beside it.")
    ] = False,
    samples: Annotated[
        int, typer.Option(help="Texts a prompt.", rich_help_panel=DRAWS)
    ] = 1,
    max_new_tokens: Annotated[
        int, typer.Option(help="Longest text.", rich_help_panel=DRAWS)
    ] = 64,
    temperature: Annotated[
        float, typer.Option(help="0 is greedy.", rich_help_panel=DRAWS)
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(help="0 is no limit.", rich_help_panel=DRAWS)
    ] = 0,
    top_p: Annotated[
        float, typer.Option(help="1 is no limit.", rich_help_panel=DRAWS)
    ] = 1.0,
    scope: Scope = "generating",
    chat: Chat = None,
    revision: Revision = "",
    dtype: Dtype = "float32",
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    other_model: Annotated[
        bool,
        typer.Option("--other-model", help="Accept a vector of another model."),
    ] = False,
    seed: Seed = 0,
) -> None:
    """Generate text with a steering vector added, beside the unsteered text."""
    from steergauge import generation, intervention
    from steergauge.vector import load_vector

    loaded = load_vector(vector)
    chosen = _scope(scope)
    decoding = generation.Decoding(max_new_tokens, temperature, top_k, top_p, seed)
    lm = loaded_model(model, revision, dtype, device, trust_remote_code)
    loaded.check_fits(lm, other_model=other_model)
    steered = intervention.Add(loaded, alpha, chosen)
    arms = {"unsteered": None, "steered": steered} if compare else {"steered": steered}
    with bars() as shown:
        shown.begin("texts", len(prompt) * samples * len(arms))
        texts = generation.generate(
            lm,
            prompt,
            arms,
            samples=samples,
            decoding=decoding,
            chat=chat,
            other_model=other_model,
            progress=shown.advance,
        )
    show_texts(texts, alpha)


app.command()(audit)
app.command()(invert)


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(help="The folder of a finished run, or of several.")
    ],
) -> None:
    """Write the pages of a finished run, or of a folder of runs, again."""
    from steergauge.report import write_report

    out.print(f"[bold]{write_report(folder)}[/bold]", soft_wrap=True)


@app.command()
def paper_tables(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A folder with table1.csv, table2.csv and table3.csv of another "
            "study. [dim]default: the paper's own[/dim]",
            show_default=False,
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="All statements, as Markdown.")
    ] = False,
) -> None:
    """What the printed tables of arXiv 2602.06801 say by themselves; no model."""
    from steergauge.paper import page, printed

    said = page.sections(printed.read_tables(folder or printed.FOLDER))
    if markdown:
        typer.echo(page.markdown(said), nl=False)
    else:
        out.print(page.shown(said))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="The run's folder.")] = Path(
        "demo"
    ),
    trait: Annotated[str, typer.Option(help="Built-in trait.")] = "formality",
) -> None:
    """Extract, steer, audit and report on the built-in model: about two minutes."""
    from steergauge import generation, intervention, prompts
    from steergauge.extraction.methods import extract as extracted
    from steergauge.runs.spec import spec_from
    from steergauge.vector import load_vector

    chosen = prompts.trait(trait)
    lm = loaded_model("builtin:organism", "", "float32", None, False)
    out.rule(f"[bold]1. extract[/bold] {chosen.name} from 50 contrast pairs")
    path = folder / f"{chosen.name}.safetensors"
    vector = load_vector(path) if path.is_file() else extracted(lm, chosen.pairs(50))
    vector.save(path)
    out.print(f"||v|| = {vector.norm:.3g} at the {vector.site}; kept in {path}")
    out.rule("[bold]2. steer[/bold]")
    arms = {
        "unsteered": None,
        f"alpha = +1 ({chosen.high})": intervention.Add(vector, 1.0),
        f"alpha = -1 ({chosen.low})": intervention.Add(vector, -1.0),
    }
    some = prompts.environment().prompts[:2]
    show_texts(generation.generate(lm, some, arms), None)
    out.rule("[bold]3. audit[/bold] the vector")
    spec = spec_from({}, trait=trait, vector=str(path))
    audited({chosen.name: spec}, folder / chosen.name, lm=lm)


def main() -> None:
    """Entry point of the `steergauge` command."""
    # Their progress bars and thread warnings would break ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        app()
    except SteergaugeError as error:
        err.print(error_block(error))
        sys.exit(2)
    except OSError as error:
        err.print(
            error_block(NoSuchFile(f"a file cannot be read or written: {error}."))
        )
        sys.exit(2)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        remedy = "Use a smaller --batch-size, another --dtype, or --device cpu."
        err.print(
            error_block(SteergaugeError("the device is out of memory.", remedy=remedy))
        )
        sys.exit(2)


def _length(extraction: "Extraction", method: str) -> str:
    norm, error = extraction.vector.norm, f"{extraction.standard_error:.2g}"
    if method == "mean-difference":
        return f"{norm:.4g}, sampling error of v {error}"
    mean = extraction.differences.mean
    along = extraction.vector.direction.double() @ mean
    return (
        f"{norm:.4g}; mean difference {float(mean.norm()):.4g}, its sampling error "
        f"{error}, cos {float(along / (norm * mean.norm())):.3f}"
    )


def _scope(name: str) -> Any:
    from steergauge.intervention import scope_named

    return scope_named(name)
