"""The same command many times at once: processes of their own that start within a moment.

One program loads the libraries and forks; what each command prints is in a file of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_FORKS = """
import os, signal, sys
import mlflow, torch, torchvision
import mlflow.pyfunc, mlflow.store.tracking.sqlalchemy_store
import pipeline.entries.chain, pipeline.training.stage0
from pipeline.cli import main
torch.set_num_threads(1)
folder, count, *words = sys.argv[1:]
for number in range(int(count)):
    if not (child := os.fork()):
        for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
            file = os.open(f"{folder}/{number}.{name}", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, stream.fileno())
        code = main(words)
        sys.stdout.flush()
        os._exit(code)
    print(child, flush=True)
codes = {}
for _ in range(int(count)):
    child, status = os.wait()
    codes[child] = os.waitstatus_to_exitcode(status)
print(*(f"{child}={code}" for child, code in codes.items()))
"""


@dataclass(kw_only=True)
class Crowd:
    """Commands that have been started, by number."""

    folder: Path
    pids: list[int]
    program: subprocess.Popen[str]

    def out(self, number: int) -> str:
        """What a command has printed so far."""
        path = self.folder / f"{number}.out"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def err(self, number: int) -> str:
        """What a command has complained of."""
        return (self.folder / f"{number}.err").read_text(encoding="utf-8")

    def wait(self, limit_s: float = 300) -> list[int]:
        """Exit codes, by number, when all have ended."""
        assert self.program.stdout
        end = time.monotonic() + limit_s
        while self.program.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert self.program.poll() == 0, "the commands do not end"
        codes = dict(word.split("=") for word in self.program.stdout.read().split())
        return [int(codes[str(pid)]) for pid in self.pids]


@contextmanager
def crowd(
    folder: Path, count: int, words: Sequence[str], variables: Mapping[str, str] | None = None
) -> Iterator[Crowd]:
    """So many commands with these words, started at once in this working folder."""
    outputs = folder / "crowd"
    outputs.mkdir()
    program = subprocess.Popen(
        [sys.executable, "-c", _FORKS, str(outputs), str(count), *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout
    try:
        pids = [int(program.stdout.readline()) for _ in range(count)]
        yield Crowd(folder=outputs, pids=pids, program=program)
    finally:
        if program.poll() is None:
            os.killpg(program.pid, 9)
        program.communicate()
