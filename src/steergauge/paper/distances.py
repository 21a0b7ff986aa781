"""The distances stored with arXiv 2604.09839, as a page of the manual.

`stored` reads them, `nearest_token` says what they carry; no model is run.
`python -m steergauge.paper.distances CSV [OUT.md]` writes the page.
"""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from steergauge.errors import SteergaugeError
from steergauge.paper.nearest_token import sections
from steergauge.paper.section import Statement
from steergauge.paper.stored import Run, read_distances

_WORDS = ("model", "steering", "place")
_WIDTH = 88

_HEAD = """\
# Published distances

What the distances that were published with {cite}`mishra2026` say by themselves. For
each position of ten prompts, with and without steering, the authors ran through the
whole vocabulary and stored which next token comes nearest to the state, and how near.
That such a search was published together with its numbers is what makes this page
possible. No model is run for it; `python -m steergauge.paper.distances CSV` writes it
from a table of the stored results, and says the same of another table in these columns.

Notation: $d_1$ and $d_2$ are the distances of the nearest and of the second nearest
token's state from the state that is looked for; $s$ is the length of the step that
steering makes where states are compared; eta is $d_1 / s$. As on the page about
[printed tables](paper-tables.md), *arithmetic* follows from the numbers and the
formula, and an *inference* also needs what is named with it.
"""

_TAIL = """\
## What these numbers carry

- They show that the search works: it finds natural states, in all prompts stored.
- They show that no single token, put after the tokens that were found before it, makes
  the steered state, at the positions where noise is small beside the step.
- They do not show that no prompt does. Other tokens before, or more of them, are not
  searched; the theorem of the paper speaks about all prompts, and of exact equality.
- They do not show that steered states are far from those of prompts: the distance is
  the length of the step. Shorter steps are nearer, and as unreached.
- They do not show that v is special: steps of equal length in other directions are not
  stored.
- They do not speak about behaviour. A text, or a distribution of next tokens, may be
  reached by a prompt although the state is not.

What answers these questions on a model, with random steps, a tolerance of its own and
the power of the search beside it, are the audits `states`, `inversion`, `access` and
`density`; ready run files for the published setups are in `setups/`.
"""


def markdown(runs: Sequence[Run]) -> str:
    """The page of the manual."""
    parts = [_HEAD]
    for section in sections(runs):
        rule = tuple("---" if name in _WORDS else "--:" for name in section.columns)
        grid = (section.columns, rule, *section.rows)
        parts.append(f"## {section.title}\n")
        parts.append(
            "".join(f"| {' | '.join(_plain(c) for c in row)} |\n" for row in grid)
        )
        parts.append("\n".join((*_wrapped(_plain(section.legend)), "")))
        parts += [_item(statement) for statement in section.headlines]
    return "\n".join((*parts, _TAIL))


def _item(said: Statement) -> str:
    """A bullet: the text, then its formula and what it needs."""
    last = f"*{said.kind.capitalize()}*: `{said.formula}`"
    last += f"; needs: {_plain(said.assumes)}." if said.assumes else "."
    body = _wrapped(_plain(said.text), first="- ")
    return "\n".join((*body, "", *_wrapped(last, first="  "), ""))


def _wrapped(text: str, *, first: str = "") -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _plain(text: str) -> str:
    """Text in which no sign means anything to Markdown, but for quotes of code."""
    parts = text.split("`")
    for sign in "\\*_<[#|":
        parts[::2] = [part.replace(sign, f"\\{sign}") for part in parts[::2]]
    return "`".join(parts)


def main(given: Sequence[str]) -> int:
    """Write the page of a file to another, or print it; 2 if it cannot be read."""
    if len(given) not in (1, 2):
        print("python -m steergauge.paper.distances CSV [OUT.md]", file=sys.stderr)
        return 2
    try:
        page = markdown(read_distances(given[0]))
    except SteergaugeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if len(given) == 2:
        Path(given[1]).write_text(page, encoding="utf-8")
    else:
        print(page, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
