"""Images in parquet files, as Hugging Face lays them out.

In: files with a column of encoded images (bytes, or a struct that holds them) and a column of
labels. A file belongs to the split that its name or folder names, to the training split where none
does. Class names stand in each file's own metadata (`labels.py`). Out: a `Source`. Labels are read
at once, images only when asked for. Not covered: images that are paths, several labels an image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.base import Read, Source, Split, Unreadable, decode_image
from pipeline.data.images import IntArray, Ranges
from pipeline.data.parquet.columns import choose_columns, parquet_schema
from pipeline.data.parquet.labels import (
    MISSING,
    Classes,
    FileLabels,
    check_lists,
    labels_of,
)
from pipeline.data.parquet.metadata import names_in
from pipeline.data.splits import splits_in, twins_by_split
from pipeline.data.stored import stored_cells
from pipeline.errors import DataError, first_line
from pipeline.system.text import data_option, first_of

_SHARED = "; if they are parts of one data set, put them into one folder"


def open_parquet(
    root: Path,
    files: Sequence[Path],
    ranges: Ranges,
    label_column: str = "",
    image_column: str = "",
) -> Source:
    """The source in these files, which lie under `root`, or are it; see `open_image_folder`.

    Raises:
        DataError: no training file, columns or labels that cannot be used, class names that do not
            agree, several configurations.
    """
    by_split, notes = _splits_of(root, files)
    _refuse_configurations(root, by_split)
    tests = by_split.get("test", [])
    labelled = [path for split, paths in by_split.items() if split != "test" for path in paths]
    columns = choose_columns(labelled, tests, label_column, image_column)
    notes += columns.notes
    without = [path for path in tests if columns.label not in parquet_schema(path).names]
    if without and len(without) < len(tests):
        raise DataError(
            f"{without[0]} has no column {columns.label}, unlike other test files: add it, or "
            "move the file away"
        )
    labels = {
        split: [_labels(path, columns.label) for path in paths]
        for split, paths in by_split.items()
        if not (split == "test" and without)
    }
    classes = Classes.of(labels["train"])
    check_lists([file for files in labels.values() for file in files])
    splits = {}
    for split, paths in by_split.items():
        if split == "test" and _is_unlabelled(labels.get(split), classes):
            rows = sum(map(_count_rows, paths))
            notes.append(
                f"the test split ({rows} rows) has no labels in a column {columns.label}: it is "
                "left out"
            )
            continue
        numbers = [classes.numbers(file, split) for file in labels[split]]
        for file, found in zip(labels[split], numbers, strict=True):
            _refuse_missing(file, found)
        notes += [note for file in labels[split] if (note := classes.note(file))]
        stored = stored_cells([(path, columns.image) for path in paths])
        splits[split] = Split(
            np.concatenate(numbers), _reader(paths, columns.image, ranges), stored
        )
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
    if twins := twins_by_split(path.stem for path in unnamed):
        raise DataError(
            f"data={root}: {' and '.join(twins)} differ in the word of a split, which does not "
            "stand by itself in the name: name files train-*, validation-* or test-*"
        )
    if not unnamed and "train" not in by_split:
        raise DataError(
            f"data={root}: holds {first_of([path.name for path in files], 3)} but no training "
            "file: name one train-*.parquet"
        )
    notes = _missing_shards(files)
    if unnamed and by_split:
        names = first_of([path.name for path in unnamed], 3)
        notes.append(f"{names}: taken for training, as no file is named train")
    return ({"train": unnamed} if unnamed else {}) | by_split, notes


def _missing_shards(files: Sequence[Path]) -> list[str]:
    """A note on each series `train-00000-of-00003` that is not whole."""
    series: dict[tuple[Path, str, int], set[int]] = {}
    for path in files:
        if named := re.fullmatch(r"(.*?)(\d+)-of-(\d+)", path.stem):
            whole = path.parent, named[1], int(named[3])
            series.setdefault(whole, set()).add(int(named[2]))
    return [
        f"{name}*-of-{count:05}: {len(there)} of {count} files are there, the images of the "
        "others are missing"
        for (_, name, count), there in series.items()
        if len(there) < count
    ]


def _split_of(path: Path, root: Path) -> str:
    """From the words that name a split: in the file's name, else in its folders'; `` for none."""
    folders = path.relative_to(root).parts[:-1] if path != root else ()
    for name in (path.stem, *reversed(folders)):
        named = splits_in(name)
        if len(named) > 1:
            raise DataError(
                f"data={root}: {path.name} names several splits ({', '.join(sorted(named))}): "
                "name one"
            )
        if named:
            return named.pop()
    return ""


def _refuse_configurations(root: Path, by_split: Mapping[str, Sequence[Path]]) -> None:
    """Refuse several folders that each hold files of splits: they are several data sets."""
    found = sorted({_configuration(path, root) for paths in by_split.values() for path in paths})
    if len(found) > 1:
        names = first_of([str(folder.relative_to(root)) for folder in found])
        trains = max(_configuration(path, root) for path in by_split["train"])
        raise DataError(
            f"data={root}: holds {len(found)} configurations, in the folders {names}: pass one "
            f"of them, {data_option(trains)}{_SHARED}"
        )


def _configuration(path: Path, root: Path) -> Path:
    """The folder that holds a file's data set: the one above a folder that names a split."""
    if path == root:
        return root.parent
    folder = root
    for part in path.relative_to(root).parts[:-1]:
        if splits_in(part):
            break
        folder /= part
    return folder


def _labels(path: Path, column: str) -> FileLabels:
    metadata = (parquet_schema(path).metadata or {}).get(b"huggingface")
    return labels_of(path, column, _read_column(path, column), names_in(metadata, column))


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


def _reader(files: Sequence[Path], image_column: str, ranges: Ranges) -> Read:
    def read(rows: Sequence[int]) -> Iterator[Image.Image | Unreadable]:
        wanted = np.asarray(rows, dtype=np.int64)
        cells: dict[int, tuple[Any, str]] = {}
        first = 0
        for path in files:
            size = _count_rows(path)
            here = wanted[(wanted >= first) & (wanted < first + size)]
            if here.size:
                column = _read_column(path, image_column)
                for row, cell in zip(here, column.take(here - first).to_pylist(), strict=True):
                    cells[int(row)] = cell, f"{path} row {row - first}"
            first += size
        for row in wanted:
            cell, where = cells[int(row)]
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            if isinstance(content, bytes):
                yield decode_image(content, where, ranges)
            else:
                only = ", only a path" if isinstance(cell, dict) and cell.get("path") else ""
                yield Unreadable(where, f"no image bytes{only}: embed the image")

    return read
