"""Input embeddings that no token has, in a prompt's places, by gradient descent.

Among m embeddings are those of any m tokens, and many that no text has: a soft prefix
needs the model's weights, as steering does. Adam looks for one in the places where a
prompt's tokens would be, from embeddings of tokens on (arXiv 2101.00190; its nearest
tokens, as in arXiv 2604.09839, appendix F: `projected`).

What it reaches is there to be had once tokens are relaxed to embeddings, and more may
be. It is a local optimum on the few texts that it is fitted to, and no bound on what
prompts do: on other texts it may leave more than the tokens that it began with.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from steergauge.cache import spread
from steergauge.errors import InputError
from steergauge.generation import (
    Decoding,
    Noise,
    Sample,
    draw,
    end_tokens,
    noise_key,
)
from steergauge.hooks import recording
from steergauge.prompts import Text, encode
from steergauge.reachability.objective import LOGITS_AT_ONCE, Target
from steergauge.reachability.slots import (
    VOCABULARY_AT_ONCE,
    Placed,
    embedding_losses,
    frame_of,
    placed,
    plain_tokens,
    slots,
)
from steergauge.split import LanguageModel

STEP_COST = 3
"""Evaluations that a step counts as: a pass, and the way back at twice its cost."""

STEP_LENGTH = 0.1
"""First step of Adam, as a share of the root mean square of the tokens' embeddings;
it falls to 0 along half a cosine."""

ARM = "soft_prefix"
"""Name of the arm in its samples."""

Embeddings = Float[Tensor, "m d_model"]


@dataclass(frozen=True, slots=True)
class Soft:
    """A soft prefix.

    Attributes:
        embeddings: in float32 or better.
        loss: its mean loss in nats a text.
        evaluations: passes of all texts that it took; a step counts as three.
        curve: (evaluations so far, least loss so far), one a step.
    """

    embeddings: Embeddings
    loss: float
    evaluations: int
    curve: tuple[tuple[int, float], ...]


def soft(
    lm: LanguageModel,
    target: Target,
    *,
    length: int,
    evaluations: int,
    seed: int = 0,
    start: Sequence[int] = (),
    progress: Callable[[int], None] | None = None,
) -> Soft:
    """The best embeddings on Adam's way, the tokens that it starts from among them.

    Args:
        lm: the model.
        target: what is to be achieved.
        length: embeddings of the prefix.
        evaluations: budget; a step costs three, and one step is made at least.
        seed: of the tokens to start from, where `start` does not name them.
        start: `length` tokens to start from, such as those that a search has found;
            the result is then no worse than they are on the target's own texts. Of
            others nothing is promised.
        progress: called with the evaluations since the last call.

    Raises:
        InputError: `start` has another length, or the rows are too long.
    """
    if start and len(start) != length:
        raise InputError(
            f"a soft prefix of {length} was to start from {len(start)} tokens.",
            remedy="Give as many tokens as embeddings are asked for.",
        )
    frames = [frame_of(lm, shown.text, chat=target.chat) for shown in target.texts]
    spaces = slots(lm, target, frames, length=length)
    drawn = np.random.default_rng(seed).choice(plain_tokens(lm), length)
    first = embedded_tokens(lm, start or drawn.tolist())
    steps = max(1, evaluations // STEP_COST)
    here = first.clone().requires_grad_()
    optimiser = torch.optim.Adam([here], lr=STEP_LENGTH * _size(lm))
    slower = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    least, kept = math.inf, first
    curve: list[tuple[int, float]] = []
    for step in range(steps):
        value = embedding_losses(lm, spaces, here).mean()
        if (now := value.item()) < least:
            least, kept = now, here.detach().clone()
        curve.append((STEP_COST * (step + 1), least))
        (here.grad,) = torch.autograd.grad(value, here)
        optimiser.step()
        slower.step()
        if progress:
            progress(STEP_COST)
    return Soft(kept, least, STEP_COST * steps, tuple(curve))


def soft_loss(
    lm: LanguageModel, target: Target, embeddings: Embeddings
) -> Float[np.ndarray, " texts"]:
    """Nats of each text by which the model behind the soft prefix misses the target.

    Args:
        lm: the model.
        target: what is to be achieved; other texts than it was found on, to judge it.
        embeddings: the soft prefix.
    """
    longest = max(1, *(len(shown.response_ids) for shown in target.texts))
    size = max(1, LOGITS_AT_ONCE // (longest * lm.d_vocab))
    nats: list[float] = []
    for begin in range(0, len(target.texts), size):
        part = Target(
            target.texts[begin : begin + size], target.chat, target.temperature
        )
        frames = [frame_of(lm, shown.text, chat=part.chat) for shown in part.texts]
        spaces = slots(lm, part, frames, length=len(embeddings))
        with torch.no_grad():
            nats += embedding_losses(lm, spaces, embeddings).tolist()
    return np.array(nats)


def embedded_tokens(lm: LanguageModel, tokens: Sequence[int]) -> Embeddings:
    """The input embeddings of tokens, as the model's own module gives them."""
    ids = torch.tensor(list(tokens), device=lm.device)
    with torch.no_grad():
        found = lm.model.get_input_embeddings()(ids)
    return found.to(torch.promote_types(lm.dtype, torch.float32))


def projected(lm: LanguageModel, embeddings: Embeddings) -> list[int]:
    """The plain token whose embedding is nearest to each."""
    tokens = plain_tokens(lm)
    wanted = embeddings.double()
    least = torch.full((len(wanted),), math.inf, dtype=torch.double)
    nearest = torch.zeros(len(wanted), dtype=torch.long)
    for begin in range(0, len(tokens), VOCABULARY_AT_ONCE):
        chunk = tokens[begin : begin + VOCABULARY_AT_ONCE]
        there = embedded_tokens(lm, chunk).double()
        found = torch.cdist(wanted, there).cpu().min(-1)
        nearer = found.values < least
        least = torch.where(nearer, found.values, least)
        nearest = torch.where(nearer, torch.tensor(chunk)[found.indices], nearest)
    return nearest.tolist()


def soft_states(
    lm: LanguageModel,
    texts: Sequence[str],
    embeddings: Embeddings,
    *,
    layer: int,
    chat: bool | None = None,
) -> Float[Tensor, "texts d_model"]:
    """The stream after block `layer` at each text's last prompt token, in float64.

    Args:
        lm: the model.
        texts: of users.
        embeddings: the soft prefix in front of each.
        layer: where the stream is read.
        chat: through the chat template; None means if there is one.

    Raises:
        LayerOutOfRange: the model has no such block.
    """
    lm.check_layer(layer)
    rows = _rows(lm, texts, embeddings, chat)
    stream = rows.embedded(lm, embeddings)
    with torch.no_grad(), recording(lm.blocks, (layer,), stop=True) as found:
        lm.logits_from(stream, rows.mask, keep=1)
    return found[layer][:, -1].double()


def soft_responses(
    lm: LanguageModel,
    texts: Sequence[str],
    embeddings: Embeddings,
    *,
    samples: int = 1,
    decoding: Decoding | None = None,
    chat: bool | None = None,
) -> list[Sample]:
    """Responses behind a soft prefix, by text and sample, as `generate` makes an arm's.

    Their random numbers are those of the arms without a prefix on the same texts.

    Args:
        lm: the model.
        texts: of users.
        embeddings: the soft prefix in front of each.
        samples: responses a text.
        decoding: how tokens are drawn; the default samples at temperature 1.
        chat: through the chat template; None means if there is one.
    """
    how = decoding or Decoding()
    rows = _rows(lm, texts, embeddings, chat)
    which = [i for i in range(len(texts)) for _ in range(samples)]
    plain = [tuple(encode(lm, Text(text), chat=chat)[0]) for text in texts]
    keys = [
        noise_key(how.seed, 0, plain[i], sample)
        for i, sample in zip(which, [*range(samples)] * len(texts), strict=True)
    ]
    made = _decoded(lm, rows, embeddings, (which, keys, how))
    return [
        Sample(
            arm=ARM,
            prompt=texts[i],
            index=i,
            sample=place % samples,
            token_ids=tuple(ids),
            text=lm.tokenizer.decode(ids, skip_special_tokens=True),
            finished=ids[-1] in end_tokens(lm),
        )
        for place, (i, ids) in enumerate(zip(which, made, strict=True))
    ]


def _decoded(
    lm: LanguageModel,
    rows: Placed,
    embeddings: Embeddings,
    plan: tuple[list[int], list[int], Decoding],
) -> list[list[int]]:
    """Response tokens of row i with the noise of a key, for each i and key planned."""
    which, keys, how = plan
    cache: Any = DynamicCache(config=lm.model.config)
    ends = torch.tensor(sorted(end_tokens(lm)), device=lm.device)
    index = torch.tensor(which, device=lm.device)
    noise, everyone = Noise(keys, lm.device), torch.arange(len(which)).to(lm.device)
    with torch.no_grad():
        stream = rows.embedded(lm, embeddings)
        logits = lm.logits_from(stream, rows.mask, cache=cache, keep=1)[index, -1]
    spread(cache, which, room=how.max_new_tokens)
    mask, tokens = rows.mask[index], []
    done = torch.zeros(len(which), dtype=torch.bool, device=lm.device)
    for step in range(how.max_new_tokens):
        token = draw(logits, how, noise.of(everyone, step, lm.d_vocab))
        tokens.append(torch.where(done, -1, token))
        done = done | torch.isin(token, ends)
        if bool(done.all()) or step + 1 == how.max_new_tokens:
            break
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        logits = lm.logits(token[:, None], mask, cache=cache, keep=1)[:, -1]
    return [[t for t in row if t >= 0] for row in torch.stack(tokens, 1).tolist()]


def _rows(
    lm: LanguageModel, texts: Sequence[str], embeddings: Tensor, chat: bool | None
) -> Placed:
    frames = [frame_of(lm, text, chat=chat) for text in texts]
    return placed(lm, frames, [()] * len(texts), length=len(embeddings))


def _size(lm: LanguageModel) -> float:
    """Root mean square of the embeddings of tokens, as they enter the stream."""
    size = min(lm.d_vocab, VOCABULARY_AT_ONCE)
    return float(embedded_tokens(lm, range(size)).square().mean().sqrt())
