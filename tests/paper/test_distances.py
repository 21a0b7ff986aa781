"""The page of published distances says what a plain computation of its file says."""

import csv
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from steergauge.errors import InputError, NoSuchFile
from steergauge.paper.distances import main, markdown
from steergauge.paper.nearest_token import sections
from steergauge.paper.stored import (
    COLUMNS,
    original_share,
    read_distances,
    significant_bits,
)

ROOT = Path(__file__).parents[2]
STORED = ROOT / "../shared/data/invertsteer/nearest_token_distances.csv"
PAGE = ROOT / "docs" / "published-distances.md"
LATER = 4
"""Positions of a prompt of the made file after its first."""


@pytest.fixture(scope="module")
def runs():
    if not STORED.is_file():
        pytest.skip("the stored distances of arXiv 2604.09839 are not beside this tree")
    return read_distances(STORED)


def made(**changes: object) -> list[dict[str, object]]:
    """A file of one run of 4 prompts with known answers, as its lines.

    A later state has its token at 0.1 and the next at 4. The step is 3 long and at
    right angles: the token is then at 3, the next at sqrt(3^2 + 4^2) = 5.
    """
    lines = []
    for prompt in range(4):
        for position in range(1 + LATER):
            far = 5 if position == 0 else 1
            for arm, d1, d2 in (("natural", 0.1 * far, 4 * far), ("steered", 3, 5)):
                values = ("model", "trait", 2, 8, prompt, position, arm, 1, d1, d2, 3)
                line = dict(zip(COLUMNS, (*values, 1800), strict=True))
                lines.append({**line, **changes})
    return lines


def written(path: Path, lines: list[dict[str, object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    return path


def table(title: str, of) -> dict[tuple[str, ...], list[str]]:
    """A table's cells by its first columns, which are words."""
    (section,) = [s for s in sections(of) if s.title == title]
    num = 3 if "place" in section.columns else 2
    return {row[:num]: list(row[num:]) for row in section.rows}


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_page_of_the_manual_is_the_one_that_the_file_gives(runs):
    assert PAGE.read_text(encoding="utf-8") == markdown(runs)


def by_hand() -> dict[tuple[str, str], dict[str, dict[tuple[int, int], list[float]]]]:
    """Run, arm, (prompt, position) to numbers, read without the code under test."""
    found: dict = {}
    with STORED.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    at = {name: i for i, name in enumerate(head)}
    for row in rows:
        run = found.setdefault((row[at["model"]], row[at["steering"]]), {})
        place = int(row[at["prompt"]]), int(row[at["position"]])
        run.setdefault(row[at["arm"]], {})[place] = [
            float(row[at[name]])
            for name in ("nearest_is_original", "d1", "d2",
                         "mean_displacement_per_token", "seconds_for_prompt")
        ]  # fmt: skip
    return found


def test_the_tables_agree_with_a_computation_by_hand_to_their_digits(runs):
    for name, arms in by_hand().items():
        assert [*arms["natural"]] == [*arms["steered"]]
        places = [*arms["natural"]]
        natural, steered = (np.array([*arms[arm].values()]) for arm in arms)
        hit, d1, d2, step, _ = natural.T
        cells = table("Natural states", runs)[name]
        share, middle, *rest = cells
        assert share.split()[0] == f"{100 * hit.sum() / len(hit):.1f}"
        low, median, high = np.percentile(d1, [5, 50, 95])
        assert middle == f"{median:.3f} [{low:.2f}, {high:.2f}]"
        ratio = sorted(d1 / d2)
        top = [np.percentile(ratio, 50), np.percentile(ratio, 95), ratio[-1]]
        assert rest[:3] == [f"{value:.3f}" for value in top]
        small = [sum(r < 0.1 for r in ratio), sum(d < 1e-5 for d in d1)]
        assert rest[3:] == [f"{100 * num / len(d1):.1f}" for num in small]

        share, middle, *rest = table("Steered states", runs)[name]
        s_hit, s_d1, s_d2, _, _ = steered.T
        assert share.split()[0] == f"{100 * s_hit.sum() / len(s_hit):.1f}"
        assert middle.split()[0] == f"{np.median(s_d1):.3f}"
        right = np.median([s / math.sqrt(s**2 + n**2) for s, n in natural[:, [3, 2]]])
        margin = s_d1 / s_d2
        numbers = [np.median(margin), margin.min(), right]
        assert rest[:3] == [f"{value:.3f}" for value in numbers]
        low, median, high = np.percentile(s_d1 / step, [5, 50, 95])
        assert rest[3] == f"{median:.3f} [{low:.2f}, {high:.2f}]"
        check_tolerances(runs, name, places, natural, steered)


def check_tolerances(runs, name, places, natural, steered) -> None:
    for place, wanted in (("first", True), ("later", False)):
        counts = np.zeros(3)
        limits = []
        here = [i for i, (_, t) in enumerate(places) if (t == 0) is wanted]
        for i in here:
            others = [natural[k, 1] for k in here if places[k][0] != places[i][0]]
            limits.append(5 * np.percentile(others, 99))
            counts += [
                2 * limits[-1] < natural[i, 2],
                natural[i, 1] <= limits[-1],
                steered[i, 1] <= limits[-1],
            ]
        tolerance, *shares = table("A calibrated tolerance", runs)[(*name, place)]
        ends = dict.fromkeys((f"{min(limits):.2f}", f"{max(limits):.2f}"))
        assert tolerance == " to ".join(ends)
        assert shares == [f"{100 * count / len(here):.1f}" for count in counts]


def test_the_numbers_are_those_that_were_found_when_the_file_was_made(runs):
    known = {
        ("Llama-3.2-1B-Instruct", "refusal"): (
            ["0.066", "0.029", "0.076", "0.112", "99.5"],
            ["95.5", "0.729", "0.104", "0.951 [0.80, 1.49]"],
        ),
        ("Llama-3.2-1B-Instruct", "persona"): (
            ["0.065", "0.029", "0.086", "0.088", "100.0"],
            ["100.0", "0.777", "0.084", "0.988 [0.90, 1.26]"],
        ),
        ("Qwen2.5-0.5B-Instruct", "refusal"): (
            ["0.404", "0.044", "0.106", "0.287", "93.0"],
            ["91.5", "0.791", "0.430", "0.995 [0.91, 1.10]"],
        ),
        ("Qwen2.5-0.5B-Instruct", "persona"): (
            ["0.245", "0.041", "0.082", "0.728", "95.0"],
            ["100.0", "0.629", "0.383", "1.017 [0.88, 1.30]"],
        ),
    }
    natural = table("Natural states", runs)
    steered = table("Steered states", runs)
    assert {*natural} == {*known}
    for name, (first, second) in known.items():
        share, d1, *rest = natural[name]
        assert share == "100.0 [100.0, 100.0]"
        assert [d1.split()[0], *rest[:4]] == first
        share, _, margin, least, _, eta, _ = steered[name]
        assert [share.split()[0], margin, least, eta] == second


def test_sentences_have_the_numbers_of_the_file(runs):
    said = words(markdown(runs)).replace("\\_", "_")
    for fact in (
        "prompt's own at 842 of 842 natural positions",
        "by 26 % (95 %, one-sided)",
        "refuses 842 of 842 natural positions",
        "misses 0.0 to 7.0 % of natural positions and accepts 1 of the steered ones",
        "is 8.5 to 23.2 times its furthest natural one",
        "The median eta is 0.951 to 1.017 by run, and at 91.5 to 100.0 % of positions",
        "the two differ by at most 0.025 in a run",
        "at most 8 significant bits",
        "longer than the step in 3 of 4 runs",
    ):
        assert fact in said, fact


def test_a_made_file_has_its_known_answers(tmp_path):
    (run,) = found = read_distances(written(tmp_path / "made.csv", made()))
    assert (run.model, run.steering, run.coefficient, run.layer) == (
        "model", "trait", 2.0, 8,
    )  # fmt: skip
    name = ("model", "trait")
    assert table("What is stored", found)[name] == [
        "2", "8", "4", "20", "3.00", "2.0", "2.0",
    ]  # fmt: skip
    assert table("Natural states", found)[name] == [
        "100.0 [100.0, 100.0]", "0.100 [0.10, 0.50]", "0.025", "0.025", "0.025",
        "100.0", "0.0",
    ]  # fmt: skip
    share, d1, margin, least, right, eta, accepted = table("Steered states", found)[
        name
    ]
    assert (share, d1) == ("100.0 [100.0, 100.0]", "3.000 [3.00, 3.00]")
    # Pythagoras: 3, 4 and 5.
    assert (margin, least, right) == ("0.600", "0.600", "0.600")
    assert (eta, accepted) == ("1.000 [1.00, 1.00]", "0.0")
    accepted = table("A calibrated tolerance", found)
    assert accepted[*name, "later"] == ["0.50", "100.0", "100.0", "0.0"]
    # 5 times 0.5 is 2.5, which is less than the step of 3.
    assert accepted[*name, "first"] == ["2.50", "100.0", "100.0", "0.0"]
    assert "longer than the step in 0 of 1 runs" in words(markdown(found))


def test_a_tolerance_is_judged_on_prompts_that_it_was_not_made_from(tmp_path):
    lines = made()
    for line in lines:
        if (line["prompt"], line["arm"]) == (0, "natural") and line["position"]:
            line["d1"] = 1.0
    (run,) = found = read_distances(written(tmp_path / "made.csv", lines))
    later = ~run.first
    own = run.natural.prompt == 0
    assert run.tolerances[own & later] == pytest.approx(0.5)
    # The other prompts' is wide enough for the furthest state, which is prompt 0's.
    assert run.tolerances[~own & later] == pytest.approx(5.0)
    limit, resolved, natural, steered = table("A calibrated tolerance", found)[
        "model", "trait", "later"
    ]
    # Only prompt 0 has a narrow tolerance, and refuses its own states; the others',
    # 5, takes steered states too, and is not below half of d2.
    assert (limit, resolved) == ("0.50 to 5.00", "25.0")
    assert (natural, steered) == ("75.0", "75.0")


def test_a_natural_state_that_is_missed_is_said_and_takes_the_power_away(tmp_path):
    lines = made()
    lines[2]["nearest_is_original"] = 0
    said = words(markdown(read_distances(written(tmp_path / "made.csv", lines))))
    assert "own at 19 of 20 natural positions" in said
    assert "misses a state that a prompt has" in said
    assert 'answer "reached"' not in said


def test_positions_under_another_prefix_are_counted(tmp_path):
    lines = made()
    for line in lines:
        missed = (line["prompt"], line["position"]) in ((0, 1), (0, 3), (2, LATER))
        if line["arm"] == "steered" and missed:
            line["nearest_is_original"] = 0
    said = words(markdown(read_distances(written(tmp_path / "made.csv", lines))))
    # After the first miss of prompt 0 at 1, positions 2 to 4; none after the last.
    assert "At 3 of 20 steered positions" in said


def test_the_interval_is_over_prompts_not_positions(tmp_path):
    bunched, spread = made(), made()
    for lines, chosen in (
        (bunched, [(0, t) for t in range(1 + LATER)]),
        (spread, [(p, 0) for p in range(4)] + [(0, 1)]),
    ):
        for line in lines:
            place = (line["prompt"], line["position"])
            if line["arm"] == "steered" and place in chosen:
                line["nearest_is_original"] = 0
    shares = [
        original_share(read_distances(written(tmp_path / "made.csv", lines))[0].steered)
        for lines in (bunched, spread)
    ]
    assert [share.value for share in shares] == [0.75, 0.75]
    wide, narrow = (share.high - share.low for share in shares)
    assert wide > 2 * narrow > 0
    assert all(0 <= share.low < 0.75 < share.high <= 1 for share in shares)


def test_a_random_step_has_the_margin_of_right_angles_and_a_swap_has_not():
    rng = np.random.default_rng(0)
    d_model, num_tokens, origin = 2000, 300, 7
    states = rng.normal(size=(num_tokens, d_model))
    step = rng.normal(size=d_model)
    for scale in (0.2, 0.7, 1.5):
        away = scale * step

        def margin(target: np.ndarray) -> tuple[int, float, float]:
            distances = np.linalg.norm(states - target, axis=1)
            nearest, second = np.sort(distances)[:2]
            return int(distances.argmin()), nearest, nearest / second

        _, _, natural = margin(states[origin])
        assert natural == 0
        n = np.sort(np.linalg.norm(states - states[origin], axis=1))[1]
        token, eta, seen = margin(states[origin] + away)
        length = np.linalg.norm(away)
        assert (token, eta) == (origin, pytest.approx(length))
        # Cosines of random directions are within 4 / sqrt(2000) = 0.09 of 0.
        assert seen == pytest.approx(length / np.hypot(length, n), abs=0.05)
    # A step of the length of a swap, and along it, ends at another token.
    assert margin(states[origin] + (states[9] - states[origin]))[0] == 9


def test_significant_bits_are_those_of_the_number_formats():
    assert significant_bits(np.array([0.0])) == 0
    assert significant_bits(np.array([1.0, 2.0**-20])) == 1
    assert significant_bits(np.array([1 + 2.0**-7])) == 8
    # No decimal fraction is exact in 53 bits.
    assert significant_bits(np.array([0.1])) > 50


def test_lines_of_the_page_fit_and_none_begins_a_list_by_chance(tmp_path):
    page = markdown(read_distances(written(tmp_path / "made.csv", made())))
    lines = page.splitlines()
    assert len(lines) > 100
    assert all(len(line) <= 88 for line in lines if not line.startswith("|"))
    assert all(line.isascii() and line == line.rstrip() for line in lines)
    assert not [line for line in lines if re.match(r" +([-+*]|\d+\.) ", line)]


def test_names_are_text_whatever_signs_they_have(tmp_path):
    page = markdown(read_distances(written(tmp_path / "a.csv", made(model="[a|b_c"))))
    assert "| \\[a\\|b\\_c | trait |" in page


SPOILT = {
    "a missing column": (("d2", "second"), "lacks the column d2"),
    "no number": (("0.1,4,3", "near,4,3"), "d1 is 'near'"),
    "infinity": (("0.1,4,3", "0.1,inf,3"), "d2 is 'inf'"),
    "a negative distance": (("0.1,4,3", "-0.1,4,3"), "d1 is '-0.1'"),
    "no second token": (("3,5,3", "0,0,3"), "d2 is '0'"),
    "no step": (("0.1,4,3", "0.1,4,0"), "mean_displacement_per_token is '0'"),
    "another order": (("0.1,4,3", "9,4,3"), "d1 is 9.0, d2 4.0"),
    "another arm": (("natural", "unsteered"), "arm is 'unsteered'"),
    "half a truth": ((",1,0.1,", ",0.5,0.1,"), "nearest_is_original is '0.5'"),
    "half a position": ((",0,1,natural", ",0,1.5,natural"), "position is '1.5'"),
    "an empty cell": (("0.1,4,3,1800", "0.1,4,3,"), "fewer cells"),
    "a position twice": ((",0,2,natural", ",0,1,natural"), "which are not the same"),
    "no name": (("model,trait", ",trait"), "model is ''"),
}


@pytest.mark.parametrize("mistake", list(SPOILT))
def test_a_spoilt_file_is_refused_by_its_name_and_column(mistake, tmp_path):
    (good, bad), named = SPOILT[mistake]
    path = written(tmp_path / "made.csv", made())
    text = path.read_text(encoding="utf-8")
    head, body = text.split("\n", 1)
    spoilt = head.replace(good, bad) if "column" in mistake else head
    body = body if "column" in mistake else body.replace(good, bad, 1)
    assert f"{spoilt}\n{body}" != text
    path.write_text(f"{spoilt}\n{body}", encoding="utf-8")
    with pytest.raises(InputError) as raised:
        read_distances(path)
    assert named in str(raised.value)
    assert "made.csv" in str(raised.value)


def test_a_file_that_cannot_be_calibrated_or_read_is_refused(tmp_path):
    path = tmp_path / "made.csv"
    one = [line for line in made() if line["prompt"] == 0]
    unpaired = [line for line in made() if line["arm"] == "natural"]
    for lines, named in ((one, "fewer than 2 prompts"), (unpaired, "0 steered")):
        with pytest.raises(InputError, match=named):
            read_distances(written(path, lines))
    for content, named in ((b"", "it has none"), (b"\xff\xfe\x00", "no CSV file")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=named):
            read_distances(path)
    with pytest.raises(InputError, match="no rows"):
        read_distances(written(path, []))
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(NoSuchFile, match=r"no file .* of distances"):
            read_distances(path)


def test_the_command_writes_the_page_or_says_what_is_wrong(tmp_path, capsys):
    path = written(tmp_path / "made.csv", made())
    page = markdown(read_distances(path))
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == page
    assert main([str(path), str(tmp_path / "out.md")]) == 0
    assert (tmp_path / "out.md").read_text(encoding="utf-8") == page
    assert main([str(tmp_path / "none.csv")]) == 2
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "NoSuchFile: there is no file" in captured.err
    assert "CSV [OUT.md]" in captured.err


def test_the_page_needs_neither_torch_nor_a_model(tmp_path):
    path = written(tmp_path / "made.csv", made())
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['distances', {str(path)!r}]\n"
        "try:\n"
        "    runpy.run_module('steergauge.paper.distances', run_name='__main__')\n"
        "except SystemExit as ended:\n"
        "    print('ended with', ended.code)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# Published distances")
    assert done.stdout.splitlines()[-2:] == ["ended with 0", "[]"]
