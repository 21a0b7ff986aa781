"""The axes of every tensor, named once: h is `Float[Tensor, "batch pos d_model"]`.

Axis names used in annotations all over the package:

=========  ==========================================================================
batch      rows that go through the model together
pos        token positions of one pass, padding included
seen       the cache's token positions and then those of the pass
kept       positions whose logits were asked for: the last few, or all
d_model    width of the residual stream
d_vocab    size of the vocabulary, i.e. the last axis of the logits
layer      decoder blocks, 0-based; block `l` means its *output*
=========  ==========================================================================

The annotations are documentation for readers and type checkers; the tests
additionally enforce them at run time (jaxtyping + beartype).
"""

from collections.abc import Callable

from jaxtyping import Bool, Float, Int
from torch import Tensor

Stream = Float[Tensor, "batch pos d_model"]
"""Residual stream h after one block."""

Rows = Float[Tensor, "rows d_model"]
"""Streams at selected positions, one row each."""

Direction = Float[Tensor, " d_model"]
"""A direction of the residual stream, such as a steering vector's."""

Logits = Float[Tensor, "batch kept d_vocab"]
"""Unnormalised log-probabilities of the next token."""

TokenIds = Int[Tensor, "batch pos"]
"""Token ids, left-padded."""

Mask = Bool[Tensor, "batch pos"]
"""True at real tokens, False at padding."""

SeenMask = Bool[Tensor, "batch seen"]
"""The same over the cache's positions and then those of the pass."""

Edit = Callable[[Stream], Stream]
"""A map h -> h' of the whole stream of one forward pass."""
