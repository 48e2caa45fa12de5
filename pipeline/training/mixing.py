"""Batches mixed with themselves: mixup and CutMix of the suffix's inputs, with soft labels.

In: what the frozen prefix makes of a batch, stored or not, and the labels. Out: each input mixed
with its neighbour in the batch, and the share of each class. torchvision's transforms do the
mixing, with weights from Beta(1, 1). Mixing comes after the frozen blocks: mixup of their outputs
is manifold mixup (Verma et al. 2019, arXiv 1806.05236) at that one place; where nothing is frozen,
images are mixed (Zhang et al. 2018, arXiv 1710.09412). CutMix (Yun et al. 2019, arXiv 1905.04899)
cuts regions out of maps, so tokens and vectors are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import SettingsError
from pipeline.model.backbones import Backbone
from pipeline.settings.augmentation import mixing_of, of_images
from pipeline.settings.run import Settings

SMALLEST_MAP = 3
"""CutMix's regions on maps of fewer positions a side have no area."""


def mix(
    inputs: Tensor, labels: Tensor, how: str, classes: int, seed: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """A batch mixed with itself, a pure function of its arguments.

    Args:
        inputs: (N, ...).
        labels: (N,).
        how: `mixup` or `cutmix`.
        classes: number of classes.
        seed: of the weights and regions.

    Returns:
        The mixed inputs, and the share of each class, (N, classes).
    """
    from torchvision.transforms import v2  # slow to import

    transform = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[how](num_classes=classes)
    maps = inputs if inputs.ndim == 4 else inputs.reshape(len(inputs), -1, 1, 1)
    with torch.random.fork_rng(devices=[]):  # dropout's numbers stay what they are
        torch.default_generator.manual_seed(
            int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        )
        mixed, shares = transform(maps, labels)
    return mixed.reshape(inputs.shape), shares


def mixing_line(backbone: Backbone, settings: Settings, number: int) -> str:
    """What a stage's mixing acts on, in a sentence; empty where the stage mixes nothing.

    Raises:
        SettingsError: `cutmix`, where the suffix is not fed with maps.
    """
    augment = settings.training(number).augment
    how = mixing_of(augment)
    if how is None:
        return ""
    prefix = backbone.frozen_segments(settings.stage(number).trainable)
    if not prefix:
        return f"{how} acts on the images of each batch, as nothing is frozen"
    shape, first = backbone.segments[prefix - 1].shape, backbone.segments[prefix].name
    is_map = len(shape) == 3 and SMALLEST_MAP <= shape[1] == shape[2]
    if how == "cutmix" and not is_map:
        instead = f"stage{number}.augment={of_images(augment)}"
        raise SettingsError(
            f"stage{number}.augment={augment}: cutmix cuts regions out of maps (C, H, W) of at "
            f"least {SMALLEST_MAP} x {SMALLEST_MAP}, and {first} of {backbone.name} is fed with "
            f"{shape}: pass -P {instead}, or {instead}+mixup"
        )
    kind = "manifold mixup" if how == "mixup" else "on maps"
    return (
        f"{how} acts on what {first} is fed with, after the frozen blocks ({kind}); training "
        "accuracy is that of the class with the larger share"
    )
