"""Databases that processes share: held by one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import StorageError
from pipeline.system.disk.databases import exclusively
from tests.postgres import Postgres

ROOT = Path(__file__).resolve().parent.parent
TURNS = 40


TAKE_TURNS = f"""
import sys, time
from pathlib import Path
from pipeline.system.disk.databases import exclusively

folder, name, url = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
(folder / f"{{name}}.ready").touch()
while len(list(folder.glob("*.ready"))) < 2:
    time.sleep(0.001)
inside, overlaps = folder / "inside", 0
for _ in range({TURNS}):
    with exclusively(url):
        try:
            inside.touch(exist_ok=False)
        except FileExistsError:
            overlaps += 1
        time.sleep(0.002)
        inside.unlink(missing_ok=True)
(folder / f"{{name}}.overlaps").write_text(str(overlaps))
"""
HOLD_AND_DIE = """
import os, sys
from pipeline.system.disk.databases import exclusively

with exclusively(sys.argv[1]):
    os._exit(9)
"""


def start(code: str, *words: str, folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, *words], cwd=folder, env=environment)


def exit_code(process: subprocess.Popen[bytes]) -> int:
    """What it ends with; it is killed if it is kept waiting."""
    try:
        return process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def overlaps(folder: Path, urls: Sequence[str]) -> int:
    """How often two processes that take turns, one for each URL, were inside together."""
    turns = [
        start(TAKE_TURNS, str(folder), str(number), url, folder=folder)
        for number, url in enumerate(urls)
    ]
    assert [exit_code(process) for process in turns] == [0, 0]
    return sum(int((folder / f"{number}.overlaps").read_text()) for number in (0, 1))


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_processes_never_hold_one_file_together_however_they_name_it(
    tmp_path: Path, kind: str
) -> None:
    assert overlaps(tmp_path, [f"{kind}:///o.db", f"{kind}:///{tmp_path}/o.db"]) == 0


def test_people_who_share_a_folder_share_the_lock(tmp_path: Path) -> None:
    """The file that the first one makes is no other's to open, unless it is made for all."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    mask = os.umask(0o077)
    try:
        with exclusively(f"sqlite:///{shared}/optuna.db"):
            pass
    finally:
        os.umask(mask)
    (lock,) = shared.iterdir()
    assert lock.stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_lies_in_the_place_of_the_lock_is_named_and_left(tmp_path: Path, kind: str) -> None:
    lock, victim = tmp_path / ".optuna.db.lock", tmp_path / "victim"
    victim.write_text("precious")
    lock.symlink_to(victim) if kind == "link" else lock.mkdir()
    with (
        pytest.raises(StorageError, match=r"\.optuna\.db\.lock cannot be locked .*: remove"),
        exclusively(f"sqlite:///{tmp_path}/optuna.db"),
    ):
        pytest.fail("held what is no lock")
    assert victim.read_text() == "precious"


AS_ANOTHER_USER = """
import os, sys
from pipeline.errors import StorageError
from pipeline.system.disk.databases import exclusively

with exclusively(sys.argv[2]):  # imports what another user may not read
    pass
os.setgid(65534)
os.setuid(65534)
try:
    with exclusively(sys.argv[1]):
        sys.exit(0)
except StorageError as err:
    sys.exit(2 if "chmod" in str(err) else 1)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_of_the_folder_holds_the_lock_that_was_made_there(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's own is closed to others
        folder = Path(name)
        folder.chmod(0o777)
        url = f"sqlite:///{folder}/optuna.db"
        with exclusively(url):
            pass
        words = (AS_ANOTHER_USER, url, f"sqlite:///{tmp_path}/other.db")
        assert exit_code(start(*words, folder=folder)) == 0
        (folder / ".optuna.db.lock").chmod(0o600)  # as a system without such rights makes it
        assert exit_code(start(*words, folder=folder)) == 2
        (folder / ".optuna.db.lock").chmod(0o666)
        os.chown(folder / ".optuna.db.lock", 1, 1)
        folder.chmod(0o1777)  # as /tmp: whoever made the lock could replace it meanwhile
        assert exit_code(start(*words, folder=folder)) == 2


def test_a_database_in_a_folder_that_may_only_be_read_needs_none_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with exclusively(f"sqlite:///{tmp_path}/optuna.db"):
        assert list(tmp_path.iterdir()) == []


def test_processes_never_hold_one_postgresql_database_together(
    tmp_path: Path, postgres: Postgres
) -> None:
    assert overlaps(tmp_path, [postgres.url("turns")] * 2) == 0


def test_a_web_server_needs_no_lock(tmp_path: Path) -> None:
    """And so the tests above can tell a lock from none."""
    assert overlaps(tmp_path, ["http://127.0.0.1:9"] * 2) > 0


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_process_that_dies_inside_lets_the_next_one_in(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").url("dies")
    for _ in range(2):
        assert exit_code(start(HOLD_AND_DIE, url, folder=tmp_path)) == 9


def test_a_postgresql_server_that_does_not_answer_is_a_fault() -> None:
    url = "postgresql://me@127.0.0.1:9/db"
    with pytest.raises(SQLAlchemyError, match="connection failed"), exclusively(url):
        pytest.fail("held a database that is not there")
