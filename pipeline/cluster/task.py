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
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pipeline.cluster.engine import times_lost
from pipeline.errors import ClusterError, PipelineError, RunStopped
from pipeline.system.disk.scratch import own_temporary_folder, sweep_folders
from pipeline.system.interrupts import begun, stopped_by_signals

Item = TypeVar("Item", contravariant=True)
Result = TypeVar("Result")
Result_out = TypeVar("Result_out", covariant=True)
Say = Callable[[str], None]

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_HANDED_ON = ("MLFLOW_", "OPTUNA_", "UNFREEZE_", "PG", "AWS_", "AZURE_", "GOOGLE_")
"""How the variables begin that tell a task where the stores are, and how to log in."""
_LAUNCHED = "MLFLOW_RUN_ID"


class Work(Protocol[Item, Result_out]):
    """What can be sent to another process, which keeps what it opens for further items."""

    def do(self, item: Item, say: Say) -> Result_out:
        """Do an item, or find that it is done."""


@dataclass(frozen=True, kw_only=True)
class Around:
    """What a task has beside its work.

    Attributes:
        folder: the command's working directory.
        variables: for the task's environment.
        host: the machine that alone has what `host_has`, a store in a file; empty: all have all.
    """

    folder: Path
    variables: Mapping[str, str]
    host: str = ""
    host_has: str = ""


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
    command: Around = pickle.loads(around)
    os.environ.pop(_LAUNCHED, None)
    os.environ.update(command.variables)  # before torch is imported
    if command.folder.is_dir():
        os.chdir(command.folder)
    lines: list[str] = []
    value, fault = None, None
    sweep_folders()
    with _heeding_signals(), own_temporary_folder():
        try:
            if command.host and command.host != (here := socket.gethostname()):
                raise ClusterError(not_shared(here, command.host_has))
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


def not_shared(other: str, store: str) -> str:
    """Why a task on another machine cannot record in a file of this one, and what to do."""
    return (
        f"cluster= has other machines ({other}), which do not see {store}: name a server that all "
        "of them reach, MLFLOW_TRACKING_URI=http://host:5000 and storage=postgresql://host/optuna"
    )


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
