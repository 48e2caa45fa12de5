"""Temporary files that name their process, and removing those of processes that are gone.

A process that is killed outright removes nothing. A command has one folder in the temporary
folder, `unfreeze.MARK.…`, for all that it and the libraries it calls put there; a half-written
file is called `NAME.MARK.part` or the like. The mark names the process (`processes`): the next
command of the same user removes what belongs to processes that are known to be gone, and nothing
else. Not covered: another temporary folder than today's.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from pipeline.system.processes import is_abandoned_mark, owner_mark

_PREFIX = "unfreeze"
PART = ".part"
"""What the name of a half-written file ends in."""


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """Let this process keep its temporary files in a folder of its own, which goes at the end.

    Where no folder can be made, the temporary folder stays what it is: whoever needs it says so.
    """
    before = tempfile.tempdir
    try:
        folder = tempfile.mkdtemp(prefix=f"{_PREFIX}.{owner_mark()}.")
    except OSError:
        yield
        return
    tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


def sweep_folders() -> None:
    """Remove what this user's dead processes have left in the temporary folder."""
    with suppress(OSError):  # there is no such folder
        for path in _left(Path(tempfile.gettempdir()).glob(f"{_PREFIX}.*.*"), 1, stat.S_ISDIR):
            shutil.rmtree(path, ignore_errors=True)


def part_of(path: Path, ending: str = PART) -> Path:
    """Where the content of a file is written before it gets its name."""
    return path.with_name(f"{path.name}.{owner_mark()}{ending}")


def sweep_parts(folder: Path, name: str = "", endings: Iterable[str] = (PART,)) -> None:
    """Remove what this user's dead processes have half written in a folder.

    `name`: of the file that was being written; empty: any.
    """
    for ending in endings:
        found = folder.glob(f"{escape(name) or '*'}.*{ending}")
        for path in _left(found, -2, stat.S_ISREG):
            with suppress(OSError):  # another process sweeps as well
                path.unlink()


def _left(found: Iterable[Path], position: int, is_kind: Callable[[int], bool]) -> Iterator[Path]:
    """Those of a kind that are this user's and name a dead process in that word."""
    for path in found:
        with suppress(OSError):  # it has gone meanwhile
            about = path.lstat()
            is_own = is_kind(about.st_mode) and about.st_uid == os.getuid()
            if is_own and is_abandoned_mark(path.name.split(".")[position]):
                yield path
