"""Images in parquet files, as Hugging Face lays them out.

In: files with a column of encoded images (bytes, or a struct that holds them) and a column of
labels. A file belongs to the split that its name or folder names, to the training split where none
does. Class names stand in each file's own metadata (`labels.py`). Out: a `Source`. Labels are read
at once, images only when asked for. Not covered: images that are paths, several labels an image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.base import SPLIT_NAMES, Read, Source, Split, Unreadable, decode_image
from pipeline.data.images import IntArray
from pipeline.data.parquet.columns import Columns, choose_columns, parquet_schema
from pipeline.data.parquet.labels import MISSING, Classes, FileLabels, labels_of, names_in
from pipeline.data.stored import stored_cells
from pipeline.errors import DataError, first_line
from pipeline.system.text import data_option, first_of

_SHARED = "; if they are parts of one data set, put them into one folder"


@dataclass(frozen=True)
class _File:
    """A parquet file that is read: its image column, and whether it has the label column."""

    path: Path
    image: str
    has_labels: bool


def open_parquet(
    root: Path, files: Sequence[Path], label_column: str = "", image_column: str = ""
) -> Source:
    """The source in these files, which lie under `root`, or are it.

    Raises:
        DataError: no training file, columns or labels that cannot be used, class names that do not
            agree, several configurations.
    """
    by_split, notes = _splits_of(root, files)
    _refuse_configurations(root, by_split)
    columns = choose_columns(by_split["train"][0], label_column, image_column)
    notes += columns.notes
    opened = {
        split: [_opened(path, columns, labels_needed=split != "test") for path in paths]
        for split, paths in by_split.items()
    }
    labels = {
        split: [_labels(file, columns.label) for file in theirs]
        for split, theirs in opened.items()
        if all(file.has_labels for file in theirs)
    }
    classes = Classes.of(labels["train"])
    splits = {}
    for split, theirs in opened.items():
        if split == "test" and _is_unlabelled(labels.get(split), classes):
            rows = sum(_count_rows(file.path) for file in theirs)
            notes.append(
                f"the test split ({rows} rows) has no labels in a column {columns.label}: it is "
                "left out"
            )
            continue
        numbers = [classes.numbers(file, split) for file in labels[split]]
        for file, found in zip(labels[split], numbers, strict=True):
            _refuse_missing(file, found)
        notes += [note for file in labels[split] if (note := classes.note(file))]
        stored = stored_cells([(file.path, file.image) for file in theirs])
        splits[split] = Split(np.concatenate(numbers), _reader(theirs), stored)
    return Source(
        name=root.name,
        class_names=classes.names,
        pool=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        notes=tuple(notes),
    )


def _splits_of(root: Path, files: Sequence[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each split; those that no word names are training files where none is named."""
    by_split: dict[str, list[Path]] = {}
    for path in files:
        by_split.setdefault(_split_of(path, root), []).append(path)
    unnamed = by_split.pop("", [])
    if unnamed and "train" in by_split:
        raise DataError(
            f"data={root}: {first_of([path.name for path in unnamed])}: no word in the name says "
            f"which split this belongs to, while {by_split['train'][0].name} is named: name files "
            "train-*, validation-* or test-*, or move them away"
        )
    if not unnamed and "train" not in by_split:
        raise DataError(
            f"data={root}: holds {first_of([path.name for path in files], 3)} but no training "
            "file: name one train-*.parquet"
        )
    if not unnamed:
        return by_split, []
    note = f"{first_of([path.name for path in unnamed], 3)}: taken for training, as no file is "
    notes = [f"{note}named train"] if by_split else []
    return {"train": unnamed} | by_split, notes


def _split_of(path: Path, root: Path) -> str:
    """From the words that name a split: in the file's name, else in its folders'; `` for none."""
    folders = path.relative_to(root).parts[:-1] if path != root else ()
    for name in (path.stem, *reversed(folders)):
        named = _named_splits(name)
        if len(named) > 1:
            raise DataError(
                f"data={root}: {path.name} names several splits ({', '.join(sorted(named))}): "
                "name one"
            )
        if named:
            return named.pop()
    return ""


def _named_splits(name: str) -> set[str]:
    words = re.findall("[a-z]+", name.lower())
    return {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}


def _refuse_configurations(root: Path, by_split: Mapping[str, Sequence[Path]]) -> None:
    """Refuse folders that each hold files of the same split: they are several data sets."""
    for paths in by_split.values():
        found = sorted({_configuration(path, root) for path in paths})
        if len(found) > 1:
            names = first_of([str(folder.relative_to(root)) for folder in found])
            raise DataError(
                f"data={root}: holds {len(found)} configurations, in the folders {names}: pass "
                f"one of them, {data_option(found[-1])}{_SHARED}"
            )


def _configuration(path: Path, root: Path) -> Path:
    """The folder that holds a file's data set: the one above a folder that names a split."""
    if path == root:
        return root.parent
    folder = root
    for part in path.relative_to(root).parts[:-1]:
        if _named_splits(part):
            break
        folder /= part
    return folder


def _opened(path: Path, columns: Columns, *, labels_needed: bool) -> _File:
    image = columns.image_in(path)
    has_labels = columns.label in parquet_schema(path).names
    if labels_needed and not has_labels:
        raise columns.missing(path)
    return _File(path, image, has_labels)


def _labels(file: _File, column: str) -> FileLabels:
    metadata = (parquet_schema(file.path).metadata or {}).get(b"huggingface")
    return labels_of(
        file.path, column, _read_column(file.path, column), names_in(metadata, column)
    )


def _is_unlabelled(labels: Sequence[FileLabels] | None, classes: Classes) -> bool:
    """Whether no row has a label, as in the test split of a competition: null or -1 in all."""
    if labels is None:
        return True
    nothing = "-1" not in classes.index
    return all(
        nothing and file.values[number] == -1
        for file in labels
        for number in np.unique(file.rows[file.rows != MISSING])
    )


def _refuse_missing(file: FileLabels, numbers: IntArray) -> None:
    missing = int((numbers == MISSING).sum())
    if missing:
        raise DataError(
            f"{file.path} has {missing} of {len(numbers)} rows without a label: remove them"
        )


def _count_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def _read_column(path: Path, name: str) -> Any:  # noqa: ANN401 - pyarrow has no types
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=[name], memory_map=True).column(0)
    except (pa.ArrowException, OSError) as err:
        raise DataError(f"cannot read {path} ({first_line(err)}): replace it") from None


def _reader(files: Sequence[_File]) -> Read:
    def read(rows: Sequence[int]) -> Iterator[Image.Image | Unreadable]:
        wanted = np.asarray(rows, dtype=np.int64)
        cells: dict[int, tuple[Any, str]] = {}
        first = 0
        for file in files:
            size = _count_rows(file.path)
            here = wanted[(wanted >= first) & (wanted < first + size)]
            if here.size:
                column = _read_column(file.path, file.image)
                for row, cell in zip(here, column.take(here - first).to_pylist(), strict=True):
                    cells[int(row)] = cell, f"{file.path} row {row - first}"
            first += size
        for row in wanted:
            cell, where = cells[int(row)]
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            if isinstance(content, bytes):
                yield decode_image(content, where)
            else:
                only = ", only a path" if isinstance(cell, dict) and cell.get("path") else ""
                yield Unreadable(where, f"no image bytes{only}: embed the image")

    return read
