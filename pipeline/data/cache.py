"""Where the cache lies, and how much of the disk it may take, as settings say."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import SettingsError
from pipeline.settings.run import Settings
from pipeline.system.disk.files import seen, typed_path
from pipeline.system.disk.shelf import Shelf
from pipeline.system.disk.sizes import bytes_of

CACHES, USUAL_CACHES = "XDG_CACHE_HOME", "~/.cache"
"""The variable that names the folder of all caches, and that folder where it is not set."""


def cache_folder(settings: Settings) -> Path:
    """Where downloads and prefix outputs are kept."""
    if settings.cache_dir:
        return typed_path(settings.cache_dir)
    caches = typed_path(os.environ.get(CACHES, ""))
    return (caches if caches.is_absolute() else typed_path(USUAL_CACHES)) / "unfreeze"


def check_cache_folder(settings: Settings) -> None:
    """Refuse a folder that was named for the cache where none can be made; it is not made yet.

    Raises:
        SettingsError: its place is inside a file, or may not be written. A folder that is there
            may be read-only.
    """
    folder = cache_folder(settings)
    if not settings.cache_dir or seen(folder.is_dir):
        return
    above = next(path for path in (folder, *folder.absolute().parents) if seen(path.exists))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "may not be written" if above.is_dir() else "is a file"
        raise SettingsError(
            f"cache_dir={settings.cache_dir} cannot be made ({above} {why}): name a folder that "
            "can, or leave cache_dir out"
        )


def shelf_of(settings: Settings) -> Shelf | None:
    """What holds frozen outputs and decoded images; None where nothing is to be kept."""
    if not settings.cache:
        return None
    folder = cache_folder(settings) / "prefix"
    return Shelf(folder, bytes_of(settings.cache_limit, folder))
