"""The paper's page is well formed, whole, and one for a folder of runs."""

import html
import itertools
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.report.papers import PAPER, PAPER_NOTHING, PAPERS
from tests.report.stores import STRONG, write_store
from tests.report.trees import (
    LOADING,
    contrast,
    plain_text,
    table,
    tables,
    tree,
)

from steergauge.errors import StoreError
from steergauge.report import write_report
from steergauge.report.grid import UNKNOWN, Cell, Column, Grid, Row, pruned


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for name, scenario in PAPERS.items():
        folders[name] = tmp_path_factory.mktemp("one") / "run"
        write_store(folders[name], scenario)
        write_report(folders[name])
    return folders


@pytest.fixture(scope="module")
def pages(runs) -> dict[str, str]:
    return {
        name: (folder / "paper.html").read_text(encoding="utf-8")
        for name, folder in runs.items()
    }


@pytest.fixture(scope="module")
def joint(tmp_path_factory) -> Path:
    """Three traits, of which one was not finished; another folder; a file."""
    top = tmp_path_factory.mktemp("several")
    small = replace(PAPER, num_prompts=6)
    write_store(top / "a humor", replace(small, trait="humor"))
    write_store(top / "formality", small)
    write_store(top / "unfinished <i>", small)
    (top / "unfinished <i>" / "findings.json").unlink()
    (top / "notes").mkdir()
    (top / "notes.txt").write_text("not a run")
    assert write_report(str(top)) == top / "paper.html"
    return top


@pytest.mark.parametrize("name", PAPERS)
def test_nothing_on_the_page_is_empty_or_a_python_word(pages, name) -> None:
    page = pages[name]
    text = plain_text(tree(page))
    assert not re.search(r"\b(None|nan|inf|True|False|StrEnum)\b|\{\{|\[\]", text)
    for caption, rows in tables(page).items():
        cells = [cell for row in rows for cell in row[1:]]
        assert caption
        assert any(re.search(r"\w", cell) for cell in cells), caption
    for piece in page.split('<div class="piece">')[1:]:
        assert re.search("<table|<figure", piece.partition('<div class="piece">')[0])
    for item in re.findall(r"<(?:li|p|h\d|dd)\b[^>]*>(.*?)</(?:li|p|h\d|dd)>", page):
        assert re.sub("<.*?>", "", item).strip()


def test_what_was_not_run_is_left_out_and_named(pages) -> None:
    ids = {
        name: set(re.findall(r'<section id="([\w-]+)"', page))
        for name, page in pages.items()
    }
    every = {"verdicts", "table-1", "figure-2", "figure-3", "table-2", "table-3",
             "steerability", "glossary"}  # fmt: skip
    assert ids["paper"] == every
    assert ids["paper sparse"] == every - {"figure-3", "table-3", "steerability"}
    assert ids["paper unscored"] == {"verdicts", "table-1", "table-3", "glossary"}
    assert "Notes on what was run" not in pages["paper"]
    missing = pages["paper unscored"].partition("Notes on what was run")[2]
    for title in ("Figure 2", "Figure 3", "Table 2", "Prompt by prompt"):
        assert title in missing


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_page_is_well_formed_and_loads_nothing(pages, name) -> None:
    parsed = tree(pages[name])
    names = [tag for tag, _ in parsed.tags]
    assert names.count("h1") == names.count("main") == 1
    levels = [int(tag[1]) for tag in names if re.fullmatch("h[1-6]", tag)]
    assert max(after - before for before, after in itertools.pairwise(levels)) == 1
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    inside = {f"#{one}" for one in ids}
    for tag, attrs in parsed.tags:
        assert tag not in {"script", "img", "iframe", "object", "embed", "link"}
        assert not any(key.startswith("on") for key in attrs)
        for key in LOADING & set(attrs):
            assert tag == "a"
            assert attrs[key] in {"report.html", *inside}
    assert "default-src 'none'" in pages[name]


def test_hostile_names_are_shown_as_they_are_and_are_no_markup(pages) -> None:
    page = pages["paper hostile"]
    for trace in ("<script", "<b>"):
        assert trace not in page
    text = "".join(tree(page).text)
    for name in (
        "<script>trait</script> alpha's v_perp",
        '"><script>model</script>',
        "<b>env</b>-1's",
    ):
        assert name in text


def test_a_folder_of_runs_has_one_page_and_every_run_its_own(joint) -> None:
    page = (joint / "paper.html").read_text(encoding="utf-8")
    text = plain_text(tree(page))
    for name in ("formality", "a humor"):
        for file in ("report.html", "card.md", "paper.html"):
            assert (joint / name / file).is_file()
    links = set(re.findall(r'href="([^"#]+)"', page))
    assert links == {"formality/report.html", "a%20humor/report.html"}
    assert "Missing: unfinished <i>." in text
    assert "<i>" not in page.replace('<i aria-hidden="true">', "")
    assert not (joint / "unfinished <i>" / "report.html").exists()
    assert "notes" not in text
    heads = table(page, "Verdicts")[0]
    assert [head.split()[0] for head in heads[1:]] == ["formality", "humor"]
    rows = table(page, "Table 1, as published")[2:]
    assert [row[0].split()[0] for row in rows if row[1] == "n = 7"] == [
        *["formality"] * 2,
        *["humor"] * 2,
    ]


def test_runs_of_one_trait_and_model_are_told_apart_by_their_folders(tmp_path) -> None:
    for seed in (0, 1):
        scenario = replace(PAPER_NOTHING, num_prompts=4, seed=seed)
        write_store(tmp_path / f"seed{seed}", scenario)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    heads = table(page, "Verdicts")[0]
    assert [head.split()[-1] for head in heads[1:]] == ["seed0", "seed1"]


def test_runs_without_the_papers_experiments_are_joined_too(tmp_path) -> None:
    write_store(tmp_path / "run", replace(STRONG, num_prompts=4))
    path = write_report(tmp_path)
    assert path == tmp_path / "paper.html"
    assert not (tmp_path / "run" / "paper.html").exists()
    assert "Scores and lifts" in path.read_text(encoding="utf-8")


def test_a_folder_without_a_finished_run_is_refused(tmp_path) -> None:
    with pytest.raises(StoreError, match="no finished run"):
        write_report(tmp_path)
    with pytest.raises(StoreError, match="no finished run"):
        write_report(tmp_path / "nowhere")
    store = write_store(tmp_path / "begun", replace(STRONG, num_prompts=4))
    (store.folder / "findings.json").unlink()
    with pytest.raises(StoreError, match="begun holds no finished run"):
        write_report(tmp_path)
    assert not (tmp_path / "paper.html").exists()


def test_the_papers_page_is_made_again_without_torch_byte_by_byte(joint) -> None:
    files = sorted(joint.rglob("*.html"))
    before = {file: file.read_bytes() for file in files}
    assert len(before) == 5
    program = f"""
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "tokenizers"):
            raise ImportError(name)
sys.meta_path.insert(0, Refused())
import steergauge
print(steergauge.write_report({str(joint)!r}))
"""
    for file in files:
        file.unlink()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(joint / "paper.html")
    assert {file: file.read_bytes() for file in files} == before


def test_a_table_loses_what_holds_nothing_and_nothing_else() -> None:
    rows = (
        Row("a", "", (Cell("1"), UNKNOWN, Cell("2"))),
        Row("b", "", (UNKNOWN, UNKNOWN, UNKNOWN)),
        Row("c", "", (UNKNOWN, UNKNOWN, Cell("3"))),
    )
    columns = (Column("x"), Column("y"), Column("z"))
    grid = Grid("caption", "", "row", columns, (("one", rows[:2]), ("two", rows[2:])))
    kept = pruned(grid)
    assert kept is not None
    assert [column.head for column in kept.columns] == ["x", "z"]
    assert [row.label for row in kept.rows] == ["a", "c"]
    assert [row.cells for row in kept.rows] == [
        (Cell("1"), Cell("2")),
        (UNKNOWN, Cell("3")),
    ]
    assert pruned(replace(grid, bodies=(("", rows[1:2]),))) is None


def test_numbers_can_be_read_on_the_darkest_ground_of_the_matrix(pages) -> None:
    css = html.unescape(pages["paper"].partition("<style>")[2].partition("</style>")[0])
    mixed = re.findall(r"\.heat-\d \{ background: color-mix\(.*? (\d+)%", css)
    assert len(mixed) == 5
    share = max(int(one) for one in mixed) / 100
    for block in re.findall(r":root \{(.*?--low-tint[^}]*)\}", css, re.S):
        colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        parts = [
            [int(colour[name][k : k + 2], 16) for k in (1, 3, 5)]
            for name in ("own", "surface")
        ]
        ground = "#" + "".join(
            f"{round(share * own + (1 - share) * under):02x}"
            for own, under in zip(*parts, strict=True)
        )
        assert contrast(colour["ink"], ground) >= 4.5
