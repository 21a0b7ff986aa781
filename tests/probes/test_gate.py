"""A probe passes a gate before it judges, and is checked after it."""

import numpy as np
import pytest
from tests.probes.labelled import HIGH, LOW, WORDS

from steergauge.errors import BadProbe, ProbeRefused
from steergauge.probes import MINIMUM_AUC, lexical_probe, validated

SIGMOID = "sigmoid(#high - #low)"


def test_a_probe_that_tells_its_texts_apart_passes_and_says_how_well():
    probe = lexical_probe("manners", WORDS)
    assert (probe.auc, probe.num_labelled) == (1.0, 23)
    assert probe.words == (("sir",), ("yo",))
    assert (probe.kind, probe.record) == ("lexical", {"formula": SIGMOID})
    odds = np.array([np.e, 1 / np.e])
    assert probe(["Sir!", "Yo!"]) == pytest.approx(odds / (1 + odds))


@pytest.mark.parametrize(
    ("high", "low", "value"),
    [(HIGH, HIGH, 0.5), (LOW, HIGH, 0.0), (HIGH[:6] + LOW[:6], LOW, 0.75)],
    ids=["the same texts", "poles swapped", "half of them"],
)
def test_a_probe_whose_auc_is_too_low_refuses_to_judge(high, low, value):
    labelled = WORDS | {"validation": {"high": high, "low": low}}
    with pytest.raises(ProbeRefused) as caught:
        lexical_probe("manners", labelled)
    assert f"{value:.2f}" in str(caught.value)
    assert str(MINIMUM_AUC) in str(caught.value)


@pytest.mark.parametrize("missing", ["sir", "yo"])
def test_one_pole_of_words_that_never_occurs_can_still_pass_the_gate(missing):
    table = {key: ["zzz"] if WORDS[key] == [missing] else WORDS[key] for key in WORDS}
    assert lexical_probe("manners", table).auc == 1.0


@pytest.mark.parametrize(("num_high", "num_low"), [(9, 11), (12, 9), (0, 0)])
def test_a_probe_with_fewer_than_10_labelled_texts_a_side_is_refused(num_high, num_low):
    labelled = {"high": HIGH[:num_high], "low": LOW[:num_low]}
    with pytest.raises(BadProbe, match=f"{num_high} high and {num_low} low"):
        lexical_probe("manners", WORDS | {"validation": labelled})


@pytest.mark.parametrize(
    "values",
    [
        lambda texts: [1.5] * len(texts),
        lambda texts: [-0.1] * len(texts),
        lambda texts: [float("nan")] * len(texts),
        lambda texts: [0.5],
        lambda texts: [],
        lambda texts: [[0.5, 0.5] for _ in texts],
    ],
    ids=["above 1", "below 0", "NaN", "too few", "none", "two a text"],
)
def test_scores_that_are_no_numbers_in_0_1_are_refused(values):
    with pytest.raises(BadProbe, match=r"\[0, 1\]"):
        validated("mine", lambda texts: np.array(values(texts)), high=HIGH, low=LOW)


def test_a_probe_is_still_checked_after_it_has_passed_the_gate():
    def score(texts):
        return np.array([2.0 if "later" in text else "Sir" in text for text in texts])

    probe = validated("mine", score, high=HIGH, low=LOW)
    assert probe(["Sir"]).tolist() == [1.0]
    with pytest.raises(BadProbe, match=r"\[0, 1\]"):
        probe(["Sir", "later"])
