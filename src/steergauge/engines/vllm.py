"""The vLLM engine: steered texts from vLLM, token for token those of the local model.

vLLM batches continuously, pages its keys and values and reuses prefixes, which a model
in memory does not. What it makes is the same: the same prompts as token ids, the same
rules h -> h' at the same absolute positions (hooks in its workers, `vllm_worker.py`)
and the same common random numbers (our own logits processor; vLLM's sampler only takes
the argmax). In float32 the log-probabilities differ by rounding, about 1e-5, so a token
differs only where two candidates are that close.

Four things keep a wrong text from passing as a steered one:

- the engine is proved against the local model when it is opened (`VllmEngine.prove`);
- each rule has a cache of its own, by a salt over everything it consists of;
- the workers count every edit, and a count below the plan is an error;
- in every step the map from rows to requests is compared with the model's positions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steergauge.engines.requests import (
    Request,
    checked_arms,
    requested,
    salt,
    sampled,
    step,
)
from steergauge.engines.vllm_proof import (
    SPECIMEN,
    TOLERANCE,
    not_the_model,
    our_log_probabilities,
    specimens,
    their_log_probabilities,
)
from steergauge.engines.vllm_serving import Serving, library, served_model
from steergauge.errors import EngineError, InputError, NonFiniteLogits
from steergauge.generation import Arm, Decoding, Sample, end_tokens
from steergauge.intervention import Intervention
from steergauge.prompts import Text, encode
from steergauge.split import LanguageModel


@dataclass(frozen=True, slots=True)
class VllmEngine:
    """Makes the texts of `generation.generate` with vLLM. Made by `open_vllm`.

    Attributes:
        lm: the same model here: it encodes, decodes and is what vLLM is proved by.
        llm: vLLM's own object.
        dtype: precision that vLLM computes in.
    """

    lm: LanguageModel
    llm: Any
    dtype: str

    def __enter__(self) -> "VllmEngine":
        """The engine itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Stop vLLM and give its memory back."""
        self.llm.llm_engine.engine_core.shutdown()

    def generate(
        self,
        prompts: Sequence[str],
        arms: Mapping[str, Arm | Intervention | None],
        *,
        samples: int = 1,
        decoding: Decoding | None = None,
        chat: bool | None = None,
        batch_size: int | None = None,
        other_model: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> list[Sample]:
        """`samples` responses to every prompt under every arm, by arm, prompt, sample.

        The arguments are those of `generation.generate`. `batch_size` is a matter of
        the local model and not used: vLLM fills its own batches, up to
        `Serving.max_rows`.

        Raises:
            EngineError: vLLM made fewer edits than the plan says, or mixed up rows.
            InputError: a prompt and its response are longer than `max_model_len`.
            NonFiniteLogits: an intervention drove the logits to infinity or NaN.
            VectorError: a vector does not fit the model.
        """
        how = decoding or Decoding()
        given = checked_arms(self.lm, prompts, arms, other_model=other_model)
        requests = requested(
            self.lm, prompts, given, samples=samples, seed=how.seed, chat=chat
        )
        self._check_lengths(requests, how)
        made = self._served(requests, how, {}, progress)
        return [
            sampled(
                self.lm, prompts, request, list(made[request.key].outputs[0].token_ids)
            )
            for request in requests
        ]

    def prove(self) -> float:
        """The largest difference of a log-probability from the local model's, in nats.

        Every token of a short prompt and of its greedy response: unsteered, with a
        step as long as the stream added at the middle layer, and with a direction
        taken out after every block.

        Raises:
            EngineError: the difference is beyond the tolerance.
        """
        ids = tuple(encode(self.lm, Text(SPECIMEN))[0])
        arms = specimens(self.lm, ids)
        requests = [
            Request(key, name, arm, 0, 0, ids, 0)
            for key, (name, arm) in enumerate(arms.items())
        ]
        how = Decoding(max_new_tokens=4, temperature=0)
        made = self._served(requests, how, {"logprobs": 0, "prompt_logprobs": 0}, None)
        worst, tolerance = 0.0, TOLERANCE.get(self.dtype, 0.5)
        for request in requests:
            theirs, response = their_log_probabilities(made[request.key])
            ours = our_log_probabilities(
                self.lm, [*ids, *response], len(ids), request.intervention
            )
            gap = (theirs - ours).abs()
            at = int(gap.argmax())
            worst = max(worst, float(gap[at]))
            if not bool(gap.max() <= tolerance):
                raise not_the_model(
                    request.arm, float(theirs[at]), float(ours[at]), tolerance
                )
        return worst

    def _check_lengths(self, requests: Sequence[Request], how: Decoding) -> None:
        limit = self.llm.llm_engine.model_config.max_model_len
        longest = max((len(request.prompt_ids) for request in requests), default=0)
        if longest + how.max_new_tokens > limit:
            raise InputError(
                f"the longest prompt has {longest} tokens and its response may have "
                f"{how.max_new_tokens}; vLLM was opened for {limit} in all.",
                remedy="Open it with a larger max_model_len, or ask for less.",
            )

    def _served(
        self,
        requests: Sequence[Request],
        how: Decoding,
        extra: Mapping[str, Any],
        progress: Callable[[int], None] | None,
    ) -> dict[int, Any]:
        """Answers of vLLM by key, every edit of them counted.

        Args:
            requests: what is to be made.
            how: how tokens are drawn.
            extra: more sampling parameters.
            progress: called with the number of responses finished since the last call.
        """
        distinct = {id(r.intervention): r.intervention for r in requests}
        steered = [rule for rule in distinct.values() if rule is not None]
        steps = {id(rule): row for row, rule in enumerate(steered)}
        try:
            if steered:
                self._begin([step(rule).tolist() for rule in steered])
            made = self._stepped(requests, steps, how, extra, progress)
        finally:
            reports = self.llm.collective_rpc("steergauge_end")
        for report in reports:
            _check(report, requests, made)
        return made

    def _begin(self, table: list[list[float]]) -> None:
        for num_layers in self.llm.collective_rpc("steergauge_begin", args=(table,)):
            if num_layers != self.lm.num_layers:
                raise EngineError(
                    f"the model has {num_layers} decoder layers in vLLM and "
                    f"{self.lm.name} has {self.lm.num_layers}.",
                    cause="vLLM was opened on other weights than the local model.",
                    remedy="Open it on the folder or id that `lm` was loaded from.",
                )

    def _stepped(
        self,
        requests: Sequence[Request],
        steps: dict[int, int],
        how: Decoding,
        extra: Mapping[str, Any],
        progress: Callable[[int], None] | None,
    ) -> dict[int, Any]:
        engine = self.llm.llm_engine
        salts: dict[tuple[int, int], str] = {}
        waiting: set[str] = set()
        made: dict[int, Any] = {}
        try:
            for request in requests:
                prompt = _prompt(request, salts)
                parameters = self._parameters(request, steps, how, extra)
                engine.add_request(str(request.key), prompt, parameters)
                waiting.add(str(request.key))
            while engine.has_unfinished_requests():
                over = [out for out in engine.step() if out.finished]
                made |= {int(out.request_id): out for out in over}
                waiting -= {out.request_id for out in over}
                if progress and over:
                    progress(len(over))
        finally:
            if waiting:  # Interrupted: nothing of it may go on in the next call.
                engine.abort_request(sorted(waiting))
        return made

    def _parameters(
        self,
        request: Request,
        steps: dict[int, int],
        how: Decoding,
        extra: Mapping[str, Any],
    ) -> Any:
        """Greedy for vLLM; what noise there is comes from our own processor."""
        return library().SamplingParams(
            temperature=0.0,
            max_tokens=how.max_new_tokens,
            ignore_eos=True,
            stop_token_ids=sorted(end_tokens(self.lm)),
            detokenize=False,
            extra_args=request.carried(steps, how),
            **extra,
        )


def open_vllm(
    lm: LanguageModel,
    source: str,
    *,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    serving: Serving | None = None,
) -> VllmEngine:
    """A vLLM engine of the model `lm`, proved against it.

    Args:
        lm: the local model.
        source: folder or Hugging Face id of the same weights.
        dtype: precision that vLLM computes in.
        revision: commit, tag or branch of a Hugging Face id.
        trust_remote_code: run code that comes with the weights.
        serving: what it may take of the machine.

    Raises:
        EngineError: vLLM is not installed, cannot open the model, or gives other
            log-probabilities than the local model.
    """
    llm = served_model(
        source,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        serving=serving or Serving(),
    )
    engine = VllmEngine(lm, llm, dtype)
    try:
        engine.prove()
    except BaseException:
        engine.close()
        raise
    return engine


def _prompt(request: Request, salts: dict[tuple[int, int], str]) -> dict[str, Any]:
    """Token ids, and the salt of the prefix cache; a salt is made once a rule and P."""
    prompt: dict[str, Any] = {
        "type": "token",
        "prompt_token_ids": list(request.prompt_ids),
    }
    if request.intervention is not None:
        length = len(request.prompt_ids)
        which = id(request.intervention), length
        if which not in salts:
            salts[which] = salt(request.intervention, length)
        prompt["cache_salt"] = salts[which]
    return prompt


def _check(
    report: Mapping[str, Any], requests: Sequence[Request], made: Mapping[int, Any]
) -> None:
    """Refuse what one worker reports of a session, unless it did what was planned."""
    if report["fault"]:
        raise EngineError(
            f"the map from vLLM's rows to requests is wrong: {report['fault']}.",
            cause="This version of vLLM arranges its batches in another way.",
            remedy="Install the versions in constraints-vllm.txt, or use the local "
            "engine. No text of this call was kept.",
        )
    broken = set(report["broken"])
    for request in requests:
        if request.key in broken:
            raise _not_finite(request)
        out = made[request.key]
        planned = request.planned(
            out.num_cached_tokens or 0, len(out.outputs[0].token_ids)
        )
        counted = report["edits"].get(request.key, 0)
        if counted < planned:
            raise EngineError(
                f"arm {request.arm!r}, prompt {request.index}, sample "
                f"{request.sample}: {planned} edits of the stream were planned, "
                f"{counted} were made.",
                cause="Hooks did not fire: the model was compiled, or another "
                "extension took them out.",
                remedy="Use the local engine. No text of this call was kept.",
            )


def _not_finite(request: Request) -> NonFiniteLogits:
    rule = request.intervention
    if rule is None:
        return NonFiniteLogits(
            "the unsteered model gives infinite or NaN logits in vLLM.",
            cause="Its weights are damaged or overflow in this precision.",
            remedy="Open it in float32.",
        )
    return NonFiniteLogits(
        f"arm {request.arm!r} (alpha = {rule.alpha:g} at layer {rule.site.layer}) "
        "drove the logits to infinity or NaN in vLLM.",
        cause="The step is far beyond the norms that this model works with.",
        remedy="Use a smaller alpha; `steergauge audit` recommends one.",
    )
