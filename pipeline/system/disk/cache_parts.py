"""Files of the cache that are a living process's: half-written ones, and marks of use.

In: a file of the cache's folder, KEY.MARK.tmp, KEY.MARK.about or KEY.MARK.use, whose mark names
its owner, or values without a description. Out: whether a killed process has left it. An owner
that cannot be seen from here keeps the file's time of change going, and is dead once that has
stayed the same for a lease, or is an hour old: an hour is more than clocks differ by.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pipeline.system.leases import Watch
from pipeline.system.processes import is_alive_mark

ABANDONED_AFTER_S = 3600
PARTS = (".tmp", ".about")
"""Endings of what is being written."""
USE = ".use"
"""Ending of a mark, an empty file, of an entry that a process uses."""
_watch = Watch()
"""Files of owners that cannot be seen from here, as this process has met them."""


def touch(parts: Iterable[Path]) -> None:
    """Show that the owner lives."""
    for part in parts:
        with suppress(FileNotFoundError):
            os.utime(part)


def is_left_behind(path: Path) -> bool:
    """Whether a part, a mark of use, or values without a description, have no owner any more."""
    try:
        changed = path.stat()
    except FileNotFoundError:  # another process has been here
        return False
    old = time.time() - changed.st_mtime > ABANDONED_AFTER_S
    if path.suffix not in (*PARTS, USE):
        return old
    alive = is_alive_mark(path.stem.partition(".")[2])
    if alive is not None:
        return not alive
    return old or _watch.is_silent(str(path), str(changed.st_mtime_ns))
