"""The verbs work on a real model; what is wrong ends in one block and exit code 2."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomli_w
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.mistakes import WRONG
from tests.report import reachabilities
from tests.report.geometries import FACTS

from steergauge import cli, terminal
from steergauge.extraction.methods import METHODS
from steergauge.report.expected import NULL_LEAD
from steergauge.runs.store import Store
from steergauge.vector import Site, SteeringVector, load_vector

STORIES = Path(__file__).parents[1] / "../shared/models/stories260K"
THINGS = ("ball", "cake", "tree", "dog", "boat", "car", "cat", "bird", "book", "hat")
WORDS = {
    "high": ["happy", "smiled", "fun", "love", "loved", "nice", "good", "glad", "joy"],
    "low": ["sad", "cried", "scared", "angry", "hurt", "bad", "mean", "alone", "lost"],
}
VERBS = ("extract", "steer", "audit", "report", "paper-tables", "demo")


class Outcome:
    """What one call of the command line did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, _plain(out), _plain(err)


def _plain(text: str) -> str:
    """The words alone, whatever the width of the terminal and the frames."""
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|[│╭╮╰╯─━┃]", " ", text).split())


@pytest.fixture
def steergauge(monkeypatch, capsys):
    """Calls `main()` as the console script does, in this process."""
    for console in (terminal.out, terminal.err):
        # So wide that no word which a test looks for is broken.
        monkeypatch.setattr(console, "width", 400)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def call(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["steergauge", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Outcome(ended.value.code or 0, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def model() -> Path:
    if not STORIES.is_dir():
        pytest.skip("the model stories260K is not beside this checkout, in ../shared")
    return STORIES


@pytest.fixture(scope="module")
def files(tmp_path_factory, model) -> Path:
    """A folder of good inputs, and of bad ones."""
    folder = tmp_path_factory.mktemp("files")
    rows = [
        {"positive": f"Tim saw a {t}. He was happy", "negative": f"Tim saw a {t}."}
        for t in THINGS
    ]
    lines = [json.dumps(row) for row in rows]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    (folder / "empty.jsonl").write_text("\n \n")
    (folder / "broken.jsonl").write_text("\n".join([*lines[:2], "{nonsense", lines[3]]))
    (folder / "one-sided.jsonl").write_text(
        "\n".join([*lines[:4], '{"positive": "a"}', lines[3]])
    )
    prompts = [f"One day, Lily found a {t} and" for t in THINGS]
    (folder / "prompts.txt").write_text("\n".join(prompts))
    texts = {pole: [f"He said {w}." for w in words] for pole, words in WORDS.items()}
    texts = {pole: [*listed, *listed[:3]] for pole, listed in texts.items()}
    good = {**WORDS, "validation": texts}
    (folder / "words.toml").write_text(tomli_w.dumps(good))
    swapped = {"high": texts["low"], "low": texts["high"]}
    (folder / "blind.toml").write_text(tomli_w.dumps(good | {"validation": swapped}))
    small = {
        "num_prompts": 4, "num_dose_prompts": 2, "samples": 1, "max_new_tokens": 6,
        "num_perpendicular": 1, "num_random": 2,
    }  # fmt: skip
    (folder / "small.toml").write_text(tomli_w.dumps(small))
    (folder / "misspelt.toml").write_text("num_promts = 4\n")
    _vectors(folder)
    _models(folder)
    return folder


def _vectors(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(64, generator=generator)
    SteeringVector(direction, Site(2)).save(folder / "v.safetensors")
    SteeringVector(direction, Site(9)).save(folder / "high.safetensors")
    SteeringVector(torch.ones(65), Site(2)).save(folder / "wide.safetensors")
    SteeringVector(1e-2 * direction, Site(2)).save(folder / "short.safetensors")
    SteeringVector(torch.zeros(64), Site(2)).save(folder / "zero.safetensors")
    content = (folder / "v.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(content[:-40])
    with safe_open(folder / "v.safetensors", framework="pt") as file:
        metadata = file.metadata()
    direction[3] = torch.nan
    save_file({"direction": direction}, folder / "nan.safetensors", metadata=metadata)
    (folder / "text.safetensors").write_text("no safetensors at all")


def _models(folder: Path) -> None:
    (folder / "mute").mkdir()
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        shutil.copyfile(STORIES / name, folder / "mute" / name)
    (folder / "cut-model").mkdir()
    for path in STORIES.iterdir():
        shutil.copyfile(path, folder / "cut-model" / path.name)
    weights = folder / "cut-model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (folder / "no-model").mkdir()


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_wrong_ends_in_one_readable_block_and_exit_code_2(
    name, steergauge, files, tmp_path
):
    words, error, named = WRONG[name]
    command = [
        str(STORIES) if word == "M" else word.format(files=files, tmp=tmp_path)
        for word in words.split()
    ]
    before = sorted(files.rglob("*"))
    done = steergauge(*command)
    assert done.code == 2, done.out + done.err
    assert "Traceback" not in done.out + done.err
    assert error in done.err
    for word in named:
        assert word in done.err, done.err
    # Nothing was changed, and nothing half-done is left in the way of a next try.
    assert sorted(files.rglob("*")) == before
    assert not (tmp_path / "new.safetensors").exists()
    if "non-finite" not in name:
        assert list(tmp_path.iterdir()) == []


def test_a_typing_error_on_the_command_line_is_exit_code_2_too(steergauge, tmp_path):
    for words in (["audit"], ["extract", "--layer", "two"], ["nonsense"]):
        done = steergauge(*words)
        assert done.code == 2
        assert "Traceback" not in done.err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_names_its_options(verb, steergauge):
    done = steergauge(verb, "--help")
    assert done.code == 0
    assert f"steergauge {verb}" in done.out
    options = {
        "extract": ["--out", "--model", "--trait", "--pairs", "--position", "--method"],
        "steer": ["--vector", "--prompt", "--alpha", "--compare", "--scope"],
        "audit": ["--out", "--against", "--probe", "--preset", "--config", "--audits"],
        "report": ["{folder}"],
        "paper-tables": ["--markdown"],
        "demo": ["--out", "--trait"],
    }
    for option in options[verb]:
        assert option in done.out


def test_the_verbs_are_listed(steergauge):
    done = steergauge("--help")
    assert done.code == 0
    assert all(verb in done.out for verb in VERBS)


def test_a_vector_is_extracted_and_says_what_to_do_next(steergauge, files, tmp_path):
    path = tmp_path / "new.safetensors"
    done = steergauge(
        "extract", "--model", STORIES, "--pairs", files / "pairs.jsonl",
        "--layer", "1", "--out", path,
    )  # fmt: skip
    assert done.code == 0, done.err
    vector = load_vector(path)
    assert (vector.site.layer, vector.provenance.num_pairs) == (1, len(THINGS))
    assert f"{vector.norm:.4g}" in done.out
    assert "steergauge audit" in done.out
    assert str(path) in done.out
    assert "mean difference of 10 pairs" in done.out
    assert "sampling error of v" in done.out


def test_the_same_pairs_give_other_vectors_by_other_methods(
    steergauge, files, tmp_path
):
    directions, norms = {}, {}
    for method in METHODS:
        path = tmp_path / f"{method}.safetensors"
        done = steergauge(
            "extract", "--model", STORIES, "--pairs", files / "pairs.jsonl",
            "--method", method, "--out", path,
        )  # fmt: skip
        assert done.code == 0, done.err
        vector = load_vector(path)
        assert vector.provenance.method == method.replace("-", "_")
        directions[method] = torch.nn.functional.normalize(vector.direction, dim=0)
        norms[method] = vector.norm
        cosine = float(directions[method] @ directions["mean-difference"])
        if method != "mean-difference":
            assert f"cos {cosine:.3f}" in done.out
            assert "sampling error of v" not in done.out
            # These pairs differ so steadily that most methods agree to 1e-4.
            assert not torch.equal(directions[method], directions["mean-difference"])
    assert 0.1 < directions["discriminant"] @ directions["mean-difference"] < 0.95
    assert norms["logistic"] == pytest.approx(norms["mean-difference"], rel=1e-5)
    assert norms["median-difference"] != pytest.approx(norms["mean-difference"])


def test_an_unknown_method_is_answered_by_the_known_ones(steergauge, files, tmp_path):
    done = steergauge(
        "extract", "--model", STORIES, "--pairs", files / "pairs.jsonl",
        "--method", "pca", "--out", tmp_path / "v.safetensors",
    )  # fmt: skip
    assert done.code == 2
    assert "InputError" in done.err
    assert all(method in done.err for method in ("'pca'", *METHODS))
    assert list(tmp_path.iterdir()) == []


def test_steered_texts_stand_beside_the_unsteered_ones(steergauge, files):
    words = ["steer", "--model", STORIES, "--vector", files / "v.safetensors",
             "--prompt", "Once upon a time", "--max-new-tokens", "8",
             "--alpha", "2", "--compare"]  # fmt: skip
    first, again = steergauge(*words), steergauge(*words)
    other = steergauge(*words, "--seed", "1")
    assert first.code == again.code == other.code == 0
    assert "unsteered" in first.out
    assert "alpha = +2" in first.out
    assert first.out == again.out != other.out
    alone = steergauge(*words[:-1])
    assert "unsteered" not in alone.out
    assert "alpha = +2" in alone.out


@pytest.fixture
def audited(steergauge, files, tmp_path):
    command = [
        "audit", "--model", STORIES, "--pairs", files / "pairs.jsonl",
        "--prompts", files / "prompts.txt", "--probe", files / "words.toml",
        "--against", files / "v.safetensors", "--config", files / "small.toml",
        "--layer", "2", "--out", tmp_path / "run",
    ]  # fmt: skip
    return steergauge(*command), tmp_path / "run", command


def test_an_audit_prints_verdicts_and_reasons_and_writes_a_report(audited, steergauge):
    done, folder, command = audited
    assert done.code == 0, done.err
    findings = Store(folder).findings()
    for finding in findings.values():
        assert str(finding.verdict) in done.out
        assert _plain(finding.reasons[0])[:40] in done.out
    assert set(findings) >= {"equivalence[against[v]]", "divergence[against[v]]"}
    for name in ("run.toml", "findings.json", "generations.parquet"):
        assert (folder / name).is_file()
    assert "Not run" in done.out
    report = folder / "report.html"
    assert str(report) in done.out
    content = report.read_text(encoding="utf-8")
    assert "<html" in content
    # The same command on a finished run prints the same verdicts at once, and a
    # report that was lost is written again.
    report.unlink()
    again = steergauge(*command)
    assert again.out == done.out
    report.unlink()
    (folder / "card.md").unlink()
    rebuilt = steergauge("report", folder)
    assert rebuilt.code == 0, rebuilt.err
    assert report.read_text(encoding="utf-8") == content
    assert (folder / "card.md").is_file()


def test_every_audits_number_has_a_unit_and_a_sign_only_if_it_can_be_negative():
    assert set(terminal.NUMBER) - {"environments[]"} == set(NULL_LEAD) - {"plumbing"}
    assert all(unit for _, unit in terminal.NUMBER.values())
    found = reachabilities.whole()
    shown = {name: terminal.number(one) for name, one in found.items()}
    assert shown["states"] == "0.98\n[0.96, 1.01]\neta (of the step)"
    assert shown["access"] == "45%\n[39%, 52%]\nof the KL left"
    assert not any("+" in text for text in shown.values())
    lift = replace(found["states"], audit="manipulation")
    assert terminal.number(lift).startswith("+0.98\n[+0.96, +1.01]\nlift")
    assert terminal.number(replace(lift, estimate=None)) == ""


def test_an_interval_of_another_level_than_95_says_which():
    found = reachabilities.states()
    assert "%" not in terminal.number(found)
    seen = replace(found.estimate, level=0.875)
    assert "[0.96, 1.01] 87.5 %" in terminal.number(replace(found, estimate=seen))


def test_a_long_list_of_reasons_is_cut_and_the_page_named():
    four = tuple(f"Reason {k}." for k in range(4))
    found = replace(reachabilities.states(), reasons=four)
    told = terminal.reasons(found)
    assert told == "Reason 0. Reason 1. (more on the page)"
    assert terminal.reasons(replace(found, reasons=four[:2])) == "Reason 0. Reason 1."
    assert terminal.reasons(replace(found, code="T3")) == " ".join(four)


def test_the_table_of_an_ablation_gives_no_strength(steergauge, capsys):
    facts = {**FACTS, "median_stream_norm": 1.0, "not_run": [], "probe": None}
    findings = {"states": reachabilities.states()}
    for steering, said, unsaid in (
        ("ablation", "v taken out (ablation), no strength", "alpha ="),
        ("addition", "alpha = +1.5 (step 0.24", "taken out"),
    ):
        run = SimpleNamespace(facts=facts | {"steering": steering}, findings=findings)
        terminal.show_run(run)
        out = _plain(capsys.readouterr().out)
        assert said in out
        assert unsaid not in out
        # They were read elsewhere than v was written.
        assert "states read after 4" in out
    chosen = facts | {"alpha_was_recommended": True}
    terminal.show_run(SimpleNamespace(facts=chosen, findings=findings))
    assert "chosen by the dose curve" in _plain(capsys.readouterr().out)


def test_another_command_does_not_go_on_with_the_run(audited, steergauge):
    _, _, command = audited
    done = steergauge(*command, "--seed", "3")
    assert done.code == 2
    assert "StoreError" in done.err
    assert "seed" in done.err


def test_a_runs_own_toml_repeats_it_in_another_folder(audited, steergauge, tmp_path):
    _, folder, _ = audited
    again = tmp_path / "again"
    done = steergauge("audit", "--config", folder / "run.toml", "--out", again)
    assert done.code == 0, done.err
    name = "findings.json"
    assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_console_script_ends_with_exit_code_2_and_no_traceback(files):
    script = Path(sys.executable).with_name("steergauge")
    done = subprocess.run(
        [script, "steer", "--model", STORIES, "--prompt", "Once", "--vector",
         files / "wide.safetensors"],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "65 wide" in _plain(done.stderr)
    assert done.stderr.count("╭") == done.stderr.count("╰") == 1
