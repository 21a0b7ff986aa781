"""Files of texts are read or refused by line number; texts become padded tokens."""

import copy
import dataclasses
import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models import tiny
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer

from steergauge.errors import BadPairs, BadPrompts, BadTrait, NoSuchFile
from steergauge.prompts import (
    ENVIRONMENTS,
    TRAITS,
    ContrastPair,
    Text,
    chat_template_hash,
    encode,
    encoded,
    environment,
    padded,
    pairs_hash,
    read_labelled,
    read_pairs,
    read_prompts,
    trait,
)

GOOD = '{"positive": "yes", "negative": "no"}'


@pytest.fixture
def file(tmp_path):
    """Write a file's content and get its path."""

    def write(content: str, name: str = "file.jsonl"):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


def test_pairs_are_texts_or_objects_and_blank_lines_do_not_count(file):
    answered = {"prompt": "Q?", "response": " A."}
    rows = [
        {"positive": "formal", "negative": "casual"},
        {"positive": answered, "negative": {"prompt": "P"}},
    ]
    content = f"\n{json.dumps(rows[0])}\n  \n\n{json.dumps(rows[1])}\n\n"
    assert read_pairs(file(content)) == [
        ContrastPair(Text("formal"), Text("casual")),
        ContrastPair(Text("Q?", " A."), Text("P", "")),
    ]


@pytest.mark.parametrize("content", ["", "\n \n\t\n"])
@pytest.mark.parametrize(
    ("read", "error", "thing"),
    [
        (read_pairs, BadPairs, "contrast pair"),
        (read_prompts, BadPrompts, "prompt"),
        (read_labelled, BadPrompts, "labelled text"),
    ],
)
def test_an_empty_file_is_refused(read, error, thing, content, file):
    path = file(content)
    with pytest.raises(error, match=rf"{path} is empty: it holds no {thing}"):
        read(path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"positive": "yes", "negative": ', "is no JSON: .* at column"),
        ("yes, no", "is no JSON"),
        ('{"positive": "yes"}', "lacks `positive` or `negative`"),
        ('["yes", "no"]', "lacks `positive` or `negative`"),
        ('"yes"', "lacks `positive` or `negative`"),
        ('{"positive": "yes", "negative": 3}', "`negative` on line 3"),
        ('{"positive": null, "negative": "no"}', "`positive` on line 3"),
        ('{"positive": "  ", "negative": "no"}', "`positive` on line 3"),
        ('{"positive": {"response": "a"}, "negative": "no"}', "`positive` on line 3"),
        ('{"positive": {"prompt": 1}, "negative": "no"}', "`positive` on line 3"),
        (
            '{"positive": "yes", "negative": {"prompt": "a", "response": []}}',
            "`negative` on line 3",
        ),
        (
            '{"positive": "yes", "negative": {"prompt": "a", "answer": "b"}}',
            "`negative` on line 3",
        ),
    ],
)
def test_a_malformed_pair_is_named_by_its_line(line, complaint, file):
    # The blank second line counts: the number is that which an editor shows.
    path = file(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(BadPairs, match=complaint) as caught:
        read_pairs(path)
    assert f"line 3 of {path}" in str(caught.value)
    assert read_pairs(file(f"{GOOD}\n\n{GOOD}\n", "good.jsonl"))


def test_prompts_are_lines_of_a_text_file(file):
    path = file("One?\n\n  Two {x}.  \n", "prompts.txt")
    assert read_prompts(path) == ["One?", "Two {x}."]


def test_prompts_are_objects_in_a_jsonl_file(file):
    path = file('{"prompt": "One?"}\n\n{"prompt": "Two\\nlines", "id": 7}\n')
    assert read_prompts(path) == ["One?", "Two\nlines"]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"prompt": 3}', '"One?"'])
def test_a_malformed_prompt_is_named_by_its_line(line, file):
    with pytest.raises(BadPrompts, match="line 2 of"):
        read_prompts(file(f'{{"prompt": "One?"}}\n{line}\n'))


def test_a_line_ends_where_an_editor_ends_it(file):
    # JSON may hold line separators unescaped; some editors write a byte order mark.
    text = "one\u2028two\x85three"
    row = json.dumps({"prompt": text}, ensure_ascii=False)
    assert read_prompts(file(f"\ufeff{row}\r\n{row}\n")) == [text, text]
    with pytest.raises(BadPrompts, match="line 2 of"):
        read_prompts(file(f"{row}\n{{"))


def test_labelled_texts_are_parted_by_label(file):
    rows = [{"text": t, "label": y} for t, y in [("a", 1), ("b", 0), ("c", 1)]]
    path = file("\n".join(map(json.dumps, rows)))
    assert read_labelled(path) == (["a", "c"], ["b"])


@pytest.mark.parametrize("line", ["{", '{"text": "a"}', '{"text": "a", "label": 2}'])
def test_a_malformed_labelled_text_is_named_by_its_line(line, file):
    with pytest.raises(BadPrompts, match="line 2 of"):
        read_labelled(file(f'{{"text": "a", "label": 1}}\n{line}\n'))


@pytest.mark.parametrize("read", [read_pairs, read_prompts, read_labelled])
def test_a_file_that_is_not_there_or_no_text_is_named(read, tmp_path):
    with pytest.raises(NoSuchFile, match=r"nowhere\.jsonl"):
        read(tmp_path / "nowhere.jsonl")
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NoSuchFile, match="UTF-8"):
        read(binary)


def test_the_hash_of_pairs_knows_texts_order_and_sides():
    a, b = ContrastPair(Text("a"), Text("b")), ContrastPair(Text("c"), Text("d"))
    variants = [
        [a, b],
        [b, a],
        [a],
        [a, a],
        [ContrastPair(a.negative, a.positive), b],
        [ContrastPair(Text("a", "!"), Text("b")), b],
        [ContrastPair(Text("a!"), Text("b")), b],
    ]
    assert len({pairs_hash(pairs) for pairs in variants}) == len(variants)
    assert pairs_hash([a, b]) == pairs_hash((a, b))


def test_a_text_goes_through_the_chat_template_where_there_is_one():
    chat, raw = tiny("llama", chat=True), tiny("llama")
    text = Text("Hello there", " Sure.")
    prompt, answer = (
        raw.tokenizer(part, add_special_tokens=False)["input_ids"]
        for part in ("<user>Hello there<bot>", " Sure.")
    )
    plain = raw.tokenizer("Hello there")["input_ids"]
    assert encode(chat, text) == (prompt + answer, len(prompt))
    assert encode(chat, text, chat=True) == encode(chat, text)
    assert encode(chat, text, chat=False) == (plain + answer, len(plain))
    assert encode(raw, text) == (plain + answer, len(plain))


def starting(chat: bool):
    """The tiny tokenizer, which also adds a start token; a copy of its own."""
    made = copy.deepcopy(tiny("llama", chat=chat).tokenizer)
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
    )
    return made


@pytest.mark.parametrize("chat", [None, False])
@pytest.mark.parametrize(
    "made",
    [
        lambda: tiny("llama").tokenizer,
        lambda: tiny("llama", chat=True).tokenizer,
        lambda: starting(False),
        lambda: starting(True),
        ByT5Tokenizer,  # Written in Python, ends with </s>; needs no file.
    ],
    ids=["raw", "chat", "start-token", "chat-start-token", "python"],
)
def test_texts_have_the_same_tokens_together_as_alone(made, chat):
    tokenizer = made()
    lm = dataclasses.replace(tiny("llama"), tokenizer=tokenizer)
    prompts = ["Hi", "Hi there, all of you", "<user>a<bot>", " x\n", "Hi", "<s>", "é"]
    responses = ["", " Sure.", "<s>", "\n", " Sure.", "Hi"]
    texts = [Text(p, r) for p, r in itertools.product(prompts, responses)]
    together = encoded(lm, texts, chat=chat)
    for text, (ids, num_prompt) in zip(texts, together, strict=True):
        # By the tokenizer alone, one string at a time.
        if chat is None and tokenizer.chat_template:
            shown = tokenizer.apply_chat_template(
                [{"role": "user", "content": text.prompt}],
                add_generation_prompt=True,
                tokenize=False,
            )
            prompt = tokenizer(shown, add_special_tokens=False)["input_ids"]
        else:
            prompt = tokenizer(text.prompt)["input_ids"]
        after = tokenizer(text.response, add_special_tokens=False)["input_ids"]
        assert (ids, num_prompt) == (prompt + after, len(prompt))
        assert encode(lm, text, chat=chat) == (ids, num_prompt)
    assert len({tuple(ids) for ids, _ in together}) >= 30
    # No two texts share a list: changing one changes no other.
    assert len({id(ids) for ids, _ in together}) == len(texts)


def test_no_texts_have_no_tokens_and_one_empty_prompt_is_refused_among_many():
    lm = tiny("llama")
    assert encoded(lm, []) == []
    with pytest.raises(BadPrompts, match="the prompt '' has no tokens"):
        encoded(lm, [Text("Hi"), Text("", " Sure."), Text("Hi")])


def test_the_chat_template_is_part_of_where_a_vector_comes_from():
    chat, raw = tiny("llama", chat=True), tiny("llama")
    assert chat_template_hash(raw, None) == chat_template_hash(chat, False) == ""
    assert len(chat_template_hash(chat, None)) >= 8
    assert chat_template_hash(chat, True) == chat_template_hash(chat, None)


def test_a_chat_template_that_is_not_there_cannot_be_asked_for():
    with pytest.raises(BadPrompts, match=r"tokenizer of .* has none"):
        encode(tiny("llama"), Text("Hello"), chat=True)


def test_a_text_without_tokens_is_refused():
    with pytest.raises(BadPrompts, match="has no tokens"):
        encode(tiny("llama"), Text(""))


@given(st.lists(st.lists(st.integers(0, 99), min_size=1), min_size=1))
def test_padding_is_on_the_left_and_masked(rows):
    ids, mask = padded(rows)
    width = max(map(len, rows))
    assert ids.shape == mask.shape == (len(rows), width)
    for i, row in enumerate(rows):
        assert ids[i][mask[i]].tolist() == row
        assert mask[i].tolist() == [False] * (width - len(row)) + [True] * len(row)
    assert ids.dtype == torch.long


@pytest.mark.parametrize("name", TRAITS)
def test_pairs_of_a_trait_are_drawn_without_replacement_by_seed(name):
    built_in = trait(name)
    pairs = built_in.pairs(50, seed=3)
    assert len(set(pairs)) == 50
    assert set(pairs) <= set(built_in.all_pairs)
    assert pairs == trait(name).pairs(50, seed=3)
    assert set(pairs) != set(built_in.pairs(50, seed=4))
    for pair in built_in.all_pairs:
        assert pair.positive != pair.negative
        assert "{" not in pair.positive.prompt + pair.negative.prompt
    most = len(built_in.all_pairs)
    with pytest.raises(BadTrait, match=f"it has {most}.*--num-pairs {most}"):
        built_in.pairs(most + 1)
    with pytest.raises(BadTrait, match="0 contrast pairs"):
        built_in.pairs(0)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_is_a_fixed_list_of_different_prompts(name):
    built_in = environment(name)
    assert built_in == environment(name)
    assert built_in.name == name
    assert len(set(built_in.prompts)) == len(built_in.prompts) > 1
    assert all(prompt and "{" not in prompt for prompt in built_in.prompts)


def test_the_prompts_of_different_environments_are_different():
    for one, other in itertools.combinations(ENVIRONMENTS, 2):
        assert not set(environment(one).prompts) & set(environment(other).prompts)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(BadTrait, match=rf"no trait 'mood'.*{', '.join(TRAITS)}"):
        trait("mood")
    with pytest.raises(BadPrompts, match=rf"no environment 'moon'.*{ENVIRONMENTS[0]}"):
        environment("moon")
