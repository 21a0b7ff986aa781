"""Independent components of streams: h = B z + mean, with the z_k independent.

Independent sources of which at most one is Gaussian are fixed by the distribution of h
up to order and scale (Comon 1994); Gaussian ones only up to a rotation, and no amount
of data tells the rotation. FastICA (Hyvarinen 1999) looks for it.

A vector is one component's share of the mean difference: v = b_k (mean z_k+ - mean
z_k-), k the component that shifts most steadily between the sides of a pair. The whole
mean difference is the sum of these shares, so v has a length of its own.

It takes many more rows than components: not for fifty pairs of a wide model.
"""

import warnings

import numpy as np
from jaxtyping import Float

from steergauge.extraction.paired_streams import PairedStreams, Vector
from steergauge.extraction.recovery import Components, check_spanned, steadiest_part

MAX_STEPS = 1000


def independent_sources(
    rows: Float[np.ndarray, "rows d_model"], num: int, *, seed: int = 0
) -> Components:
    """`num` independent components of the rows' first `num` principal ones.

    Args:
        rows: one stream a row.
        num: how many components.
        seed: of the start of the search.

    Raises:
        BadPairs: the rows span fewer than `num` dimensions around their mean.
    """
    # Here: what extracts without it needs no scikit-learn.
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    check_spanned(rows - rows.mean(0), num)
    search = FastICA(num, whiten="unit-variance", max_iter=MAX_STEPS, random_state=seed)
    with warnings.catch_warnings():
        # Said by `converged`: on Gaussian sources there is nothing to converge to.
        warnings.simplefilter("ignore", ConvergenceWarning)
        sources = search.fit_transform(rows)
    return Components(search.mixing_, sources, search.n_iter_ < MAX_STEPS)


def independent_component(streams: PairedStreams, num: int, *, seed: int = 0) -> Vector:
    """The share of the mean difference of the most steadily shifted component.

    Args:
        streams: both sides of the pairs; they are unmixed together.
        num: how many components.
        seed: of the start of the search.

    Raises:
        BadPairs: the streams span fewer than `num` dimensions.
    """
    found = independent_sources(streams.pooled, num, seed=seed)
    plus, minus = np.split(found.sources, 2)
    return steadiest_part(found.mixing, plus - minus)
