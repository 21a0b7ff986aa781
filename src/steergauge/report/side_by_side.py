"""Texts of v and of its most different equivalent, prompt by prompt.

The first prompts that both answered and their first samples, never chosen ones. With
them the control at the same angle and the unsteered text, where they were written.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from steergauge.audits.finding import MOST_DIFFERENT, SAME_COSINE
from steergauge.report.samples import (
    LONGEST,
    NUM_PROMPTS,
    Column,
    PromptSamples,
    SampleText,
    marked,
    printable,
)
from steergauge.report.words import arm_name, arm_note, family

NEEDED = ("v", MOST_DIFFERENT)
ARMS = (*NEEDED, f"{SAME_COSINE}[0]", "unsteered")
NUM_SAMPLES = 4

Counted = tuple[Sequence[str], Sequence[str]]


def side_by_side(
    rows: Sequence[Mapping[str, Any]], counted: Counted
) -> tuple[PromptSamples, ...]:
    """The first prompts with a text of v and one of its equivalent.

    Args:
        rows: texts of the run, of any stage and arm.
        counted: words that the probe counts up and down.
    """
    cells: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        shown = row["arm"] in ARMS and row["stage"] == "test"
        if shown and row["sample"] < NUM_SAMPLES:
            cells.setdefault((row["prompt_index"], row["arm"]), []).append(row)
    prompts = sorted({index for index, _ in cells})
    both = [index for index in prompts if all((index, arm) in cells for arm in NEEDED)]
    return tuple(
        PromptSamples(
            printable(cells[index, "v"][0]["prompt"]),
            tuple(
                _column(arm, cells[index, arm], counted)
                for arm in ARMS
                if (index, arm) in cells
            ),
        )
        for index in both[:NUM_PROMPTS]
    )


def _column(arm: str, rows: Sequence[Mapping[str, Any]], counted: Counted) -> Column:
    ordered = sorted(rows, key=lambda row: row["sample"])
    return Column(
        arm,
        arm_name(family(arm)),
        arm_note(arm),
        tuple(_text(row, counted) for row in ordered),
    )


def _text(row: Mapping[str, Any], counted: Counted) -> SampleText:
    text = row["text"]
    html = marked(text[:LONGEST], counted)
    if len(text) > LONGEST:
        html += Markup('<span class="rest">… and more in generations.parquet</span>')
    return SampleText(html, row["score"], row["finished"], row["num_tokens"])
