"""What accuracies on a test split rest on: copies, classes without an image, images left out.

In: a source and its test images, then the draws that runs were made on. Out: how many test images
are stored byte for byte among the images that draws are dealt from, and how many have the pixels
of an image that was trained or validated on; the classes without a test image; how many images of
the test split and of the draws could not be read. Only stored images of one size are read, and no
image is decoded again: a copy in another format is found only in the draws that were used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.data.base import Source
from pipeline.data.image_set import ImageSet
from pipeline.data.images import IntArray
from pipeline.data.sampling.draws import Draw, draw_in
from pipeline.data.stored import Stored
from pipeline.settings.run import Settings
from pipeline.system.interrupts import check
from pipeline.system.text import count_of, first_of
from pipeline.tracking.keys import COPIES_OF_POOL, SEEN_IN_TRAINING

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many test images there are, and how many of them are copies.

    Attributes:
        copies: test images that are copies of pool images; `seen`, those of them that were
            trained or validated on, included.
        missing: classes without a test image.
        left_out: images of the test split, and of the draws, that cannot be read.
    """

    images: int
    copies: int
    seen: int
    missing: tuple[str, ...] = ()
    left_out: tuple[int, int] = (0, 0)

    @property
    def words(self) -> str:
        """The test images in a sentence about what they were used for."""
        use = " that no training, tuning or selection has seen"
        if self.copies:
            verb = "is a copy" if self.copies == 1 else "are copies"
            met = f"{self.seen or 'none'} of them {'was' if self.seen <= 1 else 'were'}"
            use = (
                f", of which {self.copies} {verb} of images that draws are dealt from ({met} "
                "trained or validated on in these runs), so that accuracies are not all on unseen "
                "images"
            )
        return "; ".join([f"{self.images} test images{use}", *self._gaps])

    @property
    def copied(self) -> str:
        """How many test images are copies, as the beginning of a sentence."""
        what = "test images are copies of images that draws are dealt from"
        return f"{self.copies} of {self.images} {what}"

    @property
    def note(self) -> str:
        """A line a gap for people; empty where all is well."""
        gaps = self._gaps
        if self.copies:
            met = f", {self.seen} of them trained or validated on by these runs"
            found = f"{self.copied}{met if self.seen else ''}"
            gaps.append(f"{found}: take them out of the test split")
        return "\n".join(f"note: {gap}" for gap in gaps)

    @property
    def _gaps(self) -> list[str]:
        gaps = []
        if self.missing:
            gaps.append(f"no test image is of class {first_of(self.missing)}")
        if any(self.left_out):
            test, draws = self.left_out
            gaps.append(f"left out, as they cannot be read: {test} test images, {draws} of draws")
        return gaps

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics that a run logs of its test images."""
        return {COPIES_OF_POOL: self.copies, SEEN_IN_TRAINING: self.seen}


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Which of N test images are copies.

    Attributes:
        in_pool: stored among the images that draws are dealt from, (N,).
        seen: trained or validated on, (N,).
        class_names: of the source.
        left_out: images of the draws that cannot be read.
    """

    test: ImageSet
    in_pool: BoolArray
    seen: BoolArray
    class_names: tuple[str, ...]
    left_out: frozenset[str] = frozenset()

    @classmethod
    def of(cls, test: ImageSet, source: Source) -> Overlap:
        """The overlap before any draw is used; `test` was read from the test split of `source`."""
        nothing = np.zeros(len(test), dtype=np.bool_)
        return cls(
            test=test,
            in_pool=stored_copies(source)[test.rows],
            seen=nothing,
            class_names=source.class_names,
        )

    def after(self, draws: Iterable[Draw]) -> Overlap:
        """The overlap after these draws were trained and validated on, too."""
        met: set[bytes] = set()
        left_out = set(self.left_out)
        for draw in draws:
            met.update(row.tobytes() for part in (draw.train, draw.val) for row in part.digests)
            left_out.update(draw.unreadable)
        now = np.array([row.tobytes() in met for row in self.test.digests], dtype=np.bool_)
        return replace(self, seen=self.seen | now, left_out=frozenset(left_out))

    def alone(self, draws: Iterable[Draw]) -> Overlap:
        """The overlap after these draws and no others."""
        nothing = np.zeros_like(self.seen)
        return replace(self, seen=nothing, left_out=frozenset()).after(draws)

    def joined(self, seen: BoolArray, left_out: frozenset[str]) -> Overlap:
        """The overlap after draws that another process has looked at, too."""
        return replace(self, seen=self.seen | seen, left_out=self.left_out | left_out)

    @property
    def copies(self) -> BoolArray:
        """Test images that are copies of pool images, or that runs have met, (N,)."""
        return self.in_pool | self.seen

    @property
    def counts(self) -> Counts:
        """The number of test images of each kind."""
        there = set(self.test.labels.tolist())
        return Counts(
            images=len(self.test),
            copies=int(self.copies.sum()),
            seen=int(self.seen.sum()),
            missing=tuple(name for n, name in enumerate(self.class_names) if n not in there),
            left_out=(len(self.test.unreadable), len(self.left_out)),
        )


def tuning_draws(source: Source, settings: Settings, count: int) -> Iterator[Draw]:
    """The `count` draws that tuning uses; the settings name the first."""
    for draw in range(settings.draw, settings.draw + count):
        yield draw_in(source, settings.model_copy(update={"draw": draw}))


def stored_copies(source: Source) -> BoolArray:
    """Images of the test split whose stored bytes stand in the pool as well, (N,)."""
    assert source.test is not None
    test = source.test.stored
    sizes = test.sizes()
    found = np.zeros(len(sizes), dtype=np.bool_)
    for split in filter(None, (source.pool, source.val)):
        others = split.stored.sizes()
        rows = _in_order(test, np.flatnonzero((sizes > 0) & np.isin(sizes, others)))
        alike = _in_order(split.stored, np.flatnonzero(np.isin(others, sizes[rows])))
        known = set(map(_digest, split.stored.read(alike.tolist())))
        contents = test.read(rows.tolist())
        found[rows] |= np.array([_digest(c) in known for c in contents], dtype=np.bool_)
    return found


def splits_in_words(draw: Draw, source: Source, unreadable_test: int) -> str:
    """What the numbers will be measured on, without images that cannot be read."""
    classes = len(draw.class_names)
    parts = f"{count_of(len(draw.train), 'image')} to train on, {len(draw.val)} to validate"
    if draw.dealt:
        parts = f"{draw.dealt}; {parts}"
    if source.test is None:
        return f"{parts}, {classes} classes"
    apart = len(source.test.labels) - unreadable_test
    return f"{parts}, {apart} kept for the test, {classes} classes"


def copies_in_words(draw: Draw, source: Source) -> list[str]:
    """Lines on images that stand in more than one split, or under two classes."""
    lines = draw.notes
    if source.test is not None and (copies := int(stored_copies(source).sum())):
        lines.append(
            f"{copies} of {len(source.test.labels)} test images are copies of images that "
            "draws are dealt from: take them out of the test split"
        )
    return lines or ["no image was found in two splits or under two classes"]


def _in_order(stored: Stored, rows: IntArray) -> IntArray:
    return rows[stored.in_order(rows)]


def _digest(content: bytes) -> bytes:
    check()
    return hashlib.sha256(content).digest()
