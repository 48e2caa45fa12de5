"""Database URLs: which file, shown without a password, held by one process at a time.

MLflow and Optuna both create their tables when they first meet an empty database, and both fail
where another process is at it; workers ask for trials one after another. In: a URL as SQLAlchemy
writes them. Out: a lock to hold meanwhile; URLs of servers (http) need none. Not covered: locks on
databases other than SQLite and PostgreSQL.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock

_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)([^?]*)(.*)")
_ADVISORY_KEY = 0x756E66726565  # any constant that all our processes agree on
_PASSWORDS = (
    r"(://[^:/]*:)[^@]*(@)",  # SQLAlchemy's own rule: a user may be `me@realm`
    r"([?&][^=&]*passw(?:or)?d=)[^&]*()",
)


def without_password(url: str) -> str:
    """The URL with `***` for a password."""
    for pattern in _PASSWORDS:
        url = re.sub(pattern, r"\1***\2", url)
    return url


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite URL, as it stands there; None for any other URL."""
    found = _SQLITE.fullmatch(url)
    return Path(found[2]) if found else None


def is_same_database(one: str, other: str) -> bool:
    """Whether two URLs name one database, by whatever path."""
    first, second = sqlite_path(one), sqlite_path(other)
    if first and second:
        return first.resolve() == second.resolve()
    return without_password(one) == without_password(other)


def beside(url: str, other: str) -> str:
    """`url`, a relative SQLite file moved to the folder of `other`'s if that is an absolute one.

    So the two databases lie side by side wherever a launcher has set the working directory.
    """
    path, anchor = sqlite_path(url), sqlite_path(other)
    if path is None or path.is_absolute() or anchor is None or not anchor.is_absolute():
        return url
    return _SQLITE.sub(lambda found: f"{found[1]}{anchor.parent / path}{found[3]}", url)


@contextmanager
def exclusively(url: str) -> Iterator[None]:
    """Keep other processes of ours that ask for the same database waiting.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database cannot be reached.
    """
    path = sqlite_path(url)
    lock: AbstractContextManager[object]
    if path is not None:
        name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
        lock = FileLock(Path(tempfile.gettempdir()) / f"unfreeze-tables-{name}.lock")
    else:
        lock = _advisory(url) if url.startswith("postgres") else nullcontext()
    with lock:
        yield


@contextmanager
def _advisory(url: str) -> Iterator[None]:
    """PostgreSQL's advisory lock: let go when its session ends, however that ends."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        ask = sqlalchemy.text("SELECT pg_advisory_lock(:key)")
        connection.execute(ask, {"key": _ADVISORY_KEY})
        yield
