"""How far a prompt is from doing what an intervention does, in nats a text.

With responses y drawn from a target (the steered model, or the model behind a prompt
that is kept hidden) to user texts x, the loss of a prompt p in front of x is ::

    loss(p) = E_x sum_k KL( p_target(.|x, y<k) || p_0(.|p + x, y<k) ),

the sequence divergence with the unsteered model and p + x in the place of the arm: 0
where p makes the unsteered model write what the target writes. What p costs is known
exactly at every step of y; only the texts are sampled.

A prompt is text, and it is judged as anyone could use it: it is joined with x, then
both go through the chat template and the tokenizer. `slots` is the same loss for a
search, on tokens in rows that are encoded already.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steergauge.errors import InputError
from steergauge.intervention import Intervention, edits
from steergauge.prompts import Text, encode, padded
from steergauge.readout import kl_from
from steergauge.split import LanguageModel, positions
from steergauge.types import Edit, Mask

JOINT = "\n"
"""Ends every prompt that is made here: no tokenizer merges words across it."""

LOGITS_AT_ONCE = 2**25
"""Most logits of one pass: 256 MB in the float64 that they are compared in."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A user's text, a response of the target, and how the target came to it.

    Attributes:
        text: x.
        response_ids: tokens of y.
        logits: the target's, where it predicted each of them; float32.
    """

    text: str
    response_ids: tuple[int, ...]
    logits: Float[Tensor, "response d_vocab"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a prompt is to achieve: logits of a target on responses that it wrote.

    Attributes:
        texts: one or more.
        chat: whether x goes through the chat template; None means if there is one.
        temperature: the one at which the responses were drawn.
    """

    texts: Sequence[Shown]
    chat: bool | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a target that no loss can be computed from."""
        if not self.texts or not self.temperature > 0:
            raise InputError(
                f"a prompt was to be judged on {len(self.texts)} texts at temperature "
                f"{self.temperature:g}.",
                remedy="Give one text or more, and a temperature above 0.",
            )


def aimed(
    lm: LanguageModel,
    rows: Sequence[tuple[str, Sequence[int]]],
    intervention: Intervention | None = None,
    *,
    prompt: str = "",
    chat: bool | None = None,
    temperature: float = 1.0,
) -> Target:
    """The target that wrote the responses of `rows`: one teacher-forced pass of it.

    Args:
        lm: the model.
        rows: user texts, and the token ids of the target's response to each.
        intervention: the target is the model under it; None is unsteered.
        prompt: a hidden prompt, which the target reads in front of every text.
        chat: through the chat template; None means if there is one.
        temperature: the one at which the responses were drawn.

    Raises:
        InputError: there are no rows, or the temperature is not above 0.
    """
    target = Target([Shown(x, tuple(y), _none(lm)) for x, y in rows], chat, temperature)
    found = _text_logits(lm, target, prompt, intervention)
    texts = [
        Shown(shown.text, shown.response_ids, logits.float())
        for shown, logits in zip(target.texts, found, strict=True)
    ]
    return Target(texts, chat, temperature)


def loss(lm: LanguageModel, target: Target, prompt: str) -> Float[np.ndarray, " texts"]:
    """Nats of each text by which the unsteered model behind `prompt` misses the target.

    From the text alone, as whoever has no more than the model's interface would use
    it: `prompt` and x are joined, then encoded.

    Args:
        lm: the model.
        target: what is to be achieved.
        prompt: put in front of every user text as it is; "" is the unsteered model.
    """
    nats = []
    found = _text_logits(lm, target, prompt, None)
    for shown, logits in zip(target.texts, found, strict=True):
        divergence_to = kl_from(shown.logits.double() / target.temperature)
        nats.append(float(divergence_to(logits.double() / target.temperature).sum()))
    return np.array(nats)


def text_of(lm: LanguageModel, tokens: Sequence[int]) -> str:
    """The prompt that these tokens spell, with the joint at its end."""
    return str(lm.tokenizer.decode(list(tokens))) + JOINT


def context_length(lm: LanguageModel) -> int | None:
    """Most tokens of a row, if the model's configuration names a number."""
    config = lm.model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    return int(length) if length else None


def _none(lm: LanguageModel) -> Tensor:
    return torch.zeros(0, lm.d_vocab)


def _text_logits(
    lm: LanguageModel, target: Target, prompt: str, intervention: Intervention | None
) -> Iterator[Float[Tensor, "response d_vocab"]]:
    """For each text the logits that predict its response."""
    rows = []
    for shown in target.texts:
        ids, _ = encode(lm, Text(prompt + shown.text), chat=target.chat)
        rows.append((ids, shown.response_ids))
    kept = max(1, *(len(y) for _, y in rows))
    size = max(1, LOGITS_AT_ONCE // (kept * lm.d_vocab))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        ids, mask = padded([[*x, *y[:-1]] for x, y in part], device=lm.device)
        lengths = torch.tensor([len(x) for x, _ in part], device=lm.device)
        steering = _steering(intervention, mask, lengths)
        logits = lm.logits(ids, mask, edits=steering, keep=kept)
        for row, (_, y) in zip(logits, part, strict=True):
            yield row[kept - len(y) :]


def _steering(
    intervention: Intervention | None, mask: Mask, lengths: Tensor
) -> Mapping[int, Edit]:
    return edits([intervention] * len(mask), positions(mask), mask, lengths)
