"""What Tables 1 and 2 say of scores, and what they do not, with the formulas.

Cohen's d, the correlation and the perp-only effect of arXiv 2602.06801v3 (Section 6),
or of another study in the same columns. What is said about the text of the paper, or
about its code, is said of its own numbers only.
"""

import math
import statistics

from steergauge.paper.printed import (
    ENVIRONMENTS,
    OrthogonalTable,
    Printed,
    ShiftTable,
    floors,
)
from steergauge.paper.published import (
    NOISE_SPREAD,
    noise_floor,
    samples_at_floor,
    scores_to_bound,
)
from steergauge.paper.section import Section, Statement, listed, span

NEGLIGIBLE = 0.2
"""The paper's bound: |d| below it counts as negligible (Section 6.1)."""

SMALL = 0.5
"""The bound below which Section 6.4 calls an effect small."""


def effect_sizes(printed: Printed) -> Section:
    """Table 1, Cohen's d: which number of scores gives it without any effect."""
    table, of_paper = printed.orthogonal, printed.of_paper
    return Section(
        "Table 1: Cohen's d",
        "n: scores an arm at which noise alone gives this mean |d|; the last column is "
        "n if half of a score's variance lies between prompts that both arms share. "
        "sd/mean: of |d| over the seeds.",
        ("model", "trait", "seeds", "|d|", "sd/mean", "n", "ICC .5"),
        tuple(
            (row.model, row.trait, str(row.seeds), f"{row.cohens_d:.3f}",
             f"{row.spread:.2f}", *_counts(row.cohens_d))
            for row in table.rows
        ),
        tuple(
            (mean.model, f"mean of {mean.num_rows}", str(mean.seeds),
             f"{mean.cohens_d:.3f}", f"{mean.spread:.2f}", *_counts(mean.cohens_d))
            for mean in table.means()
        ),
        (_floor(table), *((_sizes(table),) if of_paper else ())),
        (_spread(table, of_paper=of_paper), _seeds(table), _power(), _idle()),
    )  # fmt: skip


def _floor(table: OrthogonalTable) -> Statement:
    groups = table.means_at_most_seeds()
    counts = [_counts(mean.cohens_d) for mean in groups]
    said = listed(
        [
            f"{mean.cohens_d:.3f} ({mean.model}) at {plain} scores an arm"
            for mean, (plain, _) in zip(groups, counts, strict=True)
        ]
    )
    shared = listed([shared for _, shared in counts])
    return Statement(
        f"Two arms that do not differ at all have a mean |d| of {said}; at {shared} if "
        "half of the variance of a score lies between prompts that both arms share.",
        "n = 4 (1 - ICC) / (pi d^2), from E|d| = sqrt(2/pi) sqrt(2/n) sqrt(1 - ICC)",
    )


def _sizes(table: OrthogonalTable) -> Statement:
    groups = table.means_at_most_seeds()
    means = listed([f"{mean.cohens_d:.3f}" for mean in groups])
    own = [noise_floor(100, 100, icc=max(0.0, mean.correlation)) for mean in groups]
    described, coded = (_floors(num) for num in (1000, 100))
    return Statement(
        "Section 6.1 describes 100 prompts with 10 samples each, 1000 scores an arm; "
        f"noise then gives {described}. The authors' code of a later version scores "
        "20 prompts with 5 samples each, 100 an arm; noise then gives "
        f"{coded}, and {listed([f'{value:.3f}' for value in own])} at an ICC that "
        f"equals the printed mean correlations. Printed are {means}. So the second "
        "size gives such values without any effect. If they come from the first, they "
        "are above noise and small, and 1000 scores can show that they are below "
        f"{NEGLIGIBLE}; that v moves the score at all is then still to be shown.",
        "E|d| = sqrt(2/pi) sqrt(2/n) sqrt(1 - ICC), at ICC 0 and (.5)",
        "which of both sizes Table 1 has; it does not say",
    )


def _spread(table: OrthogonalTable, *, of_paper: bool) -> Statement:
    rows = table.at(table.most_seeds)
    seen = statistics.fmean(row.spread for row in rows)
    text = (
        f"Over {table.most_seeds} seeds the standard deviation of |d| is {seen:.3f} of "
        f"its mean, averaged over {len(rows)} rows. Differences that scatter around 0 "
        f"give {NOISE_SPREAD:.3f} over many seeds, whatever their size; a common "
        "difference of twice their standard deviation gives 0.48."
    )
    if of_paper:
        text += (
            " Six rows of ten give 0.74, give or take 0.07, without a common "
            "difference (0.68 if the seeds share the texts of v, or if there is one of "
            "a single standard deviation; 0.65 if they share them and the deviation "
            "divides by n, as the authors' code of a later version has it). So no "
            "common difference is visible that is large beside the scatter."
        )
    return Statement(
        f"{text} The ratio cannot tell what scatters: the sampling of texts, or "
        "directions that push either way by chance.",
        "sd|N(0, s)| / E|N(0, s)| = sqrt(pi/2 - 1), for every s",
        "the differences of the seeds are about normal",
    )


def _seeds(table: OrthogonalTable) -> Statement:
    means = table.means()
    said = []
    for model in dict.fromkeys(mean.model for mean in means):
        own = [f"{m.cohens_d:.3f} at {m.seeds}" for m in means if m.model == model]
        said.append(f"{listed(own)} ({model})")
    return Statement(
        "More seeds make the mean of |d| more exact and not smaller: its floor "
        "depends on the scores of an arm alone. The printed means by seeds are "
        f"{'; '.join(said)}. That a mean stays where it is says that its floor or its "
        "effect does, and not which.",
        "E|d| = sqrt(2/pi) sqrt(2/n) sqrt(1 - ICC), without the number of seeds",
    )


def _power() -> Statement:
    return Statement(
        f"To show |d| < {NEGLIGIBLE} where d is 0 takes about "
        f"{scores_to_bound(NEGLIGIBLE):.0f} independent scores an arm: two one-sided "
        "tests of 5 %, with 80 % power. A printed |d| below the bound is no such test; "
        "noise alone stays below it on average from "
        f"{samples_at_floor(NEGLIGIBLE):.0f} scores on.",
        "n = 2 (z_.95 + z_.90)^2 / 0.2^2",
    )


def _idle() -> Statement:
    return Statement(
        "|d| is small where v and v + v_perp do the same, and where neither does "
        "anything. The table has no unsteered arm, so it cannot tell one from the "
        "other; the score of v against the unsteered one would.",
        "|d| = |m(v) - m(v + v_perp)| / s, in which m_0 does not occur",
    )


def correlations(printed: Printed) -> Section:
    """Table 1, r and perp-only: what prompts, and what an idle v_perp, would give."""
    table = printed.orthogonal
    return Section(
        "Table 1: correlation and perp-only effect",
        "r: correlation. perp %: the perp-only effect. idle %: what v adds to the "
        "unsteered score, in percent of it, if v_perp adds nothing.",
        ("model", "trait", "seeds", "r", "perp %", "idle %"),
        tuple(
            (row.model, row.trait, str(row.seeds), f"{row.correlation:.3f}",
             f"{row.perp_only_percent:.1f}", f"{row.idle_lift_percent:+.1f}")
            for row in table.rows
        ),
        (),
        (_icc(table, of_paper=printed.of_paper), _raw_ratio(table)),
        (_lift_ratio(), _null_direction()),
    )  # fmt: skip


def _icc(table: OrthogonalTable, *, of_paper: bool) -> Statement:
    seen = span([row.correlation for row in table.rows], ".2f")
    mean = statistics.fmean(row.correlation for row in table.at(table.most_seeds))
    text = (
        "Scores of two arms correlate because both answer the same prompts: r is the "
        "share of their variance that lies between prompts (the ICC), and v against v "
        f"with fresh random numbers has it too. The printed r, {seen} with a mean of "
        f"{mean:.2f} at {table.most_seeds} seeds, can be read as such shares, and is "
        "then no evidence for or against equivalence."
    )
    if of_paper:
        text += (
            " An r near 0 needs no ceiling of the probe; prompts with about equal "
            "scores are enough."
        )
    return Statement(
        text,
        "E r = ICC, if score = a prompt's part + independent noise",
        "both arms keep each prompt's part, and texts are sampled independently",
    )


def _raw_ratio(table: OrthogonalTable) -> Statement:
    seen = span([row.perp_only_percent for row in table.rows], ".1f")
    lifts = span([row.idle_lift_percent for row in table.rows], "+.1f")
    return Statement(
        "The perp-only effect is a ratio of raw mean scores, without the unsteered "
        f"score m_0. The printed {seen} % are also what comes out if v_perp does "
        f"nothing and v changes the score by {lifts} % of m_0 (last column).",
        "m_0 / m(v) = q, so L(v) / m_0 = 1/q - 1 with L(v) = m(v) - m_0",
        "the ratio is one of raw scores, as in the authors' code of a later version",
    )


def _lift_ratio() -> Statement:
    return Statement(
        "A ratio of lifts tells both readings apart: it is 0 if v_perp is idle and 1 "
        "if it does what v does. With m_0 = 0.73 and m(v) = 0.75, an idle v_perp has a "
        f"raw ratio of {100 * 0.73 / 0.75:.1f} % and a lift ratio of 0.",
        "L(v_perp) / L(v) = (m(v_perp) - m_0) / (m(v) - m_0)",
    )


def _null_direction() -> Statement:
    return Statement(
        "Proposition 1 concerns v + n with J n = 0. Of such an n alone it says that it "
        "moves nothing: a lift ratio of 0. A random v_perp that did by itself what v "
        "does would need J v_perp = J v, which is another claim. So a perp-only effect "
        "near 100 % of the lift would not support the proposition, and one near 100 % "
        "of the raw score leaves it where it was.",
        "J (v + n) = J v if and only if J n = 0",
    )


def environments(printed: Printed) -> Section:
    """Table 2: its aggregates, its noise floor, and what separates it from Table 1."""
    table, of_paper = printed.shift, printed.of_paper
    means = [statistics.fmean(table.cells(name)) for name in ENVIRONMENTS]
    return Section(
        "Table 2: Cohen's d by environment",
        "n: scores an arm at which noise alone gives the mean above it.",
        ("model", "trait", "in-dist.", "topic", "genre", "safety"),
        tuple(
            (row.model, row.trait,
             *(f"{getattr(row, name):.2f}" for name in ENVIRONMENTS))
            for row in table.rows
        ),
        (
            ("all", "mean", *(f"{mean:.3f}" for mean in means)),
            ("all", "n", *(_counts(mean)[0] for mean in means)),
        ),
        (
            _aggregates(table, of_paper=of_paper),
            _effective_size(table, of_paper=of_paper),
        ),
        (_both_tables(printed), _growth(table), _interval(table)),
    )  # fmt: skip


def _aggregates(table: ShiftTable, *, of_paper: bool) -> Statement:
    cells = table.cells()
    num, small = len(cells), table.num_below(SMALL)
    text = (
        f"The mean of the {num} cells is {table.mean:.4g}; {small} of {num} "
        f"({100 * small / num:.0f} %) lie below {SMALL}, and "
        f"{table.num_below(NEGLIGIBLE)} below {NEGLIGIBLE} (the smallest is "
        f"{min(cells):.2f})."
    )
    if of_paper:
        text += (
            f" The text gives a mean of 0.35, and 88 % below {SMALL}: 21 of 24, which "
            "is the count below 0.53. By the rule of Section 6.1, |d| < "
            f"{NEGLIGIBLE}, none of the 24 effects is negligible."
        )
    return Statement(text, "mean d; #{d < 0.5}; #{d < 0.2}")


def _effective_size(table: ShiftTable, *, of_paper: bool) -> Statement:
    num = samples_at_floor(table.mean)
    text = (
        f"Noise alone gives this mean at about {num:.1f} scores an arm (about one "
        "more, as the standard deviation is estimated from so few)."
    )
    assumes = "how many scores a cell has"
    if of_paper:
        text += (
            " The authors' code of a later version scores one text for each of 9 "
            f"prompts, where noise gives {noise_floor(9, 9):.3f} (0.395 with an "
            "estimated standard deviation)."
        )
        assumes = (
            "how many scores a cell of version 3 has; it does not say, so this is a "
            "strong inference and no proof"
        )
    return Statement(text, "n = 4 / (pi d^2)", assumes)


def _both_tables(printed: Printed) -> Statement:
    rows = [row.cohens_d for row in printed.orthogonal.rows]
    cells = printed.shift.cells(ENVIRONMENTS[0])
    text = (
        "In-distribution prompts are in both tables: |d| is "
        f"{span(cells, '.2f')} in Table 2 and {span(rows, '.2f')} in Table 1."
    )
    if min(cells) > max(rows):
        text += (
            " Every one of the former is above every one of the latter. What separates "
            "the tables is therefore there without any shift; the simplest candidate "
            "is the number of scores."
        )
    return Statement(
        f"{text} If both tables print noise alone, their numbers of scores differ by a "
        f"factor of {printed.scores_ratio():.0f}.",
        "n_1 / n_2 = (d_2 / d_1)^2",
        "nothing else differs between the two experiments",
    )


def _growth(table: ShiftTable) -> Statement:
    gap, error = table.growth()
    usual = statistics.fmean(table.cells(ENVIRONMENTS[0]))
    shifted = statistics.fmean(table.cells(*ENVIRONMENTS[1:]))
    give = "" if math.isnan(error) else f", with a standard error of {error:.3f}"
    return Statement(
        f"Within Table 2, shifted cells have a mean of {shifted:.3f} and unshifted "
        f"ones of {usual:.3f}: a difference of {gap:+.3f}{give}. What a shift does to "
        "|d| is this difference, and not that between the tables.",
        "SE^2 = s_1^2 / k_1 + s_2^2 / k_2, for k_1 and k_2 cells",
        "the cells are independent, with the same number of scores each",
    )


def _interval(table: ShiftTable) -> Statement:
    num = samples_at_floor(table.mean)
    width = 1.96 * math.sqrt(2 / num)
    return Statement(
        f"With {num:.0f} scores an arm the 95 % interval of a d reaches {width:.2f} to "
        "both sides; values like these then speak neither for equivalence nor against "
        "it. With so many scores that noise is small beside them, they would be "
        f"differences between v and v + v_perp, and those above {NEGLIGIBLE} would "
        "speak against it.",
        "d +- 1.96 sqrt(2/n), for d near 0",
        "how many scores a cell has",
    )


def _counts(mean_d: float) -> tuple[str, str]:
    """Scores an arm at the noise floor, without ICC and at 0.5, as text."""
    plain, shared = (f"{num:.0f}" for num in floors(mean_d))
    return plain, shared


def _floors(num: int) -> str:
    """The noise floor of arms of that size, without ICC and at 0.5, as text."""
    plain, shared = (noise_floor(num, num, icc=icc) for icc in (0.0, 0.5))
    return f"{plain:.3f} ({shared:.3f})"
