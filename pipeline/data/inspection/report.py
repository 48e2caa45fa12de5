"""What a data set is, before anything is done with it: classes, counts, sizes, modes, faults.

In: a source. Out: a `DataReport`. Classes and counts are of all images; sizes, modes and damaged
files are those of all images, too, where looking at them takes no longer than `LOOK_S`, else of a
sample. The test split is looked at as well: a damaged file in it should be known before training.
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

from pipeline.data.base import Source, Unreadable
from pipeline.data.inspection.look import LOOK_S, look_through
from pipeline.system.text import first_of


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """A data set in numbers.

    Attributes:
        classes: a row a class: name, and images in each split that there is.
        looked_at: images whose sizes and modes were read, of every split.
        images: in all splits.
        shorter: shorter sides in pixels: smallest, median, largest.
        modes: how many images have which of Pillow's modes.
        unreadable: images that cannot be read, and why.
        unreadable_test: how many of them are in the test split.
    """

    classes: pd.DataFrame
    looked_at: int
    images: int
    shorter: tuple[int, int, int]
    modes: Mapping[str, int]
    unreadable: tuple[str, ...]
    unreadable_test: int

    @classmethod
    def of(cls, source: Source, limit_s: float = LOOK_S) -> DataReport:
        """The report of a source; `limit_s`: how long images are looked at."""
        named = {"images": source.pool, "validation": source.val, "test": source.test}
        splits = {name: split for name, split in named.items() if split}
        counts = {name: source.class_sizes(split) for name, split in splits.items()}
        sides: list[int] = []
        modes: Counter[str] = Counter()
        unreadable: list[str] = []
        of_split: Counter[str] = Counter()
        for number, image, decoded in look_through([*splits.values()], limit_s):
            if isinstance(decoded, Unreadable):
                unreadable.append(str(decoded))
                of_split[[*splits][number]] += 1
                continue
            sides.append(min(decoded.size))
            modes[_mode(image)] += 1
        looked_at = len(sides) + len(unreadable)
        sides = sides or [0]
        return cls(
            classes=pd.DataFrame({"class": np.array(source.class_names, dtype=object), **counts}),
            looked_at=looked_at,
            images=sum(len(split.labels) for split in splits.values()),
            shorter=(min(sides), int(np.median(sides)), max(sides)),
            modes=dict(modes.most_common()),
            unreadable=tuple(sorted(unreadable)),
            unreadable_test=of_split["test"],
        )

    @property
    def _seen(self) -> str:
        if self.looked_at == self.images:
            return f"of all {self.images} images"
        return f"of a sample of {self.looked_at} of {self.images} images"

    @property
    def lines(self) -> list[str]:
        """What a person should know, a sentence each."""
        low, middle, high = self.shorter
        modes = ", ".join(f"{mode} ({count})" for mode, count in self.modes.items())
        lines = [
            f"{self._seen}, the shorter side has {low} to {high} px "
            f"(median {middle}); modes {modes}"
        ]
        if self.unreadable:
            lines.append(
                f"{len(self.unreadable)} of them cannot be read: {first_of(self.unreadable, 3)}: "
                "replace or remove them, or pass -P skip_unreadable=true"
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
