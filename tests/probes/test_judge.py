"""A judge's score is its number on the scale; no number is paid for twice."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.probes.labelled import HIGH, LOW, VALIDATION
from tests.probes.stand_in import Reply, by_word, serving

from steergauge.errors import BadProbe, ProbeRefused
from steergauge.probes import Probe, judge_probe, load_probe
from steergauge.probes.cache import kept_scores
from steergauge.probes.judge import ATTEMPTS, OPENAI, Judge, judge_score

AT_ONCE = {"retry-after-ms": "1"}
"""Where the pause before a retry is not the matter."""


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    """No test sends, or depends on, a key of whoever runs it."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "judge.toml.cache.jsonl"


def judge(url: str, **changes: object) -> Judge:
    usual = {"model": "j", "base_url": url, "prompt": "{text}", "max_retries": 2}
    return Judge(**{**usual, **changes})


def probe(cache: Path, **entries: object) -> Probe:
    table = {"kind": "judge", "model": "j", "validation": VALIDATION, **entries}
    if "prompt" not in table:
        table = {"high": "formal", "low": "casual", **table}
    return judge_probe("manners", table, cache=cache)


def test_the_score_is_the_answers_place_on_the_scale(cache):
    with serving() as server:
        scored = probe(cache, base_url=server.url)
        assert scored(["Sir.", "Yo.", "Rain."]).tolist() == [0.9, 0.1, 0.5]
    assert (scored.kind, scored.auc, scored.num_labelled) == ("judge", 1.0, 23)


@pytest.mark.parametrize(
    ("answer", "scale", "score"),
    [
        ("0", (0, 100), 0.0),
        ("100", (0, 100), 1.0),
        (" 85\n", (0, 100), 0.85),
        ("2.5", (0, 10), 0.25),
        ("4", (1, 5), 0.75),
        ("-1", (-1, 1), 0.0),
        ("+1", (-1, 1), 1.0),
    ],
)
def test_a_number_on_the_scale_is_read(answer, scale, score):
    assert judge("", scale=scale).read(answer) == pytest.approx(score)


@pytest.mark.parametrize(
    "answer",
    [
        "", "101", "-1", "85/100", "85%", "Score: 85", "85.", "8 5", "85 90", "nan",
        "inf", "1e1", "eighty", "85\n\nIt is formal.", "<think>85</think> 85",
        "\u0668\u0665",
    ],
)  # fmt: skip
def test_anything_else_is_no_answer(answer):
    assert judge("").read(answer) is None


def test_the_judge_is_asked_what_the_record_says(cache):
    def in_tens(text: str, before: int) -> str:
        return by_word(text, before)[0]

    with serving(in_tens) as server:
        scored = probe(cache, base_url=server.url, scale=[0, 10], temperature=0.5)
        scored(["A {high} brace, {text}."])
    record, body = scored.record, server.bodies[-1]
    assert record["prompt"].count("{text}") == 1
    expected = record["prompt"].replace("{text}", "A {high} brace, {text}.")
    assert body["messages"] == [{"role": "user", "content": expected}]
    for said in ("from 0 to 10", "0 means: casual.", "10 means: formal.", "answer 5."):
        assert said in expected
    assert (body["model"], body["temperature"]) == ("j", 0.5)
    assert (record["model"], record["temperature"]) == ("j", "0.5")
    assert (record["base_url"], record["scale"]) == (server.url, "0 to 10")


def test_a_prompt_of_ones_own_is_sent_as_it_is(cache):
    prompt = 'How {formal} is this? JSON like {"a": 1} is not wanted.\n-----\n{text}'
    with serving() as server:
        scored = probe(cache, base_url=server.url, prompt=prompt)
    assert scored.record["prompt"] == prompt
    sent = {body["messages"][0]["content"] for body in server.bodies}
    assert sent == {prompt.replace("{text}", text) for text in [*HIGH, *LOW]}


def test_a_judge_with_swapped_poles_does_not_pass_the_gate(cache):
    swapped = {"high": LOW, "low": HIGH}
    with serving() as server, pytest.raises(ProbeRefused, match=r"0\.00"):
        probe(cache, base_url=server.url, validation=swapped)


def test_equal_texts_are_rated_once_and_kept_ones_never_again(cache):
    with serving() as server:
        score = judge_score("x", judge(server.url), cache=cache)
        assert score(["sir", "yo", "sir", "sir"]).tolist() == [0.9, 0.1, 0.9, 0.9]
        assert sorted(server.texts) == ["sir", "yo"]
        again = judge_score("x", judge(server.url), cache=cache)
        assert again(["yo", "rain", "sir"]).tolist() == [0.1, 0.5, 0.9]
        assert sorted(server.texts) == ["rain", "sir", "yo"]


def test_what_is_kept_needs_neither_server_nor_key(cache):
    asked = judge(OPENAI)
    row = {"key": asked.key("sir"), "score": 0.9, "answer": "90"}
    cache.write_text(json.dumps(row) + "\n")
    assert judge_score("x", asked, cache=cache)(["sir"]).tolist() == [0.9]


@pytest.mark.parametrize(
    "changes",
    [{"model": "k"}, {"prompt": "Rate {text}"}, {"scale": (0, 99)}, {"temperature": 1}],
    ids=["model", "prompt", "scale", "temperature"],
)
def test_a_judge_that_is_asked_otherwise_is_asked_anew(cache, changes):
    with serving() as server:
        judge_score("x", judge(server.url), cache=cache)(["sir"])
        judge_score("x", judge(server.url, **changes), cache=cache)(["sir"])
        assert len(server.bodies) == 2
        # How fast it is asked changes no answer.
        faster = judge(server.url, concurrency=2, timeout=5, max_retries=0)
        judge_score("x", faster, cache=cache)(["sir"])
        assert len(server.bodies) == 2
    assert judge("http://a").key("sir") != judge("http://b").key("sir")


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_texts_than_allowed_are_rated_at_a_time(cache, concurrency):
    with serving(delay=0.03) as server:
        asked = judge(server.url, concurrency=concurrency)
        judge_score("x", asked, cache=cache)([f"text {i}" for i in range(12)])
    assert server.most_at_once == concurrency
    assert len(kept_scores(cache)) == 12


def test_a_server_that_asks_for_a_pause_is_given_it(cache):
    def busy(text: str, before: int) -> Reply | str:
        limit = Reply(status=429, headers={"Retry-After": "1"})
        return limit if before == 0 else by_word(text, before)

    with serving(busy) as server:
        scores = judge_score("x", judge(server.url), cache=cache)(["sir"])
    assert scores.tolist() == [0.9]
    assert len(server.times) == 2
    # The client's own first pause is at most half a second.
    assert 1.0 <= server.times[1] - server.times[0] < 2.0


def test_a_server_that_fails_for_a_moment_is_asked_again(cache):
    def shaky(text: str, before: int) -> Reply | str:
        broken = Reply(status=(500, 503)[before % 2], headers=AT_ONCE)
        return broken if before < 2 else by_word(text, before)

    with serving(shaky) as server:
        scores = judge_score("x", judge(server.url), cache=cache)(["sir", "yo"])
        assert scores.tolist() == [0.9, 0.1]
        assert len(server.bodies) == 6


@pytest.mark.parametrize(
    ("status", "named", "requests"),
    [
        (400, "temperature", 1),
        (401, "OPENAI_API_KEY", 1),
        (403, "OPENAI_API_KEY", 1),
        (404, "/v1", 1),
        (418, "`model`", 1),
        (429, "`concurrency`", 3),
        (500, "overloaded", 3),
        (503, "overloaded", 3),
    ],
)
def test_a_lasting_failure_is_explained_and_what_was_rated_is_kept(
    cache, status, named, requests
):
    def fails(text: str, before: int) -> Reply | str:
        failure = Reply(status=status, headers=AT_ONCE)
        return failure if text == "bad" else by_word(text, before)

    with serving(fails) as server:
        score = judge_score("x", judge(server.url, concurrency=1), cache=cache)
        with pytest.raises(BadProbe, match=named) as caught:
            score(["sir", "yo", "bad", *(f"text {i}" for i in range(50))])
        assert server.texts.count("bad") == requests
        assert len(server.texts) < 20, "it went on paying after it had failed"
        assert f"{len(kept_scores(cache))} of 53 texts" in str(caught.value)
        assert str(status) in str(caught.value)
        assert score(["sir", "yo"]).tolist() == [0.9, 0.1]
        assert server.texts.count("sir") == server.texts.count("yo") == 1


def test_a_server_that_is_not_there_is_named(cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(BadProbe, match=url) as caught:
        judge_score("x", judge(url, max_retries=0), cache=cache)(["sir"])
    assert "base_url" in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "nonsense", "http://"])
def test_an_address_that_is_none_is_named(cache, url):
    with pytest.raises(BadProbe, match=url) as caught:
        judge_score("x", judge(url, max_retries=0), cache=cache)(["sir"])
    assert "base_url" in str(caught.value)


def test_a_server_that_is_too_slow_is_given_up(cache):
    with serving(delay=0.6) as server:
        slow = judge(server.url, timeout=0.1, max_retries=0)
        with pytest.raises(BadProbe, match="timeout"):
            judge_score("x", slow, cache=cache)(["sir"])


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        (Reply("I would say 85."), "I would say 85."),
        (Reply("850"), "850"),
        (Reply(None), "''"),
        (Reply(body='{"choices": []}'), "choices"),
        (Reply(body='{"detail": "no"}'), "no"),
        (Reply(body="<p>Hi</p>", headers={"Content-Type": "text/html"}), "<p>Hi</p>"),
        (Reply(body="{torn"), "torn"),
    ],
    ids=["a sentence", "off the scale", "declined", "empty", "else", "HTML", "torn"],
)
def test_an_answer_that_is_no_number_is_asked_for_again_and_then_shown(
    cache, reply, shown
):
    with serving(lambda _text, _before: reply) as server:
        score = judge_score("x", judge(server.url), cache=cache)
        with pytest.raises(BadProbe, match="answered") as caught:
            score(["sir"])
    assert shown in str(caught.value)
    assert len(server.bodies) == ATTEMPTS
    assert kept_scores(cache) == {}


def test_a_number_at_the_second_attempt_is_the_score(cache):
    with serving(lambda _text, before: "90" if before else "Well,") as server:
        assert judge_score("x", judge(server.url), cache=cache)(["a"]).tolist() == [0.9]
    assert len(server.bodies) == 2


def test_openai_without_a_key_names_the_variable_that_holds_it(cache):
    with pytest.raises(BadProbe, match="OPENAI_API_KEY"):
        probe(cache)


def test_the_clients_own_variable_is_the_key_and_a_server_of_ones_own_needs_none(
    cache, monkeypatch
):
    with serving() as server:
        score = judge_score("x", judge(server.url), cache=cache)
        score(["sir"])
        monkeypatch.setenv("OPENAI_API_KEY", "mine")
        score(["yo"])
    assert server.keys == ["Bearer none", "Bearer mine"]
    assert "mine" not in cache.read_text()


def test_a_torn_line_costs_one_answer_and_harms_no_other(cache):
    with serving() as server:
        score = judge_score("x", judge(server.url, concurrency=1), cache=cache)
        score(["sir", "yo"])
        whole = cache.read_bytes()
        cache.write_bytes(whole[:-20])  # as a kill would leave it
        assert len(kept_scores(cache)) == 1
        assert score(["sir", "yo", "rain"]).tolist() == [0.9, 0.1, 0.5]
        assert server.texts == ["sir", "yo", "yo", "rain"]
        assert score(["sir", "yo", "rain"]).tolist() == [0.9, 0.1, 0.5]
        assert len(server.texts) == 4
    assert cache.read_bytes().startswith(whole[:-20])


def test_a_run_that_is_killed_pays_again_for_no_answer_that_it_had(cache):
    texts = [f"text {i}" for i in range(30)]
    with serving(delay=0.05) as server:
        code = (
            "import sys\nfrom pathlib import Path\n"
            "from steergauge.probes.judge import Judge, judge_score\n"
            "judge = Judge('j', sys.argv[1], '{text}', concurrency=2)\n"
            "score = judge_score('x', judge, cache=Path(sys.argv[2]))\n"
            "score([f'text {i}' for i in range(30)])\n"
        )
        command = [sys.executable, "-c", code, server.url, str(cache)]
        with subprocess.Popen(command) as run:
            deadline = time.monotonic() + 60
            while len(server.texts) < 10 and time.monotonic() < deadline:
                time.sleep(0.005)
            run.send_signal(signal.SIGKILL)
        kept = kept_scores(cache)
        assert 5 <= len(kept) < 30
        paid = len(server.texts)
        score = judge_score("x", judge(server.url), cache=cache)
        assert score(texts).tolist() == [0.5] * 30
        assert len(server.texts) - paid == 30 - len(kept)
        assert paid - len(kept) <= 2, "more was lost than was under way"


def test_a_cache_that_cannot_be_written_is_found_before_anything_is_paid(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with serving() as server:
        score = judge_score("x", judge(server.url), cache=blocked / "cache.jsonl")
        with pytest.raises(BadProbe, match="cannot be kept"):
            score(["sir"])
        with pytest.raises(BadProbe, match="cannot be kept"):
            judge_score("x", judge(server.url), cache=tmp_path)(["sir"])
        assert server.bodies == []


def test_the_scores_of_a_file_are_kept_beside_it(tmp_path):
    file = tmp_path / "formality.toml"
    with serving() as server:
        file.write_text(
            f'kind = "judge"\nmodel = "j"\nbase_url = "{server.url}"\n'
            'high = "formal"\nlow = "casual"\n'
        )
        assert load_probe(str(file), (HIGH, LOW)).name == "formality"
        assert len(server.bodies) == 23
        load_probe(str(file), (HIGH, LOW))
        assert len(server.bodies) == 23
    assert len(kept_scores(tmp_path / "formality.toml.cache.jsonl")) == 23


def test_a_judge_without_its_package_says_what_to_install(cache):
    code = (
        "import sys\nfrom pathlib import Path\nsys.modules['openai'] = None\n"
        "from steergauge.probes.judge import Judge, judge_score\n"
        "judge_score('x', Judge('j', 'u', '{text}'), cache=Path(sys.argv[1]))(['a'])\n"
    )
    command = [sys.executable, "-c", code, str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "BadProbe" in done.stderr
    assert "pip install 'steergauge[judge]'" in done.stderr


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"model": ""}, "`model`"),
        ({"base_url": 3}, "`base_url`"),
        ({"prompt": "Rate it."}, "{text}"),
        ({"prompt": "Rate {text}.", "high": "formal"}, "one or the other"),
        ({"low": ["yo"]}, "`low`"),
        ({"scale": [0]}, "scale"),
        ({"scale": [100, 0]}, "scale"),
        ({"scale": [0, True]}, "scale"),
        ({"scale": [0, float("nan")]}, "scale"),
        ({"scale": [0, float("inf")]}, "scale"),
        ({"scale": "0-100"}, "scale"),
        ({"concurrency": 0}, "`concurrency`"),
        ({"concurrency": 2.5}, "`concurrency`"),
        ({"timeout": 0}, "`timeout`"),
        ({"timeout": "60"}, "`timeout`"),
        ({"max_retries": -1}, "`max_retries`"),
        ({"temperature": float("nan")}, "`temperature`"),
        ({"temprature": 1}, "`temprature`"),
        ({"validation": {"high": HIGH[:9], "low": LOW}}, "at least 10"),
    ],
)
def test_an_entry_that_is_wrong_or_unknown_is_named_before_anyone_is_asked(
    cache, entries, named
):
    with serving() as server:
        with pytest.raises(BadProbe) as caught:
            probe(cache, **{"base_url": server.url, **entries})
        assert server.bodies == []
    assert named in str(caught.value)
