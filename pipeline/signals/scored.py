"""How a model did on each validation image, and two models image by image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.stats.metrics import Column


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A model's result on each validation image.

    Attributes:
        images: each image's SHA-256, (N,).
        labels: its class, a name or a number, (N,).
        predicted: the class that was predicted, likewise, (N,).
        nll: cross-entropy in nats, (N,).
    """

    images: tuple[str, ...]
    labels: NDArray[Any]
    predicted: NDArray[Any]
    nll: NDArray[np.float64]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the right class was predicted, (N,)."""
        right: NDArray[np.bool_] = self.labels == self.predicted
        return right


def aligned(scored: Scored, parent: Scored) -> NDArray[np.int64]:
    """The row of the parent's scores that is about each image of the run's, (N,).

    Raises:
        ValueError: the two are not about the same images.
    """
    if scored.images == parent.images:  # equal images may appear twice, in one order
        return np.arange(len(parent.images))
    row_of = {image: row for row, image in enumerate(parent.images)}
    if len(row_of) != len(parent.images) or set(row_of) != set(scored.images):
        raise ValueError("the run and its parent were not scored on the same images")
    return np.array([row_of[image] for image in scored.images])


def paired(scored: Scored, parent: Scored) -> dict[Column, NDArray[np.float64]]:
    """Differences R - U of correctness and of cross-entropy, image by image, (N,) each.

    Raises:
        ValueError: the two are not about the same images.
    """
    rows = aligned(scored, parent)
    accuracy = scored.correct.astype(float) - parent.correct[rows].astype(float)
    return {"correct": accuracy, "nll": scored.nll - parent.nll[rows]}
