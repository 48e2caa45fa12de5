"""Optuna's storage in a file of SQLite, asked again while the file is locked.

In: the URL of a file. Out: Optuna's own storage. SQLite lets a program wait for a lock, but
refuses at once where two programs would wait for each other; soon after there is nothing to wait
for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import wraps

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import OperationalError

from pipeline.system.interrupts import check
from pipeline.tuning.storage.server import ASKED_AGAIN

LOCKED_S = 60.0
"""Seconds for which a file may be locked: as long as SQLite itself would wait."""
PAUSE_S = 0.25
LOCKED = "database is locked"


class FileStorage(RDBStorage):
    """RDBStorage in a file."""


def _asked_again(name: str) -> Callable[..., object]:
    method = getattr(RDBStorage, name)

    @wraps(method)
    def again(self: FileStorage, *args: object, **named: object) -> object:
        end = time.monotonic() + LOCKED_S
        while True:
            try:
                return method(self, *args, **named)
            except (StorageInternalError, OperationalError) as err:
                if LOCKED not in f"{err} {err.__cause__}" or time.monotonic() > end:
                    raise
            if threading.current_thread() is threading.main_thread():
                check()
            time.sleep(PAUSE_S)

    return again


_IN_ONE_TRANSACTION = ("set_trial_state_values", "create_new_trial", "create_new_study")
"""What is undone where the file is locked, so that it does not count twice either."""
for _name in (*ASKED_AGAIN, *_IN_ONE_TRANSACTION):
    setattr(FileStorage, _name, _asked_again(_name))
