"""Images dealt by their content: in shares of each class, or by groups that stay together.

In: a source, and settings in which a number of images is `auto` or a group is named. Out: a test
split, taken from the pool where the data has none; the rows of each draw. Where an image goes
follows from the SHA-256 of its stored bytes (of its group's name, where groups are kept together),
not from its file's name or its place: copies of an image go together, a renamed folder of the same
images is dealt alike, and an image that is added moves others only where it fills a part.

Of each class a fifth is kept for the test and a fifth to validate on, at least one image each;
training has the rest, so that larger classes keep their surplus. A part that the data has already
is not dealt again. A number in place of `auto` holds; the other parts share what it leaves.
Groups cannot be parted, so that with groups all numbers are approximate: a group goes to a part
where that brings the part's classes nearer to their numbers. Without numbers there is one draw;
other shuffles (`data_seed`) deal the same pool anew. Where the data has a validation split of its
own, shuffles other than 0 leave out a quarter of the training images: paired runs must differ.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Literal

import numpy as np

from pipeline.data.base import Source
from pipeline.data.images import IntArray
from pipeline.data.sampling.units import TooFewUnitsError, Unit, rows_of, take, units_of
from pipeline.errors import DataError
from pipeline.settings.fields import AUTO
from pipeline.settings.run import Settings
from pipeline.system.text import count_of, first_of, one_line


def set_aside_by_content(source: Source, settings: Settings) -> Source:
    """The source with a test split taken from its pool, the same for all draws and shuffles.

    Raises:
        DataError: a class is too small, or stands in too few groups.
    """
    pool, counts = source.pool, source.class_sizes(source.pool)
    least = sum(map(_least, _sizes(source, settings)))
    _refuse_small(source, settings, counts)
    if settings.test_per_class == AUTO:
        left = counts - least
        if settings.train_per_class != AUTO and settings.val_per_class == AUTO and not source.val:
            left = (counts - settings.train_per_class) // 2
        quota = np.minimum(_fifth(counts), left)
    else:
        quota = np.full_like(counts, settings.test_per_class)
    units = units_of(pool, "test")
    try:
        taken, left_units = take(units, quota, spare=1 if source.val else 2)
    except TooFewUnitsError as err:
        raise _too_few_units(source, settings, units, err.label) from None
    test, rest = (pool.part(rows_of(part, pool)) for part in (taken, left_units))
    return replace(source, pool=rest, test=test, has_part_aside=True)


def deals(source: Source, settings: Settings) -> Iterator[tuple[IntArray, IntArray]]:
    """The rows of one draw after the other: of the pool, and of the pool or `source.val`.

    Raises:
        DataError: there is no draw at all.
    """
    units = units_of(source.pool, f"draws {settings.data_seed}")
    others = units_of(source.val, f"draws {settings.data_seed}") if source.val else []
    number = 0
    while number == 0 or settings.train_per_class != AUTO:
        try:
            dealt = _deal(source, settings, units, others)
        except TooFewUnitsError as err:
            if number:
                return
            raise _too_few_units(source, settings, units, err.label) from None
        if dealt is None:
            return
        train, val, units, others = dealt
        yield rows_of(train, source.pool), rows_of(val, source.val or source.pool)
        number += 1


def draw_by_content(source: Source, settings: Settings) -> tuple[IntArray, IntArray]:
    """The rows of the draw that the settings name.

    Raises:
        DataError: there is no such draw.
    """
    count = 0
    for rows in deals(source, settings):
        if count == settings.draw:
            return rows
        count += 1
    if count == 0:
        _refuse_small(source, settings, source.class_sizes(source.pool))
        assert source.val
        _refuse_small(source, settings, source.class_sizes(source.val), own_val=True)
    why = (
        "train_per_class=auto takes all images: ask for fewer with -P train_per_class=, or pass "
        "another shuffle with -P data_seed="
        if settings.train_per_class == AUTO
        else "ask for a lower draw, or for fewer images a class"
    )
    raise DataError(
        f"{source.name}: draw {settings.draw} asked for, the pool holds {count} "
        f"draw{'s' * (count > 1)} (0 to {count - 1}) of these sizes: {why}"
    )


def parts_in_words(source: Source, train: IntArray, val: IntArray) -> str:
    """How the images of each class are dealt; `train`, `val`: how many each class has, (C,)."""
    pool = source.class_sizes(source.pool)
    parts = [(train, "to train"), (val, "to validate")]
    apart = source.class_sizes(source.test) if source.test else np.zeros_like(pool)
    if source.has_part_aside:
        parts.append((apart, "kept for the test"))
        pool = pool + apart
    own = [
        f"the data's own {name} split has {_each(source.class_sizes(split))} a class"
        for name, split in (("validation", source.val), ("test", source.test))
        if split and not (name == "test" and source.has_part_aside)
    ]
    used = sum((counts for counts, what in parts if not (source.val and what == "to validate")), 0)
    left = pool - used
    if left.any():
        parts.append(
            (left, "left over, which other draws take" if (left >= train).all() else "left over")
        )
    if all(np.ptp(counts) == 0 for counts in (pool, *(counts for counts, _ in parts))):
        words = [f"{counts[0]} {what}" for counts, what in parts]
        return "; ".join([f"{pool[0]} a class: {', '.join(words)}", *own])
    words = [f"{counts.sum()} {what} ({_each(counts)} a class)" for counts, what in parts]
    return "; ".join([f"{pool.sum()} images, {_each(pool)} a class: {', '.join(words)}", *own])


def without(words: str, train: Collection[str], val: Collection[str]) -> str:
    """How images are dealt, and how many of them are left out as they cannot be read."""
    named = ((train, "to train"), (val, "to validate"))
    out = ", ".join(f"{len(unreadable)} {what}" for unreadable, what in named if unreadable)
    return f"{words}; left out of these, as they cannot be read: {out}" if out else words


def _each(counts: IntArray) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low} to {high}"


def _fifth(counts: IntArray) -> IntArray:
    """A fifth of each, rounded, at least 1."""
    return np.maximum(1, np.rint(counts / 5).astype(np.int64))


def _least(size: int | Literal["auto"]) -> int:
    """How few images of a class will do."""
    return 1 if size == AUTO else size


def _sizes(
    source: Source, settings: Settings
) -> tuple[int | Literal["auto"], int | Literal["auto"]]:
    """How many images of each class of the pool are to train and to validate on, or `auto`."""
    return settings.train_per_class, 0 if source.val else settings.val_per_class


def _deal(
    source: Source, settings: Settings, units: list[Unit], others: list[Unit]
) -> tuple[list[Unit], list[Unit], list[Unit], list[Unit]] | None:
    """The next draw's units to train and to validate on, and what is left; None: too few left.

    Raises:
        TooFewUnitsError: a class stands in too few units.
    """
    counts = _count(source, units)
    train, val = _sizes(source, settings)
    if (counts < _least(train) + _least(val)).any():
        return None
    if source.val is None:
        taken, units = take(units, _val_quota(source, settings, counts), spare=1)
    elif settings.val_per_class == AUTO:
        if not _count(source, others).all():
            return None
        taken = others
    else:
        quota = np.full_like(counts, settings.val_per_class)
        if (_count(source, others) < quota).any():
            return None
        taken, others = take(others, quota, spare=0)
    if train != AUTO:
        trained, units = take(units, np.full_like(counts, train), spare=0)
    elif source.val and settings.data_seed:
        _, trained = take(units, counts // 4, spare=1)
    else:
        trained = units
    return trained, taken, units, others


def _val_quota(source: Source, settings: Settings, counts: IntArray) -> IntArray:
    train, val = settings.train_per_class, settings.val_per_class
    if val != AUTO:
        return np.full_like(counts, val)
    if train != AUTO:  # classes are trained on alike, and validated on alike
        return np.full_like(counts, max(1, min(round(train / 3), int((counts - train).min()))))
    apart = source.class_sizes(source.test) if source.test and source.has_part_aside else 0
    return np.minimum(_fifth(counts + apart), counts - 1)


def _count(source: Source, units: list[Unit]) -> IntArray:
    """How many images of each class units hold, (classes,)."""
    counts = np.zeros(len(source.class_names), dtype=np.int64)
    for unit in units:
        for label, count in unit.classes.items():
            counts[label] += count
    return counts


def _refuse_small(
    source: Source, settings: Settings, counts: IntArray, *, own_val: bool = False
) -> None:
    """Refuse classes with fewer images than the parts need, at least one each.

    Raises:
        DataError: names them, and says what is needed.
    """
    test = 0 if source.test is not None else settings.test_per_class
    train, val = _sizes(source, settings)
    sizes = {"train_per_class": train, "val_per_class": val, "test_per_class": test}
    if own_val:
        sizes = {"val_per_class": settings.val_per_class}
    wanted = {key: size for key, size in sizes.items() if size != 0}
    least = sum(map(_least, wanted.values()))
    named = zip(map(one_line, source.class_names), counts.tolist(), strict=True)
    small = [f"{name} ({count})" for name, count in named if count < least]
    if not small:
        return
    if own_val:
        raise DataError(
            f"{source.name}: the validation split of the data holds too few images of class "
            f"{first_of(small, 5)}: {least} {'is' if least == 1 else 'are'} needed: add some, or "
            "move all validation images to those to train on"
        )
    passed_over = f" ({source.passed_over})" if source.passed_over else ""
    given = [f"{key}={size}" for key, size in wanted.items() if size != AUTO]
    uses = {"train_per_class": "train", "val_per_class": "validate", "test_per_class": "test"}
    parts = [uses[key] for key in wanted]
    what = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    mend = "ask for fewer images, or add some" if given else "add images, or remove the class"
    raise DataError(
        f"{source.name}: too few images in class {first_of(small, 5)}{passed_over}: {least} are "
        f"needed to {what} on{f' with {chr(32).join(given)}' if given else ''}: {mend}"
    )


def _too_few_units(source: Source, settings: Settings, units: list[Unit], label: int) -> DataError:
    name, count = one_line(source.class_names[label]), sum(label in u.classes for u in units)
    files = int((source.pool.labels == label).sum())
    if not settings.group:
        return DataError(
            f"{source.name}: class {name} holds {count_of(files, 'file')}, copies of "
            f"{count_of(count, 'image')}: too few for training, validation and test: add images, "
            "or remove the class"
            if files > count
            else f"{source.name}: class {name} holds {count_of(count, 'image')}, too few for "
            "training, validation and test: add images, or remove the class"
        )
    return DataError(
        f"{source.name}: class {name} stands in {count} group{'s' * (count != 1)} of "
        f"group={settings.group}, too few to keep groups in one part each of training, validation "
        "and test: add images of other groups, or group by something finer"
    )
