"""Steered decoding: every row of a batch has its own intervention and strength.

Arms of an experiment go through the model together. Each prompt is prefilled once,
up to but not including its last token, and its keys and values are expanded to all
rows that share them; an arm whose scope touches earlier prompt tokens gets a prefill
of its own. The last prompt token is then the first decoding step of every row. Rows
that have finished leave the batch.

*Common random numbers.* A token is the argmax of logits / temperature + Gumbel noise,
which is a draw from the softmax. The noise is a hash of (seed, prompt, sample, step,
token) alone, so two arms differ by the intervention only, and neither batch size nor
the order or number of prompts and arms changes it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from steergauge.cache import spread
from steergauge.errors import InputError, NonFiniteLogits
from steergauge.intervention import Ablate, Intervention, edits
from steergauge.prompts import Text, encode, padded
from steergauge.split import LanguageModel, positions

COMPACT_BELOW = 0.875
"""Finished rows are dropped once this share or less of the batch is alive: dropping
copies the cache, which costs about as much as an eighth of the rows for one step."""


NOISE_AT_ONCE = 2**22
"""Most random numbers hashed together: their integers take ten times their room."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: longest response.
        temperature: 0 is greedy.
        top_k: draw from the k likeliest tokens only; 0 means all.
        top_p: draw from the smallest set of likeliest tokens with this mass.
        seed: of the common random numbers.

    Raises:
        InputError: a value is out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        ok = (
            self.max_new_tokens >= 1
            and self.temperature >= 0
            and self.top_k >= 0
            and 0 < self.top_p <= 1
        )
        if not ok:
            raise InputError(
                f"impossible decoding: {self}.",
                remedy="Use max_new_tokens >= 1, temperature >= 0, top_k >= 0 and "
                "0 < top_p <= 1.",
            )


@dataclass(frozen=True, slots=True)
class Arm:
    """One condition of an experiment.

    Attributes:
        intervention: None is unsteered.
        noise: arms with the same number share their random numbers.
    """

    intervention: Intervention | None = None
    noise: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated response; `text` is the continuation alone, never the prompt.

    Attributes:
        arm: name of its condition.
        prompt: the prompt as given.
        index: which prompt.
        sample: which of the prompt's samples.
        token_ids: the response's tokens; ends with an end token if `finished`.
        text: the response decoded, special tokens left out.
        finished: whether the model ended it itself.
    """

    arm: str
    prompt: str
    index: int
    sample: int
    token_ids: tuple[int, ...]
    text: str
    finished: bool


@dataclass(frozen=True, slots=True)
class _Row:
    """One continuation to be made."""

    arm: str
    intervention: Intervention | None
    index: int
    sample: int
    prompt_ids: tuple[int, ...]
    noise_key: int

    @property
    def prefill_key(self) -> tuple[int, int]:
        """Rows with the same key share keys and values before the last token."""
        intervention = self.intervention
        own = intervention is not None and intervention.scope.touches_prefill
        return self.index, id(intervention) if own else 0


def generate(
    lm: LanguageModel,
    prompts: Sequence[str],
    arms: Mapping[str, Arm | Intervention | None],
    *,
    samples: int = 1,
    decoding: Decoding | None = None,
    chat: bool | None = None,
    batch_size: int = 1024,
    other_model: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Sample]:
    """`samples` responses to every prompt under every arm, by arm, prompt, sample.

    Args:
        lm: the model.
        prompts: instructions; the same text twice gives the same samples twice.
        arms: conditions by name; a bare intervention shares its noise with the rest.
        samples: responses a prompt and arm.
        decoding: how tokens are drawn; the default samples at temperature 1.
        chat: through the chat template; None means if there is one.
        batch_size: most rows that go through the model together.
        other_model: accept vectors that were extracted from another model.
        progress: called with the number of responses finished since the last call.

    Raises:
        NonFiniteLogits: an intervention drove the logits to infinity or NaN.
        ShapeMismatch: a vector does not fit the model.
    """
    how = decoding or Decoding()
    if isinstance(prompts, str):
        raise InputError(
            f"the prompts are one text, {prompts[:40]!r}, and must be a list of texts.",
            remedy="Put it in brackets: [prompt].",
        )
    for given in arms.values():
        steering = given.intervention if isinstance(given, Arm) else given
        if steering is not None:
            steering.check_fits(lm, other_model=other_model)
    rows = _rows(lm, prompts, arms, samples, how.seed, chat)
    # Similar lengths together spare padding; rows of one prompt share its prefill.
    order = sorted(rows, key=lambda row: (len(row.prompt_ids), row.index))
    tokens: dict[tuple[str, int, int], list[int]] = {}
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        for row, ids in zip(chunk, _decode(lm, chunk, how, progress), strict=True):
            tokens[row.arm, row.index, row.sample] = ids
    ends = end_tokens(lm)
    return [
        Sample(
            arm=arm,
            prompt=prompts[index],
            index=index,
            sample=sample,
            token_ids=tuple(ids),
            text=lm.tokenizer.decode(ids, skip_special_tokens=True),
            finished=bool(ids) and ids[-1] in ends,
        )
        for (arm, index, sample), ids in (
            ((row.arm, row.index, row.sample), tokens[row.arm, row.index, row.sample])
            for row in rows
        )
    ]


def end_tokens(lm: LanguageModel) -> frozenset[int]:
    """Token ids that end a response."""
    config = getattr(lm.model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    own = [ends] if isinstance(ends, int) else list(ends or ())
    of_tokenizer = lm.tokenizer.eos_token_id
    return frozenset(own if of_tokenizer is None else [*own, of_tokenizer])


def _rows(
    lm: LanguageModel,
    prompts: Sequence[str],
    arms: Mapping[str, Arm | Intervention | None],
    samples: int,
    seed: int,
    chat: bool | None,
) -> list[_Row]:
    encoded = [tuple(encode(lm, Text(prompt), chat=chat)[0]) for prompt in prompts]
    rows = []
    for name, given in arms.items():
        arm = given if isinstance(given, Arm) else Arm(given)
        steering = arm.intervention
        if steering is not None and steering.is_identity:
            steering = None  # alpha = 0 is the unsteered run itself, bit for bit.
        rows += [
            _Row(
                name,
                steering,
                index,
                sample,
                ids,
                noise_key(seed, arm.noise, ids, sample),
            )
            for index, ids in enumerate(encoded)
            for sample in range(samples)
        ]
    return rows


def _decode(
    lm: LanguageModel,
    rows: Sequence[_Row],
    how: Decoding,
    progress: Callable[[int], None] | None,
) -> list[list[int]]:
    """Response tokens of every row of one batch."""
    ids, mask = padded([row.prompt_ids for row in rows], device=lm.device)
    lengths = mask.sum(-1)
    cache = _prefill(lm, rows, ids, mask, how.max_new_tokens)
    ends = torch.tensor(sorted(end_tokens(lm)), device=lm.device)
    noise = Noise([row.noise_key for row in rows], lm.device)
    out: list[list[int]] = [[] for _ in rows]
    alive = torch.arange(len(rows), device=lm.device)
    done = torch.zeros(len(rows), dtype=torch.bool, device=lm.device)
    token = ids[:, -1:]
    for step in range(how.max_new_tokens):
        here = [rows[i].intervention for i in alive.tolist()]
        where = positions(mask)[:, -1:]
        steering = edits(here, where, mask[:, -1:], lengths)
        logits = lm.logits(token, mask, edits=steering, cache=cache, keep=1)[:, -1]
        _check_finite(logits, here)
        token = draw(logits, how, noise.of(alive, step, logits.shape[-1]))
        for i, chosen, over in zip(
            alive.tolist(), token.tolist(), done.tolist(), strict=True
        ):
            if not over:
                out[i].append(chosen)
        just_ended = torch.isin(token, ends) & ~done
        done |= just_ended
        if progress and (num_ended := int(just_ended.sum())):
            progress(num_ended)
        if bool(done.all()):
            break
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        if int((~done).sum()) <= COMPACT_BELOW * len(done):
            keep = (~done).nonzero().squeeze(-1)
            cache.batch_select_indices(keep)
            alive, token, mask = alive[keep], token[keep], mask[keep]
            lengths, done = lengths[keep], done[keep]
        token = token[:, None]
    if progress:
        progress(int((~done).sum()))
    return out


def _prefill(
    lm: LanguageModel, rows: Sequence[_Row], ids: Tensor, mask: Tensor, room: int
) -> DynamicCache:
    """Keys and values of all tokens but the last: one pass per distinct prefix."""
    cache = DynamicCache(config=lm.model.config)
    slots: dict[tuple[int, int], int] = {}
    heads: list[int] = []
    for i, row in enumerate(rows):
        if row.prefill_key not in slots:
            slots[row.prefill_key] = len(heads)
            heads.append(i)
    head_ids, head_mask = ids[heads, :-1], mask[heads, :-1]
    if head_ids.shape[1] == 0:
        return cache
    steering = edits(
        [rows[i].intervention for i in heads],
        positions(head_mask),
        head_mask,
        mask[heads].sum(-1),
    )
    lm.logits(head_ids, head_mask, edits=steering, cache=cache, keep=1)
    spread(cache, [slots[row.prefill_key] for row in rows], room=room)
    return cache


def _check_finite(logits: Tensor, here: Sequence[Intervention | None]) -> None:
    broken = (~torch.isfinite(logits).all(-1)).nonzero().squeeze(-1).tolist()
    if not broken:
        return
    steering = here[broken[0]]
    if steering is None:
        raise NonFiniteLogits(
            "the unsteered model gives infinite or NaN logits.",
            cause="Its weights are damaged or overflow in this precision.",
            remedy="Load it in float32.",
        )
    raise NonFiniteLogits(
        f"{_described(steering)} drove the logits to infinity or NaN.",
        cause="The step is far beyond the norms that this model works with.",
        remedy="Use a smaller alpha; `steergauge audit` recommends one.",
    )


def _described(steering: Intervention) -> str:
    if isinstance(steering, Ablate):
        return f"ablation at layer {steering.site.layer}"
    norm = steering.vector.norm * abs(steering.alpha)
    return (
        f"alpha = {steering.alpha:g} at layer {steering.site.layer} (a step of length "
        f"{norm:.3g})"
    )


def draw(logits: Tensor, how: Decoding, noise: Tensor | Callable[[], Tensor]) -> Tensor:
    """One token a row: argmax if greedy, else argmax of logits / T + Gumbel noise."""
    if how.temperature == 0:
        return logits.argmax(-1)
    scaled = _likeliest(logits.float() / how.temperature, how)
    return (scaled + (noise() if callable(noise) else noise)).argmax(-1)


def _likeliest(scaled: Tensor, how: Decoding) -> Tensor:
    """Logits with everything outside top-k and top-p at minus infinity."""
    if 0 < how.top_k < scaled.shape[-1]:
        least = scaled.topk(how.top_k).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if how.top_p < 1:
        ranked, order = scaled.sort(descending=True)
        mass_before = ranked.softmax(-1).cumsum(-1) - ranked.softmax(-1)
        ranked = ranked.masked_fill(mass_before >= how.top_p, -torch.inf)
        scaled = torch.empty_like(scaled).scatter_(-1, order, ranked)
    return scaled


class Noise:
    """Gumbel noise per row and step, a hash of (key, step, token) alone.

    Rows with equal keys, such as the same sample under several arms, share their
    noise; it is computed once.
    """

    def __init__(self, keys: Sequence[int], device: torch.device) -> None:
        distinct = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        self._keys = torch.tensor(list(distinct), dtype=torch.long, device=device)
        self._row = torch.tensor([distinct[key] for key in keys], device=device)

    def of(self, rows: Tensor, step: int, d_vocab: int) -> Callable[[], Tensor]:
        """Noise (rows, d_vocab) of one step, computed when it is called for."""

        def noise() -> Tensor:
            needed, place = self._row[rows].unique(return_inverse=True)
            chunks = self._keys[needed].split(max(1, NOISE_AT_ONCE // d_vocab))
            return torch.cat([gumbel(keys, step, d_vocab) for keys in chunks])[place]

        return noise


def gumbel(keys: Tensor, step: int, d_vocab: int) -> Tensor:
    """Standard Gumbel noise (keys, d_vocab), the same on every device and batch.

    Two rounds of a 32-bit integer hash (C. Wellons' `lowbias32`, public domain) over
    (low half of key, high half of key, step, token), then -log(-log(1 - u)).
    """
    low, high = keys & _WORD, (keys >> 32) & _WORD
    token = torch.arange(d_vocab, device=keys.device)
    row = _hash32(low ^ _hash32(high ^ _hash32(torch.full_like(low, step + 1))))
    bits = _hash32(row[:, None] ^ _hash32(token + 0x9E3779B9 & _WORD)[None, :])
    bits = _hash32(bits ^ high[:, None])
    # Below 1, to which the highest bits would round: noise of -inf is never drawn, not
    # even where top-k leaves that token alone.
    uniform = ((bits.to(torch.float32) + 0.5) * 2.0**-32).clamp_max(1 - 2.0**-24)
    # -log1p(-u) keeps its digits where it matters: small exponentials win.
    return -torch.log(-torch.log1p(-uniform))


_WORD = 0xFFFFFFFF


def _hash32(x: Tensor) -> Tensor:
    """A bijection of 32-bit words, held in int64 so that products do not overflow."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def noise_key(seed: int, noise: int, prompt_ids: tuple[int, ...], sample: int) -> int:
    """63 bits of (seed, stream of noise, prompt, sample): one of `Noise`'s keys."""
    content = repr((seed, noise, prompt_ids, sample)).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 1
