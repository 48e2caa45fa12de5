"""Pieces of work for the tasks of a cluster, which other processes have to import."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.cluster.task import Say
from pipeline.errors import DataError, DivergedError
from pipeline.system.interrupts import at_once, begun, check


@dataclass(frozen=True)
class Look:
    """What a task sees of its surroundings; tasks that wait for each other run at once."""

    folder: Path
    together: int

    def do(self, item: int, say: Say) -> dict[str, str]:
        (self.folder / f"here{item}").touch()
        while len(list(self.folder.glob("here*"))) < self.together:
            time.sleep(0.05)
        say(f"item {item}")
        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PGPASSWORD", "MLFLOW_EXPERIMENT_ID")
        return {name: os.environ.get(name, "") for name in names} | {"folder": str(Path.cwd())}


@dataclass(frozen=True)
class LostOnce:
    """The process is killed the first time; then a fault, where the item says so."""

    folder: Path

    def do(self, item: str, say: Say) -> str:
        if item == "fault":
            raise DataError(f"{self.folder} holds no images: name another")
        if item == "diverged":
            raise DivergedError("no number", "run7")
        mark = self.folder / f"lost.{item}"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item


@dataclass(frozen=True)
class Writes:
    """A task that a signal reaches while it writes, and that comes to its next batch then."""

    folder: Path

    def do(self, item: int, say: Say) -> None:
        if not item:
            begun()  # the store is opened once
            return
        os.kill(os.getpid(), signal.SIGTERM)
        (self.folder / "written").touch()
        check()


@dataclass(frozen=True)
class Waits:
    """A task that ends only where it is stopped; who does it, and that it has ended."""

    folder: Path

    def do(self, item: int, say: Say) -> None:
        new = self.folder / f"new{item}"
        new.write_text(str(os.getpid()))
        new.rename(self.folder / f"began{item}")
        try:
            while True:
                with at_once():
                    time.sleep(0.05)
        finally:
            (self.folder / f"ended{item}").touch()
