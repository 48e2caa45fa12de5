"""What a data set is, before anything is done with it: classes, counts, sizes, modes, faults.

In: a source. Out: a `DataReport`. Classes and counts are of all images; sizes, modes and damaged
files are those of at most `LOOKED_AT` images of the pool, spread evenly: decoding all
would take as long as training.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.data.base import Source, Unreadable, decode_image
from pipeline.system.interrupts import check
from pipeline.system.text import first_of

LOOKED_AT = 200


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """A data set in numbers.

    Attributes:
        classes: a row a class: name, and images in each split that there is.
        looked_at: images whose sizes and modes were read.
        shorter: shorter sides in pixels: smallest, median, largest.
        modes: how many images have which of Pillow's modes.
        unreadable: images that cannot be read, and why.
    """

    classes: pd.DataFrame
    looked_at: int
    shorter: tuple[int, int, int]
    modes: Mapping[str, int]
    unreadable: tuple[str, ...]

    @classmethod
    def of(cls, source: Source) -> DataReport:
        """The report of a source."""
        splits = {"images": source.pool, "validation": source.val, "test": source.test}
        counts = {name: source.class_sizes(split) for name, split in splits.items() if split}
        rows = np.linspace(0, len(source.pool.labels) - 1, LOOKED_AT).astype(np.int64)
        rows = np.unique(rows)
        sides: list[int] = []
        modes: Counter[str] = Counter()
        unreadable = []
        for where, image in source.pool.stored.items(rows.tolist()):
            check()
            decoded = decode_image(image, where, source.pool.ranges)
            if isinstance(decoded, Unreadable):
                unreadable.append(str(decoded))
                continue
            sides.append(min(decoded.size))
            modes[_mode(image)] += 1
        sides = sides or [0]
        return cls(
            classes=pd.DataFrame({"class": np.array(source.class_names, dtype=object), **counts}),
            looked_at=len(rows),
            shorter=(min(sides), int(np.median(sides)), max(sides)),
            modes=dict(modes.most_common()),
            unreadable=tuple(unreadable),
        )

    @property
    def lines(self) -> list[str]:
        """What a person should know, a sentence each."""
        low, middle, high = self.shorter
        modes = ", ".join(f"{mode} ({count})" for mode, count in self.modes.items())
        lines = [
            f"of {self.looked_at} images looked at, the shorter side has {low} to {high} px "
            f"(median {middle}); modes {modes}"
        ]
        if self.unreadable:
            lines.append(
                f"{len(self.unreadable)} of them cannot be read: {first_of(self.unreadable, 3)}: "
                "replace them, or pass -P skip_unreadable=true"
            )
        sizes = self.classes["images"]
        if sizes.max() > sizes.min():
            few, many = self.classes.iloc[sizes.argmin()], self.classes.iloc[sizes.argmax()]
            lines.append(
                f"classes differ in size: {few['class']} has {few['images']} images, "
                f"{many['class']} {many['images']}"
            )
        return lines


def _mode(image: object) -> str:
    """Pillow's mode of a stored image that can be decoded."""
    content = image.get("bytes") if isinstance(image, dict) else image
    if isinstance(content, np.ndarray):
        return Image.fromarray(content).mode
    assert isinstance(content, bytes | Path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as file:
            return file.mode
