"""What lies in a folder: files with certain endings, and what is passed over among them.

In: a folder. Out: its files at any depth. Links to folders are followed, each folder once; hidden
files, hidden folders and those that systems keep for themselves (thumbnails of a file server, a
recycle bin) are never read. Not covered: what a file holds; endings are all that is looked at.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from pipeline.errors import DataError
from pipeline.system.interrupts import check
from pipeline.system.text import first_of, one_line

SYSTEM_FOLDERS = {
    *("@eadir", "@tmp", "#recycle", "#snapshot", "lost+found", "$recycle.bin", "recycler"),
    *("system volume information", "network trash folder", "temporary items"),
}
"""Folders, in lower case, of file servers and file systems, beside the hidden ones."""
NO_IMAGES = {".pdf", ".palm", ".h5", ".hdf", ".grib", ".bufr", ".mpg", ".mpeg"}
"""Endings of formats that Pillow can name but not read."""
USUAL = {
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".cfg", ".ini"),
    *(".md", ".rst", ".html", ".htm", ".db", ".log", ".lnk", ".url", ".py", ".ipynb", ".sh"),
    *(".parquet", ".tmp", ".bak", ".nfo"),
}
"""Endings of files that usually lie beside images and that nobody takes for one."""
BROKEN_LINK, NO_ENDING = "broken link", "without an ending"
_LONGEST_ENDING = 8


@dataclass(frozen=True)
class Entries:
    """What lies in a folder itself, by name; hidden and system folders left out.

    Attributes:
        folders: links to folders among them.
        links: those of the folders that are links.
        broken: how many links lead nowhere.
    """

    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    links: set[Path] = field(default_factory=set)
    broken: int = 0


@dataclass(frozen=True)
class Listing:
    """Files at any depth, sorted, and how many others were passed over, by kind."""

    files: list[Path]
    passed_over: Counter[str]


@cache
def image_endings() -> frozenset[str]:
    """Endings, in lower case, of the files that are taken for images."""
    return frozenset(Image.registered_extensions()) - NO_IMAGES


def entries_of(folder: Path) -> Entries:
    """What lies in a folder.

    Raises:
        DataError: it cannot be read.
    """
    check()
    found, broken = Entries(), 0
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith((".", "__")) or entry.name.lower() in SYSTEM_FOLDERS:
                    continue
                path = folder / entry.name
                is_link = entry.is_symlink()
                if path.is_dir() if is_link else entry.is_dir():
                    found.folders.append(path)
                    if is_link:
                        found.links.add(path)
                elif path.is_file() if is_link else entry.is_file():
                    found.files.append(path)
                elif is_link:
                    broken += 1
    except OSError as err:
        raise DataError(
            f"cannot read the folder {one_line(str(folder))} ({err.strerror}): make it readable, "
            "or move it away"
        ) from None
    return Entries(found.files, found.folders, found.links, broken)


def list_files(folder: Path, endings: Collection[str], above: Iterable[Path] = ()) -> Listing:
    """The files with these endings, in lower case, at any depth.

    Folders that are there come before those that links lead to, so that a folder which is reached
    twice keeps its own name; a link to a folder `above` is not followed.

    Raises:
        DataError: a folder cannot be read; says which.
    """
    files: list[Path] = []
    passed_over: Counter[str] = Counter()
    seen = {_identity(path) for path in above}
    here, linked = [folder], list[Path]()
    while here or linked:
        current = here.pop() if here else linked.pop(0)
        if (identity := _identity(current)) in seen:
            continue
        seen.add(identity)
        entries = entries_of(current)
        passed_over[BROKEN_LINK] += entries.broken
        here += [path for path in entries.folders if path not in entries.links]
        linked += [path for path in entries.folders if path in entries.links]
        for path in entries.files:
            ending = path.suffix.lower()
            if ending in endings:
                files.append(path)
            elif ending not in USUAL:
                passed_over[_kind(ending)] += 1
    return Listing(sorted(files), +passed_over)


def holds_images(folder: Path) -> bool:
    """Whether an image file lies in the folder, at any depth."""
    endings, seen, todo = image_endings(), set(), [folder]
    while todo:
        current = todo.pop()
        if (identity := _identity(current)) in seen:
            continue
        seen.add(identity)
        entries = entries_of(current)
        if any(path.suffix.lower() in endings for path in entries.files):
            return True
        todo += entries.folders
    return False


def in_words(passed_over: Counter[str]) -> str:
    """`20 .heic, 6 without an ending, 3 broken links`; empty where nothing was passed over."""
    plural = {BROKEN_LINK: f"{BROKEN_LINK}s"}
    ordered = sorted(passed_over.items(), key=lambda item: (item[0] == BROKEN_LINK, -item[1]))
    return first_of(
        [f"{count} {plural.get(kind, kind) if count > 1 else kind}" for kind, count in ordered]
    )


def _identity(path: Path) -> tuple[int, int]:
    """The folder itself, whatever it is called and whichever links lead to it."""
    try:
        status = path.stat()
    except OSError as err:
        raise DataError(
            f"cannot read the folder {one_line(str(path))} ({err.strerror}): make it readable, or "
            "move it away"
        ) from None
    return status.st_dev, status.st_ino


def _kind(ending: str) -> str:
    odd = not ending or len(ending) > _LONGEST_ENDING or " " in ending
    return NO_ENDING if odd else ending
