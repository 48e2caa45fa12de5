"""The table of bad inputs, `data/bad_inputs.txt`, as commands that can be called.

A line is a command as one would type it, `key=value` for `-P key=value`, variables of the
environment before it, and after ` => ` the words that its message has, in this order, with ` … `
between them. `@/` is the folder of `bad_files.py`, `@long` a name of 300 characters, `@stage1` and
the like a run of the store.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bad_files import TEXTS
from tests.conftest import MOBILENET, TINY

TABLE = Path(__file__).parent / "data" / "bad_inputs.txt"
SECRET = "S3CRET"
"""Part of every password in the table."""
_SMALL = {"data": "@/ok", "cache_dir": "cache", **TINY, "backbone": MOBILENET}
_BARE = ("evaluate", "refit", "predict", "app", "gate", "clean", "blocks", "foo", "")
"""Entry points that train nothing, or are none."""
_TESTED = ("decide", "compare")
_LEFT_OUT = {"pretrain": ("weights", "data", "norm_stats", "image_size", "log_model")}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        group: the header above it.
        line: the command as it stands there.
        expected: words of the message, in their order.
    """

    group: str
    line: str
    expected: tuple[str, ...]

    def call(self, names: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
        """The environment and the words of the command; `names`: what stands for `@…`."""
        words = [_filled(word, names) for word in shlex.split(self.line)]
        environment = {}
        while words and re.match("[A-Z_]+=", words[0]):
            name, _, environment[name] = words.pop(0).partition("=")
        entry_point = words.pop(0) if words else ""
        small = [_filled(word, names) for word in _small(self, entry_point)]
        typed = [f"--{w}" if re.match(r"\w[\w.]*=", w) else w for w in words]
        asked = {word.partition("=")[0] for word in typed}
        small = [word for word in small if word.partition("=")[0] not in asked]
        return environment, [*([entry_point] if entry_point else []), *small, *typed]


def _small(row: Row, entry_point: str) -> list[str]:
    """Options of a run that would soon be over, where the command is accepted after all."""
    if row.group == "runs" or entry_point in _BARE:
        return []
    left_out = list(_LEFT_OUT.get(entry_point, ()))
    if config := re.search(r"config=@/(\S+\.yaml)", row.line):  # which the command line outdoes
        left_out += re.findall(r"^(\w+):", str(TEXTS.get(config[1], "")), re.MULTILINE)
    if "backbones=" in row.line:
        left_out.append("backbone")
    small = {**_SMALL, **({"test_per_class": "2"} if entry_point in _TESTED else {})}
    return [f"--{key}={value}" for key, value in small.items() if key not in left_out]


def _filled(word: str, names: Mapping[str, str]) -> str:
    word = word.replace(r"\x00", "\0")
    for name in sorted(names, key=len, reverse=True):
        word = word.replace(name, names[name])
    return word


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in whatever takes longer: a hang is a fault."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def rows() -> list[Row]:
    """Every line of the table."""
    found, group = [], ""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            group = line[2:]
            continue
        command, _, expected = line.partition(" => ")
        words = tuple(word for word in expected.split(" … ") if word)
        found.append(Row(group=group, line=command.strip(), expected=words))
    return found
