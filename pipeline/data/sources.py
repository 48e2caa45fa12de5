"""Where images come from: a name or a path to labelled splits.

In: `digits`, `cifar10`, `cifar100`, or a path whose kind is seen from its content:
Hugging-Face-style parquet files (`img` or `image`, and `label`) or a folder with a subfolder for
each class, with or without `train`/`val`/`test` above them. Out: a `Source`. Labels are read at
once, images only when asked for.
"""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from pipeline.data.images import IntArray
from pipeline.errors import DataError, DownloadError

DIGITS_TEST_PER_CLASS = 60
DOWNLOAD_TIMEOUT_S = 30.0
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Split:
    """Labelled images: `labels` (N,) and `read(rows)`, the images of those rows in that order.

    `read` raises DataError naming the file or row of an image that cannot be decoded.
    """

    labels: IntArray
    read: Callable[[Sequence[int]], Iterator[Image.Image]]


@dataclass(frozen=True)
class Source:
    """A data set: the pool that draws are dealt from, and splits of its own, if any."""

    name: str
    class_names: tuple[str, ...]
    pool: Split
    val: Split | None = None
    test: Split | None = None


def open_source(data: str, cache_dir: Path) -> Source:
    """The source that `data` names.

    Raises:
        DataError: nothing there, or nothing usable in it.
        DownloadError: CIFAR is not in `cache_dir` and could not be fetched.
    """
    if data == "digits":
        return _open_digits()
    if data in ("cifar10", "cifar100"):
        return _open_cifar(data, cache_dir / "data")
    path = Path(data).expanduser()
    if not path.exists():
        raise DataError(
            f"data={data}: neither digits, cifar10, cifar100 nor a path ({path.absolute()} does "
            "not "
            "exist): pass one of these, an image folder or a folder of parquet files"
        )
    parquet = [path] if path.suffix == ".parquet" else sorted(path.rglob("*.parquet"))
    source = _open_parquet(path, parquet) if parquet else _open_image_folder(path)
    if len(source.class_names) < 2:
        raise DataError(
            f"data={data}: only one class ({source.class_names[0]}), a classifier needs two or "
            "more: "
            "add a class"
        )
    return source


def _decode(content: bytes | Path, where: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.load()
            return image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        reason = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise DataError(f"cannot read image {where} ({reason}): replace or remove it") from None


# --- scikit-learn's digits -----------------------------------------------------------------------


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
            labels[rows], lambda wanted: (Image.fromarray(pixels[rows[i]]) for i in wanted)
        )

    names = tuple(str(n) for n in range(10))
    return Source(
        "digits", names, split(np.flatnonzero(~is_test)), test=split(np.flatnonzero(is_test))
    )


# --- CIFAR ---------------------------------------------------------------------------------------


def _open_cifar(name: str, folder: Path) -> Source:
    """CIFAR (Krizhevsky 2009) through torchvision, which checks the archive's and files' MD5."""
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset: Any = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        with FileLock(folder / f"{name}.lock"):
            train, test = (dataset(folder, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as err:
        raise DownloadError(
            f"cannot download {name} from {dataset.url} ({err}): put {dataset.filename} "
            f"(MD5 {dataset.tgz_md5}) into {folder.absolute()}, or use -P preset=digits, which "
            "downloads nothing"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)

    def split(part: Any) -> Split:  # noqa: ANN401 - torchvision has no types here
        labels = np.asarray(part.targets, dtype=np.int64)
        return Split(labels, lambda rows: (Image.fromarray(part.data[row]) for row in rows))

    return Source(name, tuple(train.classes), split(train), test=split(test))


# --- parquet files -------------------------------------------------------------------------------


def _open_parquet(root: Path, files: list[Path]) -> Source:
    """Hugging Face's layout: file names begin with the split, the schema has class names."""
    by_split: dict[str, list[Path]] = {}
    for path in files:
        word = path.stem.split("-")[0].split("_")[0].lower()
        by_split.setdefault(SPLIT_NAMES.get(word, "train"), []).append(path)
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
        labels = np.asarray(values, dtype=np.int64)
        if labels.size and not (labels.min() >= 0 and labels.max() < len(names)):
            bad = labels.min() if labels.min() < 0 else labels.max()
            raise DataError(
                f"data={root}: the {split} split has label {bad}, outside the {len(names)} "
                "classes of "
                "the training split: remove those rows"
            )
        splits[split] = Split(labels, _parquet_reader(by_split[split]))
    return Source(root.name, names, splits["train"], splits.get("val"), splits.get("test"))


def _natural(name: str) -> tuple[bool, float, str]:
    return (not name.isdigit(), float(name) if name.isdigit() else 0.0, name)


def _parquet_schema(path: Path) -> Any:  # noqa: ANN401 - pyarrow has no types
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as err:
        raise DataError(f"cannot read {path} ({str(err).splitlines()[0]}): replace it") from None


def _parquet_image_column(path: Path) -> str:
    columns = _parquet_schema(path).names
    image = next((name for name in ("img", "image") if name in columns), None)
    if image is None or "label" not in columns:
        raise DataError(
            f"{path} has columns {', '.join(columns)}: name the images `img` or `image` and the "
            "classes `label`"
        )
    return image


def _parquet_labels(paths: list[Path]) -> list[Any]:
    import pyarrow.parquet as pq

    labels: list[Any] = []
    for path in paths:
        _parquet_image_column(path)
        labels += pq.read_table(path, columns=["label"]).column("label").to_pylist()
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
        cells: dict[int, tuple[bytes | None, str]] = {}
        first = 0
        for path in paths:
            size = pq.read_metadata(path).num_rows
            here = wanted[(wanted >= first) & (wanted < first + size)]
            if here.size:
                table = pq.read_table(path, columns=[_parquet_image_column(path)], memory_map=True)
                for row, cell in zip(
                    here, table.column(0).take(here - first).to_pylist(), strict=True
                ):
                    content = cell.get("bytes") if isinstance(cell, dict) else cell
                    cells[int(row)] = content, f"{path} row {row - first}"
            first += size
        for row in wanted:
            content, where = cells[int(row)]
            if content is None:
                raise DataError(f"{where} holds no image bytes: replace or remove it")
            yield _decode(content, where)

    return read


# --- image folders -------------------------------------------------------------------------------


def _open_image_folder(root: Path) -> Source:
    folders = (
        [path for path in sorted(root.iterdir()) if _is_folder(path)] if root.is_dir() else []
    )
    split_folders = {
        SPLIT_NAMES[path.name.lower()]: path
        for path in folders
        if path.name.lower() in SPLIT_NAMES and any(map(_is_folder, path.iterdir()))
    }
    if "train" not in split_folders:
        split_folders = {"train": root}
    files = {split: _class_files(folder) for split, folder in split_folders.items()}
    names = tuple(files["train"])
    if not names or not any(files["train"].values()):
        raise DataError(
            f"data={root}: no images found under {split_folders['train'].absolute()}: put one "
            "folder "
            "for each class there, with its images inside"
        )
    splits = {}
    for split, by_class in files.items():
        unknown = sorted(set(by_class) - set(names))
        if unknown:
            raise DataError(
                f"data={root}: class {unknown[0]} stands in {split} but not in train: add it to "
                "train "
                f"or remove it from {split}"
            )
        splits[split] = _folder_split(by_class, names)
    return Source(root.name, names, splits["train"], splits.get("val"), splits.get("test"))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__"))


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its image files, deep ones too; other files are passed over."""
    extensions = Image.registered_extensions()
    return {
        path.name: [
            file
            for file in sorted(path.rglob("*"))
            if file.suffix.lower() in extensions and not file.name.startswith(".")
        ]
        for path in sorted(folder.iterdir())
        if _is_folder(path)
    }


def _folder_split(by_class: dict[str, list[Path]], names: tuple[str, ...]) -> Split:
    files = [file for name in names for file in by_class.get(name, [])]
    counts = [len(by_class.get(name, [])) for name in names]
    labels = np.repeat(np.arange(len(names), dtype=np.int64), counts)
    return Split(labels, lambda rows: (_decode(files[row], str(files[row])) for row in rows))
