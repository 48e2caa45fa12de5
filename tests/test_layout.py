"""Which folders are classes is seen, or refused with what was probably meant, never guessed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.base import Source, Split
from pipeline.data.open import open_source
from pipeline.errors import DataError
from tests.conftest import class_image


def fill(root: Path, *folders: str, count: int = 2) -> Path:
    for label, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            class_image(label, number).save(root / folder / f"{number}.png")
    return root


def opened(root: Path) -> Source:
    return open_source(str(root), root.parent / "cache")


def refused(root: Path, *words: str) -> None:
    with pytest.raises(DataError, match=".*".join(map(re.escape, words))):
        opened(root)


def colours(split: Split | None) -> list[int]:
    """The strongest channel of each image: the class that `class_image` drew."""
    assert split is not None
    images = split.read(range(len(split.labels)))
    return [int(np.asarray(i).mean((0, 1)).argmax()) for i in images if isinstance(i, Image.Image)]


# --- splits that would become classes ------------------------------------------------------------


def test_flat_splits_are_no_classes(tmp_path: Path) -> None:
    root = fill(tmp_path, "train", "test")
    refused(root, "test, train are named like splits", "train/<class>/")


@pytest.mark.parametrize(
    ("folders", "meant"),
    [
        (
            ("seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a"),
            "seg_train/*2",
        ),
        (("training_set/a", "training_set/b", "test_set/a", "test_set/b"), "training_set"),
        (("train_images/a", "train_images/b", "val_images/a"), "train_images"),
        (("trainSet/a", "trainSet/b", "testSet/a"), "trainSet"),
        (("train2017/a", "train2017/b", "val2017/a"), "train2017"),
        (("traindata/a", "traindata/b", "testdata/a", "pred/x"), "traindata"),
        (("mnisttrain/a", "mnisttrain/b", "mnisttest/a"), "mnisttrain"),
    ],
)
def test_splits_by_other_names_are_refused_with_the_folder_that_was_meant(
    folders: tuple[str, ...], meant: str, tmp_path: Path
) -> None:
    path = "seg_train/seg_train" if meant == "seg_train/*2" else meant
    refused(fill(tmp_path, *folders), "are named like splits", f"did you mean -P data={tmp_path}")
    refused(tmp_path, f"{path}? Or put")


@pytest.mark.parametrize(
    "folders", [("car", "train", "bus"), ("train_station", "airport"), ("testbed", "trainer")]
)
def test_classes_whose_names_remind_of_splits_are_classes(
    folders: tuple[str, ...], tmp_path: Path
) -> None:
    assert opened(fill(tmp_path / "set", *folders)).class_names == tuple(sorted(folders))


def test_a_flat_folder_of_a_split_among_classes_is_told(tmp_path: Path) -> None:
    (note,) = opened(fill(tmp_path / "set", "cats", "dogs", "test")).notes
    assert "the folder test is taken for a class" in note


def test_a_training_folder_beside_folders_of_images_is_refused(tmp_path: Path) -> None:
    """Either `train` is a class of vehicles, or the others are no data."""
    root = fill(tmp_path, "bus", "car", "train/steam", "train/electric")
    refused(root, "train holds folders (electric, steam)", "(bus, car)", "move them away")


def test_folders_beside_two_splits_are_left_out_and_told(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "train/a", "train/b", "val/a", "val/b", "screenshots")
    source = opened(root)
    assert source.class_names == ("a", "b")
    assert source.notes == ("not read, as they are beside the splits: the images in screenshots",)


def test_an_unlabelled_test_folder_is_left_out_and_told(tmp_path: Path) -> None:
    source = opened(fill(tmp_path / "set", "train/a", "train/b", "test"))
    assert (source.class_names, source.test) == (("a", "b"), None)
    assert source.notes == ("test holds images and no folder for each class: it is left out",)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("val", "validation", "validation images"),
        ("train", "training", "training images"),
        ("test", "testing", "test images"),
        ("test", "eval", "test images"),
    ],
)
def test_two_folders_of_one_split_are_refused(
    one: str, other: str, words: str, tmp_path: Path
) -> None:
    fill(tmp_path, "train/a", "train/b", f"{one}/a", f"{one}/b", f"{other}/a", f"{other}/b")
    first, second = sorted((one, other))
    refused(tmp_path, f"{first} and {second} are both folders of {words}")


def test_splits_inside_the_classes_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"{c}/{s}" for c in ("cats", "dogs") for s in ("train", "test")))
    refused(root, "the folders cats, dogs hold splits (test, train)", "test/cats")


@pytest.mark.parametrize("name", ["eval", "evaluation", "testing"])
def test_a_folder_for_evaluation_is_a_test_split(name: str, tmp_path: Path) -> None:
    source = opened(fill(tmp_path / "set", "train/a", "train/b", f"{name}/a"))
    assert source.test is not None
    assert source.test.labels.tolist() == [0, 0]


# --- classes that lie deeper ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "deeper"),
    [
        (("flower_photos/daisy", "flower_photos/rose"), "flower_photos"),
        (("images/train/a", "images/train/b", "images/val/a"), "images"),
        (("x/y/z/a", "x/y/z/b"), "x/y/z"),
        (("train/train/a", "train/train/b"), "train/train"),
    ],
)
def test_one_class_that_holds_the_classes_is_refused_with_the_folder_that_was_meant(
    folders: tuple[str, ...], deeper: str, tmp_path: Path
) -> None:
    refused(
        fill(tmp_path, *folders), "only one class", f"did you mean -P data={tmp_path / deeper}"
    )


def test_the_root_of_a_clone_is_refused_with_the_folder_that_was_meant(tmp_path: Path) -> None:
    digits = [f"Dataset/{digit}" for digit in range(10)]
    root = fill(tmp_path, *digits, "Examples")
    refused(root, "Dataset (with folders 0, 1, 2,", "beside Examples", f"-P data={root}/Dataset?")


def test_splits_in_a_folder_beside_another_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path, "dataset/train/a", "dataset/train/b", "docs")
    refused(root, "dataset (with folders train) would be a class beside docs", "/dataset?")


def test_a_training_folder_without_class_folders_is_named(tmp_path: Path) -> None:
    root = fill(tmp_path, "train", "valid/a", "valid/b")
    refused(root, "train holds no folders, unlike valid: put the images of each class into")


def test_images_beside_masks_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path, "images/cat", "images/dog", "masks/cat", "masks/dog")
    refused(root, "images beside masks: ", "no classes: did you mean", "/images?")


@pytest.mark.parametrize(
    ("folders", "empty", "words"),
    [
        (("images", "annotations/trimaps"), None, ("images beside annotations: ", "of its own")),
        (("train/images", "train/masks"), None, ("images beside masks: ", "of its own")),
        (("images/cat", "images/dog"), "parts", ("images beside parts: ", "/images?")),
        (("Images/cat", "Images/dog"), "Annotation/x", ("beside Annotation: ", "/Images?")),
        (("images/cat", "images/dog"), "docs", ("a class beside docs", "/images?")),
    ],
)
def test_folders_that_describe_images_are_no_classes(
    folders: tuple[str, ...], empty: str | None, words: tuple[str, str], tmp_path: Path
) -> None:
    root = fill(tmp_path, *folders)
    if empty:
        (root / empty).mkdir(parents=True)
    refused(root, *words)


def test_classes_that_hold_the_same_folders_are_told(tmp_path: Path) -> None:
    folders = [f"{place}/{kind}" for place in ("berlin", "paris") for kind in ("cat", "dog")]
    source = opened(fill(tmp_path / "set", *folders))
    assert source.class_names == ("berlin", "paris")
    (note,) = source.notes
    assert "every class holds the same folders (cat, dog)" in note


def test_a_class_with_folders_of_its_own_is_told(tmp_path: Path) -> None:
    source = opened(fill(tmp_path / "set", "cat", "dog/poodle", "dog/terrier"))
    assert source.class_names == ("cat", "dog")
    assert source.class_sizes(source.pool).tolist() == [2, 4]
    (note,) = source.notes
    assert "class dog holds folders of its own (poodle, terrier)" in note


def test_images_that_lie_in_no_class_are_counted(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "cat", "dog", ".")
    assert opened(root).notes == ("images in no folder of a class: 2",)


def test_images_without_any_class_folder_are_refused_with_their_number(tmp_path: Path) -> None:
    refused(fill(tmp_path / "set", "."), "no images found", "images in no folder of a class: 2")


# --- names ---------------------------------------------------------------------------------------


def test_a_class_whose_name_is_not_utf_8_is_refused_before_anything_is_read(
    tmp_path: Path,
) -> None:
    fill(tmp_path / "set", "bar", "cafe")
    root = os.fsencode(tmp_path / "set")
    os.rename(root + b"/cafe", root + b"/caf\xe9")  # noqa: PTH104 - a path of bytes
    refused(tmp_path / "set", r"set/caf\xe9 is not UTF-8: rename it")


def test_a_file_whose_name_is_not_utf_8_is_read(tmp_path: Path) -> None:
    fill(tmp_path / "set", "bar", "foo")
    folder = os.fsencode(tmp_path / "set" / "bar")
    os.rename(folder + b"/0.png", folder + b"/caf\xe9.png")  # noqa: PTH104 - a path of bytes
    assert colours(opened(tmp_path / "set").pool) == [0, 0, 1, 1]


def test_splits_of_a_mac_and_of_linux_name_the_same_classes(tmp_path: Path) -> None:
    """`é` as two characters sorts elsewhere, too: classes are matched by name, not by place."""
    root = fill(tmp_path / "set", "train/cafe\u0301", "train/cafz", "test/café", "test/cafz")
    source = opened(root)
    assert source.class_names == ("cafe\u0301", "cafz")
    assert source.test is not None
    assert source.test.labels.tolist() == [0, 0, 1, 1]
    assert [channel % 3 for channel in colours(source.test)] == [2, 2, 0, 0]


def test_two_folders_of_one_name_in_two_encodings_are_refused(tmp_path: Path) -> None:
    refused(fill(tmp_path / "set", "café", "cafe\u0301"), "two folders named", "in two encodings")


@pytest.mark.parametrize("name", ["null", "NA", "nan", "None", "$10_$20", "<b>", "a|b", "true"])
def test_a_name_is_a_name_whatever_it_looks_like(name: str, tmp_path: Path) -> None:
    source = opened(fill(tmp_path / "set", name, "zzz"))
    assert source.class_names == (name, "zzz")
    assert colours(source.pool) == [0, 0, 1, 1]


def test_the_count_of_images_names_the_first_ten_classes(tmp_path: Path) -> None:
    source = opened(fill(tmp_path / "set", "a", "b"))
    assert source.classes_in_words == "a, b (2 images each)"
    fill(tmp_path / "set", "b", count=5)
    assert opened(tmp_path / "set").classes_in_words == "a (2), b (5) images"
    fill(tmp_path / "set", *"cdefghijk")
    fill(tmp_path / "set", "l", count=3)
    assert opened(tmp_path / "set").classes_in_words == (
        "a (2), b (5), c (2), d (2), e (2), f (2), g (2), h (2), i (2), j (2) images and 2 more "
        "(2 to 3 each)"
    )


def test_what_is_passed_over_is_told_and_stands_in_the_error_of_a_small_class(
    tmp_path: Path,
) -> None:
    root = fill(tmp_path / "set", "cats", "dogs")
    for number in range(20):
        (root / "cats" / f"IMG_{number}.HEIC").write_bytes(b"\x00\x00\x00\x18ftypheic")
    for name in ("owl.zip", "noext", ".net/a.png", ".git/a.png", "@eaDir/a.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "birds").symlink_to(root / "nowhere")
    source = opened(root)
    assert source.class_names == ("cats", "dogs")
    assert source.notes == (
        "files passed over: 20 .heic, 1 without an ending, 1 .zip, 1 in the hidden folder .net, "
        "1 broken link",
    )
    assert source.passed_over == source.notes[0]


def test_tables_without_images_beside_class_folders_are_not_the_data(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = fill(tmp_path / "set", "cats", "dogs")
    table = pa.table({"file_name": ["cats/0.png"], "caption": ["a cat"]})
    pq.write_table(table, root / "metadata.parquet")
    source = opened(root)
    assert source.class_names == ("cats", "dogs")
    assert "metadata.parquet: not read" in source.notes[0]
