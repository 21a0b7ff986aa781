"""Table 2: environments, as published by |d|, and by lifts from and to each of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from steergauge.audits.comparison import MINIMUM_PROMPTS
from steergauge.audits.finding import Verdict
from steergauge.report import words
from steergauge.report.cases import EVERYWHERE, Case, having
from steergauge.report.grid import (
    UNKNOWN,
    Cell,
    Column,
    Grid,
    Row,
    known,
    measured,
    number,
    span,
    tables,
    verdict_cell,
    written,
)
from steergauge.report.parts import Block, said
from steergauge.report.words import PERP
from steergauge.statistics import Estimate

_ADDED = f"v + {PERP}"
_PUBLISHED = (
    "The floor of |d| grows as the number of texts falls, so |d| must be read beside "
    "it. A |d| near its floor shows no difference and no sameness. Whether equivalence "
    "holds under a shift is a question about every environment at once, which a mean "
    "over them does not answer."
)
_EVERYWHERE = (
    "The worst environment counts, not the mean. The variance over environments (which "
    "V-REx penalises, arXiv 2003.00688) is held against what sampling alone makes of "
    "it. “The same everywhere” needs every environment to be EQUIVALENT, and then "
    "no correction for their number; one that is DIFFERENT refutes it."
)
Cells = Sequence[Mapping[str, Any]]
Found = Sequence[tuple[Case, Mapping[str, Any]]]


def table_2(cases: list[Case]) -> tuple[Block, ...]:
    """The paper's table, the lifts behind it, and the matrices."""
    found = list(having(cases, "environments"))
    if not found:
        return ()
    names = targets(found)
    published = tables(_published(found, names))
    first = Block(
        grids=published,
        said=said((case, _floors(details)) for case, details in found),
        carries=_PUBLISHED,
    )
    second = Block(
        grids=tables(_lifts(found, names), _summary(found), _matrix(found, names)),
        said=said((case, _told(case, details)) for case, details in found),
        carries=_EVERYWHERE,
    )
    return (first, second) if published else (second,)


def targets(found: Found) -> list[str]:
    """Environments that were tested on, in the order of the runs."""
    return list(
        dict.fromkeys(cell["target"] for _, seen in found for cell in seen["cells"])
    )


def in_itself(cells: Cells, name: str) -> Mapping[str, Any] | None:
    """v_e tested on its own environment, as the paper's text has it."""
    return _at(cells, name, name)


def _at(cells: Cells, source: str, target: str) -> Mapping[str, Any] | None:
    for cell in cells:
        if (cell["source"], cell["target"]) == (source, target):
            return cell
    return None


def _published(found: Found, names: list[str]) -> Grid:
    rows = []
    for case, details in found:
        cells, source = details["cells"], details["source"]
        own = [in_itself(cells, name) for name in names]
        one = [_at(cells, source, name) for name in names]
        rows.append(Row(case.trait, case.note, tuple(_d(cell) for cell in own)))
        note = f"one vector, of {source}, as in the published code"
        rows.append(Row(case.trait, note, tuple(_d(cell) for cell in one), aside=True))
    return Grid(
        caption=f"Table 2, as published: |d| of v against {_ADDED}",
        note="first rows: the vector of the environment that it is tested on; below "
        "each number the floor, |d| of identical vectors with as many texts",
        corner="trait",
        columns=tuple(Column(name) for name in names),
        bodies=(("", tuple(rows)),),
    )


def _d(cell: Mapping[str, Any] | None) -> Cell:
    if cell is None or not known(cell["published_d"]):
        return UNKNOWN
    return Cell(number(cell["published_d"], digits=2), f"floor {_floor(cell)}")


def _floor(cell: Mapping[str, Any]) -> str:
    return number(cell["floor"], digits=2)


def _lifts(found: Found, names: list[str]) -> Grid:
    rows = tuple(
        Row(
            case.trait,
            case.note,
            tuple(
                _lift(_at(details["cells"], details["source"], name)) for name in names
            ),
        )
        for case, details in found
    )
    return Grid(
        caption="Lift of v in each environment",
        note=f"with its interval; below, whether {_ADDED} does there what v does",
        corner="trait",
        columns=tuple(Column(name) for name in names),
        bodies=(("", rows),),
    )


def _lift(cell: Mapping[str, Any] | None) -> Cell:
    if cell is None:
        return UNKNOWN
    seen = measured(cell["lift"])
    return Cell(seen.text, seen.small, cell["verdict"], of=_ADDED)


def _summary(found: Found) -> Grid:
    columns = (
        Column("variance over environments", "", "of v's lift"),
        Column("by sampling alone"),
        Column("worst environment", "", "lift of v"),
        Column("v moves the trait in each?", "", "T14"),
        Column(f"{_ADDED} the same in each?", "", "T14, intersection-union"),
    )
    rows = tuple(
        Row(case.trait, case.note, _summary_cells(case, details))
        for case, details in found
    )
    return Grid(
        caption="Over all environments",
        note="the vector under audit",
        corner="trait",
        columns=columns,
        bodies=(("", rows),),
    )


def _summary_cells(case: Case, details: Mapping[str, Any]) -> tuple[Cell, ...]:
    single = len(_own(details)) < 2
    worst = min(_own(details), key=lambda cell: cell["lift"][0])
    lift = measured(worst["lift"])
    return (
        UNKNOWN if single else measured(details["variance"], "ratio"),
        UNKNOWN if single else Cell(words.padded(details["variance_floor"])),
        Cell(f"{worst['target']}: {lift.text}", lift.small),
        verdict_cell(case.verdict("environments")),
        verdict_cell(case.verdict(EVERYWHERE)),
    )


def _own(details: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Cells of the vector under audit."""
    source = details["source"]
    return [cell for cell in details["cells"] if cell["source"] == source]


def _matrix(found: Found, names: list[str]) -> Grid:
    """Where vectors of several environments were tested in several."""
    bodies = tuple(
        (f"{case.trait}, {case.note}", _matrix_rows(details["cells"], names))
        for case, details in found
        if len({cell["source"] for cell in details["cells"]}) > 1
    )
    return Grid(
        caption="Extracted in a row's environment, tested in a column's",
        note="lift of that vector, a stronger tint the larger it is; below, whether "
        f"adding {PERP} leaves it the same",
        corner="extracted in",
        columns=tuple(Column(name, "tested on") for name in names),
        bodies=bodies,
    )


def _matrix_rows(cells: Cells, names: list[str]) -> tuple[Row, ...]:
    sources = dict.fromkeys(cell["source"] for cell in cells)
    largest = max(abs(cell["lift"][0]) for cell in cells) or 1.0
    return tuple(
        Row(
            source,
            "",
            tuple(_warm(_at(cells, source, name), largest) for name in names),
        )
        for source in sources
    )


def _warm(cell: Mapping[str, Any] | None, largest: float) -> Cell:
    if cell is None:
        return UNKNOWN
    value = cell["lift"][0]
    heat = max(0, round(5 * value / largest))
    judged = f"{_ADDED}: {cell['verdict'].lower()}"
    return Cell(number(value, signed=True, digits=2), judged, "", heat)


def _floors(details: Mapping[str, Any]) -> str:
    cells = [
        cell
        for cell in details["cells"]
        if cell["source"] == cell["target"] and known(cell["published_d"])
    ]
    if not cells:
        return ""
    below = sum(cell["published_d"] <= cell["floor"] for cell in cells)
    return (
        f"|d| is {span(cell['published_d'] for cell in cells)}; identical vectors with "
        f"as many texts ({cells[0]['num_texts']} an arm) give "
        f"{span(cell['floor'] for cell in cells)} on average. {below} of {len(cells)} "
        "environments lie at or below that."
    )


def _told(case: Case, details: Mapping[str, Any]) -> str:
    everywhere, same = case.verdict("environments"), case.verdict(EVERYWHERE)
    worst = min(_own(details), key=lambda cell: cell["lift"][0])
    lift = f"{worst['target']}, {written(worst['lift'])}"
    if not case.moves:
        return (
            f"The smallest lift is in {lift}. v did not pass its manipulation check, "
            "so nothing can be the same as what it does."
        )
    parts = [f"The smallest lift is in {lift}."]
    if everywhere is Verdict.PASS:
        parts = [f"v moves the trait in every environment; least in {lift}."]
    if everywhere is Verdict.FAIL:
        parts = [f"v does not measurably move the trait everywhere: {lift}."]
    parts.append(_same(details, same))
    parts.append(_varies(details))
    return " ".join(part for part in parts if part)


def _same(details: Mapping[str, Any], verdict: Verdict | None) -> str:
    refuted = [
        cell["target"] for cell in _own(details) if cell["verdict"] == Verdict.DIFFERENT
    ]
    sentences = {
        Verdict.EQUIVALENT: f"{_ADDED} does the same in every one of them.",
        Verdict.DIFFERENT: f"{_ADDED} does something else in {', '.join(refuted)}.",
        Verdict.INCONCLUSIVE: f"Whether {_ADDED} does the same in every one could not "
        f"be told{_too_few(_own(details))}.",
    }
    return sentences.get(verdict, "") if verdict else ""


def _too_few(cells: Cells) -> str:
    """Whether there are fewer prompts than sameness is stated from."""
    sizes = [cell["num_prompts"] for cell in cells if cell["num_prompts"]]
    if not sizes or min(sizes) >= MINIMUM_PROMPTS:
        return ""
    return (
        f" from {min(sizes)} prompts in each; sameness is stated from "
        f"{MINIMUM_PROMPTS} on"
    )


def _varies(details: Mapping[str, Any]) -> str:
    if len(_own(details)) < 2:
        return ""
    seen = Estimate(*details["variance"])
    told = f"{words.padded(seen.value)} {words.interval(seen, 'ratio')}"
    noise = words.padded(details["variance_floor"])
    return (
        f"The variance over environments is {told}; sampling alone would make it "
        f"{noise}."
    )
