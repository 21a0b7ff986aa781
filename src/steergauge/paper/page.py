"""The printed tables and what they say, on a terminal and as a page of the manual."""

import textwrap
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from steergauge.paper.logits import logits
from steergauge.paper.printed import Printed
from steergauge.paper.scores import correlations, effect_sizes, environments
from steergauge.paper.section import Section, Statement

_WIDTH = 88
_WORDS = ("model", "trait")

_HEAD = """\
# The paper's tables

What the numbers printed in Tables 1 to 3 of {cite}`venkatesh2026` (version 3, under
CC BY 4.0) say by themselves. No model is run for this page; every entry is a closed
form of printed numbers. `steergauge paper-tables --markdown` writes it, and
`steergauge paper-tables FOLDER` says the same of another study's tables in the same
columns.

Each statement has its formula. *Arithmetic* follows from the printed numbers and the
formula. An *inference* also needs something that is not printed, which is named: it may
be very likely, and is not proved. The theory of the paper, its Proposition 1, is not
the subject here; the subject is what these tables can carry.

Notation: $n$ scores an arm; $m(v)$ the mean score under $v$, $m_0$ the unsteered one,
$L(v) = m(v) - m_0$ the lift; ICC the share of the variance of a score that lies between
prompts; $|d|$ Cohen's d as an absolute value, a mean over seeds of $v_\\perp$.
"""

_TAIL = """\
## What would decide

- the number of scores of each cell, with prompts and samples apart;
- an unsteered arm, and the lift of $v$ with its interval;
- a signed d with its interval, and a test of equivalence in the place of a bound on
  $|d|$;
- the ratio of lifts in the place of the perp-only effect;
- R between steps of equal length, from $v$ to $v + v_\\perp$ and from $v$ to $v + r$,
  whose value without any structure is 1.

What of this is measured on a model itself is in [](audits.md).
"""


def sections(printed: Printed) -> tuple[Section, ...]:
    """Every table with what its numbers say."""
    makers = (effect_sizes, correlations, environments, logits)
    return tuple(make(printed) for make in makers)


def shown(sections: Iterable[Section]) -> RenderableType:
    """Every section as a table with its headlines under it."""
    parts: list[RenderableType] = []
    for section in sections:
        parts += [_table(section), Padding(Text(section.legend, "dim"), (0, 0, 1, 1))]
        parts += [_paragraph(statement) for statement in section.headlines]
    closing = (
        "More statements, and what would decide: steergauge paper-tables --markdown"
    )
    return Group(*parts, Text(closing, "dim"))


def _table(section: Section) -> Table:
    table = Table(
        title=Text(section.title, "bold"),
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1),
        pad_edge=False,
    )
    for name in section.columns:
        justify = "left" if name in _WORDS else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    for rows in (section.rows, section.summary):
        before = ""
        for row in rows:
            # A model is named once. Names are text, whatever brackets they have.
            cells = ("" if row[0] == before else row[0], *row[1:])
            table.add_row(*(Text(cell) for cell in cells))
            before = row[0]
        table.add_section()
    return table


def _paragraph(statement: Statement) -> Padding:
    lines = [Text(statement.text), Text(statement.formula, "cyan")]
    if statement.assumes:
        lines.append(Text(f"Inference; needs: {statement.assumes}.", "yellow"))
    return Padding(Group(*lines), (0, 0, 1, 2))


def markdown(sections: Iterable[Section]) -> str:
    """Every section as Markdown, with all of its statements."""
    parts = [_HEAD]
    for section in sections:
        parts.append(f"## {section.title}\n")
        parts.append(_grid(section))
        parts.append("\n".join((*_wrapped(_escaped(section.legend)), "")))
        statements = (*section.headlines, *section.details)
        parts.append("\n".join(_item(statement) for statement in statements))
    return "\n".join((*parts, _TAIL))


def _grid(section: Section) -> str:
    lines = [section.columns, _rule(section.columns), *section.rows, *section.summary]
    return "".join(f"| {' | '.join(_cells(line))} |\n" for line in lines)


def _rule(columns: Sequence[str]) -> tuple[str, ...]:
    return tuple("---" if name in _WORDS else "--:" for name in columns)


def _cells(line: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in line]


def _item(statement: Statement) -> str:
    """A bullet: the text, then its formula and what it needs."""
    text = _escaped(statement.text)
    last = f"*{statement.kind.capitalize()}*: `{statement.formula}`"
    if statement.assumes:
        last += f"; needs: {_escaped(statement.assumes)}"
    return "\n".join(
        [*_wrapped(text, first="- "), "", *_wrapped(f"{last}.", first="  "), ""]
    )


def _wrapped(text: str, *, first: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _escaped(text: str) -> str:
    """Text in which no sign means anything to Markdown."""
    for sign in "\\*_`<[#":
        text = text.replace(sign, f"\\{sign}")
    return text
