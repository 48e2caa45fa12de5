"""Ctrl-C and SIGTERM: a command stops once, and never in the middle of a database's transaction.

An exception that comes inside SQLAlchemy can leave a transaction open, and with it a lock that
keeps this very process from marking its runs. So a signal that finds one at work comes again a
moment later, until it finds none.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN_S = 0.02
LOOK_S = 1.0
PARENT = "UNFREEZE_PARENT"
"""Environment variable: the process id of the command that a worker works for."""
_DATABASES = (
    "sqlalchemy",
    "mlflow.store.db",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "optuna.storages",
    "optuna.study._tell",
)
_holders = 0


@contextmanager
def held() -> Iterator[None]:
    """Let a signal wait until this is over: for steps that must be done together."""
    global _holders
    _holders += 1
    try:
        yield
    finally:
        _holders -= 1


def stop(_number: int, frame: FrameType | None) -> None:
    """A handler of signals: raise KeyboardInterrupt, once.

    Raises:
        KeyboardInterrupt: always, but where it is held or a database is at work: there, later.
    """
    if _holders or is_in_a_database(frame):
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        return
    for later in (signal.SIGINT, signal.SIGTERM):
        signal.signal(later, signal.SIG_IGN)  # the run is being marked KILLED: let it finish
    raise KeyboardInterrupt


def is_in_a_database(frame: FrameType | None) -> bool:
    """Whether this frame, or one that called it, is a database's: its transaction may be open."""
    while frame is not None:
        module = f"{frame.f_globals.get('__name__', '')}."
        if any(module.startswith(f"{name}.") for name in _DATABASES):
            return True
        frame = frame.f_back
    return False


def end_with_parent() -> None:
    """Stop this process, as by SIGTERM, once the one that started it is gone, or if it is already.

    That one has left its process id in the environment: it may be gone before this is called.
    """
    parent = int(os.environ.get(PARENT, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def stopped_by_signals(handle: Callable[..., Any]) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop what runs here; `handle` is `signal.signal`, or does nothing.

    Python drops a KeyboardInterrupt that comes inside a finaliser: then it is raised again.
    """
    before = sys.unraisablehook

    def look(dropped: sys.UnraisableHookArgs) -> None:
        if dropped.exc_type is KeyboardInterrupt:
            signal.signal(signal.SIGINT, stop)
            threading.Timer(0.05, _thread.interrupt_main).start()
        else:
            before(dropped)

    handle(signal.SIGINT, stop)
    handle(signal.SIGTERM, stop)
    sys.unraisablehook = look
    try:
        yield
    finally:
        sys.unraisablehook = before
