"""What the head is fed with for each image, averaged over positions: a few kilobytes an image.

In: a backbone, images and the prefix cache. Out: features, (N, C). Those of the test images, which
are the same for every draw, command and pair of a recipe with the same frozen blocks, are an entry
of the cache themselves: what they are averaged from is a hundred times as much to read and check.
Where other blocks share the head's segment, as in a network that cannot be traced, these blocks
are computed each time, and nothing is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.image_set import ImageSet
from pipeline.model.backbones import Backbone
from pipeline.model.grouping import HEAD
from pipeline.model.segments import Segment
from pipeline.settings.augmentation import Augment
from pipeline.system.disk.digests import digest_each
from pipeline.training.device import compute_copy, entering_head, joined, with_kernels
from pipeline.training.prefix.cache import PIXELS_PER_BATCH, PrefixCache
from pipeline.training.prefix.entry import Entry, entry_key
from pipeline.training.prefix.features import Features

TOGETHER = 32
"""Images whose features are read, or computed, at a time."""


@torch.no_grad()
def pooled_features(
    cache: PrefixCache,
    backbone: Backbone,
    images: ImageSet,
    dtype: torch.dtype,
    device: torch.device,
    *,
    augment: Augment = "none",
    views: int = 1,
    keep: bool = False,
) -> Tensor:
    """The features of the first view of each image.

    `augment` and `views`: those of the entry that they are averaged from. `keep`: have an entry of
    their own.
    """
    prefix = backbone.frozen_segments((HEAD,))
    digests = digest_each(backbone.model.state_dict(), backbone.segment_tensors(prefix))

    def features() -> Features:
        return cache.features(
            backbone,
            prefix,
            images,
            augment=augment,
            views=views,
            dtype=dtype,
            device=device,
            digests=digests,
        )

    beyond = backbone.segments[prefix:]
    if beyond[0].blocks != (HEAD,):
        return _computed_on(beyond, features(), images, dtype, device)
    if keep and cache.folder and len(images):
        method = {"pooled": augment, "views": views, "device": with_kernels(device.type)}
        entering = backbone.segments[prefix - 1].shape
        if place := _place_of_channels(entering):
            method["channels"] = place
        key = entry_key(backbone, prefix, images, digests, {**method, "dtype": str(dtype)})
        shape = [1, len(images), entering[place]]
        values = cache.folder / f"{key}.bin"
        entry = Entry(prefix=prefix, values=values, shape=shape, dtype=torch.float32)
        kept = cache.kept(entry, lambda _: _as_bytes(_pooled(features(), len(images))))
        if kept is not None:
            return kept
    return joined(_pooled(features(), len(images)), len(images))


def _computed_on(
    segments: Sequence[Segment],
    features: Features,
    images: ImageSet,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """What enters the head, by way of the blocks that share its segment."""
    running = compute_copy(segments, dtype, device, frozen=True)
    count, size = len(images), max(1, PIXELS_PER_BATCH // images.pixels.shape[-1] ** 2)
    batches = np.array_split(np.arange(count), max(1, math.ceil(count / size)))
    inputs = (features.batch(rows, np.zeros_like(rows)) for rows in batches)
    parts = (over_positions(entering_head(running, each, dtype).float()) for each in inputs)
    return joined(parts, count)


def _pooled(features: Features, count: int) -> Iterator[Tensor]:
    for rows in np.array_split(np.arange(count), max(1, count // TOGETHER)):
        yield over_positions(features.batch(rows, np.zeros_like(rows)).float())


def over_positions(outputs: Tensor) -> Tensor:
    """The mean over positions, (N, C), of maps or tokens; vectors as they are."""
    if outputs.ndim < 3:
        return outputs
    if _place_of_channels(outputs.shape[1:]) == 0:
        return outputs.flatten(2).mean(2)
    return outputs.flatten(1, -2).mean(1)


def _place_of_channels(shape: Sequence[int]) -> int:
    """Where the channels stand in the shape of what one image gives: first or last.

    Tokens, (L, C), have their channels last. Maps of square images are square: (H, W, C) where the
    first two sizes are equal and the last is another.
    """
    is_tokens = len(shape) == 2
    is_last = len(shape) == 3 and shape[0] == shape[1] != shape[2]
    return len(shape) - 1 if is_tokens or is_last else 0


def _as_bytes(parts: Iterator[Tensor]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for part in parts:
        yield 0, part.cpu().contiguous().view(-1).view(torch.uint8).numpy()
