"""The yardsticks of extraction and steering do ours' work, and say what they do."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from tests.models import tiny

from steergauge.intervention import Scope
from steergauge.prompts import ContrastPair, Text

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = ("extraction", "geometry", "peer", "random_llamas", "reachability", "steering")
LIBRARIES = ("steering_vectors", "repeng", "pyvene", "nnterp", "nnsight")
FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2"])

PROMPTS = ("the cat sat on the mat", "home", "there is one more of these things")
"""Of different lengths, so that a batch of them is padded."""


@pytest.fixture(scope="module")
def scripts():
    """The scripts as modules, found beside each other as when one of them is run."""
    known = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in NAMES}
    sys.path.remove(str(BENCHMARKS))
    for name in set(sys.modules) - known:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def work_of(scripts, tmp_path):
    """A model that never ends a text, with texts, as the scripts take it."""

    def made(family: str):
        lm = tiny(family, ends=())
        pairs = [
            ContrastPair(Text(f"{text} so"), Text(f"not {text}")) for text in PROMPTS
        ]
        given = scripts["random_llamas"].Given
        return given(family, lm, tmp_path, PROMPTS, tuple(pairs))

    return made


@FAMILIES
def test_ours_and_both_ways_of_hf_write_the_same_greedy_tokens(
    scripts, work_of, family
):
    steering, work = scripts["steering"], work_of(family)
    how = steering.Protocol(samples=1, new=8, temperature=0.0)
    vectors = [None, *(2 * steering.directions(work, 3))]
    expected = steering.ours(work, vectors, how)
    assert [len(row) for texts in expected for row in texts] == [8] * 12
    assert steering.used_well(work, vectors, how) == expected
    assert steering.published(work, vectors, how) == expected
    # Not vacuous: every vector changes some text.
    assert all(texts != expected[0] for texts in expected[1:])


@FAMILIES
def test_vectors_that_are_added_everywhere_are_so_in_ours_and_in_hf(
    scripts, work_of, family
):
    steering, work = scripts["steering"], work_of(family)
    how = steering.Protocol(samples=1, new=8, temperature=0.0)
    vectors = list(2 * steering.directions(work, 3))
    expected = steering.ours(work, vectors, how, scope=Scope.ALL)
    assert steering.used_well(work, vectors, how, scope=Scope.ALL) == expected
    assert steering.share_equal(expected, expected) == 1
    # The prompt is steered too, which makes other texts.
    assert steering.ours(work, vectors, how) != expected


def test_each_way_to_sample_writes_as_many_texts_in_the_same_order(scripts, work_of):
    steering, work = scripts["steering"], work_of("llama")
    how = steering.Protocol(samples=3, new=2)
    vectors = steering.directions(work, 2).unbind()
    for way in (steering.ours, steering.used_well, steering.published):
        texts = way(work, vectors, how)
        assert [len(rows) for rows in texts] == [9, 9]
        assert all(len(row) == 2 for rows in texts for row in rows)
    assert len(steering.published(work, vectors, how, prompts=1)[0]) == 3


@FAMILIES
def test_ours_and_plain_hf_read_one_direction_in_batches_of_any_size(
    scripts, work_of, family
):
    extraction, work = scripts["extraction"], work_of(family)
    expected = extraction.ours(work, 3, 8)
    assert expected.norm() > 0
    for num, batch_size in ((3, 8), (3, 2)):
        assert extraction.same(extraction.plain(work, num, batch_size), expected)
        assert extraction.same(extraction.ours(work, num, batch_size), expected)
    # Not vacuous: other pairs, and another layer, give another direction.
    assert not extraction.same(extraction.plain(work, 1, 8), expected)


def test_the_ceilings_count_what_the_work_cannot_do_without(scripts, work_of):
    steering, work = scripts["steering"], work_of("llama")
    lm = work.lm
    block = sum(weight.numel() for weight in lm.blocks[0].parameters())
    head = lm.d_vocab * lm.d_model
    lengths = [len(lm.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    assert work.layer == 1
    tokens = scripts["extraction"].num_tokens(lm, work.pairs)
    assert tokens > 2 * sum(lengths)
    assert scripts["extraction"].ceiling_flops(work) == 2 * tokens * 2 * block
    whole = steering.ceiling_flops(work, 10)
    before = 4 * block * (sum(lengths) - 3)
    assert whole == 2 * (10 * (4 * block + head) + before)


def test_a_library_that_writes_other_texts_is_found_out(scripts):
    steering = scripts["steering"]
    expected = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert steering.share_equal([[[1, 2], [3, 9]]], expected) == 0.5


def test_the_reference_model_comes_with_its_own_texts(scripts, tmp_path):
    given = scripts["random_llamas"].given
    ending = given("organism", None, tmp_path, ends=True, num_texts=3)
    endless = given("organism", None, tmp_path, ends=False, num_texts=3)
    assert (ending.folder / "tokenizer.json").is_file()
    assert len(ending.prompts) == len(ending.pairs) == 3
    assert ending.lm.model.generation_config.eos_token_id is not None
    assert endless.lm.model.generation_config.eos_token_id is None
    text = scripts["peer"].as_read(ending.lm, Text(ending.prompts[0]))
    bare = ending.lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    encode = scripts["extraction"].encode
    assert tuple(bare) == tuple(encode(ending.lm, Text(ending.prompts[0]))[0])


def test_extraction_prints_every_number(scripts, capsys):
    scripts["extraction"].main(["--quick", "--peers"])
    printed = capsys.readouterr().out
    assert "hf / ours" in printed
    (result,) = json.loads(printed.splitlines()[-1])["models"]
    assert set(result["seconds"]) == {"ours", "hf", "ceiling"}
    assert result["agrees"] == {"ours": True, "hf": True}
    for values in (*result["seconds"].values(), *result["ratios"].values()):
        assert 0 < values["low"] <= values["median"] <= values["high"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="counted by the GPU's allocator")
def test_steering_prints_every_number(scripts, capsys, monkeypatch):
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    scripts["steering"].main(["--quick", "--peers"])
    printed = capsys.readouterr().out
    assert "published / ours" in printed
    report = json.loads(printed.splitlines()[-1])
    (sampled,) = report["protocol"]
    assert set(sampled["seconds"]) == {"ours", "hf", "published", "ceiling"}
    assert sampled["tokens a text"] == {"ours": 5, "hf": 5, "published": 5}
    assert [result["vectors"] for result in report["greedy"]] == [1, 3]
    for result in (sampled, *report["greedy"]):
        assert set(result["peak"]) <= set(result["seconds"])
        assert all(peak > 0 for peak in result["peak"].values())
        for values in (*result["seconds"].values(), *result["ratios"].values()):
            assert 0 < values["low"] <= values["median"] <= values["high"]
    assert all(result["equal"] == {"hf": 1} for result in report["greedy"])


@pytest.fixture(scope="module")
def random_work(scripts, tmp_path_factory):
    sizes = scripts["random_llamas"].Sizes(64, 3, 300)
    folder = tmp_path_factory.mktemp("model")
    given = scripts["random_llamas"].given
    return given("random", sizes, folder, ends=False, num_texts=4)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_does_ours_work_in_its_own_environment(scripts, random_work, library):
    peer, steering = scripts["peer"], scripts["steering"]
    if library not in peer.available():
        pytest.skip("make it with benchmarks/peers/environments.sh")
    work, extraction = random_work, scripts["extraction"]
    vectors = steering.directions(work, 2)
    texts = {
        "pairs": [[pair.positive.prompt, pair.negative.prompt] for pair in work.pairs],
        "prompts": list(work.prompts),
        "vectors": vectors.tolist(),
        "max_new_tokens": 6,
    }
    asked = peer.job(work.lm, work.folder, layer=work.layer, **texts)
    with peer.Peer(library, asked | {"task": "direction"}) as other:
        found, seconds = extraction.there(other)(4, 3)
        assert seconds > 0
        assert other.versions["torch"].startswith("2.13.0")
        assert extraction.same(found, extraction.ours(work, 4, 3))
    how = steering.Protocol(samples=1, new=6, temperature=0.0)
    expected = steering.ours(work, vectors.unbind(), how, scope=Scope.ALL)
    with peer.Peer(library, asked | {"task": "tokens"}) as other:
        assert other.turn(num=2)["result"] == expected
        assert other.turn(num=1, peak=True)["peak"] > 0
        with pytest.raises(peer.PeerFailed, match="KeyError"):
            other.turn(batch_size=1)
        assert other.turn(num=1)["result"] == expected[:1]


def test_a_library_that_does_not_start_says_why(scripts, random_work, monkeypatch):
    peer = scripts["peer"]
    monkeypatch.setattr(peer, "interpreter", lambda _library: Path(sys.executable))
    monkeypatch.setitem(peer.ENVIRONMENTS, "nothing", "a")
    asked = peer.job(random_work.lm, random_work.folder, layer=0, task="direction")
    failing = peer.Peer("nothing", asked)
    with pytest.raises(peer.PeerFailed, match="with_nothing"), failing:
        pass


def test_every_library_has_a_script_and_a_pinned_environment(scripts):
    peer = scripts["peer"]
    made = (BENCHMARKS / "peers" / "environments.sh").read_text()
    assert set(peer.ENVIRONMENTS) == set(LIBRARIES)
    for library, name in peer.ENVIRONMENTS.items():
        assert (BENCHMARKS / "peers" / f"with_{library}.py").is_file()
        assert f"make_environment {name} " in made
        assert f"{library.replace('_', '-')}==" in made
