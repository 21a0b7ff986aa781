"""The verb `invert`: what it finds, what it says of it, and what it writes."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.ground_truth import trained
from tests.mistakes import WRONG

from steergauge import cli, inverting, terminal
from steergauge.intervention import Ablate, Add, Scope
from steergauge.prompts import Text, encode
from steergauge.reachability.tolerance import natural_states, steered_states
from steergauge.vector import Site, SteeringVector, load_vector

PROMPT = "Tell me about the lake."
NUM_TOKENS = 11
LAYER = 2
WIDTH = 80


@pytest.fixture
def call(monkeypatch, capsys) -> Callable[..., str]:
    """What `steergauge invert` prints on the reference model, 80 columns wide."""
    for console in (terminal.out, terminal.err):
        monkeypatch.setattr(console, "width", WIDTH)
    # On a model this small what a few texts say does not differ from what many do.
    monkeypatch.setattr(inverting, "HELD_OUT", 2)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def invert(*words: object, tolerance: str = "1e-3") -> str:
        command = ["steergauge", "invert", "--tolerance", tolerance, *map(str, words)]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert not ended.value.code, captured.err
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", captured.out)

    return invert


@pytest.fixture(scope="module")
def vector(tmp_path_factory) -> Path:
    direction = torch.randn(128, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("vector") / "v.safetensors"
    return SteeringVector(direction, Site(LAYER)).save(path)


def ids() -> list[int]:
    return encode(trained(), Text(PROMPT))[0]


def words(text: str) -> str:
    """Whatever the line breaks are."""
    return " ".join(text.split())


def strict(path: Path) -> dict:
    """JSON of the standard, in which NaN and infinity are no numbers."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


def test_a_prompt_is_recovered_and_shown_token_by_token(call, tmp_path):
    path = tmp_path / "new" / "found.json"
    done = call("--prompt", PROMPT, "--out", path, tolerance="calibrated")
    assert len(ids()) == NUM_TOKENS
    assert f"{NUM_TOKENS} of {NUM_TOKENS} tokens recovered exactly" in words(done)
    assert f"output of block {LAYER} of 5" in done
    assert PROMPT in words(done).split("Recovered:")[1]
    assert "Steered" not in done
    lines = [line for line in done.splitlines() if "✓" in line]
    assert len(lines) == NUM_TOKENS
    for line, token in zip(lines, ids(), strict=True):
        assert line.count(repr(trained().tokenizer.decode([token]))[:12]) == 2
    record = strict(path)
    assert record["num_vocabulary"] == trained().d_vocab
    (one,) = record["prompts"]
    steps = one["natural"]["steps"]
    assert [step["token"] for step in steps] == ids() == one["token_ids"]
    assert "".join(one["tokens"]) == one["natural"]["text"]
    assert one["natural"]["exact"]
    assert one["steered"] is None
    for step in steps:
        assert step["distance"] <= step["tolerance"]
        assert step["second"] is None
    tested = sorted(step["tested"] for step in steps)[NUM_TOKENS // 2]
    assert f"{100 * tested / trained().d_vocab:.1f} % of the vocabulary" in words(done)


def test_steered_states_fail_at_the_first_token_by_the_length_of_the_step(
    call, vector, tmp_path
):
    path = tmp_path / "found.json"
    # A strength that is small beside ||h||, near 20, but not beside the tolerance.
    done = call("--prompt", PROMPT, "--vector", vector, "--alpha", 0.05, "--out", path)
    length = 0.05 * load_vector(vector).norm
    assert 0.3 < length < 1
    said = words(done)
    assert "The inversion fails at place 0: of all 2048 tokens" in said
    assert f"'<s>' (the prompt's own), {length:.3g} away, 1.000 of the step" in said
    assert "random steps of the same length" in said
    assert "says nothing here" not in said
    assert done.count("✗") == 1
    (one,) = strict(path)["prompts"]
    assert one["natural"]["exact"]
    assert one["steered"]["first_failure"] == 0
    (step,) = one["steered"]["steps"]
    assert step["tested"] == trained().d_vocab
    assert step["second"] > step["distance"] == pytest.approx(length, rel=1e-4)
    assert one["step"] == pytest.approx([length] * NUM_TOKENS, rel=1e-4)


@pytest.mark.parametrize("ablate", [False, True])
def test_a_search_that_goes_on_gives_the_nearest_text_at_the_layer_asked_for(
    call, vector, tmp_path, ablate
):
    path = tmp_path / "found.json"
    how = ["--ablate"] if ablate else ["--alpha", 0.1]
    done = call(
        "--prompt", PROMPT, "--vector", vector, *how, "--read-layer", 4, "--go-on",
        "--max-tokens", 4, "--exhaustive", "--out", path,
    )  # fmt: skip
    assert "output of block 4 of 5" in done
    assert "read after block 4" in done
    assert f"Its first 4 of {NUM_TOKENS} tokens" in done
    lm, loaded = trained(), load_vector(vector)
    steering = Ablate(loaded) if ablate else Add(loaded, 0.1, Scope.ALL)
    natural = natural_states(lm, ids()[:4], layer=4)
    steered = steered_states(lm, ids()[:4], steering, layer=4)
    step = (steered - natural).norm(dim=-1)
    assert float(step.min()) > 0.01
    (one,) = strict(path)["prompts"]
    assert one["step"] == pytest.approx(step.tolist(), rel=1e-4)
    for name in ("natural", "steered"):
        assert [s["tested"] for s in one[name]["steps"]] == [lm.d_vocab] * 4
        assert all(s["second"] > 0.1 for s in one[name]["steps"])
    assert [s["token"] for s in one["steered"]["steps"]] == ids()[:4]
    assert "the prompt's own in 4 of 4" in words(done)


def test_every_line_fits_a_terminal_of_80_columns(call, vector):
    long = "Write a message to my neighbour about the flower market, please."
    # So weak that rounding makes ratios of many digits, and failures none.
    done = call(
        "--prompt", long, "--prompt", PROMPT, "--vector", vector, "--alpha", 1e-8
    )
    assert max(len(line) for line in done.splitlines()) <= WIDTH
    heads = [line.split() for line in done.splitlines() if "place  " in line]
    assert heads == [
        ["place", "token", "recovered", "distance", "tolerance", "2048"],
        ["place", "token", "nearest", "distance", "step", "ratio", "tolerance"],
    ] * 2  # fmt: skip
    # No number is cut off.
    rows = [line for line in done.splitlines() if "✓" in line or "✗" in line]
    assert len(rows) > 50
    assert max(len(row.rstrip()) for row in rows) > WIDTH - 4
    assert all("…" not in re.split("[✓✗]", row)[1] for row in rows)


def test_a_search_that_does_not_find_natural_states_does_not_speak_of_steered_ones(
    call, vector
):
    how = ["--prompt", PROMPT, "--vector", vector, "--dtype", "bfloat16"]
    said = words(call(*how, tolerance="published"))
    assert "Rounding alone does more to this model's states" in said
    assert "says nothing here" in said
    said = words(call(*how, tolerance="calibrated"))
    assert f"{NUM_TOKENS} of {NUM_TOKENS} tokens recovered exactly" in said
    assert "says nothing here" not in said
    assert "The inversion fails at place 0" in said


def test_a_step_that_rounding_hides_is_no_failure(call, vector):
    how = ["--prompt", PROMPT, "--vector", vector]
    assert "The step is 0" in call(*how, "--alpha", 0)
    said = words(call(*how, "--alpha", 1e-5))
    assert f"All {NUM_TOKENS} steered states are, within the tolerance" in said
    assert PROMPT in said.split("those of the prompt")[1]


def test_wrong_command_lines_of_this_verb_are_among_the_mistakes():
    commands = [command for command, _, _ in WRONG.values()]
    assert sum(command.startswith("invert ") for command in commands) > 10


def test_help_has_examples_and_names_its_options(call):
    done = call("-h")
    for option in ("--vector", "--ablate", "--read-layer", "--tolerance", "--go-on"):
        assert option in done
    assert done.count("steergauge invert --prompt") == 3
