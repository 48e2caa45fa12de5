"""Training and validation images together, for a model that nothing is selected on any more.

In: a source, and settings that name a draw. Out: a `Draw` whose `train` holds the images, and
whose `val` is empty: the fingerprint of such a draw is that of no other. The test split, also one
that was set aside by `test_per_class`, stays out.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.data.base import Source, Split, preparation_of
from pipeline.data.cache import shelf_of
from pipeline.data.image_set import ImageSet
from pipeline.data.images import IntArray
from pipeline.data.reading import read_parts
from pipeline.data.sampling.draws import Draw, draw_parts
from pipeline.settings.run import Settings

Scope = Literal["auto", "all", "draw"]
MOST_TIMES = 10
"""`auto` takes all images where they are at most this many times those of the draw."""


def takes_all(source: Source, settings: Settings, scope: Scope) -> bool:
    """Whether all images outside the test split are meant, or those of the settings' draw.

    `auto`: all of them, unless they are more than ten times as many as the draw has. What is known
    of a model that saw few images, its steps and its verdict, says little of one that sees many
    times more, and such a model would take longer than all that it rests on.
    """
    if scope != "auto":
        return scope == "all"
    dealt = sum(rows.size for _, rows in draw_parts(source, settings))
    return sum(rows.size for _, rows in _all_rows(source)) <= MOST_TIMES * dealt


def count_whole(source: Source, settings: Settings, scope: Scope) -> int:
    """How many images `whole_draw` takes."""
    whole = takes_all(source, settings, scope)
    return sum(
        rows.size for _, rows in (_all_rows(source) if whole else draw_parts(source, settings))
    )


def whole_draw(source: Source, settings: Settings, scope: Scope) -> Draw:
    """The images to train the last model on.

    Raises:
        DataError: no such draw, or images that cannot be read.
    """
    rows = (
        _all_rows(source) if takes_all(source, settings, scope) else draw_parts(source, settings)
    )
    prepared = preparation_of(settings)
    train = read_parts(
        rows,
        settings.image_size,
        prepared,
        skip_unreadable=settings.skip_unreadable,
        shelf=shelf_of(settings),
    )
    nothing = ImageSet(
        pixels=train.pixels[:0],
        labels=train.labels[:0],
        digests=train.digests[:0],
        preparation=prepared,
    )
    return Draw(
        source=source.name,
        class_names=source.class_names,
        train=train,
        val=nothing,
        pool=source.digest(),
        ranges=source.pool.ranges,
    )


def _all_rows(source: Source) -> list[tuple[Split, IntArray]]:
    splits = (source.pool, source.val)
    return [(split, np.arange(len(split.labels))) for split in splits if split]
