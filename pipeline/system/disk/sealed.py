"""A file that appears whole or not at all, and that tells whether a bit of it has changed since.

One line of JSON, what the file is about with the SHA-256 of everything, and then the content. The
line can be read alone. A file is written beside its place under a name that names the writing
process, forced to the disk and renamed: a process that is killed leaves the former file, and at
most a part (`scratch.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.system.disk.scratch import part_of

_DIGEST = "sha256"
_LONGEST_LINE = 1 << 16


class _Sealing:
    """A file that is digested as it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hasher = hashlib.sha256()
        self.fault: OSError | None = None

    def write(self, content: bytes) -> int:
        """Write and digest."""
        self.hasher.update(content)
        try:
            return self._file.write(content)
        except OSError as err:
            self.fault = err
            raise

    def flush(self) -> None:
        """Everything is flushed at the end."""


def write_sealed(
    path: Path, about: Mapping[str, Any], write: Callable[[BinaryIO], object]
) -> None:
    """Write a file whose content `write` writes, in a folder that is made if need be.

    Raises:
        OSError: the disk is full, or may not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        with part.open("wb") as file:
            file.write(_line(about, "0" * hashlib.sha256().digest_size * 2))
            sealing = _Sealing(file)
            sealing.hasher.update(_plain(about))
            try:
                write(cast(BinaryIO, sealing))
            except RuntimeError:  # torch's way to say that its file could not be written
                if sealing.fault:
                    raise sealing.fault from None
                raise
            file.seek(0)
            file.write(_line(about, sealing.hasher.hexdigest()))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def read_about(path: Path) -> dict[str, Any]:
    """What a file is about, unchecked.

    Raises:
        ValueError: the file is no such file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return _split(file.readline(_LONGEST_LINE))[0]


def read_sealed(path: Path) -> tuple[dict[str, Any], bytes]:
    """What a file is about, and its content.

    Raises:
        ValueError: the file is no such file, or damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        about, digest = _split(file.readline(_LONGEST_LINE))
        content = file.read()
    hasher = hashlib.sha256(_plain(about))
    hasher.update(content)
    if hasher.hexdigest() != digest:
        raise ValueError("its SHA-256 is another")
    return about, content


def _plain(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, sort_keys=True).encode()


def _line(about: Mapping[str, Any], digest: str) -> bytes:
    return _plain({**about, _DIGEST: digest}) + b"\n"


def _split(line: bytes) -> tuple[dict[str, Any], str]:
    try:
        about = json.loads(line)
        return about, about.pop(_DIGEST)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError("it does not begin as such a file does") from None


def _sync_folder(folder: Path) -> None:
    """Have the new name survive a loss of power, where folders can be forced to the disk."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
