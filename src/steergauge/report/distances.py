"""T16 on the reachability page: every token's state against the steered one."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.report.cells import part, portion, size
from steergauge.report.grid import (
    UNKNOWN,
    Cell,
    Column,
    Grid,
    Row,
    known,
    tables,
)
from steergauge.report.sections import Details, Section, value
from steergauge.report.tokens import quoted, visible
from steergauge.report.verdicts import sign
from steergauge.report.words import padded, percent, plain, typeset

Record = Mapping[str, Any]

SHOWN = 20
"""Collisions that are named; the findings have all."""

_CARRIES = (
    "All tokens were tried, so within one more token nothing can have been missed. "
    "But that no token gives exactly this state says little by itself. Prompts give "
    "countably many states, so that in any model, in exact arithmetic, adding any v "
    "other than 0 misses every one of them at the first steered position with all but "
    "countably many strengths, be the step as short as 1e-30. What arXiv 2604.09839 "
    "proves of random weights and vectors thus holds more widely still, and distances "
    "above 0 are what any step has. Ratios against controls are what carries "
    "information: the distance over the step's length beside that of random steps, and "
    "states of real tokens, which the same search has to find. Prompts of other length "
    "or wording were not tried here, and a text may be in reach where the state is not."
)
_FAMILIES = {
    "natural": ("natural", "the prompt's own state, on another compute path"),
    "constructed": ("constructed", "the state of another token: it must be found"),
    "v": ("v", "the vector under audit"),
    "random": ("random steps", "of v's length"),
    "sign_flip": ("sign flips", "v's pairs with random signs, of v's length"),
    "other_pair": ("other pairs", "between two other prompts, of v's length"),
}


def distances(finding: Finding) -> Section:
    """The section of T16, but for its figures."""
    details = finding.details
    return Section(
        "states",
        "One token further: every next token against the steered state",
        finding,
        _CARRIES,
        grids=tables(_by_target(details), _rules(details)),
        folded=tables(_positions(details)),
        told=_told(details),
    )


def _by_target(details: Details) -> Grid:
    columns = (
        Column("eta", "", "d1 over the step's length; median [5 %, 95 %]"),
        Column("nearest is original", "", "share of positions"),
        Column("accepted", "", "d1 within the tolerance"),
        Column("d1 / d2", "", "median"),
        Column("cosine", "", "best match of a token swap with the step"),
        Column("shorter swaps", "", "token swaps shorter than the step"),
    )
    rows = tuple(
        Row(*_family(one), _cells(one), aside=one["name"] != "v")
        for one in details.get("by_target") or ()
    )
    note = (
        "eta near 1 means that nothing is nearer than the state that was steered, "
        "as random steps show: compare the rows"
    )
    return Grid("What was searched for", note, "target", columns, (("", rows),))


def _family(one: Record) -> tuple[str, str]:
    name, note = _FAMILIES.get(one["name"], (str(one["name"]), ""))
    num = one.get("num") or 1
    return name, typeset(f"{note}; {num} a position" if num > 1 else note)


def _cells(one: Record) -> tuple[Cell, ...]:
    eta, low, high = (one.get(name) for name in ("eta", "eta_low", "eta_high"))
    between = f"[{padded(low)}, {padded(high)}]" if known(low) and known(high) else ""
    return (
        Cell(padded(eta), between) if known(eta) else UNKNOWN,
        part(one.get("nearest_is_original")),
        part(one.get("accepted")),
        size(one.get("margin")),
        size(one.get("cosine")),
        part(one.get("shorter")),
    )


def _rules(details: Details) -> Grid:
    """The published rules beside the calibrated one, each on natural states too."""
    seen = {one["name"]: one for one in details.get("by_target") or ()}
    fixed = details.get("published_tolerance") or {}
    tenfold = details.get("order_of_magnitude") or {}
    size_of = plain(fixed.get("tolerance") or 1e-5)
    rows = (
        _rule(
            "calibrated",
            "five times the noise between compute paths, place by place",
            *(seen.get(name, {}).get("accepted") for name in ("natural", "v")),
        ),
        _rule(
            f"d1 < {size_of}",
            "emulation of the published code's fixed tolerance, not the authors' run",
            fixed.get("natural"),
            fixed.get("v"),
        ),
        _rule(
            "d1 < d2 / 10",
            "emulation of the published order-of-magnitude rule, not the authors' run",
            tenfold.get("natural"),
            tenfold.get("v"),
        ),
    )
    columns = (
        Column("natural", "accepted", "all of these should be"),
        Column("v", "accepted", "steered states"),
    )
    note = (
        "a rule that turns natural states away says nothing by turning steered ones "
        "away. The experiments of arXiv 2604.09839 use the second published rule; "
        "2510.15511 names calibration on held-out states"
    )
    return Grid("When a state counts as reached", note, "rule", columns, (("", rows),))


def _rule(name: str, note: str, natural: float | None, steered: float | None) -> Row:
    return Row(name, typeset(note), (part(natural), part(steered)))


def _told(details: Details) -> tuple[str, ...]:
    told = (_searched(details), _behaviour(details), _shared(details))
    return tuple(sentence for sentence in told if sentence)


def _searched(details: Details) -> str:
    num, judged = details.get("num_positions"), details.get("num_resolvable")
    if num is None:
        return ""
    how = "taken out" if details.get("steering") == "ablation" else "added"
    layer, read = details.get("layer"), details.get("read_layer")
    site = f"after block {layer}"
    if read is not None and read != layer:
        site = f"{site} and states were read after block {read}"
    shares = details.get("shares") or {}
    split = ", ".join(
        f"{sign(name)} {name} {percent(share)}" for name, share in shares.items()
    )
    return (
        f"v was {how} {site}. At each of {num} positions of "
        f"{len(details.get('prompts') or ())} prompts all "
        f"{_grouped(details.get('num_vocabulary'))} tokens were put behind the same "
        f"beginning; {judged} positions could be judged."
        + (f" Position by position: {split}." if split else "")
    )


def _behaviour(details: Details) -> str:
    kl = details.get("kl") or {}
    none, least = value(kl, "none"), value(kl, "least")
    if none is None or least is None:
        return ""
    left = value(kl, "share")
    of = "" if left is None else f", {portion(left)} of it"
    return (
        f"What is written next differs between steered and unsteered state by "
        f"{padded(none)} nats (median); {_candidates(details)} a position, the best "
        f"leaves {padded(least)}{of}. This is about "
        "behaviour, and may be small where the state is far, or large where it is "
        "near."
    )


def _candidates(details: Details) -> str:
    """Over which tokens the smallest KL is; `num_kl` is the least of all positions."""
    num, tokens = details.get("num_kl"), details.get("num_vocabulary")
    if num is not None and num == tokens:
        return f"of all {num:,} tokens"
    return "of the candidates" if num is None else f"of {num:,} candidates or more"


def _grouped(num: int | None) -> str:
    return "" if num is None else f"{num:,}"


def _shared(details: Details) -> str:
    pairs = details.get("collisions") or ()
    if not pairs:
        return ""
    named = [f"{quoted(one)} and {quoted(other)}" for one, other in pairs]
    rest = len(named) - SHOWN
    more = f", and {rest} more pairs" if rest > 0 else ""
    return (
        "Collisions, two tokens that give one state within the tolerance: "
        f"{', '.join(named[:SHOWN])}{more}."
    )


def _positions(details: Details) -> Grid:
    prompts = details.get("prompts") or []
    columns = (
        Column("verdict"),
        Column("eta", "steered state", "d1 over the step"),
        Column("nearest", "steered state", "second nearest below"),
        Column("d1", "steered state", "d2 below"),
        Column("tolerance", "steered state", "the step's length below"),
        Column("natural d1", "controls", "natural d2 below"),
        Column("random d1", "controls", "median, 5 % quantile below"),
        Column("shorter swaps", "token swaps", "than the step"),
        Column("cosine", "token swaps", "with the token"),
        Column("KL", "next token", "steered from unsteered, nats"),
        Column("least KL", "next token", "of a token, nats"),
    )
    found = groupby(details.get("positions") or (), key=lambda one: one["prompt"])
    bodies = tuple(
        (_title(prompts, index), tuple(_position(one) for one in own))
        for index, own in found
    )
    return Grid("Every position", "distances as measured", "token", columns, bodies)


def _title(prompts: Sequence[str], index: int) -> str:
    return visible(prompts[index], 80) if index < len(prompts) else str(index)


def _position(one: Record) -> Row:
    cells = (
        Cell(f"{sign(one['verdict'])} {one['verdict']}"),
        size(one.get("eta")),
        _named(one.get("nearest"), one.get("second")),
        _two(one.get("d1"), one.get("d2")),
        _two(one.get("tolerance"), one.get("length")),
        _two(one.get("natural_d1"), one.get("natural_d2")),
        _two(one.get("random_median"), one.get("random_low")),
        part(one.get("shorter")),
        _with(one.get("cosine"), one.get("aligned")),
        size(one.get("kl_none")),
        _with(one.get("kl_least"), one.get("kl_token")),
    )
    return Row(visible(one["token"]), f"place {one['place']}", cells)


def _two(above: float | None, below: float | None) -> Cell:
    if not known(above):
        return UNKNOWN
    return Cell(padded(above), padded(below) if known(below) else "")


def _named(first: str | None, second: str | None) -> Cell:
    if first is None:
        return UNKNOWN
    return Cell(visible(first), "" if second is None else visible(second))


def _with(number: float | None, token: str | None) -> Cell:
    if not known(number):
        return UNKNOWN
    return Cell(padded(number), "" if token is None else visible(token))
