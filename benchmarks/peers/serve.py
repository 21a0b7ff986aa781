"""Another library's side of a benchmark: it loads once and works turn by turn.

    python serve.py LIBRARY JOB

It runs inside an environment of the library's own (see `environments.sh`), and knows
nothing of this package; `with_LIBRARY.py` beside it says how that library does the
work. A job is a JSON file: a folder with a model, texts, and what is asked. On its
output,

first line   versions of what it runs on
then         for every line of its input, which is a turn's settings in JSON,
             {"seconds": ..., "result": ..., "peak": ...}; or {"error": ...}

so that the parent can have several libraries take turns on one machine, and compares
the results: a direction, or the tokens of every prompt under every vector.
"""

import importlib
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch.autograd import profiler
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


def main():
    """Take turns until the input ends.

    `with_LIBRARY.Library(model, tokenizer, job)` has `direction(pairs, batch_size)`, a
    tensor (d_model,), and `steered(vector)`, tokens (prompts, pos), the new ones last;
    `with_LIBRARY.PACKAGES` are names on the index whose versions are told.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What a library prints is no answer.
    job = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    module = importlib.import_module(f"with_{sys.argv[1]}")
    ready = module.Library(*opened(job), job)
    named = {
        name: version(name) for name in (*module.PACKAGES, "torch", "transformers")
    }
    print(json.dumps({"versions": named}), file=answers)
    for line in sys.stdin:
        try:
            answer = turn(ready, job, json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


def opened(job):
    """The model in float32, which never ends a text itself, and its tokenizer."""
    folder = Path(job["folder"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.to(job["device"]).eval()
    settings = model.generation_config
    settings.eos_token_id, settings.do_sample = None, False
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        padding_side="left",
        pad_token=job["pad_token"],
        model_input_names=["input_ids", "attention_mask"],
    )
    settings.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def turn(ready, job, settings):
    """One turn, timed or, if its peak is asked for, watched."""
    act = _act(ready, job, settings)
    with torch.no_grad():
        if settings.get("peak"):
            result, peak = watched(act)
            return {"result": result, "peak": peak}
        _wait()
        start = time.perf_counter()
        result = act()
        _wait()
        return {"result": result, "seconds": time.perf_counter() - start}


def _act(ready, job, settings):
    if job["task"] == "direction":
        pairs, batch_size = job["pairs"][: settings["num"]], settings["batch_size"]
        return lambda: ready.direction(pairs, batch_size).double().tolist()
    vectors = torch.tensor(job["vectors"], device=job["device"])
    chosen = vectors[: settings["num"]]
    new = job["max_new_tokens"]
    return lambda: [ready.steered(vector)[:, -new:].tolist() for vector in chosen]


def watched(act):
    """What it returns, and the most bytes of tensors that it held at once.

    On the CPU by torch's own record of allocations, on a GPU by its allocator.
    """
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = act()
        return result, torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    record = profiler.profile(profile_memory=True)
    with record:
        result = act()
    events = [e for e in record.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return result, peak


def _wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def batches(rows, batch_size):
    """Rows in batches, in their order."""
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]


if __name__ == "__main__":
    main()
