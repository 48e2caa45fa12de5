"""Ctrl-C, SIGTERM, a closed terminal: a command stops between two batches, not within a write.

The first signal sets a flag. `check` raises KeyboardInterrupt once the flag is set; batches,
epochs, trials, pairs and stages begin with it. Waits, in which nothing is written, end at once,
and so does a command that has not `begun` to write. A second Ctrl-C raises wherever the command
is, and a third ends the process outright: the next command marks its runs.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

ONE_PRESS_S = 1.0
"""Signals this close together are one: `mlflow run` sends SIGTERM after a terminal's SIGINT."""


@dataclass(kw_only=True)
class _State:
    """`asked_at`: `time.monotonic()` of the last signal that counts; `waits`: open `at_once`s."""

    asked_at: float | None = None
    raised: bool = False
    waits: int = 0
    begun: bool = True


_state = _State()


def check() -> None:
    """End the command here if a signal has asked for that.

    Raises:
        KeyboardInterrupt: one has; once, so that runs can be marked afterwards.
    """
    if _state.asked_at is not None and not _state.raised:
        _state.raised = True
        raise KeyboardInterrupt


def asked() -> bool:
    """Whether a signal has asked for the end."""
    return _state.asked_at is not None


def asked_early() -> bool:
    """Whether a signal came before anything was written.

    It interrupts imports, which may fail with any error for that.
    """
    return _state.asked_at is not None and not _state.begun


def begun() -> None:
    """From now on something is written: signals are heeded by `check` and in waits.

    Raises:
        KeyboardInterrupt: one has come.
    """
    _state.begun = True
    check()


@contextmanager
def at_once() -> Iterator[None]:
    """A wait, for a lock, a download or a process: a signal ends it immediately.

    Raises:
        KeyboardInterrupt: a signal has come, also before.
    """
    _state.waits += 1
    try:
        check()
        yield
    finally:
        _state.waits -= 1


def stop(number: int, _frame: FrameType | None) -> None:
    """The handler of all signals.

    Raises:
        KeyboardInterrupt: in a wait, before the command has begun, or at a second Ctrl-C.
    """
    now, before = time.monotonic(), _state.asked_at
    if before is None:
        _state.asked_at = now
        if _state.waits:
            check()
        elif not _state.begun:
            raise KeyboardInterrupt  # a finaliser may swallow it: the next `check` raises again
    elif number == signal.SIGINT and now - before > ONE_PRESS_S:
        _state.asked_at = now
        check()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)


@contextmanager
def stopped_by_signals(handle: Callable[..., Any]) -> Iterator[None]:
    """Let signals stop what runs here; `handle` is `signal.signal`, or does nothing.

    The handlers that were there come back, unless a signal has come and the process is about to
    end. No signal outlives this: what the process does afterwards is not stopped by it.
    """
    vars(_state).update(vars(_State(begun=False)))
    former = {number: handle(number, stop) for number in _heeded()}
    try:
        yield
    finally:
        asked = _state.asked_at is not None
        vars(_state).update(vars(_State()))
        if not asked:
            for number, handler in former.items():
                handle(number, handler)


def _heeded() -> list[signal.Signals]:
    """The signals that stop a command; not the end of a terminal that `nohup` has taken away."""
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *[signal.SIGHUP] * hangs_up]
