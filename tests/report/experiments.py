"""The paper's experiments on invented texts: real audits, scores as they come."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from steergauge.audits.environments import Tested, environments
from steergauge.audits.finding import Finding, Verdict
from steergauge.audits.logits import Distances, logits
from steergauge.audits.reliability import reliability_of_steering
from steergauge.audits.replication import replication
from steergauge.audits.scale import Strength, scale
from steergauge.paper import published
from steergauge.runs import evidence
from steergauge.runs.store import Rows

MEASURES = ("agreement", "overlap", "kl", "js", "tv", "l2", "l2_centred")
ARMS = ("unsteered", "minus_v", "v_plus_perp", "perp", "random", "v_recomputed")
Scores = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Design:
    """Which of the experiments were made, and what those without texts give."""

    audits: tuple[str, ...] = (
        "replication", "scale", "logits", "environments", "reliability",
    )  # fmt: skip
    alphas: tuple[float, ...] = (0.5, 2.0)
    names: tuple[str, ...] = ("in-distribution", "topic-shift")
    lift: float = 0.3
    ratio: float = 0.6

    def findings(
        self, rows: Rows, alpha: float, manipulation: Verdict, *, seed: int
    ) -> list[Finding]:
        """The findings in the order of a run."""
        scores = {} if rows[0]["score"] is None else evidence.score_arrays(rows)
        makers = {
            "replication": lambda: [_replication(scores, alpha, manipulation, seed)],
            "scale": lambda: [self._scale(scores, alpha, manipulation, seed)],
            "logits": lambda: [self._logits(seed)],
            "environments": lambda: self._environments(manipulation, seed),
            "reliability": lambda: [
                self._reliability(scores, alpha, manipulation, seed)
            ],
        }
        return [found for audit in self.audits for found in makers[audit]()]

    def _scale(
        self, scores: Scores, alpha: float, manipulation: Verdict, seed: int
    ) -> Finding:
        strengths = [Strength(alpha, scores["v"], scores["v_plus_perp"])]
        strengths += [
            Strength(one, scores[f"v@{one:g}"], scores[f"v_plus_perp@{one:g}"])
            for one in self.alphas
        ]
        strengths.sort(key=lambda one: one.alpha)
        base = scores["unsteered"]
        return scale(
            strengths,
            base,
            manipulation=manipulation,
            margin=0.2,
            minimum_lift=0.05,
            seed=seed,
        )

    def _logits(self, seed: int) -> Finding:
        rng = np.random.default_rng(seed)

        def table(mean: float, rows: int) -> np.ndarray:
            return mean * rng.gamma(50, 1 / 50, (rows, 20))

        gain = 1 / self.ratio**2 - 1
        measures = {
            name: {measure: np.full((1, 20), 0.5) for measure in MEASURES}
            for name in ARMS
        }
        return logits(
            Distances(
                published_perp=table(0.6, 5),
                published_random=table(1.0, 5),
                perp=table(0.6, 30),
                random=table(1.0, 30),
                random_added=table(0.6, 30),
                gain=table(gain if self.ratio < 1 else 5.0, 1),
                perp_gain=table(1.0, 30),
                measures=measures,
                d_model=500,
            ),
            seed=seed,
        )

    def _environments(self, manipulation: Verdict, seed: int) -> list[Finding]:
        rng = np.random.default_rng(seed)
        tested = []
        for target in self.names:
            for source in self.names:
                own = self.lift + rng.normal(0, 0.1, (1, 8))
                tested.append(
                    Tested(
                        source=source,
                        target=target,
                        own=own,
                        added=own + rng.normal(0, 0.02, (3, 8)),
                        published_d=0.3 + 0.07 * len(tested),
                        floor=published.noise_floor(16, 16),
                        num_texts=16,
                    )
                )
        return environments(
            tested,
            source=self.names[0],
            manipulation=manipulation,
            margin=0.2,
            minimum_lift=0.05,
            num_samples=2,
            seed=seed,
        )

    def _reliability(
        self, scores: Scores, alpha: float, manipulation: Verdict, seed: int
    ) -> Finding:
        by_alpha = {-alpha: "minus_v", 0.0: "unsteered", alpha: "v"}
        by_alpha |= {one: f"v@{one:g}" for one in self.alphas}
        alphas = sorted(by_alpha)
        return reliability_of_steering(
            np.stack([scores[by_alpha[one]][0] for one in alphas]),
            np.array(alphas),
            manipulation=manipulation,
            seed=seed,
        )


def _replication(
    scores: Scores, alpha: float, manipulation: Verdict, seed: int
) -> Finding:
    toward = scores if alpha > 0 else {name: 1 - one for name, one in scores.items()}
    return replication(toward, manipulation=manipulation, seed=seed)
