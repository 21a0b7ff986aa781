"""The command line: every verb with its options, and how errors end.

An error of ours is one readable block on standard error and exit code 2, never a
traceback. Heavy imports happen inside the verbs, so that `--help` answers at once.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steergauge.errors import BadSpec, NoSuchFile, SteergaugeError
from steergauge.inverting import invert
from steergauge.options import (
    DRAWS,
    MODEL,
    SIZES,
    WHERE,
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
    duration,
    err,
    error_block,
    loaded_model,
    out,
    show_forecast,
    show_run,
    show_texts,
)

if TYPE_CHECKING:
    from steergauge.extraction.mean_difference import Extraction
    from steergauge.split import LanguageModel

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


@app.command()
def audit(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The run's folder. [red]required[/red], but for --dry-run",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Hugging Face id, local folder, or builtin:organism. "
            "[dim]default: builtin:organism[/dim]",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ] = None,
    trait: Annotated[
        list[str] | None,
        typer.Option(
            help="Built-in trait, or a trait file: pairs, probe, controls. Given "
            "several times: one run each, and a page of all. "
            "[dim]paper: default all three[/dim]"
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(help="Your contrast pairs: JSON lines {positive, negative}."),
    ] = None,
    vector: Annotated[
        str | None, typer.Option(help="A vector file, instead of extracting one.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="A vector to compare with it; may be given several times."),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            help="A TOML file (words, classifier, zero-shot labels or a judge), or "
            "file.py:function."
        ),
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(help="Labelled texts for the probe: JSON lines {text, label}."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="Neutral prompts to test on: one a line, or JSON lines."),
    ] = None,
    environment: Annotated[
        str | None,
        typer.Option(
            help="Built-in prompts: in-distribution, topic-shift, genre-shift, "
            "safety-style."
        ),
    ] = None,
    environments: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated environments to extract from and to test on, crossed."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A run file (TOML), such as another run's run.toml."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Strength. [dim]default: what the dose curve recommends[/dim]",
            show_default=False,
        ),
    ] = None,
    alphas: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated strengths at which v + v_perp is held against v."
        ),
    ] = None,
    published_code: Annotated[
        bool,
        typer.Option(
            "--published-code",
            help="Also run the variant of the code of arXiv 2602.06801: read and "
            "write one block apart, prompt scored with the text.",
        ),
    ] = False,
    preset: Annotated[
        str,
        typer.Option(
            help="quick, standard, or paper (all of arXiv 2602.06801).",
            rich_help_panel=SIZES,
        ),
    ] = "quick",
    audits: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, instead of the preset's: plumbing, manipulation, "
            "equivalence, divergence, replication, scale, logits, environments, "
            "reliability; spectrum, nulls, saturation, decomposition, alternative, "
            "linearity, gauge, methods; states, inversion, access, density; or groups "
            "of them: core, paper, geometry, reachability."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="A run for each of several blocks, such as 0,4,8, 2-6 or all, and a "
            "page over depth.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the plan with its number of texts and tokens, and an estimate "
            "of time and memory; run nothing.",
        ),
    ] = False,
    num_pairs: Annotated[
        int | None, typer.Option(help="Pairs of the trait.", rich_help_panel=SIZES)
    ] = None,
    num_prompts: Annotated[
        int | None, typer.Option(help="Test prompts.", rich_help_panel=SIZES)
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Texts a prompt.", rich_help_panel=SIZES)
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest text.", rich_help_panel=SIZES)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Above 0.", rich_help_panel=SIZES)
    ] = None,
    num_perpendicular: Annotated[
        int | None,
        typer.Option(help="Random directions v_perp.", rich_help_panel=SIZES),
    ] = None,
    geometry_prompts: Annotated[
        int | None,
        typer.Option(
            help="Prompts of the Fisher matrix: the power of two below.",
            rich_help_panel=SIZES,
        ),
    ] = None,
    geometry_tokens: Annotated[
        int | None,
        typer.Option(
            help="Response tokens that the Fisher matrix is of; 1 is the next token.",
            rich_help_panel=SIZES,
        ),
    ] = None,
    steering: Annotated[
        str | None,
        typer.Option(
            help="addition, or ablation (with --audits reachability). "
            "[dim]default: addition[/dim]",
            show_default=False,
        ),
    ] = None,
    reach_prompts: Annotated[
        int | None,
        typer.Option(
            help="Prompts whose steered states are searched for.",
            rich_help_panel=SIZES,
        ),
    ] = None,
    search_evaluations: Annotated[
        int | None,
        typer.Option(
            help="Prompts that each search for one may try.", rich_help_panel=SIZES
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows at once.", rich_help_panel=SIZES)
    ] = None,
    layer: Layer = None,
    read_layer: Annotated[
        int | None,
        typer.Option(
            help="Block after which states are compared with those of prompts. "
            "[dim]default: where the vector is added[/dim]",
            show_default=False,
            rich_help_panel=WHERE,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="How the vector is extracted. [dim]default: mean-difference[/dim]",
            show_default=False,
            rich_help_panel=WHERE,
        ),
    ] = None,
    position: Annotated[
        str | None,
        typer.Option(help="last, response-mean or index:K.", rich_help_panel=WHERE),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            help="generating, response, prompt or all.", rich_help_panel=WHERE
        ),
    ] = None,
    chat: Chat = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Commit, tag or branch of an id.", rich_help_panel=MODEL),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16, float16.", rich_help_panel=MODEL),
    ] = None,
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    other_model: Annotated[
        bool,
        typer.Option("--other-model", help="Accept a vector of another model."),
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
) -> None:
    """Audit a vector: verdicts with numbers, intervals, controls, and a report.

    A run that was stopped goes on where it was when the same command is repeated.
    """
    from steergauge.runs import spec as specs

    given = {
        "model": model, "trait": trait or None, "pairs": pairs, "vector": vector,
        "against": tuple(against) if against else None, "probe": probe,
        "labelled": labelled, "prompts": prompts, "environment": environment,
        "environments": environments, "alpha": alpha, "alphas": alphas,
        "audits": audits, "num_prompts": num_prompts, "num_pairs": num_pairs,
        "temperature": temperature, "samples": samples,
        "num_perpendicular": num_perpendicular, "max_new_tokens": max_new_tokens,
        "geometry_prompts": geometry_prompts, "geometry_tokens": geometry_tokens,
        "steering": steering, "read_layer": read_layer,
        "reach_prompts": reach_prompts, "search_evaluations": search_evaluations,
        "method": method, "layer": layer, "batch_size": batch_size,
        "position": position, "scope": scope, "chat": chat,
        "revision": revision, "dtype": dtype,
        "seed": seed, "trust_remote_code": trust_remote_code or None,
        "other_model": other_model or None,
        "published_code": published_code or None,
    }  # fmt: skip
    table = specs.read_spec(config) if config else {}
    wanted = specs.specs_from(table, preset=preset, **given)
    if layers is not None:
        wanted = _layered(wanted, layers)
    if dry_run:
        from steergauge.runs.estimate import forecast

        speed, seconds = None, 0.0
        for name, spec in wanted.items():
            seen = forecast(spec, device=device, speed=speed)
            speed, seconds = seen.speed, seconds + seen.seconds
            show_forecast(name, seen)
        out.print(f"In all about {duration(seconds)}.")
    elif folder is None:
        raise BadSpec("--out is missing: the folder where the run is kept.")
    else:
        _audit(wanted, folder, device=device, sweep=layers is not None)


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
    _audit({chosen.name: spec}, folder / chosen.name, lm=lm)


def main() -> None:
    """Entry point of the `steergauge` command."""
    # Their progress bars and thread warnings would break ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
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


def _layered(specs: Mapping[str, Any], layers: str) -> dict[str, Any]:
    """A spec for each of the layers that were named."""
    from steergauge.runs.estimate import model_size
    from steergauge.runs.spec import layer_specs, layers_named

    (first, *rest) = specs.values()
    if rest:
        raise BadSpec(
            f"--layers was given with {len(specs)} traits.",
            remedy="Sweep the layers of one trait at a time: give a --trait.",
        )
    if first.layer is not None:
        raise BadSpec(
            f"--layers was given beside layer {first.layer}.",
            remedy="Leave --layer out; add it to --layers if it is meant as well.",
        )
    size = model_size(
        first.model,
        revision=first.revision,
        trust_remote_code=first.trust_remote_code,
    )
    return layer_specs(first, layers_named(layers, size.num_layers))


def _audit(
    specs: Mapping[str, Any],
    folder: Path,
    *,
    lm: "LanguageModel | None" = None,
    device: str | None = None,
    sweep: bool = False,
) -> None:
    """One run in `folder`, or one a trait or layer in folders of their own below it."""
    from steergauge.report import write_report
    from steergauge.runs import plan
    from steergauge.runs.execute import audit as run_audit
    from steergauge.runs.execute import audit_traits
    from steergauge.runs.sweep import audit_layers

    first, *rest = specs.values()
    for spec in (first, *rest):
        plan.read(spec)  # What is wrong with the files is said before loading.
    model = lm or loaded_model(
        first.model, first.revision, first.dtype, device, first.trust_remote_code
    )
    try:
        with bars() as shown:
            if sweep:
                runs = audit_layers(model, specs, out=folder, progress=shown)
            elif rest:
                runs = audit_traits(model, specs, out=folder, progress=shown)
            else:
                runs = {"": run_audit(model, out=folder, spec=first, progress=shown)}
    except KeyboardInterrupt:
        err.print("Stopped. The same command goes on where it was.")
        raise
    for name, run in runs.items():
        if name:
            out.rule(f"[bold]{name}[/bold]")
        show_run(run)
    report = write_report(folder)
    out.print(f"Report: [bold]{report}[/bold]", soft_wrap=True)
    paper = folder / "paper.html"
    if paper != report and paper.is_file():
        out.print(f"The paper's tables and figures: [bold]{paper}[/bold]")


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
