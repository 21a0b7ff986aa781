"""First principal component of pairs: the u that maximises sum_i (u'd_i)^2, ||u|| = 1.

d_i = h(x_i+) - h(x_i-). It is the first component of the streams after each pair was
centred at its own midpoint, so what the two sides share, such as their topic, is gone.
It is also, in expectation, what representation engineering takes: a component of
differences with random signs (arXiv 2310.01405). The mean is not taken off the
differences. Components of *centred* differences would be blind to the very shift that
all pairs share.

A component has neither sign nor length. It gets the sign with which it points along
the mean difference, and the mean difference's norm. It fails where pairs differ more
in something else than in the trait.
"""

import numpy as np

from steergauge.extraction.paired_streams import PairedStreams, Vector


def principal_component(streams: PairedStreams) -> Vector:
    """The direction of most squared difference, signed and scaled by the mean."""
    component = np.linalg.svd(streams.differences, full_matrices=False)[2][0]
    along = float(component @ streams.mean_difference())
    return streams.with_mean_norm(-component if along < 0 else component)
