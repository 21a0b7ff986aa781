"""Zero-shot probes: a model of natural-language inference chooses among labels.

::

    score(text) = exp(e_high) / sum over labels k of exp(e_k)

with e_k the logit of "text entails hypothesis k" and a hypothesis for each label made
from a template, by transformers' zero-shot-classification pipeline. This is how
arXiv 2602.06801's code scores politeness, agreeableness and truthfulness, with
facebook/bart-large-mnli. The score depends on all labels, their wording included, so
the record keeps them. Like a classifier's it is that of one label, compared whole.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from steergauge.errors import BadProbe
from steergauge.probes import table as entries
from steergauge.probes.classifier import (
    MODEL_KEYS,
    load_pipeline,
    model_record,
    run,
)
from steergauge.probes.probe import Probe, check_labelled, validated

HYPOTHESIS = "This example is {}."


def zero_shot_probe(name: str, table: Mapping[str, Any], *, folder: Path) -> Probe:
    """A zero-shot probe from `model`, `labels` and `high`, one of the labels.

    Args:
        name: what it measures.
        table: its entries; `hypothesis`, `revision`, `batch_size` and `device` are
            optional.
        folder: where a `model` that is a relative path is looked for first.

    Raises:
        BadProbe: an entry is missing, unknown or of the wrong type; the model cannot
            be loaded, or knows no entailment.
        ProbeRefused: it does not tell the validation texts apart.
    """
    entries.check_keys(name, table, ("labels", "high", "hypothesis", *MODEL_KEYS))
    labels, label = _labels(name, table)
    hypothesis = _hypothesis(name, table)
    good, bad = entries.labelled(name, table)
    check_labelled(name, high=good, low=bad)  # before a model is fetched for nothing
    pipe = load_pipeline(name, table, folder=folder, task="zero-shot-classification")
    if pipe.entailment_id == -1:
        known = ", ".join(map(repr, pipe.model.config.id2label.values()))
        raise BadProbe(
            f"the model of the probe {name!r} has no label for entailment, only "
            f"{known}.",
            cause="It was not trained on natural-language inference.",
            remedy='Give such a model, or use kind = "classifier" with its own labels.',
        )
    options = {"candidate_labels": labels, "hypothesis_template": hypothesis}

    def score(texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        rows = run(name, pipe, texts, options=options)
        found = [dict(zip(row["labels"], row["scores"], strict=True)) for row in rows]
        return np.array([row[label] for row in found], dtype=float)

    record = model_record(pipe, table)
    record |= {"label": label, "labels": ", ".join(labels), "hypothesis": hypothesis}
    return validated(name, score, high=good, low=bad, kind="zero-shot", record=record)


def _labels(name: str, table: Mapping[str, Any]) -> tuple[list[str], str]:
    labels = entries.texts(name, table, "labels")
    label = entries.text(name, table, "high")
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise BadProbe(
            f"the labels of the probe {name!r} are {labels}.",
            cause="The score is one label's share among different ones.",
            remedy="Write at least two, none of them twice.",
        )
    if label not in labels:
        raise BadProbe(
            f"`high` of the probe {name!r}, {label!r}, is none of its labels.",
            cause="A label is compared whole, with its case: part of a name is none.",
            remedy=f"Its labels are {', '.join(map(repr, labels))}.",
        )
    return labels, label


def _hypothesis(name: str, table: Mapping[str, Any]) -> str:
    hypothesis = entries.text(name, table, "hypothesis", default=HYPOTHESIS)
    if hypothesis.count("{}") != 1 or hypothesis.count("{") != 1:
        raise BadProbe(
            f"the hypothesis of the probe {name!r}, {hypothesis!r}, has no single "
            "place {} for a label.",
            remedy=f'Write hypothesis = "{HYPOTHESIS}", or leave it out.',
        )
    return hypothesis
