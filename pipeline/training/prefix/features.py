"""What a suffix is fed with: the frozen prefix's outputs, stored or computed for each batch.

On a device, stored outputs and images stay where they fit beside other work; where they do not,
each batch is sent. Neither is waited for (`system/transfers.py`).
"""

from __future__ import annotations

import mmap
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.augment import is_drawn_on_host, render_views
from pipeline.data.image_set import ImageSet
from pipeline.model.segments import Segment
from pipeline.settings.augmentation import Augment
from pipeline.system.disk.shelf import Use
from pipeline.system.transfers import has_room, send, send_all, send_rows
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
        self._there: Tensor | None = None
        self._sent_by_batch = device.type == "cpu"
        self._resident_bytes = 0

    def batch(self, rows: IntRows, views: IntRows) -> Tensor:
        """The outputs for view `views[i]` of image `rows[i]`, (B, ...)."""
        flat = self.values.flatten(0, 1)
        index = torch.from_numpy(views * self.values.shape[1] + rows)
        if self._is_there(flat):
            assert self._there is not None
            outputs = self._there.index_select(0, send(index, self._device))
        else:
            outputs = send_rows(flat, index, self._device)
            self._has_read(outputs.nbytes)
        return outputs.permute(0, 3, 1, 2) if outputs.ndim == 4 else outputs

    def _is_there(self, flat: Tensor) -> bool:
        """Whether all outputs are on the device; the first batch decides, and sends them."""
        if self._there is None and not self._sent_by_batch:
            self._sent_by_batch = not has_room(flat.nbytes, self._device)
            if not self._sent_by_batch:
                self._there = send_all(flat, self._device, self._has_read)
        return self._there is not None

    def _has_read(self, size_bytes: int) -> None:
        """Let pages of the file go once there are many."""
        self._resident_bytes += size_bytes
        if self._resident_bytes > RESIDENT_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)  # the system's own cache still has them
            self._resident_bytes = 0


@dataclass(frozen=True, kw_only=True)
class LiveFeatures:
    """Outputs computed for each batch: for fresh views, or where the cache is off or too small.

    Attributes:
        images: their pixels are on the device or, where they do not fit, on the host or on disk.
        running: the copies of frozen segments that run for each batch.
    """

    images: ImageSet
    running: tuple[Segment, ...]
    augment: Augment
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(
        cls,
        images: ImageSet,
        running: tuple[Segment, ...],
        augment: Augment,
        dtype: torch.dtype,
        device: torch.device,
    ) -> LiveFeatures:
        """Images that are drawn from on the host stay there."""
        pixels = images.pixels
        if (
            device.type != "cpu"
            and isinstance(pixels, Tensor)
            and not is_drawn_on_host(augment)
            and has_room(pixels.nbytes, device)
        ):
            images = replace(images, pixels=send_all(pixels, device))
        return cls(images=images, running=running, augment=augment, dtype=dtype, device=device)

    @torch.no_grad()
    def batch(self, rows: IntRows, views: IntRows) -> Tensor:
        """The outputs for view `views[i]` of image `rows[i]`, (B, ...)."""
        on_host = is_drawn_on_host(self.augment)
        pixels = self.images.batch(rows, None if on_host else self.device)
        rendered = rendered_on(self.device, pixels, self.images, rows, views, self.augment)
        return run_segments(self.running, rendered, self.dtype)


def rendered_on(
    device: torch.device,
    pixels: Tensor,
    images: ImageSet,
    rows: IntRows,
    views: IntRows,
    augment: Augment,
) -> Tensor:
    """Views of the images `rows`, whose pixels are given, on `device`: float32, (B, 3, S, S).

    Pixels that are on the host stay there for what is drawn there.
    """
    if not is_drawn_on_host(augment):
        pixels = send(pixels, device)
    rendered = render_views(pixels, images.keys[rows], views, augment, images.preparation)
    return send(rendered, device)


Features = StoredFeatures | LiveFeatures
"""The suffix's inputs: what the prefix makes of given views of given images."""
