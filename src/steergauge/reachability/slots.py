"""Rows with open places for the tokens of a prompt, or for embeddings instead of them.

A search moves the m tokens of a prompt p in rows that are encoded already ::

    row = before | tokens of p | after (the joint, x, what the template adds) | y

and reads the loss of `objective` off the logits that predict y. That is the loss of
the prompt's *text* as long as the tokenizer gives the tokens back from it. Where it
does not, the tokens are no prompt that anyone could type: `reads_back` (a filter that
the code of arXiv 2307.15043 applies as well).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steergauge.errors import BadPrompts, InputError
from steergauge.prompts import Text, encode, padded
from steergauge.reachability.objective import (
    LOGITS_AT_ONCE,
    Target,
    context_length,
    text_of,
)
from steergauge.readout import kl_from
from steergauge.split import LanguageModel

TOKENS_AT_ONCE = 2**13
"""Most tokens of one pass. More are no faster, and the streams are held."""

VOCABULARY_AT_ONCE = 2**15
"""Most tokens that are embedded at once."""

PAIRS_TRIED = 200
"""Pairs of tokens that are put in front of a text to see where a prompt goes."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The tokens around a prompt's own in the row of one user's text.

    Attributes:
        before: what the tokenizer and the template put in front.
        after: the joint, the user's text, and what the template puts behind.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    def around(self, tokens: Sequence[int]) -> list[int]:
        """The whole row, up to where the response begins."""
        return [*self.before, *tokens, *self.after]


@dataclass(frozen=True, slots=True)
class Placed:
    """Left-padded rows of user texts with open places for a prompt of m tokens.

    Attributes:
        ids: token ids; 0 in open places.
        mask: True at real tokens.
        where: columns of the open places.
    """

    ids: Int[Tensor, "texts pos"]
    mask: Bool[Tensor, "texts pos"]
    where: Int[Tensor, "texts m"]

    @property
    def numbers(self) -> Int[Tensor, "texts 1"]:
        """Of the rows, to go with `where`."""
        return torch.arange(len(self.ids), device=self.ids.device)[:, None]

    def embedded(
        self, lm: LanguageModel, embeddings: Float[Tensor, "m d_model"]
    ) -> Float[Tensor, "texts pos d_model"]:
        """Input embeddings of the rows, with the given ones in the open places."""
        with torch.no_grad():
            stream = lm.model.get_input_embeddings()(self.ids)
        given = embeddings.to(stream).expand(len(self.ids), -1, -1)
        return stream.index_put((self.numbers, self.where), given)


@dataclass(frozen=True, slots=True)
class Slots:
    """Rows of a target in which the places of m prompt tokens are open.

    Attributes:
        rows: up to the last response token but one.
        logits: the target's at the last columns; 0 where no token is predicted.
        scored: True where one is.
        temperature: the one at which the responses were drawn.
    """

    rows: Placed
    logits: Float[Tensor, "texts kept d_vocab"]
    scored: Bool[Tensor, "texts kept"]
    temperature: float

    def nats(
        self, logits: Float[Tensor, "*batch texts kept d_vocab"]
    ) -> Float[Tensor, "*batch texts"]:
        """Sum over each response of KL(target || softmax(logits)), in float64."""
        divergence_to = kl_from(self.logits.double() / self.temperature)
        each = divergence_to(logits.double() / self.temperature)
        return torch.where(self.scored, each, 0.0).sum(-1)


def reads_back(
    lm: LanguageModel,
    tokens: Sequence[int],
    frame: Frame,
    *,
    text: str,
    chat: bool | None = None,
) -> bool:
    """Whether the tokenizer gives these tokens back from the text that they spell.

    Args:
        lm: the model.
        tokens: of a prompt.
        frame: of the user's text.
        text: the user's text.
        chat: as in the target.
    """
    ids, _ = encode(lm, Text(text_of(lm, tokens) + text), chat=chat)
    return ids == frame.around(tokens)


def frame_of(lm: LanguageModel, text: str, *, chat: bool | None = None) -> Frame:
    """What surrounds a prompt's tokens in the row of `text`, found by trying two.

    Two tokens that read back, each in front of the text, give rows that differ in this
    one place and so show where it is.

    Raises:
        BadPrompts: no pair of tokens stands alone in front of the text.
    """
    for first, second in itertools.islice(_pairs(lm), PAIRS_TRIED):
        rows = [
            encode(lm, Text(text_of(lm, [token]) + text), chat=chat)[0]
            for token in (first, second)
        ]
        parts = itertools.takewhile(
            lambda both: both[0] == both[1], zip(*rows, strict=False)
        )
        start = len(list(parts))
        frame = Frame(tuple(rows[0][:start]), tuple(rows[0][start + 1 :]))
        if rows == [frame.around([first]), frame.around([second])]:
            return frame
    raise BadPrompts(
        f"no token of {lm.name} stands alone in front of {text[:40]!r}.",
        cause="Its tokenizer or its chat template rewrites what is put there.",
        remedy="Leave the prompt search out for this model.",
    )


def plain_tokens(lm: LanguageModel) -> list[int]:
    """Tokens that a user could type: none that the tokenizer treats apart."""
    apart = {*lm.tokenizer.all_special_ids, *lm.tokenizer.get_added_vocab().values()}
    rows = lm.model.get_input_embeddings().weight.shape[0]
    size = min(len(lm.tokenizer), int(rows), lm.d_vocab)
    return [token for token in range(size) if token not in apart]


def placed(
    lm: LanguageModel,
    frames: Sequence[Frame],
    tails: Sequence[Sequence[int]],
    *,
    length: int,
) -> Placed:
    """Rows with `length` open places, each in its frame and with its tail behind.

    Args:
        lm: the model.
        frames: of user texts.
        tails: token ids that follow each of them.
        length: open places.

    Raises:
        InputError: a row is longer than the model's context.
    """
    rows = [
        [*frame.around([0] * length), *tail]
        for frame, tail in zip(frames, tails, strict=True)
    ]
    ids, mask = padded(rows, device=lm.device)
    context = context_length(lm)
    if context is not None and ids.shape[1] > context:
        raise InputError(
            f"a prompt of {length} tokens makes a row of {ids.shape[1]}; {lm.name} "
            f"reads {context} at most.",
            remedy="Search for a shorter prompt, or give shorter texts.",
        )
    starts = [
        ids.shape[1] - len(row) + len(frame.before)
        for row, frame in zip(rows, frames, strict=True)
    ]
    first = torch.tensor(starts, device=lm.device)[:, None]
    return Placed(ids, mask, first + torch.arange(length, device=lm.device))


def slots(
    lm: LanguageModel, target: Target, frames: Sequence[Frame], *, length: int
) -> Slots:
    """The target's rows with `length` open places.

    Args:
        lm: the model.
        target: what is to be achieved.
        frames: of its texts.
        length: prompt tokens.

    Raises:
        InputError: a row is longer than the model's context.
    """
    responses = [shown.response_ids for shown in target.texts]
    # The last token of a response is predicted, not read.
    rows = placed(lm, frames, [y[:-1] for y in responses], length=length)
    kept = max(1, *(len(y) for y in responses))
    logits = torch.zeros(len(responses), kept, lm.d_vocab, device=lm.device)
    scored = torch.zeros(len(responses), kept, dtype=torch.bool, device=lm.device)
    for i, (y, shown) in enumerate(zip(responses, target.texts, strict=True)):
        logits[i, kept - len(y) :] = shown.logits.to(logits)
        scored[i, kept - len(y) :] = True
    return Slots(rows, logits, scored, target.temperature)


def token_losses(
    lm: LanguageModel, spaces: Slots, prompts: Int[Tensor, "prompts m"]
) -> Float[Tensor, " prompts"]:
    """The loss of each row of tokens in the open places, as a mean over texts."""
    rows = spaces.rows
    texts, pos = rows.ids.shape
    kept = spaces.scored.shape[1]
    at_once = min(
        LOGITS_AT_ONCE // (texts * kept * lm.d_vocab), TOKENS_AT_ONCE // (texts * pos)
    )
    found = []
    for chunk in prompts.split(max(1, at_once)):
        ids = rows.ids.repeat(len(chunk), 1, 1)
        ids[:, rows.numbers, rows.where] = chunk[:, None, :]
        mask = rows.mask.repeat(len(chunk), 1)
        logits = lm.logits(ids.flatten(0, 1), mask, keep=kept)
        found.append(spaces.nats(logits.unflatten(0, (-1, texts))).mean(-1))
    return torch.cat(found)


def embedding_losses(
    lm: LanguageModel, spaces: Slots, embeddings: Float[Tensor, "m d_model"]
) -> Float[Tensor, " texts"]:
    """The loss of embeddings in the open places; differentiable in them."""
    stream = spaces.rows.embedded(lm, embeddings)
    kept = spaces.scored.shape[1]
    return spaces.nats(lm.logits_from(stream, spaces.rows.mask, keep=kept))


def promised_gains(
    lm: LanguageModel, spaces: Slots, prompt: Sequence[int]
) -> Float[Tensor, "m d_vocab"]:
    """By how much each token in each place would lower the mean loss, to first order.

    Args:
        lm: the model.
        spaces: the target's rows.
        prompt: the tokens that are there now.
    """
    embed = lm.model.get_input_embeddings()
    with torch.no_grad():
        here = embed(torch.tensor(list(prompt), device=lm.device))
    here = here.detach().requires_grad_()
    mean = embedding_losses(lm, spaces, here).mean()
    (slope,) = torch.autograd.grad(mean, here)
    with torch.no_grad():
        ids = torch.arange(lm.d_vocab, device=lm.device).split(VOCABULARY_AT_ONCE)
        along = torch.cat([slope @ embed(chunk).T for chunk in ids], dim=-1)
    return (slope * here.detach()).sum(-1, keepdim=True) - along


def _pairs(lm: LanguageModel) -> Iterator[tuple[int, int]]:
    """Pairs of different plain tokens, in a fixed order."""
    tokens = np.array(plain_tokens(lm))
    generator = np.random.default_rng(0)
    while len(tokens) > 1:
        first, second = generator.choice(tokens, 2, replace=False)
        yield int(first), int(second)
