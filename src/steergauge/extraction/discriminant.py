"""Shrunk linear discriminant: v along Sigma^-1 (mu+ - mu-).

mu+ and mu- are the means of the two sides, Sigma the covariance within a side, of both
sides pooled. There are usually fewer pairs than coordinates, so Sigma is drawn towards
a multiple of the identity by as much as Ledoit and Wolf (2004) estimate to be best:
that keeps it invertible and prefers no basis.

The discriminant is the *filter* that reads the trait best; the *pattern* that writes
it is Sigma times the filter, which is the mean difference (Haufe et al. 2014). One set
of pairs thus has two "concept vectors". The angle between them is cos =
m' Sigma^-1 m / (||m|| ||Sigma^-1 m||) with m = mu+ - mu-. A filter has no length of a
shift, so v gets the mean difference's.
"""

import numpy as np
from scipy.linalg import solve

from steergauge.errors import BadPairs
from steergauge.extraction.paired_streams import PairedStreams, Vector


def discriminant(streams: PairedStreams) -> Vector:
    """The shrunk linear discriminant, at the norm of the mean difference.

    Raises:
        BadPairs: all texts of a side have the same stream, on both sides.
    """
    # Here: what extracts without it needs no scikit-learn.
    from sklearn.covariance import ledoit_wolf

    sides = (streams.positive, streams.negative)
    within = np.concatenate([side - side.mean(0) for side in sides])
    if not within.any():
        raise BadPairs(
            f"the {len(streams.positive)} pairs have the same streams, so there is no "
            "covariance within a side.",
            cause="The pairs repeat one text, or the position that is read is the same "
            "token in all of them at layer 0.",
            remedy="Give pairs that differ, or use the mean difference.",
        )
    covariance, _ = ledoit_wolf(within, assume_centered=True)
    filtered = solve(covariance, streams.mean_difference(), assume_a="pos")
    return streams.with_mean_norm(filtered)
