"""Where images come from: a name or a path to labelled splits.

In: `digits`, `cifar10`, `cifar100`, or a path whose kind is seen from its content:
Hugging-Face-style parquet files, or a folder with a subfolder for each class, with or without
`train`/`val`/`test` above them. Out: a `Source`. Labels are read at once, images only when asked
for.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from pipeline.data.base import Source, Split, ranges_of
from pipeline.data.folders.image_folder import open_image_folder
from pipeline.data.folders.listing import entries_of, holds_images, list_files
from pipeline.data.images import DEEP_KINDS, IntArray, Ranges
from pipeline.data.parquet.columns import holds_image_column
from pipeline.data.parquet.labels import check_names
from pipeline.data.parquet.read import open_parquet
from pipeline.data.stored import stored_arrays
from pipeline.errors import DataError, DownloadError, first_line
from pipeline.system.files import holding
from pipeline.system.interrupts import at_once
from pipeline.system.text import first_of, one_line

NAMES = ("digits", "cifar10", "cifar100")
"""What `data` may be beside a path."""
DIGITS_TEST_PER_CLASS = 60
DOWNLOAD_TIMEOUT_S = 30.0


def open_source(
    data: str, cache_dir: Path, *, label_column: str = "", image_column: str = ""
) -> Source:
    """The source that `data` names; columns are those of parquet files, empty: the usual ones.

    Raises:
        DataError: nothing there, or nothing usable in it.
        DownloadError: CIFAR is not in `cache_dir` and could not be fetched.
    """
    columns = {"label_column": label_column, "image_column": image_column}
    named = {key: name for key, name in columns.items() if name}
    if data in NAMES:
        _refuse_columns(data, named)
        return _open_digits() if data == "digits" else _open_cifar(data, cache_dir / "data")
    path = Path(data).expanduser()
    if not path.exists():
        raise DataError(
            f"data={data}: neither digits, cifar10, cifar100 nor a path ({path.absolute()} does "
            "not exist): pass one of these, an image folder or a folder of parquet files"
        )
    if path.is_file() and path.suffix != ".parquet":
        raise DataError(
            f"data={data}: a file that is not .parquet: pass an image folder or parquet files"
        )
    parquet, notes = ([path], ()) if path.is_file() else _parquet_files(path, image_column)
    if not parquet:
        _refuse_columns(data, named)

    def opened(ranges: Ranges) -> Source:
        if parquet:
            return open_parquet(path, parquet, ranges, **named)
        return open_image_folder(path, ranges)

    source = opened({})
    if ranges := ranges_of(source.pool):
        source = replace(opened(ranges), ranges=ranges)
    _check_classes(data, source)
    if source.test is not None and not len(source.test.labels):
        notes = (*notes, "the test split holds no image: it is left out")
        source = replace(source, test=None)
    deep = tuple(
        f"deep images ({DEEP_KINDS[kind]}) are scaled from {low:g} to {high:g}"
        for kind, (low, high) in ranges.items()
    )
    return replace(source, notes=(*notes, *source.notes, *deep))


def _parquet_files(folder: Path, image_column: str) -> tuple[list[Path], tuple[str, ...]]:
    """The parquet files that are the data, and what is said of what lies beside them.

    Tables without a column of images, which describe images in folders, are not the data.
    """
    files = list_files(folder, {".parquet"}).files
    if not files:
        return [], ()
    folders = [path.name for path in entries_of(folder).folders if holds_images(path)]
    names = first_of([path.name for path in files], 3)
    if folders and not any(holds_image_column(path, image_column) for path in files):
        return [], (f"{names}: not read, as there is no column of images beside the folders",)
    if folders:
        return files, (
            f"images are read from {names}; those in the folders {first_of(folders)} are not",
        )
    return files, ()


def _refuse_columns(data: str, named: Mapping[str, str]) -> None:
    for key, name in named.items():
        raise DataError(f"{key}={name}: data={data} is no parquet file: leave {key} out")


def _check_classes(data: str, source: Source) -> None:
    check_names(source.class_names, data)
    if "label" in source.class_names:
        raise DataError(
            f"data={data}: a class is named label, as is the answer of the served model: rename it"
        )
    if len(source.class_names) < 2:
        raise DataError(
            f"data={data}: only one class ({one_line(source.class_names[0])}), a classifier needs "
            "two or more: add a class"
        )


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
        return Split(
            labels[rows],
            lambda wanted: (Image.fromarray(pixels[rows[i]]).convert("RGB") for i in wanted),
            stored_arrays(pixels[rows]),
        )

    names = tuple(str(n) for n in range(10))
    return Source(
        name="digits",
        class_names=names,
        pool=split(np.flatnonzero(~is_test)),
        test=split(np.flatnonzero(is_test)),
    )


def _open_cifar(name: str, folder: Path) -> Source:
    """CIFAR (Krizhevsky 2009) through torchvision, which checks the archive's and files' MD5."""
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset: Any = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        with holding(FileLock(folder / f"{name}.lock")), at_once():
            train, test = (dataset(folder, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError, HTTPException) as err:
        raise DownloadError(
            f"cannot download {name} from {dataset.url} ({first_line(err)}): put "
            f"{dataset.filename} (MD5 {dataset.tgz_md5}) into {folder.absolute()}, or pass "
            "-P data=<a folder of its parquet files or of your own images>, or -P data=digits, "
            "which downloads nothing"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)

    def split(part: Any) -> Split:  # noqa: ANN401 - torchvision has no types here
        labels = np.asarray(part.targets, dtype=np.int64)
        return Split(
            labels,
            lambda rows: (Image.fromarray(part.data[row]) for row in rows),
            stored_arrays(part.data),
        )

    return Source(name=name, class_names=tuple(train.classes), pool=split(train), test=split(test))
