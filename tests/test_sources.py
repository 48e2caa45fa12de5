"""Digits, CIFAR, parquet files and folders become labelled splits, or one line says why not."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import shutil
import socket
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from pipeline.data.base import Split
from pipeline.data.images import digest_image
from pipeline.data.open import open_source
from pipeline.data.reading import read_images
from pipeline.errors import DataError, DownloadError
from tests.conftest import class_image
from tests.helpers import fill, load_settings, opened, refused
from tests.served import NotHttp, Quiet

WriteParquet = Callable[..., Path]
CLOSED = "http://127.0.0.1:1"


def decoded(split: Split | None, rows: list[int]) -> list[Image.Image]:
    assert split is not None
    return [image for image in split.read(rows) if isinstance(image, Image.Image)]


def shown(split: Split | None, rows: list[int]) -> list[bytes]:
    return [digest_image(image) for image in decoded(split, rows)]


def pictures(*label_and_number: tuple[int, int]) -> list[bytes]:
    return [digest_image(class_image(label, number)) for label, number in label_and_number]


def counts(split: Split | None) -> list[int]:
    return np.bincount(split.labels).tolist() if split else []


def unreadable(split: Split, row: int, words: str) -> None:
    with pytest.raises(DataError, match=rf"cannot read 1 of 1 images: .*{words}"):
        read_images(split, np.array([row]), 8)


# --- digits --------------------------------------------------------------------------------------


def test_digits_are_a_pool_and_60_test_images_a_class_that_hold_them_all(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    source = open_source("digits", tmp_path)
    assert (source.name, source.class_names, source.val) == ("digits", tuple("0123456789"), None)
    assert counts(source.test) == [60] * 10
    assert not any(tmp_path.iterdir())
    read = []
    for split in filter(None, (source.pool, source.test)):
        images = decoded(split, [*range(len(split.labels))])
        read += [
            np.asarray(i)[..., 0].tobytes() + bytes([n])
            for i, n in zip(images, split.labels, strict=True)
        ]
    digits: Any = load_digits()
    original = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    everything = [i.tobytes() + bytes([n]) for i, n in zip(original, digits.target, strict=True)]
    assert sorted(read) == sorted(everything)


def test_digits_are_the_same_every_time(tmp_path: Path) -> None:
    """Another test split would change every number that was ever measured on it."""
    test = open_source("digits", tmp_path).test
    assert test is not None
    digest = hashlib.sha256(test.labels.tobytes() + b"".join(shown(test, [*range(600)])))
    assert digest.hexdigest()[:16] == "41c418d1cca531eb"


# --- image folders -------------------------------------------------------------------------------


def test_a_folder_a_class_is_a_pool_read_in_the_asked_order(image_folder: Path) -> None:
    source = opened(image_folder)
    assert (source.name, source.class_names) == ("images", ("apple", "berry", "cherry"))
    assert (source.val, source.test) == (None, None)
    assert counts(source.pool) == [12, 12, 12]
    rows = [35, 0, 12, 0]
    assert shown(source.pool, rows) == pictures((2, 11), (0, 0), (1, 0), (0, 0))


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("training", "valid", "testing"),
        ("Train", "validation", "TEST"),
        ("train", "dev", "evaluation"),
        ("train", None, "eval"),
        ("train", None, None),
    ],
)
def test_split_folders_go_by_many_names(
    train: str, val: str | None, test: str | None, tmp_path: Path
) -> None:
    for split, size, names in ((train, 3, "abc"), (val, 2, "abc"), (test, 1, "ac")):
        fill(tmp_path, *(f"{split}/{name}" for name in names if split), count=size)
    source = opened(tmp_path)
    assert source.class_names == ("a", "b", "c")
    assert counts(source.pool) == [3, 3, 3]
    assert counts(source.val) == ([2, 2, 2] if val else [])
    assert counts(source.test) == ([1, 0, 1] if test else [])


@pytest.mark.parametrize(
    "stray",
    [
        ".thumbnail.png",
        "README.md",
        ".git/config.png",
        "apple/.ipynb_checkpoints/00-checkpoint.png",
        "apple/._00.png",
        "apple/labels.pdf",
        "apple/features.h5",
        "__MACOSX/apple/x.png",
    ],
)
def test_hidden_files_and_other_files_are_passed_over(stray: str, image_folder: Path) -> None:
    (image_folder / stray).parent.mkdir(parents=True, exist_ok=True)
    (image_folder / stray).write_bytes(b"no image")
    source = opened(image_folder)
    assert source.class_names == ("apple", "berry", "cherry")
    assert counts(source.pool) == [12, 12, 12]


@pytest.mark.parametrize("name", ["x.JPG", "x.webp", "x.bmp", "deep/er/x.png", "scan.png/x.png"])
def test_images_of_any_kind_and_depth_count(name: str, image_folder: Path) -> None:
    path = image_folder / "berry" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    class_image(1, 99).save(path)
    assert counts(opened(image_folder).pool) == [12, 13, 12]


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train/a", "train/b", "test/zebra"), "class zebra stands in test but not in train"),
        (("val/a", "val/b", "test/a", "test/b"), "holds test, val but no train folder"),
        ((".",), "no images found under"),
        (("lonely",), "only one class (lonely), a classifier needs two or more: add a class"),
    ],
)
def test_folders_that_cannot_be_used_are_refused(
    folders: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    refused(fill(tmp_path, *folders), words)


def test_a_validation_split_without_images_is_left_out_and_told(tmp_path: Path) -> None:
    fill(tmp_path, "val/a", "val/b", count=0)
    source = opened(fill(tmp_path, "train/a", "train/b"))
    assert source.val is None
    assert source.notes == ("the validation split holds no image: it is left out",)


def test_a_test_split_without_images_is_left_out_and_told(tmp_path: Path) -> None:
    fill(tmp_path, "train/a", "train/b", "test/a", count=0)
    refused(tmp_path, "no images found under", "one folder for each class")
    source = opened(fill(tmp_path, "train/a", "train/b"))
    assert source.test is None
    assert source.notes == ("the test split holds no image: it is left out",)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("picture.png", "picture.png: a file that is not .parquet"),
        ("labels.csv", "labels.csv (a column of files, a column of labels)"),
        ("nowhere", "nowhere does not exist"),
    ],
)
def test_a_path_of_no_known_kind_is_named(name: str, words: str, tmp_path: Path) -> None:
    for there in ("picture.png", "labels.csv"):
        (tmp_path / there).write_bytes(b"x")
    refused(tmp_path / name, words)


@pytest.mark.parametrize("typed", [".", "../set", "../set/deeper/.."])
def test_a_data_set_is_called_what_its_folder_is_called(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_parquet: WriteParquet
) -> None:
    (tmp_path / "set" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "set")
    write_parquet(tmp_path / "set" / "TRAIN.PARQUET", [0, 1])
    assert opened(Path(typed)).name == load_settings({"data": typed}).data_name == "set"
    assert opened(Path("TRAIN.PARQUET")).class_names == ("0", "1")
    (tmp_path / "set" / "TRAIN.PARQUET").unlink()
    fill(tmp_path / "set", "a", "b")
    assert opened(Path(typed)).name == "set"


def damaged_png() -> bytes:
    buffer = io.BytesIO()
    class_image(0, 0).save(buffer, "PNG")
    return buffer.getvalue()[:200]


@pytest.mark.parametrize(
    "content", [b"", damaged_png(), b"<svg></svg>"], ids=["empty", "cut short", "another kind"]
)
def test_an_unreadable_image_is_named(content: bytes, image_folder: Path) -> None:
    (image_folder / "berry" / "05.png").write_bytes(content)
    pool = opened(image_folder).pool
    unreadable(pool, 17, r"berry/05\.png \(.+\): replace")
    assert len(read_images(pool, np.array([16, 18]), 8)) == 2


def test_a_damaged_avif_image_is_named(image_folder: Path) -> None:
    pytest.importorskip("PIL._avif")
    path = image_folder / "apple" / "x.avif"
    class_image(0, 0).save(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"iloc") + 4
    content[at : at + 12] = bytes(12)
    path.write_bytes(content)
    unreadable(opened(image_folder).pool, 12, r"x\.avif")


def test_a_decompression_bomb_is_named(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    unreadable(opened(image_folder).pool, 0, r"00\.png .*decompression bomb")


@pytest.mark.parametrize("kind", ["png", "jpg", "tiff", "webp"])
def test_a_rotated_photo_is_read_upright(kind: str, image_folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    class_image(0, 0).crop((0, 0, 32, 20)).save(image_folder / "apple" / f"x.{kind}", exif=exif)
    (image,) = decoded(opened(image_folder).pool, [12])
    assert image.size == (20, 32)


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_of_an_animation_the_first_frame_is_read(kind: str, image_folder: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (value, value, value)) for value in (250, 5, 100)]
    path = image_folder / "apple" / f"x.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    (image,) = decoded(opened(image_folder).pool, [12])
    assert abs(np.asarray(image).mean() - 250) < 2


def test_cifar_that_is_there_takes_no_lock_in_a_cache_that_may_only_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}
    for name, value in (
        ("one", batch),
        ("other", batch),
        ("batches.meta", {"label_names": ["plane", "car"]}),
    ):
        (folder / name).write_bytes(pickle.dumps(value))
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(CIFAR10, "train_list", [["one", md5["one"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["other", md5["other"]]])
    meta = {**CIFAR10.meta, "md5": md5["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    source = open_source("cifar10", tmp_path)
    assert (source.class_names, counts(source.pool)) == (("plane", "car"), [1, 1])
    assert list((tmp_path / "data").iterdir()) == [folder]


# --- parquet files -------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["img", "image"])
def test_parquet_files_are_read_with_the_class_names_of_their_schema(
    column: str, tmp_path: Path, write_parquet: WriteParquet
) -> None:
    root = tmp_path / "set"
    for split, labels in (("train", [2, 0, 1]), ("validation", [1]), ("test", [0, 0])):
        write_parquet(root / f"{split}-00000-of-00001.parquet", labels, list("xyz"), column)
    source = opened(root)
    assert (source.name, source.class_names) == ("set", ("x", "y", "z"))
    splits = [split.labels.tolist() for split in (source.pool, source.val, source.test) if split]
    assert splits == [[2, 0, 1], [1], [0, 0]]
    assert shown(source.pool, [0, 1, 2]) == pictures((2, 0), (0, 1), (1, 2))
    assert shown(source.test, [1]) == pictures((0, 1))


def test_images_may_be_plain_bytes_and_labels_words(
    tmp_path: Path, write_parquet: WriteParquet
) -> None:
    path = write_parquet(tmp_path / "train.parquet", [0, 1])
    cells = [cell["bytes"] for cell in pq.read_table(path).column("img").to_pylist()]
    pq.write_table(pa.table({"img": cells, "label": ["pear", "fig"]}), path)
    source = opened(path)
    assert shown(source.pool, [1, 0]) == pictures((1, 1), (0, 0))
    assert (source.class_names, source.pool.labels.tolist()) == (("fig", "pear"), [1, 0])


def test_rows_are_read_across_shards_in_the_asked_order(
    tmp_path: Path, write_parquet: WriteParquet
) -> None:
    for shard in range(3):
        path = tmp_path / f"train-0000{shard}-of-00003.parquet"
        write_parquet(path, [0, 1, 0], list("ab"), start=3 * shard)
    pool = opened(tmp_path).pool
    assert pool.labels.tolist() == [0, 1, 0] * 3
    rows = [8, 0, 4, 3, 8, 2]
    assert shown(pool, rows) == pictures((0, 8), (0, 0), (1, 4), (0, 3), (0, 8), (0, 2))
    assert shown(pool, []) == []


@pytest.mark.parametrize(
    "cells", [["a", None, "a", "", "b", None], [1.0, math.nan, 1.0, None, 2.0, None]]
)
def test_parquet_rows_without_a_group_are_no_group_together(
    cells: list[object], tmp_path: Path, write_parquet: WriteParquet
) -> None:
    path = write_parquet(tmp_path / "train.parquet", [0, 1, 0, 1, 0, 1], list("ab"))
    table = pq.read_table(path).append_column("who", pa.array(cells))
    pq.write_table(table, path)
    source = opened(path, group="who")
    groups = source.pool.groups
    assert groups[0] == groups[2] == ("a" if "a" in cells else "1")
    assert len(set(groups)) == 5
    assert any("each of which is a group of its own: 3" in note for note in source.notes)


def test_a_group_is_one_in_files_that_store_it_as_other_types(
    tmp_path: Path, write_parquet: WriteParquet
) -> None:
    """A writer turns a column of whole numbers with a gap into floats."""
    columns = [[12, 13], [12.0, None], ["12", "13"]]
    for shard, cells in enumerate(columns):
        path = tmp_path / f"train-{shard:05}-of-00003.parquet"
        write_parquet(path, [0, 1], list("ab"), start=2 * shard)
        pq.write_table(pq.read_table(path).append_column("patient", pa.array(cells)), path)
    groups = opened(tmp_path, group="patient").pool.groups
    assert groups[0] == groups[2] == groups[4]
    assert groups[1] == groups[5] != groups[0]


def test_one_file_may_be_the_path(tmp_path: Path, write_parquet: WriteParquet) -> None:
    source = opened(write_parquet(tmp_path / "mine.parquet", [0, 1, 1], list("ab")))
    assert (counts(source.pool), source.val, source.test) == ([1, 2], None, None)
    refused(write_parquet(tmp_path / "mine.parquet", [3, 3]), "only one class (3)")


@pytest.mark.parametrize("keep", [0, 3, 500], ids=["empty", "three bytes", "cut short"])
def test_a_corrupt_parquet_file_is_named(
    keep: int, tmp_path: Path, write_parquet: WriteParquet
) -> None:
    path = write_parquet(tmp_path / "train.parquet", [0, 1])
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "cannot read", "train.parquet (", "replace it")


@pytest.mark.parametrize("column", ["img", "label"])
def test_a_parquet_file_with_a_damaged_column_is_named(
    column: str, tmp_path: Path, write_parquet: WriteParquet
) -> None:
    path = write_parquet(tmp_path / "train.parquet", [0, 1] * 20)
    group = pq.read_metadata(path).row_group(0)
    chunks = {group.column(i).path_in_schema.split(".")[0]: i for i in (group.num_columns - 1, 0)}
    chunk = group.column(chunks[column])
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*train\.parquet"):
        read_images(opened(path).pool, np.array([0]), 8)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([b"x", b"y"], r"row 1 \(not an image"),
        ([b"x", None], r"row 1 \(no image bytes: embed"),
        ([{"bytes": b"x"}, {"bytes": None}], r"row 1 \(no image bytes: embed"),
        (
            [{"bytes": b"x", "path": "a.png"}, {"bytes": None, "path": "b.png"}],
            r"row 1 \(no image bytes, only a path",
        ),
    ],
    ids=["no image", "nothing", "no bytes", "a path beside"],
)
def test_an_unreadable_cell_is_named_by_its_row_in_its_file(
    cells: list[object], words: str, tmp_path: Path, write_parquet: WriteParquet
) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0, 1, 0])
    pq.write_table(pa.table({"img": cells, "label": [0, 1]}), tmp_path / "train-1.parquet")
    unreadable(opened(tmp_path).pool, 4, rf"train-1\.parquet {words}")


@pytest.mark.parametrize("cells", [[[1, 2], [3, 4]], ["a.png", "b.png"]])
def test_a_column_of_anything_but_encoded_images_is_refused(
    cells: list[object], tmp_path: Path
) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"img": cells, "label": [0, 1]}), path)
    refused(path, "train.parquet: column img holds ", "no encoded images")


def test_the_real_cifar_files_open(cifar_folder: Path, tmp_path: Path) -> None:
    source = open_source(str(cifar_folder), tmp_path)
    assert (source.class_names[0], len(source.class_names)) == ("airplane", 10)
    assert len(set(counts(source.pool))) == 1
    assert counts(source.test) == [1000] * 10


# --- CIFAR ---------------------------------------------------------------------------------------


def cifar_cell(label: int, number: int) -> np.ndarray:
    return np.asarray(class_image(label, number)).transpose(2, 0, 1).reshape(-1)


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401
    """Torchvision's dataset made to expect a tiny archive, which stands in `tmp_path/served`."""
    from torchvision import datasets

    dataset: Any = getattr(datasets, request.param.upper())
    labels_key = "labels" if request.param == "cifar10" else "fine_labels"
    batches = {
        entry[0]: {
            "data": np.stack([cifar_cell(label, number) for label in range(3)]),
            labels_key: [0, 1, 2],
        }
        for number, entry in enumerate(dataset.train_list + dataset.test_list)
    }
    files = batches | {dataset.meta["filename"]: {dataset.meta["key"]: ["ant", "bee", "cow"]}}
    contents = {name: pickle.dumps(content, 2) for name, content in files.items()}
    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / dataset.filename, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{dataset.base_folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

    def md5(content: bytes) -> str:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    for names in ("train_list", "test_list"):
        patched = [[name, md5(contents[name])] for name, _ in getattr(dataset, names)]
        monkeypatch.setattr(dataset, names, patched)
    name = dataset.meta["filename"]
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": md5(contents[name])})
    monkeypatch.setattr(dataset, "tgz_md5", md5((served / dataset.filename).read_bytes()))
    monkeypatch.setattr(dataset, "url", f"{CLOSED}/{dataset.filename}")
    return dataset


def name_of(cifar: Any) -> str:  # noqa: ANN401 - torchvision has no types
    return str(cifar.__name__).lower()


def test_cifar_is_downloaded_once(
    cifar: Any,  # noqa: ANN401
    serve: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = serve(partial(Quiet, directory=str(tmp_path / "served")))
    monkeypatch.setattr(cifar, "url", f"{url}/{cifar.filename}")
    for _ in range(2):
        source = open_source(name_of(cifar), tmp_path / "cache")
        assert (source.name, source.class_names) == (name_of(cifar), ("ant", "bee", "cow"))
        train, size = len(cifar.train_list), len(cifar.train_list) * 3
        assert source.pool.labels.tolist() == [0, 1, 2] * train
        assert counts(source.test) == [1, 1, 1]
        assert shown(source.pool, [size - 1, 0]) == pictures((2, train - 1), (0, 0))
        assert shown(source.test, [1]) == pictures((1, train))
        monkeypatch.setattr(cifar, "url", f"{CLOSED}/{cifar.filename}")


def test_a_cifar_archive_put_where_the_message_says_is_used(cifar: Any, tmp_path: Path) -> None:  # noqa: ANN401
    with pytest.raises(DownloadError, match=cifar.filename):
        open_source(name_of(cifar), tmp_path / "cache")
    shutil.copy(tmp_path / "served" / cifar.filename, tmp_path / "cache" / "data")
    assert len(open_source(name_of(cifar), tmp_path / "cache").class_names) == 3


def test_without_a_network_cifar_names_the_file_the_folder_and_the_way_out(
    cifar: Any,  # noqa: ANN401
    tmp_path: Path,
) -> None:
    message = (
        f"cannot download {name_of(cifar)} from {CLOSED}/{cifar.filename} .*put {cifar.filename} "
        rf"\(MD5 {cifar.tgz_md5}\) into {tmp_path / 'cache' / 'data'}, or pass -P data=<"
    )
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(77.0)
    try:
        with pytest.raises(DownloadError, match=message):
            open_source(name_of(cifar), tmp_path / "cache")
        assert socket.getdefaulttimeout() == 77.0
    finally:
        socket.setdefaulttimeout(before)


@pytest.mark.parametrize(
    ("cifar", "fault", "reason"),
    [
        ("cifar10", "wrong checksum", "corrupted"),
        ("cifar10", "not found", "404"),
        ("cifar10", "not http", "data=digits"),
    ],
    indirect=["cifar"],
)
def test_a_download_that_goes_wrong_is_an_error(
    cifar: Any,  # noqa: ANN401
    fault: str,
    reason: str,
    serve: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = serve(
        NotHttp if fault == "not http" else partial(Quiet, directory=str(tmp_path / "served"))
    )
    path = tmp_path / "served" / cifar.filename
    if fault == "wrong checksum":
        path.write_bytes(path.read_bytes() + b"!")
    if fault == "not found":
        path.unlink()
    monkeypatch.setattr(cifar, "url", f"{url}/{cifar.filename}")
    with pytest.raises(DownloadError, match=f"cannot download cifar10 .*{reason}"):
        open_source("cifar10", tmp_path / "cache")
