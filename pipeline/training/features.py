"""What a suffix is fed with: the frozen prefix's outputs, stored or computed for each batch."""

from __future__ import annotations

import mmap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.augment import render_views
from pipeline.data.images import ImageSet
from pipeline.model.segments import Segment
from pipeline.settings.augmentation import Augment
from pipeline.system.shelf import Use
from pipeline.training.device import run_segments

IntRows = NDArray[np.int64]
RESIDENT_BYTES = 128 << 20
"""So much is read from a mapped file before its pages are let go: a large one need not fit."""


class StoredFeatures:
    """Outputs that were computed before, read from a memory-mapped file.

    Attributes:
        values: (views, N, C) or (views, N, H, W, C).
        running: as in `LiveFeatures`; nothing runs.
    """

    running: ClassVar[tuple[Segment, ...]] = ()

    def __init__(
        self,
        path: Path,
        shape: list[int],
        dtype: torch.dtype,
        device: torch.device,
        use: Use | None = None,
    ) -> None:
        self._use = use  # as long as it lives, nobody removes the file
        with path.open("rb") as file:
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():  # a copy that could be written would count as memory
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            self.values = torch.frombuffer(self._mapping, dtype=dtype).view(shape)
        self._device = device
        self._resident_bytes = 0

    def batch(self, rows: IntRows, views: IntRows) -> Tensor:
        """The outputs for view `views[i]` of image `rows[i]`, (B, ...)."""
        flat = self.values.flatten(0, 1)
        index = torch.from_numpy(views * self.values.shape[1] + rows)
        outputs = flat.index_select(0, index)
        self._resident_bytes += outputs.nbytes
        if self._resident_bytes > RESIDENT_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)  # the system's own cache still has them
            self._resident_bytes = 0
        outputs = outputs.to(self._device)
        return outputs.permute(0, 3, 1, 2) if outputs.ndim == 4 else outputs


@dataclass(frozen=True, kw_only=True)
class LiveFeatures:
    """Outputs computed for each batch: for fresh views, or where the cache is off or too small.

    Attributes:
        running: the copies of frozen segments that run for each batch.
    """

    images: ImageSet
    device: torch.device
    running: tuple[Segment, ...]
    augment: Augment
    dtype: torch.dtype

    @torch.no_grad()
    def batch(self, rows: IntRows, views: IntRows) -> Tensor:
        """The outputs for view `views[i]` of image `rows[i]`, (B, ...)."""
        pixels = self.images.batch(rows, self.device)
        keys, prepared = self.images.keys[rows], self.images.preparation
        rendered = render_views(pixels, keys, views, self.augment, prepared)
        return run_segments(self.running, rendered, self.dtype)


Features = StoredFeatures | LiveFeatures
"""The suffix's inputs: what the prefix makes of given views of given images."""
