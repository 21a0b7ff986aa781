"""T0, plumbing: is the intervention what it is said to be, and what is the noise floor?

Checked on the loaded model, with the vector and prompts of the run, before anything is
claimed: the law of the split; a zero edit changes nothing; alpha v arrives at the
positions in scope and nowhere else, once per token, with a cache as without; what is
read back is what was written; hooks leave no trace; scored text holds no prompt; left
and right padding agree.

The noise floor comes with it: eta_0, how far the stream of one row moves between
compute paths (alone, in a batch), and kappa_0, the sequence KL between compute paths
of the same arm (alone, in a batch, token by token with a cache, steered there and
back). No divergence below a few kappa_0 means anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from steergauge.audits.finding import Finding, Verdict
from steergauge.generation import Decoding, Sample, generate
from steergauge.intervention import Add, edits
from steergauge.prompts import Text, encode, padded
from steergauge.readout import kl
from steergauge.split import LanguageModel, positions
from steergauge.types import Edit, Mask, TokenIds

SMALLEST_FLOOR = 1e-8
"""Nats. Even where two paths agree to the last bit, a smaller divergence is taken for
rounding: telling such arms apart would take 3e8 texts (ln 20 / 1e-8)."""

PATH_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Largest difference in logits between compute paths; 1 in half precision."""


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    passed: bool
    seen: str


@dataclass(frozen=True, slots=True)
class _Specimen:
    """A few prompts with responses of the arm, as one left-padded batch."""

    ids: TokenIds
    mask: Mask
    prompt_lengths: Tensor

    @property
    def where(self) -> Tensor:
        return positions(self.mask)

    def row(self, i: int) -> "_Specimen":
        """One row alone, without its padding."""
        own = self.mask[i]
        length = self.prompt_lengths[i : i + 1]
        return _Specimen(self.ids[i : i + 1, own], self.mask[i : i + 1, own], length)


def plumbing(
    lm: LanguageModel,
    intervention: Add,
    prompts: Sequence[str],
    *,
    chat: bool | None = None,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    seed: int = 0,
) -> Finding:
    """PASS if the intervention does what its definition says; measures the floors.

    Args:
        lm: the model.
        intervention: the one that will be audited.
        prompts: a few of the run's prompts; the first 8 are used.
        chat: through the chat template; None means if there is one.
        max_new_tokens: length of the responses, as in the run.
        temperature: of the sampling, as in the run.
        seed: of the responses.
    """
    some = list(prompts)[:8]
    decoding = Decoding(max_new_tokens, temperature, seed=seed)
    arms = {"v": intervention}
    texts = generate(lm, some, arms, decoding=decoding, chat=chat, other_model=True)
    specimen = _specimen(lm, texts, chat)
    layer = intervention.site.layer
    law = lm.prove(again=True)
    floor_kl, path_gap = _floor_kl(lm, specimen, intervention, temperature)
    floor_stream = _floor_stream(lm, specimen, layer)
    checks = [
        _Check("suffix(prefix(x)) == model(x) at every layer", True, f"{law:.2g}"),
        _check_zero_edit(lm, specimen, layer),
        *_check_injection(lm, specimen, intervention),
        _check_restored(lm, specimen, intervention),
        _check_text(lm, texts, specimen),
        _check_padding_side(lm, specimen),
        _check_paths(lm, path_gap),
    ]
    failed = [check for check in checks if not check.passed]
    reasons = [f"{check.name}: {check.seen}." for check in failed] or [
        f"All {len(checks)} checks hold; two compute paths of the same arm differ by "
        f"{floor_kl:.2g} nats a text (kappa_0)."
    ]
    return Finding(
        audit="plumbing",
        code="T0",
        subject="",
        claim="alpha v is added where it is said to be, once, and nothing else is.",
        quantity="checks",
        estimate=None,
        null="",
        verdict=Verdict.FAIL if failed else Verdict.PASS,
        reasons=tuple(reasons),
        num_prompts=len(some),
        num_samples=1,
        details={
            "checks": [[check.name, check.passed, check.seen] for check in checks],
            "floor_kl": max(floor_kl, SMALLEST_FLOOR),
            "measured_floor_kl": floor_kl,
            "floor_stream": floor_stream,
            "law": law,
        },
    )


def _specimen(
    lm: LanguageModel, texts: Sequence[Sample], chat: bool | None
) -> _Specimen:
    prompts = [encode(lm, Text(sample.prompt), chat=chat)[0] for sample in texts]
    rows = [
        [*prompt, *sample.token_ids]
        for prompt, sample in zip(prompts, texts, strict=True)
    ]
    ids, mask = padded(rows, device=lm.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=lm.device)
    return _Specimen(ids, mask, lengths)


def _steered(
    lm: LanguageModel, specimen: _Specimen, intervention: Add | None
) -> Tensor:
    """Logits of a teacher-forced pass."""
    each = [intervention] * len(specimen.ids)
    steering = edits(each, specimen.where, specimen.mask, specimen.prompt_lengths)
    return lm.logits(specimen.ids, specimen.mask, edits=steering)


def _check_zero_edit(lm: LanguageModel, specimen: _Specimen, layer: int) -> _Check:
    plain = lm.logits(specimen.ids, specimen.mask)
    edited = lm.logits(specimen.ids, specimen.mask, edits={layer: lambda h: h + 0.0})
    gap = float((plain - edited)[specimen.mask].abs().max())
    return _Check("a zero edit changes no logit", gap == 0, f"{gap:.2g}")


def _check_injection(
    lm: LanguageModel, specimen: _Specimen, intervention: Add
) -> list[_Check]:
    """What was read before and after the edit differs by alpha v, exactly in scope."""
    layer, ids, mask = intervention.site.layer, specimen.ids, specimen.mask
    each = [intervention] * len(ids)
    steering = edits(each, specimen.where, mask, specimen.prompt_lengths)
    before = lm.streams(ids, mask, layers=(layer,))[layer]
    after = lm.streams(ids, mask, layers=(layer,), edits=steering)[layer]
    scope = intervention.scope.covers(specimen.where, specimen.prompt_lengths) & mask
    wanted = intervention.displacement.to(before)
    largest = torch.maximum(before.abs(), after.abs())[scope]
    ulp = torch.finfo(before.dtype).eps * torch.maximum(largest, wanted.abs())
    error = ((after - before)[scope] - wanted).abs()
    inside = bool((error <= ulp).all())
    outside = torch.equal(after[mask & ~scope], before[mask & ~scope])
    times = _edits_per_token(lm, specimen, intervention)
    return [
        _Check(
            "alpha v arrives in scope, and is read back, to 1 ulp",
            inside,
            f"off by up to {float(error.max()):.2g}",
        ),
        _Check("nothing outside the scope changes", outside, "compared bit by bit"),
        _Check(
            "every token in scope is edited once when decoding with a cache",
            times == int(scope.sum()),
            f"{times} edits for {int(scope.sum())} tokens",
        ),
    ]


def _edits_per_token(lm: LanguageModel, specimen: _Specimen, intervention: Add) -> int:
    """Positions that an edit changed while the specimen was decoded with a cache."""
    changed: list[int] = []

    def counting(edit: Edit) -> Edit:
        def counted(stream: Tensor) -> Tensor:
            edited = edit(stream)
            changed.append(int((edited != stream).any(-1).sum()))
            return edited

        return counted

    _cached(lm, specimen, intervention, counting)
    return sum(changed)


def _cached(
    lm: LanguageModel,
    specimen: _Specimen,
    intervention: Add,
    wrap: Callable[[Edit], Edit] = lambda edit: edit,
) -> Tensor:
    """Logits of all tokens: a prefill, then one token a step with a cache."""
    ids, mask, where = specimen.ids, specimen.mask, specimen.where
    each = [intervention] * len(ids)
    first = max(1, int(specimen.prompt_lengths.min()) - 1)
    spans = [(0, first), *((t, t + 1) for t in range(first, ids.shape[1]))]
    cache, logits = DynamicCache(config=lm.model.config), []
    for start, stop in spans:
        now = slice(start, stop)
        lengths = specimen.prompt_lengths
        steering = edits(each, where[:, now], mask[:, now], lengths)
        wrapped = {layer: wrap(edit) for layer, edit in steering.items()}
        passed = lm.logits(ids[:, now], mask[:, :stop], edits=wrapped, cache=cache)
        logits.append(passed)
    return torch.cat(logits, dim=1)


def _check_restored(
    lm: LanguageModel, specimen: _Specimen, intervention: Add
) -> _Check:
    before = lm.logits(specimen.ids, specimen.mask)
    steered = _steered(lm, specimen, intervention)
    after = lm.logits(specimen.ids, specimen.mask)
    same = torch.equal(before[specimen.mask], after[specimen.mask])
    moved = float((steered - before)[specimen.mask].abs().max())
    return _Check(
        "hooks leave no trace",
        same,
        f"logits moved by {moved:.2g} while steered; afterwards they are "
        f"{'bitwise back' if same else 'not what they were'}",
    )


def _check_text(
    lm: LanguageModel, texts: Sequence[Sample], specimen: _Specimen
) -> _Check:
    """Prompt and response decoded together are the prompt, then the scored text."""
    clean = True
    for i, sample in enumerate(texts):
        own = specimen.row(i)
        whole = lm.tokenizer.decode(own.ids[0], skip_special_tokens=True)
        head = own.ids[0, : int(own.prompt_lengths)]
        prompt = lm.tokenizer.decode(head, skip_special_tokens=True)
        # A tokenizer may drop a blank between the two.
        clean &= whole[len(prompt) :].strip() == sample.text.strip()
    return _Check("scored text is the continuation alone", clean, "decoded together")


def _check_padding_side(lm: LanguageModel, specimen: _Specimen) -> _Check:
    left = lm.logits(specimen.ids, specimen.mask)
    order = torch.argsort((~specimen.mask).long(), dim=1, stable=True)
    right_ids, right_mask = (
        specimen.ids.gather(1, order),
        specimen.mask.gather(1, order),
    )
    right = lm.logits(right_ids, right_mask)
    gap = float((left[specimen.mask] - right[right_mask]).abs().max())
    tolerance = PATH_TOLERANCE.get(lm.dtype, 1.0)
    return _Check(
        "left and right padding agree",
        gap <= tolerance,
        f"{gap:.2g} logits apart, tolerance {tolerance:g}",
    )


def _check_paths(lm: LanguageModel, gap: float) -> _Check:
    tolerance = PATH_TOLERANCE.get(lm.dtype, 1.0)
    return _Check(
        "alone, in a batch, and token by token with a cache agree",
        gap <= tolerance,
        f"{gap:.2g} logits apart, tolerance {tolerance:g}",
    )


def _floor_kl(
    lm: LanguageModel,
    specimen: _Specimen,
    intervention: Add,
    temperature: float,
) -> tuple[float, float]:
    """kappa_0 in nats, and the largest gap in logits, over compute paths."""
    batch = _steered(lm, specimen, intervention)
    plain = lm.logits(specimen.ids, specimen.mask)
    pairs = [
        (batch, _cached(lm, specimen, intervention)),
        (batch, _alone(lm, specimen, intervention, batch)),
        (plain, _there_and_back(lm, specimen, intervention)),
    ]
    response = (specimen.where >= specimen.prompt_lengths[:, None] - 1) & specimen.mask

    def nats(a: Tensor, b: Tensor) -> float:
        own, other = (x[response].double() / temperature for x in (a, b))
        return float(kl(own, other).sum()) / len(specimen.ids)

    floors = [nats(a, b) for a, b in pairs]
    gaps = [float((a - b)[response].abs().max()) for a, b in pairs[:2]]
    return max(floors), max(gaps)


def _alone(
    lm: LanguageModel, specimen: _Specimen, intervention: Add, batch: Tensor
) -> Tensor:
    """The same logits from one row at a time."""
    rows = batch.clone()
    for i in range(len(specimen.ids)):
        rows[i, specimen.mask[i]] = _steered(lm, specimen.row(i), intervention)[0]
    return rows


def _there_and_back(
    lm: LanguageModel, specimen: _Specimen, intervention: Add
) -> Tensor:
    """Logits of h + alpha v - alpha v: unsteered, but for such a step's rounding."""
    step = intervention.displacement
    layer = intervention.site.layer
    back = {layer: lambda h: (h + step.to(h)) - step.to(h)}
    return lm.logits(specimen.ids, specimen.mask, edits=back)


def _floor_stream(lm: LanguageModel, specimen: _Specimen, layer: int) -> float:
    """eta_0: 99 % quantile of ||h in a batch - h alone||."""
    batch = lm.streams(specimen.ids, specimen.mask, layers=(layer,))[layer]
    gaps = []
    for i in range(len(specimen.ids)):
        own = specimen.row(i)
        alone = lm.streams(own.ids, own.mask, layers=(layer,))[layer][0]
        gap = torch.linalg.vector_norm(batch[i, specimen.mask[i]] - alone, dim=-1)
        gaps += gap.tolist()
    return float(np.quantile(gaps, 0.99))
