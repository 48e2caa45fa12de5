"""Files that a process reads again and again, and that must stay as they were when it began.

In: paths. Out: what each file held when this process first read it, and a fault where a file holds
something else by now: what was made of the file earlier would go by the name of its new content.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import SettingsError
from pipeline.system.text import first_of

_FIRST: dict[Path, bytes] = {}


def first_read(path: Path) -> bytes:
    """The file's bytes, as this process read them first."""
    path = path.absolute()
    if path not in _FIRST:
        _FIRST[path] = path.read_bytes()
    return _FIRST[path]


def check_unchanged(paths: Iterable[Path], what: str) -> None:
    """Refuse files that no longer hold what this process read first.

    Raises:
        SettingsError: names them; begins with `what`.
    """
    edited = [str(path) for path in paths if _now(path) != first_read(path)]
    if edited:
        raise SettingsError(
            f"{what} changed since this process began ({first_of(edited, 4)}): start the command, "
            "or the notebook's kernel, again, or restore what was there"
        )


def _now(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
