"""paper.html: Tables 1 to 3 and Figures 2 to 4 of arXiv 2602.06801, for these runs.

Each published number stands as the paper computes it, beside the same number where
the answer is known, and beside the form of it that can carry a verdict. Made from
findings alone; a part whose audit was not run is left out.
"""

from collections.abc import Callable, Sequence

from steergauge.audits.finding import Verdict
from steergauge.report import glance, probe, words
from steergauge.report.cases import TURNED, Case
from steergauge.report.glossary import paper_glossary
from steergauge.report.lifted import lifted
from steergauge.report.next_token import table_3
from steergauge.report.orthogonal import table_1
from steergauge.report.parts import Block, Part
from steergauge.report.perp_only import figure_2
from steergauge.report.shift_figure import figure_4
from steergauge.report.shifts import table_2
from steergauge.report.slopes import steerability
from steergauge.report.strengths import figure_3
from steergauge.report.templating import environment
from steergauge.report.verdicts import vocabulary
from steergauge.report.words import PERP

_WITHOUT_PROBE = ("table-3",)
"""Parts that need no score of texts."""

Maker = Callable[[list[Case]], tuple[Block, ...]]

_PARTS: tuple[tuple[str, str, str, str, tuple[Maker, ...]], ...] = (
    (
        "table-1",
        "Table 1: an orthogonal addition",
        "Section 6.2",
        f"v and v + {PERP} are observationally equivalent, for random {PERP} of v's "
        "length: |d| is negligible.",
        (table_1, lifted),
    ),
    (
        "figure-2",
        f"Figure 2: {PERP} alone",
        "Section 6.2",
        f"{PERP} alone is about as effective as v: the ratio is near 1.",
        (figure_2,),
    ),
    (
        "figure-3",
        "Figure 3: every strength",
        "Section 6.3",
        f"v and v + {PERP} do the same at every strength.",
        (figure_3,),
    ),
    (
        "table-2",
        "Table 2 and Figure 4: other environments",
        "Section 6.4",
        f"The equivalence of v and v + {PERP} persists on other kinds of prompts.",
        (table_2, figure_4),
    ),
    (
        "table-3",
        "Table 3: next-token logits",
        "Appendix A",
        "Orthogonal additions move logits less than random vectors do (R < 1), and "
        "leave the likeliest tokens as they are.",
        (table_3,),
    ),
    (
        "steerability",
        "Prompt by prompt",
        "",
        "Does v steer every prompt the same way? A mean over prompts, as in all tables "
        "above, leaves that open; arXiv 2407.12404 asks it.",
        (steerability,),
    ),
)


def render(cases: Sequence[Case], missing: Sequence[str] = ()) -> str:
    """The page as text; the same findings give the same text.

    Args:
        cases: finished runs, in their order.
        missing: names of runs that were begun and are not finished.
    """
    rows = list(cases)
    made = [
        Part(name, title, source, claim, blocks)
        for name, title, source, claim, makers in _PARTS
        if (blocks := tuple(block for maker in makers for block in maker(rows)))
    ]
    opening, in_short = glance.opening(rows), glance.verdicts(rows)
    page = environment().get_template("paper.html.j2")
    return page.render(
        words=words,
        verdicts=vocabulary(
            finding for case in cases for finding in case.findings.values()
        ),
        Verdict=Verdict,
        len=len,
        cases=rows,
        models=list(dict.fromkeys(case.facts["model"] for case in rows)),
        opening=opening,
        in_short=in_short,
        rest=in_short[0].text.removeprefix(opening).strip(),
        matrix=glance.matrix(rows),
        parts=made,
        missing=list(missing),
        not_run=_not_run(rows, made),
        glossary=paper_glossary(),
        backward=[case for case in rows if case.facts["alpha"] < 0],
        brief=probe.brief,
        kind=probe.kind,
        turned=any(f"equivalence[{TURNED}]" in case.findings for case in rows),
    )


def _not_run(cases: list[Case], made: Sequence[Part]) -> list[tuple[str, str]]:
    """Parts without any finding, and what single runs had to leave out."""
    shown = {part.name for part in made}
    missing = [
        (title, _why_missing(cases, name))
        for name, title, *_ in _PARTS
        if name not in shown
    ]
    return missing + [
        (f"{case.trait}, {case.note}", reason)
        for case in cases
        for reason in case.facts["not_run"]
    ]


def _why_missing(cases: list[Case], name: str) -> str:
    """Why no run has anything to show in a part."""
    if name not in _WITHOUT_PROBE and not any(case.facts["probe"] for case in cases):
        return "no probe"
    return "not asked for, or without a number that could be shown"
