"""How many operations a stage's training takes, counted on its own layers.

In: a backbone's name and a stage. Out: floating-point operations (a multiplication and an addition
are two) of an image's way through the suffix and back. Counted by PyTorch as the layers run; what
is computed once for all stages, the frozen prefix, is left out.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model.backbones import build_backbone
from pipeline.model.freezing import set_trainable
from pipeline.settings.schedules import Stage

BATCH = 2  # BatchNorm needs two


def training_operations(backbone: str, classes: int, image_size: int, stage: Stage) -> float:
    """Operations of one training step, for each image of its batch."""
    model = build_backbone(backbone, classes, seed=0)
    with torch.no_grad():
        x = model.run(torch.zeros(BATCH, 3, image_size, image_size), stage.prefix)
    suffix = {block: model.blocks[block] for block in stage.suffix}
    set_trainable(suffix, stage.trainable, "adapt")
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(model.run(x, stage.suffix).sum())
    return float(counter.get_total_flops()) / BATCH
