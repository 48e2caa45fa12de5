"""Disjoint samples of a pool: the k-th draw's training and validation images.

Each class's images are permuted once by `data_seed`; draw k takes the k-th slice of
`train_per_class + val_per_class`. Two draws share no row of the pool. A source with a validation
split of its own has both pools sliced, each by its own size. The test split is not touched here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.data.images import ImageSet, IntArray, digest_image, fit_square, to_rgb
from pipeline.data.source import Source, Split
from pipeline.errors import DataError
from pipeline.settings import Settings

_TEST_STREAM = 0x7E57  # another permutation than that of the draws


@dataclass(frozen=True)
class Draw:
    """One draw's images. `fingerprint`: SHA-256 of all its images, labels and class names.

    `source`: what the data set is called; `pool`: what it is, see `Source.digest`.
    """

    source: str
    class_names: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    pool: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over class names, training and validation images, 64 hex digits."""
        parts = [list(self.class_names), self.train.fingerprint(), self.val.fingerprint()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def shared_images(self) -> int:
        """How many validation images have the pixels of a training image."""
        train = {row.tobytes() for row in self.train.digests}
        return sum(row.tobytes() in train for row in self.val.digests)


def deal_rows(
    source: Source, train_per_class: int, val_per_class: int, data_seed: int, draw: int
) -> tuple[IntArray, IntArray]:
    """Rows of the pool to train on, and rows of the pool or `source.val` to validate on.

    Raises:
        DataError: a class is too small, or the pool holds fewer draws; says which and how many.
    """
    if source.val is None:
        size = train_per_class + val_per_class
        asked = f"train_per_class + val_per_class = {size}"
        rows = _slice(source, source.pool, data_seed, draw, size, asked)
        return rows[:, :train_per_class].reshape(-1), rows[:, train_per_class:].reshape(-1)
    train = _slice(
        source,
        source.pool,
        data_seed,
        draw,
        train_per_class,
        f"train_per_class = {train_per_class}",
    )
    val = _slice(
        source, source.val, data_seed, draw, val_per_class, f"val_per_class = {val_per_class}"
    )
    return train.reshape(-1), val.reshape(-1)


def set_aside(source: Source, per_class: int) -> Source:
    """The source with a test split taken from its pool, where it has none of its own.

    The same images whatever is drawn from the rest, and however it is shuffled: resampled pairs
    have shuffles of their own, and none may train on what all are scored on.

    Raises:
        DataError: there is one already, or a class has no more images than that.
    """
    if per_class == 0:
        return source
    if source.test is not None:
        raise DataError(
            f"test_per_class = {per_class}: {source.name} has a test split of its own "
            f"({len(source.test.labels)} images): leave test_per_class out"
        )
    labels = source.pool.labels
    is_test = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(source.class_names):
        rows = np.flatnonzero(labels == label)
        if len(rows) <= per_class:
            raise DataError(
                f"{source.name}: test_per_class = {per_class} takes all {len(rows)} images of "
                f"class {name}: lower it or add images"
            )
        order = np.random.default_rng([label, _TEST_STREAM]).permutation(rows)
        is_test[order[:per_class]] = True

    def part(rows: IntArray) -> Split:
        stored = source.pool.stored
        return Split(
            labels[rows],
            lambda wanted: source.pool.read([int(rows[i]) for i in wanted]),
            stored.part(rows) if stored else None,
        )

    return replace(source, pool=part(np.flatnonzero(~is_test)), test=part(np.flatnonzero(is_test)))


def draws_held(source: Source, train_per_class: int, val_per_class: int) -> int:
    """How many draws the pool holds that share no image; 0 if a class is too small for one."""

    def held(split: Split, size: int) -> int:
        return int(source.class_sizes(split).min()) // size

    if source.val is None:
        return held(source.pool, train_per_class + val_per_class)
    return min(held(source.pool, train_per_class), held(source.val, val_per_class))


def share_in_common(source: Source, train_per_class: int, val_per_class: int) -> float:
    """Share of its images that a draw has in common with that of another shuffle, on average.

    Of the smallest class, where it is largest, and of training or validation images, of which
    there are more. A validation split of its own is left out: what is found holds for it, as it
    does for the test split.
    """
    larger = train_per_class if source.val else max(train_per_class, val_per_class)
    return larger / int(source.class_sizes(source.pool).min())


def _slice(
    source: Source, split: Split, data_seed: int, draw: int, size: int, asked: str
) -> IntArray:
    """Rows of slice `draw` of every class, (classes, size)."""
    counts = source.class_sizes(split)
    small = [
        f"{name} ({count})"
        for name, count in zip(source.class_names, counts, strict=True)
        if count < size
    ]
    if small:
        more = f" and {len(small) - 5} more" if len(small) > 5 else ""
        raise DataError(
            f"{source.name}: too few images in class {', '.join(small[:5])}{more} for {asked}: "
            "lower it or add images"
        )
    smallest = int(counts.argmin())
    held = int(counts[smallest]) // size
    if draw >= held:
        raise DataError(
            f"{source.name}: draw {draw} asked for, the pool holds {held} "
            f"draw{'s' if held > 1 else ''} "
            f"(0 to {held - 1}) of {asked} a class (smallest class: "
            f"{source.class_names[smallest]}, "
            f"{counts[smallest]} images): ask for a lower draw, fewer draws, or fewer "
            "images a class"
        )
    return np.stack(
        [
            np.random.default_rng([data_seed, label]).permutation(
                np.flatnonzero(split.labels == label)
            )[draw * size : (draw + 1) * size]
            for label in range(len(source.class_names))
        ]
    )


def read_images(split: Split, rows: IntArray, image_size: int) -> ImageSet:
    """The images of these rows as an `ImageSet`, in order.

    Raises:
        DataError: an image cannot be read; says which.
    """
    pixels = np.empty((len(rows), 3, image_size, image_size), dtype=np.uint8)
    digests = np.empty((len(rows), 32), dtype=np.uint8)
    for position, image in enumerate(split.read(rows.tolist())):
        rgb = to_rgb(image)
        digests[position] = np.frombuffer(digest_image(rgb), dtype=np.uint8)
        pixels[position] = fit_square(rgb, image_size)
    return ImageSet(torch.from_numpy(pixels), torch.from_numpy(split.labels[rows]), digests)


def make_draw(
    source: Source,
    *,
    train_per_class: int,
    val_per_class: int,
    data_seed: int,
    draw: int,
    image_size: int,
) -> Draw:
    """Deal and read one draw (see the module's header).

    Raises:
        DataError: too few images, no such draw, or an image that cannot be read.
    """
    train, val = deal_rows(source, train_per_class, val_per_class, data_seed, draw)
    return Draw(
        source.name,
        source.class_names,
        read_images(source.pool, train, image_size),
        read_images(source.val or source.pool, val, image_size),
        source.digest(),
    )


def draw_in(source: Source, settings: Settings) -> Draw:
    """The draw that the settings name."""
    return make_draw(
        source,
        train_per_class=settings.train_per_class,
        val_per_class=settings.val_per_class,
        data_seed=settings.data_seed,
        draw=settings.draw,
        image_size=settings.image_size,
    )


def tuning_draws(source: Source, settings: Settings, count: int) -> Iterator[Draw]:
    """The draws that tuning looks at: so many, from the one that the settings name."""
    for draw in range(settings.draw, settings.draw + count):
        yield draw_in(source, settings.model_copy(update={"draw": draw}))
