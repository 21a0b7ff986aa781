"""Drawing tokens: argmax of logits / T + Gumbel noise, a draw from the softmax.

*Common random numbers.* The noise is a hash of (key, step, token), and a key one of
(seed, stream of noise, prompt, sample): rows with the same key, such as the same sample
under several arms, are drawn with the same numbers, whatever else is in the batch.

Rows are drawn a piece at a time, those with equal keys side by side. Beside the logits
there is room for one piece only: fresh memory as large as the logits costs more than
all arithmetic on it, since the system has to hand out every page of it.

The hash is integer arithmetic, the same on every device; the two logarithms and the sum
are in float32, so another kind of device may round a number in ten million differently.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steergauge.errors import InputError

AT_ONCE = {"cpu": 2**18}
"""Most logits drawn from together, by kind of device: 1 MB in float32 stays in a core's
cache; elsewhere `AT_ONCE_ELSEWHERE`, where every piece costs some thirty launches."""

AT_ONCE_ELSEWHERE = 2**24


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


def draw(logits: Tensor, how: Decoding, noise: Tensor | Callable[[], Tensor]) -> Tensor:
    """One token a row: argmax if greedy, else argmax of logits / T + Gumbel noise.

    Where rows share their noise, `drawn` is the same without its copies.
    """
    if how.temperature == 0:
        return logits.argmax(-1)
    scaled = likeliest(logits.float() / how.temperature, how)
    return (scaled + (noise() if callable(noise) else noise)).argmax(-1)


def likeliest(scaled: Tensor, how: Decoding) -> Tensor:
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


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows that are drawn together.

    Attributes:
        rows: their places in the batch, (n,).
        keys: their distinct keys, (k,).
        place: which of the keys is each row's, (n,).
    """

    rows: Tensor
    keys: Tensor
    place: Tensor


class Noise:
    """Gumbel noise per row and step, a hash of (key, step, token) alone.

    Rows with equal keys, such as the same sample under several arms, share their
    noise; it is computed once.
    """

    def __init__(self, keys: Sequence[int], device: torch.device) -> None:
        self._keys = torch.tensor(list(keys), dtype=torch.long, device=device)

    def of(self, rows: Tensor, step: int, d_vocab: int) -> Callable[[], Tensor]:
        """Noise (rows, d_vocab) of one step, computed when it is called for."""

        def noise() -> Tensor:
            whole = torch.empty(len(rows), d_vocab, device=rows.device)
            for piece in self.pieces(rows, d_vocab):
                whole[piece.rows] = gumbel(piece.keys, step, d_vocab)[piece.place]
            return whole

        return noise

    def pieces(self, rows: Tensor, d_vocab: int) -> list[Piece]:
        """The rows of a batch, those with equal keys side by side, in small pieces.

        Args:
            rows: which of the keys is that of each row of the batch, (batch,).
            d_vocab: number of logits a row.
        """
        keys = self._keys[rows]
        limit = AT_ONCE.get(rows.device.type, AT_ONCE_ELSEWHERE)
        found = []
        for part in keys.argsort(stable=True).split(max(1, limit // d_vocab)):
            distinct, place = keys[part].unique(return_inverse=True)
            found.append(Piece(part, distinct, place))
        return found


def drawn(logits: Tensor, how: Decoding, pieces: Sequence[Piece], step: int) -> Tensor:
    """`draw` with the noise of `step`, a piece of the batch at a time; (batch,)."""
    if how.temperature == 0:
        return logits.argmax(-1)
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    for piece in pieces:
        scaled = logits[piece.rows].float()
        if how.temperature != 1:
            scaled /= how.temperature
        scaled = likeliest(scaled, how)
        scaled += gumbel(piece.keys, step, logits.shape[-1])[piece.place]
        tokens[piece.rows] = scaled.argmax(-1)
    return tokens


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
    uniform = bits.to(torch.float32).add_(0.5).mul_(2.0**-32).clamp_max_(1 - 2.0**-24)
    # -log1p(-u) keeps its digits where it matters: small exponentials win.
    return uniform.neg_().log1p_().neg_().log_().neg_()


_WORD = 0xFFFFFFFF


def _hash32(x: Tensor) -> Tensor:
    """A bijection of 32-bit words, held in int64 so that products do not overflow."""
    x = (x ^ (x >> 16)).mul_(0x7FEB352D).bitwise_and_(_WORD)
    x.bitwise_xor_(x >> 15).mul_(0x846CA68B).bitwise_and_(_WORD)
    return x.bitwise_xor_(x >> 16)


def noise_key(seed: int, noise: int, prompt_ids: tuple[int, ...], sample: int) -> int:
    """63 bits of (seed, stream of noise, prompt, sample): one of `Noise`'s keys."""
    content = repr((seed, noise, prompt_ids, sample)).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 1
