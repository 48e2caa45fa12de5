"""Disjoint samples of a pool: the k-th draw's training and validation images.

Each class's images are permuted once by `data_seed`; draw k takes the k-th slice of
`train_per_class + val_per_class`. Two draws share no row of the pool. A source with a validation
split of its own has both pools sliced, each by its own size. The test split is not touched here.

Images of a draw that cannot be read are named, all at once. With `skip_unreadable` the draw goes
on without them: its other images stay as they are, and so do all other draws.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.data.base import (
    Source,
    Split,
    Unreadable,
    notes_on,
    preparation_of,
    refuse_unreadable,
)
from pipeline.data.cache import shelf_of
from pipeline.data.image_set import ImageSet
from pipeline.data.images import IntArray, Ranges
from pipeline.data.reading import read_images
from pipeline.data.sampling.by_content import (
    deals,
    draw_by_content,
    parts_in_words,
    set_aside_by_content,
    without,
)
from pipeline.errors import DataError
from pipeline.settings.fields import AUTO
from pipeline.settings.run import Settings
from pipeline.system.text import count_of, first_of, one_line

_TEST_STREAM = 0x7E57  # another permutation than that of the draws
Parts = list[tuple[Split, IntArray]]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One draw's images.

    Attributes:
        source: what the data set is called.
        pool: what the data set is, see `Source.digest`.
        dealt: how many images of each class are for what, in words; empty: as many as were asked.
    """

    source: str
    class_names: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    pool: str = ""
    ranges: Ranges = field(default_factory=dict)
    dealt: str = ""

    @property
    def unreadable(self) -> tuple[str, ...]:
        """The images that were left out, and why, a line each."""
        return tuple(sorted(self.train.unreadable + self.val.unreadable))

    @property
    def notes(self) -> list[str]:
        """What a person should know of these images, a sentence each."""
        notes = []
        if self.shared_images:
            notes.append(
                f"{count_of(self.shared_images, 'validation image')} with the pixels of a "
                "training image"
            )
        labels: dict[bytes, set[int]] = {}
        for part in (self.train, self.val):
            for digest, label in zip(_digests(part), part.labels.tolist(), strict=True):
                labels.setdefault(digest, set()).add(label)
        if twice := [sorted(several) for several in labels.values() if len(several) > 1]:
            names = " and ".join(one_line(self.class_names[label]) for label in twice[0])
            notes.append(
                f"{len(twice)} of these pictures stand under two classes each, the first one "
                f"under {names}: remove them from one, and look at the others, too"
            )
        return notes + notes_on(self.unreadable, self.train.doubts + self.val.doubts)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over class names, training and validation images, 64 hex digits."""
        parts = [list(self.class_names), self.train.fingerprint(), self.val.fingerprint()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def shared_images(self) -> int:
        """How many validation images have the pixels of a training image."""
        train = set(_digests(self.train))
        return sum(digest in train for digest in _digests(self.val))


def _digests(images: ImageSet) -> list[bytes]:
    return [row.tobytes() for row in images.digests]


def deal_rows(
    source: Source, train_per_class: int, val_per_class: int, data_seed: int, draw: int
) -> tuple[IntArray, IntArray]:
    """Rows of the pool to train on, and rows of the pool or `source.val` to validate on.

    Raises:
        DataError: a class is too small, or the pool holds fewer draws; says which and how many.
    """
    sizes = {"train_per_class": train_per_class, "val_per_class": val_per_class}
    if source.val is None:
        rows = _slice(source, source.pool, data_seed, draw, sizes)
        return rows[:, :train_per_class].reshape(-1), rows[:, train_per_class:].reshape(-1)
    train, val = (
        _slice(source, split, data_seed, draw, {name: sizes[name]}).reshape(-1)
        for name, split in zip(sizes, (source.pool, source.val), strict=True)
    )
    return train, val


def draw_rows(source: Source, settings: Settings) -> tuple[IntArray, IntArray]:
    """The rows of the draw that the settings name, see `deal_rows` and `by_content.py`.

    Raises:
        DataError: there is no such draw.
    """
    if settings.by_content:
        return draw_by_content(source, settings)
    train, val = settings.train_per_class, settings.val_per_class
    assert train != AUTO
    assert val != AUTO
    return deal_rows(source, train, val, settings.data_seed, settings.draw)


def with_test_split(source: Source, settings: Settings) -> Source:
    """The source with a test split set aside, where the settings want that.

    Raises:
        DataError: see `set_aside` and `by_content.py`.
    """
    number = settings.test_per_class
    if settings.by_content and source.test is None and number != 0:
        return set_aside_by_content(source, settings)
    return set_aside(source, 0 if number == AUTO else number)


def set_aside(source: Source, per_class: int) -> Source:
    """The source with a test split taken from its pool, where it has none of its own.

    The test images are the same for every draw and every `data_seed`: resampled pairs have
    shuffles of their own, and no pair may train on images that all pairs are scored on.

    Raises:
        DataError: there is a test split already, or a class has no more images than that.
    """
    if per_class == 0:
        return source
    if source.test is not None:
        raise DataError(
            f"test_per_class = {per_class}: {source.name} has a test split of its own "
            f"({len(source.test.labels)} images): leave test_per_class out"
        )
    pool = source.pool
    is_test = np.zeros(len(pool.labels), dtype=bool)
    for label, name in enumerate(source.class_names):
        rows = np.flatnonzero(pool.labels == label)
        if len(rows) <= per_class:
            raise DataError(
                f"{source.name}: test_per_class = {per_class} takes all {len(rows)} images of "
                f"class {one_line(name)}: lower test_per_class or add images"
            )
        order = np.random.default_rng([label, _TEST_STREAM]).permutation(rows)
        is_test[order[:per_class]] = True

    rest, test = (pool.part(np.flatnonzero(which)) for which in (~is_test, is_test))
    return replace(source, pool=rest, test=test)


def draws_held(source: Source, settings: Settings) -> int:
    """How many draws the pool holds that share no image; 0 if a class is too small for one."""
    train_per_class, val_per_class = settings.train_per_class, settings.val_per_class
    if settings.by_content:
        return sum(1 for _ in deals(source, settings))
    assert train_per_class != AUTO
    assert val_per_class != AUTO

    def held(split: Split, size: int) -> int:
        return int(source.class_sizes(split).min()) // size

    if source.val is None:
        return held(source.pool, train_per_class + val_per_class)
    return min(held(source.pool, train_per_class), held(source.val, val_per_class))


def share_in_common(source: Source, settings: Settings) -> float:
    """Expected share of a draw's images that a draw of another shuffle has, too; 0 to 1.

    The largest share over classes, and over training and validation images. A validation split
    of the data's own does not count: what is found holds for that split, as for the test split.
    """
    train, val = settings.train_per_class, settings.val_per_class
    pool = source.class_sizes(source.pool)
    if settings.by_content:
        shuffled = settings.model_copy(update={"draw": 0, "data_seed": settings.data_seed + 1})
        rows = draw_by_content(source, shuffled)[: 1 if source.val else 2]
        parts = [np.bincount(source.pool.labels[part], minlength=len(pool)) for part in rows]
        return float(max((counts / pool).max() for counts in parts))
    assert train != AUTO
    assert val != AUTO
    return (train if source.val else max(train, val)) / int(pool.min())


def _slice(
    source: Source, split: Split, data_seed: int, draw: int, sizes: dict[str, int]
) -> IntArray:
    """Rows of slice `draw` of every class, (classes, size); `sizes`: settings that add up."""
    size = sum(sizes.values())
    asked = f"{' + '.join(sizes)} = {size}"
    counts = source.class_sizes(split).tolist()
    named = dict(zip(map(one_line, source.class_names), counts, strict=True))
    small = [f"{name} ({count})" for name, count in named.items() if count < size]
    if small:
        passed_over = f" ({source.passed_over})" if source.passed_over else ""
        raise DataError(
            f"{source.name}: too few images in class {first_of(small, 5)} for {asked}"
            f"{passed_over}: ask for fewer images or add some"
        )
    smallest = min(named, key=named.__getitem__)
    held = named[smallest] // size
    if draw >= held:
        raise DataError(
            f"{source.name}: draw {draw} asked for, the pool holds {held} "
            f"draw{'s' * (held > 1)} (0 to {held - 1}) of {asked} a class (smallest class: "
            f"{smallest}, {named[smallest]} images): ask for a lower draw, fewer draws, or fewer "
            "images a class"
        )
    return np.stack(
        [
            np.random.default_rng([data_seed, label]).permutation(
                np.flatnonzero(split.labels == label)
            )[draw * size : (draw + 1) * size]
            for label in range(len(counts))
        ]
    )


def draw_in(source: Source, settings: Settings) -> Draw:
    """The draw that the settings name (see the module's header).

    Raises:
        DataError: too few images, no such draw, or images that cannot be read.
    """
    parts = draw_parts(source, settings)
    size, prepared = settings.image_size, preparation_of(settings)
    train, val = (
        read_images(*part, size, prepared, skip_unreadable=True, shelf=shelf_of(settings))
        for part in parts
    )
    dealt = Draw(
        source=source.name,
        class_names=source.class_names,
        train=train,
        val=val,
        pool=source.digest(),
        ranges=source.pool.ranges,
        dealt=without(dealt_words(source, settings, parts), train.unreadable, val.unreadable),
    )
    if not settings.skip_unreadable:
        refuse_unreadable(dealt.unreadable, sum(rows.size for _, rows in parts))
    for images, what in ((train, "train"), (val, "validate")):
        counts = np.bincount(images.labels.numpy(), minlength=len(source.class_names))
        if not counts.all():
            name = source.class_names[int(counts.argmin())]
            raise DataError(
                f"{source.name}: no image of class {one_line(name)} to {what} on can be read: "
                f"replace them ({first_of(images.unreadable, 3)})"
            )
    return dealt


def dealt_words(source: Source, settings: Settings, parts: Parts | None = None) -> str:
    """How the images of each class are dealt where they are dealt by content; else empty."""
    if not settings.by_content:
        return ""
    train, val = (
        np.bincount(split.labels[rows], minlength=len(source.class_names))
        for split, rows in parts or draw_parts(source, settings)
    )
    return parts_in_words(source, train, val)


def check_readable(source: Source, draws: Iterable[Settings]) -> None:
    """Refuse images of these draws that cannot be read, all at once; keeps none in memory.

    Raises:
        DataError: names them.
    """
    found: set[str] = set()
    count = 0
    for settings in draws:
        if settings.skip_unreadable:
            return
        for split, rows in draw_parts(source, settings):
            ordered = rows[split.stored.in_order(rows)].tolist()
            found.update(str(i) for i in split.read(ordered) if isinstance(i, Unreadable))
            count += rows.size
    refuse_unreadable(found, count)


def draw_parts(source: Source, settings: Settings) -> Parts:
    """The split and its rows to train on, then the split and its rows to validate on."""
    rows = draw_rows(source, settings)
    return list(zip((source.pool, source.val or source.pool), rows, strict=True))
