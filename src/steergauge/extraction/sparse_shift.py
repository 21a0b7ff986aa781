"""Sparse shifts: d_i = h(x_i+) - h(x_i-) = B s_i, where each s_i has few entries.

If the sides of a pair differ in a few unknown concepts, not all, and not the same ones
in every pair, then B and s are fixed up to order and scale; sparse shift autoencoders
rest on this (arXiv 2502.12179). They learn an encoder and a decoder. Here the same
assumption is put into a dictionary: with W the map that makes the differences white::

    min_A,s  sum_i ||W d_i - A s_i||^2 / 2 + penalty ||s_i||_1,   ||a_k|| <= 1,

over the columns a_k of A; B = W^+ A. Whitening makes A close to a rotation where shifts
are uncorrelated, so that concepts along similar directions are still told apart. The
shifts that are returned are A^+ W d_i, the linear read-out: the penalty has drawn the
s_i themselves inwards.

The penalty is the log-likelihood of Laplace shifts. Dense shifts with such heavy tails
are therefore recovered as well, and dense Gaussian ones are not: what counts is that
small and large shifts are both frequent. The differences are not centred, or a concept
that shifts alike in every pair would be lost.

A vector is v = b_k mean_i s_ik, k the component that shifts most steadily.
"""

import warnings

import numpy as np

from steergauge.extraction.paired_streams import PairedStreams, PairRows, Vector
from steergauge.extraction.recovery import Components, check_spanned, steadiest_part

PENALTY = 0.3
"""For shifts whose root mean square is 1."""

MAX_STEPS = 200
TOLERANCE = 1e-6
"""Relative gain of the objective a step below which the search ends."""


def sparse_shifts(differences: PairRows, num: int, *, seed: int = 0) -> Components:
    """`num` components of which each difference holds few.

    Args:
        differences: one row a pair.
        num: how many components.
        seed: of the start of the search.

    Raises:
        BadPairs: the differences span fewer than `num` dimensions.
    """
    # Here: what extracts without it needs no scikit-learn.
    from sklearn.decomposition import DictionaryLearning
    from sklearn.exceptions import ConvergenceWarning

    check_spanned(differences, num)
    left, size, right = np.linalg.svd(differences, full_matrices=False)
    root = np.sqrt(len(differences))
    white, unwhite = left[:, :num] * root, right[:num].T * (size[:num] / root)
    search = DictionaryLearning(
        num,
        alpha=PENALTY,
        max_iter=MAX_STEPS,
        tol=TOLERANCE,
        fit_algorithm="cd",
        random_state=seed,
    )
    with warnings.catch_warnings():
        # Of the inner searches; whether the whole ended is said by `converged`.
        warnings.simplefilter("ignore", ConvergenceWarning)
        atoms = search.fit(white).components_
    shifts = white @ np.linalg.pinv(atoms)
    return Components(unwhite @ atoms.T, shifts, search.n_iter_ < MAX_STEPS)


def sparse_shift(streams: PairedStreams, num: int, *, seed: int = 0) -> Vector:
    """The share of the mean difference of the most steadily shifted component.

    Args:
        streams: both sides of the pairs.
        num: how many components.
        seed: of the start of the search.

    Raises:
        BadPairs: the differences span fewer than `num` dimensions.
    """
    found = sparse_shifts(streams.differences, num, seed=seed)
    return steadiest_part(found.mixing, found.sources)
