"""Which process writes a run, so that a later one can tell that nobody does any more.

A process that is killed outright cannot end its runs. Runs carry the machine and the process that
write them; a command that finds one RUNNING whose process is gone from this very machine ends it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path

KILLED_REASON = "its process was killed"
MACHINE, PROCESS = "owner.machine", "owner.process"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@cache
def this_machine() -> str:
    """Its name, and where it can be told the boot: process numbers begin again with each."""
    boot = _BOOT_ID.read_text(encoding="ascii").strip() if _BOOT_ID.exists() else ""
    return f"{socket.gethostname()} {boot}".strip()


def owner_tags() -> dict[str, str]:
    """What a run of this process is tagged with."""
    return {MACHINE: this_machine(), PROCESS: str(os.getpid())}


def is_abandoned(tags: Mapping[str, str]) -> bool:
    """Whether the process behind a run was on this machine and is gone.

    A process that has another's number counts as that one: the run stays.
    """
    if tags.get(MACHINE) != this_machine() or not tags.get(PROCESS, "").isdigit():
        return False
    try:
        os.kill(int(tags[PROCESS]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is somebody else's
        return False
    return False
