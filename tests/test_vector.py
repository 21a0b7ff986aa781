"""A vector's file holds all of it, bit for bit; a damaged or unfit one is refused."""

import dataclasses
import json
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tests.models import D_MODEL, tiny

from steergauge.errors import (
    CorruptVector,
    LayerOutOfRange,
    NonFiniteVector,
    NoSuchFile,
    ShapeMismatch,
    WrongModel,
    ZeroVector,
)
from steergauge.vector import Provenance, Site, SteeringVector, load_vector

FULL = Provenance(
    method="mean_difference",
    position="index:-2",
    model="some/model",
    revision="abc123",
    fingerprint="0123456789abcdef",
    chat_template="fedcba",
    pairs="a1b2",
    num_pairs=50,
    seed=7,
    median_norm=12.5,
    parent="v + noise",
    versions={"torch": "2.13.0", "python": "3.11"},
)


def ones(width: int = D_MODEL, *, layer: int = 1, **provenance: str) -> SteeringVector:
    return SteeringVector(torch.ones(width), Site(layer), Provenance(**provenance))


def written(
    path: Path, metadata: dict[str, str] | None, name: str = "direction"
) -> Path:
    save_file({name: torch.ones(4)}, path, metadata=metadata)
    return path


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.fixture
def as_installed():
    """Without the run-time check of annotations, which would refuse it first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_every_field_of_the_provenance_survives_a_round_trip(tmp_path):
    defaults = Provenance()
    for field in dataclasses.fields(Provenance):
        # Not vacuous: no field of the example has its default.
        assert getattr(FULL, field.name) != getattr(defaults, field.name)
    vector = SteeringVector(torch.randn(D_MODEL), Site(3), FULL)
    again = load_vector(vector.save(tmp_path / "deep" / "v.safetensors"))
    assert again.provenance == FULL
    assert again.site == Site(3)
    assert torch.equal(again.direction, vector.direction)


@settings(max_examples=30)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_the_direction_survives_a_round_trip_bitwise(tmp_path_factory, values):
    direction = torch.tensor(values, dtype=torch.float32)
    path = tmp_path_factory.mktemp("v") / "v.safetensors"
    again = load_vector(SteeringVector(direction, Site(0)).save(path)).direction
    # As bits, so that -0.0 and subnormal numbers count.
    assert torch.equal(again.view(torch.int32), direction.view(torch.int32))


def test_the_file_says_what_the_direction_is_for(tmp_path):
    metadata = metadata_of(ones(layer=2).save(tmp_path / "v.safetensors"))
    record = json.loads(metadata["record"])
    assert (metadata["format"], metadata["format_version"]) == (
        "steergauge.vector",
        "1",
    )
    assert record["site"] == {"layer": 2, "stream": "block output"}
    assert record["operator"] == "add"
    assert "alpha multiplies" in record["dose_unit"]


def test_the_direction_is_stored_unnormalised(tmp_path):
    vector = SteeringVector(torch.full((4,), 3.0), Site(0))
    assert load_vector(vector.save(tmp_path / "v")).norm == vector.norm == 6.0


def test_saving_replaces_the_whole_file_or_nothing(tmp_path):
    path = tmp_path / "v.safetensors"
    ones(width=400).save(path)
    with path.open("rb") as held:
        before = held.read()
        ones(width=4).save(path)
        # Who had the old file open still reads all of it: it was not written into.
        held.seek(0)
        assert held.read() == before
    assert len(load_vector(path).direction) == 4
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    # Where the new file cannot be written, the old one stays.
    path.with_name(path.name + ".part").mkdir()
    with pytest.raises((OSError, SafetensorError)):
        ones(width=8).save(path)
    assert len(load_vector(path).direction) == 4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_direction_that_is_not_finite_is_refused_and_counted(bad, tmp_path):
    direction = torch.ones(6)
    direction[[1, 4]] = bad
    with pytest.raises(NonFiniteVector, match=r"2 of .* 6 entries"):
        SteeringVector(direction, Site(0))
    path = ones(width=6).save(tmp_path / "v")
    save_file({"direction": direction}, path, metadata=metadata_of(path))
    with pytest.raises(NonFiniteVector, match=r"2 of .* 6 entries"):
        load_vector(path)


@pytest.mark.parametrize("shape", [(), (2, 3), (1, 4)])
def test_a_file_whose_direction_has_another_number_of_axes_is_refused(
    shape, tmp_path, as_installed
):
    path = ones().save(tmp_path / "v")
    save_file({"direction": torch.ones(shape)}, path, metadata=metadata_of(path))
    with pytest.raises(ShapeMismatch, match=r"one axis, .* shape \("):
        load_vector(path)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_corrupt(share, tmp_path):
    path = ones().save(tmp_path / "v")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CorruptVector, match="cannot be read as safetensors"):
        load_vector(path)


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_random_bytes_are_corrupt(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("v") / "v.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptVector):
        load_vector(path)


def test_safetensors_of_another_tool_are_refused(tmp_path):
    path = tmp_path / "v"
    for metadata in (None, {"format": "pt"}):
        with pytest.raises(CorruptVector, match="no steering vector of ours"):
            load_vector(written(path, metadata))
    ours = metadata_of(ones().save(tmp_path / "ours"))
    with pytest.raises(CorruptVector, match="no steering vector of ours"):
        load_vector(written(path, ours, name="layer3.v"))


def test_a_newer_format_is_refused_with_both_versions(tmp_path):
    ours = metadata_of(ones().save(tmp_path / "ours"))
    path = written(tmp_path / "v", ours | {"format_version": "2"})
    with pytest.raises(CorruptVector, match=r"version 2, .* reads 1"):
        load_vector(path)


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "[]",
        "{}",
        '{"site": {"layer": "x"}, "provenance": {}}',
        '{"site": {"layer": 1}, "provenance": {"colour": "red"}}',
        '{"site": {"layer": 1}, "provenance": 3}',
    ],
)
def test_an_unreadable_provenance_is_corrupt(record, tmp_path):
    ours = metadata_of(ones().save(tmp_path / "ours"))
    path = written(tmp_path / "v", ours | {"record": record})
    with pytest.raises(CorruptVector, match="provenance"):
        load_vector(path)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(NoSuchFile, match=str(path)):
            load_vector(path)


def test_a_vector_of_another_width_does_not_fit_and_both_widths_are_named():
    lm = tiny("llama")
    ones().check_fits(lm)
    with pytest.raises(ShapeMismatch, match=rf"64 wide.* {D_MODEL} wide.*'?big/model"):
        ones(width=64, model="big/model").check_fits(lm)


def test_a_vector_above_the_last_block_does_not_fit():
    with pytest.raises(LayerOutOfRange, match=r"layer 4 .* blocks 0 to 3"):
        ones(layer=4).check_fits(tiny("llama"))


def test_a_zero_vector_has_no_direction():
    zero = SteeringVector(torch.zeros(D_MODEL), Site(1))
    with pytest.raises(ZeroVector, match="no direction"):
        zero.check_fits(tiny("llama"))


def test_a_vector_of_another_model_needs_to_be_accepted_on_purpose():
    lm = tiny("llama")
    ones(fingerprint=lm.fingerprint).check_fits(lm)
    stranger = ones(fingerprint=tiny("qwen3").fingerprint, model="a/b")
    with pytest.raises(WrongModel, match=f"a/b .*{lm.fingerprint}.*--other-model"):
        stranger.check_fits(lm)
    stranger.check_fits(lm, other_model=True)
    with pytest.raises(ShapeMismatch):
        ones(width=64).check_fits(lm, other_model=True)


def test_a_derived_vector_keeps_the_site_and_says_what_it_was_made_of():
    vector = SteeringVector(torch.ones(4), Site(2), FULL)
    derived = vector.with_direction(-vector.direction, "minus v")
    assert derived.site == vector.site
    assert derived.provenance == dataclasses.replace(FULL, parent="minus v")
    assert torch.equal(derived.direction, -torch.ones(4))
