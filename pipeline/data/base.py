"""What every source of images gives: labelled splits whose images are decoded when asked for.

In: encoded images, and the rows of a split that are wanted. Out: an `ImageSet` with pixels, labels
and digests in the order of the rows. Images that cannot be read are named all at once, or left out
and listed.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.data.images import (
    DOUBT,
    IntArray,
    Preparation,
    Ranges,
    deep_values,
    is_deep,
    range_of,
    to_rgb,
    without_strays,
)
from pipeline.data.stored import Stored, spread
from pipeline.errors import DataError, first_line
from pipeline.settings.fields import numbers_of
from pipeline.settings.run import Settings
from pipeline.system.text import first_of, one_line

SHOWN_CLASSES = 10
WHERE = "unfreeze: where"
"""Key of `Image.info`: the file or the row that holds the image."""
SHOWN_UNREADABLE = 20
UNREADABLE = "unreadable_images.txt"
"""The artifact of a run that lists the images which the run went on without."""


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be decoded: the file or row that holds it, and why not."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{one_line(self.where)} ({one_line(self.reason)})"


@dataclass(frozen=True, kw_only=True)
class Split:
    """N labelled images.

    Attributes:
        labels: class numbers, (N,).
        ranges: from which values deep images are scaled: one range for all splits of a source.
        groups: what each image belongs to and must not be parted from; empty: nothing, (N,).
    """

    labels: IntArray
    stored: Stored
    ranges: Ranges = field(default_factory=dict)
    groups: tuple[str, ...] = ()

    def read(self, rows: Sequence[int]) -> Iterator[Image.Image | Unreadable]:
        """The images of these rows, in that order; goes on after one that cannot be decoded."""
        return (
            decode_image(image, where, self.ranges) for where, image in self.stored.items(rows)
        )

    def part(self, rows: IntArray) -> Split:
        """These rows as a split."""
        groups = tuple(self.groups[row] for row in rows) if self.groups else ()
        return replace(
            self, labels=self.labels[rows], stored=self.stored.part(rows), groups=groups
        )


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set: the pool that draws are dealt from, and splits of its own, if any.

    Attributes:
        notes: what a person should know of how the data was understood, a sentence each.
        passed_over: files that lie among the images and were not read, in words; may be empty.
        has_part_aside: the test split was taken from the pool.
    """

    name: str
    class_names: tuple[str, ...]
    pool: Split
    val: Split | None = None
    test: Split | None = None
    notes: tuple[str, ...] = ()
    passed_over: str = ""
    has_part_aside: bool = False

    def class_sizes(self, split: Split) -> IntArray:
        """How many images each class has in a split of this source, (classes,)."""
        return np.bincount(split.labels, minlength=len(self.class_names))

    def digest(self) -> str:
        """SHA-256 of what draws are dealt from: the same wherever the images lie, 64 hex digits.

        The digest takes in class names, and of the pool and of validation images of their own, in
        their order: labels, stored sizes, and the bytes of a sample (see `stored.py`). No image is
        decoded; 40,000 files cost 40,000 calls of stat. The test split plays no part. Images that
        are replaced by others of the same size, outside the sample, go unnoticed here: a draw's
        own fingerprint is of every pixel.
        """
        return self._digest(self.pool, self.val)

    def test_digest(self) -> str:
        """The same of the test split; empty where there is none."""
        return self._digest(self.test) if self.test else ""

    def _digest(self, *splits: Split | None) -> str:
        hasher = hashlib.sha256(json.dumps(self.class_names).encode())
        for split in splits:
            hasher.update(b"split" if split else b"none")
            if split:
                hasher.update(split.labels.astype("<i8").tobytes())
                hasher.update(split.stored.sizes().astype("<i8").tobytes())
                hasher.update(split.stored.sample())
        return hasher.hexdigest()

    @property
    def classes_in_words(self) -> str:
        """The first classes and their images: those of the pool and a test split taken from it."""
        counts = self.class_sizes(self.pool)
        if self.has_part_aside and self.test:
            counts = counts + self.class_sizes(self.test)
        sizes = counts.tolist()
        named = [
            one_line(name if name == name.strip() else repr(name))
            for name in self.class_names[:SHOWN_CLASSES]
        ]
        rest = sizes[len(named) :]
        more = f" and {len(rest)} more" if rest else ""
        if len(set(sizes)) == 1:
            return f"{', '.join(named)}{more} ({sizes[0]} images each)"
        shown = [f"{name} ({size})" for name, size in zip(named, sizes, strict=False)]
        theirs = f" ({min(rest)} to {max(rest)} each)" if rest else ""
        return f"{', '.join(shown)} images{more}{theirs}"


def ranges_of(split: Split, data: str) -> Ranges:
    """From which values deep images are scaled, as a sample of a split shows.

    Raises:
        DataError: all of the sample are deep images without a finite value.
    """
    ends: dict[str, list[float]] = {}
    blank = 0
    sampled = spread(len(split.labels))
    with suppress(Exception), warnings.catch_warnings():  # a damaged file is told elsewhere
        warnings.simplefilter("ignore")
        for content in split.stored.read(sampled):
            with suppress(Exception), Image.open(io.BytesIO(content)) as image:
                if is_deep(image):
                    upright, values = deep_values(image)
                    assert values is not None
                    usual = without_strays(values)
                    blank += not usual.size
                    ends.setdefault(upright.mode[0], []).extend((usual.min(), usual.max()))
    if blank and blank == len(sampled):
        raise DataError(
            f"data={data}: none of {blank} training images looked at holds a finite value (all "
            "are NaN or infinite): store their pixels as finite numbers"
        )
    return {kind: range_of(kind, min(found), max(found)) for kind, found in ends.items() if found}


def decode_image(image: Any, where: str, ranges: Ranges | None = None) -> Image.Image | Unreadable:  # noqa: ANN401
    """An image of a `Stored` as upright 8-bit RGB; `where` names it."""
    content = image.get("bytes") if isinstance(image, dict) else image
    if content is None:
        only = ", only a path" if isinstance(image, dict) and image.get("path") else ""
        return Unreadable(where, f"no image bytes{only}: embed the image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata: the pixels count
            if isinstance(content, np.ndarray):
                rgb = to_rgb(Image.fromarray(content))
                rgb.info[WHERE] = where
                return rgb
            with Image.open(
                io.BytesIO(content) if isinstance(content, bytes) else content
            ) as file:
                rgb = to_rgb(file, ranges)
    except UnidentifiedImageError:
        return Unreadable(where, what_it_is(content) or "not an image that Pillow knows")
    except Exception as err:  # noqa: BLE001 - each format of Pillow raises its own
        return Unreadable(where, first_line(err))
    if DOUBT in rgb.info:
        rgb.info[DOUBT] = str(Unreadable(where, rgb.info[DOUBT]))
    rgb.info[WHERE] = where
    return rgb


def what_it_is(content: bytes | Path) -> str:
    """What stands where data should, as people keep it without knowing; empty: something else."""
    if isinstance(content, Path):
        try:
            with content.open("rb") as file:
                content = file.read(200)
        except OSError:
            return ""
    start = content[:200].lstrip().lower()
    if not content:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the file: run `git lfs pull`"
    return "an HTML page" if start.startswith((b"<!doctype html", b"<html")) else ""


def preparation_of(settings: Settings) -> Preparation:
    """How the settings have pictures prepared."""
    return Preparation(
        interpolation=settings.interpolation,
        crop=settings.crop,
        mean=numbers_of(settings.mean),
        std=numbers_of(settings.std),
    )


def refuse_unreadable(unreadable: Iterable[str], count: int, what: str = "images") -> None:
    """Refuse images that cannot be read, of `count` that were asked for; `what` they are."""
    if named := sorted(unreadable):
        raise DataError(
            f"cannot read {len(named)} of {count} {what}: "
            f"{first_of(named, SHOWN_UNREADABLE)}: replace or remove them, or go on without: "
            "-P skip_unreadable=true"
        )


def notes_on(unreadable: Sequence[str], doubts: Sequence[str]) -> list[str]:
    """What a person should know of images that were left out, or that may have lost something."""
    notes = []
    if unreadable:
        notes.append(
            f"images left out, as they cannot be read: {len(unreadable)} "
            f"({first_of(unreadable, 3)}); the list stands in {UNREADABLE} of the run"
        )
    if doubts:
        notes.append(
            f"deep images that may have lost what they show: {len(doubts)} "
            f"({first_of(doubts, 3)}): take stray values (markers, no data) out, "
            "or store all images as 8-bit ones"
        )
    return notes
