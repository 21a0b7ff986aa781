"""What the command line shows: progress bars, errors, texts and verdicts."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from steergauge.errors import SteergaugeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steergauge.audits.finding import Finding
    from steergauge.runs.estimate import Forecast
    from steergauge.runs.execute import Run
    from steergauge.split import LanguageModel

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

VERDICT_STYLE = {
    "PASS": "bold green",
    "EQUIVALENT": "bold green",
    "FAIL": "bold red",
    "DIFFERENT": "bold magenta",
    "INCONCLUSIVE": "bold yellow",
    "UNINFORMATIVE": "bold bright_black",
    "EXPLAINED BY GEOMETRY": "bold cyan",
    "NONLINEAR": "bold yellow",
    "LOCAL THEORY APPLIES": "bold green",
    "MEASURED": "bold cyan",
    "EXACT NULL": "bold magenta",
    "FIRST-ORDER NULL": "bold magenta",
    "EFFECTIVE NULL": "bold magenta",
    "VISIBLE": "bold green",
    "HIDDEN": "bold red",
    "SHARED NULL": "bold magenta",
    "SHRINKING": "bold yellow",
    "FULL": "bold green",
    "NON-IDENTIFIABLE-STRUCTURED": "bold magenta",
    "NON-IDENTIFIABLE-GENERIC": "bold magenta",
    "IDENTIFIABLE WITHIN": "bold cyan",
    "ONE CLASS": "bold green",
    "SEVERAL CLASSES": "bold magenta",
    "REACHABLE": "bold green",
    "EPSILON-CLOSE": "bold yellow",
    "ORIGIN-NEAREST (UNREACHED)": "bold magenta",
    "UNREACHED": "bold magenta",
    "FOUND": "bold green",
    "NOT FOUND AT BUDGET": "bold yellow",
    "ON MANIFOLD": "bold green",
    "OFF MANIFOLD": "bold magenta",
}

"""Of each verdict."""

SIGNED, PLAIN, SHARE = "+.3g", ".3g", "%"
"""How a number is written: with its sign, without, in percent."""

NUMBER = {
    "manipulation": (SIGNED, "lift, score 0 to 1"),
    "equivalence": (SIGNED, "lift less v's"),
    "divergence": (PLAIN, "nats a text"),
    "scale": (SIGNED, "lift less v's"),
    "replication": (SIGNED, "|d|, in SDs"),
    "logits": (PLAIN, "T, 1 by geometry"),
    "environments": (SIGNED, "lift, the worst"),
    "environments[]": (SIGNED, "lift less v's"),
    "reliability": (SHARE, "of the prompts"),
    "spectrum": (PLAIN, "dimensions"),
    "nulls": (PLAIN, "nats a text"),
    "saturation": (PLAIN, "dimensions"),
    "decomposition": (PLAIN, "x a random v's cost"),
    "alternative": (SHARE, "of v's KL"),
    "linearity": (PLAIN, "x ||alpha v||"),
    "gauge": (PLAIN, "relative error"),
    "methods": (SHARE, "of v's KL"),
    "states": (PLAIN, "eta (of the step)"),
    "inversion": (SHARE, "of the tokens"),
    "access": (SHARE, "of the KL left"),
    "density": (SHARE, "of states p < .01"),
}
"""How an audit's number is written, and its unit; `[]` is one with a subject."""

LEVEL = 0.95
"""That of an interval of which nothing else is said."""

SHORT = ("T16", "T17", "T18", "T19")
"""Audits of which the page says more than the terminal: here `NUM_REASONS`."""

NUM_REASONS = 2


class Bars:
    """A progress bar a stage, with the time that is left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def begin(self, label: str, total: int) -> None:
        """A stage of `total` units begins."""
        same = [task.id for task in self._progress.tasks if task.description == label]
        if same:  # A sequential run comes back to its stages at every look.
            self._progress.reset(same[0], total=total)
        self._task = same[0] if same else self._progress.add_task(label, total=total)

    def advance(self, num: int) -> None:
        """`num` more units of the stage are done."""
        if self._task is not None:
            self._progress.advance(self._task, num)


class Lines:
    """A line a stage, for a log file."""

    def begin(self, label: str, total: int) -> None:
        """A stage of `total` units begins."""
        err.print(Text(f"{label} ({total})"))

    def advance(self, num: int) -> None:
        """Nothing: a log is not a bar."""


@contextmanager
def bars() -> Generator[Bars | Lines]:
    """Progress bars on standard error while the `with` lasts; lines if it is a file."""
    if not err.is_terminal:
        yield Lines()
        return
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as progress:
        yield Bars(progress)


def loaded_model(
    model: str,
    revision: str,
    dtype: str,
    device: str | None,
    trust_remote_code: bool,
    *,
    device_map: str | None = None,
) -> "LanguageModel":
    """The model that a verb's options name, while its name is shown."""
    with err.status(f"loading {model}"):
        from transformers.utils import logging

        from steergauge.loading import load

        logging.disable_progress_bar()
        return load(
            model,
            revision=revision or None,
            dtype=dtype,
            device=device,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
        )


def error_block(error: SteergaugeError) -> Panel:
    """One readable block: what was found, the likeliest cause, what to do."""
    lines = [Text(error.found)]
    if error.cause:
        lines.append(Text.assemble(("Likely cause  ", "bold"), error.cause))
    if error.remedy:
        lines.append(Text.assemble(("What to do    ", "bold"), error.remedy))
    title = f"[bold red]{type(error).__name__}"
    return Panel(Group(*lines), title=title, title_align="left", border_style="red")


def show_texts(texts: Any, alpha: float | None) -> None:
    """Texts by prompt and sample, one arm under another."""
    for index in sorted({text.index for text in texts}):
        own = [text for text in texts if text.index == index]
        table = Table(title=Text(own[0].prompt), title_justify="left", show_lines=True)
        table.add_column("arm", style="bold", no_wrap=True)
        table.add_column("text")
        for text in sorted(own, key=lambda text: text.sample):
            steered = alpha is not None and text.arm == "steered"
            name = f"alpha = {alpha:+g}" if steered else text.arm
            table.add_row(name, Text(text.text.strip()))
        out.print(table)


def show_forecast(name: str, seen: "Forecast") -> None:
    """What a run will do and cost, as a table."""
    size = seen.size
    table = Table(title=name or seen.model, title_justify="left", show_header=False)
    table.add_column("", style="bold", no_wrap=True)
    table.add_column("")
    memory = seen.weight_bytes + seen.cache_bytes + seen.logit_bytes
    rows = {
        "model": f"{seen.model}: {size.num_parameters / 1e9:.3g} billion parameters, "
        f"d_model {size.d_model}",
        "layer": f"{seen.layer} (of 0 to {size.num_layers - 1}; the middle one is "
        f"{size.num_layers // 2})",
        "arms": f"{seen.num_test_arms} in the test",
        "texts": f"{seen.num_generations:,} to be generated",
        "tokens": f"up to {seen.num_tokens_generated:,} generated, "
        f"{seen.num_tokens_scored:,} scored",
        "memory": f"{memory / 1e9:.1f} GB: weights {seen.weight_bytes / 1e9:.1f}, "
        f"cache {seen.cache_bytes / 1e9:.1f}, logits {seen.logit_bytes / 1e9:.1f}",
        "arithmetic": f"{seen.flops:.2g} FLOPs",
        "time": f"about {duration(seen.seconds)} on this device, whose matrix "
        f"products were measured now at {seen.speed / 1e9:.3g} GFLOP/s; the order of "
        "magnitude is meant, no more",
    }
    if seen.looks is not None:
        rows["sequential"] = f"at most this; looks {seen.looks.listed}"
    for key, value in rows.items():
        table.add_row(key, value)
    out.print(table)


def _short(value: float, form: str) -> str:
    """Three digits; what is as good as 0 is 0."""
    if form == SHARE:
        return f"{100 * value:.3g}%" if abs(value) >= 1e-4 else "0%"
    return f"{value:{form}}" if abs(value) >= 1e-4 else "0"


def number(finding: "Finding") -> str:
    """The finding's number over its interval and unit; empty if it has none."""
    seen = finding.estimate
    if seen is None:
        return ""
    named = f"{finding.audit}[]" if finding.subject else finding.audit
    form, unit = NUMBER.get(named) or NUMBER[finding.audit]
    lines = [_short(seen.value, form)]
    if seen.low != seen.high:
        level = "" if seen.level == LEVEL else f" {100 * seen.level:.3g} %"
        ends = f"[{_short(seen.low, form)}, {_short(seen.high, form)}]"
        lines.append(f"{ends}{level}")
    return "\n".join([*lines, unit])


def reasons(finding: "Finding") -> str:
    """Why, in one paragraph, which does not bury the verdict."""
    told = list(finding.reasons)
    if finding.code in SHORT and len(told) > NUM_REASONS:
        told = [*told[:NUM_REASONS], "(more on the page)"]
    return " ".join(told)


def duration(seconds: float) -> str:
    """In the unit that gives a small number."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(seconds, 1):.0f} seconds"


def _done(facts: "Mapping[str, Any]", findings: "Mapping[str, Finding]") -> str:
    """Model, layer and what was done there: the title of the table."""
    from steergauge.report.steering import ABLATION, ablated, read_after

    place = f"{facts['layer']} (of 0 to {facts['num_layers'] - 1})"
    read = read_after(findings)
    if read is not None:
        place += f", states read after {read}"
    step = f"step {facts['step']:.2f} of median ||h||"
    if facts.get("alpha_was_recommended"):
        step += "; chosen by the dose curve"
    done = ABLATION if ablated(facts) else f"alpha = {facts['alpha']:+g} ({step})"
    return f"{facts['model']}, layer {place}, {done}"


def show_run(run: "Run") -> None:
    """A table of verdicts, then why."""
    from steergauge.report.steering import annotated

    facts = run.facts
    findings = annotated(run.findings, facts)
    table = Table(title=_done(facts, findings), title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("claim")
    table.add_column("number\n[95 % unless said]", no_wrap=True)
    table.add_column("verdict", max_width=len("ORIGIN-NEAREST"))
    for finding in findings.values():
        verdict = Text(str(finding.verdict), VERDICT_STYLE[finding.verdict])
        told = (Text(finding.claim), Text(number(finding)), verdict)
        table.add_row(finding.code, *told)
    out.print(table)
    for finding in findings.values():
        name = finding.code + (f" {finding.subject}" if finding.subject else "")
        out.print(Text(f"{name}: {reasons(finding)}"), soft_wrap=False)
        judged = finding.verdict not in ("UNINFORMATIVE", "FAIL")
        for control in finding.controls:
            if judged and not control.holds:
                out.print(
                    Text(f"   control {control.name} did not hold: {control.expected}"),
                    style="yellow",
                )
    if plan := facts.get("sequential"):
        out.print(Text(plan["reason"]))
    probe = facts["probe"]
    if probe and "manipulation" in findings:
        out.print(
            f"Probe: {probe['name']}, AUC {probe['auc']:.2f} on "
            f"{probe['num_labelled']} labelled texts.",
            style="dim",
        )
    for line in facts["not_run"]:
        out.print(Text(f"Not run: {line}"), style="dim")
