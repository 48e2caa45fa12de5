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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch
from filelock import FileLock

from pipeline.data.augment import distinct_views, render_views
from pipeline.data.images import ImageSet
from pipeline.model.backbones import Backbone
from pipeline.settings.run import Augment
from pipeline.system.digests import digest_each, digest_file, digest_values
from pipeline.system.files import holding
from pipeline.system.processes import is_abandoned_mark, owner_mark
from pipeline.training.device import compute_copy, run_blocks
from pipeline.training.features import Features, LiveFeatures, StoredFeatures

FORMAT = 5
PIXELS_PER_BATCH = 128 * 64 * 64
ABANDONED_AFTER_S = 3600
_PARTS = (".tmp", ".about")
"""Endings of what is being written."""


@dataclass
class PrefixCache:
    """A folder of entries with a size limit; `folder=None` turns the cache off.

    `notes` collects what a person should know: entries recomputed, caches that did not fit. An
    entry stays mapped for as long as some features use it.
    """

    folder: Path | None
    limit_bytes: int
    notes: list[str] = field(default_factory=list)
    _open: WeakValueDictionary[str, StoredFeatures] = field(default_factory=WeakValueDictionary)
    _shapes: dict[tuple[object, ...], list[int]] = field(default_factory=dict)

    def features(
        self,
        backbone: Backbone,
        prefix: tuple[str, ...],
        images: ImageSet,
        *,
        augment: Augment,
        views: int,
        dtype: torch.dtype,
        device: torch.device,
        also: Sequence[tuple[str, ...]] = (),
        digests: Mapping[str, str] | None = None,
    ) -> Features:
        """What the suffix above `prefix` is fed with.

        Args:
            backbone: the frozen prefix's weights; read, never changed.
            prefix: block names in forward order; may be empty.
            images: the images to pass through.
            augment: what may be done to them.
            views: stored views an image; 0: compute fresh ones, store none.
            dtype: precision of the prefix and of its outputs.
            device: where to compute.
            also: shorter prefixes that later stages need, filled by the same forward pass.
            digests: `digest_each` of these very weights, where the caller has it already.
        """
        stored = min(views, distinct_views(augment) or views)
        if self.folder is not None and stored and prefix:
            cuts = sorted({prefix, *also}, key=len)
            recipe = _Recipe(
                backbone=backbone,
                digests=digests
                or digest_each(backbone.model.state_dict(), backbone.tensor_names(cuts[-1])),
                shapes={cut: self._output_shape(backbone, images, cut) for cut in cuts},
                images_digest=hashlib.sha256(images.digests.tobytes()).hexdigest(),
                images=images,
                augment=augment,
                views=stored,
                dtype=dtype,
                device=device,
            )
            features = self._load_or_fill(recipe, prefix, cuts)
            if features is not None:
                return features
        blocks = compute_copy(backbone, prefix, dtype, device)
        return LiveFeatures(images.to(device), blocks, augment, dtype)

    def _output_shape(
        self, backbone: Backbone, images: ImageSet, cut: tuple[str, ...]
    ) -> list[int]:
        """Shape of one image's output as it is stored, channels last, from a pass of zeros."""
        architecture = (backbone.name, cut, *images.pixels.shape[1:])
        if architecture not in self._shapes:
            with torch.no_grad():
                out = backbone.run(torch.zeros(1, *images.pixels.shape[1:]), cut)
            out = out.permute(0, 2, 3, 1) if out.ndim == 4 else out
            self._shapes[architecture] = list(out.shape[1:])
        return self._shapes[architecture]

    def _load_or_fill(
        self, recipe: _Recipe, prefix: tuple[str, ...], cuts: list[tuple[str, ...]]
    ) -> StoredFeatures | None:
        assert self.folder is not None
        key = recipe.key(prefix)
        if (held := self._open.get(key)) is not None:
            return held
        need = sum(recipe.size_bytes(cut) for cut in cuts)
        if need > self.limit_bytes:
            cuts = [prefix]
            need = recipe.size_bytes(prefix)
        if need > self.limit_bytes:
            self.notes.append(
                f"the prefix cache would need {need / 1e9:.1f} GB, its limit is "
                f"{self.limit_bytes / 1e9:.1f} GB: training without it"
            )
            return None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with holding(FileLock(self.folder / f"{key}.lock")):
                features = self._read(recipe, prefix)
                if features is None:
                    others = [cut for cut in cuts if cut != prefix]
                    missing = [cut for cut in others if self._read(recipe, cut) is None]
                    self._fill(recipe, sorted([prefix, *missing], key=len))
                    self._evict(keep={recipe.key(cut) for cut in cuts})
                    features = self._read(recipe, prefix)
        except OSError as err:
            self.notes.append(
                f"the prefix cache in {self.folder} cannot be used ({err.strerror or err}): "
                "training without it"
            )
            return None
        return features

    def _read(self, recipe: _Recipe, cut: tuple[str, ...]) -> StoredFeatures | None:
        """The entry, memory-mapped, or None if it is not there or damaged."""
        key = recipe.key(cut)
        if (held := self._open.get(key)) is not None:
            return held
        assert self.folder is not None
        values_path, about_path = self.folder / f"{key}.bin", self.folder / f"{key}.json"
        if not about_path.exists():
            return None
        try:
            about = json.loads(about_path.read_text(encoding="utf-8"))
            expected = recipe.about(cut, digest_file(values_path))
            intact = about == expected
        except (OSError, ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            self.notes.append(f"prefix cache entry {key[:12]} is damaged: computing it anew")
            return None
        os.utime(about_path)  # the time of last use, for eviction
        features = StoredFeatures(values_path, about["shape"], recipe.dtype, recipe.device)
        self._open[key] = features
        return features

    @torch.no_grad()
    def _fill(self, recipe: _Recipe, cuts: list[tuple[str, ...]]) -> None:
        """One forward pass over every view writes all the cuts."""
        assert self.folder is not None
        if not cuts:
            return
        blocks = compute_copy(recipe.backbone, cuts[-1], recipe.dtype, recipe.device)
        images = recipe.images.to(recipe.device)
        keys = images.keys
        writer = owner_mark()
        paths = {cut: self.folder / f"{recipe.key(cut)}.{writer}.tmp" for cut in cuts}
        hashers = {cut: hashlib.sha256() for cut in cuts}
        batch = max(1, PIXELS_PER_BATCH // images.pixels.shape[-1] ** 2)
        files = {cut: path.open("wb") for cut, path in paths.items()}
        try:
            for view in range(recipe.views):
                for start in range(0, len(images), batch):
                    rows = np.arange(start, min(start + batch, len(images)))
                    views = np.full(len(rows), view)
                    pixels = images.pixels[start : start + batch]
                    x = render_views(pixels, keys[rows], views, recipe.augment)
                    passed: tuple[str, ...] = ()
                    for cut in cuts:
                        x = run_blocks({b: blocks[b] for b in cut[len(passed) :]}, x, recipe.dtype)
                        passed = cut
                        stored = (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).contiguous()
                        raw = stored.to("cpu", recipe.dtype).view(-1).view(torch.uint8).numpy()
                        files[cut].write(raw.data)
                        hashers[cut].update(raw.data)
            for file in files.values():
                file.close()
            for cut, path in paths.items():
                self._publish(recipe, cut, path, hashers[cut].hexdigest())
        finally:
            for cut, file in files.items():
                with contextlib.suppress(OSError):  # a full disk fails again when closing
                    file.close()
                paths[cut].unlink(missing_ok=True)
                paths[cut].with_suffix(".about").unlink(missing_ok=True)

    def _publish(self, recipe: _Recipe, cut: tuple[str, ...], path: Path, sha256: str) -> None:
        assert self.folder is not None
        key = recipe.key(cut)
        about = recipe.about(cut, sha256)
        about_path = path.with_suffix(".about")
        about_path.write_text(json.dumps(about), encoding="utf-8")
        path.replace(self.folder / f"{key}.bin")
        about_path.replace(self.folder / f"{key}.json")

    def _evict(self, keep: set[str]) -> None:
        """Remove the least recently used entries until the folder fits its limit.

        What killed processes left behind goes too: parts, and values without a description.
        """
        assert self.folder is not None
        for path in (p for kind in (*_PARTS, ".bin") for p in self.folder.glob(f"*{kind}")):
            with contextlib.suppress(FileNotFoundError):
                old = time.time() - path.stat().st_mtime > ABANDONED_AFTER_S
                if (old or _writer_is_dead(path)) and not path.with_suffix(".json").exists():
                    path.unlink()
        used: dict[Path, float] = {}
        sizes: dict[Path, int] = {}
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):  # another process may be evicting too
                sizes[path] = path.with_suffix(".bin").stat().st_size
                used[path] = path.stat().st_mtime
        total = sum(sizes.values())
        for path in sorted(used, key=used.__getitem__):
            if total <= self.limit_bytes:
                return
            if path.stem not in keep:
                path.unlink(missing_ok=True)
                path.with_suffix(".bin").unlink(missing_ok=True)
                path.with_suffix(".lock").unlink(missing_ok=True)
                total -= sizes[path]


def _writer_is_dead(part: Path) -> bool:
    """Whether `KEY.MARK.tmp` or `KEY.MARK.about` was left by a process that is no more."""
    return part.suffix in _PARTS and is_abandoned_mark(part.stem.partition(".")[2])


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """Everything that a prefix's output depends on, beside which blocks it is made of.

    `digests` are the tensors', `shapes` what each cut's output of one image looks like.
    """

    backbone: Backbone
    digests: Mapping[str, str]
    shapes: dict[tuple[str, ...], list[int]]
    images_digest: str
    images: ImageSet
    augment: Augment
    views: int
    dtype: torch.dtype
    device: torch.device

    def key(self, cut: tuple[str, ...]) -> str:
        return digest_values(
            {
                "format": FORMAT,
                "backbone": self.backbone.name,
                "weights": [
                    (name, self.digests[name]) for name in self.backbone.tensor_names(cut)
                ],
                "images": self.images_digest,
                "pixels": list(self.images.pixels.shape),
                "augment": self.augment,
                "views": self.views,
                "dtype": str(self.dtype),
                "device": self.device.type,
            }
        )

    def about(self, cut: tuple[str, ...], sha256: str) -> dict[str, object]:
        """What an entry's description says."""
        return {
            "shape": [self.views, len(self.images), *self.shapes[cut]],
            "dtype": str(self.dtype).removeprefix("torch."),
            "sha256": sha256,
        }

    def size_bytes(self, cut: tuple[str, ...]) -> int:
        return self.views * len(self.images) * math.prod(self.shapes[cut]) * self.dtype.itemsize
