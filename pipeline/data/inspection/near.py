"""Images of different parts that are the same or nearly so, by the cosine of their features.

In: features and digests of each part's images. Out: pairs of images that are nearer to each other
than is usual, the nearest first. Features are centred: what all images of a data set have in
common says nothing. What is usual differs between networks and data sets, so that no cosine suits
all: distance is 1 - cosine, and usual is the median distance of an image to its third nearest, as
a copy or two of each image must not set the scale. Hit rates and false alarms were measured:
docs/experiments/2026-11-29-near-duplicates.md. Of three images a class the third nearest is of
another class, beside which all images of one class are alike: copies alone are found then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from pipeline.data.image_set import ImageSet
from pipeline.system.interrupts import check

BLOCK = 2048
"""Images of which cosines are in memory at a time, on either side."""
MOST = 10_000
"""Pairs that are kept."""
NEIGHBOUR = 3
LEAST_COSINE = 0.6
"""Below, images are never called alike."""


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
        cosine: above which images are called alike.
    """

    pairs: Sequence[NearPair]
    counts: Mapping[str, int]
    copies: int
    cosine: float


def near_duplicates(
    features: Mapping[str, Tensor], images: Mapping[str, ImageSet], share: float
) -> NearDuplicates:
    """Pairs of images of two parts that are nearer than this share of the usual distance.

    `features`: (N, C) of each part, in the order of train, val, test; two images at least. Where
    classes are too small for a usual distance: pairs with the same pixels alone.
    """
    units_of_all = torch.cat([part.float() for part in features.values()])
    units_of_all -= units_of_all.mean(0)
    units_of_all /= units_of_all.norm(dim=1, keepdim=True).clamp_min(1e-12)
    copies_alone = not _has_neighbours(torch.cat([part.labels for part in images.values()]))
    usual = 0.0 if copies_alone else _usual_distance(units_of_all)
    threshold = max(LEAST_COSINE, 1 - share * usual)
    ends = torch.tensor([len(part) for part in features.values()]).cumsum(0)[:-1].tolist()
    units = dict(zip(features, torch.tensor_split(units_of_all, ends), strict=True))
    digests = {name: [row.tobytes() for row in part.digests] for name, part in images.items()}
    found: list[NearPair] = []
    for one, other in combinations(units, 2):
        for row, column, cosine in _above(units[one], units[other], threshold):
            same = digests[one][row] == digests[other][column]
            pair = NearPair(
                first=(one, row), second=(other, column), cosine=cosine, same_pixels=same
            )
            if same or not copies_alone:
                found.append(pair)
    found.sort(key=lambda pair: (not pair.same_pixels, -pair.cosine))
    counts = {
        name: len({pair.second for pair in found if pair.second[0] == name})
        for name in list(units)[1:]
    }
    return NearDuplicates(
        pairs=found,
        counts=counts,
        copies=len({pair.second for pair in found if pair.same_pixels}),
        cosine=threshold,
    )


def _has_neighbours(labels: Tensor) -> bool:
    """Whether most images have as many others of their class as are counted to the third."""
    return float(torch.bincount(labels)[labels].float().median()) > NEIGHBOUR


def _usual_distance(units: Tensor) -> float:
    """The median distance of at most `BLOCK` images to the third nearest of all."""
    some = torch.linspace(0, len(units) - 1, min(BLOCK, len(units))).long()
    nearest = min(NEIGHBOUR + 1, len(units))  # itself is first
    thirds = [
        (units[rows] @ units.T).topk(nearest, dim=1).values[:, -1]
        for rows in some.chunk(-(-len(some) // 256))
    ]
    return 1 - float(torch.cat(thirds).median())


def _above(left: Tensor, right: Tensor, threshold: float) -> list[tuple[int, int, float]]:
    """The pairs of rows above the threshold, block by block, the nearest `MOST` of them."""
    found: list[tuple[int, int, float]] = []
    least = min(threshold, 1 - 1e-4)  # rounding: equal images are at least so near
    for row in range(0, len(left), BLOCK):
        for column in range(0, len(right), BLOCK):
            check()
            cosines = left[row : row + BLOCK] @ right[column : column + BLOCK].T
            places = torch.nonzero(cosines > least)
            values = cosines[places[:, 0], places[:, 1]]
            if len(values) > MOST:  # of pictures that are all alike every pair is near
                best = values.argsort(descending=True, stable=True)[:MOST]
                places, values = places[best], values[best]
            found += [
                (row + i, column + j, value)
                for (i, j), value in zip(places.tolist(), values.tolist(), strict=True)
            ]
            found = sorted(found, key=lambda pair: -pair[2])[:MOST]
    return found
