"""Which folders are classes is seen, or refused with what was probably meant, never guessed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data.base import Source, Split
from pipeline.data.open import open_source
from pipeline.errors import DataError
from tests.conftest import class_image


def fill(root: Path, folders: str, count: int = 2) -> Path:
    """Folders of images, named with spaces between them; those that end with `!` stay empty."""
    for label, folder in enumerate(folders.split()):
        (root / folder.rstrip("!")).mkdir(parents=True, exist_ok=True)
        for number in range(0 if folder.endswith("!") else count):
            class_image(label, number).save(root / folder / f"{number}.png")
    return root


def opened(root: Path) -> Source:
    return open_source(str(root), root.parent / "cache")


def colours(split: Split | None) -> list[int]:
    """The strongest channel of each image: the class that `class_image` drew."""
    assert split is not None
    images = split.read(range(len(split.labels)))
    return [int(np.asarray(i).mean((0, 1)).argmax()) for i in images if isinstance(i, Image.Image)]


LIKE_SPLITS = "are named like splits"
TWO = "train/a train/b"


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        # splits that would become classes, and the folder that was meant
        ("train test", ["test, train are named like splits", "train/<class>/"]),
        (
            "seg_train/seg_train/a seg_train/seg_train/b seg_test/seg_test/a",
            [LIKE_SPLITS, "did you mean -P data={root}", "seg_train/seg_train? Or put"],
        ),
        *(
            (folders, [LIKE_SPLITS, f"did you mean -P data={{root}}/{meant}? Or put"])
            for folders, meant in (
                ("training_set/a training_set/b test_set/a test_set/b", "training_set"),
                ("train_images/a train_images/b val_images/a", "train_images"),
                ("trainSet/a trainSet/b testSet/a", "trainSet"),
                ("train2017/a train2017/b val2017/a", "train2017"),
                ("traindata/a traindata/b testdata/a pred/x", "traindata"),
                ("mnisttrain/a mnisttrain/b mnisttest/a", "mnisttrain"),
            )
        ),
        # either `train` is a class of vehicles, or the others are no data
        (
            "bus car train/steam train/electric",
            ["train holds folders (electric, steam)", "(bus, car)", "move them away"],
        ),
        *(
            (
                f"{TWO} {one}/a {one}/b {other}/a {other}/b",
                [f"{first} and {second} are both folders of {images} images"],
            )
            for one, other, first, second, images in (
                ("val", "validation", "val", "validation", "validation"),
                ("train", "training", "train", "training", "training"),
                ("test", "testing", "test", "testing", "test"),
                ("test", "eval", "eval", "test", "test"),
            )
        ),
        (
            "cats/train cats/test dogs/train dogs/test",
            ["the folders cats, dogs hold splits (test, train)", "test/cats"],
        ),
        (
            "train valid/a valid/b",
            ["train holds no folders, unlike valid: put the images of each class into"],
        ),
        # classes that lie deeper
        *(
            (folders, ["only one class", f"did you mean -P data={{root}}/{deeper}"])
            for folders, deeper in (
                ("flower_photos/daisy flower_photos/rose", "flower_photos"),
                ("images/train/a images/train/b images/val/a", "images"),
                ("x/y/z/a x/y/z/b", "x/y/z"),
                ("train/train/a train/train/b", "train/train"),
            )
        ),
        (
            " ".join(f"Dataset/{digit}" for digit in range(10)) + " Examples",
            ["Dataset (with folders 0, 1, 2,", "beside Examples", "-P data={root}/Dataset?"],
        ),
        (
            "dataset/train/a dataset/train/b docs",
            ["dataset (with folders train) would be a class beside docs", "/dataset?"],
        ),
        # folders that describe images
        (
            "images/cat images/dog masks/cat masks/dog",
            ["images beside masks: ", "no classes: did you mean", "/images?"],
        ),
        ("images annotations/trimaps", ["images beside annotations: ", "of its own"]),
        ("train/images train/masks", ["images beside masks: ", "of its own"]),
        ("images/cat images/dog parts!", ["images beside parts: ", "/images?"]),
        ("Images/cat Images/dog Annotation/x!", ["beside Annotation: ", "/Images?"]),
        ("images/cat images/dog docs!", ["a class beside docs", "/images?"]),
        # others
        (".", ["no images found", "images in no folder of a class: 2"]),
        ("café cafe\u0301", ["two folders named", "in two encodings"]),
    ],
)
def test_folders_that_are_no_classes_are_refused_with_what_was_meant(
    folders: str, words: list[str], tmp_path: Path
) -> None:
    fill(tmp_path, folders)
    message = ".*".join(re.escape(word.format(root=tmp_path)) for word in words)
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("folders", "classes", "note"),
    [
        # names that remind of splits
        ("bus car train", "bus car train", "the folder train is taken for a class"),
        ("airport train_station", "airport train_station", ""),
        ("testbed trainer", "testbed trainer", ""),
        ("cats dogs test", "cats dogs test", "the folder test is taken for a class"),
        (
            f"{TWO} val/a val/b screenshots",
            "a b",
            "not read, as they are beside the splits: the images in screenshots",
        ),
        (f"{TWO} test", "a b", "test holds images and no folder for each class: it is left out"),
        (
            "berlin/cat berlin/dog paris/cat paris/dog",
            "berlin paris",
            "every class holds the same folders (cat, dog)",
        ),
        (
            "cat dog/poodle dog/terrier",
            "cat dog",
            "class dog holds folders of its own (poodle, terrier)",
        ),
        ("cat dog .", "cat dog", "images in no folder of a class: 2"),
        *(
            (f"{name} zzz", f"{name} zzz", "")
            for name in ("null", "NA", "nan", "None", "$10_$20", "<b>", "a|b", "true")
        ),
    ],
)
def test_classes_are_the_folders_and_what_is_doubtful_is_told(
    folders: str, classes: str, note: str, tmp_path: Path
) -> None:
    source = opened(fill(tmp_path / "set", folders))
    assert " ".join(source.class_names) == classes
    assert len(source.notes) == bool(note)
    assert note in "".join(source.notes)
    assert source.test is None
    if "/" not in folders and "." not in folders:
        assert colours(source.pool) == [n for n in range(len(source.class_names)) for _ in "ab"]


@pytest.mark.parametrize("name", ["eval", "evaluation", "testing"])
def test_a_folder_for_evaluation_is_a_test_split(name: str, tmp_path: Path) -> None:
    source = opened(fill(tmp_path / "set", f"{TWO} {name}/a"))
    assert source.test is not None
    assert source.test.labels.tolist() == [0, 0]


# --- names ---------------------------------------------------------------------------------------


def test_a_class_whose_name_is_not_utf_8_is_refused_and_such_a_file_is_read(
    tmp_path: Path,
) -> None:
    root = os.fsencode(fill(tmp_path / "set", "bar cafe"))
    os.rename(root + b"/bar/0.png", root + b"/bar/caf\xe9.png")  # noqa: PTH104 - a path of bytes
    assert colours(opened(tmp_path / "set").pool) == [0, 0, 1, 1]
    os.rename(root + b"/cafe", root + b"/caf\xe9")  # noqa: PTH104 - a path of bytes
    with pytest.raises(DataError, match=r"set/caf\\xe9 is not UTF-8: rename it"):
        opened(tmp_path / "set")


def test_splits_of_a_mac_and_of_linux_name_the_same_classes(tmp_path: Path) -> None:
    """`é` as two characters sorts elsewhere, too: classes are matched by name, not by place."""
    root = fill(tmp_path / "set", "train/cafe\u0301 train/cafz test/café test/cafz")
    source = opened(root)
    assert source.class_names == ("cafe\u0301", "cafz")
    assert source.test is not None
    assert source.test.labels.tolist() == [0, 0, 1, 1]
    assert [channel % 3 for channel in colours(source.test)] == [2, 2, 0, 0]


def test_the_count_of_images_names_the_first_ten_classes(tmp_path: Path) -> None:
    first = "c (2), d (2), e (2), f (2), g (2), h (2), i (2), j (2) images and"
    for folders, count, expected in (
        ("a b", 2, "a, b (2 images each)"),
        ("b", 5, "a (2), b (5) images"),
        ("c d e f g h i j k l", 2, f"a (2), b (5), {first} 2 more (2 to 2 each)"),
        ("l", 3, f"a (2), b (5), {first} 2 more (2 to 3 each)"),
    ):
        source = opened(fill(tmp_path / "set", folders, count))
        assert source.classes_in_words == expected


def test_what_is_passed_over_is_told_and_stands_in_the_error_of_a_small_class(
    tmp_path: Path,
) -> None:
    root = fill(tmp_path / "set", "cats dogs")
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
    root = fill(tmp_path / "set", "cats dogs")
    table = pa.table({"file_name": ["cats/0.png"], "caption": ["a cat"]})
    pq.write_table(table, root / "metadata.parquet")
    source = opened(root)
    assert source.class_names == ("cats", "dogs")
    assert "metadata.parquet: not read" in source.notes[0]
