"""Sizes as people write them, and as lines show them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.data.cache import shelf_of
from pipeline.system.disk.sizes import bytes_of, check_size, in_words
from tests.helpers import load_settings


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20GB", 20_000_000_000),
        ("500 MB", 500_000_000),
        ("2GiB", 2 << 30),
        ("1.5 tib", 3 << 39),
        ("3k", 3000),
        ("7 kB", 7000),
        ("12345678", 12_345_678),
        ("1000000", 1_000_000),
        ("12 b", 12),
        ("20", 20_000_000_000),  # as in earlier versions
        ("0.5", 500_000_000),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, size: int, tmp_path: Path) -> None:
    assert bytes_of(check_size(f" {text} "), tmp_path) == size


def test_a_share_is_that_of_the_disk_of_a_folder_that_may_not_be_there(tmp_path: Path) -> None:
    tenth = bytes_of("10%", tmp_path / "not" / "there")
    assert tenth == pytest.approx(shutil.disk_usage(tmp_path).total / 10, abs=1)


@pytest.mark.parametrize("value", [20.0, 20, "20.0", "20GB"])
def test_runs_of_earlier_versions_had_gigabytes(value: object, tmp_path: Path) -> None:
    settings = load_settings({"cache_dir": str(tmp_path)}, inherited={"cache_limit": value})
    shelf = shelf_of(settings)
    assert shelf
    assert shelf.limit_bytes == 20_000_000_000
    assert shelf_of(settings.model_copy(update={"cache": False})) is None


def test_a_size_is_shown_with_one_digit() -> None:
    shown = [in_words(size) for size in (0, 999, 1000, 4_816_896_000, 20e9, 2e12)]
    assert shown == ["0 bytes", "999 bytes", "1 kB", "4.8 GB", "20 GB", "2 TB"]
