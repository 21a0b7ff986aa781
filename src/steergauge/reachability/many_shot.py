"""Prompts made of examples: N user texts, each with the target's own response to it.

In front of a user text come N lines "x_j y_j", as when a model learns from its context
(the many-shot prompts of arXiv 2604.09839, section 5). Nothing is optimised but N, and
nothing is needed but the target's texts; N = 0 is the unsteered model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steergauge.prompts import Text, encode
from steergauge.reachability.objective import JOINT, Target, context_length, loss
from steergauge.split import LanguageModel

COUNTS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Shots:
    """A prompt of `num` examples, and its mean loss in nats a text."""

    num: int
    prompt: str
    loss: float


def many_shot(
    lm: LanguageModel,
    target: Target,
    examples: Sequence[tuple[str, str]],
    *,
    counts: Sequence[int] = COUNTS,
    room: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Shots]:
    """The first N examples as a prompt: for N = 0 and each of `counts` that fits.

    One evaluation of a prompt on all texts of the target for each.

    Args:
        lm: the model.
        target: what is to be achieved.
        examples: user texts with the target's responses. A text of the target that is
            among them has its answer in the prompt, and is too easy to judge by.
        counts: numbers of examples; those that there are not are left out.
        room: tokens to keep free after the longest user text; at least the longest
            response of the target is. More where longer texts are to follow.
        progress: called with 1 after each evaluation.
    """
    found = []
    for num in sorted({0, *counts}):
        prompt = "".join(f"{x} {y}{JOINT}" for x, y in examples[:num])
        if num > len(examples) or not _fits(lm, target, prompt, room):
            break
        found.append(Shots(num, prompt, float(loss(lm, target, prompt).mean())))
        if progress:
            progress(1)
    return found


def best(shots: Sequence[Shots]) -> Shots:
    """The prompt of the least loss; the fewest examples where several have it."""
    return min(shots, key=lambda one: (one.loss, one.num))


def _fits(lm: LanguageModel, target: Target, prompt: str, room: int) -> bool:
    """Whether every row stays within the context, with room for a response."""
    context = context_length(lm)
    if context is None or not prompt:
        return True
    # Line by line first: tokenizers complain of texts that are far too long.
    lines = lm.tokenizer(prompt.splitlines(), add_special_tokens=False)["input_ids"]
    after = max(room, *(len(shown.response_ids) for shown in target.texts))
    if sum(len(ids) for ids in lines) + after > context:
        return False
    rows = [
        encode(lm, Text(prompt + shown.text), chat=target.chat)[0]
        for shown in target.texts
    ]
    return max(len(row) for row in rows) + after <= context
