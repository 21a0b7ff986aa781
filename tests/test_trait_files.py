"""A trait is read from its file, and is never tested on what it was extracted from."""

import re
import tomllib
from pathlib import Path

import pytest

import steergauge
from steergauge.errors import BadTrait
from steergauge.organism import corpus
from steergauge.prompts import (
    ENVIRONMENTS,
    TRAITS,
    ContrastPair,
    Text,
    environment,
    trait,
)


@pytest.fixture
def file(tmp_path):
    """Write a file's content and get its path."""

    def write(content: str, name: str = "size.toml"):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


TRAIT = """
name = "size"
high = "big"
low = "small"
[pairs]
positive = ["A big {topic}.", "One huge {topic}."]
negative = ["A small {topic}.", "One tiny {topic}."]
topics = ["house", "dog", "tree"]
"""


def test_a_trait_of_ones_own_is_every_template_with_every_topic(file):
    own = trait(str(file(TRAIT)))
    assert (own.name, own.high, own.low, dict(own.probe)) == (
        "size",
        "big",
        "small",
        {},
    )
    assert len(own.all_pairs) == 6
    assert ContrastPair(Text("One huge dog."), Text("One tiny dog.")) in own.all_pairs


@pytest.mark.parametrize(
    "content",
    [
        TRAIT.replace('name = "size"', ""),
        TRAIT.replace("topics", "subjects"),
        TRAIT.replace(', "One tiny {topic}."', ""),
        TRAIT.replace("One tiny {topic}.", "One tiny house."),
        TRAIT.replace('["house", "dog", "tree"]', '"house"'),
        TRAIT.replace('["house", "dog", "tree"]', "[]"),
        TRAIT.replace("[pairs]", "[pairs"),
        "",
    ],
)
def test_a_malformed_trait_file_is_refused(content, file):
    with pytest.raises(BadTrait):
        trait(str(file(content)))


def prompts_of(pairs):
    return {side.prompt for pair in pairs for side in (pair.positive, pair.negative)}


def held_out_topics():
    path = Path(steergauge.__file__).parent / "traits" / "environments.toml"
    families = tomllib.loads(path.read_text(encoding="utf-8")).values()
    return {topic for family in families for topic in family["topics"]}


@pytest.fixture(scope="module")
def trained_on():
    """Words of the reference model's training instructions, in lower case."""
    records = corpus.records(20_000, seed=0)
    return {word for record in records for word in words(record.prompt)}


def words(text):
    return re.findall(r"\w+", text.lower())


@pytest.mark.parametrize("name", TRAITS)
@pytest.mark.parametrize("where", ENVIRONMENTS)
def test_a_built_in_trait_has_pairs_and_prompts_in_every_environment(name, where):
    there = trait(name).in_environment(where)
    assert len(set(there.pairs)) == len(there.pairs) >= 40
    assert there.prompts == environment(where).prompts
    others = {e: trait(name).in_environment(e).pairs for e in ENVIRONMENTS}
    for other, pairs in others.items():
        assert other == where or not set(pairs) & set(there.pairs)


@pytest.mark.parametrize("name", TRAITS)
def test_no_vector_is_extracted_from_a_prompt_or_topic_that_it_is_tested_on(name):
    tested = {prompt for where in ENVIRONMENTS for prompt in environment(where).prompts}
    assert "Can you help me to keep a gift?" in tested
    for where in ENVIRONMENTS:
        fit = prompts_of(trait(name).in_environment(where).pairs)
        assert fit
        assert not fit & tested
        for topic in held_out_topics():
            assert any(topic in prompt for prompt in tested)
            assert not any(topic in prompt for prompt in fit)


@pytest.mark.parametrize("name", TRAITS)
@pytest.mark.parametrize("where", ENVIRONMENTS)
def test_the_reference_model_was_trained_on_every_word_of_a_pair(
    name, where, trained_on
):
    assert {"bakery", "tweet", "secret"} <= trained_on
    assert "lighthouse" not in trained_on
    pairs = trait(name).in_environment(where).pairs
    assert {word for text in prompts_of(pairs) for word in words(text)} <= trained_on


def test_an_equivalence_can_be_stated_in_every_environment():
    # 50 prompts decide on one, after 24 that chose the strength.
    assert all(len(environment(where).prompts) >= 74 for where in ENVIRONMENTS)


def test_pairs_of_an_environment_are_drawn_from_it_alone():
    humor = trait("humor")
    there = humor.in_environment("safety-style").pairs
    assert not set(there) & set(humor.all_pairs)
    drawn = humor.pairs(30, seed=1, environment="safety-style")
    assert len(set(drawn)) == 30
    assert set(drawn) <= set(there)
    assert humor.pairs(30, seed=1, environment="in-distribution") == humor.pairs(
        30, seed=1
    )
    with pytest.raises(BadTrait, match=f"humor in safety-style .*{len(there)}"):
        humor.pairs(len(there) + 1, environment="safety-style")
    with pytest.raises(BadTrait, match=r"'moon'.*It has in-distribution, topic-shift"):
        humor.pairs(3, environment="moon")


ELSEWHERE = (
    TRAIT
    + """
[environments.topic-shift]
[environments.genre-shift]
positive = ["A big {topic} in a letter."]
negative = ["A small {topic} in a letter."]
[environments.zoo]
topics = ["ape"]
prompts = ["Go on.", "And then?"]
"""
)


def test_what_an_environment_of_a_trait_leaves_out_is_filled_in(file):
    own = trait(str(file(ELSEWHERE)))
    there = own.environments
    assert list(there) == ["in-distribution", "topic-shift", "genre-shift", "zoo"]
    assert there["in-distribution"].pairs == own.all_pairs
    for name in ("in-distribution", "topic-shift", "genre-shift"):
        assert there[name].prompts == environment(name).prompts
    # Its own templates with the environment's topics, then the other way round.
    shifted = prompts_of(there["topic-shift"].pairs)
    assert "A big blood test." not in shifted
    assert "A big the blood test." in shifted
    assert prompts_of(there["genre-shift"].pairs) == {
        f"A {size} {topic} in a letter."
        for size in ("big", "small")
        for topic in ("house", "dog", "tree")
    }
    assert there["zoo"].prompts == ("Go on.", "And then?")
    assert ContrastPair(Text("One huge ape."), Text("One tiny ape.")) in (
        there["zoo"].pairs
    )


def test_neutral_prompts_of_a_trait_are_its_in_distribution_prompts(file):
    content = f'prompts = ["How big?", "How so?"]\n{ELSEWHERE}'
    own = trait(str(file(content)))
    assert own.prompts == ("How big?", "How so?")
    assert own.in_environment("in-distribution").prompts == own.prompts
    there = own.in_environment("topic-shift")
    assert there.prompts == environment("topic-shift").prompts
    assert trait(str(file(TRAIT))).prompts == ()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("[environments.zoo]", "[environments.zoo]\nnegatives = []"), "negatives"),
        (('negative = ["A small {topic} in a letter."]', ""), "one side only"),
        (('prompts = ["Go on.", "And then?"]', ""), "environments.zoo: not built in"),
        (('prompts = ["Go on.", "And then?"]', "prompts = []"), "prompts: no list"),
        (('["Go on.", "And then?"]', '"Go on."'), "prompts: no list"),
        (('topics = ["ape"]', "topics = [1]"), "topics: no list"),
        (("{topic} in a letter", "house in a letter"), "it has no {topic}"),
        (('positive = ["A big', 'prompts = 3\npositive = ["A big'), "prompts: no"),
    ],
)
def test_a_malformed_environment_of_a_trait_is_refused(change, complaint, file):
    assert change[0] in ELSEWHERE
    path = file(ELSEWHERE.replace(*change))
    with pytest.raises(BadTrait, match=re.escape(complaint)):
        trait(str(path))


def test_environments_that_are_no_table_are_refused(file):
    for content in ("environments = 3\n" + TRAIT, TRAIT + "\n[environments]\nzoo = 3"):
        with pytest.raises(BadTrait, match="no table"):
            trait(str(file(content)))


def test_what_a_trait_holds_cannot_be_changed():
    humor = trait("humor")
    with pytest.raises(TypeError):
        humor.environments["zoo"] = humor.environments["topic-shift"]
    with pytest.raises(AttributeError):
        humor.environments["topic-shift"].prompts = ()
    assert humor == trait("humor")
    assert humor != trait("formality")


@pytest.mark.parametrize("name", ["a[b]", "a(b)", "a,b"])
def test_an_environments_name_is_plain(name, file):
    extra = f'\n[environments."{name}"]\nprompts = ["A house.", "A dog."]\n'
    assert (
        "x y-z" in trait(str(file(TRAIT + extra.replace(name, "x y-z")))).environments
    )
    with pytest.raises(BadTrait, match="letters"):
        trait(str(file(TRAIT + extra)))
