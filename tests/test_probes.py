"""A probe counts whole words, passes a gate before it judges, and sees no prompt."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models import D_MODEL, tiny

from steergauge.errors import BadProbe, NoSuchFile, ProbeRefused
from steergauge.generation import Decoding, generate
from steergauge.intervention import Add
from steergauge.probes import (
    MINIMUM_AUC,
    lexical_probe,
    lexical_score,
    load_probe,
    validated,
)
from steergauge.prompts import read_labelled
from steergauge.vector import Site, SteeringVector

HIGH = [f"Sir, text {i}." for i in range(12)]
LOW = [f"Yo, text {i}." for i in range(11)]
WORDS = {"high": ["sir"], "low": ["yo"], "validation": {"high": HIGH, "low": LOW}}
TOML = """
name = "manners"
high = ["sir"]
low = ["yo"]
"""


def sigmoid(count: float) -> float:
    return 1 / (1 + math.exp(-count))


def count(text: str, high: list[str], low: list[str] | None = None) -> float:
    """What the score says the count is: the inverse of the closed form."""
    (score,) = lexical_score(high, low or ["zzz"])([text])
    return round(math.log(score / (1 - score)), 9)


def from_file(path: Path, content: str, *, function: str = "") -> str:
    path.write_text(content, encoding="utf-8")
    return f"{path}:{function}" if function else str(path)


@given(num_high=st.integers(0, 9), num_low=st.integers(0, 9))
def test_the_score_is_the_sigmoid_of_the_difference_of_counts(num_high, num_low):
    text = " ".join(["sir"] * num_high + ["word"] + ["yo"] * num_low)
    (score,) = lexical_score(["sir"], ["yo"])([text])
    assert score == pytest.approx(sigmoid(num_high - num_low), abs=1e-15)


def test_a_text_without_any_word_scores_one_half():
    texts = ["", "   ", "Nothing of the kind is in here, however long it may be."]
    assert lexical_score(["sir"], ["yo"])(texts).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("number", [800, 100_000])
def test_the_score_of_a_text_of_thousands_of_words_is_still_a_score(number):
    low, high = lexical_score(["sir"], ["yo"])(["yo " * number, "sir " * number])
    assert (low, high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("happy", 1),
        ("unhappy", 0),
        ("happyness", 0),
        ("happy2", 0),
        ("happy_", 0),
        ("happy happy", 2),
        ("happy,happy;happy", 3),
        ("(happy)", 1),
        ('"happy"', 1),
        ("happy-go-lucky", 1),
        ("Happy HAPPY hApPy", 3),
        ("so\nhappy\n", 1),
    ],
)
def test_only_whole_words_count_whatever_their_case_and_punctuation(text, expected):
    assert count(text, ["happy"]) == expected


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("thank you", "thank you", 1),
        ("thank you, thank you", "thank you", 2),
        ("thank  you", "thank you", 0),
        ("thank yours", "thank you", 0),
        ("in the u.s. today", "u.s.", 1),
        ("uxsx", "u.s.", 0),
        ("lol! lol!", "lol!", 2),
        ("naïve café", "café", 1),
        ("ÜBER über", "über", 2),
        ("a+b", "a+b", 1),
        ("aab", "a+b", 0),
    ],
)
def test_phrases_and_punctuation_are_taken_as_they_are_written(text, word, expected):
    assert count(text, [word]) == expected


@pytest.mark.parametrize("words", [["thank", "thank you"], ["thank you", "thank"]])
def test_of_overlapping_phrases_of_a_pole_the_longest_counts_once(words):
    assert count("thank you", words) == 1
    assert count("thank you and thank them", words) == 2


def test_a_probe_that_tells_its_texts_apart_passes_and_says_how_well():
    probe = lexical_probe("manners", WORDS)
    assert (probe.auc, probe.num_labelled) == (1.0, 23)
    assert probe.words == (("sir",), ("yo",))
    assert probe(["Sir!", "Yo!"]).tolist() == pytest.approx([sigmoid(1), sigmoid(-1)])


@pytest.mark.parametrize(
    ("high", "low", "value"),
    [(HIGH, HIGH, 0.5), (LOW, HIGH, 0.0), (HIGH[:6] + LOW[:6], LOW, 0.75)],
    ids=["the same texts", "poles swapped", "half of them"],
)
def test_a_probe_whose_auc_is_too_low_refuses_to_judge(high, low, value):
    labelled = WORDS | {"validation": {"high": high, "low": low}}
    with pytest.raises(ProbeRefused) as caught:
        lexical_probe("manners", labelled)
    assert f"{value:.2f}" in str(caught.value)
    assert str(MINIMUM_AUC) in str(caught.value)


@pytest.mark.parametrize("missing", ["sir", "yo"])
def test_one_pole_of_words_that_never_occurs_can_still_pass_the_gate(missing):
    table = {key: ["zzz"] if WORDS[key] == [missing] else WORDS[key] for key in WORDS}
    assert lexical_probe("manners", table).auc == 1.0


@pytest.mark.parametrize(("num_high", "num_low"), [(9, 11), (12, 9), (0, 0)])
def test_a_probe_with_fewer_than_10_labelled_texts_a_side_is_refused(num_high, num_low):
    labelled = {"high": HIGH[:num_high], "low": LOW[:num_low]}
    with pytest.raises(BadProbe, match=f"{num_high} high and {num_low} low"):
        lexical_probe("manners", WORDS | {"validation": labelled})


@pytest.mark.parametrize(
    "values",
    [
        lambda texts: [1.5] * len(texts),
        lambda texts: [-0.1] * len(texts),
        lambda texts: [float("nan")] * len(texts),
        lambda texts: [0.5],
        lambda texts: [],
        lambda texts: [[0.5, 0.5] for _ in texts],
    ],
    ids=["above 1", "below 0", "NaN", "too few", "none", "two a text"],
)
def test_scores_that_are_no_numbers_in_0_1_are_refused(values):
    with pytest.raises(BadProbe, match=r"\[0, 1\]"):
        validated("mine", lambda texts: np.array(values(texts)), high=HIGH, low=LOW)


def test_a_probe_is_still_checked_after_it_has_passed_the_gate():
    def score(texts):
        return np.array([2.0 if "later" in text else "Sir" in text for text in texts])

    probe = validated("mine", score, high=HIGH, low=LOW)
    assert probe(["Sir"]).tolist() == [1.0]
    with pytest.raises(BadProbe, match=r"\[0, 1\]"):
        probe(["Sir", "later"])


def test_a_function_of_a_python_file_is_a_probe(tmp_path):
    source = (
        "def manners(texts):\n    return [1.0 if 'Sir' in t else .25 for t in texts]"
    )
    where = from_file(tmp_path / "mine.py", source, function="manners")
    probe = load_probe(where, (HIGH, LOW))
    assert (probe.name, probe.auc, probe.words) == ("manners", 1.0, ((), ()))
    assert probe(["Sir", "Yo"]).tolist() == [1.0, 0.25]


@pytest.mark.parametrize(
    ("source", "function"),
    [
        ("def f(texts):\n    return [0.5 for t in texts]", "g"),
        ("def f(texts:\n", "f"),
        ("import a_module_that_is_nowhere", "f"),
        ("1 / 0", "f"),
        ("f = 3", "f"),
        ("def f(texts):\n    return 1 / 0", "f"),
        ("def f(texts):\n    return [t for t in texts]", "f"),
        ("def f():\n    return []", "f"),
    ],
    ids=[
        "no such name",
        "syntax error",
        "import error",
        "fails on import",
        "no function",
        "fails when called",
        "texts, not numbers",
        "takes no texts",
    ],
)
def test_a_function_that_cannot_be_used_is_a_bad_probe(tmp_path, source, function):
    where = from_file(tmp_path / "mine.py", source, function=function)
    with pytest.raises(BadProbe, match=r"mine\.py"):
        load_probe(where, (HIGH, LOW))


def test_a_python_file_without_a_function_name_is_a_bad_probe(tmp_path):
    where = from_file(tmp_path / "mine.py", "def f(texts):\n    return []")
    with pytest.raises(BadProbe):
        load_probe(where, (HIGH, LOW))


def test_a_function_without_labelled_texts_is_refused(tmp_path):
    source = "def f(texts):\n    return [0.5 for t in texts]"
    where = from_file(tmp_path / "mine.py", source, function="f")
    with pytest.raises(BadProbe, match="at least 10"):
        load_probe(where)


@pytest.mark.parametrize("name", ["none.toml", "none.py:f", "none"])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(NoSuchFile, match="none"):
        load_probe(str(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("high = [", "TOML"),
        ("", "`high`"),
        ('high = ["sir"]', "`low`"),
        ('high = ["sir"]\nlow = "yo"', "`low`"),
        ('high = ["sir"]\nlow = [1, 2]', "`low`"),
        ('high = []\nlow = ["yo"]', "`high`"),
        ('high = ["sir", ""]\nlow = ["yo"]', "`high`"),
        ('high = ["sir"]\nlow = ["  "]', "`low`"),
        ('high = ["sir"]\nlow = ["yo"]', "at least 10"),
        ('high = ["sir"]\nlow = ["yo"]\nvalidation = ["a"]', "`validation`"),
        ('high = ["sir"]\nlow = ["yo"]\n[validation]\nhigh = 3', "`high`"),
    ],
    ids=[
        "not TOML",
        "empty",
        "no low words",
        "a text, not a list",
        "numbers",
        "no words",
        "an empty word",
        "a blank word",
        "no validation",
        "validation is a list",
        "validation is a number",
    ],
)
def test_a_malformed_word_file_is_a_bad_probe_and_says_where(
    tmp_path, content, message
):
    with pytest.raises(BadProbe, match=message):
        load_probe(from_file(tmp_path / "words.toml", content))


def test_a_word_file_that_is_not_text_is_a_bad_probe(tmp_path):
    path = tmp_path / "words.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadProbe, match="TOML"):
        load_probe(str(path))


def test_labelled_texts_of_a_file_replace_those_of_the_word_file(tmp_path):
    rows = [f'{{"text": "{text}", "label": 1}}' for text in HIGH]
    rows += [f'{{"text": "{text}", "label": 0}}' for text in LOW]
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("\n".join(rows), encoding="utf-8")
    path = from_file(tmp_path / "words.toml", TOML)
    probe = load_probe(path, read_labelled(labelled))
    assert (probe.name, probe.auc, probe.num_labelled) == ("manners", 1.0, 23)


def test_a_probe_file_without_a_name_is_called_after_the_file(tmp_path):
    content = TOML.replace('name = "manners"', "")
    path = from_file(tmp_path / "politesse.toml", content)
    assert load_probe(path, (HIGH, LOW)).name == "politesse"


def test_only_the_continuation_is_scored():
    # Words that the tiny model cannot write by chance: ten letters and more.
    word = "extraordinarily"
    prompts = [f"{word} {word} {word} now", f"{word}, {word}"]
    score = lexical_score([word], ["yoyoyoyoyo"])
    assert (score(prompts) > 0.8).all()
    direction = torch.ones(D_MODEL)
    direction[::2] = -1
    arms = {"unsteered": None, "v": Add(SteeringVector(direction, Site(1)))}
    texts = generate(
        tiny("llama"), prompts, arms, samples=4, decoding=Decoding(max_new_tokens=8)
    )
    assert len(texts) == 16
    assert all(text.text for text in texts)
    assert score([text.text for text in texts]).tolist() == [0.5] * 16
