"""A class number means what the names of its own file say; what is no label is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data.base import Source, Split
from pipeline.data.open import open_source
from pipeline.errors import DataError
from tests.conftest import class_image
from tests.helpers import opened, refused

COLOURS = ("red", "green", "blue")
"""What `class_image` draws for 0, 1 and 2: in these tests an image's colour is its class."""
RED_BLUE = ["red", "blue"]
Seen = list[tuple[str, str]]


def hugging_face(names: object) -> bytes:
    return json.dumps({"info": {"features": {"label": {"names": names}}}}).encode()


def png(colour: str, number: int) -> bytes:
    buffer = io.BytesIO()
    class_image(COLOURS.index(colour), number).save(buffer, "PNG")
    return buffer.getvalue()


def write(
    path: Path,
    colours: Sequence[str],
    labels: Sequence[object] | pa.Array,
    names: object = None,
    metadata: bytes = b"",
    **others: object,
) -> Path:
    """Pictures of these colours, labelled so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [png(colour, number) for number, colour in enumerate(colours)]
    table = pa.table({"image": images, "label": labels, **others})
    metadata = hugging_face(names) if names is not None else metadata
    pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), path)
    return path


def write_all(root: Path, **files: tuple[Any, ...]) -> Path:
    """Files by name: colours, labels and, where the file lists them, the names of classes."""
    for name, content in files.items():
        write(root / f"{name.replace('_', '-')}.parquet", *content)
    return root


def seen(source: Source, split: Split | None) -> Seen:
    """Of every image: its colour, and the name of the class that it was given."""
    assert split is not None
    images = list(split.read(range(len(split.labels))))
    return [
        (COLOURS[int(np.asarray(image).mean((0, 1)).argmax())], source.class_names[label])
        for image, label in zip(images, split.labels, strict=True)
        if isinstance(image, Image.Image)
    ]


def right(*colours: str) -> Seen:
    return [(colour, colour) for colour in colours]


# --- names belong to their file ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test", "named", "note"),
    [
        ((RED_BLUE, [1, 0], ["blue", "red"]), (RED_BLUE, [0, 1], RED_BLUE), right(*RED_BLUE), ""),
        (
            (COLOURS, [1, 2, 0], ["blue", "red", "green"]),
            (["green", "red"], [0, 1], ["green", "red"]),
            right("green", "red"),
            "",
        ),
        ((RED_BLUE, [0, 1], RED_BLUE), (["blue"], [2], COLOURS), right("blue"), ""),
        ((RED_BLUE, [1, 0], ["blue", "red"]), (RED_BLUE, RED_BLUE), right(*RED_BLUE), ""),
        (
            (RED_BLUE, [1, 0], ["blue", "red"]),
            (["blue", "red"], [0, 1]),
            right("blue", "red"),
            "test.parquet lists no class names: its numbers are read as those of train.parquet",
        ),
        (
            (RED_BLUE, [0, 1]),
            (["blue", "red"], [1, 0], RED_BLUE),
            [("blue", "1"), ("red", "0")],
            "test.parquet lists class names, the training files do not",
        ),
        ((RED_BLUE, [0, 10]), (["blue", "red"], [10.0, 0.0]), [("blue", "10"), ("red", "0")], ""),
        ((RED_BLUE, [-1, 1]), (["red"], [-1]), [("red", "-1")], ""),
        ((COLOURS, [10, 2, 7]), (["green", "red"], [2, 10]), [("green", "2"), ("red", "10")], ""),
    ],
    ids=[
        "another order",
        "a class less",
        "a class more, of which no image is",
        "text",
        "numbers without names",
        "names that training lacks",
        "whole numbers as floats",
        "a class -1",
        "natural order",
    ],
)
def test_the_labels_of_a_test_file_are_read_by_name(
    train: tuple[Any, ...], test: tuple[Any, ...], named: Seen, note: str, tmp_path: Path
) -> None:
    """Pandas makes floats of whole numbers once a row has none."""
    source = opened(write_all(tmp_path, train=train, test=test))
    assert seen(source, source.test) == named
    assert source.class_names == tuple(sorted(source.class_names, key=len)) or len(train) == 3
    if len(train) == 3:
        assert source.class_names == tuple(train[2])
        assert seen(source, source.pool) == right(*train[0])
    assert len(source.notes) == bool(note)
    assert "".join(source.notes).startswith(note)


def test_shards_of_one_split_are_brought_together_by_name(tmp_path: Path) -> None:
    source = opened(
        write_all(
            tmp_path,
            train_0=(RED_BLUE, [0, 1], RED_BLUE),
            train_1=(RED_BLUE, [1, 0], ["blue", "red"]),
            train_2=(["green", "blue"], [0, 2], ["green", "red", "blue"]),
            validation=(["blue", "red"], [0, 1], ["blue", "red"]),
        )
    )
    assert source.class_names == ("green", "red", "blue")  # of the file that lists most
    assert seen(source, source.pool) == right("red", "blue", "red", "blue", "green", "blue")
    assert seen(source, source.val) == right("blue", "red")


@pytest.mark.parametrize("other", ["test", "validation", "train_1"])
def test_names_that_do_not_agree_are_refused_with_both_lists(other: str, tmp_path: Path) -> None:
    files = {"train_0": (RED_BLUE, [0, 1], RED_BLUE)}
    files[other] = ["red", "green"], [0, 1], ["red", "green"]
    refused(write_all(tmp_path, **files), "lists", "red, blue", "lists red, green", "neither list")


@pytest.mark.parametrize("train", [None, RED_BLUE])
def test_lists_that_contradict_each_other_are_refused_where_a_file_has_none(
    train: list[str] | None, tmp_path: Path
) -> None:
    """Its numbers could mean either."""
    write_all(
        tmp_path,
        train=(RED_BLUE, [0, 1], train),
        validation=(RED_BLUE, [0, 1], None if train else RED_BLUE),
        test=(RED_BLUE, [1, 0], ["blue", "red"]),
    )
    refused(tmp_path, "class 0 is", "test.parquet", "lists no names")


def test_truth_values_beside_numbers_are_refused(tmp_path: Path) -> None:
    write_all(tmp_path, train_0=(RED_BLUE, [0, 1]), train_1=(RED_BLUE, [False, True]))
    refused(tmp_path, "train-1.parquet has labels True and False", "train-0.parquet has numbers")


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        ([0, 1], {"1": "blue", "0": "red"}, RED_BLUE),
        ([1, 2], {"1": "red", "2": "blue"}, RED_BLUE),
        ([0, 1], [7, 3], ["7", "3"]),
        (["²", "①"], None, ["²", "①"]),
        (np.array([0, 1], np.float16), None, ["0.0", "1.0"]),
        (["1e5", "null"], None, ["1e5", "null"]),
        (["NA", "true"], None, ["NA", "true"]),
        (["None", "nan"], None, ["None", "nan"]),
        (pa.array(RED_BLUE).dictionary_encode(), None, RED_BLUE),
    ],
)
def test_names_and_labels_of_many_kinds_are_read_as_they_are(
    labels: list[object], names: object, classes: list[str], tmp_path: Path
) -> None:
    source = opened(write(tmp_path / "train.parquet", RED_BLUE, labels, names))
    assert seen(source, source.pool) == list(zip(RED_BLUE, classes, strict=True))


@pytest.mark.parametrize(
    "content",
    [
        b"{not json",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"info": null}',
        b'{"info": {"features": null}}',
        b'{"info": {"features": [{"name": "label"}]}}',
        b'{"info": {"features": {"label": ["cat"]}}}',
        b'{"info": {"features": {"label": {"dtype": "int64", "_type": "Value"}}}}',
        b'{"info": {"features": {"label": {"names": []}}}}',
        b'{"info": {"features": {"label": {"names": "cat"}}}}',
        b'{"info": {"features": {"label": {"names": [null, "cat"]}}}}',
        b'{"info": {"features": {"label": {"names": {"zero": "cat"}}}}}',
        b'{"info": {"features": {"label": {"names": {"0": ["cat"]}}}}}',
        b'{"info": {"features": {"label": {"names": {"0": "a", "00": "b", "1": "c"}}}}}',
        b"[" * 200_000,
    ],
)
def test_metadata_of_any_other_form_counts_as_none(content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", RED_BLUE, [0, 1], metadata=content)
    source = opened(path)
    assert seen(source, source.pool) == [("red", "0"), ("blue", "1")]


# --- what is no label ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        ([0.0, float("nan")], None, "has 1 of 2 rows without a label: remove them"),
        ([None, None], ["a", "b"], "has 2 of 2 rows without a label: remove them"),
        ([0.2, 1.7], ["a", "b"], "column label holds 0.2, which is not a class"),
        ([0.0, float("inf")], None, "column label holds inf, which is not a class"),
        (["", "b"], None, "has 1 of 2 rows without a label: remove them"),
        ([[0], [0, 1]], None, "holds list<element: int64>, several labels an image"),
        ([{"x": 0}, {"x": 1}], None, "column label holds struct<x: int64>: store class"),
        ([b"a", b"b"], None, "column label holds binary: store class"),
        ([0, 2], ["a", "b"], "the train split has label 2, outside the 2 classes (a, b)"),
        ([0, -1], ["a", "b"], "the train split has label -1, outside the 2 classes (a, b)"),
        (["a", "b"], ["a", "b"], "the train split has label a, no number though its schema"),
        ([0, 1], ["caf\udce9", "b"], r"the class name caf\xe9 is not UTF-8: rename it"),
        ([0, 1], ["\ud800", "b"], r"the class name \ud800 is not UTF-8: rename it"),
        ([0, 1], ["", "b"], "a class has no name"),
        ([0, 1], ["\ufeff ", "b"], "a class has no name that can be seen"),
        ([0, 1], ["crane", "b", "crane"], "classes 0 and 2 are both named crane"),
        ([0, 1], ["é", "b", "e\u0301"], "classes 0 and 2 are both named"),
    ],
)
def test_what_is_no_label_and_no_name_is_refused(
    labels: list[Any], names: list[str] | None, words: str, tmp_path: Path
) -> None:
    """ImageNet's list has `crane` twice: the bird and the machine."""
    refused(write(tmp_path / "train.parquet", RED_BLUE, labels, names), words)


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    stored = pa.array([b"caf\xe9", b"b"]).buffers()
    labels = pa.StringArray.from_buffers(2, stored[1], stored[2])
    refused(write(tmp_path / "train.parquet", RED_BLUE, labels), "holds text that is not UTF-8")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        *(([-1] * 3, names) for names in (RED_BLUE, None)),
        *(([None] * 3, names) for names in (RED_BLUE, None)),
        *(([], names) for names in (RED_BLUE, None)),
        ([-1, None, -1], RED_BLUE),
        ([float("nan")] * 3, None),
        (["", "", None], None),
    ],
)
def test_a_test_split_without_labels_is_left_out_and_told(
    labels: list[object], names: list[str] | None, tmp_path: Path
) -> None:
    write(tmp_path / "train.parquet", RED_BLUE, [0, 1], names)
    path = write(tmp_path / "test.parquet", COLOURS, labels or [0] * 3, names)
    if not labels:
        pq.write_table(pq.read_table(path).drop_columns(["label"]), path)
    source = opened(tmp_path)
    assert source.test is None
    assert source.notes == (
        "the test split (3 rows) has no labels in a column label: it is left out",
    )


@pytest.mark.parametrize(
    ("split", "labels", "words"),
    [
        ("test", [0, -1], "label -1, outside the 2 classes"),
        ("test", [0, 9], "label 9, outside the 2 classes"),
        ("test", [0, None], "has 1 of 2 rows without a label"),
        ("val", [None, None], "has 2 of 2 rows without a label"),
    ],
)
def test_a_split_of_which_some_rows_have_no_label_is_refused(
    split: str, labels: list[object], words: str, tmp_path: Path
) -> None:
    train = RED_BLUE, [0, 1], RED_BLUE
    write_all(tmp_path, train=train, **{split: (RED_BLUE, labels, RED_BLUE)})
    refused(tmp_path, f"{split}.parquet", words)


def test_a_class_that_only_the_test_file_has_is_refused(tmp_path: Path) -> None:
    write_all(tmp_path, train=(RED_BLUE, [0, 1], RED_BLUE), test=(["green"], [1], COLOURS))
    refused(tmp_path, "class green stands in test but not in train, which has red, blue")


# --- files and splits ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "eval"),
        ("train", "evaluation-0"),
        ("train", "eval/0000"),
        ("TrainImages", "TestImages"),
        ("Trainset", "Testset"),
        ("Train-00000", "Test-00000"),
        ("digits_TrainData", "digits_TestData"),
        ("Train2017", "Test2017"),
        ("data/train-0", "data/test-0"),
        ("train/0", "test/0"),
        ("plain/train/0", "plain/test/0"),
        ("train.v2", "test.v2"),
    ],
)
def test_a_word_for_a_split_is_one_in_files_as_it_is_in_folders(
    train: str, test: str, tmp_path: Path
) -> None:
    write(tmp_path / f"{train}.parquet", RED_BLUE, [0, 1])
    write(tmp_path / f"{test}.parquet", ["blue"], [1])
    (tmp_path / "._train.parquet").write_bytes(b"of a Mac, and hidden")
    source = opened(tmp_path)
    assert (len(source.pool.labels), seen(source, source.test)) == (2, [("blue", "1")])


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (("train/part1/0", "train/part2/0"), ""),
        (("trainval", "eval"), "trainval.parquet: taken for training, as no file is named train"),
        (("train-0-of-3", "train-2-of-3"), "train-*-of-00003: 2 of 3 files are there"),
    ],
)
def test_what_is_assumed_of_files_is_told(
    names: tuple[str, str], note: str, tmp_path: Path
) -> None:
    for name in names:
        write(tmp_path / f"{name}.parquet", RED_BLUE, [0, 1])
    source = opened(tmp_path)
    assert len(source.pool.labels) == 2 * sum("train" in name for name in names)
    assert "".join(source.notes).startswith(note)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("test-0", "val"), "holds test-0.parquet, val.parquet but no training file: name one"),
        (("train", "extra"), "extra.parquet: no word in the name says which split"),
        (("train", "unlabeled"), "while train.parquet is named"),
        (("mnisttrain", "mnisttest2"), "mnisttest2 and mnisttrain differ in the word of a split"),
        (("train", "train-test"), "train-test.parquet names several splits (test, train)"),
        (("a/train/0", "b/test/0"), "2 configurations, in the folders a, b"),
        (("a/train", "b/test"), "2 configurations, in the folders a, b"),
        (("cat/data", "dog/data"), "if the folders are classes, put .* a column label; if"),
        (("label=cat/0", "label=dog/0"), "the folders label=cat, label=dog hold parquet files"),
    ],
)
def test_files_whose_split_is_not_clear_are_refused(
    names: tuple[str, str], words: str, tmp_path: Path
) -> None:
    for name in names:
        write(tmp_path / f"{name}.parquet", RED_BLUE, [0, 1])
    refused(tmp_path, *words.split(" .* "))


def test_several_configurations_are_named_and_one_is_chosen_by_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "coarse" / "train" / "0000.parquet", RED_BLUE, [0, 1], ["warm", "cold"])
    write(tmp_path / "fine" / "train" / "0000.parquet", RED_BLUE, [0, 1], RED_BLUE)
    write(tmp_path / "fine" / "test" / "0000.parquet", ["blue"], [1], RED_BLUE)
    refused(tmp_path, "2 configurations", "coarse, fine", f"-P data={tmp_path}/fine")
    source = opened(tmp_path / "fine")
    assert seen(source, source.test) == right("blue")
    assert opened(tmp_path / "coarse").class_names == ("warm", "cold")


# --- columns -------------------------------------------------------------------------------------


def renamed(path: Path, **names: str) -> Path:
    table = pq.read_table(path)
    other = table.rename_columns([names.get(c, c) for c in table.column_names])
    pq.write_table(other.replace_schema_metadata(table.schema.metadata), path)
    return path


@pytest.mark.parametrize("name", ["labels", "class", "category", "target", "fine_label"])
def test_one_usual_name_of_the_labels_is_enough(name: str, tmp_path: Path) -> None:
    source = opened(renamed(write(tmp_path / "train.parquet", RED_BLUE, RED_BLUE), label=name))
    assert seen(source, source.pool) == right("red", "blue")


def test_several_columns_of_labels_are_named_and_one_is_chosen(tmp_path: Path) -> None:
    warm = pa.array(["warm", "cold"])
    path = write(tmp_path / "train.parquet", RED_BLUE, RED_BLUE, coarse_label=warm)
    source = opened(path)
    assert seen(source, source.pool) == right("red", "blue")
    assert source.notes == (
        "column label is read, not coarse_label: -P label_column= chooses another",
    )
    renamed(path, label="fine_label")
    refused(path, "fine_label, coarse_label: choose one with -P label_column=fine_label")
    source = opened(path, label_column="coarse_label")
    assert seen(source, source.pool) == [("red", "warm"), ("blue", "cold")]
    assert source.notes == ()


def test_names_are_those_of_the_column_that_was_chosen(tmp_path: Path) -> None:
    features = {
        "fine": {"names": RED_BLUE, "_type": "ClassLabel"},
        "coarse": {"names": ["cold", "warm"], "_type": "ClassLabel"},
        "picture of it": {"_type": "Image"},
    }
    metadata = json.dumps({"info": {"features": features}}).encode()
    path = write(tmp_path / "train.parquet", RED_BLUE, [0, 1], None, metadata, coarse=[1, 0])
    renamed(path, label="fine", image="picture of it")
    refused(path, "several columns that may hold the classes, fine, coarse")
    source = opened(path, label_column="coarse")
    assert seen(source, source.pool) == [("red", "warm"), ("blue", "cold")]


@pytest.mark.parametrize("other", ["train-1.parquet", "test.parquet"])
def test_one_column_of_images_is_read_in_all_files(other: str, tmp_path: Path) -> None:
    masks = [png("green", number) for number in range(2)]
    write(tmp_path / "train-0.parquet", RED_BLUE, [0, 1], RED_BLUE)
    write(tmp_path / other, RED_BLUE, [0, 1], RED_BLUE, img=masks)
    source = opened(tmp_path)
    assert seen(source, source.test or source.pool)[-2:] == right("red", "blue")
    assert source.notes[0].startswith("column image is read, not img")
    renamed(tmp_path / other, image="photo", img="mask")
    refused(tmp_path, other, "has columns photo, label, mask, while other files have image")


def test_a_column_of_images_may_be_chosen(tmp_path: Path) -> None:
    masks = [png("green", number) for number in range(2)]
    source = opened(
        write(tmp_path / "train.parquet", RED_BLUE, [0, 1], mask=masks), image_column="mask"
    )
    assert seen(source, source.pool) == [("green", "0"), ("green", "1")]


@pytest.mark.parametrize("column", ["image", "label"])
def test_two_columns_of_one_name_are_refused(column: str, tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", RED_BLUE, [0, 1], other=[1, 0])
    refused(renamed(path, other=column), f"has 2 columns named {column}: rename or remove")


def test_a_test_file_without_labels_beside_others_is_refused(tmp_path: Path) -> None:
    for name in ("train", "test-0", "test-1"):
        write(tmp_path / f"{name}.parquet", RED_BLUE, [0, 1])
    renamed(tmp_path / "test-1.parquet", label="id")
    refused(tmp_path, "test-1.parquet has no column label, unlike other test files")


@pytest.mark.parametrize("key", ["label_column", "image_column"])
def test_a_column_that_is_not_there_is_refused_with_those_that_are(
    key: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "train.parquet", RED_BLUE, [0, 1])
    with pytest.raises(DataError, match=f"has columns image, label, asked for -P {key}=nothing"):
        opened(path, **{key: "nothing"})
    with pytest.raises(DataError, match="column label holds int64, no encoded images"):
        opened(path, image_column="label")
    kept = {"label_column": "image", "image_column": "label"}[key]
    pq.write_table(pq.read_table(path).select([kept]), path)
    refused(path, f"train.parquet has columns {kept}: name the images")


@pytest.mark.parametrize("data", ["digits", "folder"])
def test_columns_are_refused_where_there_are_none(
    data: str, image_folder: Path, tmp_path: Path
) -> None:
    where = "digits" if data == "digits" else str(image_folder)
    with pytest.raises(
        DataError,
        match=r"label_column=x: data=.* is neither parquet files nor a folder with a CSV file",
    ):
        open_source(where, tmp_path, label_column="x")
