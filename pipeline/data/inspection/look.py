"""Whether stored images can be decoded, before anything rests on them: all, as far as time allows.

In: splits, and how long to look. Out: the images in an order of which every beginning is a fair
sample of all of them. A folder of small pictures is gone through whole; of large photographs as
many are looked at as the time allows, and callers say how many.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.base import Split, Unreadable, decode_image
from pipeline.system.interrupts import check
from pipeline.system.progress import bar

LOOK_S = 20.0
_TOGETHER = 256
"""Images that are fetched at a time: a parquet file is read row group by row group."""


def look_through(
    splits: Sequence[Split], limit_s: float = LOOK_S
) -> Iterator[tuple[int, Any, Image.Image | Unreadable]]:
    """The number of a split, an image as it is stored, and decoded, until the time is over."""
    ends = np.cumsum([len(split.labels) for split in splits])
    order = np.random.default_rng(0).permutation(int(ends[-1]))
    until = time.monotonic() + limit_s
    with bar("looking at the images", len(order)) as step:
        for start in range(0, len(order), _TOGETHER):
            some = np.sort(order[start : start + _TOGETHER])
            parts = np.split(some, np.searchsorted(some, ends[:-1]))
            for number, (split, part) in enumerate(zip(splits, parts, strict=True)):
                rows = (part - (ends[number] - len(split.labels))).tolist()
                for where, image in split.stored.items(rows):
                    check()
                    yield number, image, decode_image(image, where, split.ranges)
                    step(1)
                    if time.monotonic() > until:
                        return
