"""What the verb `invert` shows of an inversion: tables by token, words, and JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from steergauge.terminal import out

if TYPE_CHECKING:
    from steergauge.intervention import Intervention
    from steergauge.reachability.inversion import Ball, Inversion, Step
    from steergauge.split import LanguageModel

WIDEST = 13
"""Characters of a token in a table, so that its rows fit into 80."""


@dataclass(frozen=True, slots=True)
class Inverted:
    """A prompt with the inversions of its states.

    Attributes:
        prompt: as given.
        ids: its tokens, or the first of them.
        num_tokens: of the whole prompt.
        natural: of its own states.
        steered: of the steered ones; None without a vector.
        step: length of steered minus natural state, a token.
        seconds: of both.
    """

    prompt: str
    ids: tuple[int, ...]
    num_tokens: int
    natural: "Inversion"
    steered: "Inversion | None"
    step: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Search:
    """What is inverted and how, alike for every prompt."""

    lm: "LanguageModel"
    layer: int
    steering: "Intervention | None"
    tolerance: "Ball"
    go_on: bool
    exhaustive: bool


def show(search: Search, one: Inverted, tolerance: str) -> None:
    """Tables by token, then in words what was recovered and what was not."""
    out.print(Text.assemble(("Prompt ", "bold"), repr(one.prompt)))
    if len(one.ids) < one.num_tokens:
        out.print(
            f"Its first {len(one.ids)} of {one.num_tokens} tokens; --max-tokens sets "
            "how many, and how many the model reads."
        )
    out.print()
    out.print(_natural_table(search, one))
    out.print()
    for line in _natural_words(search, one, tolerance):
        out.print(Text(line))
    if one.steered is not None:
        out.print()
        out.print(_steered_table(search, one))
        out.print()
        for line in _steered_words(search, one):
            out.print(Text(line))
    out.print(f"In {one.seconds:.1f} s.\n", style="dim")


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="",
        box=box.SIMPLE,
        show_edge=False,
        collapse_padding=True,
    )
    for name in columns:
        words = name in ("token", "recovered", "nearest", "")
        side = "left" if words else "right"
        widest = WIDEST if words else None
        table.add_column(name, justify=side, no_wrap=True, max_width=widest)
    return table


def _natural_table(search: Search, one: Inverted) -> Table:
    read = f"Natural states, output of block {search.layer} of {search.lm.num_layers}"
    tried = f"tested of\n{search.lm.d_vocab}"
    names = ("place", "token", "recovered", "", "distance", "tolerance", tried)
    table = _table(read, *names)
    for step in one.natural.steps:
        table.add_row(
            *_named(search, one, step),
            f"{step.distance:.2g}",
            f"{step.tolerance:.2g}",
            str(step.tested),
        )
    return table


def _steered_table(search: Search, one: Inverted) -> Table:
    assert one.steered is not None
    names = ("place", "token", "nearest", "", "distance", "step", "ratio")
    table = _table(f"Steered states: {_said(search)}", *names, "tolerance")
    for step in one.steered.steps:
        table.add_row(
            *_named(search, one, step),
            f"{step.distance:.3g}",
            f"{one.step[step.place]:.3g}",
            _ratio(step.distance, one.step[step.place]),
            f"{step.tolerance:.2g}",
        )
    return table


def _named(search: Search, one: Inverted, step: "Step") -> tuple[str, Text, Text, Text]:
    """Place, the prompt's token, the one that was found, and whether it is taken."""
    own = one.ids[step.place]
    colour = "green" if step.token == own and step.accepted else "yellow"
    mark = Text("✓", "green") if step.accepted else Text("✗", "red")
    found = Text(_token(search.lm, step.token), colour if step.accepted else "red")
    return str(step.place), Text(_token(search.lm, own)), found, mark


def _token(lm: "LanguageModel", token: int) -> str:
    """In quotes, for a token may be a blank or hold one."""
    return repr(lm.tokenizer.decode([token]))


def _text(lm: "LanguageModel", tokens: Sequence[int]) -> str:
    return repr(lm.tokenizer.decode(list(tokens)))


def _ratio(distance: float, step: float) -> str:
    if not step:
        return "-"
    ratio = distance / step
    return f"{ratio:.3f}" if ratio < 100 else f"{ratio:.3g}"


def _said(search: Search) -> str:
    """What was done to every token, and where it is read."""
    from steergauge.intervention import Add

    done = search.steering
    assert done is not None
    what = f"h {done.alpha:+g} v" if isinstance(done, Add) else "h without v"
    return f"{what} after block {done.site.layer}, read after block {search.layer}"


def _natural_words(search: Search, one: Inverted, tolerance: str) -> list[str]:
    steps, total = one.natural.steps, len(one.ids)
    right = sum(s.accepted and s.token == one.ids[s.place] for s in steps)
    failure = one.natural.first_failure
    filled = "" if failure is None else ", the nearest token where none was accepted"
    looked = median(s.tested for s in steps) / search.lm.d_vocab
    lines = [
        f"{right} of {total} tokens recovered exactly; {100 * looked:.1f} % of the "
        "vocabulary looked at in the median.",
        f"Recovered{filled}: {_text(search.lm, one.natural.tokens)}",
    ]
    twins = [s for s in steps if s.accepted and s.token != one.ids[s.place]]
    if twins:
        lines.append(
            f"At place {twins[0].place} another token than the prompt's has a state "
            "within the tolerance: the two cannot be told apart here."
        )
    if failure is not None:
        step = steps[failure]
        lines.append(
            f"At place {failure} no token was accepted: the nearest state is "
            f"{step.distance:.2g} away, the tolerance ({tolerance}) is "
            f"{step.tolerance:.2g}. Rounding alone does more to this model's states."
        )
    return lines


def _steered_words(search: Search, one: Inverted) -> list[str]:
    assert one.steered is not None
    found, lm = one.steered, search.lm
    failure = found.first_failure
    if not any(one.step):
        return ["The step is 0: these are the natural states."]
    if failure is None:
        return [
            f"All {len(found.steps)} steered states are, within the tolerance, those "
            f"of the prompt {_text(lm, found.tokens)}."
        ]
    step, length = found.steps[failure], one.step[failure]
    own = " (the prompt's own)" if step.token == one.ids[failure] else ""
    lines = [
        f"The inversion fails at place {failure}: of all {step.tested} tokens that "
        f"could stand there none makes the steered state. The nearest is "
        f"{_token(lm, step.token)}{own}, {step.distance:.3g} away, "
        f"{_ratio(step.distance, length)} of the step, which is {length:.3g} long.",
        "To fail is what any step that is not 0 does at this precision; how far random "
        "steps of the same length end up is in `steergauge audit --audits states`.",
    ]
    if search.go_on:
        same = sum(s.token == one.ids[s.place] for s in found.steps)
        lines.insert(
            1,
            f"With the nearest token at every place: {_text(lm, found.tokens)}; the "
            f"prompt's own in {same} of {len(found.steps)}.",
        )
    if one.natural.first_failure is not None:
        lines.append(
            "Nor were all of the prompt's natural states recovered, so that to fail "
            "says nothing here."
        )
    return lines


def write(
    path: Path, search: Search, found: Sequence[Inverted], tolerance: str
) -> None:
    """All that was found, as JSON; what is no number there is null."""
    lm = search.lm
    record = {
        "model": lm.name,
        "fingerprint": lm.fingerprint,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "num_vocabulary": lm.d_vocab,
        "read_layer": search.layer,
        "steering": None if search.steering is None else _said(search),
        "tolerance": tolerance,
        "prompts": [_record(lm, one) for one in found],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _record(lm: "LanguageModel", one: Inverted) -> dict[str, Any]:
    return {
        "prompt": one.prompt,
        "token_ids": list(one.ids),
        "tokens": [lm.tokenizer.decode([token]) for token in one.ids],
        "num_tokens_of_prompt": one.num_tokens,
        "seconds": one.seconds,
        "natural": _found(lm, one.natural, one.ids),
        "steered": one.steered and _found(lm, one.steered, one.ids),
        "step": list(one.step),
    }


def _found(
    lm: "LanguageModel", done: "Inversion", ids: Sequence[int]
) -> dict[str, Any]:
    steps = [
        asdict(step)
        | {
            "text": lm.tokenizer.decode([step.token]),
            "second": None if math.isnan(step.second) else step.second,
        }
        for step in done.steps
    ]
    return {
        "text": lm.tokenizer.decode(list(done.tokens)),
        "exact": done.exact(ids),
        "first_failure": done.first_failure,
        "steps": steps,
    }
