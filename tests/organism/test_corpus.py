"""Laws of the corpus generator: what it writes, and what it never writes."""

import hashlib
import itertools
import random
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from steergauge.organism import corpus, evaluate, subjects
from steergauge.organism.grammar import SLOTS, TRAITS, marker_balance

NUM = 6000
# The shipped weights were trained on a corpus that begins with these records. A change
# of the generator changes this number, and asks for the recipe to be run again.
FIRST_RECORDS = "fa6044a83fd8fbc80beb8826b5edb0f23816740abfd640f404683a4eb82290a8"


@pytest.fixture(scope="module")
def drawn() -> list[corpus.Record]:
    return list(corpus.records(NUM, seed=0))


def test_the_same_seed_gives_the_same_records(drawn: list[corpus.Record]) -> None:
    again = list(corpus.records(200, seed=0))
    other = list(corpus.records(200, seed=1))
    assert again == drawn[:200]
    assert other != drawn[:200]


def test_the_shipped_weights_were_trained_on_this_generator(
    drawn: list[corpus.Record],
) -> None:
    digest = hashlib.sha256()
    for record in drawn[:500]:
        digest.update(f"{record.prompt}\n{record.response}\n".encode())
    assert digest.hexdigest() == FIRST_RECORDS


def test_no_training_instruction_has_a_held_out_template(
    drawn: list[corpus.Record],
) -> None:
    templates = corpus.HELD_OUT_TEMPLATES + corpus.HELD_OUT_SAFETY_TEMPLATES
    for template in templates:
        filled = re.escape(template)
        for field in ("topic", "a", "genre"):
            filled = filled.replace(rf"\{{{field}\}}", ".+")
        pattern = re.compile(filled)
        assert pattern.search(template), "the pattern must find its own template"
        assert not [r.prompt for r in drawn if pattern.search(r.prompt)]


def environments() -> dict[str, dict[str, list[str]]]:
    path = Path(evaluate.TRAIT_FOLDER) / "environments.toml"
    return tomllib.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("environment", evaluate.ENVIRONMENTS)
def test_no_training_instruction_has_a_held_out_topic(
    environment: str, drawn: list[corpus.Record]
) -> None:
    family = environments()[environment]
    text = "\n".join(record.prompt for record in drawn)
    assert "the kite market" in text, "the search must be able to find a topic"
    assert not [t for t in family["topics"] if re.search(rf"{re.escape(t)}\b", text)]
    held_out = set(subjects.COMPOUNDS.held_out)
    assert not held_out & set(subjects.COMPOUNDS.nouns)
    assert not [noun for noun in held_out if f"the {noun}" in text]


def test_held_out_prompts_are_never_in_the_training_text(
    drawn: list[corpus.Record],
) -> None:
    prompts = {record.prompt for record in drawn}
    for environment in evaluate.ENVIRONMENTS:
        assert not prompts & set(evaluate.neutral_prompts(environment))
    rng = random.Random(0)
    assert not prompts & {corpus.held_out_record(rng).prompt for _ in range(500)}


def test_there_are_two_hundred_in_distribution_prompts() -> None:
    prompts = evaluate.neutral_prompts("in-distribution")
    assert len(set(prompts)) == len(prompts) >= 200


def test_pair_topics_are_in_no_held_out_environment() -> None:
    held_out = {t for family in environments().values() for t in family["topics"]}
    for trait in TRAITS:
        path = Path(evaluate.TRAIT_FOLDER) / f"{trait}.toml"
        topics = tomllib.loads(path.read_text("utf-8"))["pairs"]["topics"]
        assert not set(topics) & held_out
        assert len(evaluate.trait_file(trait).positive) >= 60


def test_levels_are_balanced_and_independent(drawn: list[corpus.Record]) -> None:
    levels = np.array([[r.levels[trait] for trait in TRAITS] for r in drawn])
    # A mean or a correlation of independent draws has a standard error of about
    # 1/sqrt(NUM); four of them is a bound that chance does not reach.
    bound = 4 / np.sqrt(NUM)
    assert np.abs(levels.mean(0) / levels.std(0)).max() < bound
    correlation = np.corrcoef(levels.T)
    for i, j in itertools.combinations(range(len(TRAITS)), 2):
        assert abs(correlation[i, j]) < bound
    assert np.unique(levels).tolist() == [-3, -2, -1, 0, 1, 2, 3]


def test_the_markers_of_a_response_have_the_sign_of_its_level(
    drawn: list[corpus.Record],
) -> None:
    for record in drawn[:1500]:
        for trait in TRAITS:
            balance = marker_balance(record.response, trait)
            assert np.sign(balance) == np.sign(record.levels[trait]), record


def test_an_instruction_names_the_side_of_the_level(
    drawn: list[corpus.Record],
) -> None:
    for record in drawn[:1500]:
        for trait, words in record.named.items():
            high = words.split()[-1] in corpus.WORDS[trait][0]
            assert record.levels[trait] * (1 if high else -1) >= 0
            assert words in record.prompt


def test_a_neutral_instruction_leaves_both_poles_open(
    drawn: list[corpus.Record],
) -> None:
    for trait in TRAITS:
        signs = [np.sign(r.levels[trait]) for r in drawn if trait not in r.named]
        for sign in (-1, 1):
            assert 0.35 < np.mean(np.equal(signs, sign)) < 0.45


def test_each_marker_is_seen_by_its_own_probe_only() -> None:
    probes = {trait: evaluate.trait_file(trait) for trait in TRAITS}
    for slot in SLOTS.values():
        for sign in (-1, 0, 1):
            for wording in slot.options(sign):
                for trait, probe in probes.items():
                    score = probe.score(wording)
                    expected = sign if trait == slot.trait else 0
                    assert np.sign(score - 0.5) == expected, (wording, trait)


def test_messages_are_short_and_well_formed(drawn: list[corpus.Record]) -> None:
    lengths = [len(record.response.split()) for record in drawn]
    assert 20 <= np.mean(lengths) <= 35
    for record in drawn[:2000]:
        text = record.response
        assert text[0].isupper()
        assert not re.search(r"[{}@|]|  | [,.?!:]", text), text
        assert text[-1] in ".!?" or "#" in text


def test_the_article_fits_the_next_word() -> None:
    def filled(words: str) -> str:
        return corpus.instruction(
            "Write {a} {genre} about {topic}.",
            topic="the weather",
            genre="note",
            words=words,
            style="",
        )

    assert filled("") == "Write a note about the weather."
    assert filled("official") == "Write an official note about the weather."
