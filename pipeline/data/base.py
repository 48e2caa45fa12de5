"""What every source of images gives: labelled splits whose images are decoded when asked for."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.data.images import (
    DOUBT,
    IntArray,
    Ranges,
    deep_values,
    is_deep,
    kind_of,
    range_of,
    to_rgb,
)
from pipeline.data.stored import Stored, spread
from pipeline.errors import first_line
from pipeline.system.text import one_line

SHOWN_CLASSES = 10


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be decoded: the file or row that holds it, and why not."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{one_line(self.where)} ({one_line(self.reason)})"


Read = Callable[[Sequence[int]], Iterator[Image.Image | Unreadable]]


@dataclass(frozen=True)
class Split:
    """Labelled images: `labels` (N,) and `read(rows)`, the images of those rows in that order.

    `read` gives an `Unreadable` in place of an image that cannot be decoded, and goes on.
    `stored`: the same images undecoded; None where there is no such thing.
    """

    labels: IntArray
    read: Read
    stored: Stored | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set: the pool that draws are dealt from, and splits of its own, if any.

    Attributes:
        notes: what a person should know of how the data was understood, a sentence each.
        passed_over: files that lie among the images and were not read, in words; may be empty.
        ranges: from which values deep images are scaled, in every split.
    """

    name: str
    class_names: tuple[str, ...]
    pool: Split
    val: Split | None = None
    test: Split | None = None
    notes: tuple[str, ...] = ()
    passed_over: str = ""
    ranges: Ranges = field(default_factory=dict)

    def class_sizes(self, split: Split) -> IntArray:
        """How many images each class has in a split of this source, (classes,)."""
        return np.bincount(split.labels, minlength=len(self.class_names))

    def digest(self) -> str:
        """SHA-256 of what draws are dealt from: the same wherever it lies, 64 hex digits.

        It takes in class names, and of the pool and of validation images of their own, in their
        order: labels, stored sizes, and the bytes of a sample (see `stored.py`). No image is
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
            if split and split.stored:
                hasher.update(split.stored.sizes().astype("<i8").tobytes())
                hasher.update(split.stored.sample())
        return hasher.hexdigest()

    @property
    def classes_in_words(self) -> str:
        """The first class names, and how many images each has in the pool."""
        sizes = self.class_sizes(self.pool).tolist()
        named = [one_line(name) for name in self.class_names[:SHOWN_CLASSES]]
        rest = sizes[len(named) :]
        more = f" and {len(rest)} more" if rest else ""
        if len(set(sizes)) == 1:
            return f"{', '.join(named)}{more} ({sizes[0]} images each)"
        shown = [f"{name} ({size})" for name, size in zip(named, sizes, strict=False)]
        theirs = f" ({min(rest)} to {max(rest)} each)" if rest else ""
        return f"{', '.join(shown)} images{more}{theirs}"


def ranges_of(split: Split) -> Ranges:
    """From which values deep images are scaled, as a sample of a split shows."""
    ends: dict[str, list[float]] = {}
    with suppress(Exception), warnings.catch_warnings():  # a damaged file is told elsewhere
        warnings.simplefilter("ignore")
        for content in split.stored.read(spread(len(split.labels))) if split.stored else ():
            with suppress(Exception), Image.open(io.BytesIO(content)) as image:
                if not is_deep(image):
                    continue
                upright, values = deep_values(image)
                assert values is not None
                finite = values[np.isfinite(values)]
                ends.setdefault(kind_of(upright), []).extend((finite.min(), finite.max()))
    return {kind: range_of(kind, min(found), max(found)) for kind, found in ends.items()}


def decode_image(
    content: bytes | Path, where: str, ranges: Ranges | None = None
) -> Image.Image | Unreadable:
    """The image in these bytes or in this file as upright 8-bit RGB; `where` names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata: the pixels count
            with Image.open(
                io.BytesIO(content) if isinstance(content, bytes) else content
            ) as image:
                rgb = to_rgb(image, ranges)
        if DOUBT in rgb.info:
            rgb.info[DOUBT] = str(Unreadable(where, rgb.info[DOUBT]))
        return rgb
    except UnidentifiedImageError:
        return Unreadable(where, what_it_is(content) or "not an image that Pillow knows")
    except Exception as err:  # noqa: BLE001 - each format of Pillow raises its own
        return Unreadable(where, first_line(err))


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
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    return ""
