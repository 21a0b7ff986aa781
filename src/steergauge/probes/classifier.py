"""Classifier probes: the score is the probability of one exact label.

::

    score(text) = p(label | text)

of a sequence classifier in Hugging Face's format, by transformers' text-classification
pipeline: softmax over the labels, or a sigmoid where the model has a single label or
independent ones, as its own configuration says.

Two mistakes of published code (that of arXiv 2602.06801) cannot happen here. A label
was taken for the right one when the trait's name occurred *in* it, and "formal" occurs
in "informal"; here a label is compared whole. And the score was the probability of
whichever label won, which is at least one half for the most informal of texts; here it
is that of the one label, whoever wins.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from steergauge.errors import BadProbe
from steergauge.probes import table as entries
from steergauge.probes.probe import Probe, check_labelled, validated

MODEL_KEYS = ("model", "revision", "batch_size", "device")
"""Which model, and how it is run; of all probes that run one here."""

BATCH_SIZE = 32
_NO_LIMIT = 10**9
"""Tokenizers that know of no longest text say something larger than this."""


def classifier_probe(name: str, table: Mapping[str, Any], *, folder: Path) -> Probe:
    """A classifier probe from `model` and `high`, the label whose probability it is.

    Args:
        name: what it measures.
        table: its entries; `revision`, `batch_size` and `device` are optional.
        folder: where a `model` that is a relative path is looked for first.

    Raises:
        BadProbe: an entry is missing, unknown or of the wrong type; the model cannot
            be loaded, is no classifier, or has no label of this name.
        ProbeRefused: it does not tell the validation texts apart.
    """
    entries.check_keys(name, table, ("high", *MODEL_KEYS))
    label = entries.text(name, table, "high")
    good, bad = entries.labelled(name, table)
    check_labelled(name, high=good, low=bad)  # before a model is fetched for nothing
    pipe = load_pipeline(name, table, folder=folder, task="text-classification")
    labels = list(pipe.model.config.id2label.values())
    if labels.count(label) != 1:
        raise BadProbe(
            f"the model of the probe {name!r} has no label {label!r}."
            if label not in labels
            else f"the model of the probe {name!r} calls two labels {label!r}.",
            cause="A label is compared whole, with its case: part of a name is none.",
            remedy=f"Its labels are {', '.join(map(repr, labels))}; write one of them "
            "as `high`.",
        )

    def score(texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        rows = run(name, pipe, texts, options={"top_k": None, "truncation": True})
        found = [{entry["label"]: entry["score"] for entry in row} for row in rows]
        assert all(len(row) == len(set(labels)) for row in found)
        return np.array([row[label] for row in found], dtype=float)

    record = {**model_record(pipe, table), "label": label, "labels": ", ".join(labels)}
    return validated(name, score, high=good, low=bad, kind="classifier", record=record)


def load_pipeline(
    name: str, table: Mapping[str, Any], *, folder: Path, task: str
) -> Any:
    """The pipeline that `table` describes, in float32, cutting texts that are too long.

    Raises:
        BadProbe: the model cannot be loaded, or it is no trained classifier.
    """
    model_name = entries.text(name, table, "model")
    revision = entries.text(name, table, "revision", default="main")
    device = entries.text(name, table, "device", default="")
    size = entries.number(
        name, table, "batch_size", default=BATCH_SIZE, least=1, whole=True
    )
    source = _source(name, model_name, folder)
    try:
        model, tokenizer, missing = _loaded(source, revision)
        pipe = _assembled(task, model, tokenizer, device, int(size))
    except Exception as error:
        raise BadProbe(
            f"the model {model_name} of the probe {name!r} could not be loaded: "
            f"{_first_line(error)}",
            cause="The id, revision or folder is misspelt, it is no sequence "
            "classifier, it needs a login, there is no network, or no such device.",
            remedy="Check the name; for a gated model log in with `hf auth login`.",
        ) from error
    if missing:
        raise BadProbe(
            f"the files of the model {model_name} of the probe {name!r} lack "
            f"{len(missing)} of a classifier's weights, such as {missing[0]}; "
            "transformers would fill them with random numbers.",
            cause="It is a language model without a trained classification head.",
            remedy="Give a model that was trained to classify texts.",
        )
    return pipe


def run(
    name: str, pipe: Any, texts: Sequence[str], *, options: Mapping[str, Any]
) -> list[Any]:
    """What the pipeline says of each text, in order.

    Raises:
        BadProbe: it failed.
    """
    if not texts:
        return []
    try:
        # A blank instead of nothing: some tokenizers make no token of an empty text.
        return pipe([text or " " for text in texts], **options)
    except Exception as error:
        raise BadProbe(
            f"the model of the probe {name!r} failed on {len(texts)} texts: "
            f"{type(error).__name__}: {_first_line(error)}",
            cause="Most often there was not enough memory for a batch.",
            remedy='Give its file a smaller `batch_size`, or device = "cpu".',
        ) from error


def model_record(pipe: Any, table: Mapping[str, Any]) -> dict[str, str]:
    """Which model it is: its id, its revision, and a hash of its weights."""
    from steergauge.loading import fingerprint

    config = pipe.model.config
    return {
        "model": table["model"],
        "revision": getattr(config, "_commit_hash", None) or table.get("revision", ""),
        "fingerprint": fingerprint(pipe.model),
        "longest_text": f"{pipe.tokenizer.model_max_length} tokens",
    }


def _loaded(source: str, revision: str) -> tuple[Any, Any, list[str]]:
    """Model, tokenizer, and the names of weights that its files lack."""
    # Heavy, and needed by those probes alone that run a model.
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, info = AutoModelForSequenceClassification.from_pretrained(
        source, revision=revision, dtype="float32", output_loading_info=True
    )
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    return model.eval(), tokenizer, sorted(info["missing_keys"])


def _assembled(task: str, model: Any, tokenizer: Any, device: str, size: int) -> Any:
    import torch
    import transformers

    tokenizer.model_max_length = _longest(model, tokenizer)
    make: Any = transformers.pipeline
    return make(
        task,
        model=model,
        tokenizer=tokenizer,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        # Texts of several lengths can share a batch only if they can be padded.
        batch_size=size if tokenizer.pad_token is not None else 1,
    )


def _source(name: str, model: str, folder: Path) -> str:
    """A folder beside the probe file, a folder, or an id."""
    for path in (folder / Path(model).expanduser(), Path(model).expanduser()):
        if (path / "config.json").is_file():
            return str(path)
    if model.startswith((".", "/", "~")):
        raise BadProbe(
            f"the probe {name!r} names the folder {model}, which holds no model.",
            cause=f"There is no config.json in it, seen from {folder}.",
            remedy="Give a folder in Hugging Face's format, or a Hugging Face id.",
        )
    return model


def _longest(model: Any, tokenizer: Any) -> int:
    """Tokens that the model has positions for, whatever the tokenizer believes.

    Some tokenizers on the Hub know of no limit, and a longer text then breaks the
    model. Where positions start behind a padding index, as in RoBERTa, the first
    padding_idx + 1 rows of the table belong to no token.
    """
    rows = getattr(model.config, "max_position_embeddings", None) or _NO_LIMIT
    for part, module in model.named_modules():
        if part.endswith("position_embeddings"):
            padding = getattr(module, "padding_idx", None)
            rows -= 0 if padding is None else padding + 1
    return min(tokenizer.model_max_length, rows)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
