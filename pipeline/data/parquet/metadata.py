"""What Hugging Face's metadata of a parquet file lists: class names, and columns by their type.

In: the value of the key `huggingface`. Anything but the known form counts as none.
"""

from __future__ import annotations

import json
from typing import Any


def names_in(metadata: bytes | None, column: str) -> dict[int, str] | None:
    """The class names that Hugging Face's metadata of a file lists for a column, by number.

    Anything but the known form (`info.features.<column>.names`, a list or a mapping of numbers)
    counts as none: exporters write all sorts of things there.
    """
    names = _feature(metadata, column).get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        return None
    try:
        numbered = {int(number): name for number, name in names.items()}
    except ValueError:
        return None
    if not all(isinstance(name, str | int) for name in numbered.values()):
        return None
    return {number: str(numbered[number]) for number in sorted(numbered)}


def columns_of_type(metadata: bytes | None, kind: str) -> list[str]:
    """The columns that Hugging Face's metadata calls `Image` or `ClassLabel`."""
    features = _features(metadata)
    return [name for name in features if _feature(metadata, name).get("_type") == kind]


def _features(metadata: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(metadata or b"{}")
    except (ValueError, RecursionError):
        return {}
    for key in ("info", "features"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _feature(metadata: bytes | None, column: str) -> dict[str, Any]:
    feature = _features(metadata).get(column)
    return feature if isinstance(feature, dict) else {}
