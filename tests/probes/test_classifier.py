"""A classifier's score is the probability of one exact label, whoever wins."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.probes import classifiers
from tests.probes.labelled import HIGH, LOW, VALIDATION
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from steergauge.errors import BadProbe, ProbeRefused
from steergauge.probes import Probe, classifier_probe
from steergauge.probes.classifier import load_pipeline, run

TEXTS = [
    "sir",
    "Yo, the rain is open.",
    "The kite museum, sir, is open. A text. A text.",
    "yo yo",
    "The tea is tea, yo. The rain is rain.",
]
FLOAT_NOISE = 1e-6
"""Padding to another length takes other float32 kernels: up to 1e-7 seen."""


def probe(folder_of: Path | str, *, folder: Path = Path(), **entries: object) -> Probe:
    table = {
        "kind": "classifier",
        "model": str(folder_of),
        "high": "formal",
        "validation": VALIDATION,
        **entries,
    }
    return classifier_probe("manners", table, folder=folder)


def logits(model: Path, text: str) -> torch.Tensor:
    """Of one text, by the model itself."""
    classifier = BertForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        ids = classifiers.tokenizer()(text, return_tensors="pt")
        return classifier(**ids).logits[0].double()


def resaved(model: Path, folder: Path, **changes: object) -> Path:
    """A copy whose configuration differs, its tokenizer as it was."""
    changed = BertForSequenceClassification.from_pretrained(model)
    changed.config.update(changes)
    changed.save_pretrained(folder)
    classifiers.tokenizer().save_pretrained(folder)
    return folder


def renamed(model: Path, folder: Path, *labels: str) -> Path:
    """A copy whose outputs are called otherwise."""
    numbers = {label: i for i, label in enumerate(labels)}
    names = dict(enumerate(labels))
    return resaved(model, folder, id2label=names, label2id=numbers)


@pytest.mark.parametrize(("label", "index"), [("informal", 0), ("formal", 1)])
def test_the_score_is_the_probability_of_the_label(manners, label, index):
    poles = {"high": HIGH, "low": LOW} if index else {"high": LOW, "low": HIGH}
    scores = probe(manners, high=label, validation=poles)(TEXTS)
    expected = [logits(manners, text).softmax(0)[index].item() for text in TEXTS]
    assert max(expected) - min(expected) > 0.9
    assert scores == pytest.approx(expected, abs=FLOAT_NOISE)


def test_a_text_of_which_the_classifier_is_sure_that_it_is_informal_scores_low(manners):
    text = "Yo, the rain is open."
    assert logits(manners, text).softmax(0).max() > 0.9
    assert probe(manners)([text])[0] < 0.1


@pytest.mark.parametrize(
    "labels",
    [("informal", "casual"), ("informal", "Formal"), ("casual", "formal ")],
    ids=["part of another label", "other case", "a blank more"],
)
def test_a_label_that_is_only_like_one_of_the_models_is_refused(
    manners, tmp_path, labels
):
    model = renamed(manners, tmp_path / "model", *labels)
    with pytest.raises(BadProbe, match="no label 'formal'") as caught:
        probe(model)
    for label in labels:
        assert repr(label) in str(caught.value)


def test_a_label_that_two_outputs_share_is_refused(manners, tmp_path):
    model = renamed(manners, tmp_path / "model", "formal", "formal")
    with pytest.raises(BadProbe, match="two labels 'formal'"):
        probe(model)


def test_a_classifier_whose_labels_are_swapped_does_not_pass_the_gate(
    manners, tmp_path
):
    model = renamed(manners, tmp_path / "model", "formal", "informal")
    with pytest.raises(ProbeRefused, match=r"0\.00"):
        probe(model)


def test_a_model_with_one_label_scores_by_a_sigmoid(manners, tmp_path):
    two = BertForSequenceClassification.from_pretrained(manners)
    config = classifiers.config(["formal"])
    one = BertForSequenceClassification(BertConfig(**config))
    one.bert.load_state_dict(two.bert.state_dict())
    # sigmoid(b - a) is the softmax of (a, b): the two must agree.
    with torch.no_grad():
        one.classifier.weight.copy_(two.classifier.weight.diff(dim=0))
        one.classifier.bias.copy_(two.classifier.bias.diff(dim=0))
    one.save_pretrained(tmp_path)
    classifiers.tokenizer().save_pretrained(tmp_path)
    assert probe(tmp_path)(TEXTS) == pytest.approx(probe(manners)(TEXTS), abs=1e-6)


def test_a_model_with_independent_labels_scores_by_a_sigmoid(manners, tmp_path):
    problem = "multi_label_classification"
    model = resaved(manners, tmp_path / "model", problem_type=problem)
    expected = [logits(manners, text)[1].sigmoid().item() for text in TEXTS]
    softmax = [logits(manners, text).softmax(0)[1].item() for text in TEXTS]
    assert np.abs(np.subtract(expected, softmax)).max() > 1e-3
    assert probe(model)(TEXTS) == pytest.approx(expected, abs=FLOAT_NOISE)


def test_a_regression_whose_values_leave_0_1_is_refused(manners, tmp_path):
    model = resaved(manners, tmp_path / "model", problem_type="regression")
    with pytest.raises(BadProbe, match=r"\[0, 1\]"):
        probe(model)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_scores_do_not_depend_on_the_batch(manners, size):
    batched = probe(manners, batch_size=size)
    singly = np.concatenate([batched([text]) for text in TEXTS])
    assert np.ptp(singly) > 0.9
    assert batched(TEXTS) == pytest.approx(singly, abs=FLOAT_NOISE)


def test_no_texts_have_no_scores_and_an_empty_text_has_one(manners):
    scored = probe(manners)
    assert scored([]).shape == (0,)
    together = scored(["sir", "", "yo"])
    assert together[0] - together[2] > 0.9
    assert together[1] == pytest.approx(scored([""])[0], abs=FLOAT_NOISE)


@pytest.mark.parametrize("limit", [None, 1000])
def test_a_long_text_is_cut_to_what_the_model_has_positions_for(
    manners, tmp_path, limit
):
    model = resaved(manners, tmp_path / "model")
    classifiers.tokenizer(longest=limit).save_pretrained(model)
    room = classifiers.LONGEST - 2  # [CLS] and [SEP]
    whole = ["the " * (room - 9) + f"{word} " * 9 for word in ("sir", "yo")]
    longer = [whole[0] + "yo " * 100, whole[1] + "sir " * 100]
    scored = probe(model)
    assert scored.record["longest_text"] == f"{classifiers.LONGEST} tokens"
    scores = scored(longer)
    assert scores[0] - scores[1] > 0.9
    assert scores == pytest.approx(scored(whole), abs=FLOAT_NOISE)


def test_positions_that_start_behind_the_padding_index_leave_less_room(tmp_path):
    # Rows 0 and 1 of RoBERTa's table of positions belong to no token.
    config = classifiers.config(["formal", "informal"], pad_token_id=1)
    RobertaForSequenceClassification(RobertaConfig(**config)).save_pretrained(tmp_path)
    classifiers.tokenizer(longest=None).save_pretrained(tmp_path)
    pipe = load_pipeline(
        "x", {"model": str(tmp_path)}, folder=Path(), task="text-classification"
    )
    assert pipe.tokenizer.model_max_length == classifiers.LONGEST - 2
    (row,) = run("x", pipe, ["the " * 100], options={"truncation": True, "top_k": None})
    assert {entry["label"] for entry in row} == {"formal", "informal"}


def test_a_model_that_cannot_pad_is_run_one_text_at_a_time(tmp_path):
    config = GPT2Config(vocab_size=32, n_embd=8, n_head=2, n_layer=1, n_positions=64)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    reader = classifiers.tokenizer(longest=None)
    reader.pad_token = None
    reader.save_pretrained(tmp_path)
    table = {"model": str(tmp_path), "batch_size": 4}
    pipe = load_pipeline("x", table, folder=Path(), task="text-classification")
    rows = run("x", pipe, TEXTS, options={"top_k": None, "truncation": True})
    assert [len(row) for row in rows] == [2] * len(TEXTS)


def test_a_language_model_without_a_trained_head_is_refused(manners, tmp_path):
    BertModel.from_pretrained(manners).save_pretrained(tmp_path)
    classifiers.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(BadProbe, match=r"lack.*classifier"):
        probe(tmp_path, high="LABEL_1")


@pytest.mark.parametrize("model", ["./nowhere", "nobody/nothing-of-this-name"])
def test_a_model_that_is_not_there_is_named(model):
    with pytest.raises(BadProbe, match=model):
        probe(model)


def test_a_device_that_is_not_there_is_refused(manners):
    with pytest.raises(BadProbe, match="device"):
        probe(manners, device="meteor")


def test_a_model_is_looked_for_beside_the_file_that_names_it(manners):
    assert probe(manners.name, folder=manners.parent).auc == 1.0


def test_the_labelled_texts_are_counted_before_a_model_is_loaded():
    with pytest.raises(BadProbe, match="at least 10"):
        probe("./nowhere", validation={"high": HIGH[:9], "low": LOW})


def test_the_model_is_loaded_once(manners, tmp_path):
    copy = shutil.copytree(manners, tmp_path / "model")
    scored = probe(copy)
    shutil.rmtree(copy)
    assert scored(["sir"])[0] > 0.9


def test_the_record_says_which_label_of_which_model(manners):
    scored = probe(manners, revision="v1")
    assert scored.kind == "classifier"
    assert scored.words == ((), ())
    assert scored.record["model"] == str(manners)
    assert scored.record["revision"] == "v1"
    assert scored.record["label"] == "formal"
    assert scored.record["labels"] == "informal, formal"


def test_a_copy_has_the_models_fingerprint_and_another_model_has_not(manners, tmp_path):
    model = resaved(manners, tmp_path / "model")
    assert probe(model).record["fingerprint"] == probe(manners).record["fingerprint"]
    changed = BertForSequenceClassification.from_pretrained(manners)
    with torch.no_grad():
        changed.classifier.bias += 0.5
    changed.save_pretrained(model)
    assert probe(model).record["fingerprint"] != probe(manners).record["fingerprint"]


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"high": ["formal"]}, "`high`"),
        ({"high": " "}, "`high`"),
        ({"model": ["m"]}, "`model`"),
        ({"revison": "main"}, "`revison`"),
        ({"low": "informal"}, "`low`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"batch_size": 1.5}, "`batch_size`"),
        ({"batch_size": True}, "`batch_size`"),
        ({"device": 0}, "`device`"),
    ],
)
def test_an_entry_that_is_wrong_or_unknown_is_named(manners, entries, named):
    with pytest.raises(BadProbe, match=named):
        probe(manners, **entries)
