"""Entries of a probe file: each is of its type, and none is unknown.

A probe file is a TOML table. A misspelt key that nobody reads would leave its default
in force without a word, so every kind of probe names the keys that it knows.
"""

from collections.abc import Collection, Mapping
from typing import Any

from steergauge.errors import BadProbe

EVERY_KIND = ("name", "kind", "validation")
"""Keys that any probe file may have."""


def check_keys(name: str, table: Mapping[str, Any], known: Collection[str]) -> None:
    """Passes if the table has no key that this kind of probe does not read.

    Raises:
        BadProbe: it has one.
    """
    unknown = sorted(set(table) - {*EVERY_KIND, *known})
    if unknown:
        kind = table.get("kind", "lexical")
        raise BadProbe(
            f"the probe {name!r}, of the kind {kind!r}, has no entry `{unknown[0]}`.",
            cause="The entry is misspelt, belongs to another kind of probe, or stands "
            "after [validation] and so inside it.",
            remedy=f"It can have {', '.join([*EVERY_KIND, *known])}.",
        )


def labelled(name: str, table: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """High and low texts of [validation]; empty where there are none.

    Raises:
        BadProbe: `validation` is no table of two lists of texts.
    """
    entries = table.get("validation", {})
    if not isinstance(entries, Mapping):
        raise BadProbe(
            f"`validation` of the probe {name!r} is no table.",
            remedy='Write [validation], and under it high = ["..."], low = ["..."].',
        )
    if unknown := sorted(set(entries) - {"high", "low"}):
        raise BadProbe(
            f"[validation] of the probe {name!r} has no entry `{unknown[0]}`.",
            cause="In TOML, an entry after [validation] belongs to that table.",
            remedy="Move it above [validation]; below it are `high` and `low` only.",
        )
    high = texts(name, entries, "high", may_be_empty=True)
    return high, texts(name, entries, "low", may_be_empty=True)


def texts(
    name: str, table: Mapping[str, Any], key: str, *, may_be_empty: bool = False
) -> list[str]:
    """The list of texts under `key`, none of them blank.

    Raises:
        BadProbe: it is no such list.
    """
    entries = table.get(key, [])
    good = isinstance(entries, list) and all(
        isinstance(entry, str) and entry.strip() for entry in entries
    )
    if not good or not (entries or may_be_empty):
        raise BadProbe(
            f"the probe {name!r} has no list of texts under `{key}`, or a blank one.",
            remedy=f'Write {key} = ["...", "..."].',
        )
    return entries


def text(
    name: str, table: Mapping[str, Any], key: str, *, default: str | None = None
) -> str:
    """The text under `key`, or `default` if there is one and no such key.

    Raises:
        BadProbe: it is missing, blank or no text.
    """
    entry = table.get(key, default)
    # A default may be blank; what a file says may not.
    if not isinstance(entry, str) or (key in table and not entry.strip()):
        raise BadProbe(
            f"the probe {name!r} has no text under `{key}`, or a blank one.",
            remedy=f'Write {key} = "...".',
        )
    return entry


def number(
    name: str,
    table: Mapping[str, Any],
    key: str,
    *,
    default: float,
    least: float,
    whole: bool = False,
) -> float:
    """The number under `key`, at least `least`; a whole one on request.

    Raises:
        BadProbe: it is no such number.
    """
    entry = table.get(key, default)
    kinds = int if whole else (int, float)
    # In Python True is a number, and NaN is not below anything.
    good = isinstance(entry, kinds) and not isinstance(entry, bool) and entry >= least
    if not good or entry == float("inf"):
        raise BadProbe(
            f"`{key}` of the probe {name!r} is {entry!r}; it must be a "
            f"{'whole ' if whole else ''}number of at least {least:g}.",
            remedy=f"Write {key} = {default:g}, or leave it out.",
        )
    return entry
