"""Logistic regression of the side on the stream: v along its weights w.

w and b minimise::

    ||w||^2 / 2 + C sum_i log(1 + exp(-y_i (w'x_i / s + b))),

y_i = +1 or -1 for the side, x_i the pooled streams of both sides less their mean, and
C = 1. s is one number, the root mean square of all coordinates of the x_i: C then
means the same for streams of any size, and no basis is preferred, as there would be
with one scale a coordinate. Where the sides have equal covariance Sigma and many pairs
are given, w tends to Sigma^-1 (mu+ - mu-) like `discriminant`. Where the sides are far
apart, many boundaries fit and the penalty decides; w may then be close to the mean
difference, because that separates the sides with the smallest weights.

The weights *read* the trait off the stream; that they also write it is no theorem
(Haufe et al. 2014). They have no length of a shift, so v gets the mean difference's.
Probe directions are steered along in arXiv 2306.03341.
"""

import numpy as np

from steergauge.extraction.paired_streams import PairedStreams, Vector

PENALTY = 1.0
"""C: how much the fit counts against ||w||^2 / 2, for streams of unit scale."""

MAX_STEPS = 1000


def logistic(streams: PairedStreams) -> Vector:
    """The weights that tell the sides apart, at the norm of the mean difference."""
    # Here: what extracts without it needs no scikit-learn.
    from sklearn.linear_model import LogisticRegression

    centred = streams.pooled - streams.pooled.mean(0)
    scale = float(np.sqrt(np.square(centred).mean())) or 1.0
    sides = np.repeat([1, -1], len(streams.positive))
    model = LogisticRegression(C=PENALTY, max_iter=MAX_STEPS)
    weights = model.fit(centred / scale, sides).coef_[0]
    return streams.with_mean_norm(weights)
