"""A class number means what the names of its own file say; what is no label is refused."""

from __future__ import annotations

import io
import json
import re
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
from pipeline.data.parquet.metadata import columns_of_type, names_in
from pipeline.errors import DataError
from tests.conftest import class_image

COLOURS = ("red", "green", "blue")
"""What `class_image` draws for 0, 1 and 2: in these tests an image's colour is its class."""


def hugging_face(names: object, column: str = "label") -> dict[bytes, bytes]:
    features = {column: {"names": names, "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def png(colour: str, number: int) -> bytes:
    buffer = io.BytesIO()
    class_image(COLOURS.index(colour), number).save(buffer, "PNG")
    return buffer.getvalue()


def write(
    path: Path,
    colours: Sequence[str],
    labels: Sequence[object] | pa.Array,
    names: object = None,
    metadata: dict[bytes, bytes] | None = None,
    **others: object,
) -> Path:
    """Pictures of these colours, labelled so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [png(colour, number) for number, colour in enumerate(colours)]
    table = pa.table({"image": images, "label": labels, **others})
    metadata = hugging_face(names) if names is not None else metadata
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, path)
    return path


def opened(root: Path, **columns: str) -> Source:
    return open_source(str(root), root.parent / "cache", **columns)


def refused(root: Path, *words: str) -> None:
    with pytest.raises(DataError, match=".*".join(map(re.escape, words))):
        opened(root)


def seen(source: Source, split: Split | None) -> list[tuple[str, str]]:
    """Of every image: its colour, and the name of the class that it was given."""
    assert split is not None
    images = list(split.read(range(len(split.labels))))
    return [
        (COLOURS[int(np.asarray(image).mean((0, 1)).argmax())], source.class_names[label])
        for image, label in zip(images, split.labels, strict=True)
        if isinstance(image, Image.Image)
    ]


def right(*colours: str) -> list[tuple[str, str]]:
    return [(colour, colour) for colour in colours]


# --- names belong to their file ------------------------------------------------------------------


def test_a_test_file_that_lists_the_names_in_another_order_is_read_by_name(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "train.parquet", ["red", "blue"] * 2, [1, 0] * 2, ["blue", "red"])
    write(root / "test.parquet", ["red", "blue", "blue"], [0, 1, 1], ["red", "blue"])
    source = opened(root)
    assert source.class_names == ("blue", "red")
    assert seen(source, source.pool) == right("red", "blue", "red", "blue")
    assert seen(source, source.test) == right("red", "blue", "blue")


def test_a_test_file_that_lacks_a_class_is_read_by_name(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "train.parquet", COLOURS, [1, 2, 0], ["blue", "red", "green"])
    write(root / "test.parquet", ["green", "red"], [0, 1], ["green", "red"])
    source = opened(root)
    assert source.class_names == ("blue", "red", "green")
    assert seen(source, source.pool) == right(*COLOURS)
    assert seen(source, source.test) == right("green", "red")


def test_shards_of_one_split_are_brought_together_by_name(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "train-0.parquet", ["red", "blue"], [0, 1], ["red", "blue"])
    write(root / "train-1.parquet", ["red", "blue"], [1, 0], ["blue", "red"])
    write(root / "train-2.parquet", ["green", "blue"], [0, 2], ["green", "red", "blue"])
    write(root / "validation.parquet", ["blue", "red"], [0, 1], ["blue", "red"])
    source = opened(root)
    assert source.class_names == ("green", "red", "blue")  # of the file that lists most
    assert seen(source, source.pool) == right("red", "blue", "red", "blue", "green", "blue")
    assert seen(source, source.val) == right("blue", "red")


def test_a_test_file_may_list_classes_that_training_does_not_know_if_it_has_none_of_them(
    tmp_path: Path,
) -> None:
    root = tmp_path / "set"
    write(root / "train.parquet", ["red", "blue"], [0, 1], ["red", "blue"])
    write(root / "test.parquet", ["blue"], [2], ["green", "red", "blue"])
    source = opened(root)
    assert seen(source, source.test) == right("blue")
    write(root / "test.parquet", ["green"], [0], ["green", "red", "blue"])
    refused(root, "test.parquet: class green stands in test but not in train, which has red, blue")


@pytest.mark.parametrize("other", ["test.parquet", "validation.parquet", "train-1.parquet"])
def test_names_that_do_not_agree_are_refused_with_both_lists(other: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "train-0.parquet", ["red", "blue"], [0, 1], ["red", "blue"])
    write(root / other, ["red", "green"], [0, 1], ["red", "green"])
    refused(root, "train-0.parquet lists", "red, blue", other, "lists red, green", "neither list")


def test_text_labels_mean_their_names_in_every_file(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "train.parquet", ["red", "blue"], [1, 0], ["blue", "red"])
    write(root / "test.parquet", ["blue", "red"], ["blue", "red"])
    source = opened(root)
    assert seen(source, source.test) == right("blue", "red")


def test_numbers_of_a_file_without_names_are_those_of_training_and_told(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "train.parquet", ["red", "blue"], [1, 0], ["blue", "red"])
    write(root / "test.parquet", ["blue", "red"], [0, 1])
    source = opened(root)
    assert seen(source, source.test) == right("blue", "red")
    (note,) = source.notes
    assert note == (
        "test.parquet lists no class names: its numbers are read as those of train.parquet"
    )


def test_numbers_stay_numbers_where_training_lists_no_names_and_that_is_told(
    tmp_path: Path,
) -> None:
    root = tmp_path / "set"
    write(root / "train.parquet", ["red", "blue"], [0, 1])
    write(root / "test.parquet", ["blue", "red"], [1, 0], ["red", "blue"])
    source = opened(root)
    assert seen(source, source.test) == [("blue", "1"), ("red", "0")]
    assert "test.parquet lists class names, the training files do not" in source.notes[0]


@pytest.mark.parametrize("train", [None, ["red", "blue"]])
def test_lists_that_contradict_each_other_are_refused_where_a_file_has_none(
    train: list[str] | None, tmp_path: Path
) -> None:
    """Its numbers could mean either."""
    root = tmp_path / "set"
    write(root / "train.parquet", ["red", "blue"], [0, 1], train)
    write(root / "validation.parquet", ["red", "blue"], [0, 1], None if train else ["red", "blue"])
    write(root / "test.parquet", ["red", "blue"], [1, 0], ["blue", "red"])
    refused(root, "class 0 is", "test.parquet", "lists no names")


def test_truth_values_beside_numbers_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "train-0.parquet", ["red", "blue"], [0, 1])
    write(root / "train-1.parquet", ["red", "blue"], [False, True])
    refused(root, "train-1.parquet has labels True and False", "train-0.parquet has numbers")


def test_whole_numbers_are_one_class_however_they_are_stored(tmp_path: Path) -> None:
    """Pandas makes floats of whole numbers once a row has none."""
    root = tmp_path / "set"
    write(root / "train.parquet", ["red", "blue"], pa.array([0, 10]))
    write(root / "test.parquet", ["blue", "red"], pa.array([10.0, 0.0]))
    source = opened(root)
    assert source.class_names == ("0", "10")
    assert seen(source, source.test) == [("blue", "10"), ("red", "0")]


@pytest.mark.parametrize("names", [{"0": "red", "1": "blue"}, {"1": "blue", "0": "red"}])
def test_names_may_be_a_mapping_of_numbers(names: dict[str, str], tmp_path: Path) -> None:
    source = opened(write(tmp_path / "train.parquet", ["red", "blue"], [0, 1], names))
    assert source.class_names == ("red", "blue")
    assert seen(source, source.pool) == right("red", "blue")


def test_a_mapping_may_begin_at_one(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", ["red", "blue"], [1, 2], {"1": "red", "2": "blue"})
    source = opened(path)
    assert seen(source, source.pool) == right("red", "blue")


@pytest.mark.parametrize(
    "content",
    [
        b"{not json",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"3",
        b'{"info": null}',
        b'{"info": []}',
        b'{"info": {"features": null}}',
        b'{"info": {"features": [{"name": "label"}]}}',
        b'{"info": {"features": {"label": null}}}',
        b'{"info": {"features": {"label": ["cat"]}}}',
        b'{"info": {"features": {"label": {"names": null}}}}',
        b'{"info": {"features": {"label": {"names": []}}}}',
        b'{"info": {"features": {"label": {"names": "cat"}}}}',
        b'{"info": {"features": {"label": {"names": [null, "cat"]}}}}',
        b'{"info": {"features": {"label": {"names": {"zero": "cat"}}}}}',
        b'{"info": {"features": {"label": {"names": {"0": ["cat"]}}}}}',
        b"[" * 200_000,
    ],
)
def test_metadata_of_any_other_form_counts_as_none(content: bytes, tmp_path: Path) -> None:
    assert names_in(content, "label") is None
    assert columns_of_type(content, "Image") == []
    path = write(
        tmp_path / "train.parquet", ["red", "blue"], [0, 1], metadata={b"huggingface": content}
    )
    source = opened(path)
    assert source.class_names == ("0", "1")
    assert seen(source, source.pool) == [("red", "0"), ("blue", "1")]


def test_names_that_are_numbers_are_text(tmp_path: Path) -> None:
    assert names_in(hugging_face([7, 3])[b"huggingface"], "label") == {0: "7", 1: "3"}


@pytest.mark.parametrize("name", ["null", "NA", "nan", "None", "", "1e5", "true"])
def test_text_labels_are_text(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", ["red", "blue"], [name, "zzz"])
    if not name:
        refused(path, "train.parquet: column label holds empty text in 1 rows")
        return
    source = opened(path)
    assert dict(seen(source, source.pool)) == {"red": name, "blue": "zzz"}


# --- what is no label ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        ([0.0, float("nan")], None, "has 1 of 2 rows without a label: remove them"),
        ([0, None], None, "has 1 of 2 rows without a label: remove them"),
        ([None, None], ["a", "b"], "has 2 of 2 rows without a label: remove them"),
        ([0.0, float("nan")], ["a", "b"], "has 1 of 2 rows without a label: remove them"),
        ([0.2, 1.7], ["a", "b"], "column label holds 0.2, which is no class"),
        ([0.1, 0.5], None, "column label holds 0.1, which is no class"),
        ([0.0, float("inf")], None, "column label holds inf, which is no class"),
        ([[0], [0, 1]], None, "holds list<element: int64>, several labels an image"),
        ([[1, 0], [0, 1]], ["a", "b"], "holds list<element: int64>, several labels an image"),
        ([{"x": 0}, {"x": 1}], None, "column label holds struct<x: int64>: store one class"),
        ([b"a", b"b"], None, "column label holds binary: store one class"),
        ([0, 2], ["a", "b"], "the train split has label 2, outside the 2 classes (a, b)"),
        ([0, -1], ["a", "b"], "the train split has label -1, outside the 2 classes (a, b)"),
        (["a", "b"], ["a", "b"], "the train split has label a, no number though its schema"),
    ],
)
def test_what_is_no_label_is_refused(
    labels: list[Any], names: list[str] | None, words: str, tmp_path: Path
) -> None:
    refused(write(tmp_path / "train.parquet", ["red", "blue"], labels, names), words)


@pytest.mark.parametrize("names", [["a", "b", "a"], ["é", "b", "e\u0301"]])
def test_two_classes_of_one_name_are_refused(names: list[str], tmp_path: Path) -> None:
    """ImageNet's list has `crane` twice: the bird and the machine."""
    path = write(tmp_path / "train.parquet", COLOURS, [0, 1, 2], names)
    refused(path, "train.parquet: classes 0 and 2 are both named")


def test_a_class_name_that_cannot_be_written_as_utf_8_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", ["red", "blue"], [0, 1], ["caf\udce9", "b"])
    refused(path, r"the class name caf\xe9 is not UTF-8: rename it")
    write(path, ["red", "blue"], [0, 1], ["\ud800", "b"])
    refused(path, r"the class name \ud800 is not UTF-8: rename it")


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    stored = pa.array([b"caf\xe9", b"b"]).buffers()
    labels = pa.StringArray.from_buffers(2, stored[1], stored[2])
    refused(write(tmp_path / "train.parquet", ["red", "blue"], labels), r"not UTF-8, b'caf\xe9'")


def test_a_class_without_a_name_is_refused(tmp_path: Path) -> None:
    refused(write(tmp_path / "train.parquet", ["red", "blue"], [0, 1], ["", "b"]), "has no name")


@pytest.mark.parametrize(
    ("labels", "names"),
    [(["²", "①"], ["²", "①"]), (np.array([0, 1], np.float16), ["0.0", "1.0"])],
    ids=["digits that are no numbers", "float16"],
)
def test_odd_labels_are_labels(labels: list[object], names: list[str], tmp_path: Path) -> None:
    source = opened(write(tmp_path / "train.parquet", ["red", "blue"], labels))
    assert dict(seen(source, source.pool)) == dict(zip(("red", "blue"), names, strict=True))


@pytest.mark.parametrize("labels", [[-1] * 3, [None] * 3, [-1, None, -1], [float("nan")] * 3])
@pytest.mark.parametrize("names", [["red", "blue"], None])
def test_a_test_split_without_labels_is_left_out_and_told(
    labels: list[object], names: list[str] | None, tmp_path: Path
) -> None:
    root = tmp_path / "set"
    write(root / "train.parquet", ["red", "blue"], [0, 1], names)
    write(root / "test.parquet", COLOURS, labels, names)
    source = opened(root)
    assert source.test is None
    assert source.notes == (
        "the test split (3 rows) has no labels in a column label: it is left out",
    )


def test_a_test_file_without_a_label_column_is_left_out_and_told(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "train.parquet", ["red", "blue"], [0, 1])
    path = write(root / "test.parquet", COLOURS, [0, 0, 0])
    pq.write_table(pq.read_table(path).drop_columns(["label"]), path)
    source = opened(root)
    assert source.test is None
    assert "the test split (3 rows) has no labels" in source.notes[0]


def test_minus_one_is_a_class_where_training_has_it(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "train.parquet", ["red", "blue"], [-1, 1])
    write(root / "test.parquet", ["red"], [-1])
    source = opened(root)
    assert seen(source, source.test) == [("red", "-1")]


@pytest.mark.parametrize(
    ("labels", "words"), [([0, -1], "label -1, outside"), ([0, None], "1 of")]
)
def test_a_test_split_of_which_some_rows_have_no_label_is_refused(
    labels: list[object], words: str, tmp_path: Path
) -> None:
    root = tmp_path / "set"
    write(root / "train.parquet", ["red", "blue"], [0, 1], ["red", "blue"])
    write(root / "test.parquet", ["red", "blue"], labels, ["red", "blue"])
    refused(root, "test.parquet", words)


def test_a_validation_split_without_labels_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "train.parquet", ["red", "blue"], [0, 1])
    write(root / "val.parquet", ["red", "blue"], [None, None])
    refused(root, "val.parquet has 2 of 2 rows without a label")


# --- files and splits ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eval.parquet", "evaluation-0.parquet", "eval/0000.parquet"])
def test_files_for_evaluation_are_test_files(name: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "train.parquet", ["red", "blue"], [0, 1])
    write(root / name, ["blue"], [1])
    source = opened(root)
    assert len(source.pool.labels) == 2
    assert seen(source, source.test) == [("blue", "1")]


def test_files_of_no_split_beside_a_test_file_are_for_training_and_told(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "trainval.parquet", ["red", "blue"], [0, 1])
    write(root / "eval.parquet", ["blue"], [1])
    source = opened(root)
    assert len(source.pool.labels) == 2
    assert source.notes == ("trainval.parquet: taken for training, as no file is named train",)


@pytest.mark.parametrize("name", ["extra.parquet", "holdout.parquet", "unlabeled.parquet"])
def test_files_of_no_split_beside_a_training_file_are_refused(name: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "train.parquet", ["red", "blue"], [0, 1])
    write(root / name, ["blue"], [1])
    refused(root, name, "no word in the name says which split", "while train.parquet is named")


@pytest.mark.parametrize("name", ["{}Images", "{}set", "{}-00000", "digits_{}Data", "{}2017"])
def test_a_word_for_a_split_is_one_in_files_as_it_is_in_folders(name: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / f"{name.format('Train')}.parquet", ["red", "blue"], [0, 1])
    write(root / f"{name.format('Test')}.parquet", ["blue"], [1])
    source = opened(root)
    assert (len(source.pool.labels), seen(source, source.test)) == (2, [("blue", "1")])


def test_files_that_differ_in_a_split_within_a_word_are_refused(tmp_path: Path) -> None:
    for name in ("mnisttrain", "mnisttest2"):
        write(tmp_path / "set" / f"{name}.parquet", ["red", "blue"], [0, 1])
    refused(tmp_path / "set", "mnisttest2 and mnisttrain differ in the word of a split")


def test_files_that_a_series_lacks_are_told(tmp_path: Path) -> None:
    for number in (0, 2):
        write(tmp_path / "set" / f"train-0000{number}-of-00003.parquet", ["red", "blue"], [0, 1])
    (note,) = opened(tmp_path / "set").notes
    assert note.startswith("train-*-of-00003: 2 of 3 files are there")


def test_a_file_that_names_two_splits_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train-test.parquet", ["red", "blue"], [0, 1])
    refused(tmp_path / "set", "train-test.parquet names several splits (test, train): name one")


def test_several_configurations_are_named_and_one_is_chosen_by_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "coarse" / "train" / "0000.parquet", ["red", "blue"], [0, 1], ["warm", "cold"])
    write(root / "fine" / "train" / "0000.parquet", ["red", "blue"], [0, 1], ["red", "blue"])
    write(root / "fine" / "test" / "0000.parquet", ["blue"], [1], ["red", "blue"])
    refused(root, "2 configurations", "coarse, fine", f"-P data={root}/fine")
    source = opened(root / "fine")
    assert seen(source, source.test) == right("blue")
    assert opened(root / "coarse").class_names == ("warm", "cold")


@pytest.mark.parametrize(
    "names", [("a/train/0.parquet", "b/test/0.parquet"), ("a/train.parquet", "b/test.parquet")]
)
def test_a_test_split_of_another_configuration_is_refused(
    names: tuple[str, str], tmp_path: Path
) -> None:
    for name in names:
        write(tmp_path / "set" / name, ["red", "blue"], [0, 1])
    refused(tmp_path / "set", "2 configurations, in the folders a, b", f"data={tmp_path}/set/a;")


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-0.parquet", "data/test-0.parquet"),
        ("train/0.parquet", "test/0.parquet"),
        ("train/part1/0.parquet", "train/part2/0.parquet"),
        ("plain/train/0.parquet", "plain/test/0.parquet"),
    ],
)
def test_one_configuration_may_be_spread_over_folders(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    for name in names:
        write(tmp_path / "set" / name, ["red", "blue"], [0, 1])
    source = opened(tmp_path / "set")
    assert len(source.pool.labels) == 2 * sum("train" in name for name in names)


# --- columns -------------------------------------------------------------------------------------


def renamed(path: Path, **names: str) -> Path:
    table = pq.read_table(path)
    other = table.rename_columns([names.get(c, c) for c in table.column_names])
    pq.write_table(other.replace_schema_metadata(table.schema.metadata), path)
    return path


@pytest.mark.parametrize("name", ["labels", "class", "category", "target", "fine_label"])
def test_one_usual_name_of_the_labels_is_enough(name: str, tmp_path: Path) -> None:
    path = renamed(write(tmp_path / "train.parquet", ["red", "blue"], ["red", "blue"]), label=name)
    source = opened(path)
    assert seen(source, source.pool) == right("red", "blue")


def test_several_columns_of_labels_are_named_and_one_is_chosen(tmp_path: Path) -> None:
    warm = ["warm", "cold"]
    path = write(
        tmp_path / "train.parquet", ["red", "blue"], ["red", "blue"], coarse_label=pa.array(warm)
    )
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
        "fine": {"names": ["red", "blue"], "_type": "ClassLabel"},
        "coarse": {"names": ["cold", "warm"], "_type": "ClassLabel"},
        "picture of it": {"_type": "Image"},
    }
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    path = write(
        tmp_path / "train.parquet", ["red", "blue"], [0, 1], None, metadata, coarse=[1, 0]
    )
    renamed(path, label="fine", image="picture of it")
    refused(path, "several columns that may hold the classes, fine, coarse")
    source = opened(path, label_column="coarse")
    assert seen(source, source.pool) == [("red", "warm"), ("blue", "cold")]


def test_a_column_of_images_may_be_chosen(tmp_path: Path) -> None:
    masks = [png("green", number) for number in range(2)]
    path = write(tmp_path / "train.parquet", ["red", "blue"], [0, 1], mask=masks)
    source = opened(path, image_column="mask")
    assert seen(source, source.pool) == [("green", "0"), ("green", "1")]


@pytest.mark.parametrize("other", ["train-1.parquet", "test.parquet"])
def test_one_column_of_images_is_read_in_all_files(other: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    masks = [png("green", number) for number in range(2)]
    write(root / "train-0.parquet", ["red", "blue"], [0, 1], ["red", "blue"])
    write(root / other, ["red", "blue"], [0, 1], ["red", "blue"], img=masks)
    source = opened(root)
    assert seen(source, source.pool)[-2:] == right("red", "blue")
    assert seen(source, source.test or source.pool)[-2:] == right("red", "blue")
    assert source.notes[0].startswith("column image is read, not img")
    renamed(root / other, image="photo", img="mask")
    refused(root, other, "has columns photo, label, mask, while other files have image")


@pytest.mark.parametrize("column", ["image", "label"])
def test_two_columns_of_one_name_are_refused(column: str, tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", ["red", "blue"], [0, 1], other=[1, 0])
    renamed(path, other=column)
    refused(path, f"has 2 columns named {column}: rename or remove")


def test_a_test_file_without_labels_beside_others_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("train", "test-0", "test-1"):
        write(root / f"{name}.parquet", ["red", "blue"], [0, 1])
    renamed(root / "test-1.parquet", label="id")
    refused(root, "test-1.parquet has no column label, unlike other test files")


@pytest.mark.parametrize("key", ["label_column", "image_column"])
def test_a_column_that_is_not_there_is_refused_with_those_that_are(
    key: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "train.parquet", ["red", "blue"], [0, 1])
    with pytest.raises(DataError, match=f"has columns image, label, asked for -P {key}=nothing"):
        opened(path, **{key: "nothing"})


@pytest.mark.parametrize("data", ["digits", "folder"])
def test_columns_are_refused_where_there_are_none(
    data: str, image_folder: Path, tmp_path: Path
) -> None:
    where = "digits" if data == "digits" else str(image_folder)
    with pytest.raises(DataError, match=r"label_column=x: data=.* is no parquet file: leave"):
        open_source(where, tmp_path, label_column="x")
