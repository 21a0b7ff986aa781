"""What a probe file says is what the probe is, or it is refused by name."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.probes.labelled import HIGH, LOW, VALIDATION, WORDS
from tests.probes.stand_in import serving

from steergauge.errors import BadProbe, NoSuchFile
from steergauge.probes import load_probe, probe_from
from steergauge.probes.load import KINDS
from steergauge.prompts import read_labelled

TOML = """
name = "manners"
high = ["sir"]
low = ["yo"]
"""


def from_file(path: Path, content: str, *, function: str = "") -> str:
    path.write_text(content, encoding="utf-8")
    return f"{path}:{function}" if function else str(path)


def test_a_function_of_a_python_file_is_a_probe(tmp_path):
    source = (
        "def manners(texts):\n    return [1.0 if 'Sir' in t else .25 for t in texts]"
    )
    where = from_file(tmp_path / "mine.py", source, function="manners")
    probe = load_probe(where, (HIGH, LOW))
    assert (probe.name, probe.auc, probe.words) == ("manners", 1.0, ((), ()))
    assert probe(["Sir", "Yo"]).tolist() == [1.0, 0.25]


@pytest.mark.parametrize(
    ("source", "function"),
    [
        ("def f(texts):\n    return [0.5 for t in texts]", "g"),
        ("def f(texts:\n", "f"),
        ("import a_module_that_is_nowhere", "f"),
        ("1 / 0", "f"),
        ("f = 3", "f"),
        ("def f(texts):\n    return 1 / 0", "f"),
        ("def f(texts):\n    return [t for t in texts]", "f"),
        ("def f():\n    return []", "f"),
    ],
    ids=[
        "no such name",
        "syntax error",
        "import error",
        "fails on import",
        "no function",
        "fails when called",
        "texts, not numbers",
        "takes no texts",
    ],
)
def test_a_function_that_cannot_be_used_is_a_bad_probe(tmp_path, source, function):
    where = from_file(tmp_path / "mine.py", source, function=function)
    with pytest.raises(BadProbe, match=r"mine\.py"):
        load_probe(where, (HIGH, LOW))


def test_a_python_file_without_a_function_name_is_a_bad_probe(tmp_path):
    where = from_file(tmp_path / "mine.py", "def f(texts):\n    return []")
    with pytest.raises(BadProbe):
        load_probe(where, (HIGH, LOW))


def test_a_function_without_labelled_texts_is_refused(tmp_path):
    source = "def f(texts):\n    return [0.5 for t in texts]"
    where = from_file(tmp_path / "mine.py", source, function="f")
    with pytest.raises(BadProbe, match="at least 10"):
        load_probe(where)


@pytest.mark.parametrize("name", ["none.toml", "none.py:f", "none"])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(NoSuchFile, match="none"):
        load_probe(str(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("high = [", "TOML"),
        ("", "`high`"),
        ('high = ["sir"]', "`low`"),
        ('high = ["sir"]\nlow = "yo"', "`low`"),
        ('high = ["sir"]\nlow = [1, 2]', "`low`"),
        ('high = []\nlow = ["yo"]', "`high`"),
        ('high = ["sir", ""]\nlow = ["yo"]', "`high`"),
        ('high = ["sir"]\nlow = ["  "]', "`low`"),
        ('high = ["sir"]\nlow = ["yo"]', "at least 10"),
        ('high = ["sir"]\nlow = ["yo"]\nvalidation = ["a"]', "`validation`"),
        ('high = ["sir"]\nlow = ["yo"]\n[validation]\nhigh = 3', "`high`"),
    ],
    ids=[
        "not TOML",
        "empty",
        "no low words",
        "a text, not a list",
        "numbers",
        "no words",
        "an empty word",
        "a blank word",
        "no validation",
        "validation is a list",
        "validation is a number",
    ],
)
def test_a_malformed_word_file_is_a_bad_probe_and_says_where(
    tmp_path, content, message
):
    with pytest.raises(BadProbe, match=message):
        load_probe(from_file(tmp_path / "words.toml", content))


def test_a_word_file_that_is_not_text_is_a_bad_probe(tmp_path):
    path = tmp_path / "words.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadProbe, match="TOML"):
        load_probe(str(path))


def test_labelled_texts_of_a_file_replace_those_of_the_word_file(tmp_path):
    rows = [f'{{"text": "{text}", "label": 1}}' for text in HIGH]
    rows += [f'{{"text": "{text}", "label": 0}}' for text in LOW]
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("\n".join(rows), encoding="utf-8")
    path = from_file(tmp_path / "words.toml", TOML)
    probe = load_probe(path, read_labelled(labelled))
    assert (probe.name, probe.auc, probe.num_labelled) == ("manners", 1.0, 23)


def test_a_probe_file_without_a_name_is_called_after_the_file(tmp_path):
    content = TOML.replace('name = "manners"', "")
    path = from_file(tmp_path / "politesse.toml", content)
    assert load_probe(path, (HIGH, LOW)).name == "politesse"


def test_a_table_is_the_kind_of_probe_that_it_says(manners, inference, tmp_path):
    poles = {"validation": VALIDATION, "high": "formal"}
    labels = {"labels": ["formal", "informal"]}
    with serving() as server:
        judge = {"model": "j", "base_url": server.url, "low": "casual"}
        tables = {
            "lexical": WORDS,
            "classifier": poles | {"model": str(manners)},
            "zero-shot": poles | labels | {"model": str(inference)},
            "judge": poles | judge,
        }
        assert set(tables) == set(KINDS)
        for kind, table in tables.items():
            probe = probe_from("manners", {"kind": kind, **table}, folder=tmp_path)
            assert probe.kind == kind
            assert min(probe(HIGH)) > 0.6 > 0.4 > max(probe(LOW))
            assert all(type(value) is str for value in probe.record.values())
    assert probe_from("manners", WORDS, folder=tmp_path).kind == "lexical"


def test_a_judge_in_a_table_keeps_its_scores_in_the_folder(tmp_path):
    table = {"kind": "judge", "model": "j", "high": "formal", "low": "casual"}
    with serving() as server:
        table |= {"base_url": server.url, "validation": VALIDATION}
        probe_from("tone / manners", table, folder=tmp_path / "new")
    (cache,) = (tmp_path / "new").iterdir()
    assert cache.name == "tone---manners.cache.jsonl"


@pytest.mark.parametrize("kind", ["judges", "Lexical", "", 3, ["lexical"]])
def test_a_kind_that_there_is_not_is_refused(tmp_path, kind):
    with pytest.raises(BadProbe, match="lexical, classifier, zero-shot, judge"):
        probe_from("manners", WORDS | {"kind": kind}, folder=tmp_path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('hihg = ["sir"]\n', "`hihg`"),
        ('model = "m"\n', "`model`"),
        ('[validation]\nhigh = ["a"]\nlow = ["b"]\nlength_term = "longer"', "term`"),
    ],
    ids=["misspelt", "of another kind", "after [validation]"],
)
def test_an_entry_that_a_word_file_does_not_have_is_named(tmp_path, content, named):
    path = from_file(tmp_path / "words.toml", TOML + content)
    with pytest.raises(BadProbe, match=named):
        load_probe(path, None if "[validation]" in content else (HIGH, LOW))


def test_nothing_heavy_is_imported_before_a_probe_needs_it(manners):
    code = (
        "import sys\n"
        "from steergauge.probes import load_probe, probe_from, lexical_probe\n"
        f"lexical_probe('manners', {WORDS!r})\n"
        "heavy = ('torch', 'transformers', 'openai')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "from pathlib import Path\n"
        f"table = {{'kind': 'classifier', 'model': {str(manners)!r}}}\n"
        f"table |= {{'high': 'formal', 'validation': {VALIDATION!r}}}\n"
        "probe_from('manners', table, folder=Path())\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert lines == ["[]", "['torch', 'transformers']"], done.stderr
