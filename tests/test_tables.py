"""MLflow's and Optuna's tables: there whole or not at all, and mended where nothing is lost.

Kills are the system's own: a limit on the size of files ends a process at the write that goes
beyond the limit, or, where the process ignores that signal, fails as a full disk does.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import sqlalchemy
from mlflow.store.db import utils
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from pipeline.errors import StorageError, TrackingError
from pipeline.system.disk.databases import fill
from pipeline.tracking import Tracking
from pipeline.tuning.storage.access import open_storage
from tests.conftest import PointAt

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
OPEN_BY_MANY = """
import os, resource, signal, sys, traceback
from pathlib import Path

kind, url, *limits = sys.argv[1:]
if kind == "MLflow":
    import mlflow.store.tracking.sqlalchemy_store
    from pipeline.tracking import Tracking
    use = lambda: Tracking.connect("", "images").find({"kind": "stage"})
else:
    from pipeline.tuning.storage.access import open_storage
    use = lambda: open_storage(url).get_all_studies()

def child(limit=None):
    if pid := os.fork():
        return pid
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        os._exit(use() != [])
    except BaseException:
        traceback.print_exc()
        os._exit(1)

def codes(pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

for limit in limits:
    assert codes([child(int(limit))]) == [-signal.SIGXFSZ]
assert codes([child() for _ in range(8)]) == [0] * 8
"""


def open_by_many(kind: str, url: str, *limits: int) -> None:
    """Open a database in processes that are killed at so many bytes, then in eight at once.

    All are forked from one that has imported what they need.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": url}
    words = [sys.executable, "-c", OPEN_BY_MANY, kind, url, *map(str, limits)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def ask(path: Path, words: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as file, file:
        return file.execute(words).fetchall()


@pytest.mark.parametrize(
    ("kind", "limits"), [("MLflow", (4_000, 200_000, 900_000)), ("Optuna", (4_000, 50_000))]
)
def test_after_kills_in_the_middle_of_tables_eight_processes_at_once_make_them(
    tmp_path: Path, kind: str, limits: tuple[int, ...]
) -> None:
    path = tmp_path / "some.db"
    open_by_many(kind, f"sqlite:///{path}", *limits)
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    assert {file.name for file in tmp_path.iterdir()} == {"some.db", ".some.db.lock"}
    if kind == "MLflow":
        assert ask(path, "SELECT name FROM experiments ORDER BY 1") == [("Default",), ("images",)]


FULL_DISK = """
import os, resource, sys
from pathlib import Path
from pipeline.errors import StorageError, TrackingError
from pipeline.tracking import Tracking

path = Path(sys.argv[1])
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

def told(kind, work, limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        work()
    except kind as err:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert not getattr(err, "__notes__", []), err.__notes__
        assert str(err).count("the same command again") == 1, err
        assert "the disk" in str(err), err
    else:
        raise AssertionError("no error")

def write():
    with tracking.run("a chain", {"kind": "chain"}, target=True) as outer:
        under = outer.run_id
        with tracking.run("a stage", {"kind": "stage"}, target=False, nested_under=under) as log:
            for step in range(1000):
                log.metrics({f"m{number}": 1.0 for number in range(100)}, step)
                log.wait()

told(StorageError, Tracking.connect, 40_000)
assert path.stat().st_size == 0
tracking = Tracking.connect()
told(TrackingError, write, path.stat().st_size + 50_000)
with Tracking.connect().run("again", {"kind": "chain"}, target=True):
    pass
"""


def test_a_full_disk_is_told_once_and_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    environment |= {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{path}"}
    words = [sys.executable, "-c", FULL_DISK, str(path)]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def close_stores() -> None:
    """As after the end of a process: MLflow keeps files open."""
    engines = SqlAlchemyStore._engine_map
    while engines:
        engines.popitem()[1].dispose()


class Stopped(Exception):
    """In the place of a kill: SQLite takes the same step back either way."""


@contextmanager
def stopping_after(count: int) -> Iterator[None]:
    """Stop whoever changes a file after so many changes."""
    left = count

    def look(connection: sqlalchemy.Connection, _: object, statement: str, *__: object) -> None:
        nonlocal left
        is_file = connection.engine.url.database
        left -= bool(is_file) and not statement.startswith(("PRAGMA", "SELECT"))
        if left < 0:
            raise Stopped

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", look)
    try:
        with suppress(Stopped):
            yield
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", look)


def tear(path: Path, count: int) -> None:
    """What an earlier version left when it was killed while MLflow made its tables."""
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with stopping_after(count):
        utils._initialize_tables(engine)  # type: ignore[no-untyped-call]
    engine.dispose()
    os.utime(path, (1, 1))  # nobody waits for another program


@pytest.mark.e2e
def test_torn_tables_that_hold_nothing_are_made_anew(tmp_path: Path, point_at: PointAt) -> None:
    path = tmp_path / "mlflow.db"
    tear(path, 260)
    point_at(f"sqlite:///{path}")
    assert Tracking.connect().find({"kind": "stage"}) == []


@pytest.mark.e2e
def test_torn_tables_that_hold_something_are_told_about_and_left(
    tmp_path: Path, point_at: PointAt
) -> None:
    path = tmp_path / "mlflow.db"
    tear(path, 60)
    ask(path, "INSERT INTO experiments (experiment_id, name) VALUES (7, 'mine')")
    before = path.read_bytes()
    point_at(f"sqlite:///{path}")
    with pytest.raises(TrackingError, match=r"cannot be used: .*begin anew \(mv '.*/mlflow\.db'"):
        Tracking.connect()
    assert path.read_bytes() == before


@pytest.mark.e2e
def test_tables_of_an_earlier_version_are_brought_up_to_date_beside_a_copy(
    tmp_path: Path, point_at: PointAt
) -> None:
    from alembic import command

    path = tmp_path / "mlflow.db"
    url = f"sqlite:///{path}"
    engine = sqlalchemy.create_engine(url)
    utils.InitialBase.metadata.create_all(engine)
    config = utils._get_alembic_config(url)  # type: ignore[no-untyped-call]
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "cbc13b556ace")
    engine.dispose()
    ask(path, "INSERT INTO experiments (experiment_id, name) VALUES (7, 'mine')")
    point_at(url)
    with stopping_after(30):  # of about 260
        Tracking.connect()
    (kept,) = tmp_path.glob("mlflow.db.before-*")
    with pytest.raises(
        TrackingError, match=r"put its copy from before in its place \(mv '.*before"
    ):
        Tracking.connect()
    kept.rename(path)
    close_stores()
    Tracking.connect()
    assert ask(path, "SELECT name FROM experiments WHERE experiment_id = 7") == [("mine",)]
    assert list(tmp_path.glob("mlflow.db.before-*")) == []


@pytest.mark.e2e
def test_a_database_of_another_program_is_left_as_it_is(tmp_path: Path, point_at: PointAt) -> None:
    path = tmp_path / "optuna.db"
    open_storage(f"sqlite:///{path}")
    before = ask(path, "SELECT name, sql FROM sqlite_master ORDER BY 1")
    point_at(f"sqlite:///{path}")
    with pytest.raises(TrackingError, match="tables of another program"):
        Tracking.connect()
    assert ask(path, "SELECT name, sql FROM sqlite_master ORDER BY 1") == before


def test_a_file_that_another_program_holds_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.system.disk.databases.BUSY_S", 0.1)
    path = tmp_path / "some.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match="another program holds the file"):
            fill(path, lambda engine: engine["creator"]().execute("CREATE TABLE a (b)"))
        other.execute("ROLLBACK")
    fill(path, lambda engine: engine["creator"]().execute("CREATE TABLE a (b)"))
    assert ask(path, "SELECT name FROM sqlite_master") == [("a",)]
