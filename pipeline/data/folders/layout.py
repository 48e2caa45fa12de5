"""Which folders are splits, and which are classes.

In: the folder that `data` names. Out: class name -> folder for each split, and what was assumed.
A folder of folders is one folder a class; `train`, `val` and `test` above them, by any of their
names, are splits where they hold folders. A layout that people often have and that is neither
(splits by other names, a folder above the classes, splits below them) is refused with what was
probably meant; one that may be meant is told. Not covered: classes that stand in file names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.folders.listing import entries_of, holds_images, image_endings, names_of
from pipeline.data.splits import SPLIT_NAMES, splits_in, twins_by_split, words_of
from pipeline.errors import DataError
from pipeline.system.text import (
    as_text,
    data_option,
    first_of,
    is_unicode,
    normalised,
    one_line,
)

SPLITS_IN_WORDS = {"train": "training", "val": "validation", "test": "test"}
_UNLABELLED = {
    *("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "holdout")
}
_CONTAINERS = {
    *("data", "dataset", "datasets", "image", "images", "img", "imgs", "photo", "photos"),
    *("picture", "pictures"),
}
"""Words that name what lies above the classes, and no class."""
_DESCRIPTIONS = {
    *("ann", "anno", "annos", "annotation", "annotations", "anns", "attribute", "attributes"),
    *("bbox", "bboxes", "boxes", "contour", "contours", "depth", "edges", "groundtruth"),
    *("groundtruths", "gt", "gts", "instances", "keypoints", "label", "labels", "landmarks"),
    *("mask", "masks", "matte", "mattes", "metadata", "parts", "saliency", "seg", "segmentation"),
    *("segmentations", "segs", "semantic", "sets", "trimap", "trimaps", "truth", "xml", "xmls"),
}
"""Words that name what describes images, and no class."""


@dataclass(frozen=True, kw_only=True)
class FolderLayout:
    """How a folder is laid out.

    Attributes:
        splits: class name -> its folder, for each of train, val and test that is there.
        notes: what was assumed.
        loose: how many images lie beside the folders of the classes.
        passed_over: what else lies there, by kind.
    """

    splits: Mapping[str, Mapping[str, Path]]
    notes: tuple[str, ...]
    loose: int
    passed_over: Counter[str]


def find_layout(root: Path) -> FolderLayout:
    """How a folder is laid out; splits may be empty, and have classes of their own.

    Raises:
        DataError: folders that are most likely no classes, or that cannot be told apart.
    """
    top = entries_of(root).folders
    named = [path for path in top if path.name.lower() in SPLIT_NAMES]
    splits = [path for path in named if entries_of(path).folders]
    if splits:
        by_split, notes = _split_folders(root, top, splits)
    else:
        _refuse_splits_by_other_names(root, _with_images(root))
        by_split = {"train": root}
        notes = [
            f"the folder {path.name} is taken for a class, as it holds no folders: a split would "
            "hold one folder for each class"
            for path in named
            if len(top) > 1
        ]
    classes = {split: _classes(root, folder) for split, folder in by_split.items()}
    notes += _check_depth(root, [*classes["train"].values()])
    notes += [
        f"the name of the folder {name} is not UTF-8: the class is written as {name}"
        for name, path in classes["train"].items()
        if not is_unicode(path.name)
    ]
    above = [entries_of(folder) for folder in {root, *by_split.values()}]
    return FolderLayout(
        splits=classes,
        notes=tuple(notes),
        loose=sum(len(e.with_endings(image_endings())) for e in above),
        passed_over=sum((e.passed_over(image_endings()) for e in above), Counter[str]()),
    )


def _with_images(folder: Path) -> list[Path]:
    """The folders in a folder that hold images, at any depth."""
    return [path for path in entries_of(folder).folders if holds_images(path)]


def _split_folders(
    root: Path, top: list[Path], folders: list[Path]
) -> tuple[dict[str, Path], list[str]]:
    """The folder of each split; other folders that hold images are told, or refused."""
    by_split: dict[str, Path] = {}
    for path in folders:
        split = SPLIT_NAMES[path.name.lower()]
        if (same := by_split.setdefault(split, path)) != path:
            raise DataError(
                f"data={root}: {same.name} and {path.name} are both folders of "
                f"{SPLITS_IN_WORDS[split]} images: put their images into one of them, or move one "
                "away"
            )
    if "train" not in by_split:
        flat = [path for path in top if SPLIT_NAMES.get(path.name.lower()) == "train"]
        raise DataError(
            f"data={root}: {flat[0].name} holds no folders, unlike {names_of(folders)}: put the "
            "images of each class into a folder of its own there"
            if flat
            else f"data={root}: holds {', '.join(sorted(by_split))} but no train folder: name one "
            "train"
        )
    others = [path for path in top if path not in folders and holds_images(path)]
    flat = [path for path in others if path.name.lower() in SPLIT_NAMES]
    others = [path for path in others if path not in flat]
    if others and list(by_split) == ["train"] and not flat:
        train = by_split["train"]
        raise DataError(
            f"data={root}: {train.name} holds folders ({names_of(entries_of(train).folders)}), as "
            f"a training split does, but folders beside it hold images, too ({names_of(others)}): "
            f"if they are classes, leave no folders in {train.name}, or move them into it; if "
            "not, move them away"
        )
    notes = [
        f"{path.name} holds images and no folder for each class: it is left out" for path in flat
    ]
    if others:
        notes.append(f"not read, as they are beside the splits: the images in {names_of(others)}")
    return by_split, notes


def _refuse_splits_by_other_names(root: Path, folders: list[Path]) -> None:
    """Refuse folders that would all be classes and are all named like splits."""
    twins = twins_by_split(path.name for path in folders) or ()
    like_splits = [
        path
        for path in folders
        if splits_in(path.name) or path.name in twins or "trainval" in words_of(path.name)
    ]
    alike = all(path in like_splits or words_of(path.name) & _UNLABELLED for path in folders)
    if len(folders) < 2 or not like_splits or not alike:
        return
    meant = next((p for p in like_splits if "train" in p.name.lower()), like_splits[0])
    below = _where_folders_part(meant)
    raise DataError(
        f"data={root}: {names_of(folders)} are named like splits, not like classes: did you mean "
        f"{data_option(below)}? Or put their class folders right under folders named train, val "
        "and test"
        if below
        else f"data={root}: {names_of(folders)} are named like splits, but hold images and no "
        "folder for each class: put each class's images into a folder of its own "
        f"({meant.name}/<class>/…)"
    )


def _classes(root: Path, folder: Path) -> dict[str, Path]:
    """Class name -> folder.

    Raises:
        DataError: two names that are written alike.
    """
    found: dict[str, Path] = {}
    for path in entries_of(folder).folders:
        if found.setdefault(normalised(as_text(path.name)), path) != path:
            raise DataError(
                f"data={root}: {folder} holds two folders named {path.name}, of the same letters "
                "in two encodings: put their images into one"
            )
    return {as_text(path.name): path for path in found.values()}


def _check_depth(root: Path, classes: list[Path]) -> list[str]:
    """Notes on classes that hold folders of their own.

    Raises:
        DataError: these folders are splits, or the classes.
    """
    _refuse_images_beside_descriptions(root, classes)
    below = {path: _with_images(path) for path in classes}
    loose = {path for path in classes if entries_of(path).with_endings(image_endings())}
    inside = {path: folders for path, folders in below.items() if folders and path not in loose}
    flat = any(path in loose for path in classes)
    names = sorted({folder.name for folders in inside.values() for folder in folders})
    if len(inside) > 1 and not flat and all(name.lower() in SPLIT_NAMES for name in names):
        first, folders = next(iter(inside.items()))
        raise DataError(
            f"data={root}: the folders {names_of([*inside])} hold splits ({first_of(names)}): put "
            f"the splits above the classes ({folders[0].name}/{first.name}/…)"
        )
    above = [p for p in inside if words_of(p.name) & _CONTAINERS and _where_folders_part(p)]
    if len(above) == 1 and len(classes) > 1:
        beside = names_of([path for path in classes if path != above[0]])
        raise DataError(
            f"data={root}: {above[0].name} (with folders {names_of(inside[above[0]])}) would be a "
            f"class beside {beside}: did you mean {data_option(above[0])}?"
        )
    several = {path: folders for path, folders in inside.items() if len(folders) > 1}
    if len(inside) + len(loose) < 2 or not several:
        return []  # one class: `only_one_class` says what was meant
    if not flat and len({tuple(f.name for f in folders) for folders in inside.values()}) == 1:
        return [
            f"every class holds the same folders ({first_of(names)}), whose images are pooled: if "
            "these are the classes, put them above the others"
        ]
    return [
        f"class {path.name} holds folders of its own ({names_of(folders)}), whose images are "
        f"pooled: if these are the classes, pass {data_option(path)}"
        for path, folders in [*several.items()][:3]
    ]


def _refuse_images_beside_descriptions(root: Path, folders: list[Path]) -> None:
    """Refuse `images` beside `masks` or `annotations`: neither is a class."""
    beside = [path for path in folders if words_of(path.name) & _DESCRIPTIONS]
    above = [p for p in folders if words_of(p.name) & _CONTAINERS and p not in beside]
    if len(above) != 1 or not beside or len(beside) + 1 < len(folders):
        return
    below = _where_folders_part(above[0])
    meant = (
        f"did you mean {data_option(below)}?"
        if below
        else "put the images of each class into a folder of its own, and move the others away"
    )
    raise DataError(
        f"data={root}: {above[0].name} beside {names_of(beside)}: these are images and what "
        f"describes them, and no classes: {meant}"
    )


def only_one_class(root: Path, classes: Mapping[str, Path]) -> DataError:
    """What to say where training images are of one class: the classes may lie deeper."""
    [(name, path)] = classes.items()
    below = _where_folders_part(path)
    meant = f"did you mean {data_option(below)}?" if below else "add a class"
    return DataError(
        f"data={root}: only one class ({one_line(name)}), a classifier needs two or more: {meant}"
    )


def _where_folders_part(folder: Path) -> Path | None:
    """The first folder from here on that holds several folders with images; None: none does."""
    seen = set()
    while folder.resolve() not in seen:
        seen.add(folder.resolve())
        below = _with_images(folder)
        if len(below) != 1:
            return folder if below else None
        folder = below[0]
    return None
