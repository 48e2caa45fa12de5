"""Test images that are copies of pool images are counted, whatever they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.base import Source
from pipeline.data.inspection.overlap import Counts, Overlap, stored_copies
from pipeline.data.open import open_source
from pipeline.data.reading import read_images
from pipeline.data.sampling.draws import Draw
from tests.conftest import class_image
from tests.helpers import make_draw, opened
from tests.test_stored import write_splits


def overlap_of(source: Source) -> Overlap:
    assert source.test
    rows = np.arange(len(source.test.labels))
    return Overlap.of(read_images(source.test, rows, 32), source)


def draw_of(source: Source, draw: int = 0) -> Draw:
    return make_draw(source, train_per_class=1, val_per_class=1, draw=draw, image_size=32)


def test_copies_are_counted_by_their_bytes(tmp_path: Path) -> None:
    root = write_splits(tmp_path / "images")
    assert not stored_copies(opened(root)).any()
    copies = {
        ("train", "apple", 1): "z.png",
        ("train", "berry", 3): "0.png",
        ("val", "cherry", 0): "b.png",
    }
    for (split, name, number), new in copies.items():
        content = (root / split / name / f"{number}.png").read_bytes()
        (root / "test" / name / new).write_bytes(content)
    source = opened(root)
    assert stored_copies(source).sum() == 3
    assert overlap_of(source).counts == Counts(images=14, copies=3, seen=0)


def test_copies_in_parquet_files_are_counted(
    tmp_path: Path, write_parquet: Callable[..., Path]
) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0, 1, 0, 1], ["a", "b"])
    write_parquet(tmp_path / "train-1.parquet", [0, 1], ["a", "b"], start=4)
    write_parquet(
        tmp_path / "test-0.parquet", [1, 0, 1, 0], ["a", "b"], start=5
    )  # one image of it
    assert stored_copies(opened(tmp_path)).tolist() == [True, False, False, False]


def test_digits_and_images_of_other_sizes_are_no_copies(tmp_path: Path) -> None:
    root = write_splits(tmp_path / "images")
    for path in (root / "test").rglob("*.png"):
        class_image(0, 1, 16).save(path)
    assert not stored_copies(opened(root)).any()
    assert not stored_copies(open_source("digits", tmp_path)).any()


def test_copies_in_another_format_are_found_in_the_draws_that_were_used(tmp_path: Path) -> None:
    root = write_splits(tmp_path / "images")
    for path in (root / "train" / "apple").iterdir():
        number = int(path.stem)
        class_image(0, number).save(root / "test" / "apple" / f"copy{number}.bmp")
    source = opened(root)
    overlap = overlap_of(source)
    assert overlap.counts == Counts(images=16, copies=0, seen=0)
    draws = [draw_of(source, n) for n in range(4)]
    for used in range(5):
        after = overlap.after(draws[:used])
        assert after.counts == Counts(images=16, copies=used, seen=used)
        assert after.after(draws[:used]).counts == after.counts
    assert overlap.after(draws[:1]).after(draws[1:2]).counts == Counts(images=16, copies=2, seen=2)


def test_a_copy_that_was_trained_on_counts_once(tmp_path: Path) -> None:
    root = write_splits(tmp_path / "images")
    for path in (root / "train" / "apple").iterdir():
        (root / "test" / "apple" / f"copy-{path.name}").write_bytes(path.read_bytes())
    source = opened(root)
    assert overlap_of(source).after([draw_of(source)]).counts == Counts(
        images=16, copies=4, seen=1
    )


def test_what_is_missing_is_counted_and_told(tmp_path: Path) -> None:
    root = write_splits(tmp_path / "images")
    for path in (root / "test" / "berry").iterdir():
        path.unlink()
    overlap = overlap_of(opened(root))
    assert overlap.counts.missing == ("berry",)
    left = replace(overlap.counts, left_out=(2, 3))
    for text in (left.words, left.note):
        assert "no test image is of class berry" in text
        assert "left out, as they cannot be read: 2 test images, 3 of draws" in text


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (
            Counts(images=9, copies=0, seen=0),
            "9 test images that no training, tuning or selection has seen",
        ),
        (
            Counts(images=9, copies=1, seen=0),
            "9 test images, of which 1 is a copy of .* (none of them was trained",
        ),
        (
            Counts(images=9, copies=4, seen=2),
            "9 test images, of which 4 are copies of .* (2 of them were trained",
        ),
    ],
)
def test_the_sentence_is_true_in_either_case(counts: Counts, words: str) -> None:
    start, _, rest = words.partition(" .* ")
    assert counts.words.startswith(start)
    assert rest in counts.words
    assert ("no training" in counts.words) is (counts.copies == 0)
    assert bool(counts.note) is (counts.copies > 0)
    assert counts.metrics == {
        "test/copies_of_pool": counts.copies,
        "test/seen_in_training": counts.seen,
    }
