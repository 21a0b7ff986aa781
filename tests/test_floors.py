"""Imports go down the floors only, and what needs no torch does not import it."""

import subprocess
import sys
from pathlib import Path

import pytest

import steergauge

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers")


def lint(*options: str) -> subprocess.CompletedProcess:
    command = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [command, "--no-cache", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_imports_go_down_the_floors_only():
    done = lint()
    assert done.returncode == 0, done.stdout


def test_the_linter_would_see_an_import_that_goes_up(tmp_path):
    config = tmp_path / "upside-down.toml"
    config.write_text(
        '[tool.importlinter]\nroot_package = "steergauge"\n'
        '[[tool.importlinter.contracts]]\nname = "Upside down"\ntype = "layers"\n'
        'layers = ["steergauge.split", "steergauge.runs"]\n'
    )
    done = lint("--config", str(config))
    assert done.returncode == 1
    assert "Upside down" in done.stdout


def test_what_needs_no_model_imports_no_torch():
    modules = ["errors", "statistics", "runs.spec", "runs.store", "report", "cli"]
    code = "".join(f"import steergauge.{name}\n" for name in modules)
    code += "from steergauge import SteergaugeError, Spec, Finding, write_report\n"
    code += f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code) == "[]"


def test_help_is_answered_without_torch():
    code = (
        "import sys, contextlib\n"
        "from steergauge.cli import main\n"
        "for words in ([], ['--help'], ['audit', '--help']):\n"
        "    sys.argv = ['steergauge', *words]\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main()\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    printed = python(code)
    assert printed.count("Usage") == 3
    assert printed.splitlines()[-1] == "[]"


def test_a_public_name_is_imported_on_first_use():
    code = (
        "import sys, steergauge\n"
        "before = 'torch' in sys.modules\n"
        "steergauge.Add\n"
        "print(before, 'torch' in sys.modules)"
    )
    assert python(code) == "False True"


def test_every_public_name_is_there_and_no_other_is():
    names = dir(steergauge)
    assert len(names) == len(set(names)) > 20
    for name in names:
        assert getattr(steergauge, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = steergauge.nonsense
