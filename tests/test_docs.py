"""The documentation is of this code: the settings' page is current, every link leads somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "pipeline" / "weights" / "README.md"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), WEIGHTS]


def test_the_page_of_settings_is_what_its_script_writes() -> None:
    path = ROOT / "scripts" / "settings_md.py"
    spec = importlib.util.spec_from_file_location("settings_md", path)
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == script.settings_md(), "run python scripts/settings_md.py"


def test_the_page_of_settings_shows_values_as_they_are_typed() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert not re.findall(r"=\{|\[\'|PydanticUndefined|\bTrue\b|\bFalse\b", page)
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.+) \|$", page, re.MULTILINE)
    assert rows
    for name, meaning in rows:
        what, _, choices = meaning.rpartition(": ")
        listed = choices.split(", ")
        assert len(listed) < 2 or not all(choice in what.split() for choice in listed), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [link.partition("#")[0] for link in links if "://" not in link]
    missing = [link for link in local if link and not (page.parent / link).exists()]
    assert not missing


def test_every_page_stands_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [page for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"]
    folders = [page.parent for page in (ROOT / "docs").glob("*/README.md")]
    for page in pages:
        assert f"({page.name})" in index
    for folder in folders:
        assert f"({folder.name}/README.md)" in index


def test_every_experiment_has_a_status_and_stands_in_the_index_newest_first() -> None:
    folder = ROOT / "docs" / "experiments"
    index = (folder / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| \[.*\]\((.+)\.md\) \| .* \| (.+) \|$", index, re.MULTILINE)
    pages = {page.stem: page for page in folder.glob("*.md") if page.name != "README.md"}
    assert sorted(name for _, name, _ in rows) == sorted(pages)
    assert [date for date, _, _ in rows] == sorted((row[0] for row in rows), reverse=True)
    for date, name, status in rows:
        assert re.fullmatch(r"current|negative|superseded by \[.+\]\(.+\)", status), name
        assert f"| status | {status} |\n| date | {date} |\n| commit | `" in pages[name].read_text(
            encoding="utf-8"
        )
        assert name.startswith(date)


def test_the_tree_of_contributing_names_every_module() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = text.partition("```text\n")[2].partition("```")[0]
    package, named = ROOT / "pipeline", {}
    for top, lines in re.findall(r"^  (\S.*\n)((?:   +\S.*\n)*)", tree, re.MULTILINE):
        named[top.split()[0].rstrip(",/")] = set(re.findall(r"\w+", lines))
    for folder in package.rglob("*/"):
        if folder.name == "__pycache__" or folder == package:
            continue
        top = folder.relative_to(package).parts[0]
        modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        assert modules <= named[top], folder
    assert {path.stem for path in package.glob("*.py")} - {"__init__"} <= set(
        re.findall(r"\w+", tree)
    )
