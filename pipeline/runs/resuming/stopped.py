"""States of runs in the cache's folder: whose they are, and when they are removed.

In: the folder with files `KEY.RUN.state` that `unfinished.py` writes. Out: whether anybody is at
work on a state, and a folder without those that nobody will come back to.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.data.cache import cache_folder
from pipeline.errors import LineageError
from pipeline.settings.run import Settings
from pipeline.system.disk.files import locked
from pipeline.system.disk.scratch import PART, sweep_parts
from pipeline.system.disk.sealed import read_about
from pipeline.system.processes import is_abandoned
from pipeline.tracking import RunView, Tracking

FOLDER = "unfinished"
"""In the cache's folder."""
ENDING = ".state"
LOCK = ".lock"
OWNER = "owner"
"""In what a state is about: the tags of the process that wrote it."""
OUTDATED_AFTER_S = 14 * 24 * 3600
"""States that nobody has come back to for so long are removed."""


def unfinished_folder(settings: Settings) -> Path:
    """Where states are kept."""
    return cache_folder(settings) / FOLDER


def state_path(folder: Path, key: str, run_id: str) -> Path:
    """The state of a run."""
    return folder / f"{key}.{run_id}{ENDING}"


def run_of(tracking: Tracking, path: Path) -> RunView | None:
    """The run that a state is of; None where the store has none."""
    try:
        return tracking.get(path.name.split(".")[1])
    except LineageError:
        return None


def is_stopped(run: RunView | None, about: Mapping[str, Any]) -> bool:
    """Whether nobody is at work on a state; `about`: what the file says of itself."""
    if run is None:
        return is_abandoned(about[OWNER])
    return run.status != "RUNNING" or is_abandoned(run.tags)


def sweep(folder: Path) -> None:
    """Remove states that nobody has come back to, and parts of killed processes."""
    sweep_parts(folder)
    for path in (*folder.glob(f"*{ENDING}"), *folder.glob(f"*{PART}")):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > OUTDATED_AFTER_S:
                path.unlink()


def clear(folder: Path, tracking: Tracking) -> int:
    """Remove the states that nobody is at work on; returns bytes freed."""
    if not folder.is_dir():
        return 0
    freed = 0
    with locked(folder / LOCK):
        sweep(folder)
        for path in folder.glob(f"*{ENDING}"):
            with suppress(OSError):
                try:
                    stopped = is_stopped(run_of(tracking, path), read_about(path))
                except (ValueError, KeyError):  # damaged
                    stopped = True
                if stopped:
                    freed += path.stat().st_size
                    path.unlink()
    return freed
