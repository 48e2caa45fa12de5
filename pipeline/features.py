"""What a suffix is fed with: the frozen prefix's outputs, stored or computed for each batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.compute import run_blocks
from pipeline.data.augment import render_views
from pipeline.data.images import ImageSet
from pipeline.settings import Augment

IntRows = NDArray[np.int64]


class Features(Protocol):
    """The suffix's inputs: what the prefix makes of given views of given images."""

    @property
    def running(self) -> dict[str, nn.Sequential]:
        """The copies of frozen blocks that run for each batch; none where outputs are stored."""
        ...

    def batch(self, rows: IntRows, views: IntRows) -> Tensor:
        """The outputs for view `views[i]` of image `rows[i]`, (B, ...)."""
        ...


@dataclass(frozen=True)
class StoredFeatures:
    """Outputs that were computed before: `values` is (views, N, C) or (views, N, H, W, C)."""

    values: Tensor
    device: torch.device

    @property
    def running(self) -> dict[str, nn.Sequential]:
        """See `Features.running`."""
        return {}

    def batch(self, rows: IntRows, views: IntRows) -> Tensor:
        """See `Features.batch`."""
        flat = self.values.flatten(0, 1)
        index = torch.from_numpy(views * self.values.shape[1] + rows)
        outputs = flat.index_select(0, index).to(self.device)
        return outputs.permute(0, 3, 1, 2) if outputs.ndim == 4 else outputs


@dataclass(frozen=True)
class LiveFeatures:
    """Outputs computed for each batch: for fresh views, or where the cache is off or too small."""

    images: ImageSet
    prefix: dict[str, nn.Sequential]
    augment: Augment
    dtype: torch.dtype

    @property
    def running(self) -> dict[str, nn.Sequential]:
        """See `Features.running`."""
        return self.prefix

    @torch.no_grad()
    def batch(self, rows: IntRows, views: IntRows) -> Tensor:
        """See `Features.batch`."""
        pixels = self.images.pixels[torch.from_numpy(rows).to(self.images.pixels.device)]
        rendered = render_views(pixels, self.images.keys[rows], views, self.augment)
        return run_blocks(self.prefix, rendered, self.dtype)
