"""What settings name, before an image is read: images and weights."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from pipeline.data.base import Source
from pipeline.data.cache import cache_folder, check_cache_folder
from pipeline.data.open import open_source
from pipeline.data.sampling.draws import draw_rows, with_test_split
from pipeline.errors import DataError
from pipeline.settings.fields import AUTO
from pipeline.settings.run import Settings
from pipeline.system.progress import doing
from pipeline.weights.pretrained import Weights, is_here, read_weights

TEST_IMAGES = 20
"""Of each class, the most that is proposed to be set aside where the data has no test split."""


def source_of(settings: Settings) -> Source:
    """The images that the settings name, their test split set aside where that is asked for."""
    with doing("looking through the data"):
        source = _opened(settings)
        return with_test_split(source, settings)


def _opened(settings: Settings) -> Source:
    return open_source(
        settings.data,
        cache_folder(settings),
        label_column=settings.label_column,
        image_column=settings.image_column,
        labels=settings.labels,
        group=settings.group,
    )


def source_and_weights(settings: Settings) -> tuple[Source, Weights]:
    """The source and the weights that the settings name, before any image is read.

    Weights that are on this machine are read first: their faults come before a download.
    """
    check_cache_folder(settings)
    read = partial(
        read_weights, settings.weights, settings.backbone, settings.image_size, settings.blocks
    )
    weights = read() if is_here(settings.weights, settings.backbone) else None
    source = source_of(settings)
    return source, weights or read()


def check_draws(source: Source, settings: Settings, draws: Iterable[int]) -> None:
    """Refuse draws that the images cannot give, before any image is read.

    Raises:
        DataError: a class is too small, or the pool holds fewer draws.
    """
    for draw in draws:
        draw_rows(source, settings.model_copy(update={"draw": draw}))


def options_for_a_test(source: Source, settings: Settings) -> dict[str, object]:
    """What a proposed decision or comparison, which begins with draw 0, needs to have test images.

    Empty where there is a test split; where the numbers of images leave none for one, images are
    dealt without numbers.
    """
    if source.test is not None:
        return {}
    first = settings.model_copy(update={"draw": 0})
    if count := images_to_set_aside(source, first):
        return {"test_per_class": count}
    return dict.fromkeys(("train_per_class", "val_per_class", "test_per_class"), AUTO)


def images_to_set_aside(source: Source, settings: Settings) -> int:
    """Test images of each class to propose, where the data has no test split; 0: none is left."""
    if source.test is not None:
        return 0
    for count in range(TEST_IMAGES, 0, -1):
        try:
            apart = settings.model_copy(update={"test_per_class": count})
            check_draws(with_test_split(source, apart), apart, [settings.draw])
        except DataError:
            continue
        return count
    return 0
