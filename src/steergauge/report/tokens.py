"""Tokens as a page shows them: one line, every character visible, none that reorders.

A token may be a blank, a control character, half of a letter or a mark that turns the
direction of what follows. It is shown by signs, and cut where it is long.
"""

import unicodedata

from steergauge.report.samples import printable

LONGEST = 18
"""A longer token is cut in figures and lists; nothing else of it is said there."""

_SIGNS = str.maketrans(
    {
        " ": "\N{OPEN BOX}",
        "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}",
        "\t": "\N{RIGHTWARDS ARROW TO BAR}",
    }
)
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
"""Categories of characters that show nothing, or change how others are shown."""


def visible(token: str, longest: int = LONGEST) -> str:
    r"""The token in signs that can be seen.

    >>> ascii(visible(" the")), ascii(visible("a\n")), visible(""), visible("\u202e")
    ("'\\u2423the'", "'a\\u21b5'", '(empty)', '<U+202E>')
    >>> visible("abcdefghij", 5) == "abcd\N{HORIZONTAL ELLIPSIS}"
    True
    """
    if not token:
        return "(empty)"
    shown = "".join(map(_sign, printable(token.translate(_SIGNS))))
    if len(shown) > longest:
        return f"{shown[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"
    return shown


def quoted(token: str) -> str:
    """The token in a sentence."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{visible(token)}”"


def _sign(letter: str) -> str:
    if unicodedata.category(letter) in _UNSEEN:
        return f"<U+{ord(letter):04X}>"
    return letter
