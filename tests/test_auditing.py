"""Where an audit runs is not what it finds: engines, workers and looks as options."""

import re
import sys
from types import SimpleNamespace

import pytest
import tomli_w
import typer
from tests import planted

from steergauge import auditing, cli, terminal
from steergauge.auditing import Place
from steergauge.errors import BadSpec
from steergauge.runs.spec import read_spec
from steergauge.runs.store import Store

SIZES = {
    "num_prompts": 40,
    "num_dose_prompts": 2,
    "samples": 1,
    "max_new_tokens": planted.LENGTH,
    "num_perpendicular": 1,
    "num_random": 20,
    "prompts_per_cell": 10,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The planted model, its vector and its inputs, as files."""
    folder = tmp_path_factory.mktemp("files")
    lm = planted.planted()
    lm.model.save_pretrained(folder / "model")
    lm.tokenizer.save_pretrained(folder / "model")
    planted.trait_vector().save(folder / "v.safetensors")
    planted.prompt_file(folder, 60)
    planted.probe_file(folder)
    (folder / "small.toml").write_text(tomli_w.dumps(SIZES))
    return folder


@pytest.fixture
def audit(files, monkeypatch, capsys):
    """Calls `steergauge audit` as the console script does, in this process."""
    for console in (terminal.out, terminal.err):
        # So wide that no word which a test looks for is broken.
        monkeypatch.setattr(console, "width", 400)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given = {
        "model": files / "model", "vector": files / "v.safetensors", "alpha": 1,
        "prompts": files / "prompts.txt", "probe": files / "happiness.toml",
        "config": files / "small.toml", "device": "cpu",
        "audits": "plumbing,manipulation",
    }  # fmt: skip

    def call(*words, **changes):
        options = [
            word
            for key, value in (given | changes).items()
            if value is not None
            for word in (f"--{key}", str(value))
        ]
        command = ["steergauge", "audit", "--other-model", *options, *map(str, words)]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        out, err = (" ".join(text.split()) for text in (captured.out, captured.err))
        return SimpleNamespace(code=ended.value.code or 0, out=out, err=err)

    return call


@pytest.fixture
def alone(audit, tmp_path):
    """The findings of a run in one process."""
    done = audit(out=tmp_path / "alone")
    assert done.code == 0, done.err
    return (tmp_path / "alone" / "findings.json").read_bytes()


def test_a_run_with_two_workers_leaves_the_findings_of_one_without(
    audit, alone, tmp_path, monkeypatch
):
    pytest.importorskip("ray", reason="Ray is not installed")
    from steergauge.runs import distributed

    opened, plain = [], distributed.Pool
    monkeypatch.setattr(
        distributed,
        "Pool",
        # Sums in the same order as in this process.
        lambda *of, **how: opened.append(plain(*of, threads=1, **how)) or opened[-1],
    )
    done = audit("--workers", 2, out=tmp_path / "shared")
    assert done.code == 0, done.err
    assert (tmp_path / "shared" / "findings.json").read_bytes() == alone
    # Not vacuous: two workers made the cells.
    (pool,) = opened
    assert pool.num_workers == 2
    assert len(pool.records) > 8


def test_an_engine_named_on_the_command_line_is_written_into_the_run_file(
    audit, alone, tmp_path
):
    done = audit("--engine", "local", out=tmp_path / "named")
    assert done.code == 0, done.err
    assert read_spec(tmp_path / "named" / "run.toml")["engine"] == "local"
    assert (tmp_path / "named" / "findings.json").read_bytes() == alone


def test_without_vllm_its_engine_is_one_readable_block_and_no_run(
    audit, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "vllm", None)  # As if it were not there.
    done = audit("--engine", "vllm", out=tmp_path / "run")
    assert done.code == 2
    assert "EngineError" in done.err
    assert "vLLM cannot be imported" in done.err
    assert "docs/vllm.md" in done.err
    assert done.err.count("╭") == 1
    assert "Traceback" not in done.err
    assert not (tmp_path / "run").exists()


def test_a_sequential_run_tells_the_terminal_how_many_prompts_it_used(audit, tmp_path):
    done = audit("--sequential", out=tmp_path / "run")
    assert done.code == 0, done.err
    facts = Store(tmp_path / "run").facts()
    assert facts["sequential"]["looks"] == [20, 30, 40]
    assert facts["sequential"]["used"] == 20
    assert " ".join(done.out.split()).count("used 20 of 40 planned prompts") == 1


def test_looks_that_cannot_be_are_refused_before_the_model_is_loaded(
    audit, tmp_path, monkeypatch
):
    def loaded(*_args, **_options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(auditing, "loaded_model", loaded)
    wrong = [
        (["--audits", "geometry"], "Only T1, T3 and T4"),
        (["--num-prompts", 20], "nowhere to stop"),
        (["--layers", "0,1", "--num-prompts", 20], "nowhere to stop"),
        (["--workers", 0], "--workers is 0"),
        (["--workers", 2, "--device-map", "auto"], "whole model"),
    ]
    for words, named in wrong:
        own = {"vector": None} if "--layers" in words else {}
        more = ["--trait", "formality"] if own else []
        done = audit("--sequential", *words, *more, out=tmp_path / "run", **own)
        assert (done.code, named in done.err) == (2, True), done.err
    # Not vacuous: what is right gets as far as the model.
    with pytest.raises(AssertionError, match="was loaded"):
        audit("--sequential", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_is_refused_wherever_the_workers_are_asked_for():
    for helped in ({"workers": 2}, {"address": "auto"}):
        with pytest.raises(BadSpec, match=r"auto.*workers.*RAY_ADDRESS"):
            Place(device_map="auto", **helped)
    with pytest.raises(BadSpec, match="--workers is 0"):
        Place(workers=0)
    assert Place(device_map="auto").workers is None


def test_a_plan_takes_the_new_options_and_a_sequential_one_is_an_upper_bound(audit):
    once = audit("--dry-run", "--workers", 2, "--engine", "vllm")
    looked = audit("--dry-run", "--sequential")
    assert once.code == looked.code == 0, once.err + looked.err
    assert "In all about" in once.out
    assert "In all at most about" in looked.out
    assert "at most this; looks at 20, 30 and 40" in looked.out
    assert "looks at" not in once.out
    # The bound is the run without looks: all of its texts.
    texts = [
        re.search(r"([\d,]+) to be generated", one.out)[1] for one in (once, looked)
    ]
    assert texts[0] == texts[1]


def test_the_help_of_an_audit_lists_every_option_in_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    monkeypatch.setattr(sys, "argv", ["steergauge", "audit", "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    told = capsys.readouterr().out
    told = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", told)
    assert max(map(len, told.splitlines())) <= 80
    verb = typer.main.get_command(cli.app).commands["audit"]
    options = [name for given in verb.params for name in given.opts]
    assert len(options) > 45
    listed = set(re.findall(r"(?<![\w-])--[a-z-]+", told))
    assert {name for name in options if name.startswith("--")} <= listed
    assert "…" not in told
