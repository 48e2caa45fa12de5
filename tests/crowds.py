"""The same command many times at once: processes of their own that start within a moment.

What each command prints is in a file of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import forked


@dataclass(kw_only=True)
class Crowd:
    """Commands that have been started, by number."""

    folder: Path
    commands: list[forked.Forked]

    @property
    def pids(self) -> list[int]:
        return [command.pid for command in self.commands]

    def out(self, number: int) -> str:
        """What a command has printed so far."""
        return self.commands[number].said()

    def err(self, number: int) -> str:
        """What a command has complained of."""
        return (self.folder / f"{number}.err").read_text(encoding="utf-8")

    def wait(self, limit_s: float = 300) -> list[int]:
        """Exit codes, by number, when all have ended."""
        end = time.monotonic() + limit_s
        return [command.wait(max(end - time.monotonic(), 0)) for command in self.commands]


@contextmanager
def crowd(folder: Path, count: int, words: Sequence[str]) -> Iterator[Crowd]:
    """So many commands with these words, started at once in this working folder."""
    outputs = folder / "crowd"
    outputs.mkdir()
    commands: list[forked.Forked] = []
    try:
        for number in range(count):
            files = {
                "output": outputs / f"{number}.out",
                "complaints": outputs / f"{number}.err",
            }
            commands.append(forked.start(words, folder, **files))
        yield Crowd(folder=outputs, commands=commands)
    finally:
        for command in commands:
            command.kill()
