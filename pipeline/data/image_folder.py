"""Images in folders: one folder a class, with or without `train`, `val` and `test` above them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.source import SPLIT_NAMES, Source, Split, decode_image, visible_files
from pipeline.data.stored import stored_files
from pipeline.errors import DataError

NO_IMAGES = {".pdf", ".palm", ".h5", ".hdf", ".grib", ".bufr", ".mpg", ".mpeg"}
"""Extensions of formats that Pillow can name but not read."""


def open_image_folder(root: Path) -> Source:
    """The source in a folder.

    Raises:
        DataError: no images, no training split, or a class that training does not know.
    """
    folders = [path for path in sorted(root.iterdir()) if _is_folder(path)]
    split_folders = {
        SPLIT_NAMES[path.name.lower()]: path
        for path in folders
        if path.name.lower() in SPLIT_NAMES and any(map(_is_folder, path.iterdir()))
    }
    if split_folders and "train" not in split_folders:
        raise DataError(
            f"data={root}: holds {', '.join(sorted(split_folders))} but no train folder: name one "
            "train"
        )
    if not split_folders:
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
    extensions = set(Image.registered_extensions()) - NO_IMAGES
    return {
        path.name: visible_files(path, extensions)
        for path in sorted(folder.iterdir())
        if _is_folder(path)
    }


def _folder_split(by_class: dict[str, list[Path]], names: tuple[str, ...]) -> Split:
    files = [file for name in names for file in by_class.get(name, [])]
    counts = [len(by_class.get(name, [])) for name in names]
    labels = np.repeat(np.arange(len(names), dtype=np.int64), counts)
    return Split(
        labels,
        lambda rows: (decode_image(files[row], str(files[row])) for row in rows),
        stored_files(files),
    )
