"""What one request to a serving program carries: its rule h -> h' and its noise.

A serving program mixes many requests in one batch, in chunks and with cached prefixes,
so that a rule must say by *absolute positions* which tokens it covers: those in
[first, beyond). The table of scopes (`intervention.py`), with P the prompt's length:

===========  ==========  ==========
scope        first       beyond
===========  ==========  ==========
all          0           never
prompt       0           P
response     P           never
generating   P - 1       never
===========  ==========  ==========

Two things follow from the same numbers. *How many edits there must be*: a request that
found c tokens in the prefix cache and made n tokens has computed the positions c to
P + n - 2, for the last token is never fed back; each of those that is covered counts
once a layer. Fewer edits than that mean that some hook never fired. *What a cached
prefix depends on*: the rule, and P wherever the scope does, since the response tokens
of one request are prompt tokens of a longer one; see `salt`.

Everything here is plain data, for it crosses process boundaries.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from steergauge.errors import InputError
from steergauge.generation import (
    Arm,
    Decoding,
    Sample,
    end_tokens,
    noise_key,
)
from steergauge.intervention import Add, Intervention, Scope, blocks_of
from steergauge.prompts import Text, encode
from steergauge.split import LanguageModel
from steergauge.types import Direction

ENTRY = "steergauge"
"""Under which our part of a request's `extra_args` is kept."""

NEVER = 2**62
"""A position that no text reaches."""


@dataclass(frozen=True, slots=True)
class Request:
    """One response to be made.

    Attributes:
        key: its number within one call; internal names of requests are no help, as
            serving programs add random suffixes to them.
        arm: name of its condition.
        intervention: None, and alpha = 0, carry no steering at all.
        index: which prompt.
        sample: which of the prompt's samples.
        prompt_ids: tokens of the prompt.
        noise: key of its random numbers.
    """

    key: int
    arm: str
    intervention: Intervention | None
    index: int
    sample: int
    prompt_ids: tuple[int, ...]
    noise: int

    def planned(self, num_cached: int, num_made: int) -> int:
        """Edits there must be, one for each covered position computed and layer.

        Args:
            num_cached: prompt tokens found in the prefix cache.
            num_made: response tokens, at least 1.
        """
        if self.intervention is None:
            return 0
        length = len(self.prompt_ids)
        first, beyond = covered(self.intervention.scope, length)
        computed = min(beyond, length + num_made - 1) - max(first, num_cached)
        return max(0, computed) * len(blocks_of(self.intervention))

    def carried(self, steps: dict[int, int], how: Decoding) -> dict[str, Any]:
        """What the workers must know of it, in numbers, texts, lists and dicts.

        Args:
            steps: row of the session's table, by id of the intervention.
            how: how tokens are drawn.
        """
        entry: dict[str, Any] = {"key": self.key}
        if how.temperature > 0:
            entry["noise"] = self.noise
            entry["temperature"] = float(how.temperature)
            entry["top_k"], entry["top_p"] = how.top_k, float(how.top_p)
        if self.intervention is not None:
            scope = self.intervention.scope
            first, beyond = covered(scope, len(self.prompt_ids))
            entry["steer"] = {
                "row": steps[id(self.intervention)],
                "adds": isinstance(self.intervention, Add),
                "layers": list(blocks_of(self.intervention)),
                "first": first,
                "beyond": beyond,
            }
        return {ENTRY: entry}


def requested(
    lm: LanguageModel,
    prompts: Sequence[str],
    arms: dict[str, Arm],
    *,
    samples: int,
    seed: int,
    chat: bool | None,
) -> list[Request]:
    """One request a response, by arm, prompt, sample: the order of the samples."""
    encoded = [tuple(encode(lm, Text(prompt), chat=chat)[0]) for prompt in prompts]
    found: list[Request] = []
    for name, arm in arms.items():
        steering = arm.intervention
        if steering is not None and steering.is_identity:
            steering = None
        for index, ids in enumerate(encoded):
            for sample in range(samples):
                noise = noise_key(seed, arm.noise, ids, sample)
                key = len(found)
                found.append(Request(key, name, steering, index, sample, ids, noise))
    return found


def checked_arms(
    lm: LanguageModel,
    prompts: Sequence[str],
    arms: Any,
    *,
    other_model: bool,
) -> dict[str, Arm]:
    """Every condition as an `Arm`, refused as `generation.generate` refuses it.

    Raises:
        InputError: the prompts are one text.
        NonFiniteLogits: a step overflows what the model computes with.
        VectorError: a vector does not fit the model.
    """
    if isinstance(prompts, str):
        raise InputError(
            f"the prompts are one text, {prompts[:40]!r}, and must be a list of texts.",
            remedy="Put it in brackets: [prompt].",
        )
    found = {n: a if isinstance(a, Arm) else Arm(a) for n, a in arms.items()}
    for arm in found.values():
        if arm.intervention is not None:
            arm.intervention.check_fits(lm, other_model=other_model)
    return found


def sampled(
    lm: LanguageModel, prompts: Sequence[str], request: Request, token_ids: list[int]
) -> Sample:
    """The response to a request as `generation.generate` gives it."""
    return Sample(
        arm=request.arm,
        prompt=prompts[request.index],
        index=request.index,
        sample=request.sample,
        token_ids=tuple(token_ids),
        text=lm.tokenizer.decode(token_ids, skip_special_tokens=True),
        finished=bool(token_ids) and token_ids[-1] in end_tokens(lm),
    )


def covered(scope: Scope, prompt_length: int) -> tuple[int, int]:
    """[first, beyond): the absolute positions in scope; see the module's table.

    >>> covered(Scope.PROMPT, 7)
    (0, 7)
    """
    if scope is Scope.PROMPT:
        return 0, prompt_length
    if scope is Scope.RESPONSE:
        return prompt_length, NEVER
    if scope is Scope.GENERATING:
        return prompt_length - 1, NEVER
    return 0, NEVER


def step(intervention: Intervention) -> Direction:
    """What the workers need of it: alpha v, or u; in float32."""
    if isinstance(intervention, Add):
        return intervention.displacement.cpu()
    return intervention.direction.cpu()


def salt(intervention: Intervention, prompt_length: int) -> str:
    """What keys and values of a prefix depend on besides its tokens, as one hash.

    The kind, the numbers that are added or taken out, the layers, the scope, and P
    where the scope counts from it. A scope of the response alone needs one too:
    blocks of generated tokens are cached as well.
    """
    scope = intervention.scope
    anchor = -1 if scope is Scope.ALL else prompt_length
    kind = type(intervention).__name__
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((kind, blocks_of(intervention), str(scope), anchor)).encode())
    digest.update(_bytes(step(intervention)))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().float().contiguous().numpy().tobytes()
