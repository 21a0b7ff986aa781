"""steergauge: extract steering vectors from language models, steer, and audit.

    lm = steergauge.load("builtin:organism")
    v = steergauge.extract(lm, steergauge.trait("formality").pairs(50))
    texts = lm.generate(["Write about the kite museum."], steergauge.Add(v), samples=4)
    run = steergauge.audit(lm, v, preset="quick", out="runs/first")

The public names, grouped by floor, imported on first use: a report can be read and
rebuilt without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steergauge.audits.finding import Finding as Finding
    from steergauge.audits.finding import Verdict as Verdict
    from steergauge.errors import SteergaugeError as SteergaugeError
    from steergauge.extraction.mean_difference import (
        mean_difference as mean_difference,
    )
    from steergauge.extraction.methods import extract as extract
    from steergauge.generation import Arm as Arm
    from steergauge.generation import Decoding as Decoding
    from steergauge.generation import generate as generate
    from steergauge.intervention import Ablate as Ablate
    from steergauge.intervention import Add as Add
    from steergauge.intervention import Scope as Scope
    from steergauge.loading import load as load
    from steergauge.probes import Probe as Probe
    from steergauge.probes import load_probe as load_probe
    from steergauge.prompts import ContrastPair as ContrastPair
    from steergauge.prompts import Text as Text
    from steergauge.prompts import environment as environment
    from steergauge.prompts import read_pairs as read_pairs
    from steergauge.prompts import trait as trait
    from steergauge.report import write_report as write_report
    from steergauge.runs.execute import Run as Run
    from steergauge.runs.execute import audit as audit
    from steergauge.runs.spec import Spec as Spec
    from steergauge.split import LanguageModel as LanguageModel
    from steergauge.vector import Site as Site
    from steergauge.vector import SteeringVector as SteeringVector
    from steergauge.vector import load_vector as load_vector

_HOME = {
    "errors": ("SteergaugeError",),
    "split": ("LanguageModel",),
    "loading": ("load",),
    "vector": ("Site", "SteeringVector", "load_vector"),
    "prompts": ("ContrastPair", "Text", "environment", "read_pairs", "trait"),
    "intervention": ("Ablate", "Add", "Scope"),
    "probes": ("Probe", "load_probe"),
    "generation": ("Arm", "Decoding", "generate"),
    "extraction.mean_difference": ("mean_difference",),
    "extraction.methods": ("extract",),
    "audits.finding": ("Finding", "Verdict"),
    "runs.spec": ("Spec",),
    "runs.execute": ("Run", "audit"),
    "report": ("write_report",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'steergauge' has no attribute {name!r}")
    return getattr(importlib.import_module(f"steergauge.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULE_OF)
