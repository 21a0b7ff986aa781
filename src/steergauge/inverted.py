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

SHORTEST = 2
"""Tolerances that a step must exceed: in a shorter one, the balls about the natural and
the steered state overlap, and what is accepted for the one may be the other."""


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

    def is_too_short(self, step: "Step") -> bool:
        """Whether steering did so little at the place that nothing is to be inverted.

        Of a step of the steered inversion.
        """
        return self.step[step.place] <= SHORTEST * step.tolerance


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
            *_named(search, one, step, judged=not one.is_too_short(step)),
            f"{step.distance:.3g}",
            f"{one.step[step.place]:.3g}",
            _ratio(step.distance, one.step[step.place]),
            f"{step.tolerance:.2g}",
        )
    return table


def _named(
    search: Search, one: Inverted, step: "Step", *, judged: bool = True
) -> tuple[str, Text, Text, Text]:
    """Place, the prompt's token, the one that was found, and whether it is taken."""
    own = one.ids[step.place]
    if not judged:
        near = Text(_token(search.lm, step.token), "dim")
        return str(step.place), Text(_token(search.lm, own)), near, Text("~", "dim")
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
    loose = _loose_words(search, steps)
    exactly = "" if loose else " exactly"
    lines = [
        f"{right} of {total} tokens recovered{exactly}; {100 * looked:.1f} % of the "
        "vocabulary looked at in the median.",
        f"Recovered{filled}: {_text(search.lm, one.natural.tokens)}",
        *loose,
    ]
    twins = [s for s in steps if s.accepted and s.token != one.ids[s.place]]
    if twins:
        lines.append(
            f"At place {twins[0].place} another token than the prompt's has a state "
            "within the tolerance, which cannot tell the two apart."
        )
    if failure is not None:
        step = steps[failure]
        wrong = [s.place for s in steps[: failure + 1] if s.token != one.ids[s.place]]
        why = "Rounding alone does more to this model's states."
        if wrong:
            why = f"At place {wrong[0]} another token than the prompt's was taken."
        lines.append(
            f"At place {failure} no token was accepted: the nearest state is "
            f"{step.distance:.2g} away, the tolerance ({tolerance}) is "
            f"{step.tolerance:.2g}. {why}"
        )
    return lines


def _loose_words(search: Search, steps: Sequence["Step"]) -> list[str]:
    """That tokens which were not tested may be nearer than those that were taken."""
    size = search.lm.d_vocab
    loose = [s for s in steps if s.tested < size and s.tolerance > s.other / 2]
    if not loose:
        return []
    one = loose[0]
    return [
        f"Warning: at {len(loose)} of {len(steps)} places the tolerance is more than "
        "half the distance to the next nearest of the tokens tested (place "
        f"{one.place}: {one.tolerance:.2g} against {one.other:.2g}), so that one that "
        "was not tested may be nearer than the one that was taken. --exhaustive tests "
        "all; a smaller --tolerance takes fewer."
    ]


def _steered_words(search: Search, one: Inverted) -> list[str]:
    assert one.steered is not None
    steps, tokens = one.steered.steps, one.steered.tokens
    if not any(one.step):
        return ["The step is 0: these are the natural states."]
    judged = [s for s in steps if not one.is_too_short(s)]
    failed = next((s for s in judged if not s.accepted), None)
    lines = _short_words(len(steps), len(steps) - len(judged))
    if failed is not None:
        lines += _failure_words(search, one, failed)
    elif judged:
        which = "All" if len(judged) == len(steps) else "The other"
        lines.append(
            f"{which} {len(judged)} steered states are, within the tolerance, those "
            f"of the prompt {_text(search.lm, tokens)}."
        )
    lines += _stopped_words(search, one)
    return lines + _loose_words(search, judged)


def _short_words(num: int, short: int) -> list[str]:
    """That nothing can be claimed where steering does no more than the tolerance."""
    if not short:
        return []
    return [
        f"At {short} of {num} places (marked ~) the step is at most {SHORTEST} "
        "tolerances long: too short to tell a steered state from a natural one, so "
        "that there is nothing to invert and nothing is claimed. Steer by more, or "
        "make the tolerance smaller, such as by a finer --dtype."
    ]


def _failure_words(search: Search, one: Inverted, failed: "Step") -> list[str]:
    """Where a steered state is of no token, how far the nearest is, what that means."""
    assert one.steered is not None
    found, lm, length = one.steered, search.lm, one.step[failed.place]
    own = " (the prompt's own)" if failed.token == one.ids[failed.place] else ""
    lines = [
        f"The inversion fails at place {failed.place}: of all {failed.tested} tokens "
        f"that could stand there none makes the steered state. The nearest is "
        f"{_token(lm, failed.token)}{own}, {failed.distance:.3g} away, "
        f"{_ratio(failed.distance, length)} of the step, which is {length:.3g} long.",
        "So fails any step longer than the tolerance, unless it ends where another "
        "token's state is; how far random steps of the same length end up is in "
        "`steergauge audit --audits states`.",
    ]
    if search.go_on:
        same = sum(s.token == one.ids[s.place] for s in found.steps)
        lines.append(
            f"With the nearest token at every place: {_text(lm, found.tokens)}; the "
            f"prompt's own in {same} of {len(found.steps)}."
        )
    if one.natural.first_failure is not None:
        lines.append(
            "Nor were all of the prompt's natural states recovered, so that to fail "
            "says nothing here."
        )
    return lines


def _stopped_words(search: Search, one: Inverted) -> list[str]:
    """That the places after the one where the search stopped were not looked at."""
    assert one.steered is not None
    stop, first = one.steered.first_failure, one.ids[0]
    if stop is None or search.go_on or stop + 1 == len(one.ids):
        return []
    after = f"--go-on looks at the {len(one.ids) - stop - 1} places after it."
    if stop == 0 and first in search.lm.tokenizer.all_special_ids:
        return [
            f"Place 0 holds the special token {_token(search.lm, first)}, whose state "
            "there is the same in every prompt that begins with it, so that nothing "
            f"of this prompt's own was looked at yet. {after}"
        ]
    return [f"The search stopped at place {stop}, where nothing was accepted. {after}"]


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
        "nothing_to_invert": [
            step.place
            for step in (one.steered.steps if one.steered else ())
            if one.is_too_short(step)
        ],
    }


def _found(
    lm: "LanguageModel", done: "Inversion", ids: Sequence[int]
) -> dict[str, Any]:
    steps = [
        asdict(step)
        | {
            "text": lm.tokenizer.decode([step.token]),
            "second": None if math.isnan(step.second) else step.second,
            "other": step.other if math.isfinite(step.other) else None,
        }
        for step in done.steps
    ]
    return {
        "text": lm.tokenizer.decode(list(done.tokens)),
        "exact": done.exact(ids),
        "first_failure": done.first_failure,
        "steps": steps,
    }
