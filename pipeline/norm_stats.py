"""Re-estimate BatchNorm statistics on the new images, once, before anything is frozen.

Adaptive batch normalisation (Li et al. 2016, arXiv 1603.04779): means and variances that were
estimated on the pretraining images are replaced by those of the draw's training images; no label
is used and no weight changes. Afterwards frozen means frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from pipeline.backbones import FORWARD_ORDER, Backbone
from pipeline.data.augment import normalise
from pipeline.data.images import ImageSet

PIXELS_PER_BATCH = 256 * 64 * 64  # 256 images at 64 px: about 0.5 GB of ResNet-18 activations


@contextmanager
def _cumulative_mode(backbone: Backbone) -> Iterator[None]:
    """Let BatchNorm average the statistics of all batches; all else is in eval mode."""
    norms = list(backbone.batch_norms(FORWARD_ORDER))
    momenta = [norm.momentum for norm in norms]
    backbone.model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # None: a plain average over the batches seen
    try:
        yield
    finally:
        backbone.model.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def calibrate_norm_stats(backbone: Backbone, images: ImageSet) -> None:
    """Replace every BatchNorm's mean and variance by those of `images`, unaugmented, in float32.

    Batches are as equal in size as can be, so that the average over batches weighs images equally.
    """
    size = max(2, PIXELS_PER_BATCH // images.pixels.shape[-1] ** 2)
    order = np.argsort(images.keys, kind="stable")  # mixes classes, whatever order they came in
    count = max(1, min(-(-len(images) // size), len(images) // 2))  # no batch of one image
    batches = np.array_split(order, count)
    with _cumulative_mode(backbone):
        for rows in batches:
            inputs = normalise(images.pixels[torch.from_numpy(rows)])
            backbone.run(inputs, FORWARD_ORDER[:-1])  # the head has no BatchNorm
