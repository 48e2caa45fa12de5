"""A data set is known by its images, not by where they lie, and no image is decoded for that."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.open import open_source
from pipeline.data.sampling.draws import set_aside
from pipeline.data.stored import SAMPLED, spread
from tests.conftest import class_image, write_image_folder
from tests.helpers import fill, opened

NAMES = ("apple", "berry", "cherry")


def digest_of(path: Path) -> str:
    return opened(path).digest()


def write_splits(root: Path) -> Path:
    """Folders train, val and test."""
    for start, split in enumerate(("train", "val", "test")):
        fill(root, *(f"{split}/{name}" for name in NAMES), count=4, start=100 * start)
    for path in root.rglob("?0?.png"):
        path.rename(path.with_name(path.name[2:]))
    return root


def test_moved_and_renamed_folders_are_the_same_data_set(tmp_path: Path) -> None:
    digest = digest_of(write_image_folder(tmp_path / "images"))
    assert len(digest) == 64
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere" / "other name")
    assert digest_of(tmp_path / "elsewhere" / "other name") == digest
    for path in (tmp_path / "images").rglob("*.png"):
        os.utime(path, (0, 0))
        path.rename(path.with_name(f"new-{path.name}"))  # in the same order
    assert digest_of(tmp_path / "images") == digest


def test_the_folder_of_a_split_is_the_same_data_set_as_the_root_that_holds_no_other(
    tmp_path: Path,
) -> None:
    root = write_splits(tmp_path / "images")
    shutil.rmtree(root / "val")
    assert digest_of(root) == digest_of(root / "train")


def replace_an_image(split: str, root: Path) -> None:
    class_image(0, 78).save(root / split / "apple" / "0.png")


def rename_a_class(root: Path) -> None:
    for split in ("train", "val", "test"):
        (root / split / "cherry").rename(root / split / "plum")


def swap_two_images(root: Path) -> None:
    one, two = (root / "train" / "apple" / f"{n}.png" for n in (0, 1))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (partial(replace_an_image, "test"), True),
        (partial(replace_an_image, "val"), False),
        (lambda root: class_image(0, 7).save(root / "train" / "apple" / "9.png"), False),
        (lambda root: (root / "train" / "berry" / "0.png").unlink(), False),
        (
            lambda root: (root / "train/apple/3.png").rename(root / "train/berry/-1.png"),
            False,
        ),
        (rename_a_class, False),
        (swap_two_images, False),
    ],
)
def test_other_images_that_draws_are_dealt_from_are_another_data_set(
    change: Callable[[Path], None], same: bool, tmp_path: Path
) -> None:
    root = write_splits(tmp_path / "images")
    before = digest_of(root)
    change(root)
    assert (digest_of(root) == before) is same


def test_images_of_one_size_and_one_name_are_told_apart_by_their_bytes(tmp_path: Path) -> None:
    for owner, start in (("ann", 0), ("bob", 1000)):
        for path in fill(tmp_path / owner / "images", *NAMES, count=50).rglob("*.png"):
            class_image(0, start + int(path.stem), 8).save(path.with_suffix(".bmp"))
            path.unlink()
    ann, bob = (sorted((tmp_path / owner).rglob("*.bmp")) for owner in ("ann", "bob"))
    assert [p.stat().st_size for p in ann] == [p.stat().st_size for p in bob]
    assert digest_of(tmp_path / "ann" / "images") != digest_of(tmp_path / "bob" / "images")


def test_parquet_files_may_move_and_are_known_by_their_cells(
    tmp_path: Path, write_parquet: Callable[..., Path]
) -> None:
    for folder, start in (("one", 0), ("two/images", 0), ("other", 50)):
        write_parquet(tmp_path / folder / "train-0.parquet", [0, 1] * 6, ["a", "b"], start=start)
    digest = digest_of(tmp_path / "one")
    assert digest_of(tmp_path / "two" / "images") == digest
    assert digest_of(tmp_path / "other") != digest
    write_parquet(tmp_path / "one" / "test-0.parquet", [0, 1], ["a", "b"])
    assert digest_of(tmp_path / "one") == digest
    # read again once the file is another
    write_parquet(tmp_path / "one" / "train-0.parquet", [0, 1] * 6, ["a", "b"], start=50)
    assert digest_of(tmp_path / "one") == digest_of(tmp_path / "other")


def test_the_bytes_of_parquet_cells_are_read_over_several_files(
    tmp_path: Path, write_parquet: Callable[..., Path]
) -> None:
    for part in range(3):
        write_parquet(tmp_path / f"train-{part}.parquet", [0, 1, 1], ["a", "b"], start=10 * part)
    stored = opened(tmp_path).pool.stored
    contents = list(stored.read(range(9)))
    assert [len(content) for content in contents] == stored.sizes().tolist()
    assert len(set(contents)) == 9
    assert list(stored.read([1, 2, 7])) == [contents[row] for row in (1, 2, 7)]


def test_the_digest_of_digits_is_that_of_earlier_versions(tmp_path: Path) -> None:
    """Else no finished run would be found any more."""
    digits = open_source("digits", tmp_path)
    assert digits.digest()[:16] == "27a7d67ca35af229"
    assert digits.pool.stored.sizes().tolist() == [64] * len(digits.pool.labels)


def test_a_test_split_that_is_set_aside_leaves_another_pool(tmp_path: Path) -> None:
    source = open_source(str(write_image_folder(tmp_path / "images")), tmp_path)
    digests = [set_aside(source, count).digest() for count in (0, 2, 2, 3)]
    assert digests[0] == source.digest()
    assert digests[1] == digests[2]
    assert len(set(digests)) == 3
    part = set_aside(source, 2)
    assert part.test
    both = [*part.pool.stored.read(range(30)), *part.test.stored.read(range(6))]
    assert sorted(both) == sorted(source.pool.stored.read(range(36)))


def test_no_image_is_decoded_and_an_unreadable_one_stops_nothing(image_folder: Path) -> None:
    (image_folder / "apple" / "00.png").write_bytes(b"no image")
    (image_folder / "apple" / "01.png").write_bytes(b"")
    assert len(digest_of(image_folder)) == 64


def test_the_sample_spreads_over_all_rows() -> None:
    assert spread(3) == [0, 1, 2]
    assert spread(0) == []
    rows = spread(40_000)
    assert len(set(rows)) == SAMPLED
    assert (rows[0], rows[-1]) == (0, 39_999)
    assert max(np.diff(rows)) - min(np.diff(rows)) <= 1
