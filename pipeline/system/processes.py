"""Which process writes a run or a file, so that a later process can tell whether it is gone.

A process that is killed outright cannot end its runs or remove its files. Both name the process
that writes them: machine and boot, PID namespace (a container has one of its own, in which other
containers' processes cannot be seen), number, and start, since numbers are given again. In: such
names. Out: whether the process is gone: yes only where that can be known.
Not covered: processes of other machines, of other containers, and of the time before a reboot.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path

KILLED_REASON = "its process was killed"
MACHINE, PROCESS = "owner.machine", "owner.process"
NAMESPACE, STARTED = "owner.pid_namespace", "owner.process_started"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROC = Path("/proc")
_STATE, _START = 0, 19
"""Fields of /proc/PID/stat behind the name: the state, the start in ticks of the boot."""


@cache
def this_machine() -> str:
    """The machine and, where known, its boot: process numbers begin again with each boot."""
    boot = _BOOT_ID.read_text(encoding="ascii").strip() if _BOOT_ID.exists() else ""
    return f"{socket.gethostname()} {boot}".strip()


def this_namespace() -> str:
    """The PID namespace, such as `pid:[4026531836]`; empty where the system has none."""
    try:
        return str((_PROC / "self" / "ns" / "pid").readlink())
    except OSError:
        return ""


def owner_tags() -> dict[str, str]:
    """What a run of this process is tagged with."""
    return {
        MACHINE: this_machine(),
        NAMESPACE: this_namespace(),
        PROCESS: str(os.getpid()),
        STARTED: _started(os.getpid()),
    }


def is_abandoned(tags: Mapping[str, str]) -> bool:
    """Whether the process behind a run could be seen from here and is gone.

    Runs of earlier versions do not name a namespace: they stay as they are where there are any.
    """
    here = tags.get(MACHINE) == this_machine() and tags.get(NAMESPACE, "") == this_namespace()
    return here and is_gone(tags.get(PROCESS, ""), tags.get(STARTED, ""))


def owner_mark() -> str:
    """This process in a word without dots, as a part of file names."""
    return f"{_place()}-{os.getpid()}-{_started(os.getpid())}"


def is_abandoned_mark(mark: str) -> bool:
    """Whether the process that `owner_mark` named could be seen from here and is gone."""
    place, _, process = mark.partition("-")
    number, _, started = process.partition("-")
    return place == _place() and is_gone(number, started)


def is_gone(number: str, started: str) -> bool:
    """Whether a process of this machine and PID namespace has ended.

    `started`: its start as `_started` gives it; a process of the same number with another start is
    another process. Empty: any process of that number counts.
    """
    if not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # another user's process, or no number of a process
    fields = _fields(int(number))
    if not fields:
        return False
    return fields[_STATE] in "ZX" or (bool(started) and fields[_START] != started)


def _place() -> str:
    """Machine and namespace as a word."""
    content = f"{this_machine()} {this_namespace()}".encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _started(number: int) -> str:
    return fields[_START] if (fields := _fields(number)) else ""


def _fields(number: int) -> list[str]:
    """What the system says of a process, behind its name; nothing where it cannot be told.

    A container may show the /proc of another namespace, whose numbers are not ours.
    """
    try:
        if str((_PROC / "self").readlink()) != str(os.getpid()):
            return []
        text = (_PROC / str(number) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
