"""MLflow's tables in a SQLite file: made whole, mended where nothing is lost, else told about.

In: the address of a store. Out: MLflow's client on it. MLflow makes its tables, and brings those
of an earlier version up to date, in some sixty steps that each stay: whoever is killed meanwhile,
as earlier versions of ours and `mlflow ui` can be, leaves tables that MLflow can neither use nor
complete. Not covered: MySQL, and `mlflow server`, which makes its own; PostgreSQL takes back what
was not completed.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import TrackingError
from pipeline.system.disk.databases import (
    BUSY_S,
    Engine,
    advice_on,
    copy,
    fill,
    in_memory,
    is_empty,
)
from pipeline.system.interrupts import check
from pipeline.system.network.addresses import file_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

_QUIET_S = 3.0
"""A file that was written this recently may be getting its tables from another program."""
_OWN_ROWS = {"alembic_version", "workspaces"}
"""Tables in which MLflow itself writes while it makes them."""
_STEP, _SQLITES = "_alembic_tmp_", "sqlite_"
"""How the names of tables begin that one step needs, and of SQLite's own tables and indexes."""


def client_of(uri: str) -> MlflowClient:
    """MLflow's client on a store; a SQLite file without tables gets them all at once.

    Whoever calls this holds the store (`exclusively`).

    Raises:
        TrackingError: tables are half made, and hold something.
        StorageError: the disk is full, or the file may not be written.
    """
    from mlflow import MlflowClient

    path = file_of(uri)
    if path is None or "uri=true" in uri.lower():
        return MlflowClient(uri)
    try:
        if is_empty(uri):
            fill(path, _make_tables)
        found = _Tables.of(path)
        if not found.names >= _needed():
            return _completed(uri, path, found)
        return _opened(uri, path, found)
    except sqlite3.Error as err:
        advice = advice_on(str(err)) or "put a copy of yours in its place, or name another file"
        raise TrackingError(f"{path} cannot be used ({err}): {advice}") from None


@dataclass(frozen=True, kw_only=True)
class _Tables:
    """What a file holds.

    Attributes:
        words: that make the same tables again, then their indexes.
        versions: up to which of MLflow's steps they are made.
        is_used: whether there is a row that MLflow did not put there with the tables.
    """

    names: frozenset[str]
    words: tuple[str, ...]
    versions: frozenset[str]
    is_used: bool

    @classmethod
    def of(cls, path: Path) -> _Tables:
        """Read a file."""
        with closing(sqlite3.connect(path, BUSY_S)) as file:
            names = _names(file)
            made = "SELECT name, sql FROM sqlite_master ORDER BY type = 'table' DESC"
            words = [sql for name, sql in file.execute(made) if not name.startswith(_SQLITES)]
            version = "SELECT version_num FROM alembic_version"
            versions = file.execute(version).fetchall() if "alembic_version" in names else []
            rows = (f'SELECT 1 FROM "{name}" LIMIT 1' for name in names - _OWN_ROWS)
            return cls(
                names=names,
                words=tuple(words),
                versions=frozenset(version for (version,) in versions),
                is_used=any(file.execute(asked).fetchone() for asked in rows),
            )


def _opened(uri: str, path: Path, found: _Tables) -> MlflowClient:
    """The client on a file with all tables; the last steps may be missing."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient(uri)
    except MlflowException as err:  # it names what is missing, and how to add that
        is_known = found.versions <= _steps() and _is_mlflows(found)
        if advice_on(str(err)) or not is_known or (found.is_used and _can_be_completed(found)):
            raise
    if found.is_used:
        raise _stopped(path)
    _make_anew(path)
    return MlflowClient(uri)


def _completed(uri: str, path: Path, found: _Tables) -> MlflowClient:
    """The client on a file that lacks tables: of an earlier version, torn, or another program's.

    Raises:
        TrackingError: MLflow cannot complete them, and they hold something, or are not MLflow's.
    """
    from mlflow import MlflowClient

    kept = _kept(path)
    if not found.versions <= _steps():
        raise TrackingError(
            f"{path} holds tables of another program, or of a later version of MLflow: name "
            "another file: MLFLOW_TRACKING_URI=sqlite:////<folder>/mlflow.db"
        )
    if _can_be_completed(found):
        if found.is_used:
            _keep(path, kept)
        client = MlflowClient(uri)
        kept.unlink(missing_ok=True)
        return client
    if not _is_mlflows(found):
        return MlflowClient(uri)
    if found.is_used:
        raise _stopped(path)
    _make_anew(path)
    return MlflowClient(uri)


def _stopped(path: Path) -> TrackingError:
    """What to say of tables that nobody can complete."""
    if (kept := _kept(path)).exists():
        advice = f"put its copy from before in its place (mv '{kept}' '{path}')"
    else:
        advice = "put a copy of yours in its place, or begin anew "
        advice += f"(mv '{path}' '{path}.torn')"
    return TrackingError(
        f"{path} cannot be used: MLflow was stopped while it made its tables or brought them up "
        f"to date: {advice}"
    )


def _kept(path: Path) -> Path:
    """Where a copy lies while the tables are brought to the version that MLflow needs today."""
    return path.with_name(f"{path.name}.before-{_head()}")


def _make_anew(path: Path) -> None:
    """Replace tables that hold nothing, unless another program is at them."""
    while 0 <= time.time() - path.stat().st_mtime < _QUIET_S:
        check()
        time.sleep(0.2)
    with in_memory(_make_tables) as memory:
        found = _Tables.of(path)
        if not found.is_used and _head() not in found.versions:
            copy(memory, path)


def _is_mlflows(found: _Tables) -> bool:
    """Whether every table is one that MLflow makes, if only for a step."""
    with in_memory(_make_tables) as memory:
        made = _names(memory)
    return all(name in made or name.startswith(_STEP) for name in found.names)


def _can_be_completed(found: _Tables) -> bool:
    """Whether MLflow's remaining steps fit these tables: seen on empty ones in memory."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    def complete(engine: Engine) -> None:
        memory = engine["creator"]()
        for words in found.words:
            memory.execute(words)
        for version in found.versions:
            memory.execute("INSERT INTO alembic_version VALUES (?)", (version,))
        memory.commit()
        _make_tables(engine)

    try:
        with in_memory(complete):
            return True
    except (MlflowException, SQLAlchemyError, sqlite3.Error):
        return False


def _keep(path: Path, kept: Path) -> None:
    """Copy a file whole before its tables are changed; a copy that is there is of before, too."""
    if not kept.exists():
        part = kept.with_name(f"{kept.name}.part")
        part.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as file:
            copy(file, part)
        part.replace(kept)


def _names(file: sqlite3.Connection) -> frozenset[str]:
    """The tables in a file."""
    found = file.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return frozenset(name for (name,) in found if not name.startswith(_SQLITES))


def _needed() -> set[str]:
    """Names of all of MLflow's tables: where one is missing, MLflow makes tables."""
    import mlflow.store.db.utils  # noqa: F401 - fills `Base`
    from mlflow.store.db.base_sql_model import Base

    return set(Base.metadata.tables)


def _steps() -> set[str]:
    """The versions that MLflow's tables have had, up to today's."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    script = ScriptDirectory.from_config(_get_alembic_config(""))  # type: ignore[no-untyped-call]
    return {step.revision for step in script.walk_revisions()}


def _head() -> str:
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())  # type: ignore[no-untyped-call]


def _make_tables(engine: Engine) -> None:
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    _initialize_tables(sqlalchemy.create_engine("sqlite://", **engine))  # type: ignore[no-untyped-call]
