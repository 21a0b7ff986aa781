"""Templates of pages: escaped, strict, with the filters that pages use."""

import jinja2

from steergauge.report import words


def environment() -> jinja2.Environment:
    """Templates of pages; whatever they show is escaped."""
    # autoescape=True, not select_autoescape(): that goes by the file's ending, and
    # would leave `report.html.j2` unescaped.
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("steergauge.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "typeset": words.typeset,
        "plain": words.plain,
        "signed": words.signed,
        "percent": words.percent,
    }
    return made


def utf8(text: str) -> str:
    """The text without lone surrogates, which JSON may hold and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode("utf-8")
