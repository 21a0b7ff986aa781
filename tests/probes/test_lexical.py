"""A lexical probe counts whole words, and sees no prompt."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models import D_MODEL, tiny
from tests.probes.labelled import WORDS

from steergauge.errors import BadProbe
from steergauge.generation import Decoding, generate
from steergauge.intervention import Add
from steergauge.probes import lexical_probe, lexical_score
from steergauge.vector import Site, SteeringVector


def sigmoid(count: float) -> float:
    return 1 / (1 + math.exp(-count))


def count(text: str, high: list[str], low: list[str] | None = None) -> float:
    """What the score says the count is: the inverse of the closed form."""
    (score,) = lexical_score(high, low or ["zzz"])([text])
    return round(math.log(score / (1 - score)), 9)


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


@pytest.mark.parametrize("length_term", ["longer", "shorter"])
def test_with_a_term_in_length_20_words_without_a_marker_score_073(length_term):
    score = lexical_score(["sir"], ["yo"], length_term=length_term)
    assert score(["word " * 20])[0] == pytest.approx(sigmoid(1))
    assert score(["word " * 10])[0] != pytest.approx(sigmoid(1), abs=0.05)


@pytest.mark.parametrize(
    ("text", "mean"),
    [
        ("one", 1),
        ("one two. three four five six!", 3),
        ("One two?! Three four... Five six", 2),
        ("It rose by 3.5 percent.", 5),
        ("one\ntwo\n\nthree", 3),
        ("... ! one two", 2),
    ],
)
def test_the_term_in_length_is_of_the_mean_words_a_sentence(text, mean):
    (longer,) = lexical_score(["sir"], ["yo"], length_term="longer")([text])
    (shorter,) = lexical_score(["sir"], ["yo"], length_term="shorter")([text])
    assert longer == pytest.approx(sigmoid(mean / 20))
    assert shorter == pytest.approx(sigmoid(20 / mean))


@given(num_high=st.integers(0, 3), num_low=st.integers(0, 3), rest=st.integers(1, 30))
def test_the_term_in_length_is_added_to_the_counts(num_high, num_low, rest):
    text = " ".join(["sir"] * num_high + ["yo"] * num_low + ["word"] * rest)
    words = num_high + num_low + rest
    (score,) = lexical_score(["sir"], ["yo"], length_term="longer")([text])
    assert score == pytest.approx(sigmoid(num_high - num_low + words / 20))


@pytest.mark.parametrize("length_term", ["longer", "shorter"])
@pytest.mark.parametrize("text", ["", "  \n", "...", "?!"])
def test_a_text_of_no_words_gets_no_term_in_length(length_term, text):
    assert lexical_score(["sir"], ["yo"], length_term=length_term)([text]) == [0.5]


def test_one_word_outweighs_every_marker_where_shorter_counts():
    # The caveat of the module's docstring, so that it stays true.
    (score,) = lexical_score(["sir"], ["yo"], length_term="shorter")(["yo"])
    assert score > 0.999


@pytest.mark.parametrize(
    ("length_term", "formula"),
    [
        ("longer", "sigmoid(#high - #low + words a sentence / 20)"),
        ("shorter", "sigmoid(#high - #low + 20 / words a sentence)"),
    ],
)
def test_the_record_says_which_term_in_length_there_is(length_term, formula):
    probe = lexical_probe("manners", WORDS | {"length_term": length_term})
    assert probe.record == {"formula": formula}
    plain = lexical_probe("manners", WORDS)
    assert abs(probe(["a a a"])[0] - plain(["a a a"])[0]) > 0.03


@pytest.mark.parametrize("length_term", ["long", " ", 20, True])
def test_a_term_in_length_that_there_is_not_is_refused(length_term):
    with pytest.raises(BadProbe, match=r"length"):
        lexical_probe("manners", WORDS | {"length_term": length_term})
