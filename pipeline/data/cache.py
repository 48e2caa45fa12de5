"""Where the cache lies, and how much of the disk it may take, as settings say."""

from __future__ import annotations

from pathlib import Path

from pipeline.settings.run import Settings
from pipeline.system.disk.files import typed_path
from pipeline.system.disk.shelf import Shelf
from pipeline.system.disk.sizes import bytes_of

DEFAULT_CACHE_DIR = "~/.cache/unfreeze"


def cache_folder(settings: Settings) -> Path:
    """Where downloads and prefix outputs are kept."""
    return typed_path(settings.cache_dir or DEFAULT_CACHE_DIR)


def shelf_of(settings: Settings) -> Shelf | None:
    """What holds frozen outputs and decoded images; None where nothing is to be kept."""
    if not settings.cache:
        return None
    folder = cache_folder(settings) / "prefix"
    return Shelf(folder, bytes_of(settings.cache_limit, folder))
