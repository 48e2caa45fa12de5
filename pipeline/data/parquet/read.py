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

import numpy as np

from pipeline.data.base import Source, Split
from pipeline.data.folders.listing import names_of
from pipeline.data.groups import with_groups
from pipeline.data.parquet.columns import (
    Schemas,
    choose_columns,
    class_names,
    parquet_schema,
)
from pipeline.data.parquet.labels import Classes, FileLabels, check_lists, labels_of
from pipeline.data.splits import splits_in, twins_by_split
from pipeline.data.stored import count_rows, read_column, stored_cells
from pipeline.errors import DataError
from pipeline.system.disk.files import name_of
from pipeline.system.text import data_option, first_of, normalised


def open_parquet(
    root: Path, files: Sequence[Path], *, label_column: str, image_column: str, group: str = ""
) -> Source:
    """The source in these files; `root` is the folder above them, or the only file.

    `group`: a column whose values say which images stay together.

    Raises:
        DataError: no training file, columns or labels that cannot be used, class names that do not
            agree, several configurations.
    """
    by_split, notes = _splits_of(root, files)
    _refuse_configurations(root, by_split)
    schemas = {path: parquet_schema(path) for paths in by_split.values() for path in paths}
    tests = by_split.get("test", [])
    columns = choose_columns(
        schemas, [path for path in schemas if path not in tests], label_column, image_column
    )
    notes += columns.notes
    without = _without_labels(tests, columns.label, schemas)
    labels = {
        path: labels_of(path, name, read_column(path, name), class_names(schemas[path], name))
        for name in [columns.label]
        for path in schemas
        if path not in without
    }
    classes = Classes.of([labels[path] for path in by_split["train"]])
    check_lists([*labels.values()])
    if tests and _lacks_labels([labels[path] for path in tests if path in labels], classes):
        rows = sum(map(count_rows, by_split.pop("test")))
        notes.append(
            f"the test split ({rows} rows) has no labels in a column {columns.label}: it is left "
            "out"
        )
    splits = {}
    for split, paths in by_split.items():
        numbers = [classes.numbers(labels[path], split) for path in paths]
        notes += [note for path in paths if (note := classes.note(labels[path]))]
        splits[split] = Split(
            labels=np.concatenate(numbers), stored=stored_cells(paths, columns.image)
        )
    source = Source(
        name=name_of(root),
        class_names=classes.names,
        pool=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        notes=tuple(notes),
    )
    return _grouped(source, by_split, group) if group else source


def _without_labels(tests: Sequence[Path], label: str, schemas: Schemas) -> list[Path]:
    """Test files that lack the column of labels: all of them, or none.

    Raises:
        DataError: some lack the column.
    """
    without = [path for path in tests if label not in schemas[path].names]
    if without and len(without) < len(tests):
        raise DataError(
            f"{without[0]} has no column {label}, unlike other test files: add it, or "
            "move the file away"
        )
    return without


def _grouped(source: Source, by_split: Mapping[str, Sequence[Path]], group: str) -> Source:
    """The source whose images belong to the groups that a column names.

    Raises:
        DataError: a file has no such column.
    """
    for path in (path for paths in by_split.values() for path in paths):
        if group not in (names := parquet_schema(path).names):
            raise DataError(
                f"{path} has columns {first_of(names, 20)}, asked for group={group}: choose one "
                "of these"
            )
    groups, names = {}, {}
    for split, paths in by_split.items():
        cells = [cell for path in paths for cell in read_column(path, group).to_pylist()]
        texts = map(_group_of, cells)
        groups[split] = [text if text.strip() else "" for text in texts]
        names[split] = [f"{split} row {number}" for number in range(len(cells))]
    return with_groups(source, group, groups, names)


def _group_of(cell: object) -> str:
    """A group's name, the same for 12, 12.0 and "12": files may hold one column in other types."""
    if cell is None or cell != cell:  # only what is no number differs from itself
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return normalised(str(cell))


def _lacks_labels(files: Sequence[FileLabels], classes: Classes) -> bool:
    """Whether no file holds a label but -1, which names no class: a competition's test split."""
    return all(
        value == -1 and "-1" not in classes.index for file in files for value in file.values
    )


def _splits_of(root: Path, files: Sequence[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each split; files that no word names are for training where none is named."""
    by_split: dict[str, list[Path]] = {}
    for path in files:
        by_split.setdefault(_split_of(path, root), []).append(path)
    unnamed = by_split.pop("", [])
    if unnamed and "train" in by_split:
        raise DataError(
            f"data={root}: {names_of(unnamed)}: no word in the name says which split this belongs "
            f"to, while {by_split['train'][0].name} is named: name files train-*, validation-* or "
            "test-*, or move them away"
        )
    if twins := twins_by_split(path.stem for path in unnamed):
        raise DataError(
            f"data={root}: {' and '.join(twins)} differ in the word of a split, which does not "
            "stand by itself in the name: name files train-*, validation-* or test-*"
        )
    if not unnamed and "train" not in by_split:
        raise DataError(
            f"data={root}: holds {names_of(files, 3)} but no training file: name one "
            "train-*.parquet"
        )
    notes = _missing_shards(files)
    if unnamed and by_split:
        notes.append(f"{names_of(unnamed, 3)}: taken for training, as no file is named train")
    return {"train": unnamed or by_split.pop("train"), **by_split}, notes


def _missing_shards(files: Sequence[Path]) -> list[str]:
    """A note on each series `train-00000-of-00003` that is not whole."""
    series: dict[tuple[Path, str, int], set[str]] = {}
    for path in files:
        if named := re.fullmatch(r"(.*?)(\d+)-of-(\d+)", path.stem):
            series.setdefault((path.parent, named[1], int(named[3])), set()).add(named[2])
    return [
        f"{name}*-of-{count:05}: {len(there)} of {count} files are there, the images of the "
        "others are missing"
        for (_, name, count), there in series.items()
        if len(there) < count
    ]


def _folders_of(path: Path, root: Path) -> tuple[str, ...]:
    return path.relative_to(root).parts[:-1] if path != root else ()


def _split_of(path: Path, root: Path) -> str:
    """From the words that name a split: in the file's name, else in its folders'; `` for none."""
    for name in (path.stem, *reversed(_folders_of(path, root))):
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
    found: dict[str, list[Path]] = {
        split: [root.joinpath(*_above_splits(path, root)) for path in paths]
        for split, paths in by_split.items()
    }
    folders = sorted({folder for several in found.values() for folder in several})
    if len(folders) > 1:
        names = first_of([str(folder.relative_to(root)) for folder in folders])
        one = data_option(max(found["train"]))
        if not any(_split_of(path, root) for paths in by_split.values() for path in paths):
            raise DataError(
                f"data={root}: the folders {names} hold parquet files whose names speak of no "
                "split: if the folders are classes, put all images into one folder of files with "
                f"a column label; if they are several data sets, pass one of them, {one}"
            )
        raise DataError(
            f"data={root}: holds {len(folders)} configurations, in the folders {names}: pass one "
            f"of them, {one}; if they are parts of one data set, put "
            "them into one folder"
        )


def _above_splits(path: Path, root: Path) -> Iterator[str]:
    """The folders that lead to a file, down to the first that names a split."""
    for name in _folders_of(path, root):
        if splits_in(name):
            return
        yield name
