"""Augmented views of images, whole batches at a time, as a pure function of (image, view number).

In: uint8 pixels, the images' 64-bit keys (from their digests) and a view number for each. Out:
normalised float32. The same image and view give the same pixels in any batch, draw, seed or
process, so that a view's activations can be cached. Random numbers are counter-based: SplitMix64
(Steele, Lea & Flood 2014, doi 10.1145/2660193.2660195) of key and counter.

    none    view 0 is the image itself
    light   flips: odd views are mirrored, so there are two views and no more
    strong  flip, crop after reflection padding of an eighth, brightness, contrast and saturation

    randaugment, trivialaugment, erasing
            torchvision's RandAugment and TrivialAugmentWide, before what stands above, and
            RandomErasing, after it, with torchvision's defaults; what is erased is mean grey

`light` has no crops: two views are all there are, so that a cache of two views is complete.
Mixup and CutMix act on batches, not on views: `pipeline/training/mixing.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.images import USUAL, Preparation
from pipeline.settings.augmentation import ERASING, POLICIES, Augment, of_images
from pipeline.system.transfers import send

JITTER = 0.3
U64Array = NDArray[np.uint64]


def distinct_views(augment: Augment) -> int | None:
    """How many different views there are; None: without limit."""
    return {"none": 1, "light": 2}.get(of_images(augment))


def is_drawn_on_host(augment: Augment) -> bool:
    """Whether images are varied one by one on a processor, wherever the network computes."""
    return bool({*POLICIES, ERASING} & set(augment.split("+")))


def hash_uniform(keys: U64Array, counter: U64Array | int) -> NDArray[np.float64]:
    """SplitMix64 of key and counter as uniform numbers in [0, 1), shape of `keys`."""
    with np.errstate(over="ignore"):
        step = np.asarray(counter, dtype=np.uint64) + np.uint64(1)
        x = keys + np.uint64(0x9E3779B97F4A7C15) * step
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    uniform: NDArray[np.float64] = (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    return uniform


def pick_views(
    keys: U64Array, *, seed: int, epoch: int, augment: Augment, stored_views: int
) -> NDArray[np.int64]:
    """The view of each image to train on in an epoch, (N,).

    `stored_views` views are cycled through the epochs from a start that depends on seed and image,
    so every view is met equally often; 0 draws a fresh view each time.
    """
    salt = np.uint64((seed << 20) + 1)
    if stored_views == 0:
        fresh = (hash_uniform(keys ^ salt, epoch + 1) * 2**31).astype(np.int64)
        return fresh % (distinct_views(augment) or 2**31)
    count = min(distinct_views(augment) or stored_views, stored_views)
    start = (hash_uniform(keys ^ salt, 0) * count).astype(np.int64)
    return (start + epoch) % count


def render_views(
    pixels: Tensor,
    keys: U64Array,
    views: NDArray[np.int64],
    augment: Augment,
    prepared: Preparation = USUAL,
) -> Tensor:
    """The given view of each image, normalised.

    Args:
        pixels: uint8, (N, 3, S, S).
        keys: (N,), `ImageSet.keys`.
        views: view numbers, (N,).
        augment: what may be done to the images.
        prepared: how the images are normalised.

    Returns:
        float32, (N, 3, S, S).
    """
    words = augment.split("+")
    counters = views.astype(np.uint64) * np.uint64(8)
    for word in set(words) & set(POLICIES):
        pixels = _one_by_one(pixels, word, keys, counters + np.uint64(5))
    images = prepared.normalise(_moved_and_coloured(pixels, keys, views, words))
    if ERASING in words:
        images = _one_by_one(images, ERASING, keys, counters + np.uint64(6))
    return images


def _moved_and_coloured(
    pixels: Tensor, keys: U64Array, views: NDArray[np.int64], words: Sequence[str]
) -> Tensor:
    """Pixels after `none`, `light` or `strong`, values from 0 to 255."""
    if not {"light", "strong"} & set(words):
        return pixels
    flip = send(torch.from_numpy(views % 2 == 1), pixels.device)
    pixels = torch.where(flip.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
    if "light" in words:
        return pixels
    counters = views.astype(np.uint64) * np.uint64(8)
    draws = np.stack([hash_uniform(keys, counters + np.uint64(i)) for i in range(5)])
    uniform, pad = torch.from_numpy(draws), pixels.shape[-1] // 8
    # numbers of the host: MPS has no float64
    moves = ((uniform[:2] * (2 * pad + 1)).floor() - pad).long()
    factors = 1 + JITTER * (2 * uniform[2:].float() - 1)
    pixels = _shift(pixels, send(moves, pixels.device))
    return _jitter(pixels, send(factors, pixels.device))


@cache
def _of_torchvision(word: str) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2  # slow to import

    make = {
        "randaugment": v2.RandAugment,
        "trivialaugment": v2.TrivialAugmentWide,
        ERASING: v2.RandomErasing,
    }
    transform: Callable[[Tensor], Tensor] = make[word]()
    return transform


def _one_by_one(images: Tensor, word: str, keys: U64Array, counters: U64Array) -> Tensor:
    """Each image varied by a transform of torchvision, seeded by its key and counter.

    The transforms draw from torch's generator on the CPU, wherever the images are. One thread
    computes, as the mean of a large image depends on how threads share the pixels.
    """
    transform = _of_torchvision(word)
    seeds = (hash_uniform(keys, counters) * 2**53).astype(np.int64)
    threads, varied = torch.get_num_threads(), []
    with torch.random.fork_rng(devices=[]):
        torch.set_num_threads(1)
        try:
            for image, seed in zip(images.cpu(), seeds.tolist(), strict=True):
                torch.default_generator.manual_seed(seed)
                varied.append(transform(image))
        finally:
            torch.set_num_threads(threads)
    return torch.stack(varied).to(images.device)


def _shift(pixels: Tensor, moves: Tensor) -> Tensor:
    """Move each image by `moves` (2, N), down and right, reflecting at the border."""
    size = pixels.shape[-1]
    index = torch.arange(size, device=pixels.device)

    def source(amount: Tensor) -> Tensor:  # (N, S): where each row or column is taken from
        moved = (index + amount.view(-1, 1)).abs()
        return torch.where(moved >= size, 2 * (size - 1) - moved, moved)

    rows = source(moves[0]).view(-1, 1, size, 1).expand(-1, 3, -1, size)
    columns = source(moves[1]).view(-1, 1, 1, size).expand(-1, 3, size, -1)
    return pixels.gather(2, rows).gather(3, columns)


def _grey(images: Tensor) -> Tensor:
    """ITU-R 601 luma, (N, 1, H, W)."""
    red, green, blue = images.split_with_sizes([1, 1, 1], dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _jitter(pixels: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation by `factors` (3, N), in that order."""
    brightness, contrast, saturation = (factor.view(-1, 1, 1, 1) for factor in factors)
    images = (pixels.float() * brightness).clamp_(0, 255)
    # summed as integers: a float mean depends on how threads share the batch
    luma = _grey(images).round().long().sum((2, 3), keepdim=True)
    level = luma.float() / (images.shape[-2] * images.shape[-1])
    images = (level + (images - level) * contrast).clamp_(0, 255)
    grey = _grey(images)
    saturated: Tensor = grey + (images - grey) * saturation
    return saturated.clamp_(0, 255)
