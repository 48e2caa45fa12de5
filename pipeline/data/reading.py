"""Rows of splits to an `ImageSet`: pixels, labels and digests in the order of the rows.

In: splits and rows, and where many pixels may be kept. Out: images, one decoded at a time, in the
order in which they are stored: a file of many images is gone through once. Images that cannot be
read are named all at once, or left out and listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.base import WHERE, Split, Unreadable, refuse_unreadable
from pipeline.data.image_set import ImageSet
from pipeline.data.images import (
    DOUBT,
    USUAL,
    IntArray,
    Preparation,
    U8Array,
    digest_image,
)
from pipeline.data.pixels import PixelWriter
from pipeline.system.disk.shelf import Shelf
from pipeline.system.interrupts import check
from pipeline.system.progress import bar
from pipeline.system.text import one_line

Part = tuple[Split, IntArray]
"""A split and rows of it."""


def read_images(
    split: Split,
    rows: IntArray,
    image_size: int,
    preparation: Preparation = USUAL,
    *,
    skip_unreadable: bool = False,
    shelf: Shelf | None = None,
) -> ImageSet:
    """The images of these rows, in order; see `read_parts`."""
    keep = {"skip_unreadable": skip_unreadable}
    return read_parts([(split, rows)], image_size, preparation, **keep, shelf=shelf)


def read_parts(
    parts: Sequence[Part],
    image_size: int,
    preparation: Preparation = USUAL,
    *,
    skip_unreadable: bool = False,
    shelf: Shelf | None = None,
) -> ImageSet:
    """The images of these rows of several splits, in order.

    `shelf`: where pixels are kept that are too many for memory; None: nowhere.

    Raises:
        DataError: images cannot be read; names them all, or as many as fit on a line.
    """
    count = sum(rows.size for _, rows in parts)
    found = _Found.of(count)

    def decode(places: IntArray) -> U8Array:
        return _decoded(parts, places, image_size, preparation)

    pixels = PixelWriter(count, image_size, shelf, decode)
    with bar("reading images", count) as step:
        for place, rgb in _in_stored_order(parts, np.arange(count)):
            check()
            if isinstance(rgb, Unreadable):
                found.unreadable.append(str(rgb))
            else:
                found.add(place, rgb)
                pixels.put(place, preparation.fit_square(rgb, image_size))
            step(1)
    if not skip_unreadable:
        refuse_unreadable(found.unreadable, count)
    kept = np.flatnonzero(found.is_read)
    labels = np.concatenate([split.labels[rows] for split, rows in parts])
    return ImageSet(
        pixels=pixels.pixels(kept),
        labels=torch.from_numpy(labels[kept]),
        digests=found.digests[kept],
        unreadable=tuple(sorted(found.unreadable)),
        doubts=tuple(found.doubts[place] for place in sorted(found.doubts)),
        preparation=preparation,
        rows=np.concatenate([rows for _, rows in parts])[kept],
        names=tuple(found.names[place] for place in kept),
    )


@dataclass(kw_only=True)
class _Found:
    """What is known of images beside their pixels, by place."""

    digests: U8Array
    names: list[str]
    is_read: NDArray[np.bool_]
    doubts: dict[int, str] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, count: int) -> _Found:
        digests = np.zeros((count, 32), dtype=np.uint8)
        return cls(digests=digests, names=[""] * count, is_read=np.zeros(count, dtype=np.bool_))

    def add(self, place: int, rgb: Image.Image) -> None:
        """Note an image that was read."""
        if DOUBT in rgb.info:
            self.doubts[place] = rgb.info[DOUBT]
        self.digests[place] = np.frombuffer(digest_image(rgb), dtype=np.uint8)
        self.names[place] = one_line(rgb.info[WHERE])
        self.is_read[place] = True


def _decoded(
    parts: Sequence[Part], places: IntArray, image_size: int, preparation: Preparation
) -> U8Array:
    """The pixels of these places among the rows of all parts, decoded anew.

    Raises:
        DataError: an image that was read before can be read no more.
    """
    pixels = np.empty((len(places), 3, image_size, image_size), dtype=np.uint8)
    for number, rgb in _in_stored_order(parts, places):
        if isinstance(rgb, Unreadable):
            refuse_unreadable([str(rgb)], len(places))
        else:
            pixels[number] = preparation.fit_square(rgb, image_size)
    return pixels


def _in_stored_order(
    parts: Sequence[Part], places: IntArray
) -> Iterator[tuple[int, Image.Image | Unreadable]]:
    """The images of these places among the rows of all parts, each with its number among these."""
    first = 0
    for split, rows in parts:
        here = np.flatnonzero((places >= first) & (places < first + rows.size))
        wanted = rows[places[here] - first]
        order = split.stored.in_order(wanted)
        yield from zip(here[order].tolist(), split.read(wanted[order].tolist()), strict=True)
        first += rows.size
