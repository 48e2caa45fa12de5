"""What every source of images gives: labelled splits whose images are decoded when asked for."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.images import IntArray
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

    `read` raises DataError naming the file or row of an image that cannot be decoded.
    """

    labels: IntArray
    read: Callable[[Sequence[int]], Iterator[Image.Image]]


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
