"""The frozen prefix's outputs, computed once and shared by stages, seeds, trials and processes.

A frozen prefix in eval mode is a pure function of the pixels, so its output is stored under a key
of everything it depends on: the digest of the prefix's parameters and buffers, every image, the
resolution, the augmentation and number of views, precision, device type and the versions of the
libraries. Change one and the key changes: nothing stale can be used.

On disk an entry is `KEY.bin`, raw values that are memory-mapped when read, and `KEY.json`, its
shape and SHA-256, written last. Both appear by an atomic rename under a lock of their own, so any
number of processes may share a folder. A damaged entry is computed anew. The folder stays within
its limit, and keeps what living processes use (`system/disk/shelf.py`); without room, or on a full
disk, outputs are computed for each batch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.augment import distinct_views
from pipeline.data.image_set import ImageSet
from pipeline.model.backbones import Backbone
from pipeline.settings.augmentation import Augment, of_images
from pipeline.system.disk.cache_parts import PARTS, USE, is_left_behind, touch
from pipeline.system.disk.digests import digest_each, digest_file
from pipeline.system.disk.files import holding, lock_for_all
from pipeline.system.disk.shelf import NoRoomError, Shelf, remove_entry, used_keys
from pipeline.system.leases import renewing
from pipeline.system.processes import owner_mark
from pipeline.system.progress import bar
from pipeline.system.text import count_of
from pipeline.training.device import compute_copy, run_segments, with_kernels
from pipeline.training.prefix.entry import Entry, channels_last, entry_key
from pipeline.training.prefix.features import Features, LiveFeatures, StoredFeatures, rendered_on

PIXELS_PER_BATCH = 128 * 64 * 64

Compute = Callable[[Sequence[int]], Iterator[tuple[int, NDArray[np.uint8]]]]
"""From lengths of prefixes, the shortest first, to the number of one and bytes of its outputs."""


@dataclass
class PrefixCache:
    """A folder of entries with a size limit; `folder=None` turns the cache off.

    Attributes:
        notes: what a person should know: entries recomputed; once, that outputs did not fit.
        needed_bytes: what the stages of the command would keep in all, where that is known.
    """

    folder: Path | None
    limit_bytes: int
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.needed_bytes = 0
        self._is_told = False

    @classmethod
    def on(cls, shelf: Shelf | None) -> PrefixCache:
        """The cache on a shelf; None turns it off."""
        return cls(shelf.folder, shelf.limit_bytes) if shelf else cls(None, 0)

    def tell_notes(self, say: Callable[[str], object]) -> None:
        """Tell what the cache could not do since the last time."""
        for note in dict.fromkeys(self.notes):
            say(f"note: {note}")
        self.notes.clear()

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
                key = entry_key(backbone, count, images, digests, {**method, "dtype": str(dtype)})
                shape = [stored, len(images), *channels_last(backbone.segments[count - 1].shape)]
                values = self.folder / f"{key}.bin"
                entries[count] = Entry(prefix=count, values=values, shape=shape, dtype=dtype)
            compute = partial(_outputs, backbone, images, augment, stored, dtype, device)
            features = self._load_or_fill(entries[prefix], list(entries.values()), device, compute)
            if features is not None:
                return features
        segments = compute_copy(backbone.segments[:prefix], dtype, device, frozen=True)
        return LiveFeatures.of(images, segments, augment, dtype, device)

    def kept(self, entry: Entry, compute: Compute) -> Tensor | None:
        """What one view of images has in an entry that is no prefix's outputs; None without room.

        It lies in the same folder, and is computed where it is not there intact.
        """
        stored = self._load_or_fill(entry, [entry], torch.device("cpu"), compute)
        return None if stored is None else stored.values[0].clone()

    def _load_or_fill(
        self, wanted: Entry, entries: list[Entry], device: torch.device, compute: Compute
    ) -> StoredFeatures | None:
        folder = wanted.values.parent
        shelf = Shelf(folder, self.limit_bytes)
        try:
            use = shelf.use(wanted.values)
            _sweep(folder)
            with holding(lock_for_all(wanted.values.with_suffix(".lock"))):
                if not self._is_intact(wanted):
                    others = [entry for entry in entries if entry is not wanted]
                    missing = [entry for entry in others if not self._is_intact(entry)]
                    _fill(shelf, wanted, missing, compute)
                    if not self._is_intact(wanted):
                        return None
                return StoredFeatures(wanted.values, wanted.shape, wanted.dtype, device, use)
        except NoRoomError as err:
            if not self._is_told:
                words = err.words(self.needed_bytes + shelf.scratch_bytes)
                self.notes.append(f"the prefix cache in {folder} {words}: computing without it")
            self._is_told = True
        except OSError as err:
            self.notes.append(
                f"the prefix cache in {folder} cannot be used ({err.strerror or err}): "
                "computing without it"
            )
        return None

    def _is_intact(self, entry: Entry) -> bool:
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
            with contextlib.suppress(PermissionError):  # an entry of another person
                os.utime(description)  # the time of last use, for eviction
        else:
            key = entry.values.stem[:12]
            self.notes.append(f"prefix cache entry {key} is damaged: computing it anew")
        return intact


def _sweep(folder: Path) -> None:
    """Remove what killed processes left behind: parts, and values without a description."""
    for path in (p for kind in (*PARTS, USE, ".bin") for p in folder.glob(f"*{kind}")):
        with contextlib.suppress(OSError):  # another process sweeps too, or the file is another's
            if is_left_behind(path) and not path.with_suffix(".json").exists():
                path.unlink()


def images_at_once(size: int) -> int:
    """How many images of so many pixels a side pass through a network together, at least 1."""
    return max(1, PIXELS_PER_BATCH // size**2)


def clear(folder: Path) -> int:
    """Remove the entries that nobody uses, and what killed processes left; returns bytes freed.

    Parts that are being written stay.
    """
    freed, used = 0, used_keys(folder)
    for path in [p for kind in (*PARTS, USE, ".bin") for p in folder.glob(f"*{kind}")]:
        is_part = path.suffix != ".bin"
        if not is_left_behind(path) if is_part else path.stem in used:
            continue
        lock = FileLock(path.with_suffix(".lock"), timeout=0)
        with contextlib.suppress(FileNotFoundError, Timeout), nullcontext() if is_part else lock:
            freed += path.stat().st_size
            if is_part:
                path.unlink()
            else:
                remove_entry(path)
    return freed


def _fill(shelf: Shelf, wanted: Entry, others: list[Entry], compute: Compute) -> None:
    """Write an entry, and of others those that there is room for, the longest prefix first.

    Raises:
        NoRoomError: there is none for the first.
        OSError: the disk is full, or may not be written.
    """
    for path in (wanted.values.with_suffix(".json"), wanted.values):
        path.unlink(missing_ok=True)  # what is there is damaged
    first = [wanted, *sorted(others, key=lambda entry: -entry.prefix)]
    by_path = {entry.values: entry for entry in first}
    chosen = shelf.fitting({path: entry.size_bytes for path, entry in by_path.items()})
    entries = sorted((by_path[path] for path in chosen), key=lambda entry: entry.prefix)
    views, images = wanted.shape[:2]
    what = f"outputs of frozen blocks ({count_of(images, 'image')}, {count_of(views, 'view')}"
    what += f", {count_of(len(entries), 'border')})"
    parts = {entry.values.with_suffix(f".{owner_mark()}.tmp"): entry for entry in entries}
    shelf.make_room({part: entry.size_bytes for part, entry in parts.items()}, what)
    _write(parts, compute)


def _write(parts: Mapping[Path, Entry], compute: Compute) -> None:
    """Write the values of entries in one pass, the shortest prefix first, descriptions last."""
    hashers = [hashlib.sha256() for _ in parts]
    files: list[BinaryIO] = []
    try:
        files += [part.open("r+b") for part in parts]
        with renewing(lambda: touch(parts)):
            for number, raw in compute([entry.prefix for entry in parts.values()]):
                files[number].write(raw.data)
                hashers[number].update(raw.data)
        for (part, entry), file, hasher in zip(parts.items(), files, hashers, strict=True):
            file.close()
            about = part.with_suffix(".about")
            about.write_text(json.dumps(entry.about(hasher.hexdigest())), encoding="utf-8")
            part.replace(entry.values)
            about.replace(entry.values.with_suffix(".json"))
    finally:
        for file in files:
            with contextlib.suppress(OSError):  # a full disk fails again when closing
                file.close()
        for part in parts:
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
    segments = compute_copy(backbone.segments[: prefixes[-1]], dtype, device, frozen=True)
    batch = images_at_once(images.pixels.shape[-1])
    starts = [(view, start) for view in range(views) for start in range(0, len(images), batch)]
    with bar("frozen part", len(starts)) as step:
        for view, start in starts:
            rows = np.arange(start, min(start + batch, len(images)))
            pixels, numbers = images.batch(slice(start, start + batch)), np.full(len(rows), view)
            x = rendered_on(device, pixels, images, rows, numbers, augment)
            passed = 0
            for number, count in enumerate(prefixes):
                x = run_segments(segments[passed:count], x, dtype)
                passed = count
                values = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
                values = values.contiguous().to("cpu", dtype)
                yield number, values.view(-1).view(torch.uint8).numpy()
            step(1)
