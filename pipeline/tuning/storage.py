"""Optuna's storage: opened by many processes at once, its faults as one of ours.

In: a storage URL (SQLite on one machine, PostgreSQL for many). Out: a storage with a heartbeat: a
worker that falls silent is given up.
"""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from pipeline.addresses import beside, file_of, is_same_database, without_password
from pipeline.databases import exclusively
from pipeline.errors import StudyError, first_line

DEFAULT_STORAGE = "sqlite:///optuna.db"
BEATS_UNTIL_GIVEN_UP = 4
AWAY_S = 300.0
"""How long a worker waits for a storage or a tracking server that is away."""
STORAGE_FAULTS = (StorageInternalError, SQLAlchemyError)
_OWN_DATABASE = "give Optuna one of its own on the same server, say postgresql://host/optuna"
_DISK_FULL = "database or disk is full"
"""SQLite's words."""
_Result = TypeVar("_Result")


@contextmanager
def experiments_known() -> Iterator[None]:
    """Without Optuna's warnings that heartbeats and its pictures are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise StudyError, naming the storage, for any fault of Optuna's storage."""
    try:
        yield
    except ImportError as err:
        raise StudyError(
            f"storage={without_password(url)}: its driver is not installed ({first_line(err)}): "
            "pip install it, or use sqlite:/// or postgresql://"
        ) from None
    except RuntimeError as err:
        if "compatible with the table schema" not in str(err):
            raise
        raise StudyError(
            f"storage={without_password(url)} holds tables of another program, or of another "
            f"version of Optuna: {_OWN_DATABASE}"
        ) from None
    except STORAGE_FAULTS as err:
        cause = err.__cause__ if isinstance(err, StorageInternalError) else err
        raise StudyError(
            f"storage={without_password(url)} cannot be used ({first_line(cause or err)}): check "
            "the URL, the server and the disk, then run the same command again: finished trials "
            "are kept"
        ) from None


def storage_url(given: str, tracking_uri: str) -> str:
    """The storage that is meant: `given`, or `optuna.db` beside MLflow's database.

    Raises:
        StudyError: it is no URL, or MLflow's own database; both keep a table `alembic_version`.
    """
    if given.startswith("postgres://"):
        raise StudyError(
            f"storage={without_password(given)}: SQLAlchemy knows no postgres://: write "
            "postgresql://"
        )
    url = beside(given or DEFAULT_STORAGE, tracking_uri)
    try:
        make_url(url)
    except (ArgumentError, ValueError):
        raise StudyError(
            f"storage={without_password(url)} is no database URL: write it like "
            "sqlite:///optuna.db or postgresql://host/optuna"
        ) from None
    if is_same_database(url, tracking_uri):
        raise StudyError(f"storage={tracking_uri} is MLflow's own database: {_OWN_DATABASE}")
    return url


def open_storage(url: str, heartbeat_s: int = 15, *, must_exist: bool = False) -> RDBStorage:
    """Open a storage; an empty database gets its tables.

    Raises:
        StudyError: it cannot be reached, or `must_exist` and there is no such file.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = file_of(url)
    if must_exist and path is not None and not path.exists():
        raise StudyError(
            f"storage={url}: there is no such file: run `mlflow run . -e tune` first, or pass "
            "-P storage=<where your studies are>"
        )
    engine: dict[str, object] = (
        {"connect_args": {"timeout": 60}} if path is not None else {"pool_pre_ping": True}
    )
    with translated(url), experiments_known(), exclusively(url):
        storage = RDBStorage(
            url,
            engine_kwargs=engine,
            heartbeat_interval=heartbeat_s,
            grace_period=BEATS_UNTIL_GIVEN_UP * heartbeat_s,
        )
    weakref.finalize(storage, storage.engine.dispose)  # Optuna leaves connections open
    return storage


@dataclass
class Losses:
    """Trials lost one after another, to a store that can be read and not written."""

    since: float | None = None

    def add(self, err: Exception) -> None:
        """One more.

        Raises:
            Exception: `err`, once nothing but losses has come for `AWAY_S` seconds.
        """
        now = time.monotonic()
        self.since = now if self.since is None else self.since
        if now - self.since > AWAY_S:
            raise err

    def end(self) -> None:
        """A trial has come to its end."""
        self.since = None


def patiently(
    do: Callable[[], _Result],
    faults: tuple[type[Exception], ...],
    say: Callable[[str], None],
    *,
    for_s: float = AWAY_S,
    every_s: float = 2.0,
) -> _Result:
    """Do something with a server, again and again while it is away.

    Raises:
        Exception: the fault, once the server has stayed away for `for_s` seconds, or at once where
            it is a full disk, which nobody restarts.
    """
    end, told = time.monotonic() + for_s, False
    while True:
        try:
            return do()
        except faults as err:
            if time.monotonic() > end or _DISK_FULL in str(err.__cause__ or err):
                raise
            if not told:
                say(f"note: waiting for a server ({first_line(err)})")
                told = True
            time.sleep(every_s)
