"""Pages: what a fact is, a page shows, letter by letter; HTML needs no other file."""

from __future__ import annotations

import shlex
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from matplotlib.figure import Figure

from pipeline.reporting.page import to_html, to_markdown
from pipeline.signals.gate import Gate, GateDraw
from pipeline.signals.readings import Signal
from pipeline.tracking.keys import TRAIN_ACC, TRAIN_LOSS, VAL_ACC, VAL_LOSS
from tests.reports import Html
from tests.test_decision import decision, report

ROOT = Path(__file__).resolve().parent.parent
NASTY = "<script>alert(1)</script> *x* [a](javascript:1) ![b](c) `y` $z$ ~~q~~ &amp; a|b \\| __w__"
GATE = Gate((Signal.of("headroom", True, "some"),), "promising", "")


def gate_page(name: str) -> str:
    """A page with a fact in a sentence, in a list and in a table."""
    outcome = {TRAIN_LOSS: 1.0, VAL_LOSS: 1.0, TRAIN_ACC: 0.5, VAL_ACC: 0.5}
    gate = Gate((Signal.of("headroom", True, name),), "promising", "")
    draws = [GateDraw(draw=name, first=outcome, second=outcome)]
    return to_markdown("gate", gate=gate, draws=draws, title=name, cases=name)


def check_shown(name: str) -> None:
    page = Html(to_html(gate_page(name), {}))
    plain = Html(to_html(gate_page("plain"), {}))
    assert page.seen == plain.seen  # a name brings no tag of its own
    assert page.references == []
    assert page.tables[0][1][0] == name
    assert page.text["p"] == plain.text["p"].replace("plain", name)
    assert page.text["li"] == plain.text["li"].replace("plain", name)


@pytest.mark.parametrize("name", [NASTY, "1. one", "# two", "- three", "http://four.de", "&lt;"])
def test_nothing_in_a_name_is_markdown_or_html(name: str) -> None:
    check_shown(name)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_every_name_is_shown_letter_by_letter(name: str) -> None:
    check_shown(name)


def test_a_title_is_text_in_the_tab_of_a_browser() -> None:
    page = Html(to_html(f"# {NASTY[:8]}".replace("<", "\\<").replace(">", "\\>"), {}))
    assert page.text["title"] == page.text["h1"] == "<script>"


def test_pictures_are_inside_the_page() -> None:
    page = Html(to_html("# title\n\n![one](figures/one.png)", {"figures/one.png": Figure()}))
    ((key, source),) = page.references
    assert key == "src"
    assert source.startswith("data:image/png;base64,")
    assert page.open == []


@pytest.mark.parametrize("command", ["echo `date` <b>", "echo '```' > x", "plain"])
def test_a_command_is_shown_as_it_is_typed(command: str) -> None:
    made = replace(decision(), asked=replace(decision().asked, general={"note": command}))
    page = Html(to_html(report(made), {}))
    assert shlex.quote(f"{command}") in page.text["code"]


def test_a_fact_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        to_markdown("gate", gate=GATE, draws=[], cases="")


def test_every_file_that_is_no_module_is_in_the_package() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    data = config["tool"]["setuptools"]["package-data"]
    listed = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = {path for path in (ROOT / "pipeline").rglob("*") if path.is_file()}
    assert {p for p in files if p.suffix not in (".py", ".pyc")} == listed
    assert len(listed) > 8
