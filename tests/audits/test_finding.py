"""A finding is plain data: what goes to JSON comes back, and nothing changes it."""

import dataclasses
import json

import pytest

from steergauge.audits.finding import Control, Finding, Verdict
from steergauge.statistics import Estimate

FULL = Finding(
    audit="equivalence",
    code="T3",
    subject="v_perp alone",
    claim="v_perp alone does what v does.",
    quantity="difference of lifts",
    estimate=Estimate(0.1, -0.2, 1 / 3, 0.9),
    null="within 20% of L(v)",
    verdict=Verdict.INCONCLUSIVE,
    reasons=("Because.", 'It says "no" & <nothing> else, naïve.'),
    controls=(
        Control("unsteered", "differs", Estimate(1e-300, 0.0, 2.0), "DIFFERENT", True),
        Control("certificate", "holds", None, "", False),
    ),
    num_prompts=50,
    num_samples=4,
    details={"margin": 0.2, "list": [1, None, "x"], "nested": {"a": True}},
)
EMPTY = Finding(
    audit="manipulation",
    code="T1",
    subject="",
    claim="Adding v moves the trait.",
    quantity="lift",
    estimate=None,
    null="",
    verdict=Verdict.UNINFORMATIVE,
    reasons=("No probe was given.",),
)


@pytest.mark.parametrize("finding", [FULL, EMPTY], ids=["full", "empty"])
def test_a_finding_survives_the_round_trip_through_json(finding):
    text = json.dumps(finding.to_json(), allow_nan=False)
    back = Finding.from_json(json.loads(text))
    assert back == finding
    assert isinstance(back.verdict, Verdict)
    assert isinstance(back.reasons, tuple)
    assert all(isinstance(control, Control) for control in back.controls)
    assert json.dumps(back.to_json(), allow_nan=False) == text


def test_an_unknown_verdict_is_refused():
    record = json.loads(json.dumps(EMPTY.to_json())) | {"verdict": "PROBABLY"}
    with pytest.raises(ValueError, match="PROBABLY"):
        Finding.from_json(record)


def test_the_key_is_the_audit_and_its_subject():
    assert FULL.key == "equivalence[v_perp alone]"
    assert EMPTY.key == "manipulation"


def test_a_finding_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.verdict = Verdict.EQUIVALENT


def test_the_verdicts_are_those_of_the_specification_and_print_as_words():
    assert {str(verdict) for verdict in Verdict} == {
        "PASS",
        "FAIL",
        "EQUIVALENT",
        "DIFFERENT",
        "INCONCLUSIVE",
        "UNINFORMATIVE",
        "EXPLAINED BY GEOMETRY",
        "NONLINEAR",
        "LOCAL THEORY APPLIES",
        "MEASURED",
        "EXACT NULL",
        "FIRST-ORDER NULL",
        "EFFECTIVE NULL",
        "VISIBLE",
        "HIDDEN",
        "SHARED NULL",
        "SHRINKING",
        "FULL",
        "NON-IDENTIFIABLE-STRUCTURED",
        "NON-IDENTIFIABLE-GENERIC",
        "IDENTIFIABLE WITHIN",
        "ONE CLASS",
        "SEVERAL CLASSES",
        "REACHABLE",
        "EPSILON-CLOSE",
        "ORIGIN-NEAREST (UNREACHED)",
        "UNREACHED",
        "FOUND",
        "NOT FOUND AT BUDGET",
        "ON MANIFOLD",
        "OFF MANIFOLD",
    }
