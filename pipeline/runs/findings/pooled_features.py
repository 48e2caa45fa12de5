"""What the head is fed with for each image, averaged over positions: a few kilobytes an image.

In: a backbone, images and the prefix cache. Out: features, (N, C). Those of the test images, which
are the same for every draw, command and pair of a recipe with the same frozen blocks, are an entry
of the cache themselves: what they are averaged from is a hundred times as much to read and check.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.image_set import ImageSet
from pipeline.model.backbones import Backbone
from pipeline.settings.augmentation import Augment
from pipeline.system.disk.digests import digest_each
from pipeline.training.device import joined, with_kernels
from pipeline.training.prefix.cache import Compute, PrefixCache
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
    prefix = backbone.frozen_segments(backbone.order[-1:])
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

    if keep and prefix and cache.folder and len(images):
        method = {"pooled": augment, "views": views, "device": with_kernels(device.type)}
        key = entry_key(backbone, prefix, images, digests, {**method, "dtype": str(dtype)})
        shape = [1, len(images), backbone.segments[prefix - 1].shape[0]]
        values = cache.folder / f"{key}.bin"
        entry = Entry(prefix=prefix, values=values, shape=shape, dtype=torch.float32)
        own = _OwnEntries(cache.folder, cache.limit_bytes, cache.notes)
        kept = own.kept(entry, lambda _: _as_bytes(_pooled(features(), len(images))))
        if kept is not None:
            return kept
    return joined(_pooled(features(), len(images)), len(images))


class _OwnEntries(PrefixCache):
    """Entries that are no prefix's outputs, in the same folder and by the same rules."""

    def kept(self, entry: Entry, compute: Compute) -> Tensor | None:
        """The values of an entry, computed where they are not there intact; None without room."""
        stored = self._load_or_fill(entry, [entry], torch.device("cpu"), compute)
        return None if stored is None else stored.values[0].clone()


def _pooled(features: Features, count: int) -> Iterator[Tensor]:
    for rows in np.array_split(np.arange(count), max(1, count // TOGETHER)):
        outputs = features.batch(rows, np.zeros_like(rows)).float()
        yield outputs.flatten(2).mean(2) if outputs.ndim > 2 else outputs


def _as_bytes(parts: Iterator[Tensor]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for part in parts:
        yield 0, part.cpu().contiguous().view(-1).view(torch.uint8).numpy()
