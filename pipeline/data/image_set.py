"""A set of labelled images as tensors: pixels in memory, on a device or on disk, and their keys.

In: decoded images of one size (`images.py`), their labels and digests. Out: batches of pixels
where they are wanted, and a fingerprint of the whole set.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.images import USUAL, IntArray, Preparation, U8Array
from pipeline.data.pixels import Pixels
from pipeline.system.transfers import send, send_rows


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """N labelled images, ready to be batched.

    Attributes:
        pixels: uint8, (N, 3, S, S), in memory or not.
        labels: int64, (N,).
        digests: the SHA-256 of each original image, uint8, (N, 32).
        unreadable: images that were asked for and left out, and why, a line each.
        rows: of the split that the images were read from, (N,).
        doubts: deep images that may have lost what they show, and why, a line each.
        preparation: how the pixels were made, and how they are normalised.
        names: the file or the row that each image stands in; empty where nobody reads them.
    """

    pixels: Tensor | Pixels
    labels: Tensor
    digests: U8Array
    unreadable: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    preparation: Preparation = USUAL
    rows: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def keys(self) -> NDArray[np.uint64]:
        """64 bits of each digest: what seeds an image's augmentation, (N,)."""
        return np.ascontiguousarray(self.digests[:, :8]).view(np.uint64)[:, 0]

    def fingerprint(self) -> str:
        """SHA-256 over every image and label, in order, as 64 hex digits."""
        hasher = hashlib.sha256(self.digests.tobytes())
        hasher.update(self.labels.numpy().tobytes())
        return hasher.hexdigest()

    def batch(self, which: IntArray | slice, device: torch.device | None = None) -> Tensor:
        """The pixels of these rows, on a device (None: where they are), uint8, (n, 3, S, S)."""
        if not isinstance(self.pixels, Tensor) or isinstance(which, slice):
            rows = which if isinstance(which, slice) else torch.from_numpy(which)
            found = self.pixels[rows]
            return found if device is None else send(found, device)
        rows, where = torch.from_numpy(which), self.pixels.device
        if where.type != "cpu":
            return self.pixels.index_select(0, send(rows, where))
        return send_rows(self.pixels, rows, device or where)
