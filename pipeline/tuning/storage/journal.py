"""Optuna's journal file with heartbeats: a study in a shared folder, without a database server.

In: a file, on a disk that every worker sees. Out: a storage in which a worker that falls silent is
given up, as in a database. A database dates beats by its own clock; a file has no clock, and the
clocks of machines differ. So each process measures for how long a beat has stayed the same: a
worker is given up a grace period after that process first saw its last beat.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

BEAT = "beat"
"""System attribute of a trial: its worker's last heartbeat, by the worker's clock."""


class Journal(JournalStorage, BaseHeartbeat):
    """A journal file with what our code needs of a database's storage; times in seconds."""

    def __init__(self, url: str, path: Path, heartbeat_interval: int, grace_period: int) -> None:
        self.url = url
        self.heartbeat_interval = heartbeat_interval
        self.grace_period = grace_period
        self._seen: dict[int, tuple[object, float]] = {}
        super().__init__(_File(str(path)))

    def record_heartbeat(self, trial_id: int) -> None:
        """Record that a trial's worker lives."""
        with suppress(UpdateFinishedTrialError):
            self.set_trial_system_attr(trial_id, BEAT, time.time_ns())

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        now, silent = time.monotonic(), []
        for trial in self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,)):
            number, beat = trial._trial_id, trial.system_attrs.get(BEAT)
            if beat is None:
                continue
            seen, since = self._seen.setdefault(number, (beat, now))
            if seen != beat:
                self._seen[number] = (beat, now)
            elif now - since > self.grace_period:
                silent.append(number)
        return silent

    def get_heartbeat_interval(self) -> int | None:
        """Seconds between two beats."""
        return self.heartbeat_interval

    def get_heartbeat_stale_trial_callback(
        self,
    ) -> Callable[[optuna.Study, FrozenTrial], None] | None:
        """None: `queue_interrupted` queues lost trials."""
        return None


class _File(JournalFileBackend):
    """The file; faults of its disk are Optuna's own, as those of a database are."""

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        with _disk_faults():
            yield from super().read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with _disk_faults():
            super().append_logs(logs)


@contextmanager
def _disk_faults() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as err:  # ValueError: a line that was written in part
        raise StorageInternalError(str(err)) from err


def is_journal(path: Path) -> bool:
    """Whether a file is Optuna's journal, by its first line; an empty one may become one."""
    with path.open("rb") as file:
        line = file.readline(1 << 20)
    try:
        return not line or "op_code" in json.loads(line)
    except (ValueError, TypeError):
        return False
