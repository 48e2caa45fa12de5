"""What every source of images gives: labelled splits whose images are decoded when asked for."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.images import IntArray
from pipeline.data.stored import Stored
from pipeline.errors import DataError, first_line

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Words for a split in the names of files and folders."""


@dataclass(frozen=True)
class Split:
    """Labelled images: `labels` (N,) and `read(rows)`, the images of those rows in that order.

    `read` raises DataError naming the file or row of an image that cannot be decoded. `stored`:
    the same images undecoded; None where there is no such thing.
    """

    labels: IntArray
    read: Callable[[Sequence[int]], Iterator[Image.Image]]
    stored: Stored | None = None


@dataclass(frozen=True)
class Source:
    """A data set: the pool that draws are dealt from, and splits of its own, if any."""

    name: str
    class_names: tuple[str, ...]
    pool: Split
    val: Split | None = None
    test: Split | None = None

    def class_sizes(self, split: Split) -> IntArray:
        """How many images each class has in a split of this source, (classes,)."""
        return np.bincount(split.labels, minlength=len(self.class_names))

    def digest(self) -> str:
        """SHA-256 of what draws are dealt from: the same wherever it lies, 64 hex digits.

        It takes in class names, and of the pool and of validation images of their own, in their
        order: labels, stored sizes, and the bytes of a sample (see `stored.py`). No image is
        decoded; 40,000 files cost 40,000 calls of stat. The test split plays no part. Images that
        are replaced by others of the same size, outside the sample, go unnoticed here: a draw's
        own fingerprint is of every pixel.
        """
        hasher = hashlib.sha256(json.dumps(self.class_names).encode())
        for split in (self.pool, self.val):
            hasher.update(b"split" if split else b"none")
            if split:
                hasher.update(split.labels.astype("<i8").tobytes())
            if split and split.stored:
                hasher.update(split.stored.sizes().astype("<i8").tobytes())
                hasher.update(split.stored.sample())
        return hasher.hexdigest()


def decode_image(content: bytes | Path, where: str) -> Image.Image:
    """The image in these bytes or in this file.

    Raises:
        DataError: it cannot be decoded; says `where` it stands.
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.load()
            return image
    except Exception as err:  # noqa: BLE001 - each format of Pillow raises its own
        raise DataError(
            f"cannot read image {where} ({first_line(err)}): replace or remove it"
        ) from None


def visible_files(root: Path, extensions: Collection[str]) -> list[Path]:
    """Files with these extensions at any depth, in no hidden folder and not hidden."""
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in extensions
        and not any(part.startswith((".", "__")) for part in path.relative_to(root).parts)
        and path.is_file()
    ]
