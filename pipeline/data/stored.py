"""Images as they are stored, before they are decoded: what tells one data set from another.

In: files, arrays or cells of parquet files, in the order of a split's rows. Out: a `Stored`: sizes
and bytes of images.
Where images lie, and what their files are called, plays no part: a copy of a folder, or one with
another name, is the same data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import IntArray
from pipeline.system.interrupts import check

SAMPLED = 128
"""Images of which a split's digest reads every byte; of the others it takes the size."""


@dataclass(frozen=True)
class Stored:
    """A split's N images, encoded.

    Attributes:
        sizes: bytes of each image, (N,).
        sample: SHA-256 over the bytes of at most `SAMPLED` images that are spread evenly.
        read: the bytes of these rows, which ascend; empty where they cannot be read.
    """

    sizes: Callable[[], IntArray]
    sample: Callable[[], bytes]
    read: Callable[[Sequence[int]], Iterator[bytes]]

    def part(self, rows: IntArray) -> Stored:
        """These rows of it, which ascend; the sample stays that of the whole."""
        return Stored(
            lambda: self.sizes()[rows],
            self.sample,
            lambda wanted: self.read([int(rows[i]) for i in wanted]),
        )


def spread(count: int, at_most: int = SAMPLED) -> list[int]:
    """Row numbers that lie evenly among `count`."""
    return [int(row) for row in np.linspace(0, count - 1, min(count, at_most)).astype(np.int64)]


def digest_all(contents: Iterable[bytes]) -> bytes:
    """SHA-256 over the SHA-256 of each."""
    hasher = hashlib.sha256()
    for content in contents:
        check()
        hasher.update(hashlib.sha256(content).digest())
    return hasher.digest()


def stored_files(files: Sequence[Path]) -> Stored:
    """Images that are a file each."""

    def size(path: Path) -> int:
        try:
            return path.stat().st_size
        except OSError:
            return 0

    def content(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError:
            return b""

    def read(rows: Sequence[int]) -> Iterator[bytes]:
        return (content(files[row]) for row in rows)

    return Stored(
        lambda: np.array([size(path) for path in files], dtype=np.int64),
        lambda: digest_all(read(spread(len(files)))),
        read,
    )


def stored_arrays(images: NDArray[np.uint8]) -> Stored:
    """Images of one size as an array, (N, ...)."""

    def read(rows: Sequence[int]) -> Iterator[bytes]:
        return (images[row].tobytes() for row in rows)

    size = images[0].nbytes if len(images) else 0
    return Stored(
        lambda: np.full(len(images), size, dtype=np.int64),
        lambda: digest_all(read(spread(len(images)))),
        read,
    )


def stored_cells(columns: Sequence[tuple[Path, str]]) -> Stored:
    """Images in cells of parquet files, each with its image column; one file is in memory."""

    def marks() -> list[tuple[IntArray, bytes]]:
        return [_cell_marks(path, name, *_version(path)) for path, name in columns]

    def read(rows: Sequence[int]) -> Iterator[bytes]:
        wanted, first = np.asarray(rows, dtype=np.int64), 0
        for (path, name), (sizes, _) in zip(columns, marks(), strict=True):
            here = wanted[(wanted >= first) & (wanted < first + len(sizes))] - first
            yield from _cells(_column(path, name), here) if here.size else ()
            first += len(sizes)

    return Stored(
        lambda: np.concatenate([sizes for sizes, _ in marks()]),
        lambda: digest_all(sample for _, sample in marks()),
        read,
    )


def _version(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size


@lru_cache(maxsize=1024)
def _cell_marks(path: Path, name: str, _mtime_ns: int, _size: int) -> tuple[IntArray, bytes]:
    """Bytes of each cell of a file, and the digest of a sample; read once for a file as it is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = _column(path, name)
    sample = digest_all(_cells(column, np.array(spread(len(column)), dtype=np.int64)))
    try:
        cells = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        lengths = pc.fill_null(pc.binary_length(cells), 0).to_numpy()
    except pa.ArrowException:  # no bytes there: decoding says so
        lengths = np.zeros(len(column))
    return lengths.astype(np.int64), sample


def _column(path: Path, name: str) -> Any:  # noqa: ANN401 - pyarrow has no types
    import pyarrow.parquet as pq

    return pq.read_table(path, columns=[name], memory_map=True).column(0)


def _cells(column: Any, rows: IntArray) -> Iterator[bytes]:  # noqa: ANN401
    for cell in column.take(rows).to_pylist():
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        yield content if isinstance(content, bytes) else b""
