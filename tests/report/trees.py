"""A page as tags, text and tables, read by Python's own parser; contrast of colours."""

import itertools
import re
from collections.abc import Mapping
from html.parser import HTMLParser

from steergauge.audits.finding import Finding
from steergauge.report import words

VOID = {"meta", "br", "hr", "img", "input", "link"}
LOADING = {"src", "href", "srcset", "data", "action", "poster", "background"}


class Tree(HTMLParser):
    """Tags, attributes and text, with every tag closed in its order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.marked: list[tuple[str, str]] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "mark":
            self.marked.append((dict(attrs)["class"] or "", ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data) -> None:
        if "style" not in self.open:
            self.text.append(data)
        if "mark" in self.open:
            kind, text = self.marked[-1]
            self.marked[-1] = (kind, text + data)


def tree(page: str) -> Tree:
    parsed = Tree()
    parsed.feed(page)
    parsed.close()
    assert parsed.open == []
    return parsed


def check_sound(page: str, links: set[str]) -> None:
    """The page is well formed, loads nothing, and leads nowhere else."""
    parsed = tree(page)
    names = [tag for tag, _ in parsed.tags]
    assert names.count("h1") == names.count("main") == 1
    levels = [int(tag[1]) for tag in names if re.fullmatch("h[1-6]", tag)]
    assert max(after - before for before, after in itertools.pairwise(levels)) == 1
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    allowed = {*links, *(f"#{one}" for one in ids)}
    for tag, attrs in parsed.tags:
        assert tag not in {"script", "img", "iframe", "object", "embed", "link"}
        assert not any(key.startswith("on") for key in attrs)
        for key in LOADING & set(attrs):
            assert tag in {"a", "path"}
            assert tag == "path" or attrs[key] in allowed
    assert "default-src 'none'" in page
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def check_filled(page: str) -> None:
    """No cell, point or place is empty, no number or word is Python's."""
    text = plain_text(tree(page))
    assert not re.search(
        r"\b(None(?! of )|nan|inf|True|False|StrEnum)\b|\{\{|\[\]", text
    )
    for caption, rows in tables(page).items():
        cells = [cell for row in rows for cell in row[1:]]
        assert caption
        assert any(re.search(r"\w", cell) for cell in cells), caption
    for shown in re.findall(r'points="([^"]*)"', page):
        assert re.fullmatch(r"[\d. ,]+", shown)
    places = re.findall(r'\b(?:x|y|cx|cy|x1|x2|y1|y2)="([^"]*)"', page)
    assert all(re.fullmatch(r"-?[\d.]+%?", place) for place in places)


def check_said(page: str, findings: Mapping[str, Finding]) -> None:
    """Verdict, reason, claim, number and interval of every finding are on the page."""
    text = plain_text(tree(page))
    for found in findings.values():
        assert f"{words.VERDICTS[found.verdict].icon} {found.verdict}" in text
        assert " ".join(words.typeset(found.reasons[0]).split()) in text
        assert words.typeset(found.claim) in text
        if found.estimate is None:
            continue
        form = words.form(found)
        shown = words.number(found.estimate, form)
        if found.estimate.low < found.estimate.high:
            shown = f"{shown} {words.interval(found.estimate, form)}"
        assert " ".join(shown.split()) in text


def plain_text(parsed: Tree) -> str:
    return " ".join(" ".join(parsed.text).split())


def contrast(first: str, second: str) -> float:
    """The ratio of WCAG 2."""
    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def tables(page: str) -> dict[str, list[list[str]]]:
    """Rows of every table under its caption, a cell's texts joined by blanks."""
    parser = _Tables()
    parser.feed(page)
    return parser.found


class _Tables(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] = []
        self.caption = ""
        self.inside = ""

    def handle_starttag(self, tag, attrs) -> None:
        if tag == "table":
            self.rows, self.caption = [], ""
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("caption", "td", "th"):
            self.inside = tag
        if tag == "span" and self.inside == "caption":
            self.inside = "note"

    def handle_endtag(self, tag) -> None:
        if tag in ("caption", "td", "th"):
            self.inside = ""
        if tag == "table":
            self.found[self.caption] = self.rows

    def handle_data(self, data) -> None:
        text = " ".join(data.split())
        if self.inside == "caption":
            self.caption = f"{self.caption} {text}".strip()
        elif self.inside in ("td", "th"):
            cell = f"{self.rows[-1][-1]} {text}"
            self.rows[-1][-1] = cell.strip()


def table(page: str, beginning: str) -> list[list[str]]:
    """Rows of the only table whose caption begins so."""
    (rows,) = [
        rows for caption, rows in tables(page).items() if caption.startswith(beginning)
    ]
    return rows
