"""The published prompts.json is read as it is, place by place, and becomes a trait."""

import json
from pathlib import Path

import pytest

from steergauge.errors import BadTrait, NoSuchFile
from steergauge.persona_prompts import orthogonal_prompts, trait_table
from steergauge.prompts import ContrastPair, Text, environment, trait

SHARED = Path(__file__).parents[2] / "shared"
PUBLISHED = SHARED / "data" / "persona-prompts" / "prompts.json"
OWN = {
    "persona_prompts": {
        "formality": {
            "contexts": ["rain", "tea"],
            "positive_template": "Speak properly of {context}.",
            "negative_template": "Chat of {context}.",
        },
        "warmth_updated": {
            "contexts": ["rain"],
            "positive_template": "Warmly: {context}.",
            "negative_template": "Coldly: {context}.",
            "description": "not read",
        },
    },
    "test_prompts": ["One?", "Two?"],
    "orthogonal_prompts": ["Write about", "Tell me of"],
    "multi_environment_prompts": {
        "in_distribution": {
            "name": "In-Distribution",
            "description": "not read",
            "formality": {
                "contexts": ["soup"],
                "positive_template": "Speak properly of {context}.",
                "negative_template": "Chat of {context}.",
            },
        },
        "topic_shift": {
            "formality": {
                "domains": ["medical", "legal"],
                "contexts": ["care", "fees", "forms"],
                "positive_template": "A proper {domain} text on {context}.",
                "negative_template": "A loose {domain} chat on {context}.",
            }
        },
        "safety_style": {
            "formality": {
                "requests": ["biased", "harmful"],
                "issues": ["law", "taste", "facts"],
                "positive_template": "Explain why {request} is wrong.",
                "negative_template": "Refuse {request} citing {issue}.",
            }
        },
        "validation_prompts": ["Three?"],
    },
}


def written(folder, content):
    path = folder / "prompts.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def own(tmp_path):
    return trait(f"{written(tmp_path, OWN)}:formality")


@pytest.fixture
def published():
    if not PUBLISHED.is_file():
        pytest.skip(f"the published prompts are not at {PUBLISHED}")
    return PUBLISHED


def positives(pairs):
    return [pair.positive.prompt for pair in pairs]


def negatives(pairs):
    return [pair.negative.prompt for pair in pairs]


def test_a_trait_is_its_templates_with_every_context(own):
    assert own.all_pairs == (
        ContrastPair(Text("Speak properly of rain."), Text("Chat of rain.")),
        ContrastPair(Text("Speak properly of tea."), Text("Chat of tea.")),
    )


def test_every_second_place_meets_every_context(own):
    pairs = own.in_environment("topic-shift").pairs
    assert len(set(pairs)) == 2 * 3
    assert ContrastPair(
        Text("A proper legal text on fees."), Text("A loose legal chat on fees.")
    ) in set(pairs)


def test_a_place_that_one_side_has_is_filled_on_that_side(own):
    pairs = own.in_environment("safety-style").pairs
    assert len(set(pairs)) == 2 * 3
    assert set(positives(pairs)) == {f"Explain why {r} is wrong." for r in WRONG}
    assert set(negatives(pairs)) == {
        f"Refuse {r} citing {i}." for r in WRONG for i in ("law", "taste", "facts")
    }
    # The request is the same on both sides of a pair.
    for pair in pairs:
        asked = pair.positive.prompt.split()[2]
        assert f" {asked} " in pair.negative.prompt


WRONG = ("biased", "harmful")


def test_its_neutral_prompts_are_those_of_test_and_validation(own, tmp_path):
    assert own.prompts == ("One?", "Two?", "Three?")
    assert own.in_environment("in-distribution").prompts == own.prompts
    assert positives(own.in_environment("in-distribution").pairs) == [
        "Speak properly of soup."
    ]
    there = own.in_environment("topic-shift")
    assert there.prompts == environment("topic-shift").prompts
    assert orthogonal_prompts(tmp_path / "prompts.json") == (
        "Write about",
        "Tell me of",
    )
    bare = {"persona_prompts": OWN["persona_prompts"]}
    poor = trait(f"{written(tmp_path, bare)}:formality")
    assert poor.prompts == ()
    assert list(poor.environments) == ["in-distribution"]
    assert poor.in_environment("in-distribution").pairs == poor.all_pairs


def test_a_trait_of_ours_takes_our_poles_and_probe(own, tmp_path):
    ours = trait("formality")
    assert ours.probe
    assert (own.name, own.high, own.low) == ("formality", ours.high, ours.low)
    assert own.probe == ours.probe
    other = trait(f"{tmp_path / 'prompts.json'}:warmth_updated")
    assert (other.high, other.low, other.probe) == ("positive", "negative", {})
    renamed = {"formality_updated": OWN["persona_prompts"]["formality"]}
    path = written(tmp_path, {**OWN, "persona_prompts": renamed})
    updated = trait(f"{path}:formality_updated")
    assert (updated.name, updated.high) == ("formality_updated", ours.high)
    assert updated.probe == ours.probe


def test_an_unknown_trait_is_refused_with_those_of_the_file(tmp_path):
    path = written(tmp_path, OWN)
    listed = r"it has formality, warmth_updated"
    with pytest.raises(BadTrait, match=rf"no trait 'mood'.*{listed}"):
        trait(f"{path}:mood")
    with pytest.raises(BadTrait, match=rf"none of them was chosen.*{listed}"):
        trait(str(path))


def without(*keys):
    """OWN with the entry at the end of `keys` left out."""
    content = json.loads(json.dumps(OWN))
    table = content
    for key in keys[:-1]:
        table = table[key]
    del table[keys[-1]]
    return content


FORMALITY = ("persona_prompts", "formality")
SHIFTED = ("multi_environment_prompts", "topic_shift", "formality")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([], "no table `persona_prompts`"),
        ({}, "no table `persona_prompts`"),
        ({"persona_prompts": []}, "no table `persona_prompts`"),
        ({"persona_prompts": {"formality": "x"}}, "trait 'formality'"),
        (without(*FORMALITY, "contexts"), "'contexts'"),
        (without(*FORMALITY, "positive_template"), "'positive_template'"),
        (without(*SHIFTED, "domains"), "'domains'"),
        ({**OWN, "test_prompts": "One?"}, "test_prompts: no list of texts"),
        ({**OWN, "multi_environment_prompts": []}, "trait 'formality'"),
    ],
)
def test_a_file_of_another_shape_is_refused(content, complaint, tmp_path):
    path = written(tmp_path, content)
    with pytest.raises(BadTrait, match=complaint) as caught:
        trait(f"{path}:formality")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{mood} talk of {context}.", "place to fill"),
        ("Talk.", "no {topic}"),
        (3, "templates"),
    ],
)
def test_a_template_whose_places_are_not_known_is_refused(
    template, complaint, tmp_path
):
    content = json.loads(json.dumps(OWN))
    content["persona_prompts"]["formality"]["positive_template"] = template
    with pytest.raises(BadTrait, match=complaint):
        trait(f"{written(tmp_path, content)}:formality")


def test_a_file_that_is_no_json_or_not_there_is_named(tmp_path):
    path = tmp_path / "prompts.json"
    with pytest.raises(NoSuchFile, match=str(path)):
        trait(f"{path}:formality")
    path.write_text('{"persona_prompts": \n{,')
    with pytest.raises(BadTrait, match=r"is no JSON: .* on line 2"):
        trait(f"{path}:formality")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NoSuchFile, match="UTF-8"):
        trait(f"{path}:formality")
    path.write_text(json.dumps({**OWN, "orthogonal_prompts": 3}))
    with pytest.raises(BadTrait, match="orthogonal_prompts"):
        orthogonal_prompts(path)


def test_the_published_file_is_read_as_it_is(published):
    content = json.loads(published.read_text())
    names = list(content["persona_prompts"])
    assert len(names) == 7
    for name in names:
        read = trait(f"{published}:{name}")
        contexts = content["persona_prompts"][name]["contexts"]
        assert len(read.all_pairs) == len(contexts)
        assert len(read.prompts) == 40 + 9
        for there in read.environments.values():
            assert len(set(there.pairs)) == len(there.pairs) >= 6
            assert not any("{" in text for text in positives(there.pairs))
            assert not any("{" in text for text in negatives(there.pairs))
    assert len(orthogonal_prompts(published)) == 20
    assert not set(orthogonal_prompts(published)) & set(read.prompts)


def test_the_published_pairs_of_formality_are_those_that_the_paper_quotes(published):
    read = trait(f"{published}:formality")
    first = ContrastPair(
        Text("Write a professional and formal message about the weather."),
        Text("Write a casual and informal message about the weather."),
    )
    assert read.all_pairs[0] == first
    num = {name: len(there.pairs) for name, there in read.environments.items()}
    assert num == {
        "in-distribution": 9,
        "topic-shift": 3 * 9,
        "genre-shift": 3 * 9,
        "safety-style": 6 * 6,
    }
    refusals = negatives(read.in_environment("safety-style").pairs)
    assert (
        "Write a casual refusal of make predictions because privacy policy." in refusals
    )


def test_fifty_pairs_of_a_file_with_forty_nine_are_refused_with_what_to_type(published):
    read = trait(f"{published}:formality")
    with pytest.raises(BadTrait, match=r"it has 49\..*--num-pairs 49"):
        read.pairs(50)
    assert len(set(read.pairs(49))) == 49


def test_an_environment_that_the_file_does_not_have_is_refused(published):
    assert trait(f"{published}:formality").in_environment("safety-style").pairs
    with pytest.raises(BadTrait, match=r"'safety-style'.*It has in-distribution"):
        trait(f"{published}:truthfulness").in_environment("safety-style")


def test_a_table_of_the_file_has_the_form_of_a_trait_file(tmp_path):
    table = trait_table(written(tmp_path, OWN), "warmth_updated")
    assert table["pairs"] == {
        "positive": ["Warmly: {topic}."],
        "negative": ["Coldly: {topic}."],
        "topics": ["rain"],
    }
    assert table["environments"] == {}
