"""A page of text, tables and one picture, written as Markdown or as HTML that needs no other file.

In: parts. Out: text. Parts are plain text: nothing in them is read as Markdown or HTML.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from pipeline.system.text import as_markdown

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; color: #222 }
body { padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { border-bottom: 1px solid #ddd; padding: .25rem .75rem; text-align: left }
td, th { vertical-align: top }
img { max-width: 100% }
pre { background: #f4f4f4; padding: .75rem; overflow: auto; white-space: pre-wrap }
.lead { font-size: 1.3rem }
"""


@dataclass(frozen=True)
class Part:
    """A piece of the page: a heading, a paragraph, the picture, or a block of code."""

    kind: Literal["title", "heading", "lead", "text", "picture", "code"]
    content: str


@dataclass(frozen=True)
class Table:
    """Rows of text under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


Page = list[Part | Table]


def to_markdown(page: Page) -> str:
    """The page as Markdown."""
    lines = []
    for part in page:
        if isinstance(part, Table):
            cells = [[in_a_cell(cell) for cell in row] for row in (part.header, *part.rows)]
            cells.insert(1, ["---"] * len(part.header))
            lines.append("\n".join(f"| {' | '.join(row)} |" for row in cells))
            continue
        form = {
            "title": "# {}",
            "heading": "## {}",
            "lead": "**{}**",
            "text": "{}",
            "picture": "![{1}]({0})",
            "code": "{2}bash\n{0}\n{2}",
        }[part.kind]
        content, shown = part.content, as_markdown(_shown(part, page))
        if part.kind not in ("picture", "code"):
            content = as_markdown(content)
        lines.append(form.format(content, shown, _fence(part.content)))
    return "\n\n".join(lines) + "\n"


def to_html(page: Page, figure: Figure) -> str:
    """The page as HTML, the picture inside it."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    source = f"data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}"
    body = []
    for part in page:
        if isinstance(part, Table):
            rows = [_html_row("th", part.header), *(_html_row("td", row) for row in part.rows)]
            body.append(f"<table>{''.join(rows)}</table>")
            continue
        text, shown = html.escape(part.content), html.escape(_shown(part, page))
        form = {
            "title": "<h1>{}</h1>",
            "heading": "<h2>{}</h2>",
            "lead": '<p class="lead">{}</p>',
            "text": "<p>{}</p>",
            "picture": f'<img alt="{{1}}" src="{source}">',
            "code": "<pre>{}</pre>",
        }[part.kind]
        body.append(form.format(text, shown))
    title = html.escape(_title(page))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'
    )


def in_a_cell(text: str) -> str:
    """The text as a cell of a Markdown table."""
    return as_markdown(text).replace("|", "\\|")


def _fence(code: str) -> str:
    """Longer than any row of backticks in the code."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))


def _title(page: Page) -> str:
    return next(part.content for part in page if isinstance(part, Part) and part.kind == "title")


def _shown(part: Part, page: Page) -> str:
    """What a picture shows, for those who do not see it."""
    return f"{Path(part.content).stem}: {_title(page)}" if part.kind == "picture" else ""


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
