"""Probes: text -> score in [0, 1], each validated on labelled texts before it judges.

::

    probe.py        Probe, and the gate: AUC at least 0.8 on labelled texts
    lexical.py      sigmoid(#high words - #low words)
    classifier.py   p(label | text) of a sequence classifier
    zero_shot.py    one label's share, by a model of natural-language inference
    judge.py        a rating by a language model behind an endpoint
    cache.py        its ratings, kept
    table.py        the entries of a probe file, checked
    load.py         from a file to a probe
"""

from steergauge.probes.classifier import classifier_probe
from steergauge.probes.judge import judge_probe
from steergauge.probes.lexical import lexical_probe, lexical_score
from steergauge.probes.load import load_probe, probe_from
from steergauge.probes.probe import MINIMUM_AUC, Probe, Score, validated
from steergauge.probes.zero_shot import zero_shot_probe

__all__ = [
    "MINIMUM_AUC",
    "Probe",
    "Score",
    "classifier_probe",
    "judge_probe",
    "lexical_probe",
    "lexical_score",
    "load_probe",
    "probe_from",
    "validated",
    "zero_shot_probe",
]
