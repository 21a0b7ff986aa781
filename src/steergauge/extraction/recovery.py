"""How well sources were recovered, once structure was assumed: components and MCC.

Streams h = B z with unknown B and sources z fix B z only: for any invertible R, B R^-1
and R z say the same. Structure of z (independence, sparse shifts) can fix R up to the
order and the scale of the sources. Whether it did is measured by the mean correlation
coefficient (MCC): sources are matched one to one so that the sum of |correlation| is
largest (Hungarian method), and the mean of the matched |correlation| is taken; 1 is
full recovery. Its chance level is not 0: `chance_correlations` computes it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.stats import ortho_group

from steergauge.errors import BadPairs, ShapeMismatch
from steergauge.extraction.paired_streams import Vector

Sources = Float[np.ndarray, "rows sources"]
"""One column a source."""


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """Rows taken apart: row i is sum_k sources[i, k] mixing[:, k], plus their mean.

    Attributes:
        mixing: one column a component, of the stream's width.
        sources: one column a component, one row a row.
        converged: the search ended before its limit of steps.
    """

    mixing: Float[np.ndarray, "d_model sources"]
    sources: Sources
    converged: bool


def mean_correlation(
    estimated: Float[np.ndarray, "_ found"], planted: Float[np.ndarray, "_ planted"]
) -> float:
    """The MCC of the estimated sources with the planted ones, from 0 to 1.

    A planted source that nothing is left to match counts as 0, and so does a constant
    one.

    >>> import numpy as np
    >>> planted = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 2.0], [0.0, -3.0]])
    >>> round(mean_correlation(-2 * planted[:, ::-1], planted), 6)
    1.0

    Raises:
        ShapeMismatch: the two have different numbers of rows.
    """
    if len(estimated) != len(planted):
        raise ShapeMismatch(
            f"{len(estimated)} rows of estimated sources cannot be matched with "
            f"{len(planted)} rows of planted ones.",
            remedy="Give the sources of the same rows.",
        )
    correlation = np.abs(_standard(estimated).T @ _standard(planted)) / len(planted)
    matched = correlation[linear_sum_assignment(correlation, maximize=True)]
    # Rounding may make a correlation 1 + 1e-16.
    return float(min(1.0, matched.sum() / planted.shape[1]))


def chance_correlations(
    planted: Sources, *, num: int = 200, seed: int = 0
) -> Float[np.ndarray, " num"]:
    """MCCs of `num` random rotations of the planted sources at unit variance.

    The covariance of h = B z fixes B up to a rotation, whatever z is. A method that
    finds no more than that returns z turned by a rotation that knows nothing of z, so
    these are its MCCs. They fall with the number of sources and are far above 0.

    Args:
        planted: uncorrelated sources, at least two.
        num: how many rotations, uniform over all of them.
        seed: of the rotations.
    """
    unit = _standard(planted)
    turns = ortho_group.rvs(planted.shape[1], size=num, random_state=seed)
    return np.array([mean_correlation(unit @ turn, unit) for turn in turns])


def steadiest_part(
    mixing: Float[np.ndarray, "d_model sources"], shifts: Sources
) -> Vector:
    """The share of the mean shift that the most steadily shifted component carries.

    The mean difference is sum_k mixing[:, k] mean(shifts[:, k]). Kept is the k with the
    largest |mean| / root mean square of its shifts: 1 if it shifts alike in all pairs.
    Neither order, sign nor scale of the components matters.
    """
    mean, size = shifts.mean(0), np.sqrt(np.square(shifts).mean(0))
    steadiness = np.divide(np.abs(mean), size, out=np.zeros_like(mean), where=size > 0)
    best = int(steadiness.argmax())
    return mixing[:, best] * mean[best]


def check_spanned(rows: Float[np.ndarray, "rows d_model"], num: int) -> None:
    """Raise unless the rows span at least `num` dimensions, and 1 <= num.

    Raises:
        BadPairs: they span fewer, or `num` is not positive.
    """
    spanned = int(np.linalg.matrix_rank(rows))
    if not 1 <= num <= spanned:
        raise BadPairs(
            f"{num} components were asked for; the {len(rows)} rows span {spanned} "
            "dimensions.",
            cause="There are fewer pairs than components, or the pairs repeat.",
            remedy="Ask for fewer components, or give more pairs: recovery takes "
            "many more rows than components.",
        )


def _standard(sources: Sources) -> Sources:
    """Columns of mean 0 and variance 1; constant ones become 0."""
    centred = sources - sources.mean(0)
    size = np.sqrt(np.square(centred).mean(0))
    return np.divide(centred, size, out=np.zeros_like(centred), where=size > 0)
