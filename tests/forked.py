"""Commands in processes of their own that start at once: one server has the libraries and forks.

Each command has its own working folder, variables, session, signals and exit code, as one that a
person starts; SIGKILL leaves as little of it. Not covered: how the interpreter starts, and what
the libraries read from the environment while they are imported.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
# nothing of tests/ here: the server does not know our path, and another package may be called so
CONTEXT.set_forkserver_preload(
    [
        *("torch", "torchvision", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "optuna"),
        *("pipeline.cli", "pipeline.entries.chain", "pipeline.tuning.report"),
        *("pipeline.training.stage0", "pipeline.tuning.work"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Forked:
    """A command that has been started; what it prints is in the file `output`."""

    process: ForkServerProcess
    output: Path

    @property
    def pid(self) -> int:
        """Of the process, which leads a session of its own."""
        assert self.process.pid
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, a signal's number negative; None while the command runs."""
        return self.process.exitcode

    def said(self) -> str:
        """What the command has printed so far, complaints among it."""
        return self.output.read_text(encoding="utf-8")

    def wait(self, limit_s: float = 300) -> int:
        """The exit code, once the command has ended."""
        self.process.join(limit_s)
        assert self.returncode is not None, f"the command does not end: {self.said()}"
        return self.returncode

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self.process.kill()
        self.process.join()


def start(
    words: Sequence[str],
    folder: Path,
    output: Path,
    variables: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
    complaints: Path | None = None,
) -> Forked:
    """Start a command in that working folder, with these variables alone, or with our own.

    `prepare`: a function of a module, called in the new process before the command;
    `complaints`: a file of its own for standard error.
    """
    streams = (output, complaints or output)
    for path in streams:
        path.touch()
    own = dict(os.environ if variables is None else variables)
    arguments = (list(words), folder, streams, own, prepare)
    process = CONTEXT.Process(target=_command, args=arguments)
    process.start()
    return Forked(process=process, output=output)


def _command(
    words: list[str],
    folder: Path,
    streams: tuple[Path, Path],
    variables: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    """What the new process does."""
    import torch

    from pipeline.__main__ import start as begin

    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for path, stream in zip(streams, (sys.stdout, sys.stderr), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream.fileno())
    torch.set_num_threads(1)
    if prepare:
        prepare()
    sys.argv = ["unfreeze", *words]
    begin()


def run(
    words: Sequence[str],
    folder: Path,
    variables: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
    limit_s: float = 300,
) -> CompletedProcess[str]:
    """A command that has ended, as `subprocess.run` gives it: both of its streams, apart."""
    with TemporaryDirectory() as place:
        output, complaints = Path(place, "out"), Path(place, "err")
        command = start(words, folder, output, variables, prepare, complaints)
        try:
            code = command.wait(limit_s)
        finally:
            command.kill()
        said = (path.read_text(encoding="utf-8") for path in (output, complaints))
        return CompletedProcess(words, code, *said)


def result_of(function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - as it is
    """What a function of a module returns in a process of its own, which then is gone."""
    receives, sends = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_send, args=(sends, function, arguments))
    process.start()
    sends.close()
    try:
        return receives.recv()
    finally:
        process.join()


def _send(sends: Connection, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    sends.send(function(*arguments))


def wait_until(condition: Callable[[], bool], command: Forked, limit_s: float = 120) -> None:
    """Wait for something that a command does before it ends."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, command.said()
        assert command.returncode is None, command.said()
        time.sleep(0.05)
