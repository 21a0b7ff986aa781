"""Tables of what `steering.py` measured, for readers."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def protocol_table(result: Mapping[str, Any]) -> Table:
    """Seconds, ratios, lengths and memory of one model's protocol."""
    found = Table(title=f"{result['model']}\n{result['work']}, sampled")
    for column in ("", "median", "lowest", "highest", "tokens a text", "peak, MB"):
        justify = "right" if column else "left"
        found.add_column(column, justify=justify, no_wrap=not column)
    for name, values in result["seconds"].items():
        on = result["timed on"].get(name)
        numbers = (f"{number:.3g} s" for number in values.values())
        length, peak = result["tokens a text"].get(name), result["peak"].get(name)
        found.add_row(
            f"{name}, by {on}" if on else name,
            *numbers,
            f"{length:.1f}" if length else "",
            f"{peak / 1e6:.1f}" if peak else "",
        )
    found.add_section()
    for name, values in result["ratios"].items():
        found.add_row(name, *(f"{number:.3g}" for number in values.values()), "", "")
    return found


def greedy_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Every way under every number of vectors."""
    first = results[0]
    found = Table(
        title=f"{first['model']}\n{first['prompts']} prompts x {first['new']} tokens, "
        "greedy"
    )
    columns = ("vectors", "median", "lowest", "highest", "by ours", "texts", "peak, MB")
    for column in ("", *columns):
        justify = "right" if column else "left"
        found.add_column(column, justify=justify, no_wrap=not column)
    for result in results:
        for name, values in result["seconds"].items():
            ratio = result["ratios"].get(f"{name} / ours", {}).get("median")
            equal, peak = result["equal"].get(name), result["peak"].get(name)
            found.add_row(
                name,
                str(result["vectors"]),
                *(f"{number:.3g} s" for number in values.values()),
                f"{ratio:.3g}" if ratio else "",
                "" if equal is None else f"{equal:.1%} equal",
                f"{peak / 1e6:.1f}" if peak else "",
            )
        for name, reason in result["failed"].items():
            found.add_row(name, str(result["vectors"]), "failed", reason[:40])
        found.add_section()
    return found
