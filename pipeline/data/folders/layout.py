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

from pipeline.data.folders.listing import Entries, entries_of, holds_images, image_endings
from pipeline.data.splits import SPLIT_NAMES, splits_in, twins_by_split, words_of
from pipeline.errors import DataError
from pipeline.system.text import data_option, first_of, is_unicode, normalised, one_line

SPLITS_IN_WORDS = {"train": "training", "val": "validation", "test": "test"}
_UNLABELLED = {
    "pred",
    "predict",
    "prediction",
    "predictions",
    "unlabeled",
    "unlabelled",
    "holdout",
}
_CONTAINERS = {
    *("data", "dataset", "datasets", "image", "images", "img", "imgs", "photo", "photos"),
    *("picture", "pictures"),
}
"""Words that name what lies above the classes, and no class."""
_DESCRIPTIONS = {
    *("annotation", "annotations", "attribute", "attributes", "bbox", "bboxes", "boxes", "label"),
    *("labels", "landmarks", "mask", "masks", "metadata", "parts", "segmentation"),
    *("segmentations", "trimap", "trimaps", "xml", "xmls"),
}
"""Words that name what describes images, and no class."""


@dataclass(frozen=True)
class Layout:
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


def find_layout(root: Path) -> Layout:
    """How a folder is laid out; splits may be empty, and have classes of their own.

    Raises:
        DataError: folders that are most likely no classes, or that cannot be told apart.
    """
    top = entries_of(root)
    named = [path for path in top.folders if path.name.lower() in SPLIT_NAMES]
    splits = [path for path in named if entries_of(path).folders]
    if splits:
        by_split, notes = _split_folders(root, top, splits)
    else:
        _refuse_splits_by_other_names(root, top)
        by_split = {"train": root}
        notes = [_note_on_flat_split(path) for path in named if len(top.folders) > 1]
    classes = {split: _classes(root, folder) for split, folder in by_split.items()}
    notes += _check_depth(root, classes["train"])
    above = [entries_of(folder) for folder in {root, *by_split.values()}]
    passed_over = sum((e.passed_over(image_endings()) for e in above), Counter[str]())
    return Layout(
        classes,
        tuple(notes),
        sum(len(e.with_endings(image_endings())) for e in above),
        passed_over,
    )


def _split_folders(
    root: Path, top: Entries, folders: list[Path]
) -> tuple[dict[str, Path], list[str]]:
    """The folder of each split; other folders that hold images are told, or refused."""
    by_split: dict[str, Path] = {}
    for path in folders:
        split = SPLIT_NAMES[path.name.lower()]
        if split in by_split:
            raise DataError(
                f"data={root}: {by_split[split].name} and {path.name} are both folders of "
                f"{SPLITS_IN_WORDS[split]} images: put their images into one of them, or move one "
                "away"
            )
        by_split[split] = path
    if "train" not in by_split:
        for path in top.folders:
            if SPLIT_NAMES.get(path.name.lower()) == "train":
                raise DataError(
                    f"data={root}: {path.name} holds no folders, unlike "
                    f"{first_of([p.name for p in folders])}: put the images of each class into a "
                    "folder of its own there"
                )
        raise DataError(
            f"data={root}: holds {', '.join(sorted(by_split))} but no train folder: name one train"
        )
    others = [p for p in top.folders if p not in folders and holds_images(p)]
    flat = [p for p in others if p.name.lower() in SPLIT_NAMES]
    others = [p for p in others if p not in flat]
    names = first_of([path.name for path in others])
    if others and list(by_split) == ["train"] and not flat:
        inside = first_of([path.name for path in entries_of(by_split["train"]).folders])
        raise DataError(
            f"data={root}: {by_split['train'].name} holds folders ({inside}), as a training split "
            f"does, but folders beside it hold images, too ({names}): if they are classes, leave "
            f"no folders in {by_split['train'].name}, or move them into it; if not, move them away"
        )
    notes = [
        f"{path.name} holds images and no folder for each class: it is left out" for path in flat
    ]
    if others:
        notes.append(f"not read, as they are beside the splits: the images in {names}")
    return by_split, notes


def _refuse_splits_by_other_names(root: Path, top: Entries) -> None:
    """Refuse folders that would all be classes and are all named like splits."""
    folders = [path for path in top.folders if holds_images(path)]
    twins = twins_by_split(path.name for path in folders) or ()
    like_splits = [
        path
        for path in folders
        if splits_in(path.name) or path.name in twins or "trainval" in words_of(path.name)
    ]
    alike = all(path in like_splits or words_of(path.name) & _UNLABELLED for path in folders)
    if len(folders) < 2 or not like_splits or not alike:
        return
    names = first_of([path.name for path in folders])
    meant = next((p for p in like_splits if "train" in p.name.lower()), like_splits[0])
    below = _where_folders_part(meant)
    if below is None:
        raise DataError(
            f"data={root}: {names} are named like splits, but hold images and no folder for each "
            f"class: put each class's images into a folder of its own ({meant.name}/<class>/…)"
        )
    raise DataError(
        f"data={root}: {names} are named like splits, not like classes: did you mean "
        f"{data_option(below)}? Or put their class folders right under folders named train, val "
        "and test"
    )


def _note_on_flat_split(path: Path) -> str:
    return (
        f"the folder {path.name} is taken for a class, as it holds no folders: a split would hold "
        "one folder for each class"
    )


def _classes(root: Path, folder: Path) -> dict[str, Path]:
    """Class name -> folder.

    Raises:
        DataError: a name that is not UTF-8, or two that are written alike.
    """
    found: dict[str, Path] = {}
    for path in entries_of(folder).folders:
        if not is_unicode(path.name):
            raise DataError(
                f"data={root}: the name of the folder {one_line(str(path))} is not UTF-8: rename "
                "it, it is the name of a class"
            )
        same = found.get(normalised(path.name))
        if same is not None:
            raise DataError(
                f"data={root}: {folder} holds two folders named {path.name}, of the same letters "
                "in two encodings: put their images into one"
            )
        found[normalised(path.name)] = path
    return {path.name: path for path in found.values()}


def _check_depth(root: Path, classes: Mapping[str, Path]) -> list[str]:
    """Notes on classes that hold folders of their own.

    Raises:
        DataError: these folders are splits, or the classes.
    """
    _refuse_images_beside_descriptions(root, list(classes.values()))
    inside: dict[Path, list[str]] = {}
    flat = []
    for path in classes.values():
        entries = entries_of(path)
        below = [folder.name for folder in entries.folders if holds_images(folder)]
        if below and not entries.with_endings(image_endings()):
            inside[path] = below
        elif below or entries.with_endings(image_endings()):
            flat.append(path)
    everything = {name for below in inside.values() for name in below}
    first = next(iter(inside), None)
    if (
        first
        and len(inside) > 1
        and not flat
        and all(n.lower() in SPLIT_NAMES for n in everything)
    ):
        example = f"{inside[first][0]}/{first.name}"
        raise DataError(
            f"data={root}: the folders {first_of([p.name for p in inside])} hold splits "
            f"({first_of(sorted(everything))}): put the splits above the classes ({example}/…)"
        )
    above = [p for p in inside if words_of(p.name) & _CONTAINERS and _where_folders_part(p)]
    if len(above) == 1 and len(classes) > 1:
        beside = first_of([path.name for path in classes.values() if path != above[0]])
        raise DataError(
            f"data={root}: {above[0].name} (with folders {first_of(inside[above[0]])}) would be a "
            f"class beside {beside}: did you mean {data_option(above[0])}?"
        )
    if len(inside) + len(flat) < 2 or not inside:
        return []  # one class: `only_one_class` says what was meant
    return _notes_on_folders(inside, whole=not flat)


def _refuse_images_beside_descriptions(root: Path, folders: list[Path]) -> None:
    """Refuse `images` beside `masks` or `annotations`: neither is a class."""
    above = [path for path in folders if words_of(path.name) & _CONTAINERS]
    beside = [path for path in folders if words_of(path.name) & _DESCRIPTIONS]
    if len(above) != 1 or not beside or len(beside) + 1 < len(folders):
        return
    below = _where_folders_part(above[0])
    meant = (
        f"did you mean {data_option(below)}?"
        if below
        else "put the images of each class into a folder of its own, and move the others away"
    )
    raise DataError(
        f"data={root}: {above[0].name} beside {first_of([path.name for path in beside])}: these "
        f"are images and what describes them, and no classes: {meant}"
    )


def _notes_on_folders(inside: Mapping[Path, list[str]], *, whole: bool) -> list[str]:
    counts = Counter(tuple(below) for below in inside.values())
    several = [path for path, below in inside.items() if len(below) > 1]
    if not several:
        return []
    held = first_of(inside[several[0]])
    if whole and len(counts) == 1:
        return [
            f"every class holds the same folders ({held}), whose images are pooled: if these are "
            "the classes, put them above the others"
        ]
    return [
        f"class {path.name} holds folders of its own ({first_of(below)}), whose images are "
        f"pooled: if these are the classes, pass {data_option(path)}"
        for path, below in list(inside.items())[:3]
        if path in several
    ]


def only_one_class(root: Path, classes: Mapping[str, Path]) -> DataError:
    """What to say where training images are of one class: the classes may lie deeper."""
    (name, path), *_ = classes.items()
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
        below = [path for path in entries_of(folder).folders if holds_images(path)]
        if len(below) != 1:
            return folder if below else None
        folder = below[0]
    return None
