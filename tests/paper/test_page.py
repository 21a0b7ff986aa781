"""What is said of the tables is true of their numbers, and is shown as it should be."""

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from steergauge import cli
from steergauge.paper import scores
from steergauge.paper.page import markdown, sections, shown
from steergauge.paper.printed import FOLDER, Printed, read_tables
from steergauge.paper.published import noise_floor
from steergauge.paper.section import Section, listed, span

DOCS = Path(__file__).parents[2] / "docs/paper-tables.md"
NUM_ROWS = 100_000


@pytest.fixture(scope="module")
def printed() -> Printed:
    return read_tables()


def another_study(folder: Path) -> Printed:
    """Tables of one row each, with a [bracket] and nothing of the paper's sizes."""
    shutil.copytree(FOLDER, folder)
    for path in folder.glob("*.csv"):
        head, first, *_ = path.read_text(encoding="utf-8").splitlines()
        first = first.replace("Qwen2.5-3B-Instruct", "[red]a|b_c")
        path.write_text(f"{head}\n{first}\n", encoding="utf-8")
    return read_tables(folder)


def on_terminal(what: tuple[Section, ...], width: int) -> str:
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(shown(what))
    return captured.get()


def words(text: str) -> str:
    return " ".join(text.split())


def ratios(
    seeds: int, *, common: float = 0.0, shared: bool = False, ddof: int = 1
) -> np.ndarray:
    """sd / mean of |d| over seeds, for many experiments with noise of sd 1.

    Args:
        seeds: of v_perp.
        common: a difference that all seeds have.
        shared: whether all seeds are compared with the same texts of v.
        ddof: 1 divides by n - 1, 0 by n.
    """
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(NUM_ROWS, seeds))
    if shared:
        noise += rng.normal(size=(NUM_ROWS, 1))
    sizes = np.abs(common + noise)
    return sizes.std(1, ddof=ddof) / sizes.mean(1)


def test_the_ratios_that_are_quoted_for_ten_seeds_are_those_of_noise(printed):
    (text,) = [s.text for s in scores.effect_sizes(printed).details if "Six" in s.text]
    quoted = [float(x) for x in re.findall(r"0\.\d\d\b", text.split("0.756")[1])]
    free = ratios(10)
    assert quoted == [0.48, 0.74, 0.07, 0.68, 0.65]
    # Two places, as quoted; 100 000 experiments are exact to a third.
    expected = [
        ratios(10, common=2).mean(),
        free.mean(),
        free.std() / math.sqrt(6),
        ratios(10, shared=True).mean(),
        ratios(10, shared=True, ddof=0).mean(),
    ]
    assert quoted == pytest.approx(expected, abs=0.006)
    assert ratios(10, common=1).mean() == pytest.approx(0.68, abs=0.006)


def test_the_sizes_that_are_quoted_have_the_floors_that_are_quoted(printed):
    _, sizes = scores.effect_sizes(printed).headlines
    for num, icc in ((1000, 0.0), (1000, 0.5), (100, 0.0), (100, 0.5)):
        assert f"{noise_floor(num, num, icc=icc):.3f}" in sizes.text
    # At the mean printed correlations of both models.
    for r in ((0.285 + 0.414 + 0.044) / 3, (0.192 + 0.347 + 0.016) / 3):
        assert f"{noise_floor(100, 100, icc=r):.3f}" in sizes.text
    assert sizes.kind == "inference"


def test_the_numbers_of_the_headlines_are_those_of_the_tables(printed):
    said = words(markdown(sections(printed)))
    for fact in (
        "0.080 (Qwen2.5-3B-Instruct) at 201 scores an arm",
        "0.100 (Llama-3.1-8B-Instruct) at 127 scores an arm; at 100 and 64 if half",
        "0.764 of its mean, averaged over 6 rows",
        "takes about 428 independent scores an arm",
        "The printed 95.6 to 101.5 % are",
        "by -1.5 to +4.6 % of",
        "The mean of the 24 cells is 0.3725; 17 of 24 (71 %) lie below 0.5",
        "and 0 below 0.2 (the smallest is 0.21)",
        "about 9.2 scores an arm",
        "0.22 to 0.44 in Table 2 and 0.05 to 0.16 in Table 1",
        "a difference of +0.043, with a standard error of 0.048",
        "0.48 to 0.88 times as far on Qwen2.5-3B-Instruct",
        "1.17 to 1.78 times as far on Llama-3.1-8B-Instruct",
        "In 3 of 6 rows rho is below 1",
        "agreement of 81 to 96 % and an overlap of 86 to 96 %",
    ):
        assert fact in said


def test_every_statement_has_a_formula_and_an_inference_says_what_it_needs(printed):
    all_said = sections(printed)
    assert len(all_said) == 4
    kinds = set()
    for section in all_said:
        assert 1 <= len(section.headlines) <= 2
        assert section.details
        assert all(len(row) == len(section.columns) for row in section.rows)
        assert all(len(row) == len(section.columns) for row in section.summary)
        for statement in (*section.headlines, *section.details):
            assert statement.text.endswith(".")
            assert statement.formula
            assert bool(statement.assumes) is (statement.kind == "inference")
            kinds.add(statement.kind)
    assert kinds == {"arithmetic", "inference"}
    noise = [s for s in all_said[2].headlines if "Noise" in s.text]
    assert "strong inference and no proof" in noise[0].assumes


def test_the_paper_is_not_quoted_about_another_study(printed, tmp_path):
    said = words(markdown(sections(another_study(tmp_path / "tables"))))
    own = words(markdown(sections(printed)))
    for phrase in ("authors' code of a later version scores", "The text gives", "Six"):
        assert phrase in own
        assert phrase not in said


def test_two_tables_are_called_apart_only_where_they_are(printed, tmp_path):
    folder = tmp_path / "tables"
    claim = "Every one of the former is above"
    assert claim in words(markdown(sections(printed)))
    assert claim in words(markdown(sections(another_study(folder))))
    path = folder / "table1.csv"
    path.write_text(path.read_text("utf-8").replace("0.144", "0.450"), "utf-8")
    said = words(markdown(sections(read_tables(folder))))
    assert "0.44 in Table 2 and 0.45 in Table 1" in said
    assert claim not in said


def test_a_study_without_any_difference_is_shown_too(tmp_path):
    folder = tmp_path / "tables"
    another_study(folder)
    for name in ("table1.csv", "table2.csv"):
        path = folder / name
        head, first = path.read_text(encoding="utf-8").splitlines()
        model, trait, *cells = first.split(",")
        zeros = ["5" if cell == "5" else "0" for cell in cells]
        path.write_text(f"{head}\n{model},{trait},{','.join(zeros)}\n", "utf-8")
    what = sections(read_tables(folder))
    assert "inf" in on_terminal(what, 80)
    assert "| inf |" in markdown(what)


@pytest.mark.parametrize("width", [80, 120])
def test_tables_are_whole_on_a_terminal(width, printed):
    text = on_terminal(sections(printed), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    for section in sections(printed):
        assert section.title in text
        for head in section.columns:
            assert f" {head} " in text
        for row in (*section.rows, *section.summary):
            pattern = r"\s+".join(re.escape(cell) for cell in row[1:])
            assert re.search(rf" {pattern} ", text), row
        for statement in section.headlines:
            assert words(statement.text) in words(text)
            assert words(statement.formula) in words(text)


def test_names_are_text_whatever_signs_they_have(tmp_path):
    what = sections(another_study(tmp_path / "tables"))
    assert "[red]a|b_c" in on_terminal(what, 80)
    assert "| [red]a\\|b_c | formality |" in markdown(what)
    assert "\\[red]a|b\\_c" in markdown(what)


def test_lines_of_the_page_fit_but_for_its_tables(printed):
    lines = markdown(sections(printed)).splitlines()
    assert len(lines) > 100
    assert all(len(line) <= 88 for line in lines if not line.startswith("|"))
    assert all(line.isascii() and line == line.rstrip() for line in lines)


def test_the_page_of_the_manual_is_the_one_that_is_generated(printed):
    assert DOCS.read_text(encoding="utf-8") == markdown(sections(printed)), (
        "run: steergauge paper-tables --markdown > docs/paper-tables.md"
    )


def test_ranges_and_lists_are_written_as_they_are_read():
    assert span([2.0, 1.0, math.nan], ".1f") == "1.0 to 2.0"
    assert span([1.01, 1.02], ".1f") == "1.0"
    assert span([math.nan], ".1f") == "nan"
    assert [listed(list("abc"[:k])) for k in (1, 2, 3)] == [
        "a",
        "a and b",
        "a, b and c",
    ]


def command(monkeypatch, *given: object) -> int:
    monkeypatch.setattr(sys, "argv", ["steergauge", "paper-tables", *map(str, given)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_the_verb_prints_the_tables_and_the_page(printed, monkeypatch, capsys):
    monkeypatch.setattr(cli.out, "width", 100)
    assert command(monkeypatch) == 0
    text = capsys.readouterr().out
    assert words(text) == words(on_terminal(sections(printed), 100))
    assert command(monkeypatch, "--markdown") == 0
    assert capsys.readouterr().out == markdown(sections(printed))


def test_the_verb_reads_another_folder_and_says_what_is_wrong_with_it(
    tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "tables"
    another_study(folder)
    assert command(monkeypatch, folder) == 0
    assert "[red]a|b_c" in capsys.readouterr().out
    path = folder / "table3.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("0.90", "high"), encoding="utf-8")
    assert command(monkeypatch, folder) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert captured.err.count("╭") == captured.err.count("╰") == 1
    for word in ("InputError", "line 2", "ratio_R", "'high'"):
        assert word in captured.err


def test_the_verb_needs_neither_torch_nor_a_model():
    code = (
        "import sys, contextlib\n"
        "from steergauge.cli import main\n"
        "sys.argv = ['steergauge', 'paper-tables']\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main()\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Table 3" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
