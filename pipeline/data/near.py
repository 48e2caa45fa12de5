"""Images of different parts that are the same or nearly so, by the cosine of their features.

In: features and digests of each part's images. Out: pairs of images above a threshold, the nearest
first. Features are whitened: what all images of a data set have in common says nothing, and what
many have in common (the class, the background) says little. Directions that vary less than the
average are hardly stretched, so that few images will do. Hit rates and false alarms were measured:
docs/experiments/2026-11-29-near-duplicates.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.images import ImageSet
from pipeline.system.interrupts import check

BLOCK = 2048
"""Images of which cosines are in memory at a time, on either side."""
MOST = 10_000
"""Pairs that are kept."""


@dataclass(frozen=True, kw_only=True)
class NearPair:
    """Two images of different parts, each by its part and its place in it."""

    first: tuple[str, int]
    second: tuple[str, int]
    cosine: float
    same_pixels: bool


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """What was found among so many images of each part.

    Attributes:
        counts: images of a later part that are near an image of an earlier one, by their part.
        copies: those of them that have the very pixels of such an image.
        looked_at: images of each part that were compared.
    """

    pairs: Sequence[NearPair]
    counts: Mapping[str, int]
    copies: int
    looked_at: Mapping[str, int]


def near_duplicates(
    features: Mapping[str, Tensor], images: Mapping[str, ImageSet], threshold: float
) -> NearDuplicates:
    """Pairs of images of two parts whose cosine is above the threshold, or whose pixels agree.

    `features`: (N, C) of each part, in the order of train, val, test; two images at least.
    """
    units = _whitened(features)
    digests = {name: [row.tobytes() for row in part.digests] for name, part in images.items()}
    found: list[NearPair] = []
    for one, other in combinations(units, 2):
        for row, column, cosine in _above(units[one], units[other], threshold):
            same = digests[one][row] == digests[other][column]
            found.append(
                NearPair(first=(one, row), second=(other, column), cosine=cosine, same_pixels=same)
            )
    found.sort(key=lambda pair: (not pair.same_pixels, -pair.cosine))
    counts = {
        name: len({pair.second for pair in found if pair.second[0] == name})
        for name in list(units)[1:]
    }
    return NearDuplicates(
        pairs=found,
        counts=counts,
        copies=len({pair.second for pair in found if pair.same_pixels}),
        looked_at={name: len(part) for name, part in features.items()},
    )


def _whitened(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The features of each part as unit vectors, whitened by the covariance of all images."""
    everything = torch.cat([part.double() for part in features.values()])
    centre = everything.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((everything - centre).T))
    turn = vectors / (values.clamp(min=0) + values.mean().clamp(min=1e-12)).sqrt()
    return {
        name: F.normalize((part.double() - centre) @ turn, dim=1).float()
        for name, part in features.items()
    }


def _above(left: Tensor, right: Tensor, threshold: float) -> list[tuple[int, int, float]]:
    """The pairs of rows above the threshold, block by block, the nearest `MOST` of them."""
    found: list[tuple[int, int, float]] = []
    least = min(threshold, 1 - 1e-4)  # rounding: equal images are at least so near
    for row in range(0, len(left), BLOCK):
        for column in range(0, len(right), BLOCK):
            check()
            cosines = left[row : row + BLOCK] @ right[column : column + BLOCK].T
            places = torch.nonzero(cosines > least)
            values = cosines[places[:, 0], places[:, 1]].tolist()
            found += [
                (row + i, column + j, value)
                for (i, j), value in zip(places.tolist(), values, strict=True)
            ]
        found = sorted(found, key=lambda pair: -pair[2])[:MOST]
    return found
