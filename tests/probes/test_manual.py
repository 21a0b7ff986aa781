"""What the manual's page on probes shows can be done as it is shown."""

import doctest
import re
import tomllib
from pathlib import Path

import pytest
from tests.probes.labelled import HIGH, LOW
from tests.probes.stand_in import serving

from steergauge.probes import load_probe
from steergauge.probes.load import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "probes.md"
FILES = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
ON_THE_HUB = re.compile(r'^model = ".*/.*"', re.M)


def test_the_examples_in_python_print_what_they_are_said_to_print():
    blocks = re.findall(
        r"^```python\n(>>>.*?)^```", PAGE.read_text("utf-8"), re.M | re.S
    )
    text = "\n".join(blocks)
    parsed = doctest.DocTestParser().get_doctest(text, {}, "probes.md", None, 0)
    assert len(parsed.examples) > 8
    assert doctest.DocTestRunner().run(parsed).failed == 0


def test_there_is_an_example_of_every_kind_of_file():
    assert {tomllib.loads(file).get("kind", "lexical") for file in FILES} == set(KINDS)


@pytest.mark.parametrize("example", FILES, ids=range(len(FILES)))
def test_every_example_of_a_file_is_accepted(manners, inference, tmp_path, example):
    # Only what is not on this machine is replaced: models, addresses and texts.
    poles = {"polite": "formal", "rude": "informal"}
    for word, ours in poles.items() if "zero-shot" in example else ():
        example = example.replace(f'"{word}"', f'"{ours}"')
    model = inference if "zero-shot" in example else manners
    with serving() as server:
        content = ON_THE_HUB.sub(f'model = "{model}"', example)
        content = re.sub('^base_url = ".*"', "", content, flags=re.M)
        if 'kind = "judge"' in content:
            content = f'base_url = "{server.url}"\n{content}'
        content = content.replace("from 1 (not at all) to 5", "from 0 to 100")
        content = content.replace("scale = [1, 5]", "scale = [0, 100]")
        file = tmp_path / "probe.toml"
        file.write_text(content, encoding="utf-8")
        happy = "happiness" in example
        high = [f"Therefore she smiled. {text}" for text in HIGH] if happy else HIGH
        low = [f"He cried. {text}" for text in LOW] if happy else LOW
        if "published" in example:
            high, low = [f"Shall {i}" for i in range(10)], ["Yeah."] * 10
        probe = load_probe(str(file), (high, low))
    assert probe.auc >= 0.8
    assert probe.name == tomllib.loads(example)["name"]
