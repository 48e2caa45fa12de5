"""Where the cache lies, and how much of the disk it may take, as settings say."""

from __future__ import annotations

import errno
from pathlib import Path

from pipeline.errors import SettingsError
from pipeline.settings.run import Settings
from pipeline.system.disk.files import typed_path
from pipeline.system.disk.shelf import Shelf
from pipeline.system.disk.sizes import bytes_of

DEFAULT_CACHE_DIR = "~/.cache/unfreeze"


def cache_folder(settings: Settings) -> Path:
    """Where downloads and prefix outputs are kept."""
    return typed_path(settings.cache_dir or DEFAULT_CACHE_DIR)


def check_cache_folder(settings: Settings) -> None:
    """Make a folder that was named for the cache; a full disk costs the cache alone.

    Raises:
        SettingsError: it cannot be made. One that is there may be read-only.
    """
    if not settings.cache_dir:
        return
    try:
        cache_folder(settings).mkdir(parents=True, exist_ok=True)
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            return
        raise SettingsError(
            f"cache_dir={settings.cache_dir} cannot be made ({err.strerror}): name a folder that "
            "can, or leave cache_dir out"
        ) from None


def shelf_of(settings: Settings) -> Shelf | None:
    """What holds frozen outputs and decoded images; None where nothing is to be kept."""
    if not settings.cache:
        return None
    folder = cache_folder(settings) / "prefix"
    return Shelf(folder, bytes_of(settings.cache_limit, folder))
