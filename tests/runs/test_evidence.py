"""Tables are the means they are said to be; the recommended strength is coherent."""

import itertools
import math

import numpy as np
import pytest
import torch

from steergauge.generation import Arm
from steergauge.intervention import Add
from steergauge.probes import lexical_probe
from steergauge.runs import evidence
from steergauge.runs.evidence import dose_curve
from steergauge.runs.spec import PERPLEXITY_LIMIT
from steergauge.vector import Site, SteeringVector

HIGH = [f"so {i}" for i in range(10)]
LOW = [str(i) for i in range(10)]
PROBE = lexical_probe(
    "so", {"high": ["so"], "low": ["zzz"], "validation": {"high": HIGH, "low": LOW}}
)
ARMS = ("unsteered", "v", "perp[0]", "perp[1]", "against[a]", "against[b]")
V = SteeringVector(torch.ones(4), Site(0))


def rows(values, *, arms=ARMS, num_prompts=3, num_samples=2):
    """A row for every arm, prompt and sample, in another order than the tables'."""
    cells = itertools.product(range(num_samples), arms, reversed(range(num_prompts)))
    return [
        {
            "arm": arm,
            "prompt_index": prompt,
            "sample": sample,
            "num_tokens": 4,
            **values(arm, prompt, sample),
        }
        for sample, arm, prompt in cells
    ]


def number(arm: str, prompt: int, sample: int) -> float:
    return 100.0 * ARMS.index(arm) + 10 * prompt + sample


def test_entries_are_means_over_samples_in_the_order_of_prompts():
    table = evidence.per_prompt(rows(lambda *cell: {"x": number(*cell)}), "x")
    assert set(table) == set(ARMS)
    for i, arm in enumerate(ARMS):
        assert table[arm].tolist() == [100 * i + 10 * p + 0.5 for p in range(3)]


def test_directions_of_a_family_are_rows_and_rivals_are_families_of_their_own():
    columns = {arm: np.full(3, float(i)) for i, arm in enumerate(ARMS)}
    tables = evidence.families(columns)
    assert set(tables) == {"unsteered", "v", "perp", "against[a]", "against[b]"}
    assert tables["perp"].tolist() == [[2, 2, 2], [3, 3, 3]]
    assert tables["against[b]"].tolist() == [[5, 5, 5]]


def test_lifts_are_differences_from_the_unsteered_score_of_the_same_prompt():
    lifts = evidence.lifts(rows(lambda *cell: {"score": number(*cell)}))
    assert lifts["unsteered"].tolist() == [[0, 0, 0]]
    assert lifts["v"].tolist() == [[100, 100, 100]]
    assert lifts["perp"].tolist() == [[200] * 3, [300] * 3]


def test_perplexity_is_the_exponential_of_nats_a_token():
    given = rows(
        lambda arm, prompt, _: {"nll": (2 if arm == "v" else 1) * (1 + prompt)}
    )
    # A mean over tokens, not over texts: (1 + 2 + 3) / (4 + 4 + 4).
    assert evidence.perplexity(given, "unsteered") == pytest.approx(math.exp(0.5))
    assert evidence.perplexity(given, "v") == pytest.approx(math.exp(1.0))


def test_score_arrays_have_directions_prompts_and_samples_in_order():
    found = evidence.score_arrays(rows(lambda *cell: {"score": number(*cell)}))
    assert found["v"].shape == (1, 3, 2)
    assert found["perp"].shape == (2, 3, 2)
    for arm, array in (("v", found["v"][0]), ("perp[1]", found["perp"][1])):
        expected = [[number(arm, p, s) for s in range(2)] for p in range(3)]
        assert array.tolist() == expected


def test_rivals_are_no_family():
    assert evidence.family("perp[3]") == "perp"
    assert evidence.family("against[mine]") == "against[mine]"


def curve(ratios: dict[float, float], *, probe=PROBE):
    """The dose curve of texts whose perplexity ratio is `ratios[alpha]`."""
    arms = {"unsteered": Arm()}
    arms |= {f"dose[{alpha:g}]": Arm(Add(V, alpha)) for alpha in ratios}
    ratio = {f"dose[{alpha:g}]": value for alpha, value in ratios.items()}
    texts = rows(
        lambda arm, *_: {"text": "so" if not arm.startswith("dose[-") else "zzz"},
        arms=tuple(arms),
    )
    scores = rows(
        lambda arm, *_: {"nll": 4 * math.log(2 * ratio.get(arm, 1.0)), "nats": 0.5},
        arms=tuple(arms),
    )
    scored = probe([row["text"] for row in texts]) if probe else [None] * len(texts)
    texts = [row | {"score": score} for row, score in zip(texts, scored, strict=True)]
    return dose_curve(texts, scores, arms, step_unit=0.3)


def test_the_dose_curve_is_sorted_and_holds_what_was_measured():
    found = curve({2.0: 1.4, -2.0: 1.3, 0.5: 1.0, -0.5: 0.9})
    assert [dose.alpha for dose in found.doses] == [-2.0, -0.5, 0.5, 2.0]
    assert [d.step for d in found.doses] == pytest.approx([0.6, 0.15, 0.15, 0.6])
    ratios = [dose.perplexity_ratio for dose in found.doses]
    assert ratios == pytest.approx([1.3, 0.9, 1.0, 1.4])
    assert {dose.nats.value for dose in found.doses} == {0.5}
    unsteered, low = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    lifts = [dose.lift.value for dose in found.doses]
    assert lifts == pytest.approx([low - unsteered] * 2 + [0, 0])


def test_without_a_probe_the_dose_curve_has_no_lift_and_still_recommends():
    found = curve({1.0: 1.0, -1.0: 1.0}, probe=None)
    assert {dose.lift for dose in found.doses} == {None}
    assert (found.recommended, found.coherent) == (1.0, True)


@pytest.mark.parametrize(
    ("ratios", "recommended", "coherent"),
    [
        ({0.5: 1.0, 1.0: 1.1, 2.0: 1.2}, 2.0, True),
        ({0.5: 1.0, 1.0: 1.1, 2.0: 1.6}, 1.0, True),
        ({0.5: 1.0, 1.0: 9.9, 2.0: 1.0}, 0.5, True),
        ({0.5: 1.6, 1.0: 1.0, 2.0: 1.0}, 0.5, False),
    ],
    ids=["all coherent", "largest is not", "a gap is not jumped", "none is"],
)
@pytest.mark.parametrize("worse", [1, -1])
def test_the_largest_strength_up_to_which_both_directions_are_coherent_is_recommended(
    ratios, recommended, coherent, worse
):
    both = {worse * a: ratio for a, ratio in ratios.items()}
    both |= {-worse * a: 1.0 for a in ratios}
    found = curve(both)
    assert (found.recommended, found.coherent) == (recommended, coherent)
    if coherent:
        up_to = [d for d in found.doses if abs(d.alpha) <= found.recommended]
        assert max(d.perplexity_ratio for d in up_to) <= PERPLEXITY_LIMIT


def test_a_dose_is_plain_data():
    record = curve({1.0: 1.0, -1.0: 1.0}).doses[0].to_json()
    known = {"alpha", "step", "lift", "nats", "perplexity_ratio", "perplexity_high"}
    assert set(record) == known
    assert set(record["nats"]) == {"value", "low", "high", "level"}
