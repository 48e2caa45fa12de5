"""Re-estimate BatchNorm statistics on the new images, once, before anything is frozen.

Adaptive batch normalisation (Li et al. 2016, arXiv 1603.04779): means and variances that were
estimated on the pretraining images are replaced by those of the draw's training images; no label
is used and no weight changes. Afterwards frozen means frozen. Whether the new statistics are
better is another question: `choice.py` answers it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.data.image_set import ImageSet
from pipeline.data.images import unusual
from pipeline.model.backbones import Backbone, batch_norms
from pipeline.model.grouping import HEAD
from pipeline.model.networks import distributions_of
from pipeline.system.disk.digests import digest_tensors, digest_values
from pipeline.system.disk.files import keep_in_cache
from pipeline.system.provenance import libraries
from pipeline.training.device import compute_copy, joined, run_to_head, with_kernels

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
PIXELS_PER_BATCH = 256 * 64 * 64  # 256 images at 64 px: about 0.5 GB of ResNet-18 activations


def calibrate_norm_stats(
    backbone: Backbone,
    images: ImageSet,
    dtype: torch.dtype,
    device: torch.device,
    cache_folder: Path | None = None,
) -> None:
    """Replace every BatchNorm's mean and variance by those of `images`, unaugmented.

    Activations are computed in `dtype`, as the frozen prefix will compute them; their statistics
    are float32. Batches are as equal in size as can be, so that the average over batches weighs
    images equally. With `cache_folder` the result is kept there, under a digest of the weights
    and images, and read back next time; a damaged file is computed anew.
    """
    if not statistics_of(backbone.model):
        return
    path = cache_folder and kept_at(cache_folder, backbone, images, dtype, device)
    if path and (kept := _read(path, list(statistics_of(backbone.model)))):
        backbone.put(kept)
        return
    recalibrate(backbone, images, dtype, device)
    if path:
        keep_norm_stats(path, backbone)


def statistics_of(module: nn.Module) -> dict[str, Tensor]:
    """The BatchNorm statistics in a module's state dict."""
    return {n: tensor for n, tensor in module.state_dict().items() if n.endswith(STATISTICS)}


def kept_at(
    folder: Path, backbone: Backbone, images: ImageSet, dtype: torch.dtype, device: torch.device
) -> Path:
    """The file in which statistics are kept: named after all that they depend on.

    `backbone` holds the weights and statistics that a calibration would begin with.
    """
    state = backbone.model.state_dict()
    key = digest_values(
        {
            **backbone.named,
            "weights": digest_tensors(state, backbone.tensor_names(backbone.order[:-1])),
            "images": digest_tensors({"digests": torch.from_numpy(images.digests)}),
            "pixels": list(images.pixels.shape),
            "dtype": str(dtype),
            "device": with_kernels(device.type),
            "libraries": libraries(*distributions_of(backbone.name)),
            **unusual(images.preparation),
        }
    )
    return folder / f"{key}.safetensors"


def keep_norm_stats(path: Path, backbone: Backbone) -> None:
    """Write the backbone's statistics; on a full disk work goes on without."""
    kept = statistics_of(backbone.model)
    keep_in_cache(path, save(kept, {"sha256": digest_tensors(kept)}))


def _read(path: Path, names: list[str]) -> dict[str, Tensor] | None:
    try:
        with safe_open(path, framework="pt") as file:
            kept = {name: file.get_tensor(name) for name in names}
            intact = digest_tensors(kept) == file.metadata()["sha256"]
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
    return kept if intact else None


@torch.no_grad()
def recalibrate(
    backbone: Backbone, images: ImageSet, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Compute the statistics of `images` and put them into the backbone, whatever is kept.

    Returns:
        What entered the head meanwhile, float32, (N, C), in the order of `images`: features under
        the statistics of each image's batch, a close estimate of those under the new statistics.
    """
    segments = compute_copy(backbone.segments, dtype, device)
    below_head = [m for segment in segments for block, m in segment.parts() if block != HEAD]
    layers = list(batch_norms(m for m in below_head if isinstance(m, nn.Module)))
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
    size = max(2, PIXELS_PER_BATCH // images.pixels.shape[-1] ** 2)
    order = np.argsort(images.keys, kind="stable")  # mixes classes, whatever order they came in
    count = max(1, min(-(-len(images) // size), len(images) // 2))  # no batch of one image

    def parts() -> Iterator[Tensor]:
        for number, rows in enumerate(np.array_split(order, count), start=1):
            for layer in layers:  # a plain average over the batches seen; PyTorch's would wait
                layer.momentum = 1 / number
            pixels = images.batch(rows, device)
            yield run_to_head(segments, images.preparation.normalise(pixels), dtype)

    features = joined(parts(), len(images))
    for segment in segments:
        backbone.put(statistics_of(segment.module))
    in_order = torch.empty_like(features)
    in_order[torch.from_numpy(order)] = features
    return in_order
