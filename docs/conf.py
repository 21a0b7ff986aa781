"""Configuration of the manual: `make docs` builds it with every warning an error."""

import importlib.metadata

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
