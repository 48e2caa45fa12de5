"""Which folders are classes is seen, or refused with what was probably meant, never guessed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.base import Split
from tests.helpers import fill, opened, refused


def colours(split: Split | None) -> list[int]:
    """The strongest channel of each image: the class that `class_image` drew."""
    assert split is not None
    images = split.read(range(len(split.labels)))
    return [int(np.asarray(i).mean((0, 1)).argmax()) for i in images if isinstance(i, Image.Image)]


# --- folders that are not laid out as meant ------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train", "test"), "test, train are named like splits, but .* train/<class>/"),
        (
            ("seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a"),
            "{}/seg_train/seg_train? Or put",
        ),
        (("training_set/a", "training_set/b", "test_set/a"), "{}/training_set? Or put"),
        (("train_images/a", "train_images/b", "val_images/a"), "{}/train_images? Or put"),
        (("trainSet/a", "trainSet/b", "testSet/a"), "{}/trainSet? Or put"),
        (("train2017/a", "train2017/b", "val2017/a"), "{}/train2017? Or put"),
        (("traindata/a", "traindata/b", "testdata/a", "pred/x"), "{}/traindata? Or put"),
        (("mnisttrain/a", "mnisttrain/b", "mnisttest/a"), "{}/mnisttrain? Or put"),
        # either `train` is a class of vehicles, or the others are no data
        (
            ("bus", "car", "train/steam", "train/electric"),
            "train holds folders (electric, steam) .* (bus, car) .* move them away",
        ),
        (("train/a", "train/b", "val/a", "validation/a"), "val and validation are both folders"),
        (("train/a", "train/b", "training/a"), "train and training are both .* training images"),
        (("train/a", "train/b", "test/a", "eval/a"), "eval and test are both folders of test"),
        (("train", "valid/a", "valid/b"), "train holds no folders, unlike valid: put the images"),
        (
            ("cats/train", "cats/test", "dogs/train", "dogs/test"),
            "the folders cats, dogs hold splits (test, train) .* test/cats",
        ),
        (("flower_photos/daisy", "flower_photos/rose"), "only one class .* {}/flower_photos"),
        (("images/train/a", "images/train/b", "images/val/a"), "only one class .* {}/images"),
        (("x/y/z/a", "x/y/z/b"), "only one class .* {}/x/y/z"),
        (("train/train/a", "train/train/b"), "only one class .* {}/train/train"),
        (("Dataset/0", "Dataset/1", "Examples"), "Dataset (with folders 0, 1) .* {}/Dataset?"),
        (("dataset/train/a", "dataset/train/b", "docs"), "beside docs: {}/dataset?"),
        (("images/cat", "images/dog", "masks/cat"), "images beside masks: .* {}/images?"),
        (("images", "annotations/trimaps"), "images beside annotations: .* of its own"),
        (("train/images", "train/masks"), "images beside masks: .* of its own"),
        (("imgs", "gt"), "imgs beside gt: .* of its own"),
        (("images", "groundtruth"), "images beside groundtruth: .* of its own"),
        (
            ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets"),
            "JPEGImages beside ImageSets, SegmentationClass, SegmentationObject: .* of its own",
        ),
        (("leftImg8bit/cat", "leftImg8bit/dog", "gtFine/cat"), "beside gtFine: .* {}/left"),
        (("\u200b", "dogs"), "a class has no name that can be seen ('\\u200b')"),
        ((".",), "no images found .* images in no folder of a class: 2"),
        (("café", "cafe\u0301"), "two folders named .* in two encodings"),
    ],
    ids=str,
)
def test_folders_that_are_most_likely_no_classes_are_refused_with_what_was_meant(
    folders: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    told = words.replace("{}", f"did you mean -P data={tmp_path}")
    refused(fill(tmp_path, *folders), *told.split(" .* "))


@pytest.mark.parametrize(
    ("empty", "words"),
    [
        ("parts", "beside parts: "),
        ("Annotation/x", "beside Annotation: "),
        ("docs", "beside docs"),
    ],
)
def test_empty_folders_that_describe_images_are_no_classes(
    empty: str, words: str, tmp_path: Path
) -> None:
    fill(tmp_path, empty, count=0)
    refused(fill(tmp_path, "images/cat", "images/dog"), words, "/images?")


@pytest.mark.parametrize(
    ("folders", "classes", "note"),
    [
        (("car", "train", "bus"), ("bus", "car", "train"), "the folder train is taken for a"),
        (("train_station", "airport"), ("airport", "train_station"), ""),
        (("testbed", "trainer"), ("testbed", "trainer"), ""),
        (
            ("cats", "dogs", "test"),
            ("cats", "dogs", "test"),
            "the folder test is taken for a class",
        ),
        (
            ("train/a", "train/b", "val/a", "screenshots"),
            ("a", "b"),
            "not read, as they are beside the splits: the images in screenshots",
        ),
        (
            ("train/a", "train/b", "test"),
            ("a", "b"),
            "test holds images and no folder for each class: it is left out",
        ),
        (
            ("berlin/cat", "berlin/dog", "paris/cat", "paris/dog"),
            ("berlin", "paris"),
            "every class holds the same folders (cat, dog)",
        ),
        (
            ("cat", "dog/poodle", "dog/terrier"),
            ("cat", "dog"),
            "class dog holds folders of its own (poodle, terrier)",
        ),
        (("cat", "dog", "."), ("cat", "dog"), "images in no folder of a class: 2"),
        (("null", "$10_$20"), ("$10_$20", "null"), ""),
        (("<b>", "a|b"), ("<b>", "a|b"), ""),
        (
            ("cats", "cats ", "dogs"),
            ("cats", "cats ", "dogs"),
            "the classes 'cats', 'cats ' differ",
        ),
        (("Cat", "cat"), ("Cat", "cat"), "the classes 'Cat', 'cat' differ in case"),
        (("cat", "c\u200bat"), ("cat", "c\u200bat"), r"the classes 'cat', 'c\u200bat' differ"),
        (("with_mask", "without_mask"), ("with_mask", "without_mask"), ""),
    ],
    ids=str,
)
def test_what_may_be_meant_is_read_and_told(
    folders: tuple[str, ...], classes: tuple[str, ...], note: str, tmp_path: Path
) -> None:
    source = opened(fill(tmp_path, *folders))
    assert source.class_names == classes
    assert len(source.notes) == bool(note)
    assert "".join(source.notes).startswith(note)


# --- names ---------------------------------------------------------------------------------------


def test_a_class_whose_name_is_not_utf_8_is_spelled_out(tmp_path: Path) -> None:
    fill(tmp_path / "set", "bar", "cafe")
    root = os.fsencode(tmp_path / "set")
    os.rename(root + b"/cafe", root + b"/caf\xe9")  # noqa: PTH104 - a path of bytes
    found = opened(tmp_path / "set")
    assert found.class_names == ("bar", r"caf\xe9")
    assert colours(found.pool) == [0, 0, 1, 1]
    assert any(r"caf\xe9 is not UTF-8" in note for note in found.notes)


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


def test_the_count_of_images_names_the_first_ten_classes(tmp_path: Path) -> None:
    source = opened(fill(tmp_path / "set", "a", "b"))
    assert source.classes_in_words == "a, b (2 images each)"
    assert opened(fill(tmp_path / "two", "a ", "b")).classes_in_words.startswith("'a ', b (2")
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
        "files passed over: 20 .heic, 1 without an ending, 1 .zip, 1 broken link, 1 in the hidden "
        "folder .net",
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
