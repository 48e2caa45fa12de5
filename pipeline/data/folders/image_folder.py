"""Images in folders: one folder a class, with or without `train`, `val` and `test` above them."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.data.base import Source, Split
from pipeline.data.folders.layout import find_layout, only_one_class
from pipeline.data.folders.listing import image_endings, in_words, list_files
from pipeline.data.stored import stored_images
from pipeline.errors import DataError
from pipeline.system.disk.files import name_of
from pipeline.system.text import normalised


def open_image_folder(root: Path) -> Source:
    """The source in a folder.

    Raises:
        DataError: no images, no training split, a class that training does not know, or folders
            that are most likely no classes.
    """
    layout = find_layout(root)
    files: dict[str, dict[str, list[Path]]] = {}
    counts = layout.passed_over.copy()
    for split, classes in layout.splits.items():
        files[split] = {}
        for name, folder in classes.items():
            above = root, folder.parent
            files[split][normalised(name)], others = list_files(folder, image_endings(), above)
            counts += others
    train = layout.splits["train"]
    loose = f"images in no folder of a class: {layout.loose}" if layout.loose else ""
    if not any(files["train"].values()):
        place = next(iter(train.values())).parent if train else root
        _, others = list_files(place, image_endings())
        there = f"files there: {in_words(others)}" if others else ""
        told = "; ".join(filter(None, (loose, there)))
        raise DataError(
            f"data={root}: no images found under {place.absolute()}{told and f' ({told})'}: put "
            "one folder for each class there, with its images inside"
        )
    if len(train) == 1:
        raise only_one_class(root, train)
    for split, by_class in files.items():
        if unknown := sorted(by_class.keys() - files["train"].keys()):
            raise DataError(
                f"data={root}: class {unknown[0]} stands in {split} but not in train: add it to "
                f"train or remove it from {split}"
            )
    splits = {}
    for split, by_class in files.items():
        paths = [by_class.get(name, []) for name in files["train"]]
        labels = np.repeat(np.arange(len(paths), dtype=np.int64), list(map(len, paths)))
        splits[split] = Split(labels=labels, stored=stored_images([*chain(*paths)]))
    passed_over = f"files passed over: {in_words(counts)}" if counts else ""
    return Source(
        name=name_of(root),
        class_names=tuple(train),
        pool=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        notes=(*layout.notes, *filter(None, (loose, passed_over))),
        passed_over=passed_over,
    )
