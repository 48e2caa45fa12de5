"""What a person should hear before training rather than after it: the test split, unequal classes.

In: a source and settings. Out: lines; a refusal where test images cannot be read, which
`evaluate` would come to after hours. Test images are decoded here, and no model sees them. A
split in which nothing unreadable was met, as far as the time reached, is remembered by its digest
in the cache and not looked at again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.data.base import Source, Unreadable, refuse_unreadable
from pipeline.data.cache import cache_folder
from pipeline.data.inspection.look import LOOK_S, look_through
from pipeline.data.open import NAMES
from pipeline.data.sampling.draws import draw_parts
from pipeline.settings.run import Settings
from pipeline.stats.metrics import DEFAULT_OBJECTIVE
from pipeline.system.disk.files import keep_in_cache
from pipeline.system.text import count_of, first_of


def tell_beforehand(source: Source, settings: Settings, say: Callable[[str], None]) -> None:
    """Everything that is known of these images and wanted before a training.

    Raises:
        DataError: test images cannot be read, and `skip_unreadable` does not say to go on.
    """
    if settings.data in NAMES:
        return
    _, (split, rows) = draw_parts(source, settings)
    sizes = np.bincount(split.labels[rows], minlength=len(source.class_names))
    if np.ptp(sizes) and settings.stages[-1].select == DEFAULT_OBJECTIVE:
        say(
            f"note: classes have {sizes.min()} to {sizes.max()} validation images: accuracy "
            "counts images, balanced accuracy counts classes alike; -P select=val_balanced_acc "
            "chooses epochs by it, and decide and compare judge by it with -P metric=balanced_acc"
        )
    if source.test is None:
        return
    missing = np.flatnonzero(source.class_sizes(source.test) == 0).tolist()
    if missing:
        names = first_of([source.class_names[label] for label in missing])
        say(f"note: no test image is of class {names}: test accuracies will not speak of it")
    _check_test_images(source, settings, say)


def _check_test_images(source: Source, settings: Settings, say: Callable[[str], None]) -> None:
    test = source.test
    assert test
    mark = cache_folder(settings) / "readable" / source.test_digest()
    if settings.cache and mark.is_file():
        return
    shown = [image for *_, image in look_through([test])]
    unreadable = sorted(str(image) for image in shown if isinstance(image, Unreadable))
    if not settings.skip_unreadable:
        refuse_unreadable(unreadable, len(shown), "test images")
    if unreadable:
        say(
            f"note: test split: {count_of(len(unreadable), 'image')} cannot be read and will be "
            f"left out ({first_of(unreadable, 3)})"
        )
        return
    if len(shown) < len(test.labels):
        say(
            f"note: {len(shown)} of {len(test.labels)} test images were looked at "
            f"({LOOK_S:.0f} s), and can be read; evaluate reads all"
        )
    if settings.cache:
        keep_in_cache(mark, f"{len(shown)}\n".encode())  # else it is looked at again
