"""Whole runs of the geometry on planted models find what is planted, and nothing else.

Runs are small: where an audit asks for fifty prompts before it states anything, its
numbers are looked at, and not its verdict.
"""

import json
import math

import pytest
import torch
from tests import ground_truth, planted
from tests.ground_truth import DEAD, SINGULAR
from tests.models import D_MODEL, NUM_LAYERS, borrowed, network, tiny
from torch import Tensor

from steergauge.audits.finding import Verdict
from steergauge.errors import BadPrompts, BadSpec
from steergauge.report import write_report
from steergauge.report.side_by_side import side_by_side
from steergauge.runs.execute import audit
from steergauge.runs.spec import GEOMETRY
from steergauge.vector import Site, SteeringVector

SMALL = {
    "num_prompts": 6,
    "num_dose_prompts": 2,
    "samples": 1,
    "max_new_tokens": 3,
    "geometry_prompts": 8,
    "geometry_tokens": 2,
    "alpha": 1.0,
    "audits": "geometry",
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> str:
    return planted.prompt_file(tmp_path_factory.mktemp("prompts"), 20)


@pytest.fixture(scope="module")
def run_of(prompts, tmp_path_factory):
    def run(lm, vector, **changes):
        options = SMALL | {"prompts": prompts} | changes
        folder = tmp_path_factory.mktemp("runs") / "run"
        return audit(lm, vector, out=folder, **options)

    return run


def direction(width: int = D_MODEL, length: float = 3.0) -> Tensor:
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(0))
    return length * (drawn - drawn.mean()) / (drawn - drawn.mean()).norm()


def vector(parts: Tensor, layer: int = 1) -> SteeringVector:
    return SteeringVector(parts.float(), Site(layer))


MEAN = 0.4
"""Of the coordinates of v: its part along all-ones has a share f_N of 0.46."""


def with_mean(layer: int = 1) -> SteeringVector:
    return vector(direction() + MEAN, layer)


def share_of_mean() -> float:
    v = with_mean().direction
    return float(v.mean() ** 2 * len(v) / v.square().sum())


def details(run, name: str) -> dict:
    return run.findings[name].details


def classes(run) -> dict[str, str]:
    found = details(run, "nulls")["directions"]
    return {name: one["class"] for name, one in found.items()}


@pytest.fixture(scope="module")
def layernorm(run_of):
    return run_of(tiny("gpt2"), with_mean(), geometry_prompts=8)


@pytest.fixture(scope="module")
def rmsnorm(run_of):
    return run_of(tiny("llama"), vector(direction()))


@pytest.fixture(scope="module")
def linear(run_of):
    model = ground_truth.linear()
    v = vector(model.visible[:, 3] + model.null[:, 0])
    return run_of(model.lm, v, geometry_prompts=8)


def test_every_audit_of_the_geometry_is_made_of_a_vector_alone(layernorm):
    # T13 compares methods on contrast pairs, of which there are none.
    assert {*layernorm.findings} == {"plumbing", *GEOMETRY} - {"methods"}
    assert layernorm.findings["plumbing"].verdict is Verdict.PASS
    json.dumps([f.to_json() for f in layernorm.findings.values()], allow_nan=False)


def test_texts_of_v_and_of_its_most_different_equivalent_are_on_the_page(layernorm):
    rows = layernorm.store.generations()
    arms = {row["arm"] for row in rows if row["stage"] == "test"}
    assert {"v", "most_different", "same_cosine[0]", "unsteered"} <= arms
    page = write_report(layernorm.store.folder)
    assert page.name == "geometry.html"
    shown = side_by_side(rows, ((), ()))
    assert [column.arm for column in shown[0].columns][:2] == ["v", "most_different"]
    assert shown[0].columns[1].texts[0].html in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("layer", "scope"),
    [(0, "generating"), (0, "all"), (2, "all"), (3, "generating"), (3, "all")],
)
def test_all_ones_is_an_exact_null_of_layernorm_models(run_of, layer, scope):
    changes = {"scope": scope, "num_prompts": 4, "audits": "nulls,saturation"}
    run = run_of(tiny("gpt2"), with_mean(layer), **changes)
    assert layer < NUM_LAYERS
    assert run.findings["nulls"].verdict is Verdict.EXACT_NULL
    found = classes(run)
    assert found["all-ones"] == Verdict.EXACT_NULL
    assert found["top"] == found["random"] == Verdict.VISIBLE
    saturation = run.findings["saturation"]
    assert (saturation.verdict, saturation.estimate.value) == (Verdict.SHARED_NULL, 1)


def test_a_layernorm_model_has_one_null_which_holds_its_share_of_v(layernorm):
    assert classes(layernorm)["all-ones"] == Verdict.EXACT_NULL
    assert classes(layernorm)["smallest 1"] == Verdict.EXACT_NULL
    assert classes(layernorm)["smallest 2"] == Verdict.VISIBLE
    assert layernorm.findings["saturation"].verdict is Verdict.SHARED_NULL
    assert layernorm.findings["saturation"].estimate.value == 1
    hard = details(layernorm, "decomposition")["hard"]
    assert share_of_mean() > 0.4
    # The null direction is known to the floor of float32, a millionth.
    assert hard["dim"] == 1
    assert hard["share"] == pytest.approx(share_of_mean(), abs=1e-5)
    assert hard["expected"][0] == pytest.approx(1 / D_MODEL)


def test_without_its_mean_a_vector_writes_the_same_in_a_layernorm_model(layernorm):
    canonical = details(layernorm, "decomposition")["canonical"]
    expected = math.sqrt(1 - share_of_mean())
    assert canonical["cosine"] == pytest.approx(expected, abs=1e-5)
    assert canonical["norm"] == pytest.approx(expected, abs=1e-5)
    # The square of float32's rounding of logits, beside an effect of some percent.
    assert canonical["nats"][2] < 1e-9
    assert details(layernorm, "decomposition")["effect"][1] > 0.01


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.2])
def test_the_mean_of_a_vector_is_reflected_in_a_layernorm_model(layernorm, budget):
    found = {
        one["budget"]: one for one in details(layernorm, "alternative")["candidates"]
    }
    one = found[budget]
    assert one["cosine"] <= 1 - 2 * share_of_mean() + 0.01
    assert one["norm"] == pytest.approx(1, abs=1e-3)
    effect = details(layernorm, "alternative")["effect"]
    assert one["nats"][0] <= budget * effect[0]
    # Random vectors at its cosine do something else.
    assert one["control"][1] > budget * effect[2]


def test_a_constant_shift_changes_no_number_of_a_layernorm_model(layernorm):
    assert layernorm.findings["gauge"].verdict is Verdict.PASS
    assert details(layernorm, "gauge")["kind"] == "shift"


def test_a_vector_that_nothing_sees_is_no_failure_of_the_gauge(run_of):
    audits = "nulls,decomposition,alternative,gauge"
    run = run_of(tiny("gpt2"), vector(torch.ones(D_MODEL)), audits=audits)
    verdicts = {name: one.verdict for name, one in run.findings.items()}
    assert verdicts["nulls"] is Verdict.EXACT_NULL
    # A verdict is stated from 32 texts on; the number says it already.
    assert run.findings["decomposition"].estimate.high < 1e-6
    assert verdicts["alternative"] is Verdict.UNINFORMATIVE
    assert verdicts["gauge"] is Verdict.PASS


def test_a_vector_that_changes_no_bit_is_audited_to_the_end(run_of):
    model = ground_truth.masked_llama()
    audits = "nulls,saturation,decomposition,alternative"
    run = run_of(model.lm, vector(model.null[:, 0]), audits=audits)
    assert classes(run)["v"] == Verdict.EXACT_NULL
    assert run.findings["saturation"].estimate.value == DEAD
    assert details(run, "decomposition")["hard"]["share"] == pytest.approx(1)
    assert details(run, "alternative")["effect"] == [0, 0, 0]
    assert details(run, "alternative")["candidates"] == []
    assert run.findings["alternative"].verdict is Verdict.UNINFORMATIVE


def test_an_rmsnorm_model_has_no_null(rmsnorm):
    assert {*classes(rmsnorm).values()} == {str(Verdict.VISIBLE)}
    assert rmsnorm.findings["nulls"].verdict is Verdict.VISIBLE
    saturation = rmsnorm.findings["saturation"]
    assert (saturation.verdict, saturation.estimate.value) == (Verdict.FULL, 0)
    assert details(rmsnorm, "decomposition")["hard"]["dim"] == 0


def test_a_rotation_changes_no_number_of_an_rmsnorm_model(rmsnorm):
    assert rmsnorm.findings["gauge"].verdict is Verdict.PASS
    assert details(rmsnorm, "gauge")["kind"] == "rotation"
    assert abs(details(rmsnorm, "gauge")["dependent"]["cosine with v"][1]) < 0.9


def test_dead_coordinates_are_null_to_first_order(run_of, tmp_path):
    model = ground_truth.widened_llama()
    rival = vector(model.null.sum(1)).save(tmp_path / "dead.safetensors")
    v = vector(direction(D_MODEL + DEAD))
    run = run_of(
        model.lm, v, audits="nulls,saturation", against=(str(rival),), num_prompts=4
    )
    dead = details(run, "nulls")["directions"]["against[dead]"]
    assert dead["class"] == Verdict.FIRST_ORDER_NULL
    assert dead["slope"] == pytest.approx(4, abs=0.3)
    assert run.findings["nulls"].verdict is Verdict.FIRST_ORDER_NULL
    for name in ("random", "top", "v"):
        other = details(run, "nulls")["directions"][name]
        assert other["slope"] == pytest.approx(2, abs=0.1)
    assert run.findings["saturation"].estimate.value == DEAD


def test_the_planted_null_space_of_a_linear_model_is_found(linear):
    null = ground_truth.WIDTH - len(SINGULAR)
    saturation = linear.findings["saturation"]
    assert saturation.verdict is Verdict.SHARED_NULL
    assert saturation.estimate.value == null
    assert details(linear, "saturation")["num"] == [1, 2, 4, 8]
    ranks = details(linear, "spectrum")["families"]["F_bar"]["ranks"]
    assert ranks["0.0001"] == ranks["0.001"] == len(SINGULAR)
    assert classes(linear)["smallest 3"] == Verdict.EXACT_NULL
    hard = details(linear, "decomposition")["hard"]
    assert hard["dim"] == null
    assert hard["share"] == pytest.approx(0.5, abs=1e-6)


def test_half_of_v_in_a_null_space_is_an_alternative_at_a_right_angle(linear):
    found = details(linear, "alternative")["candidates"]
    assert [one["budget"] for one in found] == [0.01, 0.05, 0.2]
    for one in found:
        assert one["cosine"] <= 0.01
        assert (
            one["nats"][0]
            <= one["budget"] * details(linear, "alternative")["effect"][0]
        )


def test_logits_of_a_linear_model_have_no_radius(linear):
    v = details(linear, "linearity")["directions"]["v"]
    assert v["bound_logits"] == "at least"
    assert max(d for d in v["departure"] if d is not None) < 1e-6


def test_a_model_whose_embedding_is_unknown_has_no_known_gauge(linear):
    assert linear.findings["gauge"].verdict is Verdict.UNINFORMATIVE
    assert "Neither is known here" in details(linear, "gauge")["reason"]


def test_no_number_depends_on_the_basis_that_the_model_is_written_in(run_of):
    rotated, q = ground_truth.rotated_llama()
    v = direction().double()
    audits = "spectrum,decomposition,alternative"
    own, turned = (
        run_of(lm, vector(u), audits=audits)
        for lm, u in ((ground_truth.narrow_llama(), v), (rotated, v @ q))
    )
    # Vectors are kept in float32: 1e-7, and more of it in what is found by them.
    close = {"rel": 1e-4, "abs": 1e-7}
    spectra = [details(run, "spectrum") for run in (own, turned)]
    for key in ("values", "shares", "effect", "predicted"):
        assert spectra[0][key] == pytest.approx(spectra[1][key], **close)
    rho = [details(run, "decomposition")["rho"] for run in (own, turned)]
    assert rho[0] == pytest.approx(rho[1], **close)
    for key in ("cosine", "nats", "predicted", "shrink"):
        found = [
            [one[key] for one in details(run, "alternative")["candidates"]]
            for run in (own, turned)
        ]
        for first, second in zip(*found, strict=True):
            assert first == pytest.approx(second, rel=1e-3)
    # Not vacuous: the same coordinates are another vector in the other basis.
    wrong = run_of(rotated, vector(v), audits="decomposition")
    assert details(wrong, "decomposition")["rho"] != pytest.approx(rho[0], rel=0.02)


class Stopped(BaseException):
    """What a kill looks like from inside."""


class Told:
    """Counts the units of every stage; stops the run where it is told to."""

    def __init__(self, last: int | None = None) -> None:
        self.stages: list[list] = []
        self.last = last

    def begin(self, label: str, total: int) -> None:
        if len(self.stages) == self.last:
            raise Stopped
        self.stages.append([label, total, 0])

    def advance(self, num: int) -> None:
        self.stages[-1][2] += num


@pytest.mark.parametrize(
    ("audits", "every"), [("geometry", 4), ("saturation,nulls", 1)]
)
def test_a_run_that_is_stopped_before_its_stages_ends_with_the_same_bytes(
    audits, every, prompts, tmp_path
):
    options = SMALL | {"prompts": prompts, "audits": audits, "num_prompts": 2}

    def run_in(name: str, told: Told):
        lm, v = tiny("gpt2"), with_mean()
        return audit(lm, v, out=tmp_path / name, progress=told, **options)

    first = Told()
    whole = run_in("whole", first)
    assert len(first.stages) > 7
    for last in range(0, len(first.stages), every):
        told = Told(last)
        with pytest.raises(Stopped):
            run_in("stopped", told)
        assert told.stages == first.stages[:last]
        assert all(done == total for _, total, done in told.stages)
    again = Told()
    resumed = run_in("stopped", again)
    # Stages that were done before are told of as done.
    assert again.stages == first.stages
    findings = [run.store.folder / "findings.json" for run in (whole, resumed)]
    assert findings[0].read_bytes() == findings[1].read_bytes()
    assert whole.store.generations() == resumed.store.generations()
    stages = {row["stage"] for row in resumed.store.generations()}
    assert {"geometry-unsteered", "geometry-v", "test"} <= stages


def test_pairs_add_the_comparison_of_methods(prompts, tmp_path):
    rows = [
        {"positive": f"the {word} of a sunny day", "negative": f"the {word} of rain"}
        for word in planted.NEUTRAL[:10]
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, rows)))
    options = SMALL | {"prompts": prompts, "pairs": str(pairs), "audits": "methods"}
    run = audit(tiny("llama"), out=tmp_path / "run", **options)
    found = details(run, "methods")
    assert found["names"][0] == "mean_difference"
    assert {"logistic", "principal_component", "sign_flip"} <= {*found["names"]}
    # Matched at the cost by F_bar, so that v keeps its own strength.
    assert found["strengths"]["mean_difference"] == 1
    assert all(math.isfinite(size) for size in found["strengths"].values())


def test_methods_alone_cannot_be_asked_for_without_pairs(prompts, tmp_path):
    options = SMALL | {"prompts": prompts, "audits": "methods"}
    with pytest.raises(BadSpec, match="pairs"):
        audit(tiny("llama"), vector(direction()), out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_too_few_prompts_for_the_geometry_are_refused_before_the_run(tmp_path):
    few = planted.prompt_file(tmp_path, 10)
    options = SMALL | {"prompts": few, "num_prompts": 8, "num_dose_prompts": 1}
    with pytest.raises(BadPrompts, match="geometry"):
        audit(tiny("llama"), vector(direction()), out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_shift_of_response_tokens_alone_needs_texts_that_are_long_enough(run_of):
    changes = {"scope": "response", "audits": "nulls,saturation,spectrum"}
    # One token of a text cannot show a shift that begins with it.
    run = run_of(tiny("gpt2"), with_mean(), geometry_tokens=1, **changes)
    assert run.findings["saturation"].estimate.value == 1
    assert classes(run)["top"] == Verdict.VISIBLE
    families = details(run, "spectrum")["families"]
    assert families["J_h"] is None  # The first token does not see it.
    assert families["F_x"]["stable"] >= 1
    with pytest.raises(BadPrompts, match="scope response"):
        run_of(tiny("gpt2"), with_mean(), max_new_tokens=1, **changes)


def test_at_another_temperature_small_steps_still_cost_their_quadratic(run_of):
    changes = {"audits": "spectrum,linearity", "alpha": 0.1, "temperature": 0.6}
    run = run_of(tiny("gpt2"), with_mean(), **changes)
    found = details(run, "spectrum")
    assert found["effect"] > 1e-4
    # Logits that are not divided by it would cost a third as much.
    assert found["predicted"] == pytest.approx(found["effect"], rel=0.05)
    assert found["families"]["F_x"]["stable"] > 1
    v = details(run, "linearity")["directions"]["v"]
    assert v["ratio"][-1] == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_audited_on_a_wider_copy(run_of, dtype):
    lm = borrowed(network("gpt2").to(dtype))
    changes = {"audits": "nulls,saturation", "num_prompts": 4}
    run = run_of(lm, with_mean(), **changes)
    assert {weight.dtype for weight in lm.model.parameters()} == {dtype}
    assert run.findings["saturation"].estimate.value == 1
    assert classes(run)["all-ones"] == Verdict.EXACT_NULL
    assert classes(run)["top"] == Verdict.VISIBLE
    # Of the copy: in half precision it would be a thousandth or a hundredth.
    assert details(run, "saturation")["floor"] < 1e-4
