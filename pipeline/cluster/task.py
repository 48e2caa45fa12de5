"""A task, as the process that Ray has given it does it.

In: work, an item, and what the command has in its environment. Out: what the item came to, what
there was to say, and the fault that ended it. The work is kept for further items. What has a
password comes as bytes: neither command lines nor Ray's logs have it.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pipeline.cluster.engine import times_lost
from pipeline.errors import PipelineError, RunStopped
from pipeline.system.disk.scratch import own_temporary_folder, sweep_folders
from pipeline.system.interrupts import begun, stopped_by_signals

Item = TypeVar("Item", contravariant=True)
Result = TypeVar("Result")
Result_out = TypeVar("Result_out", covariant=True)
Say = Callable[[str], None]

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_HANDED_ON = ("MLFLOW_", "OPTUNA_", "UNFREEZE_", "PG", "AWS_", "AZURE_", "GOOGLE_")
"""How the variables begin that tell a task where the stores are, and how to log in."""
_LAUNCHED, EXPERIMENT = "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"


class Work(Protocol[Item, Result_out]):
    """What can be sent to another process, which keeps what it opens for further items."""

    def do(self, item: Item, say: Say) -> Result_out:
        """Do an item, or find that it is done."""


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[Result]):
    """What a task brings back.

    Attributes:
        lines: what the work had to say.
        fault: what ended the item.
        lost: how often the task was lost before.
    """

    value: Result | None
    lines: tuple[str, ...]
    fault: PipelineError | RunStopped | None
    lost: int


def variables_of(cpus: int) -> dict[str, str]:
    """What a task adds to its environment."""
    known = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_HANDED_ON) and name != _LAUNCHED
    }
    return {**known, **dict.fromkeys(_THREADS, str(cpus))}


_works: dict[str, Work[Any, Any]] = {}
"""The work that this process does, by its digest: what it has opened stays open."""


def perform(around: bytes, work: bytes, item: bytes) -> Outcome[Any]:
    """One item, in a process of Ray's."""
    folder, variables = pickle.loads(around)
    os.environ.pop(_LAUNCHED, None)
    os.environ.update(variables)  # before torch is imported
    if folder.is_dir():
        os.chdir(folder)
    lines: list[str] = []
    value, fault = None, None
    sweep_folders()
    with _heeding_signals(), own_temporary_folder():
        try:
            digest = hashlib.sha256(work).hexdigest()
            if digest in _works:
                begun()  # its store is open
                done = _works[digest]
            else:
                _works.clear()
                done = pickle.loads(work)
            value = done.do(pickle.loads(item), lines.append)
            _works[digest] = done
        except (PipelineError, RunStopped) as err:
            fault = err
    return Outcome(value=value, lines=tuple(lines), fault=fault, lost=times_lost())


@contextmanager
def _heeding_signals() -> Iterator[None]:
    """Stop between two batches, as a command does; Ray's own handlers come back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with stopped_by_signals(signal.signal):
            yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
