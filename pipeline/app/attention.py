"""Where a network looks: a map over the picture, 1 where it matters most for a class, 0 elsewhere.

In: a network as blocks, one picture as the network sees it, a class. Out: a map (S, S). After a
block that makes maps of features the method is HiResCAM (Draelos & Carin 2020, arXiv 2011.08891):
feature times gradient, summed over channels, its positive part; unlike Grad-CAM (Selvaraju et al.
2017, arXiv 1610.02391) that is faithful at a block in the middle. Networks whose blocks make
tokens are asked by occlusion (Zeiler & Fergus 2014, arXiv 1311.2901), which tells of the whole
network.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from pipeline.model.backbones import Backbone

SHOWN_PX = 256
STEPS = 8
"""Occlusion moves by an eighth of the picture's side; its square has a quarter of the side."""


def third_block(backbone: Backbone) -> str:
    """The block that stage 3 of `three_stage` adds: the second before the head."""
    return backbone.order[-3] if len(backbone.order) > 2 else backbone.order[0]


def places_a_side(backbone: Backbone, block: str) -> int | None:
    """How many places a side the map after a block has; None where `block_map` makes none."""
    end = next(n for n, s in enumerate(backbone.segments, start=1) if block in s.blocks)
    shape = backbone.segments[end - 1].shape
    if backbone.segments[end - 1].blocks[-1] != block or len(shape) != 3:
        return None
    side = min(sorted(shape)[:2]) if shape[1] != shape[2] else shape[1]
    return side if side > 1 else None


def block_map(backbone: Backbone, images: Tensor, label: int, block: str) -> Tensor | None:
    """Where what a block makes of a picture speaks for a class, (S, S).

    `images`: one, normalised, (1, 3, S, S).

    Returns:
        None where the block's output is no map of more than one place, or ends within a segment.
    """
    end = next(n for n, s in enumerate(backbone.segments, start=1) if block in s.blocks)
    if backbone.segments[end - 1].blocks[-1] != block:
        return None
    with torch.no_grad():
        made = backbone.run(images, end=end)
    if made.ndim != 4 or made[0].numel() == max(made.shape[1:]):
        return None
    with torch.enable_grad():
        features = made.detach().requires_grad_()
        logits = backbone.run(features.clone(), start=end)  # blocks may change their input
        (gradient,) = torch.autograd.grad(logits[0, label], features)
    channels = 1 if made.shape[2] == made.shape[3] else 3  # Swin's maps are (N, H, W, C)
    found = (gradient * made).sum(channels, keepdim=True).movedim(channels, 1).relu()
    return _scaled(F.interpolate(found, images.shape[-2:], mode="bilinear")[0, 0])


@torch.no_grad()
def occlusion_map(probabilities: Callable[[Tensor], Tensor], pixels: Tensor, label: int) -> Tensor:
    """By how much a class becomes less probable where a grey square covers the picture, (S, S).

    `probabilities`: of pixels, as `Classifier.probabilities`. `pixels`: uint8, (3, S, S).
    """
    size = pixels.shape[-1]
    side, step = max(1, size // 4), max(1, size // STEPS)
    starts = range(0, size - side + 1, step)
    covered = pixels.repeat(len(starts) ** 2, 1, 1, 1)
    squares = [(slice(r, r + side), slice(c, c + side)) for r in starts for c in starts]
    grey = pixels.float().mean((1, 2)).round().to(torch.uint8).view(3, 1, 1)
    for image, (rows, columns) in zip(covered, squares, strict=True):
        image[:, rows, columns] = grey
    before = probabilities(pixels[None])[0, label]
    drops = (
        before - torch.cat([probabilities(part) for part in torch.split(covered, 16)])[:, label]
    )
    total, times = torch.zeros(size, size), torch.zeros(size, size)
    for drop, (rows, columns) in zip(drops, squares, strict=True):
        total[rows, columns] += drop
        times[rows, columns] += 1
    return _scaled((total / times.clamp(min=1)).relu())


def _scaled(found: Tensor) -> Tensor:
    top = found.max()
    return found / top if top > 0 else found


def overlay(pixels: Tensor, found: Tensor) -> Image.Image:
    """A map over the picture as the network sees it; `pixels`: uint8, (3, S, S)."""
    seen = pixels.permute(1, 2, 0).numpy().astype(np.float32)
    heat = colormaps["inferno"](found.numpy())[..., :3].astype(np.float32) * 255
    share = 0.25 + 0.45 * found.numpy()[..., None]  # what does not matter stays visible
    mixed = Image.fromarray((seen * (1 - share) + heat * share).astype(np.uint8))
    return mixed.resize((SHOWN_PX, SHOWN_PX), Image.Resampling.BILINEAR)
