"""How natural a state is: its distance from natural states, and the p-value of that.

Of n natural states with centre c, k = min(d, n // 10) principal directions P (rows)
can be told. Their covariance is taken to be ::

    C = P' S P + s^2 (I - P' P)

S: covariance of the k components, shrunk towards a multiple of the identity (Ledoit
and Wolf 2004); s^2: mean variance of the d - k directions that are left out, as in
probabilistic PCA (Tipping and Bishop 1999). A state has two scores, both in the white
coordinates w(h) = C^(-1/2) (h - c), which keep all d dimensions ::

    mahalanobis         ||w(h)||, so ||w||^2 = z' S^-1 z + ||r||^2 / s^2
    neighbour distance  mean of ||w(h) - w(h_i)|| over its 10 nearest h_i,
                        over the mean of the same of these h_i among natural states

with z = P (h - c) and r = h - c - P' z. What a step does outside the span of P is in
r, in units of what natural states do there: it is seen however few directions were
kept. The first score takes natural states for one cloud. The second takes them for any
number of clouds, wide ones and narrow ones, since it is relative to how far apart they
are where the state is: 1 says as far from its neighbours as these are from theirs.

Neither has to be right about the distribution. A score s is held against the scores of
`calibration` states, which took no part in the fit ::

    p = (1 + #{calibration >= s}) / (n_calibration + 1)

and if a state is exchangeable with those, P(p <= a) <= a for every a (conformal p:
Vovk, Gammerman and Shafer 2005), whatever the score. Two scores a state are joined by
Bonferroni's rule, which can only make p too large.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from steergauge.errors import InputError

NEIGHBOURS = 10
"""Natural states that a state is compared with."""

STATES_A_COMPONENT = 10
"""Natural states behind each principal direction that is kept."""

LEAST_SPACING = 0.1
"""Share of the mean distance between neighbours below which none is taken to be: texts
that are alike up to a place have the same state there, and are no distance apart."""

FEWEST_STATES = 2 * STATES_A_COMPONENT
"""Natural states below which there is nothing to fit."""

States = Float[np.ndarray, "states d_model"]
Scores = Float[np.ndarray, " states"]


@dataclass(frozen=True, slots=True)
class Whitening:
    """C of the module's formula, by its parts.

    Attributes:
        centre: c.
        components: P, orthonormal rows.
        variances: diagonal of S, which has no other entries in these coordinates.
        rest: s^2.
    """

    centre: Float[np.ndarray, " d_model"]
    components: Float[np.ndarray, "components d_model"]
    variances: Float[np.ndarray, " components"]
    rest: float

    def white(self, states: States) -> States:
        """C^(-1/2) (h - c): natural states have about unit variance in it, everywhere.

        Raises:
            InputError: the states have another width or are not finite.
        """
        _check(states, len(self.centre))
        centred = states - self.centre
        inside = centred @ self.components.T
        residual = centred - inside @ self.components
        scaled = (inside / np.sqrt(self.variances)) @ self.components
        return scaled + residual / np.sqrt(self.rest)


@dataclass(frozen=True, slots=True)
class Natural:
    """Natural states as a density: what `fitted` found; see the module's formulas.

    Attributes:
        whitening: C of the states that it was fitted to.
        reference: their white coordinates.
        spacing: mean distance of each of them to its nearest others.
        neighbours: how many nearest ones are looked at.
        typical_norm: their median ||h||.
    """

    whitening: Whitening
    reference: Float[np.ndarray, "reference d_model"]
    spacing: Float[np.ndarray, " reference"]
    neighbours: int
    typical_norm: float

    @property
    def num_components(self) -> int:
        """k, the principal directions that are kept."""
        return len(self.whitening.components)

    def mahalanobis(self, states: States) -> Scores:
        """Distance from the centre in units of natural variation, residual included.

        Raises:
            InputError: the states have another width or are not finite.
        """
        return np.linalg.norm(self.whitening.white(states), axis=1)

    def neighbour_distance(self, states: States) -> Scores:
        """Distance from the nearest natural states, in units of their own.

        Raises:
            InputError: the states have another width or are not finite.
        """
        search = _search(self.reference, self.neighbours)
        distances, which = search.kneighbors(self.whitening.white(states))
        return distances.mean(1) / self.spacing[which].mean(1)

    def norm_ratio(self, states: States) -> Scores:
        """||h|| in units of the median ||h|| of the states that it was fitted to."""
        return np.linalg.norm(states, axis=1) / self.typical_norm


def fitted(states: States, *, neighbours: int = NEIGHBOURS) -> Natural:
    """The density of natural states; nothing about it is random.

    Args:
        states: natural states, at best of texts that are like those to be judged.
        neighbours: how many nearest ones the second score looks at.

    Raises:
        InputError: there are too few states, they are all the same, or not finite.
    """
    fewest = max(FEWEST_STATES, neighbours + 1)
    if len(states) < fewest:
        raise InputError(
            f"a density of natural states was asked for, of {len(states)} states.",
            cause="There were few texts.",
            remedy=f"Give at least {fewest}; {STATES_A_COMPONENT} for each dimension "
            "are best.",
        )
    _check(states, states.shape[1])
    if (states == states[0]).all():
        raise InputError(
            f"the {len(states)} natural states are all the same: no density.",
            cause="They were read at a place where every text has the same tokens.",
            remedy="Read them at places where texts differ.",
        )
    whitening = _whitening(states)
    reference = whitening.white(states)
    return Natural(
        whitening=whitening,
        reference=reference,
        spacing=_spacing(reference, neighbours),
        neighbours=neighbours,
        typical_norm=float(np.median(np.linalg.norm(states, axis=1))),
    )


def _whitening(states: States) -> Whitening:
    # Here: the rest of the package's reachability needs no scikit-learn.
    from sklearn.covariance import LedoitWolf
    from sklearn.decomposition import PCA

    num, width = states.shape
    kept = min(width, num // STATES_A_COMPONENT)
    found = PCA(n_components=kept, svd_solver="full").fit(states)
    shrunk = LedoitWolf(assume_centered=True).fit(found.transform(states))
    total = float(states.var(axis=0, ddof=1).sum())
    # A variance below this cannot be told from rounding.
    floor = np.finfo(float).eps * total / width
    # Components are uncorrelated and the target is a multiple of the identity.
    variances = np.maximum(np.diagonal(shrunk.covariance_), floor)
    left = total - float(found.explained_variance_.sum())
    rest = left / (width - kept) if kept < width else float(variances.min())
    return Whitening(found.mean_, found.components_, variances, max(rest, floor))


def _search(reference: States, neighbours: int) -> Any:
    from sklearn.neighbors import NearestNeighbors

    # In so many dimensions a tree is no faster.
    search = NearestNeighbors(n_neighbors=neighbours, algorithm="brute")
    return search.fit(reference)


def _spacing(reference: States, neighbours: int) -> Float[np.ndarray, " reference"]:
    # Without an argument, a state is not taken for its own neighbour.
    distances, _ = _search(reference, neighbours).kneighbors()
    spacing = distances.mean(1)
    least = LEAST_SPACING * float(spacing.mean())
    return np.maximum(spacing, least if least > 0 else 1.0)


def drift(states: States, origins: States) -> tuple[Scores, Scores]:
    """How much longer each state is than its origin, and the angle between them.

    Returns:
        ||h'|| / ||h||, and radians, which are 0 for a state that did not move.

    Raises:
        InputError: an origin is 0, or something is not finite.

    >>> ratio, angle = drift(np.array([[0.0, 2.0]]), np.array([[1.0, 0.0]]))
    >>> ratio.tolist(), np.degrees(angle).tolist()
    ([2.0], [90.0])
    """
    _check(states, origins.shape[1])
    _check(origins, origins.shape[1])
    own, first = (np.linalg.norm(rows, axis=1) for rows in (states, origins))
    if not first.all():
        raise InputError(
            f"{int((first == 0).sum())} of {len(first)} origins are 0: no angle.",
            cause="They were never read.",
            remedy="Give the natural state at each place.",
        )
    # Half angles keep the digits of small ones, which a cosine loses.
    turned, straight = states * first[:, None], origins * own[:, None]
    apart = np.linalg.norm(turned - straight, axis=1)
    together = np.linalg.norm(turned + straight, axis=1)
    return own / first, 2 * np.arctan2(apart, together)


def conformal(scores: Scores, calibration: Float[np.ndarray, " natural"]) -> Scores:
    """Conformal p of each score: at most a with probability a, if it is natural.

    Ties count against the state's being unusual, so p can only be too large.

    Args:
        scores: of the states under test; large ones are unusual.
        calibration: of natural states that took no part in the fit.

    >>> conformal(np.array([0.5, 9.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [1.0, 0.25]
    """
    below = np.searchsorted(np.sort(calibration), scores, side="left")
    return (1 + len(calibration) - below) / (len(calibration) + 1)


def joint_p(first: Scores, second: Scores) -> Scores:
    """One p of two scores: twice the smaller, 1 at most (Bonferroni).

    Conservative: scores that agree, as these two mostly do, spend half of it twice.

    >>> joint_p(np.array([0.01, 0.7]), np.array([0.2, 0.6])).tolist()
    [0.02, 1.0]
    """
    return np.minimum(1.0, 2 * np.minimum(first, second))


def _check(states: States, width: int) -> None:
    if states.shape[1] != width:
        raise InputError(
            f"states of width {states.shape[1]} were given where {width} was expected.",
            cause="They are of different models.",
            remedy="Read all of them at one site of one model.",
        )
    if bad := int((~np.isfinite(states).all(axis=1)).sum()):
        raise InputError(
            f"{bad} of {len(states)} states hold NaN or infinity.",
            cause="Steering drove the stream out of the model's precision.",
            remedy="Steer with a smaller alpha.",
        )
