"""Rows of a split to an `ImageSet`: those that can be read, and what is said of the others.

In: a split, rows, a size. Out: pixels, labels and digests in the order of the rows. Images that
cannot be read are named all at once, or left out and listed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.data.base import Split, Unreadable
from pipeline.data.images import DOUBT, ImageSet, IntArray, digest_image, fit_square
from pipeline.errors import DataError
from pipeline.system.interrupts import check
from pipeline.system.text import first_of

SHOWN_UNREADABLE = 20
UNREADABLE = "unreadable_images.txt"
"""The artifact of a run that lists the images which it went on without."""


def left_out(unreadable: Sequence[str]) -> str:
    """What is said of images that are left out."""
    return (
        f"images left out, as they cannot be read: {len(unreadable)} ({first_of(unreadable, 3)}); "
        f"the list stands in {UNREADABLE} of the run"
    )


def doubtful(doubts: Sequence[str]) -> str:
    """What is said of deep images that may have lost what they show."""
    return (
        f"deep images that may have lost what they show: {len(doubts)} ({first_of(doubts, 3)}): "
        "store all images as 8-bit ones"
    )


def read_images(
    split: Split, rows: IntArray, image_size: int, *, skip_unreadable: bool = False
) -> ImageSet:
    """The images of these rows as an `ImageSet`, in order.

    Raises:
        DataError: images cannot be read; names them all, or as many as fit on a line.
    """
    images = read_those_that_can_be(split, rows, image_size)
    if not skip_unreadable:
        refuse_unreadable(images.unreadable, len(rows))
    return images


def read_those_that_can_be(split: Split, rows: IntArray, image_size: int) -> ImageSet:
    """Those of these images that can be read."""
    pixels = np.empty((len(rows), 3, image_size, image_size), dtype=np.uint8)
    digests = np.empty((len(rows), 32), dtype=np.uint8)
    kept: list[int] = []
    unreadable: list[str] = []
    doubts: list[str] = []
    for position, rgb in enumerate(split.read(rows.tolist())):
        check()
        if isinstance(rgb, Unreadable):
            unreadable.append(str(rgb))
            continue
        doubts += [rgb.info[DOUBT]] if DOUBT in rgb.info else []
        digests[len(kept)] = np.frombuffer(digest_image(rgb), dtype=np.uint8)
        pixels[len(kept)] = fit_square(rgb, image_size)
        kept.append(position)
    return ImageSet(
        torch.from_numpy(pixels[: len(kept)]),
        torch.from_numpy(split.labels[rows[kept]]),
        digests[: len(kept)],
        tuple(sorted(unreadable)),
        tuple(doubts),
        rows[kept],
    )


def refuse_unreadable(unreadable: Sequence[str], count: int) -> None:
    """Refuse images that cannot be read, of `count` that were asked for."""
    if not unreadable:
        return
    which = "image" if len(unreadable) == 1 else f"{len(unreadable)} of {count} images:"
    raise DataError(
        f"cannot read {which} {first_of(unreadable, SHOWN_UNREADABLE)}: replace or remove "
        f"{'it' if len(unreadable) == 1 else 'them'}, or go on without: -P skip_unreadable=true"
    )
