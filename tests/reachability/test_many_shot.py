"""Prompts of examples: as many as fit, each judged like any other prompt."""

import pytest
from tests import planted

from steergauge.generation import Decoding, generate
from steergauge.intervention import Add
from steergauge.prompts import Text, encode
from steergauge.reachability.many_shot import best, many_shot
from steergauge.reachability.objective import aimed, loss

CONTEXT = 32
"""Positions of the planted model."""

ARM = Add(planted.trait_vector())
EXAMPLES = [(x, "happy glad") for x in planted.prompts(12)[4:]]


def target_of(texts):
    lm = planted.planted()
    how = Decoding(max_new_tokens=2)
    drawn = generate(lm, texts, {"": ARM}, decoding=how)
    rows = [(one.prompt, one.token_ids) for one in drawn]
    return lm, aimed(lm, rows, ARM)


def test_examples_are_lines_of_texts_and_responses_and_none_is_the_model_itself():
    lm, target = target_of(planted.prompts(4))
    found = many_shot(lm, target, EXAMPLES, counts=(1, 2))
    assert [shots.num for shots in found] == [0, 1, 2]
    first, second = (f"{x} {y}\n" for x, y in EXAMPLES[:2])
    assert [shots.prompt for shots in found] == ["", first, first + second]
    for shots in found:
        assert shots.loss == loss(lm, target, shots.prompt).mean()
    assert len({shots.loss for shots in found}) == 3


def test_the_longest_row_stays_within_the_context_with_room_for_a_response():
    lm, target = target_of(planted.prompts(4))
    longest = max(len(encode(lm, Text(x))[0]) for x in planted.prompts(4))
    counts = range(1, len(EXAMPLES) + 1)

    def tokens(num: int) -> int:
        return sum(len(encode(lm, Text(f"{x} {y}"))[0]) for x, y in EXAMPLES[:num])

    for room in (0, 8):
        found = many_shot(lm, target, EXAMPLES, counts=counts, room=room)
        most = found[-1].num
        after = longest + max(room, 2)
        assert tokens(most) + after <= CONTEXT < tokens(most + 1) + after
        assert most >= 1
    with_room = many_shot(lm, target, EXAMPLES, counts=counts, room=CONTEXT)
    assert [shots.num for shots in with_room] == [0]


def test_a_longer_text_that_the_prompt_is_judged_on_must_fit_as_well():
    lm, target = target_of(planted.prompts(4))
    counts = range(1, len(EXAMPLES) + 1)
    long = " ".join(["lake"] * 14)

    def rows(num: int, text: str) -> int:
        prompt = "".join(f"{x} {y}\n" for x, y in EXAMPLES[:num])
        return len(encode(lm, Text(prompt + text))[0])

    alone = many_shot(lm, target, EXAMPLES, counts=counts, room=2)[-1].num
    both = many_shot(lm, target, EXAMPLES, counts=counts, room=2, texts=[long])[-1].num
    # What fits before the short texts alone would overrun the context with this one.
    assert rows(alone, long) + 2 > CONTEXT
    assert rows(both, long) + 2 <= CONTEXT < rows(both + 1, long) + 2
    assert 1 <= both < alone


def test_there_are_no_more_examples_than_were_given_and_each_is_one_evaluation():
    lm, target = target_of(planted.prompts(4))
    seen: list[int] = []
    found = many_shot(lm, target, EXAMPLES[:1], progress=seen.append)
    assert [shots.num for shots in found] == [0, 1]
    assert seen == [1, 1]


def test_the_best_is_the_one_of_least_loss():
    lm, target = target_of(planted.prompts(4))
    found = many_shot(lm, target, EXAMPLES, counts=(1, 2))
    assert best(found).loss == min(shots.loss for shots in found)
    # The same prompt hidden: what examples do is found where it is what was done.
    rows = [(shown.text, shown.response_ids) for shown in target.texts]
    hidden = aimed(lm, rows, prompt=found[2].prompt)
    again = many_shot(lm, hidden, EXAMPLES, counts=(1, 2))
    assert best(again).num == 2
    assert again[2].loss == 0
    assert again[0].loss == pytest.approx(loss(lm, hidden, "").mean())
    assert again[0].loss > 1e-2
