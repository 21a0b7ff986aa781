"""Configuration of the manual: `make docs` builds it with every warning an error."""

import importlib.metadata
import re

project = "steergauge"
author = "the steergauge developers"
release = importlib.metadata.version("steergauge")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinxcontrib.bibtex",
]
bibtex_bibfiles = ["references.bib"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 2
autodoc_member_order = "bysource"
autodoc_typehints = "none"
html_theme = "furo"
html_title = "steergauge"
exclude_patterns = ["_build"]


def plain_signs(app, what, name, obj, options, lines):
    """Docstrings are ASCII mathematics: |d| and z_.95 are no markup, in prose."""
    literal = None
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if literal is None and "``" not in line:
            lines[i] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", line.replace("|", r"\|"))
        if line.rstrip().endswith("::"):
            literal = indent


def setup(app):
    app.connect("autodoc-process-docstring", plain_signs)
