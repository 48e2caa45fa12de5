"""Journal files: workers that fall silent, disks that fail, files that hold something else."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from pipeline.errors import StudyError
from pipeline.tuning.storage.access import open_storage, patiently, translated
from pipeline.tuning.storage.journal import Journal, is_journal
from pipeline.tuning.storage.trial_state import beating
from pipeline.tuning.study import Study
from tests.test_trials import MANY, SPEC, outcomes

pytestmark = pytest.mark.slow  # workers are given time to fall silent
GRACE_S = 0.5


def opened(path: Path) -> Journal:
    """One more process's view of a journal in which a worker is soon given up."""
    storage = open_storage(f"journal:///{path}")
    assert isinstance(storage, Journal)
    return storage


def joined(path: Path) -> Study:
    study = Study.join(opened(path), SPEC, seed=0)
    study.storage.grace_period, study.storage.heartbeat_interval = GRACE_S, 0.05
    return study


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "optuna.journal"


def test_a_worker_that_falls_silent_is_given_up_and_its_trial_queued_again(path: Path) -> None:
    assert joined(path).ask(MANY)
    other = joined(path)
    assert other.ask(1) is None  # it runs elsewhere, as far as can be told at first sight
    assert outcomes(other) == ["running"]
    time.sleep(1.2 * GRACE_S)
    again = other.ask(1)
    assert again
    assert again.number == 1
    assert outcomes(other) == ["interrupted", "running"]


def test_a_worker_that_beats_is_never_given_up(path: Path) -> None:
    mine, other = joined(path), joined(path)
    trial = mine.ask(MANY)
    assert trial
    with beating(mine.storage, lambda: [trial._trial_id]):
        end = time.monotonic() + 3 * GRACE_S
        while time.monotonic() < end:
            assert other.ask(1) is None
            time.sleep(0.1)
    assert outcomes(other) == ["running"]


def test_a_beat_after_the_end_changes_nothing(path: Path) -> None:
    study = joined(path)
    trial = study.ask(MANY)
    assert trial
    study.optuna.tell(trial, 0.5)
    study.storage.record_heartbeat(trial._trial_id)
    assert [t.state for t in study.optuna.trials] == [TrialState.COMPLETE]


def test_a_disk_that_fails_is_a_fault_of_the_storage(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = joined(path)
    url, said = study.storage.url, list[str]()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("optuna.storages.journal._file.os.fsync", full)
    no_space = r"cannot be used \(.*No space left on device"
    with pytest.raises(StudyError, match=no_space), translated(url):
        study.optuna.set_user_attr("key", "value")
    with pytest.raises(StorageInternalError, match="No space left"):
        # at once: nobody restarts it
        patiently(
            lambda: study.optuna.set_user_attr("key", 1), (StorageInternalError,), said.append
        )
    assert said == []


@pytest.mark.parametrize(
    ("content", "holds"),
    [
        (b"", True),
        (b'{"op_code":0,"worker_id":"x"}\n', True),
        (b"notes without an end of line", False),
        (b"[1]\n", False),
        (b"7\n", False),
        (b'{"op": 0}\n', False),
        (b"SQLite format 3\x00\x10\xff", False),
    ],
)
def test_a_file_that_holds_something_else_is_never_written(
    content: bytes, holds: bool, path: Path
) -> None:
    path.write_bytes(content)
    assert is_journal(path) == holds
    if not holds:
        with pytest.raises(StudyError, match="is not a journal of Optuna"):
            open_storage(f"journal:///{path}")
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", ['{"op_code": 0}', '{"op_code": 99, "worker_id": "x"}'])
def test_a_journal_that_is_damaged_is_named(content: str, path: Path) -> None:
    path.write_text(f"{content}\n")
    with pytest.raises(StudyError, match=r"is damaged .*restore it from a copy"):
        open_storage(f"journal:///{path}")
