"""Databases that processes share: held by one process at a time, and never half made.

MLflow and Optuna both create their tables when they first meet an empty database, and both fail
where another process is at it; workers ask for trials one after another. In: a URL as SQLAlchemy
writes them. Out: a lock to hold meanwhile; URLs of servers (http) need none. A SQLite file gets
its tables in one transaction: they are made in memory, and SQLite's own journal sees to it that a
kill or a full disk leaves an empty file. Not covered: locks on databases other than SQLite,
journal files and PostgreSQL.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import StorageError
from pipeline.system.disk.files import holding, lock_for_all, storage_faults
from pipeline.system.interrupts import check
from pipeline.system.network.addresses import file_of

_ADVISORY_KEY = 0x756E66726565  # any constant that all our processes agree on
BUSY_S = 60.0
"""How long another program may hold a file."""
_NO_FILE = {errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENOTDIR}
_FORBIDDEN = {errno.EACCES, errno.EPERM}
_FULL = "free some space"
_ELSEWHERE = "choose a folder you may write to"
_ADVICE = {
    "database or disk is full": _FULL,
    "No space left on device": _FULL,
    "Disk quota exceeded": _FULL,
    "readonly database": _ELSEWHERE,
    "unable to open database file": _ELSEWHERE,
    "Read-only file system": _ELSEWHERE,
    "database is locked": "another program holds the file: wait for that program, or end it",
}
"""What to do about words of SQLite and of the system."""

Engine = Mapping[str, Any]
"""What SQLAlchemy's `create_engine("sqlite://", …)` is to be told to use one given connection."""


@contextmanager
def exclusively(url: str) -> Iterator[None]:
    """Keep other processes of ours that ask for the same database waiting.

    Raises:
        StorageError: what lies in the place of the lock cannot be locked.
        sqlalchemy.exc.SQLAlchemyError: the database cannot be reached.
    """
    with ExitStack() as held:
        if path := file_of(url):
            held.enter_context(_beside(path.resolve()))
        elif url.startswith("postgres"):
            import sqlalchemy

            engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
            connection = held.enter_context(engine.connect())
            connection.execution_options(isolation_level="AUTOCOMMIT")
            # let go when the session ends, however that ends
            ask = sqlalchemy.text("SELECT pg_advisory_lock(:key)")
            connection.execute(ask, {"key": _ADVISORY_KEY})
        yield


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Hold the lock beside a file; a folder that may only be read holds nothing to wait for."""
    folder, lock = path.parent, path.with_name(f".{path.name}.lock")
    with ExitStack() as held:
        if os.access(folder, os.W_OK | os.X_OK):
            try:
                held.enter_context(holding(lock_for_all(lock)))
            except OSError as err:
                if err.errno in _NO_FILE:
                    advice = "remove what lies there, then run the same command again"
                elif err.errno in _FORBIDDEN and folder.stat().st_mode & stat.S_ISVTX:
                    advice = f"people can share a folder without a sticky bit: chmod -t '{folder}'"
                elif err.errno in _FORBIDDEN:
                    advice = f"its owner has to let others write it: chmod 666 '{lock}'"
                else:
                    with storage_faults(f"the lock {lock.name}", folder):
                        raise
                raise StorageError(f"{lock} cannot be locked ({err.strerror}): {advice}") from None
        yield


def is_empty(url: str) -> bool:
    """Whether a SQLite URL names a file that is not there, or holds no table.

    No for a file of another kind, for names that only SQLite can read (`uri=true`), and for other
    drivers than Python's own.
    """
    path = file_of(url)
    driver = url.partition(":")[0]
    if path is None or "uri=true" in url.lower() or driver not in ("sqlite", "sqlite+pysqlite"):
        return False
    if not path.exists():
        return True
    try:
        with closing(sqlite3.connect(path, BUSY_S)) as file:  # takes back what a kill left
            return not file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    except sqlite3.Error:
        return False


@contextmanager
def in_memory(make: Callable[[Engine], object]) -> Iterator[sqlite3.Connection]:
    """A database in memory with what `make` makes."""
    from sqlalchemy.pool import StaticPool

    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as memory:
        make({"poolclass": StaticPool, "creator": lambda: memory})
        yield memory


def fill(path: Path, make: Callable[[Engine], object]) -> None:
    """Give an empty or missing file what `make` makes, all at once.

    Raises:
        StorageError: as `copy`.
    """
    with in_memory(make) as memory:
        copy(memory, path)


def copy(source: sqlite3.Connection, path: Path) -> None:
    """Copy a database over a file in one transaction of that file, which is made if need be.

    The file keeps its place and its rights; whoever has opened it sees the old content or the new.

    Raises:
        StorageError: the disk is full, the file may not be written, or is held for a minute.
    """
    end = time.monotonic() + BUSY_S

    def look(status: int, *_: int) -> None:
        check()
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > end:
            raise sqlite3.OperationalError("database is locked")

    try:
        with closing(sqlite3.connect(path)) as file:
            source.backup(file, progress=look)
    except sqlite3.OperationalError as err:
        advice = advice_on(str(err)) or "see whether the disk is full or fails"
        raise StorageError(
            f"cannot write the tables of {path} ({err}): {advice}, then run the same command again"
        ) from None


def advice_on(message: str) -> str:
    """What to do where SQLite or the system says that a file cannot be written; else empty."""
    return next((advice for words, advice in _ADVICE.items() if words in message), "")
