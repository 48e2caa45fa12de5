"""The frozen prefix's outputs, computed once and shared by stages, seeds, trials and processes.

A frozen prefix in eval mode is a pure function of the pixels, so its output is stored under a key
of everything it depends on: the digest of the prefix's parameters and buffers, every image, the
resolution, the augmentation and number of views, precision, device type and the versions of the
libraries. Change one and the key changes: nothing stale can be used.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from pipeline.data.augment import distinct_views
from pipeline.data.images import ImageSet, unusual
from pipeline.model.backbones import Backbone
from pipeline.settings.augmentation import Augment, of_images
from pipeline.system.digests import digest_each, digest_file, digest_values
from pipeline.system.files import holding, lock_for_all
from pipeline.system.leases import renewing
from pipeline.system.processes import owner_mark
from pipeline.system.progress import bar
from pipeline.system.provenance import libraries
from pipeline.training.cache_parts import PARTS, is_left_behind, touch
from pipeline.training.device import compute_copy, run_segments, with_kernels
from pipeline.training.features import Features, LiveFeatures, StoredFeatures, rendered_on

FORMAT = 5
PIXELS_PER_BATCH = 128 * 64 * 64

Compute = Callable[[Sequence[int]], Iterator[tuple[int, NDArray[np.uint8]]]]
"""From lengths of prefixes, the shortest first, to the number of one and bytes of its outputs."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A prefix's outputs for every view of every image, (views, N, ...), channels last.

    Attributes:
        prefix: how many segments it has.
    """

    prefix: int
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


def _entry_key(
    backbone: Backbone,
    prefix: int,
    images: ImageSet,
    digests: Mapping[str, str],
    method: Mapping[str, object],
) -> str:
    """The digest of all that an entry's outputs depend on."""
    return digest_values(
        {
            "format": FORMAT,
            "libraries": libraries(),
            "backbone": backbone.name,
            "images": hashlib.sha256(images.digests.tobytes()).hexdigest(),
            "pixels": list(images.pixels.shape),
            "weights": [(name, digests[name]) for name in backbone.segment_tensors(prefix)],
            **method,
            **unusual(images.preparation),
        }
    )


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
        prefix: int,
        images: ImageSet,
        *,
        augment: Augment,
        views: int,
        dtype: torch.dtype,
        device: torch.device,
        also: Sequence[int] = (),
        digests: Mapping[str, str] | None = None,
    ) -> Features:
        """What the suffix above the first `prefix` segments, which may be none, is fed with.

        `views`: stored views an image; 0: compute fresh ones, store none. `also`: shorter prefixes
        that later stages need, filled by the same forward pass. `digests`: `digest_each` of these
        very weights, where the caller has it already.
        """
        augment = of_images(augment)
        stored = min(views, distinct_views(augment) or views)
        if self.folder is not None and stored and prefix:
            prefixes = sorted({prefix, *also} - {0})
            if digests is None:
                names = backbone.segment_tensors(prefixes[-1])
                digests = digest_each(backbone.model.state_dict(), names)
            method = {"augment": augment, "views": stored, "device": with_kernels(device.type)}
            entries = {}
            for count in prefixes:
                key = _entry_key(backbone, count, images, digests, {**method, "dtype": str(dtype)})
                shape = [stored, len(images), *_channels_last(backbone.segments[count - 1].shape)]
                values = self.folder / f"{key}.bin"
                entries[count] = _Entry(prefix=count, values=values, shape=shape, dtype=dtype)
            compute = partial(_outputs, backbone, images, augment, stored, dtype, device)
            features = self._load_or_fill(entries[prefix], list(entries.values()), device, compute)
            if features is not None:
                return features
        segments = compute_copy(backbone.segments[:prefix], dtype, device)
        return LiveFeatures.of(images, segments, augment, dtype, device)

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
            _sweep(folder)
            with holding(lock_for_all(wanted.values.with_suffix(".lock"))):
                if not self._is_intact(wanted):
                    others = [entry for entry in entries if entry is not wanted]
                    missing = [entry for entry in others if not self._is_intact(entry)]
                    _fill(sorted([wanted, *missing], key=lambda entry: entry.prefix), compute)
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
        """Remove the least recently used entries until the folder fits its limit."""
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


def _sweep(folder: Path) -> None:
    """Remove what killed processes left behind: parts, and values without a description."""
    for path in (p for kind in (*PARTS, ".bin") for p in folder.glob(f"*{kind}")):
        with contextlib.suppress(OSError):  # another process sweeps too, or the file is another's
            if is_left_behind(path) and not path.with_suffix(".json").exists():
                path.unlink()


def clear(folder: Path) -> int:
    """Remove the entries that nobody holds, and what killed processes left; returns bytes freed.

    A process that has mapped an entry goes on reading it. Parts that are being written stay.
    """
    freed = 0
    for path in [p for kind in (*PARTS, ".bin") for p in folder.glob(f"*{kind}")]:
        is_part = path.suffix in PARTS
        if is_part and not is_left_behind(path):
            continue
        lock = FileLock(path.with_suffix(".lock"), timeout=0)
        with contextlib.suppress(FileNotFoundError, Timeout), nullcontext() if is_part else lock:
            freed += path.stat().st_size
            for kind in (path.suffix,) if is_part else (".json", ".bin", ".lock"):
                path.with_suffix(kind).unlink(missing_ok=True)
    return freed


def _fill(entries: list[_Entry], compute: Compute) -> None:
    """Write the values of entries in one pass, the shortest prefix first, descriptions last."""
    parts = [entry.values.with_suffix(f".{owner_mark()}.tmp") for entry in entries]
    hashers = [hashlib.sha256() for _ in entries]
    files = [part.open("wb") for part in parts]
    try:
        with renewing(lambda: touch(parts)):
            for number, raw in compute([entry.prefix for entry in entries]):
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
    prefixes: Sequence[int],
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """One forward pass over every view: `Compute` with its first arguments given."""
    segments = compute_copy(backbone.segments[: prefixes[-1]], dtype, device)
    batch = max(1, PIXELS_PER_BATCH // images.pixels.shape[-1] ** 2)
    starts = [(view, start) for view in range(views) for start in range(0, len(images), batch)]
    with bar("frozen part", len(starts)) as step:
        for view, start in starts:
            rows = np.arange(start, min(start + batch, len(images)))
            pixels, numbers = images.pixels[start : start + batch], np.full(len(rows), view)
            x = rendered_on(device, pixels, images, rows, numbers, augment)
            passed = 0
            for number, count in enumerate(prefixes):
                x = run_segments(segments[passed:count], x, dtype)
                passed = count
                values = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
                values = values.contiguous().to("cpu", dtype)
                yield number, values.view(-1).view(torch.uint8).numpy()
            step(1)


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(C, H, W) as (H, W, C); tokens (L, C) and vectors (C,) as they are."""
    return (*shape[1:], shape[0]) if len(shape) == 3 else shape
