"""What a person should hear before training: a damaged or lacking test split, unequal classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.cache import cache_folder
from pipeline.runs.sources import source_of
from pipeline.settings.run import Settings
from tests.conftest import Command, class_image
from tests.helpers import load_settings
from tests.test_run_stage import runs


def folder(
    root: Path, sizes: tuple[int, ...] = (8, 8, 8), test: tuple[int, ...] = (4, 4, 4)
) -> Path:
    for split, counts in (("train", sizes), ("test", test)):
        for label, (name, count) in enumerate(zip("abc", counts, strict=True)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                path = root / split / name / f"{number}.png"
                class_image(label, number + 100 * (split == "test")).save(path)
    return root


@pytest.mark.parametrize("entry_point", ["main", "stage1", "tune"])
def test_a_damaged_test_image_is_refused_before_a_run_or_told_where_it_is_left_out(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str], entry_point: str
) -> None:
    root = folder(tmp_path / "set")
    (root / "test" / "b" / "2.png").write_bytes(b"")
    own = {"data": str(root), "schedule": "head_only"}
    own |= {"n_trials": "1", "stage": "1"} if entry_point == "tune" else {}
    assert command(entry_point, **own) == 2
    err = capfd.readouterr().err
    assert f"cannot read 1 of 12 test images: {root}/test/b/2.png (an empty file): " in err
    assert "-P skip_unreadable=true" in err
    assert not len(runs())
    assert command(entry_point, skip_unreadable="true", **own) == 0
    told = "note: test split: 1 image cannot be read and will be left out"
    assert told in capfd.readouterr().out


def test_a_test_split_is_looked_at_once_and_again_when_it_has_changed(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "set")
    own = {"data": str(root), "schedule": "head_only", "cache_dir": str(tmp_path / "cache")}
    assert command("stage1", **own) == 0
    settings: Settings = load_settings({"data": str(root), "cache_dir": str(tmp_path / "cache")})
    [mark] = (cache_folder(settings) / "readable").iterdir()
    assert mark.name == source_of(settings).test_digest()
    mark.write_text("kept")
    assert command("stage1", **own) == 0
    assert mark.read_text() == "kept"
    (root / "test" / "c" / "3.png").write_bytes(b"x")
    assert command("stage1", **own) == 2
    assert "cannot read 1 of 12 test images" in capfd.readouterr().err


def test_a_class_without_test_images_and_unequal_classes_are_told(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "set", (20, 10, 5), (4, 4, 0))
    sizes = {"train_per_class": "auto", "val_per_class": "auto"}
    own = {"data": str(root), "schedule": "head_only", **sizes}
    assert command("stage1", **own) == 0
    out = capfd.readouterr().out
    assert "note: no test image is of class c: test accuracies will not speak of it" in out
    assert "note: classes have 1 to 4 validation images: accuracy counts images" in out
    assert "-P metric=balanced_acc" in out
    [run_id] = runs()["run_id"]
    assert command("stage1", **own, select="val_balanced_acc") == 0
    assert "classes have" not in capfd.readouterr().out
    assert run_id


def test_counts_say_how_many_images_are_left_out_of_them(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "set", (10, 10, 10))
    for number in range(10):
        if number % 2:
            (root / "train" / "a" / f"{number}.png").write_bytes(b"")
    sizes = {"train_per_class": "auto", "val_per_class": "auto", "skip_unreadable": "on"}
    assert command("stage1", data=str(root), schedule="head_only", **sizes) in (0, 2)
    out = capfd.readouterr().out
    assert "10 a class: 8 to train, 2 to validate" in out
    assert "left out of these, as they cannot be read: " in out
