"""What a label may be, and which class a label means.

In: the labels of each file, as Arrow holds them, and the class names that stand in that very file.
Out: one list of classes, and a class number for each row. Class names belong to the file they
stand in: two files may number the same classes in another order, so that numbers are brought
together by name. A label is a number or text; a row without a label (null, NaN, empty text) has no
class. Not covered: several labels a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.data.images import IntArray
from pipeline.errors import DataError, first_line
from pipeline.system.text import first_of, natural, normalised, one_line

MISSING = -1
"""The class number of a row without a label."""
Label = int | float | str | bool


@dataclass(frozen=True, kw_only=True)
class FileLabels:
    """One file's labels.

    Attributes:
        values: the different labels.
        rows: which of them each row has, `MISSING` for none, (N,).
        names: class name of each number, where the file lists them.
    """

    path: Path
    values: Sequence[Label]
    rows: IntArray
    names: Mapping[int, str] | None

    @property
    def has_numbers(self) -> bool:
        """Whether no label is text."""
        return not any(isinstance(value, str) for value in self.values)


def labels_of(path: Path, name: str, column: Any, names: Mapping[int, str] | None) -> FileLabels:  # noqa: ANN401
    """The labels in a column of a file, as pyarrow read it.

    Raises:
        DataError: lists or fractions as labels; two classes of one name.
    """
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kinds = (
        *(types.is_string, types.is_large_string, types.is_integer, types.is_floating),
        *(types.is_boolean, types.is_null),
    )
    other = "store class numbers or names, or choose another column with -P label_column="
    if not any(is_kind(column.type) for is_kind in kinds):
        several = ", several labels an image" if "list" in str(column.type) else ""
        raise DataError(f"{path}: column {name} holds {column.type}{several}: {other}")
    try:
        cells = column.to_numpy()
        if cells.dtype == object:
            cells = np.where(cells == "", None, cells)
        rows, values = pd.factorize(cells)
    except pa.ArrowException as err:
        raise DataError(
            f"{path}: column {name} holds text that is not UTF-8 ({first_line(err)}): {other}"
        ) from None
    labels = FileLabels(path=path, values=values.tolist(), rows=rows, names=names)
    for value in labels.values:
        if isinstance(value, float) and not value.is_integer():
            raise DataError(
                f"{path}: column {name} holds {value}, which is not a class number: {other}"
            )
    same = Counter(map(normalised, (names or {}).values()))
    for twice in (name for name, count in same.items() if count > 1):
        numbers = [str(n) for n, listed in (names or {}).items() if normalised(listed) == twice]
        raise DataError(
            f"{path}: classes {' and '.join(numbers)} are both named {one_line(twice)}: give each "
            "class a name of its own"
        )
    return labels


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes of a data set, as its training files name them.

    Attributes:
        names: in the order of their numbers.
        index: the number of each class by the name that the class has in any file.
        listed: what the numbers of files without names of their own mean; None: no training file
            lists names, and classes are what the labels are.
        source: the file whose names they are.
        are_numbers: the labels of the training files are numbers.
    """

    names: tuple[str, ...]
    index: Mapping[str, int]
    listed: Mapping[int, str] | None
    source: Path
    are_numbers: bool

    @classmethod
    def of(cls, files: Sequence[FileLabels]) -> Classes:
        """The classes of these training files.

        Raises:
            DataError: one file has truth values as labels, another numbers.
        """
        largest = max(files, key=lambda file: len(file.names or ()))
        if largest.names:
            found = {_key(name): name for name in largest.names.values()}
        else:
            _refuse_bool_and_numbers(files)
            found = {_key(value): str(value) for file in reversed(files) for value in file.values}
            found = dict(sorted(found.items(), key=lambda item: natural(item[1])))
        return cls(
            names=tuple(found.values()),
            index={key: number for number, key in enumerate(found)},
            listed=largest.names,
            source=largest.path,
            are_numbers=all(file.has_numbers for file in files),
        )

    def numbers(self, file: FileLabels, split: str) -> IntArray:
        """The class number of each row of a file, (N,).

        Raises:
            DataError: a row without a label, a label that is none of the classes, or two lists of
                names of which neither holds the other.
        """
        here, there = (
            set(map(_key, names)) for names in (self.names, (file.names or {}).values())
        )
        if self.listed and there and not (here <= there or there <= here):
            raise DataError(
                f"{self.source} lists the classes {first_of(self.names)}, {file.path} lists "
                f"{first_of([*(file.names or {}).values()])}: neither list holds the other: store "
                "all files with one list of classes, or move one of them away"
            )
        means = np.array([self._number(file, value, split) for value in file.values], np.int64)
        if missing := (file.rows == MISSING).sum():
            raise DataError(
                f"{file.path} has {missing} of {len(file.rows)} rows without a label: remove them"
            )
        numbers: IntArray = means[file.rows]
        return numbers

    def _number(self, file: FileLabels, value: Label, split: str) -> int:
        listed = self.listed if file.names is None else file.names
        if self.listed is None and self.are_numbers:
            listed = None  # numbers are all that the training files know
        if listed is None or (file.names is None and isinstance(value, str)):
            key = _key(value)
        elif isinstance(value, str):
            raise DataError(
                f"{file.path}: the {split} split has label {one_line(value)}, no number though "
                "its schema lists class names: store class numbers"
            )
        elif int(value) in listed:
            key = _key(listed[int(value)])
        else:
            whose = "" if file.names else f" of {self.source}"
            raise DataError(
                f"{file.path}: the {split} split has label {int(value)}, outside the "
                f"{len(listed)} classes{whose} ({first_of([*listed.values()])}): remove "
                "those rows"
            )
        if key not in self.index:
            raise DataError(
                f"{file.path}: class {one_line(key)} stands in {split} but not in train, which "
                f"has {first_of(self.names)}: add it to train or remove it from {split}"
            )
        return self.index[key]

    def note(self, file: FileLabels) -> str:
        """What is assumed of a file with numbers that lists names, or not, unlike the others."""
        if not file.has_numbers or not file.values:
            return ""
        if self.listed is not None and file.names is None:
            return (
                f"{file.path.name} lists no class names: its numbers are read as those of "
                f"{self.source.name}"
            )
        if self.listed is None and self.are_numbers and file.names is not None:
            return (
                f"{file.path.name} lists class names, the training files do not: classes go by "
                "their numbers"
            )
        return ""


def _key(value: Label) -> str:
    """What a class goes by: 3, 3.0 and `3` are the same class; True and 1 are two."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else normalised(str(value))


def _refuse_bool_and_numbers(files: Sequence[FileLabels]) -> None:
    """False and 0 would be two classes."""
    kinds = {
        isinstance(v, bool): f.path for f in files for v in f.values if not isinstance(v, str)
    }
    if len(kinds) > 1:
        raise DataError(
            f"{kinds[True]} has labels True and False, {kinds[False]} has numbers: store one kind "
            "in all files"
        )


def check_lists(files: Sequence[FileLabels]) -> None:
    """Refuse lists of names that contradict each other where a file without one relies on them.

    Raises:
        DataError: two files give one number two names.
    """
    relies = [file for file in files if not file.names and file.has_numbers and file.values]
    first: dict[int, tuple[str, Path]] = {}
    for file in files if relies else ():
        for number, name in (file.names or {}).items():
            other, path = first.setdefault(number, (name, file.path))
            if normalised(other) != normalised(name):
                raise DataError(
                    f"class {number} is {one_line(other)} in {path}, {one_line(name)} in "
                    f"{file.path}, and {relies[0].path.name} lists no names: store all files with "
                    "one list of classes"
                )
