"""Sizes of files as people write and read them: `20GB`, `500 MB`, `2GiB`, `10%` of a disk.

In: a text. Out: bytes, for a share with the disk that a folder lies on. kB, MB, GB and TB are
powers of 1,000, KiB, MiB, GiB and TiB powers of 1,024; a number alone is bytes, and one below
`LEAST_BYTES` gigabytes, as in earlier versions: so few bytes would keep nothing.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from pipeline.system.disk.files import seen

LEAST_BYTES = 1_000_000
_UNITS = {
    **{f"{letter}b": 1000**power for power, letter in enumerate(("", *"kmgt"))},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)},
    **{letter: 1000**power for power, letter in enumerate("kmgt", start=1)},
}
_WRITTEN = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([a-z]{0,3}|%)", re.IGNORECASE)
_SHOWN = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def check_size(text: str) -> str:
    """A text that `bytes_of` can read.

    Raises:
        ValueError: it cannot; says what a size looks like.
    """
    found = _WRITTEN.fullmatch(text.strip())
    if not found or (found[2].lower() not in ("", "%", *_UNITS)):
        raise ValueError(
            "must be a size such as 20GB, 500 MB, 2GiB, a number of bytes, or 10% of the disk"
        )
    if not float(found[1]) > 0:
        raise ValueError("must be greater than 0")
    if found[2] == "%" and float(found[1]) > 100:
        raise ValueError("must be at most 100% of the disk")
    return text.strip()


def bytes_of(text: str, folder: Path) -> int:
    """How many bytes a checked text means, on the disk of a folder that need not be there yet."""
    found = _WRITTEN.fullmatch(text)
    assert found
    number, unit = float(found[1]), found[2].lower()
    if unit == "%":
        return int(number / 100 * disk_of(folder).total)
    if not unit:
        return int(number if number >= LEAST_BYTES else number * _UNITS["gb"])
    return int(number * _UNITS[unit])


def disk_of(folder: Path) -> shutil._ntuple_diskusage:
    """Bytes of the disk that a folder lies on, or would lie on: total, used, free."""
    above = (folder.absolute(), *folder.absolute().parents)
    there = next(path for path in above if seen(path.exists))
    return shutil.disk_usage(there)


def in_words(size_bytes: float) -> str:
    """A size with its unit: `4.8 GB`."""
    for least, unit in _SHOWN:
        if size_bytes >= least:
            number = size_bytes / least
            return f"{number:.0f} {unit}" if number == round(number) else f"{number:.1f} {unit}"
    return f"{size_bytes:.0f} bytes"
