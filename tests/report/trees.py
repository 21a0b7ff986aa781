"""A page as tags, text and tables, read by Python's own parser; contrast of colours."""

from html.parser import HTMLParser

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
