"""Which process writes a run or a file, so that a later process can tell whether it is gone.

A process that is killed outright cannot end its runs or remove its files. Both name the process
that writes them: machine and boot, PID namespace (a container has one of its own, in which other
containers' processes cannot be seen), number, and start, since numbers are given again. In: such
names. Out: whether the process is gone, where that can be seen from here. Of processes of other
machines, other containers and the time before a reboot, leases tell (`leases.py`).
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path

KILLED_REASON = "its process was killed"
MACHINE, PROCESS = "owner.machine", "owner.process"
NAMESPACE, STARTED = "owner.pid_namespace", "owner.process_started"
BEAT = "owner.beat"
"""What the process renews while it works; absent from runs of earlier versions."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROC = Path("/proc")
_STATE, _START = 0, 19
"""Fields of /proc/PID/stat behind the name: the state, the start in ticks of the boot."""


@cache
def this_machine() -> str:
    """The machine and, where known, its boot: process numbers begin again with each boot."""
    return f"{socket.gethostname()} {_boot()}".strip()


@cache
def _boot() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip() if _BOOT_ID.exists() else ""


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
        BEAT: new_beat(),
    }


def new_beat() -> str:
    """A mark that no other beat has."""
    return secrets.token_hex(6)


def is_alive(tags: Mapping[str, str]) -> bool | None:
    """Whether the process behind a run lives; None where that cannot be seen from here.

    Without a boot id another machine may have this one's name, and without the start of a process
    another may have its number. Runs of earlier versions do not name a namespace: where the system
    has namespaces, such a run's process cannot be looked up.
    """
    here = tags.get(MACHINE) == this_machine() and tags.get(NAMESPACE, "") == this_namespace()
    number, started = tags.get(PROCESS, ""), tags.get(STARTED, "")
    if not here or not number.isdecimal():
        return None
    if is_gone(number, started):
        return False if _boot() or BEAT not in tags else None
    return True if _boot() and started and _fields(int(number)) else None


def is_abandoned(tags: Mapping[str, str]) -> bool:
    """Whether the process behind a run could be seen from here and is gone."""
    return is_alive(tags) is False


def owner_mark() -> str:
    """This process in a word without dots, as a part of file names."""
    return f"{_place()}-{os.getpid()}-{_started(os.getpid())}"


def is_alive_mark(mark: str) -> bool | None:
    """Whether the process that `owner_mark` named lives; None where that cannot be seen."""
    place, _, process = mark.partition("-")
    number, _, started = process.partition("-")
    if place != _place() or not number.isdecimal():
        return None
    if is_gone(number, started):
        return False
    return True if _boot() and started and _fields(int(number)) else None


def is_abandoned_mark(mark: str) -> bool:
    """Whether the process that `owner_mark` named could be seen from here and is gone."""
    return is_alive_mark(mark) is False


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
