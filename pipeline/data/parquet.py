"""Images in parquet files, as Hugging Face lays them out.

In: files with a column `img` or `image` (encoded bytes, or a struct that holds them) and a column
`label`; class names stand in the schema's metadata. A file belongs to the split that its name or
folder names, to the training split where none does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.images import IntArray
from pipeline.data.source import SPLIT_NAMES, Source, Split, decode_image
from pipeline.data.stored import Stored, digest_all, spread
from pipeline.errors import DataError, first_line


def open_parquet(root: Path, files: list[Path]) -> Source:
    """Hugging Face's layout: file names begin with the split, the schema has class names."""
    by_split: dict[str, list[Path]] = {}
    for path in files:
        by_split.setdefault(_split_of(path, root), []).append(path)
    if "train" not in by_split:
        raise DataError(
            f"data={root}: holds {', '.join(p.name for p in files[:3])} but no training file: "
            "name "
            "one train-*.parquet"
        )
    raw = {name: _parquet_labels(paths) for name, paths in by_split.items()}
    names = _parquet_class_names(by_split["train"][0])
    if names is None:
        names = tuple(sorted({str(value) for value in raw["train"]}, key=_natural))
        index = {name: i for i, name in enumerate(names)}
        raw = {split: [index.get(str(value), -1) for value in raw[split]] for split in raw}
    splits = {}
    for split, values in raw.items():
        try:
            labels = np.asarray(values, dtype=np.int64)
        except (ValueError, TypeError):
            raise DataError(
                f"data={root}: the {split} split has labels that are not numbers though its "
                "schema lists class names: store class numbers"
            ) from None
        if labels.size and not (labels.min() >= 0 and labels.max() < len(names)):
            bad = labels.min() if labels.min() < 0 else labels.max()
            raise DataError(
                f"data={root}: the {split} split has label {bad}, outside the {len(names)} "
                "classes of "
                "the training split: remove those rows"
            )
        files = by_split[split]
        splits[split] = Split(labels, _parquet_reader(files), _parquet_stored(files))
    return Source(root.name, names, splits["train"], splits.get("val"), splits.get("test"))


def _split_of(path: Path, root: Path) -> str:
    """From the first word that names a split: in the file's name, else in its folders'."""
    folders = path.relative_to(root).parts[:-1] if path != root else ()
    for name in (path.stem, *reversed(folders)):
        for word in re.findall("[a-z]+", name.lower()):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return "train"


def _natural(name: str) -> tuple[bool, float, str]:
    return (not name.isdigit(), float(name) if name.isdigit() else 0.0, name)


def _parquet_schema(path: Path) -> Any:  # noqa: ANN401 - pyarrow has no types
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as err:
        raise DataError(f"cannot read {path} ({first_line(err)}): replace it") from None


def _parquet_image_column(path: Path) -> str:
    columns = _parquet_schema(path).names
    image = next((name for name in ("img", "image") if name in columns), None)
    if image is None or "label" not in columns:
        raise DataError(
            f"{path} has columns {', '.join(columns)}: name the images `img` or `image` and the "
            "classes `label`"
        )
    return image


def _parquet_column(path: Path, name: str) -> Any:  # noqa: ANN401 - pyarrow has no types
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=[name], memory_map=True).column(0)
    except (pa.ArrowException, OSError) as err:
        raise DataError(f"cannot read {path} ({first_line(err)}): replace it") from None


def _parquet_labels(paths: list[Path]) -> list[Any]:
    labels: list[Any] = []
    for path in paths:
        _parquet_image_column(path)
        labels += _parquet_column(path, "label").to_pylist()
    if None in labels:
        raise DataError(f"{paths[0].parent} has rows without a label: remove them")
    return labels


def _parquet_class_names(path: Path) -> tuple[str, ...] | None:
    metadata = _parquet_schema(path).metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get("label", {}).get("names")
    return tuple(str(name) for name in names) if names else None


def _parquet_reader(paths: list[Path]) -> Callable[[Sequence[int]], Iterator[Image.Image]]:
    def read(rows: Sequence[int]) -> Iterator[Image.Image]:
        import pyarrow.parquet as pq

        wanted = np.asarray(rows, dtype=np.int64)
        cells: dict[int, tuple[bytes, str]] = {}
        first = 0
        for path in paths:
            size = pq.read_metadata(path).num_rows
            here = wanted[(wanted >= first) & (wanted < first + size)]
            if here.size:
                column = _parquet_column(path, _parquet_image_column(path))
                for row, cell in zip(here, column.take(here - first).to_pylist(), strict=True):
                    cells[int(row)] = _cell_bytes(cell), f"{path} row {row - first}"
            first += size
        for row in wanted:
            content, where = cells[int(row)]
            if not content:
                raise DataError(f"{where} holds no image bytes: replace or remove it")
            yield decode_image(content, where)

    return read


def _parquet_stored(paths: list[Path]) -> Stored:
    """The cells of these files undecoded; one file at a time is in memory."""

    def marks() -> list[tuple[IntArray, bytes]]:
        return [_cell_marks(path, *_version(path)) for path in paths]

    def read(rows: Sequence[int]) -> Iterator[bytes]:
        import pyarrow.parquet as pq

        wanted, first = np.asarray(rows, dtype=np.int64), 0
        for path in paths:
            size = pq.read_metadata(path).num_rows
            here = wanted[(wanted >= first) & (wanted < first + size)] - first
            yield from _cells(path, here) if here.size else ()
            first += size

    return Stored(
        lambda: np.concatenate([sizes for sizes, _ in marks()]),
        lambda: digest_all(sample for _, sample in marks()),
        read,
    )


def _version(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size


@lru_cache(maxsize=1024)
def _cell_marks(path: Path, _mtime_ns: int, _size: int) -> tuple[IntArray, bytes]:
    """Bytes of each cell of a file, and the digest of a sample; read once for a file as it is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = _parquet_column(path, _parquet_image_column(path))
    rows = np.array(spread(len(column)), dtype=np.int64)
    sample = digest_all(map(_cell_bytes, column.take(rows).to_pylist()))
    try:
        cells = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        lengths = pc.fill_null(pc.binary_length(cells), 0).to_numpy()
    except pa.ArrowException:  # no bytes there: decoding says so
        lengths = np.zeros(len(column))
    return lengths.astype(np.int64), sample


def _cells(path: Path, rows: IntArray) -> Iterator[bytes]:
    column = _parquet_column(path, _parquet_image_column(path))
    return (_cell_bytes(cell) for cell in column.take(rows).to_pylist())


def _cell_bytes(cell: object) -> bytes:
    value = cell.get("bytes") if isinstance(cell, dict) else cell
    return value if isinstance(value, bytes) else b""
