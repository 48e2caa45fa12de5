"""Images in folders: one folder a class, with or without `train`, `val` and `test` above them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.base import Source, Split, Unreadable, decode_image
from pipeline.data.folders.layout import Layout, find_layout, only_one_class
from pipeline.data.folders.listing import image_endings, in_words, list_files
from pipeline.data.images import Ranges
from pipeline.data.stored import stored_files
from pipeline.errors import DataError
from pipeline.system.text import normalised


def open_image_folder(root: Path, ranges: Ranges) -> Source:
    """The source in a folder; `ranges`: those of its deep images.

    Raises:
        DataError: no images, no training split, a class that training does not know, or folders
            that are most likely no classes.
    """
    layout = find_layout(root)
    endings = image_endings()
    files: dict[str, dict[str, list[Path]]] = {}
    counts = layout.passed_over.copy()
    for split, classes in layout.splits.items():
        files[split] = {}
        for name, folder in classes.items():
            listing = list_files(folder, endings, above=(root, folder.parent))
            files[split][name] = listing.files
            counts += listing.passed_over
    passed_over = f"files passed over: {in_words(counts)}" if counts else ""
    loose = f"images in no folder of a class: {layout.loose}" if layout.loose else ""
    names = tuple(files["train"])
    if not any(files["train"].values()):
        raise _no_images(root, layout, loose)
    if len(names) == 1:
        raise only_one_class(root, layout.splits["train"])
    index = {normalised(name): number for number, name in enumerate(names)}
    splits = {}
    for split, by_class in files.items():
        unknown = sorted(name for name in by_class if normalised(name) not in index)
        if unknown:
            raise DataError(
                f"data={root}: class {unknown[0]} stands in {split} but not in train: add it to "
                f"train or remove it from {split}"
            )
        numbered = {index[normalised(name)]: paths for name, paths in by_class.items()}
        splits[split] = _folder_split([numbered.get(n, []) for n in range(len(names))], ranges)
    notes = (*layout.notes, *filter(None, (loose, passed_over)))
    return Source(
        name=root.name,
        class_names=names,
        pool=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        notes=notes,
        passed_over=passed_over,
    )


def _no_images(root: Path, layout: Layout, loose: str) -> DataError:
    classes = layout.splits["train"]
    place = next(iter(classes.values())).parent if classes else root
    others = list_files(place, image_endings()).passed_over
    there = f"files there: {in_words(others)}" if others else ""
    told = f" ({'; '.join(filter(None, (loose, there)))})" if loose or there else ""
    return DataError(
        f"data={root}: no images found under {place.absolute()}{told}: put one folder for each "
        "class there, with its images inside"
    )


def _folder_split(by_class: Sequence[Sequence[Path]], ranges: Ranges) -> Split:
    files = [file for of_class in by_class for file in of_class]
    labels = np.repeat(np.arange(len(by_class), dtype=np.int64), list(map(len, by_class)))

    def read(rows: Sequence[int]) -> Iterator[Image.Image | Unreadable]:
        return (decode_image(files[row], str(files[row]), ranges) for row in rows)

    return Split(labels, read, stored_files(files))
