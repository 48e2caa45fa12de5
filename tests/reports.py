"""Reports as tests read them: a parser of the HTML and of the Markdown that runs hold."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

from mlflow.entities import Run


def artifact(run: Run, path: str) -> Path:
    return Path(run.info.artifact_uri) / path


class Html(HTMLParser):
    """Tags opened and closed, references, tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()
        self.tables: list[list[list[str]]] = []
        self.text: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        self.references += [
            (key, value or "") for key, value in attrs if key in ("src", "href", "srcset", "data")
        ]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
        elif self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data


def tables_of_markdown(text: str) -> list[list[list[str]]]:
    tables = []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            rows = [line.strip("|").split("|") for line in block.strip().splitlines()]
            tables.append([[c.strip(" `") for c in row] for row in (rows[0], *rows[2:])])
    return tables


def reports(run: Run) -> tuple[Html, str]:
    page = Html(artifact(run, "report.html").read_text(encoding="utf-8"))
    return page, artifact(run, "report.md").read_text(encoding="utf-8")
