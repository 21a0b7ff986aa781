"""The model in a wider precision: derivatives are taken in float32 at least."""

import copy
from dataclasses import replace

import torch

from steergauge import architectures
from steergauge.errors import ModelError
from steergauge.sharding import is_sharded
from steergauge.split import LanguageModel

LARGEST_COPY = 2**33
"""Bytes of the largest copy of a model that is made to widen it, 8 GiB."""


def widened(lm: LanguageModel, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """The model itself if its weights are as wide as `dtype`, else a copy that is.

    The copy is exact: every weight keeps its value. A borrowed model is not converted
    in place, for its owner may go on using it.

    Raises:
        ModelError: the copy would be too large, or the model is shared out.
    """
    weights = list(lm.model.parameters())
    if all(weight.dtype.itemsize >= dtype.itemsize for weight in weights):
        return lm
    num_weights = sum(weight.numel() for weight in weights)
    if is_sharded(lm.model):
        raise ModelError(
            f"{lm.name} is shared out over several devices or processes in "
            f"{str(lm.dtype).removeprefix('torch.')}, and no wider copy of it is made.",
            cause="Derivatives in half precision would be mostly rounding.",
            remedy="Load it with --dtype float32, which needs no copy.",
        )
    if num_weights * dtype.itemsize > LARGEST_COPY:
        raise ModelError(
            f"{lm.name} computes in {str(lm.dtype).removeprefix('torch.')}, and a "
            f"wider copy of its {num_weights:,} weights beside it would be too large.",
            cause="Derivatives in half precision would be mostly rounding.",
            remedy="Load it with --dtype float32, which needs no copy.",
        )
    model = copy.deepcopy(lm.model).to(dtype)
    blocks = architectures.blocks(model)
    return replace(lm, model=model, blocks=blocks, _proved=set())
