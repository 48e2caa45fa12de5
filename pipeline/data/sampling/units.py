"""Units of images that stay together, in an order by content, and how a part takes its share.

In: a split. Out: its units: the images of a group, or copies of one image. Their order follows
from SHA-256 digests alone, so that neither names of files nor their order play a part.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from pipeline.data.base import Split
from pipeline.data.images import IntArray

NOTHING = hashlib.sha256(b"").digest()
"""The digest of an image that has no bytes, or cannot be read."""


@dataclass(frozen=True)
class Unit:
    """Images that stay together, by their rows: a group's, or copies of one image."""

    rows: tuple[int, ...]
    classes: Counter[int]


class TooFewUnitsError(Exception):
    """No unit is left for a class, whose number this holds."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label


def units_of(split: Split, stream: str) -> list[Unit]:
    """A split's units, in an order that only their content and `stream` decide."""
    found: dict[bytes, list[int]] = {}
    names = [
        group.encode(errors="surrogateescape") for group in split.groups
    ] or split.stored.digests()
    for row, name in enumerate(names):  # files without content are no copies of one image
        own = name + str(row).encode() if name == NOTHING else name
        found.setdefault(own, []).append(row)
    labels = split.labels.tolist()
    return [
        Unit(tuple(rows), Counter(labels[row] for row in rows))
        for _, rows in sorted(found.items(), key=lambda item: _place(stream, item[0]))
    ]


def _place(stream: str, name: bytes) -> bytes:
    return hashlib.sha256(stream.encode() + b"\0" + name).digest()


def rows_of(units: list[Unit], split: Split) -> IntArray:
    """The rows of units, class by class, in an order that only the images decide."""
    digests, labels = split.stored.digests(), split.labels.tolist()
    rows = [row for unit in units for row in unit.rows]
    rows.sort(key=lambda row: (labels[row], digests[row]))
    return np.array(rows, dtype=np.int64)


def take(units: list[Unit], quota: IntArray, spare: int) -> tuple[list[Unit], list[Unit]]:
    """Units for a part that wants so many images of each class, and the units that are left.

    Units are taken in their order where they bring the part nearer to its quota. A class that
    wants images gets one unit at least, and `spare` units of each class are left at least.

    Raises:
        TooFewUnitsError: a class that wants images has too few units.
    """
    missing = dict(enumerate(quota.tolist()))
    weights = {label: 1 / max(1, wanted) for label, wanted in missing.items()}
    holders = Counter(label for unit in units for label in unit.classes)
    taken: list[Unit] = []
    left: list[Unit] = []
    met: set[int] = set()

    def may_go(unit: Unit) -> bool:
        return all(holders[label] > spare for label in unit.classes)

    def move(unit: Unit) -> None:
        taken.append(unit)
        met.update(unit.classes)
        for label, count in unit.classes.items():
            missing[label] -= count
            holders[label] -= 1

    for unit in units:
        nearer = sum(
            weights[label] * (abs(missing[label]) - abs(missing[label] - count))
            for label, count in unit.classes.items()
        )
        if nearer > 0 and may_go(unit):
            move(unit)
        else:
            left.append(unit)
    for label, wanted in enumerate(quota.tolist()):
        if wanted and label not in met:
            fitting = [unit for unit in left if label in unit.classes and may_go(unit)]
            if not fitting:
                raise TooFewUnitsError(label)
            smallest = min(fitting, key=lambda unit: len(unit.rows))
            left.remove(smallest)
            move(smallest)
    return taken, left
