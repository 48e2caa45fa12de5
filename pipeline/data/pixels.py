"""Pixels of many images: in memory where they are few, else on disk, else decoded when asked for.

In: decoded images, one after the other. Out: what stands in for a uint8 tensor (N, 3, S, S) that
need not fit into memory. Up to `MEMORY_BYTES` are a tensor; more go to a scratch file in the
cache's folder, within its limit, that is mapped into memory and removed with the process; where
there is no room, no cache, or the disk is full, images are decoded anew each time.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import first_line
from pipeline.system.disk.shelf import NoRoomError, Shelf, Use
from pipeline.system.progress import say
from pipeline.system.text import count_of

MEMORY_BYTES = 256 << 20
RESIDENT_BYTES = 64 << 20
"""So much is read from a mapped file before its pages are let go: a large one need not fit."""

IntArray = NDArray[np.int64]
U8Array = NDArray[np.uint8]
Decode = Callable[[IntArray], U8Array]
"""From places among images to their pixels, (n, 3, S, S)."""


class Pixels(Protocol):
    """What of a tensor is used where pixels may be on disk."""

    @property
    def shape(self) -> torch.Size:
        """(N, 3, S, S)."""

    def __getitem__(self, which: int | slice | Tensor) -> Tensor:
        """One image, (3, S, S), or those of a slice or of row numbers, (n, 3, S, S)."""


class MappedPixels:
    """Pixels in a scratch file."""

    def __init__(self, use: Use, shape: tuple[int, ...]) -> None:
        self._use = use  # the file goes with the last who uses it
        self.shape = torch.Size(shape)
        with use.path.open("r+b") as file:
            self._mapping = mmap.mmap(file.fileno(), 0)
        whole = torch.frombuffer(self._mapping, dtype=torch.uint8)
        self._values = whole[: self.shape.numel()].view(self.shape)
        self._resident_bytes = 0

    def __getitem__(self, which: int | slice | Tensor) -> Tensor:
        found = self._values[which]
        found = found if isinstance(which, Tensor) else found.clone()
        self._resident_bytes += found.nbytes
        if self._resident_bytes > RESIDENT_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)  # the system's own cache still has them
            self._resident_bytes = 0
        return found


class DecodedPixels:
    """Pixels that are decoded each time."""

    def __init__(self, decode: Decode, shape: tuple[int, ...]) -> None:
        self._decode, self.shape = decode, torch.Size(shape)

    def __getitem__(self, which: int | slice | Tensor) -> Tensor:
        places = torch.arange(self.shape[0])[which]
        found = torch.from_numpy(self._decode(places.reshape(-1).numpy()))
        return found if places.ndim else found[0]


class PixelWriter:
    """Takes images in any order, and gives all that were taken in the order of their places."""

    def __init__(self, count: int, size: int, shelf: Shelf | None, decode: Decode) -> None:
        self._shape, self._decode = (count, 3, size, size), decode
        self._image_bytes = 3 * size * size
        self._use: Use | None = None
        self._memory: U8Array | None = None
        if count * self._image_bytes <= MEMORY_BYTES:
            self._memory = np.empty(self._shape, dtype=np.uint8)
        elif shelf:
            self._begin(shelf)
        else:
            self._tell(
                f"would need {count * self._image_bytes / 1e9:.1f} GB, and there is no cache"
            )

    def _begin(self, shelf: Shelf) -> None:
        what = count_of(self._shape[0], "decoded image")
        try:
            size = self._shape[0] * self._image_bytes
            self._use = shelf.scratch("pixels", size, f"{what}, while the command runs,")
            self._file = self._use.path.open("r+b", buffering=0)
        except NoRoomError as err:
            self._tell(err.words())
        except OSError as err:
            self._give_up(err)

    def put(self, place: int, pixels: U8Array) -> None:
        """Keep an image, (3, S, S)."""
        if self._memory is not None:
            self._memory[place] = pixels
        elif self._use:
            try:
                self._write(place, pixels.tobytes())
            except OSError as err:
                self._give_up(err)

    def _write(self, place: int, content: bytes) -> None:
        self._file.seek(place * self._image_bytes)
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]

    def _close(self) -> None:
        try:
            if self._use:
                self._file.close()
        except OSError as err:  # some disks say only now that they are full
            self._give_up(err)

    def _give_up(self, err: OSError) -> None:
        """Go on without the file: the disk is full, or may not be written."""
        if self._use:
            with suppress(OSError):
                self._file.close()
            self._use.end()
            self._use = None
        self._tell(f"cannot be kept on disk ({err.strerror or first_line(err)})")

    def _tell(self, why: str) -> None:
        say(f"note: {count_of(self._shape[0], 'decoded image')}: {why}: decoding them when needed")

    def pixels(self, kept: IntArray) -> Tensor | Pixels:
        """The images of these places, ascending."""
        shape = (len(kept), *self._shape[1:])
        if self._memory is not None:
            memory = self._memory if len(kept) == self._shape[0] else self._memory[kept]
            return torch.from_numpy(memory)
        self._close()
        if self._use:
            if len(kept) == self._shape[0]:
                return MappedPixels(self._use, shape)
            whole = MappedPixels(self._use, self._shape)
            return ChosenPixels(whole, torch.from_numpy(kept))
        return DecodedPixels(lambda places: self._decode(kept[places]), shape)


class ChosenPixels:
    """Some of other pixels: the others could not be read."""

    def __init__(self, of: Pixels, rows: Tensor) -> None:
        self._of, self._rows = of, rows
        self.shape = torch.Size((len(rows), *of.shape[1:]))

    def __getitem__(self, which: int | slice | Tensor) -> Tensor:
        rows = self._rows[which]
        return self._of[rows] if rows.ndim else self._of[int(rows)]
