"""A data set is known by its images, not by where they lie, and no image is decoded for that."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.base import Source, Split
from pipeline.data.draws import set_aside
from pipeline.data.open import open_source
from pipeline.data.stored import SAMPLED, spread
from tests.conftest import class_image, write_image_folder

NAMES = ("apple", "berry", "cherry")


def digest_of(path: Path) -> str:
    return open_source(str(path), path / "no-cache").digest()


def write_splits(root: Path) -> Path:
    """Folders train, val and test."""
    for start, split in enumerate(("train", "val", "test")):
        for label, name in enumerate(NAMES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                class_image(label, 100 * start + number).save(folder / f"{number}.png")
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


def change_nothing(_root: Path) -> None:
    pass


def add_an_image(root: Path) -> None:
    class_image(0, 77).save(root / "train" / "apple" / "9.png")


def remove_an_image(root: Path) -> None:
    (root / "train" / "berry" / "0.png").unlink()


def replace_a_validation_image(root: Path) -> None:
    class_image(0, 78).save(root / "val" / "apple" / "0.png")


def rename_a_class(root: Path) -> None:
    for split in ("train", "val", "test"):
        (root / split / "cherry").rename(root / split / "plum")


def move_an_image(root: Path) -> None:
    (root / "train" / "apple" / "3.png").rename(root / "train" / "berry" / "-1.png")


def swap_two_images(root: Path) -> None:
    one, two = (root / "train" / "apple" / f"{n}.png" for n in (0, 1))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def replace_a_test_image(root: Path) -> None:
    class_image(0, 78).save(root / "test" / "apple" / "0.png")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (change_nothing, True),
        (replace_a_test_image, True),
        (add_an_image, False),
        (remove_an_image, False),
        (replace_a_validation_image, False),
        (rename_a_class, False),
        (move_an_image, False),
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
        for label, name in enumerate(NAMES):
            (tmp_path / owner / "images" / name).mkdir(parents=True)
            for number in range(50):
                path = tmp_path / owner / "images" / name / f"{number:02}.bmp"
                class_image(label, start + number, 8).save(path)
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
    stored = open_source(str(tmp_path), tmp_path).pool.stored
    assert stored is not None
    contents = list(stored.read(range(9)))
    assert [len(content) for content in contents] == stored.sizes().tolist()
    assert len(set(contents)) == 9
    assert list(stored.read([1, 2, 7])) == [contents[row] for row in (1, 2, 7)]


@pytest.mark.parametrize("data", ["digits"])
def test_images_that_come_with_a_library_are_known_too(data: str, tmp_path: Path) -> None:
    source = open_source(data, tmp_path)
    assert source.digest() == open_source(data, tmp_path).digest()
    assert source.pool.stored is not None
    assert source.pool.stored.sizes().tolist() == [64] * len(source.pool.labels)


def test_a_test_split_that_is_set_aside_leaves_another_pool(tmp_path: Path) -> None:
    source = open_source(str(write_image_folder(tmp_path / "images")), tmp_path)
    digests = [set_aside(source, count).digest() for count in (0, 2, 2, 3)]
    assert digests[0] == source.digest()
    assert digests[1] == digests[2]
    assert len(set(digests)) == 3
    part = set_aside(source, 2)
    assert part.pool.stored
    assert part.test
    assert part.test.stored
    whole = source.pool.stored
    assert whole
    both = [*part.pool.stored.read(range(30)), *part.test.stored.read(range(6))]
    assert sorted(both) == sorted(whole.read(range(36)))


def test_no_image_is_decoded_and_an_unreadable_one_stops_nothing(image_folder: Path) -> None:
    (image_folder / "apple" / "00.png").write_bytes(b"no image")
    (image_folder / "apple" / "01.png").write_bytes(b"")
    assert len(digest_of(image_folder)) == 64


def test_a_split_without_stored_images_goes_by_its_labels() -> None:
    def source(labels: list[int]) -> Source:
        return Source(
            name="any",
            class_names=("a", "b"),
            pool=Split(np.array(labels, dtype=np.int64), lambda _: iter(())),
        )

    assert source([0, 1]).digest() == source([0, 1]).digest()
    assert source([0, 1]).digest() != source([1, 0]).digest()


def test_the_sample_spreads_over_all_rows() -> None:
    assert spread(3) == [0, 1, 2]
    assert spread(0) == []
    rows = spread(40_000)
    assert len(set(rows)) == SAMPLED
    assert (rows[0], rows[-1]) == (0, 39_999)
    assert max(np.diff(rows)) - min(np.diff(rows)) <= 1
