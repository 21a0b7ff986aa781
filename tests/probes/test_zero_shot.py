"""A zero-shot score is one label's share of the entailment of all labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.probes import classifiers
from tests.probes.labelled import HIGH, LOW, VALIDATION
from transformers import BertForSequenceClassification

from steergauge.errors import BadProbe, ProbeRefused
from steergauge.probes import Probe, zero_shot_probe
from steergauge.probes.zero_shot import HYPOTHESIS

LABELS = ["formal", "informal"]
TEXTS = ["sir", "Yo, the rain.", "The kite museum, sir, is open.", "yo yo"]
FLOAT_NOISE = 1e-6
"""Padding to another length takes other float32 kernels: up to 1e-7 seen."""


def probe(model: Path | str, **entries: object) -> Probe:
    table = {
        "kind": "zero-shot",
        "model": str(model),
        "labels": LABELS,
        "high": "formal",
        "validation": VALIDATION,
        **entries,
    }
    return zero_shot_probe("manners", table, folder=Path())


def entailment(model: Path, text: str, label: str) -> float:
    """The logit that the model itself gives to the entailment of a label."""
    judge = BertForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        pair = classifiers.tokenizer()(
            text, HYPOTHESIS.format(label), return_tensors="pt"
        )
        return judge(**pair).logits[0, 2].item()


def test_the_score_is_the_labels_share_of_the_exponentials_of_entailment(inference):
    expected = []
    for text in TEXTS:
        weights = [np.exp(entailment(inference, text, label)) for label in LABELS]
        expected.append(weights[0] / sum(weights))
    assert np.ptp(expected) > 0.9
    assert probe(inference)(TEXTS) == pytest.approx(expected, abs=FLOAT_NOISE)


def test_the_scores_of_all_labels_add_up_to_one(inference):
    swapped = {"high": LOW, "low": HIGH}
    other = probe(inference, high="informal", validation=swapped)
    assert probe(inference)(TEXTS) + other(TEXTS) == pytest.approx(np.ones(4))


def test_the_order_of_the_labels_does_not_matter(inference):
    other = probe(inference, labels=LABELS[::-1])
    assert probe(inference)(TEXTS) == pytest.approx(other(TEXTS), abs=FLOAT_NOISE)


def test_the_wrong_pole_does_not_pass_the_gate(inference):
    with pytest.raises(ProbeRefused, match=r"0\.00"):
        probe(inference, high="informal")


@pytest.mark.parametrize("size", [1, 3, 100])
def test_scores_do_not_depend_on_the_batch(inference, size):
    batched = probe(inference, batch_size=size)
    singly = np.concatenate([batched([text]) for text in TEXTS])
    assert np.ptp(singly) > 0.9
    assert batched(TEXTS) == pytest.approx(singly, abs=FLOAT_NOISE)


def test_no_texts_have_no_scores_and_an_empty_text_has_one(inference):
    scored = probe(inference)
    assert scored([]).shape == (0,)
    assert 0 <= scored([""])[0] <= 1


@pytest.mark.parametrize("limit", [None, classifiers.LONGEST])
def test_of_a_long_text_the_end_is_cut_and_never_the_hypothesis(
    inference, tmp_path, limit
):
    model = BertForSequenceClassification.from_pretrained(inference)
    model.save_pretrained(tmp_path)
    classifiers.tokenizer(longest=limit).save_pretrained(tmp_path)
    room = classifiers.LONGEST - 8  # [CLS], [SEP], the five words and their [SEP]
    long = ["sir " + "the " * (room - 1), "yo " + "the " * (room - 1)]
    longer = [text + "sir yo " * 100 for text in long]
    scores = probe(tmp_path)(longer)
    assert np.ptp(scores) > 0.5
    assert scores == pytest.approx(probe(tmp_path)(long), abs=FLOAT_NOISE)


def test_a_model_that_knows_no_entailment_is_refused(manners):
    with pytest.raises(BadProbe, match="entailment") as caught:
        probe(manners)
    assert "'informal', 'formal'" in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"high": "form"}, "none of its labels"),
        ({"high": "Formal"}, "none of its labels"),
        ({"labels": ["formal"]}, "at least two"),
        ({"labels": ["formal", "informal", "formal"]}, "none of them twice"),
        ({"labels": "formal, informal"}, "`labels`"),
        ({"hypothesis": "This example is formal."}, "no single place"),
        ({"hypothesis": "{} is {}."}, "no single place"),
        ({"hypothesis": "It is {label}."}, "no single place"),
        ({"low": "informal"}, "`low`"),
        ({"validation": {"high": HIGH, "low": LOW[:9]}}, "at least 10"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused_before_a_model_is_loaded(
    entries, message
):
    with pytest.raises(BadProbe, match=message):
        probe("./nowhere", **entries)


def test_the_record_says_which_labels_and_which_hypothesis(inference):
    scored = probe(inference, hypothesis="This is {}.")
    assert scored.kind == "zero-shot"
    assert scored.record["model"] == str(inference)
    assert scored.record["label"] == "formal"
    assert scored.record["labels"] == "formal, informal"
    assert scored.record["hypothesis"] == "This is {}."
