"""Files that appear whole or not at all, what a full disk says, and paths as people type them."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock

from pipeline.errors import SettingsError, StorageError, first_line
from pipeline.system.disk.scratch import part_of, sweep_parts
from pipeline.system.interrupts import at_once
from pipeline.system.progress import say

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST),
    *(errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ENOENT),
}
_LONGEST_NAME = 255
"""Bytes of a file's name."""


def typed_path(text: str, key: str = "") -> Path:
    """The path that a person typed as that setting, `~` replaced.

    Raises:
        SettingsError: `~name` of no user, or a name that no disk takes.
    """
    what = f"{key}={text}" if key else text
    try:
        path = Path(text).expanduser()
    except RuntimeError as err:
        raise SettingsError(
            f"{what}: {first_line(err).rstrip('.')}: write the path in full"
        ) from None
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
        raise SettingsError(
            f"{what}: a name in this path has more than {_LONGEST_NAME} bytes, which no disk "
            "takes: give another path"
        )
    return path


def seen(question: Callable[[], bool]) -> bool:
    """What `path.is_dir`, `is_file` or `exists` says; no in a folder that may not be searched.

    From Python 3.14 on they say so themselves.
    """
    try:
        return question()
    except OSError:
        return False


def name_of(path: Path) -> str:
    """What a folder is called, `.` and `..` too; links are not followed."""
    return Path(os.path.abspath(path)).name or str(path)  # noqa: PTH100 - `resolve` follows links


@contextmanager
def storage_faults(what: str, where: Path | str) -> Iterator[None]:
    """Turn a full or read-only disk into a StorageError that names `what` and `where`."""
    try:
        yield
    except OSError as err:
        if err.errno in _FULL:
            advice = "free some space, then run the same command again; finished stages are reused"
        elif err.errno in _REFUSED:
            advice = "choose a folder you may write to"
        else:
            raise
        raise StorageError(f"cannot write {what} to {where} ({err.strerror}): {advice}") from None


def lock_for_all(path: Path) -> FileLock:
    """A lock that everybody who may write to its folder can hold, whoever made the file."""
    return FileLock(path, mode=0o666)


@contextmanager
def holding(lock: FileLock) -> Iterator[None]:
    """Wait for a lock, until Ctrl-C if need be, and hold it."""
    with at_once():
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, in a folder that is made if need be; others wait.

    Raises:
        StorageError: the folder may not be written.
    """
    with ExitStack() as held:
        with storage_faults("a lock", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(holding(lock_for_all(path)))
        yield


def check_folder_of(out: Path) -> None:
    """Refuse an `out=` in a folder that is not there, or that may not be written.

    A misspelt folder would be made, what was asked for lie where nobody looks, and the folder stay
    where the command fails.

    Raises:
        SettingsError: says which folder.
        StorageError: its disk is full, or may not be written.
    """
    if not seen(out.parent.is_dir):
        raise SettingsError(
            f"out={out}: there is no folder {out.parent.absolute()}: make it, or pass another "
            "-P out=<file>"
        )
    try:
        with storage_faults(out.name, out.parent), tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as err:
        raise SettingsError(
            f"out={out} cannot be written ({err.strerror}): choose another name or folder"
        ) from None


def keep_in_cache(path: Path, content: bytes) -> None:
    """`write_atomically` what can be made again; where that fails a note says so."""
    try:
        write_atomically(path, content)
    except StorageError as err:
        say(f"note: {err.args[0].partition(': ')[0]}: going on without it")


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, then rename: readers see the old file or the new one, never a part.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    with storage_faults(path.name, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(path)
        sweep_parts(path.parent, path.name)
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
