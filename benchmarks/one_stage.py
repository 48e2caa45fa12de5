"""Stage 2 of a chain in this process, and what CUDA and PyTorch say of its epochs."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import torch

from pipeline.data.image_set import ImageSet
from pipeline.data.open import open_source
from pipeline.data.sampling.draws import draw_in
from pipeline.model.backbones import build_backbone
from pipeline.settings.request import Request
from pipeline.settings.run import Settings
from pipeline.training.device import pick_device, pick_precision
from pipeline.training.prefix.cache import PrefixCache
from pipeline.training.trainer import Trainer
from pipeline.weights.pretrained import read_weights


def _trainer(options: dict[str, str], folder: Path) -> tuple[Trainer, ImageSet, PrefixCache]:
    """Stage 2 of the chain in this process, from pretrained weights."""
    settings: Settings = Request.read({**options, "config": "none"}).settings()
    draw = draw_in(open_source(settings.data, folder), settings)
    count, size = len(draw.class_names), settings.image_size
    device = pick_device(settings.device)
    backbone = build_backbone(settings.backbone, count, size, settings.seed)
    backbone.put(read_weights(settings.weights, backbone.name, size).fitted(backbone).tensors)
    trainer = Trainer(
        backbone=backbone,
        stage=settings.stage(2),
        settings=settings.training(2),
        seed=0,
        views=settings.views,
        device=device,
        dtype=pick_precision("auto", device),
    )
    return trainer, draw.train, PrefixCache(folder, 20 * 10**9)


def watched_epochs(
    options: dict[str, str], folder: Path, *, counts_waits: bool = False
) -> tuple[Trainer, Counter[str]]:
    """Train stage 2 of one draw; what CUDA and PyTorch warn of, and how often."""
    trainer, images, cache = _trainer(options, folder)
    prefix = trainer.backbone.frozen_segments(trainer.stage.trainable)
    features = cache.features(
        trainer.backbone,
        prefix,
        images,
        augment=trainer.settings.augment,
        views=trainer.views,
        dtype=trainer.dtype,
        device=trainer.device,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_watched = counts_waits and trainer.device.type == "cuda"
        try:
            for _ in trainer.without_validation(images, features, 10):
                if is_watched:  # from the second epoch on: the first moves what stays there
                    torch.cuda.set_sync_debug_mode("warn")
        finally:
            if is_watched:
                torch.cuda.set_sync_debug_mode("default")
    return trainer, Counter(f"{Path(w.filename).name}:{w.lineno}: {w.message}" for w in caught)
