"""One entry of the prefix cache: what its values depend on, how large they are.

In: a backbone, images and how they are varied. Out: the key under which the outputs of a prefix
are kept, and their shape and size; what all stages of a chain would keep together.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.data.augment import distinct_views
from pipeline.data.image_set import ImageSet
from pipeline.data.images import unusual
from pipeline.data.sampling.draws import Draw
from pipeline.model.backbones import Backbone
from pipeline.model.networks import distributions_of
from pipeline.settings.augmentation import of_images
from pipeline.settings.run import Settings
from pipeline.system.disk.digests import digest_values
from pipeline.system.provenance import libraries

FORMAT = 6


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A prefix's outputs for every view of every image, (views, N, ...), channels last.

    Attributes:
        prefix: how many segments it has.
    """

    prefix: int
    values: Path
    shape: list[int]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def about(self, sha256: str) -> dict[str, object]:
        """The content of the entry's description."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"shape": self.shape, "dtype": dtype, "sha256": sha256}


def entry_key(
    backbone: Backbone,
    prefix: int,
    images: ImageSet,
    digests: Mapping[str, str],
    method: Mapping[str, object],
) -> str:
    """The digest of all that an entry's outputs depend on."""
    return digest_values(
        {
            "format": FORMAT,
            "libraries": libraries(*distributions_of(backbone.name)),
            **backbone.named,
            "images": hashlib.sha256(images.digests.tobytes()).hexdigest(),
            "pixels": list(images.pixels.shape),
            "weights": [(name, digests[name]) for name in backbone.segment_tensors(prefix)],
            **method,
            **unusual(images.preparation),
        }
    )


def bytes_of_chain(backbone: Backbone, settings: Settings, draw: Draw, dtype: torch.dtype) -> int:
    """What the inputs of all stages take, for the images of a draw."""
    kept: set[tuple[int, str, int]] = set()
    for stage in settings.chain.stages:
        prefix = backbone.frozen_segments(stage.trainable)
        augment = of_images(settings.training(stage.number).augment)
        views = min(settings.views, distinct_views(augment) or settings.views)
        if prefix:
            kept |= {(prefix, augment, views * len(draw.train)), (prefix, "val", len(draw.val))}
    return sum(
        count * math.prod(backbone.segments[prefix - 1].shape) * dtype.itemsize
        for prefix, _, count in kept
    )


def channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(C, H, W) as (H, W, C); tokens (L, C) and vectors (C,) as they are."""
    return (*shape[1:], shape[0]) if len(shape) == 3 else shape
