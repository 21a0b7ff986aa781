"""A prompt of m tokens, searched one token at a time with the gradient's help.

Greedy coordinate gradient (arXiv 2307.15043), made for small budgets: the best prompt
is kept (the best `WIDTH`, were it more than one), and changed in one place at a time.
To first order, putting w in place i of a prompt p changes the loss by ::

    g_i . (e(w) - e(p_i)),      g_i the gradient by the embedding in place i,

so one gradient says which of all m x V changes look best. Changes are drawn by how
good they look, one in four blindly, for a gradient says nothing of a long step; some
move a token as well. Those that do not read back are dropped (see `slots`). The rest
are tried on some of the texts, the best of them on all.

The budget counts what goes through the model: an *evaluation* is one pass of all
texts, a pass of a quarter of them is a quarter, a gradient is three. What a search
reports of its prompt comes from the prompt's text, encoded afresh.

Not finding a prompt proves nothing: `hidden_prompts` are known to exist, and how many
of these the same search finds is its power. So nothing that a search starts from may
come from texts like those that prompts are hidden in: it starts from random tokens,
from what the model writes itself, and from what it is given.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from steergauge.errors import BadPrompts, InputError
from steergauge.reachability.objective import Target, loss, text_of
from steergauge.reachability.slots import (
    Frame,
    Slots,
    frame_of,
    plain_tokens,
    promised_gains,
    reads_back,
    slots,
    token_losses,
)
from steergauge.split import LanguageModel

EVALUATIONS, LEAST_EVALUATIONS = 256, 16
"""Default budget; the smallest one: starts, a gradient, and a round of changes."""

GRADIENT_COST = 3
"""Evaluations that a gradient counts as: a pass, and the way back at twice its cost."""

WIDTH = 1
"""Prompts that are kept. A second one costs a gradient a round, which a budget of some
hundred evaluations spends better on more rounds."""

PROPOSED, KEPT = 16, 4
"""Changes of a round: so many on some of the texts, so many of these on all."""

PARTS = 4
"""The texts are dealt into so many parts; each round tries its changes on another."""

BLIND, MOVED = 0.25, 0.2
"""Share of changes drawn without a look at the gradient, and share of those that take
a token out and put one in elsewhere: right words stand in wrong places at first."""

PER_PLACE, SHARPNESS = 32, 1.0
"""Of the most promising tokens of each place, changes are drawn by
exp(SHARPNESS x promised gain / standard deviation of it)."""

OWN_STARTS = 4
"""Starts that the model writes itself where a user's text would be."""

DRAWS = 50
"""For each prompt that is wanted, before fewer have to do."""

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The best prompt of a search.

    Attributes:
        prompt: its text, with the joint at the end.
        tokens: the text's, without the joint's.
        loss: mean nats a text, of the text encoded afresh.
        evaluations: passes of all texts that it took.
        curve: (evaluations so far, least loss so far), one a round.
    """

    prompt: str
    tokens: Tokens
    loss: float
    evaluations: int
    curve: tuple[tuple[int, float], ...]


def search(
    lm: LanguageModel,
    target: Target,
    *,
    length: int,
    evaluations: int = EVALUATIONS,
    seed: int = 0,
    starts: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Found:
    """The best prompt of `length` tokens that the budget finds; the seed decides.

    Args:
        lm: the model.
        target: what the prompt is to achieve.
        length: tokens, not counting the joint.
        evaluations: budget: passes of all texts of the target.
        seed: of all draws.
        starts: texts whose first `length` tokens are tried, such as a many-shot
            prompt; so are the model's own, and random tokens.
        progress: called with the evaluations since the last call.

    Raises:
        InputError: the budget or the length is too small, or the rows are too long.
        BadPrompts: nothing can be put in front of the texts.
    """
    if length < 1 or evaluations < LEAST_EVALUATIONS:
        raise InputError(
            f"{length} tokens were to be found in {evaluations} evaluations.",
            remedy=f"Ask for 1 token and for {LEAST_EVALUATIONS} evaluations or more.",
        )
    goal = _goal(lm, target, length, np.random.default_rng(seed))
    # Rows are counted, as parts of the texts are tried; the last pass is the judge's.
    budget = _Budget((evaluations - 1) * goal.num_texts)
    losses: dict[Tokens, float] = {}
    seen: set[Tokens] = set()
    promises: dict[Tokens, _Promise] = {}
    curve: list[tuple[int, float]] = []
    proposals = _starts(goal, starts, budget)
    while proposals:
        seen |= set(proposals)
        chosen = _screened(goal, proposals, budget, part=len(curve))
        chosen = chosen[: budget.left // goal.num_texts]
        if not chosen:
            break
        losses |= zip(chosen, goal.losses(goal.whole, chosen, budget), strict=True)
        curve.append((budget.spent // goal.num_texts, min(losses.values())))
        if progress:
            progress(curve[-1][0] - (curve[-2][0] if len(curve) > 1 else 0))
        kept = sorted(losses, key=lambda one: (losses[one], one))[:WIDTH]
        _look(goal, kept, promises, budget)
        # Where all changes were tried, anything is.
        proposals = _changes(goal, kept, promises, seen) or _anything(goal, seen)
    if not losses:
        raise BadPrompts(
            f"no {length} tokens of {lm.name} in a row read back from their text.",
            remedy="Ask for fewer, or give texts to start from.",
        )
    best = min(losses, key=lambda one: (losses[one], one))
    prompt = text_of(lm, best)
    judged = float(loss(lm, target, prompt).mean())
    spent = -(-budget.spent // goal.num_texts) + 1
    if progress:
        progress(spent - curve[-1][0])
    return Found(prompt, best, judged, spent, tuple(curve))


def hidden_prompts(
    lm: LanguageModel,
    texts: Sequence[str],
    *,
    lengths: Sequence[int],
    num: int,
    least: int | None = None,
    seed: int = 0,
    chat: bool | None = None,
) -> list[str]:
    """`num` different pieces of real text, the joint at their ends.

    Pieces begin anywhere in a text, and read back; they are of `lengths` tokens in
    turn, as far as texts are long enough. What they do to a response has to be
    measured: a hidden prompt without an effect tells nothing of a search.

    Args:
        lm: the model.
        texts: real ones, of any kind.
        lengths: tokens of a piece; the joint comes on top.
        num: how many.
        least: how few will do where there are no more; None means `num`.
        seed: of the draw.
        chat: as in the targets.

    Raises:
        InputError: the texts do not hold so many pieces.
        BadPrompts: nothing can be put in front of a text.
    """
    encoded = [
        lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts
    ]
    long = {size: [ids for ids in encoded if len(ids) >= size] for size in lengths}
    sizes = [size for size in lengths if long[size]]
    draw, found, tried = random.Random(seed), dict[str, None](), set[Tokens]()
    frame = frame_of(lm, texts[0], chat=chat) if sizes else Frame((), ())
    for size in itertools.islice(itertools.cycle(sizes), DRAWS * num):
        if len(found) == num:
            break
        ids = draw.choice(long[size])
        start = draw.randrange(len(ids) - size + 1)
        piece = tuple(ids[start : start + size])
        if piece in tried:
            continue
        tried.add(piece)
        if reads_back(lm, piece, frame, text=texts[0], chat=chat):
            found[text_of(lm, piece)] = None
    wanted = num if least is None else least
    if len(found) < wanted:
        shown = ", ".join(map(str, lengths))
        raise InputError(
            f"{wanted} hidden prompts of {shown} tokens were asked for; "
            f"{len(found)} were found in {len(texts)} texts.",
            remedy="Give more or longer texts, or ask for shorter prompts.",
        )
    return list(found)


@dataclass(slots=True)
class _Budget:
    """Rows that may go through the model, and rows that have."""

    rows: int
    spent: int = 0

    @property
    def left(self) -> int:
        return self.rows - self.spent


@dataclass(frozen=True, slots=True)
class _Promise:
    """Changes of one prompt, and the chance of each to be drawn."""

    places: np.ndarray
    tokens: np.ndarray
    chances: np.ndarray


@dataclass(frozen=True, slots=True)
class _Goal:
    """What stays the same during a search.

    Attributes:
        lm: the model.
        target: what the prompt is to achieve.
        frame: of its first text.
        whole: rows of all texts.
        parts: rows of some of them each; none where there are too few texts.
        plain: tokens that may be used.
        length: of the prompt.
        draw: all chance of the search.
    """

    lm: LanguageModel
    target: Target
    frame: Frame
    whole: Slots
    parts: tuple[Slots, ...]
    plain: Tensor
    length: int
    draw: np.random.Generator

    @property
    def num_texts(self) -> int:
        return len(self.target.texts)

    def losses(
        self, spaces: Slots, prompts: Sequence[Tokens], budget: _Budget
    ) -> list[float]:
        """Mean loss of each prompt on the texts of `spaces`."""
        budget.spent += len(prompts) * len(spaces.scored)
        tokens = torch.tensor(prompts, device=self.lm.device)
        return token_losses(self.lm, spaces, tokens).tolist()

    def usable(self, tokens: Tokens) -> bool:
        """Whether the tokens read back in front of the first text."""
        text, chat = self.target.texts[0].text, self.target.chat
        return reads_back(self.lm, tokens, self.frame, text=text, chat=chat)

    def anything(self, num: int) -> list[int]:
        """Plain tokens, any of them."""
        return self.plain[self.draw.integers(len(self.plain), size=num)].tolist()


def _goal(
    lm: LanguageModel, target: Target, length: int, draw: np.random.Generator
) -> _Goal:
    frames = [frame_of(lm, shown.text, chat=target.chat) for shown in target.texts]
    whole = slots(lm, target, frames, length=length)
    parts = [
        slots(lm, replace(target, texts=texts), frames[first::PARTS], length=length)
        for first in range(PARTS)
        if len(frames) >= PARTS and (texts := target.texts[first::PARTS])
    ]
    plain = torch.tensor(plain_tokens(lm))
    return _Goal(lm, target, frames[0], whole, tuple(parts), plain, length, draw)


def _starts(goal: _Goal, texts: Sequence[str], budget: _Budget) -> list[Tokens]:
    """Beginnings of `texts`, the model's own, and random tokens."""
    found: dict[Tokens, None] = {}
    for text in texts:
        ids = goal.lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        found[tuple(ids[: goal.length])] = None
    for tokens in _own_texts(goal, budget):
        found[tokens] = None
    long = (one for one in found if len(one) == goal.length and goal.usable(one))
    given = list(itertools.islice(long, PROPOSED))
    return [*given, *_anything(goal, set(given))][:PROPOSED]


def _anything(goal: _Goal, seen: set[Tokens]) -> list[Tokens]:
    """Random tokens that read back and were not seen."""
    drawn = (tuple(goal.anything(goal.length)) for _ in range(DRAWS * PROPOSED))
    fresh = (one for one in drawn if one not in seen and goal.usable(one))
    return list(dict.fromkeys(itertools.islice(fresh, PROPOSED)))


def _own_texts(goal: _Goal, budget: _Budget) -> list[Tokens]:
    """What the model would write where the prompt goes, if the budget has room."""
    if OWN_STARTS * goal.length > budget.rows // 8:
        return []
    lm, plain = goal.lm, goal.plain.to(goal.lm.device)
    skipped = len(goal.frame.before)
    # A model needs something to go on from.
    rows = [[*goal.frame.before] or goal.anything(1) for _ in range(OWN_STARTS)]
    ids = torch.tensor(rows, device=lm.device)
    while ids.shape[1] < skipped + goal.length:
        budget.spent += OWN_STARTS
        logits = lm.logits(ids, torch.ones_like(ids, dtype=torch.bool), keep=1)[:, -1]
        noise = torch.from_numpy(goal.draw.gumbel(size=(OWN_STARTS, len(plain))))
        scores = logits[:, plain].double().cpu() + noise
        chosen = plain[scores.argmax(-1).to(plain.device)]
        ids = torch.cat([ids, chosen[:, None]], dim=1)
    return [tuple(row) for row in ids[:, skipped:].tolist()]


def _screened(
    goal: _Goal, proposals: Sequence[Tokens], budget: _Budget, *, part: int
) -> list[Tokens]:
    """The best of `proposals` on a part of the texts; the first if there is none."""
    spaces = goal.parts[part % PARTS] if goal.parts else goal.whole
    cost = len(proposals) * len(spaces.scored)
    if not goal.parts or cost > budget.left - goal.num_texts:
        return list(proposals[:KEPT])
    losses = goal.losses(spaces, proposals, budget)
    order = sorted(range(len(proposals)), key=losses.__getitem__)
    return [proposals[i] for i in order[:KEPT]]


def _look(
    goal: _Goal,
    prompts: Sequence[Tokens],
    promises: dict[Tokens, _Promise],
    budget: _Budget,
) -> None:
    """Take the gradients of `prompts` that are not in `promises` yet."""
    cost = GRADIENT_COST * goal.num_texts
    for prompt in prompts:
        # No gradient without a change to follow it.
        if prompt not in promises and budget.left >= cost + goal.num_texts:
            budget.spent += cost
            promises[prompt] = _promise(goal, prompt)


def _promise(goal: _Goal, prompt: Tokens) -> _Promise:
    """The most promising tokens for each place, by the gradient of the loss."""
    gains = promised_gains(goal.lm, goal.whole, prompt)
    gains = gains[:, goal.plain.to(gains.device)].cpu()
    top = gains.topk(min(PER_PLACE, gains.shape[1]), dim=-1)
    values = top.values.flatten().double()
    spread = float(values.std()) if len(values) > 1 else 0.0
    chances = (values * (SHARPNESS / spread if spread > 0 else 0.0)).softmax(-1)
    places = np.repeat(np.arange(goal.length), top.values.shape[1])
    tokens = goal.plain[top.indices.flatten()].numpy()
    return _Promise(places, tokens, chances.numpy())


def _changes(
    goal: _Goal,
    prompts: Sequence[Tokens],
    promises: dict[Tokens, _Promise],
    seen: set[Tokens],
) -> list[Tokens]:
    """New prompts, each a small change of one of `prompts`, that read back."""
    draw, found = goal.draw, dict[Tokens, None]()
    for _ in range(DRAWS * PROPOSED):
        if len(found) == PROPOSED:
            break
        prompt = prompts[int(draw.integers(len(prompts)))]
        promise = promises.get(prompt)
        if promise is None or draw.random() < BLIND:
            place, (token,) = int(draw.integers(goal.length)), goal.anything(1)
        else:
            which = draw.choice(len(promise.chances), p=promise.chances)
            place, token = int(promise.places[which]), int(promise.tokens[which])
        moved = int(draw.integers(goal.length)) if draw.random() < MOVED else place
        left = [*prompt[:place], *prompt[place + 1 :]]
        # What is put in elsewhere is the new token, or the one that was taken out.
        put = prompt[place] if moved != place and draw.random() < 0.5 else token
        changed = (*left[:moved], put, *left[moved:])
        if changed not in seen and changed not in found and goal.usable(changed):
            found[changed] = None
    return list(found)
