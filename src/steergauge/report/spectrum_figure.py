"""T6 on the geometry page: the spectrum of the mean Fisher matrix, and what to count.

There is no one "dimension of the null space": each effective rank answers a question
of its own, so the whole family is shown, and with it two counts that need no
threshold, by a budget of nats and by a budget of samples.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from steergauge.audits.finding import Finding
from steergauge.report.axis import Axis
from steergauge.report.cells import count, degrees, part, portion, size
from steergauge.report.grid import (
    UNKNOWN,
    Cell,
    Column,
    Grid,
    Row,
    known,
    share,
    tables,
)
from steergauge.report.plots import (
    Plot,
    exact,
    guide,
    log_axis,
    plot,
    thinned,
    trace,
)
from steergauge.report.sections import Details, Section, numbers, present, value
from steergauge.report.words import padded, percent, plain, typeset

APART = 10.0
"""Nothing below so many times the floor is claimed, as in `linalg.FLOORS_APART`, which
needs torch."""

THRESHOLDS = (0.1, 0.05, 0.01)

_MATRICES = {
    "J_h": "Jacobian of the last hidden state, one text",
    "J centred": "Jacobian of the logits less their mean, one text",
    "F_x": "Fisher matrix of one text",
    "F_bar": "mean Fisher matrix of the texts",
}

_CARRIES = (
    "The eigenvalues say what a small step costs in nats, on these texts, at this "
    "layer and in this scope. A rank at a threshold counts singular values, not "
    "effects: the threshold is a choice, and different ones give very different "
    "numbers. The count by a budget of nats is in units of what v itself costs, but it "
    "takes one direction at a time, and it is second order: whether that holds at v's "
    "length is asked below. A small eigenvalue means slow to learn from texts, not "
    "impossible. What lies below ten times the floor may be rounding alone and is not "
    "counted."
)


def spectrum(finding: Finding) -> Section:
    """The section of T6."""
    details = finding.details
    return Section(
        "spectrum",
        "The spectrum: what the output sees",
        finding,
        _CARRIES,
        plots=present(_spectrum(details), _identifiable(details)),
        grids=tables(
            *_families(details),
            *_budgets(details),
            *_published(details),
            *_covariance(details),
        ),
        told=_told(details),
    )


def _spectrum(details: Details) -> Plot | None:
    """sigma_i / sigma_1 over i, with the floor and the usual thresholds."""
    values = numbers(details, "values")
    if not values or max(values) <= 0:
        return None
    sigma = [math.sqrt(max(one, 0.0) / max(values)) for one in values]
    floor = value(details, "floor") or 0.0
    least = min((one for one in sigma if one > 0), default=1.0)
    y = Axis(max(1e-12, min(least, floor or least, THRESHOLDS[-1]) / 2), 1.5, log=True)
    axes = Axis(0, len(sigma) + 1), y
    points = exact((place + 1, sigma[place]) for place in thinned(len(sigma)))
    return plot(
        "Spectrum of F_bar",
        [trace("sigma_i / sigma_1", points, axes=axes, style="own", dots=False)],
        unit="sigma_i / sigma_1, log scale",
        axes=axes,
        x_label="direction i, strongest first",
        guides=[
            guide(
                "below ten floors: not claimed", [APART * floor], axes=axes, kind="zone"
            ),
            guide("floor of the arithmetic", [floor], axes=axes, kind="floor"),
            guide("thresholds 10 %, 5 %, 1 %", THRESHOLDS, axes=axes, kind="limit"),
        ],
        tall=True,
    )


def _identifiable(details: Details) -> Plot | None:
    """How many coordinates of a vector so many observed tokens would fix."""
    known_at = details.get("identifiable") or {}
    tokens, counts = numbers(known_at, "tokens"), numbers(known_at, "dimensions")
    if not tokens or len(tokens) != len(counts):
        return None
    width = len(numbers(details, "values")) or max(counts)
    axes = log_axis(tokens), Axis(0, 1.05 * max(width, 1))
    points = exact(zip(tokens, counts, strict=True))
    accuracy = value(known_at, "accuracy")
    unit = "dimensions" if accuracy is None else f"to {percent(accuracy)} of v's length"
    return plot(
        "Directions that observed texts would fix",
        [trace("k_id", points, axes=axes, style="own")],
        unit=f"{unit}, by the Cramér-Rao bound",
        axes=axes,
        x_label="observed tokens, log scale",
        guides=[guide("width of the stream", [width], axes=axes, kind="zero")],
        tall=True,
    )


def _families(details: Details) -> list[Grid]:
    """Every effective rank of the four matrices."""
    families = details.get("families") or {}
    rows = [name for name in _MATRICES if families.get(name)]
    found: set[str] = {
        eps for name in rows for eps in families[name].get("ranks") or {}
    }
    thresholds: list[str] = sorted(found, key=float, reverse=True)
    columns = (
        *(Column(plain(float(eps)), "rank: sigma_i / sigma_1 above")
          for eps in thresholds),
        Column("stable", "without a threshold", "sum of lambda over the largest"),
        Column("PR", "without a threshold", "participation ratio"),
        Column(typeset("erank lambda"), "without a threshold", "exp of an entropy"),
        Column(typeset("erank sigma"), "without a threshold", "exp of an entropy"),
        Column("floor", "", "of sigma_i / sigma_1"),
    )  # fmt: skip
    made = tuple(
        Row(typeset(name), _MATRICES[name], _family(families[name], thresholds))
        for name in rows
    )
    widths = {families[name].get("width") for name in rows} - {None}
    width = ", ".join(str(one) for one in sorted(widths))
    note = (
        f"of {width} dimensions; equal only if all directions that are seen at all are "
        "seen equally well"
    )
    caption = "The family of effective ranks"
    return [Grid(caption, note, "matrix", columns, (("", made),))]


_UNTHRESHOLDED = (
    "stable",
    "participation_ratio",
    "erank_lambda",
    "erank_sigma",
    "floor",
)


def _family(family: Mapping[str, Any], thresholds: Sequence[str]) -> tuple[Cell, ...]:
    ranks = tuple(_rank(family, eps) for eps in thresholds)
    return (*ranks, *(size(family.get(key)) for key in _UNTHRESHOLDED))


def _rank(family: Mapping[str, Any], eps: str) -> Cell:
    ranks = family.get("ranks") or {}
    if eps not in ranks:
        return UNKNOWN
    rank = ranks[eps]
    return Cell("", "below the floor") if rank is None else Cell(str(rank))


def _budgets(details: Details) -> list[Grid]:
    """Directions along which a step of v's length costs no more than a budget."""
    equal = details.get("equivalent") or {}
    budgets, counts = numbers(equal, "nats"), numbers(equal, "dimensions")
    if not budgets or len(budgets) != len(counts):
        return []
    width, effect = len(numbers(details, "values")), value(details, "effect")
    order = sorted(range(len(budgets)), key=lambda place: budgets[place])
    cells = [
        count(counts[place], f"{share(counts[place] / width)} of all" if width else "")
        for place in order
    ]
    columns = tuple(
        Column(
            f"{plain(budgets[place])} nats",
            "",
            f"{portion(budgets[place] / effect)} of v's effect" if effect else "",
        )
        for place in order
    )
    return [
        Grid(
            "D_eq: directions along which a step as long as alpha v stays in a budget",
            "½ s^2 lambda of a direction is at most the budget, in nats a text; s = "
            "||alpha v||",
            "budget",
            columns,
            (("", (Row("directions", "", tuple(cells)),)),),
        )
    ]


def _published(details: Details) -> list[Grid]:
    """The emulation of the published estimate beside the exact number."""
    records = [record for record in details.get("published") or [] if record]
    if not records:
        return []
    columns = (
        Column("probes", "as the published code does it"),
        Column("threshold", "as the published code does it", "of σ₁"),
        Column("rank", "as the published code does it"),
        Column("null share", "as the published code does it", "of the probes"),
        Column("rounding", "as the published code does it", "error over signal"),
        Column("rank", "exact", "same prompt and threshold"),
        Column("null share", "exact", "of the width"),
    )
    rows = tuple(
        Row(
            str(record.get("dtype", "")),
            f"step {plain(record['epsilon'])}" if known(record.get("epsilon")) else "",
            _record(record),
        )
        for record in records
    )
    return [
        Grid(
            "The null-space estimate of arXiv 2602.06801, emulated",
            "random probes and finite differences on one prompt. An emulation of the "
            "published code, not the authors' numbers; the estimate is biased: it "
            "counts probes, and in half precision rounding can exceed the signal",
            "precision",
            columns,
            (("", rows),),
        )
    ]


def _record(record: Mapping[str, Any]) -> tuple[Cell, ...]:
    truth = record.get("exact") or {}
    return (
        count(record.get("num_probes")),
        part(record.get("threshold")),
        count(record.get("rank")),
        part(record.get("null_fraction")),
        size(record.get("error")),
        count(truth.get("rank")),
        part(truth.get("null_fraction")),
    )


def _covariance(details: Details) -> list[Grid]:
    """The null space of the activations' covariance is another space."""
    record = details.get("covariance") or {}
    if not record:
        return []
    angles: Sequence[float] = numbers(record, "angles_deg")
    middle = sorted(angles)[len(angles) // 2] if angles else None
    short = "as few as make null directions by themselves"
    cells = (
        count(record.get("num_states"), short if record.get("counted") else ""),
        size(record.get("threshold")),
        count(record.get("dimension")),
        degrees(min(angles, default=None)),
        degrees(middle),
        degrees(max(angles, default=None)),
        part(record.get("mean_cos2")),
        part(record.get("expected_cos2")),
    )
    columns = (
        Column("states"),
        Column("threshold", "", "of the variance"),
        Column("null dimension"),
        Column("smallest", "angles to the output's weakest directions"),
        Column("median", "angles to the output's weakest directions"),
        Column("largest", "angles to the output's weakest directions"),
        Column("mean cos²", "overlap"),
        Column("by chance", "overlap", "k / d"),
    )
    return [
        Grid(
            "The null space of the activations' covariance is another one",
            "where states do not vary, and where the output does not look, are two "
            "questions; neither answers the other",
            "",
            columns,
            (("", (Row("covariance", "of the stream at this layer", cells),)),),
        )
    ]


def _told(details: Details) -> tuple[str, ...]:
    strength, effect = value(details, "strength"), value(details, "effect")
    texts, tokens = value(details, "num_texts"), value(details, "num_tokens")
    told = []
    if texts is not None and tokens is not None:
        told.append(f"F_bar is the mean over {texts:g} texts of {tokens:g} tokens.")
    if strength is not None and effect is not None:
        told.append(
            f"v is as long as ||alpha v|| = {plain(strength)} and costs "
            f"{padded(effect)} nats a text on them."
        )
    answer = (details.get("covariance") or {}).get("answer")
    return tuple(one for one in (" ".join(told), answer) if one)
