"""Optuna's storage: opened by many processes at once, its faults as one of ours.

In: a storage URL: SQLite on one machine, PostgreSQL or a journal file in a shared folder for many.
Out: a storage with a heartbeat: a worker that falls silent is given up.
"""

from __future__ import annotations

import os
import shlex
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from pipeline.errors import AwayError, StudyError, first_line
from pipeline.settings.entry import STORAGE
from pipeline.system.disk.databases import Engine, exclusively, fill, is_empty
from pipeline.system.disk.files import seen, typed_path
from pipeline.system.interrupts import check
from pipeline.system.network.addresses import (
    beside,
    file_of,
    hidden,
    is_same_database,
    misread,
    why_unwritable,
    with_file,
    without_password,
)
from pipeline.system.provenance import typed
from pipeline.tuning.storage.in_file import FileStorage
from pipeline.tuning.storage.journal import Journal, is_journal
from pipeline.tuning.storage.server import ServerStorage, engine_of_server

DEFAULT_STORAGE = "sqlite:///optuna.db"
JOURNAL = "journal:///"
Storage = RDBStorage | Journal
BEATS_UNTIL_GIVEN_UP = 4
AWAY_S = 300.0
"""Seconds that a worker waits for a storage in a file that cannot be read or written."""
IN_FILE = {"connect_args": {"timeout": 60}}
"""How a database in a file is opened."""
STORAGE_FAULTS = (StorageInternalError, SQLAlchemyError)
_OTHERS = "use postgresql:// or, in a shared folder, journal:///"
_OWN_DATABASE = "give Optuna one of its own on the same server, say postgresql://host/optuna"
_REFUSED = {
    "postgres://": "SQLAlchemy knows no postgres://: write postgresql://",
    "journal:": "a journal is a file: write journal:///optuna.journal, or four slashes before an "
    "absolute path",
    "redis": "Optuna can keep a journal there, but nothing that counts trials one at a time for "
    f"all workers: {_OTHERS}",
    "grpc": f"Optuna's proxy passes no heartbeats on: name the database behind it, {_OTHERS}",
}
"""Beginnings of URLs that are not used, and why."""
_DISK_FULL = ("database or disk is full", "No space left on device", "Disk quota exceeded")
"""Words of SQLite and of the system."""
_Result = TypeVar("_Result")


@contextmanager
def experiments_known() -> Iterator[None]:
    """Keep quiet Optuna's warnings that heartbeats and its pictures are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise StudyError, naming the storage, for any fault of Optuna's storage."""
    shown = f"storage={without_password(url)}"
    try:
        yield
    except ImportError as err:
        raise StudyError(
            f"{shown}: its driver is not installed ({first_line(err)}): pip install it, or use "
            "sqlite:/// or postgresql://"
        ) from None
    except RuntimeError as err:
        if "compatible with the table schema" not in str(err):
            raise
        raise StudyError(
            f"{shown} holds tables of another program, or of another version of Optuna: "
            f"{_OWN_DATABASE}"
        ) from None
    except STORAGE_FAULTS as err:
        cause = err.__cause__ if isinstance(err, StorageInternalError) else err
        why = hidden(first_line(cause or err), url)
        raise StudyError(
            f"{shown} cannot be used ({why}): check the URL, the server and the disk, then run "
            "the same command again: finished trials are kept"
        ) from None


def storage_url(given: str, tracking_uri: str) -> str:
    """The URL of the storage: `given`, or what OPTUNA_STORAGE names, or `optuna.db`.

    A relative file lies beside MLflow's database; the plain name of an existing file is read as a
    journal's, as on Optuna's own command line.

    Raises:
        StudyError: no URL, a kind in which a study cannot be shared, or MLflow's own database:
            both keep a table `alembic_version`.
    """
    given = given.strip() or os.environ.get(STORAGE, "").strip() or DEFAULT_STORAGE
    shown = f"storage={without_password(given)}"
    if "://" not in given and seen((file := typed_path(given)).is_file):
        given = with_file(f"{JOURNAL}file", file.absolute())
    for start, why in _REFUSED.items():
        if given.startswith(start) and not given.startswith(JOURNAL):
            raise StudyError(f"{shown}: {why}")
    if why := misread(given, like="sqlite:///optuna.db or postgresql://host/db"):
        raise StudyError(f"{shown}: {why}")
    url = beside(given, tracking_uri)
    if file_of(url) is None:
        _check_database(url, shown)
    if is_same_database(url, tracking_uri):
        raise StudyError(f"storage={tracking_uri} is MLflow's own database: {_OWN_DATABASE}")
    return url


def _check_database(url: str, shown: str) -> None:
    """Refuse a server's URL that SQLAlchemy cannot read, or reads in another way than meant."""
    try:
        parts = make_url(url)
        parts.get_dialect()
    except ImportError:
        return  # the driver is not installed: opening the storage says so
    except (ArgumentError, ValueError):
        raise StudyError(
            f"{shown} is not the URL of a storage for Optuna's studies: write a URL like "
            "sqlite:///optuna.db, postgresql://host/optuna or journal:///optuna.journal"
        ) from None
    if "@" in f"{parts.host}{parts.database}":
        raise StudyError(f"{shown}: its login holds an @ as it is: write %40")
    if parts.get_backend_name() == "sqlite":
        raise StudyError(f"{shown} is forgotten when this command ends: name a file")


def for_optunas_commands(url: str) -> str:
    """What to type for `optuna` and `optuna-dashboard`: a journal by its file alone."""
    path = file_of(url)
    shown = str(path) if path and url.startswith(JOURNAL) else without_password(url)
    return shlex.quote(shown)


def open_storage(url: str, heartbeat_s: int = 15, *, must_exist: bool = False) -> Storage:
    """Open a storage; an empty database gets its tables.

    Raises:
        StudyError: it cannot be reached, or `must_exist` and there is no such file.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path, grace_s = file_of(url), BEATS_UNTIL_GIVEN_UP * heartbeat_s
    if path is not None:
        _check_file(url, path, must_exist)
    kind, engine = (FileStorage, IN_FILE) if path else (ServerStorage, engine_of_server(url))
    with translated(url), experiments_known(), exclusively(url):
        if path is not None and url.startswith(JOURNAL):
            try:
                return Journal(url, path, heartbeat_s, grace_s)
            except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as err:
                raise StudyError(
                    f"storage={url}: {path} is damaged ({type(err).__name__}: {first_line(err)}): "
                    "restore it from a copy, or name another file"
                ) from None
        if path is not None and not must_exist and is_empty(url):
            fill(path, _make_tables)
        storage = kind(
            url, engine_kwargs=engine, heartbeat_interval=heartbeat_s, grace_period=grace_s
        )
    weakref.finalize(storage, storage.engine.dispose)  # Optuna leaves connections open
    return storage


def _make_tables(engine: Engine) -> None:
    RDBStorage("sqlite://", engine_kwargs=dict(engine))


def _check_file(url: str, path: Path, must_exist: bool) -> None:
    """Refuse a file that is not there, cannot be made or written, or holds something else."""
    if must_exist and not seen(path.exists):
        raise StudyError(
            f"storage={url}: there is no such file: run `{typed('tune')}` first, or pass "
            "-P storage=<where your studies are>"
        )
    why = "" if must_exist else why_unwritable(path)
    if why:
        hint = "" if path.is_absolute() else " (an absolute path begins with a fourth slash)"
        raise StudyError(
            f"storage={url} cannot be used: {why}{hint}: name a file in a folder that is there "
            "and that you may write to"
        )
    if url.startswith(JOURNAL) and seen(path.exists) and not is_journal(path):
        raise StudyError(
            f"storage={url}: {path} is not a journal of Optuna: name another file, or write "
            "sqlite:/// before that of a database"
        )


def patiently(
    do: Callable[[], _Result],
    faults: tuple[type[Exception], ...],
    say: Callable[[str], None],
    *,
    for_s: float = AWAY_S,
    every_s: float = 2.0,
) -> _Result:
    """Do something, and again every `every_s` seconds while a storage or MLflow fails at it.

    `faults`: the exceptions that are waited out.

    Raises:
        Exception: the last fault, once `for_s` seconds are over; at once where a disk is full.
    """
    end, is_told = time.monotonic() + for_s, False
    while True:
        try:
            return do()
        except AwayError:
            raise  # it was waited for
        except faults as err:
            cause = err.__cause__ or err
            if time.monotonic() > end or any(fault in str(cause) for fault in _DISK_FULL):
                raise
            if not is_told:
                say(f"note: waiting for the storage or MLflow ({first_line(cause)})")
                is_told = True
            check()
            time.sleep(every_s)
