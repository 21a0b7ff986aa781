"""Median difference of contrast pairs: v_j = median_i (h(x_i+) - h(x_i-))_j.

The median of each coordinate by itself: up to half of the pairs may be spoilt before
it breaks down, where one bad pair moves a mean. The price is that it depends on the
basis: of a model rotated by Q it is not the rotated vector, as it is for every other
method here.
"""

import numpy as np

from steergauge.extraction.paired_streams import PairedStreams, Vector


def median_difference(streams: PairedStreams) -> Vector:
    """The median of the pairs' differences, coordinate by coordinate.

    >>> import numpy as np
    >>> rows = np.array([[1.0, 2.0], [1.2, 2.1], [900.0, -900.0]])
    >>> median_difference(PairedStreams(rows, np.zeros((3, 2))))
    array([1.2, 2. ])
    """
    return np.median(streams.differences, axis=0)
