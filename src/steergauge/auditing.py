"""The verb `audit`: its options, and the runs that they ask for.

What is measured is a `Spec`; where it runs (device, shards, workers) is a `Place`, of
which the results do not depend.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steergauge.errors import BadSpec
from steergauge.options import (
    MODEL,
    SIZES,
    WHERE,
    Chat,
    Device,
    DeviceMap,
    Layer,
    TrustRemoteCode,
)
from steergauge.terminal import (
    bars,
    duration,
    err,
    loaded_model,
    out,
    show_forecast,
    show_run,
)

if TYPE_CHECKING:
    from steergauge.runs.distributed import Pool
    from steergauge.runs.spec import Spec
    from steergauge.split import LanguageModel

MACHINES = "Engines and machines"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run's work is done.

    Attributes:
        device: of the model; None is a GPU if there is one.
        device_map: how the model is shared out over several devices.
        workers: processes that share the cells of the run; None is this one alone.
        address: of a Ray cluster.
    """

    device: str | None = None
    device_map: str | None = None
    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        """Refuse places that no run can have, before a model is loaded."""
        if self.workers is not None and self.workers < 1:
            raise BadSpec(
                f"--workers is {self.workers}; it must be at least 1.",
                remedy="Leave it out to work in this process alone.",
            )
        helped = self.workers is not None or self.address is not None
        if helped and self.device_map is not None:
            raise BadSpec(
                f"--device-map {self.device_map} was given beside workers, which each "
                "load a whole model.",
                cause="Workers are asked for by --workers, by --ray-address, or by "
                "RAY_ADDRESS in the environment.",
                remedy="Leave one of them out.",
            )


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
    device_map: DeviceMap = None,
    trust_remote_code: TrustRemoteCode = False,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Who makes the texts: local, or vllm. [dim]default: local[/dim]",
            show_default=False,
            rich_help_panel=MACHINES,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that share the work through Ray. [dim]default: this one "
            "alone, or one a GPU of the cluster[/dim]",
            show_default=False,
            rich_help_panel=MACHINES,
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS",
            help="Ray cluster that the workers are on, such as ray://host:10001. "
            "[dim]default: this machine[/dim]",
            show_default=False,
            rich_help_panel=MACHINES,
        ),
    ] = None,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential",
            help="End the test as soon as all that was asked for is decided; its "
            "intervals hold at every look, and are wider. Pays from 100 prompts on.",
            rich_help_panel=SIZES,
        ),
    ] = False,
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
        "engine": engine, "sequential": sequential or None,
    }  # fmt: skip
    place = Place(device, device_map, workers, ray_address)
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
        bound = "at most " if any(spec.sequential for spec in wanted.values()) else ""
        out.print(f"In all {bound}about {duration(seconds)}.")
    elif folder is None:
        raise BadSpec("--out is missing: the folder where the run is kept.")
    else:
        audited(wanted, folder, place=place, sweep=layers is not None)


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


def audited(
    specs: Mapping[str, Any],
    folder: Path,
    *,
    lm: "LanguageModel | None" = None,
    place: Place | None = None,
    sweep: bool = False,
) -> None:
    """One run in `folder`, or one a trait or layer in folders of their own below it."""
    from steergauge.report import write_report
    from steergauge.runs import plan
    from steergauge.runs.execute import audit as run_audit
    from steergauge.runs.execute import audit_traits
    from steergauge.runs.sweep import audit_layers
    from steergauge.runs.tested import looks

    first, *rest = specs.values()
    for spec in (first, *rest):
        looks(plan.read(spec))  # What is wrong with it is said before loading.
    where = place or Place()
    model = lm or loaded_model(
        first.model,
        first.revision,
        first.dtype,
        where.device,
        first.trust_remote_code,
        device_map=where.device_map,
    )
    try:
        with ExitStack() as held:
            workers = _workers(held, first, model, where)
            helped: dict[str, Any] = {
                "workers": workers,
                "progress": held.enter_context(bars()),
            }
            if sweep:
                runs = audit_layers(model, specs, out=folder, **helped)
            elif rest:
                runs = audit_traits(model, specs, out=folder, **helped)
            else:
                runs = {"": run_audit(model, out=folder, spec=first, **helped)}
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


def _workers(
    held: ExitStack, spec: "Spec", lm: "LanguageModel", place: Place
) -> "Pool | None":
    """Processes that share the work, if any were asked for; started and `held`."""
    if place.workers is None and place.address is None:
        return None
    from steergauge.runs.distributed import Pool
    from steergauge.runs.worker import ModelSource

    source = ModelSource(
        spec.model,
        revision=spec.revision or None,
        dtype=spec.dtype,
        device=place.device,
        trust_remote_code=spec.trust_remote_code,
        fingerprint=lm.fingerprint,
    )
    pool = Pool(place.workers, address=place.address, model=source)
    with err.status("starting workers"):
        return held.enter_context(pool)
