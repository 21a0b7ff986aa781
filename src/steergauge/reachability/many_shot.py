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
    texts: Sequence[str] = (),
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
            response of the target is.
        texts: user texts beside the target's that the prompt is to stand in front of,
            such as those that it is judged by; it fits only if these fit as well.
        progress: called with 1 after each evaluation.
    """
    found, whole = [], [*texts, *(shown.text for shown in target.texts)]
    after = max(room, *(len(shown.response_ids) for shown in target.texts))
    for num in sorted({0, *counts}):
        prompt = "".join(f"{x} {y}{JOINT}" for x, y in examples[:num])
        if num > len(examples) or not _fits(lm, prompt, whole, after, target.chat):
            break
        found.append(Shots(num, prompt, float(loss(lm, target, prompt).mean())))
        if progress:
            progress(1)
    return found


def best(shots: Sequence[Shots]) -> Shots:
    """The prompt of the least loss; the fewest examples where several have it."""
    return min(shots, key=lambda one: (one.loss, one.num))


def _fits(
    lm: LanguageModel, prompt: str, texts: Sequence[str], after: int, chat: bool | None
) -> bool:
    """Whether every row stays within the context, with `after` tokens behind it."""
    context = context_length(lm)
    if context is None or not prompt:
        return True
    # Line by line first: tokenizers complain of texts that are far too long.
    lines = lm.tokenizer(prompt.splitlines(), add_special_tokens=False)["input_ids"]
    if sum(len(ids) for ids in lines) + after > context:
        return False
    rows = (encode(lm, Text(prompt + text), chat=chat)[0] for text in texts)
    return max(len(row) for row in rows) + after <= context
