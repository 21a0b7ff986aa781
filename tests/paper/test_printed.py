"""The printed numbers are the paper's, and what follows from them follows."""

import csv
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from steergauge.errors import InputError, NoSuchFile
from steergauge.paper.printed import FOLDER, floors, read_tables

SHARED = Path(__file__).parents[2] / "../shared/data/paper-2602.06801"
NAMES = ("table1.csv", "table2.csv", "table3.csv")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the tables that a test may spoil."""
    return Path(shutil.copytree(FOLDER, tmp_path / "tables"))


def columns(name: str) -> dict[str, list[str]]:
    """A table's columns as text, read without the code under test."""
    with (FOLDER / name).open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    return dict(zip(head, zip(*rows, strict=True), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_tables_are_the_printed_ones_byte_for_byte(name):
    if not SHARED.is_dir():
        pytest.skip("the paper's printed numbers are not beside this checkout")
    assert (FOLDER / name).read_bytes() == (SHARED / name).read_bytes()


def test_the_tables_come_with_their_authors_and_licence():
    said = (FOLDER / "README.md").read_text(encoding="utf-8")
    for words in ("Venkatesh", "Kurapath", "2602.06801", "CC BY 4.0", "Changes"):
        assert words in said


def test_every_printed_number_is_read():
    tables = read_tables()
    for name, rows in zip(
        NAMES, (tables.orthogonal.rows, tables.shift.rows, tables.logits.rows),
        strict=True,
    ):  # fmt: skip
        for column, cells in columns(name).items():
            seen = [getattr(row, column) for row in rows]
            kind = type(seen[0])
            assert seen == [kind(cell) for cell in cells]
    assert tables.of_paper


def test_table_1_has_the_means_that_the_text_gives_and_their_floors():
    means = {(m.model[:4], m.seeds): m for m in read_tables().orthogonal.means()}
    assert len(means) == 4
    for model, printed in (("Qwen", 0.080), ("Llam", 0.100)):
        mean = means[model, 10]
        # Rounded to three places, as the text gives it.
        assert round(mean.cohens_d, 3) == printed
        plain, shared = floors(mean.cohens_d)
        assert plain == pytest.approx(4 / (math.pi * mean.cohens_d**2))
        assert shared == pytest.approx(plain / 2)
    assert [round(floors(means[m, 10].cohens_d)[0]) for m in ("Qwen", "Llam")] == [
        201,
        127,
    ]


def test_the_spread_of_table_1_is_that_of_noise():
    table = read_tables().orthogonal
    rows = table.at(table.most_seeds)
    assert table.most_seeds == 10
    assert [round(row.spread, 3) for row in rows] == [
        0.773,
        0.75,
        0.847,
        0.708,
        0.506,
        1.0,
    ]
    assert np.mean([row.spread for row in rows]) == pytest.approx(0.764, abs=5e-4)


def test_an_idle_v_perp_explains_the_perp_only_effect_by_a_small_lift_of_v():
    rows = read_tables().orthogonal.rows
    for row in rows:
        # Scores of a world in which v_perp does nothing and v adds that much.
        unsteered = 0.6
        v = unsteered * (1 + row.idle_lift_percent / 100)
        assert 100 * unsteered / v == pytest.approx(row.perp_only_percent)
    lifts = [row.idle_lift_percent for row in rows]
    assert (min(lifts), max(lifts)) == pytest.approx((-1.48, 4.60), abs=5e-3)


def test_table_2_has_another_mean_and_another_count_than_the_text():
    table = read_tables().shift
    cells = table.cells()
    assert len(cells) == 24
    assert table.mean == pytest.approx(0.3725)
    assert (table.num_below(0.5), table.num_below(0.2), min(cells)) == (17, 0, 0.21)
    # 88 % of 24 are 21, which lie below 0.53.
    assert round(100 * table.num_below(0.53) / 24) == 88


def test_table_2_is_above_table_1_where_nothing_is_shifted():
    tables = read_tables()
    usual = tables.shift.cells("in_distribution")
    rows = [row.cohens_d for row in tables.orthogonal.rows]
    assert (min(usual), max(usual)) == (0.22, 0.44)
    assert (min(rows), max(rows)) == (0.052, 0.159)
    ten = [row.cohens_d for row in tables.orthogonal.at(10)]
    expected = (np.mean(usual) / np.mean(ten)) ** 2
    assert tables.scores_ratio() == pytest.approx(expected)
    assert round(expected) == 14


def test_the_growth_by_a_shift_is_no_larger_than_its_error():
    cells = columns("table2.csv")
    usual = np.array(cells["in_distribution"], dtype=float)
    shifted = np.concatenate(
        [
            np.array(cells[n], dtype=float)
            for n in ("topic_shift", "genre_shift", "safety_style")
        ]
    )
    error = math.sqrt(usual.var(ddof=1) / 6 + shifted.var(ddof=1) / 18)
    expected = (shifted.mean() - usual.mean(), error)
    assert read_tables().shift.growth() == pytest.approx(expected)
    assert 0 < expected[0] < error


def test_table_3_implies_a_gain_below_1_in_half_of_its_rows():
    gains = {
        (row.model[:4], row.trait): round(row.gain, 2)
        for row in read_tables().logits.rows
    }
    assert gains == {
        ("Qwen", "humor"): 0.23,
        ("Qwen", "formality"): 0.73,
        ("Qwen", "politeness"): 0.78,
        ("Llam", "humor"): 1.44,
        ("Llam", "formality"): 3.16,
        ("Llam", "politeness"): 1.37,
    }
    for row in read_tables().logits.rows:
        assert row.reach**2 == pytest.approx(row.gain)


def test_tables_of_another_study_are_read_and_are_not_the_papers(folder):
    path = folder / "table3.csv"
    assert read_tables(folder).of_paper
    # As a spreadsheet writes it: a byte-order mark, a column more, spaces.
    lines = path.read_text(encoding="utf-8").splitlines()
    lines = [f"{line}, {'note' if i == 0 else i}" for i, line in enumerate(lines)]
    lines[1] = lines[1].replace("0.90", " 1.25")
    path.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    tables = read_tables(folder)
    assert not tables.of_paper
    row = tables.logits.rows[0]
    assert (row.model, row.ratio_R) == ("Qwen2.5-3B-Instruct", 1.25)
    # R above 1 is no gain of a linear map.
    assert row.gain < 0
    assert math.isnan(row.reach)


def test_a_study_of_one_row_without_any_difference_has_no_finite_floor(folder):
    for name in NAMES:
        path = folder / name
        head, first, *_ = path.read_text(encoding="utf-8").splitlines()
        path.write_text(f"{head}\n{first}\n", encoding="utf-8")
    path = folder / "table1.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("0.144,0.095", "0,0"), encoding="utf-8")
    tables = read_tables(folder)
    (row,) = tables.orthogonal.rows
    assert math.isnan(row.spread)
    assert floors(row.cohens_d) == (math.inf, math.inf)
    assert math.isnan(tables.scores_ratio())
    assert math.isnan(tables.shift.growth()[1])


SPOILT = {
    "a missing column": (
        "table1.csv",
        "correlation_sd",
        "reliability",
        "correlation_sd",
    ),
    "no number": ("table1.csv", "0.144", "n/a", "line 2"),
    "no whole number": ("table1.csv", ",5,0.112", ",5.5,0.112", "line 4"),
    "a cell too few": ("table3.csv", ",0.90,81,86", ",0.90,81", "fewer cells"),
    "an empty cell": ("table2.csv", "0.52,0.41", "0.52,", "safety_style is ''"),
    "infinity": ("table2.csv", "0.44", "inf", "in_distribution is 'inf'"),
    "a negative effect": ("table2.csv", "0.63", "-0.63", "-0.63"),
    "a correlation above 1": ("table1.csv", "0.414", "41.4", "from -1 to 1"),
    "a ratio of 0": ("table3.csv", "0.49", "0.00", "a number above 0"),
    "no name": ("table3.csv", ",humor,0.64", ",,0.64", "a name"),
}


@pytest.mark.parametrize("mistake", list(SPOILT))
def test_a_spoilt_table_is_refused_by_file_line_and_column(mistake, folder):
    name, good, bad, named = SPOILT[mistake]
    path = folder / name
    text = path.read_text(encoding="utf-8")
    assert text.count(good) == 1
    path.write_text(text.replace(good, bad), encoding="utf-8")
    with pytest.raises(InputError) as raised:
        read_tables(folder)
    assert named in str(raised.value)
    assert name in str(raised.value)


def test_a_file_that_is_no_table_is_refused(folder):
    path = folder / "table2.csv"
    head = path.read_text(encoding="utf-8").splitlines()[0]
    for content, named in [
        (b"", "it has none"),
        (head.encode(), "no rows"),
        (b"\xff\xfe\x00", "no CSV file"),
        (head.encode() + b'\n"a" b,c,1,1,1,1', "no CSV file"),
    ]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=named):
            read_tables(folder)


def test_a_table_or_folder_that_is_not_there_is_named(folder):
    (folder / "table3.csv").unlink()
    with pytest.raises(NoSuchFile, match=r"table3\.csv does not exist"):
        read_tables(folder)
    for path in (folder / "none", folder / "table1.csv"):
        with pytest.raises(NoSuchFile, match="no folder"):
            read_tables(path)
