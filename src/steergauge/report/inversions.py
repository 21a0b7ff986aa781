"""T17 on the reachability page: texts read back from states, token by token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.report.cells import part
from steergauge.report.grid import UNKNOWN, Cell, Column, Grid, Row, measured, tables
from steergauge.report.samples import printable
from steergauge.report.sections import Details, Section, estimated, value
from steergauge.report.tokens import quoted, visible
from steergauge.report.words import plain

Record = Mapping[str, Any]

OPEN = 3
"""So many sequences are open, the rest are folded."""

_CARRIES = (
    "The search is that of arXiv 2510.15511 (SipIt): states of one layer are read back "
    "to tokens one after another, which works for natural states of the models tried "
    "there and is its control here. It goes on only from what it has recovered. Where "
    "it stops on steered states, no token behind the text so far gives them. In exact "
    "arithmetic nearly any multiple of any vector, added where states are read, gives "
    "those of no text at all; so what counts is that natural states are recovered "
    "under the same tolerance, and where the steered ones fail. It does not say that "
    "no prompt makes the model write the same."
)
RECOVERED, TWIN, FAILED, UNTRIED = "recovered", "twin", "failed", "untried"
SIGNS = {RECOVERED: "✓", TWIN: "≈", FAILED: "✕", UNTRIED: "·"}
MEANINGS = {
    RECOVERED: "the token that was there, within the tolerance",
    TWIN: "another token, within the tolerance",
    FAILED: "no token within the tolerance; the nearest is named",
    UNTRIED: "not tried, for the search had stopped",
}


@dataclass(frozen=True, slots=True)
class Spelled:
    """One token of a sequence: how it came out, and what was found."""

    token: str
    status: str
    found: str
    label: str
    first: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """One kind of states of a prompt, read back."""

    name: str
    note: str
    tokens: tuple[Spelled, ...]


@dataclass(frozen=True, slots=True)
class Sequences:
    """A prompt with its natural and its steered states, read back."""

    prompt: str
    readings: tuple[Reading, ...]


def inversions(finding: Finding) -> Section:
    """The section of T17, but for its sequences."""
    details = finding.details
    return Section(
        "inversion",
        "Whole texts: states read back to tokens",
        finding,
        _CARRIES,
        grids=tables(_summary(details)),
        told=_told(details),
    )


def sequences(details: Details) -> tuple[Sequences, ...]:
    """Every prompt's states, read back token by token."""
    return tuple(
        Sequences(
            printable(str(one["prompt"])),
            (
                _reading("natural states", one["tokens"], one["natural"]),
                _reading("steered states", one["tokens"], one["steered"]),
            ),
        )
        for one in details.get("sequences") or ()
    )


def _reading(name: str, tokens: Sequence[str], seen: Record) -> Reading:
    found = seen["recovered"]
    status = [
        _status(token, found, seen["accepted"], place)
        for place, token in enumerate(tokens)
    ]
    stopped = next((k for k, one in enumerate(status) if one == FAILED), None)
    if stopped is None:
        kept = sum(one == RECOVERED for one in status)
        note = f"{kept} of {len(tokens)} tokens recovered"
    else:
        note = f"first failure at place {stopped}, {quoted(tokens[stopped])}"
    spelled = tuple(
        Spelled(
            visible(token),
            one,
            _found(one, found[k]) if one in (TWIN, FAILED) else "",
            _label(seen, one, k),
            k == stopped,
        )
        for k, (token, one) in enumerate(zip(tokens, status, strict=True))
    )
    return Reading(name, note, spelled)


def _found(status: str, token: str) -> str:
    return f"{'read as' if status == TWIN else 'nearest'} {visible(token)}"


def _status(
    token: str, found: Sequence[str], accepted: Sequence[bool], place: int
) -> str:
    if place >= len(found):
        return UNTRIED
    if not accepted[place]:
        return FAILED
    return RECOVERED if found[place] == token else TWIN


def _label(seen: Record, status: str, place: int) -> str:
    """What happened, and the numbers where they were kept."""
    if status == UNTRIED:
        return f"place {place}: {MEANINGS[status]}"
    parts = [
        f"{name} {plain(seen[name][place])}"
        for name in ("distance", "tolerance")
        if name in seen and seen[name][place] is not None
    ]
    return f"place {place}: {status}; {', '.join(parts)}"


def _summary(details: Details) -> Grid:
    natural, steered = details.get("natural") or {}, details.get("steered") or {}
    published = details.get("published") or {}
    fixed = plain(published.get("tolerance") or 1e-5)
    columns = (
        Column("texts recovered", "calibrated tolerance"),
        Column("tokens", "calibrated tolerance", "before the first failure"),
        Column("tokens tried", "calibrated tolerance", "median share of all"),
        Column("tokens", f"d < {fixed}", "emulation, accepted"),
        Column("texts recovered", f"d < {fixed}", "emulation"),
    )
    whole = published.get("natural_exact")
    rows = (
        Row(
            "natural states", "the control: all should be recovered",
            (
                _of(natural.get("exact"), natural.get("num")),
                measured(estimated(natural, "recovered"), "share"),
                part(value(natural, "tested")),
                part(value(published, "natural")),
                _of(whole, natural.get("num")),
            ),
        ),
        Row(
            "steered states", "v at every position",
            (
                _of(steered.get("reached"), steered.get("num")),
                measured(_accepted(details), "share"),
                UNKNOWN,
                part(value(published, "steered")),
                UNKNOWN,
            ),
        ),
    )  # fmt: skip
    note = (
        "the fixed tolerance emulates the published code on the same distances; it is "
        "not the authors' run"
    )
    return Grid("What was recovered", note, "states", columns, (("", rows),))


def _accepted(details: Details) -> Sequence[float | None] | None:
    return estimated(details.get("steered") or {}, "accepted")


def _of(found: float | None, num: float | None) -> Cell:
    if found is None or num is None:
        return UNKNOWN
    # A share of texts, or their number.
    shown = found if isinstance(found, int) else round(found * num)
    return Cell(f"{shown} of {num}")


def _told(details: Details) -> tuple[str, ...]:
    steered = details.get("steered") or {}
    places = [one for one in steered.get("first_failure") or () if one is not None]
    told = []
    if places:
        first = sum(place == min(places) for place in places)
        where = f"at place {min(places)}"
        if max(places) > min(places):
            where = f"{first} of them {where}, the latest at place {max(places)}"
        told.append(
            f"Read back, the steered states of {len(places)} of {steered.get('num')} "
            f"prompts stop being those of a text {where}."
        )
    same = value(steered, "same_text")
    if same is not None:
        told.append(
            "Taking the nearest token where none is near enough gives the prompt "
            f"itself back in {part(same).text} of the prompts."
        )
    num = details.get("num_vocabulary")
    tested = value(details.get("natural") or {}, "tested")
    if num is not None and tested is not None:
        told.append(
            f"To recover a token of a natural state took {tested * num:.0f} tries of "
            f"{num:,} tokens (median), for likely tokens are tried first."
        )
    return tuple(told)
