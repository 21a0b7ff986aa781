"""What the distances stored with arXiv 2604.09839 can carry, with the formulas.

One table each on what is stored, natural and steered states, the first position and a
calibrated tolerance. A statement is made of the numbers of the file, and says the same
of another file with these columns.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from steergauge.paper.section import Section, Statement, span
from steergauge.paper.stored import (
    MAGNITUDE,
    PUBLISHED_TOLERANCE,
    Arm,
    Run,
    original_share,
    significant_bits,
)


def sections(runs: Sequence[Run]) -> tuple[Section, ...]:
    """Every table of the page with what its numbers say."""
    makers = (_stored, _natural, _steered, _first, _calibrated)
    return tuple(make(runs) for make in makers)


def _section(
    runs: Sequence[Run],
    title: str,
    columns: Sequence[str],
    cells: Callable[[Run], Iterable[str]],
    *,
    legend: str,
    said: Sequence[Statement],
) -> Section:
    rows = tuple((run.model, run.steering, *cells(run)) for run in runs)
    return Section(
        title, legend, ("model", "steering", *columns), rows, (), tuple(said), ()
    )


def _stored(runs: Sequence[Run]) -> Section:
    def cells(run: Run) -> Iterable[str]:
        prompts = np.unique(run.natural.prompt)
        yield from (f"{run.coefficient:g}", str(run.layer), str(len(prompts)))
        yield from (str(len(run.first)), f"{np.median(run.natural.step):.2f}")
        yield from (f"{run.natural.hours:.1f}", f"{run.steered.hours:.1f}")

    return _section(
        runs, "What is stored",
        ("coefficient", "layer", "prompts", "positions", "step", "natural h",
         "steered h"),
        cells,
        legend="step: median over positions of the mean length of the prompt's steps. "
        "h: hours of the published search, all prompts together.",
        said=(_sites(), _averages(), _digits(runs)),
    )  # fmt: skip


def _sites() -> Statement:
    return Statement(
        "The published code adds the vector to the input of block l and compares "
        "states at the output of block l, where l is the layer of the file. Here the "
        "vector's layer is then l-1, and `read_layer` is l. So the step that is "
        "compared is what one block makes of the vector, and no longer the vector.",
        "h_l(steered) - h_l, with h_(l-1)(steered) = h_(l-1) + coefficient v",
        "the stored results were made by the published code as it is",
    )


def _digits(runs: Sequence[Run]) -> Statement:
    arms = [arm for run in runs for arm in (run.natural, run.steered)]
    bits = significant_bits(np.concatenate([[*arm.d1, *arm.d2] for arm in arms]))
    return Statement(
        f"Every distance is a number of at most {bits} significant bits (bfloat16 has "
        f"8), so each is known to a share of {100 * 2.0**-bits:.2g} % at best, and "
        "so are the medians and ratios below.",
        "|error| / d <= 2^-bits",
    )


def _averages() -> Statement:
    return Statement(
        "The length of a step is stored as a mean over the positions of a prompt, not "
        "for each position. An eta of one position may therefore be above 1, which the "
        "position's own step would hardly allow.",
        "eta = d_1 / (mean over t of s_t)",
    )


def _natural(runs: Sequence[Run]) -> Section:
    def cells(run: Run) -> Iterable[str]:
        arm = run.natural
        yield from (_share(arm), _spread(arm.d1), f"{np.median(arm.margin):.3f}")
        yield from (f"{np.quantile(arm.margin, 0.95):.3f}", f"{arm.margin.max():.3f}")
        yield from (
            _percent(arm.margin < MAGNITUDE),
            _percent(arm.d1 < PUBLISHED_TOLERANCE),
        )

    return _section(
        runs, "Natural states",
        ("original %", "d_1", "d_1/d_2", "95 %", "max", "< 0.1 %", "< 1e-5 %"),
        cells,
        legend="original: positions whose nearest token is the prompt's own, with a "
        "95 % interval over prompts. d_1: median, with the quantiles of 5 and 95 % "
        "over positions. d_1/d_2: its median, its 95 % quantile and its maximum. Last: "
        "positions that the rule of magnitude and the absolute tolerance accept.",
        said=(_recovered(runs), _absolute(runs), _magnitude(runs)),
    )  # fmt: skip


def _recovered(runs: Sequence[Run]) -> Statement:
    found = sum(int(run.natural.original.sum()) for run in runs)
    num = sum(len(run.first) for run in runs)
    text = (
        f"The nearest token is the prompt's own at {found} of {num} natural positions."
    )
    formula = "#{argmin_w d(h_w, h) = own token}"
    if found < num:
        return Statement(
            f"{text} Where it is not, the search misses a state that a prompt has, and "
            "its silence about a steered one says little.", formula,
        )  # fmt: skip
    fewest = min(len(np.unique(run.natural.prompt)) for run in runs)
    return Statement(
        f'{text} So the search can answer "reached", and does wherever it should: '
        "the control without which its other answer would mean nothing. An interval "
        f"over prompts that all agree has no width; {fewest} prompts without a miss "
        "bound the share of prompts with one by "
        f"{100 * (1 - 0.05 ** (1 / fewest)):.0f} % (95 %, one-sided).",
        f"{formula}; 1 - 0.05^(1/n) for n prompts",
    )


def _absolute(runs: Sequence[Run]) -> Statement:
    d1 = np.concatenate([run.natural.d1 for run in runs])
    missed = int((d1 >= PUBLISHED_TOLERANCE).sum())
    return Statement(
        f"d_1 of natural states is {d1.min():.3g} to {d1.max():.3g}, also where the "
        "token is the right one: the state was computed alone and its candidates in a "
        "batch, which round differently. The absolute tolerance of 1e-5 in the "
        "published code "
        f"refuses {missed} of {len(d1)} natural positions, so what it says of steered "
        "ones is no finding. The authors know of this noise: their text judges batches "
        "by the order of magnitude, and reports an exact 0 for inputs that are run "
        "one by one.",
        "#{d_1 >= 1e-5}",
        "the stored distances are those of batches, as they are unless asked otherwise",
    )


def _magnitude(runs: Sequence[Run]) -> Statement:
    missed = [100 * float((run.natural.margin >= MAGNITUDE).mean()) for run in runs]
    taken = sum(int((run.steered.margin < MAGNITUDE).sum()) for run in runs)
    near = [float(run.steered.margin[run.first].min()) for run in runs]
    return Statement(
        f"The rule of magnitude misses {span(missed, '.1f')} % of natural positions "
        f"and accepts {taken} of the steered ones. It compares d_1 with d_2, so it "
        "depends on how far apart tokens are: where tokens are far apart, as at the "
        "first position, even a steered state is near its origin beside them (d_1/d_2 "
        f"from {span(near, '.3f')} by run).",
        "d_1 / d_2 < 0.1",
    )


def _steered(runs: Sequence[Run]) -> Section:
    def cells(run: Run) -> Iterable[str]:
        arm = run.steered
        yield from (_share(arm), _spread(arm.d1), f"{np.median(arm.margin):.3f}")
        yield from (f"{arm.margin.min():.3f}", f"{np.median(run.right_angles):.3f}")
        yield from (_spread(arm.eta), _percent(arm.margin < MAGNITUDE))

    return _section(
        runs, "Steered states",
        ("original %", "d_1", "d_1/d_2", "min", "right angles", "eta", "< 0.1 %"),
        cells,
        legend="As above; eta is d_1 over the step. Right angles: the median d_1/d_2 "
        "of a step that is orthogonal to what separates the tokens.",
        said=(_unreached(runs), _eta(runs), _orthogonal(runs), _prefixes(runs)),
    )  # fmt: skip


def _unreached(runs: Sequence[Run]) -> Statement:
    ratio = [
        float(run.steered.d1[~run.first].min() / run.natural.d1[~run.first].max())
        for run in runs
    ]
    return Statement(
        "After the first position, the nearest steered distance of a run is "
        f"{span(ratio, '.1f')} times its furthest natural one. Where this is above 1 "
        "no tolerance is needed to tell them apart: among the single next tokens after "
        "the prefix that was searched from there is none that makes the steered state.",
        "min d_1(steered) / max d_1(natural), positions above 0",
        assumes="steered states are computed as exactly as natural ones",
    )


def _eta(runs: Sequence[Run]) -> Statement:
    etas = span([float(np.median(run.steered.eta)) for run in runs], ".3f")
    shares = span([100 * float(run.steered.original.mean()) for run in runs], ".1f")
    return Statement(
        f"The median eta is {etas} by run, and at {shares} % of positions the nearest "
        "token is the original. There, no token is nearer than the state that the step "
        "set out from, and the distance is the length of the step, which any step has, "
        "however short. It measures how far was steered, and not how unlike a prompt's "
        "state the result is.",
        "d_1 <= s + noise, as the origin is a candidate; about s if it is the nearest",
    )


def _orthogonal(runs: Sequence[Run]) -> Statement:
    seen = [float(np.median(run.steered.margin)) for run in runs]
    told = [float(np.median(run.right_angles)) for run in runs]
    gap = max(abs(a - b) for a, b in zip(seen, told, strict=True))
    return Statement(
        "A step at right angles to what separates the tokens would have a median "
        f"d_1/d_2 of {span(told, '.3f')} by run, and the steered states have "
        f"{span(seen, '.3f')}; the two differ by at most {gap:.3f} in a run. In a "
        "space of some thousand dimensions nearly all directions are at such angles. "
        "As far as the two agree, the margins show nothing of v that a random step of "
        "its length would not show. Such steps, which would settle it, are not stored.",
        "s / sqrt(s^2 + n^2), with n the natural d_2 of the position",
        "the second nearest token is the same for both states, and the step of a "
        "position is about the prompt's mean",
    )


def _prefixes(runs: Sequence[Run]) -> Statement:
    after = num = 0
    for run in runs:
        arm = run.steered
        for prompt in np.unique(arm.prompt):
            missed = arm.original[arm.prompt == prompt] == 0
            num += len(missed)
            after += int((np.cumsum(missed) - missed > 0).sum())
    return Statement(
        "The search goes on with the nearest token, be it the original or not. At "
        f"{after} of {num} steered positions the tokens before are therefore no longer "
        "the prompt's, and the distances there are those of another prefix.",
        "positions after the first whose nearest token is not the original",
        "the search went on as the published code does after a failure",
    )


def _first(runs: Sequence[Run]) -> Section:
    def cells(run: Run) -> Iterable[str]:
        first, natural, steered = run.first, run.natural, run.steered
        yield from (_range(natural.d1[first]), _range(natural.d2[first]))
        yield from (_range(steered.d1[first]), _range(steered.d2[first]))
        yield f"{np.median(natural.step[first]):.2f}"
        yield f"{np.median(natural.d1[~first]):.2f}"

    noise = [
        float(np.median((run.natural.d1 / run.natural.step)[run.first])) for run in runs
    ]
    return _section(
        runs, "The first position",
        ("natural d_1", "natural d_2", "steered d_1", "steered d_2", "step",
         "later d_1"),
        cells,
        legend="Smallest and largest over prompts. Step: as above. Later: the median "
        "natural d_1 of all other positions.",
        said=(Statement(
            "At the first position the same token has the same state in every prompt, "
            "so many prompts are one observation, or a few. Its natural d_1 is "
            f"{span(noise, '.2f')} times the mean step, by run. Where that is near 1 "
            "or above, noise alone is as long as the step, and this position says "
            "nothing about steering; it should not be pooled with the others.",
            "median of natural d_1 / s at position 0",
        ),),
    )  # fmt: skip


def _calibrated(runs: Sequence[Run]) -> Section:
    rows: list[tuple[str, ...]] = []
    for run in runs:
        tolerance = [_range(run.tolerances[part]) for part in (run.first, ~run.first)]
        for place, limit, shares in zip(
            ("first", "later"), tolerance, _accepted(run), strict=True
        ):
            cells = (place, limit, *(f"{share:.1f}" for share in shares))
            rows.append((run.model, run.steering, *cells))
    return Section(
        "A calibrated tolerance",
        "tolerance: 5 times the 99 % quantile of natural d_1 in the other prompts, "
        "smallest and largest. Resolved: positions where it is below half of the "
        "natural d_2, so that it could not take one token for another. Then the "
        "positions of natural and of steered states that it accepts.",
        ("model", "steering", "place", "tolerance", "resolved %", "natural %",
         "steered %"),
        tuple(rows), (), (_held_out(runs), _too_wide(runs)), (),
    )  # fmt: skip


def _accepted(run: Run) -> list[tuple[float, float, float]]:
    """Percent resolved, natural accepted and steered accepted; first, then later."""
    limit = run.tolerances
    what = (
        limit < run.natural.d2 / 2,
        run.natural.d1 <= limit,
        run.steered.d1 <= limit,
    )
    first, later = (
        tuple(100 * float(truths[part].mean()) for truths in what)
        for part in (run.first, ~run.first)
    )
    return [(first[0], first[1], first[2]), (later[0], later[1], later[2])]


def _held_out(runs: Sequence[Run]) -> Statement:
    later = [_accepted(run)[1] for run in runs]
    resolved, natural, steered = (
        span([shares[k] for shares in later], ".1f") for k in range(3)
    )
    return Statement(
        f"After the first position, a tolerance from other prompts accepts {natural} "
        f"% of natural states, on which it was not calibrated, and {steered} % of "
        f"steered ones; it is below half of d_2 at {resolved} % of positions. What is "
        "not resolved is hidden by the noise of this computation: in a precision with "
        "more digits the same rule resolves more.",
        "eps = 5 q_.99(d_1 of other prompts, same place); resolved: eps < d_2 / 2",
    )


def _too_wide(runs: Sequence[Run]) -> Statement:
    wide = sum(
        bool(np.median(run.tolerances[run.first] / run.natural.step[run.first]) >= 1)
        for run in runs
    )
    return Statement(
        f"At the first position the tolerance is longer than the step in {wide} of "
        f"{len(runs)} runs. To accept a steered state there says that it cannot be "
        "told from its origin, and not that another prompt makes it.",
        "median of eps / s >= 1 at position 0",
    )


def _share(arm: Arm) -> str:
    seen = original_share(arm)
    low, value, high = (f"{100 * x:.1f}" for x in (seen.low, seen.value, seen.high))
    return f"{value} [{low}, {high}]"


def _spread(values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return f"{middle:.3f} [{low:.2f}, {high:.2f}]"


def _range(values: np.ndarray) -> str:
    return span(values.tolist(), ".2f")


def _percent(truths: np.ndarray) -> str:
    return f"{100 * float(truths.mean()):.1f}"
