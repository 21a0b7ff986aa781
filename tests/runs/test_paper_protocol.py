"""Numbers of the published kind are compared, arm by arm, with what the published
method gives when written down independently on the same model and seeds.

A small run of the paper's preset on the planted model; what it stored (vectors and
texts) goes through `tests.paper_protocol`, which has nothing of this package.
"""

import re

import numpy as np
import pytest
from pyarrow import parquet
from safetensors.torch import load_file
from tests import paper_protocol as published
from tests import planted

from steergauge.prompts import trait
from steergauge.runs.execute import audit

LAYER = planted.LAYER
ALPHAS = (0.5, 1.0, 2.0)
SAMPLES, DIRECTIONS = 3, 3
HOME, AWAY = "in-distribution", "elsewhere"
OPTIONS = {
    "layer": LAYER,
    "alphas": ALPHAS,
    "environments": (HOME, AWAY),
    "published_code": True,
    "num_pairs": 12,
    "num_prompts": 6,
    "num_dose_prompts": 2,
    "num_environment_prompts": 4,
    "samples": SAMPLES,
    "environment_samples": SAMPLES,
    "max_new_tokens": 4,
    "num_perpendicular": DIRECTIONS,
    "num_random": 8,
}
OTHER_KERNELS = 1e-4
"""Batches take other kernels than single rows: float32 rounding in logits of size 1
to 10, and in streams of that size."""

SAME = 1e-9
"""Sums of the same float64 numbers in another order."""


def listed(words) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


def trait_file(folder) -> str:
    """The planted trait, with contrast pairs and a second environment."""
    # Every second prompt has a marker, which only a probe of prompts can see.
    prompts = [
        f"{planted.HIGH[i % 6]} {prompt}" if i % 2 else prompt
        for i, prompt in enumerate(planted.prompts(16))
    ]
    half = len(planted.NEUTRAL) // 2
    labelled = {
        pole: [f"{word} {planted.NEUTRAL[i]}" for i in (0, 1) for word in words]
        for pole, words in (("high", planted.HIGH), ("low", planted.LOW))
    }
    path = folder / "happiness.toml"
    path.write_text(
        f'name = "happiness"\nhigh = "happy"\nlow = "sad"\n'
        f"prompts = {listed(prompts[:12])}\n"
        '[pairs]\npositive = ["glad {topic} happy", "merry {topic} sunny"]\n'
        'negative = ["glum {topic} sad", "sorry {topic} bleak"]\n'
        f"topics = {listed(planted.NEUTRAL[:half])}\n"
        f"[environments.{AWAY}]\ntopics = {listed(planted.NEUTRAL[half:])}\n"
        f"prompts = {listed(prompts[12:])}\n"
        f"[probe]\nhigh = {listed(planted.HIGH)}\nlow = {listed(planted.LOW)}\n"
        f"[probe.validation]\nhigh = {listed(labelled['high'])}\n"
        f"low = {listed(labelled['low'])}\n",
        encoding="utf-8",
    )
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    return audit(
        planted.planted(),
        out=folder / "run",
        preset="paper",
        trait=trait_file(folder),
        **OPTIONS,
    )


@pytest.fixture(scope="module")
def plain():
    lm = planted.planted()
    return published.PlainModel(lm.model, lm.tokenizer, lm.model.transformer.h[LAYER])


@pytest.fixture(scope="module")
def vectors(run):
    """Directions by the name of the arm, as they were stored."""
    return {
        re.sub(r"-(\d+)$", r"[\1]", path.stem): load_file(path)["direction"].numpy()
        for path in run.store.vectors.glob("*.safetensors")
    }


@pytest.fixture(scope="module")
def scores(run):
    """Scores by stage and arm, (prompts, samples)."""
    found: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for row in run.store.generations():
        cells = found.setdefault((row["stage"], row["arm"]), {})
        cells[row["prompt_index"], row["sample"]] = row["score"]
    return {
        key: np.array([cells[place] for place in sorted(cells)]).reshape(-1, SAMPLES)
        for key, cells in found.items()
    }


def family(scores, name, *, stage="test"):
    """Flat lists of scores of every direction of a family."""
    arms = [arm for where, arm in scores if where == stage]
    named = [arm for arm in arms if arm.partition("[")[0] == name]
    return [scores[stage, arm].ravel() for arm in named]


def test_every_vector_is_the_published_mean_difference(run, plain, vectors):
    pairs = [
        (pair.positive.prompt, pair.negative.prompt)
        for pair in trait(run_trait(run)).pairs(12, seed=0)
    ]
    # `hidden_states[i]` is the input of block i, the output of block i - 1.
    ours = plain.mean_difference(pairs, LAYER + 1)
    theirs = plain.mean_difference(pairs, LAYER)
    assert np.linalg.norm(ours - theirs) > 0.1 * np.linalg.norm(ours)
    assert vectors["v"] == pytest.approx(ours, abs=OTHER_KERNELS)
    assert vectors["code_v"] == pytest.approx(theirs, abs=OTHER_KERNELS)


def run_trait(run) -> str:
    return str(run.store.folder.parent / "happiness.toml")


@pytest.mark.parametrize("prefix", ["", "code_"])
def test_every_v_perp_is_perpendicular_of_the_norm_of_v(vectors, prefix):
    v = vectors[f"{prefix}v"].astype(float)
    norm = np.linalg.norm(v)
    for j in range(DIRECTIONS):
        perp = vectors[f"{prefix}perp[{j}]"].astype(float)
        assert np.linalg.norm(perp) == pytest.approx(norm, rel=1e-6)
        assert abs(perp @ v) < 1e-6 * norm**2
        total = vectors[f"{prefix}v_plus_perp[{j}]"]
        assert total == pytest.approx(v + perp, abs=1e-6 * norm)


GEOMETRY = ("geometry_random", "geometry_added", "geometry_perp")


def step(vectors, name: str) -> np.ndarray | None:
    """What is added under an arm of the test, at alpha = 1."""
    if name == "unsteered":
        return None
    if name == "minus_v":
        return -vectors["v"]
    if name == "v_recomputed":
        return vectors["v"]
    return vectors[name]


def distances(run):
    """Rows of the run's next-token distances."""
    cells = sorted((run.store.folder / "cells").glob("next-token-*.parquet"))
    return [row for cell in cells for row in parquet.read_table(cell).to_pylist()]


@pytest.fixture(scope="module")
def logit_tables(run, plain, vectors):
    """The published measures of every compared arm on every prompt."""
    prompts = {
        row["prompt_index"]: row["prompt"]
        for row in run.store.generations()
        if row["stage"] == "test"
    }
    own = {i: plain.next_token_logits(p, vectors["v"]) for i, p in prompts.items()}
    found = {}
    for row in distances(run):
        i, name = row["prompt_index"], row["other"]
        if name.partition("[")[0] in GEOMETRY:
            continue  # More of the same families, whose vectors are not kept.
        other = plain.next_token_logits(prompts[i], step(vectors, name))
        found[name, i] = published.logit_table(own[i], other)
    return found


def test_every_arms_next_token_is_that_of_the_plain_model(run, logit_tables):
    rows = distances(run)
    names = {row["other"] for row in rows}
    families = {name.partition("[")[0] for name in names}
    assert {"unsteered", "minus_v", "perp", "v_plus_perp", "v_turned"} <= families
    assert {"random", "v_recomputed", *GEOMETRY} <= families
    assert len(rows) == len(names) * OPTIONS["num_prompts"]
    for row in rows:
        if row["other"].partition("[")[0] in GEOMETRY:
            continue
        theirs = logit_tables[row["other"], row["prompt_index"]]
        assert (theirs["l2"] > 0.1) == (row["other"] != "v_recomputed")
        assert row["l2"] == pytest.approx(theirs["l2"], abs=OTHER_KERNELS)
        assert (row["agreement"], row["overlap"]) == (
            theirs["agreement"],
            theirs["overlap"],
        )


def test_r_agreement_and_overlap_are_the_published_ones(run, logit_tables):
    def mean(name: str, measure: str, most: int = 99) -> list[float]:
        return [
            values[measure]
            for (arm, _), values in logit_tables.items()
            if arm.partition("[")[0] == name
            and int((arm.partition("[")[2] or "0]")[:-1]) < most
        ]

    details = run.findings["logits"].details
    expected = published.ratio(mean("v_plus_perp", "l2", 5), mean("random", "l2", 3))
    assert details["ratio_published"] == pytest.approx(expected, rel=OTHER_KERNELS)
    for name, columns in details["measures"].items():
        for measure in ("agreement", "overlap", "l2"):
            theirs = np.mean(mean(name, measure))
            assert columns[measure][0] == pytest.approx(theirs, abs=OTHER_KERNELS)


def test_every_score_is_the_probes_and_of_the_text_that_is_meant(run, plain):
    whole = moved = 0
    for row in run.store.generations():
        text = row["text"]
        if row["arm"].startswith("code_"):
            text = plain.scored_text(row["prompt"], row["token_ids"])
            assert text.startswith(row["prompt"])
            assert text.endswith(row["text"])
            assert (row["layer"], row["alpha"]) == (LAYER, 1.0)
            whole += 1
            alone = published.marker_score(row["text"], planted.HIGH, planted.LOW)
            moved += abs(alone - row["score"]) > 0.01
        expected = published.marker_score(text, planted.HIGH, planted.LOW)
        assert row["score"] == pytest.approx(expected, abs=SAME)
    assert whole == (1 + 2 * DIRECTIONS) * OPTIONS["num_prompts"] * SAMPLES
    # A marker in the prompt counts there, and in half of the prompts there is one.
    assert moved == whole / 2


def compare_row(row, own, added, perp=None):
    assert len(added) == DIRECTIONS
    for key, value in published.over_seeds(own, added).items():
        assert row[key] == pytest.approx(value, abs=SAME), key
    if perp is not None:
        percent = published.perp_only(perp, own)
        assert row["perp_only_percent"] == pytest.approx(percent, rel=SAME)


def test_d_r_and_perp_only_are_the_published_ones(run, scores):
    details = run.findings["replication"].details
    (own,) = family(scores, "v")
    fresh, perp = family(scores, "v_plus_perp_fresh"), family(scores, "perp")
    (row,) = details["published"]
    compare_row(row, own, fresh, perp)
    compare_row(details["itself"], own, family(scores, "v_again"))
    for j, dot in enumerate(details["per_seed"]):
        assert dot["d"] == pytest.approx(published.effect_size(own, fresh[j]))
        percent = published.perp_only([perp[j]], own)
        assert dot["perp_percent"] == pytest.approx(percent)
    others = details["others"]
    assert {"unsteered", "minus_v", "random", "sign_flip", "v_turned"} <= set(others)
    for name, numbers in others.items():
        arms = family(scores, name)
        d = [published.effect_size(own, other) for other in arms]
        assert numbers["num"] == len(arms)
        assert numbers["d_mean"] == pytest.approx(np.mean(d), abs=SAME)


def test_the_published_codes_variant_is_compared_with_itself(run, scores):
    row = run.findings["replication"].details["code"]
    (own,) = family(scores, "code_v")
    added, perp = family(scores, "code_v_plus_perp"), family(scores, "code_perp")
    compare_row(row, own, added, perp)
    # Another variant: not the numbers of the one that is read and written at one site.
    (plain_row,) = run.findings["replication"].details["published"]
    assert row["d_mean"] != plain_row["d_mean"]


def test_lifts_and_raw_scores_are_plain_means(run, scores):
    details = run.findings["replication"].details
    for name, value in details["raw_scores"].items():
        assert value == pytest.approx(np.mean(family(scores, name)), rel=SAME)
    v, base = (np.mean(family(scores, name)) for name in ("v", "unsteered"))
    perp = np.mean(family(scores, "perp"))
    assert details["lift_v"][0] == pytest.approx(v - base, abs=SAME)
    assert details["lift_ratio"][0] == pytest.approx((perp - base) / (v - base))


def test_the_response_curve_is_figure_3(run, scores):
    curve = run.findings["scale[every alpha]"].details["curve"]
    assert [point["alpha"] for point in curve] == [0.0, *ALPHAS]
    for point in curve:
        alpha = point["alpha"]
        suffix = "" if alpha == 1 else f"@{alpha:g}"
        for name in ("v", "v_plus_perp"):
            arm = f"{name}{suffix}" if alpha else "unsteered"
            texts = np.concatenate(family(scores, arm))
            half = 1.96 * texts.std(ddof=1) / np.sqrt(len(texts))
            expected = [texts.mean(), texts.mean() - half, texts.mean() + half]
            assert point[name] == pytest.approx(expected, abs=SAME)


def test_environments_are_crossed_and_their_d_is_that_of_table_2(run, scores, vectors):
    cells = run.findings["environments"].details["cells"]
    places = {(cell["source"], cell["target"]) for cell in cells}
    assert places == {(e, there) for e in (HOME, AWAY) for there in (HOME, AWAY)}
    for cell in cells:
        source, stage = cell["source"], f"environment {cell['target']}"
        (own,) = family(scores, f"v({source})", stage=stage)
        fresh = family(scores, f"v_plus_perp_fresh({source})", stage=stage)
        if cell["published_d"] is None:
            assert not fresh
            continue
        d = [published.effect_size(own, other) for other in fresh]
        assert cell["published_d"] == pytest.approx(np.mean(d), abs=SAME)
        assert cell["num_texts"] == len(own)
        base = np.mean(family(scores, "unsteered", stage=stage))
        assert cell["lift"][0] == pytest.approx(np.mean(own) - base, abs=SAME)
    assert sum(cell["published_d"] is not None for cell in cells) == 3
    # The other environment's vector is another one, at the norm of v.
    away, v = vectors[f"environment_v({AWAY})"], vectors["v"]
    assert np.linalg.norm(away) == pytest.approx(np.linalg.norm(v), rel=1e-6)
    assert np.linalg.norm(away - v) > 0.05 * np.linalg.norm(v)


def test_steerability_is_the_slope_of_every_prompts_mean_score(run, scores):
    details = run.findings["reliability"].details
    by_alpha = {-1.0: "minus_v", 0.0: "unsteered", 0.5: "v@0.5", 1.0: "v", 2.0: "v@2"}
    assert details["alphas"] == list(by_alpha)
    table = np.stack([scores["test", arm].mean(1) for arm in by_alpha.values()])
    slopes = np.polyfit(list(by_alpha), table, 1)[0]
    assert details["slopes"] == pytest.approx(sorted(slopes), abs=SAME)
    assert details["raw_share"] == np.mean(slopes < 0)


def test_with_a_negative_alpha_scores_are_counted_from_the_other_pole(run, tmp_path):
    """|d| and r do not see it; perp-only is of 1 - score, and lifts are positive."""
    options = OPTIONS | {"alpha": -1.0, "published_code": False, "environments": ()}
    down = audit(
        planted.planted(),
        planted.trait_vector(),
        out=tmp_path,
        preset="paper",
        trait=run_trait(run),
        audits=("replication", "reliability"),
        **options,
    )
    rows = [row for row in down.store.generations() if row["stage"] == "test"]
    arms: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: (row["prompt_index"], row["sample"])):
        arms.setdefault(row["arm"], []).append(row["score"])
    assert {row["alpha"] for row in rows if row["arm"] == "v"} == {-1.0}
    details = down.findings["replication"].details
    (row,) = details["published"]
    named = [
        {name: arms[f"{name}[{j}]"] for name in ("v_plus_perp_fresh", "perp")}
        for j in range(DIRECTIONS)
    ]
    mirrored = [1 - np.array(one["perp"]) for one in named]
    compare_row(row, arms["v"], [one["v_plus_perp_fresh"] for one in named])
    percent = published.perp_only(mirrored, 1 - np.array(arms["v"]))
    assert row["perp_only_percent"] == pytest.approx(percent)
    fall = np.mean(arms["unsteered"]) - np.mean(arms["v"])
    assert fall > 0.05
    assert details["lift_v"][0] == pytest.approx(fall)
    # Slopes are over alpha itself, which needs no orientation.
    slopes = down.findings["reliability"].details
    assert slopes["alphas"] == [-1.0, 0.0, 1.0]
    assert slopes["mean_slope"] > 0
