"""A twin in another basis is the same function, or there is no twin."""

import dataclasses

import pytest
import torch
from tests.models import (
    D_MODEL,
    FAMILIES,
    NUM_LAYERS,
    borrowed,
    config,
    ids_and_mask,
    network,
    reinitialised,
    tiny,
)
from torch import nn
from transformers import AutoModelForCausalLM

from steergauge.errors import ModelError, WrongModel
from steergauge.geometry import twin
from steergauge.geometry.twin import rotated_twin, shifted
from steergauge.intervention import Scope
from steergauge.jacobian import Shift, suffix_jacobian
from steergauge.vector import Provenance, Site, SteeringVector

ROTATED = ("llama", "qwen2", "qwen3", "mistral", "phi3")
SHIFTED = ("gpt2", "gpt_neox")
IDS, MASK = ids_and_mask(11, 6)

FLOAT32 = 1e-4
"""In logits of size 1: rotated weights and streams round otherwise, at 6e-8 of their
size, and four blocks add that up to about 1e-6."""


def vector(layer: int = 1, size: float = 6.0) -> SteeringVector:
    drawn = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(5))
    return SteeringVector(size * drawn / drawn.norm(), Site(layer))


def steered(lm, v: SteeringVector | None) -> torch.Tensor:
    """Logits at real tokens with v added everywhere after its block."""
    edits = {} if v is None else {v.site.layer: lambda h: h + v.direction.to(h)}
    return lm.logits(IDS, MASK, edits=edits)[MASK]


def deviation(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first.double() - second.double()).abs().max())


def llama_like(**options) -> AutoModelForCausalLM:
    """A tiny llama whose configuration has other options."""
    settings = config("llama")
    for name, value in options.items():
        setattr(settings, name, value)
    return reinitialised(AutoModelForCausalLM.from_config(settings)).eval()


@pytest.mark.parametrize("layer", [0, 1, NUM_LAYERS - 1])
@pytest.mark.parametrize("family", ROTATED)
def test_q_v_does_in_the_twin_what_v_does_and_v_itself_does_not(family, layer):
    lm, v = tiny(family), vector(layer)
    found = rotated_twin(lm, seed=3)
    effect = deviation(steered(lm, v), steered(lm, None))
    assert effect > 0.5
    turned = found.rotated(v)
    assert deviation(steered(lm, None), steered(found.lm, None)) < FLOAT32
    assert deviation(steered(lm, v), steered(found.lm, turned)) < FLOAT32
    assert deviation(steered(lm, v), steered(found.lm, v)) > 0.5
    assert turned.norm == pytest.approx(v.norm, rel=1e-6)
    assert abs(float(turned.direction @ v.direction)) < 0.5 * v.norm**2


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(ROTATED)))
def test_a_family_whose_parts_may_not_commute_with_a_rotation_is_refused(family):
    with pytest.raises(ModelError, match="may not commute with a rotation"):
        rotated_twin(tiny(family), seed=0)


@pytest.mark.parametrize(
    "options",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
    ],
    ids=["biases", "tied"],
)
def test_biases_and_tied_embeddings_are_turned_as_well(options):
    lm, v = borrowed(llama_like(**options)), vector()
    found = rotated_twin(lm, seed=0)
    assert deviation(steered(lm, v), steered(found.lm, found.rotated(v))) < FLOAT32
    weights = found.lm.model.get_input_embeddings().weight
    head = found.lm.model.get_output_embeddings().weight
    assert head.data_ptr() != weights.data_ptr()
    # Tied again by Hugging Face on any later call, the twin would be another model.
    found.lm.model.tie_weights()
    assert deviation(steered(lm, v), steered(found.lm, found.rotated(v))) < FLOAT32


def test_the_original_keeps_its_weights_and_shares_none_with_its_twin():
    lm = borrowed(llama_like(tie_word_embeddings=True))
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    found = rotated_twin(lm, seed=0)
    after = dict(lm.model.named_parameters())
    assert all(bool((after[name] == before[name]).all()) for name in before)
    assert lm.model.config.tie_word_embeddings
    places = {p.data_ptr() for p in lm.model.parameters()}
    assert not places & {p.data_ptr() for p in found.lm.model.parameters()}
    assert found.lm.prove(again=True) < FLOAT32


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_singular_values_of_the_jacobian_are_those_of_the_original(family):
    lm = tiny(family)
    found = rotated_twin(lm, seed=1)
    shift = Shift(Site(1), Scope.GENERATING)
    row = (IDS[0].tolist(), 8)
    ours, theirs = (suffix_jacobian(one, row, shift=shift) for one in (lm, found.lm))
    fisher, turned = ours.fisher(), theirs.fisher()
    size = float(fisher.abs().max())
    assert deviation(fisher, turned) > 0.1 * size
    back = found.rotation @ turned @ found.rotation.T
    # Derivatives lose about a digit more than values.
    assert deviation(fisher, back) < 1e-4 * size
    values = [torch.linalg.eigvalsh(f).flip(0) for f in (fisher, turned)]
    assert deviation(*values) < 1e-4 * float(values[0][0])


def test_rotations_are_orthogonal_and_differ_by_seed():
    first, again, other = (rotated_twin(tiny(), seed=s).rotation for s in (0, 0, 1))
    assert deviation(first @ first.T, torch.eye(D_MODEL)) < 1e-12
    assert deviation(first, again) == 0
    assert deviation(first, other) > 0.1


def test_a_model_in_half_precision_has_a_twin_in_float32():
    lm = tiny(dtype=torch.bfloat16)
    found = rotated_twin(lm, seed=0)
    wide = rotated_twin(tiny(), seed=0)
    assert found.lm.dtype is torch.float32
    # Rounded again to bfloat16, the rotated weights would be off by 2^-9 each.
    assert found.error < 1e-5
    assert wide.error < 1e-5
    assert lm.dtype is torch.bfloat16


class Centred(nn.Module):
    """A LayerNorm without bias, which has the one weight that an RMSNorm has."""

    def __init__(self, like):
        super().__init__()
        self.weight = like.weight

    def forward(self, h):
        return nn.functional.layer_norm(h, h.shape[-1:], self.weight)


def test_a_llama_that_takes_means_away_is_refused_by_what_it_computes():
    model = network("llama")
    for block in model.model.layers:
        block.input_layernorm = Centred(block.input_layernorm)
    with pytest.raises(ModelError, match=r"a rotation .*changes what .*computes"):
        rotated_twin(borrowed(model), seed=0)


@pytest.mark.parametrize("place", ["q_proj", "o_proj", "down_proj", "up_proj"])
def test_one_map_that_is_not_turned_is_seen_by_the_proof(place, monkeypatch):
    maps = twin._linear_maps

    def forgetful(block):
        return {name: m for name, m in maps(block).items() if name != place}

    model = network("llama")
    assert rotated_twin(borrowed(model), seed=0).error < 1e-5
    monkeypatch.setattr(twin, "_linear_maps", forgetful)
    monkeypatch.setattr(twin, "_check_parts", lambda lm: None)
    with pytest.raises(ModelError, match="a rotation of its stream changes"):
        rotated_twin(borrowed(model), seed=0)


def test_a_copy_beyond_the_limit_is_not_made(monkeypatch):
    monkeypatch.setattr(twin, "LARGEST_COPY", 1000)
    with pytest.raises(ModelError, match=r"rotated copy .* GiB"):
        rotated_twin(tiny(), seed=0)


def test_a_rotated_vector_belongs_to_the_twin_and_to_no_other_model():
    lm = tiny()
    v = dataclasses.replace(
        vector(), provenance=Provenance(fingerprint=lm.fingerprint, method="mine")
    )
    found = rotated_twin(lm, seed=0)
    turned = found.rotated(v)
    v.check_fits(lm)
    turned.check_fits(found.lm)
    assert turned.provenance.method == "mine"
    with pytest.raises(WrongModel):
        turned.check_fits(lm)
    with pytest.raises(WrongModel):
        v.check_fits(found.lm)


@pytest.mark.parametrize("family", SHIFTED)
def test_a_shift_by_a_constant_is_nothing_to_a_layernorm_model(family):
    lm, v = tiny(family), vector(2)
    moved = shifted(lm, v, size=20.0)
    assert deviation(steered(lm, v), steered(lm, None)) > 0.5
    assert deviation(steered(lm, v), steered(lm, moved)) < FLOAT32
    added = moved.direction - v.direction
    assert float(added.norm()) == pytest.approx(20.0, rel=1e-6)
    assert float(added.std()) < 1e-5


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(SHIFTED)))
def test_a_shift_by_a_constant_is_refused_where_the_model_sees_it(family):
    with pytest.raises(ModelError, match="the same number added to every coordinate"):
        shifted(tiny(family), vector(), size=20.0)
