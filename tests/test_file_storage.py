"""Optuna's storage in a file that another program has locked."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from pipeline.tuning.storage import in_file
from pipeline.tuning.storage.in_file import FileStorage

HASTY = {"connect_args": {"timeout": 0.01}}
"""SQLite refuses at once, as it does where two programs would wait for each other."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "optuna.db"
    storage = RDBStorage(f"sqlite:///{path}")
    storage.create_new_trial(storage.create_new_study([StudyDirection.MAXIMIZE], "mine"))
    storage.engine.dispose()
    return path


@contextmanager
def locked_for(path: Path, seconds: float) -> Iterator[None]:
    """Another program's transaction, which ends by itself."""
    other = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    ends = threading.Timer(seconds, other.rollback)
    ends.start()
    try:
        yield
    finally:
        ends.cancel()
        ends.join()
        other.close()


QUESTIONS: dict[str, Callable[[RDBStorage], object]] = {
    "read": lambda storage: storage.get_study_id_from_name("mine"),
    "write": lambda storage: storage.set_study_user_attr(1, "key", "value"),
    "begin": lambda storage: storage.create_new_trial(1),
    "end": lambda storage: storage.set_trial_state_values(1, TrialState.COMPLETE, [0.5]),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_locked_file_is_asked_again(path: Path, question: str) -> None:
    plain, ours = (
        kind(f"sqlite:///{path}", engine_kwargs=HASTY) for kind in (RDBStorage, FileStorage)
    )
    with locked_for(path, 60), pytest.raises(StorageInternalError):
        QUESTIONS[question](plain)
    with locked_for(path, 0.6):
        QUESTIONS[question](ours)
    assert ours.get_study_id_from_name("mine") == 1


def test_a_file_that_stays_locked_is_a_fault(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_file, "LOCKED_S", 0.3)
    storage = FileStorage(f"sqlite:///{path}", engine_kwargs=HASTY)
    begun = time.monotonic()
    with locked_for(path, 60), pytest.raises(StorageInternalError):
        storage.get_all_studies()
    assert time.monotonic() - begun > in_file.LOCKED_S
