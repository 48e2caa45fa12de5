"""Pages from templates: Markdown, and the same page as HTML that needs no other file.

In: the name of a template in `templates/`, and the facts it shows. Out: text. A fact is plain
text: nothing in the name of a class or a folder becomes Markdown or HTML. A fact that the template
names and nobody gives is an error.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from matplotlib.figure import Figure

from pipeline.system.text import as_markdown


def to_markdown(template: str, **facts: object) -> str:
    """The page of `templates/<template>.md.j2`."""
    return _environment().get_template(f"{template}.md.j2").render(facts)


def to_html(markdown: str, pictures: Mapping[str, Figure]) -> str:
    """A page that `to_markdown` wrote, as HTML; `pictures` by their path in the Markdown."""
    parser = MarkdownIt("js-default")  # tables, and no HTML: what looks like a tag is text
    tokens = parser.parse(markdown)
    title = "".join(token.content for token in tokens[1].children or ())
    body = parser.renderer.render(tokens, parser.options, {})
    for path, figure in pictures.items():
        body = body.replace(f'src="{path}"', f'src="{_data_uri(figure, Path(path).suffix)}"')
    base = _environment().get_template("base.html.j2")
    return base.render(title=Markup.escape(title), body=Markup(body))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.reporting"),
        autoescape=True,
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": format, "code": _code, "code_block": _code_block}
    return environment


def _escaped(fact: object) -> object:
    """What a template shows: plain text escaped for Markdown, unless it has been already."""
    return fact if hasattr(fact, "__html__") else Markup(as_markdown(str(fact)))


def _code(text: str) -> Markup:
    """What is to be typed, within a sentence; it begins and ends with a word."""
    fence = _fence(text, 1)
    return Markup(f"{fence}{text}{fence}")


def _code_block(text: str) -> Markup:
    """What is to be typed, on lines of its own."""
    fence = _fence(text, 3)
    return Markup(f"{fence}bash\n{text}\n{fence}")


def _fence(text: str, least: int) -> str:
    """More backticks than any row of them in the text."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def _data_uri(figure: Figure, suffix: str) -> str:
    image, kind = io.BytesIO(), "jpeg" if suffix == ".jpg" else "png"
    figure.savefig(image, format=kind, dpi=120)
    return f"data:image/{kind};base64,{base64.b64encode(image.getvalue()).decode()}"
