"""Where images come from: a name or a path to labelled splits.

In: `digits`, `cifar10`, `cifar100`, or a path whose kind is seen from its content:
Hugging-Face-style parquet files, a folder with a subfolder for each class, with or without
`train`/`val`/`test` above them, or a folder with a CSV file of labels. Out: a `Source`.
Labels are read at once, images only when asked for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.base import Source, Split, ranges_of
from pipeline.data.folders.csv_labels import find_csv_files, open_csv
from pipeline.data.folders.csv_table import ColumnsError
from pipeline.data.folders.image_folder import open_image_folder
from pipeline.data.folders.listing import entries_of, holds_images, list_files, names_of
from pipeline.data.groups import groups_of, with_groups
from pipeline.data.images import DEEP_KINDS, IntArray
from pipeline.data.parquet.columns import holds_image_column
from pipeline.data.parquet.read import open_parquet
from pipeline.data.stored import stored_images
from pipeline.errors import DataError, DownloadError, first_line
from pipeline.system.disk.files import holding, lock_for_all, storage_faults, typed_path
from pipeline.system.network.downloads import FAULTS, downloading
from pipeline.system.text import is_unicode, one_line

NAMES = ("digits", "cifar10", "cifar100")
"""What `data` may be beside a path."""
_UNSEEN = ("Cc", "Cf")
"""Categories of Unicode's signs that have no shape: they steer, or join others."""
DIGITS_TEST_PER_CLASS = 60
_TABLE = "is neither parquet files nor a folder with a CSV file of labels"
NEEDS = {
    "labels": "is no folder of images",
    "group": "has no groups",
    **dict.fromkeys(("label_column", "image_column"), _TABLE),
}
"""Why a setting is of no use."""


def open_source(
    data: str,
    cache_dir: Path,
    *,
    label_column: str = "",
    image_column: str = "",
    labels: str = "",
    group: str = "",
) -> Source:
    """The source that `data` names; the other settings as in `ExperimentSettings`.

    Raises:
        DataError: nothing there, or nothing usable in it.
        DownloadError: CIFAR is not in `cache_dir` and could not be fetched.
    """
    columns = {"label_column": label_column, "image_column": image_column}
    path = typed_path(data, "data")
    parquet, notes = ([], []) if data in NAMES else _parquet_files(data, path, image_column)
    tables = [] if data in NAMES or parquet else find_csv_files(path, labels)
    needs = {"group"} if data in NAMES else set()
    needs |= set() if tables else {"labels", *(() if parquet else columns)}
    for key, value in {**columns, "labels": labels, "group": group}.items():
        if value and key in needs:
            raise DataError(f"{key}={value}: data={data} {NEEDS[key]}: leave {key} out")
    if data == "digits":
        return _open_digits()
    if data in NAMES:
        return _open_cifar(data, cache_dir / "data")

    if parquet:
        source = open_parquet(path, parquet, **columns, group=group)
    else:
        source = _open_folder(path, tables, columns, group=group, asked=bool(labels))
    notes += _check_classes(data, source.class_names)
    for split, word in (("val", "validation"), ("test", "test")):
        part = getattr(source, split)
        if part and not len(part.labels):
            notes.append(f"the {word} split holds no image: it is left out")
            gone: dict[str, Any] = {split: None}
            source = replace(source, **gone)
    return _with_ranges(replace(source, notes=(*notes, *source.notes)), data)


def _with_ranges(source: Source, data: str) -> Source:
    """The source with one range for the deep images of all splits, which a note tells."""
    ranges = ranges_of(source.pool, data)
    pool, val, test = (
        split and replace(split, ranges=ranges) for split in (source.pool, source.val, source.test)
    )
    assert pool
    deep = [
        f"deep images ({DEEP_KINDS[kind]}) are scaled from {low:g} to {high:g}"
        for kind, (low, high) in ranges.items()
    ]
    return replace(source, pool=pool, val=val, test=test, notes=(*source.notes, *deep))


def _open_folder(
    root: Path, tables: list[Path], columns: dict[str, str], *, group: str, asked: bool
) -> Source:
    """Images in a folder; `tables`: CSV files with their labels, `asked`: named by a person.

    A file that nobody named, and that has no columns of images and labels, may be about
    something else: then the folders are the classes.
    """
    groups: dict[str, list[str]] = {}
    try:
        if not tables:
            source = open_image_folder(root)
        else:
            source, groups = open_csv(root, tables, **columns, group=group)
    except ColumnsError as err:
        if asked or any(columns.values()):
            raise
        try:
            source = open_image_folder(root)
        except DataError:
            raise err from None
        source = replace(source, notes=(*source.notes, f"not read as labels: {err}"))
    if not group:
        return source
    parts = {"train": source.pool, "val": source.val, "test": source.test}
    paths = {
        split: [
            Path(where).relative_to(root).as_posix()
            for where, _ in part.stored.items(range(len(part.labels)))
        ]
        for split, part in parts.items()
        if part
    }
    names = {split: [f"path {path}" for path in each] for split, each in paths.items()}
    return with_groups(source, group, groups or groups_of(group, paths), names)


def _parquet_files(data: str, path: Path, image_column: str) -> tuple[list[Path], list[str]]:
    """The parquet files that hold the images (none: image folders do), and notes.

    Parquet files without a column of images describe the images in the folders beside them.
    """
    try:
        is_file = path.is_file()
        there = path.exists()
    except (OSError, ValueError) as err:  # a folder above is closed, a name is too long
        why = getattr(err, "strerror", None) or str(err)
        raise DataError(
            f"data={data}: cannot be read ({why}): pass a path that you may read"
        ) from None
    if not there:
        raise DataError(
            f"data={data}: neither digits, cifar10, cifar100 nor a path ({path.absolute()} does "
            "not exist): pass one of these, an image folder or a folder of parquet files"
        )
    if is_file:
        if path.suffix.lower() == ".parquet":
            return [path], []
        if path.suffix.lower() in (".csv", ".tsv"):
            raise DataError(
                f"data={data}: a table, not images: pass the folder that holds the images as data "
                f"and this file as -P labels={data} (a column of files, a column of labels)"
            )
        raise DataError(
            f"data={data}: a file that is not .parquet: pass an image folder or parquet files"
        )
    files, _ = list_files(path, {".parquet"})
    folders = [below for below in entries_of(path).folders if holds_images(below)] if files else []
    if not folders:
        return files, []
    names = names_of(files, 3)
    if not any(holds_image_column(file, image_column) for file in files):
        return [], [f"{names}: not read, as there is no column of images beside the folders"]
    return files, [
        f"images are read from {names}; those in the folders {names_of(folders)} are not"
    ]


def _check_classes(data: str, names: Sequence[str]) -> list[str]:
    """A note on classes whose names look alike; refuses names that cannot be used."""
    alike: dict[str, list[str]] = {}
    for name in names:
        shown = "".join(letter for letter in name if unicodedata.category(letter) not in _UNSEEN)
        alike.setdefault(" ".join(shown.casefold().split()), []).append(name)
        if not shown.strip():
            raise DataError(
                f"data={data}: a class has no name that can be seen ({name!a}): give each class a "
                "name of its own"
            )
        if not is_unicode(name):
            raise DataError(
                f"data={data}: the class name {one_line(name)} is not UTF-8: rename it"
            )
    if "label" in names:
        raise DataError(
            f"data={data}: a class is named label, as is the answer of the served model: rename it"
        )
    if len(names) < 2:
        found = f"only one class ({one_line(names[0])})" if names else "no row, so no class"
        raise DataError(
            f"data={data}: {found}, a classifier needs two or more: add "
            f"{'a class' if names else 'images'}"
        )
    return [
        f"the classes {', '.join(map(repr, several))} differ in case, spaces or signs that are "
        "not seen alone: if they are one class, put their images together"
        for several in alike.values()
        if len(several) > 1
    ]


def _open_digits() -> Source:
    """1,797 8x8 digits (Alpaydin & Kaynak 1998); a fixed 60 a class are the test split."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        is_test[order[labels[order] == label][:DIGITS_TEST_PER_CLASS]] = True

    def split(rows: IntArray) -> Split:
        return Split(labels=labels[rows], stored=stored_images(pixels[rows]))

    return Source(
        name="digits",
        class_names=tuple("0123456789"),
        pool=split(np.flatnonzero(~is_test)),
        test=split(np.flatnonzero(is_test)),
    )


def _open_cifar(name: str, folder: Path) -> Source:
    """CIFAR (Krizhevsky 2009) through torchvision, which checks the archive's and files' MD5."""
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset: Any = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    try:
        train, test = (dataset(folder, train=part) for part in (True, False))
    except (OSError, RuntimeError):  # not there, not whole, or being unpacked
        train, test = _fetched(dataset, folder, name)

    def split(part: Any) -> Split:  # noqa: ANN401 - torchvision has no types here
        return Split(
            labels=np.asarray(part.targets, dtype=np.int64), stored=stored_images(part.data)
        )

    return Source(name=name, class_names=tuple(train.classes), pool=split(train), test=split(test))


def _fetched(dataset: Any, folder: Path, name: str) -> list[Any]:  # noqa: ANN401
    """Training and test images, fetched by one process at a time."""
    with storage_faults("the cache", folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with holding(lock_for_all(folder / f"{name}.lock")), downloading():
            return [dataset(folder, train=part, download=True) for part in (True, False)]
    except FAULTS as err:
        raise DownloadError(
            f"cannot download {name} from {dataset.url} ({first_line(err)}): put "
            f"{dataset.filename} (MD5 {dataset.tgz_md5}) into {folder.absolute()}, or pass "
            "-P data=<a folder of its parquet files or of your own images>, or -P data=digits, "
            "which downloads nothing"
        ) from None
