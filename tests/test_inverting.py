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
from steergauge.inverted import Inverted, Search, show
from steergauge.prompts import Text, encode
from steergauge.reachability.inversion import Absolute, Inversion, Step
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
    assert "So fails any step longer than the tolerance" in said
    assert "random steps of the same length" in said
    assert "says nothing here" not in said
    # Every prompt begins like this one: the places that are its own are not seen yet.
    assert "Place 0 holds the special token '<s>'" in said
    assert f"--go-on looks at the {NUM_TOKENS - 1} places after it" in said
    assert "Warning" not in said
    assert done.count("✗") == 1
    assert "~" not in done
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
    assert "special token" not in done


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
    rows = [line for line in done.splitlines() if re.search(r"[✓~] +\d", line)]
    assert len(rows) > 50
    assert max(len(row.rstrip()) for row in rows) > WIDTH - 4
    assert all("…" not in re.split("[✓~]", row)[1] for row in rows)


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


def test_a_step_that_rounding_hides_is_neither_failure_nor_recovery(
    call, vector, tmp_path
):
    path = tmp_path / "found.json"
    how = ["--prompt", PROMPT, "--vector", vector, "--out", path]
    assert "The step is 0" in call(*how, "--alpha", 0)
    done = call(*how, "--alpha", 1e-5)
    said = words(done)
    (one,) = strict(path)["prompts"]
    # The search accepts the prompt's own token everywhere, which is no news.
    assert [s["token"] for s in one["steered"]["steps"]] == ids()
    assert one["steered"]["exact"]
    assert one["nothing_to_invert"] == [*range(NUM_TOKENS)]
    assert f"At {NUM_TOKENS} of {NUM_TOKENS} places (marked ~)" in said
    assert "nothing is claimed" in said
    assert "steered states are" not in said
    assert (done.count("✓"), done.count("~")) == (NUM_TOKENS, NUM_TOKENS + 1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_within_two_tolerances_nothing_is_claimed_and_beyond_them_the_search_fails(
    call, vector, precision
):
    # Far above what either precision does to states that are near 10 long.
    tolerance = 0.25
    how = ["--prompt", PROMPT, "--vector", vector, "--dtype", precision]
    for times, short in ((1.5, True), (3, False)):
        alpha = times * tolerance / load_vector(vector).norm
        said = words(call(*how, "--alpha", alpha, tolerance=str(tolerance)))
        assert ("At 1 of 1 places (marked ~)" in said) == short
        assert ("The inversion fails at place 0" in said) != short
        assert "steered states are" not in said


def test_a_claim_is_about_places_whose_step_is_long_enough(call, vector, tmp_path):
    path = tmp_path / "found.json"
    # Each place has a step of its own: the part of its state along the vector.
    how = ["--prompt", PROMPT, "--vector", vector, "--ablate", "--out", path]
    said = words(call(*how, "--go-on", tolerance="0.1"))
    (one,) = strict(path)["prompts"]
    short = [k for k, length in enumerate(one["step"]) if length <= 0.2]
    assert one["nothing_to_invert"] == short
    assert one["steered"]["first_failure"] == short[0] == 0
    first = next(k for k in range(NUM_TOKENS) if k not in short)
    assert first > 0
    assert f"At {len(short)} of {NUM_TOKENS} places (marked ~)" in said
    assert f"The inversion fails at place {first}" in said
    said = words(call(*how, tolerance="0.2"))
    (one,) = strict(path)["prompts"]
    stop = one["steered"]["first_failure"]
    assert one["nothing_to_invert"] == [*range(stop + 1)]
    assert stop > 0
    assert "The inversion fails" not in said
    assert f"The search stopped at place {stop}, where nothing was accepted" in said
    assert f"--go-on looks at the {NUM_TOKENS - stop - 1} places after it" in said


def test_a_step_to_the_state_of_another_token_is_recovered_as_that_token(
    call, tmp_path
):
    own, other = ids()[0], 500
    between = [natural_states(trained(), [k], layer=LAYER)[0] for k in (own, other)]
    step = (between[1] - between[0]).float()
    assert float(step.norm()) > 1
    file = SteeringVector(step, Site(LAYER)).save(tmp_path / "v.safetensors")
    how = ["--prompt", PROMPT, "--vector", file, "--max-tokens", 1]
    said = words(call(*how))
    text = repr(trained().tokenizer.decode([other]))
    claim = "All 1 steered states are, within the tolerance, those of the prompt"
    assert f"{claim} {text}." in said
    assert "~" not in said


def test_a_tolerance_that_takes_in_other_tokens_is_warned_of(call, tmp_path):
    path = tmp_path / "found.json"
    how = ["--prompt", PROMPT, "--out", path]
    said = words(call(*how, tolerance="2"))
    steps = strict(path)["prompts"][0]["natural"]["steps"]
    # A token that was met before the prompt's own is near enough.
    wrong = [s["place"] for s in steps if s["token"] != ids()[s["place"]]]
    assert len(wrong) == 1
    loose = [s for s in steps if s["other"] / 2 < 2]
    assert wrong[0] in [s["place"] for s in loose]
    assert f"Warning: at {len(loose)} of {NUM_TOKENS} places the tolerance" in said
    assert f"place {loose[0]['place']}: 2 against {loose[0]['other']:.2g})" in said
    assert f"{NUM_TOKENS - 1} of {NUM_TOKENS} tokens recovered;" in said
    assert "recovered exactly" not in said
    said = words(call(*how, "--exhaustive", tolerance="2"))
    assert f"{NUM_TOKENS} of {NUM_TOKENS} tokens recovered exactly" in said
    assert "Warning" not in said
    said = words(call(*how, tolerance="calibrated"))
    assert "recovered exactly" in said
    assert "Warning" not in said


def test_a_failure_after_a_wrong_token_is_not_put_down_to_rounding(capsys):
    tokens = ids()[:2]

    def said(first: int) -> str:
        steps = (
            Step(0, first, True, 0.1, 5.0, 1.0, 2048, 5.0),
            Step(1, tokens[1], False, 3.0, 5.0, 1.0, 2048, 5.0),
        )
        done = Inverted(PROMPT, tuple(tokens), 2, Inversion(steps), None, (), 0.1)
        show(Search(trained(), LAYER, None, Absolute(1), False, False), done, "1")
        return words(capsys.readouterr().out)

    assert "Rounding alone does more" in said(tokens[0])
    after = said(500)
    assert "At place 0 another token than the prompt's was taken." in after
    assert "Rounding" not in after


def test_what_is_counted_is_said_in_the_log(call, monkeypatch):
    seen = []
    monkeypatch.setattr(terminal.Lines, "begin", lambda _, *what: seen.append(what))
    call("--prompt", PROMPT, "--prompt", "Once")
    assert seen[0] == ("places of prompt 1 of 2", NUM_TOKENS)


def test_wrong_command_lines_of_this_verb_are_among_the_mistakes():
    commands = [command for command, _, _ in WRONG.values()]
    assert sum(command.startswith("invert ") for command in commands) > 10


def test_help_has_examples_and_names_its_options(call):
    done = call("-h")
    for option in ("--vector", "--ablate", "--read-layer", "--tolerance", "--go-on"):
        assert option in done
    assert done.count("steergauge invert --prompt") == 3
