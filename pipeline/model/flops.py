"""Floating-point operations of a network and of a stage's training, counted as the layers run.

In: a backbone, and the blocks that a stage trains. Out: what one image costs in each segment, or
in the suffix, forward and backward; a multiplication and an addition are two operations. The
frozen prefix, which is computed once for all stages, does not count for a stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model.backbones import Backbone, build_backbone
from pipeline.model.freezing import set_trainable

BATCH = 2  # BatchNorm needs two


@torch.no_grad()
def segment_operations(backbone: Backbone, image_size: int) -> list[int]:
    """Operations that an image costs in each segment."""
    x = torch.zeros(1, 3, image_size, image_size)
    found = []
    for segment in backbone.segments:
        with FlopCounterMode(display=False) as counter:
            x = segment.module(x)
        found.append(int(counter.get_total_flops()))
    return found


def note_on_reruns(backbone: Backbone, trainable: Sequence[str], image_size: int) -> str:
    """Which frozen blocks a stage computes in every epoch, and why; empty: none."""
    again = backbone.computed_anew(trainable)
    if not again:
        return ""
    cost = segment_operations(backbone, image_size)[backbone.frozen_segments(trainable)]
    return (
        f"note: frozen, and yet computed in every epoch: {', '.join(again)} (part of "
        f"{cost / 1e6:,.0f} MFLOP an image): {backbone.merged[again[-1]]}"
    )


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
