"""Scenarios of `stores` with the experiments of arXiv 2602.06801."""

from dataclasses import replace

from tests.report.experiments import Design
from tests.report.stores import DIRECTIONS, STRONG, UNSCORED

MORE_DIRECTIONS = DIRECTIONS | {
    "v_plus_perp": 7, "perp": 7, "v_again": 7, "v_plus_perp_fresh": 7, "v_turned": 3,
    "code_v_plus_perp": 7, "code_perp": 7,
    "v_plus_perp@0.5": 3, "v_plus_perp@2": 3, "v_plus_perp@-2": 3,
}  # fmt: skip
PAPER = replace(
    STRONG,
    num_prompts=50,
    num_samples=2,
    directions=MORE_DIRECTIONS,
    pushes={
        **STRONG.pushes, "v_turned": 0.35, "v_plus_perp_fresh": 0.4,
        "code_v": 0.3, "code_v_plus_perp": 0.3, "code_perp": 0.0,
        "v@0.5": 0.2, "v_plus_perp@0.5": 0.2, "v@2": 0.45, "v_plus_perp@2": 0.45,
    },
    nats={**STRONG.nats, "v_turned": 2.0},
    experiments=Design(),
)  # fmt: skip
"""The paper's experiments on a vector that moves the trait; v_perp alone does not."""

PAPER_NOTHING = replace(
    PAPER,
    num_prompts=12,
    pushes=dict.fromkeys(PAPER.pushes, 0.0),
    experiments=Design(ratio=1.4, lift=0.0),
    seed=3,
)
"""The same on a vector that does nothing: no bounded ratio of lifts."""

PAPER_BACKWARD = replace(
    PAPER,
    num_prompts=12,
    alpha=-1.0,
    pushes={
        name.replace("@0.5", "@-2"): -push
        for name, push in PAPER.pushes.items()
        if "@2" not in name and not name.startswith("code_")
    },
    experiments=Design(alphas=(-2.0,)),
)
"""The same, steered against v, without the published code's variant."""

PAPER_SPARSE = replace(
    STRONG,
    num_prompts=12,
    num_samples=2,
    directions={**DIRECTIONS, "v_plus_perp": 1, "perp": 1, "v_plus_perp_fresh": 1},
    pushes={**STRONG.pushes, "v_plus_perp_fresh": 0.4},
    experiments=Design(
        audits=("replication", "environments"), alphas=(), names=("in-distribution",)
    ),
)
"""One direction, one environment, nothing else."""

PAPER_UNSCORED = replace(UNSCORED, experiments=Design(audits=("logits",), alphas=()))
"""Without a probe only logits can be compared."""

PAPER_HOSTILE = replace(
    PAPER,
    num_prompts=8,
    trait="<script>trait</script> alpha's v_perp",
    model='"><script>model</script>',
    experiments=Design(names=("in-distribution", "<b>env</b>-1's")),
)
"""Names that try to become markup."""

PAPERS = {
    "paper": PAPER, "paper nothing": PAPER_NOTHING, "paper backward": PAPER_BACKWARD,
    "paper sparse": PAPER_SPARSE, "paper unscored": PAPER_UNSCORED,
    "paper hostile": PAPER_HOSTILE,
}  # fmt: skip
