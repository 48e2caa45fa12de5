"""Temporary files that name their process, and removing those of processes that are gone.

A process that is killed outright removes nothing. A command has one folder in the temporary
folder, `unfreeze.MARK.…`, for all that it and the libraries it calls put there, and holds a lock
in it; a half-written file is called `NAME.MARK.part` or the like. The mark names the process
(`processes`): the next command of the same user removes what belongs to processes that are known
to be gone, and nothing else. Not covered: another temporary folder than today's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path

from pipeline.system.processes import is_abandoned_mark, owner_mark

_PREFIX, _HELD = "unfreeze", "held"
"""How a folder's name begins, and the file in it that its process has locked."""
PART = ".part"
"""What the name of a half-written file ends in."""


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """Let this process keep its temporary files in a folder of its own, which goes at the end.

    Where no folder can be made, the temporary folder stays what it is: whoever needs it says so.
    """
    before = tempfile.tempdir
    with ExitStack() as own:
        with suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}.{owner_mark()}."))
            own.callback(shutil.rmtree, folder, ignore_errors=True)
            own.enter_context(_held(folder))
            tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a lock in a folder; it appears in the folder once it is held."""
    new = folder / f"{_HELD}.new"
    with new.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder / _HELD)
        yield


def sweep_folders() -> None:
    """Remove what this user's dead processes have left in the temporary folder."""
    with suppress(OSError):  # there is no such folder
        for path in _own(Path(tempfile.gettempdir()).glob(f"{_PREFIX}.*.*"), stat.S_ISDIR):
            if is_abandoned_mark(path.name.split(".")[1]) or _is_let_go(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_let_go(folder: Path) -> bool:
    """Whether no process holds a folder's lock; tells also of other boots and containers."""
    try:
        with (folder / _HELD).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


def part_of(path: Path) -> Path:
    """Where the content of a file is written before it gets its name."""
    return path.with_name(f"{path.name}.{owner_mark()}{PART}")


def sweep_parts(folder: Path, name: str = "") -> None:
    """Remove what this user's dead processes have half written in a folder.

    `name`: of the file that was being written; empty: any.
    """
    for path in _own(folder.glob(f"{escape(name) or '*'}.*{PART}"), stat.S_ISREG):
        of, mark, _ = path.name.rsplit(".", 2)
        if name in ("", of) and is_abandoned_mark(mark):
            with suppress(OSError):  # another process sweeps as well
                path.unlink()


def _own(found: Iterable[Path], is_kind: Callable[[int], bool]) -> Iterator[Path]:
    """Those of a kind that are this user's."""
    for path in found:
        with suppress(OSError):  # it has gone meanwhile
            about = path.lstat()
            if is_kind(about.st_mode) and about.st_uid == os.getuid():
                yield path
