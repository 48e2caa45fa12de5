"""Images anywhere below a folder, their classes in a CSV file.

In: a folder, and a CSV file in it or elsewhere. Out: a `Source`, its classes sorted by name. A
column `split` with the words of splits makes splits, and so do CSV files in folders named after
splits, as Roboflow exports them. A file goes by its path below the folder, by the end of that
path, or by its name without the ending, as long as one image fits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from pipeline.data.base import Source, Split
from pipeline.data.folders.csv_table import LabelRow, read_label_rows
from pipeline.data.folders.listing import entries_of, image_endings, in_words, list_files
from pipeline.data.splits import SPLIT_NAMES
from pipeline.data.stored import stored_images
from pipeline.errors import DataError
from pipeline.system.disk.files import name_of, seen, typed_path
from pipeline.system.text import first_of, natural, normalised, one_line

NAMES = ("labels.csv", "_classes.csv")
"""CSV files that are read without being asked for."""


@dataclass(frozen=True, kw_only=True)
class _Labelled:
    """An image with its class, its split and its group."""

    path: Path
    label: str
    split: str
    group: str
    where: str


def find_csv_files(root: Path, labels: str) -> list[Path]:
    """The CSV files that hold the labels of a folder; none: its folders are the classes.

    Raises:
        DataError: the file that `labels` names is not there.
    """
    if labels:
        path = typed_path(labels, "labels")
        for there in (root / path, path):
            if seen(there.is_file):
                return [there]
        raise DataError(
            f"labels={labels}: no such file ({(root / path).absolute()}): pass the CSV file with "
            "a column of image files and one of labels"
        )

    def tables_in(folders: Iterable[Path]) -> list[Path]:
        found = (folder / name for folder in folders for name in NAMES)
        return [path for path in found if seen(path.is_file)]

    of_splits = {path: SPLIT_NAMES.get(path.name.lower()) for path in entries_of(root).folders}
    found = tables_in([root]) or tables_in(path for path in of_splits if of_splits[path])
    # a table of test images alone says nothing of the folders of classes beside it
    is_whole = any(of_splits.get(path.parent) in (None, "train") for path in found)
    return found if is_whole else []


def open_csv(
    root: Path, files: Sequence[Path], *, label_column: str, image_column: str, group: str
) -> tuple[Source, dict[str, list[str]]]:
    """The source of these CSV files, and the groups of each split where `group` is a column.

    Raises:
        DataError: columns, rows or files that cannot be used.
    """
    paths, others = list_files(root, image_endings())
    images = _Images(root, paths)
    columns = {"label_column": label_column, "image_column": image_column, "group": group}
    read = _read_all(root, files, images, columns)
    found, twice = read.found, read.twice
    names = ", ".join(
        str(file.relative_to(root) if root in file.parents else file) for file in files
    )
    by_split: dict[str, list[_Labelled]] = defaultdict(list)
    for path in sorted(found):
        by_split[found[path].split or "train"].append(found[path])
    classes = _classes(by_split, names)
    number_of = {name: number for number, name in enumerate(classes)}
    notes = [f"labels are read from {names}", *read.notes]
    if twice:
        notes.append(f"lines of {names} that name an image again, with the same label: {twice}")
    if 0 < (blank := sum(not one.split for one in found.values())) < len(found):
        notes.append(f"lines of {names} that name no split, which count as train: {blank}")
    if left := len(paths) - len(found):
        notes.append(f"images that {names} does not name, which are not read: {left}")
    splits = {
        split: Split(
            labels=np.array([number_of[one.label] for one in ones], dtype=np.int64),
            stored=stored_images([one.path for one in ones]),
        )
        for split, ones in by_split.items()
    }
    source = Source(
        name=name_of(root),
        class_names=tuple(classes),
        pool=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        notes=tuple(notes),
        passed_over=f"files passed over: {in_words(others)}" if others else "",
    )
    groups = {split: [one.group for one in ones] for split, ones in by_split.items()}
    return source, groups if read.grouped else {}


@dataclass(frozen=True, kw_only=True)
class _Read:
    """The images that are named, how many lines name one again, whether groups are a column."""

    found: dict[Path, _Labelled]
    twice: int
    grouped: bool
    notes: list[str]


def _read_all(
    root: Path, files: Sequence[Path], images: _Images, columns: Mapping[str, str]
) -> _Read:
    """The rows of all files.

    Raises:
        DataError: an image of two classes, or in two splits.
    """
    found: dict[Path, _Labelled] = {}
    grouped, twice = False, 0
    notes: list[str] = []
    for file in files:
        base = file.parent if root in file.parents else root
        is_image = partial(images.holds, base=base)
        table = read_label_rows(file, is_image, **columns)
        grouped |= table.has_group
        notes += filter(None, [table.note])
        for one in _labelled(file, table.rows, images, base, root):
            known = found.setdefault(one.path, one)
            twice += known is not one
            if known != replace(one, where=known.where):
                first, second = (
                    f"{one_line(o.label)}{f' in {o.split}' if o.split else ''}"
                    f"{f' of group {one_line(o.group)}' if o.group else ''} ({o.where})"
                    for o in (known, one)
                )
                raise DataError(
                    f"{file}: {one_line(one.path.name)} is {first} and {second}: keep one line"
                )
    found, of_folders = _by_folders(root, found)
    return _Read(found=found, twice=twice, grouped=grouped, notes=[*notes, *of_folders])


def _by_folders(
    root: Path, found: dict[Path, _Labelled]
) -> tuple[dict[Path, _Labelled], list[str]]:
    """The images with the splits that their folders are named after, where no file names any.

    With a line where such folders hold some of the images: then they are dealt together.
    """
    if any(one.split for one in found.values()):
        return found, []
    first = {path: path.relative_to(root).parts[:-1][:1] for path in found}
    splits = {path: SPLIT_NAMES.get("".join(part).lower(), "") for path, part in first.items()}
    there = {*splits.values()}
    if "train" not in there or len(there) == 1:
        return found, []
    if "" not in there:
        return {path: replace(one, split=splits[path]) for path, one in found.items()}, []
    folders = sorted({"".join(part) for path, part in first.items() if splits[path]})
    together = f"images in {first_of(folders)} are dealt together with images elsewhere"
    return found, [f"{together}: a column split keeps them apart"]


def _classes(by_split: Mapping[str, Sequence[_Labelled]], names: str) -> list[str]:
    """The classes of training rows, sorted.

    Raises:
        DataError: no training row, or a class that training does not know.
    """
    if "train" not in by_split:
        raise DataError(
            f"{names}: no row is of split train: name the split of training rows train"
        )
    known = {one.label for one in by_split["train"]}
    for split, ones in by_split.items():
        if unknown := next((one for one in ones if one.label not in known), None):
            raise DataError(
                f"{unknown.where}: class {one_line(unknown.label)} stands in {split} but not in "
                f"train: add it to train or remove it from {split}"
            )
    return sorted(known, key=natural)


def _labelled(
    file: Path, rows: Sequence[LabelRow], images: _Images, base: Path, root: Path
) -> list[_Labelled]:
    """The image of each row.

    Raises:
        DataError: files that are not there, names of several images, splits of no known name.
    """
    by_folder = SPLIT_NAMES.get(base.name.lower(), "") if base != root else ""
    missing: list[str] = []
    done = []
    for row, fitting in zip(rows, images.find_all([r.file for r in rows], base), strict=True):
        if len(fitting) > 1:
            raise DataError(
                f"{file}: line {row.line}: {one_line(row.file)} may be "
                f"{first_of([str(path.relative_to(root)) for path in fitting], 3)}: write the "
                f"path below {name_of(root)}"
            )
        split = SPLIT_NAMES.get(row.split.lower(), "") if row.split else by_folder
        if row.split and not split:
            raise DataError(
                f"{file}: line {row.line}: split {one_line(row.split)} is none of train, val and "
                "test: rename it"
            )
        if fitting:
            done.append(
                _Labelled(
                    path=fitting[0],
                    label=row.label,
                    split=split,
                    group=row.group,
                    where=f"{file.name} line {row.line}",
                )
            )
        else:
            missing.append(row.file)
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of {len(rows)} files are not below {root} "
            f"({first_of(missing, 5)}): add the images, or remove the rows"
        )
    return done


class _Images:
    """The images below a folder, by every end of their paths, with and without the ending."""

    def __init__(self, root: Path, paths: Sequence[Path]) -> None:
        self._root = root
        self._by_end: dict[str, list[Path]] = defaultdict(list)
        for path in paths:
            parts = path.relative_to(root).parts
            for start in range(len(parts)):
                end = _key("/".join(parts[start:]))
                for key in dict.fromkeys((end, end.removesuffix(path.suffix.lower()))):
                    self._by_end[key].append(path)

    def holds(self, text: str, base: Path) -> bool:
        """Whether a text may mean an image; a bare name that several images have may not."""
        found, _ = self._find(text, base)
        return len(found) == 1 or bool(found and PurePosixPath(text).suffix)

    def find_all(self, texts: Sequence[str], base: Path) -> list[list[Path]]:
        """The images that each text may mean; that at its very path, or in `base`, alone.

        Of absolute paths from another machine a beginning is left out. A path that fits only
        without more than another's beginning, such as `cat` after `/data/pets`, is of an image
        that is missing: one of the same name in another folder is another image.
        """
        found = [self._find(text, base) for text in texts]
        beginnings = {left_out for fitting, left_out in found if fitting and left_out is not None}

        def is_there(left_out: tuple[str, ...] | None) -> bool:
            shorter = range(len(left_out or ()))
            return not any((left_out or ())[:count] in beginnings for count in shorter)

        return [fitting if is_there(left_out) else [] for fitting, left_out in found]

    def _find(self, text: str, base: Path) -> tuple[list[Path], tuple[str, ...] | None]:
        """The images that a text may mean, and of an absolute path the beginning left out."""
        plain = PureWindowsPath(text).as_posix() if "\\" in text else text
        parts: list[str] = []
        for part in PurePosixPath(plain).parts:
            if part == "..":
                if not parts:
                    return [], None
                parts.pop()
            elif part not in ("/", "."):
                parts.append(part)
        is_absolute = PurePosixPath(plain).is_absolute() or bool(PureWindowsPath(text).drive)
        for start in range(len(parts) if is_absolute else 1):
            fitting = self._by_end.get(_key("/".join(parts[start:])), [])
            wanted = Path(*parts[start:])
            exact = [p for p in (base / wanted, self._root / wanted) if p in fitting]
            if fitting:
                return exact[:1] or fitting, tuple(parts[:start]) if is_absolute else None
        return [], None


def _key(text: str) -> str:
    return normalised(text).casefold()
