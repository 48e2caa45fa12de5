"""What a label may be, and which class it means.

In: the labels of each file, as Arrow holds them, and the class names that stand in that very file.
Out: one list of classes, and a class number for each row. Class names belong to the file they
stand in: two files may number the same classes in another order, so that numbers are brought
together by name. A label is a number or text; a row without one (null, NaN) has no class. Not
covered: several labels a row.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.images import IntArray
from pipeline.errors import DataError
from pipeline.system.text import first_of, is_unicode, normalised, one_line

MISSING = -1
"""The class number of a row without a label."""
Label = int | float | str | bool


@dataclass(frozen=True)
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
        """Whether labels are numbers and no text."""
        return not any(isinstance(value, str) for value in self.values)


def labels_of(path: Path, name: str, column: Any, names: Mapping[int, str] | None) -> FileLabels:  # noqa: ANN401
    """The labels in a column of a file, as pyarrow read it.

    Raises:
        DataError: labels that are none (lists, fractions, empty text), or names that are.
    """
    import pyarrow as pa

    types, kind = pa.types, column.type
    if types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    is_text = types.is_string(kind) or types.is_large_string(kind)
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    if not (is_text or is_number or types.is_null(kind)):
        several = ", several labels an image" if "list" in str(kind) else ""
        raise DataError(
            f"{path}: column {name} holds {kind}{several}: store one class number or name for "
            "each image, or choose another column with -P label_column="
        )
    if types.is_null(kind):
        return FileLabels(path, [], np.full(len(column), MISSING), names)
    if types.is_float16(kind):  # Arrow encodes no column of these
        column = column.cast(pa.float32())
    coded = column.combine_chunks().dictionary_encode()
    try:
        values = coded.dictionary.to_pylist()
    except UnicodeDecodeError as err:
        raise DataError(
            f"{path}: column {name} holds text that is not UTF-8, {err.object!r}: store it as "
            "UTF-8, or choose another column with -P label_column="
        ) from None
    rows = coded.indices.fill_null(MISSING).to_numpy(zero_copy_only=False).astype(np.int64)
    for number, value in enumerate(values):
        if isinstance(value, float) and math.isnan(value):
            rows[rows == number] = MISSING
    labels = FileLabels(path, values, rows, names)
    _check(labels, name)
    return labels


def _check(labels: FileLabels, column: str) -> None:
    for number in np.unique(labels.rows[labels.rows != MISSING]):
        value = labels.values[number]
        if isinstance(value, float) and not value.is_integer():
            raise DataError(
                f"{labels.path}: column {column} holds {value}, which is no class: store class "
                "numbers or names, or choose another column with -P label_column="
            )
        if value == "":
            count = int((labels.rows == number).sum())
            raise DataError(
                f"{labels.path}: column {column} holds empty text in {count} rows: name their "
                "class, or remove them"
            )
    twice = _repeated(labels.names.values()) if labels.names else None
    if twice:
        assert labels.names
        numbers = [n for n, name in labels.names.items() if normalised(name) == normalised(twice)]
        raise DataError(
            f"{labels.path}: classes {' and '.join(map(str, numbers))} are both named "
            f"{one_line(twice)}: give each class a name of its own"
        )


def _repeated(names: Any) -> str | None:  # noqa: ANN401 - any iterable of text
    count: Counter[str] = Counter(map(normalised, names))
    return next((name for name, times in count.items() if times > 1), None)


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, as its training files name them.

    Attributes:
        names: in the order of their numbers.
        index: the number of each class by the name that it has in any file.
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
            DataError: files list other names, and neither list holds the other.
        """
        are_numbers = all(file.has_numbers for file in files)
        naming = [file for file in files if file.names]
        if not naming:
            _refuse_bool_and_numbers(files)
            found: dict[str, str] = {}
            for file in files:
                for number in np.unique(file.rows[file.rows != MISSING]):
                    found.setdefault(_key(file.values[number]), str(file.values[number]))
            keys = sorted(found, key=lambda key: _natural(found[key]))
            names = tuple(found[key] for key in keys)
            index = {key: number for number, key in enumerate(keys)}
            return cls(names, index, None, files[0].path, are_numbers)
        largest = max(naming, key=lambda file: len(file.names or ()))
        assert largest.names
        names = tuple(largest.names.values())
        index = {_key(name): number for number, name in enumerate(names)}
        classes = cls(names, index, largest.names, largest.path, are_numbers)
        for file in naming:
            classes.check_agreement(file)
        return classes

    def check_agreement(self, file: FileLabels) -> None:
        """Refuse a file whose list of names neither holds this one nor is held by it."""
        if not file.names or self.listed is None:
            return
        here, there = (set(map(_key, names)) for names in (self.names, file.names.values()))
        if not (here <= there or there <= here):
            raise DataError(
                f"{self.source} lists the classes {first_of(self.names)}, {file.path} lists "
                f"{first_of(list(file.names.values()))}: neither list holds the other: store all "
                "files with one list of classes, or move one of them away"
            )

    def numbers(self, file: FileLabels, split: str) -> IntArray:
        """The class number of each row of a file, `MISSING` for a row without a label, (N,).

        Raises:
            DataError: a label that is none of the classes, or names that do not agree.
        """
        self.check_agreement(file)
        means = np.full(len(file.values) + 1, MISSING)  # the last one: of `MISSING`
        for number in np.unique(file.rows[file.rows != MISSING]):
            means[number] = self._number(file, file.values[number], split)
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
                f"{len(listed)} classes{whose} ({first_of(list(listed.values()))}): remove "
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
    """What a class goes by: 3, 3.0 and `3` are one; True and 1 are two."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else normalised(str(value))


def _natural(name: str) -> tuple[bool, float, str]:
    is_number = name.isdecimal()  # `²` is a digit and no number
    return (not is_number, float(name) if is_number else 0.0, name)


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
        DataError: says which files give one number two names.
    """
    if all(file.names or not (file.has_numbers and len(file.values)) for file in files):
        return
    first: dict[int, tuple[str, Path]] = {}
    for file in files:
        for number, name in (file.names or {}).items():
            other, path = first.setdefault(number, (name, file.path))
            if normalised(other) != normalised(name):
                (unlisted, *_) = (f.path for f in files if f.names is None)
                raise DataError(
                    f"class {number} is {one_line(other)} in {path}, {one_line(name)} in "
                    f"{file.path}, and {unlisted.name} lists no names: store all files with one "
                    "list of classes"
                )


def check_names(names: Sequence[str], data: str) -> None:
    """Refuse class names that cannot be stored, or that are one and the same.

    Raises:
        DataError: says which.
    """
    for name in names:
        if not name.strip():
            raise DataError(f"data={data}: a class has no name: give each class a name of its own")
        if not is_unicode(name):
            raise DataError(
                f"data={data}: the class name {one_line(name)} is not UTF-8: rename it"
            )
    twice = _repeated(names)
    if twice is not None:
        raise DataError(
            f"data={data}: two classes are named {one_line(twice)}: give each class a name of its "
            "own"
        )
