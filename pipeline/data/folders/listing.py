"""What lies in a folder: files with certain endings, and what is passed over among them.

In: a folder. Out: its files at any depth. Links to folders are followed, each folder once. What
systems keep for themselves (thumbnails of a file server, a recycle bin) is an exact list of names
and never read; other hidden files and folders are not read, either, but counted. Not covered: what
a file holds; endings are all that is looked at.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from pipeline.errors import DataError
from pipeline.system.interrupts import check
from pipeline.system.text import first_of, one_line

SYSTEM_NAMES = {
    *("@eaDir", "@tmp", "#recycle", "#snapshot", "lost+found", "$RECYCLE.BIN", "$Recycle.Bin"),
    *("RECYCLER", "System Volume Information", "Network Trash Folder", "Temporary Items"),
    *("__MACOSX", "__pycache__", ".DS_Store", ".Spotlight-V100", ".Trashes", ".fseventsd"),
    *(".cache", ".dvc", ".git", ".idea", ".ipynb_checkpoints", ".thumbnails", ".venv", ".vscode"),
    *(".gitattributes", ".gitignore", ".gitkeep", ".directory"),
}
"""Files and folders of systems and tools, as they write them; `._x`, of a Mac, is another."""
NO_IMAGES = {".pdf", ".palm", ".h5", ".hdf", ".grib", ".bufr", ".mpg", ".mpeg"}
"""Endings of formats that Pillow can name but not read."""
USUAL = {
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".cfg", ".ini"),
    *(".md", ".rst", ".html", ".htm", ".db", ".log", ".lnk", ".url", ".py", ".ipynb", ".sh"),
    *(".parquet", ".nfo"),
}
"""Endings of files that usually lie beside images and that nobody takes for one."""
BROKEN_LINK, NO_ENDING, HIDDEN = "broken link", "without an ending", "hidden"
_LONGEST_ENDING = 16


@dataclass(frozen=True, kw_only=True)
class Entries:
    """What lies in a folder itself, by name; what systems keep for themselves left out.

    Attributes:
        folders: links to folders among them.
        links: those of the folders that are links.
        broken: links that lead nowhere.
        hidden: files and folders.
    """

    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    links: set[Path] = field(default_factory=set)
    broken: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)

    def with_endings(self, endings: Collection[str]) -> list[Path]:
        """The files with these endings, in lower case."""
        return [path for path in self.files if path.suffix.lower() in endings]

    def passed_over(self, endings: Collection[str]) -> Counter[str]:
        """How many files without these endings there are, by kind, and what is hidden."""
        others = {path.suffix.lower() for path in self.files} - USUAL - {*endings}
        counts = Counter(_kind(path) for path in self.with_endings(others))
        counts[BROKEN_LINK] = len(self.broken)
        for path in self.hidden:
            if not path.is_dir():
                counts[HIDDEN] += 1
                continue
            with suppress(DataError):  # nobody has to be able to read it
                inside = sum(len(entries.with_endings(endings)) for entries in _walk(path))
                counts[f"in the hidden folder {path.name}"] = inside
        return +counts


@cache
def image_endings() -> frozenset[str]:
    """Endings, in lower case, of the files that are taken for images."""
    return frozenset(Image.registered_extensions()) - NO_IMAGES


def entries_of(folder: Path) -> Entries:
    """What lies in a folder.

    Raises:
        DataError: the folder cannot be read.
    """
    check()
    found = Entries()
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path, is_link = folder / entry.name, entry.is_symlink()
                if entry.name in SYSTEM_NAMES or entry.name.startswith("._"):
                    continue
                if entry.name.startswith("."):
                    found.hidden.append(path)
                elif (path if is_link else entry).is_dir():
                    found.folders.append(path)
                    found.links.update([path] if is_link else [])
                elif (path if is_link else entry).is_file():
                    found.files.append(path)
                elif is_link:
                    found.broken.append(path)
    except OSError as err:
        raise _cannot_read(folder, err) from None
    return found


def list_files(
    folder: Path, endings: Collection[str], above: Iterable[Path] = ()
) -> tuple[list[Path], Counter[str]]:
    """The files with these endings, in lower case, at any depth; others are counted by kind.

    Folders that are there come before those that links lead to, so that a folder which is reached
    twice keeps its own name; a link to a folder `above` is not followed.

    Raises:
        DataError: a folder cannot be read; says which.
    """
    files: list[Path] = []
    passed_over: Counter[str] = Counter()
    for entries in _walk(folder, above):
        files += entries.with_endings(endings)
        passed_over += entries.passed_over(endings)
    return sorted(files), passed_over


def holds_images(folder: Path) -> bool:
    """Whether an image file lies in the folder, at any depth."""
    return any(entries.with_endings(image_endings()) for entries in _walk(folder))


def _walk(folder: Path, above: Iterable[Path] = ()) -> Iterator[Entries]:
    """What lies in the folder and in those below; see `list_files`."""
    seen = {_identity(path) for path in above}
    here, linked = [folder], list[Path]()
    while here or linked:
        current = here.pop() if here else linked.pop(0)
        if (identity := _identity(current)) in seen:
            continue
        seen.add(identity)
        entries = entries_of(current)
        here += [path for path in entries.folders if path not in entries.links]
        linked += [path for path in entries.folders if path in entries.links]
        yield entries


def names_of(paths: Sequence[Path], count: int = 10) -> str:
    """The names of the first paths, for a message."""
    return first_of([path.name for path in paths], count)


def in_words(passed_over: Counter[str]) -> str:
    """`20 .heic, 6 without an ending, 3 broken links`; empty where nothing was passed over."""
    return first_of(
        [
            f"{count} {kind}{'s' * (kind == BROKEN_LINK and count > 1)}"
            for kind, count in passed_over.most_common()
        ]
    )


def _identity(path: Path) -> tuple[int, int]:
    """The folder itself, whatever it is called and whichever links lead to it."""
    try:
        status = path.stat()
    except OSError as err:
        raise _cannot_read(path, err) from None
    return status.st_dev, status.st_ino


def _cannot_read(folder: Path, err: OSError) -> DataError:
    return DataError(
        f"cannot read the folder {one_line(str(folder))} ({err.strerror}): make it readable, or "
        "move it away"
    )


def _kind(path: Path) -> str:
    ending = path.suffix.lower()
    odd = not ending or len(ending) > _LONGEST_ENDING or " " in ending
    return NO_ENDING if odd else ending
