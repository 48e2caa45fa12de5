"""Which block wants to move: relative gradient norms of every block, on one checkpoint.

In: a model and labelled images. Out: blocks in the order of ||g|| / ||w||. The gradient is that of
the mean cross-entropy over all images, unaugmented, in float32, with every BatchNorm's statistics
as they came. Source: Auto-RGN of Lee et al. 2022 (arXiv 2210.11466), by block instead of by layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy import stats

from pipeline.data.augment import normalise
from pipeline.data.images import ImageSet
from pipeline.model.backbones import FORWARD_ORDER, Backbone
from pipeline.settings.schedules import BLOCKS
from pipeline.training.diagnostics import norm_of

BATCH = 100


@dataclass(frozen=True)
class BlockRank:
    """A block's gradient norm and weight norm, both Euclidean over all its parameters."""

    block: str
    gradient: float
    size: float

    @property
    def relative(self) -> float:
        """||g|| / ||w||; infinite where all weights are 0."""
        return self.gradient / self.size if self.size else float("inf")


def rank_blocks(backbone: Backbone, images: ImageSet, device: torch.device) -> list[BlockRank]:
    """Every block, the largest relative gradient first; ties in the order head to stem."""
    model = backbone.model.to(device).eval().requires_grad_(True)
    model.zero_grad(set_to_none=True)
    try:
        for start in range(0, len(images), BATCH):
            pixels = normalise(images.pixels[start : start + BATCH].to(device))
            labels = images.labels[start : start + BATCH].to(device)
            logits = backbone.run(pixels, FORWARD_ORDER)
            loss = F.cross_entropy(logits, labels, reduction="sum") / len(images)
            torch.autograd.backward(loss)
        ranks = [_rank(backbone, block) for block in BLOCKS]
    finally:
        model.zero_grad(set_to_none=True)
        model.requires_grad_(False).to("cpu")
    return sorted(ranks, key=lambda rank: -rank.relative)


def _rank(backbone: Backbone, block: str) -> BlockRank:
    weights = list(backbone.blocks[block].parameters())
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return BlockRank(block, norm_of(gradients), norm_of([w.detach() for w in weights]))


def mean_relative(ranks: Sequence[Sequence[BlockRank]]) -> dict[str, float]:
    """Relative gradient norms by block, means over several checkpoints."""
    sums = dict.fromkeys(BLOCKS, 0.0)
    for one in ranks:
        for rank in one:
            sums[rank.block] += rank.relative / len(ranks)
    return sums


def agreement(relative: Mapping[str, float], gains_pp: Mapping[str, float]) -> float:
    """Kendall's tau-b between relative gradient norms and gains, over the blocks with a gain."""
    blocks = list(gains_pp)
    found = stats.kendalltau([relative[b] for b in blocks], [gains_pp[b] for b in blocks])
    return float(found.statistic)
