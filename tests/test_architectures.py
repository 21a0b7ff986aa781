"""The list of blocks is found in every family, and never guessed."""

from types import SimpleNamespace

import pytest
import torch
from tests.models import FAMILIES, NUM_LAYERS, network
from torch import nn

from steergauge import architectures
from steergauge.errors import UnknownArchitecture


def holder(depth: int, **lists: int) -> nn.Module:
    """A module with named module lists of the given lengths."""
    model = nn.Module()
    model.config = SimpleNamespace(num_hidden_layers=depth)
    for name, length in lists.items():
        setattr(model, name, nn.ModuleList([nn.Identity() for _ in range(length)]))
    return model


@pytest.mark.parametrize("family", [*FAMILIES, "gptj"])
def test_the_blocks_are_what_hugging_face_runs_in_their_order(family):
    model = network(family)
    order: list[int] = []
    blocks = architectures.blocks(model)
    for layer, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, layer=layer: order.append(layer))
    with torch.no_grad():
        model(torch.ones(1, 3, dtype=torch.long))
    assert order == list(range(NUM_LAYERS))


@pytest.mark.parametrize("path", architectures.KNOWN_PATHS)
def test_a_known_path_is_preferred_to_other_lists_of_the_same_length(path):
    model = holder(3, others=3)
    *parents, last = path.split(".")
    at = model
    for name in parents:
        setattr(at, name, nn.Module())
        at = getattr(at, name)
    setattr(at, last, nn.ModuleList([nn.Identity() for _ in range(3)]))
    assert architectures.blocks(model) is getattr(at, last)


def test_an_unknown_family_is_found_by_its_only_list_of_the_right_length():
    model = holder(3, experts=8, stages=3)
    assert architectures.blocks(model) is model.stages


def test_two_candidates_are_refused_and_named():
    with pytest.raises(UnknownArchitecture, match=r"2 module lists .*stages, towers"):
        architectures.blocks(holder(3, stages=3, towers=3))


def test_no_candidate_is_refused_with_the_known_places():
    with pytest.raises(UnknownArchitecture, match=r"none.*transformer\.h"):
        architectures.blocks(holder(3, experts=8))
