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

TOGETHER = 256
"""Cells of a parquet file that are in memory at a time."""
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
        place: of rows, numbers that ascend as the images are stored.
    """

    items: Callable[[Sequence[int]], Iterator[tuple[str, Any]]]
    sizes: Callable[[], IntArray]
    sample: Callable[[], bytes]
    digests: Callable[[], Sequence[bytes]]
    place: Callable[[IntArray], IntArray] = lambda rows: rows

    def in_order(self, rows: IntArray) -> IntArray:
        """Which of these rows comes first as they are stored, second, …: so all are read once."""
        return np.argsort(self.place(rows), kind="stable")

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
            place=lambda wanted: self.place(rows[wanted]),
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
        """Some cells are in memory at a time."""
        first = 0
        for path in files:
            size = count_rows(path)
            here = rows[(rows >= first) & (rows < first + size)] - first
            cells = cells_at(path, column, here)
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
    """A column of a parquet file, whole: one of labels or groups.

    Raises:
        DataError: the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=[name], memory_map=True).column(0)
    except (pa.ArrowException, OSError) as err:
        raise DataError(f"cannot read {path} ({first_line(err)}): replace it") from None


def column_in_pieces(path: Path, name: str, rows: IntArray | None = None) -> Iterator[Any]:
    """A column of a parquet file, `TOGETHER` cells at a time, each piece with its first row.

    `rows`: groups of rows that hold none of these are passed over; None: none is.

    Raises:
        DataError: the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if rows is None or ((rows >= first) & (rows < first + size)).any():
                    at = first
                    for piece in file.iter_batches(TOGETHER, row_groups=[group], columns=[name]):
                        yield at, piece.column(0)
                        at += len(piece)
                first += size
    except (pa.ArrowException, OSError) as err:
        raise DataError(f"cannot read {path} ({first_line(err)}): replace it") from None


def cells_at(path: Path, name: str, rows: IntArray) -> Iterator[Any]:
    """The cells of these rows, ascending.

    Raises:
        DataError: the file cannot be read.
    """
    if rows.size:
        for first, piece in column_in_pieces(path, name, rows):
            here = rows[(rows >= first) & (rows < first + len(piece))] - first
            yield from piece.take(here).to_pylist() if here.size else ()


@lru_cache(maxsize=1024)
def _cell_marks(path: Path, name: str, _mtime_ns: int, _size: int) -> tuple[IntArray, bytes]:
    """Bytes of each cell of a file, and the digest of a sample; read once for a file as it is."""
    rows = np.array(spread(count_rows(path)), dtype=np.int64)
    sample = _digest_all(map(_bytes, cells_at(path, name, rows)))
    lengths = [_lengths(piece) for _, piece in column_in_pieces(path, name)]
    return np.concatenate([np.zeros(0, dtype=np.int64), *lengths]), sample


def _lengths(piece: Any) -> IntArray:  # noqa: ANN401
    """Bytes of each cell of a piece of a column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        cells = pc.struct_field(piece, "bytes") if pa.types.is_struct(piece.type) else piece
        lengths = pc.fill_null(pc.binary_length(cells), 0).to_numpy(zero_copy_only=False)
    except pa.ArrowException:  # no bytes there: decoding says so
        lengths = np.zeros(len(piece))
    found: IntArray = lengths.astype(np.int64)
    return found


@lru_cache(maxsize=64)
def _cell_digests(path: Path, name: str, _mtime_ns: int, _size: int) -> tuple[bytes, ...]:
    """SHA-256 of each cell of a file; read once for a file as it is."""
    return tuple(
        _digest_one(cell)
        for _, piece in column_in_pieces(path, name)
        for cell in piece.to_pylist()
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
