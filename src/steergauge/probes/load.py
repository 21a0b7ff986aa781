"""From a file to a probe: the kinds of probe, and what their files are called.

::

    probe.toml, kind = "lexical"      counts words (the default)     lexical.py
                kind = "classifier"   p(label) of a classifier       classifier.py
                kind = "zero-shot"    one label's share of several   zero_shot.py
                kind = "judge"        a rating by a language model   judge.py
    file.py:function                  any function of texts          here
"""

import importlib.util
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from steergauge.errors import BadProbe, NoSuchFile
from steergauge.probes.classifier import classifier_probe
from steergauge.probes.judge import judge_probe
from steergauge.probes.lexical import lexical_probe
from steergauge.probes.probe import Probe, Score, validated
from steergauge.probes.zero_shot import zero_shot_probe

KINDS = ("lexical", "classifier", "zero-shot", "judge")


def load_probe(
    source: str, labelled: tuple[Sequence[str], Sequence[str]] | None = None
) -> Probe:
    """A probe from `probe.toml`, or from `file.py:function`.

    Args:
        source: a TOML file with a `kind` and its entries, or a Python file and the
            name of a function in it that maps a list of texts to scores.
        labelled: high and low texts for the gate, for a function or a file without.

    Raises:
        NoSuchFile: there is no such file.
        BadProbe: it is malformed, or its model or judge cannot be used.
        ProbeRefused: its AUC is too low.
    """
    file, _, function = source.rpartition(":")
    path = Path(file if file.endswith(".py") else source)
    if not path.is_file():
        raise NoSuchFile(
            f"there is no probe file {path}.",
            remedy="Give words.toml, or file.py:function.",
        )
    if path.suffix == ".py":
        high, low = labelled or ((), ())
        return validated(function, _callable(path, function), high=high, low=low)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadProbe(
            f"{path} is no readable TOML file: {error}.",
            remedy='Write high = ["..."], low = ["..."] and a [validation] table.',
        ) from error
    if labelled:
        table["validation"] = {"high": list(labelled[0]), "low": list(labelled[1])}
    return probe_from(
        str(table.get("name", path.stem)),
        table,
        folder=path.parent,
        cache=path.with_name(f"{path.name}.cache.jsonl"),
    )


def probe_from(
    name: str, table: Mapping[str, Any], *, folder: Path, cache: Path | None = None
) -> Probe:
    """The probe that a table describes, of whatever kind it says it is.

    Args:
        name: what it measures.
        table: `kind` (lexical if it is left out) and the entries of that kind.
        folder: where the table's file is: a model may be given relative to it.
        cache: the file that keeps a judge's scores; by default a file in `folder`
            that is called after the probe.

    Raises:
        BadProbe: no such kind, a malformed table, or a model that cannot be used.
        ProbeRefused: its AUC is too low.
    """
    kind = table.get("kind", "lexical")
    if kind == "lexical":
        return lexical_probe(name, table)
    if kind == "classifier":
        return classifier_probe(name, table, folder=folder)
    if kind == "zero-shot":
        return zero_shot_probe(name, table, folder=folder)
    if kind == "judge":
        plain = re.sub(r"[^\w.-]", "-", name)
        usual = folder / f"{plain}.cache.jsonl"
        return judge_probe(name, table, cache=cache or usual)
    raise BadProbe(
        f"the probe {name!r} is of the kind {kind!r}, which there is not.",
        remedy=f"Choose from {', '.join(KINDS)}.",
    )


def _callable(path: Path, function: str) -> Score:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    with _theirs(path, function):
        specification.loader.exec_module(module)
        scored = getattr(module, function)

    def score(texts: Sequence[str]) -> np.ndarray:
        with _theirs(path, function):
            return np.asarray(scored(list(texts)), dtype=float)

    return score


@contextmanager
def _theirs(path: Path, function: str) -> Iterator[None]:
    """Whatever goes wrong inside is the user's code's."""
    try:
        yield
    except Exception as error:
        raise BadProbe(
            f"{path}:{function} cannot be used: {type(error).__name__}: {error}.",
            remedy="Define a function that maps a list of texts to a list of scores.",
        ) from error
