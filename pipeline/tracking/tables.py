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
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import TrackingError
from pipeline.system.addresses import file_of
from pipeline.system.databases import Engine, advice_on, copy, fill, in_memory, is_empty
from pipeline.system.interrupts import check

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory
    from mlflow import MlflowClient

_QUIET_S = 3.0
"""A file that was written this recently may be getting its tables from another program."""
_OWN_ROWS = {"alembic_version", "workspaces"}
"""Tables in which MLflow itself writes while it makes them."""
_STEP = "_alembic_tmp_"
"""How the name of a table begins that one step needs."""


def client_of(uri: str) -> MlflowClient:
    """MLflow's client on a store; a SQLite file without tables gets them all at once.

    Whoever calls this holds the store (`exclusively`).

    Raises:
        TrackingError: tables are half made, and hold something.
        StorageError: the disk is full, or the file may not be written.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    path = file_of(uri)
    if path is None or "uri=true" in uri.lower():
        return MlflowClient(uri)
    try:
        if is_empty(uri):
            fill(path, _make_tables)
        try:
            with _copy_kept(path):
                return MlflowClient(uri)
        except (MlflowException, SQLAlchemyError) as err:
            if advice_on(str(err)) or not _mended(path):
                raise
    except sqlite3.Error as err:
        advice = advice_on(str(err)) or "put a copy of yours in its place, or name another file"
        raise TrackingError(f"{path} cannot be used ({err}): {advice}") from None
    return MlflowClient(uri)


@contextmanager
def _copy_kept(path: Path) -> Iterator[None]:
    """Keep a copy while MLflow brings the tables of an earlier version up to date."""
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.tracking.dbmodels import models  # noqa: F401 - fills `Base`

    with _reading(path) as file:
        names = _names(file)
        is_behind = bool(set(Base.metadata.tables) - names) and _holds_something(file, names)
        if is_behind and not (kept := _kept(path)).exists():
            part = kept.with_name(f"{kept.name}.part")
            part.unlink(missing_ok=True)
            copy(file, part)
            part.replace(kept)
    yield
    if is_behind:
        _kept(path).unlink(missing_ok=True)


def _kept(path: Path) -> Path:
    """Where the copy lies: of the content before the version that MLflow needs today."""
    return path.with_name(f"{path.name}.before-{_steps().get_current_head()}")


def _mended(path: Path) -> bool:
    """Whether half made tables were found in a file, and made anew as nothing else was in it.

    Raises:
        TrackingError: there is something in it.
    """
    from mlflow.store.db.base_sql_model import Base

    if not _is_torn(path):
        return False
    while 0 <= time.time() - path.stat().st_mtime < _QUIET_S:
        check()
        time.sleep(0.2)
    if not _is_torn(path):  # another program has completed them
        return True
    with _reading(path) as file:
        names = _names(file)
        if _holds_something(file, names):
            if set(Base.metadata.tables) <= names:
                return False  # what is left to do, MLflow says how
            kept = _kept(path)
            copy_of = f"its copy from before: mv '{kept}' '{path}'"
            other = f"a copy of yours in its place, or begin anew: mv '{path}' '{path}.torn'"
            raise TrackingError(
                f"{path} cannot be used: MLflow was stopped while it brought the tables up to "
                f"date: put {copy_of if kept.exists() else other}"
            )
    with in_memory(_make_tables) as memory:
        made = _names(memory)
        if not all(name in made or name.startswith(_STEP) for name in names):
            return False  # another program's
        copy(memory, path)
    return True


def _is_torn(path: Path) -> bool:
    """Whether MLflow, of this version or an earlier one, has not completed these tables.

    No for tables of a later version, and of other programs.
    """
    from mlflow.store.db.base_sql_model import Base

    steps = _steps()
    with _reading(path) as file:
        names = _names(file)
        has_version = "alembic_version" in names
        asked = file.execute("SELECT version_num FROM alembic_version") if has_version else ()
        versions = {str(row[0]) for row in asked}
    known = {step.revision for step in steps.walk_revisions()}
    is_current = set(steps.get_heads()) == versions and set(Base.metadata.tables) <= names
    is_ours = "experiments" in names or not names - {"alembic_version"}
    return is_ours and versions <= known and not is_current


def _holds_something(file: sqlite3.Connection, names: set[str]) -> bool:
    """Whether any table has a row that MLflow did not put there with the table."""
    asked = (f'SELECT 1 FROM "{name}" LIMIT 1' for name in names - _OWN_ROWS)
    return any(file.execute(words).fetchone() for words in asked)


def _names(file: sqlite3.Connection) -> set[str]:
    """The tables in a file."""
    found = file.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {name for (name,) in found if not name.startswith("sqlite_")}


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as file:
        yield file


def _steps() -> ScriptDirectory:
    """MLflow's steps from an empty file to today's tables."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    return ScriptDirectory.from_config(_get_alembic_config(db_url=""))  # type: ignore[no-untyped-call]


def _make_tables(engine: Engine) -> None:
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    _initialize_tables(sqlalchemy.create_engine("sqlite://", **engine))  # type: ignore[no-untyped-call]
