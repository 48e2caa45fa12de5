"""Images as they are stored, before they are decoded: what tells one data set from another.

In: files, arrays or cells of parquet files, in the order of a split's rows. Out: a `Stored`.
Where images lie, and what their files are called, plays no part in digests: a copy of a folder, or
one with another name, is the same data set.
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
from pipeline.errors import DataError, first_line
from pipeline.system.interrupts import check

SAMPLED = 128
"""Images of which a split's digest reads every byte; of the others it takes the size."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A split's N images, encoded.

    Attributes:
        items: of these rows, in their order: where the image stands, and the image as a file, as
            pixels, or as a cell of a parquet file, which may hold nothing.
        sizes: bytes of each image, (N,).
        sample: SHA-256 over the bytes of at most `SAMPLED` images that are spread evenly.
        digests: SHA-256 of the bytes of each image; a file is read once by a process.
    """

    items: Callable[[Sequence[int]], Iterator[tuple[str, Any]]]
    sizes: Callable[[], IntArray]
    sample: Callable[[], bytes]
    digests: Callable[[], Sequence[bytes]]

    def read(self, rows: Sequence[int]) -> Iterator[bytes]:
        """The bytes of these rows; empty where they cannot be read."""
        return (_bytes(image) for _, image in self.items(rows))

    def part(self, rows: IntArray) -> Stored:
        """These rows; the sample stays that of the whole."""
        return Stored(
            items=lambda wanted: self.items(rows[list(wanted)].tolist()),
            sizes=lambda: self.sizes()[rows],
            sample=self.sample,
            digests=lambda: _at(self.digests(), rows),
        )


def spread(count: int) -> list[int]:
    """At most `SAMPLED` row numbers that lie evenly among `count`."""
    return [int(row) for row in np.linspace(0, count - 1, min(count, SAMPLED)).astype(np.int64)]


def stored_images(images: Sequence[Path] | NDArray[np.uint8]) -> Stored:
    """Images that are a file each, or pixels in one array, (N, ...)."""

    def items(rows: Sequence[int]) -> Iterator[tuple[str, Any]]:
        for row in rows:
            image = images[row]
            yield str(image) if isinstance(image, Path) else f"image {row}", image

    def size(image: Path | NDArray[np.uint8]) -> int:
        try:
            return image.stat().st_size if isinstance(image, Path) else image.nbytes
        except OSError:
            return 0

    return Stored(
        items=items,
        sizes=lambda: np.array([size(image) for image in images], dtype=np.int64),
        sample=lambda: _digest_all(_bytes(images[row]) for row in spread(len(images))),
        digests=lambda: [_digest_one(image) for image in images],
    )


def stored_cells(files: Sequence[Path], column: str) -> Stored:
    """Images in cells of parquet files."""

    def marks() -> list[tuple[IntArray, bytes]]:
        return [_cell_marks(path, column, *_state(path)) for path in files]

    def ascending(rows: IntArray) -> Iterator[tuple[str, Any]]:
        """One file is in memory at a time."""
        first = 0
        for path in files:
            size = count_rows(path)
            here = rows[(rows >= first) & (rows < first + size)] - first
            cells = read_column(path, column).take(here).to_pylist() if here.size else ()
            yield from ((f"{path} row {n}", cell) for n, cell in zip(here, cells, strict=True))
            first += size

    def items(rows: Sequence[int]) -> Iterator[tuple[str, Any]]:
        ordered = np.unique(np.array(rows, dtype=np.int64))
        if ordered.tolist() == list(rows):
            return ascending(ordered)
        by_row = dict(zip(ordered.tolist(), ascending(ordered), strict=True))
        return (by_row[row] for row in rows)

    return Stored(
        items=items,
        sizes=lambda: np.concatenate([sizes for sizes, _ in marks()]),
        sample=lambda: _digest_all(sample for _, sample in marks()),
        digests=lambda: [
            digest for path in files for digest in _cell_digests(path, column, *_state(path))
        ],
    )


def count_rows(path: Path) -> int:
    """How many rows a parquet file has; images are not read."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def read_column(path: Path, name: str) -> Any:  # noqa: ANN401 - pyarrow has no types
    """A column of a parquet file.

    Raises:
        DataError: the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=[name], memory_map=True).column(0)
    except (pa.ArrowException, OSError) as err:
        raise DataError(f"cannot read {path} ({first_line(err)}): replace it") from None


@lru_cache(maxsize=1024)
def _cell_marks(path: Path, name: str, _mtime_ns: int, _size: int) -> tuple[IntArray, bytes]:
    """Bytes of each cell of a file, and the digest of a sample; read once for a file as it is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = read_column(path, name)
    sample = _digest_all(map(_bytes, column.take(spread(len(column))).to_pylist()))
    try:
        cells = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        lengths = pc.fill_null(pc.binary_length(cells), 0).to_numpy()
    except pa.ArrowException:  # no bytes there: decoding says so
        lengths = np.zeros(len(column))
    return lengths.astype(np.int64), sample


@lru_cache(maxsize=64)
def _cell_digests(path: Path, name: str, _mtime_ns: int, _size: int) -> tuple[bytes, ...]:
    """SHA-256 of each cell of a file; read once for a file as it is."""
    return tuple(
        _digest_one(cell)
        for chunk in read_column(path, name).chunks
        for batch in range(0, len(chunk), 1000)
        for cell in chunk.slice(batch, 1000).to_pylist()
    )


@lru_cache(maxsize=1 << 18)
def _file_digest(path: Path, _mtime_ns: int, _size: int) -> bytes:
    return hashlib.sha256(_bytes(path)).digest()


def _digest_one(image: Any) -> bytes:  # noqa: ANN401
    check()
    if isinstance(image, Path):
        return _file_digest(image, *_state(image))
    return hashlib.sha256(_bytes(image)).digest()


def _state(path: Path) -> tuple[int, int]:
    """What tells that a file has changed: when it was written, and its size."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


def _at(digests: Sequence[bytes], rows: IntArray) -> list[bytes]:
    return [digests[row] for row in rows]


def _bytes(image: Any) -> bytes:  # noqa: ANN401
    if isinstance(image, Path):
        try:
            return image.read_bytes()
        except OSError:
            return b""
    if isinstance(image, np.ndarray):
        return image.tobytes()
    content = image.get("bytes") if isinstance(image, dict) else image
    return content if isinstance(content, bytes) else b""


def _digest_all(contents: Iterable[bytes]) -> bytes:
    """SHA-256 over the SHA-256 of each."""
    hasher = hashlib.sha256()
    for content in contents:
        check()
        hasher.update(hashlib.sha256(content).digest())
    return hasher.digest()
