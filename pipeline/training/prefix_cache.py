"""The frozen prefix's outputs, computed once and shared by stages, seeds, trials and processes.

A frozen prefix in eval mode is a pure function of the pixels, so its output is stored under a key
of everything it depends on: the digest of the prefix's parameters and buffers, every image, the
resolution, the augmentation and number of views, precision and device type. Change one and the key
changes: nothing stale can be used.

On disk an entry is `KEY.bin`, raw values that are memory-mapped when read, and `KEY.json`, its
shape and SHA-256, written last. Both appear by an atomic rename under a lock of their own, so any
number of processes may share a folder. A damaged entry is computed anew; the least recently used
entries go when the folder outgrows its limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.augment import distinct_views, render_views
from pipeline.data.images import ImageSet
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.settings.run import Augment
from pipeline.system.digests import digest_each, digest_file, digest_values
from pipeline.system.files import holding
from pipeline.system.processes import is_abandoned_mark, owner_mark
from pipeline.training.device import compute_copy, run_blocks, with_kernels
from pipeline.training.features import Features, LiveFeatures, StoredFeatures

FORMAT = 5
PIXELS_PER_BATCH = 128 * 64 * 64
ABANDONED_AFTER_S = 3600
_PARTS = (".tmp", ".about")
"""Endings of what is being written."""

Cut = tuple[str, ...]
"""Blocks of a prefix, in forward order."""
Compute = Callable[[Sequence[Cut]], Iterator[tuple[int, NDArray[np.uint8]]]]
"""From cuts, the shortest first, to the number of a cut and bytes of its outputs, by batches."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A cut's outputs for every view of every image, (views, N, ...), channels last."""

    cut: Cut
    values: Path
    shape: list[int]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def about(self, sha256: str) -> dict[str, object]:
        """The content of the entry's description."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"shape": self.shape, "dtype": dtype, "sha256": sha256}


@dataclass
class PrefixCache:
    """A folder of entries with a size limit; `folder=None` turns the cache off.

    `notes` collects what a person should know: entries recomputed, caches that did not fit.
    """

    folder: Path | None
    limit_bytes: int
    notes: list[str] = field(default_factory=list)

    def features(
        self,
        backbone: Backbone,
        prefix: Cut,
        images: ImageSet,
        *,
        augment: Augment,
        views: int,
        dtype: torch.dtype,
        device: torch.device,
        also: Sequence[Cut] = (),
        digests: Mapping[str, str] | None = None,
    ) -> Features:
        """What the suffix above `prefix`, which may be empty, is fed with.

        `views`: stored views an image; 0: compute fresh ones, store none. `also`: shorter prefixes
        that later stages need, filled by the same forward pass. `digests`: `digest_each` of these
        very weights, where the caller has it already.
        """
        stored = min(views, distinct_views(augment) or views)
        if self.folder is not None and stored and prefix:
            cuts = sorted({prefix, *also}, key=len)
            if digests is None:
                names = backbone.tensor_names(cuts[-1])
                digests = digest_each(backbone.model.state_dict(), names)
            depends_on = {
                "format": FORMAT,
                "backbone": backbone.name,
                "images": hashlib.sha256(images.digests.tobytes()).hexdigest(),
                "pixels": list(images.pixels.shape),
                "augment": augment,
                "views": stored,
                "dtype": str(dtype),
                "device": with_kernels(device.type),
            }
            entries, side = {}, images.pixels.shape[-1]
            for cut in cuts:
                weights = [(name, digests[name]) for name in backbone.tensor_names(cut)]
                key = digest_values({**depends_on, "weights": weights})
                shape = [stored, len(images), *_output_shape(backbone.name, cut, side)]
                values = self.folder / f"{key}.bin"
                entries[cut] = _Entry(cut=cut, values=values, shape=shape, dtype=dtype)
            compute = partial(_outputs, backbone, images, augment, stored, dtype, device)
            features = self._load_or_fill(entries[prefix], list(entries.values()), device, compute)
            if features is not None:
                return features
        blocks = compute_copy(backbone, prefix, dtype, device)
        return LiveFeatures(images.to(device), blocks, augment, dtype)

    def _load_or_fill(
        self, wanted: _Entry, entries: list[_Entry], device: torch.device, compute: Compute
    ) -> StoredFeatures | None:
        if sum(entry.size_bytes for entry in entries) > self.limit_bytes:
            entries = [wanted]
        if wanted.size_bytes > self.limit_bytes:
            self.notes.append(
                f"the prefix cache would need {wanted.size_bytes / 1e9:.1f} GB, its limit is "
                f"{self.limit_bytes / 1e9:.1f} GB: training without it"
            )
            return None
        folder = wanted.values.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with holding(FileLock(wanted.values.with_suffix(".lock"))):
                if not self._is_intact(wanted):
                    others = [entry for entry in entries if entry is not wanted]
                    missing = [entry for entry in others if not self._is_intact(entry)]
                    _fill(sorted([wanted, *missing], key=lambda entry: len(entry.cut)), compute)
                    self._evict(folder, keep={entry.values.stem for entry in entries})
                    if not self._is_intact(wanted):
                        return None
                return StoredFeatures(wanted.values, wanted.shape, wanted.dtype, device)
        except OSError as err:
            self.notes.append(
                f"the prefix cache in {folder} cannot be used ({err.strerror or err}): "
                "training without it"
            )
            return None

    def _is_intact(self, entry: _Entry) -> bool:
        """Whether the entry is there and undamaged; marks it as used."""
        description = entry.values.with_suffix(".json")
        if not description.exists():
            return False
        try:
            about = json.loads(description.read_text(encoding="utf-8"))
            intact = bool(about == entry.about(digest_file(entry.values)))
        except (OSError, ValueError):
            intact = False
        if intact:
            os.utime(description)  # the time of last use, for eviction
        else:
            key = entry.values.stem[:12]
            self.notes.append(f"prefix cache entry {key} is damaged: computing it anew")
        return intact

    def _evict(self, folder: Path, keep: set[str]) -> None:
        """Remove the least recently used entries until the folder fits its limit.

        What killed processes left behind goes too: parts, and values without a description.
        """
        for path in (p for kind in (*_PARTS, ".bin") for p in folder.glob(f"*{kind}")):
            with contextlib.suppress(FileNotFoundError):
                # KEY.MARK.tmp and KEY.MARK.about name their writer
                dead = path.suffix in _PARTS and is_abandoned_mark(path.stem.partition(".")[2])
                old = time.time() - path.stat().st_mtime > ABANDONED_AFTER_S
                if (old or dead) and not path.with_suffix(".json").exists():
                    path.unlink()
        used: list[tuple[float, int, Path]] = []
        for path in folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):  # another process may be evicting too
                size = path.with_suffix(".bin").stat().st_size
                used.append((path.stat().st_mtime, size, path))
        total = sum(size for _, size, _ in used)
        for _, size, path in sorted(used):
            if total <= self.limit_bytes:
                return
            if path.stem not in keep:
                for kind in (".json", ".bin", ".lock"):
                    path.with_suffix(kind).unlink(missing_ok=True)
                total -= size


def _fill(entries: list[_Entry], compute: Compute) -> None:
    """Write the values of entries in one pass, the shortest cut first; descriptions come last."""
    parts = [entry.values.with_suffix(f".{owner_mark()}.tmp") for entry in entries]
    hashers = [hashlib.sha256() for _ in entries]
    files = [part.open("wb") for part in parts]
    try:
        for number, raw in compute([entry.cut for entry in entries]):
            files[number].write(raw.data)
            hashers[number].update(raw.data)
        for entry, part, file, hasher in zip(entries, parts, files, hashers, strict=True):
            file.close()
            about = part.with_suffix(".about")
            about.write_text(json.dumps(entry.about(hasher.hexdigest())), encoding="utf-8")
            part.replace(entry.values)
            about.replace(entry.values.with_suffix(".json"))
    finally:
        for part, file in zip(parts, files, strict=True):
            with contextlib.suppress(OSError):  # a full disk fails again when closing
                file.close()
            part.unlink(missing_ok=True)
            part.with_suffix(".about").unlink(missing_ok=True)


@torch.no_grad()
def _outputs(
    backbone: Backbone,
    images: ImageSet,
    augment: Augment,
    views: int,
    dtype: torch.dtype,
    device: torch.device,
    cuts: Sequence[Cut],
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """One forward pass over every view: `Compute` with its first arguments given."""
    blocks = compute_copy(backbone, cuts[-1], dtype, device)
    images = images.to(device)
    batch = max(1, PIXELS_PER_BATCH // images.pixels.shape[-1] ** 2)
    for view in range(views):
        for start in range(0, len(images), batch):
            rows = np.arange(start, min(start + batch, len(images)))
            pixels = images.pixels[start : start + batch]
            x = render_views(pixels, images.keys[rows], np.full(len(rows), view), augment)
            passed = 0
            for number, cut in enumerate(cuts):
                x = run_blocks({name: blocks[name] for name in cut[passed:]}, x, dtype)
                passed = len(cut)
                values = _channels_last(x).contiguous().to("cpu", dtype)
                yield number, values.view(-1).view(torch.uint8).numpy()


@cache
def _output_shape(backbone: str, cut: Cut, side: int) -> list[int]:
    """Shape of one image's stored output, from a pass that computes nothing."""
    with torch.device("meta"), torch.no_grad():
        out = build_backbone(backbone, 2, seed=0).run(torch.zeros(1, 3, side, side), cut)
    return list(_channels_last(out).shape[1:])


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x
