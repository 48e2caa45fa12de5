"""Databases that processes share: held by one process at a time.

MLflow and Optuna both create their tables when they first meet an empty database, and both fail
where another process is at it; workers ask for trials one after another. In: a URL as SQLAlchemy
writes them. Out: a lock to hold meanwhile; URLs of servers (http) need none. Not covered: locks on
databases other than SQLite, journal files and PostgreSQL.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock

from pipeline.system.addresses import file_of
from pipeline.system.files import holding

_ADVISORY_KEY = 0x756E66726565  # any constant that all our processes agree on
_FOR_ALL = 0o666
"""People who share a database share its lock."""


@contextmanager
def exclusively(url: str) -> Iterator[None]:
    """Keep other processes of ours that ask for the same database waiting.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database cannot be reached.
    """
    with ExitStack() as held:
        if path := file_of(url):
            held.enter_context(holding(FileLock(_lock_of(path.resolve()), mode=_FOR_ALL)))
        elif url.startswith("postgres"):
            import sqlalchemy

            engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
            connection = held.enter_context(engine.connect())
            connection.execution_options(isolation_level="AUTOCOMMIT")
            # let go when the session ends, however that ends
            ask = sqlalchemy.text("SELECT pg_advisory_lock(:key)")
            connection.execute(ask, {"key": _ADVISORY_KEY})
        yield


def _lock_of(path: Path) -> Path:
    """Beside the file, where everybody who writes to it can; else this user's own."""
    if os.access(path.parent, os.W_OK | os.X_OK):
        return path.with_name(f".{path.name}.lock")
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"unfreeze-tables-{os.getuid()}-{name}.lock"
