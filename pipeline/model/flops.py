"""How many operations a stage's training takes, counted on its own layers.

In: a backbone and the blocks that a stage trains. Out: floating-point operations (a multiplication
and an addition are two) of an image's way through the suffix and back. Counted by PyTorch as the
layers run; what is computed once for all stages, the frozen prefix, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model.backbones import build_backbone
from pipeline.model.freezing import set_trainable

BATCH = 2  # BatchNorm needs two


def training_operations(
    name: str, classes: int, image_size: int, trainable: Sequence[str], blocks: str = "auto"
) -> float:
    """Operations of one training step, for each image of its batch."""
    backbone = build_backbone(name, classes, image_size, seed=0, blocks=blocks)
    frozen = backbone.frozen_segments(trainable)
    with torch.no_grad():
        x = backbone.run(torch.zeros(BATCH, 3, image_size, image_size), end=frozen)
    set_trainable(backbone.segments[frozen:], trainable, "adapt")
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(backbone.run(x, start=frozen).sum())
    return float(counter.get_total_flops()) / BATCH
